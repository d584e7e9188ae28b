"""Counts of a stored delta in units in the last place, by cell, binade of the base and level.

Rows and columns are put into classes by their stored energy; a cell is a row class and a column
class. The values of a matrix tell which format it was rounded to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.dtypes import FLOATS, FloatFormat
from shadow.spectra.lazy import Matrix, torch_dtype
from shadow.spectra.spectrum import Sides, Workspace, blocks, read_block

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

CLASSES = 16  # of rows and of columns
# rows or columns that a class has at least: with fewer, their own noise is what is classed
LINES_PER_CLASS = 8
# of the base that are distinguished, below its largest entry; smaller entries count to the last
BINADES = 24
SAMPLE = 1 << 19  # entries that are counted, about, in a larger matrix
LEVEL_BITS = 2  # bits of the significand that tell large |D| / ulp apart
LEVEL_OCTAVES = 24  # |D| / ulp from 2^23 on is one level


def is_on_grid(matrix: Matrix, stored: FloatFormat, working: torch.dtype, space: Workspace) -> bool:
    """Whether all values of a matrix have an exact form in a stored format."""
    for index, _ in blocks(matrix):
        block = read_block(matrix, index, "tuned", working, space)
        narrow = block.to(torch_dtype(stored))
        if not (narrow.to(block.dtype) == block).all():
            return False
    return True


def coarser_grid(matrix: Matrix, dtype: str, working: torch.dtype, space: Workspace) -> str:
    """The coarsest of BF16, F16, F32 and its stored dtype on whose grid a matrix's values lie.

    A format whose grid does not hold the values is out after the first block, as a rule. 8-bit
    formats are not tried: their values are stored with scales.
    """
    for candidate in ("BF16", "F16", "F32"):
        coarser = FLOATS[candidate].mantissa_bits < FLOATS[dtype].mantissa_bits
        if coarser and is_on_grid(matrix, FLOATS[candidate], working, space):
            return candidate
    return dtype


@dataclass(frozen=True)
class Counts:
    """What is counted of a delta by cell, binade of the base and level of |D| / ulp."""

    # (row classes, column classes, BINADES, levels up to the highest that occurs), float64, since
    # a sampled line stands for others. Binade 0 holds the base's largest entry; each further one
    # is half of it
    entries: Floats
    unit: float  # the ulp in binade 0, in weights
    away: int  # changed entries that moved away from 0
    toward: int  # changed entries that moved toward 0

    @property
    def squares(self) -> Floats:
        """(levels,): mean of (D / ulp)²."""
        return levels().squares[: self.entries.shape[3]]

    @cached_property
    def occurring(self) -> tuple[Indices, Indices, Floats]:
        """Index into the flat (row classes, column classes, BINADES), level, and number above 0."""
        flat, width = self.entries.ravel(), self.entries.shape[3]
        found = np.flatnonzero(flat > 0)  # of bools it takes a tenth of the time
        return found // width, found % width, flat[found]

    @cached_property
    def by_cell(self) -> Floats:
        """(row classes, column classes, BINADES): entries."""
        return np.asarray(self.entries.sum(axis=3))

    @cached_property
    def energies(self) -> Floats:
        """(row classes, column classes), in units of unit²."""
        return np.asarray((self.entries @ self.squares) @ steps() ** 2)

    @cached_property
    def by_binade(self) -> tuple[Floats, Floats, Floats]:
        """(BINADES,) each: entries, changed entries, and energy in units of unit²."""
        of = self.entries.sum(axis=(0, 1))
        energy = (of * self.squares).sum(axis=1) * steps() ** 2
        return of.sum(axis=1), of[:, 1:].sum(axis=1), energy


@dataclass(frozen=True)
class Levels:
    """Levels of k = |D| / ulp: every integer up to 8, then 2^LEVEL_BITS to an octave."""

    low: Floats  # the first k of each
    squares: Floats  # the mean k² of each
    # where each begins among the leading parts of float32 numbers; 0 is that of 0
    first_raw: Indices
    raw: int  # how many leading parts there are


@cache
def levels() -> Levels:
    """The levels that all counts share."""
    raw = np.arange(LEVEL_OCTAVES << LEVEL_BITS)
    bits = (raw + (127 << LEVEL_BITS)) << (23 - LEVEL_BITS)
    values = bits.astype(np.int32).view(np.float32).astype(np.float64)
    low = np.unique(np.floor(values))
    first = np.searchsorted(np.floor(values), low)
    last = np.append(low[1:], 2 * low[-1]) - 1
    # the mean of k² over the integers of a level
    squares = (_sum_of_squares(last) - _sum_of_squares(low - 1)) / (last - low + 1)
    first_raw = np.append(0, first + 1).astype(np.intp)
    return Levels(np.append(0.0, low), np.append(0.0, squares), first_raw, len(raw) + 1)


def _sum_of_squares(k: Floats) -> Floats:
    """1 + 4 + ... + k²."""
    return k * (k + 1) * (2 * k + 1) / 6


@cache
def steps() -> Floats:
    """(BINADES,): ulp of each binade in units of that of the first."""
    return np.ldexp(1.0, -np.arange(BINADES))


def classes(energies: Floats) -> Indices:
    """The class of each line, by energy: equal energies share one; without energy it is 0."""
    count = min(CLASSES, max(1, len(energies) // LINES_PER_CLASS))
    positive = np.sort(energies[energies > 0])
    if len(positive) == 0:
        return np.zeros(len(energies), dtype=np.intp)
    edges = positive[[len(positive) * i // count for i in range(count)]]
    above = np.searchsorted(edges, energies, side="right")
    occur = np.bincount(above) > 0
    return np.take(np.cumsum(occur) - 1, above)


def sampled_lines(of_class: Indices, length: int) -> tuple[Indices, Floats]:
    """Lines of the long side to count, ascending, and (classes,) how many lines each stands for.

    Every class gives about as many, drawn from a fixed seed; all lines of a matrix of at most
    SAMPLE entries.
    """
    sizes = np.bincount(of_class)
    share = max(1, SAMPLE // length // len(sizes))
    if sizes.sum() * length <= SAMPLE:
        return np.arange(len(of_class)), np.ones(len(sizes))
    order = np.random.default_rng(0).permutation(len(of_class))
    in_order = of_class[order]
    taken = [order[np.flatnonzero(in_order == kind)[:share]] for kind in range(len(sizes))]
    return np.sort(np.concatenate(taken)), sizes / np.minimum(sizes, share)


def count(
    sides: Sides, grid: FloatFormat, energies: tuple[Floats, Floats], largest: float
) -> Counts:
    """Count D = tuned - base in one pass over a sample of lines.

    grid: the format that the tuned side was rounded to. energies: (rows,) and (cols,) of the D that
    is counted, in any unit. largest: the largest absolute entry of the base.
    """
    row_class, col_class = (classes(of_lines) for of_lines in energies)
    tuned, shape = sides.tuned, sides.shape
    tall = shape[0] > shape[1]
    lines, weight = sampled_lines(row_class if tall else col_class, min(shape))
    top = math.frexp(largest)[1] - 1
    kinds = (int(row_class.max()) + 1, int(col_class.max()) + 1)
    raw_levels = levels().raw
    # where the counts of a row class and of a column class begin in the flat table of counts
    row_of, col_of = (
        (of_lines * each * BINADES * raw_levels).astype(np.int32)
        for of_lines, each in ((row_class, kinds[1]), (col_class, 1))
    )
    # below the smallest normal number the ulp stays what it is
    deepest = max(1 - BINADES, grid.min_exponent - top)
    away, toward, highest = 0, 0, 0
    axis = 0 if tall else 1
    places = []
    starts = [corner[axis] for _, corner in blocks(tuned)]
    for (index, _), (start, stop) in zip(
        blocks(tuned), pairwise([*starts, shape[axis]]), strict=True
    ):
        first, last = np.searchsorted(lines, (start, stop))
        chosen = lines[first:last]
        if len(chosen):
            within = torch.from_numpy(chosen - start)
            b, t = (
                _lines(side[index], within, axis, sides.dtype).numpy()
                for side in (sides.base, tuned)
            )
            d = np.subtract(t, b, out=t)
            way = np.sign(b) * np.sign(d)
            away += int(np.count_nonzero(way > 0))
            toward += int(np.count_nonzero(way < 0))
            binade, place = _binades_and_levels(b, d, grid, top, deepest)
            highest = max(highest, int(place.max()))
            rows, cols = (row_of[chosen], col_of) if tall else (row_of, col_of[chosen])
            binade *= raw_levels
            place -= binade
            place += rows[:, None]
            place += cols
            places.append(torch.from_numpy(place).view(-1))
    size = kinds[0] * kinds[1] * BINADES * raw_levels
    counted = torch.bincount(torch.cat(places), minlength=size)
    by_raw = counted.numpy().reshape(*kinds, BINADES, raw_levels)
    first_raw = levels().first_raw  # small levels are of several leading parts
    used = int(np.searchsorted(first_raw, highest, side="right"))
    entries = np.add.reduceat(by_raw, first_raw[:used], axis=3).astype(np.float64)
    entries *= weight[:, None, None, None] if tall else weight[None, :, None, None]
    return Counts(entries, math.ldexp(1.0, top - grid.mantissa_bits), away, toward)


def _lines(part: Tensor, chosen: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    """Some rows or columns of a block, as (rows, cols) of dtype, in memory of their own."""
    lines = part.reshape(-1, part.shape[-1])
    if len(chosen) < lines.shape[axis]:
        lines = lines.index_select(axis, chosen)
    return lines.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _binades_and_levels(
    b: NDArray[np.floating], d: NDArray[np.floating], grid: FloatFormat, top: int, deepest: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Binades, from 0 to deepest, and leading parts of |d| / ulp; overwrites b and d."""
    np.abs(d, out=d)
    with np.errstate(over="ignore"):
        d *= math.ldexp(1.0, -top)  # so that no power of two below leaves float32's range
    integer, significand, mask, bias = "i4", 23, 0xFF, 127
    if b.dtype == np.float64:
        integer, significand, mask, bias = "i8", 52, 0x7FF, 1023
    exponent = b.view(integer)
    exponent >>= significand
    exponent &= mask
    exponent -= bias + top
    np.clip(exponent, deepest, 0, out=exponent)
    steps_up = np.subtract(grid.mantissa_bits + bias, exponent)
    steps_up <<= significand
    with np.errstate(over="ignore"):  # infinity is of the highest level
        ulps = np.multiply(d, steps_up.view(d.dtype), out=d).astype(np.float32, copy=False)
    binade = exponent.astype(np.int32, copy=False)
    changed = ulps > 0
    level = ulps.view(np.int32)
    level >>= 23 - LEVEL_BITS
    level -= (127 << LEVEL_BITS) - 1
    np.clip(level, 1, LEVEL_OCTAVES << LEVEL_BITS, out=level)
    level *= changed
    return binade, level
