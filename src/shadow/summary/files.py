"""The files of both sides: which differ, and how many have each state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from shadow.summary.record import FileCounts, FileRow, FilesRow, keys_of

LISTED = 40  # files that are named, those first in which something differs


def files(rows: Iterable[Mapping[str, Any]]) -> FilesRow | None:
    """The files that differ, and the number of files in each state; None for a report without
    files. A file that both sides have counts once.
    """
    by_path = {row["path"]: row for row in sorted(rows, key=lambda row: str(row["side"]))}
    if not by_path:
        return None
    counts = Counter(row["state"] for row in by_path.values())
    differing = [row for row in by_path.values() if row["state"] != "same"]
    differing.sort(key=_order)
    return FilesRow(
        counts=FileCounts(**{state: counts[state] for state in keys_of(FileCounts)}),
        rows=[
            FileRow.from_parts(row, differs=(row["differs"] or "").split())
            for row in differing[:LISTED]
        ],
    )


def _order(row: Mapping[str, Any]) -> tuple[bool, bool, str]:
    """A sort key: files in which something differs first, files of unknown state last."""
    return not row["differs"], row["state"] == "unknown", str(row["path"])
