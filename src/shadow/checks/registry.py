"""Every check, of checkpoints and of the record of a pair, and what `explain` says of each kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shadow.checks.answer import Check
from shadow.checks.explanations import EXPLANATIONS
from shadow.checks.pair_gates import GATES
from shadow.checks.recognised import RECOGNISED
from shadow.checks.table import CHECKS


@dataclass(frozen=True)
class Kind:
    """Checks of one kind, in their order."""

    checks: Mapping[str, Check]
    text: str
    """What one of them is, as a template of its code, usage, meaning and rate."""
    has_titles: bool = False
    """Whether people meet them by their titles."""


KINDS = (
    Kind(
        EXPLANATIONS,
        "another explanation of the same figures: {meaning}. `shadow explain finding` describes"
        " the answers",
        has_titles=True,
    ),
    Kind(RECOGNISED, "a change that the figures show beyond doubt: {meaning}", has_titles=True),
    Kind(GATES, "a gate: it passes when {meaning}"),
    Kind(CHECKS, "a claim of `shadow verify {code} {usage}`: {meaning}[. {rate}]"),
)
