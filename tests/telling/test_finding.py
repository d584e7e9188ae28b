"""The finding says what was measured, and no more: each sentence and explanation where it must and
must not stand.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import reports
import torch
import view
from command import run_shadow
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import shadow
from shadow.claims.draft import Sentence
from shadow.claims.explanations import ANSWERS, EXPLANATIONS, Explanation
from shadow.claims.reference import runs
from shadow.claims.summary import Finding, summary_from_json
from shadow.claims.verdicts import Judgement
from shadow.cli.commands import app
from shadow.outputs.markdown import markdown, plain
from shadow.quantities import text_of
from shadow.reports.columns import TABLES
from shadow.summary.layer_medians import TOPS
from shadow.summary.rows import PublishedPlace
from shadow.telling.finding import CODES, NOT_SHOWN, finding
from shadow.telling.reading import read_summary
from shadow.telling.report import report_document
from shadow.telling.verdicts import gate_document
from shadow.telling.wording import factor

SETTINGS = {
    "method": {"precision": "default", "nulls": 0, "seed": 0},
    "chosen": {},
    "relation": "tuned",
}
LEVELS = {"bf16": 0.70, "int8": 0.14}
WIDE = {"rows": 1024, "cols": 1024}


def row(layer, module, /, **figures):
    """A fine-tune's delta, far above its rounding, with structure, but for what is told."""
    usual = {
        "frobenius_norm": 0.05, "kept": 0.999, "kept_history": "far_above", "purity_z": 300.0,
        "numerical_rank": 64, "equivalent_directions": 12.0, "relative_norm_unrounded": 0.0499,
        "rank_90": 30, "rank_95": 40, "rank_99": 55, "alignment_left": 1.0,
        "alignment_left_null": 1.0, "alignment_right": 1.0, "alignment_right_null": 1.0,
        "decay_cosine": 0.0, "levels_base": 0.7, "levels_tuned": 0.7, "spikes": 0,
        **{f"top{k}_energy": k / 64 for k in TOPS},
    }  # fmt: skip
    return reports.delta(
        0.3, reports.place(layer, module), **{"parameters": 64 * 96, **usual, **figures}
    )


def model(layers=4, **figures):
    return [row(layer, module, **figures) for layer in range(layers) for module in reports.MODULES]


MADE = {}


def summary_of(folder, deltas, **more):
    """Of equal reports one is written and summarised."""
    key = repr((deltas, more))
    if key not in MADE:
        MADE[key] = read_summary(reports.write(folder / "base..tuned", deltas, **more))[0]
    return MADE[key]


def told(folder, deltas, **more):
    return summary_of(folder, deltas, **more).finding


def same(module="mlp.up", layer=9, component="language"):
    """The two sides of a tensor that is identical."""
    where = {
        "component": component,
        "layer": layer,
        "module": module,
        "status": "identical",
        "shape": [64, 96],
    }
    return tuple(
        {**where, "tensor": f"{component}.{layer}.{module}", "side": side}
        for side in ("base", "tuned")
    )


def alone(count):
    """Tensors of the base that have no partner."""
    return tuple(
        {
            "component": "language", "layer": 20 + at, "module": "mlp.up", "tensor": f"more.{at}",
            "status": "skipped", "reason": "only_in_base",
        }
        for at in range(count)
    )  # fmt: skip


def skipped(reason, module, layer, detail=None, shape=(64, 96), sides=("base", "tuned")):
    """A tensor that was not measured, as the two sides have it."""
    where = {"component": "language", "layer": layer, "module": module, "reason": reason}
    return tuple(
        {
            **where, "tensor": f"skipped.{layer}.{module}", "side": side, "status": "skipped",
            "detail": detail, "shape": list(shape), "compared": 0,
        }
        for side in sides
    )  # fmt: skip


def vectors(norms, count=4):
    """Biases that were compared, of these relative norms; the others did not move."""
    told = [*norms, *[0.0] * (count - len(norms))]
    return tuple(
        {**one, "relative_norm": norm, "compared": 64}
        for layer, norm in enumerate(told)
        for one in skipped("not_a_matrix", "bias", layer, shape=[64])
    )


def grown(base_rows, tuned_rows, module="embed"):
    """A vocabulary of two sizes, the common rows of which are identical."""
    common = min(base_rows, tuned_rows) * 64
    return tuple(
        {
            **one, "tensor": module, "shape": [rows, 64], "compared": common, "relative_norm": 0.0,
            "status": "identical",
        }
        for one, rows in zip(same(module, None), (base_rows, tuned_rows), strict=True)
    )  # fmt: skip


def with_swapped(cosine=0.02):
    """Twelve matrices, two of which are others."""
    return [*model(), *[row(at, "attn.v", cosine=cosine) for at in (2, 3)]]


def elsewhere(how="same", content="layers.3.mlp.up"):
    """Twelve matrices, and one that has nothing in common with its partner, nor with any other
    where how is None.
    """
    return [*model(), row(2, "mlp.gate", cosine=0.01, content_of=content, content_how=how)]


BROKEN = skipped("nonfinite", "mlp.up", 2, "in the tuned tensor")
SCALED = {"decay_cosine": 1.0, "relative_norm": 0.01}
PRUNED = {"decay_cosine": -0.12, "relative_norm": 0.12, "zero_share": 0.7}


def with_head(share):
    """A model, and a head of a share of the energy with the parameters of one matrix of twelve."""
    energy = 12 * 0.05**2
    return [*model(), row(None, "head", frobenius_norm=math.sqrt(energy * share / (1 - share)))]


ROUNDED = {
    "kept": 0.1,
    "kept_reason": "rounded_away",
    "kept_history": "stored_base",
    "floor_ratio": 0.05,
}
ROUNDED |= {"relative_norm_unrounded": None, "equivalent_directions": None, "purity_z": 1.0}
UNKNOWN = {
    "kept": None,
    "kept_reason": "rounding_unexplained",
    "kept_history": None,
    "floor_ratio": 1.5,
}
UNKNOWN |= {"relative_norm_unrounded": None, "equivalent_directions": None}
RANK_8 = {"rank_90": 8, "rank_95": 8, "rank_99": 8, "numerical_rank": 64}
RANK_8 |= {"rest_rank": 8, "rest_energy": 0.001, "rest_over_rounding": 1.0}
RANK_8 |= {f"top{k}_energy": min(1.0, k / 8) * 0.9995 for k in TOPS}


def report(deltas, **more):
    """What a report is of."""
    return deltas, more


