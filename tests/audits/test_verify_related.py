"""`shadow verify related`: which candidate a model is related to."""

import json
from dataclasses import replace
from pathlib import Path

import planted
import pytest
import torch
from safetensors.torch import load_file

import shadow
from shadow.checks.related import ALPHA, BETWEEN, CHECK, REORDERED, RelatedUnits, judge
from shadow.errors import UsageError
from shadow.spectra.relations.units import Relation

DEMO = Path(__file__).parents[2] / "registry" / "demo"


def changed(source: Path, target: Path, change) -> Path:
    """A copy of a checkpoint, with its tensors changed by name."""
    tensors = load_file(source / "model.safetensors")
    made = {name: change(name, one).contiguous() for name, one in tensors.items()}
    return planted.write(target, made, json.loads((source / "config.json").read_text()))


def nearest(found) -> str:
    """The candidate that an answer names as the nearest."""
    assert (found.holds, found.code) == (True, "nearest"), found
    return str(found.answer.reasons[0].figures["name"])


def test_siblings_come_from_the_base_and_not_from_each_other():
    """Both models of the demo name the base among each other, in any order of candidates."""
    for one, other in (("narrow", "broad"), ("broad", "narrow")):
        for candidates in (("base", other), (other, "base")):
            found = shadow.verify("related", DEMO / one, *(DEMO / name for name in candidates))
            assert nearest(found) == str(DEMO / "base")
            assert found.figures["p"] <= 1e-3 / 2
            assert [against.name for against in found.against] == [str(DEMO / other)]
    alone = shadow.verify("related", DEMO / "narrow", DEMO / "broad")
    assert [one.code for one in alone.answer.reasons] == ["nearest", "direction"]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_units_that_are_equal_cannot_be_told_apart(tmp_path, value):
    """Any order of them is as good as theirs, also of a model beside itself."""
    flat = changed(DEMO / "base", tmp_path / "flat", lambda _, one: torch.full_like(one, value))
    for model, candidate in ((flat, flat), (flat, DEMO / "base"), (DEMO / "base", flat)):
        found = shadow.verify("related", model, candidate)
        assert (found.holds, found.code) == (None, "candidates_not_compared"), found
        assert [one.code for one in found.against] == ["unknown"]


def test_three_siblings_name_no_base(tmp_path):
    """Their common origin is not among the candidates."""
    made = [planted.perturbed(DEMO / "base", tmp_path / str(n), 0.1, n) for n in range(3)]
    assert shadow.verify("related", *made).code == "siblings"
    assert nearest(shadow.verify("related", *made, DEMO / "base")) == str(DEMO / "base")
    assert shadow.verify("related", DEMO / "base", *made[:2]).code == "between"


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_copy_is_a_relative(tmp_path, bits):
    """Of int8 or int4 by rows, stored as floats again; beside the original, that is nearer."""

    def quantised(name, one):
        if one.ndim < 2:
            return one
        step = one.float().abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        return ((one.float() / step).round() * step).to(one.dtype)

    copy = changed(DEMO / "base", tmp_path / "copy", quantised)
    assert nearest(shadow.verify("related", DEMO / "narrow", copy)) == str(copy)
    for sides in ((DEMO / "narrow", copy), (copy,)):
        assert nearest(shadow.verify("related", *sides, DEMO / "base")) == str(DEMO / "base")


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
    assert nearest(found) == str(DEMO / "base")
    assert found.answer.reasons[0].figures["how"].code == "reordered"


def test_candidates_of_another_size_are_not_compared(tmp_path):
    """Beside none of its size the answer is open; beside none at all it is no question."""
    found = shadow.verify("related", DEMO / "narrow", planted.toy(tmp_path / "small", 0))
    assert (found.holds, found.code) == (None, "candidates_not_compared")
    with pytest.raises(UsageError):
        shadow.verify("related", DEMO / "narrow")


