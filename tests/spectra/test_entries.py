"""A pass over the entries of two matrices, against plain float64 NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from shadow.checkpoints.opening import open_folder
from shadow.dtypes import FLOATS
from shadow.spectra.entries import Binades, Entries, compared
from shadow.spectra.spectrum import Sides, Workspace, working_dtype
from shadow.spectra.sums import HEAD, PART, looked_at

FORMATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
SHAPES = ((1, 1), (3, 7), (300, 500), (70_000, 3), (2, 70_001))


def sides_in(folder, base, tuned):
    """Both matrices as they lie in files."""
    found = []
    for name, tensor in (("base", base), ("tuned", tuned)):
        (folder / name).mkdir()
        save_file({"w": tensor.contiguous()}, folder / name / "model.safetensors")
        checkpoint = open_folder(folder / name)
        found.append((checkpoint, checkpoint.tensor(checkpoint.tensors["w"])))
    formats = [checkpoint.tensors["w"].dtype for checkpoint, _ in found]
    return Sides(found[0][1], found[1][1], working_dtype(*formats), Workspace())


def check(sides, formats, base, tuned):
    """Every figure of the pass beside the same by NumPy in float64; returns the pass's."""
    found = compared(sides, formats)
    b, t = base.double().numpy(), tuned.double().numpy()
    assert found.entries == b.size
    assert found.changed == int((b != t).sum())
    assert (found.finite, found.zeroed) == (True, not t[b != t].any())
    for name, value in (("base", b), ("tuned", t), ("delta", t - b)):
        assert getattr(found, name) == pytest.approx(float((value**2).sum()), rel=1e-6, abs=0)
    along = float((b * (t - b)).sum())
    size = float(np.sqrt((b**2).sum() * ((t - b) ** 2).sum()))
    assert found.along == pytest.approx(along, abs=1e-6 * size)
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("formats", [("BF16", "BF16"), ("F16", "F16"), ("F32", "F32"),
                                     ("F64", "F64"), ("F32", "BF16")], ids=str)  # fmt: skip
def test_sums_are_those_of_float64_from_files_and_from_memory(shape, formats, tmp_path):
    torch.manual_seed(len(formats[0]) + shape[0])
    base = torch.randn(shape, dtype=torch.float64).to(FORMATS[formats[0]])
    tuned = base.double() + 1e-2 * torch.randn(shape, dtype=torch.float64)
    tuned = torch.where(torch.rand(shape) < 0.3, base.double(), tuned).to(FORMATS[formats[1]])
    check(sides_in(tmp_path, base, tuned), formats, base, tuned)
    wide = working_dtype(*formats)
    check(Sides(base, tuned, wide, Workspace()), formats, base, tuned)
    across = Sides(base.T.contiguous().T, tuned, wide, Workspace())  # in another order
    check(across, formats, base, tuned)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e18, 1.5e38])
def test_squares_beyond_float32_neither_vanish_nor_overflow(size, tmp_path):
    torch.manual_seed(0)
    base = (size * torch.rand(40, 50)).bfloat16()
    tuned = -base
    check(sides_in(tmp_path, base, tuned), ("BF16", "BF16"), base, tuned)


