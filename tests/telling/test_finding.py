"""The finding says what was measured, and no more: each sentence and explanation where it must and
must not stand.
"""

import json

import numpy as np
import pytest
import reports
from finding_cases import (
    BROKEN,
    MUST,
    MUST_NOT,
    RANK_8,
    ROUNDED,
    SETTINGS,
    UNREAD,
    WIDE,
    alone,
    answers,
    check,
    codes,
    grown,
    model,
    recorded,
    report,
    row,
    same,
    skipped,
    summary_of,
    vectors,
)

from shadow.checks.summary import Summary
from shadow.summary.record import PublishedRank, read_row
from shadow.telling.finding import CODES, finding
from shadow.telling.sentences import SENTENCES


@pytest.mark.parametrize("code", MUST)
def test_a_sentence_stands_where_it_is_true_and_only_there(must, tmp_path, code):
    """Of each code a report that needs the sentence, and a near miss that must not have it."""
    assert code in codes(must(code).finding)
    deltas, more = MUST_NOT[code]
    assert code not in codes(recorded(tmp_path, deltas, **more))


def test_every_code_has_a_case_and_a_text():
    """What is left out or estimated is in tests/audits/test_tiers.py."""
    apart = {"nothing_compared", "files", "published", "level"}
    apart |= {"all_zero", "empty"}  # tests/audits/test_broken.py
    assert set(MUST) | apart == set(CODES)
    assert set(MUST) == set(MUST_NOT)


def test_sentences_are_listed_in_the_order_in_which_they_are_told():
    """A code that is told early of some pairs is listed at its later position."""
    codes_in_order = [told.code for told in SENTENCES]
    last = sorted(set(codes_in_order), key=lambda code: codes_in_order[::-1].index(code))
    assert last[::-1] == list(CODES)


FIRST = [  # a report, and the codes that its sentences begin with
    (report([], extra_tensors=(*BROKEN, *same())), ["nonfinite"]),
    (report(model(), extra_tensors=(*BROKEN, *same())), ["nonfinite"]),
    # a few new rows are no headline of a fine-tune; half a model without a partner is
    (report(model(), extra_tensors=grown(591, 594)), ["size", "left_out"]),
    (report(model(), extra_tensors=alone(12)), ["part_shared", "left_out", "size"]),
    # as BitFit leaves it
    (report([], extra_tensors=(*same(), *vectors([0.1, 0.4]))), ["only_vectors", "identical"]),
    (report([], extra_tensors=alone(3)), ["nothing_compared"]),
    (MUST["unrelated"], ["unrelated", "size"]),
    (MUST["part_asked_for"], ["part_asked_for"]),
    (UNREAD, ["left_out"]),
]


@pytest.mark.parametrize(("made", "first"), FIRST, ids=[str(first) for _, first in FIRST])
def test_what_limits_the_rest_is_read_before_it(tmp_path, made, first):
    deltas, more = made
    found = recorded(tmp_path, deltas, **more)
    assert codes(found)[: len(first)] == first
    if first[0] in ("unrelated", "nothing_compared"):
        assert found.other_explanations == []
        assert codes(found) == first


def test_what_is_known_of_published_pairs_is_the_last_sentence(must):
    """Where a pair lies among published ones stands last; without a place there is no sentence."""
    summary = must("size")
    place = PublishedRank(value=0.05, below=9, families=19, least=0.01, most=0.2)
    found = finding(summary.with_values(published=place), SETTINGS)
    assert codes(found)[-1] == "published"
    assert "published" not in codes(finding(summary.with_values(published=None), SETTINGS))


# headline


def test_what_cannot_be_read_is_not_told_as_missing(tmp_path):
    """A tensor of an unknown dtype has a partner all the same; another of its module has none."""
    unread = skipped("unknown_dtype", "mlp.up", 2, sides=("tuned",))
    partner = skipped("only_in_base", "mlp.up", 2, sides=("base",))
    found = recorded(tmp_path / "a", model(2), extra_tensors=(*unread, *partner))
    assert "only in" not in found.text
    missing = skipped("only_in_base", "mlp.up", 1, sides=("base",))
    found = recorded(tmp_path / "b", model(1), extra_tensors=(*unread, *partner, *missing))
    assert "only in the base" in found.text


