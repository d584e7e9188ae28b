"""The edge of a delta's null for a separable profile, where the base's directions lie in it, and
small measures beside.

Energies r_i of rows and c_j of columns give entries of variance r_i c_j / E. The largest singular
value of such noise converges to an edge that two scalar equations define (Silverstein & Choi 1995
for one profile; Paul & Silverstein 2009 for two).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from shadow.dtypes import FLOATS
from shadow.spectra.lazy import Matrix
from shadow.spectra.levels import LEVELS_OF
from shadow.spectra.measurement import Values
from shadow.spectra.spectrum import Spectrum

Floats = NDArray[np.float64]

# energies within this ratio count as one: moves the edge by less, and bounds the work of long sides
SAME = 0.002
LOGITS = (-60.0, 34.0)  # between which -s lies; above them 1 + s is lost to rounding
SAME_LOGIT, STEPS = 1e-10, 200  # a step that counts as none, and how many are taken at most
LEVELS_ROWS = 64  # rows, evenly spaced
TOP = 20


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

    def least_at(logit: float) -> float:
        nonlocal other
        t = -1.0 / (1.0 + math.exp(-logit))
        target = -float((of_a * a * t / (1.0 + a * t)).sum())
        other, q = _where(of_b * b, b, target, other)
        return math.log(q / -t)

    minimum = minimize_scalar(
        least_at, bounds=(-25.0, 25.0), method="bounded", options={"xatol": 1e-6}
    )
    return math.sqrt(math.exp(minimum.fun) * unit * largest_b)


def _where(weights: Floats, b: Floats, target: float, start: float) -> tuple[float, float]:
    """The logit of -s at which -s Q(s) = target > 0, and Q(s) = sum weights / (1 + b s) there.

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
        slope = float(shares @ inverse) * (1.0 + s) / q
        step = (wanted - math.log(-s * q)) / slope
        if abs(step) < SAME_LOGIT:
            break
        low, high = (logit, high) if step > 0 else (low, logit)
        logit = logit + step if low < logit + step < high else (low + high) / 2.0
    return logit, q


def _grouped(energies: Floats) -> tuple[Floats, Floats]:
    """Values and how often each occurs: means of energies within a ratio of SAME, zeros left out."""
    positive = energies[energies > 0]
    place = np.floor(np.log(positive / positive.max()) / SAME).astype(np.int64)
    _, of_value, times = np.unique(place, return_inverse=True, return_counts=True)
    return np.bincount(of_value, weights=positive) / times, times.astype(np.float64)


def sharp_edge_values(delta: Spectrum, rows: Floats, cols: Floats, scale: float) -> Values:
    """null_edge_sharp, spikes_sharp: the edge with a margin of 1 + m^(-2/3), and the sigmas above
    it.

    rows, cols: energies of scale * D. It assumes a separable profile: noise in blocks passes it.
    """
    edge = sharp_edge(rows, cols) * (1.0 + min(delta.rows, delta.cols) ** (-2 / 3)) / scale
    return {"null_edge_sharp": edge, "spikes_sharp": int(np.count_nonzero(delta.sigma > edge))}


def decay_cosine(product: float, delta_norm: float, base_norm: float) -> float | None:
    """<D, W_base> / (norm norm), in [-1, 1]; below 0 where weights decayed. product is summed from
    D itself.
    """
    norms = delta_norm * base_norm
    return max(-1.0, min(1.0, product / norms)) if norms > 0 else None


def top20_energy(delta: Spectrum) -> Values:
    """q_1 + ... + q_min(20, m); None for a zero matrix."""
    if delta.sigma[0] == 0:
        return {"top20_energy": None}
    squares = (delta.sigma / delta.sigma[0]) ** 2
    return {"top20_energy": float(squares[:TOP].sum() / squares.sum())}


def levels(rows: Tensor) -> float:
    """Median over rows of the share of distinct values among the first 1,024 entries, in (0, 1].

    rows: (count, cols), those of `levels_rows`.
    """
    seen = np.sort(rows[:, :LEVELS_OF].float().numpy(), axis=1)
    distinct = 1 + np.count_nonzero(seen[:, 1:] != seen[:, :-1], axis=1)
    return float(np.median(distinct) / seen.shape[1])


def levels_rows(count: int) -> NDArray[np.intp]:
    """Which rows of a matrix of `count` rows are looked at: up to 64, evenly spaced."""
    taken = min(count, LEVELS_ROWS)
    return (np.arange(taken) * count // taken).astype(np.intp)


def stored_levels(matrix: Matrix, stored: str) -> float | None:
    """`levels` of a stored matrix; None for formats of 8 bits, which have few by themselves, and
    for adapters.

    F32 and F64 are looked at in float32.
    """
    if not isinstance(matrix, Tensor) or FLOATS[stored].bits <= 8:
        return None
    grouped = matrix if matrix.ndim == 3 else matrix[None]
    each = grouped.shape[1]
    rows = torch.from_numpy(levels_rows(grouped.shape[0] * each))
    return levels(grouped[:, :, :LEVELS_OF][rows // each, rows % each])
