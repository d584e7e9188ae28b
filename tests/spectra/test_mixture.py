"""Linear mixtures of matrices: sums, bounds of rounding and weights, against naive NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from shadow.dtypes import FLOATS
from shadow.spectra.relations.mixture import (
    Mixed,
    fit,
    products,
    read,
    remainder,
    simplest,
    ulp,
    within,
)

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

        layer, sums = int(name.split(".")[1]), products(parts(), stored)
        found.append(Mixed(name, layer, stored, base is not None, parts, sums))
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
    assert (np.abs(rest) <= 0.5 * ulp(w, "BF16") * (1 + 1e-3)).all()
    found = remainder(one, theta)
    assert (found.beyond, found.far) == (0, 0)
    assert remainder(one, 1.1 * theta).far > 0


WEIGHTS = [(0.3, 0.7), (0.5, 0.5), (1 / 3, 1 / 3, 1 / 3), (0.6, 0.37), (0.123456, 0.87, 0.31)]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("stored", DTYPES)
def test_weights_are_found(stored, with_base, weights):
    """Those that people give, and any others, also where they sum to something else than 1."""
    base = cast(based(), stored)
    sides = [cast(tuned(base, 0.3, seed), stored) for seed in range(1, len(weights) + 1)]
    of_base = base if with_base else None
    found = fit(tensors(mixed(weights, sides, stored, of_base), sides, stored, of_base))
    assert found.agrees
    assert found.per == "model"
    assert found.weights[0] == pytest.approx(weights, abs=2e-6)
    # float32 has weights of its own
    assert (np.abs(found.weights[0] - weights) <= found.errors + 2.0**-24).all()


@pytest.mark.parametrize("stored", ["F16", "BF16"])
@pytest.mark.parametrize("weights", [(0.3, 0.7), (0.5, 0.5), (0.625, 0.8)])
def test_steps_in_16_bits_cannot_be_excluded(weights, stored):
    """Every product and sum rounded leaves more than one rounding does, but nothing is apart."""
    base = {name: (0.02 if stored == "F16" else 1) * one for name, one in based().items()}
    a, b = (cast(tuned(base, 0.3, seed), stored) for seed in (1, 2))
    first, second = (torch.tensor(weight, dtype=DTYPES[stored]) for weight in weights)
    target = {name: first * a[name] + second * b[name] for name in a}
    found = fit(tensors(target, [a, b], stored))
    assert found.weights[0] == pytest.approx([float(first), float(second)], abs=2e-3)
    assert found.agrees is (stored == "BF16" and weights == (0.5, 0.5))
    assert not found.apart


def test_weights_by_layer_are_said_to_be_by_layer():
    """Each layer with a weight of its own, as mergekit's gradients give them."""
    base = based()
    sides = [cast(tuned(base, 0.3, seed), "BF16") for seed in (1, 2)]

    def weights(name):
        t = 0.2 + 0.2 * int(name.split(".")[1])
        return 1 - t, t

    found = fit(tensors(mixed(weights, sides, "BF16"), sides, "BF16"))
    assert found.agrees
    assert found.per == "layer"
    assert found.weights[:, 1] == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=1e-3)


@pytest.mark.parametrize("stored", DTYPES)
def test_what_is_no_merge_is_none(stored):
    """One tensor of another, one entry, a training afterwards, a sibling, and one layer alone."""
    base = cast(based(), stored)
    a, b, other = (cast(tuned(base, 0.3, seed), stored) for seed in (1, 2, 3))
    merge = mixed((0.3, 0.7), [a, b], stored)
    name = "layers.1.mlp"
    changed = merge[name].clone()
    changed[3, 4] = 1.1 * changed[3, 4] + 1e-3
    layer = {of: one for of, one in b.items() if of.startswith("layers.1.")}
    for target, named in (
        ({**merge, name: other[name]}, {name}), ({**merge, name: b[name]}, {name}),
        ({**merge, name: changed}, {name}), (cast(tuned(merge, 0.1, 5), stored), set(merge)),
        (other, set(merge)), ({**merge, **layer}, set(layer)),
    ):  # fmt: skip
        found = fit(tensors(target, [a, b], stored))
        assert not found.agrees
        assert named <= {*found.apart}
    changed = merge[name].clone()
    changed.view(-1)[changed.abs().argmax()] *= 1 + 2.0 ** (3 - FLOATS[stored].mantissa_bits)
    found = fit(tensors({**merge, name: changed}, [a, b], stored))
    assert {*found.apart} == {name}


