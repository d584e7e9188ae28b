"""What is printed of pairs: the screen of one, two short ones, a table of more, or headlines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.cli import console
from shadow.storage import as_given
from shadow.text import visible

if TYPE_CHECKING:
    from shadow.checks.summary import Summary
    from shadow.gates.verdicts import Judgement
    from shadow.reports.metadata import ReportMetadata

SIDE_BY_SIDE = 2  # pairs that fit a screen with their pictures; of more a table has a line each


def show_pair(
    summary: Summary, provenance: ReportMetadata, folder: Path | str, *, of: int, full: bool = False
) -> None:
    """One of so many pairs, if it is shown by itself."""
    from shadow.telling.report import beside_another, report_document

    if of > SIDE_BY_SIDE and not full:
        return
    document = report_document(summary, provenance, as_given(folder)).shown(full=full)
    console.show(document if of == 1 or full else beside_another(document))


def show_pairs(judged: Sequence[Judgement], folder: Path | str, *, full: bool = False) -> None:
    """How several pairs stand; how many they are and where the rest is."""
    from shadow.gates.document import pairs_document

    all_seen = len(judged) <= SIDE_BY_SIDE and all(one.summary is not None for one in judged)
    has_table = full or not all_seen
    console.show(pairs_document(judged, as_given(folder), has_table=has_table))


def show_headlines(summaries: Iterable[Summary]) -> None:
    """A line for each pair: its name, and what happened to the weights."""
    for one in summaries:
        line = visible(f"{one.family}:{one.pair}: {one.finding.headline}")
        console.show_text(f"{line}\n")
