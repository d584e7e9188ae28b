"""One pass over the entries of two aligned checkpoints -> a row for each pair of tensors.

Weights are read as in an audit: in the same order, through the same sources, with the same workers.
No spectrum is solved. The caller decides what to measure of a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import MatrixPair, Operand
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.stored_tensors import DecodedTensor, StoredTensor, sharing
from shadow.checkpoints.transfers import Transfer
from shadow.dtypes import FLOATS, INTEGERS, float_format
from shadow.errors import ShadowError, UndecodableError
from shadow.places.architecture import Part, Place
from shadow.run.plan import make_plan, require_disk_at_once, sources_of
from shadow.run.runtime import AlignedPair, Gathering, Pass, Runtime
from shadow.run.scanned import Scanned, Unmatched, in_order
from shadow.run.workers import in_workers, jobs_of, own_workspace, views
from shadow.spectra.copies import has_few_levels
from shadow.spectra.entries import Binades, compared
from shadow.spectra.lazy import half_ulp, is_quantised
from shadow.spectra.levels import Made
from shadow.spectra.measurement import Method
from shadow.spectra.relations.format_noise import format_noise
from shadow.spectra.spectrum import Sides, tiles, working_dtype
from shadow.spectra.sums import Extremes, looked_at
from shadow.templates import said
from shadow.text import and_list

Row = TypeVar("Row")
Measure = Callable[[MatrixPair, Checkpoint, Checkpoint], Row | Unmatched]
"""What is made of a pair, whose sources are at hand; or why it is not compared."""


def scan(
    aligned: AlignedPair,
    measure: Measure[Row],
    runtime: Runtime,
    scratch: Path,
    unread: list[Unmatched] | None = None,
) -> Gathering[list[Row]]:
    """Measure every pair, in the order of their keys.

    unread: collects tensors that `measure` does not compare or that cannot be decoded, by name;
    without it these raise UndecodableError. Raises ShadowError for weights that are not available.
    """

    def measured(
        pair: MatrixPair, base: Checkpoint = aligned.base, tuned: Checkpoint = aligned.tuned
    ) -> tuple[str, Row | Unmatched]:
        try:
            return pair.key, measure(pair, base, tuned)
        except UndecodableError as fault:
            if unread is None:
                raise
            return pair.key, _undecoded(pair, base, fault)
        finally:  # of bytes that were written to meanwhile, this is the fault whatever came of them
            for source in sources_of(pair, base, tuned):
                source.require_unchanged()

    own = Pass(aligned, measured)
    yield own
    made = {key for key, _ in own.rows}
    made |= {guest.key for some in own.guests.values() for other, guest in some if other is own}
    left = [pair for pair in aligned.pairs if pair.key not in made]
    aligned = replace(aligned, pairs=left)
    plan = make_plan(aligned, runtime.access, folder=scratch, scratch=scratch)
    plan.require_disk()

    def measured_with_guests(pair: MatrixPair) -> list[tuple[Pass, Any]]:
        guests = own.guests.get(pair.key, [])
        with sharing() if guests else nullcontext():
            rows: list[tuple[Pass, Any]] = [(own, measured(pair, plan.base, plan.tuned))]
            for other, guest in guests:
                # other passes meet an error in what is left to them
                with nullcontext() if other is own else suppress(ShadowError):
                    rows.append((other, other.measure(guest)))
        return rows

    jobs = jobs_of(runtime, left, Method("norms"))
    with closing(in_workers(plan, measured_with_guests, runtime, jobs, weigh=_entries)) as every:
        for rows in every:
            for other, row in rows:
                other.rows.append(row)
    found = sorted(own.rows, key=itemgetter(0))
    if unread is not None:
        apart = [row for _, row in found if isinstance(row, Unmatched)]
        unread[:] = sorted({*unread, *apart}, key=in_order)
    return [row for _, row in found if not isinstance(row, Unmatched)]


def _entries(pair: MatrixPair) -> int:
    return pair.rows * pair.cols


def _undecoded(pair: MatrixPair, base: Checkpoint, fault: UndecodableError) -> Unmatched:
    side, info = "tuned", pair.tuned.info
    if pair.base is not None:
        try:
            base.tensor(pair.base.info)
        except UndecodableError:
            side, info = "base", pair.base.info
    return Unmatched(
        info.name, side, said(fault.message.removeprefix(f"{info.name} ({info.dtype}): "))
    )


def sides_of(pair: MatrixPair, base: Checkpoint, tuned: Checkpoint) -> Sides:
    """Return both sides of a pair that has a base, in the dtype that their formats need."""
    assert pair.base is not None, "lined up"
    first, second = views(pair, pair.base, base, tuned)
    dtype = working_dtype(pair.base.info.dtype, pair.tuned.info.dtype)
    return Sides(first, second, dtype, own_workspace())


def scanned(pair: MatrixPair, sides: Sides, binades: Binades | None = None) -> Scanned:
    """Return the row of a pair that has a base. binades: also gets its entries."""
    assert pair.base is not None, "lined up"
    formats = pair.base.info.dtype, pair.tuned.info.dtype
    found = compared(sides, formats, binades)
    return Scanned(
        place=in_words(pair.place),
        base=pair.base.info.name,
        tuned=pair.tuned.info.name,
        formats=formats,
        entries=found.entries,
        changed=found.changed,
        base_energy=found.base,
        tuned_energy=found.tuned,
        delta_energy=found.delta,
        inner=found.base + found.along,
        finite=found.finite,
        rounded=found.rounded,
    )


def is_raw(pair: MatrixPair) -> bool:
    """Return whether a pair has no floats: whole numbers, or bytes that are not decoded."""
    return pair.reading in ("bytes", "numbers")


def in_words(place: Place) -> str:
    """Return `language.layers.0.attn.q`, as rules write places; an expert follows its module."""
    parts = [place.component]
    if place.layer is not None:
        parts.append(f"layers.{place.layer}")
    parts.append(place.module)
    if place.expert is not None:
        parts.append(str(place.expert))
    return ".".join(parts)


def fetch_all(checkpoints: Sequence[Checkpoint], runtime: Runtime) -> Runtime:
    """Fetch every shard, and return the runtime with what --max-disk leaves. Raises ShadowError."""
    sources = [source for one in checkpoints for source in one.sources.values()]
    names = and_list([one.reference for one in checkpoints])
    need = require_disk_at_once(f"the weights of {names}", sources, runtime.access)
    for source in sources:
        source.fetch(Transfer(runtime.say))
    most = runtime.access.max_disk
    left = None if most is None else max(0, most - need)
    return replace(runtime, access=replace(runtime.access, max_disk=left))


def require_unchanged(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise ShadowError if weights that were read outside a scan have been written to since."""
    for checkpoint in checkpoints:
        for source in checkpoint.sources.values():
            source.require_unchanged()


