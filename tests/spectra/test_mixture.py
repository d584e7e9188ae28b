"""Mixtures of matrices: sums, bounds of rounding, weights and masks, against naive NumPy."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from shadow.dtypes import FLOATS
from shadow.spectra.masks import _share_kept, masked
from shadow.spectra.mixture import (
    Asked,
    interval,
    joined,
    once,
    products,
    read,
    remainder,
    sums_and_rest,
    ulp,
    within,
)
from shadow.spectra.mixture_fit import Fit, Misfit, Mixed, fit, likely

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SHAPES = {f"layers.{layer}.{kind}": (48, 64) for layer in range(4) for kind in ("attn", "mlp")}


def based(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def tuned(base, size, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: one.float() + size * 0.02 * torch.randn(one.shape, generator=generator)
        for name, one in base.items()
    }


def cast(state, stored):
    return {name: one.to(DTYPES[stored]) for name, one in state.items()}


def tensors(target, sides, stored, base=None):
    found = []
    for name, one in target.items():

        def parts(name=name, one=one):
            return read(one, base and base[name], [side[name] for side in sides])

        layer, kind = name.split(".")[1:]
        sums = products(parts(), stored)
        found.append(Mixed(name, int(layer), kind, name, stored, parts, sums))
    return found


def mixed(weights, sides, stored, base=None):
    """The merge in float32, stored."""
    found = {}
    for name in sides[0]:
        start = 0 if base is None else base[name].float()
        each = weights(name) if callable(weights) else weights
        found[name] = start + sum(
            w * (one[name].float() - start) for w, one in zip(each, sides, strict=True)
        )
    return cast(found, stored)


@pytest.mark.parametrize("stored", DTYPES)
def test_units_in_the_last_place_are_numpys(stored):
    """2^floor(log2 |w|) over the mantissa, and constant below the smallest normal number."""
    values = torch.tensor([1.0, -1.5, 0.75, 3e-5, 1e-7, 255.0, -0.0], dtype=torch.float64)
    form = FLOATS[stored]
    exponents = np.floor(np.log2(np.maximum(np.abs(values.numpy()), 2.0**form.min_exponent)))
    assert ulp(values.numpy(), stored) == pytest.approx(2.0 ** (exponents - form.mantissa_bits))


@pytest.mark.parametrize("with_base", [False, True])
def test_sums_are_those_of_whole_matrices(with_base):
    """Gram, products with the target and what weights leave, against NumPy in float64."""
    base = cast(based(), "BF16")
    sides = [cast(tuned(base, 0.3, seed), "BF16") for seed in (1, 2)]
    target = mixed((0.3, 0.6), sides, "BF16", base if with_base else None)
    one = tensors(target, sides, "BF16", base if with_base else None)[0]
    w, b, a1, a2 = (state[one.name].double().numpy().ravel() for state in (target, base, *sides))
    terms = np.stack([a1 - b, a2 - b] if with_base else [a1, a2 - a1])
    left = w - (b if with_base else a1)
    assert one.sums.gram == pytest.approx(terms @ terms.T)
    assert one.sums.cross == pytest.approx(terms @ left)
    theta = np.array([0.3, 0.6]) if with_base else np.array([-0.1, 0.6])
    rest = left - theta @ terms
    assert one.sums.rest(theta) == pytest.approx(rest @ rest, rel=1e-6)
    found = remainder(one.parts(), Asked(theta, np.eye(2), with_base, True), "BF16")
    assert found.energy == pytest.approx(rest @ rest)
    half = 0.5 * ulp(w, "BF16")
    assert (np.abs(rest) <= half * (1 + 1e-3)).all()
    assert found.beyond == 0


@pytest.mark.parametrize("stored", ["BF16", "F16"])
@pytest.mark.parametrize("with_base", [False, True])
def test_what_steps_may_leave_is_that_of_a_loop_over_entries(with_base, stored):
    """Each product, difference and partial sum is rounded by at most half a unit, and on average
    leaves a third of that squared; the sum in float32 and what is stored of it do too.
    """
    form = FLOATS[stored]

    def half(value):
        exponent = math.floor(math.log2(max(abs(value), 2.0**form.min_exponent)))
        return 0.5 * 2.0 ** (exponent - form.mantissa_bits)

    base = cast(based(), stored)
    sides = [cast(tuned(base, 0.3, seed), stored) for seed in (1, 2, 3)]
    # whose products and sums are exact in float64
    weights = (0.3125, 0.625, -0.4375) if with_base else (0.3125, 0.875, -0.25)
    target = cast(tuned(mixed(weights, sides, "F32", base if with_base else None), 2e-3, 9), stored)
    one = tensors(target, sides, stored, base if with_base else None)[0]
    w, b, *others = (
        state[one.name].double().flatten().tolist() for state in (target, base, *sides)
    )
    expected = slack = 0.0
    beyond = beyond_steps = 0
    for i, wanted in enumerate(w):
        values = [other[i] for other in others]
        start = b[i] if with_base else 0.0
        terms = [value - start for value in values]
        products = [weight * term for weight, term in zip(weights, terms, strict=True)]
        # a quarter of a normal number is exact
        steps = [
            0.0 if not with_base and weight == -0.25 and abs(product) >= 2.0**form.min_exponent
            else half(product)
            for weight, product in zip(weights, products, strict=True)
        ]  # fmt: skip
        if with_base:
            steps += [abs(weight) * half(term) for weight, term in zip(weights, terms, strict=True)]
        steps += 2 * [half(sum(map(abs, products)) if with_base else wanted)]
        # float32 adds `first` and the differences from it, by their weights
        first = start if with_base else values[0]
        parts = products if with_base else [
            (sum(weights) - 1) * first,
            *(weight * (value - first)
              for weight, value in zip(weights[1:], values[1:], strict=True)),
        ]  # fmt: skip
        once = 2.0**-24 * 5 * (abs(first) + sum(map(abs, parts))) + half(wanted)
        left = abs(wanted - start - sum(products))
        expected += (once**2 + sum(step**2 for step in steps)) / 3
        slack += min(sum(steps) / once, 1)
        beyond += left > once
        beyond_steps += left > once + sum(steps)
    theta = np.array(weights if with_base else [sum(weights) - 1, *weights[1:]])
    found = remainder(one.parts(), Asked(theta, np.eye(3), with_base, True), stored)
    assert found.expected_steps == pytest.approx(expected, rel=1e-9, abs=0)
    assert found.slack == pytest.approx(slack, rel=1e-9)
    assert (found.beyond, found.beyond_steps) == (beyond, beyond_steps)
    assert 0 < beyond_steps < beyond < len(w)


@pytest.mark.parametrize("size", [0.01, 0.3])
@pytest.mark.parametrize("stored", DTYPES)
def test_weights_of_merges_are_found(stored, size):
    """Averages of two and three, and task arithmetic, also where deltas are a few units in the last
    place, of which least squares alone makes other weights.
    """
    base = cast(based(), stored)
    sides = [cast(tuned(base, size, seed), stored) for seed in (1, 2, 3)]
    for weights, count, start in (
        ((0.3, 0.7), 2, None), ((0.2, 0.5, 0.3), 3, None), ((0.6, 0.8), 2, base),
    ):  # fmt: skip
        target = mixed(weights, sides[:count], stored, start)
        found = fit(tensors(target, sides[:count], stored, start), count, start is not None)
        assert isinstance(found, Fit)
        assert found.per == "model"
        assert found.weights[0] == pytest.approx(weights, abs=2e-3)
        inside = (found.low <= np.array(weights) + 1e-6) & (np.array(weights) - 1e-6 <= found.high)
        assert inside.all()


@pytest.mark.parametrize("weights", [(0.3, 0.7), (1 / 3, 2 / 3)])
def test_simple_weights_take_one_look_at_every_entry(weights):
    """The sample that sums leave has them, to their last digit."""
    base = cast(based(), "BF16")
    sides = [cast(tuned(base, 0.3, seed), "BF16") for seed in (1, 2)]
    looks = []
    asked = [
        replace(one, parts=lambda one=one: looks.append(one.name) or one.parts())
        for one in tensors(mixed(weights, sides, "BF16"), sides, "BF16")
    ]
    found = fit(asked, 2, has_base=False)
    assert isinstance(found, Fit)
    assert found.weights[0] == pytest.approx(weights, abs=1e-15)
    assert sorted(looks) == sorted(SHAPES)


@pytest.mark.parametrize("stored", ["BF16", "F16"])
@pytest.mark.parametrize("kind", ["other side", "one tensor"])
def test_what_is_as_small_as_rounding_is_refused_after_a_look_or_two(stored, kind):
    """Where sums cannot tell it from rounding: once no weights fit what was read, no more is."""
    names = [f"layers.{layer}.{kind}" for layer in range(12) for kind in ("attn", "mlp")]
    generator = torch.Generator().manual_seed(0)
    base = {name: 0.02 * torch.randn(96, 64, generator=generator) for name in names}
    small = 2e-3 if stored == "BF16" else 2.5e-4
    sides = [cast(tuned(base, small, seed), stored) for seed in (1, 2, 3)]
    merge = mixed((0.3, 0.7), sides[:2], stored)
    if kind == "other side":
        asked_of = [sides[0], sides[2]]
    else:
        asked_of = sides[:2]
        merge[names[3]] = sides[2][names[3]]
    looks = []
    asked = [
        replace(one, parts=lambda one=one: looks.append(one.name) or one.parts())
        for one in tensors(merge, asked_of, stored)
    ]
    assert isinstance(fit(asked, 2, has_base=False), Misfit)
    assert 0 < len(looks) < 4 * len(names)


def test_steps_in_16_bits_are_known_from_one_rounding():
    """Every product and sum rounded to BF16 leaves more than one rounding, and is a merge too."""
    base = based()
    a, b = (cast(tuned(base, 0.3, seed), "BF16") for seed in (1, 2))
    half = torch.tensor(0.3).bfloat16(), torch.tensor(0.7).bfloat16()
    target = {name: half[0] * a[name] + half[1] * b[name] for name in a}
    found = fit(tensors(target, [a, b], "BF16"), 2, has_base=False)
    assert isinstance(found, Fit)
    assert found.in_steps


def test_means_in_f16_of_small_weights_are_known():
    """Halves are exact but for subnormal numbers, of which few are beyond one rounding; a unit in
    the last place more in as many others is no rounding.
    """
    base = {name: 0.02 * values for name, values in based().items()}
    a, b = (cast(tuned(base, 0.3, seed), "F16") for seed in (1, 2))
    half = torch.tensor(0.5).half()
    target = {name: half * a[name] + half * b[name] for name in a}
    found = fit(tensors(target, [a, b], "F16"), 2, has_base=False)
    assert isinstance(found, Fit)
    assert found.in_steps
    for values in target.values():
        largest = values.abs().flatten().topk(3).indices
        values.view(torch.int16).view(-1)[largest] += 1
    assert isinstance(fit(tensors(target, [a, b], "F16"), 2, has_base=False), Misfit)


def test_weights_by_layer_are_said_to_be_by_layer():
    """Each layer with a weight of its own, as mergekit's gradients give them."""
    base = based()
    sides = [cast(tuned(base, 0.3, seed), "BF16") for seed in (1, 2)]

    def weights(name):
        t = 0.2 + 0.2 * int(name.split(".")[1])
        return 1 - t, t

    found = fit(tensors(mixed(weights, sides, "BF16"), sides, "BF16"), 2, has_base=False)
    assert isinstance(found, Fit)
    assert found.per == "layer"
    assert [w[1] for w in found.weights] == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=1e-3)


