"""Reports as the objects that the Python API returns, and what a notebook shows of them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from reports import delta, identity, place, uniform, write
from safetensors.torch import load_file

import shadow
from shadow.reports.columns import TABLES
from shadow.reports.provenance import Provenance
from shadow.reports.report import Report

ROOT = Path(__file__).parents[1]


@pytest.fixture
def narrow(demo_reports):
    return shadow.read(demo_reports / "base..narrow")


def test_tables_have_one_convention_for_what_is_missing(tmp_path):
    """Whole numbers Int64, flags boolean, texts string, numbers float64; missing where absent."""
    rows = [delta(0.4, place(None, "embed")), delta(0.3, place(2, "mlp.up"))]
    folder = write(tmp_path / "base..tuned", rows)
    older = pq.read_table(folder / "tensors.parquet").drop_columns(["all_zero", "nonfinite"])
    pq.write_table(older, folder / "tensors.parquet")
    report = Report(folder)
    kinds = {"int": "Int64", "bool": "boolean", "string": "string", "float": "float64"}
    kinds |= {"ints": "object"}
    for name in ("matrices", "tensors", "files"):
        frame = getattr(report, name)
        assert {column.name: kinds[column.type] for column in TABLES[name].columns} == {
            column: str(dtype) for column, dtype in frame.dtypes.items()
        }
    deltas = report.matrices[report.matrices["subject"] == "delta"]
    assert deltas["layer"].tolist() == [pd.NA, 2]
    assert deltas[["verified", "alpha"]].isna().all(axis=None)
    assert report.tensors[["all_zero", "nonfinite"]].isna().all(axis=None)
    assert deltas["concentration"].tolist() == [0.4, 0.3]
    assert report.spectra.empty
    assert list(report.spectra) == [column.name for column in TABLES["spectra"].columns]


def test_all_reports_of_a_folder_are_read_in_the_order_of_their_paths(tmp_path):
    """As `show` and `export` find them: in the folder and up to two levels below it."""
    for name in ("toy/b..c", "toy/a..b", "other"):
        uniform(tmp_path / name, 0.4)
    reports = shadow.read_all(tmp_path)
    assert isinstance(reports, shadow.AuditReports)
    names = ("other", "toy/a..b", "toy/b..c")
    for found, wanted in (
        (reports, names),
        (shadow.read_all(str(tmp_path / "toy")), names[1:]),
        (shadow.read_all(tmp_path / "other"), names[:1]),
    ):
        assert [report.folder for report in found] == [tmp_path / name for name in wanted]


def test_files_of_another_audit_are_refused(tmp_path):
    """tensors.parquet of another run under the same name."""
    report = shadow.read(uniform(tmp_path / "one" / "base..tuned", 0.4))
    other = uniform(tmp_path / "two" / "base..tuned", 0.4, base=identity(9))
    (other / "tensors.parquet").replace(report.folder / "tensors.parquet")
    with pytest.raises(shadow.ShadowError):
        _ = report.tensors


def test_provenance_is_typed_and_whole(narrow):
    """Every field of a new report is told, and as_json is what its files say."""
    recorded = narrow.provenance
    assert isinstance(recorded, Provenance)
    assert recorded.base.repo.endswith("demo/base")
    assert (recorded.relation, recorded.level) == ("tuned", "full")
    assert recorded.as_json()["seconds"] > 0
    assert set(recorded.as_json()["libraries"]) >= {"torch", "numpy"}
    metadata = pq.read_schema(narrow.folder / "tensors.parquet").metadata[b"shadow"]
    assert recorded.as_json() == json.loads(metadata)


def test_a_folder_without_a_report_is_told_at_once(tmp_path):
    """By read, not by the first table that is asked for."""
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(shadow.ShadowError, match=folder.name):
            shadow.read(folder)
    uniform(tmp_path / "a", 0.4)
    assert shadow.read(tmp_path).folder == tmp_path / "a"
    uniform(tmp_path / "b", 0.4)
    with pytest.raises(shadow.ShadowError) as refused:
        shadow.read(tmp_path)
    assert "shadow.read_all" in refused.value.hint


def test_spectra_are_arrays_of_what_numpy_finds(narrow):
    """Of the delta, the base and the tuned side of one matrix."""
    demo = ROOT / "registry" / "demo"
    files = (load_file(demo / side / "model.safetensors") for side in ("base", "narrow"))
    base, tuned = ({name: one.float().numpy() for name, one in file.items()} for file in files)
    name = narrow.deltas.query("module == 'mlp.up' and layer == 1")["tensor"].item()
    wanted = {"base": base[name], "tuned": tuned[name], "delta": tuned[name] - base[name]}
    of_tensor = narrow.spectra[narrow.spectra["tensor"] == name].set_index("subject")["sigma"]
    assert set(of_tensor.index) == set(wanted)
    for subject, matrix in wanted.items():
        sigma = np.linalg.svd(matrix, compute_uv=False)
        np.testing.assert_allclose(of_tensor[subject], sigma, rtol=1e-3, atol=1e-4)


# What a notebook shows


def test_a_repr_is_three_lines(narrow):
    """What it is of, what its finding says, where it lies."""
    first, second, third = repr(narrow).splitlines()
    assert first == "demo:base..narrow"
    assert second == narrow.summary.finding.headline
    assert third.startswith(str(narrow.folder))
    assert second[:40] in narrow._repr_html_()


def test_names_from_a_checkpoint_are_escaped(tmp_path):
    """Control characters in every name that is shown."""
    evil = "<img src=x onerror=alert(1)>\"'&\x1b[2J"
    rows = [delta(0.4 + layer / 9, {**place(layer, evil), "component": evil}) for layer in range(5)]
    folder = write(tmp_path / "base..tuned", rows, tuned={**identity(1), "repo": evil}, family=evil)
    report = shadow.read(folder)
    assert "\x1b" not in repr(report)
    assert len(repr(report).splitlines()) == 3
    assert "<img" not in report._repr_html_()


def test_a_report_that_broke_since_shows_its_fault(tmp_path):
    """A notebook shows no traceback."""
    report = shadow.read(uniform(tmp_path / "base..tuned", 0.4))
    (report.folder / "matrices.parquet").write_bytes(b"PAR1")
    (report.folder / "tensors.parquet").unlink()
    assert "matrices.parquet" in repr(report)
    assert report._repr_html_() is None
