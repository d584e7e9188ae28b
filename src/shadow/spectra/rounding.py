"""How much of a stored delta is the update, and how much the rounding of its storage.

A model is trained in more bits than it is stored in. A stored entry D is the update d rounded to a
grid of step u, the unit in the last place (ulp) of the base's value: a nonlinearity without memory,
so D = a d + an error that is uncorrelated with d (Bussgang 1952). What D shows of d follows from
the distribution of |d| alone, and that is seen through the binades of the base: each has a step of
its own, twice that of the one below, so the counts of |D| in ulps tell the distribution of |d| at
steps from far above it to far below.

Two things are estimated from these counts. Scale: rows and columns are put into classes by their
stored energy, and every cell of a row class and a column class has a scale s of its own. Shape: the
distribution of |d| / s, which all cells share, by expectation-maximisation from a half-normal one
(Turnbull 1976, for censored intervals). Updates with heavy tails, of rank one, or with most entries
0 have shapes that are far from normal.

Everything rests on the storage model: the base's values lie on the grid, or were rounded to it
first, and |d| does not depend on the base's value within a cell. Where the energy and the changes
by binade are not those that the model gives, there is a reason instead of a number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.dtypes import FLOATS, FloatFormat
from shadow.spectra.lazy import BlockScaled, Matrix, Rounded, Updated
from shadow.spectra.measurement import Values
from shadow.spectra.spectrum import Workspace, blocks, read_block, shape_of

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Model = Literal["stored", "dithered"]

CLASSES = 16  # of rows and of columns
# rows or columns that a class has at least: with fewer, their own noise is what is classed
LINES_PER_CLASS = 8
# of the base that are told apart, below its largest entry; smaller entries count to the last
BINADES = 24
SAMPLE = 1 << 19  # entries that are counted, about, in a larger matrix
OCTAVE = 8  # steps of the grid of scales in a factor of two
BIN_OCTAVE = 4  # bins of the shape in a factor of two
# log2 of |d| / s: the bins of the shape reach from one to the other, one more down to 0.
SHAPE_FROM, SHAPE_TO = -7, 7
RATIO_FROM, RATIO_TO = -10, 40  # log2 of s / ulp that tables of moments reach
COARSE_TO = 10  # the same of tables of chances: finer steps are too rare to matter to a shape
LEVEL_BITS = 2  # bits of the significand that tell large |D| / ulp apart
TINY = 1e-30  # a chance above 0, in float32
LEVEL_OCTAVES = 24  # |D| / ulp from 2^23 on is one level


# -------------------------------------------------------------------------------------------- grids


def on_grid(block: Tensor, stored: FloatFormat) -> bool:
    """Do all values of a block have an exact form in a stored format?"""
    narrow = block.to(getattr(torch, stored.torch_name))
    return bool((narrow.to(block.dtype) == block).all())


def coarser_grid(
    matrix: Matrix, dtype: str, working: torch.dtype, space: Workspace, name: str
) -> str:
    """The coarsest of BF16, F16, F32 and F64 on whose grid all values of a matrix of a stored dtype
    lie.

    A format whose grid does not hold the values is out after the first block, as a rule. 8-bit
    formats are not tried: their values are stored with scales.
    """
    for candidate in ("BF16", "F16", "F32"):
        if FLOATS[candidate].mantissa_bits >= FLOATS[dtype].mantissa_bits:
            continue
        if all(
            on_grid(read_block(matrix, index, name, working, space), FLOATS[candidate])
            for index in blocks(matrix)
        ):
            return candidate
    return dtype


# ------------------------------------------------------------------------------------------- counts


@dataclass(frozen=True)
class Counts:
    """What is counted of a delta by cell, binade of the base and level of |D| / ulp."""

    # (row classes, column classes, BINADES, levels up to the highest that occurs), float64, since
    # a sampled line stands for others. Binade 0 holds the base's largest entry; each further one
    # is half of it
    entries: Floats
    unit: float  # the ulp in binade 0, in weights
    sampled: int  # entries that were looked at
    away: int  # changed entries that moved away from 0
    toward: int  # changed entries that moved toward 0

    @property
    def squares(self) -> Floats:
        """(levels,): mean of (D / ulp)²."""
        return levels().squares[: self.entries.shape[3]]

    @cached_property
    def occurring(self) -> tuple[Indices, Indices, Floats]:
        """Of the entries above 0: place in the flat (row classes, column classes, BINADES), level,
        and number.
        """
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
    values = (
        ((raw + (127 << LEVEL_BITS)) << (23 - LEVEL_BITS))
        .astype(np.int32)
        .view(np.float32)
        .astype(np.float64)
    )
    low = np.unique(np.floor(values))
    first = np.searchsorted(np.floor(values), low)
    last = np.append(low[1:], 2 * low[-1]) - 1
    # the mean of k² over the integers of a level
    squares = (_sum_of_squares(last) - _sum_of_squares(low - 1)) / (last - low + 1)
    return Levels(
        np.append(0.0, low),
        np.append(0.0, squares),
        np.append(0, first + 1).astype(np.intp),
        len(raw) + 1,
    )


def _sum_of_squares(k: Floats) -> Floats:
    """1 + 4 + ... + k²."""
    return k * (k + 1) * (2 * k + 1) / 6


@cache
def steps() -> Floats:
    """(BINADES,): ulp of each binade in units of that of the first."""
    return np.ldexp(1.0, -np.arange(BINADES))


def classes(energies: Floats) -> Indices:
    """The class of each line, by energy: equal energies share one, lines without are class 0."""
    count = min(CLASSES, max(1, len(energies) // LINES_PER_CLASS))
    positive = np.sort(energies[energies > 0])
    if len(positive) == 0:
        return np.zeros(len(energies), dtype=np.intp)
    edges = positive[[len(positive) * i // count for i in range(count)]]
    above = np.searchsorted(edges, energies, side="right")
    return np.unique(above, return_inverse=True)[1]


def sampled_lines(of_class: Indices, length: int) -> tuple[Indices, Floats]:
    """Lines of the long side to count, ascending, and (classes,) how many lines each stands for.

    Every class gives about as many, drawn from a fixed seed; all lines of a matrix of at most
    SAMPLE entries.
    """
    sizes = np.bincount(of_class)
    share = max(1, SAMPLE // length // len(sizes))
    if sizes.sum() * length <= SAMPLE:
        return np.arange(len(of_class)), np.ones(len(sizes))
    rng = np.random.default_rng(0)
    order = rng.permutation(len(of_class))
    order = order[np.argsort(of_class[order], kind="stable")]
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    taken = order[place < share]
    return np.sort(taken), sizes / np.minimum(sizes, share)


def count(
    base: Matrix,
    tuned: Matrix,
    grid: FloatFormat,
    energies: tuple[Floats, Floats],
    largest: float,
    dtype: torch.dtype,
) -> Counts:
    """Count D = tuned - base in one pass over a sample of lines.

    grid: the format that the tuned side was rounded to. energies: (rows,) and (cols,) of the D that
    is counted, in any unit. largest: the largest absolute entry of the base.
    """
    row_class, col_class = (classes(of_lines) for of_lines in energies)
    shape = shape_of(tuned)
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
    start, axis = 0, 0 if tall else 1
    places = []
    for index in blocks(tuned):
        length = tuned[index].shape[:-1].numel() if tall else tuned[index].shape[-1]
        first, last = np.searchsorted(lines, (start, start + length))
        chosen = lines[first:last]
        if len(chosen):
            within = torch.from_numpy(chosen - start)
            b, t = (_lines(side[index], within, axis, dtype).numpy() for side in (base, tuned))
            d = np.subtract(t, b, out=t)
            moved_away, moved_toward = _directions(b, d)
            away += moved_away
            toward += moved_toward
            binade, place = _binades_and_levels(b, d, grid, top, deepest)
            highest = max(highest, int(place.max()))
            rows, cols = (row_of[chosen], col_of) if tall else (row_of, col_of[chosen])
            binade *= raw_levels
            place -= binade
            place += rows[:, None]
            place += cols
            places.append(torch.from_numpy(place).view(-1))
        start += length
    size = kinds[0] * kinds[1] * BINADES * raw_levels
    counted = torch.bincount(torch.cat(places), minlength=size)
    by_raw = counted.numpy().reshape(*kinds, BINADES, raw_levels)
    entries = _by_level(by_raw, highest)
    entries *= weight[:, None, None, None] if tall else weight[None, :, None, None]
    sampled = sum(place.numel() for place in places)
    return Counts(entries, math.ldexp(1.0, top - grid.mantissa_bits), sampled, away, toward)


def _directions(b: NDArray[np.floating], d: NDArray[np.floating]) -> tuple[int, int]:
    """How many entries move away from 0, and toward it: d of the sign of b, which is not 0, or not
    of it.
    """
    moved = d != 0
    moved &= b != 0
    across = np.signbit(d)
    across ^= np.signbit(b)
    across &= moved
    toward = int(np.count_nonzero(across))
    return int(np.count_nonzero(moved)) - toward, toward


def _by_level(by_raw: NDArray[np.int64], highest: int) -> Floats:
    """Counts by level from counts by leading part, up to the highest leading part that occurs."""
    first_raw = levels().first_raw
    used = int(np.searchsorted(first_raw, highest, side="right"))
    entries = by_raw.take(first_raw[:used], axis=3).astype(np.float64)
    ends = np.append(first_raw, levels().raw)
    for level in range(used):  # small levels are of several leading parts
        if ends[level + 1] - ends[level] > 1:
            entries[..., level] = by_raw[..., ends[level] : ends[level + 1]].sum(axis=3)
    return entries


def _lines(part: Tensor, chosen: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    """Some rows or columns of a block, as (rows, cols) of dtype."""
    flat = part.reshape(-1, part.shape[-1])
    return (
        (flat if len(chosen) == flat.shape[axis] else flat.index_select(axis, chosen))
        .to(dtype)
        .contiguous()
    )


def _binades_and_levels(
    b: NDArray[np.floating], d: NDArray[np.floating], grid: FloatFormat, top: int, deepest: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Of every entry: its binade, from 0 down to deepest, and the leading part of |d| / ulp.

    b and d, of float32 or float64, are overwritten.
    """
    np.abs(d, out=d)
    with np.errstate(over="ignore"):
        d *= math.ldexp(1.0, -top)  # so that no power of two below leaves float32's range
    if b.dtype == np.float64:
        exponent = b.view(np.int64)
        exponent >>= 52
        exponent &= 0x7FF
        exponent -= 1023 + top
        np.clip(exponent, deepest, 0, out=exponent)
        binade = exponent.astype(np.int32)
        np.subtract(grid.mantissa_bits + 1023, exponent, out=exponent)
        exponent <<= 52
        with np.errstate(over="ignore"):  # infinity is of the highest level
            ulps = (d * exponent.view(np.float64)).astype(np.float32)
    else:
        binade = b.view(np.int32)
        binade >>= 23
        binade &= 0xFF
        binade -= 127 + top
        np.clip(binade, deepest, 0, out=binade)
        steps_up = np.subtract(grid.mantissa_bits + 127, binade)
        steps_up <<= 23
        with np.errstate(over="ignore"):
            ulps = np.multiply(d, steps_up.view(np.float32), out=d)
    changed = ulps > 0
    level = ulps.view(np.int32)
    level >>= 23 - LEVEL_BITS
    level -= (127 << LEVEL_BITS) - 1
    np.clip(level, 1, LEVEL_OCTAVES << LEVEL_BITS, out=level)
    level *= changed
    return binade, level