OTHER, NONE = Relation(None, unknown="no_mlp"), Relation(0.5, reordered=0.1)
NEAR, EQUAL = Relation(6e-4, distance=0.1), Relation(1e-5, distance=0.0)
NOT_COMPARED = "1 (no MLP of the same size, or no finite one) is not compared"
SURE = {"p": 1e-5, "cosine": 0.5}
NEAREST, BEYOND = Relation(**SURE, distance=0.1, z=9.0), Relation(**SURE, distance=0.2)
LEVEL, REORDER = ALPHA / 2, Relation(0.5, reordered=REORDERED)
UNLIKE = Relation(0.5, cosine=0.25, reordered=REORDERED - 0.001)
IS_NEAREST = (
    "0 is the nearest relative: units match (p 1.0e-05), cosine 0.500, 10 % away in the units that"
    " were sampled"
)
# relations, corners -> reasons and what speaks against it, as they are said
SAID = [
    ([replace(NEAREST, p=LEVEL), UNLIKE], {},
     "0 is the nearest relative: units match (p 0.00050), cosine 0.500, 10 % away in the units that"
     " were sampled; which was trained from which is unknown",
     "units do not match (p 0.50), cosine 0.250"),
    ([replace(UNLIKE, p=LEVEL * 1.01), UNLIKE], {},
     "its units match those of no candidate (p 0.00051 or more)",
     "units do not match (p 0.00051), cosine 0.250 | units do not match (p 0.50), cosine 0.250"),
    ([UNLIKE], {}, "its units match those of no candidate (p 0.50)",
     "units do not match (p 0.50), cosine 0.250"),
    ([REORDER, OTHER], {},
     "0 is the nearest relative: its units in another order (cosine 0.70 at the best match); "
     f"{NOT_COMPARED}; which was trained from which is unknown",
     "not compared: no MLP of the same size, or no finite one"),
    ([NEAREST, BEYOND, replace(BEYOND, is_moved=True)],
     {(0, 1): BETWEEN, (1, 0): 0.9, (0, 2): -1.0, (2, 0): 1.0},
     f"{IS_NEAREST}; 1, 2 lie beyond it; which was trained from which is unknown",
     "units match (p 1.0e-05), cosine 0.500, 20 % away in the units that were sampled | units match"
     " where layers or experts that correspond have other numbers (p 1.0e-05), cosine 0.500, 20 %"
     " away in the units that were sampled"),
    ([BEYOND, NEAREST], {(1, 0): 0.43, (0, 1): 0.7},
     "it lies between 1 and 0, as their common origin does", None),
    ([NEAREST, BEYOND], {(0, 1): 0.866, (1, 0): 0.0924},
     "it lies between 0 and 1, as their common origin does", None),
    ([NEAREST, BEYOND], {(0, 1): 0.866, (1, 0): 0.0872},
     "0 and 1 are its siblings, or it is a mix: neither lies on the way to the other", None),
    ([NEAR, NONE], {},
     "units do not match in their order, and no other order was looked for", None),
    ([NEAR, OTHER], {}, NOT_COMPARED, None),
    ([BEYOND, EQUAL], {},
     "1 is the nearest relative: units match (p 1.0e-05), cosine 0.000, 0 % away in the units that"
     " were sampled; 0 lies beyond it; which was trained from which is unknown", None),
    ([EQUAL, EQUAL], {}, "0 and 1 cannot be distinguished: no sampled MLP is in both", None),
    ([NEAREST, BEYOND], {(0, 1): 0.1, (1, 0): None},
     "0 and 1 cannot be distinguished: what was sampled of them is equal", None),
]  # fmt: skip


@pytest.mark.parametrize(("relations", "corners", "reasons", "against"), SAID)
def test_the_words_of_candidates_at_the_bounds(relations, corners, reasons, against):
    """A level that all share, a cosine of the best match, and angles at two candidates."""
    names = map(str, range(len(relations)))
    answer = judge(RelatedUnits([*zip(names, relations, strict=True)], corners))
    assert CHECK.say_all(answer.reasons) == reasons
    said = [CHECK.say(one.why) for one in answer.against]
    assert against is None or " | ".join(said) == against
    if answer.outcome == "holds" and relations[0] is NEAREST:
        assert answer.figures.items() >= {"z": 9.0, "distance": 0.1, **SURE}.items()
    if answer.outcome == "does not hold":
        assert answer.figures["p"] == relations[0].p
    assert answer.figures["candidates"] == len(relations)


@pytest.mark.parametrize("kind", ["gpt2", "bert", "phi3", "qwen2_moe"])
def test_other_architectures(tmp_path, kind):
    """No gate, fused gate and up, experts: a copy with noise is a relative, another model none."""
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
    assert nearest(found) == str(one)
    assert found.answer.reasons[0].figures["how"].code == "reordered"


def test_a_copy_among_the_candidates_is_the_nearest(tmp_path):
    """However far the others are; two copies cannot be told apart."""
    copy = changed(DEMO / "base", tmp_path / "copy", lambda name, one: one)
    far = planted.perturbed(DEMO / "base", tmp_path / "far", 0.2)
    found = shadow.verify("related", DEMO / "base", copy, far)
    assert nearest(found) == str(copy)
    assert [one.code for one in found.answer.reasons] == ["nearest", "beyond", "direction"]
    assert shadow.verify("related", DEMO / "base", copy, DEMO / "base", far).code == "equal_samples"
