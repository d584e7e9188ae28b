"""Words of the screens that are neither columns, heads of tables nor terms of the glossary."""

from __future__ import annotations

from collections.abc import Mapping

from shadow.checks.answer import Check
from shadow.checks.registry import kinds
from shadow.places.names import name_rules
from shadow.reasons import REASONS
from shadow.reports.columns import read_words
from shadow.reports.words import Head
from shadow.templates import fill

_WORDS = read_words("words.yaml")
TOPICS: Mapping[str, str] = _WORDS["topics"]
_OF_SCREENS = {
    word: Head(**entry) for words, entry in _WORDS["screens"].items() for word in words.split(", ")
}
_MODULE = Head("a module: what role a matrix has in the model, by the name of its tensor", "module")


RATE = (
    "Of {of:count} answers to planted claims {wrong:count} are wrong"
    "[ (below {bound:share} with 95 % confidence)]: {where}"
)


def other_words() -> Mapping[str, Head]:
    """By what stands on the screen, in small letters: what it means."""
    sentences = _WORDS["sentences"].items()
    texts = {code: f"a sentence of the finding: {text}" for code, text in sentences}
    texts |= {name: f"a reason for skipping tensors: {one.text}" for name, one in REASONS.items()}
    for kind in kinds():
        for code, check in kind.checks.items():
            figures = {"code": code, "usage": check.usage, "meaning": check.meaning}
            text = fill(kind.text, {**figures, "rate": _rate(check)})
            names = {code: f"`{check.title}`, {text}", check.title: text}
            texts |= names if kind.has_titles else {code: text}
    return {
        **{word: Head(text) for word, text in texts.items()},
        **dict.fromkeys(name_rules().modules, _MODULE),
        **_OF_SCREENS,
    }


def _rate(check: Check) -> str | None:
    """How often its answers were wrong; of none the exact bound of 95 %. None where unknown."""
    if (rate := check.error_rate) is None:
        return None
    bound = None if rate.wrong else 1 - 0.05 ** (1 / rate.of)
    return fill(RATE, {**vars(rate), "bound": bound})