Read = StoredTensor | DecodedTensor
NOWHERE = Place("other", None, "other")


@dataclass(frozen=True)
class Swept:
    """A tensor and statistics of its entries."""

    info: TensorInfo
    found: Extremes


def sweep(
    checkpoint: Checkpoint, tensors: Iterable[TensorInfo], runtime: Runtime, scratch: Path
) -> Gathering[tuple[list[Swept], list[Unmatched]]]:
    """Return all tensors of floats or packed numbers, by name, and those not decodable."""
    pairs = [
        MatrixPair(replace(NOWHERE, slot=info.name), None, Operand(info, Part(NOWHERE)), rows, cols,
                   is_matrix=False)
        for info in tensors
        if info.parameters and not info.problem and not info.alias_of
        if info.dtype in FLOATS or info.dtype in INTEGERS or info.packing
        for rows, cols in [_sides(info)]
    ]  # fmt: skip

    def measure(pair: MatrixPair, _: Checkpoint, own: Checkpoint) -> Swept:
        info = pair.tuned.info
        raw = info if info.dtype in FLOATS or info.packing else _bytes(info)
        view = own.tensor(raw).seen(lambda tensor: tensor.reshape(_sides(raw)))
        slices = info.shape[0] if len(info.shape) == 3 and "exp" in info.name else 1
        return Swept(info, looked_at(view, own_workspace(), raw.dtype, slices))

    unread: list[Unmatched] = []
    aligned = AlignedPair(replace(checkpoint, adapter=None), checkpoint, pairs, [])
    found = yield from scan(aligned, measure, runtime, scratch, unread)
    return sorted(found, key=lambda one: one.info.name), unread


