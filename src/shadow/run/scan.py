"""One pass over the entries of two aligned checkpoints -> a row for each pair of tensors.

Weights are read as in an audit: in the same order, through the same sources, with the same workers.
No spectrum is solved. The caller decides what to measure of a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, replace
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import MatrixPair, Operand
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.sources import Source
from shadow.checkpoints.stored_tensors import DecodedTensor, StoredTensor, sharing
from shadow.checkpoints.transfers import Transfer
from shadow.dtypes import FLOATS, INTEGERS, float_format
from shadow.errors import ShadowError, UndecodableError
from shadow.places.architecture import Part, Place
from shadow.run.plan import make_plan, require_disk_at_once, sources_of
from shadow.run.runtime import AlignedPair, Gathering, Pass, Runtime
from shadow.run.scanned import Scanned, Unmatched, in_order
from shadow.run.workers import base_of, formats_of, in_workers, jobs_of, own_workspace, views
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
    planned = {key for key, _ in own.rows}
    for guests in own.guests.values():
        for other, guest in guests:
            if other is own:
                planned.add(guest.key)
    left = [pair for pair in aligned.pairs if pair.key not in planned]
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
    weigh = attrgetter("entries")
    results = in_workers(plan, measured_with_guests, runtime, jobs, weigh=weigh)
    with closing(results):
        for rows in results:
            for other, row in rows:
                other.rows.append(row)
    made_rows: list[Row] = []
    not_compared = set(unread or ())
    for _, row in sorted(own.rows, key=itemgetter(0)):
        if isinstance(row, Unmatched):
            not_compared.add(row)
        else:
            made_rows.append(row)
    if unread is not None:
        unread[:] = sorted(not_compared, key=in_order)
    return made_rows


def _undecoded(pair: MatrixPair, base: Checkpoint, fault: UndecodableError) -> Unmatched:
    side = "tuned"
    info = pair.tuned.info
    if pair.base is not None:
        try:
            base.tensor(pair.base.info)
        except UndecodableError:
            side = "base"
            info = pair.base.info
    prefix = f"{info.name} ({info.dtype}): "
    why = fault.message.removeprefix(prefix)
    return Unmatched(info.name, side, said(why))


def sides_of(pair: MatrixPair, base: Checkpoint, tuned: Checkpoint) -> Sides:
    """Both sides of a pair that has a base, in the dtype that their formats need."""
    first, second = views(pair, base, tuned)
    dtype = working_dtype(*formats_of(pair))
    return Sides(first, second, dtype, own_workspace())


def scanned(pair: MatrixPair, sides: Sides, binades: Binades | None) -> Scanned:
    """The row of a pair that has a base. binades: also gets its entries."""
    formats = formats_of(pair)
    sums = compared(sides, formats, binades)
    return Scanned(
        place=in_words(pair.place),
        base=base_of(pair).info.name,
        tuned=pair.tuned.info.name,
        formats=formats,
        entries=sums.entries,
        changed=sums.changed,
        base_energy=sums.base,
        tuned_energy=sums.tuned,
        delta_energy=sums.delta,
        inner=sums.base + sums.along,
        finite=sums.finite,
        rounded=sums.rounded,
    )


def is_raw(pair: MatrixPair) -> bool:
    """True if a pair has no floats: whole numbers, or bytes that are not decoded."""
    return pair.reading in ("bytes", "numbers")


def in_words(place: Place) -> str:
    """`language.layers.0.attn.q`, as rules write places; an expert follows its module."""
    parts = [place.component]
    if place.layer is not None:
        parts.append(f"layers.{place.layer}")
    parts.append(place.module)
    if place.expert is not None:
        parts.append(str(place.expert))
    return ".".join(parts)


def fetch_all(checkpoints: Sequence[Checkpoint], runtime: Runtime) -> Runtime:
    """Fetch every shard, and return the runtime with what --max-disk leaves. Raises ShadowError."""
    sources: list[Source] = []
    names = []
    for checkpoint in checkpoints:
        sources += checkpoint.sources.values()
        names.append(checkpoint.reference)
    weights = f"the weights of {and_list(names)}"
    need = require_disk_at_once(weights, sources, runtime.access)
    for source in sources:
        source.fetch(Transfer(runtime.say))
    limit = runtime.access.max_disk
    if limit is None:
        return runtime
    access = replace(runtime.access, max_disk=limit - need)
    return replace(runtime, access=access)


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
    extremes: Extremes


def sweep(
    checkpoint: Checkpoint, tensors: Iterable[TensorInfo], runtime: Runtime, scratch: Path
) -> Gathering[tuple[list[Swept], list[Unmatched]]]:
    """All tensors of floats or packed numbers, by name, and those not decodable."""
    pairs = []
    for info in tensors:
        if not info.parameters or info.problem or info.alias_of:
            continue
        if _has_floats(info) or info.dtype in INTEGERS:
            place = replace(NOWHERE, slot=info.name)
            operand = Operand(info, Part(NOWHERE))
            rows, cols = _sides(info)
            pairs.append(MatrixPair(place, None, operand, rows, cols, is_matrix=False))

    def measure(pair: MatrixPair, _: Checkpoint, own: Checkpoint) -> Swept:
        info = pair.tuned.info
        stored = info
        if not _has_floats(info):
            stored = _bytes(info)
        shape = _sides(stored)
        entries = own.tensor(stored).seen(lambda tensor: tensor.reshape(shape))
        slices = 1
        if len(info.shape) == 3 and "exp" in info.name:
            slices = info.shape[0]
        return Swept(info, looked_at(entries, own_workspace(), stored.dtype, slices))

    unread: list[Unmatched] = []
    aligned = AlignedPair(replace(checkpoint, adapter=None), checkpoint, pairs, [])
    swept = yield from scan(aligned, measure, runtime, scratch, unread)
    swept.sort(key=lambda tensor: tensor.info.name)
    return swept, unread


def _has_floats(info: TensorInfo) -> bool:
    """True if a tensor has floats, as it is stored or once it is unpacked."""
    return info.dtype in FLOATS or info.packing is not None


def _sides(info: TensorInfo) -> tuple[int, int]:
    """Rows and columns: all dimensions but the last are rows."""
    cols = info.shape[-1] if len(info.shape) > 1 else info.parameters
    return info.parameters // max(1, cols), cols


def _bytes(info: TensorInfo) -> TensorInfo:
    """Numbers that are not floats as a row of bytes."""
    return replace(info, dtype="U8", shape=(1, info.stored_size), strides=None)


def same_values(read: Callable[[TensorInfo], Read], first: TensorInfo, second: TensorInfo) -> bool:
    """True if two tensors hold equal values."""
    if first.shape != second.shape:
        return False
    formats = (first.dtype, second.dtype)
    if not _has_floats(first) or not _has_floats(second):
        if first.dtype != second.dtype:
            return False
        stored = read(_bytes(first)).whole()
        return torch.equal(stored, read(_bytes(second)).whole())
    shape = _sides(first)
    base = read(first).seen(lambda tensor: tensor.reshape(shape))
    tuned = read(second).seen(lambda tensor: tensor.reshape(shape))
    sides = Sides(base, tuned, working_dtype(*formats), own_workspace())
    return not compared(sides, formats).changed


def same_slices(stack: Read, numbers: Sequence[int], dtype: str) -> bool:
    """True if two matrices of a stack hold equal values."""
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
    base = sides.base
    tuned = sides.tuned
    base_format, tuned_format = row.formats
    if is_quantised(tuned):
        if is_quantised(base):
            return "both_quantised"
        return format_noise(base, tuned).may_be(tuned_format)
    if is_quantised(base):
        is_base = format_noise(tuned, base).may_be(base_format) is not None
    else:
        is_base = row.rounded == ("base", base_format)
    if is_base:
        return "base_rounded"
    if row.rounded:
        return None
    if is_matrix and has_few_levels(base, tuned):
        return "few_levels"
    if _is_within_a_unit(sides, row):
        return "another_way"
    return None


def _is_within_a_unit(sides: Sides, row: Scanned) -> bool:
    """True if no tuned entry, in fewer bits than the base, is a unit in the last place away,
    as after several roundings. A wider file may hold BF16, and F16 may have come between.
    """
    first, second = map(float_format, row.formats)
    is_file_alone = first.bits <= second.bits
    if is_file_alone:
        second = FLOATS["BF16"]
    units = 0
    if first.mantissa_bits > second.mantissa_bits:
        units = 2
    if not units and row.delta_energy > row.entries * SMALLEST**2:
        return False
    for index, _ in tiles(sides.tuned):
        base_tile, tuned_tile = sides.read(index)
        base = base_tile.double().contiguous()
        tuned = tuned_tile.double().contiguous()
        if is_file_alone:
            rounded = tuned.bfloat16().double()
            if not torch.equal(rounded, tuned):
                return False
        distance = (tuned - base).abs()
        most = units * half_ulp(base, second) + SMALLEST
        if (distance > most).any():
            return False
    return True


def is_initial(sides: Sides) -> bool:
    """True if every entry of the base is 1, or every one is 0, as norms and biases start."""
    ends = set()
    for index, _ in tiles(sides.tuned):
        base, _ = sides.read(index)
        least, most = base.aminmax()
        ends.add(float(least))
        ends.add(float(most))
    return ends in ({0.0}, {1.0})


def binades_of(pair: MatrixPair) -> Binades | None:
    """A counter of entries by the size of the base's entry; None unless steps of floats."""
    if is_raw(pair):
        return None
    formats = []
    for info in (base_of(pair).info, pair.tuned.info):
        if info.packing or info.dtype not in FLOATS:
            return None
        formats.append(FLOATS[info.dtype])
    first, second = formats
    if first.bits > second.bits:  # what the cast to fewer bits moved is no step
        return None
    return Binades(second)
