"""What came of a recipe, as a Markdown page beside its figures."""

from __future__ import annotations

from pathlib import Path

from shadow.files import read_start
from shadow.outputs.markdown import markdown
from shadow.telling.document import Document

MARK = "<!-- shadow-audit recipe -->"  # the last line of a page, by which an own one is known again
LARGEST = 10_000_000  # bytes of a file that may be such a page


def is_our_page(path: Path) -> bool:
    """Whether `shadow reproduce` wrote the file."""
    content = read_start(path, LARGEST) or b""
    return content.rstrip().endswith(MARK.encode())


def recipe_page(document: Document) -> str:
    """The page, ending with a newline."""
    return f"{markdown(document, level=1)}\n{MARK}\n"
