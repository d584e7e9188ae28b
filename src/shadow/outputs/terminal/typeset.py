"""Numbers, ranges, small charts and tables of texts, as every view sets them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from rich import box
from rich.console import ConsoleOptions
from rich.table import Table
from rich.text import Text

from shadow.telling.wording import about

BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.-=+*%#"
WIDE = 100  # columns of terminal from which the wide tables fit
ALL = 0.95  # share of the layers from which a change is said to fill all of them
SPARK = 48  # layers a sparkline shows one by one; more are averaged in bins


def bars_of(options: ConsoleOptions) -> str:
    """The letters of a sparkline that the console can show, from low to high."""
    return ASCII_BARS if options.ascii_only else BARS


def number(value: float | int | None, digits: int = 3) -> str:
    """A figure for people: significant digits, whole and half numbers (medians of counts) as they
    are, `-` for null.
    """
    if value is None:
        return "-"
    if value == int(value):
        return f"{int(value):,}"
    if abs(value) < 100 and 2 * value == int(2 * value):
        return f"{value:.1f}"
    if abs(value) >= 10**digits - 0.5:
        return f"{value:,.0f}"
    return _significant(value, digits)


def _significant(value: float, digits: int) -> str:
    """With zeros at the end, so that a figure has as many digits as its interval: `8.0`."""
    if not value:
        return "0"
    return f"{value:#.{digits}g}".removesuffix(".")


def fixed(value: float | None, places: int = 2) -> str:
    """A figure with so many decimals, 1 or more; zero without a sign, `-` for null."""
    if value is None:
        return "-"
    zero = "0." + "0" * places
    return f"{value:.{places}f}".replace(f"-{zero}", zero)


def rounded(value: float | int | None) -> str:
    """About how many directions or layers, as the finding says it: `10`, `3.6`; `-` for null."""
    if value is None:
        return "-"
    return about(float(value))


def layers_filled(effective: float | int | None, layers: float | int | None) -> str:
    """`all 28`, or `19 of 28`; `-` where either is null."""
    if effective is None or not layers:
        return "-"
    if effective >= ALL * layers:
        return f"all {layers:,.0f}"
    return f"{effective:.0f} of {layers:,.0f}"


def percentage(part: float | int | None, whole: float | int | None) -> str:
    """What part is of the whole, with one decimal: `12.5 %`; `-` where there is no whole."""
    if part is None or not whole:
        return "-"
    return f"{100 * part / whole:.1f} %"


def share(value: float | int | None) -> str:
    """A share, where 1 is all, as a percentage with two significant digits; `-` for null."""
    if value is None:
        return "-"
    percent = 100 * value
    if percent >= 99.5:
        return f"{percent:.0f} %"
    return f"{_significant(percent, 2)} %"


def bounds_text(bounds: Sequence[float], form: Callable[[float], str]) -> str:
    """The two bounds of an interval, low and high: `0.31 to 0.42`, `8.0 to 12 %`."""
    low, high = (form(bound) for bound in bounds)
    return f"{low.removesuffix(' %')} to {high}"


def span(low: str, high: str, between: str = " to ") -> str:
    """`3 to 7`, or `3` where both are the same."""
    if low == high:
        return low
    return f"{low}{between}{high}"


def apart(value: float | None, scale: str) -> str:
    """A difference with its sign, or a ratio: `+0.092`, `x 0.67`; `-` for null.

    scale: `difference`, or `log ratio`, of which value is the natural logarithm.
    """
    if value is None:
        return "-"
    if scale == "difference":
        return f"{value:+.3f}"
    ratio = math.exp(min(value, 700.0))
    if 0.1 <= ratio < 100:
        return f"x {ratio:.2f}"
    return f"x {number(ratio, 2)}"


def apart_span(low: float, high: float, scale: str) -> str:
    """The two ends of a difference or ratio: `+0.048 to +0.095`, `x 0.76 to 0.85`."""
    return f"{apart(low, scale)} to {apart(high, scale).removeprefix('x ')}"


def sparkline(values: Sequence[float | None], width: int, bars: str = BARS) -> str:
    """Levels from the least to the largest value, at most width of them.

    More values than that are averaged in equal bins. A value that is None leaves a gap. Raises
    ValueError where all are.
    """
    levels = [_mean(some) for some in _bins(values, width)]
    present = [level for level in levels if level is not None]
    low = min(present)
    span = (max(present) - low) or 1.0

    def bar(level: float | None) -> str:
        if level is None:
            return " "
        return bars[round((level - low) / span * (len(bars) - 1))]

    return "".join(bar(level) for level in levels)


def _bins(values: Sequence[float | None], width: int) -> list[Sequence[float | None]]:
    """One for each value, or so many equal ones where there are more values."""
    count = len(values)
    if count <= width:
        return [[value] for value in values]
    edges = [place * count // width for place in range(width + 1)]
    return [values[start:end] for start, end in pairwise(edges)]


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return sum(known) / len(known)


Columns = list[tuple[str, list[str]]]  # of a table: heads and cells


def text_table(
    title: str,
    columns: Columns,
    wider: Sequence[tuple[int, str, list[str]]],
    width: int,
    gap: int = 3,
) -> Table:
    """A table of texts, with gap (2 or 3) between columns.

    wider are (place, head, cells) for as long as the terminal is wide enough, in that order.
    Components and modules are names, or else the first column.
    """
    columns = list(columns)
    for place, head, cells in wider:
        if _columns_width([*columns, (head, cells)], gap) > width:
            break
        columns.insert(place, (head, cells))
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, gap - 2),
    )
    named = [name for name, _ in columns if name in ("component", "module")] or [columns[0][0]]
    for name, _ in columns:
        table.add_column(
            name,
            justify="left" if name in named else "right",
            no_wrap=True,
            style="cyan" if name == named[-1] else None,
        )
    for row in zip(*(texts for _, texts in columns), strict=True):
        table.add_row(*map(Text, row))
    return table


def _columns_width(columns: Columns, gap: int) -> int:
    """Of a table, in letters; a space stands before the first column and after the last."""
    widths = [max(map(len, (name, *texts))) for name, texts in columns]
    return sum(widths) + gap * (len(widths) - 1) + 2