MUST = {  # by code: what a report has to be of for the sentence to stand there
    "identical": report([], extra_tensors=same()),
    "nonfinite": report(model(), extra_tensors=BROKEN),
    "vocabulary": report(model(), extra_tensors=grown(591, 551)),
    "left_out": report(model(), extra_tensors=alone(1)),
    "only_vectors": report([], extra_tensors=(*same(), *vectors([0.1, 0.2]))),
    "vectors": report(model(), extra_tensors=vectors([0.9, 0.9, 0.9])),
    "mostly_copy": report([*model(cast="tuned", **ROUNDED), row(4, "mlp.up")]),
    "scaled_lines": report(model(row_scaling=0.9, col_scaling=0.1)),
    "base_few_values": report(model(levels_base=LEVELS["int8"], **WIDE)),
    "replaced": report(with_swapped()),
    "scaled": report(model(**SCALED)),
    "zeroed": report(model(**PRUNED)),
    "few_entries": report([row(1, "mlp.up", zero_share=1 - 63 / (64 * 96))]),
    "masked": report(model(zero_share_excess=0.3)),
    "few_rows": report([*model(), row(None, "embed", rows=600, rows_changed=1 / 600)]),
    "unrelated": report(model(cosine=0.01, relative_norm=1.4)),
    "hardly_related": report(model(cosine=0.3)),
    "layers_moved": report(elsewhere()),
    "negated": report(with_swapped(-0.99)),
    "reordered": report(elsewhere("rows in another order", "layers.2.mlp.gate")),
    "part_asked_for": report(
        model(), settings={**SETTINGS, "chosen": {"layers": [0]}}, extra_tensors=alone(12)
    ),
    "part_shared": report(model(), extra_tensors=alone(12)),
    "unread_formats": report(
        model(), extra_tensors=tuple({**one, "reason": "quantized"} for one in alone(1))
    ),
    "size": report(model()),
    "coherent": report(model()),
    "standing_out": report(model(spikes=1, spike_energy=0.1)),
    "low_rank": report(model(**RANK_8)),
    "flat": report(model(purity_z=-20.0)),
    "noise": report(model(purity_z=0.5)),
    "mixed": report([*model(3, purity_z=0.5), *model(4)[9:]]),
    "concentration": report(model(purity_z=None)),
    "few_values": report(model(levels_tuned=LEVELS["int8"], **WIDE)),
    "beyond_rounding": report([*model(**ROUNDED), row(4, "attn.q")]),
    "rounded_away": report(model(**ROUNDED)),
    "rounding": report(model(cast="tuned", **ROUNDED)),
    "unexplained": report(model(**UNKNOWN)),
    "kept": report(model(kept=0.5, floor_ratio=0.8)),
    "siblings": report(model(), settings={**SETTINGS, "relation": "sibling"}),
}
MUST_NOT = {  # a near miss of the same code
    "identical": report(model(1), extra_tensors=same()),
    "nonfinite": report(model(), extra_tensors=alone(1)),
    "vocabulary": report(model(), extra_tensors=grown(591, 591)),
    "left_out": report(model(), extra_tensors=BROKEN),
    "only_vectors": report([], extra_tensors=(*same(), *vectors([]))),
    "vectors": report(model(), extra_tensors=vectors([0.9])),
    "mostly_copy": report(model(cast="tuned", **ROUNDED)),
    "scaled_lines": report(model(cast="tuned", row_scaling=0.9, col_scaling=0.1, **ROUNDED)),
    "base_few_values": report(model(levels_base=LEVELS["bf16"], **WIDE)),
    "replaced": report(with_swapped(0.6)),
    "scaled": report([*model(**SCALED), row(4, "mlp.up", decay_cosine=0.99)]),
    "zeroed": report(model(**{**PRUNED, "zero_share": 0.0})),
    "few_entries": report([row(1, "mlp.up", zero_share=1 - 64 / (64 * 96))]),
    "masked": report(model(zero_share_excess=0.29)),
    "few_rows": report([*model(), row(None, "embed", rows=600, rows_changed=0.06)]),
    "unrelated": report(model(cosine=0.3)),
    "hardly_related": report(model(cosine=0.6)),
    "layers_moved": report(elsewhere(content="layers.9.mlp.up")),  # which there is none of
    "negated": report(with_swapped(-0.7)),
    "reordered": report(elsewhere(None)),
    "part_asked_for": report(model(), extra_tensors=alone(12)),
    "part_shared": report(model(), extra_tensors=alone(1)),
    "unread_formats": report(model(), extra_tensors=alone(1)),
    "size": report([], extra_tensors=same()),
    "coherent": report(model(purity_z=4.9)),
    "standing_out": report(model(spikes=9, spike_energy=0.099)),
    "low_rank": report(model(**{**RANK_8, "rest_over_rounding": 1.3})),
    "flat": report(model(purity_z=-4.9)),
    "noise": report(model(purity_z=5.1)),
    "mixed": report([*model(3), *model(4, purity_z=0.5)[9:]]),
    "concentration": report(model()),
    "few_values": report(model(levels_tuned=LEVELS["bf16"], **WIDE)),
    "beyond_rounding": report(model(**ROUNDED)),
    "rounded_away": report(model(kept=0.3, floor_ratio=0.3)),
    "rounding": report(model(**{**ROUNDED, "floor_ratio": 1.0})),
    "unexplained": report(model(**{**UNKNOWN, "floor_ratio": 5.0})),
    "kept": report(model(kept=0.95)),
    "siblings": report(model()),
}


def codes(found):
    return [one.code for one in found.sentences]


def sentence(found, code):
    return next(one.text for one in found.sentences if one.code == code)


def says(at, code, deltas, *texts, without=(), **more):
    """The sentence of a report has these texts, and none of those."""
    text = sentence(told(at / f"{len(MADE)}", deltas, **more), code)
    assert [one for one in texts if one not in text] == [], text
    assert [one for one in without if one in text] == [], text


@pytest.fixture
def must(tmp_path):
    """The summary of the report that needs a sentence, by its code."""

    def summary(code):
        deltas, more = MUST[code]
        return summary_of(tmp_path / code, deltas, **more)

    return summary


@pytest.mark.parametrize("code", MUST)
def test_a_sentence_stands_where_it_is_true_and_only_there(must, tmp_path, code):
    """Of each code a report that needs the sentence, and a near miss that must not have it."""
    assert code in codes(must(code).finding)
    deltas, more = MUST_NOT[code]
    assert code not in codes(told(tmp_path, deltas, **more))


def test_one_factor_for_all_scales_no_rows(tmp_path):
    """What decay explains, factors for rows and columns explain as well."""
    decayed = model(row_scaling=0.9, col_scaling=0.9, decay_cosine=-0.9)
    assert "scaled_lines" not in codes(told(tmp_path, decayed))


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
    assert set(MUST) | apart == set(CODES)
    assert set(MUST) == set(MUST_NOT)


@pytest.mark.parametrize("deltas", [(), model()])
def test_a_broken_side_is_the_first_sentence(tmp_path, deltas):
    """NaN or Inf: whatever else there is, and where nothing else changed as well."""
    first = told(tmp_path, list(deltas), extra_tensors=(*BROKEN, *same())).sentences[0]
    assert first.text.startswith(
        "The tuned model is broken: it holds NaN or infinite entries in mlp.up of layer 2."
    )


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
    assert summary.claims.consistent_with == ["training of biases and norms only (BitFit)"]


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
            with_swapped(),
            "2 matrices (attn.v of layers 2 and 3) have nothing in common with the base's (cosine"
            " 0.02), unlike most others: they were replaced, exchanged or reordered.",
        ),
        (
            with_swapped(0.37),
            "2 matrices (attn.v of layers 2 and 3) have little in common with the base's (cosine"
            " 0.37), unlike most others: they may have been replaced, exchanged or reordered.",
        ),
        (model(**SCALED), "Every matrix is the base's times 1.010; nothing else changed in it."),
        (
            model(decay_cosine=-1.0, relative_norm=0.001),
            "Every matrix is the base's times 0.9990; nothing else changed in it.",
        ),
        (
            model(**PRUNED),
            "Entries were set to 0, as by pruning, and no other entry changed: 30 % of the entries",
        ),
        (
            model(cast="tuned", **ROUNDED),
            "In all 12 tensors that changed, the tuned side is the base in another format, equal",
        ),
        (
            model(cast="base", **ROUNDED),
            "In all 12 tensors that changed, the base is the tuned side in another format, equal",
        ),
        (
            [*model(cast="tuned", **ROUNDED), row(4, "mlp.up"), row(None, "head")],
            "2 tensors changed by more than rounding: mlp.up of layer 4 by 5.0 % and the head by"
            " 5.0 %. In the other 12 that changed, the tuned side is the base in another format",
        ),
        (
            model(row_scaling=0.98, col_scaling=0.01),
            "In 12 matrices, rows of the base were multiplied by factors, as by (IA)3 or by norms"
            " folded into weights. They explain 98 % of the change in the median.",
        ),
    ],
)
def test_what_was_done_to_the_weights_is_the_first_sentence(tmp_path, deltas, text):
    """Where the figures show it, before how large the change is and where it lies."""
    found = told(tmp_path, deltas)
    assert found.sentences[0].text.startswith(text)
    assert found.sentences[1].code == "size"
    without = ("scaled", "scaled_lines", "rounding", "mostly_copy")
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
    assert found.sentences[0].text.startswith("These are two unrelated models of one shape")
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
    size = PublishedPlace(value=0.05, below=2, families=20, pairs=45, least=0.01, most=0.2)
    published = replace(summary.published, pair=None, size=size)
    assert codes(finding(replace(summary, published=published), SETTINGS))[-1] == "published"
    without = replace(summary, published=replace(published, size=None))
    assert "published" not in codes(finding(without, SETTINGS))


