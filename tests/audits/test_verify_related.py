"""`shadow verify related`: which candidate a model is related to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import planted
import pytest
import torch
from safetensors.torch import load_file

import shadow
from shadow.checks.related import Candidate, related_to
from shadow.errors import UsageError

DEMO = Path(__file__).parents[2] / "registry" / "demo"


def changed(source: Path, target: Path, change) -> Path:
    """A copy of a checkpoint, with its tensors changed by name."""
    tensors = load_file(source / "model.safetensors")
    made = {name: change(name, one).contiguous() for name, one in tensors.items()}
    return planted.write(target, made, json.loads((source / "config.json").read_text()))


def apart(target: Path, seed: int) -> Path:
    """A model of the demo's shapes that was initialised on its own."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(name, one):
        return (one.float().std() * torch.randn(one.shape, generator=generator)).to(one.dtype)

    return changed(DEMO / "base", target, drawn)


def test_siblings_come_from_the_base_and_not_from_each_other():
    """Both models of the demo name the base among each other, in any order of candidates."""
    for one, other in (("narrow", "broad"), ("broad", "narrow")):
        for candidates in (("base", other), (other, "base")):
            found = shadow.verify("related", DEMO / one, *(DEMO / name for name in candidates))
            assert found.holds is True
            assert "demo/base is the nearest relative" in found.reason
            assert found.figures["p"] <= 1e-3 / 2
            assert [against.name.endswith(other) for against in found.against] == [True]
    alone = shadow.verify("related", DEMO / "narrow", DEMO / "broad")
    assert alone.holds is True
    assert "which was trained from which is not told" in alone.reason


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_units_that_are_equal_cannot_be_told_apart(tmp_path, value):
    """Any order of them is as good as theirs, also of a model beside itself."""
    flat = changed(DEMO / "base", tmp_path / "flat", lambda _, one: torch.full_like(one, value))
    for model, candidate in ((flat, flat), (flat, DEMO / "base"), (DEMO / "base", flat)):
        found = shadow.verify("related", model, candidate)
        assert found.holds is None, found
        assert "too many of its or the model's units are equal" in found.reason


def test_between_two_models_the_base_abstains():
    """Neither of the two lies on the way to the other: the model does."""
    found = shadow.verify("related", DEMO / "base", DEMO / "narrow", DEMO / "broad")
    assert found.holds is None
    assert "lies between" in found.reason


def test_models_that_were_initialised_apart_are_none(tmp_path):
    """Also beside one that is related, which is named."""
    others = [apart(tmp_path / str(seed), seed) for seed in range(3)]
    found = shadow.verify("related", DEMO / "narrow", *others)
    assert found.holds is False
    assert found.figures["related"] == 0
    found = shadow.verify("related", DEMO / "narrow", *others, DEMO / "base")
    assert found.holds is True
    assert found.figures["related"] == 1


def test_three_siblings_name_no_base(tmp_path):
    """Their common origin is not among the candidates."""
    made = [planted.perturbed(DEMO / "base", tmp_path / str(n), 0.1, n) for n in range(3)]
    found = shadow.verify("related", *made)
    assert found.holds is None
    assert "siblings" in found.reason
    found = shadow.verify("related", *made, DEMO / "base")
    assert "demo/base is the nearest" in found.reason


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_copy_is_a_relative(tmp_path, bits):
    """Of int8 or int4 by rows, stored as floats again; beside the original, that is nearer."""

    def quantised(name, one):
        if one.ndim < 2:
            return one
        step = one.float().abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        return ((one.float() / step).round() * step).to(one.dtype)

    copy = changed(DEMO / "base", tmp_path / "copy", quantised)
    assert shadow.verify("related", DEMO / "narrow", copy).holds is True
    found = shadow.verify("related", DEMO / "narrow", copy, DEMO / "base")
    assert "demo/base is the nearest relative" in found.reason
    assert "demo/base is the nearest" in shadow.verify("related", copy, DEMO / "base").reason


