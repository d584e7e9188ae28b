"""Modules by layers: how far each moved, and how concentrated its change is. What pictures of a pair are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shadow.findings.summary_rows import GridRow
from shadow.places.names import name_rules

if TYPE_CHECKING:
    import pandas as pd

PLACE = ["component", "module", "layer"]


def grid(deltas: pd.DataFrame, tensors: pd.DataFrame) -> list[GridRow]:
    """A row for each module of a component that has layers, in the order of names.yaml; medians over experts.

    A matrix that is identical on both sides counts as not moved at all.
    """
    inside = deltas.loc[deltas["layer"].notna(), [*PLACE, "relative_norm", "concentration"]]
    same = tensors[(tensors["side"] == "tuned") & (tensors["status"] == "identical") & tensors["layer"].notna()]
    places: dict[tuple[str, str], dict[int, tuple[float | None, float | None]]] = {}
    for component, module, layer in same[PLACE].drop_duplicates().itertuples(index=False, name=None):
        places.setdefault((component, module), {})[int(layer)] = (0.0, None)
    medians = inside.astype({"layer": "int64"}).groupby(PLACE, observed=True).median()
    for (component, module, layer), norm, concentration in medians.itertuples(name=None):
        places.setdefault((component, module), {})[int(layer)] = (_known(norm), _known(concentration))
    rules = name_rules()

    def order(place: tuple[str, str]) -> list[tuple[int, str]]:
        """In the order of names.yaml; what only another version or a forged report has comes last."""
        known = zip((rules.components, rules.modules), place, strict=True)
        return [(names.index(name) if name in names else len(names), name) for names, name in known]

    rows = []
    for component, module in sorted(places, key=order):
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


def _known(value: float) -> float | None:
    return float(value) if value == value else None
