"""Words of earlier versions that were removed, and what to use instead."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from shadow.errors import UsageError


@cache
def gone_words() -> Mapping[tuple[str, str], str]:
    """Return what to use instead of each word, by its kind and the word."""
    import yaml

    text = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
    kinds = yaml.safe_load(text).items()
    lines = ((kind, words, use) for kind, table in kinds for words, use in table.items())
    return {(kind, word): use for kind, words, use in lines for word in words.split()}


def gone(kind: str, word: str) -> UsageError | None:
    """Return the error for a word that was removed, or None for any other word."""
    instead = gone_words().get((kind, word))
    of, _, name = word.rpartition(":")
    where = f" of {of}" if of else ""
    return UsageError(f"the {kind} {name}{where} is gone", instead) if instead else None


def gone_word(word: str) -> UsageError | None:
    """Return the error for a word of any kind that was removed."""
    return next((gone(kind, one) for kind, one in gone_words() if one == word), None)
