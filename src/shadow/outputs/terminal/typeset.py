"""Numbers, ranges, small charts and tables of texts, as every view sets them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from shadow.findings.finding import about

BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.-=+*%#"
WIDE = 100  # columns of terminal from which the wide tables fit
ALL = 0.95  # share of the layers from which a change is said to fill all of them
SPARK = 48  # layers a sparkline shows one by one; more are averaged in bins


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
    return _significant(value, digits) if abs(value) < 10**digits - 0.5 else f"{value:,.0f}"


def _significant(value: float, digits: int) -> str:
    """Zeros at the end too, for as many digits as the interval has: `8.0`, not `8`."""
    return f"{value:#.{digits}g}".removesuffix(".") if value else "0"


def fixed(value: float | None, places: int = 2) -> str:
    return (
        "-"
        if value is None
        else f"{value:.{places}f}".replace("-0." + "0" * places, "0." + "0" * places)
    )


def rounded(value: float | int | None) -> str:
    """About how many directions or layers, as the finding says it: `10`, `3.6`."""
    return "-" if value is None else about(float(value))


def layers_filled(effective: float | int | None, layers: float | int | None) -> str:
    """`all 28`, or `19 of 28`."""
    if effective is None or not layers:
        return "-"
    return (
        f"all {layers:,.0f}" if effective >= ALL * layers else f"{effective:.0f} of {layers:,.0f}"
    )


def percentage(part: float | int | None, whole: float | int | None) -> str:
    return f"{100 * part / whole:.1f} %" if whole and part is not None else "-"


def share(value: float | int | None) -> str:
    """A share as a percentage with two significant digits."""
    if value is None:
        return "-"
    percent = 100 * value
    return f"{percent:.0f} %" if percent >= 99.5 else f"{_significant(percent, 2)} %"


def bounds_text(bounds: Sequence[float], form: Callable[[float], str]) -> str:
    low, high = (form(bound) for bound in bounds)
    return f"{low.removesuffix(' %')} to {high}"


def apart(value: float | None, scale: str) -> str:
    """A difference with its sign, or a ratio: `+0.092`, `x 0.67`."""
    if value is None:
        return "-"
    if scale == "difference":
        return f"{value:+.3f}"
    ratio = math.exp(min(value, 700.0))
    return f"x {ratio:.2f}" if 0.1 <= ratio < 100 else f"x {number(ratio, 2)}"


def sparkline(values: Sequence[float | None], width: int, bars: str = BARS) -> str:
    """Levels from the least to the largest value; more values than width are averaged in equal
    bins.

    A value that is None leaves a gap.
    """
    bins = [[value] for value in values]
    if len(values) > width:
        bins = [
            list(values[i * len(values) // width : (i + 1) * len(values) // width])
            for i in range(width)
        ]
    known = [[value for value in some if value is not None] for some in bins]
    levels = [sum(some) / len(some) if some else None for some in known]
    present = [level for level in levels if level is not None]
    low, span = min(present), (max(present) - min(present)) or 1.0
    return "".join(
        " " if x is None else bars[round((x - low) / span * (len(bars) - 1))] for x in levels
    )


Columns = list[tuple[str, list[str]]]  # of a table: heads and cells


def text_table(
    title: str,
    columns: Columns,
    wider: Sequence[tuple[int, str, list[str]]],
    width: int,
    gap: int = 3,
) -> RenderableType:
    """A table of texts, with gap (2 or 3) between columns.

    wider are (place, head, cells) for as long as the terminal is wide enough, in that order.
    Components and modules are names, or else the first column.
    """
    columns = list(columns)
    for place, head, cells in wider:
        if (
            sum(gap + max(map(len, (name, *texts))) for name, texts in (*columns, (head, cells)))
            > width + gap - 2
        ):
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
        style = "cyan" if name == named[-1] else None
        table.add_column(
            name, justify="left" if name in named else "right", no_wrap=True, style=style
        )
    for row in zip(*(texts for _, texts in columns), strict=True):
        table.add_row(*map(Text, row))
    return table
