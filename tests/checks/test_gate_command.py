"""`shadow gate`, and rules on an audit: exit codes, lists, baselines, and what is told."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import reports
from command import run_shadow
from effort import every
from reports import delta, places

from shadow.gates.measured import read_measured
from shadow.lists.index import read_index, write_index
from shadow.reports.folders import finished_metadata


@pytest.fixture(scope="module")
def as_list(tmp_path_factory):
    """The demo, audited as a list of one shard."""
    folder = tmp_path_factory.mktemp("list")
    run_shadow("audit", "demo", "--shard", "1/1", "-o", "list", cwd=folder).assert_done()
    return folder / "list"


# The commands


def judged(done):
    return {one["pair"]: one for one in json.loads(done.out)}


def test_audit_and_gate_say_the_same(shadow):
    """The same rules on an audit and on its finished report: exit code, verdicts, figures; stdout
    is pure JSON.
    """
    first, second = "language.mlp.up.concentration > 0.3", "language.*.spikes>100"
    rules = ("--fail-on", first, "--fail-on", second)
    audited = shadow("audit", "demo", "-o", "out", *rules, "--format", "json")
    gated = shadow("gate", "out", *rules, "--format", "json")
    assert audited.code == gated.code == 4
    recorded = {summary["pair"]: summary["judged"] for summary in json.loads(audited.out)}
    assert recorded == judged(gated)
    codes = {pair: one["code"] for pair, one in recorded.items()}
    assert codes == {"base..narrow": 4, "base..broad": 0}
    assert [rule["outcome"] for rule in recorded["base..narrow"]["rules"]] == ["met", "passed"]
    assert f"demo:base..narrow: {first}: language.mlp.up.con" in audited.err
    assert json.loads(shadow("show", "out", "--format", "json").out) == [
        {key: value for key, value in summary.items() if key != "judged"}
        for summary in json.loads(audited.out)
    ]


@pytest.mark.parametrize("name", ["matrices", "tensors"])
def test_a_damaged_report_does_not_pass(shadow, tmp_path, name):
    """Its other files are there: it was to be judged, and no baseline may lack it in silence."""
    why = "is missing from this report (it may not have been copied completely)"
    words = f"{name}.parquet {why}"
    for pair in ("base..one", "base..two"):
        reports.uniform(tmp_path / "g" / "toy" / pair, 0.4)
    shutil.copytree(tmp_path / "g", tmp_path / "whole")
    (tmp_path / "g" / "toy" / "base..two" / f"{name}.parquet").unlink()
    done = shadow("gate", "g", "--fail-on", "concentration > 0.9")
    assert done.code == 1
    assert done.err.count(words) == 1
    assert "hint:  run the audit again" in done.err
    held = shadow("gate", "whole", "--against", "g")
    assert held.code == 1
    assert words in held.err
    for command in (("report", "g", "-o", "x.html"), ("show", "g")):  # go on with the others
        done = shadow(*command)
        assert (done.code, words in done.err) == (1, True)
    for command in (("compare", "g"), ("export", "g", "--to", "csv")):
        assert words in shadow(*command).assert_refused()


def test_a_mistyped_baseline_is_a_warning_at_the_end(shadow, demo, tmp_path):
    """Exit 0 is what --allow-missing asks for; the last line, and on GitHub an annotation, say that
    nothing was compared. Without it the nearest folder is named.
    """
    shutil.copytree(demo["narrow"], tmp_path / "reports" / "demo" / "base..narrow")
    shutil.copytree(demo["narrow"], tmp_path / "accepted" / "demo" / "base..narrow")

    def held(against, *more, **options):
        return shadow("gate", "reports", "--against", against, *more, **options)

    done = held("acepted", "--allow-missing")
    assert done.code == 0
    assert "did you mean 'accepted'?" in done.err
    assert done.err.splitlines()[-1] == "WARNING: no baseline: nothing was compared with acepted"
    done = held("acepted", "--allow-missing", env={"GITHUB_ACTIONS": "true"})
    assert "::warning title=shadow::no baseline: nothing was compared with acepted\n" in done.err
    done = held("acepted")
    assert "no such folder: acepted" in done.assert_refused()
    assert "did you mean 'accepted'?" in done.err
    assert "WARNING" not in held("accepted", "--allow-missing").err
    # as of a baseline of other pairs: its folder is there, and nothing is compared
    (tmp_path / "empty").mkdir()
    assert "WARNING: no baseline" in held("empty", "--allow-missing").err


def test_a_failed_gate_is_said_beside_the_rules(shadow, tmp_path):
    """The figures of a copy that was rounded are judged, and the note says that they are not those
    of a training.
    """
    rows = [delta(0.4, where, floor_ratio=0.9) for where in places(6)]
    folder, rule = reports.write(tmp_path / "a", rows), ("--fail-on", "concentration > 0.5")
    now = read_measured(folder)
    assert [gate.name for gate in now.summary.failed_gates] == ["rounding"]
    done = shadow("gate", folder, *rule, "--format", "json")
    assert done.code == 0
    (one,) = json.loads(done.out)
    (failed,) = now.summary.failed_gates
    assert one["notes"] == [f"gate {failed.name} failed: {failed.reason}"]
    lines = shadow("gate", folder, *rule).out.splitlines()
    assert lines[0].split()[:2] == ["toy", "a"]
    assert lines[-1].startswith(f"note: gate {failed.name} failed: ")


MET, ABSENT = ("--fail-on", "concentration > 0.3"), ("--fail-on", "vision.spikes > 1")


@pytest.mark.parametrize(("arguments", "code"), [
    (MET, 4), (("--fail-on", "concentration > 0.9"), 0), ((*MET, *ABSENT), 1),
    ((*MET, *ABSENT, "--allow-missing"), 4), ((*ABSENT, "--allow-missing"), 0),
    (("--fail-on", "concentratoin > 0.3"), 2), (("--policy", "absent.yaml"), 1),
    (("--against", "absent"), 1), (("--against", "absent", "--allow-missing"), 0), ((), 2),
])  # fmt: skip
def test_exit_codes_of_gate(shadow, demo, arguments, code):
    """1 could not or nothing to judge, 2 wrong usage, 4 met, 0 else."""
    done = shadow("gate", demo["narrow"], *arguments)
    assert "Traceback" not in done.err
    assert done.code == code, done.err
    if code == 2 or ("absent" in str(arguments) and code):
        done.assert_refused(code)


def test_exit_codes_of_audit(shadow):
    """A wrong rule stops before anything is measured; a pair that cannot be audited outranks a rule
    that was met.
    """
    done = shadow("audit", "demo", "-o", "out", "--fail-on", "language.mlp.upp.spikes > 1")
    assert "no module 'mlp.upp'" in done.assert_refused(2)
    gone = ("--base", "./none", "--tuned", "./none")
    done = shadow("audit", "demo:base..narrow", *gone, "-o", "out", *MET)
    assert done.code == 1
    assert "no such folder" in done.err
    assert "concentration > 0.3: concentration is 0.33 (> 0.3)" in done.err
    assert shadow("audit", "demo:base..narrow", "-o", "out", *MET).code == 4


@pytest.mark.parametrize("state", every(2, ["failed", "pending"]))
def test_what_a_list_lacks_is_no_pass(shadow, as_list, tmp_path, state):
    """A pair without a report is a fault; what is there is judged."""
    shutil.copytree(as_list, tmp_path / "list")
    rules = ("--fail-on", "concentration > 0.9", "--format", "json")
    assert shadow("gate", "list", *rules).code == 0
    index = read_index(tmp_path / "list")
    row = index.rows[1].emptied(state, error="no such folder: x" if state == "failed" else None)
    write_index(tmp_path / "list", replace(index, rows=(index.rows[0], row)))
    assert shadow("gate", "list", *rules).code == 0, "the report is there, whatever the index says"
    shutil.rmtree(tmp_path / "list" / row.folder)
    done = shadow("gate", "list", *rules)
    assert done.code == 1
    why = "no such folder: x" if state == "failed" else "pending by index.json"
    assert f"demo:base..broad has no report of its list: {why}" in done.err
    judged = {one["pair"]: (one["code"], len(one["rules"])) for one in json.loads(done.out)}
    assert judged == {"base..narrow": (0, 1), "base..broad": (1, 0)}
    shutil.rmtree(tmp_path / "list" / "demo")
    done = shadow("gate", "list", *rules)
    assert {one["pair"] for one in json.loads(done.out)} == judged.keys()
    assert "demo:base..narrow has no report of its list: done by index.json" in done.err


def test_a_pair_of_the_list_that_is_missing_is_no_pass(shadow, demo, tmp_path):
    """`gate FOLDER --list FILE` is 1, with a line for each pair without a report; rules are judged
    beside. Claims of the list hold, or do not.
    """
    (tmp_path / "l.yaml").write_text("- demo:base..narrow\n- {target: demo:base..broad}\n")
    (tmp_path / "empty").mkdir()
    done = shadow("gate", "empty", "--list", "l.yaml", "--junit", "j.xml")
    assert done.code == 1
    names = [f"demo:base..{name}" for name in ("narrow", "broad")]
    assert all(done.err.count(f"{name} has no report of its list") == 1 for name in names)
    assert (tmp_path / "j.xml").read_text().count("<failure") == 2
    shutil.copytree(demo["narrow"], tmp_path / "out" / "demo" / "base..narrow")
    done = shadow("gate", "out", "--list", "l.yaml", "--fail-on", "concentration > 0.3")
    assert done.code == 1
    assert names[1] in done.err
    assert "concentration is 0.33" in done.err
    shutil.copytree(demo["broad"], tmp_path / "out" / "demo" / "base..broad")
    shadow("gate", "out", "--list", "l.yaml").assert_done()
    assert shadow("gate", "out", "--list", "l.yaml", "--fail-on", "concentration > 0.3").code == 4
    for wrong in ("none.yaml", "wrong.txt"):
        (tmp_path / "wrong.txt").write_text("dem\n")
        shadow("gate", "out", "--list", wrong).assert_refused(2)


def test_an_audit_into_the_baselines_own_folder_is_held_against_what_was_there(
    shadow, demo, tmp_path
):
    """`--against reports -o reports --overwrite`: the earlier report is read before the new one
    takes its place.
    """
    folder = tmp_path / "reports" / "demo" / "base..narrow"
    shutil.copytree(demo["broad"], folder)
    # the broad pair's figures under the narrow pair's name
    repo = finished_metadata(demo["narrow"])["tuned"]["repo"]
    tuned = {"repo": repo, "commit": None, "fingerprint": "0" * 64}
    reports.rewrite(folder, pair="base..narrow", tuned=tuned)
    arguments = ("audit", "demo:base..narrow", "-o", "reports", "--overwrite")
    arguments += ("--against", "reports")
    done = shadow(*arguments)
    assert done.code == 4, done.err
    assert "relative_norm_overall is 0.08, was 0.0645" in done.err
    again = shadow(*arguments)
    assert again.code == 0
    assert "the baseline is this report itself" in again.out


def test_a_report_that_its_list_left_as_it_was_is_no_report_of_the_list(shadow, as_list, tmp_path):
    """It is there, of other settings than were asked for."""
    shutil.copytree(as_list, tmp_path / "list")
    index = read_index(tmp_path / "list")
    row = index.rows[1].emptied("kept", error="its level is norms, not full")
    write_index(tmp_path / "list", replace(index, rows=(index.rows[0], row)))
    done = shadow("gate", "list", "--fail-on", "concentration > 0.9")
    assert done.code == 1
    assert "demo:base..broad has no report of its list: its level is norms, not full" in done.err
    assert "--overwrite" in done.err


def test_a_folder_that_is_no_report_is_a_fault_and_one_of_a_list_is_not(shadow, as_list, tmp_path):
    """Of a list of which no pair is done, the pairs are faults; the folder itself is none."""
    (tmp_path / "empty").mkdir()
    done = shadow("gate", "empty", "--fail-on", "concentration > 0.9", "--format", "json")
    assert (done.code, done.err.count("no finished report in it")) == (1, 1)
    assert len(json.loads(done.out)) == 1
    shutil.copytree(as_list, tmp_path / "list")
    shutil.rmtree(tmp_path / "list" / "demo")
    done = shadow("gate", "list", "--fail-on", "concentration > 0.9", "--format", "json")
    assert (done.code, done.err.count("no finished report in it")) == (1, 0)
    assert [one["fault"] is None for one in json.loads(done.out)] == [False, False]


def test_a_report_is_no_baseline_of_itself(shadow, demo, tmp_path):
    """Whatever path leads there."""
    shutil.copytree(demo["narrow"], tmp_path / "a")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for against in ("a", "b"):
        done = shadow("gate", "a", "--against", against, "--format", "json")
        assert done.code == 1
        assert "a is its own baseline" in done.err
        assert ["own baseline" in str(verdict["fault"]) for verdict in json.loads(done.out)] == [1]
    shutil.copytree(demo["narrow"], tmp_path / "c")
    assert shadow("gate", "a", "--against", "c").code == 0
