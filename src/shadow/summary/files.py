"""The rows of files.parquet -> which files differ, for the record of a pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shadow.summary.rows import FileRow, FilesRecord

STATES = ("changed", "added", "removed", "unknown", "same")
LISTED = 40  # files that are named, those first in which something differs


def files_record(rows: Iterable[Mapping[str, Any]]) -> FilesRecord | None:
    """The files that are not the same on both sides, and how many there are of each state; None of
    a report without files. A file that both sides have counts once.
    """
    once = {row["path"]: row for row in sorted(rows, key=lambda row: str(row["side"]))}.values()
    if not once:
        return None
    apart = [row for row in once if row["state"] != "same"]
    apart.sort(key=lambda row: (not row["differs"], row["state"] == "unknown", str(row["path"])))
    listed = [
        FileRow(
            row["path"], row["kind"], row["state"], (row["differs"] or "").split(), row["detail"]
        )
        for row in apart[:LISTED]
    ]
    kinds: dict[str, dict[str, int]] = {}
    for row in once:
        of_kind = kinds.setdefault(str(row["kind"]), dict.fromkeys(STATES, 0))
        of_kind[str(row["state"])] += 1
    counts = {state: sum(of_kind[state] for of_kind in kinds.values()) for state in STATES}
    return FilesRecord(counts=counts, kinds=dict(sorted(kinds.items())), rows=listed)