# headline

HEADLINES = {
    "nonfinite": "Broken: a side holds NaN or infinite entries.",
    "only_vectors": "Only biases and norms changed.",
    "scaled": "The base's matrices times 1.010.",
    "zeroed": "Changed by 5.0 %, by setting entries to 0, in all modules alike.",
    "few_entries": "Changed by 5.0 %, in 63 entries, all of it in one matrix, mlp.up of layer 1.",
    "replaced": ("Changed by 5.0 %, with 2 matrices replaced or exchanged, in all modules alike."),
    "rounding": "A copy of the base, only rounded.",
    "mostly_copy": "A rounded copy of the base, but for mlp.up of layer 4 by 5.0 %.",
    "scaled_lines": "Changed by 5.0 %, by factors for rows or columns of the base.",
    "base_few_values": (
        "Changed by 5.0 %, spread over 12 directions of 1,024, in all modules alike."
    ),
    "beyond_rounding": (
        "Changed by 2.6 % as stored, more than rounding in 1 of 13 matrices, in all modules alike."
    ),
    "identical": "The weights are the same.",
    "unrelated": "Two unrelated models of one shape.",
    "coherent": ("Changed by 5.0 %, spread over 12 directions of 64, in all modules alike."),
    "low_rank": "Changed by 5.0 %, of rank 8 or less, in all modules alike.",
    "flat": "Changed by 5.0 %, flatter than noise, in all modules alike.",
    "noise": "Changed by 5.0 %, like noise, in all modules alike.",
    "mixed": ("Changed by 5.0 %, partly with more structure than noise, in all modules alike."),
    "concentration": "Changed by 5.0 %, in all modules alike.",
    "few_values": ("Changed by 5.0 %, spread over 12 directions of 1,024, in all modules alike."),
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


@pytest.mark.parametrize(
    ("cast", "dtype", "headline"),
    [
        ("tuned", "BF16/F8_E4M3", "An F8_E4M3 copy of the base, only rounded."),
        ("base", "F8_E5M2/BF16", "The base is an F8_E5M2 copy of the tuned model, only rounded."),
        ("tuned", "BF16/Q4_K", "A Q4_K copy of the base, only rounded."),
        # what was decoded is no copy in fewer bits
        ("tuned", "F8_E4M3/BF16", "A copy of the base, only rounded."),
        ("tuned", "F32/BF16", "A copy of the base, only rounded."),
    ],
)
def test_a_copy_in_8_bits_or_less_is_called_by_its_format(tmp_path, cast, dtype, headline):
    """By that of the side that was rounded, with scales or without."""
    found = told(tmp_path, model(cast=cast, dtype=dtype, **ROUNDED))
    assert found.headline == headline
    named = headline.split(" copy")[0].split()[-1]
    text = found.sentences[0].text
    assert ("It is stored in" in text) == (named != "A")
    assert named == "A" or f"It is stored in {named}." in text


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
    """A factor of some matrices, a few rows of the embeddings; what has little in common with the
    base, and not nothing, may have been trained.
    """
    part = (*same(), *vectors([0.1, 0.2]), *alone(1))
    assert told(tmp_path / "d", [], extra_tensors=part).headline == (
        "Of what was compared, only biases and norms changed."
    )
    some = told(tmp_path / "a", model(**SCALED), extra_tensors=same())
    assert some.headline == "12 of the base's matrices times 1.010."
    rows = [row(None, "embed", rows=600, rows_changed=1 / 600)]
    assert told(tmp_path / "b", rows).headline.endswith(
        "all of it in 1 of 600 rows of the embeddings."
    )
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


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The summaries of the demo's pairs, by pair."""
    found = shadow.audit("demo", output=tmp_path_factory.mktemp("demo"))
    return {one.summary.pair: one.summary for one in found}


def test_a_label_that_says_something_leads_the_headline(demo):
    """Of the demo's pairs one is labelled concentrated; mixed is no answer, and not told."""
    headlines = {pair: summary.finding.headline for pair, summary in demo.items()}
    assert headlines["base..narrow"].startswith("Concentrated: changed by 8.0 %, spread over")
    assert headlines["base..broad"].startswith("Changed by 6.4 %, spread over")


# size and place


def test_a_head_of_more_than_its_share_is_named_with_both_shares(tmp_path):
    """46 % of the energy with a thirteenth of the parameters; 12 %, where the layers have 88 %; of
    its share alone nothing is said.
    """
    most = "the head (46 %, with 7.7 % of the parameters)"
    says(tmp_path, "size", with_head(0.46), most)
    says(tmp_path, "size", with_head(0.12), "The head holds 12 %, with 7.7 % of the parameters.")
    says(tmp_path, "size", with_head(1 / 13), without=["head"])


def test_a_pooler_is_not_called_the_head(tmp_path):
    """Its module is head, and it predicts nothing; beside a head that predicts, it is the head."""
    body, (head,) = with_head(0.46)[:-1], with_head(0.46)[-1:]
    pooler = {**head, "tensor": "bert.pooler.dense.weight"}
    share = "the pooling head (46 %, with 7.7 % of the parameters)"
    says(tmp_path, "size", [*body, pooler], share)
    both = [*body, pooler, {**head, "tensor": "cls.predictions.decoder.weight"}]
    says(tmp_path, "size", both, without=["pooling"])


def test_a_change_in_proportion_to_the_parameters_names_no_place(tmp_path):
    """Embeddings of twelve parts of 24 in both; and with 3 of 5 of the energy, they are named."""
    energy, size = 12 * 0.05**2, 12 * 64 * 96

    def with_embeddings(times):
        norm = math.sqrt(times * energy)
        return [*model(), row(None, "embed", parameters=size, frobenius_norm=norm)]

    even = (
        "spread over the modules in proportion to their size (the embeddings: 50 % of the"
        " parameters, 50 % of the change)."
    )
    more = "most of it in the embeddings (60 %, with 50 % of the parameters)."
    says(tmp_path, "size", with_embeddings(1), even, without=["most of it"])
    says(tmp_path, "size", with_embeddings(1.5), more)


def still(layers=4):
    """The tensors of what did not change in such a model, for what did not change of `model`."""
    return [
        at for layer in range(layers) for module in reports.MODULES for at in same(module, layer)
    ]


def frozen(deltas, tensors):
    """Of these tensors, those that no delta is of."""
    changed = {(one["layer"], one["module"]) for one in deltas}
    return tuple(one for one in tensors if (one["layer"], one["module"]) not in changed)


def test_the_layers_that_hold_nearly_all_are_named_instead_of_a_quarter(tmp_path):
    """One matrix, two of a layer, and one layer of eight with 92 % of the energy."""

    def of_twelve_layers(deltas, *texts, without=()):
        unchanged = frozen(deltas, still(12))
        says(tmp_path, "size", deltas, *texts, without=without, extra_tensors=unchanged)

    one, two = [row(5, "mlp.down")], [row(3, "attn.q"), row(3, "mlp.up")]
    of_one = "all of it in one matrix, mlp.down of layer 5."
    of_two = "all of it in attn.q (50 %) and mlp.up (50 %). Only matrices of layer 3"
    with_the_head = "Inside the layers, only matrices of layer 3 changed."
    of_twelve_layers(one, of_one, without=["quarter"])
    of_twelve_layers(two, of_two, without=["proportion", "quarter"])
    of_twelve_layers([*two, row(None, "head")], with_the_head)
    norm = 0.05 * math.sqrt(7 * 0.92 / 0.08)
    most = [{**one, **({"frobenius_norm": norm} if one["layer"] == 6 else {})} for one in model(8)]
    says(tmp_path, "size", most, "Inside the layers, nearly all of it is in layer 6 (92 %).")


def test_a_single_matrix_is_no_median(tmp_path):
    """One of a layer, with two directions that stand out."""
    one = [row(5, "mlp.down", spikes=2, spike_energy=0.3)]
    found = told(tmp_path, one, extra_tensors=frozen(one, still(12)))
    assert (
        "In the only matrix inside the layers, the change has more structure than noise, as along"
        in (sentence(found, "coherent"))
    )
    assert sentence(found, "standing_out").startswith("In the only matrix, 2 of 64 directions")
    assert "median matrix" not in found.text


def test_the_quarter_of_the_depth_that_holds_most_is_named(tmp_path):
    """Of eight layers the last two have four times the norm; none is named where all are alike. Of
    nine, which are no four quarters, the layers alone are named.
    """
    deltas = [row(layer, "mlp.up", frobenius_norm=0.2 if layer > 5 else 0.05) for layer in range(8)]
    last = (
        "Inside the layers, the last quarter (layers 6 to 7) holds most of it, 84 %, with 25 % of"
        " the parameters."
    )
    says(tmp_path, "size", deltas, last)
    nine = [row(layer, "mlp.up", frobenius_norm=0.2 if layer > 6 else 0.05) for layer in range(9)]
    says(tmp_path, "size", nine, "Inside the layers, layers 6 to 8 hold", without=["quarter"])
    says(tmp_path, "size", model(8), "spread evenly over all 8")


def test_shares_of_parameters_and_the_furthest_module_are_those_of_the_weights(demo):
    """Of the demo, by NumPy from its files: sizes of each quarter of the layers and of the head,
    and relative norms.
    """
    told = demo["base..narrow"].as_json()
    folder = Path(__file__).parents[2] / "registry" / "demo"
    base, tuned = (load_file(folder / side / "model.safetensors") for side in ("base", "narrow"))
    matrices = {name: one.double().numpy() for name, one in base.items() if one.ndim == 2}
    layer = {name: int(name.split(".")[2]) for name in matrices if ".layers." in name}
    total = sum(matrices[name].size for name in layer)
    assert len(told["quarters"]) == 4
    for quarter in told["quarters"]:
        own = [
            name
            for name, at in layer.items()
            if quarter["first_layer"] <= at <= quarter["last_layer"]
        ]
        assert quarter["parameter_share"] == pytest.approx(
            sum(matrices[name].size for name in own) / total
        )
    norms = {}
    for name, one in matrices.items():
        far = np.linalg.norm(tuned[name].double().numpy() - one) / np.linalg.norm(one)
        norms.setdefault(name.removesuffix(".weight").split(".")[-1], []).append(far)
    medians = {name: np.median(values) for name, values in norms.items()}
    assert max(medians, key=medians.get) == "lm_head"
    size = next(one for one in told["finding"]["sentences"] if one["code"] == "size")
    (head,) = (one for one in told["modules"] if one["module"] == "head")
    assert head["relative_norm"] == pytest.approx(medians["lm_head"], rel=1e-6)
    share = matrices["lm_head.weight"].size / sum(one.size for one in matrices.values())
    assert size["figures"]["modules.language.head.parameter_share"] == pytest.approx(share)


def test_what_is_frozen_is_named(tmp_path):
    """The embeddings, a layer; and the norm is said to be that of what changed. Of a tower every
    matrix of which is identical, the tower and not its modules and layers.
    """
    some = (*same("embed", None), *same(layer=9))
    unchanged = "Unchanged: the embeddings and layer 9."
    norm = "of the norm of the weights that changed"
    says(tmp_path, "size", model(), unchanged, norm, extra_tensors=some)
    tower = tuple(one for at in range(3) for one in same(layer=at, component="vision"))
    says(tmp_path, "size", model(), "Unchanged: the vision tower.", extra_tensors=tower)
    says(tmp_path, "size", model(), without=["Unchanged"])


def test_the_last_of_seven_unchanged_modules_is_named(tmp_path):
    """A name takes no more room than `1 more modules`; of eight, two are counted."""
    inside = [same(name, 0) for name in ("attn.k", "attn.v", "mlp.gate", "mlp.down")]
    outside = [same(name, None) for name in ("embed", "position", "head")]
    seven = (*chain(*inside, *outside),)
    says(tmp_path, "size", model(), "the head", without=["more modules"], extra_tensors=seven)
    eight = (*seven, *same("patch_embed", None))
    says(tmp_path, "size", model(), "and 2 more modules", extra_tensors=eight)


def test_a_frozen_head_is_named_before_modules_that_are_counted(tmp_path):
    """Nine modules of four layers are frozen beside a layer that changed: the head is not one of
    those that are only counted.
    """
    names = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.down", "shared.up")
    inside = [one for name in names for one in same(name, 0)]
    frozen = (*inside, *same("head", None))
    changed = [row(layer, "mlp.up") for layer in range(4)]
    says(tmp_path, "size", changed, "Unchanged: the head, ", extra_tensors=frozen)


def test_where_all_layers_are_frozen_their_modules_are_not_named_too(tmp_path):
    """Only the head changed: layers 0 to 3, and not mlp.up as well."""
    frozen = tuple(one for layer in range(4) for one in same("mlp.up", layer))
    says(
        tmp_path, "size", [row(None, "head")], "Unchanged: layers 0 to 3.", extra_tensors=frozen
    )  # fmt: skip


def test_of_a_grown_vocabulary_the_common_rows_are_unchanged(tmp_path):
    """The embeddings have more rows, so that they are not unchanged as a whole."""
    text = "Unchanged: the common rows of the embeddings"
    says(tmp_path, "size", model(), text, extra_tensors=grown(591, 551))


def test_experts_of_which_some_are_frozen_are_counted(tmp_path):
    """Three of four tensors of experts in the layer that changed; those of a layer that is frozen
    as a whole do not count.
    """
    experts = tuple(
        {**one, "tensor": f"experts.{layer}.{at}", "expert": at}
        for layer in (0, 9)
        for at in range(3)
        for one in same("experts.up", layer)
    )
    changed = [row(0, "experts.up")]
    text = "Unchanged: 3 of 4 tensors of the experts and layer 9."
    says(tmp_path, "size", changed, text, extra_tensors=experts)
    whole = [row(0, "mlp.up")]
    says(tmp_path, "size", whole, "Unchanged: experts.up", extra_tensors=experts)


def test_matrices_too_small_for_a_concentration_are_not_called_noise(tmp_path):
    """Of 3 x 3 matrices random signs leave as few directions as there are: nothing is told."""
    tiny = model(purity_z=0.5, concentration=None)
    found = told(tmp_path, tiny)
    assert "noise" not in codes(found)
    assert "noise" not in found.headline


def test_a_single_entry_is_not_called_low_rank(tmp_path):
    """One entry of a real file, and three in two matrices: they are counted, and nothing is said
    of rank or adapters.
    """
    base = {
        f"model.layers.{layer}.mlp.{name}_proj.weight": torch.randn(
            shape, generator=torch.Generator().manual_seed(layer)
        )
        for layer in range(2)
        for name, shape in (("up", (96, 64)), ("down", (64, 96)))
    }
    up, down = (f"model.layers.{at}_proj.weight" for at in ("0.mlp.up", "1.mlp.down"))
    for places, text in (
        ([(up, 5, 7)], "Only 1 of 6,144 entries changed, in mlp.up of layer 0."),
        (
            [(up, 5, 7), (up, 6, 7), (down, 1, 1)],
            "Only 3 of 12,288 entries changed, in mlp.up of layer 0 and mlp.down of layer 1.",
        ),
    ):
        tuned = {name: weight.clone() for name, weight in base.items()}
        for name, at, column in places:
            tuned[name][at, column] += 1
        for side, weights in (("base", base), ("tuned", tuned)):
            (tmp_path / side).mkdir(exist_ok=True)
            save_file(weights, tmp_path / side / "model.safetensors")
        shadow.audit(
            tmp_path / "base", tmp_path / "tuned", output=tmp_path / "out", overwrite=True
        )  # fmt: skip
        report = shadow.read(tmp_path / "out")
        found = read_summary(report.folder)[0].finding
        assert sentence(found, "few_entries") == text
        assert not {"low_rank", "coherent", "noise", "concentration"} & set(codes(found))
        assert found.other_explanations == []


def test_identical_models_have_the_tensors_of_one_side(tmp_path):
    """Two tensors on each side are two."""
    one = told(tmp_path / "one", [], extra_tensors=(*same(), *same(layer=3)))
    assert sentence(one, "identical").endswith(
        "The weights are the same: 2 weight tensors are identical."
    )
    towers = (*same(), *same(layer=3), *same(component="vision"))
    two = told(tmp_path / "two", [], extra_tensors=towers)
    assert "2 weight tensors of the language model and 1 of the vision tower are" in two.text


def test_the_norm_before_storage_is_told_where_it_differs(tmp_path):
    """0.2 % as stored and 0.14 % before; once where rounding changed it by under a twentieth."""
    sizes = {"frobenius_norm": 0.002, "relative_norm": 0.002}
    deltas = [{**one, **sizes, "relative_norm_unrounded": 0.001} for one in model(kept=0.5)]
    summary = summary_of(tmp_path, deltas)
    before = text_of(summary.figures["relative_norm_overall_unrounded"], "share")
    stored = text_of(summary.figures["relative_norm_overall"], "share")
    assert before != stored
    text = sentence(summary.finding, "size")
    assert text.startswith(
        f"Before storage, the change was {before} of the base matrices' norm ({stored} as stored)"
    )
    one = told(tmp_path / "not", model(relative_norm_unrounded=None))
    assert sentence(one, "size").startswith("The change is ")


def test_the_norm_before_storage_is_that_of_all_matrices_as_one_vector(tmp_path):
    """sqrt(sum (r W)²) / sqrt(sum W²) by plain Python; from the others where it is unknown of one
    matrix, null where it is unknown of most.
    """
    deltas = [
        {**one, "relative_norm_unrounded": 0.01 * (at + 1)} for at, one in enumerate(model(1))
    ]
    sizes = [1 + (at % 17) / 7 for at in range(len(deltas))]
    expected = math.hypot(*(0.01 * (at + 1) * size for at, size in enumerate(sizes))) / math.hypot(
        *sizes
    )
    figures = summary_of(tmp_path / "a", deltas).figures
    assert figures["relative_norm_overall_unrounded"] == pytest.approx(expected)
    assert figures["unrounded_share"] == 1.0
    deltas[0] |= {"relative_norm_unrounded": None, "frobenius_norm": 0.01}
    figures = summary_of(tmp_path / "b", deltas).figures
    stored = [one["frobenius_norm"] for one in deltas]
    of_known = math.hypot(*(0.01 * (at + 1) * size for at, size in enumerate(sizes) if at))
    known = of_known / math.hypot(*stored[1:]) * math.hypot(*stored) / math.hypot(*sizes)
    assert figures["relative_norm_overall_unrounded"] == pytest.approx(known)
    share = math.hypot(*stored[1:]) ** 2 / math.hypot(*stored) ** 2
    assert figures["unrounded_share"] == pytest.approx(share)
    most = [{**one, "relative_norm_unrounded": None} for one in deltas[:2]]
    unknown = summary_of(tmp_path / "d", [*most, *deltas[2:]]).figures
    assert unknown["relative_norm_overall_unrounded"] is None
    deltas[0]["kept_reason"] = "nothing_rounded"
    deltas[0]["relative_norm"] = 0.01
    assert summary_of(tmp_path / "c", deltas).figures[
        "relative_norm_overall_unrounded"
    ] == pytest.approx(expected)


# structure


def test_modules_are_compared_where_they_differ(tmp_path):
    """Twelve directions and thirty; alike where the ratio is below two."""
    deltas = [
        {**one, "equivalent_directions": 30.0 if one["module"] == "mlp.up" else 12.0}
        for one in model()
    ]
    says(tmp_path, "coherent", deltas, "directions of 64 (12 in attn.q, 30 in mlp.up).")
    alike = "noise, in the median as along 12 equally strong directions of 64."
    says(tmp_path, "coherent", model(), alike)


ABOVE = {"equivalent_directions": None, "excess_purity": 0.01, "excess_purity_unrounded": 0.01}


def test_matrices_less_coherent_than_all_directions_are_not_left_out(tmp_path):
    """1 / X of 100 in 64 possible has no value: of a third of the matrices it is a module's end, of
    two thirds it is the answer.
    """
    third = [{**one, **(ABOVE if one["module"] == "mlp.up" else {})} for one in model()]
    told_of = told(tmp_path / "a", third)
    text = sentence(told_of, "coherent")
    assert "as along 12 equally strong directions" in text
    assert "(12 in attn.q, more than 64 in mlp.up)." in text
    (numbers,) = [one.figures for one in told_of.sentences if one.code == "coherent"]
    assert numbers["coherence.language.mlp.up.short_side"] == 64
    most = [{**one, **(ABOVE if one["module"] != "mlp.up" else {})} for one in model()]
    text = sentence(told(tmp_path / "b", most), "coherent")
    assert (
        "more structure than noise, but less than 64 equally strong directions would have"
        " (12 in mlp.up, more than 64 in attn.q)." in text
    )
    folder = tmp_path / "b" / "base..tuned"
    summary, metadata = read_summary(folder)
    assert "| &#62; 64 |" in card(summary, metadata)
    shown = view.drawn(report_document(summary, metadata, folder).shown(full=True))
    assert "but less than 64 equally strong directions" in " ".join(shown.split())
    steps = run_shadow("lineage", folder, cwd=tmp_path).out
    assert ">all" in next(line for line in steps.splitlines() if "base..tuned" in line)


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        (
            {"alignment_right": 2.1},
            "It follows the base's leading inputs: they hold 2.1 times an even share of it, and"
            " would hold 1.0 with random signs.",
        ),
        (
            {"alignment_left": 0.5},
            "It avoids the base's leading outputs: they hold 0.5 times an even share",
        ),
        (
            {"alignment_left": 1.5, "alignment_right": 2.1},
            "hold 1.5 (outputs) and 2.1 (inputs) times an even share",
        ),
        ({"alignment_right": 1.2}, None),
        ({"alignment_right": 2.1, "alignment_right_null": 2.0}, None),
    ],
)
def test_alignment_is_held_against_that_of_its_own_profile(tmp_path, figures, text):
    """What rows and columns alone give is no alignment, and nothing is said of it."""
    found = sentence(told(tmp_path, model(**figures)), "coherent")
    assert "leading" not in found if text is None else text in found


