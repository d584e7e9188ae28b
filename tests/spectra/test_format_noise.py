"""What a format makes of an original: cells, clipped entries, and what lies beyond them."""

import math

import numpy as np
import pytest
import torch
from quantisers import Copy, ggml_copy, k_blocks, k_copy, k_like, k_quants

from shadow.spectra.levels import FormatNoise
from shadow.spectra.relations import format_noise as module
from shadow.spectra.relations.format_noise import block_length, cells, cells_between, format_noise

ROWS, COLS = 48, 512
ABOVE, BELOW = 1 + 1e-9, 1 - 1e-9


@pytest.fixture
def original():
    rng = np.random.default_rng(7)
    matrix = rng.standard_t(5, (ROWS, COLS)) * 0.02 * np.exp(0.3 * rng.standard_normal(COLS))
    return torch.from_numpy(matrix.astype(np.float32))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "K"])
def test_every_entry_of_an_original_is_in_its_cell_or_clipped(original, kind):
    """Levels that are chosen last, with the scales that are stored, are the nearest; an entry
    beyond the range of its block is clipped. Sums are NumPy's.
    """
    copy = k_like(original) if kind == "K" else ggml_copy(original, kind)
    found = format_noise(original, copy)
    assert found.outside == 0
    assert kind != "K" or found.clipped > 10
    assert found.error == pytest.approx(found.made, rel=1e-6 if kind == "K" else 1e-12)
    x, q = (part.double().numpy() for part in (original, copy[:,]))
    assert found.original == pytest.approx((x**2).sum(), rel=1e-12)
    assert found.error == pytest.approx(((q - x) ** 2).sum(), rel=1e-12)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_scales_below_the_normal_numbers_of_16_bits_leave_a_copy(original, kind):
    """They are rounded by more than 2^-11 of their size, which levels of 127 show most."""
    for size in (2.0**-10, 2.0**-14):
        copy = ggml_copy(size * original, kind)
        assert 0 < copy.each.max() < 2.0**-14
        assert format_noise(size * original, copy).outside == 0


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K"])
def test_scales_of_an_importance_matrix_leave_a_copy(original, kind):
    """Also where all columns weigh the same."""
    drawn = np.exp(np.random.default_rng(1).standard_normal(COLS))
    for importance in (None, np.ones(COLS), drawn):
        found = format_noise(original, k_quants(original, kind, importance))
        assert (found.outside, found.is_copy(kind)) == (0, True)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K"])
@pytest.mark.parametrize("weighed", [False, True])
def test_blocks_far_smaller_than_their_neighbours_are_no_change(kind, weighed):
    """A scale of one or two codes is rounded by up to half of one, the offset too: whole blocks lie
    beyond their last level by what that makes, which may be many of their own steps. No entry is
    said to be outside, and whether it is a copy is open.
    """
    rng = np.random.default_rng(7)
    sizes = np.exp(rng.uniform(-7, 0, (256, 32))).repeat(16, axis=1)
    matrix = torch.from_numpy((rng.standard_t(4, (256, 512)) * sizes).astype(np.float32))
    importance = np.exp(rng.standard_normal(512)) if weighed else None
    found = format_noise(matrix, k_quants(matrix, kind, importance))
    assert (found.outside, found.made, found.is_copy(kind)) == (0, None, None)
    changed = matrix + 0.3 * found.error**0.5 / 362 * torch.randn(256, 512)
    assert format_noise(changed, k_quants(matrix, kind, importance)).is_copy(kind) is False


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K"])
def test_a_block_whose_scale_is_rounded_to_0_is_unknown(original, kind):
    """Its numbers are lost; a block of zeros is a copy."""
    for factor, is_copy in ((0.01, None), (0.0, True)):
        one = original.clone()
        one[:, 16:32] *= factor
        copy = k_copy(k_blocks(one.numpy(), kind), kind)
        assert not copy.each[:, 16:32].any()
        found = format_noise(one, copy)
        assert (found.outside, found.is_copy(kind)) == (0, is_copy)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "K"])
