"""Matrices of one shape, read together in parts that the caches of a core hold.

Sums over a part are made line by line in the working dtype and added up in float64: in float32 they
are right to 1e-6. How matrices are cut depends on their shape, and on whether all lie in their
files in order, but not on what runs beside them: sums of the same files are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.spectra.lazy import Matrix, Stored, is_stored
from shadow.spectra.spectrum import Workspace, tiles

# squares of float32 that neither vanish nor overflow; a part beyond them is summed in float64
SAFE = 1e-26, 1e36
# Entries of a part: two sides of 16 bits, both in float32 and what is made of them are 1 MB, which
# the caches of a core hold. Parts of twice or of half as many take 1.1 times as long.
PART = 1 << 16
HEAD = 256  # entries that are compared first: sides that differ do so there, as a rule
LINE = 1 << 10  # entries whose products are summed in float32
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
WORK = -1  # the row of `Part.lines` for what is made of the numbers


class EntryBlock:
    """The same entries of some matrices, in buffers that are reused, and in every view that calls
    need: a view costs as much as a sum of a thousand numbers.
    """

    def __init__(
        self, space: Workspace, dtype: torch.dtype, matrices: int, count: int,
        stored: Sequence[torch.dtype] = (),
    ) -> None:  # fmt: skip
        """stored: the dtypes of all, where they are read as they are stored."""
        self.count = count
        self.raw = [  # what is stored, of any shape
            space.take(f"raw {number}", (count,), one) for number, one in enumerate(stored)
        ]
        bits: list[NDArray[Any]] = [raw.view(INTEGERS[raw.itemsize]).numpy() for raw in self.raw]
        self.bytes = [some.view(np.uint8).data for some in bits]
        self._bits, self._head = bits[:2], [some[:HEAD] for some in bits[:2]]
        self._one_format = len(set(stored[:2])) == 1
        height = -(-count // LINE)
        padded = space.take("parts", (matrices + 1, height * LINE), dtype)
        self.rest = padded[:, count:]
        self.numbers: list[Tensor] = [row[:count] for row in padded[:matrices]]
        self.lines = padded.view(matrices + 1, height, LINE).numpy()
        self._sums = np.empty((2, 2, height), self.lines.dtype)
        self._differ = space.take("differs", (height * LINE,), torch.bool).numpy()

    def load(self, *matrices: int) -> None:
        """The numbers of these matrices, from what is stored."""
        for one in matrices:
            raw, numbers = self.raw[one], self.numbers[one]
            (numbers if raw.ndim == 1 else numbers.view(raw.shape)).copy_(raw)

    def is_equal(self) -> bool:
        """Return whether what was read of the first two has the same bits."""
        if not self._one_format or self._head[0].tobytes() != self._head[1].tobytes():
            return False
        differ = self._differ[: self.count]
        return not np.not_equal(self._bits[0], self._bits[1], out=differ).any()

    def energy(self) -> float:
        """The energy of the numbers of the first."""
        energy = self.product(0, 0)
        return energy if is_safe(energy) else self._in_float64(self.raw[0], self.raw[0])[0]

    def product(self, one: int, other: int) -> float:
        """The inner product of two rows of lines."""
        found = np.vecdot(self.lines[one], self.lines[other], out=self._sums[0, 0])
        return float(found.sum(dtype=np.float64))

    def products(self, into: int = 1) -> tuple[int, list[float]]:
        """Return how many numbers of the first two differ, the energies of both and of the delta,
        and <first, delta>. The delta becomes that row of lines. Right where both are finite.
        """
        pair, out = self.lines[:2], self._sums
        delta = self.lines[into]
        np.vecdot(pair, pair, out=out[0])
        np.subtract(pair[1], pair[0], out=delta)
        changed = self.nonzero(into)
        np.vecdot(delta, pair[0], out=out[1, 0])
        np.vecdot(delta, delta, out=out[1, 1])
        first, second, along, energy = out.sum(axis=2, dtype=np.float64).ravel().tolist()
        if is_safe(first) and is_safe(second) and (is_safe(energy) or not changed):
            return changed, [first, second, energy, along]
        return changed, self._in_float64(*self.raw[:2])

    def nonzero(self, row: int) -> int:
        """Return how many numbers of a row of lines are not 0."""
        line = self.lines[row].reshape(-1)
        return int(np.count_nonzero(np.not_equal(line, 0, out=self._differ)))

    def changed(self) -> int:
        """Return how many numbers of the first two differ, where some are not finite; NaN beside
        NaN does not. Loads them.
        """
        self.load(0, 1)
        return differing(*self.numbers[:2])

    @staticmethod
    def _in_float64(base: Tensor, tuned: Tensor) -> list[float]:
        b, t = (side.double().reshape(-1).numpy() for side in (base, tuned))
        d = t - b
        return [float(np.vecdot(*pair)) for pair in ((b, b), (t, t), (d, d), (b, d))]


def differing(one: Tensor, other: Tensor) -> int:
    """Return how many entries differ; NaN beside NaN does not."""
    differ = np.not_equal(one.numpy(), other.numpy())
    if not differ.any():
        return 0
    return int(np.count_nonzero(differ & ~(np.isnan(one.numpy()) & np.isnan(other.numpy()))))


def is_safe(energy: float) -> bool:
    """Return whether no square of float32 can have vanished or overflowed."""
    return SAFE[0] < energy < SAFE[1]


def _part(
    space: Workspace, dtype: torch.dtype, matrices: int, count: int,
    stored: Sequence[torch.dtype] = (),
) -> EntryBlock:  # fmt: skip
    """The part of so many entries that a worker reuses, its numbers undefined."""
    key = "part", dtype, matrices, count, *stored
    part = space.once(key, lambda: EntryBlock(space, dtype, matrices, count, stored))
    part.rest.zero_()
    return part


def parts(matrices: Sequence[Matrix], dtype: torch.dtype, space: Workspace) -> Iterator[EntryBlock]:
    """Matrices of one shape part by part, with what is stored of each. Its numbers are not loaded.

    dtype: of the numbers. A part is used before the next is asked for.
    """
    flat = [one for one in matrices if _is_flat(one)]
    if len(flat) < len(matrices):
        for index, _ in tiles(matrices[1], PART, PART):
            raw = [one[index] for one in matrices]
            part = _part(space, dtype, len(raw), raw[0].numel())
            part.raw = raw
            yield part
            part.raw = []  # a part is kept, and what was read of a matrix would be with it
        return
    stored, whole = [one.dtype for one in flat], matrices[1].numel()
    for start in range(0, whole, PART):
        if start == 0 or whole - start < PART:
            part = _part(space, dtype, len(flat), min(PART, whole - start), stored)
        for one, room in zip(flat, part.bytes, strict=True):
            one.fill(start, room)
        yield part


def _is_flat(matrix: Matrix) -> TypeGuard[Stored]:
    """Return whether all entries lie in a file in order, without gaps."""
    return is_stored(matrix) and matrix.is_flat