def test_spherical_interpolation_has_its_t():
    """Weights sin((1 - t) angle) / sin(angle) of each tensor are one t."""
    a, b = based(1), based(2)
    b = {name: 0.5 * a[name] + one for name, one in b.items()}
    b["layers.0.mlp"] = a["layers.0.mlp"] + 0.4 * b["layers.0.mlp"]  # another angle
    target = {}
    for name in a:
        x, y = a[name].double(), b[name].double()
        angle = torch.arccos((x * y).sum() / (x.norm() * y.norm()))
        ends = torch.sin(0.7 * angle), torch.sin(0.3 * angle)
        target[name] = ((ends[0] * x + ends[1] * y) / torch.sin(angle)).float()
    found = fit(tensors(target, [a, b], "F32"), 2, has_base=False)
    assert isinstance(found, Fit)
    assert found.method == "slerp"
    assert found.t == pytest.approx([0.3], abs=1e-6)


@pytest.mark.parametrize("stored", DTYPES)
def test_what_is_no_merge_is_none(stored):
    """One tensor of another, one entry, a training afterwards, and a sibling."""
    base = cast(based(), stored)
    a, b, other = (cast(tuned(base, 0.3, seed), stored) for seed in (1, 2, 3))
    merge = mixed((0.3, 0.7), [a, b], stored)
    name = "layers.1.mlp"
    changed = merge[name].clone()
    changed[3, 4] = 1.1 * changed[3, 4] + 1e-3
    for target, named in (
        ({**merge, name: other[name]}, {name}), ({**merge, name: b[name]}, {name}),
        ({**merge, name: changed}, {name}), (cast(tuned(merge, 0.1, 5), stored), set(merge)),
        (other, set(merge)),
    ):  # fmt: skip
        found = fit(tensors(target, [a, b], stored), 2, has_base=False)
        assert isinstance(found, Misfit)
        assert named <= {*found.apart, *found.entries}


