"""Tables of the pages of evidence."""

from __future__ import annotations

from collections.abc import Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table; the first columns are texts, the rest are numbers."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * texts + "---:|" * (len(heads) - texts)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)
