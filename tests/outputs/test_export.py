"""Exports say what the reports' Parquet files say, read back by the tools they are for."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
import shutil
import sqlite3
from urllib.parse import quote, unquote

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import yaml
from exports import HOSTILE, toy
from hypothesis import given
from hypothesis import strategies as st
from reports import delta, places, write

from shadow.errors import ShadowError
from shadow.outputs.exports import FORMATS, export
from shadow.outputs.exports.formats import code_span, neutral, partition
from shadow.reports.columns import REPORTS, TABLES
from shadow.reports.folders import reports_below
from shadow.reports.parquet import arrow_schema
from shadow.reports.report import Report

NAMES = ("reports", "matrices", "tensors", "residual", "files", "spectra")


@pytest.fixture(scope="module")
def exported(folders, tmp_path_factory):
    """The same reports in every format, by its name."""
    out = tmp_path_factory.mktemp("exported")
    for to in FORMATS:
        export(folders, to, out / to)
    return {to: out / to for to in FORMATS}


@pytest.fixture(scope="module")
def truth(folders):
    """The rows that every format must have, by table, from the Parquet files alone: null where a
    number is none.
    """
    found = {name: [] for name in NAMES}
    for folder in folders:
        told = json.loads(pq.read_schema(folder / "matrices.parquet").metadata[b"shadow"])
        where = {"family": told["family"], "pair": told["pair"]}
        for name in NAMES[1:]:
            path = folder / f"{name}.parquet"
            for row in pq.read_table(path).to_pylist() if path.exists() else []:
                found[name].append({key: plain(value) for key, value in (row | where).items()})
        found["reports"].append(where)
    return found


def plain(value):
    if isinstance(value, list):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def same(found, wanted, columns=None):
    """The same rows in any order, number for number, with -0.0 apart from 0.0."""
    names = [name for name in wanted[0] if columns is None or name in columns]
    assert len(found) == len(wanted)
    key = [sorted(repr([row[name] for name in names]) for row in rows) for rows in (found, wanted)]
    assert key[0] == key[1]


def frame_rows(frame):
    """The rows of a pandas frame as Python values, null for NaN."""
    return [{name: None if is_null(value) else pythonic(value) for name, value in row.items()}
            for row in frame.astype(object).to_dict("records")]  # fmt: skip


def is_null(value):
    return not isinstance(value, list | np.ndarray) and pd.isna(value)


def pythonic(value):
    if isinstance(value, np.ndarray):
        return [plain(float(one)) if isinstance(one, float) else one for one in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value


# CSV


def cells(folder, name):
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_missing_spectra_are_a_fault_where_they_were_written(tmp_path):
    """A table with fewer rows would say nothing of it; other tables are exported all the same."""
    settings = {"method": {"precision": "default"}, "spectra": True}
    write(tmp_path / "run", [delta(0.1, where) for where in places(3)], settings=settings)
    with pytest.raises(ShadowError, match=r"spectra.parquet is missing from this report"):
        export([tmp_path / "run"], "csv", tmp_path / "csv")
    with pytest.raises(ShadowError, match=r"spectra.parquet is missing from this report"):
        assert Report(tmp_path / "run").has_spectra
    assert export([tmp_path / "run"], "csv", tmp_path / "csv", ["matrices"]).rows["matrices"]


@pytest.mark.parametrize("name", NAMES[1:])
def test_csv_reads_back_with_the_standard_library(exported, truth, name):
    """Every cell, by the type of its column: numbers exactly, lists as JSON, text without the
    apostrophe before it.
    """
    back = {
        "int": int,
        "float": float,
        "bool": {"true": True, "false": False}.__getitem__,
        "string": lambda text: text.removeprefix("'"),
    }
    types = {column.name: column.type for column in TABLES[name].exported}
    found = [
        {
            key: None if text == "" else back.get(types[key], json.loads)(text)
            for key, text in row.items()
        }
        for row in cells(exported["csv"], name)
    ]
    same(found, truth[name])
    assert list(found[0]) == [column.name for column in TABLES[name].exported]


def test_csv_is_that_of_rfc_4180_and_holds_no_formula(exported):
    """CRLF ends a row, UTF-8 without a mark, every row has as many fields; no text cell begins like
    a formula.
    """
    for name in NAMES:
        raw = (exported["csv"] / f"{name}.csv").read_bytes()
        assert raw.endswith(b"\r\n")
        assert not raw.startswith(b"\xef\xbb\xbf")
        rows = cells(exported["csv"], name)
        assert all(None not in row and None not in row.values() for row in rows)
        for column in TABLES[name].exported:
            if column.type == "string":
                assert not any(row[column.name][:1] in set("=+-@\t\r\n") - {""} for row in rows)


@given(st.text())
def test_neutral_text_is_no_formula_and_comes_back(text):
    """For any text: it does not begin like a formula, and without one apostrophe at its beginning
    it is the text.
    """
    found = neutral(text)
    assert not found.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert found.removeprefix("'") == text


EXACT = {} if int(pd.__version__.partition(".")[0]) >= 3 else {"float_precision": "round_trip"}


def test_csv_reads_back_with_pandas_polars_and_duckdb(exported, truth):
    """The numbers of matrices.csv, bit for bit, and the text as it stands in the file."""
    path = exported["csv"] / "matrices.csv"
    numbers = [
        column.name for column in TABLES["matrices"].columns if column.type in ("int", "float")
    ]
    found = {
        "pandas": frame_rows(pd.read_csv(path, **EXACT)),
        "polars": pl.read_csv(path, infer_schema_length=None).to_dicts(),
        "duckdb": frame_rows(duckdb.read_csv(str(path), sample_size=-1).df()),
    }
    for rows in found.values():
        assert [row["tensor"] for row in rows] == [
            neutral(row["tensor"]) for row in truth["matrices"]
        ]
        for name in numbers:
            wanted = [row[name] for row in truth["matrices"]]
            got = [
                None if row[name] is None else type(want)(row[name])
                for row, want in zip(rows, wanted, strict=True)
            ]
            assert got == wanted, name


def test_the_data_package_describes_every_file(exported):
    """datapackage.json names every CSV file and every column in order, and its types are those that
    they have.
    """
    package = json.loads((exported["csv"] / "datapackage.json").read_text())
    assert [one["path"] for one in package["resources"]] == [f"{name}.csv" for name in NAMES]
    for one in package["resources"]:
        heads = list(cells(exported["csv"], one["name"])[0])
        assert [field["name"] for field in one["schema"]["fields"]] == heads
    types = {field["name"]: field["type"] for field in package["resources"][2]["schema"]["fields"]}
    assert (types["shape"], types["layer"], types["relative_norm"], types["tensor"]) == (
        "array", "integer", "number", "string",
    )  # fmt: skip


# JSON and Arrow


def forbidden(text):
    raise AssertionError(f"{text} is no JSON")


@pytest.mark.parametrize("name", NAMES[1:])
def test_json_lines_are_the_rows(exported, truth, name):
    """One ASCII line a row with every key, no NaN; polars and pandas read the same file."""
    path = exported["json"] / f"{name}.jsonl"
    lines = path.read_bytes().decode("ascii").splitlines()
    rows = [json.loads(line, parse_constant=forbidden) for line in lines]
    same(rows, truth[name])
    assert {tuple(row) for row in rows} == {tuple(column.name for column in TABLES[name].exported)}
    assert pl.read_ndjson(path, infer_schema_length=None).height == len(rows)
    assert duckdb.read_json(str(path)).shape == (len(rows), len(rows[0]))
    texts = pd.read_json(path, lines=True, dtype={"tensor": str})
    if "tensor" in rows[0]:
        assert texts["tensor"].tolist() == [row["tensor"] for row in truth[name]]


@pytest.mark.parametrize("name", NAMES[1:])
def test_arrow_files_are_the_rows(exported, truth, name):
    """Feather 2 for pandas and Arrow IPC for polars, with the types of the report, and what each
    column is.
    """
    path = exported["arrow"] / f"{name}.arrow"
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    same(table.to_pylist(), truth[name])
    assert table.schema.equals(arrow_schema(TABLES[name].exported))
    assert pyarrow.feather.read_table(path).equals(table)
    same(pl.read_ipc(path).to_dicts(), truth[name])
    floats = [column.name for column in TABLES[name].exported if column.type == "float"]
    same(frame_rows(pd.read_feather(path)), truth[name], floats)
    about = json.loads(table.schema.metadata[b"shadow"])
    assert (about["schema"], about["table"], len(about["reports"])) == (1, name, len(HOSTILE))
    if name == "matrices":
        formula = table.schema.field("concentration").metadata[b"formula"]
        assert b"ln(null_participation_ratio" in formula


# The partitioned dataset


def dataset(exported, name):
    return str(exported["parquet"] / name)


@pytest.mark.parametrize("name", NAMES[1:])
def test_one_line_opens_the_dataset_of_all_families(exported, truth, name):
    """pandas, Polars and DuckDB: the same rows, and family and pair from the path, whatever they
    are called.
    """
    folder = dataset(exported, name)
    # floats in pandas, with null
    integers = {column.name for column in TABLES[name].exported if column.type == "int"}
    same(frame_rows(pd.read_parquet(folder)), truth[name], {*truth[name][0]} - integers)
    same(pl.scan_parquet(folder).collect().to_dicts(), truth[name])
    rows = duckdb.sql(f"FROM '{folder}/*/*/*.parquet'")
    names = [column[0] for column in rows.description]
    same([dict(zip(names, row, strict=True)) for row in rows.fetchall()], truth[name])


def test_a_filter_reads_one_partition(exported, truth):
    """Family and pair are columns that can be asked for."""
    folder, family = dataset(exported, "matrices"), HOSTILE[1][0]
    wanted = sum(row["family"] == family for row in truth["matrices"])
    assert len(pd.read_parquet(folder, filters=[("family", "==", family)])) == wanted
    assert pl.scan_parquet(folder).filter(pl.col("family") == family).collect().height == wanted
    query = f"SELECT count(*) FROM '{folder}/*/*/*.parquet' WHERE family = ?"
    assert duckdb.execute(query, [family]).fetchone() == (wanted,)


def test_the_files_of_the_dataset_lie_in_it(exported):
    """TABLE/family=F/pair=P/part-0.parquet, five names deep, of plain letters; no column twice."""
    top = exported["parquet"]
    paths = [*top.rglob("*.parquet")]
    assert len(paths) == len(NAMES) * len(HOSTILE)
    form = re.compile(r"\w+/family=[\w.~%-]+/pair=[\w.~%-]+/part-0\.parquet", re.ASCII)
    for path in paths:
        assert form.fullmatch(path.relative_to(top).as_posix())
        assert not {"family", "pair"} & set(pq.read_schema(path).names)


@given(st.text(min_size=1))
def test_a_partition_is_one_folder_whose_name_comes_back(text):
    """For any value: one plain name in a path, from which the value can be read again."""
    try:
        found = partition("family", text)
    except ShadowError:
        too_long = len(f"family={quote(text, safe='')}") > 255
        assert text == "__HIVE_DEFAULT_PARTITION__" or too_long
        return
    assert re.fullmatch(r"family=[\w.~%-]+", found, re.ASCII)
    assert unquote(found.removeprefix("family=")) == text


def test_a_name_that_would_read_as_null_is_refused(tmp_path):
    """Hive's word for null is no name of a partition; the other formats take it."""
    folder = toy(tmp_path / "a", "__HIVE_DEFAULT_PARTITION__", "x", 0)
    with pytest.raises(ShadowError, match="would read as null"):
        export([folder], "parquet", tmp_path / "out")
    export([folder], "sqlite", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "out"}


