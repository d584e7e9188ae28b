"""The Python API as a user types it."""

import ast
import re
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pandas as pd
import pytest
from readme import demo_scores

import shadow
from shadow import api
from shadow.lists.perform import perform
from shadow.run.runtime import access_of

ROOT = Path(__file__).parents[1]
FUNCTIONS = ("audit", "read", "read_all", "plan", "pairs", "compare", "judge", "export")


def in_a_child(script: str, *arguments: str | Path, cwd: Path | None = None) -> str:
    """What a script prints in a process of its own."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """The reports of the demo family."""
    return shadow.audit("demo", output=tmp_path_factory.mktemp("api") / "reports")


@pytest.fixture
def narrow(audited):
    (found,) = (report for report in audited if report.provenance.pair == "base..narrow")
    return found


LAZY = """
import contextlib, io, sys

import shadow

HEAVY = {"torch", "pandas", "numpy", "scipy", "rich", "matplotlib"}


def loaded():
    return sorted(HEAVY & sys.modules.keys())


assert shadow.__version__
print(loaded())
from shadow.cli.commands import run

sys.argv = ["shadow", "show", sys.argv[1]]
with contextlib.redirect_stdout(io.StringIO()):
    assert run() == 0
print(loaded())
report = shadow.read(sys.argv[2])
print(repr(report).splitlines()[0])
report.deltas, report.spectra
assert shadow.read_all(sys.argv[2])[0].deltas.equals(report.deltas)
print(loaded())
"""


def test_importing_loads_nothing_heavy_and_reading_loads_no_torch(narrow):
    """In a process of its own, since this one has loaded all of it: nothing by the import; to show
    a report whose summary is there already pyarrow and rich; for its tables pandas too.
    """
    imported, shown, report, read = in_a_child(LAZY, narrow.folder).splitlines()
    assert imported == "[]"
    assert not {"torch", "pandas", "scipy", "matplotlib"} & set(ast.literal_eval(shown))
    assert report.startswith("demo:base..narrow")
    assert set(ast.literal_eval(read)) - {"numpy", "rich", "scipy"} == {"pandas"}


THREADS = """
import os, sys

import numpy
import torch

torch.set_num_threads(2)
from threadpoolctl import threadpool_info, threadpool_limits

before = dict(os.environ)
threadpool_limits(limits=2)

def threads():
    return {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}

def unchanged():
    return torch.get_num_threads() == 2 and {path: threads()[path] for path in had} == had

had = threads()
import shadow

assert unchanged(), "the import changed threads"
inside = set()

def progress(state):
    inside.add((torch.get_num_threads(), *threads().values()))

report = shadow.audit("demo:base..narrow", output=sys.argv[1], progress=progress)
assert {count for counts in inside for count in counts} == {1}, inside
assert unchanged(), "the audit left other threads"
try:
    shadow.audit(base=sys.argv[1], tuned=sys.argv[1], output=sys.argv[1])
except shadow.ShadowError as error:
    assert error.message and error.hint
