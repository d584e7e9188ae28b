"""The truth that sentences are judged by is the truth, and every pair has a name of its own."""

import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import histories
import kind_later
import kind_models
import kinds
import sentences
from evidence.evidence_parts import DOCS
from truths import Truth

from shadow.checks.explanations import EXPLANATIONS, RECOGNISED

NAME = "model.layers.0.self_attn.q_proj.weight"
PAIRS = {pair.name: pair for pair in kinds.planted()}


def test_names_are_unique_and_every_code_has_its_place(tmp_path):
    pairs = [*PAIRS.values(), *kinds.kind_pairs(tmp_path)]
    assert len({pair.name for pair in pairs}) == len(pairs)
    assert set(histories.WAYS) >= set(EXPLANATIONS)


@pytest.mark.parametrize("rank", [4, 16])
def test_truth_is_that_of_the_update_before_storage(rank):
    rng = np.random.default_rng(0)
    base = histories.as_stored({NAME: 0.02 * rng.standard_normal((256, 256))})
    left, right = histories.factors(NAME, (256, 256), rank)
    norm = float(np.linalg.norm(base[NAME]))
    update = {NAME: 3e-3 * norm * left @ right.T / np.sqrt(rank)}
    truth = Truth(histories.stored_pair(base, update))
    assert truth.rank([NAME]) == rank
    assert truth.norm() == pytest.approx([3e-3])
    flat = (256 + 256 - 1) / 256**2  # one over the null's, for even rows and columns
    assert truth.directions([NAME]) == pytest.approx([1 / (1 / rank - flat)], rel=0.1)
    (whole, in_classes) = truth.kept()
    stored = truth.stored_norm()
    assert 0.7 < whole < (3e-3 / stored) ** 2  # small entries are lost more often than kept
    assert whole <= in_classes + 1e-9
    assert truth.floor_ratio() == pytest.approx(stored / 1.68e-3, rel=0.1)


def _layers(*sources: int) -> dict[str, np.ndarray]:
    """Two matrices a layer, each layer that of a number."""
    rng = np.random.default_rng(5)
    first = {(at, one): rng.standard_normal((8, 8)) for at in range(4) for one in "qv"}
    return {
        f"model.layers.{at}.self_attn.{one}_proj.weight": first[source, one]
        for at, source in enumerate(sources)
        for one in "qv"
    }


def _truth(base, tuned, **rest) -> Truth:
    sides = (histories.narrow(one, torch.float64) for one in (base, tuned))
    return Truth(histories.Made(*sides, None, **rest))


def test_a_layer_is_another_one_only_in_every_tensor():
    base = _layers(0, 1, 2, 3)
    assert _truth(base, _layers(0, 2, 3)).moved_layers() == (2, 0)
    assert _truth(base, _layers(0, 0, 2, 3)).moved_layers() == (1, 0)
    half = {**base, "model.layers.1.self_attn.q_proj.weight": next(iter(base.values()))}
    assert _truth(base, half).moved_layers() == (0, 0)
    norm = "model.layers.1.input_layernorm.weight"
    sides = {**base, norm: np.ones(8)}, {**_layers(0, 0, 2, 3), norm: np.zeros(8)}
    assert _truth(*sides).moved_layers() == (0, 1)


def test_entries_were_set_to_0_only_where_they_are_0_now():
    base = _layers(0)
    (name, W), *_ = base.items()
    W[:, :2] = 0.0
    r = np.full((8, 1), 8**-0.5)
    assert _truth(base, {**base, name: np.where(np.abs(W) > 0.5, W, 0.0)}).zeroed()
    assert not _truth(base, {**base, name: W - r @ (r.T @ W)}).zeroed()


def test_common_rows_are_compared_and_a_tied_head_is_the_embedding():
    rows = np.random.default_rng(6).standard_normal((9, 4))
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    base = {embed: rows, head: -rows}
    longer = _truth(base, {embed: np.concatenate([rows, rows]), head: -rows})
    assert longer.other_rows == {embed: (9, 18)}
    assert not longer.difference
    tied = _truth(base, {embed: rows}, configs=({}, {"tie_word_embeddings": True}))
    assert list(tied.difference) == [head]
    assert tied.stored_norm([head]) == pytest.approx(2.0)


