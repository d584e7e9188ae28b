"""What came of a check of checkpoints: what was asked, and its answer in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shadow.checks.answer import EXIT_CODES, Answer, Check, Outcome


@dataclass(frozen=True)
class Named:
    """What speaks against an answer, in words: a tensor, a module, a file or a candidate."""

    name: str
    code: str
    what: str
    """How it does: the words of the code."""
    size: float | None


@dataclass(frozen=True)
class Verification:
    """A check of checkpoints, and what came of it."""

    check: Check
    of: Mapping[str, str]
    """The checkpoints and options that it was asked of, by their names in usage."""
    answer: Answer
    seconds: float = 0.0

    @property
    def claim(self) -> str:
        """The code of the check, such as `same`."""
        return self.check.code

    @property
    def outcome(self) -> Outcome:
        return self.answer.outcome

    @property
    def holds(self) -> bool | None:
        """True or False; None where it is inconclusive."""
        return {Outcome.HOLDS: True, Outcome.DOES_NOT_HOLD: False}.get(self.outcome)

    @property
    def code(self) -> str:
        """Why, as a code: the first of the reasons."""
        return self.answer.reasons[0].code

    @property
    def reason(self) -> str:
        """Why, in words."""
        return self.check.say_all(self.answer.reasons)

    @property
    def figures(self) -> Mapping[str, float | int]:
        """All that was measured, unrounded, by name."""
        return self.answer.figures

    @property
    def against(self) -> tuple[Named, ...]:
        """What speaks against it, the largest first."""
        return tuple(
            Named(one.name, one.why.code, self.check.say(one.why), one.size)
            for one in self.answer.against
        )

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(map(self.check.say, self.answer.notes))

    @property
    def exit_code(self) -> int:
        """0 holds, 4 does not hold, 5 inconclusive."""
        return EXIT_CODES[self.outcome]

    def as_json(self) -> dict[str, Any]:
        """For machines: all that is known of it."""
        return {
            "claim": self.claim,
            "of": dict(self.of),
            "outcome": self.outcome,
            "code": self.code,
            "reason": self.reason,
            "figures": dict(self.figures),
            "against": [asdict(one) for one in self.against],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class FailedVerification:
    """A check that ended with a fault."""

    claim: str
    of: Mapping[str, str]
    fault: str
    exit_code: int = 1
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For machines: what it was asked of, and the fault."""
        return {"claim": self.claim, "of": dict(self.of), "outcome": "fault", "reason": self.fault}
