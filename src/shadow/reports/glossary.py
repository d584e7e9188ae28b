"""The terms that texts of `shadow` use, each with one meaning: for `shadow explain`, and for
docs/style.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from shadow.reports.columns import read_words

# sections; "term, other name": meaning, in Markdown
GLOSSARY: Mapping[str, Mapping[str, str]] = read_words("words.yaml")["glossary"]


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