# ---------------------------------------------------------------------------------------- the model


@dataclass(frozen=True)
class Tables:
    """What the storage model gives for |d| even in one bin of the shape, by s / ulp."""

    second: Floats  # (ratios, bins): mean of (D / ulp)²
    product: Floats  # (ratios, bins): mean of D d / ulp²
    changed: Floats  # (ratios, bins): the chance that D is not 0
    chance: NDArray[np.float32]  # (coarse ratios, levels, bins): the chance of each level


@cache
def shape_edges() -> Floats:
    """(bins + 1,): where the bins of the shape begin and end, ascending from 0, in units of s."""
    octaves = np.arange((SHAPE_TO - SHAPE_FROM) * BIN_OCTAVE + 1) / BIN_OCTAVE + SHAPE_FROM
    return np.append(0.0, np.exp2(octaves))


@cache
def mean_squares() -> Floats:
    """(bins,): mean y² of each bin of the shape."""
    low, high = shape_edges()[:-1], shape_edges()[1:]
    return (low**2 + low * high + high**2) / 3


@cache
def half_normal() -> Floats:
    """The shape of a normal d: (bins,) chances, of mean y² 1."""
    edges = shape_edges()
    inside: Floats = np.diff([math.erf(edge / math.sqrt(2)) for edge in edges])
    return np.asarray(inside / inside.sum())


