"""Intervals over layers: against resampling by hand, against SciPy, and what they must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from shadow import bootstrap
from shadow.bootstrap import blocks_of, draws, expanded_tail, interval, interval_of_median, medians

RNG = np.random.default_rng(0)


def table(layers, modules, components=("language",)):
    """Values, components and layers of a model with two matrices outside its layers."""
    places = [(c, layer) for c in components for layer in range(layers) for _ in range(modules)]
    places += [("language", np.nan)] * 2
    values = RNG.standard_normal(len(places)) + np.array([0 if np.isnan(layer) else layer for _, layer in places]) / 4
    return values, [c for c, _ in places], [layer for _, layer in places]


@pytest.mark.parametrize("components", [("language",), ("vision", "language")])
@pytest.mark.parametrize("modules", [1, 4, 7])
def test_medians_are_those_of_the_repeated_rows(components, modules):
    """For each draw, NumPy's median of the rows written out as often as their layer was drawn."""
    values, names, layers = table(6, modules, components)
    blocks = blocks_of(names, layers)
    counts = draws(blocks.sizes)[:200]
    found = medians(values, blocks.codes, counts)
    for count, median in zip(counts, found, strict=True):
        times = np.where(blocks.codes < 0, 1, count[blocks.codes])
        assert median == np.median(np.repeat(values, times))


def test_layers_are_drawn_within_their_component():
    """Each draw has as many layers of each component as there are; what is outside them is always in."""
    _, names, layers = table(5, 3, ("vision", "language"))
    blocks = blocks_of(names, layers)
    counts = draws(blocks.sizes)
    assert blocks.sizes == (5, 5)
    assert (counts[:, :5].sum(1) == 5).all()
    assert (counts[:, 5:].sum(1) == 5).all()
    assert (blocks.codes[-2:] == -1).all()


@pytest.mark.parametrize("layers", [16, 40])
def test_bounds_for_unevenness_are_scipys_bca(layers):
    """A standard deviation over layers: scipy.stats.bootstrap's BCa, but for the chance in its draws."""
    values = RNG.lognormal(size=layers)

    def spread(counts):
        mean = counts @ values / layers
        return np.sqrt(counts @ values**2 / layers - mean**2)

    theirs = stats.bootstrap(
        (values,), np.std, n_resamples=20_000, confidence_level=1 - 2 * expanded_tail(layers), method="BCa",
        vectorized=True, rng=np.random.default_rng(1),
    )  # fmt: skip
    ours = interval(spread, blocks_of(["language"] * layers, range(layers)), unevenness=True)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.bounds == pytest.approx(theirs.confidence_interval, abs=0.15 * width)
    fewer = interval(spread, blocks_of(["language"] * 15, range(15)), unevenness=True)
    assert (fewer.bounds, fewer.reason) == (None, "only 15 layers, an interval takes 16")


@pytest.mark.parametrize("layers", [4, 12, 40])
def test_bounds_are_scipys_for_the_same_percentiles(layers):
    """scipy.stats.bootstrap, drawing indices of layers, gives the same bounds but for the chance in its draws."""
    values, names, places = table(layers, 7)
    values, names, places = values[:-2], names[:-2], places[:-2]
    by_layer = values.reshape(layers, 7)

    def median(index, axis=-1):
        return np.median(by_layer[index].reshape(*index.shape[:-1], -1), axis=-1)

    theirs = stats.bootstrap(
        (np.arange(layers),), median, n_resamples=20_000, confidence_level=1 - 2 * expanded_tail(layers),
        method="percentile", vectorized=True, rng=np.random.default_rng(1),
    )  # fmt: skip
    ours = interval_of_median(values, blocks_of(names, places))
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.bounds == pytest.approx(theirs.confidence_interval, abs=0.15 * width)
    assert theirs.confidence_interval.low <= np.median(values) <= theirs.confidence_interval.high


def test_the_order_of_rows_does_not_matter():
    """The same rows shuffled give the same bits."""
    values, names, layers = table(9, 7, ("vision", "language"))
    mixed = RNG.permutation(len(values))
    one = interval_of_median(values, blocks_of(names, layers))
    other = interval_of_median(values[mixed], blocks_of([names[i] for i in mixed], np.array(layers)[mixed]))
    assert one == other
    assert one.bounds[0] < np.median(values) < one.bounds[1]


def test_few_layers_claim_less_and_two_claim_nothing():
    """Of n draws the whole range holds the median with probability 1 - 2^(1-n); two give no interval."""
    found = {n: interval_of_median(*_with_blocks(n)) for n in (0, 1, 2, 3, 4, 5, 6, 40)}
    assert [found[n].bounds for n in (0, 1, 2)] == [None] * 3
    assert found[1].reason == "only 1 layer, an interval takes 3"
    assert found[0].reason == "outside the layers"
    assert [found[n].level for n in (3, 4, 5, 6, 40)] == [0.75, 0.875, 0.9375, 0.95, 0.95]
    assert [found[n].layers for n in found] == list(found)


def _with_blocks(layers):
    values, names, places = table(layers, 3)
    return values, blocks_of(names, places)


def test_missing_values_take_their_layers_away():
    """Rows that are NaN count for nothing, and a layer of nothing but those is not one."""
    values, names, layers = table(5, 3)
    values[:3] = np.nan
    values[3] = np.nan
    found = interval_of_median(values, blocks_of(names, layers))
    kept = ~np.isnan(values)
    assert found == interval_of_median(values[kept], blocks_of(np.array(names)[kept].tolist(), np.array(layers)[kept]))
    assert found.layers == 4


def test_a_figure_that_some_draws_do_not_have_has_no_interval():
    """A ratio whose denominator may vanish is told so, not given the bounds of the other draws."""
    energy = np.array([1.0, 0, 0, 0])
    blocks = blocks_of(["language"] * 4, range(4))
    with np.errstate(divide="ignore"):
        found = interval(lambda counts: 1.0 / (counts @ energy), blocks)
    assert (found.bounds, found.reason) == (None, "not defined for every choice of layers")
    assert not found.excludes_zero


def test_a_table_of_many_experts_takes_no_time():
    """18,432 matrices in 48 layers: well under a second a figure, as the bisection never writes the draws out."""
    values, names, layers = table(48, 384)
    blocks = blocks_of(names, layers)
    found = interval_of_median(values, blocks)
    assert found.bounds[0] < np.median(values) < found.bounds[1]
    assert len(bootstrap.draws(blocks.sizes)) == bootstrap.DRAWS
