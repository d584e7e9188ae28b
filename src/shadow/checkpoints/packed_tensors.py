"""Tensors whose numbers are decoded from the bytes of a file where they are asked for.

A decoder makes whole rows, cut in columns. These make up a file of their own, of which
`DecodedTensor` reads parts as `StoredTensor` does of a real one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.stored_tensors import WHOLE, FileTensor, StoredTensor

Rows = NDArray[np.intp]  # numbers of rows; those of all leading dimensions are counted through
Cols = tuple[int, int]  # (start, stop)
Read = Callable[[TensorInfo], StoredTensor]
Make = Callable[[Rows, Cols, Tensor], object]
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


class _Numbers:
    """A file of what a decoder makes, row after row."""

    def __init__(self, make: Make, unit: int, width: int, dtype: torch.dtype) -> None:
        self._make, self._unit, self._width, self._dtype = make, unit, width, dtype

    def read_runs(self, starts: Sequence[int] | NDArray[np.int64], into: memoryview) -> None:
        made = torch.frombuffer(into, dtype=self._dtype).view(len(starts), -1)
        count, width = made.shape[1], self._width
        rows, cols = np.divmod(np.array(starts) // self._dtype.itemsize, width)
        col = int(cols[0])
        if col == 0 and count % width == 0:
            every = np.add.outer(rows, np.arange(count // width)).ravel()
            self._decode(every, (0, width), made.view(-1, width))
        elif col + count <= width and (cols == col).all():
            self._decode(rows, (col, col + count), made)
        else:
            for row, at, part in zip(rows.tolist(), cols.tolist(), made, strict=True):
                whole = torch.empty(-(-(at + count) // width), width, dtype=self._dtype)
                self._decode(np.arange(row, row + len(whole)), (0, width), whole)
                part.copy_(whole.view(-1)[at : at + count])

    def _decode(self, rows: Rows, cols: Cols, made: Tensor) -> None:
        start, stop = cols
        first, last = start // self._unit * self._unit, -(-stop // self._unit) * self._unit
        step = max(1, AT_ONCE // (last - first))
        for at in range(0, len(rows), step):
            some, part = rows[at : at + step], made[at : at + step]
            if (first, last) == cols:
                self._make(some, cols, part)
            else:
                wide = torch.empty(len(some), last - first, dtype=self._dtype)
                self._make(some, (first, last), wide)
                part.copy_(wide[:, start - first : stop - first])


class DecodedTensor(FileTensor):
    """A tensor of a file that is not stored as it is: it is read from a file of its numbers."""

    holes = 1  # what lies between is decoded for nothing

    def __init__(
        self, format: str, decoder: Decoder, view: Tensor, width: int, stored: int = 0
    ) -> None:
        """format: what the dtype of its entry says. view: of device `meta`, into rows of width, of
        the dtype that is decoded. stored: bytes that are kept of the file while they fit.
        """
        self.format = format
        self._decoder, self._width = decoder, width
        numbers = _Numbers(decoder.values, decoder.unit, width, view.dtype)
        # half: beside its bytes it takes no more memory than a larger matrix of BF16
        super().__init__(numbers, 0, view, WHOLE // 2 - stored if decoder.costly else -1)
        self.is_near = stored <= WHOLE  # its bytes are in memory


class PackedTensor(DecodedTensor):
    """A quantised tensor: its numbers, float32, are levels of its format."""

    def cells(self, index: tuple[slice, ...]) -> Cells:
        """The cell of each number of a part."""
        find, unit, view = self._decoder.cells, self._decoder.unit, self._view
        ends = len(find(np.zeros(1, np.intp), (0, unit)))
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
        found = FileTensor(_Numbers(make, unit, self._width, dtype), 0, same, -1)[index]
        return (found.real, found.imag) if ends == 2 else (found,)


def run_of(rows: Rows) -> slice | None:
    """Rows that follow one another, as a slice; None for others."""
    first, stop = int(rows[0]), int(rows[-1]) + 1
    is_run = stop - first == len(rows) and bool((rows[1:] > rows[:-1]).all())
    return slice(first, stop) if is_run else None


def take(raw: StoredTensor | Tensor, rows: Rows, cols: Cols) -> Tensor:
    """These rows of a matrix, cut in columns: of others than a run, all between are read."""
    if (run := run_of(rows)) is not None:
        return raw[run, slice(*cols)]
    first = int(rows.min())
    part = raw[first : int(rows.max()) + 1, slice(*cols)]
    return part.index_select(0, torch.from_numpy(rows - first))
