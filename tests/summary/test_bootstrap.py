"""Intervals over layers: against resampling by hand, against SciPy, and what they must
not depend on.
"""

import itertools

import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from shadow.summary.bootstrap import (
    DRAWS,
    Blocks,
    blocks_of,
    cut,
    draws,
    expanded_tail,
    interval,
    interval_of_median,
    medians,
)

RNG = np.random.default_rng(0)


def table(layers, modules, components=("language",)):
    """Values, components and layers of a model with two matrices outside its layers."""
    places = [(c, layer) for c in components for layer in range(layers) for _ in range(modules)]
    places += [("language", np.nan)] * 2
    values = (
        RNG.standard_normal(len(places))
        + np.array([0 if np.isnan(layer) else layer for _, layer in places]) / 4
    )
    return values, [c for c, _ in places], [layer for _, layer in places]


def by_layer(values):
    """Values (layers, cells) flat, with their blocks: one component, nothing outside its layers."""
    values = np.asarray(values, float)
    codes = np.repeat(np.arange(len(values)), values.shape[1])
    return values.ravel(), Blocks(codes, np.zeros(len(values), dtype=np.intp))


@pytest.mark.parametrize("sizes", [(2, 3), (5, 5), (1, 8), (3, 3)])
def test_components_keep_their_numbers_of_layers(sizes):
    """Every draw has as many layers of a component as there are, each of them equally often."""
    counts = draws(sizes)
    assert len(counts) == {(2, 3): 2**2 * 3**3, (3, 3): 27**2}.get(sizes, DRAWS)
    assert (counts[:, : sizes[0]].sum(axis=1) == sizes[0]).all()
    assert (counts[:, sizes[0] :].sum(axis=1) == sizes[1]).all()
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.05)


@pytest.mark.parametrize("layers", [4, 5])
def test_few_layers_are_drawn_in_every_way(layers):
    """The medians are NumPy's over every ordered draw of layers; the bounds are their range."""
    values = np.random.default_rng(1).normal(size=(layers, 3))
    expected = [
        np.median(values[list(draw)]) for draw in itertools.product(range(layers), repeat=layers)
    ]
    flat, blocks = by_layer(values)
    found = medians(flat, blocks.codes, draws((layers,)))
    np.testing.assert_array_equal(np.sort(found), np.sort(expected))
    assert interval_of_median(flat, blocks).bounds == (
        np.median(values, axis=1).min(),
        np.median(values, axis=1).max(),
    )


def test_the_interval_is_numpys_over_the_same_draws():
    """12 layers with unequal numbers of matrices: quantiles of NumPy's medians, draw by draw."""
    rng = np.random.default_rng(2)
    groups = [rng.normal(0.1, 0.2, size=1 + layer % 4) for layer in range(12)]
    codes = np.repeat(np.arange(12), [len(group) for group in groups])
    found = sorted(
        np.median(np.concatenate([groups[i] for i in np.repeat(np.arange(12), count)]))
        for count in draws((12,))
    )
    out = int(stats.norm.cdf(np.sqrt(12 / 11) * stats.t.ppf(0.025, 11)) * DRAWS)
    own = interval_of_median(np.concatenate(groups), blocks_of(["language"] * len(codes), codes))
    assert (own.bounds, own.level) == ((found[out], found[DRAWS - 1 - out]), 0.95)


@pytest.mark.parametrize("layers", [4, 5, 12, 40, 401])
def test_percentiles_are_expanded_as_a_t_interval_of_as_many_layers(layers):
    """Bounds of medians are often those of other percentiles too, as a median takes few values."""
    expanded = np.sqrt(layers / (layers - 1)) * stats.t.ppf(0.025, layers - 1)
    assert expanded_tail(layers) == pytest.approx(stats.norm.cdf(expanded), rel=1e-9)


@pytest.mark.parametrize(
    ("tail", "ends"), [(0.2, (2, 7)), (0.19, (1, 8)), (0.0, (0, 9)), (1.0, (9, 0))]
)
def test_what_is_cut_off_leaves_values(tail, ends):
    """20 % of ten at each end: two."""
    assert cut(np.arange(10.0)[::-1], tail) == ends


