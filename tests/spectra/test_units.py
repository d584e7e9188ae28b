"""Hidden units of two models: a p value that is exact whatever the weights look like."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from shadow.spectra.relations.units import at_best, corner, matched, unit_cosines


def test_p_and_z_are_those_of_all_orders():
    """Against every order of five units written out, in two layers at once."""
    generator = np.random.default_rng(1)
    layers = [generator.standard_normal((5, 5)) for _ in range(2)]
    orders = list(itertools.permutations(range(5)))
    sums = [np.array([one[range(5), order].sum() for order in orders]) for one in layers]
    scaled = [(one - one.mean()) / one.std() for one in sums]  # the first is the order as it is
    whole = (scaled[0][:, None] + scaled[1][None]).ravel()
    p, z = matched(layers, draws=99_999)
    assert z == pytest.approx(whole[0] / 2**0.5)
    assert p == pytest.approx((whole >= whole[0] - 1e-9).mean(), abs=0.006)


def test_a_model_that_was_trained_on_matches_and_one_in_another_order_does_not():
    """Power: noise of twice the size of the weights leaves p at its least."""
    generator = np.random.default_rng(2)
    up, gate = generator.standard_normal((2, 256, 64))
    moved = [one + 0.1 * generator.standard_normal(one.shape) for one in (up, gate)]
    far = up + 2 * generator.standard_normal(up.shape)
    assert matched([unit_cosines(far, up)])[0] == 1e-4
    order = generator.permutation(256)
    p, _ = matched([unit_cosines(moved[0][order], up)])
    assert p > 1e-3
    found = [
        unit_cosines(one[order][:64], base) for one, base in zip(moved, (up, gate), strict=True)
    ]
    assert at_best(*found) > 0.95
    other = [unit_cosines(generator.standard_normal((64, 64)), base) for base in (up, gate)]
    assert at_best(*other) < 0.3


def test_what_says_nothing_has_p_1():
    """No matrices, units of 0, and units that are all alike."""
    ones = np.ones((8, 4))
    for cosines in ([], [unit_cosines(ones, ones)], [unit_cosines(0 * ones, ones)]):
        assert matched(cosines) == (1.0, 0.0)


def test_corners():
    """At a base the ways to two models that left it are at right angles."""
    generator = np.random.default_rng(3)
    base = generator.standard_normal((300, 300))
    a, b, c = (base + 0.1 * generator.standard_normal(base.shape) for _ in range(3))
    assert corner(base, a, b) == pytest.approx(0, abs=0.02)
    assert corner(a, b, c) == pytest.approx(0.5, abs=0.02)
    assert corner(a, base, b) == pytest.approx(0.5**0.5, abs=0.02)
    assert corner(a, a, b) is None
