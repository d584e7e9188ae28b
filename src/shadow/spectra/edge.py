"""The edge of a delta's null for a separable profile, and small measures beside.

Energies r_i of rows and c_j of columns give entries of variance r_i c_j / E. The largest singular
value of such noise converges to an edge that two scalar equations define (Silverstein & Choi 1995
for one profile; Paul & Silverstein 2009 for two).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.dtypes import FLOATS
from shadow.spectra.lazy import Matrix, Updated, is_quantised
from shadow.spectra.levels import LEVELS_OF
from shadow.spectra.measurement import Values
from shadow.spectra.spectrum import Spectrum, shape_of

Floats = NDArray[np.float64]

# energies within this ratio count as one: moves the edge by less, and bounds the work of long sides
SAME = 0.002
PIECE = 1 << 20  # energies that are grouped at a time
TINIEST = math.ulp(0.0)  # a ratio of energies below it counts as it
LOGITS = (-60.0, 34.0)  # between which -s lies; above them 1 + s is lost to rounding
SEARCHED, LEVEL = 25.0, 1e-7  # largest |logit| of -t, and a slope by them that counts as none
SAME_LOGIT, STEPS = 1e-10, 200  # a step that counts as none, and how many are taken at most
LEVELS_ROWS = 64  # rows, evenly spaced
UNPRUNED = 0.7  # share of the entries of a row that are not 0, below which it is pruned


def sharp_edge(rows: Floats, cols: Floats) -> float:
    """The largest singular value, in the limit, of noise with variances rows_i cols_j / sum(rows).

    With a = rows, b = cols / E, P(t) = sum a / (1 + a t) and Q(s) = sum b / (1 + b s), s(t) in (-1
    / max b, 0) solves s Q(s) = t P(t); the squared edge is the least of -Q(s(t)) / t over t in (-1
    / max a, 0).
    """
    energy = float(rows.sum())
    a, of_a = _grouped(rows)
    b, of_b = _grouped(cols / energy)
    unit = a.max()
    a, b = a / unit, b / b.max()
    largest_b = float((cols / energy).max())

    other = 0.0  # logit of -s, kept as the next search begins near it

    def slope_and_value(logit: float) -> tuple[float, float]:
        """Of ln(-Q(s(t)) / t) at a logit of -t: its derivative by the logit, and itself."""
        nonlocal other
        t = -1.0 / (1.0 + math.exp(-logit))
        inverse = 1.0 / (1.0 + a * t)
        parts = of_a * a * inverse
        other, q, s_times_q_slope = _where(of_b * b, b, -t * float(parts.sum()), other)
        s = -1.0 / (1.0 + math.exp(-other))
        s_slope = float(parts @ inverse) / (q + s_times_q_slope)  # ds / dt, of s Q(s) = t P(t)
        slope = (1.0 + t) * (t * s_times_q_slope / (s * q) * s_slope - 1.0)
        return slope, math.log(q / -t)

    return math.sqrt(math.exp(_least(slope_and_value)) * unit * largest_b)


def _least(slope_and_value: Callable[[float], tuple[float, float]]) -> float:
    """The least value of a function that falls and then rises, up to SEARCHED on either side of 0.

    By steps away from 0 until the slope has another sign, then by false position in the slope,
    halving the slope of an end that stays (Illinois).
    """
    low = high = 0.0
    at_low, least = slope_and_value(low)
    at_high, step, side = at_low, 1.0, 0
    toward = 1.0 if at_low < 0.0 else -1.0
    while at_low * at_high > 0.0 and abs(high if toward > 0 else low) < SEARCHED:
        there = toward * min(step, SEARCHED)
        slope, value = slope_and_value(there)
        least = min(least, value)
        if toward > 0.0:
            low, at_low, high, at_high = high, at_high, there, slope
        else:
            low, at_low, high, at_high = there, slope, low, at_low
        step *= 3.0
    if at_low * at_high >= 0.0:
        return least
    for _ in range(STEPS):
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        if not low < middle < high:
            break
        at_middle, value = slope_and_value(middle)
        least = min(least, value)
        if abs(at_middle) < LEVEL:
            break
        if at_middle < 0.0:
            low, at_low = middle, at_middle
            at_high, side = at_high / 2.0 if side < 0 else at_high, -1
        else:
            high, at_high = middle, at_middle
            at_low, side = at_low / 2.0 if side > 0 else at_low, 1
    return least


def _where(weights: Floats, b: Floats, target: float, start: float) -> tuple[float, float, float]:
    """The logit of -s where -s Q(s) = target > 0, Q(s) = sum weights / (1 + b s), and s Q'(s).

    By Newton's method from `start` in logarithms, where a single b gives a straight line; where it
    leaves what is left of LOGITS, that is halved. b: in (0, 1], the largest of them 1.
    """
    low, high = LOGITS
    logit, wanted = start, math.log(target)
    for _ in range(STEPS):
        s = -1.0 / (1.0 + math.exp(-logit))
        inverse = 1.0 / (1.0 + b * s)
        shares = weights * inverse
        q = float(shares.sum())
        squared = float(shares @ inverse)  # Q + s Q'
        slope = squared * (1.0 + s) / q
        step = (wanted - math.log(-s * q)) / slope
        if abs(step) < SAME_LOGIT:
            break
        low, high = (logit, high) if step > 0 else (low, logit)
        logit = logit + step if low < logit + step < high else (low + high) / 2.0
    return logit, q, squared - q


def _grouped(energies: Floats) -> tuple[Floats, Floats]:
    """Values and how often each occurs: means of energies within a ratio of SAME, without zeros."""
    largest = float(energies.max())
    least = float(np.min(energies, where=energies > 0, initial=largest))
    bins = 2 - math.floor(math.log(max(least / largest, TINIEST)) / SAME)
    sums, times = np.zeros(bins), np.zeros(bins)
    for start in range(0, len(energies), PIECE):
        part = energies[start : start + PIECE]
        part = part[part > 0]
        logs = np.log(np.maximum(part / largest, TINIEST))
        place = bins - 1 + np.floor(logs / SAME).astype(np.int64)
        sums += np.bincount(place, weights=part, minlength=bins)
        times += np.bincount(place, minlength=bins)
    found = times > 0
    return sums[found] / times[found], times[found]


def sharp_edge_values(delta: Spectrum, rows: Floats, cols: Floats, scale: float) -> Values:
    """null_edge_sharp, spikes_sharp: the edge with a margin of 1 + m^(-2/3), and the sigmas above.

    rows, cols: energies of scale * D. It assumes a separable profile: noise in blocks passes it.
    """
    edge = sharp_null_edge(rows, cols, scale)
    return {"null_edge_sharp": edge, "spikes_sharp": delta.above(edge)}


def sharp_null_edge(rows: Floats, cols: Floats, scale: float) -> float:
    """The edge with its margin, in weights; rows, cols: energies of scale * D."""
    margin: float = 1.0 + min(len(rows), len(cols)) ** (-2 / 3)
    return sharp_edge(rows, cols) * margin / scale


def cosine(base: float, tuned: float, energy: float, along: float) -> float | None:
    """<W_base, W_tuned> / (norm norm), from both norms, the energy of D and <W_base, D>, so that
    1 - cosine is right to 1e-7 relative_norm². None where a norm is 0.

    1 - cos = (|D|² - (|t| - |b|)²) / (2 |b| |t|), and |t| - |b| = (2 <b, D> + |D|²) / (|t| + |b|).
    Summed from products of base and tuned in float32, 1 - cosine was 22 % off at a relative norm of
    1e-3.
    """
    if base == 0 or tuned == 0:
        return None
    longer = (2.0 * along + energy) / (tuned + base)
    distance = (energy - longer**2) / (2.0 * base * tuned)
    return max(-1.0, min(1.0, 1.0 - distance))


def decay_cosine(product: float, delta_norm: float, base_norm: float) -> float | None:
    """<D, W_base> / (norm norm), in [-1, 1]: below 0 where weights decayed. product: from D."""
    norms = delta_norm * base_norm
    return max(-1.0, min(1.0, product / norms)) if norms > 0 else None


def levels(rows: Tensor) -> float:
    """Median share of distinct values in the first 1,024 entries of `levels_rows`, in (0, 1].

    Zeros of pruned rows are no values: the others are counted.
    """
    seen = np.sort(rows[:, :LEVELS_OF].float().numpy(), axis=1)
    distinct = 1 + np.count_nonzero(seen[:, 1:] != seen[:, :-1], axis=1)
    others = np.count_nonzero(seen, axis=1)
    pruned = (others > 0) & (others < UNPRUNED * seen.shape[1])
    if 2 * np.count_nonzero(pruned) < len(seen):
        return float(np.median(distinct) / seen.shape[1])
    return float(np.median((distinct[pruned] - 1) / others[pruned]))


def levels_rows(count: int) -> NDArray[np.intp]:
    """Which rows of a matrix of `count` rows are looked at: up to 64, evenly spaced."""
    taken = min(count, LEVELS_ROWS)
    return (np.arange(taken) * count // taken).astype(np.intp)


def stored_levels(matrix: Matrix, stored: str) -> float | None:
    """`levels` of a stored matrix.

    None for formats of 8 bits, which have few by themselves, and for adapters.

    F32 and F64 are looked at in float32.
    """
    if (is_quantised(matrix) or isinstance(matrix, Updated)) or FLOATS[stored].bits <= 8:
        return None
    each, rows = matrix.shape[-2], []
    for row in levels_rows(shape_of(matrix)[0]).tolist():
        group, place = divmod(row, each)
        groups = (slice(group, group + 1),) if matrix.ndim == 3 else ()
        part = matrix[(*groups, slice(place, place + 1), slice(LEVELS_OF))]
        rows.append(part.reshape(1, -1).to(torch.float32, copy=True))
    return levels(torch.cat(rows))
