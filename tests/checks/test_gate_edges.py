"""Rules and verdicts just inside and just outside of every number and comparison that decides."""

from __future__ import annotations

import math

import pytest
import reports
from reports import delta, place, places
from test_gate import of_parts, verdict
from test_states import both, put

from shadow.errors import UsageError
from shadow.gates.measured import figure_in, read_measured
from shadow.gates.rules import gather, parse_moved, parse_rule
from shadow.gates.verdicts import judge

NOTHING = {"concentration": None}


# Rules


@pytest.mark.parametrize(
    ("sign", "met"),
    [("<", False), ("<=", True), (">", False), (">=", True), ("==", True), ("!=", False)],
)
def test_a_figure_that_equals_its_threshold(tmp_path, sign, met):
    """Equality violates where the comparison has it; 0.25 is exact in binary."""
    found = verdict(reports.uniform(tmp_path / "a", 0.25), f"concentration {sign} 0.25")
    assert found.outcome == ("met" if met else "passed")


def test_a_rule_of_200_characters_is_the_longest():
    text = "concentration > 0.5"
    assert parse_rule(text.ljust(200)).threshold == 0.5
    with pytest.raises(UsageError, match="too long for a rule"):
        parse_rule(text.ljust(201))
    assert parse_moved("spiked".ljust(200)).figure.metric == "spiked"
    with pytest.raises(UsageError, match="too long for a figure"):
        parse_moved("spiked".ljust(201))


def test_minus_zero_is_zero():
    assert math.copysign(1.0, parse_rule("concentration > -0").threshold) == 1.0


def test_allow_missing_of_a_command_is_not_that_of_a_policys_thresholds(tmp_path):
    """It is that of the rules it types and of what moved; a policy's rule has its own."""
    file = tmp_path / "policy.yaml"
    file.write_text(
        "a:\n  fail_on: spikes > 1\nb:\n  moved: spiked\n"
        "c:\n  fail_on: spikes > 2\n  allow_missing: true\n"
    )
    for allowed in (False, True):
        rules = gather(["spikes > 3"], file, against=True, allow_missing=allowed)
        missing = {rule.name: rule.allow_missing for rule in rules}
        assert missing == {"spikes > 3": allowed, "a": False, "b": allowed, "c": True}


def test_a_figure_that_the_record_does_not_have_is_a_fault(demo):
    """A name from a rule is looked up among the keys of its row, and nowhere else."""
    figures = read_measured(demo["narrow"]).summary.figures
    assert figure_in(figures, "matrices") == figures.matrices > 0
    for name in ("keys", "with_values", "__class__", "component"):
        with pytest.raises(KeyError):
            figure_in(figures, name)


# A baseline


@pytest.mark.parametrize(("times", "outcome"), [(0.9e-6, "passed"), (1.1e-6, "met")])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("column", ["concentration", "effective_rank_shift"])
def test_a_millionth_is_not_a_move(tmp_path, column, sign, times, outcome):
    """To either side of an interval without width, and of a negative figure too."""
    value = 0.4 if column == "concentration" else -2.0
    rows = [delta(0.4, where, **{column: value}) for where in places(6)]
    other = [delta(0.4, where, **{column: value * (1 + sign * times)}) for where in places(6)]
    baseline = reports.write(tmp_path / "base", rows)
    assert verdict(reports.write(tmp_path / "new", other), column, baseline).outcome == outcome


@pytest.mark.parametrize(("large", "code"), [(1.0, "unmoved"), (1.001, "moved_small_part")])
def test_a_figure_of_half_of_the_change_is_compared(tmp_path, large, code):
    """Energies are 4 times 0.25, and the square of large."""
    folder = of_parts(tmp_path / "a", large=large, **NOTHING)
    assert verdict(folder, "concentration", folder).why.code == code


def estimated(folder, concentration, error):
    more = {"precision": "sketch", "concentration_error": error}
    rows = [delta(concentration, where, **more) for where in places(6)]
    method = {"precision": "sketch", "nulls": 0, "seed": 0}
    settings = {"method": method, "chosen": {}, "relation": "tuned"}
    return reports.write(folder, rows, settings=settings)


@pytest.mark.parametrize(("value", "error", "code"), [
    (0.5, 0.25, "unjudged"), (0.5, 0.24, "moved"), (0.0, 0.25, "unjudged"),
    (0.0, 0.24, "moved"), (0.25, 0.0, "unmoved"),
])  # fmt: skip
def test_an_estimate_whose_error_reaches_the_interval_is_not_judged(tmp_path, value, error, code):
    """The interval of the baseline is 0.25 alone, and numbers are exact in binary."""
    baseline = reports.uniform(tmp_path / "base", 0.25)
    found = verdict(estimated(tmp_path / "new", value, error), "concentration", baseline)
    assert found.why.code == code


