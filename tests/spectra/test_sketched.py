"""Figures from a few products with a matrix, against all its singular values in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from effort import every
from numpy.typing import NDArray

from shadow.reports.columns import DELTA, ERRORS, ESTIMATED, SPECTRAL
from shadow.spectra import costs, sketched, solvers, spectrum
from shadow.spectra.costs import COSTS, KEPT
from shadow.spectra.delta import Measured, measure_alone, measure_pair, summed
from shadow.spectra.krylov import (
    PASSES,
    WIDTH,
    Entropy,
    _next,
    effective_rank,
    frame,
    krylov_spaces,
    square_trace,
)
from shadow.spectra.lazy import Updated
from shadow.spectra.measurement import Estimate, Method
from shadow.spectra.noise import purity_values
from shadow.spectra.sketched import (
    Sketch,
    _above,
    _energy,
    effective_rank_shift,
)
from shadow.spectra.solvers import Means
from shadow.spectra.spectrum import Sides, Workspace, blocks

Array = NDArray[np.float64]
SIDE = 640


def spectra() -> dict[str, Array]:
    """Singular values of many kinds, (SIDE,), descending."""
    rng = np.random.default_rng(0)
    i = np.arange(1.0, SIDE + 1)
    noise = np.linalg.svd(rng.standard_normal((SIDE, 900)) / 30.0, compute_uv=False)
    rows, cols = (np.exp(0.7 * rng.standard_normal(n)) for n in (SIDE, 900))
    uneven = rows[:, None] * rng.standard_normal((SIDE, 900)) * cols
    return {
        "noise": noise,
        "uneven noise": np.linalg.svd(uneven, compute_uv=False),
        "slow": i**-0.3,
        "fast": 1.0 / i,
        "eight and noise": np.concatenate([np.linspace(20.0, 4.0, 8), noise[8:]]),
        "eight and faint noise": np.concatenate([np.full(8, 4.0), 2e-3 * noise[8:]]),
        "half": np.where(i <= SIDE / 2, i**-0.3, 0.0),
        "eight": np.where(i <= 8, 4.0 - i / 4.0, 0.0),
        "equal": np.ones(SIDE),
    }


def by_entropy(p: Array) -> float:
    p = p[p > 0] / p.sum()
    return math.exp(-float((p * np.log(p)).sum()))


@pytest.mark.parametrize("kind", every(3, spectra()))
def test_the_truth_lies_within_the_errors(kind: str) -> None:
    """tr G² and the effective rank within their errors, and eigenvalues between their bounds, in 19
    of 20 seeds at least, whatever the spectrum.
    """
    sigma = spectra()[kind]
    squares = sigma**2
    fourth, rank = float((squares**2).sum()), by_entropy(sigma)
    wrong = {"fourth": 0, "rank": 0, "below": 0, "above": 0}
    for seed in range(20):
        start = frame(f"{kind} {seed}", SIDE)
        (space,) = krylov_spaces(
            lambda few: [squares[:, None] * few[0].astype(np.float64)], start, [squares.sum()]
        )
        found, entropy = square_trace(space), effective_rank(space)
        wrong["fourth"] += abs(found.value - fourth) > found.error
        assert (entropy is None) == (kind in ("eight", "eight and faint noise", "equal"))
        ranked = entropy.exp if entropy else Estimate(rank, 0.0)
        wrong["rank"] += abs(ranked.value - rank) > ranked.error + 1e-6 * rank
        slack = 1e-6 * squares[0]
        wrong["below"] += bool((space.values > squares[: len(space.values)] + slack).any())
        wrong["above"] += bool((space.bounds < squares[: len(space.bounds)] - slack).any())
    assert max(wrong.values()) <= 1, wrong


@pytest.mark.parametrize("rank", [1, 8, 64])
def test_faint_noise_under_a_low_rank_is_within_the_errors_or_unknown(rank: int) -> None:
    """Known where half of its values, squared, are 1e-5 of the largest eigenvalue or more."""
    noise = spectra()["noise"][rank:]
    for size in (0.3, 0.1, 0.03, 0.01, 6e-3, 2e-3, 5e-4, 1e-4, 1e-5):
        sigma = np.concatenate([4.0 / np.arange(1.0, rank + 1), size * noise])
        squares = sigma**2
        for seed in range(3):
            off = np.random.default_rng(seed)

            def products(few: Sequence[Array], squares=squares, off=off) -> list[Array]:
                made = squares[:, None] * few[0].astype(np.float64)
                return [made + 2e-8 * off.standard_normal(made.shape) * np.abs(made).max()]

            (space,) = krylov_spaces(products, frame(f"{seed}", SIDE), [squares.sum()])
            entropy = effective_rank(space)
            assert size < 0.03 or entropy is not None
            assert size > 2e-3 or entropy is None
            if entropy is not None:
                ranked = entropy.exp
                assert abs(ranked.value - by_entropy(sigma)) <= ranked.error, (size, ranked)
                assert ranked.error < 0.4 * ranked.value


@pytest.mark.parametrize("rank", [0, 5, WIDTH])
@pytest.mark.parametrize("least", [1.0, 1e-3, 1e-7, 1e-8, 1e-9, 1e-14, 0.0])
@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-13])
def test_columns_beside_those_known_are_orthonormal(rank: int, least: float, size: float) -> None:
    """However small what is new is beside the rest, and one part of it beside another."""
    known, new = frame("a", SIDE), frame("b", SIDE)[:, :rank]
    mixed = np.random.default_rng(0).standard_normal((2, WIDTH, WIDTH))
    sizes = np.linspace(1.0, least, rank)[:, None]
    image = known @ mixed[0] + size * new @ (sizes * mixed[1, :rank])
    found = _next(known, image)
    both = np.hstack([known, found])
    assert np.abs(both.T @ both - np.eye(2 * WIDTH)).max() < 1e-13
    assert np.abs(image - both @ (both.T @ image)).max() < 1e-13


def pair(shape: tuple[int, int], kind: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(1)
    base = (0.02 * torch.randn(shape, generator=draw)).to(dtype)
    change = 3e-4 * torch.randn(shape, generator=draw)
    if kind == "few":
        left, right = (torch.randn(side, 6, generator=draw) for side in shape)
        change += 1e-3 * left @ right.T
    return base, (base.float() + change).to(dtype)


def measured(
    base: torch.Tensor,
    tuned: torch.Tensor,
    stored: str,
    method: Method,
    key: str = "w",
    space: Workspace | None = None,
) -> Measured:
    space = space or Workspace()
    wide = torch.float64 if stored == "F32" else torch.float32
    total = summed(Sides(base, tuned, wide, space), (stored, stored))
    return measure_pair(base, tuned, (stored, stored), total, Means(method, space), key)


def hold(by_sketch: Measured, truth: Measured) -> None:
    """Each estimated column within its error of the column in `exact`; all else equal or null."""
    for ours, exact in zip(by_sketch[:3], truth[:3], strict=True):
        for name, value in ours.values.items():
            if value is None or name.endswith("_error") or name == "sigma_floor":
                continue
            right = exact.values[name]
            assert right is not None
            if name in ESTIMATED and ours.precision == "sketch":
                error = ours.values[f"{name}_error"]
                assert isinstance(value, float)
                assert isinstance(error, float)
                assert abs(value - float(right)) <= error + 1e-6 * abs(float(right)), name
            elif isinstance(value, str):
                assert value == right
            else:
                assert value == pytest.approx(right, rel=1e-9), name


@pytest.mark.parametrize("kind", ["noise", "few"])
@pytest.mark.parametrize(("shape", "stored"), [((700, 900), "BF16"), ((900, 700), "F32")])
def test_every_estimate_holds_against_all_singular_values(
    shape: tuple[int, int], stored: str, kind: str
) -> None:
    """In either orientation, of noise and of few directions."""
    base, tuned = pair(shape, kind, torch.bfloat16 if stored == "BF16" else torch.float32)
    by_sketch = measured(base, tuned, stored, Method("sketch"))
    truth = measured(base, tuned, stored, Method("exact"))
    assert {one.precision for one in by_sketch[:3]} == {"sketch"}
    assert not any(len(one.sigma) for one in by_sketch[:3])
    hold(by_sketch, truth)
    values = by_sketch.delta.values
    assert values.get("alpha") is None
    if kind == "few":
        assert values["spikes"] == truth.delta.values["spikes"] == 6
    else:
        assert values["purity_z"] is not None
        assert float(values["purity_z"]) < 5
        assert values["equivalent_directions"] is None


def test_the_error_of_concentration_is_that_of_its_participation_ratio() -> None:
    """ln(null / PR) / ln(null), at both ends of PR's error: no wider than that moves it."""
    base, tuned = pair((560, 700), "few", torch.bfloat16)
    of = measured(base, tuned, "BF16", Method("sketch")).delta.values
    error, ratio, null, by = (
        float(of[name] or 0.0)
        for name in (
            "concentration_error", "participation_ratio", "null_participation_ratio",
            "participation_ratio_error",
        )
    )  # fmt: skip
    assert 0 < by < 0.1 * ratio
    ends = [math.log(null / (ratio + sign * by)) / math.log(null) for sign in (1, -1)]
    assert error == pytest.approx((ends[1] - ends[0]) / 2, rel=0.01)