def test_a_name_that_is_too_long_for_a_partition_is_refused_with_a_way_out(tmp_path):
    """A letter of Chinese is nine in a partition: 30 of them make no folder, and no other place
    would help.
    """
    folder = toy(tmp_path / "a", "模" * 30, "x", 0)
    with pytest.raises(ShadowError, match="too long for a partition") as refused:
        export([folder], "parquet", tmp_path / "out")
    assert refused.value.hint == "export to another format"
    export([folder], "csv", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "out"}


# Databases


@pytest.mark.parametrize("name", NAMES[1:])
def test_sqlite_has_the_rows_with_their_types(exported, truth, name):
    """Values as SQLite stores them: integers, reals, text, null; lists are JSON, flags 0 and 1."""
    with sqlite3.connect(exported["sqlite"]) as base:
        base.row_factory = sqlite3.Row
        query = f'SELECT * FROM "{name}" ORDER BY family, pair, ordinal'
        rows = [dict(row) for row in base.execute(query)]
    back = {"ints": json.loads, "floats": json.loads, "bool": bool}
    for row in rows:
        for column in TABLES[name].exported:
            if row[column.name] is not None:
                row[column.name] = back.get(column.type, lambda value: value)(row[column.name])
    assert [row.pop("ordinal") for row in rows][:3] == [0, 1, 2]
    # SQLite has no -0.0
    unsigned = [
        {key: value + 0.0 if isinstance(value, float) else value for key, value in row.items()}
        for row in truth[name]
    ]
    same(rows, unsigned)


