"""What a copy kept, against plain float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from shadow.checkpoints.opening import open_folder
from shadow.spectra.copies import has_few_levels, kept_of
from shadow.spectra.spectrum import Sides, Workspace, working_dtype

FORMATS = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
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
    copy = copy.clone()
    copy[1, 2] = copy[1, 2] * 1.5 + 1
    tensors = full, copy, base
    dtype = working_dtype(*formats)
    for matrices in (stored(tmp_path, tensors), [one.T.contiguous().T for one in tensors]):
        sides = Sides(*matrices[:2], dtype, Workspace())
        found = kept_of(sides, matrices[2], formats[1])
        check(found, tensors, off=1, entries=full.numel())


def test_an_equal_copy_has_no_error_and_a_part_of_it_that_is_not_finite_no_norm(tmp_path):
    full = torch.arange(4.0).repeat_interleave(1 << 16).view(4, -1).bfloat16()
    full[3, -1] = float("nan")
    sides = Sides(*stored(tmp_path, (full, full)), torch.float32, Workspace())
    found = kept_of(sides, None, "BF16")
    assert (found.off, found.error, found.finite, found.update) == (0, 0.0, False, None)
    assert (found.full, found.copy) == ((0 + 1 + 4) * 2**16,) * 2


def test_a_copy_that_is_rounded_in_parts_is_off_where_it_is_rounded(tmp_path):
    """Of three parts of a float32 copy two are as they were and one is rounded to BF16."""
    full = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 1 << 16), np.float32))
    copy = full.clone()
    copy[1] = full[1].bfloat16().float()
    sides = Sides(*stored(tmp_path, (full, copy)), torch.float64, Workspace())
    found = kept_of(sides, None, "F32")
    assert (found.grid, found.off) == ("F32", int((full != copy).sum()))


@pytest.mark.parametrize(
    ("kind", "held", "beyond"),
    [  # half way to the next power of two, whose last bit is even; but not in E4M3, where it is odd
        ("F16", ["0x1.ffcp15", "0x1.ffdffep15"], ["0x1.ffep15", "0x1.fffp15", "0x1p17"]),
        ("BF16", ["0x1.fep127", "0x1.fefffep127"], ["0x1.ffp127", "0x1.ff8p127"]),
        ("F8_E5M2", ["0x1.cp15", "0x1.dffffep15"], ["0x1.ep15", "0x1.fp15", "0x1p17"]),
        ("F8_E4M3", ["0x1.cp8", "0x1.dp8"], ["0x1.d00002p8", "0x1.ep8", "0x1p10"]),
    ],
)
def test_numbers_that_a_format_cannot_hold_are_off(kind, held, beyond, tmp_path):
    """Those beyond what rounds to its largest number, whether a cast makes infinities of them or
    saturates.
    """
    sizes = torch.tensor([float.fromhex(one) for one in (*held, *beyond)])
    full = torch.outer(torch.tensor([1.0, -1.0]), sizes)
    copy = full.to(FORMATS[kind])
    assert (copy[:, :2].double().abs() == sizes[0]).all()
    found = kept_of(Sides(*stored(tmp_path, (full, copy)), torch.float64, Workspace()), None, kind)
    assert (found.off, found.finite) == (2 * len(beyond), kind == "F8_E4M3")


@pytest.mark.parametrize("kind", ["BF16", "F16", "F32", "F64", "F8_E5M2"])
def test_infinities_stay_and_another_number_is_off_once(kind, tmp_path):
    """An infinity is its own copy."""
    full = torch.tensor([[np.inf, -np.inf, 1e39, 1e39, 1.0]], dtype=torch.float64)
    copy = full.to(FORMATS[kind], copy=True)
    copy[0, 2] = 2.0
    sides = Sides(*stored(tmp_path, (full, copy)), torch.float64, Workspace())
    assert kept_of(sides, None, kind).off == (1 if kind == "F64" else 2)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e18, 1.5e38])
def test_squares_beyond_float32_neither_vanish_nor_overflow(size, tmp_path):
    torch.manual_seed(0)
    tensors = [(size * torch.rand(40, 50)).bfloat16() for _ in range(3)]
    matrices = stored(tmp_path, tensors)
    found = kept_of(Sides(*matrices[:2], torch.float32, Workspace()), matrices[2], "BF16")
    check(found, tensors)


@pytest.mark.parametrize(("shape", "least"), [((4, 96), 0.7), ((32, 32), 1.0), ((128, 96), 1.0)])
def test_a_round_trip_through_8_bits_is_told_from_an_update(shape, least):
    """Of small matrices, few values repeat by chance: an update is not taken for a round trip."""
    generator = torch.Generator().manual_seed(1)
    seen, false = 0, 0
    for _ in range(30):
        w = (0.05 * torch.randn(shape, generator=generator)).bfloat16()
        grouped = w.float().view(-1, 32)
        scale = grouped.abs().amax(1, keepdim=True) / 127
        seen += has_few_levels(w, ((grouped / scale).round() * scale).view(shape).bfloat16())
        step = 2e-3 * torch.randn(shape, generator=generator)
        false += has_few_levels(w, (w.float() + step).bfloat16())
    assert seen >= least * 30
    assert not false


def test_what_was_zero_and_is_not_was_trained():
    """Every format of few bits has an exact 0, as the new blocks of LLaMA Pro start."""
    noise = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    levels = (noise * 4).round() / 4
    for tuned in (noise.bfloat16(), levels.bfloat16()):
        assert not has_few_levels(torch.zeros(64, 256, dtype=torch.bfloat16), tuned)