def test_a_merged_adapter_in_a_rounded_copy_is_no_copy(tmp_path):
    """Mostly rounding, a quarter an update: not called a copy, and the quarter is described."""
    rounded = {**ROUNDED, "floor_ratio": 1.0}
    deltas = [*model(**rounded), *(row(layer, "attn.v", **RANK_8) for layer in range(4))]
    found = recorded(tmp_path, deltas)
    assert "rounding" not in codes(found)
    assert "rounded_away" in codes(found)
    assert answers(found)["quantised_copy"].answer != "fits"


# other explanations


def test_a_copy_needs_no_other_explanation(must):
    """Every entry of it says what it is."""
    assert must("rounding").finding.other_explanations == []


@pytest.mark.parametrize(
    ("dtype", "few"), [("BF16/F8_E4M3", True), ("F8_E4M3", True), ("F32/BF16", False)]
)
def test_a_side_in_8_bits_has_few_values(tmp_path, dtype, few):
    """FP8 has no distinct values to count, but says itself what it is."""
    found = recorded(tmp_path, model(dtype=dtype, levels_tuned=None))
    assert ("few_values" in codes(found)) == few
    assert answers(found)["quantised_copy"].answer != "fits"


@pytest.mark.parametrize("code", MUST)
def test_no_sentence_has_a_number_that_the_tables_lack(must, code):
    """In every case of every code."""
    check(must(code))


def drawn(rng):
    """A model of random figures, some of which are null."""

    def one(low, high, null=0.2):
        return None if rng.random() < null else float(rng.uniform(low, high))

    deltas = []
    for layer in [None, *range(rng.integers(0, 6))]:
        for module in ("embed", "head") if layer is None else reports.MODULES:
            kept = one(0, 1)
            reasons = (
                ("rounding_unexplained", "nothing_rounded")
                if kept is None
                else (None, "rounded_away")
            )
            figures = {
                "frobenius_norm": float(rng.exponential()), "kept": kept,
                "kept_reason": str(rng.choice(reasons)),
                "kept_history": str(rng.choice(["stored_base", "far_above"])),
                "floor_ratio": one(0, 20), "purity_z": one(-30, 60),
                "equivalent_directions": one(1, 64), "cosine": one(-1, 1, 0.05),
                "relative_norm_unrounded": one(1e-6, 1), "decay_cosine": one(-1, 1),
                "levels_tuned": one(0, 1), "concentration": one(-1, 1),
                "rank_ceiling": 8 if rng.random() < 0.1 else None,
                **{
                    f"alignment_{name}": one(0, 4)
                    for name in ("left", "right", "left_null", "right_null")
                },
                **(WIDE if rng.random() < 0.3 else {}),
            }  # fmt: skip
            figures["kept_reason"] = (
                None if figures["kept_reason"] == "None" else figures["kept_reason"]
            )
            if rng.random() < 0.8:
                deltas.append(row(layer, module, **figures))
    return deltas


@pytest.mark.parametrize("seed", range(12))
def test_random_tables_have_a_finding_whose_figures_are_theirs(tmp_path, seed):
    """Whatever is null: no error, one sentence at least, and only numbers of the tables."""
    rng = np.random.default_rng(seed)
    extra = (
        alone(int(rng.integers(0, 9)))
        + (same() if rng.random() < 0.5 else ())
        + same("embed", None)
    )
    summary = summary_of(tmp_path, drawn(rng), extra_tensors=extra)
    assert summary.finding.sentences
    check(summary)
    assert read_row(Summary, json.loads(json.dumps(summary.as_json()))) == summary


def test_the_findings_of_the_demo_have_only_numbers_of_its_tables(demo):
    """Two really trained pairs: the head of the narrow one holds 46 % of the change."""
    for summary in demo.values():
        check(summary)
        assert codes(summary.finding)[:2] == ["size", "coherent"]


@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize("cols", [256, 300, 4096])
def test_a_side_of_zeros_has_not_been_through_few_bits(tmp_path, side, cols):
    """A row of one value, as of a base that starts at 0, says nothing of a format; two do."""
    for values, few in ((1, False), (2, True)):
        share = values / min(cols, 1024)
        found = recorded(tmp_path, model(**{f"levels_{side}": share, "cols": cols}))
        assert ("few_values" in codes(found)) == few
