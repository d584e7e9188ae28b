"""What independent noise alone does to effective ranks, for comparison with a change.

Two facts are used. The singular values of an m x n matrix of independent entries follow the law of
Marchenko and Pastur (1967). And a Gaussian matrix looks alike in every basis, so that what noise
does to the singular values of W depends on these alone, whatever W is.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from shadow.spectra.rank import entropy

REDUCED = 320  # singular values of the matrix that stands for a larger one
DRAWS = 2


def noise_effective_rank(rows: int, cols: int) -> float:
    """The effective rank that independent entries of one variance give a rows x cols matrix.

    It lies in [1, min(rows, cols)].

    m exp(-integral of p ln p) over the law of Marchenko and Pastur, by 2,000 points of Chebyshev's
    rule; about a direction too large below a short side of 20.
    """
    short, long = sorted((rows, cols))
    ratio = short / long
    angles = (np.arange(2_000) + 0.5) * (math.pi / 2_000)
    # x between the edges of the law by an angle: its density's root becomes a square of the sine
    values = 1 + ratio + 2 * math.sqrt(ratio) * np.cos(angles)
    weights = np.sin(angles) ** 2 / values
    weights /= weights.sum()
    sigma = np.sqrt(values)
    mean = float(weights @ sigma)
    return short * math.exp(math.log(mean) - float(weights @ (sigma * np.log(sigma))) / mean)


def shift_by_noise(sigma: NDArray[np.float64], rows: int, cols: int, norm: float) -> float:
    """How much independent noise of a Frobenius norm changes a rows x cols matrix's effective rank.

    sigma: the singular values of the matrix, (min(rows, cols),), descending. Returns the mean
    difference of effective ranks, signed, in directions. Of a matrix with more than REDUCED
    singular values a smaller one of the same proportion is drawn, whose values are quantiles of
    these, and its difference is scaled up; on spectra of trained layers that is right to 5 %
    (docs/reproduce.md).
    """
    short = len(sigma)
    if norm == 0 or short == 0 or sigma[0] == 0:
        return 0.0
    size = min(short, REDUCED)
    long = max(size, round(size * max(rows, cols) / short))
    places = (np.arange(size) + 0.5) * short / size - 0.5
    values = np.interp(places, np.arange(short), sigma)
    # a singular value meets noise of energy s² (rows + cols): the same in the smaller one
    variance = norm**2 / (rows * cols) * (rows + cols) / (size + long)
    before = _effective_rank(values)
    generator = np.random.default_rng(0)
    shifts = []
    for _ in range(DRAWS):
        drawn = generator.standard_normal((size, long)) * math.sqrt(variance)
        drawn[np.arange(size), np.arange(size)] += values
        squares = np.asarray(np.linalg.eigvalsh(drawn @ drawn.T), np.float64)
        shifts.append(_effective_rank(np.sqrt(squares.clip(min=0))) - before)
    return float(np.mean(shifts)) * short / size


def _effective_rank(sigma: NDArray[np.float64]) -> float:
    return math.exp(entropy(sigma / sigma.sum()))
