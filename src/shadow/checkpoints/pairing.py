"""Two checkpoints -> matrix pairs to measure, and why other tensors are not. Reads no weights."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from shadow.checkpoints.adapter_names import BaseNames, Targets
from shadow.checkpoints.formats import owner_of
from shadow.checkpoints.gguf_files import COMPUTED
from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.safetensors_files import TensorInfo, Tensors
from shadow.checkpoints.weight_files import MERGE, Adapter, adapter_factors, product_shape
from shadow.dtypes import FLOATS, INTEGERS
from shadow.errors import ShadowError, UsageError
from shadow.places.architecture import Part, Place, place_tensors
from shadow.places.names import (
    Config,
    Facts,
    Shape,
    check_component,
    name_rules,
    nearest_modules,
)
from shadow.reasons import OUT_OF_REACH, Status
from shadow.text import in_ranges, several, short

Side = Literal["base", "tuned"]
Reading = Literal["parts", "whole", "bytes", "numbers"]
Words = str | Sequence[str | int]
MatchedBy = Literal["number", "content", "likeness", "token"]
Rows = NDArray[np.intp]

NO_BASE = "no base for {}"
OF_CONFIG = "computed from the config, where the other side does not store it"


@dataclass(frozen=True, slots=True)
class Factor:
    """The second factor of a low-rank update, and the scaling of the product.

    The update is scaling * left @ right: left is the operand's own tensor, right this one. Both
    factors of an embedding's update are stored transposed.
    """

    info: TensorInfo
    scaling: float  # above 0
    transposed: bool  # both are stored so

    @property
    def rank(self) -> int:
        """The rank of the adapter, 1 or more."""
        rows, cols = self.info.shape
        return cols if self.transposed else rows


@dataclass(frozen=True, slots=True)
class Operand:
    """One side of a matrix pair: a part of a tensor."""

    info: TensorInfo  # of a low-rank update its first factor
    part: Part
    factor: Factor | None = None  # of a low-rank update of the pair's base

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the part as a matrix."""
        return self.part.shape(self.stored_shape)

    @property
    def stored_shape(self) -> Shape:
        """The shape of the tensor that the part belongs to; of an update, of the product."""
        factor = self.factor
        if factor is None:
            return self.info.shape
        return product_shape(self.info, factor.info, transposed=factor.transposed)

    @property
    def infos(self) -> tuple[TensorInfo, ...]:
        """Every tensor that is read for this operand, the one it is named after first."""
        infos = [self.info]
        if self.info.packing is not None:
            infos += self.info.packing.beside
        if self.factor is not None:
            infos.append(self.factor.info)
        return tuple(infos)

    @property
    def named(self) -> tuple[TensorInfo, ...]:
        """The tensors that tables name. Scales of packed tensors belong to them; the scales of
        8-bit floats are tensors of their own.
        """
        is_packed = self.info.packing is not None
        if is_packed and self.info.dtype not in FLOATS:
            return (self.info,)
        return self.infos


@dataclass(frozen=True)
class Partner:
    """The place of the base that corresponds to a place of the tuned side."""

    place: Place | None  # None where the base has none
    by: MatchedBy = "number"
    # of base and tuned side, the rows that correspond, one by one; None for rows of one number
    rows: tuple[Rows, Rows] | None = field(default=None, compare=False)


Partners = Mapping[Place, Partner]
"""By place of the tuned side, where numbers do not say it."""


