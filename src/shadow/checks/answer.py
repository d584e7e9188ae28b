"""The shape of every check: a question, what it needs to measure, its answer and its texts.

A check is one file: `gather` measures evidence of checkpoints (and imports what reads weights when
it is called), `judge` makes an answer from that alone, and `words` has a template for every code
that `judge` uses. Texts are made last, by `Check.say`; no code reads them back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cache, reduce
from pathlib import Path
from typing import Any

from shadow.run.scanned import APART, Unmatched
from shadow.targets.references import AnyReference, ComponentBase, Reference
from shadow.templates import Reason, in_words, names_in
from shadow.text import Shown, visible

Figure = float | int
VALUES = {
    "moved": " PATTERN",
    "frozen": " PATTERN",
    "base": " REF",
    "headers": "",
    "accept": " CODE=REASON",
}


class Outcome(StrEnum):
    """Outcomes of a check."""

    HOLDS = "holds"
    DOES_NOT_HOLD = "does_not_hold"
    INCONCLUSIVE = "inconclusive"

    @property
    def words(self) -> str:
        """`does not hold`."""
        return self.replace("_", " ")


EXIT_CODES: Mapping[Outcome, int] = {
    Outcome.HOLDS: 0,
    Outcome.DOES_NOT_HOLD: 4,
    Outcome.INCONCLUSIVE: 5,
}


class Severity(StrEnum):
    """Consequences of a statement for the answer."""

    FAULT = "fault"  # the claim does not hold
    DOUBT = "doubt"  # something could not be checked, which leaves the claim open
    NOTE = "note"  # something to know


SEVERITIES: Mapping[Outcome, Severity] = {
    Outcome.HOLDS: Severity.NOTE,
    Outcome.DOES_NOT_HOLD: Severity.FAULT,
    Outcome.INCONCLUSIVE: Severity.DOUBT,
}


@dataclass(frozen=True)
class Against:
    """A tensor, a module, a file or a candidate that speaks against an answer."""

    name: str  # as the file names it; of the last checkpoint that has it
    why: Reason
    size: float | None = None
    """The norm of the difference over that of the base; of `merged`, and of modules in `stored`,
    over that of the update. None where it has no size.
    """
    accepted: str | None = None  # why a person accepts it; None where nobody does

    @classmethod
    def of(cls, apart: Unmatched) -> Against:
        """Make counter-evidence of a tensor without a partner, or of one that is not read."""
        return cls(apart.tensor, apart.why)


@dataclass(frozen=True)
class Answer:
    """The answer of a check."""

    outcome: Outcome
    reasons: Sequence[Reason]  # why, the most telling first: its code is that of the answer
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """All that was measured, unrounded, by name."""
    against: Sequence[Against] = ()
    notes: Sequence[Reason] = ()
    doubts: Sequence[Reason] = ()  # what could not be checked, where a fault decides anyway

    @property
    def holds(self) -> bool:
        return self.outcome is Outcome.HOLDS


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Measurements of aligned checkpoints; in addition to a check's own, tensors without
    a partner.
    """

    unmatched: Sequence[Unmatched] = ()  # tensors of one side only
    unread: Sequence[Unmatched] = ()  # tensors that are not compared
    notes: Sequence[Reason] = ()

    def judged(
        self,
        figures: Mapping[str, Figure],
        *,
        faults: Sequence[Reason],
        doubts: Sequence[Reason],
        holds: Sequence[Reason],
        against: Sequence[Against] = (),
        doubtful: Sequence[Against] = (),
        notes: Sequence[Reason] = (),
    ) -> Answer:
        """Make the answer: one fault is enough; without one, a doubt leaves it open. against: rows
        of the faults, beside tensors of one side. doubtful: rows of the doubts, beside tensors that
        are not compared.
        """
        outcome = Outcome.HOLDS
        rows: list[Against] = []
        if faults:
            outcome = Outcome.DOES_NOT_HOLD
            rows = [*map(Against.of, self.unmatched), *against]
        elif doubts:
            outcome = Outcome.INCONCLUSIVE
            rows = [*map(Against.of, self.unread), *doubtful]
        reasons = faults or doubts or holds
        return Answer(outcome, reasons, figures, largest_first(rows), [*self.notes, *notes])


@dataclass(frozen=True)
class ErrorRate:
    """Number of wrong answers among those whose truth was known."""

    wrong: int
    of: int
    where: str  # the page and the kind of pairs that were judged


# of tensors that line up with none, or are not read, in all checks that read checkpoints
COMMON: Mapping[str, str] = {
    **APART,
    "accepted": "accepted ({because}): {what}",
    "one_checkpoint": "{names:and} are one checkpoint, so nothing was compared",
    "other_numbers": "layers, experts or matrices of {last} are those of {first} at other numbers,"
    " which this claim does not compare; `shadow audit` does",
    "not_compared": "{tensors:count tensor is|tensors are} not compared: {why}",
    "apart": "{tensors:count tensor|tensors} {where}",
    "shared_apart": "{how}, of {tensors:count tensor|tensors}",
    "prefixed": "names in {where} begin with {prefix} where those in {other} do not",
    "renamed": "{tensors:count tensor has|tensors have} another name or packing in {where}",
}


