"""Any document as HTML that stands in another page, such as a notebook.

Styles are inline and pictures inline SVG: no script, no style sheet, nothing that is fetched. Text
takes the colour of the page around it, so that it is read in light and in dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from shadow.outputs.cividis import colour
from shadow.quantities import DASH, share
from shadow.summary.picture import Picture as Cells
from shadow.summary.picture import picture
from shadow.telling.document import (
    Block,
    Cell,
    Document,
    Figures,
    Headline,
    Lines,
    Note,
    Paragraph,
    Picture,
    Provenance,
    Section,
    Table,
    Word,
)
from shadow.text import visible

MOST_LAYERS, MOST_ROWS = 160, 60
SIDE, LABEL_WIDTH, FOOT = 14, 110, 34  # pixels of a picture
QUIET = "opacity:.7"
STYLES = {"fault": "font-weight:bold", "warning": "font-weight:bold", "quiet": QUIET}


def inline_html(document: Document) -> str:
    """One element."""
    return str(Markup("<div>{}</div>").format(_joined(map(_drawn, document.blocks))))


def _joined(parts: Iterable[str]) -> Markup:
    return Markup("").join(parts)


def _drawn(block: Block) -> Markup:
    match block:
        case Section():
            text = visible(f"{block.title} {block.name}".strip())
            return Markup("<p><strong>{}</strong></p>").format(text)
        case Headline():
            return Markup("<p><strong>{}</strong></p>").format(visible(block.text))
        case Paragraph():
            lead = visible(block.lead)
            head = Markup("<strong>{}</strong> ").format(lead) if lead else Markup("")
            style = QUIET if block.quiet else ""
            return Markup('<p style="{}">{}{}</p>').format(style, head, visible(block.text))
        case Note():
            mark = "" if block.word == "note" else "⚠ "
            return Markup("<p>{}{}: {}</p>").format(mark, block.word, visible(block.text))
        case Figures():
            rows = [[row.name, row.value, row.remark] for row in block.rows]
            return _titled(block.title, _rows(rows, names=3))
        case Lines():
            return _titled(block.title, _rows([[row.name, row.range] for row in block.rows], 2))
        case Provenance():
            lines = [f"{name}: {text}" for name, text in block.rows]
            text = Markup("<br>").join(map(visible, lines))
            return Markup('<p style="{}">{}</p>').format(QUIET, text)
        case Table():
            names = sum(column.role != "figure" for column in block.columns)
            heads = [column.head for column in block.columns]
            return _titled(block.title, _rows(block.rows, names, heads))
        case Picture():
            drawn = picture(block.rows, MOST_LAYERS)
            return _svg(drawn, block.title) if drawn is not None else Markup("")
    return Markup("")


def _titled(title: str, drawn: Markup) -> Markup:
    if not title:
        return drawn
    return Markup("<p><em>{}</em></p>{}").format(visible(title), drawn)


def _rows(rows: Sequence[Sequence[Cell]], names: int, heads: Sequence[str] = ()) -> Markup:
    """A table of which the first columns are words, the others numbers."""
    lines = [_row("th", heads, names)] if heads else []
    lines += [_row("td", row, names) for row in rows[:MOST_ROWS]]
    more = Markup("")
    if len(rows) > MOST_ROWS:
        more = Markup("<p>and {} more</p>").format(len(rows) - MOST_ROWS)
    return Markup("<table>{}</table>{}").format(_joined(lines), more)


def _row(kind: str, cells: Sequence[Cell], names: int) -> Markup:
    # kind is one of two words of ours
    shape = Markup(f'<{kind} style="text-align:{{}};{{}}">{{}}</{kind}>')  # noqa: S704
    texts = []
    for number, one in enumerate(cells):
        style = STYLES.get(one.level, "") if isinstance(one, Word) else ""
        text = DASH if one is None else visible(str(one))
        texts.append(shape.format("left" if number < names else "right", style, text))
    return Markup("<tr>{}</tr>").format(_joined(texts))


def _svg(cells: Cells, title: str) -> Markup:
    """A square for each module and layer, its value as a tooltip; empty where nothing moved."""
    columns, rows = len(cells.cells[0]), len(cells.modules)
    frame = Markup(
        '<rect x="{}" y="{}" width="{}" height="{}" fill="{}" stroke="currentColor"'
        ' stroke-opacity=".25"><title>{}</title></rect>'
    )
    label = Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>')
    parts = []
    for row, (module, values) in enumerate(zip(cells.modules, cells.cells, strict=True)):
        top = SIDE * row
        parts.append(label.format(LABEL_WIDTH - 6, top + SIDE - 3, "end", visible(module)[:18]))
        for column, value in enumerate(values):
            layer = cells.first + column * (cells.last - cells.first + 1) // columns
            fill = colour(cells.level(value)) if value else "none"
            text = f"layer {layer}, {module}: {'no value' if value is None else share(value)}"
            left = LABEL_WIDTH + SIDE * column
            parts.append(frame.format(left, top, SIDE - 1, SIDE - 1, fill, visible(text)))
    top = SIDE * rows + 12
    parts.append(label.format(LABEL_WIDTH, top, "start", f"layer {cells.first}"))
    if columns > 8:
        parts.append(label.format(LABEL_WIDTH + SIDE * columns, top, "end", cells.last))
    for left, value in ((LABEL_WIDTH, cells.least), (LABEL_WIDTH + 60, cells.largest)):
        fill = colour(cells.level(value))
        parts.append(frame.format(left, top + 7, 10, 10, fill, share(value)))
        parts.append(label.format(left + 14, top + 16, "start", share(value)))
    width = LABEL_WIDTH + SIDE * max(columns, 12) + 4
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{}" viewBox="0 0 {} {}"'
        ' width="{}" style="max-width:100%;font:11px sans-serif" fill="currentColor">{}</svg>'
    ).format(visible(title), width, SIDE * rows + FOOT, width, _joined(parts))