@dataclass(frozen=True, slots=True)
class MatrixPair:
    """Two matrices at one place, or two vectors."""

    place: Place
    # None where the base lacks the component altogether, as it may a projector
    base: Operand | None
    tuned: Operand
    rows: int  # the common ones where a vocabulary grew
    cols: int
    is_matrix: bool  # false for vectors, of which only the relative norm is taken
    detail: str = ""  # how they were paired, where that is not plain
    # parts of tensors, or two tensors whole: floats, or bytes or whole numbers that are no floats
    reading: Reading = "parts"
    matched_by: MatchedBy = "number"
    # the rows of base and tuned side that are compared; None for the first ones
    chosen: tuple[Rows, Rows] | None = field(default=None, compare=False)
    # names this pair within an audit, the same in every run. It holds the whole place, which no
    # two pairs share: the parts of a fused bias differ in their slot alone.
    key: str = field(init=False, compare=False)

    @property
    def operands(self) -> dict[Side, Operand]:
        """Its sides, base first if it has one."""
        tuned: dict[Side, Operand] = {"tuned": self.tuned}
        if self.base is None:
            return tuned
        return {"base": self.base, **tuned}

    @property
    def shape(self) -> tuple[int, int]:
        """The rows and columns that are compared."""
        return self.rows, self.cols

    @property
    def entries(self) -> int:
        """The number of entries that are compared."""
        return self.rows * self.cols

    def __post_init__(self) -> None:
        place = self.place
        names = [self.tuned.info.name, place.component, place.layer]
        names += [place.module, place.expert, place.slot]
        if self.base is not None and self.matched_by != "number":
            expert = self.base.part.place.expert
            names += [self.base.info.name, expert, self.matched_by]
        for rows in self.chosen or ():
            names.append(crc32(rows.tobytes()))
        key = json.dumps(names)
        object.__setattr__(self, "key", sys.intern(key))  # the journal holds it too


@dataclass(frozen=True, slots=True)
class Skipped:
    """A tensor of one side that is not measured, and why; or one that an adapter leaves alone."""

    side: Side
    info: TensorInfo
    place: Place
    reason: str | None  # a word of `shadow.reasons`; None where it is identical
    detail: str
    status: Status = "skipped"


Operands = dict[Place, Operand]
Sorted = tuple[Operands, list[Skipped]]
"""Tensors that can be measured, and others."""


@dataclass(frozen=True)
class Filter:
    """Selection of what is measured."""

    components: tuple[str, ...] = ()
    layers: Shape = ()  # of every component, from 0, and nothing outside layers
    modules: tuple[str, ...] = ()

    def passes(self, place: Place) -> bool:
        """True if tensors at a place are to be measured."""
        if self.components and place.component not in self.components:
            return False
        if self.layers and place.layer not in self.layers:
            return False
        return not self.modules or place.module in self.modules


def filter_of(components: Words, layers: Words, modules: Words) -> Filter:
    """Read a filter of components, layers (`0`, `4-7`, `0,3,5`) and modules (`mlp.up`, `attn.*`).
    Raises UsageError for unknown names.
    """
    known = name_rules().modules
    chosen = {*_listed(components)}
    for component in chosen:
        check_component(component)
    matching: set[str] = set()
    for pattern in _listed(modules):
        named = [module for module in known if fnmatchcase(module, pattern)]
        if not named:
            close = nearest_modules(pattern)
            hint = f"did you mean {close!r}?" if close else "such as mlp.up or attn.*"
            raise UsageError(f"no module {pattern!r}", hint)
        matching.update(named)
    numbers: set[int] = set()
    texts = _listed(layers) if layers else []
    for text in texts:
        for part in text.split(","):
            match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part)
            span = range(0)
            if match:
                first = int(match[1])
                last = int(match[2] or first)
                span = range(first, last + 1)
            if not span:
                raise UsageError(f"{part!r} is not a layer", "write 0, or 4-7, or 0,3,5")
            numbers.update(span)
    return Filter(
        components=tuple(sorted(chosen)),
        layers=tuple(sorted(numbers)),
        modules=tuple(sorted(matching)),
    )


def _listed(words: Words) -> list[str]:
    """Make a list, also of a single word."""
    return [words] if isinstance(words, str) else list(map(str, words))


