"""Figures that a sentence states, beside those that are true."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

WIDE = 3.0  # times its lower end, above which a range says nothing


def near(value: float, truths: Iterable[float], within: float) -> bool:
    return any(abs(value - truth) <= within * max(truth, 1e-12) for truth in truths)


def written(truths: Iterable[float]) -> str:
    return " or ".join(f"{one:.3g}" for one in truths)


def figures_of(figures: Mapping[str, float], name: str) -> list[float]:
    """The figures whose names begin so: one, or both ends of a range."""
    return sorted(value for place, value in figures.items() if place.startswith(name))


def held(values: list[float], truths: Iterable[float], within: float) -> bool | Literal["absent"]:
    """Whether a value, or a range widened by the tolerance on either side, has the truth."""
    low, high = min(values), max(values)
    holds = any((1 - within) * one <= high and low <= (1 + within) * one for one in truths)
    return "absent" if holds and high > WIDE * low else holds


def size_in(text: str) -> tuple[float, float, float] | None:
    """The percentage after `by` of a headline, or the ends of its range, and half a unit of the
    last digit.
    """
    found = re.search(r"\bby ([\d,]*\.?\d+)(?: to ([\d,]*\.?\d+))? %", text)
    if found is None:
        return None
    low, high = (one.replace(",", "") for one in (found[1], found[2] or found[1]))
    return float(low) / 100, float(high) / 100, 0.005 * 10.0 ** -len(low.partition(".")[2])
