"""Verdicts: figures are the rows', what is absent is no pass, and what moved is told."""

from __future__ import annotations

import json
import shutil
from xml.etree import ElementTree as ET

import pytest
import reports
from effort import every
from reports import delta, places

from shadow.checks.registry import pair_claim
from shadow.errors import ShadowError
from shadow.gates import measured
from shadow.gates.measured import read_baselines, read_measured
from shadow.gates.rules import NO_FIGURES, gather, parse_moved, parse_rule
from shadow.gates.verdicts import Judgement, Verdict, judge, judge_report, notes_on
from shadow.outputs.ci import junit
from shadow.run.runtime import Runtime
from shadow.templates import Reason


def verdict(folder, text, baseline=None, **more):
    rule = parse_moved(text, **more) if " " not in text else parse_rule(text, **more)
    (found,) = judge(
        [rule], read_measured(folder), baseline and read_measured(baseline, "the baseline")
    )
    return found


# Figures


def test_figures_are_those_that_show_prints(demo):
    """At every level value and interval are those of summary.json."""
    summary = json.loads((demo["narrow"] / "summary.json").read_text())
    measured = read_measured(demo["narrow"])
    levels = [((), summary["figures"] | {"intervals": summary["intervals"]})]
    levels += [((row["component"],), row) for row in summary["components"]]
    levels += [((row["component"], row["module"]), row) for row in summary["modules"]]
    for at, row in levels:
        for metric in row.keys() - {*NO_FIGURES}:
            assert parse_rule(f"{'.'.join((*at, metric))} > 0").figure.metric == metric
            assert measured.figure(at, metric) == row[metric]
            bounds = measured.rows[at].intervals.get(metric)
            assert (list(bounds) if bounds else None) == row["intervals"].get(metric)


# Thresholds


def test_a_pattern_is_met_by_any_figure_that_it_names(tmp_path):
    """Of three modules one is above: met, and it alone is named; each figure is in the findings."""
    rows = [delta(0.6 if where["module"] == "mlp.up" else 0.2, where) for where in places(4)]
    folder = reports.write(tmp_path / "a", rows)
    met = verdict(folder, "*.*.concentration > 0.5")
    assert {one.figure: one.met for one in met.findings} == {
        "language.attn.q.concentration": False,
        "language.attn.o.concentration": False,
        "language.mlp.up.concentration": True,
    }
    assert verdict(folder, "*.attn.*.concentration > 0.5").outcome == "passed"
    assert len(verdict(folder, "language.*.concentration > 0.7").findings) == 3


IDENTICAL = {
    "component": "vision", "layer": 0, "module": "attn.q", "tensor": "v", "status": "identical",
}  # fmt: skip
COPY = (IDENTICAL, {**IDENTICAL, "side": "tuned"})
ALONE = {
    "component": "projector", "layer": None, "module": "projector.0", "side": "tuned",
    "tensor": "p", "status": "measured", "reason": "only_in_tuned",
}  # fmt: skip
PACKED = {"component": "audio", "layer": 0, "module": "mlp.up", "tensor": "a", "status": "skipped",
          "reason": "quantized"}  # fmt: skip


@pytest.mark.parametrize("text", [
    "language.attn.v.spikes > 3", "vision.attn.q.concentration > 0.5",
    "vision.concentration > 0.5", "vision.*.concentration > 0.5",
    "projector.projector.0.concentration > 0.5", "audio.mlp.*.concentration > 0.5",
    "vision_to_language > 1",
])  # fmt: skip
@pytest.mark.parametrize("allow_missing", every(2, [False, True]))
def test_what_is_not_there_is_no_pass(tmp_path, text, allow_missing):
    """Absent, identical, without a base, not measured or null: an error with the reason, unless it
    is allowed.
    """
    rows = [delta(0.4, where) for where in places(4)]
    folder = reports.write(tmp_path / "a", rows, extra_tensors=(*COPY, ALONE, PACKED))
    if text.startswith("vision_to"):  # the ratio needs that nothing of a tower was compared
        folder = reports.uniform(tmp_path / "b", 0.4)
    found = verdict(folder, text, allow_missing=allow_missing)
    assert (found.outcome, found.code) == (("skipped", 0) if allow_missing else ("missing", 1))
    assert found.findings == ()


def test_nothing_changed_is_no_pass_either(tmp_path):
    """A copy of the base has no concentration; how many matrices changed it does have."""
    folder = reports.write(tmp_path / "a", [], extra_tensors=COPY)
    found = verdict(folder, "concentration > 0.5")
    assert found.outcome == "missing"
    assert verdict(folder, "matrices == 0").outcome == "met"


def test_a_figure_that_is_known_of_what_did_not_change_is_judged(tmp_path):
    """A frozen tower has no share of the energy, a number: `vision.energy_share > 0` passes."""
    rows = [delta(0.4, where, frobenius_norm=1.0) for where in places(4)]
    folder = reports.write(tmp_path / "a", rows, extra_tensors=COPY)
    assert verdict(folder, "vision.energy_share > 0").outcome == "passed"
    assert verdict(folder, "vision.identical < 1").outcome == "passed"


