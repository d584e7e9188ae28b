"""The sign-flip null: its closed form against Monte Carlo."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from measuring import measure

RNG = np.random.default_rng(0)


NOISE = RNG.standard_normal((60, 200))
PROFILES = {
    "iid": NOISE, "rows scaled": NOISE * np.geomspace(1, 50, 60)[:, None],
    "sparse": NOISE * (RNG.random((60, 200)) < 0.05), "student t": RNG.standard_t(3, (60, 200)),
    "rows and columns scaled": NOISE * np.geomspace(1, 9, 60)[:, None] * np.geomspace(1, 9, 200),
    "low rank": RNG.standard_normal((60, 2)) @ RNG.standard_normal((2, 200)),
    "tall": RNG.standard_normal((110, 60)),
}  # fmt: skip


def measured(D):
    base = torch.zeros(D.shape, dtype=torch.float64)
    tuned = torch.from_numpy(D)
    return measure(base, tuned, ("F64", "F64"))[2].values


@pytest.mark.parametrize("profile", PROFILES)
def test_closed_form_and_edge_are_those_of_random_signs(profile):
    """E ||D Dᵀ||² is sum r² + sum c² - sum D⁴: Monte Carlo agrees within its own error."""
    D = PROFILES[profile]
    found = measured(D)
    flips = D * RNG.choice([-1.0, 1.0], (400, *D.shape))
    grams = flips @ flips.swapaxes(1, 2)
    squares = (grams**2).sum((1, 2))
    expected = (D**2).sum() ** 2 / found["null_participation_ratio"]
    error = squares.std() / np.sqrt(len(squares))
    assert abs(squares.mean() - expected) < 4 * error + 1e-9 * expected
    assert np.linalg.eigvalsh(grams[:30]).max() < (1.05 * found["null_edge"]) ** 2


def test_concentration_is_zero_for_noise_and_one_for_rank_one():
    """The two ends of the scale, below 0 for an orthogonalised update, flatter than noise."""
    noise = RNG.standard_normal((300, 400))
    assert measured(noise)["concentration"] == pytest.approx(0.0, abs=0.005)
    assert measured(noise)["spikes"] == 0
    rank_one = np.outer(RNG.choice([-1.0, 1.0], 300), RNG.choice([-1.0, 1.0], 400))
    assert measured(rank_one)["concentration"] == pytest.approx(1.0, abs=1e-9)
    assert (measured(rank_one)["spikes"], measured(rank_one)["spike_energy"]) == (
        1,
        pytest.approx(1.0),
    )
    U, _, V = np.linalg.svd(noise, full_matrices=False)
    assert measured(U @ V)["concentration"] < -0.1


def test_rounding_hides_a_rank_one_update_from_ranks_and_not_from_concentration():
    """In bf16 rank one looks full-rank to effective_rank; its energy is in one direction."""
    base = torch.randn(300, 400, generator=torch.Generator().manual_seed(5)).mul(0.02).bfloat16()
    u, v = RNG.standard_normal(300), RNG.standard_normal(400)
    tuned = (base.double() + 2e-4 * torch.from_numpy(np.outer(u, v))).bfloat16()
    values = measure(base, tuned)[2].values
    assert values["numerical_rank"] > 290
    assert values["effective_rank"] > 50
    assert values["concentration"] > 0.9
    assert values["spikes"] == 1
    assert values["zero_share"] > 0.05


def test_a_rounded_copy_is_noise():
    """Rounding a checkpoint to another grid is no training: concentration 0, no spikes."""
    base = torch.randn(300, 400, generator=torch.Generator().manual_seed(6)).bfloat16()
    step = float(base.abs().max()) / 127
    tuned = (base.double() / step).round().mul(step).float()
    values = measure(base, tuned, ("BF16", "F32"))[2].values
    assert abs(values["concentration"]) < 0.01
    assert values["spikes"] == 0


def test_concentration_needs_something_to_concentrate():
    """A delta in a single entry: no concentration, and no division by ln 1."""
    D = np.zeros((20, 30))
    D[3, 4] = 1.0
    assert measured(D)["null_participation_ratio"] == pytest.approx(1.0)
    assert measured(D)["concentration"] is None


def test_concentration_needs_a_null_of_two():
    """Entries 1 and a have a null of (1 + a²)² / (1 + a⁴), which is 2 where they are equal."""
    D = np.zeros((8, 9))
    D[3, 4], D[5, 6] = 1.0, 0.5
    assert measured(D)["null_participation_ratio"] == pytest.approx(1.25**2 / (1 + 0.5**4))
    assert measured(D)["concentration"] is None
