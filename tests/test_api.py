"""The Python API as a user types it, and reports as the objects that it returns."""

from __future__ import annotations

import ast
import inspect
import json
import pickle
import pkgutil
import re
import shutil
import subprocess
import sys
import traceback
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from readme import demo_scores
from reports import delta, identity, place, uniform, write
from safetensors.torch import load_file

import shadow
from shadow.quantities import text_of
from shadow.reports.columns import SPECTRA, TABLES
from shadow.reports.parquet import arrow_schema
from shadow.reports.provenance import Provenance
from shadow.reports.report import Report
from shadow.telling.summary_file import maker

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
report.deltas, report.spectra, report._repr_html_()
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
    assert report.startswith("demo:base..narrow: ")
    assert set(ast.literal_eval(read)) - {"numpy", "rich", "scipy"} == {"pandas"}


AUDITED = """
import gc, sys

from shadow.cli import main

searches = []


def search(phase, info):
    if "torch" in sys.modules and not hasattr(sys.modules.get("shadow.audits.pair"), "run_pair"):
        searches.append(info)


gc.callbacks.append(search)
sys.argv = ["shadow", "audit", "demo:base..narrow", "-o", sys.argv[1], "--quiet"]
try:
    main()
finally:
    print(len(searches), gc.isenabled(), "pandas" in sys.modules)
    print(sorted(UNNEEDED & sys.modules.keys()))
"""
UNNEEDED = {  # by the audit of one pair of this machine
    "shadow.audits.list_audit", "shadow.audits.list_index", "shadow.audits.merging",
    "shadow.audits.ray_engine", "shadow.audits.remote", "shadow.comparing.comparison",
    "huggingface_hub", "matplotlib", "pyarrow.dataset", "scipy.optimize",
    "scipy.sparse", "scipy.stats", "transformers",
}  # fmt: skip


