"""The files beside the weights: what differs in them, as a sentence and as a table. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shadow.checks.summary import Sentence
from shadow.telling.document import Block, named, table_of, worded
from shadow.text import several

if TYPE_CHECKING:
    from shadow.checks.summary import Summary

NAMED = 4  # differences that a sentence names
# words that are named before others: what changes what a model is given, or runs code
FIRST = ("code", "pickle", "auto_map", "chat_template", "vocabulary", "merges", "special_tokens")
WEIGHTS = ("weights", "index")  # kinds that the table leaves out: their tensors are compared
OF_ADAPTERS = "adapter_config.json"  # that an adapter has one is no news


def files_sentences(summary: Summary) -> list[Sentence]:
    """One sentence on what differs beside the weights; none where nothing does or is known."""
    rows = [] if summary.files is None else summary.files.rows
    clauses = []
    for state in ("changed", "added", "removed"):
        told = [row for row in rows if row.state == state and not row.path.endswith(OF_ADAPTERS)]
        words = list(dict.fromkeys(word for row in told for word in row.differs))
        words.sort(key=lambda word: FIRST.index(word) if word in FIRST else len(FIRST))
        if words:
            clauses.append(f"{state} {several(words, NAMED)}")
    return [Sentence("files", f"Beside the weights: {'; '.join(clauses)}.", {})] if clauses else []


FIELDS = (named("file", "path"), worded("state"), worded("what", lambda row: row.detail or ""))


def files_blocks(summary: Summary) -> Iterator[Block]:
    """The table of files that are not the same; nothing where there is none."""
    listed = [] if summary.files is None else summary.files.rows
    rows = [row for row in listed if row.kind not in WEIGHTS]
    if rows:
        yield table_of(FIELDS, rows, "Files beside the weights", when="full", about="files")
