"""What a delta's spectrum would be if its entries kept their size and place but lost their signs.

The null keeps the row and column profile, the sparsity and the quantisation of the real delta D;
what a spectrum shows beyond it is structure between the entries. Its second moment has a closed
form, its edge a bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shadow.spectra.measurement import Values
from shadow.spectra.spectrum import Spectrum


@dataclass(frozen=True)
class Profile:
    """Where the energy of D lies, in units of the scaled D."""

    rows: NDArray[np.float64]  # (rows,): energies r_i
    cols: NDArray[np.float64]  # (cols,): energies c_j
    fourth: float  # sum of D_ij⁴
    scale: float  # the power of two that the entries of D were multiplied by
    changed: int  # rows of which any entry differs

    @property
    def energy(self) -> float:
        """sum of D_ij², > 0 unless both sides are equal."""
        return float(self.rows.sum())


def null_values(delta: Spectrum, profile: Profile, participation_ratio: float | None) -> Values:
    """null_participation_ratio, concentration, null_edge, spikes, spike_energy.

    With random signs, E ||D Dᵀ||_F² = sum r_i² + sum c_j² - sum D_ij⁴ exactly, so
    null_participation_ratio = E² / that, in [1, m]. concentration = ln(null / real) / ln(null): 0
    like the null, 1 rank one, below 0 flatter than noise; None where the null is below 2, as then
    there is nothing to concentrate. null_edge = sqrt(max r_i) + sqrt(max c_j) in units of sigma
    bounds the largest singular value of the null (Latala's and Bandeira & van Handel's bounds to
    leading order); spikes counts the sigmas above it and spike_energy is their share of the energy.
    """
    null, edge = closed_null(profile)
    concentration = None
    if null >= 2 and participation_ratio is not None:
        concentration = math.log(null / participation_ratio) / math.log(null)
    return {
        "null_participation_ratio": null,
        "concentration": concentration,
        "null_edge": edge,
        "spikes": delta.above(edge),
        "spike_energy": _share_above(delta, edge),
    }


def closed_null(profile: Profile) -> tuple[float, float]:
    """null_participation_ratio and null_edge, which need no spectrum."""
    null = profile.energy**2 / (
        float((profile.rows**2).sum()) + float((profile.cols**2).sum()) - profile.fourth
    )
    return null, (math.sqrt(profile.rows.max()) + math.sqrt(profile.cols.max())) / profile.scale


def coverage_values(profile: Profile) -> Values:
    """row_participation_ratio, col_participation_ratio, rows_changed: how much the change reaches.

    (sum r)² / sum r² in [1, rows], the number of rows that carry the energy, and the same of
    columns; the share of the rows of which any entry differs, in (0, 1]. In an embedding the rows
    are tokens.
    """
    return {
        "row_participation_ratio": _participation(profile.rows),
        "col_participation_ratio": _participation(profile.cols),
        "rows_changed": profile.changed / len(profile.rows),
    }


def _participation(energies: NDArray[np.float64]) -> float:
    return float(energies.sum() ** 2 / (energies**2).sum())


def _share_above(delta: Spectrum, edge: float) -> float | None:
    if delta.sigma[0] == 0:
        return None
    squares = (delta.sigma / delta.sigma[0]) ** 2
    return float(squares[delta.sigma > edge].sum() / squares.sum())