def test_one_pair_is_audited_without_what_lists_and_comparisons_need(tmp_path):
    """Nor are cycles looked for while torch and pandas are imported, of which all stays."""
    code = AUDITED.replace("UNNEEDED", repr(UNNEEDED))
    *_, searches, loaded = in_a_child(code, tmp_path).splitlines()
    assert (searches, loaded) == ("0 True True", "[]")


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
print(report.summary.label)
"""


@pytest.mark.slow
def test_a_notebook_keeps_its_threads(tmp_path):
    """A process that has imported torch and has 2 threads: one inside the audit, 2 after it, also
    when it fails.
    """
    assert in_a_child(THREADS, tmp_path).strip() == "concentrated"


def test_no_submodule_has_the_name_of_a_function():
    """Importing it would replace the function."""
    assert set(FUNCTIONS) < set(shadow.__all__)
    assert not {module.name for module in pkgutil.iter_modules(shadow.__path__)} & set(
        shadow.__all__
    )


def test_what_is_offered_is_there():
    """Every name of __all__ and of dir is found, and another one is an AttributeError; none that
    was ever offered is gone.
    """
    offered = {"AuditReport", "AuditReports", "Files", "Nulls", "Ray", "ShadowError", "UsageError"}
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
    assert (
        shadow.audit(pair, output=output)
        == shadow.audit("demo:base..narrow", output=output)
        == audited[0]
    )
    assert list(shadow.audit([pair], output=output)) == [audited[0]]
    assert len(audited[:1]) == 1


def test_checkpoints_are_named_as_base_and_tuned(tmp_path):
    """A Path is a folder, text is what `--base` takes."""
    demo = ROOT / "registry" / "demo"
    report = shadow.audit(
        base=demo / "base", tuned=str(demo / "narrow"), output=tmp_path, layers=[0], spectra=False
    )
    assert report.provenance.layers == (0,)
    assert report.provenance.tuned.repo == str(demo / "narrow")
    assert set(report.matrices["layer"]) == {0}
    assert report.spectra.empty
    with pytest.raises(shadow.ShadowError, match="no spectra"):
        report.spectrum(report.deltas["tensor"].iloc[0])


@pytest.fixture
def known_pace(monkeypatch):
    """How fast this machine is, which a plan otherwise measures for a second."""
    monkeypatch.setattr("shadow.audits.pair_plan.pace", lambda method, jobs, offload: 1e10)


def test_two_checkpoints_may_be_given_by_position(known_pace, tmp_path, monkeypatch):
    """The same pair as with base= and tuned=, by text or by Path, of `audit` and of `plan`."""
    monkeypatch.chdir(ROOT)
    base, tuned = "./registry/demo/base", Path("registry/demo/narrow")
    report = shadow.audit(base, tuned, output=tmp_path, layers=[0], modules=["attn.q"])
    assert isinstance(report, shadow.AuditReport)
    assert report == shadow.audit(
        base=base, tuned=tuned, output=tmp_path, layers=[0], modules=["attn.q"]
    )
    (plan,) = shadow.plan(base, tuned, output=tmp_path / "plan", layers=[0])
    assert plan.pair == report.provenance.pair


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("demo", "qwen2.5-7b"), "'demo' is not a checkpoint, and two arguments by position"),
        (("./a", "demo"), "'demo' is not a checkpoint"),
        ((["demo"], "./a"), "two arguments by position are two checkpoints"),
        ((Path("a"),), "a is one checkpoint, and a pair has two"),
    ],
)
def test_two_arguments_that_are_no_checkpoints_are_refused(given, message):
    """In a sentence with a hint, not as a TypeError."""
    for call in (shadow.audit, shadow.plan):
        with pytest.raises(shadow.ShadowError, match=re.escape(message)) as caught:
            call(*given)
        assert caught.value.hint


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"target": "dem"}, "no family 'dem'"),
        ({"base": "a/b"}, "base and tuned go together"),
        ({}, "nothing to audit"),
        ({"target": "demo", "precision": "best"}, "precision='best'"),
        ({"target": "demo", "modules": ["mlp.upp"]}, "no module 'mlp.upp'"),
        ({"target": "demo", "components": "languages"}, "no component 'languages'"),
        ({"target": "demo", "files": shadow.Files(max_disk="lots")}, "'lots' is not a size"),
        ({"target": "demo", "files": shadow.Files(fetch="all")}, "fetch='all'"),
        ({"target": "demo", "nulls": -1}, "nulls=-1"),
        ({"target": "demo", "nulls": shadow.Nulls(1, seed=-1)}, "seed=-1"),
        ({"target": "demo", "base": "a/b", "tuned": "a/c"}, "a target, and base and tuned too"),
        ({"target": "demo", "engine": "slurm"}, "engine='slurm'"),
        ({"target": "demo", "address": "auto"}, "address='auto' without engine='ray'"),
        ({"target": "demo", "memory_per_task": 10}, "memory_per_task=10 without engine='ray'"),
        ({"target": "demo", "engine": shadow.Ray(cpus_per_task=0)}, "cpus_per_task=0"),
        ({"target": "demo", "engine": shadow.Ray(memory_per_task="lots")}, "'lots' is not a size"),
        ({"target": "demo", "engine": shadow.Ray("ray://head")}, "a run over a Ray client"),
        ({"target": "demo", "parts": 0}, "parts=0"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
def test_what_makes_no_sense_is_a_shadow_error(wrong, message, tmp_path):
    """With a hint, and nothing is written."""
    target = [wrong.pop("target")] if "target" in wrong else []
    with pytest.raises(shadow.ShadowError, match=re.escape(message)) as caught:
        shadow.audit(*target, output=tmp_path / "out", **wrong)
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"nulls": 3, "seed": 7}, {"nulls": shadow.Nulls(3, seed=7)}),
        (
            {"engine": "ray", "address": "auto", "cpus_per_task": 2, "memory_per_task": "1GB"},
            {"engine": shadow.Ray("auto", 2, "1GB")},
        ),
        (
            {"allow_pickle": True, "offline": True, "fetch": "ranges", "max_disk": 9, "cache": "x"},
            {"files": shadow.Files(True, True, "ranges", 9, "x")},
        ),
    ],
)
def test_keywords_that_became_options_of_a_group_still_work(old, new, tmp_path, monkeypatch):
    """They ask for the same, with a warning that names the group."""
    asked = []

    def noted(request, **_):
        asked.append(request)
        raise shadow.ShadowError("that is all")

    monkeypatch.setattr("shadow.audits.perform.perform", noted)
    (group,) = new
    with (
        pytest.warns(DeprecationWarning, match=rf"{group}=shadow\.") as warned,
        pytest.raises(shadow.ShadowError, match="that is all"),
    ):
        shadow.audit("demo", output=tmp_path, **old)
    assert len(warned) == len(old.keys() - {group})
    with pytest.raises(shadow.ShadowError, match="that is all"):
        shadow.audit("demo", output=tmp_path, **new)
    assert asked[0] == asked[1]


def test_the_audit_has_few_parameters_and_refuses_what_was_never_one():
    """At most 26, the groups and the deprecated ones together counted as one each."""
    assert len(inspect.signature(shadow.audit).parameters) <= 26
    for call in (shadow.audit, shadow.plan):
        with pytest.raises(TypeError, match="unexpected keyword argument 'layer'"):
            call("demo", layer=0)


def test_a_pair_in_parts_has_the_report_of_a_whole_one(audited, tmp_path):
    """In this process too: the same tables and the same summary."""
    told = []
    whole = audited[0]
    report = shadow.audit("demo:base..narrow", output=tmp_path, parts=2, say=told.append)
    assert any(line.startswith("measuring in 2 parts") for line in told)
    assert report.matrices.equals(whole.matrices)
    assert report.summary.as_json() == whole.summary.as_json()


def test_one_pair_that_fails_does_not_stop_the_others(audited, tmp_path):
    """All others have their reports, and the fault names the pair."""
    demo = ROOT / "registry" / "demo"
    family = "broken:\n  base: %s\n  narrow: %s\n  gone: %s\n  pairs: [base..gone, base..narrow]\n"
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "broken.yaml").write_text(
        family % (demo / "base", demo / "narrow", tmp_path / "gone")
    )
    with pytest.raises(
        shadow.ShadowError, match=r"1 of 2 pairs could not be audited: broken:base\.\.gone: "
    ):
        shadow.audit("broken", output=tmp_path / "out", registry=tmp_path / "registry")
    assert shadow.read(tmp_path / "out").provenance.pair == "base..narrow"


# Reports


def test_tables_have_one_convention_for_what_is_missing(tmp_path):
    """Whole numbers Int64, flags boolean, texts string, numbers float64; what an older report lacks
    is missing.
    """
    rows = [delta(0.4, place(None, "embed")), delta(0.3, place(2, "mlp.up"))]
    folder = write(tmp_path / "base..tuned", rows)
    older = pq.read_table(folder / "matrices.parquet").drop_columns(
        ["rank_ceiling", "intruders", "rows_changed"]
    )
    pq.write_table(older, folder / "matrices.parquet")
    report = Report(folder)
    kinds = {
        "int": "Int64",
        "bool": "boolean",
        "string": "string",
        "float": "float64",
        "ints": "object",
    }
    for name in ("matrices", "tensors", "residual", "files"):
        frame = getattr(report, name)
        assert {column.name: kinds[column.type] for column in TABLES[name].columns} == {
            column: str(dtype) for column, dtype in frame.dtypes.items()
        }
    deltas = report.matrices[report.matrices["subject"] == "delta"]
    assert deltas["layer"].tolist() == [pd.NA, 2]
    assert (
        deltas[["rank_ceiling", "intruders", "rows_changed", "verified", "alpha"]]
        .isna()
        .all(axis=None)
    )
    assert deltas["concentration"].tolist() == [0.4, 0.3]
    assert report.spectra.empty
    assert list(report.spectra) == [column.name for column in TABLES["spectra"].columns]


@pytest.fixture
def read_files(monkeypatch):
    """The names of the files of tables that were read, in the order of reading."""
    names = []
    real_bytes, real_file = Path.read_bytes, pq.ParquetFile

    def bytes_of(path):
        names.append(path.name)
        return real_bytes(path)

    def file_of(source, **more):
        if isinstance(source, str | Path):
            names.append(Path(source).name)
        return real_file(source, **more)

    monkeypatch.setattr(Path, "read_bytes", bytes_of)
    monkeypatch.setattr(pq, "ParquetFile", file_of)
    return names


def test_each_file_is_read_once_and_when_asked(tmp_path, read_files):
    """Every property of a report, twice: one reading of each table, none before."""
    report = shadow.read(uniform(tmp_path / "base..tuned", 0.4))
    for _ in range(2):
        assert report.provenance.family == "toy"
    assert read_files == []
    for _ in range(2):
        assert len(report.deltas) == 18
        assert len(report.matrices) == 54
        assert len(report.tensors) == 36
        assert len(report.table("matrices")) == 54
    assert read_files == ["matrices.parquet", "tensors.parquet"]


def test_a_page_reads_each_file_of_a_report_once(audited, read_files):
    """Also where its summary is believed, its spectra are drawn, and it is a step of a lineage."""
    from shadow.outputs.page.pair import read_pair

    report = shadow.read(audited[0].folder)
    maker()  # which reads the code
    read_files.clear()
    section = read_pair(report, "here", 0, 1, with_step=True)
    assert section.step is not None
    assert report.summary.label
    assert len(report.deltas) == report.summary.figures["matrices"]
    tables = [name for name in read_files if name.endswith(".parquet")]
    assert sorted(tables) == [
        f"{name}.parquet" for name in ("files", "matrices", "residual", "spectra", "tensors")
    ]


def test_purity_of_an_older_report_is_there_in_every_way_of_reading(tmp_path):
    """It follows from other columns: in the whole table, in some columns of it, and for the rules
    of a gate.
    """
    folder = write(tmp_path / "base..tuned", [delta(0.4, place(0, "mlp.up"))])
    table = pq.read_table(folder / "matrices.parquet")
    pq.write_table(table.drop_columns(["excess_purity", "purity_z"]), folder / "matrices.parquet")
    row = next(row for row in table.to_pylist() if row["subject"] == "delta")
    expected = 1 / row["participation_ratio"] - 1 / row["null_participation_ratio"]
    report = shadow.read(folder)
    assert report.deltas["excess_purity"].tolist() == [pytest.approx(expected)]
    some = Report(folder).columns("matrices", ["subject", "excess_purity"])
    assert list(some) == ["subject", "excess_purity"]
    assert some.loc[some["subject"] == "delta", "excess_purity"].tolist() == [
        pytest.approx(expected)
    ]
    (verdict,) = shadow.judge(report, "language.mlp.up.excess_purity > 0").verdicts
    assert [figure.value for figure in verdict.findings] == [pytest.approx(expected)]


def test_all_reports_of_a_folder_are_read_in_the_order_of_their_paths(tmp_path):
    """As `show` and `export` find them: in the folder and up to two levels below it."""
    for name in ("toy/b..c", "toy/a..b", "other"):
        uniform(tmp_path / name, 0.4)
    reports = shadow.read_all(tmp_path)
    assert isinstance(reports, shadow.AuditReports)
    assert [report.folder for report in reports] == [
        tmp_path / name for name in ("other", "toy/a..b", "toy/b..c")
    ]
    assert [report.folder for report in shadow.read_all(str(tmp_path / "toy"))] == [
        tmp_path / "toy" / name for name in ("a..b", "b..c")
    ]
    assert [report.folder for report in shadow.read_all(tmp_path / "other")] == [tmp_path / "other"]


def test_a_traceback_shows_the_hint_of_a_fault(tmp_path):
    """As a note, also after it was pickled, as by Ray; the text of the fault is its message."""
    for kind in (shadow.ShadowError, shadow.UsageError):
        fault = pickle.loads(pickle.dumps(kind("no such folder: x", "name another")))
        assert (str(fault), fault.message, fault.hint) == (
            *["no such folder: x"] * 2,
            "name another",
        )
        assert "".join(traceback.format_exception(fault)).endswith(
            "no such folder: x\nhint: name another\n"
        )
    assert not hasattr(shadow.ShadowError("x"), "__notes__")


UNREACHABLE = """
import traceback