def test_equal_models_leave_weights_open():
    """Any weights with one sum fit, so nothing limits each of them."""
    a = cast(tuned(based(), 0.3, 1), "BF16")
    found = fit(tensors(a, [a, a], "BF16"), 2, has_base=False)
    assert isinstance(found, Fit)
    assert (found.high - found.low > 1).all()


@pytest.mark.parametrize("in_tiles", [False, True])
@pytest.mark.parametrize("stored", DTYPES)
def test_trimmed_and_dropped_deltas_are_known_by_their_masks(stored, in_tiles, monkeypatch):
    """TIES keeps the largest fifth; DARE drops six tenths at random; a plain merge does neither.
    Nor is it asked of all matrices at once, or of whole ones.
    """
    if in_tiles:
        monkeypatch.setattr("shadow.spectra.mixture.PART", 512)
        for name in ("FEW", "SORTED"):
            monkeypatch.setattr(f"shadow.spectra.masks.{name}", 4000)
    base = cast(based(), stored)
    sides = [cast(tuned(base, 0.3, seed), stored) for seed in (1, 2)]
    rng = np.random.default_rng(0)
    trimmed, dropped = {}, {}
    for name, start in base.items():
        d = np.stack([(one[name].double() - start.double()).numpy().ravel() for one in sides])
        keep = int(0.2 * d.shape[1])
        kept = np.where(np.abs(d) >= np.sort(np.abs(d), 1)[:, -keep, None], d, 0)
        agree = np.sign(kept) == np.sign(kept.sum(0))
        mean = (kept * agree).sum(0) / np.maximum((agree & (kept != 0)).sum(0), 1)
        masks = rng.random(d.shape) >= 0.6
        for found, change in ((trimmed, mean), (dropped, (d * masks).sum(0) * 0.5 / 0.4)):
            whole = start.double() + torch.from_numpy(change).view(start.shape)
            found[name] = whole.to(DTYPES[stored])
    ties = masked(tensors(trimmed, sides, stored, base), 2)
    assert ties is not None
    assert (ties.method, ties.kept, ties.factors) == ("ties", [0.2], pytest.approx([1], rel=1e-3))
    dare = masked(tensors(dropped, sides, stored, base), 2)
    assert dare is not None
    assert (dare.method, dare.factors) == ("dare", pytest.approx([1.25, 1.25], rel=1e-3))
    assert dare.kept == pytest.approx([0.4, 0.4], abs=0.02)
    trained = cast(tuned(base, 0.3, 7), stored)
    for plain in (mixed((0.5, 0.5), sides, stored, base), sides[0], base, trained):
        assert masked(tensors(plain, sides, stored, base), 2) is None
    for found in (trimmed, dropped):  # but for one tensor, the last that is read
        name = list(base)[-1]
        assert masked(tensors({**found, name: trained[name]}, sides, stored, base), 2) is None