def test_nothing_is_said_of_alignment_where_it_was_not_measured(tmp_path):
    """As with --no-subspaces."""
    assert "leading" not in told(tmp_path, model(alignment_left=None, alignment_right=None)).text


def test_no_number_of_directions_where_the_update_is_unknown(tmp_path):
    """Structure beyond noise, of which rounding is not explained."""
    unknown = "How concentrated the update was before storage is unknown."
    says(tmp_path, "coherent", model(**UNKNOWN), unknown, without=["directions ("])


def planted(at, spikes, share, seed=0):
    """Checkpoints of one layer whose deltas have a share of their energy in so many directions, the
    rest in noise.
    """
    rng = np.random.default_rng([seed, spikes])
    sides = {"base": {}, "tuned": {}}
    for name, (m, n) in {
        "self_attn.q_proj": (256, 256),
        "mlp.up_proj": (320, 256),
        "mlp.down_proj": (256, 320),
    }.items():
        left, right = (
            np.linalg.qr(rng.standard_normal((size, max(spikes, 1))))[0] for size in (m, n)
        )
        N = rng.standard_normal((m, n)) / math.sqrt(m * n)
        S = left @ right.T / math.sqrt(max(spikes, 1))
        W = rng.standard_normal((m, n))
        for side, D in (("base", 0.0), ("tuned", math.sqrt(share) * S + math.sqrt(1 - share) * N)):
            sides[side][f"model.layers.0.{name}.weight"] = torch.from_numpy(W + D).float()
    for side, tensors in sides.items():
        (at / side).mkdir(parents=True)
        save_file(tensors, at / side / "model.safetensors")
    return {
        name: (sides["tuned"][name].double() - sides["base"][name].double()).numpy()
        for name in sides["base"]
    }


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """The deltas that were planted, and the finding of their audit."""

    @cache
    def planted_and_found(spikes, share):
        at = tmp_path_factory.mktemp("planted")
        deltas = planted(at, spikes, share)
        base, tuned = (str(at / side) for side in ("base", "tuned"))
        return deltas, shadow.audit(base=base, tuned=tuned, output=at / "out").summary.finding

    return planted_and_found


