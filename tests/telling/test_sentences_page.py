"""The truth that sentences are judged by is the truth, and every pair has a name of its own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import histories
import judging
import kind_adapters
import kind_edits
import kind_models
import kind_trainings
import kinds
import known_pairs
import sentences
from truths import Truth

from shadow.claims.explanations import EXPLANATIONS
from shadow.claims.recognised import RECOGNISED
from shadow.telling.finding import CODES

NAME = "model.layers.0.self_attn.q_proj.weight"
PAIRS = {pair.name: pair for pair in known_pairs.planted()}


def test_names_are_unique_and_every_code_has_its_place(tmp_path):
    pairs = [*PAIRS.values(), *kinds.kind_pairs(tmp_path)]
    assert len({pair.name for pair in pairs}) == len(pairs)
    assert set(histories.WAYS) >= set(EXPLANATIONS)
    assert not set(judging.SENTENCES) & set(judging.UNDECIDED)


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


def test_a_copy_with_one_changed_tensor_is_none():
    made = PAIRS["F32 to BF16, all norms moved by 30 %"].make()
    assert set(made.update or {}) == {name for name, one in made.base.items() if one.ndim == 1}
    assert all(torch.equal(made.tuned[n], one.bfloat16()) for n, one in made.base.items()
               if n not in (made.update or {}))  # fmt: skip


@pytest.mark.parametrize(
    ("what", "share"),
    [("a fifth", 0.81), ("a half", 0.54), ("half of the columns", 0.54), ("in proportion", 0.22),
     ("heavy tails", 0.15)],
)  # fmt: skip
def test_entries_that_hardly_moved_are_those_of_the_history(what, share):
    """Of 20 and 50 % that moved: the rest, and of a normal update within a tenth of its larger
    root mean square 4 and 6 %. Products of two normal numbers, t2.5: by numbers drawn elsewhere.
    """
    made = PAIRS[f"{what}, 0.006"].make()
    truth = Truth(made)
    assert truth.hardly_moved() == pytest.approx(share, abs=0.03)
    assert truth.norm(truth.inside) == pytest.approx([0.006])
    assert made.told == (("masked",) if what in histories.MASKS else ())


@pytest.mark.parametrize("how", histories.BITS)
def test_few_bits_have_few_levels(how):
    """Values over the scale of their block, row, column or matrix are whole, or of the 16."""
    W = histories.made_up(NAME, 64, 128, 0)
    back = histories.quantised(W, how)
    assert back.shape == W.shape
    levels = {"Q8_0": 255, "int8 by row": 255, "int8 by column": 255, "FP8": 256}.get(how, 16)
    blocks = {
        "Q8_0": back.reshape(-1, 32), "Q4_0": back.reshape(-1, 32), "NF4": back.reshape(-1, 64),
        "int8 by column": back.T, "FP8": back.reshape(1, -1),
    }.get(how, back)  # fmt: skip
    assert max(len(np.unique(block)) for block in blocks) <= levels
    error = np.linalg.norm(back - W) / np.linalg.norm(W)
    assert 1e-3 < error < (0.12 if levels == 16 else 0.03)


def test_a_judge_of_numbers_and_places(tmp_path):
    """A named size, a place of two equals and a rank are held against the truth."""
    found = sentences.size_in("Changed by 0.71 to 0.8 %, like noise.")
    assert found == pytest.approx((0.0071, 0.008, 5e-5))
    case = judging.Case(PAIRS["two modules"], tmp_path)
    assert case.truth.energy_share([n for n in case.truth.changed if "up_proj" in n]) == (
        pytest.approx(0.508, abs=0.01)
    )
    judged = {one.code: one for one in sentences.verdicts(case)}
    assert judged["size"].word == "true"
    assert judged["quantised_copy"].word != "false"
    wrong = list(judging.low_rank(case, "", {"inside_layers.rank_most": 16}))
    assert [holds for holds, _ in wrong] == [False]
    assert set(CODES) >= {one.code for one in case.finding.sentences}


@pytest.mark.parametrize(
    ("values", "holds"),
    [([100.0], True), ([70.0], False), ([110.0, 150.0], True), ([130.0, 150.0], False),
     ([40.0, 130.0], "absent"), ([40.0, 60.0], False)],
)  # fmt: skip
def test_a_range_is_widened_by_the_tolerance_and_a_wide_one_says_nothing(values, holds):
    assert judging.held(values, [100.0], 0.25) == holds


def test_words_of_new_sentences_are_understood():
    """Exceptions of a copy, ranges of a headline."""
    found = judging.size_in("A part changed, by 0.031 to 0.080 %, of rank 8.")
    assert found == pytest.approx((0.00031, 0.0008, 5e-6))
    assert judging.size_in("The weights are the same.") is None
    figures = {"inside_layers.kept": 0.7, "inside_layers.kept_least": 0.6}
    assert judging.figures_of(figures, "inside_layers.kept") == [0.6, 0.7]


def test_the_error_rates_of_claims_are_those_of_the_page():
    """One run writes both, and a claim that the pairs decide has its rate."""
    text = sentences.DOCUMENT.read_text(encoding="utf-8").partition("False by claim: ")[2]
    told = dict(re.findall(r"(\w+) (\d+ of \d+)", text))
    claims = {**RECOGNISED, **EXPLANATIONS}
    rates = {
        code: f"{claim.error_rate.wrong} of {claim.error_rate.of}"
        for code, claim in claims.items()
        if claim.error_rate is not None and claim.error_rate.where == sentences.WHERE
    }
    assert rates == {code: told[code] for code in rates}
    assert {"copy", "merged_adapter", "quantised_copy"} <= told.keys()


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A base with gains and biases, and tasks that are noise."""
    W = kind_models.fresh(64, 3, 128, 0)
    g = torch.Generator().manual_seed(1)
    for name, one in W.items():
        W[name] = one + (0.1 if one.ndim == 1 else 0.01) * torch.randn(one.shape, generator=g)
    folder = tmp_path_factory.mktemp("kinds")
    for at in range(6):
        moved = {n: one + 1e-2 * torch.randn(one.shape, generator=g) for n, one in W.items()}
        kind_models.kept(folder / f"base-task-{at}.pt", lambda moved=moved: moved)
    return kind_models.Base("base", W, folder)


