"""The order in which components and modules of a summary are listed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from shadow.places.names import name_rules
from shadow.summary.record import GridRow, LayerRow

LAYERS = 1000  # numbers below which a chart has room: a tensor's name may claim any


OfComponent = TypeVar("OfComponent", LayerRow, GridRow)


def by_component(rows: Sequence[OfComponent]) -> dict[str, list[OfComponent]]:
    """The rows of each component, in order."""
    grouped: dict[str, list[OfComponent]] = {}
    for row in rows:
        grouped.setdefault(row.component, []).append(row)
    return grouped


def order_of(component: str, module: str = "") -> tuple[int, int, str, str]:
    """A sort key: the position of a component, and of its module, in names.yaml; unknown names come
    last.
    """
    rules = name_rules()
    return (
        _position(component, rules.components),
        _position(module, rules.modules),
        component,
        module,
    )


def _position(name: str, names: Sequence[str]) -> int:
    return names.index(name) if name in names else len(names)
