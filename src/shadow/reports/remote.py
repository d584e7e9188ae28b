"""Reports at a URL: fetched to this machine to be read, and uploaded so that nobody reads a half.

A report is there if its matrices.parquet is, as in a folder: it is removed first and written last.
Who reads lists the files before and after, and reads again if they differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shadow.errors import ShadowError
from shadow.files import safe_name, writing
from shadow.reports.folders import FILES_OF_A_PAIR, FINISHED
from shadow.storage import Store, place_for


def fetched(store: Store, *, spectra: bool = True) -> Path:
    """Fetch the reports at or below a URL and the index of a list, with or without their singular
    values, into a folder of this machine. Raises ShadowError, also where there is no report.
    """
    folder = fetched_if_any(store, spectra=spectra)
    if folder is None:
        raise ShadowError(f"{store}: no report there", "name a URL that `shadow audit -o` wrote to")
    return folder


def fetched_if_any(store: Store, *, spectra: bool = True) -> Path | None:
    """Do the same, or return None where there is neither a report nor an index."""
    chosen = _chosen(store, spectra=spectra)
    for _ in range(3 if chosen else 0):
        folder = place_for(store)
        with writing(folder.parent, "free some space, or set TMPDIR to another disk"):
            folder.mkdir()
            store.fetch(chosen, folder)
        before, chosen = chosen, _chosen(store, spectra=spectra)
        if chosen == before:
            return folder
    if not chosen:
        return None
    raise ShadowError(f"{store}: reports there changed while they were read", "try again later")


def _chosen(store: Store, *, spectra: bool) -> dict[str, Mapping[str, Any]]:
    """The files of finished reports at most two folders below, and those of an index."""
    there, chosen = store.files(), {}
    for path in there:
        *folders, name = path.split("/")
        if len(folders) > 2 or any(safe_name(folder) != folder for folder in folders):
            continue
        is_due = name in FILES_OF_A_PAIR and (spectra or name != "spectra.parquet")
        if (is_due and "/".join([*folders, FINISHED]) in there) or path == "index.json":
            chosen[path] = there[path]
    return chosen


def publish(folder: Path, store: Store) -> None:
    """Upload the finished report of a folder; on return it is the report at the URL."""
    store.remove(FINISHED)
    for name in FILES_OF_A_PAIR:  # of which it is the last
        if (folder / name).is_file():
            store.put(folder / name)
        else:
            store.remove(name)