@pytest.mark.parametrize("name", NAMES[1:])
def test_duckdb_has_the_rows_with_their_types(exported, truth, name):
    """Every value as DuckDB stores it, lists as lists; every column has a comment."""
    with duckdb.connect(str(exported["duckdb"]), read_only=True) as base:
        rows = base.sql(f'SELECT * FROM "{name}" ORDER BY family, pair, ordinal')
        heads = [column[0] for column in rows.description]
        found = [dict(zip(heads, row, strict=True)) for row in rows.fetchall()]
        columns = "column_name, data_type, comment FROM duckdb_columns()"
        about = base.execute(f"SELECT {columns} WHERE table_name = ?", [name]).fetchall()
    assert all(comment for _, _, comment in about)
    same(found, truth[name])
    sql = {"string": "VARCHAR", "int": "BIGINT", "float": "DOUBLE", "bool": "BOOLEAN"}
    sql |= {"ints": "BIGINT[]", "floats": "FLOAT[]"}
    wanted = {(column.name, sql[column.type]) for column in TABLES[name].exported}
    assert wanted <= {(column, kind) for column, kind, _ in about}


@pytest.mark.parametrize("to", ["sqlite", "duckdb"])
def test_databases_have_keys_views_and_a_description(exported, truth, to):
    """No row is there twice, or without its report; `deltas` is the deltas; `schema_columns` says
    what is what.
    """
    copy = exported[to].with_name(f"copy-of-{to}")
    shutil.copy(exported[to], copy)
    connect, fault = (
        (sqlite3.connect, sqlite3.Error) if to == "sqlite" else (duckdb.connect, duckdb.Error)
    )
    base = connect(str(copy))
    try:
        if to == "sqlite":
            base.execute("PRAGMA foreign_keys = ON")
            assert base.execute("PRAGMA user_version").fetchone() == (1,)
            assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            plan = base.execute(
                "EXPLAIN QUERY PLAN SELECT * FROM matrices WHERE component = 'language'"
                " AND module = 'mlp.up'"
            )
            assert "matrices_by_place" in str(plan.fetchall())
        for row in ("SELECT family, pair, 0 FROM reports LIMIT 1", "VALUES ('nobody', 'a..b', 0)"):
            with pytest.raises(fault):
                base.execute(f"INSERT INTO matrices (family, pair, ordinal) {row}")
        count = base.execute("SELECT count(*) FROM deltas").fetchone()[0]
        assert count == sum(row["subject"] == "delta" for row in truth["matrices"])
        described = base.execute(
            "SELECT column_name FROM schema_columns WHERE table_name = 'matrices' ORDER BY place"
        ).fetchall()
        heads = [column[0] for column in base.execute("SELECT * FROM matrices LIMIT 0").description]
        assert [row[0] for row in described] == heads
        families = base.execute("SELECT family, pair FROM reports ORDER BY family, pair").fetchall()
        assert families == sorted(HOSTILE)
    finally:
        base.close()


