"""Ranks and energies on spectra whose answers are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shadow.spectra.singular_values import condition_number, norms, ranks, top_energies
from shadow.spectra.spectrum import Spectrum


def of(sigma):
    sigma = np.asarray(sigma, dtype=np.float64)
    return Spectrum(sigma, len(sigma), len(sigma), float(np.linalg.norm(sigma)), 0.0, "exact")


@pytest.mark.parametrize("m", [1, 2, 10, 97])
def test_equal_singular_values_have_every_rank_m(m):
    """A scaled orthogonal matrix: soft ranks are m, entropy 1, k directions have k/m."""
    values = ranks(of(np.full(m, 3.0)))
    for name in (
        "stable_rank", "effective_rank", "energy_rank", "participation_ratio", "numerical_rank",
    ):  # fmt: skip
        assert values[name] == pytest.approx(m)
    assert values["rank_90"] == math.ceil(0.9 * m - 1e-9)
    assert top_energies(of(np.full(m, 3.0)))["top4_energy"] == pytest.approx(min(4, m) / m)
    assert condition_number(of(np.full(m, 3.0))) == pytest.approx(1.0)


def test_rank_one():
    """One singular value: every rank is 1, all energy in the first direction."""
    values = ranks(of([5.0] + [0.0] * 19))
    assert {
        values[name] for name in ("stable_rank", "energy_rank", "participation_ratio", "rank_99")
    } == {1}
    assert values["effective_rank"] == 1.0
    assert top_energies(of([5.0] + [0.0] * 19))["top1_energy"] == 1.0
    assert condition_number(of([5.0, 0.0])) is None


def test_zero_matrix_has_no_ranks():
    """Ranks of a zero matrix are null, its norms and numerical rank 0."""
    zero = of(np.zeros(5))
    assert {v for k, v in ranks(zero).items() if k != "numerical_rank"} == {None}
    assert ranks(zero)["numerical_rank"] == 0
    assert set(top_energies(zero).values()) == {None}
    assert norms(zero) == {"frobenius_norm": 0.0, "spectral_norm": 0.0, "nuclear_norm": 0.0}


def test_two_values_by_hand():
    """sigma = (2, 1): E = 5, q = (4/5, 1/5), p = (2/3, 1/3)."""
    values = ranks(of([2.0, 1.0]))
    assert values["stable_rank"] == pytest.approx(5 / 4)
    assert values["participation_ratio"] == pytest.approx(25 / 17)
    assert values["effective_rank"] == pytest.approx(3 / 2 ** (2 / 3))
    assert values["energy_rank"] == pytest.approx(5 / 4**0.8)
    assert (values["rank_90"], norms(of([2.0, 1.0]))["nuclear_norm"]) == (2, 3.0)
