"""The sharp edge against closed forms and noise; decay, levels and top20 by definition."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch

from shadow.spectra import copies, entries, levels, noise, singular_values
from shadow.spectra.spectrum import Spectrum


def found(D):
    sigma = np.linalg.svd(D, compute_uv=False)
    return Spectrum(sigma, *D.shape, float(np.linalg.norm(D)), 0.0, "exact")


@pytest.mark.parametrize("kind", ["even", "heavy", "sparse", "lognormal", "one line"])
@pytest.mark.parametrize("shape", [(7, 90), (90, 7), (60, 60), (1, 5)])
def test_any_profile_has_the_least_of_its_curve(kind, shape):
    """On a fine grid, from energies one by one, without the margin of the column."""
    rng = np.random.default_rng(5)
    rows, cols = (
        {
            "even": lambda n: rng.random(n) + 0.5,
            "heavy": lambda n: rng.pareto(1.5, n) + 1e-6,
            "sparse": lambda n: (np.arange(n) % 5 == 0) * (rng.random(n) + 0.1),
            "lognormal": lambda n: np.exp(4 * rng.standard_normal(n)),
            "one line": lambda n: np.append(np.full(n - 1, 1e-9), 1.0),
        }[kind](side)
        for side in shape
    )
    cols *= rows.sum() / cols.sum()
    margin = 1 + min(shape) ** (-2 / 3)
    # energies within a ratio of 0.002 are grouped
    assert noise.sharp_edge(rows, cols) == pytest.approx(
        reference.sharp_edge(rows, cols) / margin, rel=1e-6
    )


def test_decay_has_a_cosine_below_zero():
    """D = -W: -1; growth: 1; nothing to divide by: None."""
    assert entries.decay_cosine(-6.0, 2.0, 3.0) == -1.0
    assert entries.decay_cosine(6.0, 2.0, 3.0) == 1.0
    assert entries.decay_cosine(0.0, 0.0, 3.0) is None


def test_a_cosine_with_a_side_that_is_far_smaller_is_unknown():
    """Beyond 2²⁰ times."""
    far = 2.0**20
    assert entries.cosine(far, 1.0, (far - 1) ** 2, -far * (far - 1)) == pytest.approx(1)
    assert entries.cosine(far + 1, 1.0, far**2, -far * (far + 1)) is None
    assert entries.cosine(0.0, 1.0, 1.0, 0.0) is entries.cosine(1.0, 0.0, 1.0, -1.0) is None


def test_top20_is_the_share_of_the_first_twenty():
    """20 of 25 equal singular values have 0.8 of the energy; of ten, all."""
    for W, share in ((np.eye(25), 0.8), (np.eye(10), 1.0), (np.zeros((4, 4)), None)):
        assert singular_values.top_energies(found(W), (20,)) == {
            "top20_energy": pytest.approx(share)
        }


def stored(W, kind):
    """Rows stored in BF16, or as a copy that went through int8 or int4 with a scale a row."""
    if kind in ("INT8", "INT4"):
        half = 127 if kind == "INT8" else 7
        scale = W.abs().amax(1, keepdim=True) / half
        W = (W / scale).round() * scale
    elif kind == "FP8":
        scale = W.abs().amax(1, keepdim=True) / 448
        W = (W / scale).to(torch.float8_e4m3fn).float() * scale
    return W.bfloat16()


@pytest.mark.parametrize("length", [1024, 512, 256])
@pytest.mark.parametrize(
    ("kind", "name"), [("BF16", None), ("INT8", "8 bits"), ("FP8", "8 bits"), ("INT4", "INT4")]
)
def test_levels_tell_a_round_trip(kind, name, length):
    """The share of distinct values is as expected to a tenth, and names the round trip."""
    W = torch.randn(64, length, generator=torch.Generator().manual_seed(0))
    share = copies.levels(stored(W, kind))
    assert levels.round_trip(share, length) == name
    if kind in ("BF16", "INT4"):
        assert share == pytest.approx(levels.expected_levels(kind, length), rel=0.1)


def test_levels_of_short_rows_name_nothing():
    """Below 256 entries BF16 and 8 bits are too close."""
    assert levels.round_trip(0.5, 128) is None


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_zeros_of_pruned_rows_are_no_levels(share):
    """BF16 with entries set to 0 is no copy through fewer bits; int8 with zeros still is."""
    W = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    keeps = W.abs() >= W.abs().quantile(share)
    assert levels.round_trip(copies.levels(W.bfloat16() * keeps), 1024) is None
    if share < 0.9:
        assert levels.round_trip(copies.levels(stored(W, "INT8") * keeps), 1024) == "8 bits"


@pytest.mark.parametrize(("nonzero", "share"), [
    ([7], 0.8), ([6], 1.0), ([0], 0.1), ([6, 8], 1.0), ([6, 6, 8], 1.0), ([6, 8, 8], 0.9),
])  # fmt: skip
def test_pruned_rows_have_fewer_than_seven_tenths_and_count_where_they_are_half(nonzero, share):
    """Rows of ten entries: so many that differ, and zeros, which are a level of unpruned ones."""
    rows = [[*range(1, count + 1), *[0] * (10 - count)] for count in nonzero]
    assert copies.levels(torch.tensor(rows).float()) == share


def test_levels_look_at_rows_spread_over_the_matrix():
    """Up to 64 rows, ascending, the first among them."""
    assert copies.levels_rows(3).tolist() == [0, 1, 2]
    rows = copies.levels_rows(1000)
    assert len(rows) == 64
    assert rows[0] == 0
    assert (np.diff(rows) >= 3).all()


@pytest.mark.parametrize("shape", [(3, 1100), (200, 300), (4, 50, 300)])
def test_levels_of_a_matrix_are_those_of_its_sampled_rows(shape, monkeypatch):
    """Read at once or, where it is large, row by row; of groups of rows too."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    rows = matrix.reshape(-1, shape[-1]).float().numpy()[:, :1024]
    distinct = [len(np.unique(rows[row])) for row in copies.levels_rows(len(rows))]
    for block in (0, copies.BLOCK):
        monkeypatch.setattr(copies, "BLOCK", block)
        assert copies.stored_levels(matrix, "BF16") == np.median(distinct) / rows.shape[1]


def test_energies_are_grouped_as_numpy_does():
    """Values and how often each occurs, zeros and tiny ones too."""
    energies = np.random.default_rng(0).gamma(0.05, size=2_000)
    energies[::9] = 0.0
    positive = energies[energies > 0]
    place = np.floor(np.log(positive / positive.max()) / noise.SAME)
    _, of_value, times = np.unique(place, return_inverse=True, return_counts=True)
    values, counts = noise._grouped(energies)
    assert (counts == times).all()
    np.testing.assert_allclose(values, np.bincount(of_value, weights=positive) / times, rtol=1e-12)
