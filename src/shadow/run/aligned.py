"""Two checkpoints with every tensor accounted for: in a pair, without a partner, or not read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
from shadow.run.runtime import AlignedPair
from shadow.run.scan import in_words, is_raw, scanned, sides_of
from shadow.run.scanned import Scanned, Unmatched, in_order
from shadow.run.workers import base_of
from shadow.spectra.entries import Binades, differing_bytes
from shadow.spectra.spectrum import Sides
from shadow.templates import Reason, said
from shadow.text import shape_text, short

# bytes that are compared as they are: any pattern of 8 bits is one of this format's values
RAW = "F8_E5M2"
LOOKED_AT = 64  # names from which a prefix is guessed
UNREAD = ("quantized", "unknown_dtype", "unreadable")  # reasons of what cannot be read

Names = tuple[str, str]
"""What both checkpoints are called in answers, such as A and B."""
Role = tuple[object, ...]
"""What a tensor is in a model, however it is stored."""


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
    aligned, unmatched, unread = _sorted_out(pairs, skipped, names, is_whole=not first.parts)
    renamed = 0
    for pair in aligned:
        if base_of(pair).info.name != pair.tuned.info.name:
            renamed += 1
    if renamed:
        notes.append(Reason("renamed", tensors=renamed, where=names[1]))
    return Alignment(
        pair=AlignedPair(first, second, aligned, []),
        unmatched=unmatched,
        unread=unread,
        notes=tuple(notes),
        places=_places(pairs, skipped, {"base": first, "tuned": second}),
    )


def parts_of(checkpoint: Checkpoint) -> dict[str, tuple[Part, ...]]:
    """The matrices of every tensor, by its name."""
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    return place_tensors(shapes, checkpoint.config)


def shapes_of(checkpoint: Checkpoint) -> dict[Place, tuple[int, int]]:
    """The rows and columns of every matrix, by its place."""
    shapes = {}
    for name, parts in parts_of(checkpoint).items():
        stored_shape = checkpoint.tensors[name].shape
        for part in parts:
            shapes[part.place] = part.shape(stored_shape)
    return shapes


def plain(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint whose tensors are all compared, even those that share their bytes."""
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
    notes = []
    if prefix:
        notes.append(Reason("prefixed", where=where, other=other, prefix=short(prefix)))
    return first, second, notes


def _without_prefix(checkpoint: Checkpoint, other: Checkpoint) -> tuple[Checkpoint, str]:
    """Drop the prefix that an exporter put before most names; return it too."""
    names = [name for name in checkpoint.tensors if name not in other.tensors]
    if 2 * len(names) < len(checkpoint.tensors):
        return checkpoint, ""
    prefixes = Counter[str]()
    for name in names[:LOOKED_AT]:
        for dot in re.finditer(r"\.", name):
            end = dot.end()
            if name[end:] in other.tensors:
                prefixes[name[:end]] += 1
    if not prefixes:
        return checkpoint, ""
    ((prefix, _),) = prefixes.most_common(1)
    bare = {name: name.removeprefix(prefix) for name in names}
    shared = other.tensors.keys() & bare.values()
    if 2 * len(shared) <= len(names):
        return checkpoint, ""
    tensors = {}
    for name, info in checkpoint.tensors.items():
        bare_name = bare.get(name, name)
        tensors[bare_name] = replace(info, name=bare_name)
    if len(tensors) < len(checkpoint.tensors):  # two of one name
        return checkpoint, ""
    return replace(checkpoint, tensors=tensors), prefix