def pair_checkpoints(
    base: Checkpoint,
    tuned: Checkpoint,
    chosen: Filter,
    *,
    may_differ: bool = False,
    by_place: bool = False,
    partners: Partners = {},  # noqa: B006 - it is only read
) -> tuple[list[MatrixPair], list[Skipped]]:
    """Align two checkpoints by place, then by shape.

    Every tensor of either side is in a pair or has at least one Skipped. Raises ShadowError if
    nothing pairs, as the two are then not a base and a model tuned from it (unless may_differ), and
    UsageError if they have nothing of what was chosen. by_place: whatever an adapter calls its
    modules. partners: what corresponds where places do not say it.
    """
    base_operands, base_unusable = _base_operands(base, tuned.config)
    base_is_closed = not base_operands
    aligned: list[MatrixPair] = []
    skipped = list(base_unusable)
    if tuned.adapter:
        components = {place.component for place in base_operands}
        is_named = not (by_place or base.parts)
        names = BaseNames(base.tensors, components) if is_named else None
        tuned_operands, tuned_unusable = _adapter_operands(tuned, tuned.adapter, base, names)
        skipped += tuned_unusable
    else:
        tuned_operands, tuned_unusable = _operands("tuned", tuned, base.config)
        of_base = (base, base_operands)
        of_tuned = (tuned, tuned_operands)
        aligned, tied = _tied_heads(of_base, of_tuned, partners)
        skipped += tuned_unusable + tied
    closed = {replace(tensor.place, slot="") for tensor in base_unusable}
    components_with_base = {place.component for place in base_operands}
    paired: set[Place] = set()
    for place, operand in tuned_operands.items():
        partner = partners.get(place, Partner(place))
        why = NO_BASE.format(place.component)
        if partner.place in base_operands:
            paired.add(partner.place)
            of_partner = base_operands[partner.place]
            pairs, unlike = _line_up(place, of_partner, operand, partner)
            aligned += pairs
            skipped += unlike
        elif operand.factor is not None:
            is_closed = replace(place, slot="") in closed
            reason = "only_in_tuned" if is_closed else "unnamed"
            skipped += _skips("tuned", operand, place, reason)
        elif place.component in components_with_base:
            skipped += _skips("tuned", operand, place, "only_in_tuned")
        elif _is_matrix(operand):  # its own spectrum is measured
            rows, cols = operand.shape
            own = MatrixPair(place, None, operand, rows, cols, is_matrix=True, detail=why)
            aligned.append(own)
        else:
            skipped += _skips("tuned", operand, place, "not_a_matrix", why)
    # an adapter without a name of its base has nothing to be compared
    reasons = {tensor.reason for tensor in skipped if tensor.side == "tuned"}
    is_out = bool(reasons) and reasons <= {*OUT_OF_REACH}
    reaches = any(pair.base for pair in aligned) or not is_out
    for place, operand in base_operands.items():
        if place in paired:
            continue
        if not (tuned.adapter and reaches):
            skipped += _skips("base", operand, place, "only_in_base")
        elif not chosen.passes(place):
            skipped += _skips("base", operand, place, "filtered")
        else:
            why = "the adapter leaves it unchanged"
            for info in operand.named:
                unchanged = Skipped("base", info, place, None, why, "identical")
                skipped.append(unchanged)
    if not may_differ and reaches and not any(pair.base for pair in aligned):
        if not tuned_operands and tuned_unusable:
            raise _closed(tuned.reference, tuned_unusable)
        if base_is_closed and base_unusable:
            raise _closed(base.reference, base_unusable)
        hint = "check that these are a base and a model tuned from it"
        have_both = base.tensors and tuned.tensors
        if have_both and base.tensors.keys().isdisjoint(tuned.tensors):
            # a prefix shows at once
            first = short(min(base.tensors))
            other = short(min(tuned.tensors))
            hint += f"; the first tensors are {first} and {other}"
        sides = f"{base.reference} and {tuned.reference}"
        fault = f"{sides} share no tensor of the same place and shape"
        widths = [tensor.detail for tensor in skipped if tensor.reason == "shape_differs"]
        if widths and tuned.adapter:
            fault += f": an adapter of another width ({widths[0]})"
        raise ShadowError(fault, hint)
    places = [pair.place for pair in aligned]
    places += [tensor.place for tensor in skipped]
    _require_chosen(chosen, places, tuned.reference)
    measured = []
    for pair in aligned:
        if chosen.passes(pair.place):
            measured.append(pair)
        else:
            skipped += _both(pair.place, pair.base, pair.tuned, "filtered")
    return measured, skipped


def _closed(reference: str, tensors: Sequence[Skipped]) -> ShadowError:
    """Make the error for a side none of whose tensors can be measured, whatever their names."""
    dtypes = {tensor.info.dtype for tensor in tensors}
    stored = several(sorted(dtypes), 3)
    what = f"every tensor of {reference} is stored as {stored}"
    reasons = {tensor.reason for tensor in tensors}
    if reasons.isdisjoint(("quantized", "not_float")):
        return ShadowError(f"{what}, and none can be read: {tensors[0].detail}")
    return ShadowError(
        f"{what}: quantised weights cannot be measured",
        "convert them back to floats with the library that quantised them, save that, and audit it",
    )


