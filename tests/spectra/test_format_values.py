"""Columns of a delta of which a side is quantised."""

import math

import numpy as np
import pytest
import torch
from quantisers import codebook, ggml_copy, gptq_copy, k_like

from shadow.dtypes import NF4
from shadow.spectra.relations.format_noise import COLUMNS, format_values
from shadow.spectra.spectrum import Sides, Workspace

ROWS, COLS = 64, 512


@pytest.fixture
def base():
    rng = np.random.default_rng(3)
    return torch.from_numpy((rng.standard_normal((ROWS, COLS)) * 0.02).astype(np.float32))


def values(base, tuned, formats):
    sides = Sides(base, tuned, torch.float32, Workspace())
    return format_values(sides, formats, energy(base, tuned))


def energy(base, tuned):
    return float((tuned[:,].double() - base[:,].double()).square().sum())


def update(size, seed=0):
    return size * torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(seed))


def test_floats_have_none(base):
    """The columns are null where no side is quantised."""
    assert values(base, base + 1e-3, ("F32", "F32")) == {}


@pytest.mark.parametrize("swapped", [False, True])
def test_a_copy_has_the_error_of_its_format(base, swapped):
    """Whichever side it is; floor_ratio is norm(D) over norm(s) / sqrt(12)."""
    copy = ggml_copy(base, "Q4_0")
    sides = ((copy, base), ("Q4_0", "F32")) if swapped else ((base, copy), ("F32", "Q4_0"))
    found = values(*sides[0], sides[1])
    steps = copy.each.double()
    floor = math.sqrt(12 * energy(base, copy) / float(steps.square().sum()))
    assert found["floor_ratio"] == pytest.approx(floor)
    assert found["format_ratio"] == pytest.approx(1, abs=0.001)
    assert (found["format_outside"], found["format_copy"]) == (0, 1)
    assert found["kept_low"] == 0
    assert found["kept_high"] < 0.5


def test_a_changed_original_is_no_copy(base):
    """Nor is one that GPTQ rounded."""
    changed = values(base, k_like(base + update(0.001)), ("F32", "Q4_K"))
    assert changed["format_copy"] == 0
    assert changed["format_outside"] > 0.01
    assert values(base, gptq_copy(base), ("F32", "GPTQ-4"))["format_copy"] == 0


@pytest.mark.parametrize("size", [1e-4, 1e-3, 4e-3, 2e-2])
@pytest.mark.parametrize("make", [k_like, lambda one: ggml_copy(one, "Q4_0")])
def test_the_range_of_kept_has_the_true_share(base, size, make):
    """The energy of the update over that of the stored delta, from stored files alone."""
    change = update(size)
    tuned = make((base.double() + change).float())
    found = values(base, tuned, ("F32", "Q4"))
    share = float(change.double().square().sum()) / energy(base, tuned)
    assert found["kept_low"] <= min(share, 1) <= found["kept_high"]
    assert found["kept_high"] - found["kept_low"] < (1.01 if size < 1e-2 else 0.2)
    steps, entries = tuned.each.double().square() / 12, ROWS * COLS
    even, delta = float(steps.sum()), energy(base, tuned)
    error = 2 * math.sqrt(even * delta / entries)
    ends = (1 - (even + error) / delta, 1 - max(0.0, 0.55 * even - error) / delta)
    expected = [pytest.approx(min(1.0, max(0.0, end)), abs=1e-6) for end in ends]
    assert [found["kept_low"], found["kept_high"]] == expected


@pytest.mark.parametrize(
    "make", [k_like, lambda one: ggml_copy(one, "Q4_0"), lambda one: codebook(one, NF4, 64, "NF4")]
)
def test_two_quantised_sides_have_no_figures(base, make):
    """Every column is null, the floor of floats among them."""
    found = values(make(base), make(base + update(0.02)), ("Q4", "Q4"))
    assert found == dict.fromkeys(("floor_ratio", *COLUMNS))


def test_the_floor_of_codebooks_is_an_error_that_is_even_over_cells(base):
    """By integration of (x - q)² over the cell of each entry, over its width."""
    tuned = codebook(base + update(0.02), NF4, 64, "NF4")
    low, high = (end.double() for end in tuned.ends)
    points = (torch.arange(100, dtype=torch.float64)[:, None, None] + 0.5) / 100
    inside = low + points * (high - low)
    floor = float((inside - tuned.numbers.double()).square().mean(0).sum())
    found = values(base, tuned, ("F32", "NF4"))
    expected = math.sqrt(energy(base, tuned) / floor)
    assert found["floor_ratio"] == pytest.approx(expected, rel=1e-3)


def test_codebooks_without_cells_have_no_floor(base):
    """Every column is null, the floor of floats among them."""
    copy = ggml_copy(base, "Q4_0")
    copy.each = None
    assert values(base, copy, ("F32", "NF4")) == dict.fromkeys(("floor_ratio", *COLUMNS))


def test_formats_of_compensated_rounding_have_no_share_of_the_update(base):
    """The error of GPTQ is larger than that of rounding each entry, with nothing trained."""
    copy = gptq_copy(base)
    for *sides, formats in ((base, copy, ("F32", "GPTQ-4")), (copy, base, ("GPTQ-4", "F32"))):
        found = values(*sides, formats)
        assert (found["kept_low"], found["kept_high"]) == (None, None)
        assert found["format_ratio"] > 1.05