@pytest.mark.parametrize("steps", [1, 6, 20])
def test_a_block_that_is_clipped_as_a_whole_is_outside(original, kind, steps):
    """All its entries lie beyond its last level, by 1 step or by many."""
    copy = k_like(original) if kind == "K" else ggml_copy(original, kind)
    copy.numbers[3, :32] = copy.numbers[3, :32].max()
    original[3, :32] = copy.numbers[3, :32] + steps * copy.each[3, :32]
    original[3, 0] = copy.numbers[3, 0] = 0.0  # a block of two values
    found = format_noise(original, copy)
    assert found.outside == (0 if kind == "K" else 31)
    assert found.is_copy("Q4_K") is (None if kind == "K" else False)


@pytest.mark.parametrize(("steps", "entries", "own"), [
    (2.0, 4, {"Q4_0", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}),
    (10.0, 1, {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}),
    (2.0, 16, {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}),
    (23.0, 1, {"Q3_K", "Q4_K", "Q5_K", "Q6_K"}), (5.5, 26, {"Q2_K"}), (40.0, 1, set()),
    (2.0, 30, set()),
])  # fmt: skip
@pytest.mark.parametrize("end", [7, -8])
@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_a_format_clips_as_far_and_as_much_of_a_block_as_its_quantiser(
    kind, end, steps, entries, own
):
    """So many entries of a block lie so many steps beyond its end."""
    levels = np.random.default_rng(1).permuted(np.tile(np.arange(-8.0, 8), (2, 4)), axis=1)
    levels[0, :entries], levels[0, entries:32] = end, np.arange(32 - entries) % 15 - 7
    sizes = np.repeat([[2.0**-6, 2.0**-7], [2.0**-8, 2.0**-9]], 32, axis=1)
    original = levels * sizes
    original[0, :entries] += math.copysign(steps, end) * sizes[0, :entries]
    levels, sizes, original = (torch.from_numpy(each) for each in (levels, sizes, original))
    found = format_noise(original, Copy(levels * sizes, sizes, kind))
    clipped = entries if kind in own else 0
    assert found.error == entries * steps**2 * 2.0**-12
    if kind.endswith("K") and not clipped:  # its scales may be the cause
        assert (found.clipped, found.outside, found.is_copy(kind)) == (0, 0, None)
        return
    assert (found.clipped, found.outside) == (clipped, entries - clipped)
    assert found.made == entries * (min(steps, 4.0) ** 2 if clipped else 1 / 12) * 2.0**-12
    assert found.furthest == (0.0 if clipped else steps)


@pytest.mark.parametrize(("offset", "moved"), [(0.0, 3.0), (-8.25, 9.0 + 14.25)])
@pytest.mark.parametrize("step", [1.0, 2.0**-24])
def test_a_cell_is_as_wide_as_its_step_and_what_rounding_moves(offset, moved, step):
    """Half a step, what rounding a scale to 16 bits moves, 1e-5 of a step for arithmetic, and half
    the smallest number of 16 bits; levels with an offset move with it.
    """
    q = offset + np.tile([3.0, *range(-6, 9)], (1, 2))
    edge = 0.5 + max(2.0**-11, 2.0**-25 / step) * (moved + 0.5) + 1e-5
    for sign in (1, -1):
        for by, outside in ((1 - 1e-6, False), (1 + 1e-6, True)):
            x = q * step
            x[0, 0] += sign * by * (edge * step + 2.0**-25)
            found = cells(x, q * step, np.full_like(q, step), 32, "Q8_0")
            assert bool(found.outside[0, 0]) == outside
            assert not found.outside[0, 1:].any()


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K"])
def test_blocks_of_one_level_are_clipped_nearby(kind):
    """Up to 1.5 steps."""
    q = np.hstack([np.full((1, 32), 2.0), np.zeros((1, 32)), np.tile([-1.0, 1.0], (1, 16))])
    s = np.repeat([[1.0, 0.0, 0.25]], 32, axis=1)
    x = q.copy()
    x[0, [0, 1]] += 1.4, 1.6
    x[0, [32, 33, 64]] = 1e-6, 0.1, 0.2
    found = cells(x, q, s, 32, kind)
    beyond = [1, 33] if kind == "Q4_K" else []
    assert np.flatnonzero(found.clipped).tolist() == [0]
    assert np.flatnonzero(found.unknown).tolist() == beyond
    assert np.flatnonzero(found.outside).tolist() == sorted({1, 33, 64} - set(beyond))


