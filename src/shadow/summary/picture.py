"""A picture of how far each module moved, layer by layer. Who shows one needs no NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from statistics import median

from shadow.places.names import name_rules
from shadow.summary.record import Row

LAYERS = 1000  # numbers below which a chart has room: a tensor's name may claim any
FLAT = 1.05  # ratio of the largest to the least norm, up to which all cells are one


@dataclass(frozen=True)
class Picture:
    """Relative norms by module and layer, as cells of a picture."""

    modules: tuple[str, ...]
    first: int
    last: int
    cells: tuple[tuple[float | None, ...], ...]
    """(modules, columns): medians over the layers of a column; None where they lack the module."""

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
        """Return whether all norms are the same, to a twentieth."""
        return self.largest <= FLAT * self.least

    def level(self, value: float) -> float:
        """Return where a norm above 0 lies by its logarithm, 0 to 1; 1 if they are flat."""
        if self.is_flat:
            return 1.0
        return math.log(value / self.least) / math.log(self.largest / self.least)


def picture(rows: Sequence[Row], columns: int) -> Picture | None:
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
    cells = []
    for row in rows:
        norms = dict(zip(row.layers, row.relative_norm, strict=True))
        known = [[norms[layer] for layer in some if norms.get(layer) is not None] for some in bins]
        cells.append(tuple(median(values) if values else None for values in known))
    modules = tuple(row.module for row in rows)
    return Picture(modules, first=layers[0], last=layers[-1], cells=tuple(cells))


def by_component(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each component, in their order."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row.component, []).append(row)
    return grouped


def order_of(component: str, module: str = "") -> tuple[int, int, str, str]:
    """Return where a component, or its module, stands in names.yaml; unknown names come last."""
    components, modules = _numbers()
    last = len(components) + len(modules)
    return components.get(component, last), modules.get(module, last), component, module


@cache
def _numbers() -> list[dict[str, int]]:
    rules = name_rules()
    return [{name: at for at, name in enumerate(of)} for of in (rules.components, rules.modules)]