def test_zeros_of_both_signs_are_one_value_and_a_side_of_zeros_has_no_energy(tmp_path):
    base = torch.zeros(8, 40, dtype=torch.bfloat16)
    base[0] = 1.0
    tuned = -torch.zeros_like(base)
    found = check(sides_in(tmp_path, base, tuned), ("BF16", "BF16"), base, tuned)
    assert (found.changed, found.tuned) == (40, 0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_entries_that_are_not_finite_are_told_and_nan_beside_nan_is_no_change(value, tmp_path):
    base = torch.ones(4, HEAD, dtype=torch.bfloat16)
    tuned = base.clone()
    base[1, 3] = tuned[1, 3] = value
    tuned[2, 2] = 5.0
    found = compared(sides_in(tmp_path, base, tuned), ("BF16", "BF16"))
    assert (found.finite, found.changed) == (False, 1)


@pytest.mark.parametrize("side", ["base", "tuned", "both"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_sums_leave_out_parts_that_are_not_finite(value, side, tmp_path):
    """The others are summed, and changed entries are counted in all."""
    torch.manual_seed(0)
    base = torch.randn(3, PART).bfloat16()
    tuned = (base.float() + 0.01 * torch.randn(base.shape)).bfloat16()
    for name, matrix in (("base", base), ("tuned", tuned)):
        if side in (name, "both"):
            matrix[1, 5] = value
    found = compared(sides_in(tmp_path, base, tuned), ("BF16", "BF16"))
    b, t = (matrix[[0, 2]].double().numpy() for matrix in (base, tuned))
    same = (base == tuned) | (base.isnan() & tuned.isnan())
    assert (found.finite, found.changed) == (False, int((~same).sum()))
    for name, terms in (("base", b * b), ("tuned", t * t), ("delta", (t - b) ** 2)):
        assert getattr(found, name) == pytest.approx(terms.sum(), rel=1e-6)
    size = np.linalg.norm(b) * np.linalg.norm(t - b)
    assert found.along == pytest.approx((b * (t - b)).sum(), abs=1e-6 * size)


@pytest.mark.parametrize(("before", "after"), [
    (1e-25, 2e-25), (2e-25, 0.0), (0.0, 2e-25), (1e-25, 1e-25), (1.0, 1e-25), (1e-25, 1.0),
])  # fmt: skip
def test_small_numbers_keep_their_energy(before, after, tmp_path):
    """Where squares of one side vanish in float32, or of both, or of the delta alone."""
    base, tuned = (torch.full((20, 30), size).bfloat16() for size in (before, after))
    found = check(sides_in(tmp_path, base, tuned), ("BF16", "BF16"), base, tuned)
    assert found.delta == pytest.approx(600 * (after - before) ** 2, rel=0.02, abs=0)
    base[0], tuned[0] = 1.0, 1.0
    (tmp_path / "large").mkdir()
    found = check(sides_in(tmp_path / "large", base, tuned), ("BF16", "BF16"), base, tuned)
    assert found.delta == pytest.approx(570 * (after - before) ** 2, rel=0.02, abs=0)


@pytest.mark.parametrize("name", ["base", "tuned", "delta", "finite"])
def test_sums_are_safe_where_no_square_may_have_vanished(name):
    """Above 1e-280; a change of which nothing is there may be no change."""
    known = Entries(9, 1, 2e-280, 2e-280, 2e-280, 0.0, finite=True, zeroed=False)
    assert known.is_safe
    assert not replace(known, **{name: False if name == "finite" else 1e-280}).is_safe
    assert replace(known, changed=0, delta=0.0).is_safe


def test_a_cast_in_every_entry_is_found(tmp_path):
    base = torch.randn(30, 40)
    tuned = base.bfloat16()
    found = check(sides_in(tmp_path, base, tuned), ("F32", "BF16"), base, tuned)
    assert found.rounded == ("tuned", "BF16")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_entries_by_binade_are_those_of_a_loop(dtype, tmp_path):
    torch.manual_seed(0)
    base = (torch.randn(300, 500) * 2.0 ** torch.randint(-9, 3, (300, 500))).to(dtype)
    base[0, :5] = 0
    tuned = torch.where(torch.rand(300, 500) < 0.3, base.double(), 1.01 * base.double()).to(dtype)
    name = "BF16" if dtype == torch.bfloat16 else "F32"
    binades = Binades(FLOATS[name])
    found = compared(sides_in(tmp_path, base, tuned), (name, name), binades)
    b, t = base.double().numpy().ravel(), tuned.double().numpy().ravel()
    exponent = np.maximum(np.frexp(np.abs(b))[1] - 1, FLOATS[name].min_exponent)
    exponent[b == 0] = FLOATS[name].min_exponent
    cells = binades.cells()
    assert len(cells) == len(set(exponent))
    for (half, entries, changed, energy), power in zip(cells, sorted(set(exponent)), strict=True):
        here = exponent == power
        assert half == 2.0 ** (int(power) - FLOATS[name].mantissa_bits) / 2
        assert (entries, changed) == (here.sum(), (b != t)[here].sum())
        assert energy == pytest.approx(float(((t - b)[here] ** 2).sum()), rel=1e-6)
    assert sum(changed for _, _, changed, _ in cells) == found.changed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 7), (40, 33), (3000, 64), (2, 90_000)])
def test_extremes_against_numpy(dtype, shape):
    rng = np.random.default_rng(sum(shape))
    values = rng.standard_normal(shape) * 10.0 ** rng.integers(-4, 4, (shape[0], 1))
    tensor = torch.from_numpy(values).to(dtype)
    if shape[0] > 2:
        tensor[1], tensor[-1], tensor[5, 3], tensor[7, 2] = 0, 1.5, float("nan"), float("-inf")
    array = tensor.double().numpy()
    found = looked_at(tensor, Workspace())
    flat = [at for at, row in enumerate(array) if (row == row[0]).all()]
    assert (found.nan, found.infinite) == (np.isnan(array).sum(), np.isinf(array).sum())
    assert found.zero_rows == tuple(at for at in flat if not array[at, 0])
    assert found.constant_rows == tuple(at for at in flat if array[at, 0])
    assert found.energy == pytest.approx((array[np.isfinite(array).all(1)] ** 2).sum(), rel=1e-5)
    assert not found.is_constant


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 1e-30, 1e30])
def test_a_constant_matrix_is_one_whatever_its_size(value):
    found = looked_at(torch.full((70, 1000), value), Workspace())
    assert (found.is_constant, found.zero_rows, found.constant_rows) == (True, (), ())
    assert found.first == pytest.approx(value)
    one = torch.full((70, 1000), value)
    one[69, 999] += 1e30
    assert not looked_at(one, Workspace()).is_constant