@pytest.mark.parametrize("kept", [(0.5, 0.5), (0.1, 0.1), (0.7, 0.3)])
def test_shares_of_dropped_entries_are_those_of_the_masks(kept):
    """Also where deltas are a few steps of their grid, so that one of them may be the other's."""
    names = [f"layers.{layer}.attn" for layer in range(8)]
    generator = torch.Generator().manual_seed(0)
    base = {name: (0.02 * torch.randn(200, 256, generator=generator)).bfloat16() for name in names}
    sides = [cast(tuned(base, 0.05, seed), "BF16") for seed in (1, 2)]
    rng, share = np.random.default_rng(0), np.array(kept)[:, None]
    merge = {}
    for name, start in base.items():
        d = np.stack([(one[name].double() - start.double()).numpy().ravel() for one in sides])
        change = (d * (rng.random(d.shape) < share) / share).sum(0) / 2
        merge[name] = (start.double() + torch.from_numpy(change).view(start.shape)).bfloat16()
    found = masked(tensors(merge, sides, "BF16", base), 2)
    assert found is not None
    for share, error, true in zip(found.kept, found.errors, kept, strict=True):
        assert 0 < error < 0.002
        assert share == pytest.approx(true, abs=3 * error)


@pytest.mark.parametrize("seed", range(8))
def test_factors_of_dropped_deltas_are_exact_enough_for_every_entry(seed):
    """Least squares over all entries leaves an error that is beyond the bound of one of them."""
    rng = np.random.default_rng(seed)
    base = cast(based(seed), "F16")
    sides = [cast(tuned(base, 0.3, 100 * seed + other), "F16") for other in (1, 2)]
    factors = rng.random((2, 1)) + 0.4
    merge = {}
    for name, start in base.items():
        d = np.stack([(one[name].double() - start.double()).numpy().ravel() for one in sides])
        change = (d * (rng.random(d.shape) < 0.4) * factors).sum(0)
        merge[name] = (start.double() + torch.from_numpy(change).view(start.shape)).half()
    found = masked(tensors(merge, sides, "F16", base), 2)
    assert found is not None
    assert found.factors == pytest.approx(factors[:, 0], rel=1e-5)


