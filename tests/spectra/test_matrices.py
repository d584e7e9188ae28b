"""Matrices that are not stored as they are give block by block what NumPy gives whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measuring import measure, scaled_floats

from shadow.checkpoints import stored_tensors
from shadow.spectra import lazy
from shadow.spectra.lazy import Updated
from shadow.spectra.spectrum import blocks

SIZES = st.integers(1, 40)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def scaled(rows, cols, block):
    raw = (torch.randn(rows, cols, generator=generator()) * 50).to(torch.float8_e4m3fn)
    shape = -(-rows // block[0]), -(-cols // block[1])
    scales = torch.rand(shape, generator=generator(1)) + 0.1
    repeated = np.repeat(np.repeat(scales.numpy(), block[0], 0), block[1], 1)[:rows, :cols]
    return scaled_floats(raw, scales, block), raw.float().numpy() * repeated


VIEWS = {
    "as it is": lambda tensor: tensor, "from a row on": lambda tensor: tensor[2:],
    "grouped": lambda tensor: tensor.view(4, -1, tensor.shape[1]),
    "some rows of each group": lambda tensor: tensor.view(4, -1, tensor.shape[1])[:, 1:3],
    "one row of each group": lambda tensor: tensor.view(4, -1, tensor.shape[1])[:, 1],
    "transposed": lambda tensor: tensor.T, "one line": lambda tensor: tensor.reshape(1, -1),
    "cut in columns": lambda tensor: tensor[1:, 1:],
}  # fmt: skip


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("view", VIEWS)
@given(st.integers(3, 9), SIZES, st.integers(1, 9), st.integers(1, 9), st.data())
def test_every_entry_of_a_quantised_matrix_is_decoded_however_it_is_seen(
    view, kept, each, cols, high, wide, data
):
    """Any part of any view, of small matrices that are kept and of large ones, is NumPy's."""
    matrix, expected = scaled(4 * each, cols, (high, wide))
    seen, wanted = matrix.seen(VIEWS[view]), VIEWS[view](torch.from_numpy(expected)).numpy()
    assert (tuple(seen.shape), seen.ndim, seen.numel()) == (wanted.shape, wanted.ndim, wanted.size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_tensors, "AT_ONCE", 7)
        patch.setattr(stored_tensors, "STRIPE", 64)
        if not kept:
            patch.setattr(stored_tensors, "WHOLE", 0)
        for _ in range(3):
            starts = [data.draw(st.integers(0, max(0, size - 1))) for size in wanted.shape]
            cut = tuple(slice(start, start + 4) for start in starts)
            for index in (cut, cut[:1], (slice(None),) * (wanted.ndim - 1) + cut[-1:]):
                np.testing.assert_array_equal(seen[index].numpy(), wanted[index])
    assert not seen.numel() or len(seen.cells(cut)) == 2  # floats have no even grid


def test_a_tall_factor_is_decomposed_in_parts(monkeypatch):
    """Singular values are those of the whole."""
    left = torch.randn(500, 3, generator=generator())
    right = torch.randn(3, 400, generator=generator(1))
    update = Updated(torch.zeros(500, 400), left, right, 2.0)
    whole = update.singular_values()
    monkeypatch.setattr(lazy, "FACTOR_BLOCK", 300)
    np.testing.assert_allclose(update.singular_values(), whole, rtol=1e-12)


@settings(deadline=None)
@given(SIZES, SIZES, st.integers(1, 50), st.floats(0.01, 100))
def test_an_updates_singular_values_are_those_of_the_product(rows, cols, rank, scaling):
    """From the factors, whatever the rank: NumPy's SVD of scaling * left @ right."""
    left = torch.randn(rows, rank, generator=generator())
    right = torch.randn(rank, cols, generator=generator(1))
    found = Updated(torch.zeros(rows, cols), left, right, scaling).singular_values().numpy()
    expected = np.linalg.svd(
        scaling * left.double().numpy() @ right.double().numpy(), compute_uv=False
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * expected[0])


@pytest.mark.parametrize("groups", [1, 4])
def test_an_update_is_its_base_plus_the_product_in_every_block(groups):
    """Blocks of rows, of columns, and of grouped rows."""
    shape = (24, 30) if groups == 1 else (groups, 6, 30)
    base = torch.randn(shape, generator=generator())
    left = torch.randn(*shape[:-1], 3, generator=generator(1))
    right = torch.randn(3, 30, generator=generator(2))
    matrix = Updated(base, left, right, 0.5)
    expected = base.double().numpy() + 0.5 * left.double().numpy() @ right.double().numpy()
    for index in (
        *(index for index, _ in blocks(matrix)),
        (slice(1, 3),),
        (slice(None),) * (len(shape) - 1) + (slice(4, 9),),
    ):
        np.testing.assert_allclose(matrix[index].numpy(), expected[index], rtol=1e-14)


@pytest.mark.parametrize("shape", [(40, 64), (300, 280)])
def test_the_audit_of_an_update_is_that_of_the_dense_sum(shape):
    """Every column of base, tuned and delta; only floor_ratio is null, as nothing was rounded."""
    base = torch.randn(shape, generator=generator()).bfloat16()
    left, right = (
        torch.randn(size, generator=generator(i)) * 0.1
        for i, size in enumerate([(shape[0], 4), (4, shape[1])])
    )
    lazy = Updated(base, left, right, 2.0)
    dense = base.double() + 2.0 * left.double() @ right.double()
    found, expected = (measure(base, tuned, ("BF16", "F64")) for tuned in (lazy, dense))
    for one, other in zip(found, expected, strict=True):
        for column, value in other.values.items():
            if column.startswith("levels_"):
                continue  # of what is stored: an update has no stored sum
            if column == "floor_ratio":
                assert one.values[column] is None or one.subject != "delta"
            elif value is None or isinstance(value, str):
                assert one.values[column] == value
            elif column != "sigma_floor":
                assert one.values[column] == pytest.approx(value, rel=1e-6, abs=1e-9), (
                    one.subject,
                    column,
                )
    assert found[2].values["numerical_rank"] == 4
