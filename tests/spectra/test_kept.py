"""What a copy kept, against plain float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from shadow.checkpoints.opening import open_folder
from shadow.spectra.delta import working_dtype
from shadow.spectra.kept import kept_of
from shadow.spectra.spectrum import Sides, Workspace

FORMATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
NAMES = ("full", "copy", "base")


def stored(folder, tensors):
    """Matrices as they lie in files."""
    found = []
    for name, tensor in zip(NAMES, tensors, strict=False):
        (folder / name).mkdir()
        save_file({"w": tensor}, folder / name / "model.safetensors")
        checkpoint = open_folder(folder / name)
        found.append(checkpoint.tensor(checkpoint.tensors["w"]))
    return found


def drawn(shape, formats, step):
    """A base, a model that moved by a step from it, and its copy."""
    torch.manual_seed(0)
    base = (0.02 * torch.randn(shape)).to(FORMATS[formats[2]])
    full = (base.float() + step * torch.randn(shape)).to(FORMATS[formats[0]])
    return full, full.to(FORMATS[formats[1]]), base


def check(found, tensors, **counts):
    """Every energy beside NumPy's."""
    f, c, b = (one.double().numpy().ravel() for one in tensors)
    pairs = {"full": (f, f), "copy": (c, c), "error": (c - f, c - f), "along": (f, c - f)}
    u, v = f - b, c - b
    pairs |= {"update": (u, u), "stored_update": (v, v), "inner": (u, v)}
    for name, (one, other) in pairs.items():
        size = float(np.linalg.norm(one) * np.linalg.norm(other))
        assert getattr(found, name) == pytest.approx(float(one @ other), abs=1e-6 * size), name
    assert found.unchanged == int((c == b).sum())
    assert found.finite
    for name, count in counts.items():
        assert getattr(found, name) == count, name


@pytest.mark.parametrize("shape", [(3, 7), (300, 500), (2, 70_001)], ids=str)
@pytest.mark.parametrize(
    "formats", [("BF16", "BF16", "BF16"), ("F32", "BF16", "BF16"), ("F16", "BF16", "F32")], ids=str
)
def test_sums_and_counts_are_those_of_float64_from_files_and_from_memory(shape, formats, tmp_path):
    """One entry of the copy is another than rounding makes of it."""
    full, copy, base = tensors = drawn(shape, formats, step=1e-4)
    expected = int((full.to(copy.dtype).double() == base.double()).sum())
    copy = copy.clone()
    copy[1, 2] = copy[1, 2] * 1.5 + 1
    tensors = full, copy, base
    dtype = working_dtype(*formats)
    for matrices in (stored(tmp_path, tensors), [one.T.contiguous().T for one in tensors]):
        sides = Sides(*matrices[:2], dtype, Workspace())
        found = kept_of(sides, matrices[2], formats[1])
        check(found, tensors, off=1, unchanged_expected=expected, entries=full.numel())


def test_an_equal_copy_has_no_error_and_a_part_of_it_that_is_not_finite_no_norm(tmp_path):
    full = torch.full((4, 70_000), 0.5).bfloat16()
    full[3, 69_999] = float("nan")
    sides = Sides(*stored(tmp_path, (full, full)), torch.float32, Workspace())
    found = kept_of(sides, None, "BF16")
    assert (found.off, found.error, found.finite, found.update) == (0, 0.0, False, None)
    assert found.full == pytest.approx(0.25 * (280_000 - 280_000 % (1 << 16)))


def test_numbers_that_a_format_cannot_hold_are_off(tmp_path):
    """A cast to F16 makes infinities of them; it is no copy."""
    full = torch.linspace(-1e5, 1e5, 600).view(20, 30)
    copy = full.half()
    beyond = int(copy.isinf().sum())
    assert beyond
    found = kept_of(Sides(*stored(tmp_path, (full, copy)), torch.float64, Workspace()), None, "F16")
    assert (found.off, found.finite) == (beyond, False)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e18, 1.5e38])
def test_squares_beyond_float32_neither_vanish_nor_overflow(size, tmp_path):
    torch.manual_seed(0)
    tensors = [(size * torch.rand(40, 50)).bfloat16() for _ in range(3)]
    matrices = stored(tmp_path, tensors)
    found = kept_of(Sides(*matrices[:2], torch.float32, Workspace()), matrices[2], "BF16")
    check(found, tensors)
