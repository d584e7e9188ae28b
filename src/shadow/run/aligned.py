"""Two checkpoints with every tensor accounted for: in a pair, without a partner, or not read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from shadow.checkpoints.formats import owner_of
from shadow.checkpoints.gguf_files import COMPUTED
from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import (
    Filter,
    MatrixPair,
    Operand,
    Reading,
    Skipped,
    pair_checkpoints,
)
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.dtypes import torch_name
from shadow.places.architecture import Part, Place, place_tensors
from shadow.reasons import ONE_SIDED
from shadow.reports.provenance import SIDES
from shadow.run.runtime import AlignedPair
from shadow.run.scan import in_words, is_raw, scanned, sides_of
from shadow.run.scanned import Scanned, Unmatched, in_order
from shadow.spectra.entries import Binades, differing_bytes
from shadow.spectra.spectrum import Sides
from shadow.templates import Reason, said
from shadow.text import short

# bytes that are compared as they are: any pattern of 8 bits is one of this format's values
RAW = "F8_E5M2"
LOOKED_AT = 64  # names from which a prefix is guessed
UNREAD = ("quantized", "unknown_dtype", "unreadable")  # reasons of what cannot be read

Names = tuple[str, str]
"""What both checkpoints are called in answers, such as A and B."""


@dataclass(frozen=True)
class Alignment:
    """Two open checkpoints, each of whose tensors is in one of these fields."""

    pair: AlignedPair
    unmatched: list[Unmatched]
    """What only one of them has."""
    unread: list[Unmatched]
    """What cannot be read."""
    notes: tuple[Reason, ...]
    """How names differ, where they do."""
    places: Mapping[str, set[Place]]
    """Of every tensor, by its name."""


def align_all(first: Checkpoint, second: Checkpoint, names: Names) -> Alignment:
    """Pair every tensor of two checkpoints, including those that share their bytes with another."""
    first, second, notes = without_prefixes(plain(first), plain(second), names)
    pairs, skipped = pair_checkpoints(first, second, Filter(), may_differ=True)
    tensors = _sorted_out(pairs, skipped, names, is_whole=not first.parts)
    aligned = tensors.aligned
    renamed = sum(pair.base.info.name != pair.tuned.info.name for pair in aligned if pair.base)
    if renamed:
        notes.append(Reason("renamed", tensors=renamed, where=names[1]))
    return Alignment(
        AlignedPair(first, second, aligned, []),
        tensors.unmatched,
        tensors.unread,
        tuple(notes),
        _places(pairs, skipped, {"base": first, "tuned": second}),
    )


def parts_of(checkpoint: Checkpoint) -> dict[str, tuple[Part, ...]]:
    """Return the matrices of every tensor, by its name."""
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    return place_tensors(shapes, checkpoint.config)


def plain(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose tensors are all compared, even those that share their bytes."""
    tensors = {name: replace(info, alias_of=None) for name, info in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors, adapter=None)


def without_prefixes(
    first: Checkpoint, second: Checkpoint, names: Names
) -> tuple[Checkpoint, Checkpoint, list[Reason]]:
    """Drop the prefix that one side has before most names and the other has not; note it."""
    other, where = names
    second, prefix = _without_prefix(second, first)
    if not prefix and not first.parts:
        first, prefix = _without_prefix(first, second)
        where, other = names
    figures = {"where": where, "other": other, "prefix": short(prefix)}
    return first, second, [Reason("prefixed", figures)] if prefix else []


def _without_prefix(checkpoint: Checkpoint, other: Checkpoint) -> tuple[Checkpoint, str]:
    """Drop the prefix that an exporter put before most names; return it too."""
    names = [name for name in checkpoint.tensors if name not in other.tensors]
    if 2 * len(names) < len(checkpoint.tensors):
        return checkpoint, ""
    prefixes = Counter(
        name[: dot.end()]
        for name in names[:LOOKED_AT]
        for dot in re.finditer(r"\.", name)
        if name[dot.end() :] in other.tensors
    )
    for prefix, _ in prefixes.most_common(1):
        bare = {name: name.removeprefix(prefix) for name in names}
        if 2 * sum(name in other.tensors for name in bare.values()) <= len(names):
            continue
        tensors = {
            bare.get(name, name): replace(info, name=bare.get(name, name))
            for name, info in checkpoint.tensors.items()
        }
        if len(tensors) == len(checkpoint.tensors):
            return replace(checkpoint, tensors=tensors), prefix
    return checkpoint, ""


@dataclass(frozen=True)
class _Tensors:
    """Tensors of two checkpoints: in a pair, of one of them alone, or not read."""

    aligned: list[MatrixPair]
    unmatched: list[Unmatched]
    unread: list[Unmatched]


