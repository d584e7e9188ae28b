"""The tensors that were not measured, and what each reason means."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from shadow.outputs.terminal.typeset import WIDE
from shadow.reasons import meaning
from shadow.text import visible

if TYPE_CHECKING:
    from shadow.summary.rows import SkippedRow


def skipped_table(rows: Iterable[SkippedRow], width: int) -> RenderableType:
    """A row for each reason: how many tensors of each side, and what the reason means.

    width: of the terminal, in letters; a wide one shows one more example.
    """
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title="Not measured, tensors of base + tuned",
        title_justify="left",
    )
    table.add_column("reason", style="yellow", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("what", ratio=1)
    shown = 2 if width >= WIDE else 1
    for row in rows:
        text = Text(meaning(row.reason))
        if row.detail and row.reason != "filtered":
            text.append(f" ({visible(row.detail)})")
        examples = ", ".join(visible(name) for name in row.examples[:shown])
        text.append(f", e.g. {examples}", "dim")
        table.add_row(row.reason, f"{row.base} + {row.tuned}", text)
    return table
