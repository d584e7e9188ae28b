"""GGUF files: the header, checked as hostile input.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), little-endian: `GGUF`,
version, counts of tensors and of metadata; the metadata by key; name, dimensions (the fastest
first), type and offset of each tensor; then the data, aligned. The reader of the `gguf` package
maps the file and believes its counts, so the header is read here; the package decodes blocks.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from shadow.checkpoints.held_files import HeldFile
from shadow.checkpoints.safetensors_files import (
    MAX_ELEMENTS,
    MAX_ENTRIES,
    MAX_HEADER,
    TensorInfo,
    usable_name,
)
from shadow.errors import FileError, ShadowError
from shadow.extras import require
from shadow.text import several, short

SUFFIX = ".gguf"
PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
BESIDE = "mmproj"  # how files begin that hold the vision tower beside the model
MAGIC = b"GGUF"
EXTRA = "quantised"
VERSIONS = (2, 3)
FIRST = 1 << 20  # bytes that are read at first; a vocabulary has some millions
MAX_VALUES = 4_000_000  # texts in lists; the largest vocabularies and their merges are a quarter
MAX_KEYS = 65_536
MAX_LIST = 4096  # numbers of a list that are kept, as a count for each layer
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16
DEFAULT_ALIGNMENT = 32
STRING, LIST = 8, 9
NUMBERS = {  # types of values, as struct calls them
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip


@dataclass(frozen=True)
class Texts:
    """A list of texts in a header, kept as it is written: a length and bytes for each."""

    count: int
    written: bytes

    def read(self) -> list[str]:
        """The texts; what is not UTF-8 in them is escaped."""
        file, found = io.BytesIO(self.written), []
        for _ in range(self.count):
            size = int.from_bytes(file.read(8), "little")
            found.append(file.read(size).decode(errors="backslashreplace"))
        return found


Value = str | int | float | bool | list[int | float | bool] | Texts | None
"""Of the metadata; None is a list of numbers too long to be kept."""


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself."""

    metadata: Mapping[str, Value]
    # by the names that GGUF gives them, shapes with the fastest dimension last, types of ggml
    tensors: Mapping[str, TensorInfo]
    digest: str  # sha256 of the header's bytes


class _CutError(Exception):
    """The header goes on behind the bytes that are there."""


def read_gguf(
    read: Callable[[int], bytes], file_size: int, shard: str, count: int = FIRST
) -> GgufHeader:
    """The header of a GGUF file of file_size bytes, of which read(count) gives the first.

    count: of the first read; the next has four times as many.

    Raises FileError where it cannot be trusted, ShadowError without the `gguf` package.
    """
    require(EXTRA)
    while True:
        raw = read(min(count, file_size))
        try:
            return _Header(raw, file_size, shard).read()
        except _CutError:
            if count >= MAX_HEADER:
                raise _untrusted(shard, f"its header has more than {MAX_HEADER:,} bytes") from None
            count = min(4 * count, MAX_HEADER)


def gguf_header_of(file: HeldFile, shard: str) -> GgufHeader:
    """The same of a local file that is held open."""

    def read(count: int) -> bytes:
        content = bytearray(count)
        file.read(0, memoryview(content))
        return bytes(content)

    return read_gguf(read, file.size, shard, 16 * FIRST)


