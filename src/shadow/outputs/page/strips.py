"""Charts of rows below each other on one axis: a dot a matrix, or a bar a module.

All that lies along the axis is in per cent of its length, so that the page needs no script for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shadow.checks.inside import LIKE_NOISE
from shadow.checks.summary import Summary
from shadow.quantities import Kind, bounds_text, text_of
from shadow.summary.columns import Columns
from shadow.summary.grid import order_of
from shadow.summary.rows import Row
from shadow.telling.document import Block

HUES = {"language": "s0", "vision": "s5", "projector": "s2", "audio": "s6"}
OTHER_HUE = "s7"
MOST_TOLD = 200  # dots of a row that say which matrix they are; of more, equal ones are one
STEPS = (1, 2, 5, 10)
TICKS = 5

NOISE = (-LIKE_NOISE, LIKE_NOISE)

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A linear axis between two values."""

    title: str
    low: float
    high: float
    kind: Kind = "fixed"

    def at(self, value: float) -> float:
        """Where a value lies, in per cent."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    def span(self, bounds: Sequence[float] | None) -> Bounds | None:
        """Where an interval begins, and how long it is; within the axis."""
        if bounds is None:
            return None
        low, high = (self.at(min(max(bound, self.low), self.high)) for bound in bounds)
        return low, round(high - low, 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Round values and where they lie."""
        least = (self.high - self.low) / TICKS
        power = 10.0 ** math.floor(math.log10(least))
        step = power * next(one for one in STEPS if one * power >= least * (1 - 1e-9))
        values = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        return [(self.at(place * step), self._text(place * step)) for place in values]

    def _text(self, value: float) -> str:
        return f"{100 * value:g} %" if self.kind == "share" else f"{value:g}".replace("-", "−")


@dataclass(frozen=True)
class Strip:
    """A row of a chart. Lengths and places are in per cent."""

    name: str
    text: str = ""
    """What the row says when it is pointed at."""
    hue: str = "tuned"
    dots: Sequence[tuple[float, float, str]] = ()
    """Of each where it lies, how far down the row, and which matrix it is."""
    bar: float | None = None
    interval: Bounds | None = None
    mark: float | None = None
    is_hollow: bool = False
    link: str = ""


@dataclass(frozen=True)
class Strips(Block):
    """A chart of rows on one axis."""

    name: str
    """One of those in charts.html.j2."""
    label: str
    """What a screen reader says of it."""
    axis: Axis
    strips: Sequence[Strip]
    zones: Sequence[tuple[Bounds | None, str]] = ()
    """What is shaded, with its colour."""
    lines: Sequence[tuple[float, str, str]] = ()
    """Of each upright line its place, what stands above it, and its colour."""


def concentration_chart(deltas: Columns, summary: Summary) -> Strips | None:
    """The concentration of every matrix by module; None where none has one."""
    known = deltas.where(~np.isnan(deltas["concentration"]))
    groups = sorted(known.groups("component", "module"), key=lambda group: order_of(*group[0]))
    if not groups:
        return None
    values = known["concentration"]
    axis = Axis("concentration", min(-0.08, values.min() - 0.04), max(0.25, values.max() + 0.04))
    several = len({component for (component, _), _ in groups}) > 1
    strips = [
        Strip(
            f"{component} {module}" if several else module,
            hue=HUES.get(component, OTHER_HUE),
            dots=_dots(rows, axis),
        )
        for (component, module), rows in groups
    ]
    zones, lines = [(axis.span(NOISE), "soft")], [(axis.at(0.0), "null", "text")]
    median = summary.figures.concentration
    if median is not None and axis.low <= median <= axis.high:
        lines.append((axis.at(median), f"median {text_of(median, 'fixed')}", "delta"))
        zones.append((axis.span(summary.intervals.get("concentration")), "delta"))
    label = f"Concentration of {len(values)} matrices by module, against a null of 0"
    return Strips("concentration", label, axis, strips, zones=zones, lines=lines)


def _dots(rows: Columns, axis: Axis) -> list[tuple[float, float, str]]:
    """A dot for each matrix, spread over the height of its row so that they do not hide others."""
    told = list(rows.each("concentration", "layer", "expert"))
    if len(told) > MOST_TOLD:
        places = sorted({axis.at(value) for value, _, _ in told})
        return [(place, _height(number), "") for number, place in enumerate(places)]
    dots = []
    for number, (value, layer, expert) in enumerate(told):
        names = [
            f"{name} {of:.0f}"
            for name, of in (("layer", layer), ("expert", expert))
            if not math.isnan(of)
        ]
        text = f"{', '.join(names)}: {text_of(value, 'fixed')}".removeprefix(": ")
        dots.append((axis.at(value), _height(number), text))
    return dots


def _height(number: int) -> float:
    return round(25 + 50 * (0.5 + number * 0.618) % 50, 1)


def energy_chart(summary: Summary) -> Strips | None:
    """The share of each component and module in the update's energy and in its parameters."""
    several = len(summary.components) > 1
    rows: list[tuple[str, Row]] = []
    if several:
        rows += [(row.component, row) for row in summary.components]
    rows += [
        (f"{row.component} {row.module}" if several else row.module, row) for row in summary.modules
    ]
    rows = [(name, row) for name, row in rows if row.energy_share is not None]
    if not rows:
        return None
    reach = [0.01]
    for _, row in rows:
        reach += [row.energy_share or 0.0, row.parameter_share or 0.0, *_ends(row)]
    axis = Axis("share of the update's energy", 0.0, 1.05 * max(reach), "share")
    strips = [
        Strip(
            name,
            text=f"{name}: {_told(row)}",
            hue=HUES.get(row.component, OTHER_HUE),
            bar=axis.at(row.energy_share or 0.0),
            interval=axis.span(_ends(row) or None),
            mark=axis.at(row.parameter_share or 0.0),
        )
        for name, row in rows
    ]
    label = f"Share of the update's energy by {'component and ' if several else ''}module"
    return Strips("energy", label, axis, strips)


def _ends(row: Row) -> tuple[float, ...]:
    return row.intervals.get("energy_share") or ()


def _told(row: Row) -> str:
    spread = f" ({bounds_text(_ends(row), 'share')})" if _ends(row) else ""
    return (
        f"{text_of(row.energy_share, 'share')}{spread} of the energy,"
        f" {text_of(row.parameter_share, 'share')} of the changed parameters"
    )
