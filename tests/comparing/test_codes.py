"""Codes of comparisons: unique, explained, in JSON beside the words that are made of them."""

import json
import re

import pytest
from reports import delta, identity, places, uniform, write

from shadow.comparing.codes import KINDS, TEMPLATES, ComparisonVerdict, ReportRelation, say
from shadow.comparing.comparison import compare
from shadow.comparing.lineage import lineage
from shadow.gates.verdicts import WORDS_OF_VERDICTS
from shadow.reasons import REASONS
from shadow.reports.columns import read_words
from shadow.summary.changes import CHANGES
from shadow.telling import dictionary
from shadow.telling.reading import AuditReport, read_step
from shadow.templates import Reason

CODES = [member.code for members in KINDS.values() for member in members]


def test_codes_are_snake_case_and_unique():
    """Among themselves, and beside those of sentences, checks, gates, rules and skipped tensors."""
    others = {*read_words("words.yaml")["sentences"], *REASONS, *WORDS_OF_VERDICTS}
    others |= {change.code for change in CHANGES}
    for kind in dictionary.KINDS:
        for check in kind.values():
            others |= {check.code, *check.words}
    assert len(set(CODES)) == len(CODES)
    assert not others & set(CODES)
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", code) for code in CODES)


def test_words_that_json_always_had_stay():
    """Scripts compare with them; the codes are beside."""
    assert [*ReportRelation] == [
        "the same pair", "one base", "consecutive stages", "different bases",
    ]  # fmt: skip
    assert [*ComparisonVerdict] == [
        "more concentrated", "less concentrated", "different, below the margin",
        "not distinguished", "mixed evidence", "not comparable",
    ]  # fmt: skip


@pytest.mark.parametrize("code", ["ranks_differ", "one_base", "mixed_evidence", "circular"])
def test_codes_are_explained(inside, code):
    done = inside("explain", code).assert_done()
    assert done.startswith(code)
    assert "{" not in done


def test_verdicts_and_relations_are_explained_in_words(inside):
    for words in ("mixed evidence", "one base"):
        assert inside("explain", *words.split()).assert_done().startswith(words)


def recorded(*folders, **options):
    """What is printed as JSON."""
    return json.loads(json.dumps(compare(folders, **options).as_json()))


def said(reason):
    return say(Reason(reason["code"], reason["figures"]))


def test_json_has_codes_and_figures_beside_words(tmp_path):
    """The words can be made of them again."""
    other = uniform(tmp_path / "other", 0.3, base=identity(9), version="0.2.5")
    rows = [delta(0.5, where, rank_ceiling=4, floor_ratio=None) for where in places(6)]
    adapter = write(tmp_path / "adapter", rows)
    (found,) = recorded(adapter, other, allow_different_base=True)["contrasts"]
    assert (found["relation"], found["relation_code"]) == ("different bases", "different_bases")
    assert (found["verdict"], found["verdict_code"]) == ("not comparable", "no_comparison")
    (void,) = found["voids"]
    assert (void["code"], void["figures"]["matrices"]) == ("ranks_differ", 18)
    assert found["not_comparable"] == [said(void)]
    assert found["sentence"] == f"not comparable: {said(void)}"
    assert [doubt["code"] for doubt in found["doubts"]] == ["different_bases", "versions_differ"]
    assert found["warnings"] == [said(doubt) for doubt in found["doubts"]]
    assert {figure["verdict_code"] for figure in found["figures"]} == {"no_comparison", None}
    plain = uniform(tmp_path / "plain", 0.3)
    (found,) = recorded(plain, uniform(tmp_path / "near", 0.32))["contrasts"]
    assert found["headline"]["figures"]["size"] == pytest.approx(0.02)
    assert found["sentence"] == said(found["headline"])


def test_a_lineage_has_codes_and_figures_beside_notes(tmp_path):
    folder = write(tmp_path / "a..a", [delta(0.3, where) for where in places(4)], tuned=identity())
    found = json.loads(json.dumps(lineage([read_step(AuditReport(folder))]).as_json()))
    (remark,) = found["remarks"]
    assert remark == {"code": "same_files", "figures": {"folder": f"{folder}"}}
    assert found["notes"] == [said(remark)]


def test_every_template_is_filled_somewhere():
    """No code is without words, and none is named `said`, which is of other texts."""
    assert set(TEMPLATES) == set(CODES)
    assert all(TEMPLATES.values())
    assert "said" not in CODES
