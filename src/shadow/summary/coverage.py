"""What a comparison of matrices does not tell: vectors that moved, a vocabulary of another size,
and what could not be compared at all.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from shadow.reasons import FROM_ZERO
from shadow.summary.numbers import are, median
from shadow.summary.rows import BrokenRow, UncomparedRow, VectorFigures, VocabularyRow
from shadow.text import short_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shadow.summary.columns import Columns

ONE_SIDED = ("only_in_base", "only_in_tuned")
UNCOMPARED = (*ONE_SIDED, "shape_differs", "nonfinite")  # reasons that a finding names
UNREAD = ("unknown_dtype", "quantized")  # reasons of what is there, and is told as unread
GROWING = ("embed", "head")  # modules whose rows are a vocabulary
EXAMPLES = 3  # tensors of a kind of damage that a summary names
SHAPES = re.compile(r"base \(([\d, ]+)\), tuned \(([\d, ]+)\)")  # a detail of shape_differs
FAR = 10.0  # times as far as the next one, a vector is named
BROKEN = re.compile(r"in the (base and the tuned|base|tuned) tensor")  # of nonfinite


def vector_figures(tensors: Columns) -> VectorFigures:
    """How many vectors were compared, and how far those moved that did.

    One that is 0 in the base has no relative norm, and its detail says where it moved.
    """
    rows = tensors.where(
        are(tensors["side"], "tuned")
        & are(tensors["reason"], "not_a_matrix")
        & (tensors["compared"] > 0)
    )
    norms = rows["relative_norm"]
    changed = (norms > 0) | are(rows["detail"], FROM_ZERO)
    moved: dict[str, list[int]] = {}
    for component, layer in rows.where(changed).each("component", "layer"):
        layers = moved.setdefault(component, [])
        if layer == layer and layer not in (None, *layers):
            layers.append(int(layer))
    sizes = np.nan_to_num(norms)
    order = np.argsort(-sizes, kind="stable")
    is_alone = len(rows) > 1 and sizes[order[0]] > FAR * sizes[order[1]]
    return VectorFigures(
        compared=len(rows),
        changed=int(changed.sum()),
        relative_norm=median(norms[norms > 0]),
        relative_norm_of_all=median(np.where(np.isnan(norms), 0.0, norms)),
        furthest=str(rows["tensor"][order[0]]) if is_alone else None,
        furthest_norm=float(sizes[order[0]]) if is_alone else None,
        moved=moved,
    )


def idle_updates(tensors: Columns) -> int:
    """Modules of an adapter that are identical to the base's: the product of its factors is 0."""
    rows = tensors.where(are(tensors["side"], "tuned") & are(tensors["status"], "identical"))
    factors = (".lora_B", ".lora_embedding_B")  # one of the two of a module
    return sum(any(factor in str(name) for factor in factors) for name in rows["tensor"])


def vocabulary(tensors: Columns) -> list[VocabularyRow]:
    """Embeddings and heads with more rows on one side, of which the common ones were compared."""
    rows = tensors.where(
        are(tensors["module"], *GROWING) & are(tensors["status"], "measured", "identical")
    )
    sides: dict[tuple[str, str], dict[str, int]] = {}
    partial: set[tuple[str, str]] = set()
    for component, module, side, shape, compared in rows.each(
        "component", "module", "side", "shape", "compared"
    ):
        if len(shape) != 2 or not compared > 0:  # also not where it is unknown
            continue
        place = (component, module)
        count = int(shape[0])
        if compared < math.prod(shape):
            partial.add(place)
        known = sides.setdefault(place, {})
        known[side] = max(count, known.get(side, 0))
    return [
        VocabularyRow(component, module, of["base"], of["tuned"], of["tuned"] - of["base"])
        for (component, module), of in sides.items()
        if (component, module) in partial and len(of) == 2 and of["base"] != of["tuned"]
    ]