import shadow
from shadow.checkpoints import hub_client

hub_client.ATTEMPTS = 1
try:
    shadow.audit(base="org/one", tuned="org/two", output="out", files=shadow.Files(cache=False))
except shadow.ShadowError:
    print(traceback.format_exc())
"""


def test_a_fault_of_the_network_has_no_chain_of_tries(tmp_path, monkeypatch):
    """The client's own faults, a traceback each, say less than the message."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    told = in_a_child(UNREACHABLE, cwd=tmp_path)
    assert "http://127.0.0.1:9 cannot be reached" in told
    assert "\nhint: " in told
    assert "httpx" not in told
    assert told.count("Traceback") == 1


def test_a_summary_prints_its_finding(narrow):
    """Its fields would fill screens."""
    finding = narrow.summary.finding
    sentences = " ".join(sentence.text for sentence in finding.sentences)
    assert str(finding) == f"{finding.headline} {sentences}"
    assert str(narrow.summary) == f"demo:base..narrow, {narrow.summary.label}. {finding}"


def test_all_reports_are_read_or_none(tmp_path):
    """An empty folder, one that is not there and one with a broken report are told at once."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(shadow.ShadowError, match="no finished report"):
        shadow.read_all(tmp_path / "empty")
    with pytest.raises(shadow.ShadowError, match="no such folder"):
        shadow.read_all(tmp_path / "gone")
    uniform(tmp_path / "a", 0.4)
    (uniform(tmp_path / "b", 0.4) / "matrices.parquet").write_bytes(b"PAR1")
    with pytest.raises(shadow.ShadowError, match=r"matrices.parquet cannot be read"):
        shadow.read_all(tmp_path)


def test_files_of_another_audit_are_refused(tmp_path):
    """tensors.parquet of another run under the same name."""
    report = shadow.read(uniform(tmp_path / "one" / "base..tuned", 0.4))
    other = uniform(tmp_path / "two" / "base..tuned", 0.4, base=identity(9))
    (other / "tensors.parquet").replace(report.folder / "tensors.parquet")
    with pytest.raises(shadow.ShadowError, match="its files are of different audits"):
        _ = report.tensors


def test_provenance_is_typed_and_whole(narrow):
    """Every field of a new report is told, and as_json is what its files say."""
    told = narrow.provenance
    assert isinstance(told, Provenance)
    assert told.base.repo.endswith("demo/base")
    assert (told.relation, told.precision, told.nulls, told.subspaces) == (
        "tuned",
        "default",
        0,
        True,
    )
    assert told.seconds > 0
    assert set(told.libraries) >= {"torch", "numpy"}
    metadata = pq.read_schema(narrow.folder / "tensors.parquet").metadata[b"shadow"]
    assert told.as_json() == json.loads(metadata)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": {"precision": "default"}},
        {
            "method": {"precision": "exact", "nulls": "many", "seed": True},
            "chosen": {"layers": "0", "modules": [1]},
        },
    ],
)
def test_provenance_of_odd_settings_is_none_where_it_tells_nothing(tmp_path, settings):
    """A number that is text, a flag for a number, a text for a list."""
    told = shadow.read(uniform(tmp_path / "base..tuned", 0.4, settings=settings)).provenance
    assert (told.nulls, told.seed, told.relation, told.layers, told.modules) == (
        None,
        None,
        None,
        (),
        (),
    )


def test_a_folder_without_a_report_is_told_at_once(tmp_path):
    """By read, not by the first table that is asked for."""
    with pytest.raises(shadow.ShadowError, match="no finished report"):
        shadow.read(tmp_path)
    with pytest.raises(shadow.ShadowError, match="no such folder"):
        shadow.read(tmp_path / "gone")
    uniform(tmp_path / "a", 0.4)
    assert shadow.read(tmp_path).folder == tmp_path / "a"
    uniform(tmp_path / "b", 0.4)
    with pytest.raises(shadow.ShadowError, match="holds 2 reports") as refused:
        shadow.read(tmp_path)
    assert "shadow.read_all" in refused.value.hint


def test_a_spectrum_is_an_array_of_what_numpy_finds(narrow):
    """Of the delta, the base and the tuned side of one matrix."""
    demo = ROOT / "registry" / "demo"
    base, tuned = (
        {name: tensor.float().numpy() for name, tensor in torch_tensors(demo / side).items()}
        for side in ("base", "narrow")
    )
    name = narrow.deltas.query("module == 'mlp.up' and layer == 1")["tensor"].item()
    wanted = {"base": base[name], "tuned": tuned[name], "delta": tuned[name] - base[name]}
    for subject, matrix in wanted.items():
        found = narrow.spectrum(name, subject=subject)
        assert found.dtype == np.float64
        np.testing.assert_allclose(
            found, np.linalg.svd(matrix, compute_uv=False), rtol=1e-3, atol=1e-4
        )
    np.testing.assert_array_equal(narrow.spectrum(name), narrow.spectrum(name, subject="delta"))


def torch_tensors(folder):
    return load_file(folder / "model.safetensors")


def test_a_tensor_of_several_matrices_says_how_to_tell_them_apart(tmp_path):
    """Two experts of one stacked tensor: the expert chooses, and a wrong name has a hint."""
    folder = uniform(tmp_path / "base..tuned", 0.4)
    rows = [
        {
            "tensor": "experts.up", "component": "language", "layer": 0, "module": "mlp.up",
            "expert": expert, "subject": "delta", "sigma": [3.0 + expert, 1.0],
        }
        for expert in (0, 1)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=arrow_schema(SPECTRA))
    metadata = pq.read_schema(folder / "matrices.parquet").metadata
    pq.write_table(table.replace_schema_metadata(metadata), folder / "spectra.parquet")
    report = shadow.read(folder)
    with pytest.raises(shadow.ShadowError, match="holds 2 matrices") as caught:
        report.spectrum("experts.up")
    assert "expert=1" in caught.value.hint
    assert report.spectrum("experts.up", expert=1).tolist() == [4.0, 1.0]
    with pytest.raises(shadow.ShadowError, match="no spectrum of the base"):
        report.spectrum("experts.up", "base")
    with pytest.raises(shadow.ShadowError, match="no spectrum of a tensor") as caught:
        report.spectrum("expert.up")
    assert caught.value.hint == "did you mean 'experts.up'?"
    with pytest.raises(shadow.UsageError, match="no subject 'deltas'"):
        report.spectrum("experts.up", "deltas")


# What a notebook shows


class Tags(HTMLParser):
    """The elements and attributes of HTML, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("br", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_repr_is_three_lines(narrow):
    """What it is of, what its finding says, where it lies."""
    first, second, third = repr(narrow).splitlines()
    assert first == "demo:base..narrow: concentrated"
    assert second == narrow.summary.finding.headline
    assert third.startswith(str(narrow.folder))


def test_a_repr_has_no_label_out_of_its_reach_but_the_gates_that_failed(narrow, monkeypatch):
    """`not assessable` reads as a failure; a gate that failed is one."""
    summary = replace(narrow.summary, label="not assessable", reference=None)
    for gates, first in (
        (summary.gates, "demo:base..narrow"),
        ([replace(summary.gates[0], passed=False)], "demo:base..narrow: gate failed: changed"),
    ):
        monkeypatch.setitem(vars(narrow), "summary", replace(summary, gates=gates))
        assert repr(narrow).splitlines()[0] == first
        assert ("failed" in narrow._repr_html_()) == ("failed" in first)
        assert "not assessable" not in repr(narrow) + narrow._repr_html_()


def test_a_notebook_shows_headline_figures_and_heat_map(narrow):
    """What the terminal shows, and a cell with its norm for each layer and module; no script, no
    link.
    """
    html = narrow._repr_html_()
    shown = Tags(html)
    assert not shown.open
    assert narrow.summary.finding.headline in shown.text
    for name in ("relative norm", "concentration", "unchanged"):
        assert name in shown.text
    for row in narrow.summary.grid:
        for layer, norm in zip(row.layers, row.relative_norm, strict=True):
            assert f"layer {layer}, {row.module}: {text_of(norm, 'share')}" in shown.text
    assert not {tag for tag, _ in shown.tags} & {"script", "style", "link", "img", "iframe"}
    assert not re.search(r"url\(|href|src=", html)


def test_a_notebook_is_read_in_light_and_in_dark(narrow):
    """Text has the colour of the page around it; only cells have a fill of their own, and every one
    a frame.
    """
    shown = Tags(narrow._repr_html_())
    coloured = [
        (tag, told)
        for tag, told in shown.tags
        if "color" in told.get("style", "") or "fill" in told
    ]
    assert {tag for tag, _ in coloured} == {"svg", "rect"}
    assert all(told["fill"] == "currentColor" for tag, told in coloured if tag == "svg")
    assert all(told["stroke"] == "currentColor" for tag, told in coloured if tag == "rect")


def test_names_from_a_checkpoint_are_escaped(tmp_path):
    """Markup, quotes and control characters in every name that is shown."""
    evil = "<img src=x onerror=alert(1)>\"'&\x1b[2J"
    rows = [delta(0.4 + layer / 9, {**place(layer, evil), "component": evil}) for layer in range(5)]
    folder = write(tmp_path / "base..tuned", rows, tuned={**identity(1), "repo": evil}, family=evil)
    report = shadow.read(folder)
    html = report._repr_html_()
    assert "<img" not in html
    assert "\x1b" not in html + repr(report)
    ours = "div p strong em br table tr th td svg rect text title"
    assert {tag for tag, _ in Tags(html).tags} <= set(ours.split())
    assert len(repr(report).splitlines()) == 3


def test_a_report_that_broke_since_shows_its_fault(tmp_path):
    """A notebook shows no traceback."""
    report = shadow.read(uniform(tmp_path / "base..tuned", 0.4))
    (report.folder / "matrices.parquet").write_bytes(b"PAR1")
    (report.folder / "tensors.parquet").unlink()
    assert "not a report" in repr(report) or "cannot be read" in repr(report)
    assert "not a report" in report._repr_html_() or "cannot be read" in report._repr_html_()


# The other functions


def test_pairs_are_those_of_the_registry():
    """A glob, a tag, and everything."""
    found = shadow.pairs("qwen2.5-*")
    assert len(found) > 3
    assert all(pair.family.startswith("qwen2.5-") for pair in found)
    assert set(found) < set(shadow.pairs())
    assert shadow.pairs("demo") == shadow.pairs("demo:base..narrow", "demo:base..broad")
    assert 0 < len(shadow.pairs(tags=["stages"])) < len(shadow.pairs())


def test_a_plan_measures_nothing(known_pace, tmp_path):
    """A plan for each pair, and no folder."""
    (told,) = shadow.plan("demo:base..narrow", output=tmp_path / "out")
    assert told.pair == "base..narrow"
    assert told.seconds > 0  # also of matrices that take no time to speak of
    assert not (tmp_path / "out").exists()


def test_reports_are_compared_as_objects_or_folders(audited):
    """The narrow demo is more concentrated, whichever way its report is named."""
    narrow, broad = audited
    (contrast,) = shadow.compare(narrow, broad).contrasts
    assert contrast.verdict == "more concentrated"
    assert (
        shadow.compare(narrow.folder, str(broad.folder)).as_json()
        == shadow.compare(narrow, broad).as_json()
    )
    with pytest.raises(shadow.UsageError, match="margin of 2"):
        shadow.compare(narrow, broad, margin=2)


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """A CSV of what the demo's models scored on their probes."""
    path = tmp_path_factory.mktemp("scores") / "scores.csv"
    path.write_text(demo_scores())
    return path


def test_an_audit_takes_scores_that_others_measured(audited, scores, tmp_path):
    """The summary has what the command would say: the gain of each benchmark is the difference of
    the file's scores.
    """
    shutil.copytree(audited[0].folder.parents[1], tmp_path / "reports")
    said = []
    report = shadow.audit(
        "demo:base..narrow", output=tmp_path / "reports", scores=scores, say=said.append
    )
    file = pd.read_csv(scores).pivot(index="benchmark", columns="model", values="score")
    expected = file["demo:narrow"] - file["demo:base"]
    gains = {row["benchmark"]: row["gain"] for row in report.summary.as_json()["scores"]}
    assert gains == pytest.approx(dict(expected))
    assert any("scores of models that are not audited here: demo:broad" in text for text in said)
    assert (
        shadow.audit("demo:base..narrow", output=tmp_path / "reports", scores=[str(scores)])
        == report
    )
    with pytest.raises(shadow.ShadowError, match=r"no\.csv"):
        shadow.audit("demo:base..narrow", output=tmp_path / "reports", scores="no.csv")


def test_scores_that_name_no_model_are_refused_before_anything_is_measured(tmp_path):
    """One line that names the models of the file, and no report."""
    (tmp_path / "scores.csv").write_text("model,benchmark,score\norg/other,arc,0.5\n")
    with pytest.raises(shadow.ShadowError, match="org/other"):
        shadow.audit("demo:base..narrow", output=tmp_path / "out", scores=tmp_path / "scores.csv")
    assert not (tmp_path / "out").exists()


def test_gains_of_reports_are_held_against_their_concentrations(audited, scores):
    """Of reports, of their folders or the folder above: what `shadow compare --scores` prints."""
    narrow, broad = audited
    compared = shadow.compare(broad, narrow.folder, scores=scores)
    rows = compared.as_json()["scores"]["reports"]
    assert [row["pair"] for row in rows] == ["demo:base..broad", "demo:base..narrow"]
    assert {row["benchmark"] for row in rows[0]["scores"]} == {
        "narrow",
        "original",
        "broad",
        "held_out",
    }
    assert shadow.compare(narrow.folder.parent, scores=scores).as_json() == compared.as_json()
    assert shadow.compare(*audited).scores is None
    with pytest.raises(shadow.UsageError, match="1 report to compare"):
        shadow.compare(audited[0], scores=scores)


def test_a_report_is_judged_by_rules_a_policy_and_a_baseline(narrow, audited, tmp_path):
    """The outcomes and exit codes of `shadow gate`."""
    assert shadow.judge(narrow, "concentration > 0.1").code == 4
    assert shadow.judge(narrow, ["concentration > 0.9", "label == mixed"]).code == 0
    (tmp_path / "policy.yaml").write_text("narrow:\n  fail_on: concentration > 0.1\n")
    assert shadow.judge(narrow.folder, tmp_path / "policy.yaml").code == 4
    assert shadow.judge(narrow, against=audited[1]).code == 4
    with pytest.raises(shadow.UsageError, match="nothing to check"):
        shadow.judge(narrow)
    with pytest.raises(shadow.UsageError, match="no comparison '=>'"):
        shadow.judge(narrow, "concentration => 0.1")


def test_reports_are_exported_together(audited, tmp_path):
    """Objects, one of them, or the folder above: the rows of all that were named."""
    shadow.export(audited, "csv", tmp_path / "all")
    shadow.export(audited[0].folder.parent, "csv", tmp_path / "below")
    shadow.export(audited[0], "json", tmp_path / "one", tables=["matrices"])
    rows = pd.read_csv(tmp_path / "all" / "matrices.csv")
    assert len(rows) == sum(len(report.matrices) for report in audited)
    assert len(pd.read_csv(tmp_path / "below" / "matrices.csv")) == len(rows)
    assert len((tmp_path / "one" / "matrices.jsonl").read_text().splitlines()) == len(
        audited[0].matrices
    )
    with pytest.raises(shadow.UsageError, match="no format 'xlsx'"):
        shadow.export(audited, "xlsx", tmp_path / "x")


# The pages


EXAMPLES = re.findall(
    r"(?ms)(?<!-->\n)^```python\n(.*?)^```",  # not those that are marked as not run
    (ROOT / "docs" / "api.md").read_text(encoding="utf-8"),
)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_of_the_page_run_as_they_stand(number, audited, tmp_path, monkeypatch, capsys):
    """Each on its own, with the demo's reports where the page has them."""
    assert len(EXAMPLES) == 7
    (tmp_path / "reports").symlink_to(audited[0].folder.parents[1])
    monkeypatch.chdir(tmp_path)
    exec(EXAMPLES[number], {})
    wanted = [
        "concentrated 0.33",
        "",
        "base..narrow ",
        "+0.07",
        "lm_head.weight [",
        "demo:base..broad 0.25",
    ]
    wanted.append("more concentrated\n0 [")
    assert wanted[number] in capsys.readouterr().out


def test_the_notebook_shows_what_its_cells_make(audited, tmp_path, monkeypatch, capsys):
    """Run inside IPython: every cell works, and its printed and plain outputs are those that the
    file has.
    """
    nbformat = pytest.importorskip("nbformat")
    shells = pytest.importorskip("IPython.core.interactiveshell")
    (tmp_path / "reports").symlink_to(audited[0].folder.parents[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    shell = shells.InteractiveShell()
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        had = {output.output_type: output for output in cell.outputs}
        tree = shell.transform_cell(cell.source)
        result, printed = run_in(shell, tree, capsys)
        assert printed == had.get("stream", {}).get("text", "")
        if "execute_result" not in had:
            assert result is None
            continue
        shown, _ = shell.display_formatter.format(result)
        assert shown["text/plain"] == had["execute_result"].data["text/plain"]
        if isinstance(result, shadow.AuditReport):
            html = shown["text/html"].replace(str(ROOT), "...")  # as tests/notebook.py does
            assert html == had["execute_result"].data["text/html"]


def run_in(shell, source, capsys):
    """The value of the last expression of a cell, and what the cell prints."""
    *before, last = ast.parse(source).body
    value = None
    exec(compile(ast.Module(before, []), "cell", "exec"), shell.user_ns)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), shell.user_ns)
    else:
        exec(compile(ast.Module([last], []), "cell", "exec"), shell.user_ns)
    return value, capsys.readouterr().out
