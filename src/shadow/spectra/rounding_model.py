"""A model of storage fitted to counts: the scale of each cell, and the shape that all cells share.

Scale: every cell has a scale s of its own. Shape: the distribution of |d| / s, by
expectation-maximisation from a half-normal one (Turnbull 1976, for censored intervals). Updates
with heavy tails, of rank one, or with most entries 0 have shapes that are far from normal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shadow.spectra.rounding_counts import BINADES, Counts, Floats, Indices, levels, steps

Model = Literal["stored", "dithered"]

OCTAVE = 8  # steps of the grid of scales in a factor of two
BIN_OCTAVE = 4  # bins of the shape in a factor of two
# log2 of |d| / s: the bins of the shape reach from one to the other, one more down to 0.
SHAPE_FROM, SHAPE_TO = -7, 7
RATIO_FROM, RATIO_TO = -10, 40  # log2 of s / ulp that tables of moments reach
COARSE_TO = 10  # the same of tables of chances: finer steps are too rare to matter to a shape
ITERATIONS = 30  # of expectation-maximisation in each round
TINY = 1e-30  # a chance above 0, in float32


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


def fit(counts: Counts, model: Model = "stored", rounds: int = 3) -> Fit:
    """Scales and shape in turn, from a half-normal shape: `rounds` times, or scales alone at 0."""
    entries = counts.by_cell
    stored = counts.energies
    known = tables(model)
    shape = half_normal()
    scales = _solve(entries, stored, known, shape)
    for _ in range(rounds):
        shape = _improve(counts, scales, known, shape)
        scales = _solve(entries, stored, known, shape)
    return _fitted(counts, entries, stored, known, shape, scales)


def fit_twice(counts: Counts, once: Fit) -> Fit:
    """The scales of two updates of equal size that were rounded one after the other, and make the
    counts together; of the shape of a fit of one. Sums are of both.
    """
    known = tables("stored")
    scales = _solve(counts.by_cell, once.stored / 2, known, once.shape)
    half = _fitted(counts, counts.by_cell, once.stored / 2, known, once.shape, scales)
    return replace(half, update=2 * half.update, product=2 * half.product, stored=once.stored)


def _ratio_index(scale_steps: Floats) -> Floats:
    """Place in the tables of s / ulp, (..., BINADES), fractional."""
    return scale_steps[..., None] + OCTAVE * np.arange(BINADES) - RATIO_FROM * OCTAVE


def _solve(entries: Floats, stored: Floats, known: Tables, shape: Floats) -> Floats:
    """The scale at which the expected energy of each cell is the stored one, between steps."""
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
    """Ratios and levels that occur in cells with a scale, and the number of entries of each."""
    place, level, number = counts.occurring
    size, width = (COARSE_TO - RATIO_FROM) * OCTAVE + 1, counts.entries.shape[3]
    ratios = np.rint(np.nan_to_num(_ratio_index(scales), nan=-1.0)).astype(np.intp).ravel()[place]
    inside = (ratios >= 0) & (ratios < size)
    table = np.bincount(ratios[inside] * width + level[inside], number[inside], size * width)
    found = np.flatnonzero(table)
    return found // width, found % width, table[found].astype(np.float64)


def _improve(counts: Counts, scales: Floats, known: Tables, shape: Floats) -> Floats:
    """Steps of expectation-maximisation of the shape."""
    ratio, level, number = _active(counts, scales)
    if len(number) == 0:
        return shape
    chance = known.chance[ratio, level]
    share = (number / number.sum()).astype(np.float32)
    single = shape.astype(np.float32)
    for _ in range(ITERATIONS):
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
        """(row classes, column classes, BINADES): mean of an entry at its cell's scale, else 0."""
        return part * (of_ratio[below] * (1 - between) + of_ratio[below + 1] * between)

    weight = entries * steps() ** 2
    mean = float(mean_squares() @ shape)
    squared = np.exp2(2 * np.nan_to_num(scales, nan=-np.inf) / OCTAVE) * mean
    return Fit(
        scales=scales,
        shape=shape,
        update=entries.sum(axis=2) * squared,
        product=(weight * expected(known.product @ shape)).sum(axis=2),
        stored=stored,
        changed=(entries * expected(known.changed @ shape)).sum(axis=(0, 1)),
        energy=(weight * expected(known.second @ shape)).sum(axis=(0, 1)),
    )
