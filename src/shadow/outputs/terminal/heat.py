"""A picture of a pair: modules by layers as cells, darker where a matrix moved further."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.text import Text

from shadow.findings.summary_rows import GridRow
from shadow.outputs.terminal.typeset import share

SHADES, ASCII_SHADES = "░▒▓█", ".:+#"
# Cividis, dark to light: legible for every eye, and on black and on white.
COLOURS = ((0, 34, 78), (53, 69, 108), (102, 105, 112), (148, 142, 119), (200, 184, 102), (254, 232, 56))
LEVELS = 12  # that are told apart in colours
UNMOVED, ABSENT = "·", " "
LABEL = 14  # columns of the names of modules
WIDEST = 2  # columns of a cell, where there is room
FLAT = 1.05  # ratio of the largest to the least, below which all cells are one


@dataclass(frozen=True)
class HeatMap:
    """The modules of one component by its layers, as a rich renderable. More layers than columns are binned."""

    rows: Sequence[GridRow]
    """Of one component, in the order that they are shown."""

    title: str
    """The line above."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        layers = sorted({layer for row in self.rows for layer in row.layers})
        room = max(8, options.max_width - LABEL - 2)
        columns = min(len(layers), room)
        bins = [layers[i * len(layers) // columns : (i + 1) * len(layers) // columns] for i in range(columns)]
        width = max(1, min(WIDEST, room // columns))
        cells = [[_cell(row, some) for some in bins] for row in self.rows]
        moved = [value for line in cells for value in line if value]
        coloured = console.color_system is not None and not console.no_color
        plain = ASCII_SHADES if options.ascii_only else SHADES
        scale = _scale(moved)
        yield Text(self.title, "italic")
        for row, line in zip(self.rows, cells, strict=True):
            text = Text(f"{row.module:<{LABEL}}"[:LABEL], "cyan")
            for value in line:
                text.append(*_drawn(value, scale, width, plain, coloured=coloured))
            yield text
        first, last = str(layers[0]), str(layers[-1])
        gap = max(1, columns * width - len(first) - len(last))
        yield Text(f"{'layer':<{LABEL}}{first}{' ' * gap}{last}", "dim")
        legend = _legend(moved, scale, plain, coloured=coloured)
        if any(value == 0 for line in cells for value in line):
            legend.append(f"   {UNMOVED} did not move", "dim")
        yield legend


def heat_maps(grid: Sequence[GridRow]) -> list[HeatMap]:
    """One for each component that has more than one layer and anything that moved."""
    by_component: dict[str, list[GridRow]] = {}
    for row in grid:
        by_component.setdefault(row.component, []).append(row)
    maps = []
    for component, rows in by_component.items():
        layers = {layer for row in rows for layer in row.layers}
        if len(layers) < 2 or not any(value for row in rows for value in row.relative_norm):
            continue
        of = f" of {component}" if len(by_component) > 1 else ""
        maps.append(HeatMap(rows, f"How far each module{of} moved, relative norm by layer"))
    return maps


def _cell(row: GridRow, layers: Sequence[int]) -> float | None:
    """The median over some layers; None where the module is in none of them."""
    known: Mapping[int, float | None] = dict(zip(row.layers, row.relative_norm, strict=True))
    values = [value for layer in layers if (value := known.get(layer)) is not None]
    return median(values) if values else None


def _scale(moved: Sequence[float]) -> tuple[float, float]:
    """The logarithms of the least and the largest norm; the same twice where nothing is told apart."""
    low, high = min(moved), max(moved)
    return (math.log(low), math.log(high)) if high > FLAT * low else (math.log(high), math.log(high))


def _level(value: float, scale: tuple[float, float]) -> float:
    """Where a norm lies on the scale, 0 to 1."""
    low, high = scale
    return (math.log(value) - low) / (high - low) if high > low else 1.0


def _drawn(
    value: float | None, scale: tuple[float, float], width: int, shades: str, *, coloured: bool
) -> tuple[str, Style | None]:
    if value is None:
        return ABSENT * width, None
    if value == 0:
        return f"{UNMOVED:^{width}}", Style(dim=True)
    level = _level(value, scale)
    if coloured:
        return " " * width, Style(bgcolor=_colour(level))
    return shades[min(len(shades) - 1, int(level * len(shades)))] * width, None


def _colour(level: float) -> str:
    """`#rrggbb`, between two of COLOURS."""
    place = round(level * (LEVELS - 1)) / (LEVELS - 1) * (len(COLOURS) - 1)
    low = min(int(place), len(COLOURS) - 2)
    mixed = [round(a + (b - a) * (place - low)) for a, b in zip(COLOURS[low], COLOURS[low + 1], strict=True)]
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def _legend(moved: Sequence[float], scale: tuple[float, float], shades: str, *, coloured: bool) -> Text:
    """The scale from the least to the largest norm."""
    text = Text(" " * LABEL)
    if scale[0] == scale[1]:
        return text.append(f"flat: {share(max(moved))} everywhere", "dim")
    text.append(f"{share(min(moved))} ", "dim")
    for step in range(LEVELS):
        level = step / (LEVELS - 1)
        if coloured:
            text.append(" ", Style(bgcolor=_colour(level)))
        elif step % (LEVELS // len(shades)) == 0:
            text.append(shades[step // (LEVELS // len(shades))])
    return text.append(f" {share(max(moved))}", "dim")
