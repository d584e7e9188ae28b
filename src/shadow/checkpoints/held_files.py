"""Files that are held open while they are read, and known again.

A shard is one file from its header to the end of an audit. Files are read, not mapped: a mapped
file that is cut short meanwhile kills the process (SIGBUS), and here it is a short read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.errors import ShadowError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CAN_READ_FROM = hasattr(os, "preadv")  # a place, and leave that of the file as it is
BLOCK = 1 << 18  # bytes that are read at once for a checksum: they stay in the caches
PIECE = 1 << 17  # bytes that every system reads ahead when it is told of them
WHEN_QUIET = "run the same command again when no program writes to it"


@dataclass(frozen=True, eq=False)
class HeldFile:
    """A regular file, open for reading until this object goes. Several threads may read it."""

    path: Path
    handle: int = field(repr=False)  # of the system, this object's own
    size: int  # bytes, when it was opened
    modified: int  # when its content last changed by then, in ns
    standing: tuple[int, ...]  # what tells whether it changes
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __del__(self) -> None:
        os.close(self.handle)

    def read(self, start: int, into: memoryview) -> None:
        """Fill a buffer of bytes from the file, beginning at byte start. Raises as read_runs."""
        self._fill(start, into)

    def read_runs(self, starts: Sequence[int] | NDArray[np.int64], into: memoryview) -> None:
        """Fill a buffer with runs of equal length, one after another, from where each begins.

        Raises ShadowError where the file has no such bytes any more, or they cannot be read.
        """
        width = len(into) // max(1, len(starts))
        for number, start in enumerate(map(int, starts)):
            self._fill(start, into[number * width : (number + 1) * width])

    def _fill(self, start: int, run: memoryview) -> None:
        try:
            done = self._read_some(start, run)
            while done < len(run):  # a system may give less than it is asked for
                more = self._read_some(start + done, run[done:])
                if not more:
                    raise self.changed("it was cut short")
                done += more
        except OSError as error:
            raise self._unreadable(error) from error

    def read_ahead(self, start: int, stop: int) -> None:
        """Tell the system that the bytes from start to stop are read soon, where it can be told.

        It reads them into its cache meanwhile, and drops them when it needs the memory.
        """
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                for at in range(start, stop, PIECE):
                    size = min(PIECE, stop - at)
                    os.posix_fadvise(self.handle, at, size, os.POSIX_FADV_WILLNEED)

    def checksum(self, start: int, stop: int) -> str:
        """CRC-32 and Adler-32 of the bytes from start to stop, as 16 hexadecimal digits.

        Both together take 0.7 s a GB, SHA-256 or BLAKE2b 1.6 to 2.7 on a Xeon. They
        tell apart what differs by chance, not what somebody made to look alike. Raises as read.
        """
        crc, adler = zlib.crc32(b""), zlib.adler32(b"")
        block = memoryview(bytearray(min(BLOCK, stop - start)))
        for at in range(start, stop, BLOCK):
            part = block[: min(BLOCK, stop - at)]
            self.read(at, part)
            crc, adler = zlib.crc32(part, crc), zlib.adler32(part, adler)
        return f"{crc:08x}{adler:08x}"

    def equals(self, other: HeldFile) -> bool:
        """Whether both hold the same bytes. Raises as read."""
        return self.size == other.size and self.holds_same(0, other, 0, self.size)

    def holds_same(self, start: int, other: HeldFile, there: int, size: int) -> bool:
        """Whether size bytes from start on are those of another file from there on.

        The last block is compared first: copies whose weights differ mostly differ there.
        Raises as read.
        """
        mine, theirs = (memoryview(bytearray(min(BLOCK, size))) for _ in range(2))
        blocks = range(0, size, BLOCK)
        for at in (*blocks[-1:], *blocks[:-1]):
            stop = min(BLOCK, size - at)
            self.read(start + at, mine[:stop])
            other.read(there + at, theirs[:stop])
            if mine[:stop] != theirs[:stop]:
                return False
        return True

    def _unreadable(self, error: OSError) -> ShadowError:
        return ShadowError(
            f"{self.path}: it cannot be read: {error.strerror or error}",
            "run the same command again: it continues from here",
        )

    def _read_some(self, start: int, into: memoryview) -> int:
        if CAN_READ_FROM:
            return os.preadv(self.handle, (into,), start)
        with self._lock:
            os.lseek(self.handle, start, os.SEEK_SET)
            found = os.read(self.handle, len(into))
        into[: len(found)] = found
        return len(found)

    def sample(self, starts: Sequence[int], sizes: Sequence[int]) -> bytes:
        """The bytes of many small pieces, one after another; fewer where the file ends before.

        The system is told of all of them first, so that a disk reads many at a time. Raises
        ShadowError where they cannot be read.
        """
        handle = repeat(self.handle)
        try:  # there may be a million, so that no loop of Python's goes over them
            if hasattr(os, "posix_fadvise"):
                soon = repeat(os.POSIX_FADV_WILLNEED)
                deque(map(os.posix_fadvise, handle, starts, sizes, soon), 0)
            if CAN_READ_FROM:
                return b"".join(map(os.pread, handle, sizes, starts))
            return b"".join(map(self._piece, starts, sizes))
        except OSError as error:
            raise self._unreadable(error) from error

    def _piece(self, start: int, size: int) -> bytes:
        piece = bytearray(size)
        return bytes(piece[: self._read_some(start, memoryview(piece))])

    def require_unchanged(self) -> None:
        """Raises ShadowError where another file, or another content, is at the path now."""
        try:
            now = os.stat(self.path)  # noqa: PTH116 - once for every matrix
        except OSError as error:
            raise self.changed("it was removed") from error
        standing = _standing(now)
        if standing[:2] != self.standing[:2]:
            raise self.changed("another file is in its place")
        if standing != self.standing:
            raise self.changed("it was written to")

    def changed(self, how: str) -> ShadowError:
        """What is told of a file that is no longer what it was."""
        return ShadowError(f"{self.path} changed during the audit: {how}", WHEN_QUIET)


def hold(path: Path) -> HeldFile | None:
    """Open a file to be held; None where it is not regular. Raises OSError."""
    if not path.is_file():  # opening a FIFO would wait
        return None
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except OSError as error:
        if error.errno != errno.EMFILE or not _may_hold_more():
            raise
        handle = os.open(path, flags)
    status = os.fstat(handle)
    return HeldFile(path, handle, status.st_size, status.st_mtime_ns, _standing(status))


def _standing(status: os.stat_result) -> tuple[int, ...]:
    """What changes with a file: device, inode, size, and the times of its content and of its inode.

    Copying with `cp -p` over a file may leave all but the last as they were.
    """
    inode_time = 0 if os.name == "nt" else status.st_ctime_ns  # there it is when it was made
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, inode_time


def _may_hold_more() -> bool:
    """Whether the limit on open files could be raised as far as a process may."""
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ImportError, OSError, ValueError):
        return False
    return soft != hard
