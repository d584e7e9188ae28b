"""`shadow explain --all` is the schema of the files; reports that were made before the newest
columns stay readable.
"""

import json
import math
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from effort import every
from measuring import changed
from reports import rewrite, uniform

from shadow.engines import finished
from shadow.errors import ShadowError
from shadow.lists.index import Index
from shadow.reports import folders
from shadow.reports.columns import DELTA, MATRICES, TABLES
from shadow.reports.folders import TABLES_OF_A_PAIR, finished_metadata
from shadow.reports.report import Report
from shadow.telling.dictionary import table_document


@pytest.fixture
def demo(demo_reports):
    """The report of one pair of the demo."""
    return demo_reports / "base..narrow"


@pytest.fixture
def run(demo, tmp_path):
    """A copy of it."""
    return shutil.copytree(demo, tmp_path / "out" / "demo" / "base..narrow")


LATER = ("all_zero", "nonfinite")  # columns of tensors


def made_before(folder):
    """What version 0.2 would have written: no later column."""
    rewrite(
        folder,
        lambda table: table.drop_columns([name for name in LATER if name in table.column_names]),
    )
    return folder


# The schema


def test_the_schema_is_that_of_the_files(demo, inside):
    """Names, order and types of every column, as they stand in the Parquet files of an audit."""
    recorded = json.loads(inside("explain", "--all", "--json").assert_done())
    names = {
        "int64": pa.int64(), "double": pa.float64(), "string": pa.string(), "bool": pa.bool_(),
        "list<int64>": pa.list_(pa.int64()), "list<float>": pa.list_(pa.float32()),
    }  # fmt: skip
    assert {path.stem for path in demo.glob("*.parquet")} == set(TABLES_OF_A_PAIR)
    for name in TABLES_OF_A_PAIR:
        table = recorded["tables"][name]
        found = pq.read_schema(demo / table["file"])
        assert [(column["name"], names[column["arrow"]]) for column in table["columns"]] == [
            (field.name, field.type) for field in found
        ]
    assert recorded["schema"] == json.loads(found.metadata[b"shadow"])["schema"] == 2


def test_columns_that_say_never_null_never_are(demo):
    """In an audit, a column without a null case holds no null in the rows that it is for."""
    matrices = pq.read_table(demo / "matrices.parquet").to_pylist()
    for column in MATRICES:
        rows = [row for row in matrices if column not in DELTA or row["subject"] == "delta"]
        assert rows
        if not column.null:
            assert all(row[column.name] is not None for row in rows), column.name


def test_the_schema_for_people(inside):
    """An overview of the tables, and a row for each of their columns."""
    shown = inside("explain", "--all", width=200).assert_done()
    names = {column.name for table in TABLES.values() for column in table.columns}
    assert [name for name in (*TABLES, *names) if name not in shown] == []
    rows = table_document(TABLES["matrices"]).blocks[1].rows
    first = ["start here" in row[2].aside for row in rows]
    assert first == sorted(first, reverse=True)
    assert {row[0] for row, is_first in zip(rows, first, strict=True) if is_first} == {
        *TABLES["matrices"].start_here
    }
    for words in (("explain", "--all", "alpha"), ("explain", "--json"), ("schema",)):
        inside(*words).assert_refused(code=2)


def test_the_schema_has_every_key_of_the_json_files(demo, inside):
    """Every key of summary.json and index.json, and every figure that is no matrix column."""
    recorded = json.loads(inside("explain", "--all", "--json").assert_done())
    summary = json.loads((demo / "summary.json").read_text())
    assert recorded["files"]["summary.json"].keys() == summary.keys()
    listed = {column["name"] for column in recorded["tables"]["summary"]["columns"]}
    columns = {column.name for column in MATRICES}
    assert summary["figures"].keys() - columns <= listed <= summary["figures"].keys()
    index = Index("0.2.0", (1, {}), None, ())
    assert recorded["files"]["index.json"].keys() == index.as_json().keys()
    inside("explain", "unverified").assert_done()


# Reports that were made before


def test_an_older_report_of_this_schema_is_shown_with_a_note(run, shadow):
    """What it lacks is null and named in a warning; all others are those of the whole report."""
    whole = json.loads((run / "summary.json").read_text())
    made_before(run)
    (recorded,) = json.loads(shadow("show", "out", "--format", "json").assert_done())
    (warning,) = recorded["warnings"]
    assert recorded["warning_codes"] == ["older_report"]
    assert "all_zero" in warning
    assert (recorded["figures"], recorded["modules"]) == (whole["figures"], whole["modules"])
    assert " ".join(warning.split()) in " ".join(shadow("show", "out").assert_done().split())


def test_an_older_report_is_measured_again_when_that_is_asked_for(run, shadow):
    """An upgrade measures nothing, and says what the report lacks; --overwrite makes it whole."""
    made_before(run)
    audit = ("audit", "demo:base..narrow", "-o", "out")
    kept = shadow(*audit)
    kept.assert_done()
    assert "--overwrite" in kept.err
    assert Report(run).absent
    shadow(*audit, "--overwrite").assert_done()
    assert Report(run).absent == ()
    before = (run / "matrices.parquet").stat().st_mtime_ns
    shadow(*audit).assert_done()
    assert (run / "matrices.parquet").stat().st_mtime_ns == before


@pytest.mark.parametrize("gone", ["concentration", "floor_ratio", "tensor"])
def test_a_report_without_a_first_column_is_none(run, inside, gone):
    """Absent is null only where a column came later: a gate must not pass for lack of it."""
    rewrite(run, lambda table: table.drop_columns([gone]) if gone in table.column_names else table)
    inside("show", "out").assert_refused()


