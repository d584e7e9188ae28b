"""The folder of solved spectra: where it is, how large it is, and making room.

Imports nothing that computes.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

# Of a spectrum, or of what a killed process left of one. Nothing of another name is ever removed:
# somebody may name a folder of models.
NAME = re.compile(r"[0-9a-f]{62}\.safetensors(\.[0-9a-f]{8}\.tmp)?")


def default_folder() -> Path | None:
    """`$SHADOW_CACHE_DIR`, `$XDG_CACHE_HOME/shadow/spectra` or `~/.cache/shadow/spectra`.

    None with `SHADOW_NO_CACHE=1`, and for a user without a home folder.
    """
    if os.environ.get("SHADOW_NO_CACHE", "0").lower() not in ("", "0", "false", "no"):
        return None
    if own := os.environ.get("SHADOW_CACHE_DIR"):
        return Path(own)
    top = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(top) if top else Path.home() / ".cache") / "shadow" / "spectra"
    except RuntimeError:
        return None


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """(time of last use, bytes, path) of every spectrum, in any order."""
    files = []
    for path in folder.glob("[0-9a-f][0-9a-f]/*"):
        if not NAME.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError):
            stat = path.stat()
            files.append((stat.st_mtime, stat.st_size, path))
    return files


def size_of(folder: Path) -> int:
    """Bytes of the spectra in a folder; 0 where there is none."""
    return sum(size for _, size, _ in _files(folder))


def make_room(folder: Path, size: int) -> int:
    """Remove the least recently used until at most size bytes are left; returns how many are."""
    files = sorted(_files(folder))
    total = sum(bytes_of for _, bytes_of, _ in files)
    for _, bytes_of, path in files:
        if total <= size:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            total -= bytes_of
    return total
