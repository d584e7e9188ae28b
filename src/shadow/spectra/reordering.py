"""Whether a matrix has the rows or columns of another in a different order, as a permutation of
neurons leaves it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shadow.spectra.measurement import Order
from shadow.spectra.spectrum import Sides, blocks

FAR = 0.5  # |cosine| of base and tuned matrix, below which another order is looked for
SAMPLED = 32  # rows and columns of the tuned matrix that are looked for in the base
FEW = 16  # rows or columns below which chance finds likenesses
# rows or columns above which none is looked for: neurons are fewer, and products with the sampled
# ones would take more memory than blocks do
LONGEST = 1 << 17
# |cosine| of a row and its likeness: after noise of a tenth of its norm it is 0.995. A row with two
# likenesses says nothing.
LIKE, UNLIKE = 0.9, 0.8
MOST = 0.75  # of the sampled rows that must have a likeness, each its own
EQUAL = 1e-9  # of energies summed in float64, whatever the order of the sum


def reordered(sides: Sides) -> Order | None:
    """How the tuned matrix is the base's with another order of its rows, of its columns, or of
    both; None where no such order is found.

    Rows and columns are found by their likenesses, up to their sign and some training; both at once
    only where nothing else changed, by the energies of all rows and of all columns. Reads either
    matrix twice.
    """
    rows, cols = sides.shape
    if min(rows, cols) < FEW or max(rows, cols) > LONGEST:
        return None
    sampled = _Sampled.of(sides)
    of_rows = torch.zeros(len(sampled.row_numbers), rows)
    of_cols = torch.zeros(len(sampled.col_numbers), cols)
    base, tuned = (_Energies.zero(rows, cols) for _ in range(2))
    for index, (row, col) in blocks(sides.tuned):
        b, t = sides.read(index)
        at, across = slice(row, row + b.shape[0]), slice(col, col + b.shape[1])
        base.add(b, at, across)
        tuned.add(t, at, across)
        of_rows[:, at] += sampled.rows[:, across] @ b.float().T
        of_cols[:, across] += sampled.cols[:, at] @ b.float()
    if _are_moved(of_rows, base.rows, tuned.rows, sampled.row_numbers):
        return "rows"
    if _are_moved(of_cols, base.cols, tuned.cols, sampled.col_numbers):
        return "columns"
    if _are_same(base.rows, tuned.rows) and _are_same(base.cols, tuned.cols):
        return "rows and columns"
    return None


@dataclass(frozen=True)
class _Sampled:
    """Some rows and columns of the tuned matrix, evenly spread over it, in float32."""

    row_numbers: Tensor
    col_numbers: Tensor
    rows: Tensor  # (sampled, cols)
    cols: Tensor  # (sampled, rows)

    @classmethod
    def of(cls, sides: Sides) -> _Sampled:
        """Those of a pair's tuned side."""
        rows, cols = sides.shape
        row_numbers, col_numbers = _spread(rows), _spread(cols)
        found = cls(
            row_numbers,
            col_numbers,
            torch.empty(len(row_numbers), cols),
            torch.empty(len(col_numbers), rows),
        )
        for index, (row, col) in blocks(sides.tuned):
            _, t = sides.read(index)
            height, width = t.shape
            here = (row_numbers >= row) & (row_numbers < row + height)
            found.rows[here, col : col + width] = t[row_numbers[here] - row].float()
            here = (col_numbers >= col) & (col_numbers < col + width)
            found.cols[here, row : row + height] = t[:, col_numbers[here] - col].float().T
        return found


def _spread(count: int) -> Tensor:
    number = min(SAMPLED, count)
    return torch.arange(number) * count // number


@dataclass(frozen=True)
class _Energies:
    """Sums of squares of the rows and of the columns of a matrix, float64."""

    rows: Tensor
    cols: Tensor

    @classmethod
    def zero(cls, rows: int, cols: int) -> _Energies:
        return cls(*(torch.zeros(size, dtype=torch.float64) for size in (rows, cols)))

    def add(self, block: Tensor, at: slice, across: slice) -> None:
        squares = block.double().square()
        self.rows[at] += squares.sum(1)
        self.cols[across] += squares.sum(0)


def _are_moved(products: Tensor, base: Tensor, tuned: Tensor, numbers: Tensor) -> bool:
    """Whether most sampled rows have one likeness among the base's, and most of these elsewhere.

    products: (sampled, rows) of tuned and base rows; base, tuned: the energies of all rows; numbers
    of the sampled ones. What is 0 is like nothing.
    """
    values, places = [], []
    for number, product in zip(numbers, products, strict=True):  # one at a time, for memory
        energies = (tuned[number] * base).clamp_min(1e-300)
        best = (product.double().square() / energies).sqrt().topk(2)
        values.append(best.values)
        places.append(best.indices[0])
    nearest = torch.stack(values)
    found = (nearest[:, 0] >= LIKE) & (nearest[:, 1] <= UNLIKE)
    at, sampled = torch.stack(places)[found], int((tuned[numbers] > 0).sum())
    if len(at) < max(FEW, MOST * sampled) or len(set(at.tolist())) < len(at):
        return False
    return bool(2 * (at != numbers[found]).sum() > len(at))


def _are_same(base: Tensor, tuned: Tensor) -> bool:
    """Whether these are the same energies in another order. Where many are equal, as those of signs
    and of other few values, it would say little.
    """
    first, second = base.sort().values, tuned.sort().values
    if 2 * len(set(first.tolist())) < len(first):
        return False
    return bool(((first - second).abs() <= EQUAL * first).all())
