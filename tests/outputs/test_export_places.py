"""An export is whole or not there, replaces its own alone, and refuses what is no report."""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from effort import chosen
from exports import FOLDERS, toy

from shadow.errors import ShadowError, UsageError
from shadow.files import placing
from shadow.outputs.exports import FORMATS, export
from shadow.outputs.exports.formats import MANIFEST

# Whole or not at all, and nowhere else


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def content(path):
    return tree(path) if path.is_dir() else path.read_bytes()


@pytest.mark.parametrize("to", chosen(FORMATS, ("parquet", "duckdb", "csv")))
def test_an_export_replaces_its_own_and_nothing_else_changes(folders, runs, tmp_path, to):
    """Twice to one place: the second takes the first's. The reports are as before, nothing lies
    beside the export.
    """
    before = tree(runs)
    target = tmp_path / "new" / "out"
    for some in (folders[:1], folders[:2]):
        done = export(some, to, target)
        assert (done.reports, done.rows["matrices"]) == (len(some), 27 * len(some))
    assert [path.name for path in (*tmp_path.iterdir(), *target.parent.iterdir())] == ["new", "out"]
    assert tree(runs) == before
    if to != "duckdb":  # whose files hold random numbers
        export(folders[:2], to, tmp_path / "again")
        assert content(target) == content(tmp_path / "again")


def test_an_export_to_another_format_is_not_replaced(folders, tmp_path):
    """`--to json` over a folder of CSV: refused, and the CSV is still there."""
    export(folders[:1], "csv", tmp_path / "out")
    before = tree(tmp_path)
    with pytest.raises(ShadowError, match="something other than an unchanged export to json"):
        export(folders[:1], "json", tmp_path / "out")
    assert tree(tmp_path) == before


def spoil_file(path):
    path.write_text("somebody's")


def spoil_folder(path):
    path.mkdir()
    (path / "notes.txt").write_text("somebody's")


@pytest.mark.parametrize(
    "spoil", [spoil_file, spoil_folder, Path.mkdir, lambda path: path.symlink_to("nowhere")]
)
@pytest.mark.parametrize("to", FORMATS)
def test_what_is_somebody_elses_is_refused_and_stays(folders, tmp_path, to, spoil):
    """A file, a folder, an empty folder, a link at the place: one line, and all is as before."""
    spoil(tmp_path / "out")
    before = tree(tmp_path), (tmp_path / "out").is_symlink()
    with pytest.raises(ShadowError, match="already exists"):
        export(folders[:1], to, tmp_path / "out")
    assert (tree(tmp_path), (tmp_path / "out").is_symlink()) == before


def added_file(path):
    (path / "mine.txt").write_text("x")


def changed_file(path):
    next(file for file in sorted(path.rglob("*")) if file.is_file()).open("a").write("x")


def removed_manifest(path):
    (path / MANIFEST).unlink()


@pytest.mark.parametrize("touch", [added_file, changed_file, removed_manifest])
@pytest.mark.parametrize("to", FOLDERS)
def test_an_export_that_somebody_touched_is_not_replaced(folders, tmp_path, to, touch):
    """A file added, changed or taken away: refused."""
    export(folders[:1], to, tmp_path / "out")
    touch(tmp_path / "out")
    before = tree(tmp_path)
    with pytest.raises(ShadowError, match="something other than an unchanged export"):
        export(folders[:1], to, tmp_path / "out")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("to", ["sqlite", "duckdb"])
@pytest.mark.parametrize(
    "statement", ["CREATE TABLE notes (text TEXT)", "CREATE VIEW mine AS SELECT 1 AS one"]
)
def test_a_database_with_more_in_it_is_not_replaced(folders, tmp_path, to, statement):
    """A table or view of somebody's own is not lost."""
    export(folders[:1], to, tmp_path / "out")
    base = (sqlite3 if to == "sqlite" else duckdb).connect(str(tmp_path / "out"))
    base.execute(statement)
    base.close()
    with pytest.raises(ShadowError, match="something other than an unchanged export"):
        export(folders[:1], to, tmp_path / "out")


@pytest.mark.parametrize("to", ["sqlite", "duckdb"])
def test_a_pipe_in_the_place_of_a_database_is_refused_without_waiting(folders, tmp_path, to):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(ShadowError, match="already exists"):
        export(folders[:1], to, tmp_path / "x")


def test_a_database_in_a_folder_whose_name_is_no_text_is_known_again(folders, tmp_path):
    place = tmp_path / os.fsdecode(b"\xff") / "x.sqlite"
    for _ in range(2):
        export(folders[:1], "sqlite", place)
    assert place.is_file()


def test_what_cannot_be_read_is_not_replaced(tmp_path):
    """It may be anybody's."""

    def unreadable(path):
        raise PermissionError

    (tmp_path / "x").write_text("mine")
    with (
        pytest.raises(ShadowError, match="already exists"),
        placing(tmp_path / "x", unreadable, "ours") as aside,
    ):
        aside.write_text("ours")
    assert (tmp_path / "x").read_text() == "mine"


