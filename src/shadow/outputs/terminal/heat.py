"""A picture of a pair: modules by layers as cells, lighter where a matrix moved further."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.text import Text

from shadow.outputs.cividis import colour
from shadow.quantities import share
from shadow.summary.picture import Picture, picture
from shadow.summary.rows import Row

SHADES, ASCII_SHADES = "░▒▓█", ".:+#"
UNMOVED, ABSENT = "·", " "
LABEL = 14  # columns of the names of modules
WIDEST = 2  # columns of a cell, where there is room
STEPS = 6  # colours of the scale
APART = 3  # columns between an axis and the scale


@dataclass(frozen=True)
class HeatMap:
    """The modules of one component by its layers, as a rich renderable.

    More layers than columns are binned.
    """

    rows: Sequence[Row]
    """Of one component, in the order that they are shown."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = max(8, options.max_width - LABEL - 2)
        drawn = picture(self.rows, room)
        assert drawn is not None
        columns = len(drawn.cells[0])
        shades = ASCII_SHADES if options.ascii_only else SHADES
        coloured = console.color_system is not None and not console.no_color
        scale = _scale(drawn, shades, coloured=coloured)
        ends = str(drawn.first), str(drawn.last)
        axis, width = _axis(ends, columns, scale, room)
        for module, cells in zip(drawn.modules, drawn.cells, strict=True):
            text = Text(f"{module:<{LABEL}}"[:LABEL], "cyan")
            for value in cells:
                text.append(*_cell(value, drawn, width=width, shades=shades, coloured=coloured))
            yield text
        yield from axis


def _axis(ends: tuple[str, str], columns: int, scale: Text, room: int) -> tuple[list[Text], int]:
    """The numbers of the first and the last layer below their cells, with the scale: between them
    or beside them, and below them where neither has room. And how wide a cell is.
    """
    first, last = ends

    def axis(width: int, between: Text) -> Text:
        gap = max(1, columns * width - len(first) - len(last) - len(between))
        text = Text().append(f"{'layer':<{LABEL}}{first}{' ' * (gap // 2)}", "dim")
        return text.append_text(between).append(f"{' ' * (gap - gap // 2)}{last}", "dim")

    widths = [width for width in range(WIDEST, 0, -1) if columns * width <= room] or [1]
    for width in widths:
        if columns * width >= len(scale) + len(first) + len(last) + 2 * APART:
            return [axis(width, scale)], width
        if columns * width + APART + len(scale) <= room:
            line = axis(width, Text())
            return [line.append(" " * APART).append_text(scale)], width
    indent = " " * (LABEL if len(scale) <= room else 0)
    return [axis(widths[0], Text()), Text(indent).append_text(scale)], widths[0]


def _cell(
    value: float | None, drawn: Picture, width: int, shades: str, *, coloured: bool
) -> tuple[str, Style | None]:
    """The letters of a cell, and their style."""
    if value is None:
        return ABSENT * width, None
    if value == 0:
        return f"{UNMOVED:^{width}}", Style(dim=True)
    level = drawn.level(value)
    if coloured:
        return " " * width, Style(bgcolor=colour(level))
    return shades[min(len(shades) - 1, int(level * len(shades)))] * width, None


def _scale(drawn: Picture, shades: str, *, coloured: bool) -> Text:
    """What is drawn, from the least to the largest norm."""
    text = Text()
    if drawn.is_flat:
        text.append(f"relative norm {share(drawn.largest)} everywhere", "dim")
    else:
        text.append(f"relative norm {share(drawn.least)} ", "dim")
        if coloured:
            for step in range(STEPS):
                text.append(" ", Style(bgcolor=colour(step / (STEPS - 1))))
        else:
            text.append(shades)
        text.append(f" {share(drawn.largest)}", "dim")
    if any(value == 0 for row in drawn.cells for value in row):
        text.append(f"  {UNMOVED} unchanged", "dim")
    return text
