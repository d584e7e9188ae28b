"""`shadow verify mixture`: merges of checkpoints, and what is none."""

from __future__ import annotations

import json

import pytest
import torch
from command import run_shadow
from safetensors.torch import save_file

import shadow

Q = "model.layers.{}.self_attn.q_proj.weight"
UP = "model.layers.{}.mlp.up_proj.weight"


def model(seed, start=None, size=1.0):
    """Four matrices and a norm; with a start, a training from it."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name in [one.format(layer) for layer in (0, 1) for one in (Q, UP)]:
        step = 0.02 * size * torch.randn(64, 64, generator=generator)
        found[name] = step if start is None else start[name].float() + step
    norm = torch.ones(64) if start is None else start["model.norm.weight"].float()
    found["model.norm.weight"] = norm + 0.01 * torch.randn(64, generator=generator)
    return cast(found)


def cast(state):
    return {name: one.bfloat16() for name, one in state.items()}


def put(folder, state, **config):
    folder.mkdir(parents=True)
    save_file({name: one.contiguous() for name, one in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return folder


@pytest.fixture
def sides(tmp_path):
    """A base and two models that were tuned from it, and their folders."""
    base = model(0)
    states = [base, model(1, base, 0.2), model(2, base, 0.2)]
    return states, [put(tmp_path / name, one) for name, one in zip("bxy", states, strict=True)]


def merge(states, weights, base=None):
    start = {name: 0 if base is None else one.float() for name, one in states[0].items()}
    start = start if base is None else {name: one.float() for name, one in base.items()}
    return cast(
        {
            name: start[name]
            + sum(
                w * (one[name].float() - start[name])
                for w, one in zip(weights, states, strict=True)
            )
            for name in states[0]
        }
    )


def test_a_merge_holds_with_its_weights(sides, tmp_path):
    """An average, and task arithmetic on the base, with the weights as figures."""
    (base, a, b), (of_base, of_a, of_b) = sides
    found = shadow.verify("mixture", put(tmp_path / "m", merge([a, b], (0.3, 0.7))), of_a, of_b)
    assert found.holds
    assert "0.3 A + 0.7 B in every tensor" in found.reason
    assert found.figures["weight_a_low"] <= 0.3 + 1e-6
    assert found.figures["weight_a_high"] >= 0.3 - 1e-6
    tuned = put(tmp_path / "t", merge([a, b], (0.6, 0.8), base))
    found = shadow.verify("mixture", tuned, of_a, of_b, base=of_base)
    assert found.holds
    assert "base + 0.6 A + 0.8 B" in found.reason


def test_names_and_packing_do_not_matter(sides, tmp_path):
    """A merge whose names have another prefix is lined up by places."""
    (_, a, b), (_, of_a, of_b) = sides
    merged = merge([a, b], (0.5, 0.5))
    renamed = {name.removeprefix("model."): one for name, one in merged.items()}
    assert shadow.verify("mixture", put(tmp_path / "m", renamed), of_a, of_b).holds


def test_one_tensor_of_another_speaks_against_it(sides, tmp_path):
    """And is named; the weights of the others are told."""
    (_, a, b), (_, of_a, of_b) = sides
    merged = {**merge([a, b], (0.3, 0.7)), Q.format(1): a[Q.format(1)]}
    found = shadow.verify("mixture", put(tmp_path / "m", merged), of_a, of_b)
    assert found.outcome == "does_not_hold"
    assert [one.name for one in found.against] == [Q.format(1)]
    assert "0.3 A + 0.7 B" in found.reason


def test_a_copy_has_no_part_of_the_other(sides, tmp_path):
    """Weight 0 is no part."""
    (_, a, _), (_, of_a, of_b) = sides
    found = shadow.verify("mixture", put(tmp_path / "m", a), of_a, of_b)
    assert found.outcome == "does_not_hold"
    assert "no part of B" in found.reason


def test_equal_models_cannot_be_told_apart(sides, tmp_path):
    """The weights of two copies are open."""
    (_, a, _), (_, of_a, _) = sides
    found = shadow.verify("mixture", put(tmp_path / "m", a), of_a, put(tmp_path / "again", a))
    assert found.outcome == "cannot_be_told"
    assert found.reason == "the weight of A is not known, as some models are too much alike"
    assert found.figures["weight_a_high"] - found.figures["weight_a_low"] > 1


def test_a_tensor_that_only_the_merge_has_speaks_against_it(sides, tmp_path):
    """It comes from none of them."""
    (_, a, b), (_, of_a, of_b) = sides
    merged = {**merge([a, b], (0.5, 0.5)), "lm_head.weight": a[Q.format(0)].clone()}
    found = shadow.verify("mixture", put(tmp_path / "m", merged), of_a, of_b)
    assert found.outcome == "does_not_hold"
    assert found.against[0].name == "lm_head.weight"


@pytest.mark.parametrize("of", [("t",), ("t", "a")])
@pytest.mark.parametrize(
    "name",
    ["multi_modal_projector.linear_1.weight", "vision_tower.encoder.layers.0.mlp.fc1.weight"],
)
def test_a_component_that_not_all_have_speaks_against_it(sides, tmp_path, name, of):
    """Of which the others have nothing at all."""
    (_, a, b), (_, of_a, of_b) = sides
    more = {name: torch.randn(32, 16, generator=torch.Generator().manual_seed(3)).bfloat16()}
    if "a" in of:
        of_a = put(tmp_path / "a", {**a, **more})
    merged = put(tmp_path / "m", {**merge([a, b], (0.5, 0.5)), **more})
    found = shadow.verify("mixture", merged, of_a, of_b)
    assert found.outcome == "does_not_hold", found
    assert [one.name for one in found.against] == [name]


def test_merges_that_are_not_linear_do_not_hold(sides, tmp_path):
    """TIES, DARE and SLERP are no fit of weights: the answer names no other kind of merge."""
    (base, a, b), (of_base, of_a, of_b) = sides
    rng = torch.Generator().manual_seed(0)
    trimmed, dropped, turned = {}, {}, {}
    for name, start in base.items():
        deltas = torch.stack([one[name].double() - start.double() for one in (a, b)])
        least = deltas.abs().flatten(1).quantile(0.8, dim=1).view(2, *[1] * start.ndim)
        trimmed[name] = start + (deltas * (deltas.abs() >= least)).mean(0)
        masks = torch.rand(deltas.shape, generator=rng) < 0.4
        dropped[name] = start + (deltas * masks).sum(0) * 1.25
        x, y = a[name].double(), b[name].double()
        angle = torch.arccos((x * y).sum() / (x.norm() * y.norm()))
        turned[name] = (torch.sin(0.7 * angle) * x + torch.sin(0.3 * angle) * y) / torch.sin(angle)
    for name, state in (("ties", trimmed), ("dare", dropped)):
        merged = put(tmp_path / name, cast(state))
        found = shadow.verify("mixture", merged, of_a, of_b, base=of_base)
        assert found.holds is False
        assert found.reason.startswith("not a linear merge: the best weights, base + ")
    merged = put(tmp_path / "slerp", cast(turned))
    assert shadow.verify("mixture", merged, of_a, of_b).holds is False


def test_products_that_were_rounded_too_cannot_be_excluded(sides, tmp_path):
    """A merge whose every step was rounded to 16 bits, as mergekit makes them in its dtype."""
    (_, a, b), (_, of_a, of_b) = sides
    rounded = {name: 0.3 * one + 0.7 * b[name] for name, one in a.items()}
    found = shadow.verify("mixture", put(tmp_path / "m", rounded), of_a, of_b)
    assert found.holds is None, found
    assert "0.3 A + 0.7 B" in found.reason


def test_weights_by_layer_are_said_to_be_by_layer(sides, tmp_path):
    """As of mergekit's gradients."""
    (_, a, b), (_, of_a, of_b) = sides
    parts = [merge([a, b], weights) for weights in ((0.2, 0.8), (0.6, 0.4), (0.4, 0.6))]
    names = [[name for name in a if f".{layer}." in name] for layer in (0, 1)]
    merged = {
        **parts[2],
        **{n: p[n] for p, these in zip(parts, names, strict=False) for n in these},
    }
    found = shadow.verify("mixture", put(tmp_path / "layers", merged), of_a, of_b)
    assert found.holds, found
    assert "(0.2 to 0.6) A + (0.4 to 0.8) B by layer" in found.reason


