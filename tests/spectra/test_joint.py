"""Two deltas of a matrix: NumPy's own answer, and what the rounding of their stages makes of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from chains import cosine

from shadow.dtypes import FLOATS
from shadow.spectra import joint
from shadow.spectra.joint import joint_values, shared_rounding
from shadow.spectra.spectrum import Workspace

BF16 = FLOATS["BF16"]


def three(shape: tuple[int, int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three matrices in BF16, the second delta leaning on the first."""
    generator = torch.Generator().manual_seed(seed)
    first, one, two = (torch.randn(shape, generator=generator) for _ in range(3))
    one = one + 3 * torch.outer(
        torch.randn(shape[0], generator=generator), torch.randn(shape[1], generator=generator)
    )
    middle = (0.02 * first + 1e-3 * one).bfloat16()
    last = (middle.float() + 2e-3 * two + 5e-4 * one).bfloat16()
    return (0.02 * first).bfloat16(), middle, last


@pytest.mark.parametrize("shape", [(64, 96), (300, 40), (9, 12), (32, 32)])
@pytest.mark.parametrize("block", [1 << 19, 130])
def test_two_deltas_are_held_against_each_other_as_numpy_does_it(monkeypatch, shape, block):
    """Inner product, energies, and energy inside the leading 16 directions, from NumPy's SVD;
    whatever the blocks.
    """
    monkeypatch.setattr(joint, "SMALL_BLOCK", block)
    matrices = three(shape)
    found = joint_values(
        ((matrices[0], matrices[1]), (matrices[1], matrices[2])), ("BF16",) * 3, Workspace()
    )
    a, b, c = (matrix.double().numpy() for matrix in matrices)
    old, new = b - a, c - b
    left, _, right = np.linalg.svd(old, full_matrices=False)
    k = min(16, *shape)
    assert found.inner == pytest.approx((old * new).sum())
    assert (found.first, found.second) == (
        pytest.approx((old**2).sum()),
        pytest.approx((new**2).sum()),
    )
    assert found.spread == pytest.approx(((old * new) ** 2).sum())
    inside = found.inside
    assert (inside.directions, inside.energy) == (k, pytest.approx((new**2).sum()))
    assert inside.left == pytest.approx(((left[:, :k].T @ new) ** 2).sum())
    assert inside.right == pytest.approx(((new @ right[:k].T) ** 2).sum())
    assert inside.chance_left == pytest.approx(((new**2).sum(1) * (left[:, :k] ** 2).sum(1)).sum())
    assert inside.chance_right == pytest.approx(((new**2).sum(0) * (right[:k] ** 2).sum(0)).sum())


def test_a_delta_of_nothing_has_no_directions():
    """Where either step left a matrix alone, its energy counts and nothing else."""
    first, middle, _ = three((32, 48))
    for pairs in (((first, middle), (middle, middle)), ((middle, middle), (middle, first))):
        found = joint_values(pairs, ("BF16",) * 3, Workspace())
        assert (found.inner, found.inside.directions, found.inside.energy) == (0.0, 0, 0.0)
        assert found.shared.inner == 0.0
        assert max(found.first, found.second) > 0


def rounded(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).bfloat16().double().numpy()


@pytest.mark.parametrize(
    ("first", "second"), [(2e-4, 2e-4), (1e-3, 1e-3), (2e-3, 1e-3), (2e-3, 2e-3), (0.01, 0.003)]
)
def test_the_shared_rounding_of_a_master_copy_is_that_of_a_simulation(first, second):
    """Normal updates of a master copy, stored thrice in BF16: the cosine of the stored deltas."""
    random = np.random.default_rng(0)
    master = 0.02 * random.standard_normal(250_000)
    moves = [0.02 * size * random.standard_normal(250_000) for size in (first, second)]
    a, b, c = rounded(master), rounded(master + moves[0]), rounded(master + moves[0] + moves[1])
    told = shared_rounding(b, b - a, c - b, BF16)
    predicted = told.inner / math.sqrt(told.first) / math.sqrt(told.second)
    assert predicted == pytest.approx(cosine(b - a, c - b), abs=0.006)
    if 1e-3 <= first <= 2e-3 and first == second:
        assert -0.28 < predicted < -0.21  # what trained updates of this size have shown


def test_training_from_the_stored_stage_shares_no_rounding():
    """The same updates, the second of them from the stored middle: a cosine of 0, within five of
    its deviations.
    """
    random = np.random.default_rng(0)
    a = rounded(0.02 * random.standard_normal(250_000))
    b = rounded(a + 2e-5 * random.standard_normal(250_000))
    c = rounded(b + 2e-5 * random.standard_normal(250_000))
    old, new = b - a, c - b
    spread = math.sqrt(((old * new) ** 2).sum() / (old @ old) / (new @ new))
    assert abs(cosine(old, new)) < 5 * spread


@pytest.mark.parametrize("width", [1e-4, 3e-3, 0.05, 0.3, 0.9, 1.99, 2.5])
def test_the_energy_of_stored_moves_is_that_of_an_integral(width):
    """g(t) = E f (1 - f), by the trapezoid rule over the normal density; and its inverse."""
    z = np.linspace(-9, 9, 200_001)
    weights = np.exp(-z * z / 2)
    part = np.abs(width * z) % 1
    expected = float((weights * part * (1 - part)).sum() / weights.sum())
    assert joint.moved_by(width) == pytest.approx(expected, rel=2e-3)
    assert joint.width_of(width**2 + joint.moved_by(width)) == pytest.approx(width, rel=2e-3)


def test_the_cosine_of_small_updates_of_a_master_copy_has_a_limit():
    """As updates get small, -4 sqrt(pi) int Q(y)² dy = -(2 - sqrt(2)) / 2: crossing a border and
    coming back.
    """
    expected = -(2 - math.sqrt(2)) / 2
    for width in (1e-3, 1e-2):
        joined = joint.moved_by(math.hypot(width, width))
        single = joint.moved_by(width)
        assert (joined - 2 * single) / 2 / (width**2 + single) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("size", [3e-4, 1e-3, 4e-3])
@pytest.mark.parametrize("lean", [0.1, 0.5, 0.9])
def test_storage_shrinks_a_cosine_by_less_than_what_it_kept(size, lean):
    """Trained from the stored stage: by a factor between sqrt(kept_1 kept_2) and 1, as both keep
    the same entries.
    """
    random = np.random.default_rng(1)
    entries = 100_000
    one, two = random.standard_normal((2, entries))
    updates = 0.02 * size * np.array([one, lean * one + math.sqrt(1 - lean**2) * two])
    a = rounded(0.02 * random.standard_normal(entries))
    b = rounded(a + updates[0])
    c = rounded(b + updates[1])
    stored = cosine(b - a, c - b) / cosine(*updates)
    kept = [cosine(b - a, updates[0]) ** 2, cosine(c - b, updates[1]) ** 2]
    assert math.sqrt(kept[0] * kept[1]) - 0.03 < stored < 1.03
