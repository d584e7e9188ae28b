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


def test_concentration_needs_a_null_of_two():
    """Entries 1 and a have a null of (1 + a²)² / (1 + a⁴), which is 2 where they are equal."""
    D = np.zeros((8, 9))
    D[3, 4] = 1.0
    for second in (0.0, 0.5):  # 1 alone, whose logarithm divides nothing
        D[5, 6] = second
        null = (1 + second**2) ** 2 / (1 + second**4)
        assert measured(D)["null_participation_ratio"] == pytest.approx(null)
        assert measured(D)["concentration"] is None