def test_without_duckdb_the_hint_says_what_to_install(folders, tmp_path, monkeypatch):
    """DuckDB is an extra: without it one line and the command; nothing is written."""
    monkeypatch.setitem(__import__("sys").modules, "duckdb", None)
    with pytest.raises(ShadowError, match="not installed") as caught:
        export(folders, "duckdb", tmp_path / "x.duckdb")
    assert caught.value.hint == "in a clone of shadow, type: pip install '.[duckdb]'"
    assert not list(tmp_path.iterdir())


# The dataset folder


@pytest.mark.parametrize("name", NAMES[1:])
def test_the_files_of_the_dataset_folder_are_the_rows(exported, truth, name):
    """The Parquet file that the card names for a config has its rows."""
    folder = exported["hf-dataset-folder"]
    (config,) = (one for one in front(folder)["configs"] if one["config_name"] == name)
    path = config["data_files"][0]["path"]
    same(pq.read_table(folder / path).to_pylist(), truth[name])


def front(folder):
    """The front matter of the card; its text must not end it early."""
    _, yaml_text, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert body.startswith("\n# Spectra")
    return yaml.safe_load(yaml_text)


def test_names_in_the_card_are_text(exported):
    """Names are one line of YAML text and code spans in Markdown: no link, mention, markup or
    control character.
    """
    folder = exported["hf-dataset-folder"]
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.replace("\n", "").isprintable()
    assert isinstance(front(folder)["pretty_name"], str)
    defaults = [one["config_name"] for one in front(folder)["configs"] if one.get("default")]
    assert defaults == ["matrices"]
    rows = text.partition("## Reports")[2].partition("##")[0].strip().splitlines()[2:]
    assert len(rows) == len(HOSTILE)
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 6
        outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", row)
        assert set(outside) <= set("| ")


