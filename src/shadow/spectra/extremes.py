"""What one matrix looks like, entry by entry, in one pass: not finite, zero, constant rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from shadow.spectra.lazy import InFile, is_stored
from shadow.spectra.parts import INTEGERS, PART, SAFE
from shadow.spectra.spectrum import Workspace


@dataclass(frozen=True)
class Extremes:
    """What was seen of the entries of a matrix."""

    entries: int
    nan: int
    infinite: int
    first: float
    """The first entry; where `is_constant`, every one."""
    is_constant: bool
    energy: float
    """The sum of squares of the rows that are finite."""
    zero_rows: tuple[int, ...] = ()
    """Of a matrix that is not constant."""
    constant_rows: tuple[int, ...] = ()
    """Rows of one value other than 0."""


def looked_at(matrix: InFile | torch.Tensor, space: Workspace) -> Extremes:
    """One pass over a matrix (rows, cols), NaN and infinity included."""
    with np.errstate(over="ignore", invalid="ignore"):
        return _looked_at(matrix, space)


def _looked_at(matrix: InFile | torch.Tensor, space: Workspace) -> Extremes:
    nan = infinite = row = 0
    energy, first, is_constant = 0.0, None, True
    flat: list[tuple[int, float]] = []  # rows of one value
    for block in _blocks(matrix, space):
        squares = np.vecdot(block, block)
        total = float(squares.sum(dtype=np.float64))
        first = float(block[0, 0]) if first is None else first
        # squares of float32 may overflow, or vanish: such rows are looked at again
        if not (squares.min() > SAFE[0] and squares.max() < SAFE[1]):
            odd = ~((squares > SAFE[0]) & (squares < SAFE[1]))
            again = block[odd].astype(np.float64)
            nan += int(np.isnan(again).sum())
            infinite += int(np.isinf(again).sum())
            finite = again[np.isfinite(again).all(axis=1)]
            total = float(squares[~odd].sum(dtype=np.float64) + np.vecdot(finite, finite).sum())
        energy += total
        ends = block[:, 0] == block[:, -1]
        here = [at for at in np.flatnonzero(ends) if (block[at] == block[at, 0]).all()]
        if is_constant:
            is_constant = len(here) == len(block) and bool((block[:, 0] == first).all())
        flat += [(row + int(at), float(block[at, 0])) for at in here if block.shape[1] > 1]
        row += len(block)
    some = [] if is_constant else flat
    return Extremes(
        matrix.numel(), nan, infinite, first or 0.0, is_constant, energy,
        tuple(at for at, value in some if not value), tuple(at for at, value in some if value),
    )  # fmt: skip


def _blocks(matrix: InFile | torch.Tensor, space: Workspace) -> Iterator[NDArray[np.floating]]:
    """Whole rows, about PART entries at a time, in float32, or in float64 as they are stored."""
    rows, cols = matrix.shape
    dtype = torch.float64 if matrix.dtype == torch.float64 else torch.float32
    step = max(1, PART // max(1, cols))
    shape = 0, 0
    for start in range(0, rows, step):
        if shape != (shape := (min(step, rows - start), cols)):
            raw = space.take("raw", shape, matrix.dtype)
            block = space.take("block", shape, dtype)
            numbers = block.numpy()
            stored = raw.view(-1).view(INTEGERS[raw.itemsize]).numpy().view(np.uint8).data
        if is_stored(matrix) and matrix.is_flat:
            matrix.fill(start * cols, stored)
            block.copy_(raw)
        else:
            block.copy_(matrix[start : start + step,])
        yield numbers
