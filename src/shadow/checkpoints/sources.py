"""Sources of the bytes of a shard: a local file, a file of the Hub, or byte ranges of one.

`fetch` runs in one thread, ahead of the work; `tensor` in many, after it. Code that measures sees
tensors only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from shadow.checkpoints.gguf_files import SUFFIX as GGUF
from shadow.checkpoints.gguf_files import read_gguf
from shadow.checkpoints.held_files import HeldFile, hold
from shadow.checkpoints.safetensors_files import Header, TensorInfo, held_shard, read_safetensors
from shadow.checkpoints.transfers import Say, Transfer
from shadow.errors import ShadowError, naming
from shadow.files import writing

if TYPE_CHECKING:
    from shadow.checkpoints.hub import RemoteFile
    from shadow.checkpoints.stored_tensors import StoredTensor

NEIGHBOUR = 1 << 18  # bytes; such a gap costs less than another request (20 ms at 100 Mbit/s)
WITH_HEADER = (".safetensors", GGUF)  # other files of weights are pickles
FULL = "free some space, or choose another folder with -o"


def header_of(shard: str, size: int, read: Callable[[int], bytes]) -> Header:
    """Read the header of a safetensors or GGUF file of this size. read(count) returns its first
    bytes. Raises FileError.
    """
    if shard.endswith(GGUF):
        return read_gguf(read, size, shard)
    return read_safetensors(read, size, shard)


def read_header(file: HeldFile, shard: str) -> Header:
    """Read the header of a local safetensors or GGUF file. Raises FileError."""

    def read(count: int) -> bytes:
        size = min(count, file.size)
        return file.bytes_of(0, size)

    return header_of(shard, file.size, read)


def read_shard(file: HeldFile, shard: str, scratch: Path | None) -> tuple[Header, HeldFile]:
    """Read the header of a local file, and find the file that its offsets refer to."""
    if shard.endswith(WITH_HEADER):
        return read_header(file, shard), file
    from shadow.checkpoints.pickles import layout

    if scratch is None:
        raise ShadowError(f"{shard}: no place to unpack it", "give an output folder")
    tensors, data = layout(file.path, shard, scratch)
    # a tied head is the same bytes under a second name
    first_names: dict[tuple[object, ...], str] = {}
    facts: list[list[object]] = []
    for name, info in tensors.items():
        span = (info.start, info.end)
        place = (info.dtype, span, info.shape, info.strides)
        facts.append([name, info.dtype, info.shape, info.start])
        first = first_names.setdefault(place, name)
        if first != name and info.end > info.start:
            tensors[name] = replace(info, alias_of=first)
    header = Header(tensors, json.dumps(facts))
    if data == file.path:
        return header, file
    return header, held_shard(data, shard)


class Source:
    """The bytes of one shard: those of a local file, unless a class says otherwise."""

    is_local = True  # there is nothing to fetch, and nothing to free
    path: Path | None  # where the bytes lie; None before they are here
    held: HeldFile | None = None  # the file at path, open; None where it is opened when it is read
    verified: bool | None = None  # whether fetch checked the Hub's checksum; None for a folder

    def bytes_to_move(self) -> int:
        """Bytes that fetch will download; they take as much disk space."""
        return 0

    def fetch(self, by: Transfer) -> None:
        """Download and check the bytes. Raises ShadowError, and StoppedError once stop is set."""

    def located(self, info: TensorInfo) -> tuple[HeldFile, TensorInfo]:
        """The file that holds a tensor of the fetched shard, and the tensor's position in
        it. Raises ShadowError if the file is gone.
        """
        assert self.path is not None, "fetched before it is read"
        file = self.held or _held_again(self.path)
        if file.size < info.end:
            raise file.changed("it was cut short")
        return file, info

    def small_tensor(self, info: TensorInfo, say: Say) -> bytes:
        """Read the bytes of a small tensor, of a shard that may not be on this machine."""
        file, place = self.located(info)
        size = place.end - place.start
        return file.bytes_of(place.start, size)

    def tensor(self, info: TensorInfo) -> StoredTensor:
        """A tensor of the shard. Raises like located."""
        from shadow.checkpoints.stored_tensors import stored_tensor

        return stored_tensor(*self.located(info))

    def checksum(self, info: TensorInfo) -> str | None:
        """The checksum of a tensor's bytes (see `HeldFile.checksum`); None if it was not
        fetched. Raises like located.
        """
        file, place = self.located(info)
        return file.checksum(place.start, place.end)

    def require_unchanged(self) -> None:
        """Raise ShadowError if a file of the user has changed since it was opened."""

    def free(self) -> None:
        """Release the disk space that fetch took."""


@dataclass(frozen=True)
class LocalFile(Source):
    """A shard in a folder."""

    path: Path
    held: HeldFile | None = field(default=None, compare=False)

    def require_unchanged(self) -> None:
        if self.held is not None:
            self.held.require_unchanged()


Shard = tuple[Header, Source]  # a file of weights whose header has been read
Shards = dict[str, Shard]  # by name


def _held_again(path: Path) -> HeldFile:
    """Open a file of the Hub's cache or of this audit, which another program may have removed."""
    why = "it is not a file"
    try:
        if (file := hold(path)) is not None:
            return file
    except OSError as error:
        why = error.strerror or str(error)
    hint = "run the same command again: it continues from here"
    raise ShadowError(f"{path} changed during the audit: {why}", hint)


