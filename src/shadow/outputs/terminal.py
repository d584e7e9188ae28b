"""Documents -> rich renderables for a terminal of any width. Pure: nothing here prints."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
            yield Text(" ".join(f"{head}: {text}." for head, text in legends.items()), "dim")


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
            text = block.text.replace("→", "->") if options.ascii_only else block.text
            yield Text(visible(text), STYLES[block.level] or "bold")
        case Paragraph():
            paragraph = Text(style="dim" if block.quiet else "")
            if block.lead:
                paragraph.append(visible(block.lead), "bold cyan").append("  ")
            yield paragraph.append(visible(block.text))
        case Note():
            yield Text(visible(f"{block.word}: {block.text}"), STYLES.get(block.word, ""))
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
        if has_remarks:
            cells.append(Text(visible(row.remark), overflow="fold"))
        rows.add_row(*cells)
    yield rows


def _cell(cell: Cell) -> Text:
    if isinstance(cell, Word):
        text = Text(visible(cell.text), STYLES[cell.level])
        return text.append(visible(f" {cell.aside}"), "dim") if cell.aside else text
    return Text(DASH if cell is None else visible(str(cell)))


def _table(block: TableBlock, width: int, legends: dict[str, str]) -> Iterator[RenderableType]:
    """Draw a table with as many columns as fit, dropping those of the lowest rank first."""
    columns = []
    for place, column in enumerate(block.columns):
        cells = [_cell(row[place]) for row in block.rows]
        widest = _widest(column, cells)
        if column.role == "text":
            widest = min(widest, TEXT_ROOM)
        columns.append((column, cells, widest))
    shown = columns[:0]
    for rank in sorted({column.rank for column in block.columns}):
        more = [one for one in columns if one[0].rank <= rank]
        if shown and sum(size + GAP for *_, size in more) > width:
            break
        shown = more
    legends.update({column.head: column.legend for column, *_ in shown if column.legend})
    if block.title:
        yield Text(visible(block.title), "italic")
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    # what the other columns leave to each name, in full or with their texts broken; a longer one
    # is broken too
    names = [column for column, *_ in shown if column.role == "name"]
    others = [one for one in shown if one[0] not in names]
    in_full = 0
    at_least = 0
    for column, cells, size in others:
        in_full += GAP + _widest(column, cells)
        least = min(size, TEXT_LEAST) if column.role == "text" else size
        at_least += GAP + least
    each = [(width - taken) // max(1, len(names)) - GAP for taken in (in_full, at_least)]
    longest = max(1, each[0], min(LONGEST_WORD, each[1]))
    for column, _, size in shown:
        is_figure = column.role == "figure"
        table.add_column(
            Text(visible(column.head)),
            justify="right" if is_figure else "left",
            no_wrap=is_figure,  # half a number would be another
            overflow="ellipsis" if is_figure else "fold",
            width=min(size, longest) if column in names else size if is_figure else None,
            style="cyan" if column in names[-1:] else None,
        )
    shown_cells = [cells for _, cells, _ in shown]
    for row in zip(*shown_cells, strict=True):
        table.add_row(*row)
    yield table


def _widest(column: Field, cells: Sequence[Text]) -> int:
    """The letters of a column's longest cell, its head included."""
    return max([len(visible(column.head)), *[cell.cell_len for cell in cells]])


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
            of = dict(zip(row.layers, row.relative_norm, strict=True))
            each = ([of.get(layer) for layer in layers[slice(*span)]] for span in pairwise(ends))
            known = ([norm for norm in norms if norm is not None] for norms in each)
            cells[row.module] = [median(norms) if norms else None for norms in known]
        moved = [norm for norms in cells.values() for norm in norms if norm]
        least = min(moved)
        largest = max(moved)
        is_flat = largest <= FLAT * least
        shades = ASCII_SHADES if options.ascii_only else SHADES
        unmoved = ASCII_UNMOVED if options.ascii_only else UNMOVED
        coloured = console.color_system is not None and not console.no_color
        colours = COLOURS if console.color_system == "truecolor" else FEW_COLOURS

        def shade(level: float) -> tuple[str, Style | None]:
            """A letter and its colour for a level from 0 to 1."""
            own = colours[round(level * (len(colours) - 1))]
            letter = shades[min(len(shades) - 1, int(level * len(shades)))]
            return letter, Style(color=own, bgcolor=own) if coloured else None

        width = WIDEST if columns * WIDEST <= room else 1
        for module, norms in cells.items():
            text = Text(f"{module:<{LABEL}}"[:LABEL], "cyan")
            for norm in norms:
                if not norm:
                    text.append(f"{ABSENT if norm is None else unmoved:^{width}}", "dim")
                else:
                    log = math.log(largest / least)
                    letter, style = shade(1.0 if is_flat else math.log(norm / least) / log)
                    text.append(letter * width, style)
            yield text
        scale = Text()
        if is_flat:
            scale.append(f"relative norm {share(largest)} everywhere", "dim")
        else:
            scale.append(f"relative norm {share(least)} ", "dim")
            for step in range(len(shades)):
                scale.append(*shade(step / (len(shades) - 1)))
            scale.append(f" {share(largest)}", "dim")
        if any(norm == 0 for norms in cells.values() for norm in norms):
            scale.append(f"  {unmoved} unchanged", "dim")
        first = str(layers[0])
        last = str(layers[-1])
        gap = " " * max(1, columns * width - len(first) - len(last))
        axis = Text(f"{'layer':<{LABEL}}{first}{gap}{last}", "dim")
        if columns * width + APART + len(scale) <= room:  # beside the axis, or below it
            yield axis.append(" " * APART).append_text(scale)
        else:
            yield axis
            yield Text(" " * (LABEL if len(scale) <= room else 0)).append_text(scale)