@pytest.mark.parametrize("zero", ["base", "tuned"])
def test_a_side_of_zeros_takes_no_gram_matrix(zero: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of layers that were put in: it has no singular values, and the other has a sketch."""
    draw = torch.Generator().manual_seed(1)
    left, right = (torch.randn((side, 16), generator=draw) for side in (700, 900))
    one = (0.02 * (torch.randn((700, 900), generator=draw) + left @ right.T)).bfloat16()
    sides = (torch.zeros_like(one), one) if zero == "base" else (one, torch.zeros_like(one))
    truth = measured(*sides, "BF16", Method("exact"))
    monkeypatch.setattr(solvers, "spectrum", None)
    found = measured(*sides, "BF16", Method("sketch"))
    hold(found, truth)
    assert [part.precision for part in found[:3]] == [
        "exact" if part.subject == zero else "sketch" for part in found[:3]
    ]
    empty = found.base if zero == "base" else found.tuned
    assert empty.values == (truth.base if zero == "base" else truth.tuned).values
    assert not empty.sigma.any()
    assert len(empty.sigma) == 700
    alone = measure_alone(
        torch.zeros_like(one), "BF16", 0.0, Means(Method("sketch"), Workspace()), "w"
    )
    assert (alone.precision, alone.values) == ("exact", empty.values)


def test_columns_are_those_of_the_schema() -> None:
    """A sketch has no column that the schema lacks, and every error that it knows has one."""
    base, tuned = pair((600, 700), "few", torch.bfloat16)
    of_base, _, delta = measured(base, tuned, "BF16", Method("sketch"))
    errors = {column.name for column in ERRORS}
    assert set(of_base.values) <= {column.name for column in SPECTRAL} | errors
    assert set(delta.values) <= {column.name for column in (*SPECTRAL, *DELTA)} | errors
    assert {f"{name}_error" for name in ESTIMATED} == errors


@pytest.mark.parametrize(("shape", "is_whole"), [
    ((434, 434), True), ((435, 435), False), ((462, 1300), True), ((1300, 463), False),
])  # fmt: skip
def test_the_cheaper_of_all_singular_values_and_a_sketch(
    shape: tuple[int, int], is_whole: bool
) -> None:
    """A matrix whose Gram matrix costs less than a sketch has all values; its row says so."""
    delta = measured(*pair(shape, "few", torch.bfloat16), "BF16", Method("sketch")).delta
    assert (delta.precision != "sketch") == is_whole
    assert (delta.values.get("numerical_rank") is not None) == is_whole
    assert len(delta.sigma) == is_whole * min(shape)


@pytest.mark.parametrize("shape", [(2, 2), (128, 896), (440, 440), (896, 4864), (8192, 28672)])
def test_a_sketch_costs_at_most_what_all_singular_values_cost(shape: tuple[int, int]) -> None:
    """In operations of both solvers; at most 0.6 of it from a short side of 896 on."""
    sketch, full = (COSTS[level].on(shape).operations(shape) for level in ("sketch", "full"))
    assert sketch <= (0.6 if min(shape) >= 896 else 1.0) * full
    assert {COSTS["sketch"].on(s).operations(s) for s in (shape, shape[::-1])} == {sketch}


def test_a_sketch_depends_on_its_key_alone() -> None:
    """Same key, same bytes; another key, another estimate."""
    base, tuned = pair((600, 700), "noise", torch.bfloat16)
    first = measured(base, tuned, "BF16", Method("sketch")).delta.values
    assert measured(base, tuned, "BF16", Method("sketch")).delta.values == first
    space = Workspace()
    total = summed(Sides(base, tuned, torch.float32, space), ("BF16", "BF16"))
    means = Means(Method("sketch"), space)
    other = measure_pair(base, tuned, ("BF16", "BF16"), total, means, "another").delta.values
    assert other["participation_ratio"] != first["participation_ratio"]


@pytest.mark.parametrize("stored", ["BF16", "F32"])
@pytest.mark.parametrize("shape", [(600, 700), (700, 600)])
def test_blocks_that_are_kept_are_those_that_are_made_again(
    shape: tuple[int, int], stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every figure is the same number, of a matrix of many blocks."""
    dtype = torch.bfloat16 if stored == "BF16" else torch.float32
    base, tuned = pair(shape, "few", dtype)
    monkeypatch.setattr(spectrum, "BLOCK", 1 << 16)
    reads: list[int] = []
    monkeypatch.setattr(sketched, "blocks", lambda *how: reads.append(1) or blocks(*how))
    method, space = Method("sketch", subjects="delta"), Workspace()
    measured(*pair((900, 800), "noise", dtype), stored, method, space=space)
    found, passes = [], []
    for kept in (0, KEPT):
        monkeypatch.setattr(costs, "KEPT", kept)
        reads.clear()
        found.append(measured(base, tuned, stored, method, space=space)[:3])
        passes.append(len(reads))
    assert passes[0] - passes[1] == PASSES - 1
    assert [one.values for one in found[0]] == [one.values for one in found[1]]


def test_only_deltas_give_the_same_deltas() -> None:
    """With spectra of deltas alone the delta has the same figures, but those of the base."""
    base, tuned = pair((600, 700), "few", torch.bfloat16)
    whole = measured(base, tuned, "BF16", Method("sketch")).delta.values
    method = Method("sketch", subjects="delta")
    alone = measured(base, tuned, "BF16", method)
    assert alone.base.values["participation_ratio"] is None
    of_base = {"effective_rank_shift", "effective_rank_shift_error"}
    for name, value in alone.delta.values.items():
        assert value == whole[name] or name in of_base, name


def test_a_change_of_low_rank_in_float32_has_no_effective_rank() -> None:
    """Rounding of products could be many small singular values; the base's is known."""
    draw = torch.Generator().manual_seed(1)
    sides = ((600, 700), (600, 8), (8, 700))
    base, left, right = (torch.randn(shape, generator=draw) for shape in sides)
    of_base, _, delta = measured(base, base + 0.01 * left @ right, "F32", Method("sketch"))
    assert of_base.number("effective_rank") is not None
    assert delta.number("effective_rank") is None
    assert delta.number("participation_ratio") == pytest.approx(8, rel=0.1)
    vectors = torch.linalg.qr(torch.randn(700, 700, generator=draw)).Q
    for equal, rest in ((400, 1e-4), (50, 1e-3)):  # above the short side; of an unknown number
        even = (vectors * torch.where(torch.arange(700) < equal, 0.01, rest)) @ vectors.T
        *_, delta = measured(torch.zeros(700, 700), even, "F32", Method("sketch"))
        assert delta.number("effective_rank") is None


def test_an_adapter_has_the_singular_values_of_its_factors() -> None:
    """The delta of a low-rank update is exact in `sketch` too."""
    draw = torch.Generator().manual_seed(2)
    base = (0.02 * torch.randn(600, 700, generator=draw)).bfloat16()
    tuned = Updated(
        base, torch.randn(600, 4, generator=draw), torch.randn(4, 700, generator=draw), 1e-3
    )
    space = Workspace()
    total = summed(Sides(base, tuned, torch.float64, space), ("BF16", "F64"))
    means = Means(Method("sketch"), space)
    found = measure_pair(base, tuned, ("BF16", "F64"), total, means, "w")
    assert (found.base.precision, found.delta.precision) == ("sketch", "exact")
    assert found.delta.values["numerical_rank"] == 4


@pytest.mark.parametrize(
    ("level", "count", "low", "high"),
    [(8.0, 1, 9.0, 10.0), (3.0, 2, 13.0, 15.0), (11.0, 0, 0.0, 0.0),
     (9.5, None, 0, 0), (4.5, None, 0, 0), (0.5, None, 0, 0)],
)  # fmt: skip
def test_values_above_an_edge_are_counted_where_their_bounds_leave_no_doubt(
    level: float, count: int | None, low: float, high: float
) -> None:
    """Squares between 9 and 10, 4 and 5, 1 and 2, of an energy of 20; the edge is in weights."""
    space = SimpleNamespace(
        values=np.array([9.0, 4.0, 1.0]), bounds=np.array([10.0, 5.0, 2.0]), energy=20.0
    )
    sketch = Sketch(space, 4.0, 1.0)
    assert sketch.spectral_norm.error == pytest.approx((math.sqrt(10) - 3) / 8, abs=1e-6)
    assert _above(sketch, math.sqrt(level) / 4.0) == count
    if count is not None:
        energy = _energy(sketch, count)
        assert energy.value == pytest.approx((low + high) / 40)
        assert energy.error == pytest.approx((high - low) / 40, abs=1e-6)


@pytest.mark.parametrize(("total", "low"), [(15.0, 13 / 15), (14.0, 13 / 14), (12.0, 1.0)])
def test_a_share_of_energy_is_at_most_1(total: float, low: float) -> None:
    """Of two squares of 13 to 15 together."""
    space = SimpleNamespace(
        values=np.array([9.0, 4.0, 1.0]), bounds=np.array([10.0, 5.0, 2.0]), energy=total
    )
    energy = _energy(Sketch(space, 4.0, 1.0), 2)
    assert energy.value == pytest.approx((low + 1) / 2)
    assert energy.error == pytest.approx((1 - low) / 2 + 1e-6)


@pytest.mark.parametrize(("error", "z", "recorded", "counted"), [
    (0.04, 50.0, True, True), (0.08, 50.0, True, True),  # a fifth of X, and two
    (0.12, 50.0, False, False),  # three fifths
    (0.04, 6.0, True, True), (0.04, 5.5, False, False),  # 5.2 and 4.9 over both deviations
    (0.08, 3.0, True, False),  # noise with or without the error
])  # fmt: skip
def test_the_error_of_a_participation_ratio_is_carried_on(
    error: float, z: float, recorded: bool, counted: bool
) -> None:
    """X = 1/PR - 1/null is off by error / PR², and what rests on X by as large a share."""
    exact = {
        "participation_ratio": 2.0, "null_participation_ratio": 1 / 0.3, "top1_energy": None,
        "row_participation_ratio": 10.0 * z, "col_participation_ratio": 1.0,
    }  # fmt: skip
    values = purity_values(exact, (64, 64), 0.5, None)
    assert not any(name.endswith("_error") for name in values)
    estimated = exact | {"participation_ratio_error": error * 4.0}
    found = purity_values(estimated, (64, 64), 0.5, None)
    share = error / 0.2
    assert found["excess_purity_error"] == pytest.approx(error)
    assert found["excess_purity_unrounded_error"] == pytest.approx(error / 0.25)
    assert found["purity_z"] == (values["purity_z"] if recorded else None)
    assert found.get("purity_z_error") == (pytest.approx(z * share) if recorded else None)
    count = values["equivalent_directions"]
    assert count == (pytest.approx(1.25) if z > 5 else None)
    assert found["equivalent_directions"] == (count if counted else None)
    spread = pytest.approx(1.25 / (1 - share) - 1.25) if counted else None
    assert found.get("equivalent_directions_error") == spread


@pytest.mark.parametrize(("moved", "error", "recorded"), [
    (0.1, 0.08, True), (0.1, 0.12, False), (0.001, 0.008, True), (0.001, 0.02, False),
])  # fmt: skip
def test_a_shift_is_told_where_its_error_is_less_than_it_or_a_hundredth(
    moved: float, error: float, recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an effective rank of 100: by logarithms of both sides, of which errors cancel."""
    log, residues = math.log(100.0), np.full(24, 0.3)
    entropies = {
        "base": Entropy(np.array([log - 0.5, log + 0.5]), residues),
        "tuned": Entropy(np.array([log - 0.5 - error, log + 0.5 + error]) + moved, residues),
    }
    monkeypatch.setattr(sketched, "effective_rank", entropies.get)
    found = effective_rank_shift(*(Sketch(name, 1.0, 1.0) for name in entropies))
    assert effective_rank_shift(Sketch("base", 1.0, 1.0), Sketch("faint", 1.0, 1.0)) is None
    middle = 100 * math.exp(moved / 2)
    wanted = (pytest.approx(middle * moved), pytest.approx(middle * error)) if recorded else None
    assert (found and (found.value, found.error)) == wanted


@pytest.mark.parametrize(("found", "recorded"), [(0.5, 1.0), (2.0, 2.0), (5.0, 4.0)])
def test_estimates_of_squares_are_possible_ones(
    found: float, recorded: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tr G² lies between E² / m, of equal values, and E², of one."""
    monkeypatch.setattr(sketched, "square_trace", lambda _: Estimate(found, 0.1))
    ratio = Sketch(SimpleNamespace(energy=2.0, side=4), 1.0, 1.0).participation_ratio
    assert ratio.value == 4 / recorded
    assert ratio.error == pytest.approx(0.4 / recorded**2)