@pytest.mark.parametrize("text", ["concentration > 0.3", "language.attn.v.spikes > 3"])
def test_a_warning_never_changes_the_exit_code(tmp_path, text):
    """Met or without anything to judge, it is told and costs nothing."""
    found = verdict(reports.uniform(tmp_path / "a", 0.4), text, severity="warning")
    assert found.outcome in ("met", "missing")
    assert found.code == 0


def test_the_code_of_a_pair_is_the_first_of_what_its_rules_gave():
    met = Verdict(parse_rule("spikes > 1"), "met", Reason("absent", {"why": ""}))
    missing = Verdict(parse_rule("spikes > 1"), "missing", Reason("absent", {"why": ""}))
    assert Judgement("f", "p", verdicts=(met, missing)).code == 1
    assert Judgement("f", "p", verdicts=(met,), objections=("quantized",)).code == 4
    assert Judgement("f", "p", objections=("quantized",)).code == 3
    assert Judgement("f", "p", fault="no").code == 1
    assert Judgement("f", "p").code == 0


# The baseline


def spread(folder, middle, layers=6, **options):
    """A report whose concentrations lie about a middle, by layers, 0.01 apart."""
    steps = [0.01 * (layer - (layers - 1) / 2) for layer in range(layers) for _ in reports.MODULES]
    return reports.uniform(folder, [middle + step for step in steps], layers=layers, **options)


def test_a_figure_moved_when_it_left_the_interval_of_the_baseline(tmp_path):
    """Just inside both bounds of the baseline's interval passes, just outside is met, whatever the
    new interval is.
    """
    baseline = spread(tmp_path / "base", 0.4)
    low, high = read_measured(baseline).summary.intervals["concentration"]
    assert low < 0.4 < high
    inside, outside = (low + 1e-4, high - 1e-4), (low - 1e-4, high + 1e-4)
    for middle in (*inside, *outside):
        outcome = "passed" if middle in inside else "met"
        found = verdict(reports.uniform(tmp_path / "new", middle), "concentration", baseline)
        assert (found.outcome, middle) == (outcome, middle)
        (finding,) = found.findings
        assert (finding.before, finding.low, finding.high) == (pytest.approx(0.4), low, high)


def test_the_same_report_has_not_moved(demo):
    """Each figure lies inside its own interval, on every level, also where that has no width."""
    for name in ("*", "language.*", "language.*.*"):
        found = verdict(demo["narrow"], name, demo["narrow"])
        assert found.outcome == "passed"
        assert len(found.findings) > 10


def test_a_baseline_that_lacks_the_pair_is_an_error(tmp_path):
    """Nothing to compare with is no pass, unless it is allowed."""
    folder = reports.uniform(tmp_path / "a", 0.4)
    for allow_missing, outcome in ((False, "missing"), (True, "skipped")):
        rules = gather([], None, against=True, allow_missing=allow_missing)
        (found,) = judge(rules, read_measured(folder))
        assert found.outcome == outcome


def test_baselines_are_found_by_family_and_pair(tmp_path):
    """By what the report says, not by the names of folders; a single pair also takes a report of
    any name.
    """
    one, two = (
        reports.uniform(tmp_path / "old" / name, 0.4, pair=name) for name in ("x..a", "x..b")
    )
    moved = two.rename(tmp_path / "old" / "other-name")
    a, b, c, d = (("toy", f"x..{name}") for name in "abcd")
    found = read_baselines(tmp_path / "old", [one, moved], [a, b, c])
    assert {pair: one.source.folder for pair, one in found.items()} == {a: one, b: moved}
    assert list(read_baselines(one, [one], [c])) == [c]
    assert read_baselines(one, [one], [c, d]) == {}
    copy = shutil.copytree(one, tmp_path / "old" / "copy")
    with pytest.raises(ShadowError, match=r"two reports of toy:x\.\.a"):
        read_baselines(tmp_path / "old", [one, copy], [a, b])


def test_other_settings_versions_and_bases_are_said(tmp_path):
    """What makes a baseline another thing than the same audit before, and at which level its
    intervals are.
    """
    settings = {
        "method": {"precision": "exact", "nulls": 0, "seed": 0},
        "chosen": {"layers": [0]},
        "relation": "tuned",
    }
    now = read_measured(reports.uniform(tmp_path / "a" / "x..y", 0.4, started="now"), "this report")

    def baseline(name, pair="x..y", layers=4, **more):
        folder = reports.uniform(tmp_path / name / pair, 0.4, layers=layers, **more)
        return read_measured(folder, "the baseline")

    same = baseline("b")
    base = {"base": reports.identity(7), "weights": 3.0}
    other = baseline("c", version="0.0.9", settings=settings, **base)
    assert notes_on(same, now) == []
    notes = " ".join(notes_on(other, now))
    for word in ("the same base: different bases", "0.0.9", "--level exact", "filtered"):
        assert word in notes
    assert len(notes_on(now, now)) == 1
    rules = gather([], None, against=True, allow_missing=False)
    assert judge_report(rules, now, same).notes == tuple(notes_on(same, now))
    notes = " ".join(judge_report(rules, now, baseline("d", "x..z", 6)).notes)
    assert "the baseline is of another pair: toy:x..z" in notes


