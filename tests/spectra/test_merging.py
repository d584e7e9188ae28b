"""How far from base plus update a merge may be: just inside and just outside of each tolerance."""

import pytest
import torch

from shadow.dtypes import float_format
from shadow.spectra.relations.merging import Update, _Bounds, merge_fit, quantised

UNIT = 2.0**-24  # half a unit in the last place of float32 at 1
NARROW = 2**15  # half a unit of float16 at 7, in these


@pytest.mark.parametrize(("dtype", "factors", "norms", "half", "growth", "bound"), [
    ("F32", "F32", None, 0, 1, 4 + 6 * 7 + 4 * 7), ("F32", "F32", None, 9, 1, 9 + 6 * 7 + 4 * 7),
    ("F32", "F32", None, 0, 2, 4 + 2 * (6 * 7 + 4 * 7)),
    ("F32", "F32", 3.0, 0, 1, 4 + 6 * 7 + 4 * 7 + 7 * (2 * 4 + 8)),
    ("F8_E4M3", "F32", None, 0, 1, 2**22 + 6 * 7 + 4 * 7),
    ("F16", "F16", None, 0, 1, 3 * NARROW + 6 * 7 + 4 * 7),
    ("F16", "F16", 3.0, 0, 1, 3 * NARROW + 6 * 7 + 4 * 7 + 7 * (2 * 4 + 8) + 7 * NARROW),
    ("F16", "F16", None, 0, 2, NARROW + 2 * (2 * NARROW + 6 * 7 + 4 * 7)),
    ("F16", "F32", None, 0, 1, (3 + 3) * NARROW + 6 * 7 + 4 * 7 + 6),
])  # fmt: skip
def test_tolerances_of_a_merge(dtype, factors, norms, half, growth, bound):
    """Of 1 + 2 * (3 products of 1) in 16 columns. Sums of float32 have an error of half a unit for
    each product and sum, norms one that grows with the root of the width, and 16 bits round the
    product before and after it is scaled; factors of more bits are rounded too.
    """
    ones = torch.ones(2, 3, dtype=torch.float64)
    magnitude = None if norms is None else torch.full((2,), norms)
    update = Update(ones, torch.ones(3, 16).double(), 2.0, magnitude, factors)
    grid = float_format(dtype)
    base, target = (torch.full((2, 16), value).double() for value in (1.0, 7.0))
    bounds = _Bounds(
        update.left, update.right, 6 * base, update, grid, torch.full_like(base, half * UNIT)
    )
    for times, count in ((1, 0), (1 + 2.0**-30, 32)):
        assert bounds.beyond(base, target, base * (bound * UNIT * times), growth) == count


@pytest.mark.parametrize(("name", "width"), [("INT8", 80), ("INT8", 128), ("NF4", 128)])
def test_the_copy_of_the_base_that_was_merged_is_told(name, width):
    """Also where rows are no whole number of blocks, which 4 bits need."""
    drawn = torch.randn(10, width, generator=torch.Generator().manual_seed(1)).double()
    base, left, right = drawn[:6], drawn[:6, :2], drawn[8:]
    merged, update = quantised(base, name) + left @ right, Update(left, right, 1.0, None, "F64")
    fit = merge_fit(base, merged, update, ("F64", "F64"), upright=True)
    assert fit.quantised == (name, pytest.approx(0, abs=1e-9))
