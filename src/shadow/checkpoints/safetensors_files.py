"""safetensors files: the header, checked as hostile input.

The format (https://huggingface.co/docs/safetensors): 8 bytes of little-endian header length, a JSON
header `{name: {"dtype", "shape", "data_offsets"}}`, then the data without holes. The `safetensors`
reader refuses a whole file for one unknown dtype, and maps the file, which ends the process if the
file is cut short. An audit needs neither, so the header is read here, and weights by
`stored_tensors`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from shadow.checkpoints.held_files import HeldFile, hold
from shadow.dtypes import FLOATS, INTEGERS
from shadow.errors import FileError, PointerError
from shadow.places.names import Shape

HEADER_GUESS = 1 << 16  # bytes; the headers of 9 in 10 real shards are shorter: one request
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
# Tensors of one file. Real ones have up to 19,107 (all of Qwen3-30B-A3B), shards of Kimi-K2 18,700.
# 100,000 take 1.0 s of CPU and 115 MB; both grow in proportion.
MAX_ENTRIES = 250_000
# commas and opening brackets of a JSON file; a tensor has 8 in a header, 1 in an index
MAX_MARKS = 12 * MAX_ENTRIES
# of a tensor, zeros in its shape left out: no real one comes near, and torch counts in 64 bits
MAX_ELEMENTS = 2**48
MAX_OFFSET = 2**60  # bytes
MAX_NAME = 1024  # characters of a tensor name; the longest of 114,248 real ones has fewer than 120


@dataclass(frozen=True, slots=True)
class Packing:
    """Storage of a quantised tensor: the entry has its usual name and shape, and the name of its
    format as dtype; its start and end are those of `raw`.
    """

    kind: str  # which decoder makes its numbers
    raw: TensorInfo  # its bytes, as the file has them
    beside: tuple[TensorInfo, ...] = ()  # other tensors that are read with it, such as scales
    facts: Shape = ()  # small numbers that the decoder needs; it says which
    # what raw and the first of beside are to the decoder
    roles: tuple[str, ...] = ("words", "scales")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One named entry of a shard."""

    name: str
    dtype: str  # as safetensors writes it, such as BF16, or another word that the file has
    shape: Shape
    shard: str  # path of the file in the checkpoint's folder
    start: int  # byte offset in that file at which the tensor begins
    end: int  # byte offset at which it ends
    # in elements; None for C-contiguous tensors, as all are but some of a `.bin`
    strides: Shape | None = None
    problem: str | None = None  # why an entry that an index announces cannot be read
    # the tensor whose bytes this one shares, as a tied head in a `.bin`
    alias_of: str | None = None
    packing: Packing | None = None  # of a quantised one

    @property
    def parameters(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def stored_size(self) -> int:
        """The bytes that it takes in its file."""
        return self.end - self.start


Tensors = dict[str, TensorInfo]
"""Entries by name."""


def held_shard(path: Path, shard: str) -> HeldFile:
    """Open a file and keep it open. shard: its name, for messages. Raises FileError."""
    try:
        file = hold(path)
    except OSError as error:
        raise FileError(
            f"{shard}: {error.strerror or error}", "check that the download is complete"
        ) from error
    if file is None:
        raise FileError(f"{shard}: not a regular file", "put the file itself in its place")
    return file


@dataclass(frozen=True)
class Header:
    """The header of a file of weights."""

    tensors: Tensors  # by name
    text: str  # changes with the header
    metadata: Mapping[str, str | int | float | None] = field(default_factory=dict)  # of GGUF


def read_safetensors(read: Callable[[int], bytes], file_size: int, shard: str) -> Header:
    """Read the header of a safetensors file of file_size bytes. read(count) returns the first count
    bytes, or all.

    Raises FileError when the file cannot be trusted: cut short, a header that is not what the
    format says, offsets that overlap, leave holes, or disagree with dtype and shape. An unknown
    dtype is allowed.
    """
    start = read(HEADER_GUESS)
    end = 8 + int.from_bytes(start[:8], "little")
    if len(start) < 8 or not 10 <= end <= min(8 + MAX_HEADER, file_size):
        if start.startswith(b"version "):
            message = f"{shard}: it is a Git-LFS pointer, not the file itself"
            raise PointerError(message, "run `git lfs pull` in the folder")
        reason = "no valid header length, or cut inside the header"
        raise _untrusted(shard, reason if start else "it is empty")
    if end > len(start):
        start = read(end)
    raw = start[8:end]
    try:
        header = strict_json(raw)
    except ValueError as error:
        raise _untrusted(shard, f"the header is {error}") from error
    if not isinstance(header, dict):
        raise _untrusted(shard, "the header is not a JSON object")
    if len(header) > MAX_ENTRIES:
        message = f"{shard}: its header has more than {MAX_ENTRIES:,} entries"
        raise FileError(message, "split the file into shards")
    header.pop("__metadata__", None)
    tensors = {name: _entry(name, entry, shard, end) for name, entry in header.items()}
    position = end
    in_order = sorted(tensors.values(), key=lambda info: (info.start, info.end))
    for info in in_order:
        if info.start != position:
            problem = "overlaps another" if info.start < position else "leaves a hole before it"
            raise _untrusted(shard, f"tensor {info.name!r} {problem}")
        position = info.end
    if position != file_size:
        verb = "cut short" if position > file_size else "longer than its header says"
        raise _untrusted(shard, f"{verb} ({position:,} bytes promised, {file_size:,} there)")
    return Header(tensors, raw.decode())


def _untrusted(shard: str, reason: str) -> FileError:
    return FileError(f"{shard}: not a valid safetensors file: {reason}", "fetch the file again")


def has_too_many_values(raw: bytes) -> bool:
    """True if JSON would become far more objects than that of a real file, judging by commas
    and brackets.
    """
    marks = sum(raw.count(mark) for mark in (b",", b"[", b"{"))
    return marks > MAX_MARKS


def strict_json(raw: bytes) -> Any:
    """Parse JSON in which no key occurs twice. Raises ValueError with a reason."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, object]:
        if len(keys := dict(pairs)) != len(pairs):
            raise ValueError("a name occurs twice")
        return keys

    if has_too_many_values(raw):
        raise ValueError("larger than that of any released model")
    try:
        return json.loads(raw.decode(), object_pairs_hook=unique, parse_constant=str)
    # UnicodeDecodeError and JSONDecodeError are ValueErrors
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({type(error).__name__})") from None


def _entry(name: str, entry: Any, shard: str, data_start: int) -> TensorInfo:
    where = f"tensor {name[:80]!r}"
    if not usable_name(name):
        raise _untrusted(shard, f"{where} has an unusable name")
    if not isinstance(entry, dict):
        raise _untrusted(shard, f"{where} is not described by an object")
    dtype = entry.get("dtype")
    shape = entry.get("shape")
    ends = entry.get("data_offsets")
    if not isinstance(dtype, str) or not dtype.isprintable() or len(dtype) > 32:
        raise _untrusted(shard, f"{where} has no dtype")
    if (
        not _whole_numbers(shape)
        or len(shape) > 16
        or math.prod(size or 1 for size in shape) > MAX_ELEMENTS
    ):
        raise _untrusted(shard, f"{where} has no valid shape")
    if not _whole_numbers(ends) or len(ends) != 2 or not ends[0] <= ends[1] <= MAX_OFFSET:
        raise _untrusted(shard, f"{where} has no valid data_offsets")
    start = data_start + ends[0]
    end = data_start + ends[1]
    bits = FLOATS[dtype].bits if dtype in FLOATS else INTEGERS.get(dtype)
    if bits is not None and math.prod(shape) * bits != (end - start) * 8:
        raise _untrusted(shard, f"{where}: dtype and shape do not fill its data_offsets")
    return TensorInfo(name, sys.intern(dtype), tuple(shape), shard, start, end)


def usable_name(name: str) -> bool:
    """True if a tensor's name can be shown and stored: no control characters, no lone
    surrogates.
    """
    return 0 < len(name) <= MAX_NAME and name.isprintable()


def _whole_numbers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