def chosen_files(where: str, names: Iterable[str], pattern: str | None) -> tuple[str, ...]:
    """The GGUF file of a folder or repository, or all parts of a split one, in order.

    pattern: as of `fnmatch`, on the name or on the last part of the path; None where there is to be
    but one. Raises ShadowError where none matches, several do, or a part is missing.
    """
    there = sorted(names)
    models: dict[str, list[str]] = {}
    for name in there:
        last = PurePosixPath(name).name
        if pattern is None and last.startswith(BESIDE):
            continue
        if pattern is None or any(fnmatchcase(one, pattern) for one in (name, last)):
            models.setdefault(PART.sub(r"\g<stem>", name), []).append(name)
    if not models:
        called = "as a model" if pattern is None else short(pattern)
        message = f"{where}: no GGUF file is called {called}"
        raise ShadowError(message, f"it has: {several(there, 6)}")
    if len(models) > 1:
        listed = several([parts[0] for parts in models.values()], 6)
        raise ShadowError(
            f"{where}: {len(models)} GGUF files: {listed}",
            "choose one with --file, such as --file '*Q8_0*'",
        )
    (found,) = models.values()
    match = PART.fullmatch(found[0])
    if match is None:
        return tuple(found)
    stem, count = match["stem"], int(match["count"])
    parts = [f"{stem}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    if missing := sorted(set(parts) - set(there)):
        raise ShadowError(
            f"{where}: {len(missing)} of {count:,} parts are missing: {several(missing, 2)}",
            "check that the download is complete",
        )
    return tuple(parts)


def _untrusted(shard: str, reason: str) -> FileError:
    return FileError(f"{shard}: not a valid GGUF file: {reason}", "fetch the file again")


class _Header:
    """A header while it is read."""

    def __init__(self, raw: bytes, file_size: int, shard: str) -> None:
        self.raw, self.size, self.shard = raw, file_size, shard
        self.at = 0
        self.texts = 0  # in lists

    def fault(self, reason: str) -> FileError:
        return _untrusted(self.shard, reason)

    def pass_over(self, count: int) -> int:
        """Where so many bytes begin, of which the reading goes on behind."""
        start, end = self.at, self.at + count
        if end > self.size:
            raise self.fault("it ends inside its header, or a length in it is wrong")
        if end > len(self.raw):
            raise _CutError
        self.at = end
        return start

    def numbers(self, form: str) -> tuple[Any, ...]:
        """Numbers of these types, as struct calls them."""
        return struct.unpack_from(f"<{form}", self.raw, self.pass_over(struct.calcsize(f"<{form}")))

    def text(self, what: str, most: int) -> str:
        (size,) = self.numbers("Q")
        if size > most:
            raise self.fault(f"{what} has {size:,} bytes")
        start = self.pass_over(size)
        return self.raw[start : self.at].decode(errors="backslashreplace")

    def read(self) -> GgufHeader:
        if self.raw[:4] != MAGIC:
            lfs = self.raw.startswith(b"version ")
            why = "it is a Git-LFS pointer (run `git lfs pull`)" if lfs else "it does not begin so"
            raise self.fault(why if self.raw else "it is empty")
        _, version = self.numbers("4sI")
        if version not in VERSIONS:
            what = "a big-endian one" if version & 0xFFFF == 0 else f"version {version}"
            raise FileError(
                f"{self.shard}: {what} of GGUF, and shadow reads versions 2 and 3, little-endian",
                "convert the model again with a current llama.cpp",
            )
        tensors, keys = self.numbers("QQ")
        if tensors > MAX_ENTRIES or keys > MAX_KEYS:
            raise self.fault(f"it claims {tensors:,} tensors and {keys:,} keys")
        metadata: dict[str, Value] = {}
        for _ in range(keys):
            key = self.text("a key", 1 << 16)
            if key in metadata:
                raise self.fault(f"the key {key[:80]!r} is there twice")
            metadata[key] = self.value(self.numbers("I")[0], key)
        found = [self.tensor() for _ in range(tensors)]
        align = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(align) is not int or not 0 < align <= MAX_ALIGNMENT or align & (align - 1):
            raise self.fault(f"its alignment is {str(align)[:20]}")
        start, placed = -(-self.at // align) * align, dict[str, TensorInfo]()
        for name, kind, shape, offset in found:
            if name in placed:
                raise self.fault(f"tensor {name!r} is there twice")
            placed[name] = self.placed(name, kind, shape, start + offset)
        position = 0
        for info in sorted(placed.values(), key=lambda info: (info.start, info.end)):
            if info.start < position:
                raise self.fault(f"tensor {info.name!r} overlaps another")
            position = info.end
        return GgufHeader(metadata, placed, hashlib.sha256(self.raw[: self.at]).hexdigest())

    def value(self, kind: int, key: str) -> Value:
        if kind in NUMBERS:
            found: Value = self.numbers(NUMBERS[kind])[0]
            return found
        if kind == STRING:
            return self.text(f"the text of {key[:80]!r}", MAX_HEADER)
        if kind != LIST:
            raise self.fault(f"{key[:80]!r} has a value of unknown type {kind}")
        kind, count = self.numbers("IQ")
        if kind in NUMBERS:
            if count <= MAX_LIST:
                return list(self.numbers(f"{count}{NUMBERS[kind]}"))
            self.pass_over(count * struct.calcsize(f"<{NUMBERS[kind]}"))
            return None
        self.texts += count
        if kind != STRING or self.texts > MAX_VALUES:
            raise self.fault(f"{key[:80]!r} is a list of {count:,} values of type {kind}")
        at, length = self.at, struct.Struct("<Q").unpack_from
        with contextlib.suppress(struct.error, OverflowError):
            for _ in range(count):  # of which there may be a million
                at += 8 + length(self.raw, at)[0]
            start = self.pass_over(at - self.at)
            return Texts(count, self.raw[start : self.at])
        self.pass_over(max(at, len(self.raw)) + 8 - self.at)  # which is not there
        raise _CutError

    def tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        """(name, type, shape, offset), the shape with the fastest dimension last."""
        name = self.text("the name of a tensor", 1 << 16)
        if not usable_name(name):
            raise self.fault(f"tensor {name[:80]!r} has an unusable name")
        (dimensions,) = self.numbers("I")
        if dimensions > MAX_DIMENSIONS:
            raise self.fault(f"tensor {name!r} has {dimensions:,} dimensions")
        shape = self.numbers(f"{dimensions}Q")[::-1]
        if math.prod(size or 1 for size in shape) > MAX_ELEMENTS:
            raise self.fault(f"tensor {name!r} has no valid shape")
        return name, *self.numbers("I"), shape, *self.numbers("Q")

    def placed(self, name: str, kind: int, shape: tuple[int, ...], start: int) -> TensorInfo:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            known = GGMLQuantizationType(kind)
        except ValueError:  # newer than the package: its size is unknown
            return TensorInfo(name, f"GGML_{kind}", shape, self.shard, start, start)
        block, size = GGML_QUANT_SIZES[known]
        fast = shape[-1] if shape else 1
        if fast % block:
            raise self.fault(f"tensor {name!r} has rows of {fast:,}, no multiple of {block}")
        end = start + math.prod(shape) // block * size
        if end > self.size:
            raise self.fault(f"it is cut short, or tensor {name!r} has a wrong offset")
        return TensorInfo(name, known.name, shape, self.shard, start, end)