@pytest.mark.parametrize(("text", "outcome"), [
    ("concentration > 0.5", "passed"),  # 0.25 and 0.25 more are not above
    ("concentration >= 0.5", "missing"),
    ("concentration > 0.51", "passed"),
    ("concentration >= 0.51", "passed"),
    ("concentration > 0", "missing"),
    ("concentration > -0.01", "met"),
    ("cosine > 0.989", "met"),  # which has no error
])  # fmt: skip
def test_the_error_of_an_estimate_reaches_to_both_sides(tmp_path, text, outcome):
    """0.25 with an error of 0.25: 0 to 0.5."""
    found = verdict(estimated(tmp_path / "a", 0.25, 0.25), text)
    codes = {"missing": "within_error", "passed": "within", "met": "violated"}
    assert (found.outcome, found.why.code) == (outcome, codes[outcome])


def test_the_error_of_a_share_is_in_units_of_the_null(tmp_path):
    """A participation ratio of 32 in 64 with an error of 6.4 is a share of 0.5, 0.1 off."""
    more = {
        "precision": "sketch", "participation_ratio": 32.0, "null_participation_ratio": 64.0,
        "participation_ratio_error": 6.4,
    }  # fmt: skip
    method = {"precision": "sketch", "nulls": 0, "seed": 0}
    settings = {"method": method, "chosen": {}, "relation": "tuned"}
    rows = [delta(0.3, where, **more) for where in places(6)]
    folder = reports.write(tmp_path / "a", rows, settings=settings)
    for limit, outcome in ((0.59, "missing"), (0.61, "passed"), (0.41, "missing"), (0.39, "met")):
        assert verdict(folder, f"participation_share > {limit}").outcome == outcome


def test_what_moved_most_is_named_first(tmp_path):
    """In widths of its interval, and what is gone before all; the figures that stayed come last."""
    steps = [0.01 * layer for layer in range(6)]
    rows = [
        delta(0.3 + steps[where["layer"]], where, relative_norm=0.05 + steps[where["layer"]])
        for where in places(6)
    ]
    other = [
        delta(0.5 + steps[where["layer"]], where, relative_norm=0.5 + steps[where["layer"]])
        for where in places(6)
        if where["module"] != "attn.o"
    ]
    before = reports.write(tmp_path / "a", rows)
    found = verdict(reports.write(tmp_path / "b", other), "language.*.*", before)
    names = [figure.figure for figure in found.findings if figure.met]
    gone = [name for name in names if ".attn.o." in name]
    assert names[: len(gone)] == gone
    assert names.index("language.mlp.up.relative_norm") < names.index(
        "language.mlp.up.concentration"
    )
    assert [figure.met for figure in found.findings] == sorted(
        (figure.met for figure in found.findings), reverse=True
    )
    assert "is null, was " in found.detail


def test_a_figure_without_an_interval_says_why(tmp_path):
    few = reports.uniform(tmp_path / "few", 0.4, layers=2)
    found = verdict(few, "concentration", few)
    assert (found.outcome, found.why.code) == ("missing", "unjudged")
    assert [reason.code for reason in found.why.figures["left"]] == ["without_interval"]
    assert found.detail.startswith("nothing to judge: concentration (")
    assert "no spread" not in found.detail
    rows = [delta(0.4, where, frobenius_norm=1.0) for where in places(6)]
    enough = reports.write(tmp_path / "enough", rows)
    assert "(no spread)" in verdict(enough, "depth_entropy", enough).detail
    assert "(null in the baseline)" in verdict(enough, "vision_to_language", enough).detail


# Places and files


@pytest.mark.parametrize(("row", "state"), [
    ({"status": "identical"}, "unchanged"),
    ({"status": "measured"}, "changed"),
    ({"status": "measured", "reason": "only_in_tuned"}, None),
    ({"status": "skipped", "reason": "nonfinite", "relative_norm": 0.1, "compared": 4}, None),
    ({"status": "skipped", "reason": "not_a_matrix", "relative_norm": 0.1}, None),  # of none
    ({"reason": "not_a_matrix", "relative_norm": 1e-9, "compared": 4}, "changed"),
    ({"reason": "not_a_matrix", "relative_norm": 0.0, "compared": 4}, "unchanged"),
    ({"reason": "not_a_matrix", "cast": "neither", "compared": 4}, "changed"),
    ({"reason": "not_a_matrix", "compared": 4}, "unchanged"),
    ({"status": "skipped", "reason": "not_float", "compared": 4}, "absent"),
    ({"status": "skipped", "reason": "tied"}, "absent"),
    ({"status": "skipped", "reason": "adapter"}, "absent"),
])  # fmt: skip
def test_the_state_of_a_place_is_that_of_its_tensors(tmp_path, row, state):
    """Of the embeddings, beside layers that changed."""
    row = {"status": "skipped", "compared": 0, "shape": [4, 1], **row}
    if row["status"] != "skipped":
        row["compared"] = 4
    rows = [delta(0.3, where) for where in places(2)]
    folder = reports.write(tmp_path / "a", rows, extra_tensors=both(place(None, "embed"), **row))
    outcomes = {
        "changed": ("met", "passed"), "unchanged": ("passed", "met"), None: ("missing", "missing"),
        "absent": ("missing", "missing"),
    }  # fmt: skip
    texts = ("language.embed changed", "language.embed unchanged")
    found = [verdict(folder, text) for text in texts]
    assert tuple(one.outcome for one in found) == outcomes[state]
    if outcomes[state] == ("missing", "missing"):
        code = "absent" if state == "absent" else "not_compared"
        assert [one.why.code for one in found] == [code, code]


