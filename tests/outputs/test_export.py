"""Exports say what the reports' Parquet files say, and are whole or not there."""

import csv
import json
import math
import shutil

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import delta, places, write

from shadow.errors import ShadowError, UsageError
from shadow.outputs import exports
from shadow.outputs.exports import FORMATS, PAIR, cell, export
from shadow.reports.columns import TABLES
from shadow.reports.folders import TABLES_OF_A_PAIR


@pytest.fixture(scope="module")
def exported(folders, tmp_path_factory):
    """The same reports in every format, by its name."""
    out = tmp_path_factory.mktemp("exported")
    for to in FORMATS:
        export(folders, to, out / to)
    return {to: out / to for to in FORMATS}


@pytest.fixture(scope="module")
def truth(folders):
    """The rows by table, from the Parquet files alone: null where a number is none."""
    found = {name: [] for name in TABLES_OF_A_PAIR}
    for folder in folders:
        recorded = json.loads(pq.read_schema(folder / "matrices.parquet").metadata[b"shadow"])
        where = {"family": recorded["family"], "pair": recorded["pair"]}
        for name in TABLES_OF_A_PAIR:
            path = folder / f"{name}.parquet"
            for row in pq.read_table(path).to_pylist() if path.exists() else []:
                found[name].append({key: plain(value) for key, value in (row | where).items()})
    return found


