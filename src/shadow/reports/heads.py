"""The heads of the tables on the screen, and the column of each, so that they can be looked up."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shadow.reports.columns import read_words


@dataclass(frozen=True)
class Head:
    """A head of a table on the screen."""

    text: str
    """What stands below it."""
    column: str = ""
    """The column that has the same figure of one matrix or pair; empty where there is none."""


HEADS = {word: Head(**entry) for word, entry in read_words("words.yaml")["heads"].items()}


def head_of(word: str) -> Head | None:
    """The head that a word is, in its own case or in any; None where it is none.

    The letters of compared reports and the level of a spread are left out: `conc. A`, `A - B`,
    `spread, 95 %`.
    """
    bare = re.sub(r", [\d.]+ %$| [A-Z]$", "", " ".join(word.split()))
    if bare in HEADS:
        return HEADS[bare]
    if re.fullmatch(r"[A-Z] -", bare):
        return HEADS["difference"]
    if re.fullmatch(r"[A-Z]", bare):
        return HEADS["report"]
    plain = bare.replace(".", "").lower()  # also `conc` for `conc.`
    return next(
        (head for name, head in HEADS.items() if name.replace(".", "").lower() == plain), None
    )
