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
    files = {(row["path"], row["side"]): row for row in rows}
    if not files:
        return None
    once = [
        row
        for (path, side), row in files.items()
        if side == "tuned" or (path, "tuned") not in files
    ]
    counts = dict.fromkeys(STATES, 0)
    for row in once:
        counts[str(row["state"])] = counts.get(str(row["state"]), 0) + 1
    apart = [row for row in once if row["state"] != "same"]
    apart.sort(key=lambda row: (not row["differs"], row["state"] == "unknown", str(row["path"])))
    listed = [
        FileRow(
            path=str(row["path"]),
            kind=str(row["kind"]),
            state=str(row["state"]),
            differs=(row["differs"] or "").split(),
            detail=row["detail"],
        )
        for row in apart[:LISTED]
    ]
    kinds: dict[str, dict[str, int]] = {}
    for row in once:
        of_kind = kinds.setdefault(str(row["kind"]), dict.fromkeys(STATES, 0))
        of_kind[str(row["state"])] = of_kind.get(str(row["state"]), 0) + 1
    return FilesRecord(counts=counts, kinds=dict(sorted(kinds.items())), rows=listed)
