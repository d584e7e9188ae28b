"""Two checkpoints with every tensor of both accounted for: in a pair, alone, or not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from shadow.checkpoints.formats import owner_of
from shadow.checkpoints.opening import Checkpoint, sharing
from shadow.checkpoints.pairing import (
    NO_BASE,
    OF_CONFIG,
    Filter,
    MatrixPair,
    Operand,
    Skipped,
    pair_checkpoints,
)
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.dtypes import FLOATS, torch_name
from shadow.places.architecture import Part, Place, place_tensors
from shadow.run.machine import default_jobs, machine_limits
from shadow.run.runtime import AlignedPair, Progress, Runtime
from shadow.run.scan import BYTES, NUMBERS, in_words, is_raw, scanned, sides_of
from shadow.run.scanned import Apart, Scanned, in_order
from shadow.run.workers import views
from shadow.spectra.entries import Binades, differing_bytes
from shadow.spectra.lazy import Matrix
from shadow.spectra.mixture import Mixed, Read, products, read
from shadow.templates import Reason, said
from shadow.text import short

# bytes that are compared as they are: any pattern of 8 bits is one of this format's values
RAW = "F8_E5M2"
LOOKED_AT = 64  # names from which a prefix is guessed

Names = tuple[str, str]
"""What both checkpoints are called in answers, such as A and B."""


@dataclass(frozen=True)
class Lined:
    """Two open checkpoints, every tensor of which is in one of these."""

    pair: AlignedPair
    lone: list[Apart]
    """What only one of them has."""
    unread: list[Apart]
    """What cannot be read."""
    notes: tuple[Reason, ...]
    """How names differ, where they do."""
    places: Mapping[str, set[Place]]
    """Of every tensor, by its name."""


def line_up_all(first: Checkpoint, second: Checkpoint, names: Names) -> Lined:
    """Pair every tensor of two checkpoints; those that share their bytes with another as well."""
    first, second = plain(first), plain(second)
    second, prefix = _without_prefix(second, first)
    longer = names[1]
    if not prefix and not first.parts:
        first, prefix = _without_prefix(first, second)
        longer = names[0]
    notes = []
    if prefix:
        other = names[0] if longer == names[1] else names[1]
        figures = {"where": longer, "other": other, "prefix": short(prefix)}
        notes.append(Reason("prefixed", figures))
    second = sharing(second, first)
    pairs, skipped = pair_checkpoints(first, second, Filter(), may_differ=True)
    lined, lone, unread = _sorted_out(pairs, skipped, names, is_whole=not first.parts)
    named = [(pair.base, pair.tuned) for pair in lined]
    renamed = sum(base is not None and base.info.name != tuned.info.name for base, tuned in named)
    if renamed:
        notes.append(Reason("renamed", {"tensors": renamed, "where": names[1]}))
    return Lined(
        AlignedPair(first, second, lined, []),
        lone,
        unread,
        tuple(notes),
        _places(pairs, skipped, {"base": first, "tuned": second}),
    )


def parts_of(checkpoint: Checkpoint) -> dict[str, tuple[Part, ...]]:
    """The matrices that every tensor holds, by its name."""
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    return place_tensors(shapes, checkpoint.config)


def plain(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint whose tensors are all compared, those that share their bytes included."""
    tensors = {name: replace(info, alias_of=None) for name, info in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors, adapter=None)