def digest_of(header: Header) -> str:
    """A sha256 of the text of a header; the text itself takes a kilobyte a tensor."""
    text = header.text.encode()
    return hashlib.sha256(text).hexdigest()


@dataclass
class WholeFile(Source):
    """A shard of the Hub, in the Hub's cache."""

    file: RemoteFile
    header: str | None = None  # its digest when the checkpoint was opened; None for a `.bin`
    fetched: bool = False  # when the checkpoint was opened
    keep: bool = True  # it was in the cache before, or is wanted there afterwards
    unpacked: Path | None = None  # what the offsets of a `.bin` of the old format refer to
    verified: bool | None = None
    path: Path | None = None
    held: HeldFile | None = None
    is_local = False

    @property
    def identity(self) -> tuple[str, str, str]:
        """(repository, commit, path in it)."""
        file = self.file
        return file.repo, file.commit, file.path

    def bytes_to_move(self) -> int:
        from shadow.checkpoints.hub import in_cache

        if self.path or in_cache(self.file):
            return 0
        return self.file.size

    def fetch(self, by: Transfer) -> None:
        """Fetch, and check that the header is the one that was read before."""
        from shadow.checkpoints.hub import fetch_whole, use_own_blobs

        if self.path is not None:
            return
        if not self.keep:
            use_own_blobs()
        path, self.verified = fetch_whole(self.file, by)
        if self.header is not None:
            shard = PurePosixPath(self.file.path).name
            with naming(self.file.repo):
                self.held = held_shard(path, shard)
                header = read_header(self.held, shard)
            if digest_of(header) != self.header:
                message = f"{self.file.path} has another header than before"
                hint = "run the same command again; or the server does not serve one commit"
                raise ShadowError(f"{self.file.repo}: {message}", hint)
        self.path = path

    def small_tensor(self, info: TensorInfo, say: Say) -> bytes:
        from shadow.checkpoints.hub import cached, read_range

        if self.path is not None:
            return super().small_tensor(info, say)
        path = cached(self.file)
        if path is not None:
            return LocalFile(path).small_tensor(info, say)
        by = Transfer(say)
        return read_range(self.file, info.start, info.end, by)

    def located(self, info: TensorInfo) -> tuple[HeldFile, TensorInfo]:
        if self.unpacked:
            return LocalFile(self.unpacked).located(info)
        return super().located(info)

    def free(self) -> None:
        if not self.keep:
            self.discard()
        self.path = self.held = None

    def discard(self) -> None:
        """Remove the shard from the Hub's cache."""
        from shadow.checkpoints.hub import forget

        forget(*self.identity, checksum=self.file.checksum)


@dataclass
class ByteRanges(Source):
    """Some tensors of a shard of the Hub, in a separate file that is removed after use."""

    file: RemoteFile  # the whole shard
    wanted: Sequence[TensorInfo]
    path: Path  # of the file that their bytes are written to
    # by the start of a tensor in the shard: how many bytes further it lies in the file
    shifts: dict[int, int] = field(default_factory=dict)
    held: HeldFile | None = None
    verified = False  # no checksum covers byte ranges
    is_local = False

    def bytes_to_move(self) -> int:
        ranges = coalesced(self.wanted)
        return sum(stop - start for start, stop in ranges)

    def fetch(self, by: Transfer) -> None:
        from shadow.checkpoints.hub import copy_range

        folder = self.path.parent
        with writing(folder, FULL):
            folder.mkdir(parents=True, exist_ok=True)
            file = self.path.open("wb")

        def write(chunk: bytes) -> None:
            with writing(folder, FULL):
                file.write(chunk)

        filled = set()
        for info in self.wanted:
            if info.end > info.start:
                filled.add(info.start)
        starts = deque(sorted(filled))
        with file:
            for start, end in coalesced(self.wanted):
                shift = file.tell() - start
                while starts and starts[0] < end:
                    self.shifts[starts.popleft()] = shift
                copy_range(self.file, start, end, write, by)
            with writing(folder, FULL):
                file.flush()
        self.held = _held_again(self.path)

    def located(self, info: TensorInfo) -> tuple[HeldFile, TensorInfo]:
        shift = self.shifts.get(info.start, 0)  # an empty tensor has no bytes anywhere
        start = info.start + shift
        end = info.end + shift
        return super().located(replace(info, start=start, end=end))

    def checksum(self, info: TensorInfo) -> str | None:
        is_empty = info.start == info.end
        if is_empty or info.start in self.shifts:
            return super().checksum(info)
        return None

    def free(self) -> None:
        self.held = None
        with contextlib.suppress(OSError):
            self.path.unlink()


def coalesced(wanted: Sequence[TensorInfo]) -> list[tuple[int, int]]:
    """The (start, stop) of byte ranges that hold all wanted tensors, ascending.

    They do not overlap: neighbours up to NEIGHBOUR bytes apart are merged.
    """
    ranges: list[tuple[int, int]] = []
    filled = set()
    for info in wanted:
        if info.end > info.start:
            filled.add((info.start, info.end))
    for start, end in sorted(filled):
        if ranges:
            first, last = ranges[-1]
            if start - last <= NEIGHBOUR:
                ranges[-1] = (first, max(last, end))
                continue
        ranges.append((start, end))
    return ranges