def _sorted_out(
    pairs: Sequence[MatrixPair], skipped: Sequence[Skipped], names: Names, *, is_whole: bool
) -> tuple[list[MatrixPair], list[Unmatched], list[Unmatched]]:
    """Sort every tensor: into a pair, as of one checkpoint alone, or as not read.

    is_whole: whether the first is one checkpoint. Otherwise a component may have none in it.
    """
    aligned = [pair for pair in pairs if pair.base is not None]
    keys = {pair.key for pair in aligned}
    unmatched = [_grown(pair, names) for pair in aligned if pair.detail]
    unread: list[Unmatched] = []
    for pair in pairs:
        if pair.base is not None:
            continue
        name = pair.tuned.info.name
        if is_whole:
            why = Reason("only_in", where=names[1])
            unmatched.append(Unmatched(name, "tuned", why))
        else:
            unread.append(Unmatched(name, "tuned", said(pair.detail)))
    by_name = _by_name(skipped)
    packed_roles = _packed_on_one_side(by_name.values())
    misshapen = {}
    for tensor in skipped:
        if tensor.reason == "shape_differs":
            misshapen[tensor.side, tensor.place] = tensor.info
    for of_name in by_name.values():
        base = of_name.get("base")
        tuned = of_name.get("tuned")
        shared = None  # how tensors of this name differ
        if base and tuned:
            alike = _named_alike(base, tuned)
            if alike is not None:
                aligned.append(alike)
                keys.add(alike.key)
                continue
            shared = _how_they_differ(base.info, tuned.info, names)
        for tensor in of_name.values():
            name = tensor.info.name
            side = tensor.side
            place = tensor.place
            head = None
            if tensor.reason == "tied":
                head = _head_pair(tensor, pairs, skipped)
            if head is not None:
                if head.key not in keys:
                    aligned.append(head)
                    keys.add(head.key)
            elif _is_unread(tensor, packed_roles, is_whole=is_whole):
                why = Reason("not_read")
                if tensor.detail:
                    why = said(tensor.detail)
                unread.append(Unmatched(name, side, why))
            elif shared is not None:
                unmatched.append(Unmatched(name, "tuned", shared, is_shared=True))
            else:
                why = Reason("only_in", where=names[side == "tuned"])
                if tensor.reason == "shape_differs":  # and the names do too
                    first = misshapen.get(("base", place))
                    second = misshapen.get(("tuned", place))
                    why = _how_they_differ(first, second, names) or said(tensor.detail)
                unmatched.append(Unmatched(name, side, why))
    of_one_side = sorted(set(unmatched), key=in_order)
    return aligned, of_one_side, sorted(set(unread), key=in_order)


def _by_name(skipped: Sequence[Skipped]) -> dict[str, dict[str, Skipped]]:
    """Group tensors by name and side, except those that need not be stored."""
    by_name: dict[str, dict[str, Skipped]] = {}
    for tensor in skipped:
        # filtered: of a part of the base that stands for another component
        if tensor.reason != "filtered":
            by_name.setdefault(tensor.info.name, {})[tensor.side] = tensor
    for name in list(by_name):
        is_computed = COMPUTED.fullmatch(name)  # from the config
        if is_computed and len(by_name[name]) == 1:
            del by_name[name]
    return by_name


def _packed_on_one_side(names: Iterable[Mapping[str, Skipped]]) -> set[Role]:
    """The roles of packed tensors whose names have no packed tensor on the other side."""
    roles = set()
    for of_name in names:
        packed = [tensor for tensor in of_name.values() if tensor.reason == "quantized"]
        if len(packed) == 1:
            roles.add(role_of(packed[0].place))
    return roles


def _is_unread(tensor: Skipped, packed_roles: set[Role], *, is_whole: bool) -> bool:
    """True if a tensor, or what it would be compared with, cannot be read."""
    if tensor.reason in UNREAD:
        return True
    if tensor.reason in ONE_SIDED and role_of(tensor.place) in packed_roles:
        return True
    return tensor.reason == "not_a_matrix" and not is_whole  # without a base


def _places(
    pairs: Sequence[MatrixPair], skipped: Sequence[Skipped], sides: Mapping[str, Checkpoint]
) -> dict[str, set[Place]]:
    """The places of every tensor, by name, except of stand-ins for another component."""
    places: dict[str, set[Place]] = {}
    for pair in pairs:
        for operand in pair.operands.values():
            places.setdefault(operand.info.name, set()).add(pair.place)
    for side, checkpoint in sides.items():
        config = checkpoint.config or sides["base"].config or sides["tuned"].config
        own = []
        for tensor in skipped:
            if tensor.side == side and tensor.reason != "filtered":
                own.append(tensor)
        held = {}
        if not checkpoint.parts:
            held = _held(checkpoint, config, own)
        for tensor in own:
            name = tensor.info.name
            held_places = held.get(name) or {tensor.place}
            places.setdefault(name, set()).update(held_places)
        for name, info in checkpoint.tensors.items():
            known = places.get(name, ())
            if any(place.is_unplaced for place in known):
                parts = place_tensors({name: info.shape}, config)
                places[name] = {part.place for part in parts[name]}
    return places


def _held(
    checkpoint: Checkpoint, config: Mapping[str, object], skipped: Sequence[Skipped]
) -> dict[str, set[Place]]:
    """The places of all matrices in skipped tensors; scales are where their numbers are."""
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    parts = place_tensors(shapes, config)
    owners = {tensor.info.name: tensor.info.name for tensor in skipped}
    for tensor in skipped:
        name = tensor.info.name
        if tensor.reason == "quantized" and parts[name][0].place.module == "other":
            owner, piece = owner_of(name)
            if not piece.startswith("_"):
                owner = f"{owner}.weight"
            owners[name] = owner
            shape = shapes.pop(name)
            experts = shape[:1] if len(shape) > 2 else ()
            shapes.setdefault(owner, (*experts, 2, 2))
    parts |= place_tensors(shapes, config)
    places = {}
    for name, owner in owners.items():
        places[name] = {part.place for part in parts[owner]}
    return places