@pytest.mark.parametrize("to", FORMATS)
def test_a_broken_report_leaves_the_former_export(folders, tmp_path, to):
    """The last of several reports is cut: an error, what was exported before is there, whole."""
    good, bad = (shutil.copytree(folders[0], tmp_path / name) for name in ("good", "bad"))
    rename(bad, pair="another")
    export([good], to, tmp_path / "out")
    before = content(tmp_path / "out")
    (bad / "tensors.parquet").write_bytes((bad / "tensors.parquet").read_bytes()[:-9])
    with pytest.raises(ShadowError, match="cannot be read"):
        export([good, bad], to, tmp_path / "out")
    assert content(tmp_path / "out") == before
    assert {path.name for path in tmp_path.iterdir()} == {"good", "bad", "out"}


def rename(folder, **told):
    """Other metadata in every file of a report."""
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        metadata = {**json.loads(table.schema.metadata[b"shadow"]), **told}
        pq.write_table(
            table.replace_schema_metadata({b"shadow": json.dumps(metadata).encode()}), path
        )


@pytest.mark.parametrize("to", FORMATS)
def test_a_disk_that_gives_out_leaves_nothing(shadow, runs, tmp_path, to):
    """No file may exceed 6,000 bytes: exit 1, one line, neither the export nor a part of it."""
    error = shadow("export", runs, "--to", to, "-o", "new/out", file_size=6000).assert_refused()
    assert "cannot write" in error
    assert not list(tmp_path.iterdir())


# What goes in


def test_some_tables_only(folders, tmp_path):
    """`--table` leaves the others out; the table of reports is always there."""
    done = export(folders, "csv", tmp_path / "out", ["residual"])
    files = {path.name for path in (tmp_path / "out").glob("*.csv")}
    assert files == {"reports.csv", "residual.csv"}
    assert list(done.rows) == ["reports", "residual"]
    with pytest.raises(UsageError, match="no table 'weights'"):
        export(folders, "csv", tmp_path / "out", ["weights"])


def test_metadata_without_sense_are_null_or_text(tmp_path):
    """Wrong types, numbers that are none, halves of letters: text or null in every format."""
    method = {"precision": "x", "nulls": "many", "seed": 10**40, "subspaces": 1}
    odd = {
        "settings": {"method": method, "relation": ["a"]},
        "label": {"a": math.nan},
        "seconds": math.inf,
        "family": "half \ud800 letter",
    }
    folder = toy(tmp_path / "a", "x", "y", 0)
    rename(folder, **odd)
    for to in FORMATS:
        export([folder], to, tmp_path / to)
    row = json.loads((tmp_path / "json" / "reports.jsonl").read_text())
    known = {"nulls": None, "seed": None, "subspaces": None, "seconds": None}
    known |= {"relation": '["a"]', "label": '{"a": null}', "family": "half ? letter"}
    assert {key: row[key] for key in known} == known


def test_two_reports_of_one_pair_are_refused(folders, tmp_path):
    """They would be one set of rows twice."""
    twin = shutil.copytree(folders[0], tmp_path / "twin")
    with pytest.raises(ShadowError, match="both reports of"):
        export([folders[0], twin], "csv", tmp_path / "out")


def test_text_that_is_none_is_refused(folders, tmp_path):
    """Bytes that are no UTF-8 in a report: one line, nothing written."""
    folder = shutil.copytree(folders[0], tmp_path / "a")
    table = pq.read_table(folder / "tensors.parquet")
    broken = pa.array([b"\xff"] * len(table)).view("string")
    place = table.column_names.index("tensor")
    pq.write_table(table.set_column(place, "tensor", broken), folder / "tensors.parquet")
    with pytest.raises(ShadowError, match="cannot be read"):
        export([folder], "csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_writes_beside_itself_and_says_what(shadow, runs, tmp_path):
    """Without -o the export is called after RUN, in the working folder; no data go to stdout."""
    done = shadow("export", runs, "--to", "sqlite")
    assert done.assert_done() == ""
    assert f"{runs.name}.sqlite: a SQLite database; rows: 6 reports, 162 matrices" in done.err
    assert "1 of 6 reports were made before these columns existed" in done.err
    assert [path.name for path in tmp_path.iterdir()] == [f"{runs.name}.sqlite"]


def test_wrong_usage_of_export(shadow, runs, tmp_path):
    """No report there, a name that is too long, a format or table that is none."""
    assert "no such folder" in shadow("export", "nowhere", "--to", "csv").assert_refused()
    (tmp_path / "empty").mkdir()
    assert "no finished report" in shadow("export", "empty", "--to", "csv").assert_refused()
    assert "too long" in shadow("export", "x" * 5000, "--to", "csv").assert_refused().lower()
    for output in ("x" * 5000, f"{'x' * 5000}/y"):
        done = shadow("export", runs, "--to", "csv", "-o", output)
        assert "too long" in done.assert_refused().lower()
    assert shadow("export", runs, "--to", "xlsx").code == 2
    table = shadow("export", runs, "--to", "csv", "--table", "x")
    assert "no table" in table.assert_refused(code=2)
