"""A sentence in the making, and the sentence: words of figures, noted by their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from shadow.checks.answer import Figure
from shadow.quantities import Kind, text_of
from shadow.summary.record import PairRecord


@dataclass(frozen=True)
class Sentence:
    """A measured statement."""

    code: str
    """One of shadow.telling.finding.CODES."""
    text: str
    figures: Mapping[str, Figure]
    """The figures whose numbers stand in it, in full, by their place in summary.json."""


@dataclass
class Draft:
    """A sentence or a reason in the making: figures are noted when their numbers are written."""

    summary: PairRecord
    figures: dict[str, Figure] = field(default_factory=dict)
    """What was written so far, by place in summary.json."""

    def write(self, value: Figure, place: str, form: Kind | Callable[[float], str]) -> str:
        """The value in words, noted under its place."""
        self.figures[place] = value
        return text_of(value, form) if isinstance(form, str) else form(value)

    def inside(self, name: str) -> Figure | None:
        """A figure of the matrices inside layers, noted if there is one."""
        return self._noted(f"inside_layers.{name}", self.summary.inside_layers[name])

    def overall(self, name: str) -> Figure | None:
        """A figure of the whole pair, noted if there is one."""
        return self._noted(f"figures.{name}", self.summary.figures[name])

    def _noted(self, place: str, value: Figure | None) -> Figure | None:
        if value is not None:
            self.figures[place] = value
        return value

    def directions(self) -> str:
        """How many directions a matrix inside layers has: `64`, or `32 to 64` where they differ, as
        their median need not be the size of any; empty where it is unknown.
        """
        inside = self.summary.inside_layers
        least, most = inside.short_side_least, inside.short_side_most
        if least is not None and most is not None and least < most:
            low = self.write(least, "inside_layers.short_side_least", "count")
            return f"{low} to {self.write(most, 'inside_layers.short_side_most', 'count')}"
        side = self.overall("short_side")
        return "" if side is None else text_of(side, "count")

    def sentence(self, code: str, *parts: str) -> Sentence:
        """The sentence, of the parts that are not empty."""
        return Sentence(code, " ".join(part for part in parts if part), self.figures)


def all_of(count: int, total: int) -> str:
    """`7 of 8 matrices`, `both matrices`, `all 8 matrices`."""
    if count != total:
        return f"{count:,} of {total:,} matrices"
    return {1: "the only matrix", 2: "both matrices"}.get(total, f"all {total:,} matrices")