@cache
def tables(model: Model) -> Tables:
    """stored: D = round(d / ulp); dithered: both sides of D were rounded from numbers in between.

    A hat of width 2 about each k is then the chance of D = k: d is hit on average, and with more
    noise.
    """
    ratios = np.exp2(np.arange(RATIO_FROM * OCTAVE, RATIO_TO * OCTAVE + 1) / OCTAVE)
    edges = ratios[:, None] * shape_edges()
    widths = np.diff(edges)
    if model == "stored":
        below, second, product = _below, _primitive_second, _primitive_product
    else:
        below, second, product = _dithered_below, _dithered_second, _cube
    coarse = (COARSE_TO - RATIO_FROM) * OCTAVE + 1
    chance = np.zeros((coarse, len(levels().low), edges.shape[1] - 1), dtype=np.float32)
    previous = np.zeros_like(widths[:coarse])
    for level, following in enumerate(levels().low[1:]):
        up_to = np.clip(np.diff(below(edges[:coarse], following)) / widths[:coarse], 0.0, 1.0)
        chance[:, level] = up_to - previous
        previous = up_to
    chance[:, -1] = 1.0 - previous
    np.clip(chance, 0.0, 1.0, out=chance)
    changed = 1.0 - np.diff(below(edges, 1.0)) / widths
    return Tables(
        np.diff(second(edges)) / widths, np.diff(product(edges)) / widths, changed, chance
    )


