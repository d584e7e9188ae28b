"""Norms, ranks and energies of a spectrum.

Arrays in, numbers out; None where a number is not defined.

Notation: sigma_1 >= ... >= sigma_m, E = sum sigma², p = sigma / sum sigma, q = sigma² / E.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shadow.spectra.measurement import Values

if TYPE_CHECKING:
    from shadow.spectra.spectrum import Spectrum

# Energies that miss a threshold by less have met it: without it, rank_90 of ten equal values hangs
# on rounding.
TIE = 1e-9
# The smallest singular value of a large square matrix with a flat spectrum was 54 % off above its
# floor.
SMALLEST_ERROR = 0.05
NO_RANKS: Values = dict.fromkeys((
    "stable_rank", "effective_rank", "energy_rank", "spectral_entropy", "participation_ratio",
    "rank_90", "rank_95", "rank_99",
))  # fmt: skip


def entropy(p: NDArray[np.float64]) -> float:
    """-sum p ln p in nats, with 0 ln 0 = 0."""
    p = p[p > 0]
    return float(-(p * np.log(p)).sum()) + 0.0  # -0.0 of a one-point distribution becomes 0.0


def norms(spectrum: Spectrum) -> Values:
    """frobenius_norm from the entries, spectral_norm = sigma_1, nuclear_norm = sum sigma."""
    return {
        "frobenius_norm": spectrum.norm,
        "spectral_norm": float(spectrum.sigma[0]),
        "nuclear_norm": float(spectrum.sigma.sum()),
    }


def ranks(spectrum: Spectrum) -> Values:
    """Soft and hard ranks; all but numerical_rank are None for a zero matrix.

    stable_rank = E / sigma_1² in [1, m] (Rudelson & Vershynin 2007); effective_rank = exp H(p) in
    [1, m] (Roy & Vetterli 2007); energy_rank = exp H(q) in [1, m]; spectral_entropy = H(q) / ln m
    in [0, 1]; participation_ratio = 1 / sum q² in [1, m]; rank_t = least k with q_1 + ... + q_k >=
    t (Biderman et al. 2024).
    """
    sigma = spectrum.sigma
    m = len(sigma)
    numerical = int(np.count_nonzero(sigma))
    if numerical == 0:
        return NO_RANKS | {"numerical_rank": 0}
    relative = sigma / sigma[0]  # squares of the ratios can neither overflow nor vanish as a whole
    squares = relative**2
    q = squares / squares.sum()
    cumulative = np.cumsum(q)
    h = entropy(q)
    return {
        "stable_rank": float(squares.sum()),
        "effective_rank": math.exp(entropy(relative / relative.sum())),
        "energy_rank": math.exp(h),
        "spectral_entropy": h / math.log(m) if m > 1 else None,
        "participation_ratio": float(1.0 / (q**2).sum()),
        "numerical_rank": numerical,
        **{f"rank_{t}": int(np.searchsorted(cumulative, t / 100 - TIE) + 1) for t in (90, 95, 99)},
    }


def top_energies(spectrum: Spectrum, tops: Sequence[int] = (1, 4, 16, 64)) -> Values:
    """top{k}_energy = q_1 + ... + q_min(k, m) in (0, 1]; None for a zero matrix."""
    if spectrum.sigma[0] == 0:
        return {f"top{k}_energy": None for k in tops}
    squares = (spectrum.sigma / spectrum.sigma[0]) ** 2
    return {f"top{k}_energy": float(squares[:k].sum() / squares.sum()) for k in tops}


def condition_number(spectrum: Spectrum) -> Values:
    """sigma_1 / sigma_m, in [1, inf); None if not resolved, or rounding may move it by over 5 %."""
    largest, smallest = float(spectrum.sigma[0]), float(spectrum.sigma[-1])
    if smallest == 0 or spectrum.shift > 2.0 * SMALLEST_ERROR * (smallest / largest) ** 2:
        return {"condition_number": None}
    return {"condition_number": largest / smallest}
