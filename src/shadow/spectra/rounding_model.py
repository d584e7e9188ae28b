"""A model of storage fitted to counts of a stored delta.

Counts are in units in the last place, by cell, binade of the base and level. Rows and columns are
classified by their stored energy; a cell is a row class and a column class. The values of a matrix
show which format it was rounded to. Scale: every cell has its own scale s. Shape, which all cells
share: the distribution of |d| / s, by expectation-maximisation from a half-normal one (Turnbull
1976, for censored intervals). Updates with heavy tails, of rank one, or with most entries 0 have
shapes that are far from normal.
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
from shadow.spectra.spectrum import Floats, Sides, Workspace, blocks, read_block

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
    """True if all values of a matrix, read in a working dtype through space, can be represented
    exactly in a stored format.
    """
    for index, _ in blocks(matrix):
        block = read_block(matrix, index, "tuned", working, space)
        narrow = block.to(torch_dtype(stored))
        is_exact = narrow.to(block.dtype) == block
        if not is_exact.all():
            return False
    return True


def coarser_grid(matrix: Matrix, dtype: str, working: torch.dtype, space: Workspace) -> str:
    """The coarsest of BF16, F16, F32 and its stored dtype that represents a matrix's values.

    A format that does not is usually rejected after the first block. 8-bit formats are not tried:
    their values are stored with scales. working and space: as in `is_on_grid`.
    """
    for name in ("BF16", "F16", "F32"):
        candidate = FLOATS[name]
        if candidate.mantissa_bits >= FLOATS[dtype].mantissa_bits:
            continue
        if is_on_grid(matrix, candidate, working, space):
            return name
    return dtype


@dataclass(frozen=True)
class BinadeCounts:
    """Counts of a delta by binade of the base, (BINADES,)."""

    entries: Floats
    changed: Floats  # entries that differ from the base's
    energy: Floats  # in units of unit²


@dataclass(frozen=True)
class Counts:
    """Counts of a delta by cell, binade of the base and level of |D| / ulp."""

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
        flat = self.entries.ravel()
        width = self.entries.shape[3]
        occupied = np.flatnonzero(flat > 0)  # of bools it takes a tenth of the time
        cells = occupied // width
        levels_of_cells = occupied % width
        return cells, levels_of_cells, flat[occupied]

    @cached_property
    def by_cell(self) -> Floats:
        """(row classes, column classes, BINADES): entries."""
        return np.asarray(self.entries.sum(axis=3))

    @cached_property
    def energies(self) -> Floats:
        """(row classes, column classes), in units of unit²."""
        by_binade = self.entries @ self.squares
        return np.asarray(by_binade @ steps() ** 2)

    @cached_property
    def by_binade(self) -> BinadeCounts:
        """The counts of all cells together."""
        by_level = self.entries.sum(axis=(0, 1))
        squares = (by_level * self.squares).sum(axis=1)
        return BinadeCounts(
            entries=by_level.sum(axis=1),
            changed=by_level[:, 1:].sum(axis=1),
            energy=squares * steps() ** 2,
        )

    @cached_property
    def normal_scales(self) -> Floats:
        """(row classes, column classes): the scales of a half-normal shape."""
        return _solve(self, half_normal())


@dataclass(frozen=True)
class Levels:
    """Levels of k = |D| / ulp: every integer up to 8, then 2^LEVEL_BITS to an octave."""

    low: Floats  # the first k of each
    squares: Floats  # the mean k² of each
    of_raw: Indices  # of each leading part of float32 numbers; part 0 is that of 0


@cache
def levels() -> Levels:
    """The levels that all counts share."""
    raw = np.arange(LEVEL_OCTAVES << LEVEL_BITS)
    leading = raw + (127 << LEVEL_BITS)
    bits = leading << (23 - LEVEL_BITS)
    values = bits.astype(np.int32).view(np.float32)
    whole = np.floor(values.astype(np.float64))
    low = np.unique(whole)
    first = np.searchsorted(whole, low)
    following = np.append(low[1:], 2 * low[-1])
    last = following - 1
    # the mean of k² over the integers of a level
    sums = _sum_of_squares(last) - _sum_of_squares(low - 1)
    integers = last - low + 1
    squares = sums / integers
    of_raw = np.searchsorted(first, raw, side="right")
    return Levels(
        low=np.append(0.0, low),
        squares=np.append(0.0, squares),
        of_raw=np.append(0, of_raw),
    )


def _sum_of_squares(k: Floats) -> Floats:
    """1 + 4 + ... + k²."""
    product = k * (k + 1) * (2 * k + 1)
    return product / 6


@cache
def steps() -> Floats:
    """(BINADES,): the ulp of each binade in units of that of the first."""
    return np.ldexp(1.0, -np.arange(BINADES))


def classes(energies: Floats) -> Indices:
    """The class of each line, (lines,), by its energy: equal energies share one; without energy
    it is 0.
    """
    lines = len(energies)
    most = max(1, lines // LINES_PER_CLASS)
    count = min(CLASSES, most)
    positive = np.sort(energies[energies > 0])
    if len(positive) == 0:
        return np.zeros(lines, dtype=np.intp)
    ranks = np.arange(count) * len(positive) // count
    lowest = positive[ranks]
    above = np.searchsorted(lowest, energies, side="right")
    occur = np.bincount(above) > 0
    numbers = np.cumsum(occur) - 1
    return np.take(numbers, above)


def sampled_lines(of_class: Indices, length: int) -> tuple[Indices, Floats]:
    """Lines of the long side to count, ascending, and (classes,) how many lines each
    represents.

    Every class has about as many, drawn from a fixed seed; all lines of a matrix of at most SAMPLE
    entries. of_class: the class of each line. length: of a line.
    """
    count = len(of_class)
    sizes = np.bincount(of_class)
    class_count = len(sizes)
    if sizes.sum() * length <= SAMPLE:
        return np.arange(count), np.ones(class_count)
    share = max(1, SAMPLE // length // class_count)
    generator = np.random.default_rng(0)
    order = generator.permutation(count)
    shuffled = of_class[order]
    samples = []
    for number in range(class_count):
        members = np.flatnonzero(shuffled == number)
        samples.append(order[members[:share]])
    lines = np.concatenate(samples)
    weights = sizes / np.minimum(sizes, share)
    return np.sort(lines), weights


def count(
    sides: Sides, grid: FloatFormat, energies: tuple[Floats, Floats], largest: float
) -> Counts:
    """Count D = tuned - base of both sides in one pass over a sample of lines.

    grid: the format that the tuned side was rounded to. energies: (rows,) and (cols,) of the D that
    is counted, in any unit. largest: the largest absolute entry of the base.
    """
    row_class = classes(energies[0])
    col_class = classes(energies[1])
    tuned = sides.tuned
    shape = sides.shape
    tall = shape[0] > shape[1]
    axis = 1
    of_line = col_class
    if tall:
        axis = 0
        of_line = row_class
    lines, weight = sampled_lines(of_line, min(shape))
    _, exponent = math.frexp(largest)
    top = max(exponent - 1, grid.min_exponent)
    row_classes = int(row_class.max()) + 1
    col_classes = int(col_class.max()) + 1
    level_of = levels().of_raw  # small levels are of several leading parts
    raw_levels = len(level_of)
    # where the counts of a row class and of a column class begin in the flat table of counts
    size_of_cell = BINADES * raw_levels
    size_of_row = col_classes * size_of_cell
    col_of = (col_class * size_of_cell).astype(np.int32)
    row_of = (row_class * size_of_row).astype(np.int32)
    # below the smallest normal number the ulp stays what it is
    deepest = max(1 - BINADES, grid.min_exponent - top)
    away = 0
    toward = 0
    highest = 0
    places = []
    starts = [corner[axis] for _, corner in blocks(tuned)]
    bounds = pairwise([*starts, shape[axis]])
    for (index, _), (start, stop) in zip(blocks(tuned), bounds, strict=True):
        first, last = np.searchsorted(lines, (start, stop))
        chosen = lines[first:last]
        if not len(chosen):
            continue
        within = torch.from_numpy(chosen - start)
        base = _lines(sides.base[index], within, axis, sides.dtype)
        delta = _lines(tuned[index], within, axis, sides.dtype)
        delta -= base
        direction = np.sign(base) * np.sign(delta)
        moves_away = direction > 0
        moves_toward = direction < 0
        away += int(np.count_nonzero(moves_away))
        toward += int(np.count_nonzero(moves_toward))
        binade, place = _binades_and_levels(base, delta, grid, top, deepest)
        highest = max(highest, int(place.max()))
        binade *= raw_levels
        place -= binade
        if tall:
            place += row_of[chosen][:, None]
            place += col_of
        else:
            place += row_of[:, None]
            place += col_of[chosen]
        places.append(torch.from_numpy(place).view(-1))
    counted = torch.bincount(torch.cat(places), minlength=row_classes * size_of_row).numpy()
    used = int(level_of[highest]) + 1
    shape_of_table = (row_classes, col_classes, BINADES, used)
    # few of the table's cells occur
    occurring = np.flatnonzero(counted)
    level = level_of[occurring % raw_levels]
    cell = occurring // raw_levels * used + level
    table = np.bincount(cell, counted[occurring], math.prod(shape_of_table))
    entries = np.asarray(table, np.float64).reshape(shape_of_table)
    if tall:
        entries *= weight[:, None, None, None]
    else:
        entries *= weight[:, None, None]
    return Counts(
        entries=entries,
        unit=math.ldexp(1.0, top - grid.mantissa_bits),
        away=away,
        toward=toward,
    )


def _lines(part: Tensor, chosen: Tensor, axis: int, dtype: torch.dtype) -> NDArray[np.floating]:
    """Some rows or columns of a block, as a (rows, cols) copy of dtype."""
    rows = part.reshape(-1, part.shape[-1])
    lines = rows.index_select(axis, chosen)
    copy = lines.to(dtype, copy=True, memory_format=torch.contiguous_format)
    return copy.numpy()


def _binades_and_levels(
    b: NDArray[np.floating], d: NDArray[np.floating], grid: FloatFormat, top: int, deepest: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Binades, from 0 to deepest, and leading parts of |d| / ulp; overwrites b and d."""
    np.abs(d, out=d)
    with np.errstate(over="ignore"):
        d *= math.ldexp(1.0, -top)  # so that no power of two below leaves float32's range
    integer = "i4"
    significand = 23
    mask = 0xFF
    bias = 127
    if b.dtype == np.float64:
        integer = "i8"
        significand = 52
        mask = 0x7FF
        bias = 1023
    exponent = b.view(integer)
    exponent >>= significand
    exponent &= mask
    exponent -= bias + top
    np.clip(exponent, deepest, 0, out=exponent)
    steps_up = np.subtract(grid.mantissa_bits + bias, exponent)
    steps_up <<= significand
    with np.errstate(over="ignore"):  # infinity is of the highest level
        d *= steps_up.view(d.dtype)
        ulps = d.astype(np.float32, copy=False)
    binade = exponent.astype(np.int32, copy=False)
    changed = ulps > 0
    level = ulps.view(np.int32)
    level >>= 23 - LEVEL_BITS
    level -= (127 << LEVEL_BITS) - 1
    np.clip(level, 1, LEVEL_OCTAVES << LEVEL_BITS, out=level)
    level *= changed
    return binade, level


