"""Tail figures against samples of known law and a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from shadow.spectra import singular_values
from shadow.spectra.singular_values import power_law
from shadow.spectra.spectrum import Spectrum


def of(sigma, long_side=None):
    sigma = np.sort(np.asarray(sigma, dtype=np.float64))[::-1]
    return Spectrum(sigma, len(sigma), long_side or len(sigma), 1.0, 0.0, "exact")


@pytest.mark.parametrize("kind", ["pareto", "noise", "decaying", "spiked", "ties", "nearly equal"])
@pytest.mark.parametrize("m", [50, 120, 700])
def test_the_fit_is_the_nearest_of_all_candidates(kind, m):
    """Clauset's, by a loop over all; candidates that a bound rules out are farther."""
    rng = np.random.default_rng(3)
    sigma = {
        "pareto": lambda: rng.pareto(2, m) + 1e-3,
        "noise": lambda: np.linalg.svd(rng.standard_normal((m, 900)), compute_uv=False),
        "decaying": lambda: np.arange(1, m + 1) ** -0.3,
        "spiked": lambda: np.append(rng.random(m - 20), 1 + 10 * rng.random(20)),
        "ties": lambda: rng.integers(1, 90, m) / 8,
        "nearly equal": lambda: 1 + 1e-9 * rng.random(m),
    }[kind]()
    found, expected = power_law(of(sigma)), reference.power_law(np.sort(sigma))
    assert found["alpha_ks"] == pytest.approx(expected["alpha_ks"], rel=1e-6)
    assert found["alpha_tail"] == expected["alpha_tail"]
    for name in ("alpha", "alpha_xmin"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6)


def test_chunks_do_not_change_the_fit(monkeypatch):
    """Memory is bounded by doing the candidates in chunks; the fit is the same for any size."""
    sigma = np.random.default_rng(1).pareto(2, 300) + 0.1
    whole = power_law(of(sigma))
    monkeypatch.setattr(singular_values, "CHUNK", 700)
    assert power_law(of(sigma)) == pytest.approx(whole, rel=1e-12)


def test_power_law_needs_fifty_resolved_and_unequal_values():
    """Fewer than 50 resolved values, or equal ones, have no exponent."""
    assert set(power_law(of(np.arange(1, 50))).values()) == {None}
    assert power_law(of(np.arange(1, 51)))["alpha"] is not None
    with np.errstate(all="raise"):
        zeros = power_law(of(np.r_[np.arange(1, 51), np.zeros(30)]))
    assert zeros == power_law(of(np.arange(1, 51)))
    assert set(power_law(of(np.concatenate([np.arange(1, 50), np.zeros(30)]))).values()) == {None}
    assert set(power_law(of(np.full(80, 0.3))).values()) == {None}
