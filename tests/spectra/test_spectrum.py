"""Spectra against float64 SVDs, planted spectra and closed forms."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from effort import every, examples
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shadow.spectra import spectrum as module
from shadow.spectra.singular_values import condition_number, ranks
from shadow.spectra.spectrum import (
    Workspace,
    blocks,
    scaled_blocks,
    spectrum,
)


def solve(W, precision="default", wide_format=False, scale=1.0):
    matrix = torch.as_tensor(W)
    space = Workspace()
    rows, cols = matrix.shape[:-1].numel(), matrix.shape[-1]
    norm = float(torch.linalg.vector_norm(matrix.double()))
    return spectrum(
        lambda dtype: scaled_blocks(matrix, scale, dtype, space),
        (rows, cols),
        norm,
        scale,
        precision,
        wide_format,
    )


def planted(rows, cols, sigma, seed=0):
    rng = np.random.default_rng(seed)
    U, _ = np.linalg.qr(rng.standard_normal((rows, len(sigma))))
    V, _ = np.linalg.qr(rng.standard_normal((cols, len(sigma))))
    return (U * sigma) @ V.T


@pytest.mark.parametrize(
    "shape", [(2, 2), (2, 700), (700, 2), (64, 300), (300, 64), (300, 301), (400, 400)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_singular_values_are_those_of_a_float64_svd(shape, dtype):
    """Every tier agrees with NumPy's SVD: sigma² to 5e-7 of the largest, a Gram's rounding."""
    W = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        dtype
    )
    found = solve(W, wide_format=dtype in (torch.float32, torch.float64))
    expected = np.linalg.svd(W.double().numpy(), compute_uv=False)
    resolved = found.sigma > 0
    np.testing.assert_allclose(
        found.sigma[resolved] ** 2, expected[resolved] ** 2, rtol=0, atol=5e-7 * expected[0] ** 2
    )
    assert (expected[~resolved] < 1.05 * found.floor).all()
    np.testing.assert_allclose(found.sigma[:10], expected[:10], rtol=1e-6)
    assert (found.rows, found.cols) == shape


def test_a_rank_one_matrix_has_one_resolved_singular_value_in_every_tier():
    """What lies below the floor is 0, so that a rank-one matrix has rank one and not 1.28."""
    W = torch.outer(torch.ones(400), torch.arange(1, 501).float()).bfloat16()
    truth = np.linalg.svd(W.double().numpy(), compute_uv=False)
    for precision in ("default", "exact"):
        found = solve(W, precision)
        assert np.count_nonzero(found.sigma) == 1
        assert found.sigma[0] == pytest.approx(truth[0], rel=1e-5)
        assert found.precision == "exact", "399 of 400 below the floor: redone"


def test_a_matrix_with_many_unresolved_values_is_redone_in_float64():
    """1 % of the sigmas below the float32 floor are too many; what float64 resolves is there."""
    sigma = np.concatenate([np.ones(280), np.full(20, 1e-5)])
    W = planted(300, 400, sigma)
    found = solve(W)
    assert found.precision == "exact"
    np.testing.assert_allclose(found.sigma, sigma, rtol=1e-4)
    few = planted(300, 400, np.concatenate([np.ones(298), np.full(2, 1e-5)]))
    assert solve(few).precision == "default"
    assert np.count_nonzero(solve(few).sigma) == 298


def test_what_a_gram_of_float32_may_leave_open(monkeypatch):
    """As many values, and as large an error of the effective rank, as the constants say."""
    W = planted(300, 400, np.concatenate([np.ones(297), np.full(3, 1e-5)]))
    found = solve(W)
    error = module.effective_rank_error(found.sigma, found.shift)
    for share, most, precision in (
        (0.01, error, "default"), (0.0099, error, "exact"),
        (0.01, np.nextafter(error, 0), "exact"),
    ):  # fmt: skip
        monkeypatch.setattr(module, "UNRESOLVED_SHARE", share)
        monkeypatch.setattr(module, "RANK_ERROR", {"default": most, "exact": math.inf})
        assert solve(W).precision == precision


NEAR_THE_FLOOR = {  # a few large singular values stand over many small ones
    "a bulk below 2e-3": lambda m: np.r_[1, np.linspace(2e-3, 4e-4, m - 1)],
    "a bulk at the floor": lambda m: np.r_[1, 1, 1, np.linspace(8e-4, 3.5e-4, m - 3)],
    "half at 1e-3": lambda m: np.r_[np.ones(m // 2), np.full(m - m // 2, 1e-3)],
    "six decades of decay": lambda m: np.geomspace(1, 1e-3, m),
}


@pytest.mark.parametrize("shape", every(2, [(300, 320), (300, 1200), (1200, 300)]))
@pytest.mark.parametrize("kind", NEAR_THE_FLOOR)
def test_the_effective_rank_is_right_to_what_its_tier_promises(kind, shape, mkl):
    """Where much of the spectrum lies near the floor, `default` is within 2.6e-4 of a float64 SVD,
    whichever library finds the eigenvalues.
    """
    W = torch.from_numpy(planted(*shape, NEAR_THE_FLOOR[kind](300))).bfloat16()
    truth = np.linalg.svd(W.double().numpy(), compute_uv=False)
    found = solve(W)
    resolved = np.where(truth < found.floor, 0.0, truth)
    p = resolved[resolved > 0] / resolved.sum()
    expected = np.exp(-(p * np.log(p)).sum())
    assert ranks(found)["effective_rank"] == pytest.approx(expected, rel=2.6e-4)


@pytest.mark.parametrize(("rows", "cols", "seed", "recorded"), [
    (600, 600, 0, False), (400, 400, 2, True), (600, 640, 0, True),
])  # fmt: skip
def test_a_condition_number_is_right_to_five_percent_or_null(rows, cols, seed, recorded):
    """The smallest singular value of a square matrix of noise drowns in the rounding of a float32
    Gram above the floor already (42 % off in the first of these); float64 resolves it.
    """
    W = torch.randn((rows, cols), generator=torch.Generator().manual_seed(seed)).bfloat16()
    truth = np.linalg.svd(W.double().numpy(), compute_uv=False)
    found, exact = solve(W), condition_number(solve(W, "exact"))
    assert found.precision == "default"
    assert found.sigma[-1] > 0
    assert exact == pytest.approx(truth[0] / truth[-1], rel=1e-6)
    expected = pytest.approx(exact, rel=0.05) if recorded else None
    assert condition_number(found) == expected


def test_small_matrices_and_wide_formats_take_exact():
    """Where it costs next to nothing, or float32 would round the input, float64 is used unasked."""
    assert solve(torch.randn(256, 600).bfloat16()).precision == "exact"
    assert solve(torch.randn(257, 600).bfloat16()).precision == "default"
    assert solve(torch.randn(257, 600), wide_format=True).precision == "exact"


def test_zero_matrix_has_a_zero_spectrum():
    """No singular value of a zero matrix is resolved, and the floor is 0."""
    found = solve(torch.zeros(300, 400))
    assert not found.sigma.any()
    assert found.floor == 0


@settings(max_examples=examples(40))
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 50), st.booleans())
@example(40, 7, 50, True)
@example(5, 60, 50, True)
def test_blocks_and_tiles_cover_a_matrix_once_in_order(rows, cols, size, grouped):
    """Of any size and cut, in two and three dimensions: each begins where it says, in order."""
    shape = (rows, 3, cols) if grouped else (rows, cols)
    matrix = torch.arange(1.0, math.prod(shape) + 1).view(shape)
    whole = matrix.reshape(-1, cols)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", size)
        for cut in (blocks, partial(module.tiles, size=size, widest=4)):
            seen, corners = torch.zeros(whole.shape), []
            for index, (row, col) in cut(matrix):
                part = matrix[index].reshape(-1, matrix[index].shape[-1])
                assert part.numel() > 0
                # a line of the short side is never cut
                most = min(whole.shape) if cut is blocks else 4
                assert part.numel() <= max(size, most)
                seen[row : row + len(part), col : col + part.shape[1]] += part
                corners.append((row, col))
            assert torch.equal(seen, whole)
            assert corners == sorted(corners)


@pytest.mark.parametrize("shape", [(5, 1000), (1000, 5), (37, 41), (8, 16, 50), (8, 5, 20)])
def test_block_size_changes_rounding_only(shape, monkeypatch):
    """Streaming in small blocks gives the whole's spectrum; a grouped view is rows in order."""
    W = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    whole = np.linalg.svd(W.reshape(-1, shape[-1]).numpy(), compute_uv=False)
    monkeypatch.setattr(module, "BLOCK", 64)
    np.testing.assert_allclose(solve(W, "exact").sigma, whole, rtol=1e-9)


