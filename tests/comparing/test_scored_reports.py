"""Scores through the commands: the demo's own accuracies beside its footprints, kept and shown, and
sets of reports.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from hub import Hub
from readme import PROBES, demo_scores
from scores import gain, harness, scored_reports, write
from view import drawn

from shadow.comparing.comparison import MAX_REPORTS, compare
from shadow.comparing.gains import Scored, join
from shadow.comparing.scored_sides import sides_of
from shadow.comparing.scores import read_scores
from shadow.errors import ShadowError
from shadow.files import PARTIAL
from shadow.telling.comparison import comparison_document
from shadow.telling.reading import read_summary
from shadow.telling.report import report_document
from shadow.telling.scores import scores_line

DEMO = Path(__file__).parents[2] / "registry" / "demo"
SCORE_KEYS = ("scores", "score_groups", "score_files", "score_notes")


@pytest.fixture
def reports(demo_reports, tmp_path):
    """A copy of the demo's reports, in the folder where the commands run."""
    shutil.copytree(demo_reports, tmp_path / "reports" / "demo")
    write(tmp_path / "scores.csv", demo_scores())
    return tmp_path / "reports" / "demo"


def told(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def without_scores(summary: dict) -> dict:
    """The summary as it is where nobody gave scores."""
    plain = {key: value for key, value in summary.items() if key not in SCORE_KEYS}
    plain["claims"] = {**plain["claims"], "not_shown": plain["claims"]["not_shown"][:2]}
    return plain


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def test_the_demos_narrow_model_gained_what_it_was_trained_on(shadow, demo_reports, tmp_path):
    """Its accuracies of training.json: +0.105 on its own probe, less on the others; the line says
    so beside 0.33. Every row of every table, and every key of the summary but those of scores, is
    as it is without them.
    """
    write(tmp_path / "scores.csv", demo_scores())
    text = shadow(
        "audit", "demo:base..narrow", "--scores", "scores.csv", env={"COLUMNS": "120"}
    ).assert_done()
    line = (
        "narrow gain +0.105, seen gain -0.045, held-out gain -0.115 over 2 benchmarks,"
        " concentration 0.33"
    )
    assert line in re.sub(r"\s+", " ", text)
    full = shadow("show", "reports", "--full", env={"COLUMNS": "120"}).assert_done()
    assert "others measured them" in re.sub(r"\s+", " ", full)
    plain, scored = demo_reports / "base..narrow", tmp_path / "reports/demo/base..narrow"
    for name in ("matrices", "tensors", "residual", "files", "spectra"):
        one, other = (pq.read_table(folder / f"{name}.parquet") for folder in (plain, scored))
        assert one.equals(other)
    assert without_scores(told(scored)) == without_scores(told(plain))
    assert [told(plain)[key] for key in SCORE_KEYS] == [[], [], [], []]
    assert not (plain / "scores.json").exists()
    summary = told(scored)
    assert all(summary[key] for key in SCORE_KEYS[:3])
    models = json.loads((DEMO / "training.json").read_text())["models"]
    for row in summary["scores"]:
        own = [models[side]["accuracies"][row["benchmark"]] for side in ("base", "narrow")]
        assert [row["base"], row["tuned"]] == own
        assert row["gain"] == pytest.approx(own[1] - own[0])
        assert row["group"] == PROBES[row["benchmark"]]
    names = [row["benchmark"] for row in summary["scores"]]
    assert names == ["narrow", "original", "broad", "held_out"]
    held = summary["score_groups"][2]
    assert (held["group"], held["benchmarks"]) == ("held-out", 2)
    assert held["gain"] == pytest.approx(-0.115)


def test_a_finished_report_gets_scores_without_being_measured_again(reports, shadow):
    """No table is written again; the summary has the scores, and nothing else in it changed."""
    folder = reports / "base..narrow"
    before, summary = tables(folder), told(folder)
    times = {name: (folder / name).stat().st_mtime_ns for name in before}
    done = shadow("audit", "demo:base..narrow", "--scores", "scores.csv")
    assert "narrow gain +0.105" in done.assert_done()
    assert "nothing to measure" in done.err
    assert tables(folder) == before
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == times
    assert without_scores(told(folder)) == without_scores(summary)
    assert [row["gain"] for row in told(folder)["scores"]] == [0.105, -0.045, -0.1725, -0.0575]
    assert {path.name for path in folder.iterdir()} == {*before, "summary.json", "scores.json"}
    assert not (folder / PARTIAL).exists()


def test_kept_scores_are_shown_and_stay(reports, shadow, tmp_path):
    """By show, by an audit that gives none, at another precision; other scores replace them."""
    shadow("audit", "demo:base..narrow", "--scores", "scores.csv").assert_done()
    folder = reports / "base..narrow"
    kept = told(folder)["scores"]
    assert json.loads(shadow("show", folder, "--format", "json").assert_done()) == [told(folder)]
    assert "narrow gain +0.105" in shadow("audit", "demo:base..narrow").assert_done()
    again = shadow("audit", "demo:base..narrow", "--precision", "exact", "--overwrite")
    assert "narrow gain +0.105" in again.assert_done()
    assert "measuring again" in again.err
    assert told(folder)["scores"] == kept
    write(tmp_path / "other.csv", "model,benchmark,score\nbase,x,10\nnarrow,x,22\n")
    assert (
        "x gain +12, concentration"
        in shadow(
            "audit", "demo:base..narrow", "--precision", "exact", "--scores", "other.csv"
        ).assert_done()
    )
    assert [row["benchmark"] for row in told(folder)["scores"]] == ["x"]


def test_show_takes_scores_and_keeps_none(reports, shadow):
    """A report may be looked at with any scores; its folder stays as it is."""
    before = {path: path.read_bytes() for path in reports.rglob("*") if path.is_file()}
    text = shadow("show", "reports", "--scores", "scores.csv").assert_done()
    assert "narrow gain +0.105" in text
    assert "narrow gain +0.0575" in text
    done = shadow("show", reports / "base..narrow", "--scores", "scores.csv", "--format", "json")
    (found,) = json.loads(done.assert_done())
    assert found["score_groups"][0]["gain"] == 0.105
    assert {path: path.read_bytes() for path in reports.rglob("*") if path.is_file()} == before
    assert " gain" not in shadow("show", "reports").assert_done()


def test_scores_of_other_checkpoints_are_not_taken_over(shadow, tmp_path):
    """A tuned folder that changed has other scores: the kept ones are removed, and it is said."""
    for name in ("base", "narrow"):
        shutil.copytree(DEMO / name, tmp_path / name)
    write(tmp_path / "scores.csv", demo_scores().replace("demo:", "./"))
    pair = ("audit", "--base", "./base", "--tuned", "./narrow")
    assert "narrow gain +0.105" in shadow(*pair, "--scores", "scores.csv").assert_done()
    shutil.copy(DEMO / "broad/model.safetensors", tmp_path / "narrow")
    done = shadow(*pair, "--overwrite")
    assert " gain" not in done.assert_done()
    assert "scores of other checkpoints than the report's: removed" in done.err
    assert not list(tmp_path.rglob("scores.json"))
    assert not told(next(tmp_path.glob("reports/narrow/*")))["scores"]


def test_a_spoiled_file_of_kept_scores_spoils_no_report(reports, shadow):
    """A warning, the report's numbers, and nothing measured again."""
    shadow("audit", "demo:base..narrow", "--scores", "scores.csv").assert_done()
    folder = reports / "base..narrow"
    (folder / "scores.json").write_text('{"schema": 1}')
    text = shadow("show", folder).assert_done()
    assert "not scores kept by shadow" in text
    assert "0.33" in text
    done = shadow("audit", "demo:base..narrow", "--scores", "scores.csv")
    assert "narrow gain +0.105" in done.assert_done()
    assert "nothing to measure" in done.err


def test_scores_of_neither_side_stop_an_audit_before_it_starts(shadow, tmp_path):
    """Exit 1 with the file's models and the names it might have said; no folder is made."""
    write(tmp_path / "scores.csv", "model,benchmark,score\ndemo:narow,a,0.5\nx/y,a,0.4\n")
    error = shadow("audit", "demo:base..narrow", "--scores", "scores.csv").assert_refused()
    assert (
        "neither side is among its models: demo:narow (did you mean 'demo:narrow'?), x/y" in error
    )
    assert (
        "no side of any pair" in shadow("audit", "demo", "--scores", "scores.csv").assert_refused()
    )
    assert "no such file" in shadow("audit", "demo", "--scores", "none.csv").assert_refused()
    assert {path.name for path in tmp_path.iterdir()} == {"scores.csv"}


def test_one_side_alone_is_a_note_and_other_pairs_go_on(reports, shadow, tmp_path):
    """Of two pairs one has no scores; the other lacks the base; a third model is nobody's."""
    write(
        tmp_path / "scores.csv",
        "model,benchmark,score\ndemo:broad,a,0.5\ndemo:bas,a,0.4\nx/y,a,0.1\n",
    )
    done = shadow("audit", "demo", "--scores", "scores.csv")
    text = re.sub(r"\s+", " ", done.assert_done())
    assert (
        "no score of the base side (base or demo:base), so no gain; the nearest name is 'demo:bas'"
        in text
    )
    assert "mean gain none: no benchmark of both sides" in text
    assert "no scores of demo:base..narrow" in done.err
    assert (
        "scores of models that are not audited here: demo:bas (did you mean 'demo:base'?), x/y"
        in done.err
    )
    summary = told(tmp_path / "reports/demo/base..broad")
    assert [(row["base"], row["tuned"], row["gain"]) for row in summary["scores"]] == [
        (None, 0.5, None)
    ]
    assert not told(tmp_path / "reports/demo/base..narrow")["scores"]


def test_results_of_the_harness_join_models_of_the_hub(shadow, tmp_path):
    """A folder as the harness writes it, by repository; a CSV by commit; another commit is no score
    of this report.
    """
    out = tmp_path / "out"
    for name, score in (("base", 0.5), ("tuned", 0.62)):
        results = {"mmlu": {"acc,none": score, "acc_stderr,none": 0.03}}
        write(
            out / f"org__{name}/results_2026-01-01T00-00-00.json", harness(f"org/{name}", results)
        )
    with Hub() as hub:
        hub.add("org/base", DEMO / "base")
        hub.add("org/tuned", DEMO / "narrow")
        home = tmp_path / "home"
        env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub")}
        pair = ("audit", "--base", "org/base", "--tuned", "org/tuned")
        text = shadow(*pair, "--scores", "out", env=env).assert_done()
        assert "mmlu gain +0.12 ± 0.042, concentration 0.33" in text
        (folder,) = (tmp_path / "reports/tuned").iterdir()
        commit = told(folder)["tuned"]["commit"]
        rows = f"model,benchmark,score\norg/base,x,0.25\norg/tuned@{commit[:9]},x,0.5\n"
        write(tmp_path / "scores.csv", rows)
        assert "x gain +0.25" in shadow(*pair, "--scores", "scores.csv", env=env).assert_done()
        write(tmp_path / "scores.csv", "model,benchmark,score\norg/tuned@0123456789,x,0.5\n")
        done = shadow(*pair, "--scores", "scores.csv", env=env)
        assert "neither side is among its models: org/tuned@0123456789" in done.assert_refused()
    assert told(folder)["scores"][0]["benchmark"] == "x"  # those that were kept before


# Sets of reports


def test_scores_beside_a_comparison_of_one_base(reports, shadow):
    """Contrasts as ever, the gains of both above them; two reports have no rank correlation."""
    runs = [reports / "base..narrow", reports / "base..broad"]
    plain = json.loads(shadow("compare", *runs, "--format", "json").assert_done())
    found = json.loads(
        shadow("compare", *runs, "--scores", "scores.csv", "--format", "json").assert_done()
    )
    assert plain["scores"] is None
    assert found["contrasts"] == plain["contrasts"]
    assert [one["score_groups"][0]["gain"] for one in found["scores"]["reports"]] == [0.105, 0.0575]
    figures = [told(run)["figures"]["concentration"] for run in runs]
    assert [one["concentration"] for one in found["scores"]["reports"]] == figures
    assert {one["reason"] for one in found["scores"]["correlations"]} == {
        "2 reports with both, at least 4 are needed"
    }
    text = shadow("compare", *runs, "--scores", "scores.csv").assert_done()
    assert "more concentrated" in text
    assert "+0.105" in text
    assert "No rank correlation of gain and concentration: 2 reports" in text
    shadow("audit", "demo", "--scores", "scores.csv").assert_done()
    kept = json.loads(shadow("compare", *runs, "--format", "json").assert_done())
    assert kept["scores"] == found["scores"]


@pytest.mark.slow
def test_a_set_of_families_is_correlated_and_not_contrasted(shadow, tmp_path):
    """Of different bases: one folder above all, n and interval by group and benchmark; -o has
    nothing to write.
    """
    folders, _ = scored_reports(
        tmp_path / "all", [0.2, 0.3, 0.4, 0.5, 0.6], [0.1, 0.3, 0.2, 0.4, 0.35]
    )
    arguments = ("compare", "all", "--scores", "all/scores.csv")
    found = json.loads(shadow(*arguments, "--format", "json").assert_done())
    assert (found["contrasts"], found["ranking"]) == ([], [])
    assert "have different bases" in found["not_contrasted"]
    one = found["scores"]["correlations"][0]
    # ranks 1 3 2 5 4 against 1 to 5: sum d^2 = 4, rho = 1 - 6 * 4 / (5 * 24)
    assert (one["group"], one["n"], one["bases"], one["rho"]) == (
        "narrow",
        5,
        5,
        pytest.approx(0.8),
    )
    assert one["low"] < 0 < one["rho"] < one["high"] < 1
    assert "Bonett & Wright" in found["scores"]["method"]["interval"]
    text = re.sub(r"\s+", " ", shadow(*arguments).assert_done())
    for words in (
        "have different bases",
        "group narrow 5 5 +0.80",
        "mmlu 5 5",
        "describes these reports alone",
    ):
        assert words in text
    refused = shadow(*arguments, "-o", "rows.parquet").assert_refused()
    assert "no rows for rows.parquet" in refused
    assert not (tmp_path / "rows.parquet").exists()
    assert "different bases" in shadow("compare", *(f"all/p{i}" for i in range(5))).assert_refused()
    scores = read_scores([tmp_path / "all/scores.csv"])
    both = compare(folders, allow_different_base=True, scores=scores)
    assert len(both.contrasts) == 10
    assert both.scores.correlations == compare(folders, scores=scores).scores.correlations


def test_more_reports_than_can_be_compared_are_correlated(tmp_path):
    """21 reports: no contrasts, labels to U, n = 21 and p of random orders; the terminal shows 20
    of them.
    """
    values = [0.2 + 0.01 * i for i in range(21)]
    folders, scores = scored_reports(tmp_path, values, [0.01 * (i * 8 % 21) for i in range(21)])
    assert len(folders) > MAX_REPORTS
    found = compare(folders, scores=read_scores([scores]))
    assert (found.contrasts, found.not_contrasted) == (
        [],
        "more than 12 reports are not compared matrix by matrix",
    )
    assert [entry.label for entry in found.scores.entries][-1] == "U"
    assert found.scores.correlations[0].n == 21
    assert 0 < found.scores.correlations[0].p < 1
    text = drawn(comparison_document(found), 80)
    assert "Rank correlation of gain and concentration" in text
    assert "1 more report is in --format json" in text
    with pytest.raises(ShadowError, match="no side of any pair is among its models"):
        compare(
            folders,
            scores=read_scores([write(tmp_path / "x.csv", "model,benchmark,score\nx/y,a,1\n")]),
        )


def test_wrong_usage_of_scores(reports, shadow):
    """One report is no set, and a folder without reports none at all."""
    assert "1 report to compare" in shadow(
        "compare", reports / "base..narrow", "--scores", "scores.csv"
    ).assert_refused(code=2)
    assert (
        "no such folder" in shadow("compare", "nowhere", "--scores", "scores.csv").assert_refused()
    )
    assert "did you mean 'gain'" in shadow("explain", "gian").err
    assert "base - tuned where less is better" in shadow("explain", "gain").assert_done()


# What the terminal shows


HOSTILE = "x\x1b[31m ::error::owned [bold]=cmd()"
LONG = "leaderboard_math_counting_and_probability_hard_with_a_name_that_never_seems_to_end"


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_and_names_drive_no_terminal(demo_reports, tmp_path, width):
    """Long and hostile names of models, benchmarks, groups and metrics: folded, shown as text,
    nothing cut off.
    """
    rows = ["model,benchmark,score,group,metric,stderr"]
    for side, score in (("base", 41.25), ("narrow", 45.875)):
        rows += [f"demo:{side},{LONG},{score},{LONG},exact_match;flexible-extract,1.25"]
        rows += [f"demo:{side},{HOSTILE},{score},{HOSTILE},{HOSTILE},"]
        rows += [f"demo:{side},bench-{i},{score},,acc,0.5" for i in range(30)]
    scores = read_scores([write(tmp_path / "s" / f"{'long-' * 20}scores.csv", "\n".join(rows))])
    folder = demo_reports / "base..narrow"
    summary, provenance = read_summary(folder)
    scored = summary.with_scores(join(scores, sides_of(provenance)))
    text = drawn(report_document(scored, provenance, folder).shown(), width)
    assert max(map(len, text.splitlines())) <= width
    assert text.replace("\n", "").isprintable()
    assert "…" not in text
    for words in ("\\x1b[31m", "[bold]", "+4.62", "12 more benchmarks are in summary.json", "1.8"):
        assert words in text
    found = compare([folder, demo_reports / "base..broad"], scores=scores)
    text = drawn(comparison_document(found), width)
    assert max(map(len, text.splitlines())) <= width
    assert text.replace("\n", "").isprintable()
    assert "…" not in text


def line_of(groups) -> str:
    """The line of a report with gains of these benchmarks by group."""
    gains = [gain(0.1 * i + 0.1, f"b{i}", group) for i, group in enumerate(groups)]
    scored = Scored((), tuple(gains), ())
    return scores_line(
        SimpleNamespace(
            figures=SimpleNamespace(concentration=0.4), scores=gains, score_groups=scored.groups
        )
    )


def test_the_line_names_few_and_counts_the_rest():
    """Benchmarks without groups by name up to three, above by mean; four groups, and a count."""
    assert line_of([None, None]) == "b0 gain +0.1, b1 gain +0.2, concentration 0.40"
    assert line_of([None] * 5) == "mean gain +0.3 over 5 benchmarks, concentration 0.40"
    assert (
        line_of(["x", None, None])
        == "x gain +0.1, other gain +0.25 over 2 benchmarks, concentration 0.40"
    )
    named = "a gain +0.1, b gain +0.2, c gain +0.3, d gain +0.4, 2 more groups, concentration 0.40"
    assert line_of(list("abcdef")) == named
    assert line_of([]) == ""