@dataclass(frozen=True)
class Check:
    """A question about checkpoints, or about the record of a pair."""

    code: str
    title: str  # what people call it, in a few words, such as `merged adapter`
    meaning: str  # what holds when the check holds, in one sentence for `shadow explain`
    judge: Callable[..., Answer]
    words: Mapping[str, str] = field(default_factory=dict)
    """Templates by code, beside those of COMMON."""
    gather: Callable[..., Any] | None = None
    """(request, runtime, scratch) -> the evidence of `judge`. None of a check of a record."""
    checkpoints: tuple[str, ...] = ()  # what it is asked of, in order, as in usage: `BASE`, `TUNED`
    says: str = ""  # what it says of them, in a line of help
    repeats: bool = False  # whether the last checkpoint may be given several times
    options: tuple[str, ...] = ()  # which keys of VALUES it takes

    @property
    def error_rate(self) -> ErrorRate | None:
        """Its error rate; None if not measured."""
        return _measured().get(self.code)

    def say(self, reason: Reason) -> str:
        """Put a reason, a note or counter-evidence into words."""
        return str(in_words(reason, {**COMMON, **self.words}))

    def say_all(self, reasons: Sequence[Reason]) -> str:
        """Put several reasons into one line."""
        return "; ".join(map(self.say, reasons))

    @property
    def names_in_usage(self) -> str:
        """`BASE TUNED`, `TUNED CANDIDATE...`."""
        return " ".join(self.checkpoints) + ("..." if self.repeats else "")

    @property
    def usage(self) -> str:
        """`BASE TUNED [--moved PATTERN] [--frozen PATTERN]`, `FULL STORED [--base REF]`."""
        words = [self.names_in_usage]
        for option in self.options:
            words.append(f"[--{option}{VALUES[option]}]")
        return " ".join(words)

    def names(self, count: int) -> list[str]:
        """The names of this many checkpoints: `TUNED, CANDIDATE, CANDIDATE 2`."""
        names = list(self.checkpoints)
        more = count - len(names)
        for number in range(2, 2 + more):
            names.append(f"{self.checkpoints[-1]} {number}")
        return names

    @property
    def is_of_pair(self) -> bool:
        """True if it is asked of a base and a tuned side, in this order."""
        return len(self.checkpoints) == 2 and not self.repeats


class Kind(dict[str, Check]):
    """Checks of one kind by code, in their order: claims, gates, explanations or changes."""

    def __init__(self, text: str, *checks: Check, has_titles: bool = False) -> None:
        super().__init__({check.code: check for check in checks})
        self.text = text  # what one of them is, as a template of its code, usage, meaning and rate
        self.has_titles = has_titles  # whether people meet them by their titles

    def answers(self, *evidence: object) -> Iterator[tuple[Check, Answer]]:
        """Ask every check, and yield each with its answer from this evidence."""
        for check in self.values():
            yield check, check.judge(*evidence)


@dataclass(frozen=True)
class Question:
    """A claim to check."""

    check: Check
    checkpoints: tuple[AnyReference, ...]
    moved: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    base: AnyReference | None = None
    headers: bool = False  # whether values are left out
    accept: Mapping[str, str] = field(default_factory=dict)  # by code of a fault, the reason

    @property
    def claim(self) -> str:
        """The code of the check."""
        return self.check.code

    def __str__(self) -> str:
        """`trained --moved layers.0-7 --frozen embed`."""
        words = [self.claim]
        for option, patterns in self._patterns.items():
            words += [f"{option} {pattern}" for pattern in patterns]
        return " ".join(words)

    @property
    def _patterns(self) -> dict[str, tuple[str, ...]]:
        return {"--moved": self.moved, "--frozen": self.frozen}

    @property
    def named(self) -> dict[str, AnyReference]:
        """The checkpoints by their names in usage."""
        names = self.check.names(len(self.checkpoints))
        return dict(zip(names, self.checkpoints, strict=True))

    @property
    def of(self) -> dict[str, str]:
        """The checkpoints and options, by their names in usage."""
        recorded = {name: str(reference) for name, reference in self.named.items()}
        if self.base is not None:
            recorded["--base"] = str(self.base)
        for option, patterns in self._patterns.items():
            if patterns:
                recorded[option] = ", ".join(patterns)
        if self.headers:
            recorded["--headers"] = "values are left out"
        return recorded

    @property
    def models(self) -> list[Reference]:
        """The checkpoints, unless the claim has them by component."""
        return [side for side in self.checkpoints if not isinstance(side, ComponentBase)]

    @property
    def references(self) -> list[Reference]:
        """Every checkpoint that it reads."""
        sides = [*self.checkpoints]
        if self.base is not None:
            sides.append(self.base)
        return [part for side in sides for _, part in side.parts]


