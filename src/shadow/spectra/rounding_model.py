"""A model of storage fitted to counts: the scale of each cell, and the shape that all cells share.

Scale: every cell has a scale s of its own. Shape: the distribution of |d| / s, by
expectation-maximisation from a half-normal one (Turnbull 1976, for censored intervals). Updates
with heavy tails, of rank one, or with most entries 0 have shapes that are far from normal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from shadow.spectra.rounding_counts import BINADES, Counts, Floats, Indices, levels, steps

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
def tables() -> Tables:
    """Moments and chances of D = round(d / ulp)."""
    ratios = np.exp2(np.arange(RATIO_FROM * OCTAVE, RATIO_TO * OCTAVE + 1) / OCTAVE)
    edges = ratios[:, None] * shape_edges()
    widths = np.diff(edges)
    coarse = (COARSE_TO - RATIO_FROM) * OCTAVE + 1
    chance = np.zeros((coarse, len(levels().low), edges.shape[1] - 1), dtype=np.float32)
    previous = np.zeros_like(widths[:coarse])
    for level, following in enumerate(levels().low[1:]):
        below = np.diff(np.minimum(edges[:coarse], following - 0.5)) / widths[:coarse]
        np.clip(below, 0.0, 1.0, out=below)
        chance[:, level] = below - previous
        previous = below
    chance[:, -1] = 1.0 - previous
    np.clip(chance, 0.0, 1.0, out=chance)
    nearest: Floats = np.floor(edges + 0.5)
    # integrals from 0 to an edge, of round(t)² and t round(t)
    whole, rest = (nearest - 1) * nearest * (2 * nearest - 1) / 6, edges - nearest + 0.5
    second = whole + nearest**2 * rest
    product = whole + nearest * rest * (edges + nearest - 0.5) / 2
    changed = 1.0 - np.diff(np.minimum(edges, 0.5)) / widths
    return Tables(np.diff(second) / widths, np.diff(product) / widths, changed, chance)


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
    """Scales and shape in turn, from a half-normal shape: `rounds` times, or scales alone at 0."""
    shape = half_normal()
    scales = _solve(counts, shape)
    for _ in range(rounds):
        shape = _improve(counts, scales, shape)
        scales = _solve(counts, shape)
    return _fitted(counts, shape, scales)


def _ratio_index(scale_steps: Floats) -> Floats:
    """Place in the tables of s / ulp, (..., BINADES), fractional."""
    return scale_steps[..., None] + OCTAVE * np.arange(BINADES) - RATIO_FROM * OCTAVE


def _solve(counts: Counts, shape: Floats) -> Floats:
    """The scale at which the expected energy of each cell is the stored one, between steps."""
    mean = tables().second @ shape
    candidates = np.arange((RATIO_FROM * OCTAVE), (RATIO_TO - BINADES) * OCTAVE)
    at = np.clip(_ratio_index(candidates.astype(np.float64)).astype(np.intp), 0, len(mean) - 1)
    by_candidate = mean[at] * steps() ** 2  # (candidates, BINADES)
    expected = counts.by_cell.reshape(-1, BINADES) @ by_candidate.T
    energy = counts.energies.ravel()
    above = np.clip((expected < energy[:, None]).sum(axis=1), 1, len(candidates) - 1)
    low, high = (
        np.take_along_axis(expected, place[:, None], 1)[:, 0] for place in (above - 1, above)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.log(energy / low) / np.log(high / low)
    part = np.clip(np.where(low > 0, part, 1.0), 0.0, 1.0)
    return np.where(energy > 0, candidates[above - 1] + part, np.nan).reshape(counts.energies.shape)


def _active(counts: Counts, scales: Floats) -> tuple[Indices, Indices, Floats]:
    """Ratios and levels that occur in cells with a scale, and the number of entries of each."""
    place, level, number = counts.occurring
    size, width = (COARSE_TO - RATIO_FROM) * OCTAVE + 1, counts.entries.shape[3]
    ratios = np.rint(np.nan_to_num(_ratio_index(scales), nan=-1.0)).astype(np.intp).ravel()[place]
    inside = (ratios >= 0) & (ratios < size)
    table = np.bincount(ratios[inside] * width + level[inside], number[inside], size * width)
    found = np.flatnonzero(table)
    return found // width, found % width, table[found].astype(np.float64)


def _improve(counts: Counts, scales: Floats, shape: Floats) -> Floats:
    """Steps of expectation-maximisation of the shape."""
    ratio, level, number = _active(counts, scales)
    if len(number) == 0:
        return shape
    chance = tables().chance[ratio, level]
    share = (number / number.sum()).astype(np.float32)
    single = shape.astype(np.float32)
    for _ in range(ITERATIONS):
        single *= (share / np.maximum(chance @ single, TINY)) @ chance
    return single.astype(np.float64) / float(single.sum(dtype=np.float64))


def _fitted(counts: Counts, shape: Floats, scales: Floats) -> Fit:
    known, entries = tables(), counts.by_cell
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
        shape=shape,
        update=entries.sum(axis=2) * squared,
        product=(weight * expected(known.product @ shape)).sum(axis=2),
        stored=counts.energies,
        changed=(entries * expected(known.changed @ shape)).sum(axis=(0, 1)),
        energy=(weight * expected(known.second @ shape)).sum(axis=(0, 1)),
    )
