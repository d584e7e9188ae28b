"""`shadow verify mixture`: merges of checkpoints, and what is none."""

from __future__ import annotations

import planted
import pytest
import torch
from command import run_shadow

import shadow

Q = "model.layers.{}.self_attn.q_proj.weight"
UP = "model.layers.{}.mlp.up_proj.weight"
NO = "does_not_hold"


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
    return planted.write(folder, state, planted.LLAMA | config)


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


def not_linear(base, a, b):
    """A merge by TIES, by DARE and by SLERP."""
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
    return [cast(one) for one in (trimmed, dropped, turned)]


def half(base, a, b):
    return merge([a, b], (0.5, 0.5))


def with_more(name):
    more = {name: torch.ones(32, 16).bfloat16()}
    return lambda *sides: half(*sides) | more


def by_layer(base, a, b):
    """As of mergekit's gradients."""
    parts = [merge([a, b], weights) for weights in ((0.2, 0.8), (0.6, 0.4))]
    return half(base, a, b) | {n: parts[".1." in n][n] for n in a if "layers" in n}


PROJECTOR = "multi_modal_projector.linear_1.weight"
TOWER = "vision_tower.encoder.layers.0.mlp.fc1.weight"
# made of base, A and B; whether the base is named -> outcome, its code, tensors that speak against
# it (None: not asked), the weight of A
CASES = {
    "0.3 A + 0.7 B": (lambda _, a, b: merge([a, b], (0.3, 0.7)), False, "holds", "model", [], 0.3),
    "base + 0.6 A + 0.8 B": (
        lambda base, a, b: merge([a, b], (0.6, 0.8), base), True, "holds", "model", [], 0.6
    ),
    "names without a prefix": (
        lambda *sides: {n.removeprefix("model."): one for n, one in half(*sides).items()},
        False, "holds", "model", [], 0.5,
    ),
    "one tensor of A": (
        lambda _, a, b: merge([a, b], (0.3, 0.7)) | {Q.format(1): a[Q.format(1)]},
        False, NO, "tensors_differ", [Q.format(1)], None,
    ),
    "A alone": (lambda _, a, b: a, False, NO, "no_part", None, None),
    "a head more": (with_more("lm_head.weight"), False, NO, "apart", ["lm_head.weight"], 0.5),
    "a projector more": (with_more(PROJECTOR), False, NO, "apart", [PROJECTOR], 0.5),
    "a tower more": (with_more(TOWER), False, NO, "apart", [TOWER], 0.5),
    "TIES": (lambda *sides: not_linear(*sides)[0], True, NO, "not_linear", None, None),
    "DARE": (lambda *sides: not_linear(*sides)[1], True, NO, "not_linear", None, None),
    "SLERP": (lambda *sides: not_linear(*sides)[2], False, NO, "tensors_differ", None, None),
    "every step rounded": (
        lambda _, a, b: {name: 0.3 * one + 0.7 * b[name] for name, one in a.items()},
        False, "inconclusive", "in_steps", None, None,
    ),
    "weights by layer": (by_layer, False, "holds", "layer", [], None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_merges_and_what_is_none(sides, tmp_path, case):
    make, with_base, outcome, code, against, weight = CASES[case]
    states, (of_base, *of) = sides
    more = {"base": of_base} if with_base else {}
    found = shadow.verify("mixture", put(tmp_path / "m", make(*states)), *of, **more)
    assert (found.outcome, found.code) == (outcome, code), found
    assert against is None or [one.name for one in found.against] == against
    if weight:
        low, high = (found.figures[f"weight_a_{end}"] for end in ("low", "high"))
        assert low - 2e-3 <= weight <= high + 2e-3


def test_equal_models_cannot_be_told_apart(sides, tmp_path):
    """The weights of two copies are open."""
    (_, a, _), (_, of_a, _) = sides
    found = shadow.verify("mixture", put(tmp_path / "m", a), of_a, put(tmp_path / "again", a))
    assert (found.outcome, found.code) == ("inconclusive", "weight_unknown")
    assert found.figures["weight_a_high"] - found.figures["weight_a_low"] > 1


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
    assert [(one.name, one.code) for one in found.against] == [(embed, "rows_only_in")]
    assert [one.code for one in found.answer.reasons] == ["shared_apart", "others"]
    assert found.figures["weight_a"] == pytest.approx(0.5, abs=2e-3)
    cut = {**merged, embed: merged[embed][:30].clone()}
    found = shadow.verify("mixture", put(tmp_path / "cut", cut), *folders)
    assert (found.holds, found.code) == (False, "shared_apart")


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
    pair = torch.ones(64, 4), torch.ones(4, 64)
    folder = planted.adapter(tmp_path / "adapter", {Q.format(0): pair})
    done = run_shadow("verify", "mixture", of_base, of_a, folder, cwd=tmp_path)
    done.assert_refused(2)
    assert "merged" in done.err


def test_whole_numbers_count_as_well(sides, tmp_path):
    """Equal in all of them they are no matter; of none of them, the claim does not hold."""
    (_, a, b), _ = sides
    merged = merge([a, b], (0.5, 0.5))

    def recorded(name, *values):
        folders = [
            put(tmp_path / name / str(number), {**state, "model.steps": torch.tensor([value])})
            for number, (state, value) in enumerate(zip((merged, a, b), values, strict=True))
        ]
        return shadow.verify("mixture", *folders)

    assert recorded("equal", 1, 1, 1).holds is True
    steps = torch.tensor([1])
    wide = put(tmp_path / "wide", {**merged, "model.steps": steps})
    narrow = [put(tmp_path / f"narrow{number}", {**one, "model.steps": steps.int()})
              for number, one in enumerate((a, b))]  # fmt: skip
    assert shadow.verify("mixture", wide, *narrow).holds is True
    found = recorded("one", 1, 1, 2)
    assert found.holds is None, found
    assert [one.name for one in found.against] == ["model.steps"]
    lost = put(tmp_path / "lost", {**a, "model.steps": torch.tensor([1])})
    found = shadow.verify("mixture", put(tmp_path / "merged", merged), lost, tmp_path / "b")
    assert found.holds is False
    assert found.against[0].code == "only_in"


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
