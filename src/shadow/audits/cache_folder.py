"""The folder of solved spectra: where it is, how large it is, and making room. Imports nothing that computes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

SUFFIX = ".safetensors"


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/shadow/spectra`, or `~/.cache/shadow/spectra`."""
    top = os.environ.get("XDG_CACHE_HOME")
    return (Path(top) if top else Path.home() / ".cache") / "shadow" / "spectra"


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """(time of last use, bytes, path) of every spectrum, in any order."""
    found = []
    for path in folder.glob(f"[0-9a-f][0-9a-f]/*{SUFFIX}*"):
        with contextlib.suppress(OSError):
            stat = path.stat()
            found.append((stat.st_mtime, stat.st_size, path))
    return found


def size_of(folder: Path) -> int:
    """Bytes of the spectra in a folder; 0 where there is none."""
    return sum(size for _, size, _ in _files(folder))


def make_room(folder: Path, size: int) -> int:
    """Remove the least recently used until no more than size bytes are left; returns how many are."""
    found = sorted(_files(folder))
    total = sum(one[1] for one in found)
    for _, bytes_of, path in found:
        if total <= size:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            total -= bytes_of
    return total
