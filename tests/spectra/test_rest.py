"""How many directions stand out of a rest like noise, against updates of known rank."""

import numpy as np
import pytest
import torch
from quantisers import ggml_copy

from shadow.dtypes import FLOATS
from shadow.spectra.delta import measure_pair, summed
from shadow.spectra.measurement import Method
from shadow.spectra.noise import noise_like_rest, rest_values
from shadow.spectra.solvers import Means
from shadow.spectra.spectrum import Sides, Spectrum, Workspace
from shadow.summary.layer_medians import AS_ROUNDING

SHAPE = (192, 256)


def values(d: np.ndarray, size: float, dtype: torch.dtype = torch.bfloat16) -> dict[str, object]:
    """The columns of an update of that relative norm, stored."""
    rng = np.random.default_rng(0)
    W = torch.from_numpy(0.02 * rng.standard_normal(SHAPE)).to(torch.bfloat16)
    d = d * size * np.linalg.norm(W.double().numpy()) / np.linalg.norm(d)
    name = "BF16" if dtype == torch.bfloat16 else "F32"
    base = W.to(dtype)
    tuned = (W.double() + torch.from_numpy(d)).to(dtype)
    total = summed(Sides(base, tuned, torch.float64, Workspace()), (name, name))
    means = Means(Method(), Workspace())
    return dict(measure_pair(base, tuned, (name, name), total, means, "key").delta.values)


def low_rank(rank: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((SHAPE[0], rank)) @ rng.standard_normal((rank, SHAPE[1]))


@pytest.mark.parametrize(
    ("rank", "size"), [(4, 1e-2), (8, 3e-3), (8, 1e-2), (16, 3e-3), (16, 3e-2), (40, 1e-2)]
)
def test_the_rank_of_a_merged_adapter_is_found(rank: int, size: float) -> None:
    found = values(low_rank(rank), size)
    assert found["rest_rank"] == rank
    assert found["rest_over_rounding"] == pytest.approx(1.0, abs=0.1)


def test_a_product_that_was_added_in_float32_has_its_rank_and_no_rest() -> None:
    found = values(low_rank(8), 1e-2, torch.float32)
    assert found["rest_rank"] == 8
    assert found["rest_over_rounding"] == 0.0


@pytest.mark.parametrize("dense", [0.005, 0.05])
def test_a_dense_rest_is_more_than_rounding_leaves(dense: float) -> None:
    rng = np.random.default_rng(5)
    spread, part = rng.standard_normal(SHAPE), low_rank(16)
    spread *= np.sqrt(dense / (1 - dense)) * np.linalg.norm(part) / np.linalg.norm(spread)
    found = values(part + spread, 1e-2)
    assert found["rest_rank"] == 16
    assert found["rest_over_rounding"] > 1 + AS_ROUNDING


@pytest.mark.parametrize("power", [-0.5, -1.0])
def test_a_spectrum_that_decays_has_no_rest_like_noise_of_that_size(power: float) -> None:
    rng = np.random.default_rng(7)
    left, right = (np.linalg.qr(rng.standard_normal((side, 192)))[0] for side in SHAPE)
    found = values((left * np.arange(1, 193) ** power) @ right.T, 1e-2)
    ratio = found["rest_over_rounding"]
    assert found["rest_rank"] is None or found["rest_rank"] > 48 or ratio > 1 + AS_ROUNDING


def test_noise_alone_has_no_direction_that_stands_out() -> None:
    found = values(np.random.default_rng(3).standard_normal(SHAPE), 1e-2)
    assert (found["rest_rank"], found["rest_energy"]) == (0, 1.0)


@pytest.mark.parametrize("quantised", ["neither", "base", "tuned"])
def test_ulps_are_of_the_format_with_fewer_bits(quantised: str) -> None:
    """Beside a quantised side no weight lies below its smallest normal number."""
    base = torch.full((4, 32), 2.0**-20, dtype=torch.float16)
    copy = ggml_copy(torch.arange(128.0).view(4, 32), "Q4_0")
    wide = base.float() + 2.0**-21
    sides = {"neither": (base, wide), "base": (copy, base), "tuned": (base, copy)}[quantised]
    formats = ("F32", "F16") if quantised == "base" else ("F16", "F32")
    total = summed(Sides(*sides, torch.float32, Workspace()), formats)
    least = FLOATS["F16" if quantised == "neither" else "F32"].min_exponent
    assert (total.stored.mantissa_bits, total.stored.min_exponent) == (10, least)


def test_a_rest_of_nothing_is_found_up_to_half_of_the_directions() -> None:
    """Of ten; and noise of a fifth in three quarters of half of the directions has .075."""
    even = np.full(10, 10.0)
    for rank, rest in ((5, (5, 0.0)), (6, None)):
        sigma = np.r_[np.ones(rank), np.zeros(10 - rank)]
        assert noise_like_rest(Spectrum(sigma, 10, 10, 1.0, 0.0, "exact"), even, even) == rest
    for rest, noise, ratio in (
        ((2, 0.3), 0.2, 4.0), ((2, 0.3), None, None), ((2, 0.3), 0.0, None), ((2, 1e-6), 0.2, 0.0),
        (None, 0.2, None),
    ):  # fmt: skip
        found = rest_values(rest, noise, (4, 8))
        assert [*found.values()] == [*(rest or (None, None)), ratio and pytest.approx(ratio)]