def _require_chosen(chosen: Filter, places: Collection[Place], model: str) -> None:
    """Raise UsageError if a model, whose tensors have these places, lacks what was chosen.

    Each component and each layer must exist, but only one of the modules, as a pattern names many.
    """
    kinds: Mapping[str, Sequence[Any]] = {
        "component": chosen.components,
        "layer": chosen.layers,
        "module": chosen.modules,
    }
    for kind, named in kinds.items():
        if not named:
            continue
        own = {getattr(place, kind) for place in places} - {None}
        absent = set(named) - own
        if absent and (kind != "module" or len(absent) == len(named)):
            write = in_ranges if kind == "layer" else _in_order
            message = f"{model}: no {kind} {write(absent)[:80]}"
            raise UsageError(message, f"it has {write(own) or 'none'}")
        places = [place for place in places if getattr(place, kind) in named]


def _in_order(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))


def _both(
    place: Place, base: Operand | None, tuned: Operand, reason: str, detail: str = ""
) -> list[Skipped]:
    """The tensors of both sides at a place."""
    of_base = _skips("base", base, place, reason, detail) if base else []
    return of_base + _skips("tuned", tuned, place, reason, detail)


def _skips(
    side: Side, operand: Operand, place: Place, reason: str, detail: str = ""
) -> list[Skipped]:
    """Skip the tensors of one side at a place; not an embedding that is the other side's head."""
    if operand.part.place != place:
        return []
    is_alone = reason in ("only_in_base", "only_in_tuned", "not_a_matrix")
    if is_alone and COMPUTED.fullmatch(operand.info.name):
        reason = "not_a_matrix"
        detail = OF_CONFIG
    return [Skipped(side, info, place, reason, detail) for info in operand.named]


def _is_matrix(operand: Operand) -> bool:
    """True if a tensor has at least two dimensions and a short side above 1.

    All others are vectors, and so are the biases of a stack of experts.
    """
    are_vectors = operand.part.place.module in ("norm", "bias")
    if are_vectors or len(operand.info.shape) < 2:
        return False
    return min(operand.shape) > 1


def grows(place: Place) -> bool:
    """True if the rows of this module are a vocabulary, which may be extended."""
    if place.component != "language":
        return False
    is_head = place.module == "head" and not place.slot
    return is_head or place.module == "embed"


def _folded(operand: Operand) -> Shape | None:
    """The dimensions folded into the columns, in order; None if there is only one."""
    stored = operand.stored_shape
    if operand.part.experts:
        stored = stored[1:]
    folded = tuple(size for size in stored[1:] if size != 1)
    return folded if len(folded) > 1 else None


def _line_up(
    place: Place, base: Operand, tuned: Operand, partner: Partner
) -> tuple[list[MatrixPair], list[Skipped]]:
    """Pair two operands that correspond, or skip both if their shapes do not match."""
    detail = f"base {base.info.shape}, tuned {tuned.info.shape}"
    base_rows, cols = base.shape
    rows, tuned_cols = tuned.shape
    why = "" if partner.by == "number" else f"the base's {base.info.name}"
    matrices = [_is_matrix(base), _is_matrix(tuned)]
    entries = base_rows * cols
    if not any(matrices) and entries == rows * tuned_cols:
        vector = MatrixPair(
            place,
            base,
            tuned,
            rows=1,
            cols=entries,
            is_matrix=False,
            detail=why,
            matched_by=partner.by,
        )
        return [vector], []
    # otherwise as many columns may be in another order, such as channels last
    if all(matrices) and _folded(base) == _folded(tuned):
        common = min(base_rows, rows)
        more = abs(rows - base_rows)
        if more:
            side = "tuned" if rows > base_rows else "base"
            why = f"{more} rows only in {side}; the {common} common rows are compared"
        if partner.rows is not None:
            common = len(partner.rows[0])
            why = f"{common} of {rows} rows are rows of the base"
        may_differ = partner.rows is not None or grows(place)
        if cols == tuned_cols and (not more or (may_differ and common > 1)):
            matrix = MatrixPair(
                place,
                base,
                tuned,
                common,
                cols,
                is_matrix=True,
                detail=why,
                matched_by=partner.by,
                chosen=partner.rows,
            )
            return [matrix], []
        detail = f"base {base.shape}, tuned {tuned.shape}"
    return [], _both(place, base, tuned, "shape_differs", detail)


