"""Modules by layers: how far each moved, and how concentrated its change is."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from shadow.places.names import name_rules
from shadow.summary.numbers import are, median_of
from shadow.summary.rows import Row, row

if TYPE_CHECKING:
    from shadow.summary.columns import Columns


def grid(deltas: Columns, tensors: Columns) -> list[Row]:
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
        layers, cells = zip(*sorted(places[component, module].items()), strict=True)
        norms, concentrations = map(list, zip(*cells, strict=True))
        figures = {"relative_norm": norms, "concentration": concentrations}
        rows.append(row("grid", figures, component=component, module=module, layers=list(layers)))
    return rows


def order_of(component: str, module: str = "") -> tuple[int, int, str, str]:
    """Where a component, or its module, stands in names.yaml; unknown names come last."""
    components, modules = _numbers()
    last = len(components) + len(modules)
    return components.get(component, last), modules.get(module, last), component, module


@cache
def _numbers() -> list[dict[str, int]]:
    rules = name_rules()
    return [{name: at for at, name in enumerate(of)} for of in (rules.components, rules.modules)]
