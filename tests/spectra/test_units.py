"""Hidden units of two models: a p value that is exact whatever the weights look like."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from shadow.spectra.relations.units import at_best, corner, matched, unit_cosines

UNITS, WIDTH = 12, 8


def trained(count: int, seed: int, steps: int = 60) -> torch.Tensor:
    """The first matrices (count, UNITS, WIDTH) of small networks that were trained apart on the
    same data, so that their units have learnt the same few directions.
    """
    torch.manual_seed(seed)
    up = torch.randn(count, UNITS, WIDTH) / WIDTH**0.5
    down = torch.randn(count, 1, UNITS) / UNITS**0.5
    scale = torch.linspace(0.2, 3, WIDTH)
    up.requires_grad_()
    down.requires_grad_()
    optimiser = torch.optim.Adam([up, down], 0.02)
    for _ in range(steps):
        x = torch.randn(WIDTH, 64) * scale[:, None]
        wanted = torch.sin(x[:1]) + x[1:2] * (x[2:3] > 0)
        loss = ((down @ torch.relu(up @ x) - wanted) ** 2).mean((1, 2)).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return up.detach().double()


def test_p_is_uniform_for_networks_that_were_initialised_apart():
    """Of 300 pairs that were trained on the same data, by a Kolmogorov-Smirnov test."""
    networks = trained(600, 0).numpy()
    found = [
        matched([unit_cosines(one, other)], seed=number, draws=999)[0]
        for number, (one, other) in enumerate(zip(networks[::2], networks[1::2], strict=True))
    ]
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert np.mean([p <= 0.05 for p in found]) < 0.1
    spread = np.std(
        [unit_cosines(*pair) for pair in zip(networks[::2], networks[1::2], strict=True)]
    )
    assert spread > 1.3 / WIDTH**0.5


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
