"""The tables of a report and their columns: name, type, formula, range, when null, pitfalls.

The Parquet schemas, `shadow explain` and the tables in docs/ are made of columns.yaml beside this
file. Nothing heavy is imported, so that `explain` answers at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import yaml

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Value = TypeVar("Value")
Type = Literal["string", "int", "float", "bool", "ints", "floats"]
# float stands for int and bool too
Cell: TypeAlias = "str | float | Sequence[float | None] | NDArray[np.float32] | None"
# in Arrow's words
STORED_TYPES: Mapping[Type, str] = {
    "string": "string",
    "int": "int64",
    "float": "double",
    "bool": "bool",
    "ints": "list<int64>",
    "floats": "list<float>",
}

SCHEMA = 2  # of the report files; raised when a column goes or changes its meaning
READ = (1, SCHEMA)  # schemas that are read: 1 is that of version 0.2
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_words(name: str) -> dict[str, Any]:
    """A file of words beside this module."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    words: dict[str, Any] = yaml.load(text, LOADER)  # noqa: S506 - safe
    return words


_WORDS = read_words("columns.yaml")
NOTATION = " ".join(row["text"] for row in _WORDS["notation"])
SUMMARY: Mapping[str, str] = _WORDS["summary"]
"""The keys of the rows of summary.json, by their place in it."""


@dataclass(frozen=True)
class Column:
    """One column of a report file. What a field does not say is the empty string."""

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
        """Its type in Arrow's words: `double`, `list<float>`."""
        return STORED_TYPES[self.type]


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

    @property
    def exported(self) -> tuple[Column, ...]:
        """The columns as `shadow export` writes them: family and pair, then the others."""
        names = ("family", "pair")
        return (*IDENTITY[:2], *(column for column in self.columns if column.name not in names))


_SKETCH = {name: words.split() for name, words in _WORDS["sketch"].items()}
_NULL_IN_SKETCH = {  # why, by the list of columns
    "unknown": "in `sketch`, which does not compute all singular values",
    "bounded": "in `sketch` where its error is above a tenth of it",
    "undecided": "in `sketch` where a singular value may lie on either side of the edge",
}


def _group(name: str) -> tuple[Column, ...]:
    return tuple(
        Column(word, **entry | {"null": _null(word, entry)})
        for word, entry in _WORDS["columns"][name].items()
    )


def _null(word: str, entry: Mapping[str, str]) -> str:
    """Return when a column is null, also in the precision `sketch`."""
    reasons = (text for name, text in _NULL_IN_SKETCH.items() if word in _SKETCH[name])
    return "; ".join(filter(None, (entry.get("null", ""), *reasons)))


def _error(column: Column) -> Column:
    """The column of the error of an estimated column."""
    return Column(
        f"{column.name}_error",
        "float",
        f"how far {column.name} may be from the truth, in 95 of 100 matrices; in `sketch` alone",
        unit=column.unit,
        range=">= 0",
        null=f"{column.name} is null or no estimate, as in all other precisions",
    )


IDENTITY, SPECTRAL, DELTA = (_group(name) for name in ("identity", "spectral", "delta"))
ESTIMATED = frozenset(_SKETCH["estimated"])  # columns that have an error in `sketch`
_NAMED = {column.name: column for column in (*SPECTRAL, *DELTA)}
ERRORS = tuple(_error(_NAMED[name]) for name in _SKETCH["estimated"])
MATRICES = (*IDENTITY, *SPECTRAL, *DELTA, *ERRORS)
TENSORS, SPECTRA, FILES = (_group(name) for name in ("tensors", "spectra", "files"))
COUNTS, FIGURES = (_group(name) for name in ("counts", "figures"))
_COLUMNS = {
    "matrices": MATRICES,
    "tensors": TENSORS,
    "files": FILES,
    "spectra": SPECTRA,
    "summary": (*COUNTS, *FIGURES),
}
TABLES = {
    name: Table(
        name=name,
        file=entry["file"],
        row=entry["row"],
        columns=_COLUMNS[name],
        later=frozenset(entry.get("later", "").split()),
        start_here=frozenset(entry.get("start_here", "").split()),
    )
    for name, entry in _WORDS["tables"].items()
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
    """The part of NOTATION that explains the letters in these columns; empty where they have none.

    A letter that a formula gives another meaning (`p the share of each layer`) is not in NOTATION.
    """
    used: set[str] = set()
    for column in columns:
        text = f"{column.text}; {column.formula}; {column.range}; {column.null}"
        own = re.findall(r"\b([a-zA-Z]) (?:the|as in) ", text)
        used |= set(re.findall(r"(?<![A-Za-z_])([A-Za-z]|sigma)(?![A-Za-z])", text)) - set(own)
    return " ".join(row["text"] for row in _WORDS["notation"] if used & {*row["letters"].split()})


def delta_metrics() -> list[str]:
    """The columns of delta rows that are numbers."""
    return [column.name for column in (*SPECTRAL, *DELTA) if column.type in ("int", "float")]


def null_if_undefined(value: Value) -> Value | None:
    """Null instead of NaN or infinity: a number that overflowed is not a number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