def _grown(pair: MatrixPair, names: Names) -> Unmatched:
    """The rows of a vocabulary that only one side has."""
    base = base_of(pair)
    base_rows, _ = base.shape
    tuned_rows, _ = pair.tuned.shape
    operand = base
    side = "base"
    where = names[0]
    if tuned_rows > base_rows:
        operand = pair.tuned
        side = "tuned"
        where = names[1]
    why = Reason("rows_only_in", rows=abs(tuned_rows - base_rows), where=where)
    return Unmatched(operand.info.name, side, why, is_shared=True)


def role_of(place: Place) -> Role:
    """The role of a tensor in a model, however it is stored."""
    return place.component, place.layer, place.module, place.expert


def _how_they_differ(
    first: TensorInfo | None, second: TensorInfo | None, names: Names
) -> Reason | None:
    """The difference of two tensors in shape or dtype; None if they agree, or one is unknown."""
    if first is None or second is None:
        return None
    code = "shapes"
    first_text = shape_text(first.shape or (1,))
    second_text = shape_text(second.shape or (1,))
    if first_text == second_text:
        code = "dtypes"
        first_text = first.dtype
        second_text = second.dtype
    if first_text == second_text:
        return None
    a, b = names
    return Reason(code, first=first_text, a=a, second=second_text, b=b)


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
        size = first.stored_size
        reading = "bytes"
        if reasons == {"not_float"}:
            reading = "numbers"
        is_alike = first.dtype == second.dtype and size == second.stored_size
        if reading == "bytes" and not is_alike:
            return None
        if first.strides or second.strides:
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
    """True if a pair is of two tensors that are not cut, whatever matrices they hold."""
    return pair.reading != "parts" or pair.place.is_unplaced


def _raw(info: TensorInfo) -> TensorInfo:
    return replace(info, dtype=RAW, shape=(info.stored_size,), packing=None)


def whole_numbers(checkpoint: Checkpoint, name: str) -> NDArray[np.generic] | None:
    """The entries of a tensor of whole numbers; None if they cannot be read directly."""
    info = checkpoint.tensors[name]
    if info.problem or info.strides:
        return None
    stored = checkpoint.tensor(_raw(info)).whole().view(torch.uint8).numpy()
    return stored.view(torch_name(info.dtype))


def _head_pair(
    head: Skipped, pairs: Sequence[MatrixPair], skipped: Sequence[Skipped]
) -> MatrixPair | None:
    """Pair a stored head that config ties with the other side's head or embedding."""
    known: dict[str, MatrixPair] = {}  # by module
    for pair in pairs:
        if pair.place.layer is None:
            known.setdefault(pair.place.module, pair)
    partner = known.get("head") or known.get("embed")
    if partner is None or partner.base is None:
        return None
    part = Part(head.place)
    base = partner.base
    tuned = partner.tuned
    for tensor in skipped:
        if tensor.reason == "tied" and tensor.side != head.side:
            base = tuned = Operand(tensor.info, part)
            break
    if head.side == "tuned":
        tuned = Operand(head.info, part)
    else:
        base = Operand(head.info, part)
    if base.shape != tuned.shape:
        return None
    rows, cols = base.shape
    place = replace(head.place, slot=head.info.name)
    return MatrixPair(place, base, tuned, rows, cols, is_matrix=True)


def row_of(
    pair: MatrixPair,
    base: Checkpoint,
    tuned: Checkpoint,
    binades: Binades | None = None,
    sides: Sides | None = None,
) -> Scanned:
    """The row of a pair; bytes have no norms. binades: also gets the entries of others.
    sides: both, if they are open.
    """
    if not is_raw(pair):
        if sides is None:
            sides = sides_of(pair, base, tuned)
        row = scanned(pair, sides, binades)
        return replace(row, remark=_remark_on_head(pair))
    first = base_of(pair).info.name
    second = pair.tuned.info.name
    if pair.reading == "numbers":
        numbers = whole_numbers(base, first)
        others = whole_numbers(tuned, second)
        assert numbers is not None, "aligned"
        assert others is not None, "aligned"
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


def _remark_on_head(pair: MatrixPair) -> str:
    """Say which side of a head is an embedding; empty if neither is."""
    if pair.place.module == "embed":
        return ""
    embeddings = []
    for operand, side in ((base_of(pair), "first"), (pair.tuned, "second")):
        if operand.part.place.module == "embed":
            embeddings.append(side)
    if not embeddings:
        return ""
    return f"as the head of the {embeddings[-1]}, which its config ties to the embedding"
