"""The tensors that were not measured, and what each reason means."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from shadow.outputs.terminal.typeset import WIDE
from shadow.text import visible

if TYPE_CHECKING:
    from shadow.findings.summary_rows import SkippedRow

REASONS = {
    "only_in_base": "no partner in the tuned model",
    "only_in_tuned": "no partner in the base model",
    "tied": "a head tied to its embedding, measured there",
    "shape_differs": "shapes differ",
    "not_a_matrix": "vectors: only their relative norm is taken",
    "not_float": "integers",
    "quantized": "packed or scaled weights",
    "unknown_dtype": "a dtype this version does not know",
    "nonfinite": "NaN or infinite entries",
    "filtered": "left out: not asked for, or of a component that has another base",
    "adapter": "parts of an adapter that are not applied",
    "unreadable": "announced by the index, found in no shard",
}


def skipped_table(rows: Iterable[SkippedRow], width: int) -> RenderableType:
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title="Not measured, tensors of base + tuned",
        title_justify="left",
    )
    table.add_column("reason", style="yellow", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("what", ratio=1)
    for row in rows:
        meaning = REASONS.get(row.reason, row.reason)
        examples = ", ".join(visible(name) for name in row.examples[: 2 if width >= WIDE else 1])
        detail = f" ({visible(row.detail)})" if row.detail and row.reason != "filtered" else ""
        text = Text(meaning + detail)
        text.append(f" e.g. {examples}", "dim")
        table.add_row(row.reason, f"{row.base} + {row.tuned}", text)
    return table
