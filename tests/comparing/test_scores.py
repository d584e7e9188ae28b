"""Scores that others measured: read, joined by model, and correlated with concentration."""

import json

import numpy as np
import pytest
from reports import identity, uniform
from scipy.stats import spearmanr

from shadow.comparing.codes import LeftOut
from shadow.comparing.comparison import compare
from shadow.comparing.scores import Gain, ScoredReport, correlations, gains_of, read_scores
from shadow.errors import ShadowError
from shadow.reports.provenance import SIDES
from shadow.templates import Reason


def harness(model, results, **recorded):
    """A results file as lm-evaluation-harness writes it."""
    return json.dumps(
        {"results": results, "config": {"model_args": {"pretrained": model}}, **recorded}
    )


def read(tmp_path, content, name="scores.csv"):
    (tmp_path / name).write_text(content, encoding="utf-8")
    return read_scores(tmp_path / name)


def of_pair(base="org/base", tuned="org/tuned", commit="a" * 40):
    sides = {
        name: {"repo": repo, "commit": commit, "fingerprint": None}
        for name, repo in (("base", base), ("tuned", tuned))
    }
    return {**sides, "family": "fam", "pair": "base..sft", "settings": {}}


def test_a_csv_is_read(tmp_path):
    """Columns in any order, others ignored; a metric where it is given."""
    text = "\ufeffbenchmark,model,score,metric,note\n mmlu,org/base ,0.5,acc,x\n"
    first, second = read(tmp_path, text + "loss,org/base,2,,y\n")
    found = (first.model, first.benchmark, first.score, first.metric)
    assert found == ("org/base", "mmlu", 0.5, "acc")
    assert second.metric is None
    assert second.where.endswith("scores.csv:3")


def test_results_of_the_harness_are_read(tmp_path):
    """One metric a task, acc_norm before acc; the model is an adapter before its base."""
    results = {
        "arc": {"alias": "arc", "acc,none": 0.4, "acc_norm,none": 0.5, "acc_stderr,none": 0.1}
    }
    (score,) = read(tmp_path, harness("org/tuned", results), "results.json")
    assert (score.model, score.benchmark, score.metric, score.score) == (
        "org/tuned", "arc", "acc_norm", 0.5,
    )  # fmt: skip
    others = {"x": {"acc_stderr,none": 0.1, "sample_len": 9, "alias": "x"}}
    (score,) = read(tmp_path, harness("a", results | others | {"y": {}}), "more.json")
    assert score.benchmark == "arc"
    text = json.dumps({"results": results, "config": {"model_args": "pretrained=a/b,peft=c/d"}})
    assert read(tmp_path, text, "old.json")[0].model == "c/d"


@pytest.mark.parametrize(("values", "metric"), [
    ({"f1": 1, "acc,none": 2}, "acc"), ({"f1,x": 1, "bleu": 2}, "f1,x"), ({"b": 1, "f1": 2}, "f1"),
    ({"acc": "n/a", "b": 2}, "b"), ({"pass@1": 1, "exact_match": 2}, "exact_match"),
])  # fmt: skip
def test_of_several_metrics_the_usual_one_is_read(tmp_path, values, metric):
    """In this order, whatever the file's; otherwise the first that is a number."""
    (score,) = read(tmp_path, harness("a", {"x": values}), "x.json")
    assert (score.metric, score.score) == (metric, float(values.get(metric, 2)))


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.csv", "model,score\nx,1\n", "no column benchmark"),
    ("a.csv", "model,benchmark,score\nx,y,n/a\n", "a.csv:2: .* not a number"),
    ("a.csv", "model,benchmark,score\nx,y,inf\n", "a.csv:2: .* not a number"),
    ("a.csv", "model,benchmark,score\n", "no scores in it"), ("a.json", "[]", "no scores"),
    ("a.json", "{", "no scores"), ("a.json", '{"results": {}, "model_name": "x"}', "no scores"),
])  # fmt: skip
def test_what_is_no_file_of_scores_is_refused(tmp_path, name, content, message):
    with pytest.raises(ShadowError, match=message):
        read(tmp_path, content, name)


def test_what_is_not_clear_is_refused(tmp_path):
    """Another commit is another model; nothing is guessed."""
    head = "model,benchmark,score\n"
    assert gains_of(read(tmp_path, head + "org/base@bbbbbbb,m,1\norg/tuned,m,2\n"), of_pair()) == []
    with pytest.raises(ShadowError, match="either side"):
        gains_of(read(tmp_path, head + "org/base,m,1\n"), of_pair(tuned="org/base"))
    with pytest.raises(ShadowError, match="another score"):
        gains_of(read(tmp_path, head + "org/base,m,1\norg/base,m,2\n"), of_pair())


