"""Documents -> rich renderables for a terminal of any width. Pure: nothing here prints."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import median

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.rule import Rule
from rich.style import Style
from rich.table import Table as RichTable
from rich.text import Text

from shadow.quantities import DASH, Quantity, share
from shadow.summary.record import GridRow
from shadow.telling.document import (
    Block,
    Cell,
    Document,
    Field,
    FigureRow,
    Figures,
    Headline,
    MapBlock,
    Note,
    Origin,
    Paragraph,
    Section,
    TableBlock,
    Word,
)
from shadow.text import visible

STYLES = {
    "": "",
    "passed": "green",
    "fault": "bold red",
    "warning": "yellow",
    "quiet": "dim",
}
LONGEST_WORD = 40  # letters of a name that is not broken
TEXT_ROOM = 24  # letters that a column of texts has at least before another column is shown
TEXT_LEAST = 16  # and before a name is broken
RULE = 120  # letters of a line below which a subject begins
NOTEBOOK = 100  # letters of a line in a notebook
GAP = 2  # letters between columns


@dataclass(frozen=True)
class View:
    """A document as a rich renderable."""

    document: Document

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        legends: dict[str, str] = {}
        before: Block | None = None
        for block in self.document.blocks:
            are_notes = isinstance(block, Note) and isinstance(before, Note)
            if not (block.close or are_notes):
                yield ""
            before = block
            yield from _drawn(block, options, legends)
        if legends:
            texts = [f"{head}: {text}." for head, text in legends.items()]
            yield Text(" ".join(texts), "dim")


def html_of(document: Document) -> str:
    """Draw a document as HTML in the colours of a terminal."""
    console = Console(file=io.StringIO(), record=True, width=NOTEBOOK, force_jupyter=False)
    console.print(View(document))
    return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def _drawn(
    block: Block, options: ConsoleOptions, legends: dict[str, str]
) -> Iterator[RenderableType]:
    """The lines of a block; empty if a terminal cannot show it. legends: of heads shown."""
    match block:
        case Section():
            title = Text(visible(block.title), "bold")
            if block.name:
                title.append("  ").append(visible(block.name), "bold cyan")
            yield Constrain(Rule(title, align="left", style="dim"), RULE)
        case Headline():
            text = block.text
            if options.ascii_only:
                text = text.replace("→", "->")
            style = STYLES[block.level] or "bold"
            yield Text(visible(text), style)
        case Paragraph():
            paragraph = Text(style="dim" if block.quiet else "")
            if block.lead:
                paragraph.append(visible(block.lead), "bold cyan")
                paragraph.append("  ")
            yield paragraph.append(visible(block.text))
        case Note():
            text = visible(f"{block.word}: {block.text}")
            yield Text(text, STYLES.get(block.word, ""))
        case Figures():
            yield from _figures(block)
        case Origin():
            rows = []
            for name, text in block.rows:
                rows.append(FigureRow(name, Word(text, "quiet")))
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
        is_remarked = row.remark and not value.style
        if is_remarked or isinstance(row.value, Quantity):
            value.stylize("bold")
        name = Text(visible(row.name), "dim")
        cells = [name, value]
        if has_remarks:
            remark = Text(visible(row.remark), overflow="fold")
            cells.append(remark)
        rows.add_row(*cells)
    yield rows


def _cell(cell: Cell) -> Text:
    if cell is None:
        return Text(DASH)
    if not isinstance(cell, Word):
        return Text(visible(str(cell)))
    text = Text(visible(cell.text), STYLES[cell.level])
    if cell.aside:
        aside = visible(f" {cell.aside}")
        text.append(aside, "dim")
    return text


def _table(block: TableBlock, width: int, legends: dict[str, str]) -> Iterator[RenderableType]:
    """Draw a table with as many columns as fit, dropping those of the lowest rank first."""
    columns = []
    for place, field in enumerate(block.columns):
        cells = [_cell(row[place]) for row in block.rows]
        columns.append(_Column(field, cells))
    shown = columns[:0]
    ranks = {field.rank for field in block.columns}
    for rank in sorted(ranks):
        more = [column for column in columns if column.field.rank <= rank]
        needed = sum(column.size + GAP for column in more)
        if shown and needed > width:
            break
        shown = more
    for column in shown:
        if column.field.legend:
            legends[column.field.head] = column.field.legend
    if block.title:
        yield Text(visible(block.title), "italic")
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    # what the other columns leave to each name, in full or with their texts broken; a longer one
    # is broken too
    names = [column for column in shown if column.field.role == "name"]
    in_full = 0
    at_least = 0
    for column in shown:
        if column not in names:
            in_full += GAP + column.widest
            at_least += GAP + column.least
    count = max(1, len(names))
    room_in_full = (width - in_full) // count - GAP
    room = (width - at_least) // count - GAP
    longest = max(1, room_in_full, min(LONGEST_WORD, room))
    for column in shown:
        is_figure = column.field.role == "figure"
        size = column.size if is_figure else None
        if column in names:
            size = min(column.size, longest)
        table.add_column(
            Text(visible(column.field.head)),
            justify="right" if is_figure else "left",
            no_wrap=is_figure,  # half a number would be another
            overflow="ellipsis" if is_figure else "fold",
            width=size,
            style="cyan" if column in names[-1:] else None,
        )
    shown_cells = [column.cells for column in shown]
    for row in zip(*shown_cells, strict=True):
        table.add_row(*row)
    yield table


@dataclass(frozen=True, eq=False)
class _Column:
    """A column of a table, and the letters that it takes."""

    field: Field
    cells: Sequence[Text]

    @cached_property
    def widest(self) -> int:
        """The letters of its longest cell, its head included."""
        head = visible(self.field.head)
        return max([len(head), *[cell.cell_len for cell in self.cells]])

    @property
    def size(self) -> int:
        """The letters that it has before another column is shown."""
        if self.field.role == "text":
            return min(self.widest, TEXT_ROOM)
        return self.widest

    @property
    def least(self) -> int:
        """The letters that it has before a name is broken."""
        if self.field.role == "text":
            return min(self.size, TEXT_LEAST)
        return self.size


# --------------------------------------------------------------------- modules by layers as a map

COLOURS = (  # cividis, dark to light: legible for every eye, and on black and on white
    "#00224e", "#18325c", "#304269", "#47526d", "#5d626f", "#737372",
    "#878475", "#9d9674", "#b5a96c", "#cdbc62", "#e5d24d", "#fee838",
)  # fmt: skip
# the same of a terminal of 256 colours, whose nearest ones to those would be teal and rose
FEW_COLOURS = ("#00005f", "#5f5f87", "#878787", "#afaf87", "#d7d75f", "#ffff5f")
SHADES = "░▒▓█"
ASCII_SHADES = "-+X#"
UNMOVED = "·"
ASCII_UNMOVED = "."
ABSENT = " "
LABEL = 14  # columns of the names of modules
WIDEST = 2  # columns of a cell, where there is room
APART = 3  # columns between an axis and the scale
FLAT = 1.05  # ratio of the largest to the least norm, up to which all cells are one


@dataclass(frozen=True)
class HeatMap:
    """The modules of one component by its layers, lighter where a matrix moved further: by the
    logarithm of its relative norm, the median over the layers of a column.

    More layers than columns are binned. Shades are letters as well as colours, so that a copied
    screen shows them.
    """

    rows: Sequence[GridRow]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = max(8, options.max_width - LABEL - 2)
        layers = sorted({layer for row in self.rows for layer in row.layers})
        columns = min(len(layers), room)
        ends = [number * len(layers) // columns for number in range(columns + 1)]
        cells: dict[str, list[float | None]] = {}
        for row in self.rows:
            norm_of = dict(zip(row.layers, row.relative_norm, strict=True))
            medians = cells[row.module] = []
            for start, stop in pairwise(ends):
                norms = [norm_of.get(layer) for layer in layers[start:stop]]
                known = [norm for norm in norms if norm is not None]
                medians.append(median(known) if known else None)
        drawn = [norm for norms in cells.values() for norm in norms]
        moved = [norm for norm in drawn if norm]
        least = min(moved)
        largest = max(moved)
        is_flat = largest <= FLAT * least
        shades = ASCII_SHADES if options.ascii_only else SHADES
        unmoved = ASCII_UNMOVED if options.ascii_only else UNMOVED
        colours = COLOURS if console.color_system == "truecolor" else FEW_COLOURS

        def shade(level: float) -> tuple[str, Style | None]:
            """A letter and its colour for a level from 0 to 1."""
            colour = colours[round(level * (len(colours) - 1))]
            place = int(level * len(shades))
            letter = shades[min(len(shades) - 1, place)]
            if console.no_color:
                return letter, None
            return letter, Style(color=colour, bgcolor=colour)

        width = WIDEST if columns * WIDEST <= room else 1
        for module, norms in cells.items():
            text = Text(f"{module:<{LABEL}}"[:LABEL], "cyan")
            for norm in norms:
                if not norm:
                    letter = ABSENT if norm is None else unmoved
                    text.append(f"{letter:^{width}}", "dim")
                    continue
                level = 1.0
                if not is_flat:
                    level = math.log(norm / least) / math.log(largest / least)
                letter, style = shade(level)
                text.append(letter * width, style)
            yield text
        scale = Text()
        if is_flat:
            scale.append(f"relative norm {share(largest)} everywhere", "dim")
        else:
            scale.append(f"relative norm {share(least)} ", "dim")
            for step in range(len(shades)):
                letter, style = shade(step / (len(shades) - 1))
                scale.append(letter, style)
            scale.append(f" {share(largest)}", "dim")
        if 0 in drawn:
            scale.append(f"  {unmoved} unchanged", "dim")
        first = str(layers[0])
        last = str(layers[-1])
        drawn_width = columns * width
        gap = max(1, drawn_width - len(first) - len(last))
        axis = Text(f"{'layer':<{LABEL}}{first}{' ' * gap}{last}", "dim")
        if drawn_width + APART + len(scale) <= room:  # beside the axis, or below it
            axis.append(" " * APART)
            yield axis.append_text(scale)
        else:
            yield axis
            indent = LABEL if len(scale) <= room else 0
            yield Text(" " * indent).append_text(scale)