def test_cells_of_codebooks_have_two_sides():
    """Levels -1, 0 and 3 of a scale of 1, whose cells end at -0.5 and 1.5."""
    q = np.array([[-1.0, -1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 3.0, 3.0, 3.0, 0.0, 0.0]])
    low = np.array([[-math.inf] * 3 + [-0.5] * 4 + [1.5] * 3 + [0.0] * 2])
    high = np.array([[-0.5] * 3 + [1.5] * 4 + [math.inf] * 3 + [0.0] * 2])
    x = np.array([[-2.4, -2.6, -0.4, -0.6, -0.4, 1.4, 1.6, 7.4, 7.6, 1.4, 0.005, 0.007]])
    found = cells_between(x, q, low, high)
    assert found.width[0].tolist() == [1.0] * 3 + [2.0] * 4 + [3.0] * 3 + [3 / 256] * 2
    evens = [1 / 12, 7 / 12, 9 / 12, 9 / 12 / 256**2]
    assert found.even[0, [0, 3, 7, 10]] == pytest.approx(evens)
    assert np.flatnonzero(found.clipped).tolist() == [0, 7]
    assert np.flatnonzero(found.outside).tolist() == [1, 2, 3, 6, 8, 9, 11]


@pytest.mark.parametrize("size", [1.0, 2.0**-20])
def test_what_is_rounded_beside_a_codebook_moves_its_cells(size):
    """By 2^-8 of a number and of its cell, and half the smallest number of 16 bits."""
    q, low, high = (size * np.array([[end]]) for end in (3.0, 2.5, 5.0))
    for end, sign in ((low, -1), (high, 1)):
        loose = size * 2.0**-8 * (3.0 + 2.0) + 2.0**-25
        inside, beyond = (
            cells_between(end + sign * by * loose, q, low, high) for by in (0.99, 1.01)
        )
        assert (inside.outside.item(), beyond.outside.item()) == (False, True)


def test_a_copy_without_steps_has_sums_alone(original):
    """Of a codebook the error is known, and what the format makes is not."""
    copy = ggml_copy(original, "Q4_0")
    found = format_noise(original, Copy(copy.numbers, None))
    assert (found.made, found.outside) == (None, 0)
    assert found.error == format_noise(original, copy).error


def test_a_column_of_zeros_has_no_factor(original):
    """What it lost counts as an error, that of others after the best factor of each."""
    copy = ggml_copy(original, "Q4_0")
    copy.numbers[:, 3] = 0.0
    x, q = original.double().numpy(), copy.numbers.double().numpy()
    rests = [np.linalg.lstsq(x[:, [at]], q[:, at], rcond=None)[1][0] for at in range(COLS)]
    lost = float((x[:, 3] ** 2).sum())
    assert format_noise(original, copy).scaled == pytest.approx(sum(rests) + lost, rel=1e-9)


def test_columns_of_a_block_that_do_not_lie_together_are_unknown(original):
    """As of GPTQ with the order of activations: sums are known, what the format makes is not."""
    copy = ggml_copy(original, "Q4_0")
    order = np.random.default_rng(3).permutation(COLS)
    mixed = Copy(copy.numbers[:, order], copy.each[:, order], "GPTQ-4")
    found, expected = format_noise(original[:, order], mixed), format_noise(original, copy)
    assert (found.made, found.outside, found.is_copy("GPTQ-4")) == (None, 0, None)
    for name in ("error", "original", "copy", "inner", "scaled"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9), name


def test_the_length_of_a_block_is_where_steps_change():
    """The greatest common divisor of these places; all columns where there is none."""
    steps = np.repeat([[1.0, 2.0, 2.0, 3.0], [1.0, 1.0, 2.0, 2.0]], 32, axis=1)
    assert block_length(steps) == 32
    assert block_length(np.ones((2, 96))) == 96
    assert block_length(np.arange(96.0)[None]) == 96


