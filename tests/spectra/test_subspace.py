"""Overlaps, alignments and intruders against whole float64 SVDs, and what must not change them."""

from __future__ import annotations

import measuring
import numpy as np
import pytest
import reference
import torch
from effort import every

from shadow.spectra import spectrum, subspace
from shadow.spectra.lazy import Updated
from shadow.spectra.measurement import Method
from shadow.spectra.subspace import NO_SUBSPACES

F64 = ("F64", "F64")
OVERLAPS = ("overlap_left", "overlap_right")
ALIGNMENTS = ("alignment_left", "alignment_right")
# of rows and columns, which a rotation mixes
GAPS = ("subspace_gap_base", "subspace_gap_tuned")


def measure(base, tuned, dtypes=F64, method=None):
    base, tuned = (torch.from_numpy(W) if isinstance(W, np.ndarray) else W for W in (base, tuned))
    return measuring.measure(base, tuned, dtypes, method)


def values(base, tuned, dtypes=F64, method=None):
    found = measure(base, tuned, dtypes, method)[2].values
    return {name: found[name] for name in NO_SUBSPACES}


def expected(found, base, tuned):
    """The reference's columns, with the floors of what was found."""
    Wb, Wt = (W.double().numpy().reshape(-1, W.shape[-1]) for W in (base, tuned))
    return reference.subspaces(Wb, Wt, tuple(one.values["sigma_floor"] for one in found[:2]))


def assert_like_reference(base, tuned, dtypes=F64, method=None, **tolerance):
    found = measure(base, tuned, dtypes, method)
    for name, value in expected(found, base, tuned).items():
        got = found[2].values[name]
        if value is None:
            assert got is None, name
        else:
            assert got == pytest.approx(value, **tolerance), name
    return found[2].values


def planted(rows, cols, sigma, rng):
    U, _ = np.linalg.qr(rng.standard_normal((rows, len(sigma))))
    V, _ = np.linalg.qr(rng.standard_normal((cols, len(sigma))))
    return (U * sigma) @ V.T


def pair(rows, cols, rank=3, size=0.3, seed=0):
    """A base with a decaying spectrum, and the same with a low-rank update and noise, float64."""
    rng = np.random.default_rng(seed)
    m = min(rows, cols)
    base = planted(rows, cols, np.arange(1, m + 1) ** -0.5, rng)
    update = rng.standard_normal((rows, rank)) @ rng.standard_normal(
        (rank, cols)
    ) + rng.standard_normal((rows, cols))
    return base, base + size * update / np.linalg.norm(update)


@pytest.mark.parametrize(
    "shape",
    [(2, 2), (2, 50), (50, 2), (3, 3), (15, 40), (16, 16), (17, 17), (17, 200), (200, 17), (64, 64),
     (65, 90), (90, 65), (128, 128), (150, 400), (400, 150), (300, 310)],
)  # fmt: skip
def test_every_number_is_that_of_two_svds(shape):
    """Tiny, wide, tall and square float64 matrices: to 1e-7, alignments by D's float32 sums."""
    assert_like_reference(*map(torch.from_numpy, pair(*shape)), rel=1e-7, abs=1e-12)