def test_few_layers_claim_less_and_three_claim_nothing():
    """Of n draws, the range has the median with chance 1 - 2^(1-n); three give no interval."""
    found = {n: interval_of_median(*_with_blocks(n)) for n in (0, 1, 2, 3, 4, 5, 6, 40)}
    assert [found[n].bounds for n in (0, 1, 2, 3)] == [None] * 4
    assert found[1].reason == "only 1 layer, at least 4 are needed"
    assert found[3].reason == "only 3 layers, at least 4 are needed"
    assert found[0].reason == "outside the layers"
    assert [found[n].level for n in (3, 4, 5, 6, 40)] == [None, 0.875, 0.9375, 0.95, 0.95]
    assert [found[n].layers for n in found] == list(found)


def _with_blocks(layers):
    values, names, places = table(layers, 3)
    return values, blocks_of(names, places)


@pytest.mark.parametrize(("sizes", "level"),
[((1, 1, 1, 1), None), ((3, 1), None), ((2, 2), None), ((4, 1), 0.875),
                                              ((3, 2), 0.875), ((30, 1), 0.95)])  # fmt: skip
def test_the_only_layer_of_a_component_says_nothing_of_others(sizes, level):
    """Draws cannot change it: components of one layer have one draw, and so no interval."""
    names = [f"component {number}" for number, size in enumerate(sizes) for _ in range(size)]
    places = [layer for size in sizes for layer in range(size)]
    found = interval_of_median(RNG.standard_normal(len(names)), blocks_of(names, places))
    assert (found.layers, found.level) == (sum(sizes), level)
    if level is None:
        assert found.bounds is None
        assert (
            found.reason
            == f"only 4 layers in {len(sizes)} components, at least {3 + len(sizes)} are needed"
        )
    else:
        assert found.bounds[0] < found.bounds[1]


def test_missing_values_take_their_layers_away():
    """Rows that are NaN count for nothing, and a layer of nothing but those is not one."""
    values, names, layers = table(5, 3)
    values[:3] = np.nan
    values[3] = np.nan
    found = interval_of_median(values, blocks_of(names, layers))
    kept = ~np.isnan(values)
    assert found == interval_of_median(
        values[kept], blocks_of(np.array(names)[kept].tolist(), np.array(layers)[kept])
    )
    assert found.layers == 4


def test_a_figure_that_some_draws_do_not_have_has_no_interval():
    """A ratio whose denominator may vanish is told so, not given the bounds of the other draws."""
    energy = np.array([1.0, 0, 0, 0])
    blocks = blocks_of(["language"] * 4, range(4))
    with np.errstate(divide="ignore"):
        found = interval(lambda counts: 1.0 / (counts @ energy), blocks)
    assert (found.bounds, found.reason) == (None, "not defined for every choice of layers")


def test_constant_differences_have_an_interval_of_no_width():
    assert interval_of_median(*by_layer(np.full((6, 3), 0.1))).bounds == (0.1, 0.1)


tables = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 8), st.integers(1, 4)),
    elements=st.floats(-8, 8, allow_subnormal=False, width=32),
)


@settings(max_examples=examples(60))
@given(tables, st.randoms(use_true_random=False))
def test_signs_orders_and_scales_carry_over(values, random):
    """-x has the mirrored interval."""
    flat, blocks = by_layer(values)
    found = interval_of_median(flat, blocks)
    order = list(range(len(flat)))
    random.shuffle(order)
    assert interval_of_median(flat[order], Blocks(blocks.codes[order], blocks.strata)) == found
    if found.bounds is None:
        assert len(values) < 4
        return
    low, high = found.bounds
    assert interval_of_median(-flat, blocks).bounds == (-high, -low)
    assert interval_of_median(2 * flat, blocks).bounds == (2 * low, 2 * high)
    assert flat.min() <= low <= high <= flat.max()
