"""The schema of a report's files, for machines. Everything it says is in shadow.diagnostics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from shadow import __version__
from shadow.diagnostics import DELTA, NOTATION, SCHEMA, Column, Table

ARROW = {  # the types of the files, by the types of columns
    "string": "string",
    "int": "int64",
    "float": "double",
    "bool": "bool",
    "ints": "list<int64>",
    "floats": "list<float>",
}
RULES = (
    "The schema is raised when a column changes its meaning or goes, not when one is added: readers pass over columns "
    "that they do not know, and take a column that is absent for null.",
    "Undefined is null, never NaN.",
    "A column that says `later` was added after reports had been made: an older report of this schema lacks it.",
    "A report of another schema is refused, with both versions and what to do.",
)


def schema_json(tables: Iterable[Table]) -> dict[str, Any]:
    """What `shadow schema --format json` prints."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "rules": list(RULES),
        "notation": NOTATION,
        "tables": {table.name: _table(table) for table in tables},
    }


def is_later(table: Table, column: Column) -> bool:
    """Was the column added after the first reports of this schema had been made?"""
    return bool(table.first) and column.name not in table.first


def null_cases(column: Column) -> list[str]:
    """When the column is null; empty where it never is."""
    return ["base and tuned rows"] * (column in DELTA) + [column.null] * bool(column.null)


def _table(table: Table) -> dict[str, Any]:
    return {
        "file": table.file,
        "row": table.row,
        "columns": [
            {
                **asdict(column),
                "null": "; ".join(null_cases(column)),
                "arrow": ARROW[column.type],
                "later": is_later(table, column),
            }
            for column in table.columns
        ],
    }
