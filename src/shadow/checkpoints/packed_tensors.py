"""Tensors whose numbers are decoded from the bytes of a file where they are asked for.

A decoder makes whole rows, cut in columns. `DecodedTensor` looks at what it decodes as
`StoredTensor` does at what it reads: as a view, which may be rearranged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.stored_tensors import STRIPE, WHOLE, StoredTensor, Viewed, room

Rows = NDArray[np.intp]  # numbers of rows; those of all leading dimensions are counted through
Cols = tuple[int, int]  # (start, stop)
Read = Callable[[TensorInfo], StoredTensor]
Located = tuple[Rows, Cols, Callable[[Tensor], Tensor]]
"""What holds a view: rows, columns, and how the view lies in these, one row after the other."""
Cells = tuple[Tensor, ...]
"""What a format rounds to each number, float32: (the distance of the two nearest levels) of even
levels; (lower bound, upper bound) of a codebook, infinite where it clips; () where it is unknown.
"""

AT_ONCE = 1 << 18  # entries that are decoded together, about: what is made of them stays in caches


class Decoder(Protocol):
    """How the bytes of a matrix make its numbers."""

    @property
    def unit(self) -> int:
        """Columns that are decoded together; (start, stop) of columns are multiples of it."""

    @property
    def costly(self) -> bool:
        """Whether it takes so long that numbers are kept rather than decoded for every pass."""

    def values(self, rows: Rows, cols: Cols, into: Tensor) -> None:
        """Put numbers into a tensor (rows, cols) without gaps."""

    def cells(self, rows: Rows, cols: Cols) -> Cells:
        """The cells of some numbers, each (rows, cols)."""


class Codebook:
    """The levels of a format, and between which numbers each is the nearest."""

    def __init__(self, levels: Iterable[float], reach: float = math.inf) -> None:
        """reach: the largest number that is rounded to a level; beyond the last is clipped."""
        ascending = torch.tensor(sorted(set(levels)), dtype=torch.float32)
        self._middles = (ascending[1:] + ascending[:-1]) / 2
        end = torch.tensor([reach])
        self._edges = torch.cat([-end, self._middles, end])

    def cells(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """The bounds of each of some levels."""
        place = torch.bucketize(levels, self._middles)
        return self._edges[place], self._edges[place + 1]


class DecodedTensor(Viewed):
    """A tensor of a file that is not stored as it is, or a rearranged part of one, read by
    `tensor[slices]`. For one thread.

    What an index returns must be used before the next one, and left as it is.
    """

    def __init__(
        self, format: str, decoder: Decoder, view: Tensor, width: int, stored: int = 0
    ) -> None:
        """format: what the dtype of its entry says. view: of device `meta`, into rows of width, of
        the dtype that is decoded. stored: bytes that are kept of the file while they fit.
        """
        self.format = format
        self._decoder = decoder
        self._view = view
        self._width = width
        self._stored = stored
        self._all: Tensor | None = None
        self._room: Tensor | None = None  # what is decoded for an index lies in it
        self._kept: tuple[Rows, Cols, Tensor] | None = None  # of the last index
        # half: beside its bytes it takes no more memory than a larger matrix of BF16
        most = WHOLE // 2 if decoder.costly else -1
        most = WHOLE if _lines(view, width) is None else most
        self._is_kept = self.numel() * self.dtype.itemsize + stored <= most

    def seen(self, rearrange: Callable[[Tensor], Tensor]) -> Self | Tensor:
        """The same bytes as another view; the rearranged tensor itself where that is no view."""
        view = rearrange(self._view)
        if view.untyped_storage()._cdata == self._view.untyped_storage()._cdata:
            return type(self)(self.format, self._decoder, view, self._width, self._stored)
        return rearrange(self.whole())

    def whole(self) -> Tensor:
        """All of it, in memory of its own."""
        if self.numel() == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        rows, cols, shaped = self._located(self._view)
        return shaped(self._decoded(rows, cols, room(len(rows) * (cols[1] - cols[0]), self.dtype)))

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor:
        """A part. Raises ShadowError where the file no longer has it."""
        if self._is_kept and self._all is None:
            self._all = self.whole()
        if self._all is not None:
            return self._all[index]
        view = self._view[index]
        if view.numel() == 0:
            return torch.empty(view.shape, dtype=self.dtype)
        rows, (start, stop), shaped = self._located(view)
        if (
            self._kept is None
            or not self._kept[1][0] <= start <= stop <= self._kept[1][1]
            or not np.array_equal(self._kept[0], rows)
        ):
            self._kept = None  # its memory serves for the next
            end = stop
            if self._stored > WHOLE:  # the bytes are not in memory: more columns come at once
                width = STRIPE // (self.dtype.itemsize * len(rows))
                end = min(self._width, max(stop, start + width))
            count = len(rows) * (end - start)
            if self._room is None or self._room.numel() < count:
                self._room = None  # before the next is there
                self._room = room(count, self.dtype)
            cols = start, end
            self._kept = rows, cols, self._decoded(rows, cols, self._room[:count])
        _, (first, _), kept = self._kept
        return shaped(kept[:, start - first : stop - first])

    def _located(self, view: Tensor) -> Located:
        if (found := _lines(view, self._width)) is not None:
            return found
        rows = np.arange(view.untyped_storage().nbytes() // view.itemsize // self._width)
        place = view.shape, view.stride(), int(view.storage_offset())
        return rows, (0, self._width), lambda made: made.as_strided(*place)

    def _decoded(self, rows: Rows, cols: Cols, into: Tensor) -> Tensor:
        """(rows, cols), some rows after the others, in that memory."""
        made, (start, stop) = into.view(len(rows), -1), cols
        first, last = _wide(cols, self._decoder.unit)
        step = max(1, AT_ONCE // (last - first))
        for at in range(0, len(rows), step):
            some, part = rows[at : at + step], made[at : at + step]
            if (first, last) == cols:
                self._decoder.values(some, cols, part)
            else:
                wide = torch.empty(len(some), last - first, dtype=self.dtype)
                self._decoder.values(some, (first, last), wide)
                part.copy_(wide[:, start - first : stop - first])
        return made


class PackedTensor(DecodedTensor):
    """A quantised tensor: its numbers, float32, are levels of its format."""

    def cells(self, index: tuple[slice, ...]) -> Cells:
        """The cell of each number of a part."""
        rows, cols, shaped = self._located(self._view[index])
        first, last = _wide(cols, self._decoder.unit)
        ends = self._decoder.cells(rows, (first, last))
        return tuple(shaped(end[:, cols[0] - first : cols[1] - first]) for end in ends)


def _lines(view: Tensor, width: int) -> Located | None:
    """Where the elements of a view lie; None where they are no parts of rows."""
    row, col = divmod(int(view.storage_offset()), width)
    sizes, strides = view.shape, view.stride()
    long = [at for at, size in enumerate(sizes) if size != 1]
    along = [at for at in long if strides[at] % width]
    down = sorted((at for at in long if strides[at] % width == 0), key=lambda at: -strides[at])
    stop = col + math.prod(sizes[at] for at in along)
    if len(along) > 1 or stop > width or any(strides[at] != 1 for at in along):
        return None
    rows = np.array(row)
    for at in down:
        rows = np.add.outer(rows, np.arange(sizes[at]) * (strides[at] // width))
    order = [*down, *along]
    lengths, back = [sizes[at] for at in order], sorted(range(len(order)), key=order.__getitem__)
    return rows.reshape(-1), (col, stop), lambda made: made.view(lengths).permute(back).view(sizes)


def _wide(cols: Cols, unit: int) -> Cols:
    """The columns that are decoded for some."""
    return cols[0] // unit * unit, -(-cols[1] // unit) * unit


def run_of(rows: Rows) -> slice | None:
    """Rows that follow one another, as a slice; None for others."""
    first = int(rows[0])
    is_run = np.array_equal(rows, np.arange(first, first + len(rows)))
    return slice(first, first + len(rows)) if is_run else None


def take(raw: StoredTensor | Tensor, rows: Rows, cols: Cols) -> Tensor:
    """These rows of a matrix, cut in columns: of others than a run, all between are read."""
    if (run := run_of(rows)) is not None:
        return raw[run, slice(*cols)]
    first = int(rows.min())
    part = raw[first : int(rows.max()) + 1, slice(*cols)]
    return part.index_select(0, torch.from_numpy(rows - first))
