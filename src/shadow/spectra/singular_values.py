"""Norms, ranks, energies and the tail of a spectrum.

Arrays in, numbers out; None if a number is not defined.

Notation: sigma_1 >= ... >= sigma_m, E = sum sigma², p = sigma / sum sigma, q = sigma² / E.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shadow.spectra.measurement import Values

if TYPE_CHECKING:
    from shadow.spectra.spectrum import Floats, Spectrum

# Energies that miss a threshold by less have met it: without it, rank_90 of ten equal values hangs
# on rounding.
TIE = 1e-9
# The smallest singular value of a large square matrix with a flat spectrum was 54 % off above its
# floor.
SMALLEST_ERROR = 0.05
NO_RANKS: Values = {
    "stable_rank": None,
    "effective_rank": None,
    "energy_rank": None,
    "participation_ratio": None,
    "rank_90": None,
    "rank_95": None,
    "rank_99": None,
    "numerical_rank": 0,
}


def entropy(p: Floats) -> float:
    """-sum p ln p in nats, with 0 ln 0 = 0."""
    positive = p[p > 0]
    terms = positive * np.log(positive)
    return float(-terms.sum()) + 0.0  # -0.0 of a one-point distribution becomes 0.0


def norms(spectrum: Spectrum) -> Values:
    """frobenius_norm from the entries, spectral_norm = sigma_1, nuclear_norm = sum sigma, of a
    spectrum, in weights.
    """
    sigma = spectrum.sigma
    return {
        "frobenius_norm": spectrum.norm,
        "spectral_norm": float(sigma[0]),
        "nuclear_norm": float(sigma.sum()),
    }


def ranks(spectrum: Spectrum) -> Values:
    """Soft and hard ranks of a spectrum; all but numerical_rank are None for a zero matrix.

    stable_rank = E / sigma_1² in [1, m] (Rudelson & Vershynin 2007); effective_rank = exp H(p) in
    [1, m] (Roy & Vetterli 2007); energy_rank = exp H(q) in [1, m]; participation_ratio = 1 / sum q²
    in [1, m]; rank_t = least k with q_1 + ... + q_k >= t (Biderman et al. 2024).
    """
    sigma = spectrum.sigma
    numerical = int(np.count_nonzero(sigma))
    if numerical == 0:
        return NO_RANKS.copy()
    relative = sigma / sigma[0]  # squares of the ratios can neither overflow nor vanish as a whole
    squares = relative**2
    q = squares / squares.sum()
    p = relative / relative.sum()
    values: Values = {
        "stable_rank": float(squares.sum()),
        "effective_rank": math.exp(entropy(p)),
        "energy_rank": math.exp(entropy(q)),
        "participation_ratio": float(1.0 / (q**2).sum()),
        "numerical_rank": numerical,
    }
    cumulative = np.cumsum(q)
    for percent in (90, 95, 99):
        before = np.searchsorted(cumulative, percent / 100 - TIE)
        values[f"rank_{percent}"] = int(before) + 1
    return values


def top_energies(spectrum: Spectrum, tops: Sequence[int] = (1, 4, 16, 64)) -> Values:
    """top{k}_energy = q_1 + ... + q_min(k, m) of a spectrum in (0, 1], for each k in tops; None for
    a zero matrix.
    """
    sigma = spectrum.sigma
    values: Values = {f"top{k}_energy": None for k in tops}
    if sigma[0] == 0:
        return values
    squares = (sigma / sigma[0]) ** 2
    total = squares.sum()
    for k in tops:
        leading = squares[:k].sum()
        values[f"top{k}_energy"] = float(leading / total)
    return values


def condition_number(spectrum: Spectrum) -> float | None:
    """sigma_1 / sigma_m of a spectrum, in [1, inf); None if unresolved, or rounding may move it
    over 5 %.
    """
    largest = float(spectrum.sigma[0])
    smallest = float(spectrum.sigma[-1])
    if smallest == 0:
        return None
    allowed = 2.0 * SMALLEST_ERROR * (smallest / largest) ** 2
    if spectrum.shift > allowed:
        return None
    return largest / smallest


def spectrum_values(spectrum: Spectrum) -> Values:
    """The columns of a spectrum that every subject has."""
    values = norms(spectrum)
    values |= ranks(spectrum)
    values |= top_energies(spectrum)
    values["sigma_floor"] = spectrum.floor
    values["condition_number"] = condition_number(spectrum)
    values |= power_law(spectrum)
    return values


# eigenvalues a power law is fitted to at least: fewer give an exponent without meaning
MIN_TAIL = 50
CHUNK = 1 << 18  # elements of the table of distances that are in memory at once
STRIDE = 16  # of the values at which distances are bounded; 8 and 32 took as long or longer
BOUND_ERROR = 1e-9  # relative rounding error of a bound and of a distance, with room


def power_law(spectrum: Spectrum) -> Values:
    """Fit the exponent of the eigenvalues lambda = sigma² of a spectrum above xmin, by maximum
    likelihood.

    alpha = 1 + n / sum ln(lambda_i / xmin) over the n eigenvalues >= xmin, in (1, inf), at the xmin
    of least two-sided Kolmogorov-Smirnov distance among the resolved eigenvalues that leave at
    least 50. Clauset, Shalizi & Newman 2009; for weights
    Martin & Mahoney 2021. None below 50 resolved.
    """
    nothing: Values = dict.fromkeys(("alpha", "alpha_xmin", "alpha_ks", "alpha_tail"))
    resolved = spectrum.sigma[spectrum.sigma > 0][::-1]
    if len(resolved) < MIN_TAIL:
        return nothing
    logs = 2.0 * np.log(resolved)  # ascending
    starts = np.arange(len(logs) - MIN_TAIL + 1)
    # sum of ln(lambda / xmin), from gaps: these are all >= 0, so nothing cancels
    gaps = np.diff(logs)
    larger = np.arange(len(gaps), 0, -1)  # values above each gap
    weighted = gaps * larger
    sums = np.cumsum(weighted[::-1])[::-1]
    sums = sums[starts]
    # a tail whose logs differ only by rounding has no exponent
    sizes = np.maximum(1.0, np.abs(logs[starts]))
    rounding = 1e-12 * len(logs) * sizes
    is_candidate = sums > rounding
    is_candidate[1:] &= gaps[: len(starts) - 1] > 0  # the first of equal candidates
    if not is_candidate.any():
        return nothing
    best, distance = _nearest(logs, starts[is_candidate], sums[is_candidate])
    tail = logs[best:]
    excess = tail - tail[0]
    exponent = len(tail) / float(excess.sum())
    smallest = float(resolved[best])
    return {
        "alpha": 1.0 + exponent,
        "alpha_xmin": smallest * smallest,  # infinite at 1e155
        "alpha_ks": distance,
        "alpha_tail": len(tail),
    }


def _nearest(logs: Floats, starts: NDArray[np.int64], sums: Floats) -> tuple[int, float]:
    """The candidate of least distance, the first of several, and that distance.

    The distance at a few values bounds it from below. Only candidates whose bound does not exceed
    the distance of the most promising one are compared at all values: a tenth of them in a spectrum
    that decays.
    """
    last = len(logs) - 1
    some = np.arange(0, last, STRIDE)
    places = np.append(some, last)
    parts = []
    for chunk in _chunks(len(starts), len(places)):
        parts.append(_distances(logs, starts[chunk], places, sums[chunk]))
    bounds = np.concatenate(parts)
    promising = starts[[np.argmin(bounds)]]
    (distance,) = _at_all_values(logs, promising)
    highest = distance * (1.0 + BOUND_ERROR)
    starts = starts[bounds <= highest]
    parts = []
    for chunk in _chunks(len(starts), len(logs)):
        parts.append(_at_all_values(logs, starts[chunk]))
    distances = np.concatenate(parts)
    best = int(np.argmin(distances))
    return int(starts[best]), float(distances[best])


def _chunks(count: int, width: int) -> Iterator[slice]:
    """Yield slices of so many candidates whose tables of a width hold at most CHUNK elements."""
    step = max(1, CHUNK // width)
    for start in range(0, count, step):
        yield slice(start, start + step)


def _at_all_values(logs: Floats, starts: NDArray[np.int64]) -> Floats:
    """The two-sided KS distance of each candidate's tail, logs[start:], from its fit."""
    places = np.arange(starts[0], len(logs))
    return _distances(logs, starts, places)


def _distances(
    logs: Floats,
    starts: NDArray[np.int64],
    places: NDArray[np.int64],
    sums: Floats | None = None,
) -> Floats:
    """The largest distance of each candidate at the values in these positions.

    With d = F_fit - F just below each value, the distance is max(max d, 1 / n - min d); d = 0 at
    the candidate itself, so entries below it may count as 0 too. sums: of ln(lambda / xmin) of each
    candidate; None where the places have all of its tail.
    """
    column = starts[:, None]
    count = len(logs) - column
    above = logs[places] - logs[column]  # ln(lambda_j / xmin_i)
    np.maximum(above, 0.0, out=above)
    if sums is None:
        sums = above.sum(axis=1)
    above *= -count / sums[:, None]
    np.exp(above, out=above)
    difference = np.subtract(1.0, above, out=above)
    smaller = np.maximum(places - column, 0)
    difference -= smaller / count
    highest = difference.max(axis=1)
    lowest = difference.min(axis=1)
    step = 1.0 / count[:, 0]
    distances: Floats = np.maximum(highest, step - lowest)
    return distances