def test_the_share_that_is_kept_is_that_of_ranks_in_whole_tensors():
    """The fewest of the largest entries of each side that all entries that moved are among."""
    rng = np.random.default_rng(3)
    for count, keep in ((600, 0.3), (5_000, 0.05), (5_000, 0.9)):
        start = rng.standard_normal((1, count))
        deltas = 0.3 * rng.standard_normal((2, 1, count))
        at = int(keep * count)
        large = [np.abs(d) >= np.sort(np.abs(d).ravel())[-at] for d in deltas]
        change = sum(np.where(mask, d, 0) for mask, d in zip(large, deltas, strict=True))
        whole = joined(
            list(
                read(
                    *(torch.from_numpy(x).float() for x in (start + change, start)),
                    [torch.from_numpy(start + d).float() for d in deltas],
                )
            )
        )
        sizes = np.abs(whole.terms)
        ranks = [(one[:, None] <= one[None]).sum(1) for one in sizes]  # itself and all larger
        moved = np.abs(whole.target) > once(whole, np.ones(2), "F32")
        assert _share_kept(whole, "F32") == np.minimum(*ranks)[moved].max() / count


def test_bounds_of_one_weight_are_an_intersection():
    """With one parameter, the program's ends are the largest lower and the smallest upper bound."""
    rng = np.random.default_rng(1)
    x, most = rng.standard_normal(500), 0.01 * rng.random(500) + 1e-3
    left = 0.4 * x + most * rng.uniform(-1, 1, 500)
    ends = np.sort((left + np.array([[-1], [1]]) * most) / x, 0)
    low, high = interval(x[:, None], left - 0.4 * x, most, np.ones(1))
    assert (0.4 + low, 0.4 + high) == pytest.approx((ends[0].max(), ends[1].min()))
    change, most_left = within(x[:, None], left, most)
    assert most_left <= 1
    assert (np.abs(left - change * x) <= most * (1 + 1e-6)).all()