def test_rows_that_only_one_of_them_has_speak_against_it(sides, tmp_path):
    """Of a vocabulary that grew, the common rows are the merge, and the others no model has."""
    (_, a, b), _ = sides
    embed = "model.embed_tokens.weight"
    generator = torch.Generator().manual_seed(5)
    states = [{**one, embed: torch.randn(32, 64, generator=generator).bfloat16()} for one in (a, b)]
    merged = merge(states, (0.5, 0.5))
    folders = [put(tmp_path / name, one) for name, one in zip("AB", states, strict=True)]
    grown = {**merged, embed: torch.cat([merged[embed], merged[embed][:2]])}
    found = shadow.verify("mixture", put(tmp_path / "grown", grown), *folders)
    assert found.holds is False
    told = {(one.name, one.what) for one in found.against}
    assert told == {(embed, "2 rows only in TUNED")}
    assert "0.5 A + 0.5 B" in found.reason
    cut = {**merged, embed: merged[embed][:30].clone()}
    found = shadow.verify("mixture", put(tmp_path / "cut", cut), *folders)
    assert found.holds is False
    assert "2 rows only in A, of 1 tensor" in found.reason


def test_values_that_are_not_finite_end_in_an_answer(sides, tmp_path):
    """No warning, no traceback: it does not hold."""
    (_, a, b), (_, of_a, of_b) = sides
    merged = merge([a, b], (0.5, 0.5))
    merged[Q.format(0)][0, 0] = torch.nan
    done = run_shadow("verify", "mixture", put(tmp_path / "m", merged), of_a, of_b, cwd=tmp_path)
    assert done.code == 4
    assert "Traceback" not in done.err
    assert "Warning" not in done.err