def test_merges_that_are_not_linear_are_no_fit():
    """TIES and DARE mask deltas; SLERP has weights of its own in each tensor."""
    base = cast(based(), "F32")
    sides = [cast(tuned(base, 0.3, seed), "F32") for seed in (1, 2)]
    rng = torch.Generator().manual_seed(0)
    trimmed, dropped, turned = {}, {}, {}
    for name, start in base.items():
        deltas = torch.stack([side[name] - start for side in sides])
        least = deltas.abs().flatten(1).quantile(0.8, dim=1)[:, None, None]
        trimmed[name] = start + (deltas * (deltas.abs() >= least)).mean(0)
        dropped[name] = start + (deltas * (torch.rand(deltas.shape, generator=rng) < 0.4)).sum(0)
        t = torch.rand(1, generator=rng)
        turned[name] = (1 - t) * sides[0][name] + t * sides[1][name]
    for target in (trimmed, dropped):
        assert fit(tensors(target, sides, "F32", base)).apart
    assert fit(tensors(turned, sides, "F32")).apart


@pytest.mark.parametrize("stored", ["BF16", "F16"])
@pytest.mark.parametrize("kind", ["other side", "other tensor"])
def test_what_does_not_fit_is_not_read_often(stored, kind):
    """Where sums cannot tell it from rounding: once no weights fit what was read, no more is."""
    base, small = based(), 2e-3 if stored == "BF16" else 2.5e-4
    sides = [cast(tuned(base, small, seed), stored) for seed in (1, 2, 3)]
    merge = mixed((0.3, 0.7), sides[:2], stored)
    asked = [sides[0], sides[2]] if kind == "other side" else sides[:2]
    if kind == "other tensor":
        merge["layers.1.mlp"] = sides[2]["layers.1.mlp"]
    looks = []

    def each(do, items):
        looks.extend(items)
        return map(do, items)

    assert not fit(tensors(merge, asked, stored), each).agrees
    assert len(looks) <= 4 * len(merge)


@pytest.mark.parametrize("with_base", [False, True])
def test_equal_models_leave_weights_open(with_base):
    """Any weights with one sum fit, so nothing limits each of them."""
    base = cast(based(), "BF16")
    a = cast(tuned(base, 0.3, 1), "BF16")
    found = fit(tensors(a, [a, a], "BF16", base if with_base else None))
    assert found.agrees
    assert (found.errors > 1).all()


def test_a_linear_program_of_one_weight_is_the_middle_of_an_intersection():
    """Of the intervals that each entry allows; where they do not meet, the share is above 1."""
    rng = np.random.default_rng(1)
    x, most = rng.standard_normal(500), 0.01 * rng.random(500) + 1e-3
    target = 0.4 * x + most * rng.uniform(-1, 1, 500)
    rows = np.stack([x, target, most], 1)
    theta, share = within(rows, np.array([0.39]))
    assert share <= 1
    assert (np.abs(target - theta * x) <= most * (1 + 1e-6)).all()
    rows[7, 1] += 3 * most[7]
    assert within(rows, np.array([0.4]))[1] > 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_said_to_be_so(value):
    base = cast(based(), "BF16")
    sides = [cast(tuned(base, 0.3, seed), "BF16") for seed in (1, 2)]
    target = mixed((0.3, 0.6), sides, "BF16", base)
    name = next(iter(base))
    target[name][7, 9] = value
    with np.errstate(invalid="ignore"):
        assert not tensors(target, sides, "BF16", base)[0].sums.finite


def test_simple_numbers():
    """The likeliest within an error; any value where nothing is known."""
    assert simplest(0.30001, 1e-4) == 0.3
    assert simplest(0.33, 0.01) == pytest.approx(1 / 3)
    assert simplest(0.3333, 1e-6) == 0.3333
    assert simplest(0.4999, 7.0) == 0.4999
