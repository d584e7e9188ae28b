"""Intervals and tests over layers, against enumerations, scipy and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from shadow.bootstrap import medians
from shadow.resampling import RESAMPLES, interval, resamples, sign_flip_p


def spread(values):
    """Values (layers, cells) as the functions take them: flat, the number of each one's layer, one component."""
    values = np.asarray(values, float)
    return values.ravel(), np.repeat(np.arange(len(values)), values.shape[1]), (len(values),)


def test_constant_differences_have_an_interval_of_no_width_and_the_least_p():
    """0.1 in every matrix of 6 layers: the bounds are 0.1, and 2 of 64 sign patterns are as far from 0."""
    assert interval(*spread(np.full((6, 3), 0.1))) == (0.1, 0.1, 0.95)
    assert sign_flip_p(np.full(6, 0.1)) == 2 / 64
    assert sign_flip_p(np.full(4, -0.1)) == 2 / 16
    assert sign_flip_p(np.zeros(5)) == 1.0
    assert sign_flip_p(np.zeros(0)) is None


@pytest.mark.parametrize(("layers", "level"), [(1, None), (3, None), (4, 0.875), (5, 0.9375), (6, 0.95), (40, 0.95)])
def test_the_confidence_is_what_so_many_layers_allow(layers, level):
    """Layers all of one sign happen by chance in 2^(1 - L) of cases; below 4 layers there is no interval."""
    low, high, confidence = interval(*spread(np.random.default_rng(0).normal(size=(layers, 3))))
    assert confidence == level
    assert (low is None) == (high is None) == (level is None)


@pytest.mark.parametrize("layers", [4, 5])
def test_few_layers_are_resampled_in_every_way(layers):
    """The medians are those of NumPy over every ordered draw of layers."""
    values = np.random.default_rng(1).normal(size=(layers, 3))
    expected = [np.median(values[list(draw)]) for draw in itertools.product(range(layers), repeat=layers)]
    found = medians(*spread(values)[:2], resamples((layers,)))
    np.testing.assert_array_equal(np.sort(found), np.sort(expected))
    low, high, _ = interval(*spread(values))
    assert (low, high) == (np.median(values, axis=1).min(), np.median(values, axis=1).max())


def test_the_interval_is_numpys_over_the_same_draws():
    """12 layers with unequal numbers of matrices: quantiles of medians that NumPy takes, draw by draw."""
    rng = np.random.default_rng(2)
    groups = [rng.normal(0.1, 0.2, size=1 + layer % 4) for layer in range(12)]
    layers = np.repeat(np.arange(12), [len(group) for group in groups])
    draws = np.random.Generator(np.random.PCG64(0)).integers(0, 12, (RESAMPLES, 12))
    medians = sorted(np.median(np.concatenate([groups[i] for i in draw])) for draw in draws)
    tail = stats.norm.cdf(np.sqrt(12 / 11) * stats.t.ppf(0.025, 11))
    cut = int(tail * RESAMPLES)
    low, high, level = interval(np.concatenate(groups), layers, (12,))
    assert (low, high, level) == (medians[cut], medians[RESAMPLES - 1 - cut], 0.95)


@pytest.mark.parametrize("sizes", [(2, 3), (1, 8)])
def test_components_keep_their_numbers_of_layers(sizes):
    """Every draw has as many layers of each component as there are, each layer of a component equally often."""
    times = resamples(sizes)
    assert len(times) == (2**2 * 3**3 if sizes == (2, 3) else RESAMPLES)
    assert (times[:, : sizes[0]].sum(axis=1) == sizes[0]).all()
    assert (times[:, sizes[0] :].sum(axis=1) == sizes[1]).all()
    np.testing.assert_allclose(times.mean(axis=0), 1, atol=0.05)


@pytest.mark.parametrize("layers", [5, 9, 13])
def test_p_is_scipys_exact_permutation_test(layers):
    """Sign flips of paired samples, every pattern: scipy.stats.permutation_test of permutation_type `samples`."""
    for shift in (0.0, 0.5):
        values = np.random.default_rng(layers).normal(shift, 1.0, size=layers)
        exact = stats.permutation_test(
            (values, np.zeros(layers)), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples",
            vectorized=True, n_resamples=np.inf,
        )  # fmt: skip
        assert sign_flip_p(values) == pytest.approx(exact.pvalue, rel=1e-9)


def test_p_of_many_layers_is_near_the_exact_one():
    """30 layers, random flips: within sampling error of the normal limit; and never 0."""
    values = np.random.default_rng(3).normal(0.3, 1.0, size=30)
    z = abs(values.sum()) / np.sqrt((values**2).sum())
    assert sign_flip_p(values) == pytest.approx(2 * stats.norm.sf(z), abs=0.02)
    assert sign_flip_p(np.ones(30)) == 1 / 10_000


tables = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 8), st.integers(1, 4)),
    elements=st.floats(-8, 8, allow_subnormal=False, width=32),
)


@settings(max_examples=60, deadline=None)
@given(tables, st.randoms(use_true_random=False))
def test_signs_orders_and_scales_carry_over(values, random):
    """-x has the mirrored interval and the same p; the order of rows changes nothing; 2 x has twice the interval."""
    flat, layers, sizes = spread(values)
    low, high, level = interval(flat, layers, sizes)
    per_layer = np.median(values, axis=1)
    assert sign_flip_p(per_layer) == sign_flip_p(-per_layer) == sign_flip_p(per_layer[::-1])
    order = list(range(len(flat)))
    random.shuffle(order)
    assert interval(flat[order], layers[order], sizes) == (low, high, level)
    if low is None:
        assert len(values) < 4
        return
    assert interval(-flat, layers, sizes) == (-high, -low, level)
    assert interval(2 * flat, layers, sizes) == (2 * low, 2 * high, level)
    assert flat.min() <= low <= high <= flat.max()
    assert 2.0 ** (1 - len(values)) <= sign_flip_p(per_layer) <= 1


def outside(layers, pairs, seed=0):
    """Of so many simulated pairs without a difference, the shares whose interval leaves out 0 and whose p is < 0.05.

    A matrix differs by a part of its layer, noise, and a part of its module, of which as many are up as down.
    """
    rng = np.random.default_rng(seed)
    excluded = significant = 0
    for _ in range(pairs):
        values = rng.normal(size=(layers, 1)) + rng.normal(size=(layers, 7)) + np.linspace(-1, 1, 7)
        low, high, _ = interval(*spread(values))
        excluded += low > 0 or high < 0
        significant += sign_flip_p(np.median(values, axis=1)) < 0.05
    return excluded / pairs, significant / pairs


@pytest.mark.parametrize(("layers", "nominal"), [(4, 0.125), (6, 0.05), (16, 0.05)])
def test_simulated_pairs_without_a_difference_are_told_apart_as_often_as_stated(layers, nominal):
    """The interval leaves out 0 in about 1 - its confidence of cases, and p < 0.05 in no more than 5 %."""
    pairs = 250
    excluded, significant = outside(layers, pairs)
    spread_of_rate = 3 * np.sqrt(nominal * (1 - nominal) / pairs)
    assert excluded == pytest.approx(nominal, abs=spread_of_rate)
    assert significant <= 0.05 + spread_of_rate