def _sorted_out(
    pairs: Sequence[MatrixPair], skipped: Sequence[Skipped], names: Names, *, is_whole: bool
) -> _Tensors:
    """Sort every tensor.

    is_whole: whether the first is one checkpoint. Otherwise a component may have none in it.
    """
    aligned = [pair for pair in pairs if pair.base is not None]
    unmatched = [_grown(pair, names) for pair in aligned if pair.detail]
    unread: list[Unmatched] = []
    for pair in pairs:
        name = pair.tuned.info.name
        if pair.base is None and is_whole:
            unmatched.append(Unmatched(name, "tuned", Reason("only_in", where=names[1])))
        elif pair.base is None:
            unread.append(Unmatched(name, "tuned", said(pair.detail)))
    by_name: dict[str, dict[str, Skipped]] = {}
    for tensor in skipped:
        # filtered: of a part of the base that stands for another component
        if tensor.reason != "filtered":
            by_name.setdefault(tensor.info.name, {})[tensor.side] = tensor
    for name in [*by_name]:  # what is computed from the config need not be stored
        if len(by_name[name]) == 1 and COMPUTED.fullmatch(name):
            del by_name[name]
    unpacked = {
        role_of(tensor.place)
        for of_name in by_name.values()
        for tensor in of_name.values()
        if tensor.reason == "quantized"
        and [one.reason for one in of_name.values()].count("quantized") == 1
    }
    misshapen = {
        (one.side, one.place): one.info for one in skipped if one.reason == "shape_differs"
    }
    for of_name in by_name.values():
        base = of_name.get("base")
        tuned = of_name.get("tuned")
        if base and tuned and (alike := _named_alike(base, tuned)):
            aligned.append(alike)
            continue
        for tensor in of_name.values():
            info = tensor.info
            side = tensor.side
            place = tensor.place
            is_unmatched = tensor.reason in ONE_SIDED
            if tensor.reason == "tied" and (head := _head_pair(tensor, pairs, skipped)):
                if head.key not in {pair.key for pair in aligned}:
                    aligned.append(head)
            elif (
                tensor.reason in UNREAD
                or (is_unmatched and role_of(place) in unpacked)
                or (tensor.reason == "not_a_matrix" and not is_whole)  # without a base
            ):
                why = said(tensor.detail) if tensor.detail else Reason("not_read")
                unread.append(Unmatched(info.name, side, why))
            elif base and tuned and (how := _how_they_differ(base.info, tuned.info, names)):
                unmatched.append(Unmatched(info.name, "tuned", how, is_shared=True))
            else:
                why = Reason("only_in", where=names[side == "tuned"])
                if tensor.reason == "shape_differs":  # and the names do too
                    one, other = (misshapen.get((of, place)) for of in SIDES)
                    why = _how_they_differ(one, other, names) or said(tensor.detail)
                unmatched.append(Unmatched(info.name, side, why))
    return _Tensors(
        aligned, sorted(set(unmatched), key=in_order), sorted(set(unread), key=in_order)
    )


def _places(
    pairs: Sequence[MatrixPair], skipped: Sequence[Skipped], sides: Mapping[str, Checkpoint]
) -> dict[str, set[Place]]:
    """Return the places of every tensor, by name, except of stand-ins for another component."""
    places: dict[str, set[Place]] = {}
    for pair in pairs:
        for operand in (pair.base, pair.tuned):
            if operand is not None:
                places.setdefault(operand.info.name, set()).add(pair.place)
    for side, checkpoint in sides.items():
        config = checkpoint.config or sides["base"].config or sides["tuned"].config
        mine = [one for one in skipped if one.side == side and one.reason != "filtered"]
        held = {} if checkpoint.parts else _held(checkpoint, config, mine)
        for tensor in mine:
            name = tensor.info.name
            places.setdefault(name, set()).update(held.get(name) or {tensor.place})
        for name, info in checkpoint.tensors.items():
            if any(place.is_unplaced for place in places.get(name, ())):
                alone = place_tensors({name: info.shape}, config)
                places[name] = {part.place for part in alone[name]}
    return places


def _held(
    checkpoint: Checkpoint, config: Mapping[str, object], skipped: Sequence[Skipped]
) -> dict[str, set[Place]]:
    """Return the places of all matrices in skipped tensors; scales are where their numbers are."""
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    parts = place_tensors(shapes, config)
    owners = {tensor.info.name: tensor.info.name for tensor in skipped}
    for tensor in skipped:
        name = tensor.info.name
        if tensor.reason == "quantized" and parts[name][0].place.module == "other":
            owner, piece = owner_of(name)
            owners[name] = owner if piece.startswith("_") else f"{owner}.weight"
            size = shapes.pop(name)
            shapes.setdefault(owners[name], (*size[: len(size) > 2], 2, 2))
    parts |= place_tensors(shapes, config)
    return {name: {part.place for part in parts[owner]} for name, owner in owners.items()}


def _grown(pair: MatrixPair, names: Names) -> Unmatched:
    """Return the rows of a vocabulary that only one side has."""
    assert pair.base is not None, "lined up"
    more = pair.tuned.shape[0] - pair.base.shape[0]
    side, operand = ("tuned", pair.tuned) if more > 0 else ("base", pair.base)
    why = Reason("rows_only_in", rows=abs(more), where=names[more > 0])
    return Unmatched(operand.info.name, side, why, is_shared=True)