OCTAVE = 8  # steps of the grid of scales in a factor of two
BIN_OCTAVE = 4  # bins of the shape in a factor of two
# log2 of |d| / s: the bins of the shape reach from one to the other, one more down to 0.
SHAPE_FROM = -7
SHAPE_TO = 7
# log2 of s / ulp that tables of moments reach
RATIO_FROM = -10
RATIO_TO = 40
COARSE_TO = 10  # the same of tables of chances: finer steps are too rare to matter to a shape
COARSE = (COARSE_TO - RATIO_FROM) * OCTAVE + 1  # ratios of these tables
ITERATIONS = 30  # of expectation-maximisation in each round
TINY = 1e-30  # a chance above 0, in float32


@dataclass(frozen=True)
class Tables:
    """Predictions of the storage model for |d| uniform in one bin of the shape, by s / ulp."""

    second: Floats  # (ratios, bins): mean of (D / ulp)²
    product: Floats  # (ratios, bins): mean of D d / ulp²
    changed: Floats  # (ratios, bins): the chance that D is not 0
    chance: NDArray[np.float32]  # (coarse ratios, levels, bins): the chance of each level


@cache
def shape_edges() -> Floats:
    """(bins + 1,): the edges of the bins of the shape, ascending from 0, in units of s."""
    octaves = SHAPE_TO - SHAPE_FROM
    bins = octaves * BIN_OCTAVE
    logs = np.arange(bins + 1) / BIN_OCTAVE + SHAPE_FROM
    return np.append(0.0, np.exp2(logs))


