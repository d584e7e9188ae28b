"""Findings of known histories say what was done."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import findings as benchmark

CASES = {case.name: case for case in benchmark.cases()}
STRUCTURED = ["size", "coherent", "standing_out"]
# of each case: codes that must stand, explanations that fit, words of the text
SAYS = {
    "Fine-tune": (
        STRUCTURED,
        [],
        ["1.0 % of the base matrices' norm", "follows the base's leading inputs"],
    ),
    "Copy through int8": (["size", "noise", "few_values"], [], []),
    "Copy in BF16": (["rounding", "size"], [], []),
    "Merged adapter": (["size", "low_rank"], ["merged_adapter"], ["8 of 256 directions"]),
    "Merge of two models": (STRUCTURED, [], []),
    "Flat update": (["size", "flat"], ["orthogonalised_optimiser"], []),
    "Frozen layers": (STRUCTURED, [], ["Unchanged: the embeddings, the head and layers 0 and 1."]),
    "Unrelated models": (["unrelated", "size"], [], ["141 % of the base matrices' norm"]),
    "Another depth": (
        ["part_shared", "left_out", *STRUCTURED],
        [],
        ["77 % of the larger model's parameters", "Not compared: layer 3 (only in the base)"],
    ),
    "A small stage": (
        ["size", "coherent", "kept"],
        [],
        ["Before storage, the change was 0.050 to 0.070 %"],
    ),
    "A stage that is rounded away": (["size", "rounded_away"], [], []),
    "Vision and language, frozen tower": (STRUCTURED, [], ["projector (97 %", "the vision tower."]),
    "Experts": (STRUCTURED, [], ["experts.gate"]),
    "No change": (["identical"], [], []),
}


def holds(name, summary):
    found, (codes, fits, texts) = summary.finding, SAYS[name]
    assert [one.code for one in found.sentences if one.code != "published"] == codes
    assert [one.code for one in found.other_explanations if one.answer == "fits"] == fits
    for text in texts:
        assert text in found.text


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_finding_says_what_was_done(tmp_path, name):
    """Sentences, and what fits, of a pair whose history is known."""
    holds(name, benchmark.audited(CASES[name], tmp_path))


def test_the_page_has_every_case_and_its_command():
    """A case that is added or renamed has to be written anew; a dozen and more are there."""
    page = benchmark.DOCUMENT.read_text(encoding="utf-8")
    assert benchmark.COMMAND in page
    assert (
        [line[3:] for line in page.splitlines() if line.startswith("## ")]
        == list(CASES)
        == list(SAYS)
    )


def test_one_pair_from_checkpoints_to_words(tmp_path, monkeypatch):
    """The adapter of rank 8 at half the width and depth, in the fast suite."""
    for name, value in (("WIDTH", 128), ("MLP", 192), ("LAYERS", 2), ("TOKENS", 64)):
        monkeypatch.setattr(benchmark, name, value)
    base = benchmark.stored(benchmark.drawn(benchmark.decoder(2)))
    base = {name: W for name, W in base.items() if W.shape[1] <= 512}
    tuned = benchmark.with_adapter(base)
    case = benchmark.Case("toy", "", lambda: (base, tuned))
    found = benchmark.audited(case, tmp_path).finding
    assert [one.code for one in found.sentences][:2] == ["size", "low_rank"]
    assert {one.code: one.answer for one in found.other_explanations}["merged_adapter"] == "fits"
