"""Modules by layers: how far each moved, and how concentrated its change is. What pictures of a
pair are made of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from statistics import median
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from shadow.places.names import name_rules
from shadow.summary.numbers import are, median_of
from shadow.summary.rows import GridRow, LayerRow

if TYPE_CHECKING:
    from shadow.summary.columns import Columns

Row = TypeVar("Row", GridRow, LayerRow)
FLAT = 1.05  # ratio of the largest to the least norm, up to which all cells are one


def grid(deltas: Columns, tensors: Columns) -> list[GridRow]:
    """A row for each module of a component that has layers, in the order of names.yaml; medians
    over experts.

    A matrix that is identical on both sides counts as not moved at all.
    """
    same = tensors.where(are(tensors["side"], "tuned") & are(tensors["status"], "identical")).inside
    places: dict[tuple[str, str], dict[int, tuple[float | None, float | None]]] = {}
    for component, module, layer in same.each("component", "module", "layer"):
        places.setdefault((component, module), {})[int(layer)] = (0.0, None)
    for (component, module), group in deltas.inside.groups("component", "module"):
        of_layers = places.setdefault((component, module), {})
        for layer in np.unique(group["layer"]).tolist():
            here = group.where(group["layer"] == layer)
            of_layers[int(layer)] = (
                median_of(here["relative_norm"]),
                median_of(here["concentration"]),
            )
    rows = []
    for component, module in sorted(places, key=lambda place: order_of(*place)):
        cells = sorted(places[component, module].items())
        rows.append(
            GridRow(
                component=component,
                module=module,
                layers=[layer for layer, _ in cells],
                relative_norm=[norm for _, (norm, _) in cells],
                concentration=[concentration for _, (_, concentration) in cells],
            )
        )
    return rows


def order_of(component: str, module: str = "") -> tuple[int, int, str, str]:
    """Where a component, or its module, stands in names.yaml; other names, which only another
    version or a forged report has, come last.
    """
    components, modules = _numbered()
    return (
        components.get(component, len(components)),
        modules.get(module, len(modules)),
        component,
        module,
    )


@cache
def _numbered() -> tuple[dict[str, int], dict[str, int]]:
    rules = name_rules()
    return (
        {name: number for number, name in enumerate(rules.components)},
        {name: number for number, name in enumerate(rules.modules)},
    )


@dataclass(frozen=True)
class Picture:
    """Relative norms by module and layer, as cells of a picture."""

    modules: tuple[str, ...]
    first: int
    last: int
    cells: tuple[tuple[float | None, ...], ...]
    """(modules, columns): the median over the layers of a column; None where they lack the module.
    """

    @cached_property
    def least(self) -> float:
        """The smallest norm above 0."""
        return min(value for row in self.cells for value in row if value)

    @cached_property
    def largest(self) -> float:
        """The largest value of all cells, 0 or more."""
        return max(value for row in self.cells for value in row if value)

    @cached_property
    def is_flat(self) -> bool:
        """Whether all norms are the same, to a twentieth."""
        return self.largest <= FLAT * self.least

    def level(self, value: float) -> float:
        """Where a norm above 0 lies between the least and the largest, by its logarithm: 0 to 1, 1
        if they are flat.
        """
        if self.is_flat:
            return 1.0
        return math.log(value / self.least) / math.log(self.largest / self.least)


def picture(rows: Sequence[GridRow], columns: int) -> Picture | None:
    """A picture of one component's modules; None where nothing moved.

    More layers than columns are binned.
    """
    layers = sorted({layer for row in rows for layer in row.layers})
    if len(layers) < 2 or not any(value for row in rows for value in row.relative_norm):
        return None
    columns = min(len(layers), columns)
    bins = [
        layers[i * len(layers) // columns : (i + 1) * len(layers) // columns]
        for i in range(columns)
    ]
    cells = tuple(_binned(row, bins) for row in rows)
    return Picture(
        modules=tuple(row.module for row in rows), first=layers[0], last=layers[-1], cells=cells
    )


def _binned(row: GridRow, bins: Sequence[Sequence[int]]) -> tuple[float | None, ...]:
    """The median over the layers of each bin that have the module."""
    known: Mapping[int, float | None] = dict(zip(row.layers, row.relative_norm, strict=True))
    values = [
        [value for layer in layers if (value := known.get(layer)) is not None] for layers in bins
    ]
    return tuple(map(_median, values))


def _median(values: Sequence[float]) -> float | None:
    """The median; None of no values."""
    return median(values) if values else None


def by_component(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each component, in their order."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row.component, []).append(row)
    return grouped