@cache
def mean_squares() -> Floats:
    """(bins,): mean y² of each bin of the shape."""
    low = shape_edges()[:-1]
    high = shape_edges()[1:]
    return (low**2 + low * high + high**2) / 3


@cache
def half_normal() -> Floats:
    """The shape of a normal d: (bins,) probabilities, of mean y² 1."""
    scaled = shape_edges() / math.sqrt(2)
    below = [math.erf(edge) for edge in scaled]
    inside: Floats = np.diff(below)
    return np.asarray(inside / inside.sum())


@cache
def tables() -> Tables:
    """Moments and probabilities of D = round(d / ulp)."""
    lowest = RATIO_FROM * OCTAVE
    highest = RATIO_TO * OCTAVE
    steps_of_ratio = np.arange(lowest, highest + 1)
    ratios = np.exp2(steps_of_ratio / OCTAVE)
    edges = ratios[:, None] * shape_edges()
    widths = np.diff(edges)
    nearest: Floats = np.floor(edges + 0.5)
    # integrals from 0 to an edge, of round(t)² and t round(t)
    whole = _sum_of_squares(nearest - 1)
    rest = edges - nearest + 0.5
    second = whole + nearest**2 * rest
    twice_middle = edges + nearest - 0.5
    product = whole + nearest * rest * twice_middle / 2
    edges_of_zero = np.minimum(edges, 0.5)
    unchanged = np.diff(edges_of_zero) / widths
    return Tables(
        second=np.diff(second) / widths,
        product=np.diff(product) / widths,
        changed=1.0 - unchanged,
        chance=_chances(edges[:COARSE], widths[:COARSE]),
    )


