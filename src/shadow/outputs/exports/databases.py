"""The tables of reports -> a database of SQLite or DuckDB, and how an own one is known again.

Every identifier is a constant of this package, and every value is bound or comes from an Arrow
table: no text of a file is ever part of a statement.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from shadow import __version__
from shadow.errors import ShadowError
from shadow.extras import require
from shadow.files import read_start
from shadow.outputs.exports.formats import (
    Export,
    TablePart,
    described,
    described_shortly,
    json_text,
)
from shadow.reports.column_types import STORED_TYPES
from shadow.reports.columns import SCHEMA, TABLES, Column, Type

APPLICATION_ID = 0x73686477  # `shdw`, in the header of SQLite files
KEY = ("family", "pair", "ordinal")
ORDINAL = Column(
    name="ordinal", type="int", text="0-based place of the row in the report's file", range=">= 0"
)
SQLITE_PRAGMAS = (
    "journal_mode = OFF",  # the file is thrown away when writing it does not end well
    "synchronous = OFF",
    f"application_id = {APPLICATION_ID}",
    f"user_version = {SCHEMA}",
    "foreign_keys = ON",
)
HINT = "free some space, or choose another place with -o"
INSERTED = 2_000  # rows that SQLite gets at a time
DESCRIBED = (
    "table_name", "place", "column_name", "type", "description", "formula", "unit", "range",
    "null_when", "source", "pitfalls",
)  # fmt: skip
INDEXES = {
    "matrices": ("component", "module", "layer", "subject"),
    "tensors": ("tensor", "side"),
    "files": ("path", "side"),
    "spectra": ("tensor", "subject"),
}
VIEWS = {"deltas": ("matrices", "subject = 'delta'", "the rows of matrices that are deltas")}


def _database_columns(name: str) -> tuple[Column, ...]:
    """The exported columns, with the place of the row where family and pair do not tell it."""
    if name == "reports":
        return TABLES[name].exported
    family, pair, *others = TABLES[name].exported
    return (family, pair, ORDINAL, *others)


def _statements(names: Sequence[str], types: Mapping[Type, str]) -> Iterator[str]:
    """The tables, in a dialect that SQLite and DuckDB share.

    Every identifier is a constant of this package, quoted.
    """
    yield 'CREATE TABLE "about" ("name" TEXT PRIMARY KEY, "value" TEXT)'
    heads = ", ".join(
        f"{quoted(head)} {'INTEGER' if head == 'place' else 'TEXT'}" for head in DESCRIBED
    )
    yield f'CREATE TABLE "schema_columns" ({heads}, PRIMARY KEY ("table_name", "column_name"))'
    for name in names:
        columns = [_definition(column, types) for column in _database_columns(name)]
        if name == "reports":
            rules = ['PRIMARY KEY ("family", "pair")']
        else:
            rules = [
                'PRIMARY KEY ("family", "pair", "ordinal")',
                'FOREIGN KEY ("family", "pair") REFERENCES "reports" ("family", "pair")',
            ]
        yield f"CREATE TABLE {quoted(name)} ({', '.join([*columns, *rules])})"
    for view, (name, condition, _) in VIEWS.items():
        if name in names:
            yield f"CREATE VIEW {quoted(view)} AS SELECT * FROM {quoted(name)} WHERE {condition}"  # noqa: S608


def _definition(column: Column, types: Mapping[Type, str]) -> str:
    """A column in a CREATE TABLE."""
    definition = f"{quoted(column.name)} {types[column.type]}"
    if column.name in KEY:
        definition += " NOT NULL"
    return definition


def _indexes(names: Sequence[str]) -> Iterator[str]:
    for name, columns in INDEXES.items():
        if name in names:
            yield (
                f"CREATE INDEX {quoted(f'{name}_by_place')} ON {quoted(name)}"
                f" ({', '.join(map(quoted, columns))})"
            )


def quoted(name: str, mark: str = '"') -> str:
    """An identifier of SQL, or with `'` a text."""
    return f"{mark}{name.replace(mark, mark * 2)}{mark}"


def _facts(names: Sequence[str]) -> tuple[list[tuple[str, str]], list[tuple[Any, ...]]]:
    """The rows of the tables `about` and `schema_columns`."""
    about = [
        ("export", "shadow export"),
        ("version", __version__),
        ("schema", str(SCHEMA)),
        ("tables", ",".join(names)),
    ]
    columns = [
        (name, place, column.name, column.type, *described(column).values())
        for name in names
        for place, column in enumerate(_database_columns(name))
    ]
    return about, columns


def _marks(columns: Sequence[Any]) -> str:
    return ", ".join("?" * len(columns))


def _with_ordinal(name: str, table: pa.Table) -> pa.Table:
    if name == "reports":
        return table
    return table.add_column(2, "ordinal", pa.array(range(len(table)), pa.int64()))


def _objects(names: Iterable[str]) -> set[str]:
    """The tables and views of a database of these tables."""
    tables = {*names, "about", "schema_columns"}
    return tables | {view for view, (name, *_) in VIEWS.items() if name in tables}


def write_sqlite(path: Path, export: Export) -> None:
    """One SQLite database: lists are JSON text, booleans 0 and 1."""
    types = {name: stored.sqlite for name, stored in STORED_TYPES.items()}
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as base:
            for pragma in SQLITE_PRAGMAS:
                base.execute(f"PRAGMA {pragma}")
            base.execute("BEGIN")
            for statement in _statements(export.names, types):
                base.execute(statement)
            _insert_facts(base, export.names)
            for part in export.parts:
                for name in export.names:
                    insert = (
                        f"INSERT INTO {quoted(name)} VALUES ({_marks(_database_columns(name))})"  # noqa: S608
                    )
                    base.executemany(insert, _sqlite_rows(name, part))
            for statement in _indexes(export.names):
                base.execute(statement)
            base.execute("COMMIT")
    except sqlite3.Error as error:
        raise ShadowError(f"cannot write the SQLite file: {error}", HINT) from error


def _insert_facts(base: Any, names: Sequence[str]) -> None:
    """Fill the tables that say what the database is."""
    about, columns = _facts(names)
    base.executemany('INSERT INTO "about" VALUES (?, ?)', about)
    base.executemany(f'INSERT INTO "schema_columns" VALUES ({_marks(DESCRIBED)})', columns)  # noqa: S608


def _sqlite_rows(name: str, part: TablePart) -> Iterator[tuple[Any, ...]]:
    columns = _database_columns(name)
    for batch in _with_ordinal(name, part.tables[name]).to_batches(max_chunksize=INSERTED):
        values = []
        for array, column in zip(batch.columns, columns, strict=True):
            cells = array.to_pylist()
            if column.type in ("ints", "floats"):  # SQLite has no lists
                cells = [None if cell is None else json_text(cell) for cell in cells]
            values.append(cells)
        yield from zip(*values, strict=True)


def is_our_sqlite(path: Path) -> bool:
    """Whether an export wrote this database, and nobody added tables or views."""
    try:
        head = read_start(path, 100) or b""
        if not head.startswith(b"SQLite format 3\0"):
            return False
        if int.from_bytes(head[68:72], "big") != APPLICATION_ID:
            return False
        address = f"file:{quote(bytes(path.absolute()))}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as base:
            return _is_untouched(base.execute)
    except (OSError, sqlite3.Error):
        return False


def _is_untouched(execute: Callable[[str], Any]) -> bool:
    rows = execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
    objects = {name for (name,) in rows}
    if "about" not in objects:
        return False
    about = dict(execute('SELECT "name", "value" FROM "about"').fetchall())
    if about.get("export") != "shadow export":
        return False
    return objects == _objects(str(about.get("tables")).split(","))


def _duckdb() -> Any:
    require("duckdb")
    import duckdb

    return duckdb


DUCKDB_CONFIG = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}


def write_duckdb(path: Path, export: Export) -> None:
    """One DuckDB database, in the format of files that every version since 1.0 reads."""
    duckdb = _duckdb()
    types = {name: stored.duckdb for name, stored in STORED_TYPES.items()}
    config = {**DUCKDB_CONFIG, "storage_compatibility_version": "v1.0.0"}
    try:
        with duckdb.connect(str(path), config=config) as base:
            for statement in (*_statements(export.names, types), *_comments(export.names)):
                base.execute(statement)
            _insert_facts(base, export.names)
            for part in export.parts:
                for name in export.names:
                    base.register("part_of_export", _with_ordinal(name, part.tables[name]))
                    base.execute(f"INSERT INTO {quoted(name)} SELECT * FROM part_of_export")  # noqa: S608
                    base.unregister("part_of_export")
            base.execute("CHECKPOINT")
    except duckdb.Error as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ShadowError(f"cannot write the DuckDB file: {line}", HINT) from error


def _comments(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        yield (
            f"COMMENT ON TABLE {quoted(name)} IS"
            f" {quoted(f'One row is {TABLES[name].row}.', mark=chr(39))}"
        )
        for column in _database_columns(name):
            where = f"{quoted(name)}.{quoted(column.name)}"
            yield f"COMMENT ON COLUMN {where} IS {quoted(described_shortly(column), mark=chr(39))}"
    for view, (name, _, text) in VIEWS.items():
        if name in names:
            yield f"COMMENT ON VIEW {quoted(view)} IS {quoted(text, mark=chr(39))}"


def is_our_duckdb(path: Path) -> bool:
    """Whether an export wrote this database, and nobody added tables or views."""
    try:
        if (read_start(path, 12) or b"")[8:] != b"DUCK":
            return False
    except OSError:
        return False
    duckdb = _duckdb()
    try:
        with duckdb.connect(str(path), read_only=True, config=DUCKDB_CONFIG) as base:
            return _is_untouched(base.execute)
    except duckdb.Error:
        return False