@pytest.mark.parametrize(
    "dtypes", every(3, [("BF16", "BF16"), ("F32", "F32"), ("BF16", "F32"), ("F16", "BF16")])
)
@pytest.mark.parametrize("shape", [(40, 100), (260, 320), (320, 260)])
def test_stored_formats_agree_with_two_svds(shape, dtypes):
    """Stored in 16 or 32 bits, in every tier: to 1e-6, a float32 Gram's error by the gap."""
    types = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16}
    base, tuned = (
        torch.from_numpy(W).to(types[one]) for W, one in zip(pair(*shape), dtypes, strict=True)
    )
    for level in ("full", "exact"):
        assert_like_reference(base, tuned, dtypes, Method(level), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("shape", [(4, 10, 90), (4, 30, 50)])
def test_grouped_views_are_their_rows_in_order(shape):
    """Three dimensions whose groups interleave in memory, as of a fused tensor, wide and tall."""
    base, tuned = (torch.from_numpy(W).view(shape) for W in pair(shape[0] * shape[1], shape[2]))
    views = [W.transpose(0, 1).contiguous().transpose(0, 1) for W in (base, tuned)]
    assert not views[0].is_contiguous()
    assert values(*views) == pytest.approx(
        values(base.flatten(0, 1), tuned.flatten(0, 1)), rel=1e-12
    )
    assert_like_reference(*views, rel=1e-7, abs=1e-12)


def test_updates_and_scaled_floats_are_read_by_index():
    """LoRA updates and block-scaled 8-bit floats are as the dense matrices they stand for."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(70, 300, generator=generator).bfloat16()
    left, right = torch.randn(70, 4, generator=generator), torch.randn(4, 300, generator=generator)
    lazy = Updated(base, left, right, 0.3)
    dense = base.double() + 0.3 * left.double() @ right.double()
    found, wanted = (values(base, tuned, ("BF16", "F64")) for tuned in (lazy, dense))
    assert found == pytest.approx(wanted, rel=1e-7)
    raw = (torch.randn(70, 300, generator=generator) * 50).to(torch.float8_e4m3fn)
    scaled = measuring.scaled_floats(raw, torch.rand(3, 10, generator=generator) + 0.1, (32, 32))
    tuned = (scaled[:,] + torch.randn(70, 300, generator=generator)).bfloat16()
    found, wanted = (values(one, tuned, ("F8_E4M3", "BF16")) for one in (scaled, scaled[:,]))
    assert found == pytest.approx(wanted, rel=1e-12)
    assert_like_reference(scaled[:,], tuned, ("F8_E4M3", "BF16"), rel=1e-6)


def test_an_unresolved_subspace_is_null():
    """A base of rank 5 has no top 16; one of rank 20 has, but no 64 vectors for intruders."""
    rng = np.random.default_rng(0)
    full = rng.standard_normal((80, 100))
    five, twenty = (planted(80, 100, np.linspace(2, 1, rank), rng) for rank in (5, 20))
    base_has_none = values(five, five + full)
    assert [name for name, value in base_has_none.items() if value is not None] == [
        "subspace_gap_tuned"
    ]
    found = values(twenty, twenty + 1e-3 * full)
    assert found["intruders"] is None
    assert None not in [found[name] for name in (*OVERLAPS, *ALIGNMENTS, *GAPS)]
    tuned_has_none = values(full, five)
    assert [tuned_has_none[name] for name in (*OVERLAPS, "intruders", "subspace_gap_tuned")] == [
        None
    ] * 4
    assert None not in [tuned_has_none[name] for name in (*ALIGNMENTS, "subspace_gap_base")]
    twelve = planted(80, 100, np.linspace(2, 1, 12), rng)
    assert values(full, twelve)["intruders"] is not None
    of_zero = values(np.zeros_like(full), full)
    assert [name for name, value in of_zero.items() if value is not None] == ["subspace_gap_tuned"]
    for base, tuned in ((five, five + full), (twenty, twenty + full), (full, five), (full, twelve)):
        assert_like_reference(torch.from_numpy(base), torch.from_numpy(tuned), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("shape", [(60, 700), (700, 60)])
def test_blocks_change_rounding_only(shape, monkeypatch):
    """The long side's vectors are never whole: many blocks give what one gives."""
    base, tuned = pair(*shape)
    whole = values(base, tuned)
    monkeypatch.setattr(subspace, "SMALL_BLOCK", 100 * 60)
    assert values(base, tuned) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("exponent", [-400, -150, 150, 400])
def test_scale_of_the_weights_changes_nothing(exponent):
    """Neither do squares vanish nor overflow."""
    base, tuned = pair(30, 40)
    found = values(*(np.ldexp(W, exponent) for W in (base, tuned)))
    assert found == pytest.approx(values(base, tuned), rel=1e-9)


def test_tiny_deltas_keep_their_alignment():
    """A delta of one part in 10^12 is formed entry by entry, not as a difference of products."""
    rng = np.random.default_rng(5)
    base = np.round(rng.standard_normal((40, 60)) * 2**10) / 2**10
    change = np.round(rng.standard_normal((40, 60)) * 2**5) / 2**45
    found, wanted = values(base, base + change), reference.subspaces(base, base + change)
    for name in ALIGNMENTS:
        assert found[name] == pytest.approx(wanted[name], rel=1e-6)


@pytest.mark.parametrize("dtypes", [("BF16", "BF16"), F64])
def test_lanczos_on_large_sides_agrees(dtypes, mkl, monkeypatch):
    """On large sides vectors come from Lanczos: the same numbers."""
    base, tuned = (torch.from_numpy(W) for W in pair(260, 320))
    if dtypes != F64:
        base, tuned = base.bfloat16(), tuned.bfloat16()
    for name in ("OPENBLAS_SIDE", "OPENBLAS_SIDE_AT_HOME"):
        monkeypatch.setattr(spectrum, name, 200)
    for level in ("full",) if dtypes == F64 else ("full", "exact"):
        assert_like_reference(base, tuned, dtypes, Method(level), rel=1e-6, abs=2e-6)


def test_lanczos_that_misses_a_copy_is_replaced(mkl, monkeypatch):
    """Forty equal singular values, one of them in a Krylov space: all vectors are computed then."""
    for name in ("OPENBLAS_SIDE", "OPENBLAS_SIDE_AT_HOME"):
        monkeypatch.setattr(spectrum, name, 50)
    rng = np.random.default_rng(6)
    base = planted(100, 120, np.r_[np.full(40, 3.0), np.linspace(1, 0.5, 60)], rng)
    found = values(base, 2 * base + 1e-9 * rng.standard_normal(base.shape))
    assert found["subspace_gap_base"] == pytest.approx(0, abs=1e-9)
    zero = torch.zeros(100, 100, dtype=torch.float64)
    _, vectors = spectrum.with_vectors(zero, 16)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(16), atol=1e-12)
