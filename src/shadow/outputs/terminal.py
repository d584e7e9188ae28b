"""A document -> rich renderables for a terminal of any width. Pure: nothing here prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.rule import Rule
from rich.style import Style
from rich.table import Table as RichTable
from rich.text import Text

from shadow.quantities import DASH, Quantity, share
from shadow.summary import picture as pictures
from shadow.summary.record import Row
from shadow.telling.document import (
    Block,
    Cell,
    Document,
    FigureRow,
    Figures,
    Headline,
    Level,
    MapBlock,
    Note,
    Origin,
    Paragraph,
    Section,
    TableBlock,
    Word,
)
from shadow.text import visible

STYLES: Mapping[Level, str] = {
    "": "",
    "passed": "green",
    "fault": "bold red",
    "warning": "yellow",
    "quiet": "dim",
}
LONGEST_WORD = 40  # letters of a name that is not broken
TEXT_ROOM = 24  # letters that a column of texts has at least before another column is shown
TEXT_LEAST = 16  # and before a name is broken
GAP = 2  # letters between columns


@dataclass(frozen=True)
class View:
    """A document as a rich renderable."""

    document: Document

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        legends: dict[str, str] = {}
        for block in self.document.blocks:
            if not block.close:
                yield ""
            yield from _drawn(block, options, legends)
        if legends:
            yield Text(" ".join(f"{head}: {text}." for head, text in legends.items()), "dim")


def _drawn(
    block: Block, options: ConsoleOptions, legends: dict[str, str]
) -> Iterator[RenderableType]:
    """The lines of a block; none of what a terminal cannot show. legends: of the heads shown."""
    match block:
        case Section():
            title = Text(visible(block.title), "bold")
            if block.name:
                title.append("  ").append(visible(block.name), "bold cyan")
            yield Rule(title, align="left", style="dim")
        case Headline():
            text = block.text.replace("→", "->") if options.ascii_only else block.text
            yield Text(visible(text), STYLES[block.level] or "bold")
        case Paragraph():
            paragraph = Text(style="dim" if block.quiet else "")
            if block.lead:
                paragraph.append(visible(block.lead), "bold cyan").append("  ")
            yield paragraph.append(visible(block.text))
        case Note():
            yield Text(visible(f"{block.word}: {block.text}"), "yellow")
        case Figures():
            yield from _figures(block)
        case Origin():
            rows = [FigureRow(name, Word(text, "quiet")) for name, text in block.rows]
            yield from _figures(Figures(rows))
        case TableBlock():
            yield from _table(block, options.max_width, legends)
        case MapBlock():
            if block.name:
                yield Text(visible(block.name), "italic")
            yield HeatMap(block.rows)


def _figures(block: Figures) -> Iterator[RenderableType]:
    if block.title:
        yield Text(visible(block.title), "italic")
    rows = RichTable.grid(padding=(0, 2))
    has_remarks = any(row.remark for row in block.rows)
    for row in block.rows:
        value = _cell(row.value)
        value.overflow = "fold"
        if isinstance(row.value, Quantity) or (row.remark and not value.style):
            value.stylize("bold")
        cells = [Text(visible(row.name), "dim"), value]
        rows.add_row(*cells, *([Text(visible(row.remark), overflow="fold")] if has_remarks else []))
    yield rows


def _cell(cell: Cell) -> Text:
    if isinstance(cell, Word):
        text = Text(visible(cell.text), STYLES[cell.level])
        return text.append(visible(f" {cell.aside}"), "dim") if cell.aside else text
    return Text(DASH if cell is None else visible(str(cell)))


def _table(block: TableBlock, width: int, legends: dict[str, str]) -> Iterator[RenderableType]:
    """With as many columns as fit, those of the lowest rank first."""
    rows = [[_cell(cell) for cell in row] for row in block.rows]
    widths = []
    for place, column in enumerate(block.columns):
        widest = max([len(visible(column.head)), *(row[place].cell_len for row in rows)])
        widths.append(min(widest, TEXT_ROOM) if column.role == "text" else widest)
    shown: list[int] = []
    for rank in sorted({column.rank for column in block.columns}):
        more = [place for place, column in enumerate(block.columns) if column.rank <= rank]
        if shown and sum(widths[place] + GAP for place in more) > width:
            break
        shown = more
    columns = [block.columns[place] for place in shown]
    legends.update({column.head: column.legend for column in columns if column.legend})
    if block.title:
        yield Text(visible(block.title), "italic")
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    names = [place for place in shown if block.columns[place].role == "name"]
    # what the other columns leave to each name; a longer one is broken
    least = [min(width, TEXT_LEAST) if column.role == "text" else width
             for width, column in zip(widths, block.columns, strict=True)]  # fmt: skip
    others = sum(least[place] + GAP for place in shown if place not in names)
    longest = min(LONGEST_WORD, (width - others) // max(1, len(names)) - GAP)
    for place in shown:
        column, is_name = block.columns[place], place in names
        word = max((len(word) for row in rows for word in row[place].plain.split()), default=0)
        is_figure = column.role == "figure"
        table.add_column(
            Text(visible(column.head)),
            justify="right" if is_figure else "left",
            no_wrap=is_figure,  # half a number would be another
            overflow="ellipsis" if is_figure else "fold",
            min_width=max(1, min(word, longest)) if is_name else None,
            style="cyan" if place in names[-1:] else None,
        )
    for row in rows:
        table.add_row(*(row[place] for place in shown))
    yield table


# --------------------------------------------------------------------- modules by layers as a map

CIVIDIS = (  # dark to light: legible for every eye, and on black and on white
    (0, 34, 78),
    (53, 69, 108),
    (102, 105, 112),
    (148, 142, 119),
    (200, 184, 102),
    (254, 232, 56),
)
COLOURS = 12  # that are told apart
SHADES, ASCII_SHADES = "░▒▓█", ".:+#"
UNMOVED, ABSENT = "·", " "
LABEL = 14  # columns of the names of modules
WIDEST = 2  # columns of a cell, where there is room
APART = 3  # columns between an axis and the scale


@dataclass(frozen=True)
class HeatMap:
    """The modules of one component by its layers, lighter where a matrix moved further.

    More layers than columns are binned. Colours are those of ground and shade alike, so that a
    copied screen shows the shades.
    """

    rows: Sequence[Row]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = max(8, options.max_width - LABEL - 2)
        drawn = pictures.picture(self.rows, room)
        assert drawn is not None
        shades = ASCII_SHADES if options.ascii_only else SHADES
        coloured = console.color_system is not None and not console.no_color

        def shade(level: float) -> tuple[str, Style | None]:
            letter = shades[min(len(shades) - 1, int(level * len(shades)))]
            return letter, Style(color=(own := _colour(level)), bgcolor=own) if coloured else None

        first, last = str(drawn.first), str(drawn.last)
        columns, scale = len(drawn.cells[0]), _scale(drawn, shade, len(shades))
        width = WIDEST if columns * WIDEST <= room else 1
        for module, cells in zip(drawn.modules, drawn.cells, strict=True):
            text = Text(f"{module:<{LABEL}}"[:LABEL], "cyan")
            for value in cells:
                if value is None:
                    text.append(ABSENT * width)
                elif value == 0:
                    text.append(f"{UNMOVED:^{width}}", "dim")
                else:
                    letter, style = shade(drawn.level(value))
                    text.append(letter * width, style)
            yield text
        gap = max(1, columns * width - len(first) - len(last))
        axis = Text(f"{'layer':<{LABEL}}{first}{' ' * gap}{last}", "dim")
        if columns * width + APART + len(scale) <= room:  # beside the axis, or below it
            yield axis.append(" " * APART).append_text(scale)
        else:
            yield axis
            yield Text(" " * (LABEL if len(scale) <= room else 0)).append_text(scale)


def _colour(level: float) -> str:
    """`#rrggbb`, of a level from 0 to 1."""
    place = round(level * (COLOURS - 1)) / (COLOURS - 1) * (len(CIVIDIS) - 1)
    low = min(int(place), len(CIVIDIS) - 2)
    mixed = [
        round(a + (b - a) * (place - low))
        for a, b in zip(CIVIDIS[low], CIVIDIS[low + 1], strict=True)
    ]
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def _scale(
    drawn: pictures.Picture, shade: Callable[[float], tuple[str, Style | None]], steps: int
) -> Text:
    """Return what is drawn, from the least to the largest norm."""
    text = Text()
    if drawn.is_flat:
        text.append(f"relative norm {share(drawn.largest)} everywhere", "dim")
    else:
        text.append(f"relative norm {share(drawn.least)} ", "dim")
        for step in range(steps):
            text.append(*shade(step / (steps - 1)))
        text.append(f" {share(drawn.largest)}", "dim")
    if any(value == 0 for row in drawn.cells for value in row):
        text.append(f"  {UNMOVED} unchanged", "dim")
    return text
