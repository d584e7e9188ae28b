"""Words of the screens that are neither columns, heads of tables nor terms of the glossary."""

from __future__ import annotations

from collections.abc import Mapping

from shadow.checks.answer import Check
from shadow.checks.explanations import EXPLANATIONS
from shadow.checks.pair_gates import GATES
from shadow.checks.recognised import RECOGNISED
from shadow.checks.table import CHECKS
from shadow.places.names import name_rules
from shadow.quantities import share
from shadow.reasons import REASONS
from shadow.reports.columns import read_words
from shadow.reports.words import Head

_WORDS = read_words("words.yaml")
TOPICS: Mapping[str, str] = _WORDS["topics"]
_OF_SCREENS = {
    word: Head(**entry) for words, entry in _WORDS["screens"].items() for word in words.split(", ")
}
_MODULE = Head("a module: what role a matrix has in the model, by the name of its tensor", "module")


def other_words() -> Mapping[str, Head]:
    """By what stands on the screen, in small letters: what it means."""
    texts = {name: f"a reason for skipping tensors: {one.text}" for name, one in REASONS.items()}
    texts |= {name: f"a gate: it passes when {gate.meaning}" for name, gate in GATES.items()}
    texts |= {
        claim.title: (
            f"another explanation of the same figures: {claim.meaning}."
            " `shadow explain finding` describes the answers"
        )
        for claim in EXPLANATIONS.values()
    }
    texts |= {
        claim.title: f"a change that the figures show beyond doubt: {claim.meaning}"
        for claim in RECOGNISED.values()
    }
    # a gate is known by its code already; what has the code of a claim as its own name comes first
    codes = {claim.code: claim.title for claim in (*EXPLANATIONS.values(), *RECOGNISED.values())}
    texts = {code: f"`{title}`, {texts[title]}" for code, title in codes.items()} | texts
    texts |= {
        code: f"a claim of `shadow verify {code} {check.usage}`: {check.meaning}"
        f"{_error_rate(check)}"
        for code, check in CHECKS.items()
    }
    sentences = _WORDS["sentences"].items()
    texts = {code: f"a sentence of the finding: {text}" for code, text in sentences} | texts
    return {
        **{word: Head(text) for word, text in texts.items()},
        **dict.fromkeys(name_rules().modules, _MODULE),
        **_OF_SCREENS,
    }


def _error_rate(check: Check) -> str:
    """How often its answers were wrong; of none the exact bound of 95 %. Empty where unknown."""
    rate = check.error_rate
    if rate is None:
        return ""
    bound = ""
    if not rate.wrong:
        bound = f" (below {share(1 - 0.05 ** (1 / rate.of))} with 95 % confidence)"
    return f". Of {rate.of} answers to planted claims {rate.wrong} are wrong{bound}: {rate.where}"
