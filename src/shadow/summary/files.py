"""The rows of files.parquet -> which files differ, for the record of a pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from shadow.summary.rows import FilesRecord, row

STATES = ("changed", "added", "removed", "unknown", "same")
LISTED = 40  # files that are named, those first in which something differs


def files_record(rows: Iterable[Mapping[str, Any]]) -> FilesRecord | None:
    """The files that are not the same on both sides, and how many there are of each state; None of
    a report without files. A file that both sides have counts once.
    """
    once = {one["path"]: one for one in sorted(rows, key=lambda one: str(one["side"]))}.values()
    if not once:
        return None
    apart = [one for one in once if one["state"] != "same"]
    apart.sort(key=lambda one: (not one["differs"], one["state"] == "unknown", str(one["path"])))
    listed = [
        row("files.rows", one, differs=(one["differs"] or "").split()) for one in apart[:LISTED]
    ]
    counts = Counter(one["state"] for one in once)
    return FilesRecord({state: counts[state] for state in STATES}, listed)
