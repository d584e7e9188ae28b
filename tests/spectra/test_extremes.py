"""Entries near the ends of float32 and float64, against NumPy's longdouble."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import shadow
from shadow.spectra.delta import measure
from shadow.spectra.entries import cosine
from shadow.spectra.measurement import Method
from shadow.spectra.solvers import Means
from shadow.spectra.spectrum import Sides, Workspace, power_of_two_scale, working_dtype
from shadow.spectra.sums import Extent

NAMES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
CASES = [
    (torch.float32, 1e-40), (torch.float32, 1e37), (torch.bfloat16, 1e-39), (torch.bfloat16, 1e-25),
    (torch.bfloat16, 1e37), (torch.float64, 1e-300), (torch.float64, 1e-160),
    (torch.float64, 1e160), (torch.float64, 1e300),
]  # fmt: skip
UP = "model.layers.0.mlp.up_proj.weight"


def random(shape, size, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * size).to(dtype)


def moved(shape, size, dtype, by=0.1):
    base = random(shape, size, dtype)
    return base, (base.double() + random(shape, by * size, torch.float64, 1)).to(dtype)


def measured(base, tuned, level):
    formats = NAMES[base.dtype], NAMES[tuned.dtype]
    space = Workspace()
    sides = Sides(base, tuned, working_dtype(*formats), space)
    return measure(sides, formats, Means(Method(level), space), "key")


def assert_exact(found, base, tuned, rel=1e-5):
    """Norms, directions and ranks as longdouble and NumPy's SVD give them."""
    b, t = (side.double().numpy().astype(np.longdouble) for side in (base, tuned))
    d = t - b
    norms = {"base": b, "tuned": t, "delta": d}
    norms = {name: np.sqrt((side**2).sum()) for name, side in norms.items()}
    for one in found.measurements:
        assert one.values["frobenius_norm"] == pytest.approx(float(norms[one.subject]), rel=rel)
    values = found.measurements[-1].values
    expected = {
        "relative_norm": norms["delta"] / norms["base"],
        "cosine": (b * t).sum() / norms["base"] / norms["tuned"],
        "decay_cosine": (b * d).sum() / norms["base"] / norms["delta"],
        "zero_share": (d == 0).mean(),
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(float(value), rel=rel, abs=1e-6), name
    if values.get("stable_rank") is not None:
        largest = np.abs(d).max()
        sigma = np.linalg.svd((d / largest).astype(np.float64), compute_uv=False)
        rank = (sigma**2).sum() / sigma[0] ** 2
        assert values["stable_rank"] == pytest.approx(float(rank), rel=1e-4)


@pytest.mark.parametrize("level", ["norms", "sketch", "full"])
@pytest.mark.parametrize(("dtype", "size"), CASES)
@pytest.mark.filterwarnings("error")
def test_figures_of_entries_near_the_ends_are_those_of_longdouble(dtype, size, level):
    """No square vanishes or overflows, and no warning is given."""
    base, tuned = moved((48, 64), size, dtype)
    assert_exact(measured(base, tuned, level), base, tuned)


@pytest.mark.parametrize("size", [1e-39, 1e37])
@pytest.mark.filterwarnings("error")
def test_a_matrix_of_float32_products_near_the_ends_has_its_ranks_and_subspaces(size):
    """A side above that of float64 products: the directions of a shifted base are those of one of
    usual size, whose entries are the same times a power of two.
    """
    power = power_of_two_scale(size)
    base, tuned = moved((300, 320), 1.0, torch.float32, by=0.3)
    base, tuned = (side.bfloat16() for side in (base, tuned))
    if size < 1:  # subnormal numbers have fewer bits: those that they hold
        base, tuned = ((side / power).bfloat16() * power for side in (base, tuned))
    usual = measured(base, tuned, "full").measurements
    far = measured(*((side.double() / power).bfloat16() for side in (base, tuned)), "full")
    for name in ("effective_rank", "overlap_left", "alignment_right", "intruders"):
        found = far.measurements[-1].values[name]
        assert found == pytest.approx(usual[-1].values[name], rel=1e-4), name


@pytest.mark.parametrize("level", ["norms", "sketch", "full"])
def test_sides_of_very_different_size_have_the_norms_of_both(level):
    """A base 1e-30 times as large vanished beside the tuned side's scale."""
    base = random((48, 64), 1e-30, torch.bfloat16)
    tuned = random((48, 64), 1.0, torch.bfloat16, 1)
    assert_exact(measured(base, tuned, level), base, tuned)
    found = measured(tuned, base, level)
    norm = float(torch.linalg.vector_norm(base.double()))
    assert found.measurements[1].values["frobenius_norm"] == pytest.approx(norm, rel=1e-5)
    assert found.measurements[2].values["cosine"] is None, "D does not know what is left"


def test_a_far_smaller_change_than_the_largest_entry_is_not_lost():
    """One entry of 1e-10 moved, and the largest is 1e30."""
    base = random((48, 64), 1.0, torch.bfloat16)
    base[0] *= 1e30
    tuned = base.clone()
    base[1, 1] = 0
    tuned[1, 1] = 1e-10
    found = measured(base, tuned, "full")
    norm = found.measurements[-1].values["frobenius_norm"]
    assert norm == pytest.approx(float(tuned[1, 1].double()))


@pytest.mark.parametrize("far", [1.0, 1e6, 1e12, 1e30])
def test_a_cosine_is_that_of_the_products_however_far_the_tuned_side_is(far):
    base = random((40, 40), 1.0, torch.float64).numpy()
    tuned = far * random((40, 40), 1.0, torch.float64, 1).numpy()
    delta = tuned - base
    b, t = np.linalg.norm(base), np.linalg.norm(tuned)
    found = cosine(b, t, (delta**2).sum(), (base * delta).sum())
    assert found == pytest.approx((base * tuned).sum() / b / t, abs=1e-9)


OUTSIDE = {
    "apart": (1.0, 1e200),
    "opposite": (1.7e308, -1.7e308),
    "too small": (0.0, 5e-324),
    "too large": (1e307, 1.1e307),
}


@pytest.mark.parametrize("level", ["norms", "full"])
@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.filterwarnings("error")
def test_what_float64_does_not_hold_is_skipped_with_a_reason_and_the_rest_measured(name, level):
    """A matrix and a vector out of range beside a plain matrix."""
    first, second = OUTSIDE[name]
    down = "model.layers.0.mlp.down_proj.weight"
    norm = "model.norm.weight"

    def model(size, by):
        usual = random((16, 24), 1.0, torch.float64)
        usual[0, 0] += by
        return {
            UP: torch.full((24, 16), size, dtype=torch.float64),
            norm: torch.full((16,), size, dtype=torch.float64),
            down: usual,
        }

    report = shadow.audit(model(first, 0), model(second, 1), level=level, jobs=1)
    rows = report.tensors[report.tensors.side == "tuned"].set_index("tensor")
    assert rows.loc[[UP, norm], "status"].tolist() == ["skipped"] * 2
    assert rows.loc[[UP, norm], "reason"].tolist() == ["out_of_range"] * 2
    assert "up to" in rows.loc[UP, "detail"]
    assert rows.loc[down, "status"] == "measured"


def test_a_matrix_without_a_base_out_of_range_is_skipped():
    projector = torch.full((8, 8), 1e307, dtype=torch.float64)
    own = {UP: torch.ones(16, 8), "vision.proj.weight": projector}
    report = shadow.audit({UP: torch.zeros(16, 8)}, own, jobs=1)
    (row,) = report.tensors[report.tensors.tensor == "vision.proj.weight"].to_dict("records")
    assert (row["status"], row["reason"]) == ("skipped", "out_of_range")


@pytest.mark.parametrize("exponent", [-149, -140, -126, -60, 60, 127])
def test_float32_holds_the_scale_of_each_of_its_numbers(exponent):
    scale = power_of_two_scale(2.0**exponent)
    assert np.isfinite(np.float32(scale))
    assert 2.0**-24 <= 2.0**exponent * scale <= 1


def test_a_zero_side_is_in_range():
    assert Extent(0.0, 0.0, 0.0).in_range
    assert Extent(0.0, 1.0, 1.0).in_range
    assert not Extent(1.0, 2.0**500, 2.0**500).in_range