@pytest.mark.parametrize("in_steps", [False, True])
def test_one_pass_gives_sums_and_what_likely_weights_leave(in_steps):
    """As two passes do; nothing of the latter where the weights are those of another mixture."""
    base = cast(based(), "BF16")
    sides = [cast(tuned(base, 0.3, seed), "BF16") for seed in (1, 2)]
    one = tensors(mixed((0.3, 0.6), sides, "BF16", base), sides, "BF16", base)[0]
    asked = Asked(np.array([0.3, 0.6]), np.eye(2), True, in_steps)
    sums, rest = sums_and_rest(one.parts(), "BF16", asked)
    assert_alike(sums, products(one.parts(), "BF16"))
    assert_alike(rest, remainder(one.parts(), asked, "BF16"))
    other = replace(asked, theta=np.array([0.6, 0.3]))
    sums, rest = sums_and_rest(one.parts(), "BF16", other)
    assert_alike(sums, one.sums)
    assert rest is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("whose", [0, 1])
def test_likely_weights_say_nothing_of_entries_that_are_not_finite(value, whose):
    base = cast(based(), "BF16")
    sides = [cast(tuned(base, 0.3, seed), "BF16") for seed in (1, 2)]
    target = mixed((0.3, 0.6), sides, "BF16", base)
    name = next(iter(base))
    (target, sides[0])[whose][name][7, 9] = value
    parts = read(target[name], base[name], [side[name] for side in sides])
    with np.errstate(invalid="ignore"):
        sums, rest = sums_and_rest(
            parts, "BF16", Asked(np.array([0.3, 0.6]), np.eye(2), True, False)
        )
    assert not sums.finite
    assert rest is None


def assert_alike(one, other):
    for name in (field.name for field in fields(one) if field.name not in ("sample", "asked")):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("with_base", [False, True])
def test_weights_that_were_asked_first_answer_only_where_every_entry_agrees(with_base):
    """Those of the first tensors hold without another look at the others, and change no answer
    where they are wrong: with simpler weights, for one entry that disagrees, for other methods.
    """
    base = cast(based(), "BF16")
    sides = [cast(tuned(base, 0.3, seed), "BF16") for seed in (1, 2)]
    of_base, weights = base if with_base else None, (0.3, 0.6) if with_base else (0.3, 0.7)
    target = mixed(weights, sides, "BF16", of_base)
    plain = tensors(target, sides, "BF16", of_base)
    first = likely(plain[:2], 2, with_base)
    assert first is not None
    asked = [replace(one, rest=sums_and_rest(one.parts(), "BF16", first.asked)[1]) for one in plain]

    def unread():
        raise AssertionError("read again")

    found = fit([replace(one, parts=unread) for one in asked], 2, with_base, first)
    expected = fit(plain, 2, with_base)
    assert isinstance(found, Fit)
    assert found.weights[0] == pytest.approx(weights)
    for name in ("weights", "low", "high", "in_steps", "per", "method"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name

    spoilt = {name: one.clone() for name, one in target.items()}
    spoilt["layers.2.mlp"][3, 5] += 0.004  # one entry, by a few units in its last place
    off = tensors(spoilt, sides, "BF16", of_base)
    off = [replace(one, rest=sums_and_rest(one.parts(), "BF16", first.asked)[1]) for one in off]
    found = fit(off, 2, with_base, first)
    assert isinstance(found, Misfit)
    assert found.entries == {"layers.2.mlp": 1}

    wrong = replace(first, parameters=first.parameters + 2e-3)
    asked = [replace(one, rest=sums_and_rest(one.parts(), "BF16", wrong.asked)[1]) for one in plain]
    found = fit(asked, 2, with_base, wrong)
    assert isinstance(found, Fit)
    assert np.array_equal(found.weights, expected.weights)
