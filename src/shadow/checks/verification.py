"""What came of a claim: its answer, the tensors that speak against it, and notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shadow.checks.answer import Answer, Outcome

EXIT_CODES: Mapping[Outcome, int] = {"holds": 0, "does_not_hold": 4, "cannot_be_told": 5}
IN_WORDS: Mapping[Outcome, str] = {
    "holds": "holds",
    "does_not_hold": "does not hold",
    "cannot_be_told": "cannot be told",
}


@dataclass(frozen=True)
class Against:
    """A tensor, a module or a file that speaks against a claim."""

    name: str
    """As the file names it; of the last checkpoint that has it."""
    what: str
    size: float | None = None
    """The norm of the difference over that of the base; of `merged`, and of modules in `stored`,
    over that of the update. None where it has no size.
    """


@dataclass(frozen=True)
class Verification:
    """A claim about checkpoints, and what came of it."""

    claim: str
    """Its code, such as `same`."""
    of: Mapping[str, str]
    """The checkpoints and options that it was asked of, by their names in usage."""
    answer: Answer
    against: tuple[Against, ...] = ()
    """What speaks against it, the largest first."""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    """What it took."""

    @property
    def outcome(self) -> Outcome:
        """holds, does_not_hold or cannot_be_told."""
        return self.answer.outcome

    @property
    def holds(self) -> bool | None:
        """True or False; None where it cannot be told."""
        return {"holds": True, "does_not_hold": False}.get(self.outcome)

    @property
    def reason(self) -> str:
        return self.answer.reason

    @property
    def figures(self) -> Mapping[str, float | int]:
        """The figures in the reason, unrounded, by name."""
        return self.answer.figures

    @property
    def exit_code(self) -> int:
        """0 holds, 4 does not hold, 5 cannot be told."""
        return EXIT_CODES[self.outcome]

    def as_json(self) -> dict[str, Any]:
        """For machines: all that is known of it."""
        return {
            "claim": self.claim,
            "of": dict(self.of),
            "outcome": self.outcome,
            "reason": self.reason,
            "figures": dict(self.figures),
            "against": [
                {"name": one.name, "what": one.what, "size": one.size} for one in self.against
            ],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class FailedVerification:
    """A claim that could not be checked, because of a fault."""

    claim: str
    of: Mapping[str, str]
    fault: str
    exit_code: int = 1
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For machines: what it was asked of, and the fault."""
        return {"claim": self.claim, "of": dict(self.of), "outcome": "fault", "reason": self.fault}


def largest_first(against: Sequence[Against]) -> tuple[Against, ...]:
    """In the order in which they are shown: what has no size, then by size; by name where equal."""

    def key(one: Against) -> tuple[bool, float, str]:
        return one.size is not None, -(one.size or 0.0), one.name

    return tuple(sorted(against, key=key))
