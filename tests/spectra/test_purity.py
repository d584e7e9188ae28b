"""Excess purity: exact parts, its limit over shapes, and its noise under the null."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shadow.spectra.noise import LEAST_KEPT, NOISE, dominated, purity_values


def ratios(D):
    """participation_ratio and null_participation_ratio, rows' and columns', by definition."""
    sigma = np.linalg.svd(D, compute_uv=False)
    r, c, E = (D**2).sum(1), (D**2).sum(0), (D**2).sum()
    null = E**2 / ((r**2).sum() + (c**2).sum() - (D**4).sum())
    return E**2 / (sigma**4).sum(), null, E**2 / (r**2).sum(), E**2 / (c**2).sum()


RATIOS = (
    "participation_ratio", "null_participation_ratio", "row_participation_ratio",
    "col_participation_ratio",
)  # fmt: skip


def values(D, kept=None, top=None, reason="nothing_rounded", floor=None):
    of_delta = {
        **dict(zip(RATIOS, ratios(D), strict=True)),
        "top1_energy": top,
        "floor_ratio": floor,
    }
    return purity_values(of_delta, D.shape, kept, reason)


def coherent(rng, shape, rank, part, power=0.0):
    left, right = (np.linalg.qr(rng.standard_normal((side, rank)))[0] for side in shape)
    S = (left * np.arange(1, rank + 1) ** -float(power)) @ right.T
    N = rng.standard_normal(shape)
    return math.sqrt(part) * S / np.linalg.norm(S) + math.sqrt(1 - part) * N / np.linalg.norm(N)


def test_purity_is_the_sum_over_two_rows_and_two_columns():
    """X E² = sum over i != k, j != l of D_ij D_il D_kj D_kl, by four loops."""
    D = np.random.default_rng(0).standard_normal((5, 4))
    total = sum(
        D[i, j] * D[i, l] * D[k, j] * D[k, l]
        for i in range(5)
        for k in range(5)
        for j in range(4)
        for l in range(4)  # noqa: E741
        if i != k and j != l
    )
    assert values(D)["excess_purity"] == pytest.approx(total / (D**2).sum() ** 2)


def test_an_orthogonalised_update_is_flatter_than_noise():
    """All singular values equal: X is below 0, far outside its noise; no directions to name."""
    left, right = (
        np.linalg.qr(np.random.default_rng(i).standard_normal((64, 64)))[0] for i in (0, 1)
    )
    found = values(left @ right)
    assert found["purity_z"] < -NOISE
    assert found["equivalent_directions"] is None


def test_rounding_is_undone_by_the_square_of_kept():
    """X / kept², and its reciprocal; nothing corrected where too little is kept."""
    D = coherent(np.random.default_rng(0), (64, 64), 2, 0.8)
    plain, half = values(D), values(D, 0.5)
    assert half["excess_purity"] == plain["excess_purity"]
    assert half["excess_purity_unrounded"] == pytest.approx(4 * plain["excess_purity"])
    assert half["equivalent_directions"] == pytest.approx(plain["equivalent_directions"] / 4)
    assert plain["excess_purity_unrounded"] is None
    assert values(D, LEAST_KEPT)["excess_purity_unrounded"] is not None
    away = values(D, math.nextafter(LEAST_KEPT, 0))
    assert away["excess_purity_unrounded"] is away["equivalent_directions"] is None


def test_what_a_report_lacks_is_null():
    """Any of the four ratios missing: no figure at all."""
    for missing in range(4):
        given = dict(zip(RATIOS, (10.0, 20.0, 30.0, 40.0), strict=True))
        given[RATIOS[missing]] = None
        assert set(purity_values(given, (64, 64), None, None).values()) == {None}


def test_what_may_be_the_roundings_has_no_directions():
    """kept unknown: 1 / X of a delta far above its rounding, or with nothing rounded; else null."""
    D = coherent(np.random.default_rng(0), (64, 64), 2, 0.8)
    directions = [
        values(D, None, None, reason, floor)["equivalent_directions"]
        for reason, floor in (
            ("nothing_rounded", None), ("rounding_unexplained", 4.0), ("rounding_unexplained", 3.9),
            ("rounding_unexplained", None),
        )
    ]  # fmt: skip
    assert directions[0] == directions[1] == pytest.approx(1 / values(D)["excess_purity"])
    assert directions[2] is directions[3] is None


@pytest.mark.parametrize(("rows", "side", "count"), [(40, 64, 64), (40, 63, None), (16, 64, None)])
def test_directions_are_of_more_than_noise_and_fit_the_short_side(rows, side, count):
    """X = 1/64, whose z is that times both ratios / 2: 12.5, or 5 as noise may have."""
    of_delta = dict(zip(RATIOS, (32, 64, rows, 40), strict=True)) | {"floor_ratio": None}
    found = purity_values(of_delta, (side, 70), None, "nothing_rounded")
    assert (found["purity_z"], found["equivalent_directions"]) == (rows * 5 / 16, count)


def test_one_direction_in_noise_that_was_mostly_rounded_away_has_no_corrected_purity():
    """A third of the energy in one direction at kept .5: null; with nearly all, X / kept²."""
    rng = np.random.default_rng(0)
    for part, kept, recorded in ((0.3, 0.5, False), (1.0, 0.5, True), (0.3, 0.8, True)):
        D = coherent(rng, (64, 64), 1, part)
        sigma = np.linalg.svd(D, compute_uv=False)
        # rounding dilutes it
        top = kept * part if part == 1.0 else sigma[0] ** 2 / (sigma**2).sum()
        found = values(D, kept, float(top))
        assert (found["excess_purity_unrounded"] is not None) == recorded
        assert (found["equivalent_directions"] is not None) == recorded
    for purity, kept, top1, expected in (
        (0.25, 0.7, 0.5, True), (0.36, 0.7, 0.5, False), (0.0, 0.7, 0.5, False),
        (0.25, 0.75, 0.5, False), (0.25, 0.625, 0.5, False), (0.25, 0.7, None, False),
    ):  # fmt: skip
        assert dominated(purity, kept, top1) == expected