@pytest.mark.parametrize(("spikes", "share"), [(8, 0.5), (1, 0.3), (20, 0.6)])
def test_directions_that_stand_out_are_counted_with_what_they_hold(audited, spikes, share):
    """The finding names as many as were planted, and NumPy's share of the energy above the edge of
    the null.
    """
    deltas, found = audited(spikes, share)
    held = []
    for D in deltas.values():
        sigma = np.linalg.svd(D, compute_uv=False)
        above = sigma > math.sqrt((D**2).sum(axis=1).max()) + math.sqrt((D**2).sum(axis=0).max())
        assert above.sum() == spikes
        held.append((sigma[above] ** 2).sum() / (sigma**2).sum())
    (one,) = [one for one in found.sentences if one.code == "standing_out"]
    assert one.figures["inside_layers.spikes"] == spikes
    assert one.figures["inside_layers.spike_energy"] == pytest.approx(np.median(held), rel=1e-4)
    verb = "stands" if spikes == 1 else "stand"
    assert (
        one.text == f"In the median matrix, {spikes} of 256 directions {verb} out from noise, with"
        f" {text_of(float(np.median(held)), 'share')} of its change."
    )
    assert found.sentences.index(one) == codes(found).index("coherent") + 1


def test_noise_has_no_direction_that_stands_out(audited):
    """Independent entries, and nothing planted."""
    assert "standing_out" not in codes(audited(0, 0.0)[1])


