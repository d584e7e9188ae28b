"""Reports at a URL: fetched to this machine to be read, and uploaded so that nobody reads a half.

A report is there if its matrices.parquet is, as in a folder: it is removed first and written last.
Who reads lists the files before and after, and reads again if they differ.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shadow.errors import ShadowError
from shadow.files import safe_name, writing
from shadow.reports.atomic_replacement import FILES_OF_A_PAIR, FINISHED
from shadow.storage import Store, place_for

INDEX_FILES = ("batch.parquet", "index.json")  # of a list, in the order in which they are written
MOST_READS = 3  # of a report that is replaced meanwhile


def fetched(store: Store, *, spectra: bool = True) -> Path:
    """The reports at or below a URL and the index of a list, as a folder of this machine.

    Only files that a report may have are fetched. spectra: are singular values among them? Raises
    ShadowError, also where there is no report.
    """
    folder = fetched_if_any(store, spectra=spectra)
    if folder is None:
        raise ShadowError(f"{store}: no report there", "name a URL that `shadow audit -o` wrote to")
    return folder


def fetched_if_any(store: Store, *, spectra: bool = True) -> Path | None:
    """The same; None where there is neither a report nor an index."""
    chosen = _chosen(store, spectra=spectra)
    for _ in range(MOST_READS if chosen else 0):
        folder = place_for(store)
        with writing(folder.parent, "free some space, or set TMPDIR to another disk"):
            folder.mkdir()
            store.fetch(chosen, folder)
        before, chosen = chosen, _chosen(store, spectra=spectra)
        if chosen == before:
            return folder
        shutil.rmtree(folder, ignore_errors=True)
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
        is_finished = "/".join([*folders, FINISHED]) in there
        is_due = name != "spectra.parquet" or spectra
        if (name in FILES_OF_A_PAIR and is_finished and is_due) or path in INDEX_FILES:
            chosen[path] = there[path]
    return chosen


def publish(folder: Path, store: Store) -> None:
    """Upload the finished report of a folder; on return it is the report at the URL."""
    here = [name for name in FILES_OF_A_PAIR if (folder / name).is_file()]
    assert here[-1] == FINISHED  # comes last in FILES_OF_A_PAIR
    store.remove(FINISHED)
    for name in FILES_OF_A_PAIR:
        if name in here:
            store.put(folder / name)
        else:
            store.remove(name)


def fetch_index(store: Store, folder: Path) -> None:
    """Take over the index of a list."""
    with writing(folder):
        store.fetch(store.files().keys() & set(INDEX_FILES), folder)


def publish_index(folder: Path, store: Store) -> None:
    """Upload the index of a list."""
    for name in INDEX_FILES:
        store.put(folder / name)
