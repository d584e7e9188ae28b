"""The record of a pair and its rows, with the keys of columns.yaml: the content of the tables
before any claim about it; and how it is read from `summary.json`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from shadow.places.names import name_rules
from shadow.reports.columns import SUMMARY
from shadow.reports.provenance import SettingsMetadata
from shadow.spectra.measurement import LEVELS, WITHOUT_SPECTRA

STATUSES = ("measured", "identical", "skipped")  # of tensors
TIERS: Mapping[str, tuple[str, str]] = {
    **{level: (LEVELS[level], f"--level {level}") for level in WITHOUT_SPECTRA},
    "delta": ("spectra of deltas alone", "--subjects delta"),
    "full": ("spectra of base, tuned and delta", ""),
}
"""What was measured, and the option that asks for it; none for the usual one."""


def tier_of(settings: SettingsMetadata) -> str:
    """Return the tier of a report with these settings."""
    method = settings["method"]
    tier = "delta" if method.get("subjects") == "delta" else "full"
    return next((level for level in WITHOUT_SPECTRA if level == method["level"]), tier)


def not_measured(tier: str) -> str | None:
    """Return why a figure of a tier is null, or None if all were measured."""
    how, option = TIERS[tier]
    return f"the report has {how}: it was made with {option}" if option else None


class Row(dict[str, Any]):
    """Values by key, which are also attributes."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def with_values(self, **values: Any) -> Self:
        """Return the same row with other values of some keys."""
        return type(self)(self | values)


def _shape(keys: str) -> dict[str, str]:
    """Return the kind of each key of a list, and of the keys of lists that it names."""
    kinds: dict[str, str] = {}
    for key in keys.split():
        name, _, kind = key.partition(":")
        kinds |= _shape(SUMMARY[name[1:]]) if name[0] == "*" else {name: kind or "number?"}
    return kinds


SHAPES = {place: _shape(keys) for place, keys in SUMMARY.items()}
MEDIANS, LAYER_MEDIANS = tuple(SHAPES["medians"]), tuple(SHAPES["layer_medians"])


def row(place: str, /, *parts: Mapping[str, Any], **more: Any) -> Row:
    """Return the row of a place, its keys in their order; later parts override earlier ones."""
    values: dict[str, Any] = {}
    for part in (*parts, more):
        values |= part
    return Row((key, values[key]) for key in SHAPES[place])


class PairRecord(Row):
    """Measurements of one pair: the first keys of `summary.json`, in their order.

    Figures are medians over all delta rows unless their name says otherwise; those of depth are of
    the main component, which is language if there is one.
    """

    __slots__ = ()

    @property
    def has_spectra(self) -> bool:
        """Return whether singular values were measured or estimated."""
        return self.tier not in WITHOUT_SPECTRA

    @property
    def main_component(self) -> str | None:
        """The component whose depth counts: language, or the one with most layers."""
        return main_of([row.component for row in self.depth])

    @property
    def has_components(self) -> bool:
        """Return whether there are several, so that a module is named with its component."""
        return len({row.component for row in self.components}) > 1


LAYERS = 1000  # numbers below which a chart has room: a tensor's name may claim any


def by_component(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each component, in order."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row.component, []).append(row)
    return grouped


def order_of(component: str, module: str = "") -> tuple[int, int, str, str]:
    """Return where a component, or its module, stands in names.yaml; unknown names come last."""
    rules = name_rules()
    named = (rules.components, component), (rules.modules, module)
    first, second = (of.index(name) if name in of else len(of) for of, name in named)
    return first, second, component, module


def main_of(components: list[str]) -> str | None:
    """Return the main of the components of layers: language, or the one with most layers."""
    if "language" in components:
        return "language"
    return max(components, key=components.count, default=None)


def read_row(place: str, value: Any) -> Row:
    """Return a row from its JSON.

    Raises TypeError if it does not have the shape of its place: no key may be missing or extra.
    pydantic would do the same, but takes 100 ms to import: a summary is read in 10.
    """
    shape = SHAPES[place]
    if not isinstance(value, dict) or value.keys() != shape.keys():
        raise TypeError(place)
    return Row((key, _read(kind, value[key])) for key, kind in shape.items())


def _read(kind: str, value: Any) -> Any:
    """Read a value of a kind: `int?` may be null, `int[]` is a list, `int{}` a map by name;
    anything but a scalar is the row of a place.
    """
    if kind.endswith("?"):
        return None if value is None else _read(kind[:-1], value)
    if kind in SHAPES:
        return read_row(kind, value)
    if kind.endswith("[]") and isinstance(value, list):
        return [_read(kind[:-2], one) for one in value]
    if kind.endswith("{}") and isinstance(value, dict):
        return {key: _read(kind[:-2], one) for key, one in value.items()}
    if kind == "bounds" and isinstance(value, list | tuple):
        low, high = (_read("number", one) for one in value[:3])
        return low, high
    if kind in SCALARS and SCALARS[kind](value):
        return value
    raise TypeError(kind)


SCALARS: Mapping[str, Callable[[Any], bool]] = {
    "number": lambda value: type(value) in (int, float) and math.isfinite(value),
    "int": lambda value: type(value) is int,
    "text": lambda value: type(value) is str,
    "flag": lambda value: type(value) is bool,
    "tier": lambda value: value in TIERS,
    "warning": lambda value: value == "older_report",
}
