"""The finding says what was measured, and no more: each sentence and explanation where it must and
must not stand.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import reports
import torch
from finding_cases import (
    BROKEN,
    LEVELS,
    MUST,
    MUST_NOT,
    PRUNED,
    RANK_8,
    ROUNDED,
    SCALED,
    SETTINGS,
    UNKNOWN,
    WIDE,
    alone,
    answers,
    check,
    codes,
    grown,
    model,
    row,
    same,
    says,
    sentence,
    skipped,
    summary_of,
    told,
    vectors,
    with_head,
    with_swapped,
)
from safetensors.torch import save_file

from shadow.claims.explanations import EXPLANATIONS
from shadow.claims.summary import summary_from_json
from shadow.summary.rows import PublishedPlace
from shadow.telling.finding import CODES, NOT_SHOWN, finding


@pytest.mark.parametrize("code", MUST)
def test_a_sentence_stands_where_it_is_true_and_only_there(must, tmp_path, code):
    """Of each code a report that needs the sentence, and a near miss that must not have it."""
    assert code in codes(must(code).finding)
    deltas, more = MUST_NOT[code]
    assert code not in codes(told(tmp_path, deltas, **more))


def test_no_entries_are_masked_by_an_update_along_the_weights_or_in_few_matrices(tmp_path):
    """Small weights move least where all move in proportion, and storage hides that."""
    along = model(zero_share_excess=0.5, decay_cosine=0.5)
    assert "masked" not in codes(told(tmp_path / "along", along))
    astray = model(zero_share_excess=0.5, kept_misfit=0.8)
    assert "masked" not in codes(told(tmp_path / "astray", astray))
    half = [*model(4, zero_share_excess=0.5), *model(4, zero_share_excess=0.0)]
    assert "masked" not in codes(told(tmp_path / "half", half))
    says(
        tmp_path, "masked", [*half, row(9, "mlp.up", zero_share_excess=0.5)],
        "more entries stayed the same than rounding leaves of normally distributed updates (by 50 %"
        " of those counted, in the median)",
    )  # fmt: skip


def test_every_code_has_a_case_and_a_text():
    """What is left out or estimated is in tests/audits/test_tiers.py."""
    apart = {"nothing_compared", "stage", "files", "published"}
    apart |= {"norms_only", "deltas_only", "estimated"}
    apart |= {"all_zero", "empty"}  # tests/audits/test_broken.py
    assert set(MUST) | apart == set(CODES)
    assert set(MUST) == set(MUST_NOT)


@pytest.mark.parametrize("deltas", [(), model()])
def test_a_broken_side_is_the_first_sentence(tmp_path, deltas):
    """NaN or Inf: whatever else there is, and where nothing else changed as well."""
    first = told(tmp_path, list(deltas), extra_tensors=(*BROKEN, *same())).sentences[0]
    assert first.code == "nonfinite"


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (BROKEN, "The tuned model is broken"),
        (grown(591, 551), "The vocabulary lost 40 rows: the embeddings have 551, the base's 591."),
        (grown(591, 608), "The vocabulary grew by 17 rows: the embeddings have 608, the base's"),
        (
            skipped("only_in_base", "mlp.up", 4, sides=["base"]),
            "Not compared: layer 4 (only in the base).",
        ),
        (
            skipped("shape_differs", "mlp.up", 9, "base (512, 256), tuned (1024, 256)"),
            "Not compared: mlp.up of layer 9 (other shapes, 1,024 x 256 instead of 512 x 256).",
        ),
    ],
)
def test_weights_are_the_same_only_where_all_were_compared(tmp_path, more, text):
    """Otherwise the finding says what was not compared, and the rest is what could be."""
    summary = summary_of(tmp_path, [], extra_tensors=(*same(), *more))
    check(summary)
    assert text in summary.finding.text
    assert "The weights are the same" not in summary.finding.text
    assert sentence(summary.finding, "identical").startswith("What could be compared is the same")
    assert "100 %" not in summary.finding.text


def test_what_was_not_compared_comes_after_the_size_unless_it_limits_the_rest(tmp_path):
    """A few new rows are no headline of a fine-tune; half a model without a partner is."""
    few = told(tmp_path / "few", model(), extra_tensors=grown(591, 594))
    assert codes(few)[:2] == ["size", "vocabulary"]
    many = told(tmp_path / "many", model(), extra_tensors=alone(12))
    assert codes(many)[:3] == ["part_shared", "left_out", "size"]


def test_a_part_that_is_nearly_all_is_not_called_all(tmp_path):
    """99.8 % is less than 100 %."""
    text = sentence(told(tmp_path, [], extra_tensors=grown(100_000, 99_800)), "part_shared")
    assert text.startswith("The two share only 99.8 % of")


def test_where_vectors_alone_moved_the_weights_are_not_the_same(tmp_path):
    """As BitFit leaves it: the gate stays failed, as it is of matrices, and its reason says why."""
    more = (*same(), *vectors([0.1, 0.2, 0.4]))
    summary = summary_of(tmp_path, [], extra_tensors=more)
    assert [one.text for one in summary.finding.sentences] == [
        "Only vectors changed: 3 of 4 biases and norms changed, by 20 % of their norm in the"
        " median.",
        "Every matrix that was compared is the same: 1 weight tensor is identical.",
    ]
    changed = summary.gates[0]
    assert (changed.name, changed.passed, changed.figure) == ("changed", False, 0)
    assert "3 of 4 biases and norms did" in changed.reason


def test_an_audit_counts_the_vectors_that_moved_away_from_0(shadow, tmp_path):
    """A bias that is 0 in the base has no relative norm, and moved all the same; one that is 0 on
    both sides did not.
    """
    at = "model.layers.0.self_attn"
    base = {f"{at}.{name}_proj.weight": torch.eye(8) for name in "qkv"}
    base |= {f"{at}.{name}_proj.bias": torch.zeros(8) for name in "qk"}
    base |= {f"{at}.v_proj.bias": torch.ones(8)}
    moved = {f"{at}.q_proj.bias": torch.ones(8), f"{at}.v_proj.bias": torch.full((8,), 1.5)}
    for folder, tensors in (("b", base), ("t", base | moved)):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "model.safetensors", {"format": "pt"})
        (tmp_path / folder / "config.json").write_text('{"model_type": "llama"}')
    done = shadow("audit", tmp_path / "b", tmp_path / "t", "-o", tmp_path / "out", "--json")
    told = json.loads(done.assert_done())[0]
    assert told["vectors"]["compared"] == 3
    assert told["vectors"]["changed"] == 2
    assert told["vectors"]["relative_norm"] == pytest.approx(0.5)
    assert [one["code"] for one in told["finding"]["sentences"]] == ["only_vectors", "identical"]


@pytest.mark.parametrize(
    ("deltas", "text"),
    [
        (
            with_swapped(0.37),
            "2 matrices have little or nothing in common with the base's (cosines 0.37 to 0.37)",
        ),
        (model(**SCALED), "Every matrix that changed is the base's times 1.010; nothing else"),
        (
            model(decay_cosine=-1.0, relative_norm=0.001),
            "Every matrix that changed is the base's times 0.9990; nothing else",
        ),
        (
            model(**PRUNED),
            "Entries were set to 0, as by pruning, and no other entry changed: 30 % of the entries",
        ),
        (
            model(cast="tuned", **ROUNDED),
            "12 tensors that changed are the other side's in another format, equal but",
        ),
        (
            [*model(cast="tuned", **ROUNDED), row(4, "mlp.up"), row(None, "head")],
            "2 tensors changed by more than rounding. 12 more are the other side's in another",
        ),
    ],
)
def test_what_was_done_to_the_weights_is_the_first_sentence(tmp_path, deltas, text):
    """Where the figures show it, before how large the change is and where it lies."""
    found = told(tmp_path, deltas)
    assert found.sentences[0].text.startswith(text)
    assert found.sentences[1].code == "size"
    without = ("scaled", "rounding", "mostly_copy")
    assert ("coherent" in codes(found)) == (found.sentences[0].code not in without)


def test_where_nothing_was_compared_nothing_is_said(tmp_path):
    """All tensors of one side alone: no size, no structure, no explanation."""
    found = told(tmp_path, [], extra_tensors=alone(3))
    assert codes(found) == ["nothing_compared"]
    assert (found.other_explanations, found.not_shown) == ([], list(NOT_SHOWN))


def test_gates_come_first_and_unrelated_models_have_no_structure(must):
    """A cosine near 0: two unrelated models, the size of their difference, no word of an update."""
    found = must("unrelated").finding
    assert codes(found) == ["unrelated", "size"]
    assert "The difference is" in found.text
    assert found.other_explanations == []


@pytest.mark.parametrize(
    "code", ["hardly_related", "part_shared", "part_asked_for", "unread_formats"]
)
def test_a_failed_gate_is_the_first_sentence(must, code):
    """What limits the rest is read before it."""
    assert codes(must(code).finding)[0] == code


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        ("base..sft", "supervised fine-tuning."),
        ("sft..dpo", "preference tuning (DPO) after supervised fine-tuning."),
        ("base..tuned", None),
        ("base..narrow", None),
    ],
)
def test_a_stage_is_told_where_its_name_says_what_it_is(must, pair, text):
    """Names of stages come from family files; those that say nothing are left out."""
    summary = replace(must("size"), pair=pair)
    found = finding(summary, SETTINGS)
    assert ("stage" in codes(found)) == (text is not None)
    if text:
        assert sentence(found, "stage").endswith(text)


def test_what_is_known_of_published_pairs_is_the_last_sentence(must):
    """Where a pair lies among published ones stands last; without a place there is no sentence."""
    summary = must("size")
    place = PublishedPlace(value=0.05, below=9, families=19, least=0.01, most=0.2)
    found = finding(replace(summary, published=place), SETTINGS)
    assert codes(found)[-1] == "published"
    text = "The mean relative norm of a tensor is 5.0 %, more than in 9 of 19 published families."
    assert sentence(found, "published") == text
    assert "published" not in codes(finding(replace(summary, published=None), SETTINGS))


# headline

HEADLINES = {
    "only_vectors": "Only biases and norms changed.",
    "scaled": "The base's matrices times 1.010.",
    "zeroed": "Changed by 5.0 %, by setting entries to 0, in all modules alike.",
    "few_entries": "Changed by 5.0 %, in 63 entries, all of it in one matrix, mlp.up of layer 1.",
    "replaced": "Changed by 5.0 %, with 2 matrices unlike the base's, in all modules alike.",
    "rounding": "A copy of the base, only rounded.",
    "mostly_copy": "A rounded copy of the base, but for 1 tensor.",
    "base_few_values": (
        "Changed by 5.0 %, spread over 12 directions of 1,024, in all modules alike."
    ),
    "beyond_rounding": (
        "Changed by 2.6 % as stored, more than rounding in 1 of 13 matrices, in all modules alike."
    ),
    "identical": "The weights are the same.",
    "unrelated": "Nothing in common entry by entry.",
    "coherent": ("Changed by 5.0 %, spread over 12 directions of 64, in all modules alike."),
    "low_rank": "Changed by 5.0 %, of rank 8 or less, in all modules alike.",
    "flat": "Changed by 5.0 %, flatter than noise, in all modules alike.",
    "noise": "Changed by 5.0 %, like noise, in all modules alike.",
    "mixed": ("Changed by 5.0 %, partly with more structure than noise, in all modules alike."),
    "concentration": "Changed by 5.0 %, in all modules alike.",
    "few_values": "Changed by 5.0 %, with more structure than noise, in all modules alike.",
    "rounded_away": (
        "Changed by 2.7 % as stored, mostly rounded away by storage, in all modules alike."
    ),
    "siblings": "Different by 2.7 %, spread over 12 directions of 64, in all modules alike.",
}


@pytest.mark.parametrize("code", MUST)
def test_the_headline_says_it_in_a_line(must, code):
    """What, how far, along how many directions and where: what the sentences below it say. One
    short line, whatever the pair; it comes first where a finding is printed.
    """
    found = must(code).finding
    assert found.headline == HEADLINES.get(code, found.headline)
    assert len(found.headline.splitlines()) == 1
    assert len(found.headline) < 100
    assert found.headline.endswith(".")
    assert str(found) == f"{found.headline} {found.text}"


def test_the_headline_says_which_side_is_the_copy(tmp_path):
    found = told(tmp_path, model(cast="base", dtype="F8_E5M2/BF16", **ROUNDED))
    assert found.headline == "The base is a copy of the tuned model, only rounded."


def test_the_headline_names_up_to_two_parts_that_hold_most(tmp_path):
    """The only module, a head of 60 %, a head of 46 % and another; none where more than two are
    needed for half of it.
    """
    ups = [row(layer, "mlp.up") for layer in range(4)]
    assert told(tmp_path / "a", ups).headline.endswith("all of it in mlp.up.")
    assert told(tmp_path / "b", with_head(0.6)).headline.endswith("most of it in the head.")
    second = [row(layer, "mlp.up", frobenius_norm=0.03) for layer in range(2)]
    third = [row(layer, "attn.q", frobenius_norm=0.02) for layer in range(2)]
    head = [row(None, "head", frobenius_norm=0.035)]
    two = told(tmp_path / "c", [*second, *third, *head]).headline
    assert two.endswith("most of it in mlp.up and the head.")
    # the second would be one of several equals
    assert "the head" not in told(tmp_path / "e", with_head(0.46)).headline
    six = [
        row(layer, name, frobenius_norm=norm)
        for layer in range(4)
        for norm, kinds in ((0.05, ("q", "k", "v")), (0.06, ("o", "gate", "up")))
        for name in (f"{'attn' if len(kind) == 1 else 'mlp'}.{kind}" for kind in kinds)
    ]
    assert told(tmp_path / "d", six).headline.endswith("12 directions of 64.")


def test_modules_that_were_asked_for_are_not_told_as_the_place_of_the_change(tmp_path):
    """Under --module, that all of it lies in these modules says nothing of the model; where some
    of them are identical, it does.
    """
    settings = {**SETTINGS, "chosen": {"modules": ["mlp.up"]}}
    ups = [row(layer, "mlp.up") for layer in range(4)]
    others = [row(layer, "attn.q", frobenius_norm=0.03) for layer in range(4)]
    rest = skipped("filtered", "attn.v", 3)
    for deltas in (ups, [*ups, *others]):
        found = told(tmp_path, deltas, settings=settings, extra_tensors=rest)
        assert found.sentences[0].code == "part_asked_for"
        assert "all of it" not in f"{found.headline} {found.sentences[1].text}"
    found = told(tmp_path, ups, settings=settings, extra_tensors=(*rest, *same("attn.q")))
    assert found.headline.endswith("all of it in mlp.up.")
    assert "all of it in mlp.up." in found.sentences[1].text


def test_the_headline_of_what_an_adapter_leaves_ends_once(tmp_path):
    """Where the base alone has what was asked for, no number of tensors follows."""
    settings = {**SETTINGS, "chosen": {"modules": ["mlp.up"]}}
    found = told(tmp_path, [], settings=settings, extra_tensors=same()[:1])
    assert found.headline == "What was asked for is the same."


def test_what_cannot_be_read_is_not_told_as_missing(tmp_path):
    """A tensor of a dtype that is not known has a partner all the same: it is not only in the base;
    another of the same module is.
    """
    unread = skipped("unknown_dtype", "mlp.up", 2, sides=("tuned",))
    partner = skipped("only_in_base", "mlp.up", 2, sides=("base",))
    found = told(tmp_path / "a", model(2), extra_tensors=(*unread, *partner))
    assert "left_out" not in codes(found)
    missing = skipped("only_in_base", "mlp.up", 1, sides=("base",))
    found = told(tmp_path / "b", model(1), extra_tensors=(*unread, *partner, *missing))
    assert sentence(found, "left_out") == "Not compared: layer 1 (only in the base)."


def test_the_headline_says_when_only_a_part_changed(tmp_path):
    """The norm is then one of what changed, which does not compare with that of a whole model."""
    found = told(tmp_path, model(), extra_tensors=same())
    assert found.headline.startswith("A part changed, by 5.0 %, spread over")


def test_the_headline_tells_a_part_by_its_own_words(tmp_path):
    """A factor of some matrices; what has little in common with the base, and not nothing, may have
    been trained.
    """
    part = (*same(), *vectors([0.1, 0.2]), *alone(1))
    assert told(tmp_path / "d", [], extra_tensors=part).headline == (
        "Of what was compared, only biases and norms changed."
    )
    some = told(tmp_path / "a", model(**SCALED), extra_tensors=same())
    assert some.headline == "12 of the base's matrices times 1.010."
    assert "replaced" not in told(tmp_path / "c", with_swapped(0.3)).headline


def test_a_merged_adapter_in_a_rounded_copy_is_no_copy(tmp_path):
    """Most matrices hold rounding alone, a quarter an update: neither the first sentence nor the
    other explanations call it a copy, and what is known of the quarter is told.
    """
    rounded = {**ROUNDED, "floor_ratio": 1.0}
    deltas = [*model(**rounded), *(row(layer, "attn.v", **RANK_8) for layer in range(4))]
    found = told(tmp_path, deltas)
    assert "rounding" not in codes(found)
    text = sentence(found, "beyond_rounding")
    assert text.startswith(
        "In 4 of 16 matrices inside the layers, the change is more than rounding: in the median"
        " 5.0 % of their norm and along 12 equally strong directions."
    )
    assert answers(found)["quantised_copy"].answer != "fits"


def test_a_file_of_more_bits_than_rounded_tells_no_size(tmp_path):
    """Weights of BF16 in files of F16: floor_ratio is of F16, and what BF16 rounded is unknown."""
    figures = {**UNKNOWN, "floor_ratio": 8.0, "equivalent_directions": 40.0}
    found = told(tmp_path / "a", model(**figures, dtype="F16"))
    assert "as stored, with more structure than noise" in found.headline
    assert "before storage is unknown" in sentence(found, "coherent")
    assert "as stored" not in told(tmp_path / "b", model(**figures, dtype="BF16")).headline


# other explanations

FITS = {
    "merged_adapter": RANK_8,
    "orthogonalised_optimiser": {"purity_z": -20.0},
    "quantised_copy": {"kept_low": 0.0, "kept_high": 0.4},
}
EXCLUDED = {"merged_adapter": {}, "quantised_copy": {"relative_norm": 0.0019}}
OPEN = {
    "merged_adapter": UNKNOWN,
    "orthogonalised_optimiser": {"purity_z": -20.0, "decay_cosine": -0.2},  # of flat weights
    "quantised_copy": {"levels_tuned": LEVELS["int8"], "relative_norm": 0.0019, **WIDE},
}


@pytest.mark.parametrize(
    ("code", "answer", "figures"),
    [
        (code, answer, figures)
        for answer, given in (("fits", FITS), ("no", EXCLUDED), ("cannot_be_excluded", OPEN))
        for code, figures in given.items()
    ],
)
def test_another_explanation_is_answered_by_its_figure(tmp_path, code, answer, figures):
    """`no` and `fits` stand with the figure that they rest on."""
    found = answers(told(tmp_path, model(**figures)))
    assert list(found) == list(EXPLANATIONS)
    assert found[code].answer == answer
    if answer != "cannot_be_excluded":
        assert found[code].figures


def test_more_than_the_rounding_of_a_format_is_no_copy_alone(tmp_path):
    """Most of the change may be an update that was rounded to few bits afterwards."""
    found = answers(told(tmp_path, model(kept_low=0.1, kept_high=0.6)))
    assert found["quantised_copy"].answer == "cannot_be_excluded"


@pytest.mark.parametrize(
    ("figures", "moved", "answer"),
    [
        ({}, 4, "no"),
        ({}, 1, "cannot_be_excluded"),  # a copy leaves biases and norms
        ({"concentration": 0.2}, 4, "cannot_be_excluded"),  # trained, then in FP8
        ({"relative_norm": 0.011}, 4, "cannot_be_excluded"),  # trained, then by GPTQ in 8 bits
        ({"levels_tuned": LEVELS["int8"]}, 4, "cannot_be_excluded"),
        ({"levels_tuned": None}, 4, "cannot_be_excluded"),
    ],
)
def test_training_that_moved_vectors_is_no_copy_in_few_bits(tmp_path, figures, moved, answer):
    """Structure alone may be that of compensated rounding."""
    trained = {"relative_norm": 0.02, "concentration": 0.3, "levels_tuned": LEVELS["bf16"]}
    deltas = model(**trained | WIDE | figures)
    found = answers(told(tmp_path, deltas, extra_tensors=vectors([0.1] * moved)))
    assert found["quantised_copy"].answer == answer


def test_a_copy_needs_no_other_explanation(must):
    """Every entry of it says what it is."""
    assert must("rounding").finding.other_explanations == []


def test_how_concentrated_an_update_was_is_unknown_after_few_bits(must):
    """Trained and then copied through int8: directions of the stored change are also of that."""
    text = sentence(must("few_values").finding, "coherent")
    assert "How concentrated the update was before storage is unknown." in text
    assert "part or all of the change" in sentence(must("few_values").finding, "few_values")


@pytest.mark.parametrize(
    ("dtype", "few"), [("BF16/F8_E4M3", True), ("F8_E4M3", True), ("F32/BF16", False)]
)
def test_a_side_in_8_bits_has_few_values(tmp_path, dtype, few):
    """FP8 has no distinct values to count, but says itself what it is."""
    found = told(tmp_path, model(dtype=dtype, levels_tuned=None))
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
    assert summary_from_json(json.loads(json.dumps(summary.as_json()))) == summary


def test_the_findings_of_the_demo_have_only_numbers_of_its_tables(demo):
    """Two really trained pairs: the head of the narrow one holds 46 % of the change."""
    for summary in demo.values():
        check(summary)
        assert codes(summary.finding)[:2] == ["size", "coherent"]
    assert "the head (46 %, with 3.0 % of the parameters)" in demo["base..narrow"].finding.text