def test_an_adapter_beside_another_change_is_not_excluded(audited):
    """Rank 8 with half of the energy in noise of full rank: no adapter alone, and the 8 directions
    are named.
    """
    merged = answers(audited(8, 0.5)[1])["merged_adapter"]
    assert merged.answer == "no"
    assert merged.reason.startswith("the median update has rank ")
    assert merged.reason.endswith(
        "beside another change, an adapter may have left the 8 directions that stand out"
    )
    assert merged.figures["inside_layers.spikes"] == 8


@pytest.mark.parametrize(
    ("rank", "text"),
    [
        (8, "8 of 64 directions stand out, and a coarser rounding may have left the rest"),
        (0, "the change looks like noise, and a coarser rounding may hide an adapter in it"),
    ],
)
def test_a_rest_as_large_as_8_bits_leave_may_hide_an_adapter(tmp_path, rank, text):
    """A merge onto weights that were dequantised holds their rounding."""
    figures = {"rest_rank": rank, "rest_energy": 0.5, "relative_norm": 0.09}
    merged = answers(told(tmp_path, model(**figures)))["merged_adapter"]
    assert merged.answer == "cannot_be_excluded"
    assert merged.reason.startswith(text)


def test_an_adapter_is_called_one(tmp_path):
    """A ceiling of 8 ranks, whatever its spectrum."""
    figures = {
        **RANK_8,
        "rank_ceiling": 8,
        "kept": None,
        "kept_reason": "nothing_rounded",
        "floor_ratio": None,
    }
    found = told(tmp_path, model(**figures))
    assert sentence(found, "low_rank").startswith(
        "It is an adapter: no matrix changed along more than 8 of 64"
    )
    assert answers(found)["merged_adapter"].answer == "fits"


def grouped(**figures):
    """Four layers with grouped-query attention: q of 96 x 128, v of 64 x 96."""
    return [
        row(layer, module, rows=rows, cols=cols, parameters=rows * cols, **figures)
        for layer in range(4)
        for module, rows, cols in (("attn.q", 96, 128), ("attn.v", 64, 96))
    ]


def test_no_sentence_names_a_dimension_that_no_matrix_has(tmp_path):
    """Sides of 96 and 64, whose median is 80."""
    exact = {"kept": None, "kept_reason": "nothing_rounded", "floor_ratio": None}
    adapter = told(tmp_path / "a", grouped(**RANK_8, **exact, rank_ceiling=8))
    assert "more than 8 of 64 to 96 directions." in sentence(adapter, "low_rank")
    merged = told(tmp_path / "b", grouped(**RANK_8))
    assert "8 of 64 to 96 directions hold all of it" in sentence(merged, "low_rank")
    full = told(tmp_path / "c", grouped(spikes=2, spike_energy=0.26))
    assert "equally strong directions of 64 to 96" in sentence(full, "coherent")
    assert "2 of 64 to 96 directions stand out" in sentence(full, "standing_out")
    for found in (adapter, merged, full):
        reasons = [one.reason for one in found.other_explanations]
        assert not re.search(r"\b80\b", " ".join([found.text, *reasons]))


def test_directions_that_stand_out_are_those_inside_layers_where_there_are_others(tmp_path):
    """A head has a share in the figures of all matrices, and none in the sentence."""
    deltas = model(spikes=2, spike_energy=0.26)
    alike = sentence(told(tmp_path / "a", deltas), "standing_out")
    assert alike.startswith("In the median matrix, 2 of 64")
    headed = sentence(told(tmp_path / "b", [*deltas, row(None, "head")]), "standing_out")
    assert headed.startswith("In the median matrix inside the layers, 2 of 64")


# bounds of the rank


@pytest.mark.parametrize(
    ("rank", "noise"), [(8, 0.0), (8, 0.05), (8, 0.4), (16, 0.3), (64, 0.05), (128, 0.02)]
)
def test_the_rank_of_a_planted_update_is_not_below_its_bound(tmp_path, rank, noise):
    """NumPy's own spectra of an update of known rank in noise of a known share of the energy."""
    rng = np.random.default_rng([rank, int(1000 * noise)])
    m, n = 256, 320
    S = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))
    N = rng.standard_normal((m, n))
    D = math.sqrt(1 - noise) * S / np.linalg.norm(S) + math.sqrt(noise) * N / np.linalg.norm(N)
    sigma = np.linalg.svd(D, compute_uv=False)
    q = np.cumsum(sigma**2) / (sigma**2).sum()
    figures = {f"rank_{t}": int(np.searchsorted(q, t / 100) + 1) for t in (90, 95, 99)}
    figures |= {f"top{k}_energy": float(q[k - 1]) for k in TOPS}
    figures |= {
        "numerical_rank": int((sigma > 3e-4 * sigma[0]).sum()),
        "rows": m,
        "cols": n,
        "kept": 1 - noise,
    }
    inside = summary_of(tmp_path, model(1, **figures)).inside_layers
    assert inside["rank_least"] <= rank <= inside["rank_most"]
    if rank > 16:
        assert inside["rank_least"] > 20


@pytest.mark.parametrize(
    ("over", "kept", "known"),
    [(1.0, 0.98, 4), (1.14, 0.98, 4), (1.2, 0.98, 0), (1.0, 0.6, 0), (1.1, 0.8, 4), (1.14, 0.8, 0)],
)
def test_a_rank_is_known_where_little_of_the_update_can_hide(tmp_path, over, kept, known):
    """Beyond 8 directions there is what rounding leaves, times over: more may be the update's."""
    figures = {**RANK_8, "rest_over_rounding": over, "kept": kept}
    deltas = [row(layer, "mlp.up", **figures) for layer in range(4)]
    inside = summary_of(tmp_path, deltas).inside_layers
    assert inside["rank_known"] == known
    assert inside["rank_most"] == (8 if known else 64)