def test_units_in_another_order_are_found(tmp_path):
    """The rows of up and gate, and the columns of down, permuted in every layer."""
    generator = torch.Generator().manual_seed(0)
    orders: dict[str, torch.Tensor] = {}

    def permuted(name, one):
        if "mlp" not in name:
            return one
        layer = name.split(".mlp.")[0]
        units = max(one.shape)
        order = orders.setdefault(layer, torch.randperm(units, generator=generator))
        return one[:, order] if "down" in name else one[order]

    copy = changed(DEMO / "narrow", tmp_path / "permuted", permuted)
    found = shadow.verify("related", copy, DEMO / "base")
    assert found.holds is True
    assert "in another order" in found.reason


def test_equal_candidates_and_other_sizes_are_not_told(tmp_path):
    """Two equal candidates, one of another width, and an adapter."""
    found = shadow.verify("related", DEMO / "narrow", DEMO / "base", DEMO / "base")
    assert found.holds is None
    assert "cannot be told apart" in found.reason
    small = planted.toy(tmp_path / "small", 0)
    found = shadow.verify("related", DEMO / "narrow", small)
    assert found.holds is None
    assert "no MLP of the same size" in found.reason
    with pytest.raises(UsageError):
        shadow.verify("related", DEMO / "narrow")


def test_many_candidates_need_a_smaller_p():
    """The level is shared: p = 5e-4 is a relative of one candidate, and of ten it is none."""
    one = Candidate("a", 5e-4, distance=0.1)
    others = [Candidate(f"b{n}", 0.5, reordered=0.1) for n in range(9)]
    assert related_to([one], {})[0].outcome == "holds"
    assert related_to([replace(one, reordered=0.1), *others], {})[0].outcome == "does_not_hold"
    assert related_to([one, *others], {})[0].outcome == "inconclusive"


@pytest.mark.parametrize("kind", ["gpt2", "bert", "phi3", "qwen2_moe"])
def test_other_architectures(tmp_path, kind):
    """An MLP without a gate, fused gate and up, experts: a copy with noise is a relative, another
    model is none.
    """
    model, other = planted.saved(kind, tmp_path / "a", 0), planted.saved(kind, tmp_path / "b", 1)
    near = planted.perturbed(model, tmp_path / "c", 0.1)
    assert shadow.verify("related", near, model, other).holds is True
    assert shadow.verify("related", near, other).holds is False


def test_weights_with_a_mean_are_no_other_order(tmp_path):
    """All units of weights that are above 0 on average point one way, whatever the model."""
    generator = torch.Generator().manual_seed(7)

    def drawn(name, one):
        return (torch.rand(one.shape, generator=generator) + 0.2).to(one.dtype)

    one = changed(DEMO / "base", tmp_path / "one", drawn)
    other = changed(DEMO / "base", tmp_path / "other", drawn)
    found = shadow.verify("related", one, other)
    assert found.holds is False, found

    def permuted(name, tensor):
        if "mlp" not in name:
            return tensor
        order = torch.arange(max(tensor.shape)).flip(0)
        return tensor[:, order] if "down" in name else tensor[order]

    found = shadow.verify("related", changed(one, tmp_path / "permuted", permuted), one)
    assert found.holds is True
    assert "in another order" in found.reason


def test_a_copy_among_the_candidates_is_the_nearest(tmp_path):
    """However far the others are; two copies cannot be told apart."""
    copy = changed(DEMO / "base", tmp_path / "copy", lambda name, one: one)
    far = planted.perturbed(DEMO / "base", tmp_path / "far", 0.2)
    found = shadow.verify("related", DEMO / "base", copy, far)
    assert found.holds is True, found
    assert f"{copy} is the nearest relative" in found.reason
    assert found.reason.count("lies beyond it") == 1
    found = shadow.verify("related", DEMO / "base", copy, DEMO / "base", far)
    assert found.holds is None
    assert "cannot be told apart: what was sampled of them is equal" in found.reason


def test_the_level_is_shared_by_all_candidates_that_are_named():
    """Also by those that cannot be compared."""
    p = 0.0006
    unknown = Candidate("c", None, why="of another size")
    assert related_to([Candidate("a", p)], {})[0].outcome == "holds"
    assert related_to([Candidate("a", p), unknown], {})[0].outcome != "holds"
