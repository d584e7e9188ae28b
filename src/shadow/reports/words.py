"""Words that can be looked up: heads of tables, and terms of the glossary, each with one meaning;
and the schema of a report's files, for machines: what columns.yaml and words.yaml say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from shadow import __version__
from shadow.reports.columns import DELTA, NOTATION, SCHEMA, Column, Table, read_words


@dataclass(frozen=True)
class Head:
    """A head of a table on the screen."""

    text: str
    column: str = ""
    """The column that has the same figure of one matrix or pair; empty where there is none."""


_WORDS = read_words("words.yaml")
HEADS = {word: Head(**entry) for word, entry in _WORDS["heads"].items()}
RULES: list[str] = _WORDS["rules"]
FILES: dict[str, dict[str, str]] = _WORDS["files"]
"""The JSON files beside the tables: what each key holds."""
GLOSSARY: Mapping[str, str] = {
    term: meaning
    for section in _WORDS["glossary"].values()
    for terms, meaning in section.items()
    for term in terms.split(", ")
}


def head_of(word: str) -> Head | None:
    """The head that a word is, in its own case or in any; None where it is none.

    The letters of compared reports and the level of a spread are left out: `conc. A`, `A - B`,
    `spread, 95 %`.
    """
    bare = re.sub(r", [\d.]+ %$| [A-Z]$", "", " ".join(word.split()))
    if bare not in HEADS and re.fullmatch(r"[A-Z]( -)?", bare):
        return HEADS["difference" if bare.endswith("-") else "report"]
    heads = {name.replace(".", "").lower(): head for name, head in HEADS.items()}
    return HEADS.get(bare) or heads.get(bare.replace(".", "").lower())  # also `conc` for `conc.`


def meaning_of(word: str) -> str | None:
    """Return what a term of the glossary means; None where it is none. Case does not matter."""
    return {term.lower(): text for term, text in GLOSSARY.items()}.get(word.lower())


def schema_json(tables: Iterable[Table]) -> dict[str, object]:
    """Return what `shadow explain --all --json` prints."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "rules": RULES,
        "notation": NOTATION,
        "tables": {
            table.name: {
                "file": table.file,
                "row": table.row,
                "columns": [_column(table, column) for column in table.columns],
            }
            for table in tables
        },
        "files": FILES,
    }


def null_cases(column: Column) -> list[str]:
    """Return when the column is null; empty where it never is."""
    return [*(["base and tuned rows"] if column in DELTA else []), *filter(None, [column.null])]


def _column(table: Table, column: Column) -> dict[str, object]:
    return {
        **asdict(column),
        "null": "; ".join(null_cases(column)),
        "arrow": column.arrow,
        "later": column.name in table.later,
        "start_here": column.name in table.start_here,
    }
