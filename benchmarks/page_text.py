"""The Markdown of pages: paragraphs of one width, tables, and the whole of them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (heads, *rows)]
    lines.insert(1, "|" + "---|" * len(heads))
    return "\n".join(lines)


def page(parts: Iterable[str]) -> str:
    """Headings and tables as they stand, the rest as paragraphs."""
    return (
        "\n\n".join(
            part
            if part.startswith(("#", "|"))
            else textwrap.fill(" ".join(part.split()), 120, break_on_hyphens=False)
            for part in parts
        )
        + "\n"
    )
