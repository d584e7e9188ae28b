"""Open files that detect modification while being read.

A shard is the same file from its header to the end of an audit. Files are read, not mapped: if a
mapped file is cut short, the process is killed (SIGBUS); here it is a short read.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.errors import ShadowError
from shadow.files import open_regular

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK = 1 << 18  # bytes that are read at once for a checksum: they stay in the caches
PIECE = 1 << 17  # bytes that every system reads ahead when it is told of them
SAMPLED = 1 << 10  # bytes of each MiB of a tensor that are a part of a fingerprint, two at least
EVERY = 1 << 20
SHORT = 1 << 12  # a shorter one is read whole: a disk reads as much for a single byte
# Bytes up to which a tensor is read once and kept: the matrices inside layers up to 14B parameters.
# Reading a matrix anew for every pass takes 0.2 s a GB where its parts are whole rows, and 0.4 s
# where they are columns, on two cores of a Xeon.
WHOLE = 136 << 20
# bytes that are read at once of a larger one whose columns are asked for: in narrower stripes each
# request brings less than it costs
STRIPE = 32 << 20
WHEN_QUIET = "run the same command again when no program writes to it"


class Readable:
    """Bytes that are read from any position on."""

    def read(self, start: int, into: memoryview) -> None:
        """Fill a buffer with the bytes from start on."""
        raise NotImplementedError

    def read_runs(self, starts: Sequence[int] | NDArray[np.int64], into: memoryview) -> None:
        """Fill a buffer with runs of equal length, one from each start. Raises like read."""
        width = len(into) // len(starts)
        for number, start in enumerate(map(int, starts)):
            first = number * width
            self.read(start, into[first : first + width])

    def checksum(self, start: int, stop: int) -> str:
        """CRC-32 and Adler-32 of the bytes from start to stop, as 16 hexadecimal digits.

        Both together take 0.7 s a GB, SHA-256 or BLAKE2b 1.6 to 2.7 on a Xeon. They distinguish
        files that differ by chance, not forgeries. Raises like read.
        """
        crc = zlib.crc32(b"")
        adler = zlib.adler32(b"")
        longest = min(BLOCK, stop - start)
        block = memoryview(bytearray(longest))
        for at in range(start, stop, BLOCK):
            part = block[: min(BLOCK, stop - at)]
            self.read(at, part)
            crc = zlib.crc32(part, crc)
            adler = zlib.adler32(part, adler)
        return f"{crc:08x}{adler:08x}"


@dataclass(frozen=True, eq=False)
class HeldFile(Readable):
    """A regular file, open for reading while this object exists. Several threads may read it."""

    path: Path
    handle: int  # of the system, this object's own
    size: int  # bytes, when it was opened
    identity: tuple[int, ...]  # what tells whether it changes

    def __del__(self) -> None:
        os.close(self.handle)

    def read(self, start: int, into: memoryview) -> None:
        """Fill a buffer with the bytes from start on. Raises ShadowError if the file no longer has
        them or they cannot be read.
        """
        done = 0
        try:
            while done < len(into):  # a system may give less than it is asked for
                rest = into[done:]
                more = os.preadv(self.handle, (rest,), start + done)
                if not more:
                    raise self.changed("it was cut short")
                done += more
        except OSError as error:
            raise self._unreadable(error) from error

    def bytes_of(self, start: int, size: int) -> bytes:
        """Read size bytes from start on. Raises like read."""
        content = bytearray(size)
        self.read(start, memoryview(content))
        return bytes(content)

    def read_ahead(self, start: int, stop: int) -> None:
        """Advise the system that the bytes from start to stop will be read soon, where it takes
        advice.

        It then reads them into its cache, and drops them when it needs the memory.
        """
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                for at in range(start, stop, PIECE):
                    size = min(PIECE, stop - at)
                    os.posix_fadvise(self.handle, at, size, os.POSIX_FADV_WILLNEED)

    def equals(self, other: HeldFile) -> bool:
        """True if both files hold the same bytes. Raises like read."""
        if self.size != other.size:
            return False
        return self.holds_same(0, other, 0, self.size)

    def holds_same(self, start: int, other: HeldFile, other_start: int, size: int) -> bool:
        """True if size bytes from start on are the same as those of another file from
        `other_start` on.

        The last block is compared first: copies whose weights differ mostly differ there. Raises
        like read.
        """
        length = min(BLOCK, size)
        mine = memoryview(bytearray(length))
        theirs = memoryview(bytearray(length))
        blocks = range(0, size, BLOCK)
        for position in (*blocks[-1:], *blocks[:-1]):
            stop = min(BLOCK, size - position)
            self.read(start + position, mine[:stop])
            other.read(other_start + position, theirs[:stop])
            if mine[:stop] != theirs[:stop]:
                return False
        return True

    def _unreadable(self, error: OSError) -> ShadowError:
        return ShadowError(
            f"{self.path}: it cannot be read: {error.strerror or error}",
            "run the same command again: it continues from here",
        )

    def sample(self, starts: Sequence[int], sizes: Sequence[int]) -> bytes:
        """Read some bytes of each of these tensors, for a fingerprint; fewer where the file ends.

        Checkpoints of one archive may have the same names, sizes, times and headers, and differ in
        weights alone. It takes 10 to 30 ms a GB. The system learns all positions first, so that a
        disk reads many at a time. Raises ShadowError if they cannot be read.
        """
        shared = set(zip(starts, sizes, strict=True))  # what two share is read once
        pieces = sorted(shared)
        if max(sizes, default=0) > SHORT:
            pieces = [place for piece in pieces for place in sampled(*piece)]
        if not pieces:
            return b""
        starts, sizes = zip(*pieces, strict=True)
        handle = repeat(self.handle)
        try:  # there may be a million, so that no loop of Python's goes over them
            if hasattr(os, "posix_fadvise"):
                soon = repeat(os.POSIX_FADV_WILLNEED)
                deque(map(os.posix_fadvise, handle, starts, sizes, soon), 0)
            return b"".join(map(os.pread, handle, sizes, starts))
        except OSError as error:
            raise self._unreadable(error) from error

    def require_unchanged(self) -> None:
        """Raise ShadowError if the path now has another file or other content."""
        try:
            now = os.stat(self.path)  # noqa: PTH116 - once for every matrix
        except OSError as error:
            raise self.changed("it was removed") from error
        identity = _identity(now)
        if identity[:2] != self.identity[:2]:
            raise self.changed("another file is in its place")
        if identity != self.identity:
            raise self.changed("it was written to")

    def changed(self, how: str) -> ShadowError:
        """The error for a file that has changed."""
        return ShadowError(f"{self.path} changed during the audit: {how}", WHEN_QUIET)


@dataclass(frozen=True)
class HeldBytes(Readable):
    """The bytes of a tensor in memory, read like those of a file."""

    content: memoryview

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, start: int, into: memoryview) -> None:
        into[:] = self.content[start : start + len(into)]

    def read_ahead(self, start: int, stop: int) -> None:
        """Do nothing: the bytes are in memory."""


def sampled(start: int, size: int) -> list[tuple[int, int]]:
    """Places (start, bytes) of the sample of a tensor of size bytes, from first to last byte."""
    if size <= SHORT:
        return [(start, size)]
    count = max(2, math.ceil(size / EVERY))
    room = size - SAMPLED
    places = []
    for number in range(count):
        offset = room * number // (count - 1)
        places.append((start + offset, SAMPLED))
    return places


def hold(path: Path) -> HeldFile | None:
    """Open a file and keep it open; None if it is not regular. Raises OSError."""
    try:
        handle = open_regular(path)
    except OSError as error:
        if error.errno != errno.EMFILE or not _may_hold_more():
            raise
        handle = open_regular(path)
    if handle is None:
        return None
    status = os.fstat(handle)
    return HeldFile(path, handle, status.st_size, _identity(status))


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """The facts that a change of the file alters: device, inode, size, and the times of its content
    and of its inode.

    Copying with `cp -p` over a file may leave all but the last unchanged.
    """
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _may_hold_more() -> bool:
    """Raise the limit on open files as far as allowed; return whether that was possible."""
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ImportError, OSError, ValueError):
        return False
    return soft != hard


def kept_memory(size: int) -> int:
    """The bytes of memory that a tensor of size bytes takes at most while it is read."""
    return size if size <= WHOLE else STRIPE
