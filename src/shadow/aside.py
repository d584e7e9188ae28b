"""A hidden folder beside a result, to make it in. It goes however the work ends; after a kill, with the next result.

Who works in such a folder holds a lock on it, which the system takes away from a process that dies: a folder that
nobody holds is left over.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

NAME = re.compile(r"\.shadow-[0-9a-f]{16}\.tmp")
FORMER = "former"  # inside: what stood in the result's place, under its own name, while the new one takes it


@contextlib.contextmanager
def aside_in(parent: Path) -> Iterator[Path]:
    """A new folder in parent, which must be there; what a killed process left in parent is removed first."""
    _remove_leftovers(parent)
    aside = parent / f".shadow-{secrets.token_hex(8)}.tmp"
    aside.mkdir()
    lock = _locked(aside)
    try:
        yield aside
    finally:
        _clear(aside)
        if lock is not None:
            os.close(lock)


def _remove_leftovers(parent: Path) -> None:
    with contextlib.suppress(OSError):  # a folder that may not be listed may be written to nevertheless
        with os.scandir(parent) as entries:
            found = [
                Path(one.path) for one in entries if NAME.fullmatch(one.name) and one.is_dir(follow_symlinks=False)
            ]
        for aside in found:
            _remove_leftover(aside)


def _remove_leftover(aside: Path) -> None:
    lock = _locked(aside)
    if lock is not None:
        _clear(aside)
        os.close(lock)


def _clear(aside: Path) -> None:
    """Remove the folder. A former result whose place is empty goes back there first, and is never removed."""
    former = aside / FORMER
    try:
        for one in former.iterdir() if former.is_dir() else ():
            place = aside.parent / one.name
            if not os.path.lexists(place):
                one.rename(place)
    except OSError:
        return
    shutil.rmtree(aside, ignore_errors=True)


def _locked(aside: Path) -> int | None:
    """A handle that holds the folder until it is closed; None where another process does, or nobody can."""
    try:
        import fcntl

        handle = os.open(aside, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # also of a file system without such locks: there nothing is ever taken for left over
        os.close(handle)
        return None
    return handle