assert unchanged(), "a failed audit left other threads"
assert dict(os.environ) == before, "the environment changed"
print(report.summary.family)
"""


@pytest.mark.slow
def test_a_notebook_keeps_its_threads(tmp_path):
    """A process with torch and 2 threads: one inside the audit, 2 after it, also when it fails."""
    assert in_a_child(THREADS, tmp_path).strip() == "demo"


def test_what_is_offered_is_there():
    """Every name of __all__ and of dir is found, another is an AttributeError; none is gone."""
    offered = {"AuditReport", "AuditReports", "Files", "Ray", "ShadowError", "UsageError"}
    assert offered | set(FUNCTIONS) <= set(shadow.__all__)
    assert dir(shadow) == sorted(shadow.__all__)
    assert all(getattr(shadow, name) for name in shadow.__all__)
    with pytest.raises(AttributeError, match="no attribute 'adit'"):
        _ = shadow.adit


def test_one_pair_is_a_report_and_several_are_a_sequence(audited, tmp_path):
    """`family:pair` and a pair are a report; a family of two pairs, a list of one a sequence."""
    assert [report.provenance.pair for report in audited] == ["base..narrow", "base..broad"]
    assert isinstance(audited[0], shadow.AuditReport)
    output = audited[0].folder.parents[1]
    (pair,) = shadow.pairs("demo:base..narrow")
    same = (shadow.audit(one, output=output) for one in (pair, "demo:base..narrow"))
    assert list(same) == [audited[0]] * 2
    assert list(shadow.audit([pair], output=output)) == [audited[0]]
    assert len(shadow.audit({"demo:base..narrow", "demo:base..broad"}, output=output)) == 2
    assert len(audited[:1]) == 1


@pytest.fixture
def known_pace(monkeypatch):
    """How fast this machine is, which a plan otherwise measures for a second."""
    from shadow.run import pair_plan

    monkeypatch.setattr(pair_plan, "pace", lambda method, jobs, offload=None: 1e10)


def test_two_checkpoints_may_be_given_by_position(known_pace, tmp_path, monkeypatch):
    """The same pair as with base= and tuned=, of `audit` and of `plan`. A Path is a folder, text is
    what `--base` takes.
    """
    monkeypatch.chdir(ROOT)
    base, tuned = "./registry/demo/base", Path("registry/demo/narrow")
    part = {"output": tmp_path, "layers": [0], "modules": ["attn.q"], "spectra": False}
    report = shadow.audit(base, tuned, **part)
    assert isinstance(report, shadow.AuditReport)
    assert report == shadow.audit(base=base, tuned=tuned, **part)
    assert report.provenance.layers == (0,)
    assert report.provenance.tuned.repo == str(ROOT / tuned)
    assert set(report.matrices["layer"]) == {0}
    assert report.spectra.empty
    (plan,) = shadow.plan(base, tuned, output=tmp_path / "plan", layers=[0])
    assert plan.pair == report.provenance.pair


@pytest.mark.parametrize(("wrong", "message"), [
    ({"target": "dem"}, "no family 'dem'"),
    ({"target": []}, "nothing to audit"),
    ({"target": "demo", "level": "best"}, "level='best'"),
    ({"target": "demo", "modules": ["mlp.upp"]}, "no module 'mlp.upp'"),
    ({"target": "demo", "components": "languages"}, "no component 'languages'"),
    ({"target": "demo", "files": shadow.Files(max_disk="lots")}, "'lots' is not a size"),
    ({"target": "demo", "files": shadow.Files(max_disk="999B")}, "999 bytes hold no shard"),
    ({"target": "demo", "files": shadow.Files(fetch="all")}, "fetch='all'"),
    ({"target": "demo", "engine": "slurm"}, "no engine 'slurm'"),
    ({"target": "demo", "engine": shadow.Ray(cpus_per_task=0)}, "cpus_per_task=0"),
    ({"target": "demo", "engine": shadow.Ray(memory_per_task="lots")}, "'lots' is not a size"),
    ({"target": "demo", "engine": shadow.Ray("ray://head")}, "a run over a Ray client"),
])  # fmt: skip
def test_what_makes_no_sense_is_a_shadow_error(wrong, message, tmp_path):
    """With a hint, and nothing is written."""
    target = [wrong.pop("target")] if "target" in wrong else []
    with pytest.raises(shadow.ShadowError) as caught:
        shadow.audit(*target, output=tmp_path / "out", **wrong)
    assert message in caught.value.message
    assert caught.value.hint not in ("", message)
    assert not (tmp_path / "out").exists()


def test_the_least_disk_and_the_fewest_cores_make_a_request(tmp_path):
    """A thousand bytes, and one core; nothing is measured before the first outcome is asked for."""
    assert access_of(shadow.Files(max_disk="1kB")).max_disk == 1000
    request = api._request("demo", None, {}, tmp_path, {}, ray=shadow.Ray(cpus_per_task=1))
    perform(request).close()


def test_keywords_are_the_fields_of_measuring_and_at_most_twelve_of_their_own():
    """Options are declared once; any other word is a TypeError."""
    own = [one for one in signature(api.audit).parameters.values() if one.kind != one.VAR_KEYWORD]
    assert len(own) <= 12
    for keyword in ("precision", "levels"):
        with pytest.raises(TypeError, match=keyword):
            shadow.audit("demo", **{keyword: "norms"})


def test_one_pair_that_fails_does_not_stop_the_others(audited, tmp_path):
    """All others have their reports, and the fault names the pair."""
    demo = ROOT / "registry" / "demo"
    family = "broken:\n  base: %s\n  narrow: %s\n  gone: %s\n  pairs: [base..gone, base..narrow]\n"
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "broken.yaml").write_text(
        family % (demo / "base", demo / "narrow", tmp_path / "gone")
    )
    with pytest.raises(shadow.ShadowError, match=r"broken:base\.\.gone: "):
        shadow.audit(
            shadow.pairs("broken", registry=tmp_path / "registry"), output=tmp_path / "out"
        )
    assert shadow.read(tmp_path / "out").provenance.pair == "base..narrow"


# The other functions


def test_pairs_are_those_of_the_registry():
    """A glob, names, and everything."""
    found = shadow.pairs("qwen2.5-*")
    assert len(found) > 3
    assert all(pair.family.startswith("qwen2.5-") for pair in found)
    assert set(found) < set(shadow.pairs())
    assert shadow.pairs("demo") == shadow.pairs("demo:base..narrow", "demo:base..broad")


def test_a_plan_measures_nothing(known_pace, tmp_path):
    """A plan for each pair, and no folder."""
    (recorded,) = shadow.plan("demo:base..narrow", output=tmp_path / "out")
    assert recorded.pair == "base..narrow"
    assert recorded.seconds > 0  # also of matrices that take no time to speak of
    assert not (tmp_path / "out").exists()


def test_reports_are_compared_as_objects_or_folders(audited):
    """The narrow demo is more concentrated, whichever way its report is named."""
    narrow, broad = audited
    (contrast,) = shadow.compare(narrow, broad).contrasts
    assert contrast.verdict == "more concentrated"
    by_folder = shadow.compare(narrow.folder, str(broad.folder))
    assert by_folder.as_json() == shadow.compare(narrow, broad).as_json()
    with pytest.raises(shadow.UsageError):
        shadow.compare(narrow, broad, margin=2)


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """A CSV of what the demo's models scored on their probes."""
    path = tmp_path_factory.mktemp("scores") / "scores.csv"
    path.write_text(demo_scores())
    return path