def test_an_adapter_is_refused_with_a_hint(sides, tmp_path):
    """A merge is of models."""
    _, (of_base, of_a, _) = sides
    folder = tmp_path / "adapter"
    folder.mkdir()
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    pair = {
        f"{module}.lora_A.weight": torch.ones(2, 64),
        f"{module}.lora_B.weight": torch.ones(64, 2),
    }
    save_file(pair, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    done = run_shadow("verify", "mixture", of_base, of_a, folder, cwd=tmp_path)
    done.assert_refused(2)
    assert "merged" in done.err


def test_whole_numbers_count_as_well(sides, tmp_path):
    """Equal in all of them they are no matter; of none of them, the claim does not hold."""
    (_, a, b), _ = sides
    merged = merge([a, b], (0.5, 0.5))

    def told(name, *values):
        folders = [
            put(tmp_path / name / str(number), {**state, "model.steps": torch.tensor([value])})
            for number, (state, value) in enumerate(zip((merged, a, b), values, strict=True))
        ]
        return shadow.verify("mixture", *folders)

    assert told("equal", 1, 1, 1).holds is True
    steps = torch.tensor([1])
    wide = put(tmp_path / "wide", {**merged, "model.steps": steps})
    narrow = [put(tmp_path / f"narrow{number}", {**one, "model.steps": steps.int()})
              for number, one in enumerate((a, b))]  # fmt: skip
    assert shadow.verify("mixture", wide, *narrow).holds is True
    found = told("one", 1, 1, 2)
    assert found.holds is None, found
    assert [one.name for one in found.against] == ["model.steps"]
    lost = put(tmp_path / "lost", {**a, "model.steps": torch.tensor([1])})
    found = shadow.verify("mixture", put(tmp_path / "merged", merged), lost, tmp_path / "b")
    assert found.holds is False
    assert found.against[0].what == "only in A"


def test_a_tied_head_that_is_stored_is_compared(sides, tmp_path):
    """Also beside models that store none: their embedding is their head."""
    (_, a, b), _ = sides
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    generator = torch.Generator().manual_seed(5)
    one, other = (
        {**state, embed: torch.randn(32, 64, generator=generator).bfloat16()} for state in (a, b)
    )
    merged = merge([one, other], (0.5, 0.5))
    tied = {"tie_word_embeddings": True}
    for with_head in (False, True):
        more = [{**state, head: state[embed].clone()} if with_head else state
                for state in (one, other)]  # fmt: skip
        folders = [put(tmp_path / f"{with_head}{number}", state, **tied)
                   for number, state in enumerate(more)]  # fmt: skip
        for number, (step, holds) in enumerate(((None, True), (0, True), (1, False))):
            state = merged if step is None else {**merged, head: merged[embed] + step}
            tuned = put(tmp_path / f"{with_head}m{number}", state, **tied)
            found = shadow.verify("mixture", tuned, *folders)
            assert found.holds is holds, (with_head, step, found)
            if not holds:
                assert [one.name for one in found.against] == [head]
