"""The base's own matrices where a comparison place by place does not find them: with the opposite
sign, in another order, or in another layer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shadow.summary.numbers import are
from shadow.summary.rows import (
    LayersRow,
    MovedLayers,
    MovedRow,
    Rearranged,
    RearrangedModules,
    ReplacedRow,
)
from shadow.summary.standing import LINEAGE, OUTSIDE

if TYPE_CHECKING:
    from shadow.summary.columns import Columns

ONE_SIDE = ("only_in_base", "only_in_tuned")
NEGATED = -0.9  # cosine of base and tuned; after a training by a tenth of the norm it is -0.995
Layer = tuple[str, int]  # component, number


@dataclass(frozen=True)
class Contents:
    """What is known of where the content of the changed matrices is in the base."""

    anywhere: NDArray[np.bool_]
    """By delta row: whether its content is the base's, in another order or layer."""
    rearranged: Rearranged | None


def contents_of(deltas: Columns, tensors: Columns) -> Contents:
    """From the delta rows of matrices.parquet and all of tensors.parquet."""
    negated = deltas["cosine"] <= NEGATED
    told = np.array([how is not None for how in tensors["content_how"]], dtype=np.bool_)
    if not told.any() and not negated.any():
        return Contents(negated, None)
    how = dict(tensors.where(told).each("tensor", "content_how"))
    sames = {name for name, one in how.items() if one == "same"}
    moved = _moved_layers(deltas, tensors, sames)
    places = list(deltas.each("component", "layer", "tensor"))
    in_moved = np.array([place[:2] in moved for place in places], dtype=np.bool_)
    in_order = np.array([how.get(name, "same") != "same" for *_, name in places], dtype=np.bool_)
    found = in_moved | in_order | negated
    inside = ~are(deltas["module"], *OUTSIDE)
    return Contents(
        in_moved | in_order,
        Rearranged(
            matrices=int((found & inside).sum()),
            changed=int(inside.sum()),
            moved=_told(moved, deltas, tensors),
            negated=_modules(deltas.where(negated & ~in_moved)),
            reordered=_modules(deltas.where(in_order & ~in_moved)),
        ),
    )


def by_module(deltas: Columns) -> list[ReplacedRow]:
    """How many delta rows there are of each module, and in which layers."""
    return [
        ReplacedRow(
            component=component,
            module=module,
            layers=sorted({int(layer) for layer in group.inside["layer"]}),
            matrices=len(group),
        )
        for (component, module), group in deltas.groups("component", "module")
    ]


def _modules(deltas: Columns) -> RearrangedModules | None:
    return RearrangedModules(len(deltas), by_module(deltas)) if len(deltas) else None


def _moved_layers(deltas: Columns, tensors: Columns, sames: set[str]) -> dict[Layer, int]:
    """By layer of the tuned model: the one of the base that it is, where that is another."""
    names = ("side", "component", "tensor", "layer", "content_of")
    rows = list(tensors.inside.each(*names))
    of_base = {
        (component, name): int(at) for side, component, name, at, _ in rows if side == "base"
    }
    return {
        (component, int(layer)): of_base[component, content]
        for side, component, name, layer, content in rows
        if side == "tuned" and name in sames and (component, content) in of_base
    }


def _told(moved: dict[Layer, int], deltas: Columns, tensors: Columns) -> MovedLayers | None:
    if not moved:
        return None
    at_home, of_base, of_tuned = _layers(deltas, tensors)
    used = {(component, layer) for (component, _), layer in moved.items()} | at_home
    components = {component for component, _ in moved}
    return MovedLayers(
        layers=len(moved),
        rows=_runs(moved),
        missing=_by_component(of_base - used, components),
        new=_by_component(of_tuned - at_home - moved.keys(), components),
    )


def _layers(deltas: Columns, tensors: Columns) -> tuple[set[Layer], set[Layer], set[Layer]]:
    """The layers most matrices of which are close to their partners, and all of either side."""
    near, far = Counter[Layer](), Counter[Layer]()
    for component, layer, cosine in deltas.inside.each("component", "layer", "cosine"):
        counts = far if abs(cosine) < LINEAGE else near
        counts[component, int(layer)] += 1
    sides: dict[str, set[Layer]] = {"base": set(), "tuned": set()}
    inside = tensors.inside
    rows = inside.where(inside.are_matrices & ~are(inside["module"], "norm", "bias"))
    names = ("side", "component", "layer", "status", "reason")
    for side, component, layer, status, reason in rows.each(*names):
        if side in sides and (status != "skipped" or reason in ONE_SIDE):
            sides[side].add((component, int(layer)))
        if status == "identical" and side == "tuned":
            near[component, int(layer)] += 1
    at_home = {layer for layer, count in near.items() if count >= far[layer]}
    return at_home, sides["base"], sides["tuned"]


def _runs(moved: dict[Layer, int]) -> list[MovedRow]:
    """Layers that follow each other on both sides together."""
    rows: list[MovedRow] = []
    for (component, layer), of_base in sorted(moved.items()):
        here = component, layer, of_base - layer
        last = rows[-1] if rows else None
        if last and (last.component, last.last_layer + 1, last.offset) == here:
            rows[-1] = replace(last, last_layer=layer)
        else:
            rows.append(MovedRow(component, layer, layer, of_base))
    return rows


def _by_component(layers: Iterable[Layer], components: set[str]) -> list[LayersRow]:
    found: defaultdict[str, list[int]] = defaultdict(list)
    for component, layer in sorted(layers):
        if component in components:
            found[component].append(layer)
    return [LayersRow(component, numbers) for component, numbers in found.items()]