@pytest.mark.parametrize("what", kind_edits.SAME)
def test_other_weights_of_the_same_function_compute_the_same(untrained, what):
    W, x = untrained.start, torch.arange(64).view(1, -1)
    changed = kind_edits.SAME[what](untrained, 0).tuned
    after = kind_models.forward({name: one.float() for name, one in changed.items()}, x)
    before = kind_models.forward(W, x)
    assert any(not torch.equal(changed[name].float(), one) for name, one in W.items())
    assert float((after - before).norm() / before.norm()) < 0.05  # stored in BF16


@pytest.mark.parametrize("how", kind_edits.COPIES)
def test_copies_have_few_values_and_no_update(untrained, how):
    pair = kind_edits.COPIES[how](untrained, 0)
    if "rotated" in how:
        assert pair.update is None
        return
    assert pair.update == {}
    assert pair.few_bits == ("tuned",)
    changed = Truth(pair).stored_norm()
    assert 1e-3 < changed < (1.2 if "ternary" in how or "GPTQ 2" in how else 0.5)


def test_compensated_rounding_serves_the_outputs_better():
    g = torch.Generator().manual_seed(2)
    X = torch.randn(512, 64, generator=g) @ torch.randn(64, 64, generator=g)
    W = torch.randn(32, 64, generator=g)
    near = kind_edits.few_bits("int4", W)
    made_up_for = kind_edits.gptq(W, X, 4, 32)
    assert float(((made_up_for - W) @ X.T).norm()) < 0.8 * float(((near - W) @ X.T).norm())
    assert float((made_up_for - W).norm()) > float((near - W).norm())


@pytest.mark.parametrize("name", [*kind_edits.EDITS, *kind_edits.PRUNED, *kind_edits.MERGED])
def test_kinds_without_training_are_made(untrained, name):
    kinds_of = {**kind_edits.EDITS, **kind_edits.PRUNED, **kind_edits.MERGED}
    pair = kinds_of[name](untrained, 1)
    assert any(
        other.shape != pair.tuned[n].shape or not torch.equal(other, pair.tuned[n])
        for n, other in pair.base.items()
        if n in pair.tuned
    ) or set(pair.tuned) != set(pair.base)


def test_a_training_moves_what_it_should(untrained):
    pair = kind_trainings.TRAININGS["norms alone"](untrained, 0)
    assert set(pair.update) == {name for name in pair.base if "norm" in name}
    pair = kind_adapters.ADAPTERS["LoRA, rank 1"](untrained, 0)
    assert Truth(pair).rank(Truth(pair).inside) == 1
