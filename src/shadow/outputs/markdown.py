"""Any document as GitHub's Markdown, for a model card, a pull request or the summary of a CI step.

Names and texts are hostile: none may be markup, a link, a mention or a reference on GitHub.
"""

from __future__ import annotations

import re

from shadow.quantities import DASH
from shadow.telling import document as of
from shadow.telling.document import Block, Cell, Document, Table
from shadow.text import visible

LINKING = "@#"  # begin a mention or a reference, which an entity would not keep from being one
ACTIVE = re.compile(r"[\\`*_{}\[\]<>|!~&$\"@#]")
APART = "<!-- -->"  # ends a text that GitHub would make a link of, and shows nothing
MARKS: dict[of.Level, str] = {"passed": "✅ ", "fault": "❌ ", "warning": "⚠️ ", "quiet": "➖ "}


def cell(text: str) -> str:
    """Any text as a cell of a Markdown table: one line, without markup, links or mentions."""
    shown = re.sub(r"[!-,./:-@\[-`{-~]", lambda match: f"&#{ord(match[0])};", visible(text))
    return f"<code>{shown}</code>" if shown.strip() else ""


def plain(text: str) -> str:
    """Any text in a paragraph or cell: one line that reads as usual, without markup or links."""
    shown = ACTIVE.sub(
        lambda match: match[0] + APART if match[0] in LINKING else f"&#{ord(match[0])};",
        visible(text),
    )
    shown = re.sub(r"^(\s*)([-+=]|\d+[.)])(?=\s)", rf"\1{APART}\2", shown)
    return re.sub(r"(?i)(www\.|:(?=//))", rf"\1{APART}", shown)


def markdown(document: Document, level: int = 2) -> str:
    """The document, ending with a newline. level: of its first section; others lie one below."""
    parts: list[str] = []
    for number, block in enumerate(document.blocks):
        text = _drawn(block, level + (number > 0))
        if parts and block.close and isinstance(block, of.Paragraph):
            parts[-1] += f"\n{text}"
        elif text:
            parts.append(text)
    tables = [block for block in document.blocks if isinstance(block, Table)]
    legends = {one.head: one.legend for table in tables for one in table.columns if one.legend}
    if legends:
        texts = " ".join(f"{head}: {text}." for head, text in legends.items())
        parts.append(f"<sub>{plain(texts)}</sub>")
    return "\n\n".join(parts) + "\n"


def _drawn(block: Block, level: int) -> str:
    """The block; empty for what Markdown cannot draw."""
    match block:
        case of.Section():
            named = f"{cell(block.title)} {cell(block.name)}"
            return f"{'#' * level} {named if block.name else plain(block.title)}"
        case of.Headline():
            return f"**{plain(block.text)}**"
        case of.Paragraph():
            text = f"{cell(block.lead)} {plain(block.text)}".lstrip()
            return f"<sub>{text}</sub>" if block.quiet else text
        case of.Note():
            return f"**{block.word.capitalize()}.** {plain(block.text)}"
        case of.Provenance():
            texts = "; ".join(f"{name}: {plain(text)}" for name, text in block.rows)
            return f"<sub>{texts}</sub>"
        case of.Figures():
            rows = []
            for row in block.rows:
                remark = f" ({plain(row.remark)})" if row.remark else ""
                rows.append(f"- {plain(row.name)}: {_cell(row.value)}{remark}")
            return _titled(block.title, rows)
        case Table():
            return _titled(block.title, _table(block))
    return ""


def _titled(title: str, lines: list[str]) -> str:
    return "\n".join([*([f"{plain(title)}:", ""] if title else []), *lines])


def _cell(value: Cell, *, is_name: bool = False) -> str:
    if value is None:
        return DASH
    if not isinstance(value, of.Word):
        return cell(value) if is_name and isinstance(value, str) else plain(str(value))
    text = f"{MARKS.get(value.level, '')}{cell(value.text) if is_name else plain(value.text)}"
    return f"{text} {cell(value.aside) if is_name else plain(value.aside)}".rstrip()


def _table(block: Table) -> list[str]:
    marks = ("---:" if column.role == "figure" else "---" for column in block.columns)
    lines = [f"| {' | '.join(plain(column.head) for column in block.columns)} |"]
    lines.append(f"|{'|'.join(marks)}|")
    names = [column.role == "name" for column in block.columns]
    for row in block.rows:
        cells = (_cell(one, is_name=name) for one, name in zip(row, names, strict=True))
        lines.append(f"| {' | '.join(cells)} |")
    return lines