def entries(gains, concentrations, left_out=None):
    return [
        ScoredReport(str(at), "f:a..b", conc, [Gain("m", None, 0, one, one)], left_out)
        for at, (one, conc) in enumerate(zip(gains, concentrations, strict=True))
    ]


def test_the_correlation_is_spearmans():
    """Against SciPy, with ties."""
    rng = np.random.default_rng(0)
    for n in (4, 7, 30):
        gains, concentrations = rng.integers(0, 9, n), rng.random(n)
        (one,) = correlations(entries(gains, concentrations))
        assert (one.n, one.rho) == (n, pytest.approx(spearmanr(gains, concentrations).statistic))


@pytest.mark.parametrize(
    ("gains", "concentrations"), [([1, 2, 3], [1, 2, 3]), ([1, 1, 1, 1], [1, 2, 3, 4]), ([], [])]
)
def test_few_or_equal_reports_have_no_correlation(gains, concentrations):
    assert all(one.rho is None for one in correlations(entries(gains, concentrations)))


def test_what_is_left_out_has_no_part():
    left_out = entries([1, 2, 3, 4], [1, 2, 3, 4], Reason(LeftOut.OF_SIBLINGS))
    assert correlations(left_out)[0].n == 0


def test_pairs_that_failed_a_gate_and_siblings_are_left_out(tmp_path):
    """Each with its code; a pair that passed them is not."""
    sides = {side: {**identity(number), "repo": f"org/{side}"} for number, side in enumerate(SIDES)}
    gates = [{"name": "rank", "passed": False}, {"name": "lineage", "passed": True}]
    siblings = {"method": {"level": "full"}, "relation": "sibling"}
    folders = [
        uniform(tmp_path / "failed", 0.3, gates=gates, **sides),
        uniform(tmp_path / "siblings", 0.3, settings=siblings, **sides),
        uniform(tmp_path / "passed", 0.3, gates=gates[1:], **sides),
    ]
    (tmp_path / "s.csv").write_text("model,benchmark,score\norg/base,m,1\norg/tuned,m,2\n")
    found = compare(folders, scores=read_scores(tmp_path / "s.csv")).as_json()["scores"]["reports"]
    exclusions = [report["exclusion"] for report in found]
    assert exclusions[0] == {"code": "gates_failed", "figures": {"gates": "rank"}}
    assert exclusions[1]["code"] == "of_siblings"
    assert exclusions[2] is None
    assert [report["left_out"] for report in found] == [
        "gate rank failed", "a pair of siblings", None,
    ]  # fmt: skip


def test_reports_of_other_bases_are_correlated(tmp_path, shadow):
    """The command and Python say the same; matrices are not compared then."""
    rows, folders = ["model,benchmark,score"], []
    for at, value in enumerate((0.1, 0.4, 0.2, 0.3)):
        sides = {
            side: {**identity(at), "repo": f"org/{side}-{at}", "commit": f"{at}{number}" * 20}
            for number, side in enumerate(("base", "tuned"))
        }
        recorded = {"family": f"f{at}", "pair": "base..sft", "weights": 1.0 + at, **sides}
        folder = uniform(tmp_path / f"p{at}", value, **recorded)
        folders.append(folder)
        rows += [f"org/base-{at},mmlu,0.5", f"f{at}:sft,mmlu,{0.5 + value}"]
    (tmp_path / "scores.csv").write_text("\n".join(rows))
    found = compare(folders, scores=read_scores(tmp_path / "scores.csv"))
    assert found.not_contrasted
    assert found.scores.correlations[0].rho == pytest.approx(1)
    words = ("compare", *(folder.name for folder in folders), "--scores", "scores.csv")
    recorded = json.loads(shadow(*words, "--json").assert_done())
    assert recorded["scores"]["reports"][1]["gains"][0]["gain"] == pytest.approx(0.4)
    text = shadow(*words).assert_done()
    assert "mmlu" in text
    assert "+0.4" in text
    (tmp_path / "other.csv").write_text("model,benchmark,score\norg/x,mmlu,1\n")
    assert "org/x" in shadow(*words[:-1], "other.csv").assert_refused()