def test_sides_that_were_found_for_an_audit_are_not_opened_again(demo, monkeypatch):
    """A check gets both; of a pair of one checkpoint it opens each side, and frees it."""
    found = []
    monkeypatch.setattr(measured, "verify", lambda _, runtime: found.append({*runtime.checkpoints}))
    summary = read_measured(demo["narrow"]).summary
    for tuned in (summary.tuned, summary.base):
        measured.checked(pair_claim("same"), summary.with_values(tuned=tuned), Runtime())
    assert [len(sides) for sides in found] == [2, 0]


# A small part of the change


def of_parts(folder, large=3.0, **figures):
    """Four layers of matrices, and an embedding that holds nine tenths of the energy or another
    share, with other figures.
    """
    known = {"frobenius_norm": 0.5, "spikes": 3}
    rows = [delta(0.2, where, **known) for where in places(4, ("mlp.up",))]
    more = {**known, "frobenius_norm": large, **figures}
    return reports.write(folder, [*rows, delta(0.2, reports.place(None, "embed"), **more)])


NO_FIGURE = {"concentration": None}


@pytest.mark.parametrize(("text", "figures", "outcome", "share"), [
    ("concentration > 0.5", {}, "passed", 1.0),
    ("concentration > 0.5", NO_FIGURE, "missing", 0.1),
    ("concentration > 0.1", NO_FIGURE, "missing", 0.1),  # nor is it violated
    ("language.concentration > 0.5", NO_FIGURE, "missing", 0.1),
    ("language.mlp.up.concentration > 0.5", NO_FIGURE, "passed", 1.0),
    ("language.mlp.up.concentration > 0.1", NO_FIGURE, "met", 1.0),
    ("language.*.concentration > 0.5", NO_FIGURE, "missing", 1.0),  # of mlp.up all, but of few
    ("language.*.concentration > 0.1", NO_FIGURE, "met", 1.0),  # whatever the rest is
    ("depth_entropy < 0.5", {}, "missing", 0.1),
    ("language.effective_layers < 2", {}, "missing", 0.1),
    ("depth_layers > 9", {}, "passed", 1.0),  # no figure of the change
    ("spiked > 2", {"spikes": None}, "missing", 0.1),
    ("participation_share > 2", {"null_participation_ratio": None}, "missing", 0.1),
    ("language.relative_norm > 9", {"relative_norm": None}, "passed", 1.0),  # of all together
    ("concentration > 0.5", {**NO_FIGURE, "large": 1.0}, "passed", 0.5),  # half is enough
    ("concentration > 0.5", {**NO_FIGURE, "large": 1.01}, "missing", 1 / 2.0201),
])  # fmt: skip
def test_a_figure_of_less_than_half_of_the_change_is_not_judged(
    tmp_path, text, figures, outcome, share
):
    """Energies are 4 times 0.25 and 9, unless a norm of the embedding is given."""
    found = verdict(of_parts(tmp_path / "a", **figures), text)
    assert (found.outcome, found.code) == (outcome, {"missing": 5, "met": 4, "passed": 0}[outcome])
    known = [one for one in found.findings if one.value is not None]
    assert known[0].energy_share == pytest.approx(share)
    if outcome == "missing":
        assert found.why.code == "small_part"
        assert found.why.figures["share"] == pytest.approx(0.1 if share == 1.0 else share)
        assert not any(one.met for one in found.findings)
        assert verdict(tmp_path / "a", text, allow_missing=True).outcome == "skipped"
        assert verdict(tmp_path / "a", text, severity="warning").code == 0


def test_a_small_part_is_said_in_json_and_in_junit(tmp_path):
    """JUnit has an error, as of every rule that is not judged; JSON code and shares."""
    rule = parse_rule("concentration > 0.5")
    judged = judge_report([rule], read_measured(of_parts(tmp_path / "a", **NO_FIGURE)))
    (found,) = judged.as_json()["rules"]
    assert (judged.code, found["outcome"], found["code"]) == (5, "missing", "small_part")
    (figure,) = found["figures"]
    assert (figure["figure"], figure["met"]) == ("concentration", False)
    assert figure["energy_share"] == pytest.approx(0.1)
    case = ET.fromstring(junit([judged])).findall(".//testcase")[1]
    assert "hold 10 % of the energy" in case.find("error").text


def test_a_figure_of_a_small_part_has_not_moved_and_did_not_stay(tmp_path):
    """Held against a baseline, on either side; other figures of the same rule are judged."""
    whole = of_parts(tmp_path / "whole")
    part = of_parts(tmp_path / "part", **NO_FIGURE)
    for now, before in ((part, whole), (whole, part)):
        found = verdict(now, "concentration", before)
        assert (found.outcome, found.code, found.why.code) == ("missing", 5, "moved_small_part")
    found = verdict(part, "*", whole)
    assert found.outcome == "passed"
    assert "concentration (of 10 % of the change)" in found.detail