def test_full_rank_is_not_taken_for_an_adapter_where_little_was_kept(tmp_path):
    """64 directions of half an update, a third of it kept: no bound below the short side."""
    rng = np.random.default_rng(3)
    S = rng.standard_normal((256, 64)) * np.arange(1, 65) ** -0.5 @ rng.standard_normal((64, 256))
    N = rng.standard_normal((256, 256))
    D = math.sqrt(0.16) * S / np.linalg.norm(S) + math.sqrt(0.84) * N / np.linalg.norm(N)
    sigma = np.linalg.svd(D, compute_uv=False)
    q = np.cumsum(sigma**2) / (sigma**2).sum()
    figures = {f"top{k}_energy": float(q[k - 1]) for k in TOPS} | {
        "kept": 0.32,
        "numerical_rank": 256,
    }
    inside = summary_of(tmp_path, model(1, rows=256, cols=256, **figures)).inside_layers
    assert inside["rank_most"] == 256


def test_the_gate_and_the_finding_tell_one_rank(tmp_path):
    """An exact product of rank 8 that was added in F32: 40 of its 64 directions are above the floor
    of the singular values, all but 8 of them rounding.
    """
    exact = {"kept": None, "kept_reason": "nothing_rounded", "numerical_rank": 40}
    found = summary_of(tmp_path, model(**{**RANK_8, **exact, "rank_90": 7}))
    (gate,) = [gate for gate in found.gates if gate.name == "rank"]
    assert (gate.figure, gate.passed) == (8 / 64, False)
    assert gate.reason.startswith("the median delta has rank 8 at most, like a merged adapter")
    text = "in the median matrix, 8 of 64 directions hold all of it but rounding."
    assert text in sentence(found.finding, "low_rank")
    reason = answers(found.finding)["merged_adapter"].reason
    assert reason == "the median update has rank 8 at most, of 64 possible"


def test_a_spectrum_that_falls_fast_is_no_limit_of_the_rank(tmp_path):
    """20 of 64 directions hold all but a thousandth of it, and the rest is not like noise."""
    exact = {"kept": None, "kept_reason": "nothing_rounded", "numerical_rank": 64}
    energies = {f"top{k}_energy": min(0.999, k / 18) for k in TOPS}
    found = summary_of(tmp_path, model(**exact, **energies))
    assert found.inside_layers["rank_most"] == 64
    assert next(gate for gate in found.gates if gate.name == "rank").figure == 1.0


# other explanations

FITS = {
    "merged_adapter": RANK_8,
    "orthogonalised_optimiser": {"purity_z": -20.0, "concentration": -0.05},
    "quantised_copy": {"levels_tuned": LEVELS["int8"], **WIDE},
    "short_run": {"frobenius_norm": 5e-4, "relative_norm_unrounded": 5e-4},
    "weight_decay": {"decay_cosine": -0.9},
    "merge": {"even_share": 0.7, "even_entries": 9_000, "relative_norm": 0.01},
}
EXCLUDED = {
    "merged_adapter": {},
    "orthogonalised_optimiser": {},
    "quantised_copy": {"levels_tuned": LEVELS["bf16"], **WIDE},  # and concentrated
    "short_run": {"frobenius_norm": 0.6, "relative_norm_unrounded": 0.3},
    "weight_decay": {"decay_cosine": 0.01},
}
OPEN = {
    "merged_adapter": UNKNOWN,
    "orthogonalised_optimiser": {"rows": 4096, "cols": 4096},
    "quantised_copy": {"concentration": 0.02},
    "short_run": {},
    "weight_decay": {"decay_cosine": -0.3},
    "merge": {"even_share": 0.55, "even_entries": 9_000, "relative_norm": 0.01},
    "novel_data": {},
}


def answers(found):
    return {one.code: one for one in found.other_explanations}


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


@pytest.mark.parametrize(
    ("decay_cosine", "cosine", "answer"),
    [
        (-0.71, 0.02, "no"),  # another matrix of the same norm
        (-1.0, -1.0, "no"),  # the same with the other sign
        (-1.0, None, "no"),  # nothing but zeros
        (-0.32, 0.0, "no"),  # another matrix of three times the norm
        (-0.71, 0.71, "cannot_be_excluded"),  # half of it another matrix
        (-1.0, 1.0, "fits"),
        (-0.5, 0.96, "fits"),  # a third of the norm, a quarter of it decay
    ],
)
def test_a_matrix_that_was_replaced_is_no_decay(tmp_path, decay_cosine, cosine, answer):
    """It changes against the base as well, but decay leaves base and tuned parallel."""
    # a head that changed little: unrelated models have no explanations
    related = [row(None, "other") for _ in range(40)]
    deltas = [*model(decay_cosine=decay_cosine, cosine=cosine), *related]
    found = answers(told(tmp_path, deltas))["weight_decay"]
    assert found.answer == answer
    if cosine is not None and answer == "no":
        assert f"median cosine of {cosine:.2f}, and decay leaves 1" in found.reason


def test_a_copy_needs_no_other_explanation(must):
    """Every entry of it says what it is."""
    assert must("rounding").finding.other_explanations == []


def test_decay_is_not_excluded_where_it_would_have_been_rounded_away(tmp_path):
    """A cosine of 0 says nothing of an update that storage took."""
    assert answers(told(tmp_path, model(**ROUNDED)))["weight_decay"].answer == "cannot_be_excluded"


@pytest.mark.parametrize(
    ("dtype", "fits"), [("BF16/F8_E4M3", True), ("F8_E4M3", True), ("F32/BF16", False)]
)
def test_a_side_in_8_bits_is_a_copy_through_fewer_bits(tmp_path, dtype, fits):
    """FP8 has no distinct values to count, but says itself what it is."""
    found = told(tmp_path, model(dtype=dtype, levels_tuned=None))
    assert ("few_values" in codes(found)) == fits
    assert (answers(found)["quantised_copy"].answer == "fits") == fits


def test_muon_is_excluded_only_where_the_lab_has_such_trainings(tmp_path):
    """The reason counts the lab's trainings with Muon and their bases, from the table itself."""
    muon = [run for run in runs() if run.optimizer == "muon" and run.short_side == 64]
    reason = answers(told(tmp_path, model()))["orthogonalised_optimiser"].reason
    assert (
        f"in the lab's {len(muon)} trainings with Muon ({len({run.base for run in muon})} bases)"
        in reason
    )


# numbers

PLACES = re.compile(
    r"layers? [\d, toand]+|set to 0|are 0 in|8 or 4 bits|in 8 bits|\(0 is noise, 1 a single"
    r"|have nearly 1\b|\(IA\)3"
)
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?")


