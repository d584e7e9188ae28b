"""Tensors in files, of which only the requested parts are read, each in few requests.

Such a tensor is a file and a view without data (on torch's device `meta`) that says where each
element lies. Rearranging its dimensions rearranges the view. A quantised tensor has a file of
decoded numbers instead, row after row, which a decoder makes on demand.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.checkpoints.held_files import STRIPE, WHOLE, HeldFile
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.dtypes import torch_name

AHEAD = 2 << 20  # bytes that are read at once where rows are asked for; they stay in the caches
HUGE = 4 << 20  # bytes from which memory is asked for in huge pages
HOLES = 2  # a part is read with what lies between its elements where that is at most so many times

Starts = Sequence[int] | NDArray[np.int64]
Index = tuple[slice, ...]
Span = tuple[int, int]  # of one dimension: (start, stop)


class Reads(Protocol):
    """Anything that can be read like a file."""

    def read_runs(self, starts: Starts, into: memoryview) -> None:
        """Read runs of equal length, one behind each start, one after another."""


Rows = NDArray[np.intp]  # numbers of rows; those of all leading dimensions are counted through
Cols = tuple[int, int]  # (start, stop)
Make = Callable[[Rows, Cols, Tensor], object]
Cells = tuple[Tensor, ...]
"""What a format rounds to each number, float32: (the distance of the two nearest levels) of even
levels; (lower bound, upper bound) of a codebook, infinite where it clips; () where it is unknown.
"""

AT_ONCE = 1 << 18  # entries that are decoded together, about: what is made of them stays in caches


class FileTensor:
    """A tensor of a file, or a rearranged part of one, read by `tensor[slices]`. For one thread.

    What an index returns must be used before the next index, and must not be changed: it may be
    part of the cached data.
    """

    holes = HOLES
    is_near = False  # more than is asked for costs as much as it brings

    def __init__(self, file: Reads, start: int, view: Tensor, most: int | None = None) -> None:
        """start: of the tensor, in bytes. view: on device `meta`, its offset counted from start.
        most: size up to which it is read once and cached; None for `WHOLE`.
        """
        self._file = file
        self._start = start
        self._most = WHOLE if most is None else most
        self._look_at(view)

    def _look_at(self, view: Tensor) -> None:
        self._view = view
        self._strides = view.stride()  # in elements
        self._room: Tensor | None = None  # what is read lies in it
        self._kept: tuple[list[Span], Tensor] | None = None
        self._all: Tensor | None = None  # what is kept, where that is all of it

    @property
    def shape(self) -> torch.Size:
        return self._view.shape

    @property
    def ndim(self) -> int:
        return self._view.ndim

    @property
    def dtype(self) -> torch.dtype:
        return self._view.dtype

    def numel(self) -> int:
        return self._view.numel()

    def seen(self, rearrange: Callable[[Tensor], Tensor]) -> Self | Tensor:
        """Return the same bytes as another view, or the rearranged tensor if that is not a view."""
        view = rearrange(self._view)
        if view.untyped_storage()._cdata != self._view.untyped_storage()._cdata:
            return rearrange(self.whole())
        other = copy(self)
        other._look_at(view)
        return other

    def whole(self) -> Tensor:
        """Return all of it, in its own memory."""
        whole = self[()]
        self._kept = self._all = self._room = None
        return whole

    def __getitem__(self, index: Index) -> Tensor:
        """Return a part. Raises ShadowError if the file no longer has it."""
        if self._all is not None:  # of a small tensor every time but the first
            return self._all[index]
        cut = [*index, *[slice(None)] * (self.ndim - len(index))]
        wanted = [part.indices(size)[:2] for part, size in zip(cut, self.shape, strict=True)]
        if self._kept is None or not all(
            start <= begin and end <= stop
            for (start, stop), (begin, end) in zip(self._kept[0], wanted, strict=True)
        ):
            spans = self._widened(wanted)
            self._kept = None  # its memory serves for the next
            self._kept = spans, self._read(spans)
            if spans == [(0, size) for size in self.shape]:
                self._all = self._kept[1]
        spans, kept = self._kept
        if spans == wanted:
            return kept
        inside = zip(wanted, spans, strict=True)
        return kept[tuple(slice(start - at, stop - at) for (start, stop), (at, _) in inside)]

    def _widened(self, wanted: list[Span]) -> list[Span]:
        """Return what is read if a part is wanted: small tensors whole, more columns of
        large ones.
        """
        itemsize = self.dtype.itemsize
        if self.numel() * itemsize <= self._most:
            return [(0, size) for size in self.shape]
        if self.is_near:
            return wanted
        inner = min(range(self.ndim), key=self._strides.__getitem__)
        start, stop = wanted[inner]
        lines = math.prod(
            max(0, end - begin) for place, (begin, end) in enumerate(wanted) if place != inner
        )
        width = STRIPE // max(1, lines * itemsize)
        wider = list(wanted)
        wider[inner] = start, min(self.shape[inner], max(stop, start + width))
        outer = max(range(self.ndim), key=self._strides.__getitem__)
        start, stop = wider[outer]
        if all(
            span == (0, self.shape[place]) for place, span in enumerate(wider) if place != outer
        ):
            line = self.numel() // self.shape[outer] * itemsize
            wider[outer] = start, min(self.shape[outer], max(stop, start + AHEAD // line))
        return wider

    def _read(self, spans: list[Span]) -> Tensor:
        """Read a part: in one request if it has few holes, otherwise run by run."""
        shape = [max(0, stop - start) for start, stop in spans]
        strides = self._strides
        count = math.prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=self.dtype)
        first = int(self._view.storage_offset())
        first += sum(start * by for (start, _), by in zip(spans, strides, strict=True))
        reach = 1 + sum((size - 1) * by for size, by in zip(shape, strides, strict=True))
        order = sorted(range(self.ndim), key=strides.__getitem__, reverse=True)
        outer, run = list(order), 1  # dimensions that count runs; elements of a run
        while outer and (strides[outer[-1]] == run or shape[outer[-1]] == 1):
            run *= shape[outer.pop()]
        if reach <= self.holes * count or run == 1:
            flat = self._filled([first], reach)
            return flat.as_strided(shape, strides)
        starts = np.array([first])
        for place in outer:
            starts = np.add.outer(starts, np.arange(shape[place]) * strides[place]).ravel()
        flat = self._filled(starts, run)
        back = sorted(range(self.ndim), key=order.__getitem__)
        return flat.view([shape[place] for place in order]).permute(back)

    def _filled(self, firsts: Starts, run: int) -> Tensor:
        """Return runs of elements, one after another, from their first elements in the tensor."""
        count = len(firsts) * run
        itemsize = self.dtype.itemsize
        if self._room is None or self._room.numel() < count:
            self._room = None  # before the next is there
            self._room = room(count, self.dtype)
        flat = self._room[:count]
        starts = np.asarray(firsts) * itemsize + self._start
        self._file.read_runs(starts, flat.view(torch.uint8).numpy().data)
        return flat


class StoredTensor(FileTensor):
    """A tensor whose numbers lie in a file unchanged."""

    @property
    def is_flat(self) -> bool:
        """Return whether its elements lie in the file in order, without gaps."""
        return self._view.is_contiguous()

    def fill(self, first: int, into: memoryview) -> None:
        """Read the bytes of elements of a flat tensor, in order from the first, without caching."""
        offset = int(self._view.storage_offset()) + first
        self._file.read_runs([self._start + offset * self._view.itemsize], into)


class Decoder(Protocol):
    """Decodes the bytes of a matrix into numbers."""

    @property
    def width(self) -> int:
        """The number of columns."""

    @property
    def unit(self) -> int:
        """Number of columns decoded together; (start, stop) of columns are multiples of it."""

    @property
    def costly(self) -> bool:
        """Return whether decoding takes so long that numbers are cached rather than decoded for
        every pass.
        """

    def values(self, rows: Rows, cols: Cols, into: Tensor) -> None:
        """Write the numbers of some rows and columns into a contiguous tensor."""

    def cells(self, rows: Rows, cols: Cols) -> Cells:
        """Return the cells of some numbers, each (rows, cols)."""


@dataclass(frozen=True)
class _Numbers:
    """A file of the numbers that a decoder makes, row after row."""

    make: Make
    of: Decoder
    dtype: torch.dtype

    def read_runs(self, starts: Starts, into: memoryview) -> None:
        made = torch.frombuffer(into, dtype=self.dtype).view(len(starts), -1)
        count = made.shape[1]
        width = self.of.width
        rows, cols = np.divmod(np.array(starts) // self.dtype.itemsize, width)
        col = int(cols[0])
        if col + count <= width and (cols == col).all():
            self._decode(rows, (col, col + count), made)
            return
        for row, at, part in zip(rows.tolist(), cols.tolist(), made, strict=True):
            every = np.arange(row, row - (-(at + count) // width))
            if at == 0 and count % width == 0:
                self._decode(every, (0, width), part.view(-1, width))
            else:
                whole = torch.empty(len(every), width, dtype=self.dtype)
                self._decode(every, (0, width), whole)
                part.copy_(whole.view(-1)[at : at + count])

    def _decode(self, rows: Rows, cols: Cols, made: Tensor) -> None:
        start, stop = cols
        first = start // self.of.unit * self.of.unit
        last = -(-stop // self.of.unit) * self.of.unit
        step = max(1, AT_ONCE // (last - first))
        is_cut = (first, last) != cols
        for at in range(0, len(rows), step):
            some = rows[at : at + step]
            part = made[at : at + step]
            wide = torch.empty(len(some), last - first, dtype=self.dtype) if is_cut else part
            self.make(some, (first, last), wide)
            if is_cut:
                part.copy_(wide[:, start - first : stop - first])


class DecodedTensor(FileTensor):
    """A tensor that is not stored as numbers: it is read from a file of decoded numbers."""

    holes = 1  # what lies between is decoded for nothing

    def __init__(self, format: str, decoder: Decoder, view: Tensor, stored: int = 0) -> None:
        """format: the dtype of its entry. view: on device `meta`, into rows, of the decoded dtype.
        stored: size up to which bytes of the file are cached.
        """
        self.format = format
        self._decoder = decoder
        # half: beside its bytes it takes no more memory than a larger matrix of BF16
        most = WHOLE // 2 - stored if decoder.costly else -1
        super().__init__(_Numbers(decoder.values, decoder, view.dtype), 0, view, most)
        self.is_near = stored <= WHOLE  # its bytes are in memory


class PackedTensor(DecodedTensor):
    """A quantised tensor, whose float32 numbers are levels of its format."""

    def cells(self, index: Index) -> Cells:
        """Return the cell of each number of a part."""
        find = self._decoder.cells
        view = self._view
        ends = len(find(np.zeros(1, np.intp), (0, self._decoder.unit)))
        if ends == 0:
            return ()

        def make(rows: Rows, cols: Cols, into: Tensor) -> None:
            made = find(rows, cols)
            into.copy_(torch.complex(*made) if ends == 2 else made[0])

        # both ends are one complex number, so that each cell is decoded once
        dtype = torch.complex64 if ends == 2 else torch.float32
        count = view.untyped_storage().nbytes() // view.itemsize
        same = torch.empty(count, dtype=dtype, device="meta").as_strided(
            view.shape, view.stride(), int(view.storage_offset())
        )
        found = FileTensor(_Numbers(make, self._decoder, dtype), 0, same, -1)[index]
        return (found.real, found.imag) if ends == 2 else (found,)


def room(count: int, dtype: torch.dtype) -> Tensor:
    """Allocate memory for count elements, in huge pages where a system has them. Its first use then
    takes a third of the time.
    """
    size = count * dtype.itemsize
    if size < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(count, dtype=dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype)


def stored_tensor(file: HeldFile, info: TensorInfo) -> StoredTensor:
    """Return the tensor of a file that an entry of its header names, read when it is used."""
    dtype: torch.dtype = getattr(torch, torch_name(info.dtype))
    if info.strides is None or info.parameters == 0:
        return StoredTensor(file, info.start, torch.empty(info.shape, dtype=dtype, device="meta"))
    reach = torch.empty((info.end - info.start) // dtype.itemsize, dtype=dtype, device="meta")
    return StoredTensor(file, info.start, reach.as_strided(info.shape, info.strides))