def operands_of(base: Checkpoint, tuned: Checkpoint) -> tuple[Operands, Operands]:
    """The measurable parts of two checkpoints, neither of them an adapter, by place."""
    base_operands, _ = _base_operands(base, tuned.config)
    tuned_operands, _ = _operands("tuned", tuned, base.config)
    return base_operands, tuned_operands


def _operands(side: Side, checkpoint: Checkpoint, other: Config) -> Sorted:
    """Usable matrices and vectors of one side by place, and why others are not usable. other: the
    config of the other side, which stands in for a missing one.
    """
    tensors = checkpoint.tensors
    shapes = {name: info.shape for name, info in tensors.items()}
    parts = place_tensors(shapes, checkpoint.config or other)
    return _usable(side, tensors, parts, checkpoint.refused)


def _usable(
    side: Side,
    tensors: Tensors,
    parts: Mapping[str, Sequence[Part]],
    packed: Mapping[str, str],
) -> Sorted:
    """Sort tensors into those that can be measured and others. packed: formats by module."""
    operands: Operands = {}
    unusable: list[Skipped] = []
    for name, info in tensors.items():
        fault = _fault(info, packed)
        is_turned = info.strides is None and parts[name][0].transposed
        # what is decoded has rows of outputs
        if info.packing and is_turned and len(info.shape) == 2:
            fault = ("quantized", f"{info.dtype} in a model of rows of inputs")
        if fault:
            reason, detail = fault
            place = parts[name][0].place
            unusable.append(Skipped(side, info, place, reason, detail))
            continue
        for part in parts[name]:
            operands[part.place] = Operand(info, part)
    return operands, unusable


def _base_operands(base: Checkpoint, other: Config) -> Sorted:
    """The base's operands; of a base of several parts, each part's for its component."""
    if not base.parts:
        return _operands("base", base, other)
    names = {}
    for name, info in base.tensors.items():
        names[info.shard, info.name] = name

    def unique(info: TensorInfo) -> TensorInfo:
        """The tensor under its name in the whole; with the component if two parts
        share it.
        """
        return replace(info, name=names[info.shard, info.name])

    operands: Operands = {}
    skipped: list[Skipped] = []
    for component, part in base.parts:
        of_part, unusable = _operands("base", part, {})
        for tensor in unusable:
            info = unique(tensor.info)
            skipped.append(replace(tensor, info=info))
        # a tower published alone has no names that say what it is
        is_alone = all(place.component != component for place in of_part)
        for place, operand in of_part.items():
            own = place
            if is_alone:
                own = replace(place, component=component)
            moved = replace(operand.part, place=own)
            named = replace(operand, info=unique(operand.info), part=moved)
            if own.component == component:
                operands[own] = named
            else:
                why = f"{part.reference} is the base of {component} only"
                skipped += _skips("base", named, own, "filtered", why)
    return operands, skipped


