"""Words that can be looked up: heads of tables, and terms of the glossary, each with one meaning.

For `shadow explain`, and for docs/style.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from shadow.reports.columns import read_words


@dataclass(frozen=True)
class Head:
    """A head of a table on the screen."""

    text: str
    column: str = ""
    """The column that has the same figure of one matrix or pair; empty where there is none."""


_WORDS = read_words("words.yaml")
HEADS = {word: Head(**entry) for word, entry in _WORDS["heads"].items()}
# sections; "term, other name": meaning, in Markdown
GLOSSARY: Mapping[str, Mapping[str, str]] = _WORDS["glossary"]


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


def terms() -> list[str]:
    """Every term, one by one."""
    return [
        name for section in GLOSSARY.values() for names in section for name in names.split(", ")
    ]


def meaning_of(word: str) -> str | None:
    """What a term of the glossary means; None where it is none. Case does not matter."""
    for section in GLOSSARY.values():
        for names, text in section.items():
            if word.lower() in names.lower().split(", "):
                return text
    return None
