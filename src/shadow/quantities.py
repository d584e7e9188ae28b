"""Numbers for people: a quantity has a kind, and a kind looks the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shadow.text import took

Kind = Literal[
    "count",  # a whole number of things: 1,234
    "share",  # 1 is all, two significant digits: 8.0 %
    "fraction",  # as a share, where nearly all is not all: 8.0 %, 99.7 %, none
    "portion",  # 1 is all, one decimal, where nearly all is not all: 99.7 %
    "number",  # three significant digits; whole and half numbers as they are
    "score",  # four significant digits
    "about",  # a number of directions, two significant digits: 14, 1,200
    "fixed",  # two decimals: 0.33
    "thousandths",  # three decimals: 0.333
    "ratio",  # two significant digits: 0.52
    "difference",  # three decimals and a sign: +0.092
    "log_ratio",  # the logarithm of a ratio: x 0.67
    "gain",  # three significant digits and a sign: +12.5
    "factor",  # two digits of how far it is from 1: 1.010, 0.9990, -1.000
    "correlation",  # two decimals and a sign: +0.31
    "seconds",
]
HUGE = 1e7  # percents from which on a share has an exponent
DASH = "-"  # nothing is known


@dataclass(frozen=True)
class Quantity:
    """A number and its format."""

    value: float | int | None
    kind: Kind
    low: float | None = None
    """The lower end of its interval; None where it has none."""
    high: float | None = None

    def __str__(self) -> str:
        """`0.33 (0.28 to 0.36)`; without brackets if there is no interval to see."""
        text = text_of(self.value, self.kind)
        if self.low is None or self.high is None:
            return text
        bounds = bounds_text((self.low, self.high), self.kind)
        return f"{text} ({bounds})" if " to " in bounds else text


def text_of(value: float | int | None, kind: Kind) -> str:
    """Format a number with digits that suit its kind; a dash for null."""
    return DASH if value is None else FORMS[kind](value or 0)  # zero has no sign


def bounds_text(bounds: Sequence[float], kind: Kind) -> str:
    """Format the two ends of an interval: `0.31 to 0.42`, `8.0 to 12 %`, `x 0.76 to 0.85`; once if
    they look the same.
    """
    low, high = (text_of(bound, kind) for bound in bounds)
    if low == high:
        return low
    if kind == "share":
        low = low.removesuffix(" %")
    if kind == "log_ratio":
        high = high.removeprefix("x ")
    return f"{low} to {high}"


def portion_of(part: int, whole: int) -> Quantity:
    """Part as a share of whole; null if there is no whole."""
    return Quantity(part / whole if whole else None, "portion")


def share(value: float) -> str:
    """`1.2 %`, two significant digits; whole numbers above 10 %."""
    percents = 100 * value
    if percents >= HUGE:
        return f"{percents:.1e} %"
    if percents >= 9.95 or percents == 0:
        return f"{percents:.0f} %"
    if percents < 0.01:
        return f"{percents:.1g} %"
    return f"{percents:#.2g} %"


def _fraction(value: float) -> str:
    """Format as a share, rounded down from 99 % on, as nearly all is not all; tiny is none."""
    if value < 1e-6:
        return "none"
    return share(value) if value < 0.99 or value >= 1 else f"{math.floor(1000 * value) / 10:.1f} %"


def about(value: float) -> str:
    """Format a number of directions with two significant digits: `10`, `57`, `1,200`."""
    if value < 100:
        return f"{value:.0f}"
    scale = 10 ** (int(math.log10(value)) - 1)
    return f"{round(value / scale) * scale:,}"


def _number(value: float, digits: int = 3) -> str:
    """Format with trailing zeros, so that a figure has as many digits as its interval: `8.00`."""
    if value == int(value):
        return f"{int(value):,}"
    if abs(value) < 100 and 2 * value == int(2 * value):  # the median of two counts
        return f"{value:.1f}"
    if abs(value) >= 10**digits - 0.5:
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".removesuffix(".")


def _ratio(value: float) -> str:
    """`0.52`, `2.1`, `35`."""
    return f"{value:,.0f}" if abs(value) >= 9.95 else f"{value:#.2g}"


def _decimals(value: float, places: int) -> str:
    """Format without a sign for zero."""
    zero = "0." + "0" * places
    return f"{value:.{places}f}".replace(f"-{zero}", zero)


def _log_ratio(value: float) -> str:
    ratio = math.exp(min(value, 700.0))
    return f"x {ratio:.2f}" if 0.1 <= ratio < 100 else f"x {_number(ratio, 2)}"


def _factor(value: float) -> str:
    """Format as a ratio if far from 1."""
    if not 0.1 <= abs(value) < 10:
        return _ratio(value)
    digits = 3
    if distance := round(abs(value - 1.0), 7):
        digits = max(digits, 1 - math.floor(math.log10(distance)))
    return f"{value:.{digits}f}"


FORMS: Mapping[Kind, Callable[[float], str]] = {
    "count": lambda value: f"{value:,.0f}",
    "share": share,
    "fraction": _fraction,
    "portion": lambda value: f"{min(100 * value, 99.9) if value < 1 else 100 * value:.1f} %",
    "number": _number,
    # shares have four digits, so that 0.5 next to 0.6123 is 0.5000
    "score": lambda value: f"{value:#.4g}" if 0 < abs(value) < 1 else _number(value, 4),
    "about": about,
    "fixed": lambda value: _decimals(value, 2),
    "thousandths": lambda value: _decimals(value, 3),
    "ratio": _ratio,
    "difference": lambda value: f"{round(value, 3) or 0:+.3f}",
    "log_ratio": _log_ratio,
    "gain": lambda value: f"{value:+,.0f}" if abs(value) >= 999.5 else f"{value:+.3g}",
    "factor": _factor,
    "correlation": lambda value: f"{value:+.2f}",
    "seconds": took,
}
