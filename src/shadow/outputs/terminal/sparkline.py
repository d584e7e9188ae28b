"""A figure by layer as a line of letters, higher where it is larger."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from rich.console import ConsoleOptions

BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.-=+*%#"


def bars_of(options: ConsoleOptions) -> str:
    """The letters of a sparkline that the console can show, from low to high."""
    return ASCII_BARS if options.ascii_only else BARS


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
    """So many equal ones; one for each value where there are fewer values."""
    count = len(values)
    width = min(width, count)
    edges = [place * count // width for place in range(width + 1)]
    return [values[start:end] for start, end in pairwise(edges)]


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return sum(known) / len(known)