def _chances(edges: Floats, widths: Floats) -> NDArray[np.float32]:
    """The chance of each level, (ratios, levels, bins), from edges of bins and their widths."""
    ratios, bins = widths.shape
    lows = levels().low
    chance = np.zeros((ratios, len(lows), bins), dtype=np.float32)
    previous = np.zeros_like(widths)
    for level, following in enumerate(lows[1:]):
        lower_edges = np.minimum(edges, following - 0.5)
        below = np.diff(lower_edges) / widths
        chance[:, level] = below - previous
        previous = below
    chance[:, -1] = 1.0 - previous
    return chance


@dataclass(frozen=True)
class Fit:
    """A model fitted to counts. Energies are in units of unit²."""

    shape: Floats  # (bins,): the distribution of |d| / s, which sums to 1
    update: Floats  # by cell: energy of d
    product: Floats  # by cell: sum of D d
    stored: Floats  # by cell: energy of D
    changed: Floats  # (BINADES,): expected number of changed entries
    energy: Floats  # (BINADES,): expected energy of D


def fit(counts: Counts, rounds: int = 3) -> Fit:
    """Fit scales and shape to counts in turn, from a half-normal shape: `rounds` times, or only
    scales at 0.
    """
    shape = half_normal()
    scales = counts.normal_scales
    for _ in range(rounds):
        shape = _improve(counts, scales, shape)
        scales = _solve(counts, shape)
    return _fitted(counts, shape, scales)


def _ratio_index(scale_steps: Floats) -> Floats:
    """The fractional index in the tables of s / ulp, (..., BINADES)."""
    by_binade = scale_steps[..., None] + OCTAVE * np.arange(BINADES)
    return by_binade - RATIO_FROM * OCTAVE