def _adapter_operands(
    checkpoint: Checkpoint, adapter: Adapter, base: Checkpoint, names: BaseNames | None
) -> Sorted:
    """An adapter's low-rank updates, the modules it holds whole, and what is not usable.

    names: of the base, of which updates need one; None for any.
    """
    if adapter.dora:
        message = f"{checkpoint.reference}: a DoRA adapter, whose delta is not low-rank"
        raise ShadowError(message, MERGE)
    pairs, whole, unusable = adapter_factors(checkpoint.tensors)
    wholes = {name: info.shape for name, info in whole.items()}
    shapes: dict[str, Shape] = {}
    for module, (left, right, swap) in pairs.items():
        shapes[f"{module}.weight"] = product_shape(left, right, transposed=swap)
    parts = place_tensors(shapes | wholes, base.config)
    # a base of Conv1D stores (in, out): given the shape as stored, the rules split it right
    for name in shapes:
        if parts[name][0].transposed:
            shapes[name] = shapes[name][::-1]
    parts = place_tensors(shapes | wholes, base.config)
    packed = checkpoint.refused
    targets = Targets(adapter.config)
    operands, skipped = _usable("tuned", whole, parts, packed)
    for module, (left, right, swap) in pairs.items():
        matrices = parts[f"{module}.weight"]
        place = matrices[0].place
        fault = _fault(left, packed) or _fault(right, packed)
        if fault is None and any(part.experts for part in matrices):
            fault = ("adapter", "a low-rank update of stacked experts")
        if fault is None and names and not names.has(module, place):
            fault = ("unnamed", names.remedy(module))
        if fault is None and names and not targets.has(module):
            fault = ("untargeted", "")
        if fault is not None:
            reason, detail = fault
            for info in (left, right):
                skipped.append(Skipped("tuned", info, place, reason, detail))
            continue
        rank = right.shape[1 if swap else 0]
        scaling = adapter.scaling(module, rank)
        factor = Factor(right, scaling, transposed=swap)
        for part in matrices:
            upright = replace(part, transposed=False)
            operands[part.place] = Operand(left, upright, factor=factor)
    for info, why in unusable:
        place = Place("other", None, "other", slot=info.name)
        skipped.append(Skipped("tuned", info, place, "adapter", why))
    return operands, skipped


def _fault(info: TensorInfo, packed: Mapping[str, str]) -> tuple[str, str] | None:
    """The reason and detail if a tensor cannot be measured. packed: formats by module."""
    if info.problem:
        return "unreadable", info.problem
    if info.alias_of:
        return "tied", f"the same storage as {info.alias_of}"
    if info.packing:
        return None
    owner, piece = owner_of(info.name)
    packing = packed.get(owner) or packed.get(info.name)
    if packing and piece != "bias":
        return "quantized", packing
    if info.dtype in INTEGERS:
        return "not_float", info.dtype
    if info.dtype not in FLOATS:
        return "unknown_dtype", info.dtype
    return None


def _tied_heads(
    base: tuple[Checkpoint, Operands], tuned: tuple[Checkpoint, Operands], partners: Partners
) -> tuple[list[MatrixPair], list[Skipped]]:
    """Remove tied heads from both sides: they are their embedding, which is measured once.

    A head of its own on one side only is paired with the embedding that is the other side's head.
    `tie_word_embeddings` decides whether a head is tied, unless one is stored that differs from the
    embedding: loaders then use that.
    """
    head = Place("language", None, "head")
    embed = Place("language", None, "embed")
    skipped: list[Skipped] = []
    sides: dict[Side, tuple[Checkpoint, Operands]] = {"base": base, "tuned": tuned}
    for side, (checkpoint, operands) in sides.items():
        if head not in operands or embed not in operands:
            continue
        own = operands[head].info
        embedding = operands[embed].info
        if _ties(checkpoint) and not checkpoint.differ(own, embedding):
            del operands[head]
            why = "config.json ties it to the embedding"
            skipped.append(Skipped(side, own, head, "tied", why))
    is_own = [head in operands for _, operands in sides.values()]
    heads = []
    for checkpoint, operands in sides.values():
        is_lent = head not in operands and _ties(checkpoint)
        heads.append(operands.get(embed if is_lent else head))
    of_base, of_tuned = heads
    if not of_base or not of_tuned or len({*is_own}) == 1:
        return [], skipped
    for _, operands in sides.values():
        operands.pop(head, None)
    aligned, unlike = _line_up(head, of_base, of_tuned, partners.get(head, Partner(head)))
    return aligned, skipped + unlike


def _ties(checkpoint: Checkpoint) -> bool:
    """True if the config ties the head to the embedding."""
    # a wrapper's word counts before its text model's; where neither says it, the family's habit
    facts = Facts(checkpoint.config)
    is_tied = checkpoint.config.get("tie_word_embeddings")
    if is_tied is None:
        is_tied = facts.section("language").get("tie_word_embeddings")
    if is_tied is None:
        types = facts.model_types("language")
        return not types.isdisjoint(name_rules().tied)
    return is_tied is True