def _untrained(folder: Path, with_experts: bool = False) -> kind_models.Base:
    start = kind_models.fresh(64, 4, 128, 0)
    if with_experts:
        start = kind_models.with_experts(start, 0)
    return kind_models.Base("untrained", start, folder)


@pytest.mark.parametrize("name", kind_later.EDITED)
def test_the_truth_of_an_edit_is_what_was_stored_but_for_rounding(name, tmp_path):
    made = kind_later.EDITED[name](_untrained(tmp_path), 0)
    truth = Truth(made)
    assert truth.difference or made.update == {}
    for tensor, update in (made.update or {}).items():
        stored = truth.difference.get(tensor, np.zeros_like(update))
        rounding = 3e-3 * (np.linalg.norm(truth.tuned[tensor]) + np.linalg.norm(update))
        assert np.linalg.norm(stored - update) <= rounding


def test_parts_stand_at_other_numbers(tmp_path):
    """Every matrix of the tuned side that differs is one of the base's: none was trained."""
    kinds = {**kind_later.NUMBERS, **kind_later.EXPERT_NUMBERS}
    for name in ("attention of other layers", "first layers dropped", "experts permuted"):
        base = _untrained(tmp_path, with_experts="experts" in name)
        truth = Truth(kinds[name](base, 0))
        held = {W.tobytes() for W in truth.base.values()}
        changed = [tensor for tensor in truth.inside if "proj" in tensor]  # no router
        assert changed, name
        assert all(truth.tuned[tensor].tobytes() in held for tensor in changed)
    moved = kinds["attention of other layers"](_untrained(tmp_path), 0)
    assert Truth(moved).moved_layers() == (0, 2)


def test_pages_say_what_was_measured():
    """The table is that of docs/lab, and README.md has the rate by kind, with its exact bound."""
    found = sentences.kept_verdicts()
    assert sentences.part(found) in (DOCS / "evidence.md").read_text(encoding="utf-8")
    text = " ".join((DOCS.parent / "README.md").read_text(encoding="utf-8").split())
    assert sentences.rate(found) in text
    kinds = {sentences.kind_of(one.pair) for one in found}
    wrong = {sentences.kind_of(one.pair) for one in found if one.word == "false"}
    most = float(re.search(r"at most ([\d.]+) % of such kinds", text)[1]) / 100
    tail = 0.05 if not wrong else 0.025
    held = sum(  # of binomial draws at the bound, as many or fewer are false
        math.comb(len(kinds), k) * most**k * (1 - most) ** (len(kinds) - k)
        for k in range(len(wrong) + 1)
    )
    assert held == pytest.approx(tail, rel=0.35)  # two digits


@pytest.mark.parametrize(("pair", "kind"), [
    ("AdamW to 0.0003: narrow 0", "AdamW"),
    ("F32 in BF16, 1e-05: wide 0", "F32 in BF16"),
    ("base of Q8_0, tune 0.002", "base of Q8_0, tune"),
    ("copy by GPTQ 2 128: wide 1", "copy by GPTQ 2 128"),
    ("50 % by size: narrow 1", "50 % by size"),
])  # fmt: skip
def test_the_kind_of_a_pair_is_without_base_seed_and_size(pair, kind):
    assert sentences.kind_of(pair) == kind


def test_the_error_rates_of_claims_are_those_of_the_page():
    """One run writes both, and a claim that the pairs decide has its rate."""
    text = (DOCS / "evidence.md").read_text(encoding="utf-8").partition("False by claim: ")[2]
    recorded = dict(re.findall(r"(\w+) (\d+ of \d+)", text))
    claims = {**RECOGNISED, **EXPLANATIONS}
    rates = {
        code: f"{claim.error_rate.wrong} of {claim.error_rate.of}"
        for code, claim in claims.items()
        if claim.error_rate is not None and claim.error_rate.where == sentences.WHERE
    }
    assert rates == {code: recorded[code] for code in rates}
    assert {"copy", "merged_adapter", "quantised_copy"} <= recorded.keys()