def _solve(counts: Counts, shape: Floats) -> Floats:
    """The scale at which the expected energy of each cell is the stored one, between steps: (row
    classes, column classes), log2 of s / ulp in steps of the grid; NaN without energy.
    """
    mean = tables().second @ shape
    lowest = RATIO_FROM * OCTAVE
    highest = (RATIO_TO - BINADES) * OCTAVE
    candidates = np.arange(lowest, highest)
    fractional = _ratio_index(candidates.astype(np.float64))
    ratio = fractional.astype(np.intp)
    by_candidate = mean[ratio] * steps() ** 2  # (candidates, BINADES)
    entries = counts.by_cell.reshape(-1, BINADES)
    expected = entries @ by_candidate.T  # (cells, candidates), ascending
    energy = counts.energies.ravel()
    is_smaller = expected < energy[:, None]
    first = is_smaller.sum(axis=1)
    above = np.clip(first, 1, len(candidates) - 1)
    below = above - 1
    cells = np.arange(len(energy))
    low = expected[cells, below]
    high = expected[cells, above]
    # between two steps an energy is a power of the scale
    with np.errstate(divide="ignore", invalid="ignore"):
        whole_step = np.log(high / low)
        part = np.log(energy / low) / whole_step
    part = np.where(low > 0, part, 1.0)
    scales = candidates[below] + np.clip(part, 0.0, 1.0)
    scales = np.where(energy > 0, scales, np.nan)
    return scales.reshape(counts.energies.shape)


def _active(counts: Counts, scales: Floats) -> tuple[Indices, Indices, Floats]:
    """Ratios and levels that occur in cells with a scale, and their numbers of entries, (n,)
    each.
    """
    cell, level, number = counts.occurring
    width = counts.entries.shape[3]
    fractional = np.nan_to_num(_ratio_index(scales), nan=-1.0)
    ratio_of_cell = np.rint(fractional).astype(np.intp).ravel()
    ratios = ratio_of_cell[cell]
    inside = (ratios >= 0) & (ratios < COARSE)
    place = ratios[inside] * width + level[inside]
    table = np.bincount(place, number[inside], COARSE * width)
    occurring = np.flatnonzero(table)
    ratios = occurring // width
    levels_of_ratios = occurring % width
    return ratios, levels_of_ratios, table[occurring].astype(np.float64)


def _improve(counts: Counts, scales: Floats, shape: Floats) -> Floats:
    """Improve the shape by steps of expectation-maximisation."""
    ratio, level, number = _active(counts, scales)
    if len(number) == 0:
        return shape
    chance = tables().chance[ratio, level]
    share = (number / number.sum()).astype(np.float32)
    single = shape.astype(np.float32)
    for _ in range(ITERATIONS):
        expected = np.maximum(chance @ single, TINY)
        ratios = share / expected
        single *= ratios @ chance
    total = float(single.sum(dtype=np.float64))
    return single.astype(np.float64) / total


def _fitted(counts: Counts, shape: Floats, scales: Floats) -> Fit:
    """The model of a shape and scales, with the moments of entries between those of two ratios."""
    moments = tables()
    entries = counts.by_cell
    has_scale = np.isfinite(scales)
    part = np.where(has_scale, 1.0, 0.0)[..., None]
    ratio = _ratio_index(np.nan_to_num(scales, nan=RATIO_FROM * OCTAVE))
    below = np.floor(ratio).astype(np.intp)
    between = ratio - below

    def expected(of_ratio: Floats) -> Floats:
        """(row classes, column classes, BINADES): mean of an entry at its cell's scale, otherwise
        0.
        """
        lower = of_ratio[below] * (1 - between)
        upper = of_ratio[below + 1] * between
        return part * (lower + upper)

    weight = entries * steps() ** 2
    mean = float(mean_squares() @ shape)
    finite = np.nan_to_num(scales, nan=-np.inf)  # 2 to the power of it is 0
    octaves = 2 * finite / OCTAVE
    squared = np.exp2(octaves) * mean
    product = weight * expected(moments.product @ shape)
    changed = entries * expected(moments.changed @ shape)
    energy = weight * expected(moments.second @ shape)
    return Fit(
        shape=shape,
        update=entries.sum(axis=2) * squared,
        product=product.sum(axis=2),
        stored=counts.energies,
        changed=changed.sum(axis=(0, 1)),
        energy=energy.sum(axis=(0, 1)),
    )