def test_gains_of_reports_are_held_against_their_concentrations(audited, scores):
    """Of reports, of their folders or the folder above: what `shadow compare --scores` prints."""
    narrow, broad = audited
    compared = shadow.compare(broad, narrow.folder, scores=scores)
    rows = compared.as_json()["scores"]["reports"]
    assert [row["pair"] for row in rows] == ["demo:base..broad", "demo:base..narrow"]
    benchmarks = {row["benchmark"] for row in rows[0]["gains"]}
    assert benchmarks == {"narrow", "original", "broad", "held_out"}
    assert shadow.compare(narrow.folder.parent, scores=scores).as_json() == compared.as_json()
    assert shadow.compare(*audited).scores is None
    with pytest.raises(shadow.UsageError):
        shadow.compare(audited[0], scores=scores)


def test_a_report_is_judged_by_rules_a_policy_and_a_baseline(narrow, audited, tmp_path):
    """The outcomes and exit codes of `shadow gate`."""
    assert shadow.judge(narrow, "concentration > 0.1").code == 4
    assert shadow.judge(narrow, ["concentration > 0.9", "spikes > 99"]).code == 0
    (tmp_path / "policy.yaml").write_text("narrow:\n  fail_on: concentration > 0.1\n")
    assert shadow.judge(narrow.folder, tmp_path / "policy.yaml").code == 4
    assert shadow.judge(narrow, against=audited[1]).code == 4
    with pytest.raises(shadow.ShadowError, match="own baseline"):
        shadow.judge(narrow, against=narrow)
    with pytest.raises(shadow.UsageError):
        shadow.judge(narrow)
    with pytest.raises(shadow.UsageError, match="no comparison '=>'"):
        shadow.judge(narrow, "concentration => 0.1")


def test_reports_are_exported_together(audited, tmp_path):
    """Objects, one of them, or the folder above: the rows of all that were named."""
    shadow.export(audited, "csv", tmp_path / "all")
    shadow.export(audited[0].folder.parent, "csv", tmp_path / "below")
    shadow.export(audited[0], "parquet", tmp_path / "one")
    rows = pd.read_csv(tmp_path / "all" / "matrices.csv")
    assert len(rows) == sum(len(report.matrices) for report in audited)
    assert len(pd.read_csv(tmp_path / "below" / "matrices.csv")) == len(rows)
    assert len(pd.read_parquet(tmp_path / "one" / "matrices")) == len(audited[0].matrices)
    with pytest.raises(shadow.UsageError, match="no format 'xlsx'"):
        shadow.export(audited, "xlsx", tmp_path / "x")


# The pages


EXAMPLES = re.findall(
    r"(?ms)(?<!-->\n)^```python\n(.*?)^```",  # not those that are marked as not run
    (ROOT / "docs" / "api.md").read_text(encoding="utf-8"),
)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_of_the_page_run_as_they_stand(number, audited, tmp_path, monkeypatch):
    """Each on its own, with the demo's reports where the page has them."""
    (tmp_path / "reports").symlink_to(audited[0].folder.parents[1])
    monkeypatch.chdir(tmp_path)
    exec(EXAMPLES[number], {})
