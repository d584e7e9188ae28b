"""Two checkpoints -> matrix pairs to measure, and a reason for every tensor that is not. Reads no weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shadow.architecture import Part, Place, place_tensors
from shadow.checkpoint import Checkpoint
from shadow.errors import ShadowError
from shadow.names import Facts, name_rules
from shadow.quantized import owner_of, packed_modules
from shadow.shards import FLOATS, INTEGERS, TensorInfo

Side = Literal["base", "tuned"]
REASONS = (
    "only_in_base", "only_in_tuned", "tied", "shape_differs", "not_a_matrix", "not_float", "quantized",
    "unknown_dtype", "nonfinite", "filtered", "unreadable",
)  # fmt: skip


@dataclass(frozen=True)
class Operand:
    """One side of a matrix pair: a part of a tensor."""

    info: TensorInfo
    part: Part

    @property
    def shape(self) -> tuple[int, int]:
        return self.part.shape(self.info.shape)


@dataclass(frozen=True)
class MatrixPair:
    """Two matrices at one place, or two vectors (is_matrix False; then only their relative norm is taken).

    rows and cols are those that are compared: the common rows where a vocabulary grew, as detail says. base is
    None where the tuned side has a component that the base lacks altogether, such as a projector.
    """

    place: Place
    base: Operand | None
    tuned: Operand
    rows: int
    cols: int
    is_matrix: bool
    detail: str = ""

    @property
    def key(self) -> str:
        """Names this pair within an audit, the same in every run."""
        p = self.place
        return "\t".join([self.tuned.info.name, p.component, str(p.layer), p.module, str(p.expert)])


@dataclass(frozen=True)
class Skipped:
    """A tensor (of one side) that has no numbers, and why."""

    side: Side
    info: TensorInfo
    place: Place
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Filter:
    """What to measure: empty means all. layers are of every component; nothing outside layers passes a layer filter."""

    components: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    modules: tuple[str, ...] = ()

    def passes(self, place: Place) -> bool:
        return (
            (not self.components or place.component in self.components)
            and (not self.layers or place.layer in self.layers)
            and (not self.modules or place.module in self.modules)
        )


def pair_checkpoints(base: Checkpoint, tuned: Checkpoint, chosen: Filter) -> tuple[list[MatrixPair], list[Skipped]]:
    """Line up two checkpoints by place, then by shape.

    Every tensor of either side is in some pair or has at least one Skipped. Raises ShadowError when nothing at
    all pairs, as then the two are not a base and a model tuned from it.
    """
    base_operands, base_unusable = _operands("base", base, base.config or tuned.config)
    tuned_operands, tuned_unusable = _operands("tuned", tuned, tuned.config or base.config)
    skipped = base_unusable + tuned_unusable
    head_pair, tied = _tied_heads((base, base_operands), (tuned, tuned_operands))
    skipped += tied
    components_with_base = {place.component for place in base_operands}
    outcomes = [] if head_pair is None else [head_pair]
    for place, operand in tuned_operands.items():
        partner = base_operands.pop(place, None)
        if partner is not None:
            outcomes.append(_line_up(place, partner, operand))
        elif place.component not in components_with_base:
            why = f"no base for {place.component}"
            if _is_matrix(operand):
                outcomes.append(MatrixPair(place, None, operand, *operand.shape, True, why))
            else:
                skipped.append(Skipped("tuned", operand.info, place, "not_a_matrix", why))
        else:
            skipped.append(Skipped("tuned", operand.info, place, "only_in_tuned"))
    skipped += [Skipped("base", operand.info, place, "only_in_base") for place, operand in base_operands.items()]
    if not any(isinstance(outcome, MatrixPair) and outcome.base for outcome in outcomes):
        raise ShadowError(
            f"{base.reference} and {tuned.reference} share no tensor of one place and shape",
            "are they a base and a model tuned from it?",
        )
    pairs = [outcome for outcome in outcomes if isinstance(outcome, MatrixPair) and chosen.passes(outcome.place)]
    for outcome in outcomes:
        if not isinstance(outcome, MatrixPair):
            skipped += outcome
        elif not chosen.passes(outcome.place):
            skipped += _both(outcome.place, outcome.base, outcome.tuned, "filtered")
    return pairs, skipped


def _both(place: Place, base: Operand | None, tuned: Operand, reason: str, detail: str = "") -> list[Skipped]:
    rows = [Skipped("base", base.info, place, reason, detail)] if base else []
    return [*rows, Skipped("tuned", tuned.info, place, reason, detail)]


def _is_matrix(operand: Operand) -> bool:
    """At least two dimensions and a short side above 1; what is not is a vector, whatever its shape says.

    So are the biases of a stack of experts.
    """
    vectors = operand.part.place.module in ("norm", "bias")
    return not vectors and len(operand.info.shape) >= 2 and min(operand.shape) > 1


def _grows(place: Place) -> bool:
    """Are the rows of this module a vocabulary, to which rows may be added?"""
    return place.component == "language" and (place.module == "embed" or (place.module, place.slot) == ("head", ""))


def _folded(operand: Operand) -> tuple[int, ...] | None:
    """The dimensions that were folded into the columns, in order; None where there is only one."""
    stored = operand.info.shape[1:] if operand.part.experts and len(operand.info.shape) > 2 else operand.info.shape
    folded = tuple(size for size in stored[1:] if size != 1)
    return folded if len(folded) > 1 else None


def _line_up(place: Place, base: Operand, tuned: Operand) -> MatrixPair | list[Skipped]:
    if not (_is_matrix(base) and _is_matrix(tuned)):
        if math.prod(base.shape) != math.prod(tuned.shape) or _is_matrix(base) != _is_matrix(tuned):
            return _both(place, base, tuned, "shape_differs", f"base {base.info.shape}, tuned {tuned.info.shape}")
        return MatrixPair(place, base, tuned, 1, math.prod(tuned.shape), False)
    if _folded(base) != _folded(tuned):  # as many columns in another order, such as channels last
        return _both(place, base, tuned, "shape_differs", f"base {base.info.shape}, tuned {tuned.info.shape}")
    (base_rows, base_cols), (tuned_rows, tuned_cols) = base.shape, tuned.shape
    if base_cols == tuned_cols and base_rows == tuned_rows:
        return MatrixPair(place, base, tuned, tuned_rows, tuned_cols, True)
    common = min(base_rows, tuned_rows)
    if base_cols == tuned_cols and _grows(place) and common > 1:
        side = "tuned" if tuned_rows > base_rows else "base"
        detail = f"{abs(tuned_rows - base_rows)} rows only in {side}; the {common} common rows are compared"
        return MatrixPair(place, base, tuned, common, tuned_cols, True, detail)
    return _both(place, base, tuned, "shape_differs", f"base {base.shape}, tuned {tuned.shape}")


def _operands(
    side: Side, checkpoint: Checkpoint, config: Mapping[str, Any]
) -> tuple[dict[Place, Operand], list[Skipped]]:
    """Usable matrices and vectors of one side by place, and the tensors that are not usable, with reasons."""
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    parts = place_tensors(shapes, config)
    packed = packed_modules(checkpoint.tensors, config)
    operands: dict[Place, Operand] = {}
    unusable: list[Skipped] = []
    for name, info in checkpoint.tensors.items():
        if fault := _fault(info, checkpoint.tensors, packed):
            unusable.append(Skipped(side, info, parts[name][0].place, *fault))
        else:
            operands |= {part.place: Operand(info, part) for part in parts[name]}
    return operands, unusable


def _fault(info: TensorInfo, tensors: Mapping[str, TensorInfo], packed: Mapping[str, str]) -> tuple[str, str] | None:
    """(reason, detail) why a tensor cannot be measured, judged by itself and its neighbours; None when it can.

    packed: the formats of modules that hold packed integers.
    """
    stem, _, last = info.name.rpartition(".")
    if info.problem:
        return "unreadable", info.problem
    if info.alias_of:
        return "tied", f"the same storage as {info.alias_of}"
    owner, piece = owner_of(info.name)
    if (format := packed.get(owner) or packed.get(info.name)) and piece != "bias":
        what = "packed integers" if info.dtype in INTEGERS else "what belongs to packed integers"
        return "quantized", f"{format}: {what}"
    if info.dtype in INTEGERS:
        return "not_float", info.dtype
    if info.dtype not in FLOATS:
        return "unknown_dtype", info.dtype
    scales = [f"{info.name}_scale_inv", f"{info.name}_scale", f"{stem}.scale", f"{stem}.weight_scale_inv"]
    if info.dtype.startswith("F8_") and any(scale in tensors for scale in scales):
        return "quantized", "8-bit floats that a second tensor scales"
    weight = tensors.get(f"{stem}.weight") if "scale" in last else None
    if weight is not None and weight.dtype.startswith("F8_"):
        return "quantized", f"the scales of {weight.name}"
    return None


def _tied_heads(
    base: tuple[Checkpoint, dict[Place, Operand]], tuned: tuple[Checkpoint, dict[Place, Operand]]
) -> tuple[MatrixPair | list[Skipped] | None, list[Skipped]]:
    """Take tied heads out of both sides: they are their embedding, which is measured once.

    A head of its own on one side only is paired with the embedding that is the other side's head. Whether a head
    is tied is what `tie_word_embeddings` says: transformers then ignores a stored head.
    """
    head, embed = Place("language", None, "head"), Place("language", None, "embed")
    skipped: list[Skipped] = []
    own: dict[Side, Operand | None] = {}
    sides: tuple[tuple[Side, Checkpoint, dict[Place, Operand]], ...] = (("base", *base), ("tuned", *tuned))
    for side, checkpoint, operands in sides:
        own[side] = operands.get(head)
        if _ties(checkpoint) and head in operands and embed in operands:
            skipped.append(Skipped(side, operands.pop(head).info, head, "tied", "config.json ties it to the embedding"))
            own[side] = None
    if (own["base"] is None) == (own["tuned"] is None):
        return None, skipped
    if own["tuned"] is not None and _ties(base[0]) and embed in base[1]:
        return _line_up(head, base[1][embed], tuned[1].pop(head)), skipped
    if own["base"] is not None and _ties(tuned[0]) and embed in tuned[1]:
        return _line_up(head, base[1].pop(head), tuned[1][embed]), skipped
    return None, skipped


def _ties(checkpoint: Checkpoint) -> bool:
    """Does the config tie the head to the embedding? A wrapper's own word counts before its text model's."""
    facts = Facts(checkpoint.config)
    said = checkpoint.config.get("tie_word_embeddings")
    if said is None:
        said = facts.section("language").get("tie_word_embeddings")
    return said is True or (said is None and bool(facts.model_types("language") & name_rules().tied))
