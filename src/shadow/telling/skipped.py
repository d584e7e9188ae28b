"""The table of tensors that were not measured. A plan has it too, which imports no figures."""

from __future__ import annotations

from collections.abc import Iterable

from shadow.reasons import meaning
from shadow.summary.record import SkippedRow
from shadow.telling.document import TableBlock, When, Word, named, number, table_of, worded


def skipped_table(rows: Iterable[SkippedRow], when: When = "always") -> TableBlock:
    """Make a row for each reason, with the number of tensors of each side and its meaning."""

    def what(row: SkippedRow) -> Word:
        text = meaning(row.reason)
        if row.detail and row.reason != "filtered":
            text += f" ({row.detail})"
        return Word(f"{text},", aside=f"e.g. {', '.join(row.examples[:1])}")

    return table_of(
        [named("reason"), number("n", lambda row: f"{row.base} + {row.tuned}"),
         worded("what", what)],
        rows, "Not measured, tensors of base + tuned", when=when, about="skipped",
    )  # fmt: skip
