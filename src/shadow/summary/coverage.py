"""What a comparison of matrices does not tell: vectors that moved, a vocabulary of another size,
and what could not be compared at all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from shadow.reasons import FROM_ZERO
from shadow.summary.numbers import finite
from shadow.summary.rows import UncomparedRow, VectorFigures, VocabularyRow

if TYPE_CHECKING:
    import pandas as pd

ONE_SIDED = ("only_in_base", "only_in_tuned")
UNCOMPARED = (*ONE_SIDED, "shape_differs", "nonfinite")  # reasons that a finding names
GROWING = ("embed", "head")  # modules whose rows are a vocabulary
SHAPES = re.compile(r"base \(([\d, ]+)\), tuned \(([\d, ]+)\)")  # a detail of shape_differs
BROKEN = re.compile(r"in the (base and the tuned|base|tuned) tensor")  # of nonfinite


def vector_figures(tensors: pd.DataFrame) -> VectorFigures:
    """How many vectors were compared, and how far those moved that did.

    One that is 0 in the base has no relative norm, and its detail says where it moved.
    """
    rows = tensors[
        (tensors["side"] == "tuned")
        & (tensors["reason"] == "not_a_matrix")
        & (tensors["compared"].fillna(0) > 0)
    ]
    norms = rows["relative_norm"].astype(float)
    moved = (norms > 0) | (rows["detail"] == FROM_ZERO)
    median = norms[norms > 0].median()
    known = norms.fillna(0.0).median()
    return VectorFigures(
        compared=len(rows),
        changed=int(moved.sum()),
        relative_norm=finite(median),
        relative_norm_of_all=finite(known),
    )


def vocabulary(tensors: pd.DataFrame) -> list[VocabularyRow]:
    """Embeddings and heads that have more rows on one side, of which the common ones were
    compared.
    """
    rows = tensors[
        tensors["module"].isin(GROWING) & tensors["status"].isin(["measured", "identical"])
    ]
    sides: dict[tuple[str, str], dict[str, int]] = {}
    partial: set[tuple[str, str]] = set()
    for component, module, side, shape, compared in _each(
        rows, "component", "module", "side", "shape", "compared"
    ):
        if len(shape) != 2 or not compared > 0:  # also not where it is unknown
            continue
        place = (str(component), str(module))
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


def uncompared(tensors: pd.DataFrame) -> list[UncomparedRow]:
    """What has no partner, another shape or no finite numbers: whole layers, otherwise modules."""
    rows = tensors[(tensors["status"] == "skipped") & tensors["reason"].isin(UNCOMPARED)]
    # tensors of both sides have the same reason and detail; one side tells of both
    rows = rows[(rows["side"] == "tuned") | (rows["reason"] == "only_in_base")]
    if rows.empty:
        return []
    absent = {reason: _absent_layers(tensors, reason) for reason in ONE_SIDED}
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for reason, component, module, layer, detail in _each(
        rows, "reason", "component", "module", "layer", "detail"
    ):
        number = None if layer is None or layer != layer else int(layer)  # NaN is not itself
        named = None if (component, number) in absent.get(reason, ()) else str(module)
        told = detail if isinstance(detail, str) else ""
        base_shape, tuned_shape = _shapes(told) if reason == "shape_differs" else (None, None)
        side = _side(reason, told)
        key = (reason, side, component, named, number is None, base_shape, tuned_shape)
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


def _absent_layers(tensors: pd.DataFrame, reason: str) -> set[tuple[str, int]]:
    """The layers of which a side has every tensor, and the other none."""
    side = reason.removeprefix("only_in_")
    inside = tensors[(tensors["side"] == side) & tensors["layer"].notna()]
    alone = (inside["reason"] == reason) & (inside["status"] == "skipped")
    whole = alone.groupby([inside["component"], inside["layer"]]).all()
    return {(str(component), int(layer)) for component, layer in whole[whole].index}


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


def _each(rows: pd.DataFrame, *names: str) -> Iterable[tuple[Any, ...]]:
    return zip(*(rows[name] for name in names), strict=True)
