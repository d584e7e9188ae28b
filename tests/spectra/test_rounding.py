"""Rounding undone: the storage model in closed form and by rounding, and its invariances."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from measuring import measure, scaled_floats
from scipy.stats import norm as normal

from shadow.dtypes import FLOATS
from shadow.spectra import rounding, rounding_model, spectrum
from shadow.spectra.lazy import Updated
from shadow.spectra.spectrum import Sides, Workspace

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def narrow(values, dtype):
    return torch.from_numpy(values).to(TORCH[dtype])


def wide(tensor):
    return tensor.double().numpy()


def update(shape=(256, 384), relative=2e-3, seed=0, rank=4, share=0.3):
    """Weights and an update of that relative norm, a part of it of low rank."""
    rng = np.random.default_rng(seed)
    W = 0.02 * rng.standard_normal(shape)
    S = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    D = math.sqrt(share) * S / np.linalg.norm(S)
    N = rng.standard_normal(shape)
    D = D + math.sqrt(1 - share) * N / np.linalg.norm(N)
    return W, relative * np.linalg.norm(W) * D


def undo(base, tuned, formats=("BF16", "BF16"), dtype=None):
    D = wide(tuned) - wide(base)
    dtype = dtype or (torch.float64 if "F32" in formats else torch.float32)
    lines = ((D**2).sum(1), (D**2).sum(0))
    sides = Sides(base, tuned, dtype, Workspace())
    return rounding.undo(sides, formats, lines, float(base.abs().max()))


def counted(base, tuned, grid="BF16"):
    D = wide(tuned) - wide(base)
    lines = ((D**2).sum(1), (D**2).sum(0))
    sides = Sides(base, tuned, torch.float32, Workspace())
    return rounding_model.count(sides, FLOATS[grid], lines, float(base.abs().max()))


def purity(D):
    G, r, c = D @ D.T, (D**2).sum(1), (D**2).sum(0)
    return ((G**2).sum() - (r**2).sum() - (c**2).sum() + (D**4).sum()) / r.sum() ** 2


def stored_pair(dtype, relative, seed=0, **shape):
    W, D = update(relative=relative, seed=seed, **shape)
    base = narrow(W, dtype)
    return base, narrow(wide(base) + D, dtype), D


# ---------------------------------------------------------------------------------- the model


def test_the_shape_of_a_normal_update_has_the_chances_of_its_bins():
    """Of |y| of a standard normal y, which lies in one of the bins."""
    inside = np.diff(2 * normal.cdf(rounding_model.shape_edges()))
    assert rounding_model.half_normal() == pytest.approx(inside / inside.sum())


def test_tables_are_what_rounding_gives():
    """Chances, energies and products of |d| even in one bin of the shape."""
    even = (np.arange(100_000) + 0.5) / 100_000
    known = rounding_model.tables()
    for octave, bin_ in ((-1, 28), (0, 30), (2, 26), (3, 31)):
        index = (octave - rounding_model.RATIO_FROM) * rounding_model.OCTAVE
        low, high = rounding_model.shape_edges()[bin_ : bin_ + 2] * 2.0**octave
        d = low + (high - low) * even
        D = np.round(d)
        levels = np.searchsorted(rounding_model.levels().low, np.abs(D), side="right") - 1
        chances = np.bincount(levels, minlength=len(rounding_model.levels().low)) / len(d)
        np.testing.assert_allclose(known.chance[index, :, bin_], chances, atol=5e-4)
        assert known.second[index, bin_] == pytest.approx((D**2).mean(), rel=1e-3)
        assert known.product[index, bin_] == pytest.approx((D * d).mean(), rel=1e-3)
        assert known.changed[index, bin_] == pytest.approx((D != 0).mean(), abs=5e-4)


def test_chances_of_levels_sum_up_to_one():
    """Whatever |d|, D has one level."""
    np.testing.assert_allclose(rounding_model.tables().chance.sum(axis=1), 1.0, atol=1e-5)


# ---------------------------------------------------------------------------------- counts


def test_counts_do_not_depend_on_blocks(monkeypatch):
    """Cut into small blocks, a matrix has the same counts."""
    base, tuned, _ = stored_pair("BF16", 2e-3)
    whole = counted(base, tuned)
    monkeypatch.setattr(spectrum, "BLOCK", 4096)
    assert (counted(base, tuned).entries == whole.entries).all()


@pytest.mark.parametrize(("shape", "axis"), [((1024, 256), 0), ((512, 512), 1), ((256, 1024), 1)])
def test_a_sample_of_lines_stands_for_all(monkeypatch, shape, axis):
    """Counting a quarter of the rows gives kept and norm as counting all does, to a few percent;
    columns, unless there are more rows.
    """
    base, tuned, _ = stored_pair("BF16", 2e-3, shape=shape)
    whole = undo(base, tuned)
    monkeypatch.setattr(rounding_model, "SAMPLE", 1 << 16)
    counts = counted(base, tuned)
    D = wide(tuned) - wide(base)
    lines, stands_for = rounding_model.sampled_lines(
        rounding_model.classes((D**2).sum(1 - axis)), min(shape)
    )
    assert len(lines) * min(shape) <= 1 << 16
    assert (stands_for >= 4).all()
    counted_lines = np.take(D * wide(base), lines, axis)
    assert (counts.away, counts.toward) == ((counted_lines > 0).sum(), (counted_lines < 0).sum())
    assert counts.entries.sum() == pytest.approx(base.numel())
    part = undo(base, tuned)
    assert part.kept == pytest.approx(whole.kept, rel=0.03)
    assert part.norm == pytest.approx(whole.norm, rel=0.03)


def test_classes_follow_energy_and_keep_ties_together():
    """Lines without energy are a class, equal ones share one, and order does not matter."""
    energies = np.concatenate([np.zeros(50), np.full(60, 2.0), np.geomspace(3, 9, 146)])
    found = rounding_model.classes(energies)
    assert set(found[:50]) == {0}
    assert len(set(found[50:110])) == 1
    assert (np.diff(found) >= 0).all()
    assert found.max() <= rounding_model.CLASSES
    order = np.random.default_rng(0).permutation(len(energies))
    assert (rounding_model.classes(energies[order]) == found[order]).all()
    assert (rounding_model.classes(4 * energies) == found).all()


# ---------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("dtype", "relative"), [("BF16", 4e-3), ("BF16", 1.5e-3), ("F16", 5e-4), ("F16", 2e-4)]
)
def test_kept_is_the_squared_correlation_and_the_norm_is_that_before_storing(dtype, relative):
    """kept = <D, d>² / (|D|² |d|²) of the float64 update, the norm its own; 1 / X to 12 %."""
    base, tuned, d = stored_pair(dtype, relative)
    D = wide(tuned) - wide(base)
    found = undo(base, tuned, (dtype, dtype))
    assert found.history == "stored_base"
    assert found.reason is None
    assert found.kept == pytest.approx((D * d).sum() ** 2 / (D**2).sum() / (d**2).sum(), rel=0.06)
    assert found.norm == pytest.approx(np.linalg.norm(d), rel=0.03)
    assert purity(D) / found.kept**2 == pytest.approx(purity(d), rel=0.12)
    assert abs(purity(D) / purity(d) - 1) > 0.2  # as stored it is far off


def test_zeros_of_a_normal_update_are_expected_and_those_of_a_mask_are_not():
    """zero_share_expected is the share without change; with most entries masked, there are more."""
    base, tuned, d = stored_pair("BF16", 2e-3)
    zeros = (wide(tuned) == wide(base)).mean()
    assert undo(base, tuned).zeros == pytest.approx(zeros, abs=0.01)
    mask = np.random.default_rng(1).random(d.shape) < 0.2
    masked = narrow(wide(base) + 4 * d * mask, "BF16")
    found = undo(base, masked)
    assert found.zeros is None or found.zeros < (wide(masked) == wide(base)).mean() - 0.05


@pytest.mark.parametrize("share", [1.0, 0.2])
def test_the_excess_of_zeros_is_that_of_the_smallest_weights(share):
    """On the twentieth of the entries with the finest grid, counted one by one, over the chance
    that a normal update of the same energy leaves them.
    """
    W, d = update(relative=1e-3, rank=1, share=0.0)
    mask = np.random.default_rng(1).random(d.shape) < share
    base = narrow(W, "BF16")
    tuned = narrow(wide(base) + d * mask / math.sqrt(share), "BF16")
    before, D = wide(base), wide(tuned) - wide(base)
    exponents = np.frexp(before)[1]
    limit = next(one for one in range(-40, 10) if (exponents <= one).mean() >= 0.05)
    finest = exponents <= limit
    s = np.linalg.norm(d) / math.sqrt(d.size)
    left = 1 - 2 * normal.sf(np.ldexp(1.0, exponents[finest] - 9) / s)
    expected = (D[finest] == 0).mean() - left.mean()
    found = undo(base, tuned)
    assert found.zero_excess == pytest.approx(expected, abs=0.01)
    assert (abs(found.zero_excess) < 0.01) if share == 1 else (found.zero_excess > 0.6)


def test_frozen_rows_are_no_excess():
    """Rows that did not change at all are told by rows_changed."""
    base, tuned, _ = stored_pair("BF16", 2e-3)
    tuned[: len(tuned) // 2] = base[: len(tuned) // 2]
    assert abs(undo(base, tuned).zero_excess) < 0.02


def test_the_model_is_refused_just_beyond_its_limits():
    """What of the counts is compared with each limit, which itself is allowed."""
    base, tuned, _ = stored_pair("BF16", 2e-3)
    counts = counted(base, tuned)
    fitted = rounding_model.fit(counts)
    share, wrong = rounding.kept_share(fitted), rounding.misfit(counts, fitted)
    changed, tailed = counts.away + counts.toward, rounding.tails(fitted.shape)
    lopsided = abs(counts.away - counts.toward) / changed * (1 - share)
    below, above = math.nextafter(share, 0), math.nextafter(share, 1)
    for allowed, beyond, reason in (
        ({"FEWEST": changed}, {"FEWEST": changed + 1}, "few_changed"),
        ({"MISFIT": wrong}, {"MISFIT": math.nextafter(wrong, 0)}, "rounding_unexplained"),
        ({"AT_KEPT": (share, 1)}, {"AT_KEPT": (below, 1), "OF_MASTER": 0}, "rounding_unexplained"),
        ({"AT_KEPT": (0, share)}, {"AT_KEPT": (0, above), "OF_MASTER": 0}, "rounding_unexplained"),
        ({"TAILED": tailed}, {"TAILED": math.nextafter(tailed, 0)}, "rounding_unexplained"),
        ({"WELL_KEPT": share}, {"WELL_KEPT": above, "TAILED": 0}, "rounding_unexplained"),
        ({"LOPSIDED": lopsided}, {"LOPSIDED": lopsided * 0.999}, "rounding_unexplained"),
        ({"ROUNDED_AWAY": share}, {"ROUNDED_AWAY": above}, "rounded_away"),
    ):  # fmt: skip
        for limits, expected in ((beyond | allowed, None), (beyond, reason)):
            with pytest.MonkeyPatch.context() as patch:
                for name, limit in limits.items():
                    patch.setattr(rounding, name, limit)
                assert rounding.undo_counts(counts, 1.0).reason == expected, limits


@pytest.mark.parametrize(("tuned", "formats", "floor", "history", "kept"), [
    ("F32", ("BF16", "F32"), None, "nothing_rounded", None),
    ("F32", ("BF16", "F32"), 0.7999, "nothing_rounded", None),
    ("F32", ("BF16", "F32"), 0.8, None, None), ("F32", ("BF16", "F32"), 9.999, None, None),
    ("F32", ("BF16", "F32"), 10.0, "nothing_rounded", None),
    ("BF16", ("BF16", "BF16"), 9.999, "stored_base", 0.664),
    ("BF16", ("BF16", "BF16"), 10.0, "far_above", 0.99),
    ("Q", ("BF16", "F8_E4M3"), 10.0, None, None), ("Q", ("BF16", "Q8_0"), 9.999, None, None),
    ("Q", ("BF16", "Q8_0"), 10.0, "far_above", 0.99), ("Q", ("BF16", "F8_E4M3"), None, None, None),
    ("adapter", ("BF16", "F32"), 10.0, "nothing_rounded", None),
])  # fmt: skip
def test_histories_begin_at_their_floor_ratio(tuned, formats, floor, history, kept):
    """Of the rounding of the base in a finer side, and of a change far above all rounding."""
    base, rounded, d = stored_pair("BF16", 2e-3)
    sides = {"BF16": rounded, "F32": torch.from_numpy(wide(base) + d).float()}
    sides["Q"] = scaled_floats(base.to(torch.float8_e4m3fn), torch.ones(2, 3), (128, 128))
    sides["adapter"] = Updated(base, torch.ones(256, 1), torch.ones(1, 384), 1e-4)
    lines = (d**2).sum(1), (d**2).sum(0)
    dtype = torch.float64 if tuned == "F32" else torch.float32
    pair = Sides(base, sides[tuned], dtype, Workspace())
    found = rounding.undo(pair, formats, lines, float(base.abs().max()), floor)
    reason = None if kept else history or "rounding_unexplained"
    assert (found.history, found.reason) == (history, reason)
    assert found.kept == (kept and pytest.approx(kept, abs=1e-3 if kept < 0.9 else 1e-12))


def test_what_rounding_left_is_bounded_by_its_floor_and_copies_in_few_levels_are_refused():
    """The noise of the counts and their error, at most 1 / floor_ratio²."""
    known = rounding.Undone("stored_base", 0.7, None, 2.0, 0.6, 0.05, 0.2, 0.1, FLOATS["BF16"])
    for undone, floor, share in (
        (known, 2.0, 0.206), (known, 4.0, 1 / 16), (known, None, None), (known, 0.0, None),
        (rounding.NOTHING_ROUNDED, 2.0, None),
    ):  # fmt: skip
        assert rounding.rounding_share(undone, floor) == pytest.approx(share)
    refused = replace(rounding.UNEXPLAINED, misfit=0.05, zero_excess=0.1, grid=FLOATS["BF16"])
    for undone, base, tuned, expected in (
        (known, None, "INT4", refused), (known, "INT4", "INT4", known), (known, None, None, known),
        (rounding.FEW_CHANGED, None, "INT4", rounding.FEW_CHANGED),
    ):  # fmt: skip
        assert rounding.without_few_levels(undone, base, tuned) == expected


@pytest.mark.parametrize("history", ["far_above", "nothing_rounded"])
def test_the_excess_where_nothing_was_counted(history):
    """A fifth of the entries of half of the rows changed."""
    undone = rounding.Undone(history, None, None, noise=1 / 20**2)
    counted_now = rounding.Undone("far_above", None, None, zero_excess=0.75)
    figures = {"zero_share": 0.9, "rows_changed": 0.5}
    excess = rounding.zero_share_excess(undone, figures, lambda: counted_now)
    assert excess == pytest.approx(0.75 if history == "far_above" else 0.8)
    figures["zero_share"] = 0.55
    excess = rounding.zero_share_excess(undone, figures, lambda: counted_now)
    left = math.sqrt(6 / math.pi) / 20 if history == "far_above" else 0
    assert excess == pytest.approx(0.1 - left)


@pytest.mark.parametrize("stored", ["BF16", "F32"])
@pytest.mark.parametrize("ratio", [12, 20])
def test_updates_of_uneven_rows_are_no_masks_far_above_their_rounding(ratio, stored):
    """All entries are trained, with sizes that differ log-normally by row."""
    rng = np.random.default_rng(3)
    base = narrow(rng.normal(0, 0.02, (320, 400)), "BF16")
    ulp = np.ldexp(1.0, np.frexp(wide(base))[1] - 8)
    d = rng.standard_normal((320, 400)) * np.exp(1.5 * rng.standard_normal((320, 1)))
    d *= ratio * math.sqrt((ulp**2).mean() / 12 / (d**2).mean())
    tuned = narrow(wide(base) + d, "BF16")
    if stored == "F32":
        base, tuned = base.float(), tuned.float()
    values = measure(base, tuned, (stored, stored)).delta.values
    assert values["kept_history"] == "far_above"
    assert abs(values["zero_share_excess"]) < 0.05


@pytest.mark.parametrize("relative", [4e-3, 2e-3, 1e-3, 5e-4])
def test_a_master_copy_that_nobody_stored_is_refused(relative):
    """Both sides rounded from float32: the model would give up to three times the norm."""
    W, d = update(relative=relative)
    found = undo(narrow(W, "BF16"), narrow(W + d, "BF16"))
    assert found.kept is None
    assert found.norm is None
    assert found.reason == "rounding_unexplained"
    assert found.misfit > rounding.OF_MASTER


@pytest.mark.parametrize("loaded", [True, False])
def test_a_base_in_more_bits_is_refused(loaded):
    """An F32 base, rounded before training or not, and a BF16 tuned side: two roundings, or one of
    which no grid tells.
    """
    W, d = update()
    base = torch.from_numpy(W).float()
    started = wide(narrow(W, "BF16")) if loaded else wide(base)
    found = undo(base, narrow(started + d, "BF16"), ("F32", "BF16"))
    assert (found.history, found.kept, found.reason) == (None, None, "rounding_unexplained")


def test_the_format_is_that_of_the_values_not_of_the_file():
    """An F32 file of BF16 numbers is undone as a BF16 one is."""
    base, tuned, _ = stored_pair("BF16", 2e-3)
    assert undo(base.float(), tuned.float(), ("F32", "F32")).kept == pytest.approx(
        undo(base, tuned).kept, rel=1e-6
    )
    for values, grid in (
        (tuned, "BF16"),
        (torch.full((4, 4), 1 / 3), "F32"),
        (torch.full((4, 4), 2.0**-30), "BF16"),
    ):
        found = rounding_model.coarser_grid(values.float(), "F32", torch.float64, Workspace())
        assert found == grid


def test_far_above_its_rounding_no_history_matters():
    """From 30 times its rounding on, kept is 1 - 1 / floor_ratio², in F32 too."""
    base, tuned, d = stored_pair("BF16", 0.3)
    found = undo(base, tuned)
    assert found.kept == pytest.approx(1, abs=2e-3)
    assert found.norm == pytest.approx(np.linalg.norm(d), rel=2e-3)
    W, d = update()
    full = torch.from_numpy(W).float()
    found = undo(full, (full.double() + torch.from_numpy(d)).float(), ("F32", "F32"))
    assert found.kept == pytest.approx(1, abs=1e-6)


def test_what_is_mostly_rounded_away_says_so():
    """At relative norm 3e-4 in BF16, kept is below a quarter, and nothing corrected is given."""
    base, tuned, d = stored_pair("BF16", 3e-4)
    D = wide(tuned) - wide(base)
    found = undo(base, tuned)
    assert found.reason == "rounded_away"
    assert found.kept < rounding.ROUNDED_AWAY
    assert found.kept == pytest.approx((D * d).sum() ** 2 / (D**2).sum() / (d**2).sum(), abs=0.05)
    assert rounding.values(found, 1.0)["relative_norm_unrounded"] is None


# ---------------------------------------------------------------------------------- invariance


def test_values_are_columns():
    """kept, relative_norm_unrounded and zero_share_expected, None where kept is."""
    known = rounding.Undone("stored_base", 0.5, None, 2.0, 0.7)
    assert rounding.values(known, 8.0) == {
        "kept": 0.5,
        "relative_norm_unrounded": 0.25,
        "zero_share_expected": 0.7,
    }
    refused = rounding.Undone(None, None, "rounding_unexplained")
    assert set(rounding.values(refused, 8.0).values()) == {None}
