"""Quantised matrices: their numbers are decoded from the bytes of a file where they are asked for.

A format is a decoder of whole rows, cut in columns. `PackedTensor` looks at what it decodes as
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
from shadow.checkpoints.stored_tensors import STRIPE, WHOLE, StoredTensor, room

Rows = NDArray[np.intp]  # numbers of rows; those of all leading dimensions are counted through
Cols = tuple[int, int]  # (start, stop)
Read = Callable[[TensorInfo], StoredTensor]
Shared = tuple[Callable[[Rows, Cols], Tensor | None], torch.dtype]
"""What entries share, of rows and columns, and its dtype."""

Cells = tuple[Tensor, Tensor]
"""The lower and the upper bounds of what is rounded to each entry."""

AT_ONCE = 1 << 18  # entries that are decoded together, about: what is made of them stays in caches


class Decoder(Protocol):
    """How the bytes of a quantised matrix make its numbers."""

    @property
    def unit(self) -> int:
        """Columns that are decoded together; (start, stop) of columns are multiples of it."""

    @property
    def costly(self) -> bool:
        """Whether it takes so long that numbers are kept rather than decoded for every pass."""

    def values(self, rows: Rows, cols: Cols, into: Tensor) -> None:
        """Numbers, put into a tensor (rows, cols) without gaps."""

    def steps(self, rows: Rows, cols: Cols) -> Tensor | None:
        """The distance of the two nearest numbers that each entry could be, float32, to be
        broadcast to (rows, cols); None for a format without such a grid, as a codebook.
        """

    def cells(self, rows: Rows, cols: Cols) -> Cells | None:
        """Between which numbers the format rounds to each entry, float32 (rows, cols); infinite
        where it clips. None for a format with even steps, and where it is not known.
        """


class Codebook:
    """The levels of a format, and between which numbers each is the nearest."""

    def __init__(self, levels: Iterable[float], reach: float = math.inf) -> None:
        """reach: the largest number that is rounded to a level; beyond the last is clipped."""
        ascending = torch.tensor(sorted(set(levels)), dtype=torch.float32)
        self._middles = (ascending[1:] + ascending[:-1]) / 2
        end = torch.tensor([reach])
        self._edges = torch.cat([-end, self._middles, end])

    def cells(self, levels: Tensor) -> Cells:
        """Of each level of some."""
        place = torch.bucketize(levels, self._middles)
        return self._edges[place], self._edges[place + 1]


class DecodedTensor:
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
        # columns of a large matrix that are kept: (which rows, columns, numbers)
        self._stripe: tuple[object, Cols, Tensor] | None = None
        sides = (view, view.T) if view.ndim == 2 else (view,)
        has_lines = any(_lines(side, width) is not None for side in sides)
        # half: beside its bytes it takes no more memory than a larger matrix of BF16
        most = WHOLE if not has_lines else WHOLE // 2 if decoder.costly else -1
        self._is_kept = self.numel() * self.dtype.itemsize + stored <= most

    @property
    def dtype(self) -> torch.dtype:
        return self._view.dtype

    @property
    def shape(self) -> torch.Size:
        return self._view.shape

    @property
    def ndim(self) -> int:
        return self._view.ndim

    def numel(self) -> int:
        return self._view.numel()

    def seen(self, rearrange: Callable[[Tensor], Tensor]) -> Self | Tensor:
        """The same bytes as another view; the rearranged tensor itself where that is no view."""
        view = rearrange(self._view)
        if view.untyped_storage()._cdata == self._view.untyped_storage()._cdata:
            return type(self)(self.format, self._decoder, view, self._width, self._stored)
        return rearrange(self.whole())

    def whole(self) -> Tensor:
        """All of it, in memory of its own."""
        return self._made(self._view, None)

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor:
        """A part. Raises ShadowError where the file no longer has it."""
        if self._is_kept and self._all is None:
            self._all = self.whole()
        if self._all is not None:
            return self._all[index]
        view = self._view[index]
        lines = _lines(view, self._width)
        if (
            self._stored <= WHOLE  # then its bytes are in memory
            or lines is None
            or view.numel() == 0
            or view.shape[-1] == self._width
            or view.ndim != 2
        ):
            self._stripe = None  # which lies in the same memory
            return self._made(view, None, reuse=True)
        rows, (start, stop) = lines
        which = view.stride(), len(rows), int(view.storage_offset()) // self._width
        if (
            self._stripe is None
            or self._stripe[0] != which
            or not self._stripe[1][0] <= start <= stop <= self._stripe[1][1]
        ):
            width = STRIPE // (self.dtype.itemsize * max(1, len(rows)))
            end = min(self._width, max(stop, start + width))
            self._stripe = which, (start, end), self._decoded(rows, (start, end), None, reuse=True)
        _, (first, _), kept = self._stripe
        return kept[:, start - first : stop - first]

    def _made(self, view: Tensor, shared: Shared | None, *, reuse: bool = False) -> Tensor:
        """The numbers of every element of a view, or what is shared by them.

        reuse: in the memory of the last that was made so.
        """
        if view.numel() == 0:
            return torch.empty(view.shape, dtype=shared[1] if shared else self.dtype)
        if (lines := _lines(view, self._width)) is not None:
            return self._decoded(*lines, shared, reuse=reuse).view(view.shape)
        if view.ndim == 2 and _lines(view.T, self._width) is not None:
            return self._made(view.T, shared, reuse=reuse).T
        count = view.untyped_storage().nbytes() // self.dtype.itemsize // self._width
        every = self._decoded(np.arange(count), (0, self._width), shared, reuse=reuse)
        return every.as_strided(view.shape, view.stride(), int(view.storage_offset()))

    def _decoded(self, rows: Rows, cols: Cols, shared: Shared | None, *, reuse: bool) -> Tensor:
        """(rows, cols), some rows after the others."""
        unit, (start, stop) = self._decoder.unit, cols
        wide = start // unit * unit, -(-stop // unit) * unit
        count = len(rows) * (stop - start)
        if not reuse:
            made = room(count, shared[1] if shared else self.dtype)
        else:
            if self._room is None or self._room.numel() < count:
                self._room = None  # before the next is there
                self._room = room(count, self.dtype)
            made = self._room[:count]
        made = made.view(len(rows), stop - start)
        step = max(1, AT_ONCE // (wide[1] - wide[0]))
        for first in range(0, len(rows), step):
            some, into = rows[first : first + step], made[first : first + step]
            if shared is not None:
                part = shared[0](some, wide)
                assert part is not None, "asked before"
                part = part.expand(len(part), wide[1] - wide[0])
            elif wide == cols:
                self._decoder.values(some, wide, into)
                continue
            else:
                part = torch.empty(len(some), wide[1] - wide[0], dtype=self.dtype)
                self._decoder.values(some, wide, part)
            into.copy_(part[:, start - wide[0] : stop - wide[0]])
        return made


class PackedTensor(DecodedTensor):
    """A quantised tensor: its numbers, float32, lie on the grid of its format."""

    def steps(self, index: tuple[slice, ...]) -> Tensor | None:
        """The step of the format's grid at each entry of a part, as `Decoder.steps`; None where
        the format has no such grid.
        """
        if self._decoder.steps(np.zeros(1, np.intp), (0, self._decoder.unit)) is None:
            return None
        return self._made(self._view[index], (self._decoder.steps, torch.float32))

    def cells(self, index: tuple[slice, ...]) -> Cells | None:
        """The cell of each entry of a part, as `Decoder.cells`."""
        if self._ends(np.zeros(1, np.intp), (0, self._decoder.unit)) is None:
            return None
        ends = self._made(self._view[index], (self._ends, torch.complex64))
        return ends.real, ends.imag

    def _ends(self, rows: Rows, cols: Cols) -> Tensor | None:
        """Both ends of cells as one complex number, so that each cell is decoded once."""
        cells = self._decoder.cells(rows, cols)
        return None if cells is None else torch.complex(*cells)


def _lines(view: Tensor, width: int) -> tuple[Rows, Cols] | None:
    """The row in which each line of a view lies, and its columns; None where lines are no parts of
    rows.
    """
    *lead, last = view.shape
    *steps, along = view.stride()
    row, col = divmod(int(view.storage_offset()), width)
    if (last > 1 and along != 1) or col + last > width:
        return None
    rows = np.array(row)
    for size, by in zip(lead, steps, strict=True):
        if size > 1 and by % width:
            return None
        rows = np.add.outer(rows, np.arange(size) * (by // width))
    return rows.reshape(-1), (col, col + last)


def run_of(rows: Rows) -> slice | None:
    """Rows that follow one another, as a slice; None for others."""
    first, last = int(rows[0]), int(rows[-1])
    in_order = last - first + 1 == len(rows) and bool((rows[1:] > rows[:-1]).all())
    return slice(first, last + 1) if in_order else None


def take(raw: StoredTensor | Tensor, rows: Rows, cols: Cols) -> Tensor:
    """These rows of a matrix, cut in columns: in one request where they lie close together."""
    columns = slice(*cols)
    if (run := run_of(rows)) is not None:
        return raw[run, columns]
    first, last = int(rows.min()), int(rows.max())
    if last - first < 2 * len(rows):
        part = raw[first : last + 1, columns]
        return part.index_select(0, torch.from_numpy(rows - first))
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    return torch.cat([raw[run[0] : run[-1] + 1, columns].clone() for run in runs])


class Moved:
    """Floats whose rows are stored in another order, or with a number added to them."""

    unit, costly = 1, False

    def __init__(self, raw: StoredTensor, order: Callable[[Rows], Rows], added: float) -> None:
        """order: where each row is stored."""
        self._raw = raw
        self._order = order
        self._added = added

    def values(self, rows: Rows, cols: Cols, into: Tensor) -> None:
        into.copy_(take(self._raw, self._order(rows), cols))
        if self._added:
            into.sub_(self._added)

    def steps(self, rows: Rows, cols: Cols) -> None:
        """Floats have no steps of one size."""

    cells = steps
