"""Scores joined to pairs: which name is which side, what is gained, refused and kept."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scores import harness, write

from shadow.comparing.gains import NO_SCORES, join
from shadow.comparing.kept_scores import kept_bytes, read_kept
from shadow.comparing.scored_sides import (
    BY_NAME,
    EXACT,
    NOT,
    UNCHECKED,
    ScoredSide,
    fit,
    neither,
    sides_of,
    sides_of_pair,
    unmatched,
)
from shadow.comparing.scores import Score, ScoreFiles, read_scores
from shadow.errors import ShadowError
from shadow.targets.families import Pair
from shadow.targets.references import ComponentBase, Reference

COMMIT, OTHER = "abcdef1" + "0" * 33, "1" * 40
HUB = ScoredSide("tuned", "org/tuned", "family:sft", commit=COMMIT, revision="v1.1")
FOLDER = ScoredSide("base", "/models/base", "family:base", is_folder=True)
METADATA = {
    "family": "family", "pair": "base..sft",
    "base": {"repo": "org/base", "commit": OTHER, "fingerprint": "f" * 64},
    "tuned": {"repo": "org/tuned", "commit": COMMIT, "fingerprint": "e" * 64},
}  # fmt: skip
SIDES = sides_of(METADATA)


def csv_of(tmp_path, text, name="scores.csv"):
    header = "model,benchmark,score,group,stderr,metric,unit,higher_is_better"
    count = max(line.count(",") for line in text.split())
    rows = "\n".join(line + "," * (count - line.count(",")) for line in text.split())
    return read_scores(
        [write(tmp_path / name, ",".join(header.split(",")[: count + 1]) + "\n" + rows + "\n")]
    )


def gains(found):
    return {gain.benchmark: gain for gain in found.gains}


# Which side


@pytest.mark.parametrize(
    ("model", "commit", "level"),
    [
        ("family:sft", None, EXACT),
        ("org/tuned", None, BY_NAME),
        ("org/tuned@main", None, BY_NAME),
        ("org/tuned", COMMIT, EXACT),
        ("org/tuned", OTHER, BY_NAME),
        ("org/tuned@abcdef1", None, EXACT),
        ("org/tuned@" + COMMIT, None, EXACT),
        ("org/tuned@v1.1", None, EXACT),
        ("org/tuned@v1.0", None, UNCHECKED),
        ("org/tuned@v1.0", COMMIT, EXACT),
        ("org/tuned@1111111", None, NOT),
        ("org/tuned@abcde", None, UNCHECKED),
        ("org/Tuned", None, NOT),
        ("tuned", None, NOT),
        ("other/tuned", None, NOT),
        ("family:base", None, NOT),
        ("", None, NOT),
    ],
)
def test_names_of_a_model_on_the_hub(model, commit, level):
    """Stage, commit and the revision that was asked for are exact; the repository alone will do;
    another commit not.
    """
    assert fit(model, commit, HUB) == level


@pytest.mark.parametrize(
    ("model", "level"),
    [
        ("/models/base", EXACT),
        ("/models/base/", EXACT),
        ("/models/x/../base", EXACT),
        ("../models/base", EXACT),
        ("base", BY_NAME),
        ("family:base", EXACT),
        ("/models/other", NOT),
        ("models/base", NOT),
        ("~nobody-of-this-name/base", NOT),
        ("a\0b", NOT),
        ("x" * 10_000, NOT),
    ],
)
def test_names_of_a_folder(model, level, monkeypatch, tmp_path):
    """Its path, absolute or from here, is exact, its last name will do; names that are no path do
    no harm.
    """
    monkeypatch.chdir("/usr")
    assert fit(model, None, FOLDER) == level


def test_the_sides_of_a_pair_before_anything_is_looked_up():
    """A subfolder follows the repository; a base per component has no name but its stage."""
    tuned = Reference("org/tuned", False, "v1", "final")
    base = ComponentBase((("language", Reference("org/lm", False)),))
    found = sides_of_pair(Pair("vlm", "base..instruct", base, tuned))
    assert [fit(name, None, found[0]) for name in ("vlm:base", "org/lm", "")] == [EXACT, NOT, NOT]
    assert [
        fit(name, None, found[1]) for name in ("org/tuned/final", "org/tuned/final@v1", "org/tuned")
    ] == [BY_NAME, EXACT, NOT]


def test_a_name_that_says_more_goes_first_and_the_other_is_named(tmp_path):
    """Scores of one model under two names: those of the named commit are taken."""
    given = csv_of(tmp_path, f"org/base,a,0.1\norg/tuned,a,0.5\norg/tuned@{COMMIT[:7]},a,0.3")
    found = join(given, SIDES)
    assert gains(found)["a"].gain == 0.2
    assert any("scores of org/tuned are not taken" in note for note in found.notes)


def test_a_name_of_both_sides_is_refused(tmp_path):
    """Two commits of one repository, two folders of one last name: it must be said which, and the
    hint says how.
    """
    same = [
        ScoredSide(role, "org/x", f"f:{role}", commit=commit)
        for role, commit in (("base", OTHER), ("tuned", COMMIT))
    ]
    with pytest.raises(ShadowError, match="'org/x' may be either side") as caught:
        join(csv_of(tmp_path, "org/x,a,0.1"), tuple(same))
    assert caught.value.hint == f"write org/x@{OTHER[:12]} or org/x@{COMMIT[:12]}"
    told = csv_of(tmp_path, f"org/x@{OTHER[:9]},a,0.1\norg/x@{COMMIT},a,0.4")
    assert gains(join(told, tuple(same)))["a"].gain == 0.3
    folders = [
        ScoredSide(role, f"/{role}/final", f"f:{role}", is_folder=True)
        for role in ("base", "tuned")
    ]
    with pytest.raises(ShadowError, match="'final' may be either side"):
        join(csv_of(tmp_path, "final,a,0.1"), tuple(folders))


def test_another_commit_and_an_unknown_revision_are_named(tmp_path):
    """What the harness noted is compared with the report; a tag cannot be."""
    result = harness("org/tuned", config={"model_args": "pretrained=org/tuned", "model_sha": OTHER})
    write(tmp_path / "out/a.json", result)
    write(tmp_path / "out/b.csv", "model,benchmark,score,metric\norg/base@v7,mmlu,0.5,acc\n")
    found = join(read_scores([tmp_path / "out"]), SIDES)
    assert gains(found)["mmlu"].gain == 0.1
    assert any(
        f"org/tuned are of commit {OTHER[:12]}, the report is of {COMMIT[:12]}" in note
        for note in found.notes
    )
    assert any("whether org/base@v7 is the commit" in note for note in found.notes)


def test_what_does_not_match_is_said_with_the_nearest_name(tmp_path):
    """None of the file is an error, one side a note, other models a line."""
    given = csv_of(
        tmp_path, "\n".join(["org/tunned,a,0.5", *(f"x/model-{i},a,0.5" for i in range(9))])
    )
    assert join(given, SIDES) is None
    error = neither(given, [SIDES])
    assert (
        "neither side is among its models: org/tunned (did you mean 'org/tuned'?), x/model-0"
        in error.message
    )
    assert error.message.endswith("and 5 more")
    assert error.hint == "the column `model` may say org/base, family:base, org/tuned, family:sft"
    given = csv_of(tmp_path, "org/tuned,a,0.5\norg/basse,a,0.4\nx/y,a,0.1")
    found = join(given, SIDES)
    assert [(gain.base, gain.tuned, gain.gain) for gain in found.gains] == [(None, 0.5, None)]
    near = (
        "no score of the base side (org/base or family:base), so no gain; the nearest name is"
        " 'org/basse'"
    )
    assert near in found.notes
    rest = "scores of models that are not audited here: org/basse (did you mean 'org/base'?), x/y"
    assert unmatched(given, [SIDES]) == rest
    # another model, and no slip: org/tuned is there
    given = csv_of(tmp_path, "org/tuned,a,0.5\norg/tuned2,a,0.4")
    assert unmatched(given, [SIDES]) == "scores of models that are not audited here: org/tuned2"
    assert unmatched(csv_of(tmp_path, "org/tuned,a,0.5"), [SIDES]) is None


# Gains


def test_gains_are_differences_in_the_unit_of_the_file(tmp_path):
    """tuned - base, sign turned where less is better, exact in decimals; errors add as independent
    ones do.
    """
    given = csv_of(
        tmp_path,
        """org/base,a,0.585,narrow,0.03\norg/tuned,a,0.901,narrow,0.04
        org/base,b,0.8,held,\norg/tuned,b,0.7,held,0.01
        org/base,p,9.5,,,ppl,,false\norg/tuned,p,8.25,,,ppl,,false""",
    )
    found = gains(join(given, SIDES))
    assert (found["a"].base, found["a"].tuned, found["a"].gain, found["a"].group) == (
        0.585,
        0.901,
        0.316,
        "narrow",
    )
    assert found["a"].gain_stderr == pytest.approx(0.05)
    assert (found["b"].gain, found["b"].gain_stderr) == (-0.1, None)
    assert (found["p"].gain, found["p"].higher_is_better, found["p"].unit) == (1.25, False, "ppl")
    assert (found["a"].base_model, found["a"].base_file) == ("org/base", f"{tmp_path}/scores.csv:2")


DECIMALS = st.integers(-10_000, 10_000).map(lambda value: value / 1000)


@settings(deadline=None)
@given(base=DECIMALS, tuned=DECIMALS, higher=st.booleans())
def test_a_gain_is_the_exact_difference_of_what_was_written(base, tuned, higher):
    """The float nearest to the difference of the decimal numbers, so that equal gains are equal."""
    rows = tuple(
        Score(model, "x", None, score, None, None, "points", higher, "f", 2)
        for model, score in (("org/base", base), ("org/tuned", tuned))
    )
    (gain,) = join(ScoreFiles((), rows), SIDES).gains
    exact = Fraction(repr(tuned)) - Fraction(repr(base))
    assert gain.gain == float(exact if higher else -exact)


@pytest.mark.parametrize(
    ("rows", "unit"),
    [
        ("org/base,a,0.41\norg/tuned,a,45.2", None),  # a share beside a percentage
        ("org/base,a,45.2\norg/tuned,a,1", None),
        ("org/base,a,0.41,,,,share\norg/tuned,a,45.2,,,,", None),
        ("org/base,a,0.41,,,,share\norg/tuned,a,45.2,,,,percent", None),
        ("org/base,a,0.4\norg/tuned,a,0.9", "at most 1"),
        ("org/base,a,40\norg/tuned,a,90", "above 1"),
        ("org/base,a,0.9,,,,percent\norg/tuned,a,2.5,,,,percent", "percent"),
        # the base's other score is no share
        ("org/base,a,0.9\norg/tuned,a,2.5\norg/base,b,30", "above 1"),
        ("org/base,a,0.98,,,bits,,false\norg/tuned,a,1.02,,,bits,,false", "bits"),
        ("org/base,a,-0.2\norg/tuned,a,0.3", "at most 1"),
    ],
)
def test_a_share_beside_a_percentage_is_refused(tmp_path, rows, unit):
    """Unless a unit is stated, or another score of the model shows that it is no share; nothing is
    ever converted.
    """
    given = csv_of(tmp_path, rows)
    if unit is not None:
        assert gains(join(given, SIDES))["a"].unit == unit
        return
    with pytest.raises(ShadowError) as caught:
        join(given, SIDES)
    assert "share" in caught.value.message
    assert (
        "0.41" in caught.value.message
        or "45.2" in caught.value.message
        or "percent" in caught.value.message
    )
    assert caught.value.hint


def test_results_of_the_harness_need_no_unit_but_a_csv_beside_them_does(tmp_path):
    """bleu may be 0.8 and 2.5 on both sides of the harness; 0.6 of the harness beside 61 of a paper
    is a slip.
    """
    bleu = {"wmt": {"bleu,none": 0.8}}
    up = {"wmt": {"bleu": True}}
    base = harness("org/base", bleu, higher_is_better=up)
    tuned = harness("org/tuned", {"wmt": {"bleu,none": 2.5}}, higher_is_better=up)
    files = [
        write(tmp_path / f"{name}.json", data) for name, data in (("base", base), ("tuned", tuned))
    ]
    assert gains(join(read_scores(files), SIDES))["wmt"].gain == 1.7
    write(files[0], harness("org/base"))
    other = write(tmp_path / "paper.csv", "model,benchmark,score,metric\norg/tuned,mmlu,61,acc\n")
    with pytest.raises(ShadowError, match="a share beside a percentage"):
        join(read_scores([files[0], other]), SIDES)
    write(other, "model,benchmark,score,metric,unit\norg/tuned,mmlu,0.65,acc,share\n")
    found = gains(join(read_scores([files[0], other]), SIDES))["mmlu"]
    assert (found.gain, found.unit) == (0.05, "share")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("org/base,a,0.1\norg/base,a,0.2", "'a' of the base side has two scores: 0.1"),
        ("org/base,a,0.1\norg/base@main,a,0.2", "has two scores"),
        # the stage is exact, the repository not
        ("org/base,a,0.1\nfamily:base,a,0.2\norg/tuned,a,0.3", None),
        ("org/base,a,0.1\norg/base,a,0.1", None),
        ("org/base,a,0.1,,0.1\norg/base,a,0.1,,0.2", "has two scores"),
        ("org/base,a,0.1,x\norg/tuned,a,0.1,y", "in the groups x"),
        ("org/base,a,0.1,,,m,,true\norg/tuned,a,0.1,,,m,,false", "with higher_is_better True"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(tmp_path, rows, words):
    """What says the same twice counts once; anything else is named with both places."""
    given = csv_of(tmp_path, rows)
    if words is None:
        assert join(given, SIDES) is not None
        return
    with pytest.raises(ShadowError) as caught:
        join(given, SIDES)
    assert words in caught.value.message
    assert caught.value.message.count("scores.csv:") == 2
    assert caught.value.hint


def test_one_metric_of_both_sides_is_taken(tmp_path):
    """acc_norm before acc, strict before flexible, the first by name of those that nobody prefers;
    the rest is told.
    """
    results = {
        "arc": {"acc,none": 0.5, "acc_norm,none": 0.6},
        "gsm8k": {"exact_match,flexible-extract": 0.9, "exact_match,strict-match": 0.4},
        "sum": {"rouge2,none": 0.2, "rouge1,none": 0.1},
        "only": {"acc,none": 0.5, "f1,none": 0.7},
        "none": {"acc,none": 0.5},
        "open": {"unknown,none": 0.5},
    }
    direction = {task: dict.fromkeys(("rouge1", "rouge2"), True) for task in results}
    tuned = {**results, "only": {"f1,none": 0.8}, "none": {"f1,none": 0.5}}
    files = [
        write(tmp_path / f"{name}.json", harness(f"org/{name}", found, higher_is_better=direction))
        for name, found in (("base", results), ("tuned", tuned))
    ]
    joined = join(read_scores(files), SIDES)
    found = gains(joined)
    assert {name: gain.metric for name, gain in found.items()} == {
        "arc": "acc_norm", "gsm8k": "exact_match,strict-match", "sum": "rouge1", "only": "f1",
        "none": "acc", "open": "unknown",
    }  # fmt: skip
    assert (found["arc"].others, found["only"].others) == (["acc"], [])
    assert (found["only"].gain, found["none"].gain, found["open"].gain) == (0.1, None, None)
    assert "no metric of both sides, so no gain: none" in joined.notes
    assert "higher_is_better is not known, so no gain: open" in joined.notes
    assert any(
        "arc: acc_norm, gsm8k: exact_match,strict-match, sum: rouge1" in note
        for note in joined.notes
    )


def test_subtasks_are_left_out_unless_a_group_is_given_to_them(tmp_path):
    """57 subjects of MMLU are in its score already; they are counted, and there on request."""
    results = {
        "mmlu": {"acc,none": 0.5},
        "mmlu_law": {"acc,none": 0.4},
        "mmlu_art": {"acc,none": 0.6},
    }
    tree = {"mmlu": ["mmlu_law", "mmlu_art"]}
    files = [
        write(tmp_path / f"{name}.json", harness(f"org/{name}", results, group_subtasks=tree))
        for name in ("base", "tuned")
    ]
    joined = join(read_scores(files), SIDES)
    assert list(gains(joined)) == ["mmlu"]
    assert "2 subtasks left out, of groups that have a score of their own: mmlu" in joined.notes
    groups = write(tmp_path / "groups.csv", "benchmark,group\nmmlu_law,narrow\n")
    found = gains(join(read_scores([*files, groups]), SIDES))
    assert {name: gain.group for name, gain in found.items()} == {
        "mmlu": None,
        "mmlu_law": "narrow",
    }


def test_sides_measured_differently_are_named(tmp_path):
    """Other shots, versions, counts of questions or one chat template move scores by themselves."""
    other = {"n-shot": {"mmlu": 0}, "versions": {"mmlu": 2}, "chat_template": "{{x}}",
             "n-samples": {"mmlu": {"original": 100, "effective": 10}}}  # fmt: skip
    files = [
        write(tmp_path / f"{name}.json", harness(f"org/{name}", **told))
        for name, told in (("base", {}), ("tuned", other))
    ]
    notes = join(read_scores(files), SIDES).notes
    assert notes == (
        "chat template of base and tuned differ: mmlu no and yes",
        "n-shot of base and tuned differ: mmlu 5 and 0",
        "questions of base and tuned differ: mmlu 100 and 10 of 100",
        "version of base and tuned differ: mmlu 1.0 and 2",
        "measured on a part of the questions: mmlu 10 of 100",
    )


def test_group_gains_are_means_of_one_unit(tmp_path):
    """Unweighted, with the error of a mean of independent gains; other units are not averaged, and
    it is said.
    """
    given = csv_of(
        tmp_path,
        """org/base,a,0.1,narrow,0.03\norg/tuned,a,0.3,narrow,0.04\norg/base,b,0.2,narrow,0\norg/tuned,b,0.3,narrow,0
        org/base,c,10,mixed,\norg/tuned,c,20,mixed,\norg/base,p,9,mixed,,ppl,,false\norg/tuned,p,8,mixed,,ppl,,false
        org/base,d,0.5,lost,\norg/base,e,0.5,,\norg/tuned,e,0.6,,""",
    )
    groups = {group.group: group for group in join(given, SIDES).groups}
    assert list(groups) == ["narrow", "mixed", "lost", None]
    assert (groups["narrow"].benchmarks, groups["narrow"].gain) == (2, pytest.approx(0.15))
    assert groups["narrow"].gain_stderr == pytest.approx(0.05 / 2)
    assert (groups["mixed"].gain, groups["mixed"].reason) == (
        None,
        "scores in different units (above 1, ppl)",
    )
    assert (groups["lost"].gain, groups["lost"].benchmarks) == (None, 0)
    assert groups[None].gain == 0.1


# Kept


def test_what_is_kept_is_what_was_joined(tmp_path):
    """Through the file and back, nothing is lost; no file is no scores."""
    assert read_kept(tmp_path, METADATA) == NO_SCORES
    given = csv_of(
        tmp_path,
        "org/base,a,0.1,x,0.1,acc,share\norg/tuned,a,0.3,x,0.1,acc,share\norg/tuned,b,3,,,,\norg/x,a,1",
    )
    found = join(given, SIDES)
    (tmp_path / "scores.json").write_bytes(kept_bytes(found, METADATA))
    assert read_kept(tmp_path, METADATA) == found
    assert json.loads((tmp_path / "scores.json").read_text())["scores"] == found.as_json()["scores"]


def with_value(key, value):
    def change(told):
        told["scores"][0][key] = value

    return change


SPOILED = {
    "not JSON": lambda told: "{",
    "a list": lambda told: [],
    "another schema": lambda told: told.update(schema=2),
    "other checkpoints": lambda told: told["base"].update(fingerprint="0" * 64),
    "no scores": lambda told: told.pop("scores"),
    "a score that is text": with_value("base", "0.1"),
    "a gain that is NaN": with_value("gain", math.nan),
    "a gain beyond all": with_value("gain", 10**30),
    "a group that is a list": with_value("group", []),
    "a unit that is null": with_value("unit", None),
    "a direction that is text": with_value("higher_is_better", "yes"),
    "a score that is true": with_value("base", True),
    "metrics that are numbers": with_value("others", [1]),
    "notes that are null": lambda told: told.update(score_notes=None),
    "files without names": lambda told: told.update(score_files=[{}]),
    "depth": lambda told: "[" * 200_000,
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_spoiled_file_is_one_fault(tmp_path, fault):
    """Never a number that was not one, nor scores of other checkpoints."""
    given = csv_of(tmp_path, "org/base,a,0.1,x\norg/tuned,a,0.3,x")
    told = json.loads(kept_bytes(join(given, SIDES), METADATA))
    changed = SPOILED[fault](told)
    content = (
        changed
        if isinstance(changed, str)
        else json.dumps(changed if isinstance(changed, list) else told)
    )
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(ShadowError, match=r"scores\.json") as caught:
        read_kept(tmp_path, METADATA)
    assert caught.value.hint
