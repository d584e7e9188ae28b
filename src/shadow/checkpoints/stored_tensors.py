"""Tensors in files, of which only the requested parts are read, each in few requests.

Such a tensor is a file and a view without data (on torch's device `meta`) that says where each
element lies. Rearranging its dimensions rearranges the view. A quantised tensor has a file of
decoded numbers instead, row after row, which a decoder makes on demand.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.checkpoints.held_files import STRIPE, WHOLE, HeldBytes, HeldFile, Readable
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.dtypes import torch_name

AHEAD = 2 << 20  # bytes that are read at once where rows are asked for; they stay in the caches
HUGE = 4 << 20  # bytes from which memory is asked for in huge pages
HOLES = 2  # a part is read with what lies between its elements where that is at most so many times

Starts = Sequence[int] | NDArray[np.int64]
Index = tuple[slice, ...]
Span = tuple[int, int]  # of one dimension: (start, stop)


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

    def __init__(self, file: Readable, start: int, view: Tensor, most: int | None = None) -> None:
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
        """The same bytes as another view, or the rearranged tensor if that is not a view."""
        view = rearrange(self._view)
        own = self._view.untyped_storage()
        if view.untyped_storage()._cdata != own._cdata:
            return rearrange(self.whole())
        other = copy(self)
        other._look_at(view)
        return other

    def whole(self) -> Tensor:
        """Read all of it, into its own memory."""
        whole = self[()]
        self._kept = self._all = self._room = None
        return whole

    def __getitem__(self, index: Index) -> Tensor:
        """A part. Raises ShadowError if the file no longer has it."""
        if self._all is not None:  # of a small tensor every time but the first
            return self._all[index]
        wanted = [(0, size) for size in self.shape]
        for dimension, part in enumerate(index):
            start, stop, _ = part.indices(self.shape[dimension])
            wanted[dimension] = (start, stop)
        if self._kept is None or not _are_within(wanted, self._kept[0]):
            spans = self._widened(wanted)
            self._kept = None  # its memory serves for the next
            part_read = self._read(spans)
            self._kept = (spans, part_read)
            if spans == [(0, size) for size in self.shape]:
                self._all = part_read
        spans, numbers = self._kept
        if spans == wanted:
            return numbers
        inside = []
        for (start, stop), (first, _) in zip(wanted, spans, strict=True):
            inside.append(slice(start - first, stop - first))
        return numbers[tuple(inside)]

    def _widened(self, wanted: list[Span]) -> list[Span]:
        """The spans that are read if a part is wanted: small tensors whole, more columns of
        large ones.
        """
        itemsize = self.dtype.itemsize
        every = [(0, size) for size in self.shape]
        if self.numel() * itemsize <= self._most:
            return every
        if self.is_near:
            return wanted
        dimensions = range(self.ndim)
        inner = min(dimensions, key=self._strides.__getitem__)
        outer = max(dimensions, key=self._strides.__getitem__)
        lines = 1
        for dimension, (start, stop) in enumerate(wanted):
            if dimension != inner:
                length = max(0, stop - start)
                lines *= length
        wider = list(wanted)
        width = STRIPE // max(1, lines * itemsize)
        wider[inner] = self._longer(wanted, inner, width)
        every[outer] = wider[outer]
        if wider == every:
            entries = self.numel() // self.shape[outer]
            count = AHEAD // (entries * itemsize)
            wider[outer] = self._longer(wider, outer, count)
        return wider

    def _longer(self, spans: list[Span], dimension: int, size: int) -> Span:
        """The span of a dimension, of at least this size as far as the tensor reaches."""
        start, stop = spans[dimension]
        longer = max(stop, start + size)
        return start, min(self.shape[dimension], longer)

    def _read(self, spans: list[Span]) -> Tensor:
        """Read a part: in one request if it has few holes, otherwise run by run."""
        shape = []
        for start, stop in spans:
            shape.append(max(0, stop - start))
        strides = self._strides
        count = math.prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=self.dtype)
        first = int(self._view.storage_offset())
        reach = 1
        for (start, _), size, stride in zip(spans, shape, strides, strict=True):
            first += start * stride
            reach += (size - 1) * stride
        order = sorted(range(self.ndim), key=strides.__getitem__, reverse=True)
        outer = list(order)  # dimensions that count runs
        run = 1  # elements of a run
        while outer:
            last = outer[-1]
            if strides[last] != run and shape[last] != 1:
                break
            run *= shape[last]
            outer.pop()
        if reach <= self.holes * count or run == 1:
            flat = self._filled([first], reach)
            return flat.as_strided(shape, strides)
        starts = np.array([first])
        for dimension in outer:
            steps = np.arange(shape[dimension]) * strides[dimension]
            starts = np.add.outer(starts, steps).ravel()
        flat = self._filled(starts, run)
        lengths = [shape[dimension] for dimension in order]
        stored = flat.view(lengths)
        back = sorted(range(self.ndim), key=order.__getitem__)
        return stored.permute(back)

    def _filled(self, firsts: Starts, run: int) -> Tensor:
        """Read runs of elements, one after another, from their first elements in the tensor."""
        count = len(firsts) * run
        itemsize = self.dtype.itemsize
        if self._room is None or self._room.numel() < count:
            self._room = None  # before the next is there
            self._room = room(count, self.dtype)
        flat = self._room[:count]
        offsets = np.asarray(firsts) * itemsize
        starts = offsets + self._start
        content = flat.view(torch.uint8).numpy()
        self._file.read_runs(starts, content.data)
        return flat


def _are_within(wanted: list[Span], spans: list[Span]) -> bool:
    """True if each span lies in the one of the same dimension."""
    for (start, stop), (first, last) in zip(wanted, spans, strict=True):
        if start < first or stop > last:
            return False
    return True


class StoredTensor(FileTensor):
    """A tensor whose numbers lie in a file unchanged."""

    @property
    def is_flat(self) -> bool:
        """True if its elements lie in the file in order, without gaps."""
        return self._view.is_contiguous()

    def in_parts(self) -> Self:
        """The same tensor, of which no more is read than what is requested."""
        other = copy(self)
        other.is_near = True
        other._most = -1
        return other

    def fill(self, first: int, into: memoryview) -> None:
        """Read the bytes of elements of a flat tensor, in order from the first, without caching."""
        offset = int(self._view.storage_offset()) + first
        start = self._start + offset * self._view.itemsize
        self._file.read_runs([start], into)


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
        """True if decoding takes so long that numbers are cached rather than decoded for
        every pass.
        """

    def values(self, rows: Rows, cols: Cols, into: Tensor) -> None:
        """Write the numbers of some rows and columns into a contiguous tensor."""

    def cells(self, rows: Rows, cols: Cols) -> Cells:
        """The cells of some numbers, each (rows, cols)."""


@dataclass(frozen=True)
class _Numbers(Readable):
    """A file of the numbers that a decoder makes, row after row."""

    make: Make
    of: Decoder
    dtype: torch.dtype

    def read_runs(self, starts: Starts, into: memoryview) -> None:
        flat = torch.frombuffer(into, dtype=self.dtype)
        numbers = flat.view(len(starts), -1)
        count = numbers.shape[1]
        width = self.of.width
        entries = np.array(starts) // self.dtype.itemsize
        rows, cols = np.divmod(entries, width)
        first = int(cols[0])
        last = first + count
        if last <= width and (cols == first).all():
            self._decode(rows, (first, last), numbers)
            return
        runs = zip(rows.tolist(), cols.tolist(), numbers, strict=True)
        for row, col, part in runs:
            stop = col + count
            end = row - (-stop // width)
            of_run = np.arange(row, end)
            every = (0, width)
            if col == 0 and count % width == 0:
                self._decode(of_run, every, part.view(-1, width))
            else:
                whole = torch.empty(len(of_run), width, dtype=self.dtype)
                self._decode(of_run, every, whole)
                flat = whole.view(-1)
                part.copy_(flat[col:stop])

    def _decode(self, rows: Rows, cols: Cols, into: Tensor) -> None:
        start, stop = cols
        unit = self.of.unit
        first = start // unit * unit
        last = -(-stop // unit) * unit
        step = max(1, AT_ONCE // (last - first))
        for row in range(0, len(rows), step):
            some = rows[row : row + step]
            part = into[row : row + step]
            if (first, last) == cols:
                self.make(some, cols, part)
                continue
            shape = (len(some), last - first)
            wide = torch.empty(shape, dtype=self.dtype)
            self.make(some, (first, last), wide)
            inside = slice(start - first, stop - first)
            part.copy_(wide[:, inside])


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
        file = _Numbers(decoder.values, decoder, view.dtype)
        super().__init__(file, 0, view, most)
        self.is_near = stored <= WHOLE  # its bytes are in memory


class PackedTensor(DecodedTensor):
    """A quantised tensor, whose float32 numbers are levels of its format."""

    def cells(self, index: Index) -> Cells:
        """The cell of each number of a part."""
        find = self._decoder.cells
        view = self._view
        row = np.zeros(1, np.intp)
        first = (0, self._decoder.unit)
        ends = len(find(row, first))
        if ends == 0:
            return ()

        has_both = ends == 2

        def make(rows: Rows, cols: Cols, into: Tensor) -> None:
            cells = find(rows, cols)
            into.copy_(torch.complex(*cells) if has_both else cells[0])

        # both ends are one complex number, so that each cell is decoded once
        dtype = torch.complex64 if has_both else torch.float32
        count = view.untyped_storage().nbytes() // view.itemsize
        storage = torch.empty(count, dtype=dtype, device="meta")
        offset = int(view.storage_offset())
        same = storage.as_strided(view.shape, view.stride(), offset)
        file = _Numbers(make, self._decoder, dtype)
        part = FileTensor(file, 0, same, -1)[index]
        if has_both:
            return part.real, part.imag
        return (part,)


def room(count: int, dtype: torch.dtype) -> Tensor:
    """Allocate memory for count elements, in huge pages where a system has them. Its first use then
    takes a third of the time.
    """
    size = count * dtype.itemsize
    if size < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(count, dtype=dtype)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, size, flags=flags)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype)


SHARED = 3 * WHOLE  # bytes of tensors that a thread holds for several readers
_LOCAL = threading.local()


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Within, read a tensor once in this thread, however often it is opened, as long as all fit
    into `SHARED`.
    """
    _LOCAL.contents = {}
    try:
        yield
    finally:
        _LOCAL.contents = None


def stored_tensor(file: Readable, info: TensorInfo) -> StoredTensor:
    """The tensor of a file that an entry of its header names, read when it is used."""
    contents: dict[object, HeldBytes] | None = getattr(_LOCAL, "contents", None)
    if contents is not None and isinstance(file, HeldFile):
        key = file.identity, info.start, info.end
        size = info.end - info.start
        used = sum(content.size for content in contents.values())
        if key not in contents and used + size <= SHARED:
            content = memoryview(bytearray(size))
            file.read(info.start, content)
            contents[key] = HeldBytes(content)
        if key in contents:
            file = contents[key]
            info = replace(info, start=0, end=size)
    dtype: torch.dtype = getattr(torch, torch_name(info.dtype))
    if info.strides is None or info.parameters == 0:
        view = torch.empty(info.shape, dtype=dtype, device="meta")
        return StoredTensor(file, info.start, view)
    count = (info.end - info.start) // dtype.itemsize
    reach = torch.empty(count, dtype=dtype, device="meta")
    view = reach.as_strided(info.shape, info.strides)
    return StoredTensor(file, info.start, view)
