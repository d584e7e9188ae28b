"""The shape of every claim: a question with its error rate, and the answer to it.

Gates, rules of `--fail-on`, other explanations, the label and what is recognised are claims. A
claim is an entry of a table, which `shadow explain` and the page of claims read, and a function
beside the table answers it from figures. Pure: nothing is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal

Outcome = Literal["holds", "does_not_hold", "cannot_be_told"]
Figure = float | int


@dataclass(frozen=True)
class ErrorRate:
    """How often an answer was wrong where the truth was known."""

    wrong: int
    of: int
    where: str
    """The page and the kind of pairs that were judged."""


@dataclass(frozen=True)
class Claim:
    """A question that figures answer."""

    code: str
    title: str
    """What people call it, in a few words, such as `merged adapter`."""
    meaning: str
    """What holds when the claim holds, in one sentence for `shadow explain`."""
    error_rate: ErrorRate | None = None
    """None where it was not measured."""


@dataclass(frozen=True)
class Answer:
    """The answer to a claim."""

    code: str
    outcome: Outcome
    reason: str
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """The figures in the reason, unrounded, by their place in summary.json."""


def first_code(codes: Collection[int]) -> int:
    """Of what occurred over several answers, the exit code: the first of 1, 4, 5, 3, 0."""
    return next((code for code in (1, 4, 5, 3) if code in codes), 0)


def table(*claims: Claim) -> dict[str, Claim]:
    """Claims by their codes, in their order, with the error rates that benchmarks measured."""
    return {
        claim.code: replace(claim, error_rate=claim.error_rate or _measured().get(claim.code))
        for claim in claims
    }


@cache
def _measured() -> Mapping[str, ErrorRate]:
    found = {}
    for name in ("error_rates.json", "verify_error_rates.json"):
        told = json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
        for code, (wrong, of) in told["answers"].items():
            found[code] = ErrorRate(wrong, of, told["where"])
    return found