def test_a_buffer_is_made_anew_only_for_more(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4)
    space = Workspace()
    first, second, larger = (space.take("x", (2, n), torch.float32) for n in (3, 3, 4))
    assert first.data_ptr() == second.data_ptr() != larger.data_ptr()


def test_a_transposed_view_is_read_in_place():
    """A strided view (Conv1D, stored (in, out)) has its transpose's singular values."""
    W = torch.randn(300, 500, generator=torch.Generator().manual_seed(4)).bfloat16()
    np.testing.assert_allclose(solve(W.T).sigma, solve(W).sigma, rtol=1e-5)


def test_eigenvalues_are_those_of_the_product(mkl):
    """Either library's of its lower triangle, squares of singular values."""
    W = torch.randn(100, 140, dtype=torch.float64)
    np.testing.assert_allclose(
        module.eigenvalues((W @ W.T).tril()), np.linalg.svd(W.numpy())[1][::-1] ** 2, rtol=1e-9
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gram_matrix_is_that_of_any_cut(dtype):
    """By blocks of columns or rows, strided ones too: symmetric, and the product."""
    W = torch.randn(70, 130, dtype=dtype, generator=torch.Generator().manual_seed(8))
    right = (W.double() @ W.double().T).numpy()
    rel = 1e-5 if dtype == torch.float32 else 1e-13
    for blocks_of, shape in (
        ([W], (70, 130)),
        ([W[:, :1], W[:, 1:80], W[:, 80:]], (70, 130)),
        ([W.T[:50], W.T[50:].contiguous()], (130, 70)),
    ):
        read = dict.fromkeys([dtype], blocks_of).__getitem__
        lower = module.ON_CPU.gram(read, shape, 0.0, dtype)
        assert lower.dtype == dtype
        np.testing.assert_allclose(lower, right, atol=rel * right.max())
        assert torch.equal(lower, lower.T)
