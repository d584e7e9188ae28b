"""Small results of earlier runs: a bounded folder of files, each by the sha256 of its question.

Several threads and processes may use one folder. What lies there is checked and never trusted: a
file that is not as it was written under its name counts as absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
from pathlib import Path

from shadow.files import read_start
from shadow.run.runtime import make_room, size_of

BOUND = 10 << 30  # bytes of the folder: the leading vectors of a 70B pair take 4 GB
# of the bound: after so many bytes a process looks again at what all processes have written
LOOKED_AFTER = 0.05
ROOM_MADE = 0.9  # of the bound: what stays when the least recently used have gone
DIGEST = 32  # bytes of blake2b at the start of a file, of its key and of all that follows


class FileCache:
    """A folder of files by key (64 hexadecimal digits), of one kind, which their suffix names."""

    def __init__(self, folder: Path, suffix: str, bound: int = BOUND) -> None:
        self.folder = folder
        self.suffix = suffix
        self.bound = bound
        self._lock = threading.Lock()
        self._size: int | None = None  # of the folder, as far as this process knows
        self._written = 0  # bytes since it looked

    def path_of(self, key: str) -> Path:
        """The path of the file of a key."""
        return self.folder / key[:2] / f"{key[2:]}{self.suffix}"

    def load(self, key: str) -> bytes | None:
        """Read what was stored under a key; None if it is absent or not as it was written."""
        path = self.path_of(key)
        try:
            content = read_start(path, path.stat().st_size)
        except OSError:
            return None
        if content is None or digest_of(key, content[DIGEST:]) != content[:DIGEST]:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used last
        return content[DIGEST:]

    def store(self, key: str, content: bytes) -> None:
        """Write a file, and remove others where the folder exceeds its bound. Raises OSError."""
        path = self.path_of(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            beside.write_bytes(digest_of(key, content) + content)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        with self._lock:
            self._written += len(content)
            if self._size is None or self._written > LOOKED_AFTER * self.bound:
                self._size = size_of(self.folder)
                self._written = 0
            else:
                self._size += len(content)
            if self._size > self.bound:
                self._size = make_room(self.folder, int(ROOM_MADE * self.bound))


def digest_of(key: str, content: bytes) -> bytes:
    """The start of the file of a key, so that a file under another key is not trusted."""
    return hashlib.blake2b(content, digest_size=DIGEST, key=bytes.fromhex(key)).digest()