def test_the_configs_of_another_export_are_others(exported, folders, tmp_path):
    """`datasets` tells folders of one name apart by the configs in their cards alone: these have
    the files' sha256.
    """

    def configs(folder):
        return {row["config_name"]: row for row in front(folder)["configs"]}

    export(folders[:1], "hf-dataset-folder", tmp_path / "out")
    here, there = configs(tmp_path / "out"), configs(exported["hf-dataset-folder"])
    assert here.keys() == there.keys()
    assert all(here[name] != there[name] for name in ("matrices", "tensors", "reports"))
    (data,) = here["matrices"]["data_files"]
    digest = hashlib.sha256((tmp_path / "out" / data["path"]).read_bytes()).hexdigest()
    assert here["matrices"]["description"].endswith(digest)


@given(st.text())
def test_a_code_span_holds_any_text(text):
    """For any text: one run of backticks opens it, the next of that length ends it, and no bar ends
    the cell.
    """
    found = code_span(text)
    fence = re.match("`*", found)[0]
    inner = found[len(fence) : len(found) - len(fence)] if fence else ""
    assert found == f"{fence}{inner}{fence}"
    assert fence == "" or not re.search(rf"(?<!`){fence}(?!`)", inner)
    assert not re.search(r"(?<!\\)\|", found)
    assert found.isprintable()


def test_the_hub_client_loads_the_folder(exported, truth, tmp_path):
    """`datasets.load_dataset(folder, table)`, where the package is installed, gives the rows."""
    datasets = pytest.importorskip("datasets")
    folder = str(exported["hf-dataset-folder"])
    assert sorted(datasets.get_dataset_config_names(folder)) == sorted(NAMES)
    for name in NAMES[1:]:
        rows = datasets.load_dataset(folder, name, split="train", cache_dir=str(tmp_path))
        same(rows.to_list(), truth[name])


def test_the_table_of_reports_says_how_each_was_made(exported, folders):
    """Family, pair, checkpoints and settings, and all the metadata as JSON."""
    rows = {
        (row["family"], row["pair"]): row
        for row in pa.ipc.open_file(exported["arrow"] / "reports.arrow").read_all().to_pylist()
    }
    assert set(rows) == set(HOSTILE)
    assert list(next(iter(rows.values()))) == [column.name for column in REPORTS]
    for folder in folders:
        told = json.loads(pq.read_schema(folder / "matrices.parquet").metadata[b"shadow"])
        row = rows[told["family"], told["pair"]]
        assert json.loads(row["metadata"]) == told
        known = {"base_repo": "./base", "base_fingerprint": "0" * 64, "base_commit": None}
        known |= {"precision": "default", "nulls": 0, "schema": 1, "relation": "tuned"}
        assert {key: row[key] for key in known} == known
        assert (row["label"], json.loads(row["gates"])[0]["name"]) == ("not assessable", "x")


def test_an_export_inside_run_is_no_report(runs, exported, tmp_path):
    """In the folder of the reports, none of the formats is taken for one of them."""
    top = shutil.copytree(runs, tmp_path / "runs")
    for to, path in exported.items():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, top / f"in-{to}")
    assert len(reports_below(top)) == len(HOSTILE)
