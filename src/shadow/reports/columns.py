"""The tables of a report and their columns: name, type, formula, range, when null, pitfalls; and
other words that can be looked up: heads of tables, keys of JSON files, terms of the glossary.

The Parquet schemas, `shadow explain` and the tables in docs/ are made from columns.yaml and
words.yaml in this folder. Nothing heavy is imported, so that `explain` answers at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import yaml

from shadow.reports.provenance import SCHEMA
from shadow.version import __version__

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Value = TypeVar("Value")
Type = Literal["string", "int", "float", "bool", "ints", "floats"]
# float stands for int and bool too
Cell: TypeAlias = "str | float | Sequence[float | None] | NDArray[np.float32] | None"
# in Arrow's words
STORED_TYPES = {
    "string": "string",
    "int": "int64",
    "float": "double",
    "bool": "bool",
    "ints": "list<int64>",
    "floats": "list<float>",
}

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@cache
def read_words(name: str) -> Mapping[str, Any]:
    """Read a file of words in this folder."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    words: dict[str, Any] = yaml.load(text, LOADER)  # noqa: S506 - safe
    return words


_COLUMNS, _WORDS = read_words("columns.yaml"), read_words("words.yaml")
NOTATION = " ".join(row["text"] for row in _COLUMNS["notation"])
RULES: list[str] = _WORDS["rules"]
JSON_FILES: dict[str, dict[str, str]] = _WORDS["files"]
"""The JSON files beside the tables: what each key holds."""
GLOSSARY: Mapping[str, str] = {
    term: meaning
    for section in _WORDS["glossary"].values()
    for terms, meaning in section.items()
    for term in terms.split(", ")
}


@dataclass(frozen=True)
class Column:
    """A column of a report file. Missing fields are empty strings."""

    name: str
    """As in the files; never changed once it is published."""
    type: Type
    """The kind of its values; STORED_TYPES has how they are stored."""
    text: str
    """What it is, in a phrase."""
    _: KW_ONLY

    formula: str = ""
    """How it is computed, in the letters of NOTATION; of a word, what each of its values means."""
    unit: str = ""
    """Empty for a pure number."""
    range: str = ""
    null: str = ""
    """When it is null; empty means never."""
    source: str = ""
    """The publication or page that the definition comes from."""
    pitfalls: str = ""
    """What its values do not say, and how accurate they are."""

    @property
    def arrow(self) -> str:
        """Its type in Arrow's notation: `double`, `list<float>`."""
        return STORED_TYPES[self.type]


@dataclass(frozen=True)
class Head:
    """A head of a table on the screen, or another word."""

    text: str
    column: str = ""
    """The column that has the same figure of one matrix or pair; empty where there is none."""


HEADS = {word: Head(**entry) for word, entry in _WORDS["heads"].items()}


@dataclass(frozen=True)
class Table:
    """A table of a report."""

    name: str
    """What `explain --all` and exports call it."""
    file: str
    row: str
    columns: tuple[Column, ...]
    later: frozenset[str] = frozenset()
    """The columns that were added since 0.2, so that older reports lack them."""
    start_here: frozenset[str] = frozenset()
    """The columns that a reader needs first."""

    @property
    def first(self) -> frozenset[str]:
        """The columns that every report has."""
        return frozenset(column.name for column in self.columns) - self.later


_SKETCH = {name: words.split() for name, words in _COLUMNS["sketch"].items()}
_NULL_IN_SKETCH = {  # why, by the list of columns
    "unknown": "in `sketch`, which does not compute all singular values",
    "bounded": "in `sketch` where its error is above a tenth of it",
    "undecided": "in `sketch` where a singular value may lie on either side of the edge",
}


def _group(name: str) -> tuple[Column, ...]:
    """A group of columns, each with when it is null, also at level `sketch`."""
    columns = []
    for word, entry in _COLUMNS["columns"][name].items():
        reasons = (text for of, text in _NULL_IN_SKETCH.items() if word in _SKETCH[of])
        null = "; ".join(filter(None, (entry.get("null", ""), *reasons)))
        columns.append(Column(word, **entry | {"null": null}))
    return tuple(columns)


IDENTITY, SPECTRAL, DELTA = map(_group, ("identity", "spectral", "delta"))
ESTIMATED = frozenset(_SKETCH["estimated"])  # columns that have an error in `sketch`
_NAMED = {column.name: column for column in (*SPECTRAL, *DELTA)}
ERRORS = tuple(
    Column(
        f"{name}_error",
        "float",
        f"how far {name} may be from the truth, in 95 of 100 matrices; in `sketch` alone",
        unit=_NAMED[name].unit,
        range=">= 0",
        null=f"{name} is null or no estimate, as in all other precisions",
    )
    for name in _SKETCH["estimated"]
)
MATRICES = (*IDENTITY, *SPECTRAL, *DELTA, *ERRORS)
TENSORS, SPECTRA, FILES = map(_group, ("tensors", "spectra", "files"))
_GROUPS = {
    "matrices": MATRICES,
    "tensors": TENSORS,
    "files": FILES,
    "spectra": SPECTRA,
    "summary": (*_group("counts"), *_group("figures")),
}
TABLES = {
    name: Table(
        name=name,
        file=entry["file"],
        row=entry["row"],
        columns=_GROUPS[name],
        later=frozenset(entry.get("later", "").split()),
        start_here=frozenset(entry.get("start_here", "").split()),
    )
    for name, entry in _COLUMNS["tables"].items()
}
HEADLINE = (  # the figures of a summary that a list has of each pair
    "relative_norm_overall",
    "concentration",
    "participation_ratio",
    "null_participation_ratio",
    "spikes",
    "floor_ratio",
    "effective_layers",
    "attention_to_mlp",
)


def notation_of(columns: Iterable[Column]) -> str:
    """The part of NOTATION that explains the symbols in these columns; empty if they have
    none.

    A symbol that a formula redefines (`p the share of each layer`) is not in NOTATION.
    """
    used: set[str] = set()
    for column in columns:
        text = f"{column.text}; {column.formula}; {column.range}; {column.null}"
        own = re.findall(r"\b([a-zA-Z]) (?:the|as in) ", text)
        used |= set(re.findall(r"(?<![A-Za-z_])([A-Za-z]|sigma)(?![A-Za-z])", text)) - set(own)
    return " ".join(row["text"] for row in _COLUMNS["notation"] if used & {*row["letters"].split()})


def delta_metrics() -> list[str]:
    """The columns of delta rows that are numbers."""
    return [column.name for column in (*SPECTRAL, *DELTA) if column.type in ("int", "float")]


def null_if_undefined(value: Value) -> Value | None:
    """Replace NaN and infinity by null: a number that overflowed is not a number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def null_cases(column: Column) -> list[str]:
    """The cases in which the column is null; empty if never."""
    cases = ["base and tuned rows"] if column in DELTA else []
    return [*cases, column.null] if column.null else cases


def schema_json() -> dict[str, object]:
    """The output of `shadow explain --all --json`."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "rules": RULES,
        "notation": NOTATION,
        "tables": {
            table.name: {
                "file": table.file,
                "row": table.row,
                "columns": [
                    {
                        **asdict(column),
                        "null": "; ".join(null_cases(column)),
                        "arrow": column.arrow,
                        "later": column.name in table.later,
                        "start_here": column.name in table.start_here,
                    }
                    for column in table.columns
                ],
            }
            for table in TABLES.values()
        },
        "files": JSON_FILES,
    }