def _sides(info: TensorInfo) -> tuple[int, int]:
    """Return rows and columns: all dimensions but the last are rows."""
    cols = info.shape[-1] if len(info.shape) > 1 else info.parameters
    return info.parameters // max(1, cols), cols


def _bytes(info: TensorInfo) -> TensorInfo:
    """Return numbers that are not floats as a row of bytes."""
    return replace(info, dtype="U8", shape=(1, info.end - info.start), strides=None)


def same_values(read: Callable[[TensorInfo], Read], one: TensorInfo, other: TensorInfo) -> bool:
    """Return whether two tensors hold equal values."""
    if one.shape != other.shape:
        return False
    formats, sides = (one.dtype, other.dtype), _sides(one)
    if not all(info.dtype in FLOATS or info.packing for info in (one, other)):
        one, other = _bytes(one), _bytes(other)
        return formats[0] == formats[1] and torch.equal(read(one).whole(), read(other).whole())
    first, second = (read(info).seen(lambda raw: raw.reshape(sides)) for info in (one, other))
    return not compared(
        Sides(first, second, working_dtype(*formats), own_workspace()), formats
    ).changed


def same_slices(stack: Read, numbers: Sequence[int], dtype: str) -> bool:
    """Return whether two matrices of a stack hold equal values."""
    first, second = (stack.seen(itemgetter(number)) for number in numbers)
    sides = Sides(first, second, working_dtype(dtype, dtype), own_workspace())
    return not compared(sides, (dtype, dtype)).changed


SMALLEST = 2.0**-24  # of F16, which may have come between
Rounding = (
    Made | Literal["not_finite", "both_quantised", "base_rounded", "few_levels", "another_way"]
)


def rounding_between(sides: Sides, row: Scanned, *, is_matrix: bool) -> Rounding | None:
    """Find rounding, other than one cast of all, that may have made one side of the other."""
    if not row.finite:
        return "not_finite"
    first, second = sides.base, sides.tuned
    if is_quantised(second):
        if is_quantised(first):
            return "both_quantised"
        return format_noise(first, second).may_be(row.formats[1])
    if is_quantised(first):
        is_base = format_noise(second, first).may_be(row.formats[0]) is not None
    else:
        is_base = row.rounded == ("base", row.formats[0])
    if is_base:
        return "base_rounded"
    if row.rounded:
        return None
    if is_matrix and has_few_levels(first, second):
        return "few_levels"
    return "another_way" if _is_within_a_unit(sides, row) else None


def _is_within_a_unit(sides: Sides, row: Scanned) -> bool:
    """Return whether no tuned entry, in fewer bits than the base, is a unit in the last place away,
    as after several roundings. A wider file may hold BF16, and F16 may have come between.
    """
    first, second = map(float_format, row.formats)
    is_file_alone = first.bits <= second.bits
    if is_file_alone:
        second = FLOATS["BF16"]
    units = 2 if first.mantissa_bits > second.mantissa_bits else 0
    if not units and row.delta_energy > row.entries * SMALLEST**2:
        return False
    for index, _ in tiles(sides.tuned):
        base, tuned = (tile.double().contiguous() for tile in sides.read(index))
        if is_file_alone and (tuned.bfloat16().double() != tuned).any():
            return False
        if ((tuned - base).abs() > units * half_ulp(base, second) + SMALLEST).any():
            return False
    return True


def is_initial(sides: Sides) -> bool:
    """Return whether every entry of the base is 1, or every one is 0, as norms and biases start."""
    ends = {float(end) for index, _ in tiles(sides.tuned) for end in sides.read(index)[0].aminmax()}
    return ends in ({0.0}, {1.0})


def binades_of(pair: MatrixPair) -> Binades | None:
    """Return a counter of entries by the size of the base's entry; None unless steps of floats."""
    assert pair.base is not None, "lined up"
    infos = pair.base.info, pair.tuned.info
    if is_raw(pair) or any(one.packing or one.dtype not in FLOATS for one in infos):
        return None
    first, second = (FLOATS[one.dtype] for one in infos)
    # what the cast to fewer bits moved is no step
    return None if first.bits > second.bits else Binades(second)