def test_a_column_of_a_newer_version_is_passed_over(run, inside):
    """Schema 1 with one more column, as a newer version has: read as if it were not there."""
    wanted = inside("show", "out").assert_done()
    rewrite(run, lambda table: table.append_column("aura", pa.array([1.5] * len(table))))
    assert inside("show", "out").assert_done() == wanted
    inside("export", "out", "--to", "csv").assert_done()


@pytest.mark.parametrize("value", every(2, [math.nan, math.inf]))
def test_a_number_that_is_none_is_null_wherever_a_report_is_read(inside, tmp_path, value):
    """No audit writes NaN or infinity; a file that has them is read as if they were null."""
    folder, other = (uniform(tmp_path / name, 0.4) for name in ("out", "other"))
    broken = ("relative_norm", "frobenius_norm", "concentration")

    def break_numbers(table):
        is_read = "subject" in table.column_names
        names = [name for name in table.column_names if name in broken and is_read]
        more = {name: pa.array([value] * len(table)) for name in names}
        return pa.table({name: more.get(name, table[name]) for name in table.column_names})

    rewrite(folder, break_numbers)
    (recorded,) = json.loads(inside("show", folder, "--format", "json").assert_done())
    assert recorded["figures"]["relative_norm"] is None
    assert {row["relative_norm"] for row in recorded["depth"]} == {None}
    inside("show", folder).assert_done()
    inside("compare", folder, other)
    figure = ("figure", folder, "--kind", "depth", "--metric", "stable_rank")
    inside(*figure, "-o", "x.svg").assert_done()
    assert "null" in inside("gate", folder, "--fail-on", "concentration > 0.9").out


COMMANDS = {
    "show": ("show", "out"),
    "compare": ("compare", "out", "other"),
    "export": ("export", "out", "--to", "csv"),
    "figure": ("figure", "out", "--kind", "depth", "-o", "x.svg"),
}


def test_a_number_in_metadata_that_is_none_is_null(run, inside):
    metadata = json.loads(pq.read_schema(run / "matrices.parquet").metadata[b"shadow"])
    rewrite(run, base={**metadata["base"], "commit": math.nan}, seconds=math.inf)
    (recorded,) = json.loads(inside("show", "out", "--format", "json").assert_done())
    assert recorded["base"]["commit"] is None


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("schema", [3, 0])
def test_another_schema_is_one_line_with_both_versions(inside, tmp_path, command, schema):
    """A report of a newer and of an older schema, in every command."""
    uniform(tmp_path / "out", 0.4)
    uniform(tmp_path / "other", 0.3)
    rewrite(
        tmp_path / "out",
        lambda table: table.drop_columns(["pair"][: table.column_names.count("pair")]),
        schema=schema,
        version="7.8.9",
    )
    done = inside(*COMMANDS[command])
    assert {str(schema), "7.8.9;"} <= set(done.assert_refused().replace(",", "").split())
    assert len(done.err.splitlines()) == 2


@pytest.mark.parametrize(("path", "value"), [
    *((key, value) for key in ("version", "family", "pair", "schema") for value in (None, 1.5)),
    *(((side, key), 7) for side in ("base", "tuned")
      for key in ("repo", "commit", "fingerprint", "content")),
    (("base", "repo"), None), (("tuned", "repo"), None), (("settings", "method", "level"), 3),
    (("settings", "chosen"), [1]), ("libraries", "numpy"), ("seconds", "1"), ("seconds", -0.1),
    ("seconds", 1e12), ("schema", True),
])  # fmt: skip
def test_metadata_of_another_type_are_refused(demo, path, value):
    """Each key that readers rely on; what may be missing may be null."""
    metadata = finished_metadata(demo)
    path = (path,) if isinstance(path, str) else path
    with pytest.raises(TypeError):
        folders._check_metadata(changed(metadata, path, value))


@pytest.mark.parametrize(("path", "value"), [
    (("base", "commit"), None), (("tuned", "fingerprint"), None), (("base", "content"), None),
    (("settings", "chosen"), None), (("libraries",), None), (("seconds",), None),
    (("seconds",), 0), (("seconds",), 9e11),
])  # fmt: skip
def test_metadata_may_lack_what_was_not_known(demo, path, value):
    folders._check_metadata(changed(finished_metadata(demo), path, value))


@pytest.mark.parametrize(("recorded", "message", "hint"), [
    ({"schema": 10**20}, "a report of schema 100000000000, made by shadow", "update shadow"),
    ({"schema": -1, "version": "9.9"}, "schema -1, made by shadow 9.9;", "audit the pair again"),
    ({"schema": -1, "version": "x" * 41}, "made by shadow [?];", "audit the pair again"),
    ({"schema": -1, "version": "x" * 40}, f"made by shadow {'x' * 40};", "audit the pair again"),
])  # fmt: skip
def test_a_report_of_another_schema_says_who_made_it(run, recorded, message, hint):
    rewrite(run, **recorded)
    with pytest.raises(ShadowError, match=message) as caught:
        folders.report_metadata(run)
    assert caught.value.hint == hint


@pytest.mark.parametrize(("changes", "said"), [
    ({}, []), ({"repo": "x"}, ["base"]), ({"repo": "x", "commit": "y"}, ["base"]),
    ({"repo": "x", "commit": "y", "fingerprint": "z"}, ["base"]),
    ({"commit": "y", "fingerprint": "z"}, ["commit of base"]),
    ({"fingerprint": "z"}, ["files of base"]),
])  # fmt: skip
def test_what_follows_from_another_difference_is_not_named(demo, changes, said):
    """Another repository has other commits and files."""
    had = finished_metadata(demo)
    texts = finished.differences(had, had | {"base": had["base"] | changes})
    assert [text.startswith(f"{name} ") for text, name in zip(texts, said, strict=True)] == [
        True for _ in said
    ]