def tables(summary):
    """Every figure of a summary by its place, got from the JSON."""
    told = summary.as_json()
    found = {
        f"{key}.{name}": value
        for key in ("figures", "inside_layers", "counts")
        for name, value in told[key].items()
    }
    found |= {f"gates.{gate['name']}.figure": gate["figure"] for gate in told["gates"]}
    for key, names in (
        ("modules", ("component", "module")),
        ("coherence", ("component", "module")),
        ("components", ("component",)),
        ("quarters", ("component", "quarter")),
        ("depth", ("component", "layer")),
    ):
        for one in told[key]:
            place = ".".join(str(one[name]) for name in names)
            found |= {f"{key}.{place}.{name}": value for name, value in one.items()}
    found |= {f"vectors.{name}": value for name, value in told["vectors"].items()}
    for one in told["vocabulary"]:
        place = f"vocabulary.{one['component']}.{one['module']}"
        found |= {f"{place}.{name}": value for name, value in one.items()}
    for one in told["uncompared"]:
        for name in ("base_shape", "tuned_shape"):
            place = f"uncompared.{one['component']}.{one['module']}.{name}"
            found |= {f"{place}.{at}": size for at, size in enumerate(one[name] or [])}
    for at, one in enumerate((told["recognised"]["casts"] or {}).get("rows", [])):
        found[f"recognised.casts.rows.{at}.relative_norm"] = one["relative_norm"]
    named = ("rearranged.negated", "rearranged.reordered", "casts", "scaled_lines")
    for key in ("replaced", "scaled", "zeroed", "few_entries", "masked", *named):
        of_key = told["recognised"]
        for name in key.split("."):
            of_key = of_key.get(name) or {}
        found |= {f"recognised.{key}.{name}": value for name, value in of_key.items()}
    for one in told["unchanged_experts"]:
        place = f"unchanged_experts.{one['component']}"
        found |= {f"{place}.{name}": value for name, value in one.items()}
    for one in told["recognised"]["few_rows"]:
        place = f"recognised.few_rows.{one['component']}.{one['module']}"
        found |= {f"{place}.{name}": value for name, value in one.items()}
    for name, place in (("size", told["published"]["size"]), ("top20", told["published"]["top20"])):
        found |= {f"published.{name}.{key}": value for key, value in (place or {}).items()}
    return found


def written(value):
    kinds = ("share", "count", *(("about", "ratio") if value >= 0 else ()))
    texts = {text_of(value, kind).removesuffix(" %") for kind in kinds}
    texts |= {factor(value), f"{value:.1f}", f"{value:.2f}"}
    return (
        texts
        | {text_of(math.floor(1000 * value) / 1000, "share").removesuffix(" %")}
        | {f"{math.floor(1000 * value) / 10:.1f}"}
        if 0 <= value <= 1
        else texts
    )


def check(summary):
    """Every figure is the table's, and every number of a sentence is a figure's."""
    known = tables(summary)
    parts = [*summary.finding.sentences, *summary.finding.other_explanations]
    for one in parts:
        for place, value in one.figures.items():
            assert known[place] == value, place
    for one in summary.finding.sentences:
        allowed = (
            set().union(*(written(value) for value in one.figures.values()))
            if one.figures
            else set()
        )
        text = PLACES.sub("", one.text).replace("4 to 8 bits", "").replace("(IA)3", "")
        for number in NUMBER.findall(text):
            assert number.lstrip("-").rstrip(",") in allowed | {
                text.lstrip("-") for text in allowed
            }, (number, one)


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
                "kept_history": str(rng.choice(["stored_base", "base_rounded"])),
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


# outputs

HOSTILE = Finding(
    "<b>|`x`\n[red]",
    [
        Sentence(
            "size",
            "<b>x</b> | `a` [l](http://e.x) ![i](j) @team #7421 www.e.x **b** \x1b[31m\n- item $m$",
            {},
        )
    ],
    [Explanation("merge", "<i>|n|</i>", "no", "@you | #3", {})],
    ["not\nshown"],
)


def card(summary, metadata):
    """The Markdown of a report."""
    return markdown(report_document(summary, metadata).shown())


def step(judged):
    """The Markdown of a CI step."""
    return markdown(gate_document([judged]))


def test_no_text_becomes_markdown():
    """Markup, tables, links, images, mentions and references stay text, on one line."""
    text = plain(HOSTILE.sentences[0].text)
    assert "\n" not in text
    active = ("<b>", "|", "`", "[l]", "](", "![", "@team", "#7421", "http://", "www.e", "**", "$")
    for mark in (*active, "\x1b"):
        assert mark not in text
    assert plain("- item").startswith("<!-- -->")
    assert (
        plain("The change is 8.0 % of the base's norm (as stored 9 %).")
        == "The change is 8.0 % of the base's norm (as stored 9 %)."
    )


def test_hostile_findings_are_harmless_in_every_output(must):
    """Of a forged summary: Markdown of a report and of CI show it as text."""
    summary = replace(must("size"), finding=HOSTILE, family="<f>|@x", pair="`p`")
    metadata = {"version": "1", "settings": {**SETTINGS, "chosen": {"modules": ["|@m"]}}}
    judged = Judgement("f", "p", summary=summary)
    for text in (card(summary, metadata), step(judged)):
        active = ("<b>", "<i>", "<f>", "@team", "@you", "@x", "@m", "#7421", "http://", "`a`")
        for mark in (*active, "`p`", "\x1b"):
            assert mark not in text
        assert "x" in text


def test_markdown_names_local_checkpoints_by_their_folders(must):
    """A model card tells nobody's folders; a repository of the Hub keeps its whole name."""
    summary = must("size")
    local = {"repo": "/home/me/secret/tuned-7", "commit": None, "fingerprint": "f"}
    hub = {"repo": "org/base", "commit": "c" * 40, "fingerprint": None}
    metadata = {"version": "1", "settings": SETTINGS}
    text = card(replace(summary, base=hub, tuned=local), metadata)
    assert f"- base: org/base @<!-- --> {'c' * 40}\n- tuned: tuned-7\n" in text
    assert "secret" not in text
    parts = {**local, "repo": "language=org/name vision=/home/me/se cret/tower audio=/x/y"}
    text = card(replace(summary, base=hub, tuned=parts), metadata)
    assert "language=org/name vision=tower audio=y\n" in text


def test_every_output_opens_with_the_same_sentences(tmp_path):
    """Terminal, JSON, Markdown and CI's summary have the sentences of summary.json, in order."""
    folder = reports.write(tmp_path / "base..tuned", with_head(0.46))
    summary, metadata = read_summary(folder)
    texts = [one.text for one in summary.finding.sentences]
    told = summary.as_json()["finding"]["sentences"]
    assert [one["text"] for one in told] == texts
    document = report_document(summary, metadata, folder).shown(full=True)
    table = " ".join(view.drawn(document, 80).split())
    markdowns = (card(summary, metadata), step(Judgement("f", "p", summary=summary)))
    for text in (table, *(one.replace("**", "") for one in markdowns)):
        flat = " ".join(text.split())
        places = [flat.index(" ".join(one.split())) for one in texts]
        assert places == sorted(places)
    assert table.index(texts[0]) < table.index("By module")


def test_the_label_is_quiet_where_its_reference_does_not_apply(tmp_path):
    """At 1,024 wide it is one line of the footer; at 64, where the lab has trainings, it stands
    with its reference.
    """
    for wide, quiet in (({}, False), (WIDE, True)):
        folder = reports.write(tmp_path / str(quiet), model(**wide))
        summary, metadata = read_summary(folder)
        document = report_document(summary, metadata, folder)
        text = view.drawn(document.shown(full=True))
        assert "\nlabel" not in view.drawn(document.shown())
        assert (text.index("\nlabel ") > text.index("\nreport ")) == quiet
        assert ("\nreference " in text) != quiet
        assert "Label" not in step(Judgement("f", "p", summary=summary))


def test_explain_finding_lists_every_code():
    """`shadow explain finding`: sentences and other explanations."""
    text = CliRunner().invoke(app, ["explain", "finding"]).stdout
    assert all(code in text for code in (*CODES, *EXPLANATIONS))
    assert set(ANSWERS) == {"no", "fits", "cannot_be_excluded"}


def test_an_older_report_says_what_its_columns_carry(tmp_path):
    """Only the columns that every report of the schema has: size and concentration, and no figure
    that it lacks.
    """
    folder = reports.write(tmp_path / "base..tuned", model())
    path = folder / "matrices.parquet"
    table = pq.read_table(path)
    pq.write_table(
        table.select([name for name in table.column_names if name in TABLES["matrices"].first]),
        path,
    )
    summary, _ = read_summary(folder)
    check(summary)
    assert codes(summary.finding)[:2] == ["size", "concentration"]
    assert "directions of" not in summary.finding.text
    found = answers(summary.finding)
    open_ones = ("merged_adapter", "weight_decay", "merge")
    assert {found[code].answer for code in open_ones} == {"cannot_be_excluded"}