def test_a_known_violation_counts_although_the_rest_is_unknown(tmp_path):
    """And what is unknown is no violation."""
    unknown = both(
        {**place(0, "attn.q"), "component": "vision"}, status="skipped", reason="filtered"
    )
    folder = reports.write(
        tmp_path / "a", [delta(0.3, where) for where in places(2)], extra_tensors=unknown
    )
    found = verdict(folder, "* changed")
    assert (found.outcome, found.why.code) == ("met", "states")
    assert verdict(folder, "* unchanged").why.code == "not_compared"
    answer = verdict(folder, "not verify.same")
    assert (answer.outcome, answer.code) == ("met", 4)
    assert answer.detail.endswith("language is changed, vision is unknown")


@pytest.mark.parametrize(("kind", "differs", "outcome"), [
    ("tokenizer", None, "passed"), ("tokenizer", "vocabulary", "met"),
    ("document", None, "met"), ("index", None, "met"), ("weights", None, "met"),
    ("config", None, "passed"), ("generation", "top_k", "met"), ("code", None, "passed"),
    ("chat_template", None, "passed"),
])  # fmt: skip
def test_other_bytes_of_a_file_that_is_looked_into_are_no_change(tmp_path, kind, differs, outcome):
    folder = reports.write(tmp_path / "a", [delta(0.3, where) for where in places(2)])
    put(folder, [("a", "tuned", "changed", kind, differs), ("a", "base", "changed", kind, None)])
    assert verdict(folder, f"files.{kind} changed").outcome == outcome


# Energy


@pytest.mark.parametrize(("at", "outcome"), [(None, "missing"), (2, "passed")])
def test_a_figure_of_depth_rests_on_matrices_in_layers(tmp_path, at, outcome):
    """Nine tenths of the energy are in one matrix, outside the layers or in one of them."""
    rows = [delta(0.2, where, frobenius_norm=0.5) for where in places(4, ("mlp.up",))]
    rows.append(delta(0.2, place(at, "embed" if at is None else "attn.q"), frobenius_norm=3.0))
    folder = reports.write(tmp_path / "a", rows)
    assert verdict(folder, "depth_entropy > 9").outcome == outcome


def test_of_several_violations_on_a_small_part_the_smallest_is_named(tmp_path):
    """attn.q has a tenth of its energy in the matrices of its figure, attn.o a fifth; mlp.up holds
    most of the change.
    """
    rows = [delta(0.2, where, frobenius_norm=90.0) for where in places(4, ("mlp.up",))]
    for module, rest in (("attn.q", 3.0), ("attn.o", 2.0)):
        rows.append(delta(0.9, place(0, module), frobenius_norm=1.0))
        rows.append(delta(0.9, place(1, module), frobenius_norm=rest, concentration=None))
    found = verdict(reports.write(tmp_path / "a", rows), "language.*.concentration > 0.5")
    assert (found.outcome, found.why.code) == ("missing", "small_part")
    assert found.why.figures["share"] == pytest.approx(0.1)
    assert set(found.why.figures["figures"]) == {
        "language.attn.q.concentration",
        "language.attn.o.concentration",
    }


@pytest.mark.parametrize("unit", [1.0, 1e200])
@pytest.mark.parametrize(("rest", "outcome"), [(1.0, "met"), (1.001, "missing")])
def test_a_violation_counts_from_half_of_the_change_of_its_place(tmp_path, rest, outcome, unit):
    rows = [delta(0.2, where, frobenius_norm=90 * unit) for where in places(4, ("mlp.up",))]
    rows.append(delta(0.9, place(0, "attn.q"), frobenius_norm=unit))
    rows.append(delta(0.9, place(1, "attn.q"), frobenius_norm=rest * unit, concentration=None))
    folder = reports.write(tmp_path / "a", rows)
    assert verdict(folder, "language.*.concentration > 0.5").outcome == outcome


# Words


def test_verdicts_carry_codes_and_figures(tmp_path):
    """No sentence is made before it is shown."""
    folder = reports.uniform(tmp_path / "a", 0.4)
    found = verdict(folder, "concentration > 0.3")
    (figure,) = found.why.figures["figures"]
    assert (figure.code, figure.figures) == (
        "figure_is", {"figure": "concentration", "value": "0.4"},
    )  # fmt: skip
    assert found.why.figures["condition"] == "> 0.3"
    assert found.detail == "concentration is 0.4 (> 0.3)"
    absent = verdict(folder, "vision.spikes > 1").why
    assert (absent.code, absent.figures["why"].code) == ("absent", "no_matrix")
    assert absent.figures["why"].figures == {"what": "vision", "rounded": None}
    moved = verdict(reports.uniform(tmp_path / "b", 0.5), "concentration", folder).why
    assert moved.figures["moved"][0].code == "figure_was"
    (answer,) = judge([parse_rule("not verify.same")], read_measured(folder))
    assert answer.why.figures["why"].code == "states"
