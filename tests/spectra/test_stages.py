"""A straight line through the stages of a run: R² from the inner products of the steps, against
regressions of every entry, closed forms, shuffled steps, and what else makes a path look straight.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shadow.spectra import stages
from shadow.spectra.line import StepProducts, line_share
from shadow.spectra.spectrum import Workspace
from shadow.spectra.stages import step_products


def path(shape: tuple[int, ...], count: int, drift: float = 0.0, seed: int = 0) -> np.ndarray:
    """So many stages of a walk with steps of growing size, some of them along one direction."""
    rng = np.random.default_rng(seed)
    along = rng.standard_normal(shape) + 0.3
    steps = [(1 + t) * (rng.standard_normal(shape) + drift * along) for t in range(count - 1)]
    return 0.02 * rng.standard_normal(shape) + 1e-3 * np.cumsum([np.zeros(shape), *steps], axis=0)


def regressed(walked: np.ndarray) -> float:
    """Explained over total squares, of a regression of every entry on the number of the stage."""
    flat = walked.reshape(len(walked), -1)
    times = np.arange(len(flat))
    fitted = np.polynomial.polynomial.polyval(times, np.polyfit(times, flat, 1)[::-1]).T
    mean = flat.mean(axis=0)
    return float(((fitted - mean) ** 2).sum() / ((flat - mean) ** 2).sum())


def products(walked: np.ndarray) -> StepProducts:
    return step_products([torch.from_numpy(stage) for stage in walked], Workspace())


@pytest.mark.parametrize("count", [3, 4, 5, 9, 14])
@pytest.mark.parametrize("shape", [(30, 40), (90, 7), (3, 8, 5), (1, 1)])
@pytest.mark.parametrize("drift", [0.0, 0.7])
@pytest.mark.parametrize("part", [1 << 16, 130])
def test_r2_is_that_of_a_regression_of_every_entry(monkeypatch, count, shape, drift, part):
    """Whatever the number of stages, the shape and the parts."""
    monkeypatch.setattr(stages, "PART", part)
    walked = path(shape, count, drift)
    found = products(walked)
    moves = np.diff(walked, axis=0).reshape(count - 1, -1)
    assert found.inner == pytest.approx(moves @ moves.T)
    assert line_share(found.inner) == pytest.approx(regressed(walked), rel=1e-9)


@pytest.mark.parametrize("drift", [0.0, 0.7])
def test_a_walk_is_the_mean_of_shuffled_steps(drift):
    """By chance: the mean over 400 runs whose steps have their entries in random places, within
    three of its errors. Their mean, which shuffling leaves, counts.
    """
    walked, rng = path((20, 30), 5, drift), np.random.default_rng(1)
    moves = np.diff(walked, axis=0).reshape(4, -1)
    drawn = [
        regressed(np.cumsum([0 * moves[0], *map(rng.permutation, moves)], axis=0))
        for _ in range(400)
    ]
    found = line_share(products(walked).by_chance)
    assert found == pytest.approx(np.mean(drawn), abs=3 * np.std(drawn) / 20 + 1e-3)


@pytest.mark.parametrize("steps", [2, 3, 4, 8, 13, 199])
def test_equal_steps_without_a_direction_have_a_closed_form(steps):
    """.6 (n² + 1) / (n² - 1) with n stages: three quarters with three of them; a line has 1, and
    steps back and forth nearly nothing.
    """
    n = steps + 1
    walk = line_share(np.eye(steps))
    assert walk == pytest.approx(0.6 * (n * n + 1) / (n * n - 1))
    assert steps != 2 or walk == pytest.approx(0.75)
    assert line_share(np.ones((steps, steps))) == pytest.approx(1)
    signs = (-1.0) ** np.arange(steps)
    assert line_share(np.outer(signs, signs)) < 1 / steps
    assert line_share(np.zeros((steps, steps))) is None


def test_a_straight_path_is_a_line_at_any_size():
    """R² of 1 with even steps; less with uneven ones, as the steps count as even."""
    start, step = np.random.default_rng(0).standard_normal((2, 40, 50))
    for scale in (1e-12, 1.0, 1e12):
        assert line_share(
            products(np.array([scale * (start + t * step) for t in range(6)])).inner
        ) == pytest.approx(1)
    uneven = line_share(products(np.array([start + t * t * step for t in range(6)])).inner)
    assert 0.9 < uneven < 0.95
    still = products(np.array([start] * 4))
    assert line_share(still.inner) is line_share(still.by_chance) is None


def test_matrices_are_summed_as_one():
    """R² of two matrices together weighs each by how far it moved."""
    one, two = path((20, 30), 4, 0.9), 10 * path((15, 8), 4, 0.0, seed=3)
    both = StepProducts.summed([products(one), products(two)])
    flat = [walked.reshape(4, -1) for walked in (one, two)]
    assert line_share(both.inner) == pytest.approx(regressed(np.concatenate(flat, axis=1)))
    assert both.finite
    assert not products(path((4, 4), 3) * np.inf).finite


@pytest.mark.parametrize("straight", [True, False])
@pytest.mark.parametrize("size", [0.5, 1.0, 3.0])
def test_storage_lowers_r2_by_its_rounding(straight, size):
    """A path of a master copy whose stages are stored in BF16, of steps of so many units in the
    last place: every stage has a rounding of its own, u²/12 in each entry, which the steps on
    both sides of it share with opposite signs. A stored walk is less straight than its steps in
    random places.
    """
    rng, unit = np.random.default_rng(0), 2.0**-13  # of BF16 between 2^-6 and 2^-5
    start, moves = 0.0235 + 1e-3 * rng.random(200_000), rng.standard_normal((3, 200_000))
    if straight:
        moves = np.broadcast_to(moves[:1], moves.shape)
    walked = start + np.cumsum([0 * start, *(size * unit * moves)], axis=0)
    stored = torch.from_numpy(walked).bfloat16().double().numpy().reshape(4, 400, 500)
    found = products(stored)
    rounding = (2 * np.eye(3) - np.eye(3, k=1) - np.eye(3, k=-1)) / 12
    update = size**2 * (np.ones((3, 3)) if straight else np.eye(3))
    assert line_share(found.inner) == pytest.approx(line_share(update + rounding), abs=0.01)
    assert line_share(update + rounding) < line_share(update)
    if size == 0.5 and not straight:
        assert line_share(found.inner) < line_share(found.by_chance) - 0.05


def by_adamw(every: int, count: int, betas: tuple[float, float], warm_up: int = 1) -> float:
    """R² of 5,000 entries whose gradients are nothing but noise."""
    generator = torch.Generator().manual_seed(0)
    entries = torch.zeros(1, 5000, requires_grad=True)
    optimizer = torch.optim.AdamW([entries], lr=1.0, betas=betas, weight_decay=0.0)
    states = [entries.detach().clone()]
    for step in range(1, every * (count - 1) + 1):
        optimizer.param_groups[0]["lr"] = min(1.0, step / warm_up)
        entries.grad = torch.randn(entries.shape, generator=generator)
        optimizer.step()
        if step % every == 0:
            states.append(entries.detach().clone())
    return line_share(step_products(states, Workspace()).inner)


def test_momentum_on_noise_is_straight_over_few_steps_alone():
    """What the recipe `linearity` says: .81 over a base and four stages ten steps apart, as
    docs/evidence.md has it; .61, as a walk, over fourteen that are a hundred apart.
    """
    assert by_adamw(10, 5, (0.9, 0.95), warm_up=5) == pytest.approx(0.81, abs=0.01)
    assert by_adamw(100, 14, (0.9, 0.999)) == pytest.approx(0.61, abs=0.015)


def test_entries_of_a_walk_that_moved_most_look_straight():
    """What the recipe `linearity` says of R² of single entries: a mean of .44; .80 of the tenth
    that moved most, .90 of the hundredth.
    """
    rng = np.random.default_rng(0)
    walked = np.concatenate([np.zeros((1, 100_000)), rng.standard_normal((13, 100_000)).cumsum(0)])
    times, centred = np.arange(14) - 6.5, walked - walked.mean(0)
    single = (times @ centred) ** 2 / (times @ times) / (centred**2).sum(0)
    moved = walked.max(0) - walked.min(0)
    for share, mean in ((1.0, 0.44), (0.1, 0.80), (0.01, 0.90)):
        most = moved >= np.quantile(moved, 1 - share)
        assert single[most].mean() == pytest.approx(mean, abs=0.01)
