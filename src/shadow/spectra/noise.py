"""Noise with the profile of a delta, and how a delta differs from it.

The null has the row and column profile, the sparsity and the quantisation of the real delta D, but
random signs; what a spectrum shows beyond it is structure between the entries. Its second moment
has a closed form. Its edge has a bound, and for a separable profile a limit: energies r_i of rows
and c_j of columns give entries of variance r_i c_j / E, and the largest singular value of such
noise converges to an edge that two scalar equations define (Silverstein & Choi 1995 for one
profile; Paul & Silverstein 2009 for two).

Excess purity is comparable over shapes: X = 1 / participation_ratio - 1 / null_participation_ratio.
With q_i = sigma_i² / E, 1 / participation_ratio = sum q². If D = S + N with S holding the share f
of the energy and N without structure, X = f² (1 / PR_S - 1 / PR_null(S)), whose second term
vanishes as the matrix grows, while concentration goes to 1.

An adapter that was merged and stored is a few directions and the rounding of its storage, whose
singular values are those of noise on the grid of the weights. The rest of a full update has
structure of its own, however little energy it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shadow.spectra.measurement import SIGMAS, Estimate, Shape, Values, columns

if TYPE_CHECKING:
    from shadow.spectra.spectrum import Floats, Spectrum


@dataclass(frozen=True)
class Profile:
    """The energy of D by row and column, in units of the scaled D."""

    rows: Floats  # (rows,): energies r_i
    cols: Floats  # (cols,): energies c_j
    fourth: float  # sum of D_ij⁴
    scale: float  # the power of two that the entries of D were multiplied by
    changed: int  # rows of which any entry differs

    @property
    def energy(self) -> float:
        """sum of D_ij², above 0 unless both sides are equal."""
        return float(self.rows.sum())


def null_values(delta: Spectrum, profile: Profile, participation_ratio: float | None) -> Values:
    """null_participation_ratio, concentration, null_edge, spikes, spike_energy, null_edge_sharp,
    spikes_sharp.

    With random signs, E ||D Dᵀ||_F² = sum r_i² + sum c_j² - sum D_ij⁴ exactly, so
    null_participation_ratio = E² / that, in [1, m]. concentration = ln(null / real) / ln(null): 0
    like the null, 1 rank one, below 0 flatter than noise; None where the null is below 2, as then
    there is nothing to concentrate. null_edge = sqrt(max r_i) + sqrt(max c_j) in units of sigma
    bounds the largest singular value of the null (Latala's and Bandeira & van Handel's bounds to
    leading order); spikes counts the sigmas above it and spike_energy is their share of the energy.
    null_edge_sharp is that of a separable profile with a margin of 1 + m^(-2/3), and spikes_sharp
    counts the sigmas above it; noise in blocks passes it. delta: its spectrum.
    participation_ratio: the column, None if unknown.
    """
    null = closed_null(profile)
    leading = delta.sigma[0]
    spike_energy = None
    if leading:
        squares = (delta.sigma / leading) ** 2
        spiked = squares[delta.sigma > null.edge]
        spike_energy = float(spiked.sum() / squares.sum())
    concentration = None
    if null.participation_ratio >= 2 and participation_ratio is not None:
        excess = math.log(null.participation_ratio / participation_ratio)
        concentration = excess / math.log(null.participation_ratio)
    return {
        "null_participation_ratio": null.participation_ratio,
        "concentration": concentration,
        "null_edge": null.edge,
        "spikes": delta.above(null.edge),
        "spike_energy": spike_energy,
        "null_edge_sharp": null.sharp_edge,
        "spikes_sharp": delta.above(null.sharp_edge),
    }


@dataclass(frozen=True)
class ClosedNull:
    """Figures of the null that need no spectrum."""

    participation_ratio: float
    edge: float  # in weights, as that below
    sharp_edge: float


def closed_null(profile: Profile) -> ClosedNull:
    """The null of a profile, by the formulas of `null_values`."""
    rows = profile.rows
    cols = profile.cols
    by_row = float((rows**2).sum())
    by_col = float((cols**2).sum())
    squares = by_row + by_col - profile.fourth
    null = profile.energy**2 / squares
    edge = math.sqrt(rows.max()) + math.sqrt(cols.max())
    side = min(len(rows), len(cols))
    sharp = sharp_edge(rows, cols) * _margin(side)
    return ClosedNull(
        participation_ratio=null,
        edge=edge / profile.scale,
        sharp_edge=sharp / profile.scale,
    )


def _margin(side: int) -> float:
    """The factor above the limit of the edge that the largest singular value of noise on a short
    side stays below.
    """
    fluctuation: float = side ** (-2 / 3)
    return 1.0 + fluctuation


def coverage_values(profile: Profile) -> Values:
    """row_participation_ratio, col_participation_ratio and rows_changed, the reach of the change
    of a profile.

    (sum r)² / sum r² in [1, rows], the number of rows that carry the energy, and the same of
    columns; the share of the rows of which any entry differs, in (0, 1]. In an embedding the rows
    are tokens.
    """
    return {
        "row_participation_ratio": _participation_ratio(profile.rows),
        "col_participation_ratio": _participation_ratio(profile.cols),
        "rows_changed": profile.changed / len(profile.rows),
    }


def _participation_ratio(energies: Floats) -> float:
    """(sum e)² / sum e² of energies (n,), in [1, n]."""
    squares = energies**2
    return float(energies.sum() ** 2 / squares.sum())


# energies within this ratio count as one: moves the edge by less, and bounds the work of long sides
SAME = 0.002
TINIEST = math.ulp(0.0)  # a ratio of energies below it counts as it
LOGITS = (-60.0, 34.0)  # between which -s lies; above them 1 + s is lost to rounding
# largest |logit| of -t, and a slope by them that counts as none
SEARCHED = 25.0
LEVEL = 1e-7
# a step that counts as none, and how many are taken at most
SAME_LOGIT = 1e-10
STEPS = 200


def sharp_edge(rows: Floats, cols: Floats) -> float:
    """The largest singular value, in the limit, of noise with variances rows_i cols_j /
    sum(rows).

    With a = rows, b = cols / E, P(t) = sum a / (1 + a t) and Q(s) = sum b / (1 + b s), s(t) in (-1
    / max b, 0) solves s Q(s) = t P(t); the squared edge is the least of -Q(s(t)) / t over t in (-1
    / max a, 0).
    """
    energy = float(rows.sum())
    shares = cols / energy
    a, of_a = _grouped(rows)
    b, of_b = _grouped(shares)
    unit = a.max()
    a = a / unit
    b = b / b.max()
    weights_a = of_a * a
    weights_b = of_b * b
    logit_of_s = 0.0  # of -s: the next search begins near it

    def slope_and_value(logit: float) -> tuple[float, float]:
        """The derivative of ln(-Q(s(t)) / t) by the logit of -t, and its value."""
        nonlocal logit_of_s
        t = -1.0 / (1.0 + math.exp(-logit))
        inverse = 1.0 / (1.0 + a * t)
        parts = weights_a * inverse
        target = -t * float(np.add.reduce(parts))
        logit_of_s, q, s_times_q_slope = _where(weights_b, b, target, logit_of_s)
        s = -1.0 / (1.0 + math.exp(-logit_of_s))
        # ds / dt, of s Q(s) = t P(t)
        slope_of_right = float(parts @ inverse)
        slope_of_left = q + s_times_q_slope
        s_slope = slope_of_right / slope_of_left
        slope_of_q = t * s_times_q_slope / (s * q) * s_slope
        slope = (1.0 + t) * (slope_of_q - 1.0)
        value = math.log(q / -t)
        return slope, value

    least = math.exp(_least(slope_and_value))
    return math.sqrt(least * unit * float(shares.max()))


def _least(slope_and_value: Callable[[float], tuple[float, float]]) -> float:
    """Find the minimum of a function that falls and then rises, up to SEARCHED on either side of 0.

    It steps away from 0 until the slope changes sign, then uses false position in the slope,
    halving the slope of an end that stays (Illinois).
    """
    low = 0.0
    high = 0.0
    at_low, least = slope_and_value(low)
    at_high = at_low
    step = 1.0
    side = 0
    is_rightward = at_low < 0.0
    while at_low * at_high > 0.0 and max(-low, high) < SEARCHED:
        logit = min(step, SEARCHED)
        if is_rightward:
            low = high
            at_low = at_high
            high = logit
            at_high, value = slope_and_value(high)
        else:
            high = low
            at_high = at_low
            low = -logit
            at_low, value = slope_and_value(low)
        least = min(least, value)
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
            low = middle
            at_low = at_middle
            if side < 0:
                at_high /= 2.0
            side = -1
        else:
            high = middle
            at_high = at_middle
            if side > 0:
                at_low /= 2.0
            side = 1
    return least


def _where(weights: Floats, b: Floats, target: float, start: float) -> tuple[float, float, float]:
    """Find the logit of -s where -s Q(s) = target > 0, Q(s) = sum weights / (1 + b s), and s Q'(s).

    By Newton's method from `start` in logarithms, where a single b gives a straight line; where it
    leaves what is left of LOGITS, that is halved. b: in (0, 1], the largest of them 1.
    """
    low, high = LOGITS
    logit = start
    wanted = math.log(target)
    for _ in range(STEPS):
        s = -1.0 / (1.0 + math.exp(-logit))
        inverse = 1.0 / (1.0 + b * s)
        shares = weights * inverse
        q = float(np.add.reduce(shares))  # in half the time of `sum`
        squared = float(shares @ inverse)  # Q + s Q'
        slope = squared * (1.0 + s) / q
        step = (wanted - math.log(-s * q)) / slope
        if abs(step) < SAME_LOGIT:
            break
        if step > 0:
            low = logit
        else:
            high = logit
        logit += step
        if not low < logit < high:
            logit = (low + high) / 2.0
    return logit, q, squared - q


def _grouped(energies: Floats) -> tuple[Floats, Floats]:
    """Group energies within a ratio of SAME: their means and counts, without zeros."""
    largest = float(energies.max())
    least = float(np.min(energies, where=energies > 0, initial=largest))
    lowest = math.log(max(least / largest, TINIEST))
    bins = 2 - math.floor(lowest / SAME)
    positive = energies[energies > 0]
    ratios = np.maximum(positive / largest, TINIEST)
    logs = np.log(ratios)
    below = np.floor(logs / SAME)
    number = bins - 1 + below.astype(np.int64)
    sums = np.bincount(number, weights=positive, minlength=bins)
    members = np.bincount(number, minlength=bins)
    counts = members.astype(np.float64)
    occupied = counts > 0
    counts = counts[occupied]
    return sums[occupied] / counts, counts


NOISE = 5.0  # purity_z up to which X may be noise
# floor_ratio from which one rounding raises 1 / X of the stored delta by about 15 % at most
UNTOUCHED = 4.0
LEAST_KEPT = 0.25  # below it, rounding has taken too much to undo
# share of X that the leading direction has by itself, from which X / kept² may be far off
DOMINATED = 0.7
ENOUGH_KEPT = 0.75  # from here on that error is below 12 %
# share of the energy of the leading direction from which there is little else, and X / kept² holds
# again
ALONE = 0.8


def purity_z(
    purity: float, row_participation_ratio: float, col_participation_ratio: float
) -> float:
    """The excess purity X over its standard deviation, 2 / (row ratio x column ratio), under a
    separable null. The participation ratios are those of `coverage_values`.

    With random signs X is (2 / E²) times a sum over pairs of rows and pairs of columns of products
    of four entries, so its variance is (2 / E²)² times the sum of products of the four squares. Too
    large for profiles of blocks.
    """
    return purity * row_participation_ratio * col_participation_ratio / 2.0


def purity_values(of_delta: Values, shape: Shape, kept: float | None, reason: str | None) -> Values:
    """excess_purity, purity_z, excess_purity_unrounded, equivalent_directions, from other columns,
    with the errors that they have where the participation ratio is an estimate.

    excess_purity_unrounded = X / kept², None where kept is None or below LEAST_KEPT, or one
    direction in noise has most of it (see `dominated`). equivalent_directions = 1 / X of the
    unrounded where there is one. Where kept is unknown it is of the stored delta, if nothing was
    rounded or floor_ratio is from UNTOUCHED on: below, it would be the rounding's. None where
    purity_z <= NOISE, or above the short side. Where kept is of tuned - round(base), all columns
    have to be of that difference.

    X is a difference that cancels near its null. purity_z is None where its distance from 0, over
    the standard deviation of both, the null's and the estimate's, does not say as it does whether X
    is more than noise. Equivalent directions are None where that distance is not more than noise;
    otherwise the error takes away less than half of X.
    """
    names = ("excess_purity", "purity_z", "excess_purity_unrounded", "equivalent_directions")
    figures: dict[str, Estimate | None] = dict.fromkeys(names)
    real = of_delta["participation_ratio"]
    null = of_delta["null_participation_ratio"]
    by_row = of_delta["row_participation_ratio"]
    by_col = of_delta["col_participation_ratio"]
    if real is None or null is None or by_row is None or by_col is None:
        return columns(figures)
    purity = 1.0 / real - 1.0 / null
    z = purity_z(purity, by_row, by_col)
    error_of_ratio = of_delta.get("participation_ratio_error")  # None of all singular values
    error = (error_of_ratio or 0.0) / real**2
    share = error / max(abs(purity), TINIEST)
    distance = z / math.hypot(1.0, z * share / SIGMAS)
    figures["excess_purity"] = Estimate(purity, error)
    is_more = abs(z) > NOISE
    is_more_with_error = abs(distance) > NOISE
    if is_more == is_more_with_error:
        figures["purity_z"] = Estimate(z, abs(z) * share)
    best = None
    if kept is None:
        floor = of_delta["floor_ratio"]
        is_clear = floor is not None and floor >= UNTOUCHED
        if reason == "nothing_rounded" or is_clear:
            best = purity
    elif kept >= LEAST_KEPT and not dominated(purity, kept, of_delta["top1_energy"]):
        best = purity / kept**2
        figures["excess_purity_unrounded"] = Estimate(best, error / kept**2)
    if best is not None and distance > NOISE and best * min(shape) >= 1.0:
        count = 1.0 / best
        error_of_count = count * share / (1.0 - share)
        figures["equivalent_directions"] = Estimate(count, error_of_count)
    values = columns(figures)
    if error_of_ratio is None:
        return {name: values[name] for name in names}
    return values


def dominated(purity: float, kept: float, top1_energy: float | None) -> bool:
    """True if one direction in noise, of a share top1_energy, has most of X = purity, and much was
    rounded away.

    Its large entries survive rounding better than the noise around them, so that X / kept² is too
    large, by up to a half for rank one with a third of the energy. This does not apply to a
    direction with nearly all the energy: then kept was found from its own entries.
    """
    if top1_energy is None or purity <= 0 or kept >= ENOUGH_KEPT:
        return False
    leading = top1_energy / kept
    return leading < ALONE and top1_energy**2 > DOMINATED * purity


NOTHING = 1e-6  # share of the energy that counts as no rest at all
MOST = 0.5  # of the short side that may stand out
SEARCHES = 50  # of the search for the number that stand out
ALIKE = 0.1  # how far the participation ratio of the rest may be from that of noise


Rest = tuple[int, float]  # directions that stand out, and the share of the energy beyond them


def noise_like_rest(delta: Spectrum, rows: Floats, cols: Floats) -> Rest | None:
    """The least number of directions beyond which a delta is like noise; None if there is
    none up to half of the short side.

    rows, cols: where noise of storage lies, sums of squared ulps by row and by column, in any unit.
    The rest is like noise if none of its singular values is above the edge of noise of its energy,
    and its participation ratio is that of noise: both for this profile, without the directions that
    stand out.
    """
    squares = (delta.sigma / delta.sigma[0]) ** 2
    m = len(squares)
    beyond = np.append(np.cumsum(squares[::-1])[::-1], 0.0)  # energy from each direction on
    total = float(beyond[0])
    negligible = NOTHING * total
    leading = int(np.searchsorted(-beyond, -negligible))
    if leading <= MOST * m:
        return leading, float(beyond[leading]) / total
    profile = float(rows.sum())
    rows = rows / profile
    cols = cols / profile
    edge = sharp_edge(rows, cols) * _margin(m)
    k = 0
    for _ in range(SEARCHES):
        rows_left = 1 - k / len(rows)
        cols_left = 1 - k / len(cols)
        whole = float(beyond[k]) / (rows_left * cols_left)
        is_above = squares > whole * edge**2
        above = int(np.count_nonzero(is_above))
        if above <= k:
            break
        k = above
        if k > MOST * m:
            return None
    rest = float(beyond[k])
    fourth = float((squares[k:] ** 2).sum())
    if rest <= 0 or fourth <= 0:
        return None
    by_row = float((rows**2).sum()) / (1 - k / len(rows))
    by_col = float((cols**2).sum()) / (1 - k / len(cols))
    of_noise = by_row + by_col  # 1 over its participation ratio
    excess = fourth / rest**2 / of_noise - 1.0
    if abs(excess) > ALIKE:
        return None
    return k, rest / total


def rest_values(rest: Rest | None, noise: float | None, shape: Shape) -> Values:
    """rest_rank, rest_energy and rest_over_rounding. noise: the share of the energy that
    rounding left, None if unknown.

    Noise in as many directions as the rest has (1 - k / rows) (1 - k / cols) of its energy, of a
    shape (rows, cols). A negligible rest is no more than rounding.
    """
    values: Values = dict.fromkeys(("rest_rank", "rest_energy", "rest_over_rounding"))
    if rest is None:
        return values
    k, energy = rest
    values["rest_rank"] = k
    values["rest_energy"] = energy
    rows, cols = shape
    if energy <= NOTHING:
        values["rest_over_rounding"] = 0.0
    elif noise is not None and noise > 0:
        rows_left = 1 - k / rows
        cols_left = 1 - k / cols
        expected = noise * rows_left * cols_left
        values["rest_over_rounding"] = energy / expected
    return values
