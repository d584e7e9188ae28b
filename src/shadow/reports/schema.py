"""The schema of a report's files, for machines: what columns.yaml and words.yaml say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from shadow import __version__
from shadow.reports.column_types import STORED_TYPES
from shadow.reports.columns import DELTA, NOTATION, SCHEMA, Column, Table, read_words

_WORDS = read_words("words.yaml")
RULES: list[str] = _WORDS["rules"]
FILES: dict[str, dict[str, str]] = _WORDS["files"]
"""The JSON files beside the tables: what each key holds."""


def schema_json(tables: Iterable[Table]) -> dict[str, object]:
    """What `shadow explain --all --json` prints."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "rules": RULES,
        "notation": NOTATION,
        "tables": {table.name: _table(table) for table in tables},
        "files": FILES,
    }


def is_later(table: Table, column: Column) -> bool:
    """Whether the column was added after the first reports of this schema."""
    return bool(table.first) and column.name not in table.first


def arrow_text(column: Column) -> str:
    """The type of a column in Arrow's words: `double`, `list<float>`."""
    name, is_list = STORED_TYPES[column.type]
    return f"list<{name}>" if is_list else name


def null_cases(column: Column) -> list[str]:
    """When the column is null; empty where it never is."""
    return [*(["base and tuned rows"] if column in DELTA else []), *filter(None, [column.null])]


def _table(table: Table) -> dict[str, object]:
    return {
        "file": table.file,
        "row": table.row,
        "columns": [
            {
                **asdict(column),
                "null": "; ".join(null_cases(column)),
                "arrow": arrow_text(column),
                "later": is_later(table, column),
                "start_here": column.name in table.start_here,
            }
            for column in table.columns
        ],
    }
