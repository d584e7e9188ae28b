"""Any document as GitHub's Markdown, for a model card, a pull request or the summary of a CI step.

Names and texts are hostile: none may be markup, a link, a mention or a reference on GitHub.
"""

from __future__ import annotations

import re

from shadow.quantities import DASH
from shadow.telling import document as of
from shadow.telling.document import Block, Cell, Document, TableBlock
from shadow.text import visible

CALM = re.compile(r"(?!.*(//|www))[\w.](?:[\w .,:/=+()-]*[\w.)])?", re.IGNORECASE)
LINKING = "@#"  # begin a mention or a reference, which an entity would not keep from being one
ACTIVE = re.compile(r"[\\`*{}\[\]<|~&$@#]|^\s*>|\b_\B|\B_")
APART = "<!-- -->"  # ends a text that GitHub would make a link of, and shows nothing
MARKS = {"passed": "✅ ", "fault": "❌ ", "warning": "⚠️ ", "quiet": "➖ "}


def cell(text: str) -> str:
    """A name as code on one line, which cannot become markup, a link or a mention."""
    shown = visible(text)
    if CALM.fullmatch(shown):
        return f"`{shown}`"
    if not shown.strip():
        return ""
    escaped = re.sub(r"[!-,./:-@\[-`{-~]", lambda match: f"&#{ord(match[0])};", shown)
    return f"<code>{escaped}</code>"


def plain(text: str) -> str:
    """Text for a paragraph or cell: one line that reads as usual, without markup."""

    def harmless(match: re.Match[str]) -> str:
        text = match[0]
        if text in LINKING:
            return text + APART
        return f"{text[:-1]}&#{ord(text[-1])};"

    shown = ACTIVE.sub(harmless, visible(text))
    shown = re.sub(r"^(\s*)([-+=]|\d+[.)])(?=\s)", rf"\1{APART}\2", shown)
    return re.sub(r"(?i)(www\.|:(?=//))", rf"\1{APART}", shown)


def markdown(document: Document, level: int = 2) -> str:
    """The document, ending with a newline. level: of its first section."""
    parts: list[str] = []
    for number, block in enumerate(document.blocks):
        text = _drawn(block, level + (number > 0))
        if parts and block.close and isinstance(block, of.Paragraph):
            parts[-1] += f"\n{text}"
        elif text:
            parts.append(text)
    tables = [block for block in document.blocks if isinstance(block, TableBlock)]
    legends = {}
    for table in tables:
        for column in table.columns:
            if column.legend:
                legends[column.head] = f"{column.head}: {column.legend}."
    if legends:
        texts = " ".join(legends.values())
        parts.append(plain(texts))
    return "\n\n".join(parts) + "\n"


def _drawn(block: Block, level: int) -> str:
    """The block; empty if Markdown cannot draw it."""
    match block:
        case of.Section():
            title = plain(block.title)
            if block.name:
                title = f"{cell(block.title)} {cell(block.name)}"
            return f"{'#' * level} {title}"
        case of.Headline():
            return f"**{plain(block.text)}**"
        case of.Paragraph():
            return f"{cell(block.lead)} {plain(block.text)}".lstrip()
        case of.Note():
            return f"**{block.word.capitalize()}.** {plain(block.text)}"
        case of.Origin():
            return "\n".join(f"- {name}: {plain(text)}" for name, text in block.rows)
        case of.Figures():
            rows = []
            for row in block.rows:
                remark = f" ({plain(row.remark)})" if row.remark else ""
                rows.append(f"- {plain(row.name)}: {_cell(row.value)}{remark}")
            return _titled(block.title, rows)
        case TableBlock():
            return _titled(block.title, _table(block))
    return ""


def _titled(title: str, lines: list[str]) -> str:
    text = "\n".join(lines)
    return f"{plain(title)}:\n\n{text}" if title else text


def _cell(value: Cell, *, is_name: bool = False) -> str:
    if value is None:
        return DASH
    write = cell if is_name else plain
    if not isinstance(value, of.Word):
        return write(value) if isinstance(value, str) else plain(str(value))
    mark = MARKS.get(value.level, "")
    text = f"{mark}{write(value.text)} {write(value.aside)}"
    return text.rstrip()


def _table(block: TableBlock) -> list[str]:
    """A table whose cells are aligned in the source too."""
    columns = []
    for place, column in enumerate(block.columns):
        is_name = column.role == "name"
        cells = [_cell(row[place], is_name=is_name) for row in block.rows]
        cells.insert(0, plain(column.head))
        width = max(3, *map(len, cells))
        is_figure = column.role == "figure"
        align = str.rjust if is_figure else str.ljust
        aligned = [align(text, width) for text in cells]
        end = ":" if is_figure else "-"
        dashes = "-" * (width + 1) + end
        head, *spaced = [f" {text} " for text in aligned]
        columns.append([head, dashes, *spaced])
    lines = zip(*columns, strict=True)
    return [f"|{'|'.join(line)}|" for line in lines]
