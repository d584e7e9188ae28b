"""Matrices that are no tensor in memory: stored in a file, scaled 8-bit floats, base plus low-rank
update, a rounded one.

All are read block by block, by `matrix[index]`; none is ever formed whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from shadow.dtypes import FloatFormat

# entries of a factor of an update that are decomposed at a time: 32 MiB in float64
FACTOR_BLOCK = 1 << 22


class Stored(Protocol):
    """A matrix in a file, (rows, cols) or grouped, of which the parts that are asked for are read.

    A part is used before the next is asked for, and left as it is.
    """

    @property
    def shape(self) -> torch.Size: ...

    @property
    def ndim(self) -> int: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def numel(self) -> int: ...

    @property
    def is_flat(self) -> bool:
        """Whether its entries lie in the file in order, without gaps."""
        ...

    def fill(self, first: int, into: memoryview) -> None:
        """Read the bytes of entries, in order from that one on, of a flat matrix, and no others."""
        ...

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor: ...


class _LikeAnother:
    """A matrix with the shape of one that it is made from."""

    @property
    def _like(self) -> Matrix:
        raise NotImplementedError

    @property
    def shape(self) -> torch.Size:
        return self._like.shape

    @property
    def ndim(self) -> int:
        return self._like.ndim

    def numel(self) -> int:
        return self._like.numel()


@dataclass(frozen=True)
class BlockScaled(_LikeAnother):
    """A matrix of 8-bit floats with a scale for each block of it.

    W_ij = raw_ij * scales_(i // block[0], j // block[1]), in float32: the layout of DeepSeek-V3's
    `weight_scale_inv`. The last block of a row or column may be cut. It is seen as (rows, cols), or
    as (groups, rows / groups, cols).
    """

    raw: Tensor | Stored  # (rows, cols), 8-bit floats
    scales: Tensor  # one for each block
    block: tuple[int, int]  # rows and columns that share one scale
    first_row: int = 0  # of the stored tensor
    groups: int = 0  # 0 where it is seen as (rows, cols)

    @property
    def _like(self) -> Tensor | Stored:
        return self.raw

    @property
    def shape(self) -> torch.Size:
        rows, cols = self.raw.shape
        if not self.groups:
            return self.raw.shape
        return torch.Size((self.groups, rows // self.groups, cols))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor:
        *groups, rows, cols = _spans(index, self.shape)
        if not groups:
            return self._part(rows, cols)
        each = self.shape[1]
        starts = range(groups[0][0] * each, groups[0][1] * each, each)
        parts = [self._part((start + rows[0], start + rows[1]), cols) for start in starts]
        return torch.stack(parts)

    def _part(self, rows: tuple[int, int], cols: tuple[int, int]) -> Tensor:
        by_row = (torch.arange(*rows) + self.first_row) // self.block[0]
        by_col = torch.arange(*cols) // self.block[1]
        part = self.raw[rows[0] : rows[1], cols[0] : cols[1]].float()
        return part.mul_(self.scales.float()[by_row][:, by_col])


@dataclass(frozen=True)
class Updated(_LikeAnother):
    """base + scaling * left @ right, in float64: a base with its LoRA update."""

    base: Tensor | Stored | BlockScaled  # (rows, cols), or (groups, rows / groups, cols)
    left: Tensor  # (rows, r), or (groups, rows / groups, r) where base is grouped
    right: Tensor  # (r, cols)
    scaling: float  # alpha / r, or alpha / sqrt(r)

    @property
    def _like(self) -> Matrix:
        return self.base

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor:
        # only the last of as many indices as there are dimensions is one of columns
        whole = len(index) == self.ndim
        left = self.left[index[:-1] if whole else index].double()
        right = (self.right[:, index[-1]] if whole else self.right).double()
        update = (left @ right).mul_(self.scaling)
        return update.add_(self.base[index])  # which is exact in float64

    def singular_values(self) -> Tensor:
        """The update's singular values, float64 (min(rows, cols),), descending, by two QRs.

        left = Q_l R_l and rightᵀ = Q_r R_r, so that left @ right has the singular values of R_l
        R_rᵀ and zeros.
        """
        tall = self.left.reshape(-1, self.left.shape[-1])
        product = _triangle(tall) @ _triangle(self.right.T).T
        sigma = torch.linalg.svdvals(product) * abs(self.scaling)
        padded = torch.zeros(min(len(tall), self.right.shape[1]), dtype=torch.float64)
        padded[: len(sigma)] = sigma[: len(padded)]
        return padded


def _triangle(tall: Tensor) -> Tensor:
    """R of a QR decomposition, float64, part of the rows after part where there are many."""
    r, step = tall[:0].double(), max(FACTOR_BLOCK // tall.shape[1], 4 * tall.shape[1])
    for part in torch.split(tall, step):
        _, r = torch.linalg.qr(torch.cat([r, part.double()]), mode="r")
    return r


@dataclass(frozen=True)
class Rounded(_LikeAnother):
    """A matrix rounded to a stored format, as an F32 base is that training loads in BF16."""

    matrix: Matrix  # (rows, cols), or grouped
    grid: FloatFormat

    @property
    def _like(self) -> Matrix:
        return self.matrix

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor:
        return self.matrix[index].to(getattr(torch, self.grid.torch_name))


Matrix = Tensor | Stored | BlockScaled | Updated | Rounded


def _spans(index: tuple[slice, ...], shape: torch.Size) -> list[tuple[int, int]]:
    """(start, stop) of what an index of `blocks` takes in each dimension."""
    slices = [*index, *(slice(None),) * (len(shape) - len(index))]
    return [part.indices(size)[:2] for part, size in zip(slices, shape, strict=True)]