def role_of(place: Place) -> tuple[object, ...]:
    """Return the role of a tensor in a model, however it is stored."""
    return place.component, place.layer, place.module, place.expert


def _how_they_differ(
    first: TensorInfo | None, second: TensorInfo | None, names: Names
) -> Reason | None:
    """Return how two tensors differ in shape or dtype; None if they agree, or one is unknown."""
    if first is None or second is None:
        return None
    one, other = (" x ".join(map(str, info.shape)) or "1" for info in (first, second))
    code = "shapes"
    if one == other:
        code, one, other = "dtypes", first.dtype, second.dtype
    if one == other:
        return None
    return Reason(code, first=one, a=names[0], second=other, b=names[1])


def _named_alike(base: Skipped, tuned: Skipped) -> MatrixPair | None:
    """Pair two tensors of one name and shape, whatever their places: by entries or by bytes."""
    first = base.info
    second = tuned.info
    if first.problem or second.problem or first.shape != second.shape:
        return None
    reasons = {base.reason, tuned.reason}
    if reasons & {"shape_differs", "tied"}:
        return None
    is_stack = len(second.shape) > 2  # it is at the place of no expert
    expert = None if is_stack else tuned.place.expert
    part = Part(replace(tuned.place, expert=expert, slot=second.name))
    reading: Reading = "whole"
    size = first.parameters
    if reasons != {"only_in_base", "only_in_tuned"}:
        size = first.end - first.start
        reading = "numbers" if reasons == {"not_float"} else "bytes"
        is_other = (first.dtype, size) != (second.dtype, second.end - second.start)
        if first.strides or second.strides or (reading == "bytes" and is_other):
            return None
        first = _raw(first)
        second = _raw(second)
    return MatrixPair(
        part.place,
        Operand(first, part),
        Operand(second, part),
        rows=1,
        cols=size,
        is_matrix=False,
        reading=reading,
    )


def is_whole(pair: MatrixPair) -> bool:
    """Return whether a pair is of two tensors that are not cut, whatever matrices they hold."""
    return pair.reading != "parts" or pair.place.is_unplaced


def _raw(info: TensorInfo) -> TensorInfo:
    return replace(info, dtype=RAW, shape=(info.end - info.start,), packing=None)


def whole_numbers(checkpoint: Checkpoint, name: str) -> NDArray[np.generic] | None:
    """Return the entries of a tensor of whole numbers; None if they cannot be read directly."""
    info = checkpoint.tensors[name]
    if info.problem or info.strides:
        return None
    stored = checkpoint.tensor(_raw(info)).whole().view(torch.uint8).numpy()
    return stored.view(torch_name(info.dtype))


def _head_pair(
    head: Skipped, pairs: Sequence[MatrixPair], skipped: Sequence[Skipped]
) -> MatrixPair | None:
    """Pair a stored head that config ties with the other side's head or embedding."""
    known = {pair.place.module: pair for pair in reversed(pairs) if pair.place.layer is None}
    partner = known.get("head") or known.get("embed")
    if partner is None or partner.base is None:
        return None
    mine = Operand(head.info, Part(head.place))
    other = partner.base if head.side == "tuned" else partner.tuned
    for one in skipped:
        if one.reason == "tied" and one.side != head.side:
            other = Operand(one.info, Part(head.place))
            break
    if mine.shape != other.shape:
        return None
    base, tuned = (other, mine) if head.side == "tuned" else (mine, other)
    place = replace(head.place, slot=head.info.name)
    return MatrixPair(place, base, tuned, *mine.shape, is_matrix=True)


def row_of(
    pair: MatrixPair,
    base: Checkpoint,
    tuned: Checkpoint,
    binades: Binades | None = None,
    sides: Sides | None = None,
) -> Scanned:
    """Return the row of a pair; bytes have no norms. binades: also gets the entries of others.
    sides: both, if they are open.
    """
    assert pair.base is not None, "lined up"
    if not is_raw(pair):
        row = scanned(pair, sides or sides_of(pair, base, tuned), binades)
        is_tied = [one.part.place.module == "embed" != pair.place.module
                   for one in (pair.base, pair.tuned)]  # fmt: skip
        side = "second" if is_tied[1] else "first"
        remark = f"as the head of the {side}, which its config ties to the embedding"
        return replace(row, remark=remark) if any(is_tied) else row
    first = pair.base.info.name
    second = pair.tuned.info.name
    if pair.reading == "numbers":
        numbers = whole_numbers(base, first)
        others = whole_numbers(tuned, second)
        assert numbers is not None, "lined up"
        assert others is not None, "lined up"
        entries = numbers.size
        changed = int(np.count_nonzero(numbers != others))
        remark = ""
    else:
        entries = pair.cols
        changed = differing_bytes(sides_of(pair, base, tuned))
        remark = "compared byte by byte"
    return Scanned(
        place=in_words(pair.place),
        base=first,
        tuned=second,
        formats=(base.tensors[first].dtype, tuned.tensors[second].dtype),
        entries=entries,
        changed=changed,
        remark=remark,
    )