def broken(tensors: Columns) -> list[BrokenRow]:
    """Return the tensors that no training leaves so, a row for each side and kind of damage."""
    rows = []
    found = {
        "nonfinite": are(tensors["reason"], "nonfinite"),
        "all_zero": tensors["all_zero"] > 0,
        "empty": np.array([0 in shape for shape in tensors["shape"]], dtype=np.bool_),
    }
    for code, chosen in found.items():
        of_code = tensors.where(chosen)
        for side in ("base", "tuned"):
            names = [
                short_name(name)
                for name, of, detail in of_code.each("tensor", "side", "detail")
                if of == side and _side(code, detail or "") in (side, "both")
            ]
            if names:
                rows.append(BrokenRow(code, side, len(names), names[:EXAMPLES]))
    return rows


def uncompared(tensors: Columns) -> list[UncomparedRow]:
    """What has no partner, another shape or no finite numbers: whole layers, otherwise modules.
    A tensor whose partner cannot be read has one.
    """
    rows = tensors.where(are(tensors["status"], "skipped") & are(tensors["reason"], *UNCOMPARED))
    # tensors of both sides have the same reason and detail; one side tells of both
    rows = rows.where(are(rows["side"], "tuned") | are(rows["reason"], "only_in_base"))
    if not len(rows):
        return []
    unread = set(_placed(tensors.where(are(tensors["reason"], *UNREAD))))
    absent = {reason: _absent_layers(tensors, reason) for reason in ONE_SIDED}
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for (side, component, module, number), reason, detail in zip(
        _placed(rows), rows["reason"].tolist(), rows["detail"].tolist(), strict=True
    ):
        other = "base" if side == "tuned" else "tuned"
        if reason in ONE_SIDED and (other, component, module, number) in unread:
            continue
        named = None if (component, number) in absent.get(reason, ()) else str(module)
        told = detail or ""
        base_shape, tuned_shape = _shapes(told) if reason == "shape_differs" else (None, None)
        of_side = _side(reason, told)
        key = (reason, of_side, component, named, number is None, base_shape, tuned_shape)
        group = groups.setdefault(key, {"layers": set(), "tensors": 0})
        group["tensors"] += 1
        if number is not None:
            group["layers"].add(number)
    return [
        UncomparedRow(
            reason=str(reason),
            side=side,
            component=str(component),
            module=named,
            layers=sorted(group["layers"]),
            tensors=group["tensors"],
            base_shape=None if base_shape is None else list(base_shape),
            tuned_shape=None if tuned_shape is None else list(tuned_shape),
        )
        for (reason, side, component, named, _, base_shape, tuned_shape), group in groups.items()
    ]


def _placed(rows: Columns) -> Iterator[tuple[str, str, str, int | None]]:
    """Side, component, module and layer of each tensor."""
    for side, component, module, layer in rows.each("side", "component", "module", "layer"):
        yield side, component, module, None if math.isnan(layer) else int(layer)


def _absent_layers(tensors: Columns, reason: str) -> set[tuple[str, int]]:
    """The layers of which a side has every tensor, and the other none."""
    side = reason.removeprefix("only_in_")
    inside = tensors.where(are(tensors["side"], side)).inside
    shared = inside.where(~(are(inside["reason"], reason) & are(inside["status"], "skipped")))
    every, present = (
        {(component, int(layer)) for component, layer in rows.each("component", "layer")}
        for rows in (inside, shared)
    )
    return every - present


def _shapes(detail: str) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    match = SHAPES.search(detail)
    if match is None:
        return None, None
    base, tuned = (
        tuple(int(size) for size in text.split(",") if size.strip()) for text in match.groups()
    )
    return base, tuned


def _side(reason: str, detail: str) -> str:
    """The side that has it, or that is broken: base, tuned, or both."""
    if reason in ONE_SIDED:
        return reason.removeprefix("only_in_")
    if reason == "nonfinite" and (match := BROKEN.search(detail)):
        return "both" if " and " in match[1] else match[1]
    return "both"
