"""Matrices that are not tensors in memory: stored in a file, quantised, base plus low-rank update,
or rounded.

All are read block by block, by `matrix[index]`; none is ever formed whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.dtypes import FloatFormat
from shadow.spectra.costs import FACTOR_BLOCK


class InFile(Protocol):
    """A matrix in a file, (rows, cols) or grouped, of which only requested parts are read.

    A part must be used before the next is requested, and left unchanged.
    """

    @property
    def shape(self) -> torch.Size: ...

    @property
    def ndim(self) -> int: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def numel(self) -> int: ...

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor: ...


class Stored(InFile, Protocol):
    """A matrix whose numbers lie in a file unchanged."""

    @property
    def is_flat(self) -> bool:
        """True if its entries lie in the file in order, without gaps."""

    def fill(self, first: int, into: memoryview) -> None:
        """Read the bytes of entries of a flat matrix, in order from the first one on, until `into`
        is full.
        """


class Quantised(InFile, Protocol):
    """A quantised matrix of a file, decoded to float32 part by part. Its numbers lie on the grid of
    its format, which is not that of floats.
    """

    format: str

    def cells(self, index: tuple[slice, ...]) -> tuple[Tensor, ...]:
        """The interval that the format rounds to each entry of the part at index, float32: (the
        distance of neighbours) on an even grid; (lower bound, upper bound) of a codebook, infinite
        where it clips; () where it is unknown.
        """


class Selected:
    """Some rows of a matrix, in any order; consecutive rows are read together."""

    ndim = 2

    def __init__(self, matrix: Matrix, rows: NDArray[np.intp]) -> None:
        _, cols = matrix.shape
        self._matrix = matrix
        self._rows = rows
        self.shape = torch.Size((len(rows), cols))
        self.dtype = matrix.dtype

    def numel(self) -> int:
        return self.shape.numel()

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor:
        rows = self._rows[index[0]]
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        parts = []
        for run in np.split(rows, breaks):
            first = int(run[0])
            last = int(run[-1])
            in_run = slice(first, last + 1)
            part = self._matrix[(in_run, *index[1:])]
            parts.append(part.clone())
        return torch.cat(parts)


class Transposed:
    """The transpose of a matrix (rows, cols)."""

    ndim = 2

    def __init__(self, matrix: Matrix) -> None:
        rows, cols = matrix.shape
        self._matrix = matrix
        self.shape = torch.Size((cols, rows))
        self.dtype = matrix.dtype

    def numel(self) -> int:
        return self.shape.numel()

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor:
        rows = index[0]
        cols = slice(None)
        if len(index) == 2:
            cols = index[1]
        return self._matrix[(cols, rows)].T


# `isinstance` with a protocol takes 0.1 ms in Python 3.11, several times for each tensor


def is_stored(matrix: object) -> TypeGuard[Stored]:
    """True if the numbers of a matrix lie in a file unchanged."""
    return hasattr(matrix, "fill")


def is_quantised(matrix: object) -> TypeGuard[Quantised]:
    """True if a matrix is quantised, and decoded part by part."""
    return hasattr(matrix, "cells")


@dataclass(frozen=True)
class Updated:
    """base + scaling * left @ right, in float64: a base with its LoRA update."""

    base: Tensor | InFile  # (rows, cols), or (groups, rows / groups, cols)
    left: Tensor  # (rows, r), or (groups, rows / groups, r) where base is grouped
    right: Tensor  # (r, cols)
    scaling: float  # alpha / r, or alpha / sqrt(r)
    dtype = torch.float64

    @property
    def shape(self) -> torch.Size:
        return self.base.shape

    @property
    def ndim(self) -> int:
        return self.base.ndim

    def numel(self) -> int:
        return self.base.numel()

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor:
        of_left = index
        right = self.right
        # only the last of as many indices as there are dimensions is one of columns
        if len(index) == self.ndim:
            of_left = index[:-1]
            right = right[:, index[-1]]
        left = self.left[of_left]
        update = left.double() @ right.double()
        update *= self.scaling
        return update.add_(self.base[index])  # which is exact in float64

    def singular_values(self) -> Tensor:
        """The update's singular values, float64 (min(rows, cols),), descending, by two QRs.

        left = Q_l R_l and rightᵀ = Q_r R_r, so that left @ right has the singular values of R_l
        R_rᵀ and zeros.
        """
        rank, cols = self.right.shape
        tall = self.left.reshape(-1, rank)
        r_left = _triangle(tall)
        r_right = _triangle(self.right.T)
        sigma = torch.linalg.svdvals(r_left @ r_right.T)
        sigma = sigma * abs(self.scaling)
        side = min(len(tall), cols)
        padded = torch.zeros(side, dtype=torch.float64)
        padded[: len(sigma)] = sigma[:side]
        return padded


def _triangle(tall: Tensor) -> Tensor:
    """R of a QR decomposition, in float64, part of the rows after part if there are many."""
    rank = tall.shape[1]
    r = tall[:0].double()
    step = max(FACTOR_BLOCK // rank, 4 * rank)
    for part in torch.split(tall, step):
        stacked = torch.cat([r, part.double()])
        _, r = torch.linalg.qr(stacked, mode="r")
    return r


Matrix = Tensor | InFile | Updated
EXPONENT = 0x7FF << 52  # the bits of a float64 that are its power of two


def torch_dtype(grid: FloatFormat) -> torch.dtype:
    """The dtype of torch with the numbers of a stored format (grid)."""
    dtype: torch.dtype = getattr(torch, grid.torch_name)
    return dtype


def half_ulp(values: Tensor, grid: FloatFormat) -> Tensor:
    """Half a unit in the last place of a stored format (grid), at each of the float64 values."""
    bits = values.view(torch.int64) & EXPONENT
    binades = bits.view(torch.float64)
    binades.clamp_min_(2.0**grid.min_exponent)
    binades *= 2.0 ** -(grid.mantissa_bits + 1)
    return binades