def test_blocks_of_rows_and_groups_change_nothing(original, monkeypatch):
    """Sums over a stack of matrices, cut anywhere, are those of the whole."""
    whole = format_noise(original, ggml_copy(original, "Q4_1"))
    monkeypatch.setattr(module, "TILE", 4 * COLS)
    copy = ggml_copy(original, "Q4_1")
    grouped = Copy(copy.numbers.view(3, -1, COLS), copy.each.view(3, -1, COLS))
    cut = format_noise(original.view(3, -1, COLS), grouped)
    for name, value in vars(whole).items():
        assert getattr(cut, name) == (value and pytest.approx(value, rel=1e-9, abs=1e-12)), name


@pytest.mark.parametrize("mixed", [False, True])
def test_first_rows_of_zeros_do_not_hide_blocks(original, monkeypatch, mixed):
    """Blocks are those of all rows, whichever are read first."""
    copy = k_like(original)
    for part in (original, copy.numbers, copy.each):
        part[:8] = 0
    order = np.random.default_rng(3).permutation(COLS) if mixed else slice(None)
    original, copy = original[:, order], Copy(copy.numbers[:, order], copy.each[:, order], "Q4_K")
    monkeypatch.setattr(module, "TILE", 4 * COLS)
    found = format_noise(original, copy)
    assert (found.outside, found.clipped > 10) == (0, not mixed)
    assert found.is_copy("Q4_K") is (None if mixed else True)


def test_what_is_not_finite_is_said(original):
    """Sums are those of other rows."""
    original[3, 4] = math.inf
    assert not format_noise(original, ggml_copy(original.nan_to_num(0, 0, 0), "Q8_0")).finite


@pytest.mark.parametrize(("stored", "more", "is_copy"), [
    ("Q4_0", {}, True), ("Q4_0", {"made": None}, None), ("Q4_0", {"finite": False}, False),
    ("Q8_0", {"outside": 1}, False), ("Q4_0", {"outside": 10, "furthest": 1.5}, True),
    ("Q4_0", {"outside": 11, "furthest": 1.5}, False), ("Q5_1", {"outside": 10}, True),
    ("Q4_0", {"outside": 1, "furthest": 1.5 + 1e-9}, False),
])  # fmt: skip
def test_a_hundredth_within_a_step_and_a_half_is_of_scales_moved_later(stored, more, is_copy):
    """In the formats whose scales an importance matrix moves."""
    noise = FormatNoise(**{"entries": 1000, "made": 1.0, **more})
    assert noise.is_copy(stored) is is_copy


@pytest.mark.parametrize(("more", "is_far", "factor", "is_calibrated"), [
    ({}, False, None, True), ({"copy": 0.0, "inner": 0.0}, True, None, False),
    ({"inner": 50.0, "error": 100.0}, False, None, False),  # a cosine of a half
    ({"inner": 50.0 * BELOW, "error": 100.0}, True, None, False),
    ({"error": 36.0}, False, None, True), ({"error": 36.0 * ABOVE}, False, None, False),
    ({"error": 40.0, "scaled": 36.0}, False, None, True), ({"made": None}, False, None, False),
    ({"copy": 160.25, "inner": 126.5}, False, 1.265, True),
    ({"copy": 154.0, "inner": 124.0}, False, None, True),
    ({"copy": 64.0, "inner": 79.0}, False, 0.79, True),
    ({"copy": 168.0, "inner": 128.0}, False, None, True),  # more is left than 4 times
    ({"finite": False}, False, None, False),
])  # fmt: skip
def test_a_factor_and_a_calibration_are_told_from_rounding(more, is_far, factor, is_calibrated):
    """Of an original of 100, of which the format makes an error of 1."""
    sums = {"original": 100.0, "copy": 100.0, "inner": 100.0, "error": 1.0, "scaled": 99.0}
    noise = FormatNoise(**{**sums, "made": 1.0, **more})
    assert (noise.is_far, noise.factor) == (is_far, factor)
    assert noise.may_be_calibrated("GPTQ-4") is is_calibrated
    assert not noise.may_be_calibrated("Q4_0")