def _without_prefix(checkpoint: Checkpoint, other: Checkpoint) -> tuple[Checkpoint, str]:
    """The checkpoint without what most of its names have before a name of the other's; and that.

    An exporter that wraps a model twice writes such names. Places are read from names, so that they
    would not be found.
    """
    names = [name for name in checkpoint.tensors if name not in other.tensors]
    if 2 * len(names) < len(checkpoint.tensors):
        return checkpoint, ""
    prefixes = Counter[str]()
    for name in islice(names, LOOKED_AT):
        parts = name.split(".")
        for cut in range(1, len(parts)):
            if ".".join(parts[cut:]) in other.tensors:
                prefixes[".".join(parts[:cut]) + "."] += 1
    for prefix, _ in prefixes.most_common(1):
        bare = {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        if 2 * sum(name in other.tensors for name in bare.values()) <= len(names):
            continue
        tensors = {
            bare.get(name, name): replace(info, name=bare.get(name, name))
            for name, info in checkpoint.tensors.items()
        }
        if len(tensors) == len(checkpoint.tensors):
            return replace(checkpoint, tensors=tensors), prefix
    return checkpoint, ""


def _sorted_out(
    pairs: Sequence[MatrixPair], skipped: Sequence[Skipped], names: Names, *, is_whole: bool
) -> tuple[list[MatrixPair], list[Apart], list[Apart]]:
    """Every tensor of both in a pair, or in what only one of them has, or in what is not read.

    is_whole: whether the first is one checkpoint. Otherwise a component may have none in it.
    """
    lone: list[Apart] = []
    unread: list[Apart] = []
    lined: list[MatrixPair] = []
    for pair in pairs:
        if pair.base is None and not is_whole:
            unread.append(Apart(pair.tuned.info.name, "tuned", said(pair.detail)))
            continue
        if pair.base is None:
            only = Reason("only_in", {"where": names[1]})
            lone.append(Apart(pair.tuned.info.name, "tuned", only))
            continue
        lined.append(pair)
        if pair.detail:
            lone.append(_grown(pair, names))
    by_name: dict[str, dict[str, Skipped]] = {}
    for tensor in skipped:
        # filtered: of a part of the base that stands for another component
        if tensor.reason != "filtered" and tensor.detail != OF_CONFIG:
            by_name.setdefault(tensor.info.name, {})[tensor.side] = tensor
    unpacked = {
        role_of(tensor.place)
        for of_name in by_name.values()
        for tensor in of_name.values()
        if tensor.reason == "quantized"
        and (len(of_name) == 1 or any(one.reason != "quantized" for one in of_name.values()))
    }
    for of_name in by_name.values():
        base, tuned = of_name.get("base"), of_name.get("tuned")
        if base and tuned and (alike := _named_alike(base, tuned)):
            lined.append(alike)
            continue
        for tensor in of_name.values():
            if tensor.reason == "tied" and (head := _head_pair(tensor, pairs, skipped)):
                if head.key not in {pair.key for pair in lined}:
                    lined.append(head)
            elif not is_whole and tensor.detail.startswith(NO_BASE.format("")):
                unread.append(Apart(tensor.info.name, tensor.side, said(tensor.detail)))
            elif _is_unread(tensor) or (
                tensor.reason in ("only_in_base", "only_in_tuned")
                and role_of(tensor.place) in unpacked
            ):
                why = said(tensor.detail) if tensor.detail else Reason("not_read")
                unread.append(Apart(tensor.info.name, tensor.side, why))
            elif base and tuned and (how := _shapes(base, tuned, names)):
                lone.append(Apart(tensor.info.name, "tuned", how, is_shared=True))
            else:
                lone.append(Apart(tensor.info.name, tensor.side, _why(tensor, names)))
    return lined, sorted(set(lone), key=in_order), sorted(set(unread), key=in_order)


def _places(
    pairs: Sequence[MatrixPair], skipped: Sequence[Skipped], sides: Mapping[str, Checkpoint]
) -> dict[str, set[Place]]:
    """The places of every tensor, by its name; not of what stands for another component."""
    places: dict[str, set[Place]] = {}
    for pair in pairs:
        for operand in (pair.base, pair.tuned):
            if operand is not None:
                places.setdefault(operand.info.name, set()).add(pair.place)
    config = sides["base"].config or sides["tuned"].config
    for side, checkpoint in sides.items():
        mine = [one for one in skipped if one.side == side and one.reason != "filtered"]
        held = {} if checkpoint.parts else _held(checkpoint, checkpoint.config or config, mine)
        for tensor in mine:
            name = tensor.info.name
            places.setdefault(name, set()).update(held.get(name) or {tensor.place})
        for name, info in checkpoint.tensors.items():  # one of two at the same place
            if any(place.slot.startswith("\0") for place in places.get(name, ())):
                alone = place_tensors({name: info.shape}, checkpoint.config or config)
                places[name] = {part.place for part in alone[name]}
    return places


def _held(
    checkpoint: Checkpoint, config: Mapping[str, object], skipped: Sequence[Skipped]
) -> dict[str, set[Place]]:
    """The places of all matrices that skipped tensors hold; those of what belongs to packed
    numbers, such as their scales, are those of its module.
    """
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    parts = place_tensors(shapes, config)
    owners = {}
    for tensor in skipped:
        name = tensor.info.name
        if tensor.reason == "quantized" and parts[name][0].place.module == "other":
            owner, piece = owner_of(name)
            owners[name] = owner if piece.startswith("_") else f"{owner}.weight"
            size = shapes.pop(name)
            shapes.setdefault(owners[name], (*size[: len(size) > 2], 2, 2))
    if owners:
        parts |= place_tensors(shapes, config)
    names = {tensor.info.name for tensor in skipped}
    return {name: {part.place for part in parts[owners.get(name, name)]} for name in names}


def _whole(tensor: Skipped) -> Place:
    """The place of a tensor that is not cut; a stack of experts is at that of none of them."""
    is_stack = len(tensor.info.shape) > 2
    return replace(tensor.place, expert=None) if is_stack else tensor.place


def _grown(pair: MatrixPair, names: Names) -> Apart:
    """The rows that only one side has of a vocabulary."""
    assert pair.base is not None, "lined up"
    more = pair.tuned.shape[0] - pair.base.shape[0]
    side, name, operand = (
        ("tuned", names[1], pair.tuned) if more > 0 else ("base", names[0], pair.base)
    )
    why = Reason("rows_only_in", {"rows": abs(more), "where": name})
    return Apart(operand.info.name, side, why, is_shared=True)


def role_of(place: Place) -> tuple[object, ...]:
    """What a tensor is in a model, however it is stored."""
    return place.component, place.layer, place.module, place.expert


def _is_unread(tensor: Skipped) -> bool:
    return tensor.reason in ("quantized", "unknown_dtype", "unreadable")


def _why(tensor: Skipped, names: Names) -> Reason:
    """Why a tensor has no partner."""
    if tensor.reason == "shape_differs":
        detail = tensor.detail.replace("base ", f"{names[0]} ").replace("tuned ", f"{names[1]} ")
        return said(detail)
    return Reason("only_in", {"where": names[0] if tensor.side == "base" else names[1]})


def _shapes(base: Skipped, tuned: Skipped, names: Names) -> Reason | None:
    """In what shape or dtype two tensors of one name differ; None where they do not."""
    first, second = base.info, tuned.info
    if base.reason == "shape_differs":
        return _why(base, names)
    if first.shape != second.shape:
        one, other = (" x ".join(map(str, info.shape)) or "1" for info in (first, second))
        sides = {"first": one, "a": names[0], "second": other, "b": names[1]}
        return Reason("shapes", sides)
    if first.dtype != second.dtype:
        sides = {"first": first.dtype, "a": names[0], "second": second.dtype, "b": names[1]}
        return Reason("dtypes", sides)
    return None


def _named_alike(base: Skipped, tuned: Skipped) -> MatrixPair | None:
    """Two tensors of one name and shape whose places say nothing: floats and whole numbers entry by
    entry, all else byte by byte where the dtypes are equal.
    """
    first, second = base.info, tuned.info
    if first.problem or second.problem or first.shape != second.shape:
        return None
    if {base.reason, tuned.reason} & {"shape_differs", "tied"}:
        return None
    place = replace(_whole(tuned), slot=f"\0{second.name}")
    if {base.reason, tuned.reason} == {"only_in_base", "only_in_tuned"}:
        one, other = Operand(first, Part(place)), Operand(second, Part(place))
        return MatrixPair(place, one, other, 1, first.parameters, is_matrix=False)
    if first.strides or second.strides:
        return None
    size = first.end - first.start
    is_numbers = base.reason == tuned.reason == "not_float"
    if not is_numbers and (first.dtype, size) != (second.dtype, second.end - second.start):
        return None
    sides = [Operand(_raw(info), Part(place)) for info in (first, second)]
    how = NUMBERS if is_numbers else BYTES
    return MatrixPair(place, sides[0], sides[1], 1, size, is_matrix=False, detail=how)


def is_whole(pair: MatrixPair) -> bool:
    """Whether a pair is of two tensors that are not cut, whatever matrices they hold."""
    return pair.place.slot.startswith("\0") and pair.place.module != "head"


def _raw(info: TensorInfo) -> TensorInfo:
    return replace(info, dtype=RAW, shape=(info.end - info.start,), packing=None)


def whole_numbers(checkpoint: Checkpoint, name: str) -> NDArray[np.generic] | None:
    """The entries of a tensor of whole numbers; None where they cannot be read as they are."""
    info = checkpoint.tensors[name]
    if info.problem or info.strides:
        return None
    stored = checkpoint.tensor(_raw(info)).whole().view(torch.uint8).numpy()
    return stored.view(torch_name(info.dtype))


def _head_pair(
    head: Skipped, pairs: Sequence[MatrixPair], skipped: Sequence[Skipped]
) -> MatrixPair | None:
    """A head that is stored although its config ties it to the embedding, beside the other side's:
    its head, or its embedding.
    """
    known = {pair.place.module: pair for pair in reversed(pairs) if pair.place.layer is None}
    partner = known.get("head") or known.get("embed")
    if partner is None or partner.base is None:
        return None
    mine = Operand(head.info, Part(head.place))
    other = partner.base if head.side == "tuned" else partner.tuned
    stored = [one for one in skipped if one.reason == "tied" and one.side != head.side]
    if stored:
        other = Operand(stored[0].info, Part(head.place))
    if mine.shape != other.shape:
        return None
    base, tuned = (other, mine) if head.side == "tuned" else (mine, other)
    rows, cols = mine.shape
    place = replace(head.place, slot=f"\0{head.info.name}")
    return MatrixPair(place, base, tuned, rows=rows, cols=cols, is_matrix=True)


def row_of(
    pair: MatrixPair, base: Checkpoint, tuned: Checkpoint, binades: Binades | None = None
) -> Scanned:
    """The row of a pair; of bytes without norms. binades: gets the entries of others as well."""
    assert pair.base is not None, "lined up"
    if not is_raw(pair):
        row = scanned(pair, base, tuned, binades)
        is_tied = [one.part.place.module == "embed" != pair.place.module
                   for one in (pair.base, pair.tuned)]  # fmt: skip
        side = "second" if is_tied[1] else "first"
        remark = f"as the head of the {side}, which its config ties to the embedding"
        return replace(row, remark=remark) if any(is_tied) else row
    first, second = pair.base.info.name, pair.tuned.info.name
    entries, changed, remark = pair.cols, 0, ""
    if pair.detail == NUMBERS:
        one, other = whole_numbers(base, first), whole_numbers(tuned, second)
        assert one is not None, "lined up"
        assert other is not None, "lined up"
        entries, changed = one.size, int(np.count_nonzero(np.not_equal(one, other)))
    else:
        changed, remark = differing_bytes(sides_of(pair, base, tuned)), BYTES
    return Scanned(
        place=in_words(pair.place),
        base=first,
        tuned=second,
        formats=(base.tensors[first].dtype, tuned.tensors[second].dtype),
        entries=entries,
        changed=changed,
        remark=remark,
    )


Line = Sequence[tuple[MatrixPair, Lined]]
"""One tensor of the tuned model beside that of every other."""


def lines_of(lined: Sequence[Lined]) -> tuple[list[Line], list[Apart]]:
    """The tensors of floats that all models have, in one shape; and what is not read."""
    by_key = [{pair.key: pair for pair in other.pair.pairs} for other in lined]
    lines: list[Line] = []
    unread = [one for other in lined for one in other.unread]
    for key, pair in by_key[0].items():
        if not pair.rows * pair.cols or not all(key in others for others in by_key):
            continue
        line = [(others[key], other) for others, other in zip(by_key, lined, strict=True)]
        name = pair.tuned.info.name
        if any(is_raw(one) for one, _ in line):
            if any(row_of(one, of.pair.base, of.pair.tuned).changed for one, of in line):
                unread.append(Apart(name, "tuned", Reason("other_numbers")))
        elif pair.tuned.info.packing or pair.tuned.info.dtype not in FLOATS:
            unread.append(Apart(name, "tuned", Reason("no_floats")))
        elif not any(one.detail for one, _ in line):  # rows that not all have are alone
            lines.append(line)
    return lines, [*dict.fromkeys(unread)]


@contextmanager
def in_threads(lines: Sequence[Line], runtime: Runtime) -> Iterator[Callable[..., Any]]:
    """`map` over tensors in threads, with its progress."""
    pairs = [line[0][0] for line in lines]
    jobs = runtime.jobs or default_jobs(pairs, runtime.limits or machine_limits())

    def each(do: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        total = len(items)
        for done, one in enumerate(pool.map(do, items), 1):
            runtime.show(Progress(done=done, total=total, cost_done=done, cost_total=total))
            yield one

    with (
        threadpool_limits(limits=1, user_api="blas"),
        ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        yield each


def mixed(line: Line, *, has_base: bool) -> Mixed:
    """A tensor with its sums of products. has_base: whether the last of the others is the base."""

    def parts() -> Iterator[Read]:
        sides: list[Matrix] = []
        for pair, one in line:
            assert pair.base is not None, "lined up"
            side, tuned = views(pair, pair.base, one.pair.base, one.pair.tuned)
            sides.append(side)
        return read(tuned, sides.pop() if has_base else None, sides)

    place, info, part = line[0][0].place, line[0][0].tuned.info, line[0][0].tuned.part
    name = f"{info.name} ({in_words(place)})" if part.rows or part.experts else info.name
    return Mixed(name, place.layer, info.dtype, has_base, parts, products(parts(), info.dtype))