def _primitive_second(x: Floats) -> Floats:
    """Integral from 0 to x of round(t)²."""
    n: Floats = np.floor(x + 0.5)
    return (n - 1) * n * (2 * n - 1) / 6 + n**2 * (x - n + 0.5)


def _primitive_product(x: Floats) -> Floats:
    """Integral from 0 to x of t round(t)."""
    n: Floats = np.floor(x + 0.5)
    return (n - 1) * n * (2 * n - 1) / 6 + n * (x - n + 0.5) * (x + n - 0.5) / 2


def _cube(x: Floats) -> Floats:
    return x**3 / 3


def _dithered_second(x: Floats) -> Floats:
    """Integral from 0 to x of t² + f (1 - f), f the fractional part of t."""
    n = np.floor(x)
    f = x - n
    return x**3 / 3 + n / 6 + f**2 / 2 - f**3 / 3


def _below(x: Floats, k: float) -> Floats:
    """Integral from 0 to x of the chance that round(t) < k."""
    return np.minimum(x, k - 0.5)


def _dithered_below(x: Floats, k: float) -> Floats:
    """The same with dither: the chance is 1 up to k - 1 and falls to 0 at k."""
    over = np.clip(x - (k - 1), 0.0, 1.0)
    return np.minimum(x, k - 1) + over - over**2 / 2


@dataclass(frozen=True)
class Fit:
    """A model fitted to counts. Energies are in units of unit²."""

    # by cell: log2 of s / unit on the grid of scales, in steps; NaN without a change
    scales: Floats
    shape: Floats  # (bins,): the distribution of |d| / s, which sums to 1
    update: Floats  # by cell: energy of d
    product: Floats  # by cell: sum of D d
    stored: Floats  # by cell: energy of D
    changed: Floats  # (BINADES,): expected number of changed entries
    energy: Floats  # (BINADES,): expected energy of D


def fit(counts: Counts, model: Model = "stored", rounds: int = 3, iterations: int = 30) -> Fit:
    """Scales and shape in turn, from a half-normal shape: `rounds` times, or scales alone at 0."""
    entries = counts.by_cell
    stored = counts.energies
    known = tables(model)
    shape = half_normal()
    scales = _solve(entries, stored, known, shape)
    for _ in range(rounds):
        shape = _improve(counts, scales, known, shape, iterations)
        scales = _solve(entries, stored, known, shape)
    return _fitted(counts, entries, stored, known, shape, scales)


def _ratio_index(scale_steps: Floats) -> Floats:
    """Place in the tables of s / ulp, (..., BINADES), fractional."""
    return scale_steps[..., None] + OCTAVE * np.arange(BINADES) - RATIO_FROM * OCTAVE