def figures_at(record: object, template: str) -> dict[str, Figure]:
    """The figures that a template names, by keys in a record, as `inside_layers.kept`."""
    figures: dict[str, Any] = {}
    for place in names_in(template):
        if "." in place:
            figures[place] = reduce(getattr, place.split("."), record)
    return figures


def largest_first(against: Sequence[Against]) -> tuple[Against, ...]:
    """Sort by how they are shown: those without a size, then by size, and by name if equal."""
    by_name = sorted(against, key=lambda row: row.name)
    return tuple(sorted(by_name, key=lambda row: (row.size is not None, -(row.size or 0.0))))


def first_code(codes: Collection[int]) -> int:
    """The exit code for several answers: the first of 1, 4, 5, 3, 0 that occurred."""
    return next((code for code in (1, 4, 5, 3) if code in codes), 0)


@cache
def _measured() -> Mapping[str, ErrorRate]:
    rates = {}
    for name in ("error_rates.json", "verify_error_rates.json"):
        recorded = json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
        for code, (wrong, of) in recorded["answers"].items():
            rates[code] = ErrorRate(wrong, of, recorded["where"])
    return rates


@dataclass(frozen=True)
class Named:
    """A tensor, a module, a file or a candidate that speaks against an answer, in words."""

    name: str
    code: str
    what: str  # how it does: the words of the code
    size: float | None
    severity: Severity
    accepted: str | None  # why a person accepts it


@dataclass(frozen=True)
class Statement:
    """A sentence of an answer."""

    code: str
    severity: Severity
    what: str  # the words of the code


@dataclass(frozen=True)
class Verification(Shown):
    """A check of checkpoints and its answer."""

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
        """True or False; None if inconclusive."""
        return {Outcome.HOLDS: True, Outcome.DOES_NOT_HOLD: False}.get(self.outcome)

    @property
    def code(self) -> str:
        """The code of the first reason."""
        return self.answer.reasons[0].code

    @property
    def reason(self) -> str:
        """The reason, in words."""
        return self.check.say_all(self.answer.reasons)

    @property
    def figures(self) -> Mapping[str, float | int]:
        """All that was measured, unrounded, by name."""
        return self.answer.figures

    @property
    def against(self) -> tuple[Named, ...]:
        """Counter-evidence in words, the largest first."""
        return tuple(map(self._named, self.answer.against))

    def _named(self, row: Against) -> Named:
        severity = Severity.FAULT if row.accepted else SEVERITIES[self.outcome]
        what = self.check.say(row.why)
        if row.accepted:
            what = self.check.say(Reason("accepted", because=row.accepted, what=what))
        return Named(row.name, row.why.code, what, row.size, severity, row.accepted)

    @property
    def notes(self) -> tuple[str, ...]:
        """Other things to know, and beside a fault all that could not be checked."""
        return tuple(statement.what for statement in self.statements[len(self.answer.reasons) :])

    @property
    def statements(self) -> tuple[Statement, ...]:
        """Every sentence of the answer: reasons, doubts beside faults, and notes."""
        answer = self.answer
        groups = (
            (SEVERITIES[self.outcome], answer.reasons),
            (Severity.DOUBT, answer.doubts),
            (Severity.NOTE, answer.notes),
        )
        return tuple(
            Statement(reason.code, severity, self.check.say(reason))
            for severity, reasons in groups
            for reason in reasons
        )

    @property
    def exit_code(self) -> int:
        """0 holds, 4 does not hold, 5 inconclusive."""
        return EXIT_CODES[self.outcome]

    def __repr__(self) -> str:
        return visible(f"{self.claim}: {self.outcome.words}: {self.reason}")

    def as_json(self) -> dict[str, Any]:
        """Everything that is known about it, for machines."""
        return {
            "claim": self.claim,
            "of": dict(self.of),
            "outcome": self.outcome,
            "code": self.code,
            "reason": self.reason,
            "figures": dict(self.figures),
            "against": [asdict(row) for row in self.against],
            "notes": list(self.notes),
            "statements": [asdict(statement) for statement in self.statements],
        }


@dataclass(frozen=True)
class FailedVerification:
    """A check that ended with an error."""

    outcome = code = "fault"

    claim: str
    of: Mapping[str, str]
    fault: str
    hint: str | None = None  # what to do about it
    exit_code: int = 1
    seconds: float = 0.0

    def __repr__(self) -> str:
        return visible(f"{self.claim}: fault: {self.fault}")

    @property
    def figures(self) -> Mapping[str, Figure]:
        """Nothing was measured."""
        return {}

    def as_json(self) -> dict[str, Any]:
        """The question and the error, for machines."""
        return {"claim": self.claim, "of": dict(self.of), "outcome": "fault", "reason": self.fault}