def plain(value):
    if isinstance(value, list):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def same(found, wanted, names):
    """The same rows in any order, number for number, with -0.0 apart from 0.0."""
    texts = [sorted(repr([row[key] for key in names]) for row in rows) for rows in (found, wanted)]
    assert texts[0] == texts[1]


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def tree(folder):
    return {path: path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("name", TABLES_OF_A_PAIR)
def test_csv_reads_back_with_the_standard_library(exported, truth, name):
    """Every cell by the type of its column; no text begins like a formula; rows end in CRLF."""
    types = dict.fromkeys(PAIR, "string")
    types |= {column.name: column.type for column in TABLES[name].columns}
    found = rows_of(exported["csv"] / f"{name}.csv")
    assert list(types)[:2] == ["family", "pair"]
    for row in found:
        assert list(row) == list(types)
        for key, text in row.items():
            assert types[key] != "string" or not text.startswith(("=", "+", "-", "@", "\t", "\r"))
            back = str.removeprefix if types[key] == "string" else lambda text, _: json.loads(text)
            row[key] = back(text, "'") if text else None
    same(found, truth[name], truth[name][0])
    assert (exported["csv"] / f"{name}.csv").read_bytes().endswith(b"\r\n")


@given(st.text(min_size=1))
def test_text_in_csv_is_no_formula_and_comes_back(text):
    assert not cell(text).startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert cell(text).removeprefix("'") == text


@pytest.mark.parametrize("name", TABLES_OF_A_PAIR)
def test_one_line_opens_the_dataset_of_all_families(exported, truth, name):
    """Family and pair come from the path, whatever they are called."""
    frame = pd.read_parquet(exported["parquet"] / name)
    own = [column.name for column in TABLES[name].columns if column.type in ("float", "string")]
    numbers = list(dict.fromkeys([*PAIR, *own]))
    found = frame[numbers].astype(object).where(frame[numbers].notna(), None).to_dict("records")
    same(found, truth[name], numbers)
    parts = [path.relative_to(exported["parquet"] / name).parts for path in
             (exported["parquet"] / name).rglob("*.parquet")]  # fmt: skip
    assert all(len(one) == 3 and one[2] == "part-0.parquet" for one in parts)


def test_markdown_has_what_show_prints_of_each_report(exported, folders):
    text = (exported["markdown"] / "reports.md").read_text()
    assert text.count("\n**") >= len(folders)


def test_missing_spectra_are_a_fault_where_they_were_written(tmp_path):
    """A table with fewer rows would say nothing of it."""
    settings = {"method": {"level": "full"}, "spectra": True}
    write(tmp_path / "run", [delta(0.1, where) for where in places(3)], settings=settings)
    with pytest.raises(ShadowError, match=r"spectra\.parquet"):
        export([tmp_path / "run"], "csv", tmp_path / "csv")


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_takes_an_empty_place_and_replaces_nothing(folders, runs, tmp_path, to):
    """A former export, a file and a link stay as they are; so do the reports."""
    before, out = tree(runs), tmp_path / "new" / "out"
    out.mkdir(parents=True)
    assert export(folders[:2], to, out) == out
    assert [path.name for path in tmp_path.rglob("*out*")] == ["out"]
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    there = tree(tmp_path)
    for taken in (out, tmp_path / "file", tmp_path / "link"):
        with pytest.raises(ShadowError, match=taken.name):
            export(folders[:1], to, taken)
    assert tree(tmp_path) == there
    assert tree(runs) == before


@pytest.mark.parametrize("to", FORMATS)
def test_a_broken_report_or_two_of_one_pair_leave_nothing(folders, tmp_path, to):
    """The last of several reports is cut, or one of a pair that is there: no part of an export."""
    twin = shutil.copytree(folders[0], tmp_path / "twin")
    with pytest.raises(ShadowError, match=str(twin)):
        export([folders[0], twin], to, tmp_path / "out")
    shutil.rmtree(twin)
    bad = shutil.copytree(folders[1], tmp_path / "bad")
    (bad / "summary.json").unlink(missing_ok=True)
    (bad / "tensors.parquet").write_bytes((bad / "tensors.parquet").read_bytes()[:-9])
    with pytest.raises(ShadowError, match=r"tensors\.parquet"):
        export([folders[0], bad], to, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"bad"}


def test_a_disk_that_gives_out_leaves_nothing(shadow, runs, tmp_path):
    """No file may exceed 6,000 bytes: exit 1, one line, neither the export nor a part of it."""
    for to in ("csv", "parquet"):
        done = shadow("export", runs, "--to", to, "-o", "new/out", file_size=6000)
        done.assert_refused()
        assert not list(tmp_path.iterdir())


def test_a_family_that_is_no_text_is_exported(tmp_path):
    """JSON may hold halves of letters."""
    folder = write(tmp_path / "a", [delta(0.1, places(1)[0])], family="half \ud800 letter")
    for to in FORMATS:
        export([folder], to, tmp_path / to)
    assert rows_of(tmp_path / "csv" / "tensors.csv")[0]["family"] == "half ? letter"


def test_the_command_writes_beside_itself_and_says_what(inside, runs, tmp_path):
    """Without -o the export is called after RUN, in the working folder; no data go to stdout."""
    done = inside("export", runs, "--to", "csv")
    assert done.assert_done() == ""
    assert f"{runs.name}-csv" in done.err
    assert [path.name for path in tmp_path.iterdir()] == [f"{runs.name}-csv"]


def test_a_format_that_is_not_known_is_wrong_usage(inside, folders, tmp_path):
    """On the command line and in Python, with those that there are."""
    done = inside("export", folders[0], "--to", "arrow")
    done.assert_refused(code=2)
    assert all(word in done.err for word in FORMATS)
    with pytest.raises(UsageError, match="arrow") as raised:
        export(folders[:1], "arrow", tmp_path / "out")
    assert all(word in raised.value.hint for word in FORMATS)


def test_wrong_usage_of_export(inside, runs, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("nowhere", "empty"):
        assert folder in inside("export", folder, "--to", "csv").assert_refused()
    for words in (("--to", "xlsx"), ("--to", "csv", "--table", "files")):
        inside("export", runs, *words).assert_refused(code=2)


def test_an_empty_folder_is_free(tmp_path):
    """No folder with a file, no file, and nothing that is not there."""
    file = tmp_path / "full" / "file"
    file.parent.mkdir()
    file.touch()
    (tmp_path / "empty").mkdir()
    paths = (tmp_path / "empty", file.parent, file, tmp_path / "none")
    assert [exports._is_empty(path) for path in paths] == [True, False, False, False]