def _solve(entries: Floats, stored: Floats, known: Tables, shape: Floats) -> Floats:
    """The scale of each cell for which the expected energy is the stored one, interpolated between
    steps.
    """
    mean = known.second @ shape
    candidates = np.arange((RATIO_FROM * OCTAVE), (RATIO_TO - BINADES) * OCTAVE)
    at = np.clip(_ratio_index(candidates.astype(np.float64)).astype(np.intp), 0, len(mean) - 1)
    by_candidate = mean[at] * steps() ** 2  # (candidates, BINADES)
    expected = entries.reshape(-1, BINADES) @ by_candidate.T
    energy = stored.ravel()
    above = np.clip((expected < energy[:, None]).sum(axis=1), 1, len(candidates) - 1)
    low, high = (
        np.take_along_axis(expected, place[:, None], 1)[:, 0] for place in (above - 1, above)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.log(energy / low) / np.log(high / low)
    part = np.clip(np.where(low > 0, part, 1.0), 0.0, 1.0)
    return np.where(energy > 0, candidates[above - 1] + part, np.nan).reshape(stored.shape)


def _active(counts: Counts, scales: Floats) -> tuple[Indices, Indices, Floats]:
    """Counts by (ratio, level) of the cells that have a scale: ratios, levels and entries of those
    that occur.
    """
    place, level, number = counts.occurring
    size, width = (COARSE_TO - RATIO_FROM) * OCTAVE + 1, counts.entries.shape[3]
    ratios = np.rint(np.nan_to_num(_ratio_index(scales), nan=-1.0)).astype(np.intp).ravel()[place]
    inside = (ratios >= 0) & (ratios < size)
    table = np.bincount(ratios[inside] * width + level[inside], number[inside], size * width)
    found = np.flatnonzero(table)
    return found // width, found % width, table[found].astype(np.float64)


def _improve(
    counts: Counts, scales: Floats, known: Tables, shape: Floats, iterations: int
) -> Floats:
    """Steps of expectation-maximisation of the shape."""
    ratio, level, number = _active(counts, scales)
    if len(number) == 0:
        return shape
    chance = known.chance[ratio, level]
    share = (number / number.sum()).astype(np.float32)
    single = shape.astype(np.float32)
    for _ in range(iterations):
        single *= (share / np.maximum(chance @ single, TINY)) @ chance
    return single.astype(np.float64) / float(single.sum(dtype=np.float64))


def _fitted(
    counts: Counts, entries: Floats, stored: Floats, known: Tables, shape: Floats, scales: Floats
) -> Fit:
    at = _ratio_index(np.nan_to_num(scales, nan=RATIO_FROM * OCTAVE))
    below = np.clip(np.floor(at).astype(np.intp), 0, len(known.second) - 2)
    part = np.where(np.isfinite(scales), 1.0, 0.0)[..., None]
    between = np.clip(at - below, 0.0, 1.0)

    def expected(of_ratio: Floats) -> Floats:
        """(row classes, column classes, BINADES): a mean per entry at each cell's scale, 0 without
        one.
        """
        return part * (of_ratio[below] * (1 - between) + of_ratio[below + 1] * between)

    weight = entries * steps() ** 2
    squared = np.exp2(2 * np.nan_to_num(scales, nan=-np.inf) / OCTAVE) * float(
        mean_squares() @ shape
    )
    return Fit(
        scales=scales,
        shape=shape,
        update=entries.sum(axis=2) * squared,
        product=(weight * expected(known.product @ shape)).sum(axis=2),
        stored=stored,
        changed=(entries * expected(known.changed @ shape)).sum(axis=(0, 1)),
        energy=(weight * expected(known.second @ shape)).sum(axis=(0, 1)),
    )


# ------------------------------------------------------------------------------------------ verdict

ROUNDED_AWAY = 0.25  # kept below which corrected figures are null
# floor_ratio from which rounding has a hundredth of the energy, or two, whatever the history
CLEAR = 10.0
MISFIT = 0.2  # share of the stored energy in other binades than the model has it
ALTERNATIVE = 0.05  # relative difference of kept to which two models give the same figure
# mean y⁴ over squared mean y² of entries that the update reaches; 3 if normal, 1 if of one size
TAILED = 4.0
REACHED = 0.125  # of the root mean square: |d| below it counts as not reached
# (away - toward) / changed x (1 - kept): decay, whose steps rounding takes away first
LOPSIDED = 0.05
FEWEST = 200  # changed entries that were counted, below which nothing can be held against the model
# energies below it, or above its inverse, have parts that vanish in float64, or overflow
LEAST = 1e-250
# standard errors from which tuned - round(base) goes with what rounding took from the base
SLOPE_Z = 5.0


@dataclass(frozen=True)
class Binades:
    """Changes by binade of the base, from that of its largest entry down.

    One binade is half the one before. k <= BINADES.
    """

    entries: Floats  # (k,): share of all entries
    changed: Floats  # (k,): share of the binade's entries that changed; NaN without an entry
    expected: Floats  # (k,): the same by the fitted storage model


History = Literal["stored_base", "base_rounded", "base_kept", "far_above", "nothing_rounded"]
Reason = Literal["nothing_rounded", "rounding_unexplained", "rounded_away"]


@dataclass(frozen=True)
class Undone:
    """What is known of an update before it was stored."""

    # how the tuned side came to its grid; None where none explains the counts
    history: History | None

    # share of the stored energy that is the update's, above 0; None with a reason
    kept: float | None
    reason: Reason | None  # why kept is None; `rounded_away` stands beside a value
    norm: float | None = None  # frobenius norm of the update, in weights

    # share of entries that a normal update of that size leaves unchanged, 0 to 1
    zeros: float | None = None

    # share of the stored energy in other binades than the model has it, 0 to 1
    misfit: float | None = None

    # the same if both sides had been rounded from numbers in between
    alternative: float | None = None
    fourth: float | None = None  # mean y⁴ over squared mean y² of the shape, 1 or more
    lopsided: float | None = None  # (away - toward) / changed, -1 to 1
    of_rounded_base: bool = False  # whether kept and norm are of tuned - round(base)
    grid: FloatFormat | None = None  # of the tuned side
    binades: Binades | None = None


class Evidence(TypedDict):
    """What a verdict rests on, as in Undone."""

    misfit: float
    alternative: float
    fourth: float
    lopsided: float
    binades: Binades


def changes_by_binade(counts: Counts, fitted: Fit) -> Binades:
    """What the gate of the fit compares, down to the last binade that has entries."""
    entries, changed, _ = counts.by_binade
    last = int(np.flatnonzero(entries)[-1]) + 1
    with np.errstate(divide="ignore", invalid="ignore"):
        share, expected = (part[:last] / entries[:last] for part in (changed, fitted.changed))
    return Binades(entries[:last] / entries.sum(), share, expected)


def kept_share(fitted: Fit) -> float:
    """The share of the stored energy that is the update's, from a fit.

    In a cell D = a d + error with a = sum D d / sum d², so that a² sum d² is the update's. Purity
    is a sum over products of four entries at two rows and two columns. With cells of energy
    C = a² sum d² it carries over as ||M Mᵀ||_F, M the roots of C, and not as sum C. The two are the
    same where C is a product of rows and columns.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        coherent = np.where(fitted.update > 0, fitted.product**2 / fitted.update, 0.0)
    after = _paired(coherent) / float(fitted.stored.sum())
    before = _paired(fitted.update) / float(fitted.update.sum())
    return min(1.0, after / before)


def _paired(energies: Floats) -> float:
    """||M Mᵀ||_F of M the roots of energies."""
    root = np.sqrt(energies)
    return float(np.linalg.norm(root @ root.T))


def misfit(counts: Counts, fitted: Fit) -> float:
    """sum over binades of |energy stored - energy expected| / energy stored, in [0, 2)."""
    energy = counts.by_binade[2]
    return float(np.abs(fitted.energy - energy).sum() / energy.sum())


def tails(shape: Floats) -> float:
    """Mean y⁴ over squared mean y² of the entries that an update reaches."""
    squares = mean_squares()
    reached = np.where(squares >= REACHED**2 * float(squares @ shape), shape, 0.0)
    return float(reached.sum() * (reached @ squares**2) / (reached @ squares) ** 2)


def undo_counts(counts: Counts, energy: float, history: History) -> Undone:
    """The verdict on a D of that energy whose counts follow the storage model, or do not.

    The fit is a gate. rounding_unexplained where more than MISFIT of the energy is in other binades
    than expected; where rounding of both sides from numbers in between fits better and would give
    another figure (a master copy that was kept in more bits over stages); where few large entries
    have the energy of cells, so that small ones have another gain; where changes go with the sign
    of the weights (decay); where fewer than FEWEST entries changed. A part of the update of which
    nothing was stored, such as the decay of rows that no step reached, is in no count.
    """
    changed = counts.away + counts.toward
    if changed < FEWEST:
        return Undone(None, None, "rounding_unexplained")
    fitted, between = fit(counts), fit(counts, "dithered", rounds=1)
    kept = kept_share(fitted)
    norm = math.sqrt(energy * float(fitted.update.sum() / fitted.stored.sum()))
    entries = float(counts.entries.sum())
    wrong, other = misfit(counts, fitted), misfit(counts, between)
    kept_between = float(between.update.sum() / between.stored.sum())
    fourth = tails(fitted.shape)
    lopsided = (counts.away - counts.toward) / changed
    binades = changes_by_binade(counts, fitted)
    known = Evidence(
        misfit=wrong, alternative=other, fourth=fourth, lopsided=lopsided, binades=binades
    )
    ambiguous = other < wrong and abs(kept_between / kept - 1) > ALTERNATIVE
    tailed = fourth > TAILED and kept < 1 - 2 * ALTERNATIVE
    if wrong > MISFIT or ambiguous or tailed or abs(lopsided) * (1 - kept) > LOPSIDED:
        return Undone(None, None, "rounding_unexplained", **known)
    zeros = 1.0 - float(fit(counts, rounds=0).changed.sum()) / entries
    reason: Reason | None = "rounded_away" if kept < ROUNDED_AWAY else None
    return Undone(
        history, kept, reason, norm, zeros, of_rounded_base=history == "base_rounded", **known
    )


def undo(
    base: Matrix,
    tuned: Matrix,
    formats: tuple[str, str],
    lines: tuple[Floats, Floats],
    largest: float,
    dtype: torch.dtype,
    space: Workspace,
    floor_ratio: float | None = None,
) -> Undone:
    """What is known of the update between two stored matrices; their values decide the history.

    formats: stored dtypes. lines: (rows,) and (cols,) energies of tuned - base, unscaled. largest:
    the largest absolute entry of base. Which format a side was rounded to is told by its values, as
    an F32 file may hold BF16 numbers. floor_ratio: the column, of the coarser of the two formats;
    None counts entries whatever it is.

    - an adapter, or a tuned side of F32 or F64 values over a base of fewer bits: nothing_rounded;
    - floor_ratio >= CLEAR: far_above, kept = 1 - 1 / floor_ratio²; there is no count of zeros;
    - all base values on the tuned side's grid: stored_base, the storage model of tuned - base;
    - else base_rounded, if tuned - round(base) has nothing of what rounding took from the base, and
      the model fits it: the base was loaded in the tuned side's format;
    - else base_kept, if it has, and rounding both sides of that difference from numbers in between
      fits: errors are even over an ulp and independent, so kept = 1 - 1 / floor_ratio² with the ulp
      of the grid;
    - else, for scaled 8-bit floats, and where the energy is 0 or infinite in float64:
      rounding_unexplained.
    """
    if isinstance(tuned, Updated):
        return Undone("nothing_rounded", None, "nothing_rounded")
    if isinstance(base, BlockScaled | Updated) or isinstance(tuned, BlockScaled):
        return Undone(None, None, "rounding_unexplained")
    names = (
        coarser_grid(base, formats[0], dtype, space, "base"),
        coarser_grid(tuned, formats[1], dtype, space, "tuned"),
    )
    of_base, grid = (FLOATS[name] for name in names)
    if grid.mantissa_bits > of_base.mantissa_bits and names[1] in ("F32", "F64"):
        return Undone("nothing_rounded", None, "nothing_rounded")
    energy = float(lines[0].sum())
    coarser = min(FLOATS[name].mantissa_bits for name in formats)
    if not 0.0 < energy < math.inf:
        return Undone(None, None, "rounding_unexplained")
    if floor_ratio is not None and floor_ratio >= CLEAR and grid.mantissa_bits >= coarser:
        return _far_above(energy, energy / floor_ratio**2)
    if not LEAST < energy < 1.0 / LEAST:
        return Undone(None, None, "rounding_unexplained")
    undone = _counted(base, tuned, names, lines, largest, dtype, space)
    return replace(undone, grid=grid)


def _counted(
    base: Matrix,
    tuned: Matrix,
    names: tuple[str, str],
    lines: tuple[Floats, Floats],
    largest: float,
    dtype: torch.dtype,
    space: Workspace,
) -> Undone:
    """The history of a pair in which something was rounded, and what follows from it."""
    energy, grid = float(lines[0].sum()), FLOATS[names[1]]
    if _all_on(base, names[0], names[1], dtype, space):
        counts = count(base, tuned, grid, lines, largest, dtype)
        error = _even_error(counts)
        far = energy >= CLEAR**2 * error
        return _far_above(energy, error) if far else undo_counts(counts, energy, "stored_base")
    started = Rounded(base, grid)
    from_rounded = line_energies(started, tuned, dtype, space)
    if not from_rounded[0].any():
        return Undone("base_rounded", 0.0, "rounded_away", of_rounded_base=True)
    counts = count(started, tuned, grid, from_rounded, largest, dtype)
    if slope_z(base, tuned, grid, dtype, space) <= SLOPE_Z:
        return undo_counts(counts, float(from_rounded[0].sum()), "base_rounded")
    dithered = fit(counts, "dithered")
    wrong, binades = misfit(counts, dithered), changes_by_binade(counts, dithered)
    if wrong > MISFIT:
        return Undone(None, None, "rounding_unexplained", alternative=wrong, binades=binades)
    return replace(base_kept(energy, _even_error(counts)), binades=binades)


def slope_z(
    base: Matrix, tuned: Matrix, grid: FloatFormat, dtype: torch.dtype, space: Workspace
) -> float:
    """The slope of tuned - round(base) over base - round(base), in standard errors; both in ulps.

    0 on average where training started from round(base). Where it started from the base, tuned =
    round(base + d) holds the remainder: the slope is 1 for a large d, and above 0 for any.
    """
    product, squares, remainders, entries = 0.0, 0.0, 0.0, 0
    for index in blocks(tuned):
        b, t = (
            read_block(side, index, name, dtype, space)
            for side, name in ((base, "base"), (tuned, "tuned"))
        )
        rounded = b.to(getattr(torch, grid.torch_name)).to(dtype)
        ulp = torch.ldexp(
            torch.ones_like(b), torch.frexp(rounded).exponent - 1 - grid.mantissa_bits
        )
        # Large changes are only noise.
        rest, change = (b - rounded).div_(ulp), (t - rounded).div_(ulp).clamp_(-1, 1)
        product += float((rest * change).sum(dtype=torch.float64))
        squares += float((change * change).sum(dtype=torch.float64))
        remainders += float((rest * rest).sum(dtype=torch.float64))
        entries += b.numel()
    return (
        product * math.sqrt(entries / (squares * remainders)) if squares * remainders > 0 else 0.0
    )


def base_kept(energy: float, error: float) -> Undone:
    """energy: of D; error: sum of ulp² / 12.

    The base has more bits than the tuned side and was not rounded first.
    """
    kept = max(0.0, 1.0 - error / energy)
    return Undone(
        "base_kept", kept, "rounded_away" if kept < ROUNDED_AWAY else None, math.sqrt(kept * energy)
    )


def _even_error(counts: Counts) -> float:
    """sum of ulp² / 12 over all entries."""
    return float((counts.by_binade[0] * steps() ** 2).sum()) * counts.unit**2 / 12


def _far_above(energy: float, error: float) -> Undone:
    """The verdict where D is so much larger than its rounding that no history matters."""
    return Undone("far_above", 1.0 - error / energy, None, math.sqrt(energy - error))


def _all_on(
    base: Matrix, of_base: str, of_tuned: str, dtype: torch.dtype, space: Workspace
) -> bool:
    """Do all values of the base lie on the tuned side's grid?"""
    if of_base == of_tuned:
        return True
    # Otherwise its own grid would be this one.
    if FLOATS[of_base].mantissa_bits > FLOATS[of_tuned].mantissa_bits:
        return False
    return all(
        on_grid(read_block(base, index, "base", dtype, space), FLOATS[of_tuned])
        for index in blocks(base)
    )


def line_energies(
    base: Matrix, tuned: Matrix, dtype: torch.dtype, space: Workspace
) -> tuple[Floats, Floats]:
    """(rows,) and (cols,): energies of tuned - base in one pass, unscaled."""
    rows, cols = shape_of(tuned)
    r, c = torch.zeros(rows, dtype=torch.float64), torch.zeros(cols, dtype=torch.float64)
    tall, start = rows > cols, 0
    for index in blocks(tuned):
        d = read_block(tuned, index, "tuned", dtype, space).sub_(
            read_block(base, index, "base", dtype, space)
        )
        squares = d.double().square_()
        height, width = squares.shape
        row, col = (start, 0) if tall else (0, start)
        r[row : row + height] += squares.sum(1)
        c[col : col + width] += squares.sum(0)
        start += height if tall else width
    return r.numpy(), c.numpy()


def values(undone: Undone, base_norm: float) -> Values:
    """kept, relative_norm_unrounded and zero_share_expected.

    The last two are None where kept is, or is too small.
    """
    known = undone.kept is not None and undone.reason is None
    return {
        "kept": undone.kept,
        "relative_norm_unrounded": (
            undone.norm / base_norm if known and undone.norm and base_norm > 0 else None
        ),
        "zero_share_expected": undone.zeros if undone.kept is not None else None,
    }
