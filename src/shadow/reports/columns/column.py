"""One column of a report file, and the notation of the formulas."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Literal

Type = Literal["string", "int", "float", "bool", "ints", "floats"]

# what letters stand for, each text with the letters for which a reader needs it
_LETTERS = (
    (
        ("W", "m", "n", "sigma", "E", "p", "q"),
        "W is an (out, in) matrix, m its short and n its long side, sigma_1 >= ... >= sigma_m its"
        " singular values, E = sum sigma^2, p = sigma / sum sigma, q = sigma^2 / E.",
    ),
    (
        ("D", "r", "c"),
        "D = tuned - base is the delta; r_i and c_j are the energies (sums of squares) of its rows"
        " and columns.",
    ),
    (("sigma", "p", "q"), "Singular values below sigma_floor count as 0 everywhere."),
)
NOTATION = " ".join(text for _, text in _LETTERS)


@dataclass(frozen=True)
class Column:
    """One column of a report file. What a field does not say is the empty string."""

    name: str
    """As in the files; never changed once it is published."""

    type: Type
    """The kind of its values; `shadow.reports.column_types` has how each format stores it."""

    text: str
    """What it is, in a phrase."""

    _: KW_ONLY

    formula: str = ""
    """How it is computed, in the letters of NOTATION; of a word, what each of its values means."""

    unit: str = ""
    """The unit; empty for a pure number."""

    range: str = ""
    """The values that it can have."""

    null: str = ""
    """When it is null; empty means never."""

    source: str = ""
    """The publication or page that the definition comes from."""

    pitfalls: str = ""
    """What its values do not say, and how accurate they are."""


def notation_of(columns: Iterable[Column]) -> str:
    """The part of NOTATION that explains the letters in these columns; empty where they have none.

    A letter that a formula gives another meaning (`p the share of each layer`) is not in NOTATION.
    """
    used: set[str] = set()
    for column in columns:
        text = f"{column.text}; {column.formula}; {column.range}; {column.null}"
        own = re.findall(r"\b([a-zA-Z]) (?:the|as in) ", text)
        used |= set(re.findall(r"(?<![A-Za-z_])([A-Za-z]|sigma)(?![A-Za-z])", text)) - set(own)
    return " ".join(text for letters, text in _LETTERS if used & set(letters))
