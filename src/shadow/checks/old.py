"""Answers in words, of checks that have no codes yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field

from shadow.checks import answer as new
from shadow.run.scanned import Apart
from shadow.templates import Reason, said
from shadow.text import counted

Figure = float | int
Outcome = str


@dataclass(frozen=True)
class Claim:
    code: str
    title: str
    meaning: str

    @property
    def error_rate(self) -> new.ErrorRate | None:
        return new._measured().get(self.code)


def table(*claims: Claim) -> dict[str, Claim]:
    return {claim.code: claim for claim in claims}


@dataclass(frozen=True)
class Answer:
    code: str
    outcome: str
    reason: str
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class Against:
    name: str
    what: str
    size: float | None = None


def largest_first(against: Sequence[Against]) -> tuple[Against, ...]:
    def key(one: Against) -> tuple[bool, float, str]:
        return one.size is not None, -(one.size or 0.0), one.name

    return tuple(sorted(against, key=key))


def combined(
    answer: Answer, against: Sequence[Against] = (), notes: Sequence[str | Reason] = ()
) -> new.Answer:
    return new.Answer(
        new.Outcome(answer.outcome),
        [said(answer.reason)],
        answer.figures,
        [new.Against(one.name, said(one.what), one.size) for one in against],
        [note if isinstance(note, Reason) else said(note) for note in notes],
    )


def all_tensors(count: int) -> str:
    """`the only tensor`, `both tensors`, `all 3 tensors`."""
    if count == 1:
        return "the only tensor"
    return "both tensors" if count == 2 else f"all {count:,} tensors"


def are(count: int) -> str:
    """`is` of one, `are` of several."""
    return "is" if count == 1 else "are"


def some_tensors(some: Sized, every: Sized) -> str:
    """`2 of 3 tensors`."""
    return f"{len(some):,} of {counted(len(every), 'tensor', 'tensors')}"


def not_compared(unread: Sequence[Apart]) -> str:
    """`2 tensors are not compared`, and why."""
    return f"{counted(len(unread), 'tensor is', 'tensors are')} not compared: {unread[0].what}"


def apart_in_words(lone: Sequence[Apart], where: str) -> list[str]:
    """`2 tensors only in A`, and `3 rows only in A, of 2 tensors` where both sides have them."""
    whole = sum(not one.is_shared for one in lone)
    texts = [f"{counted(whole, 'tensor', 'tensors')} {where}"] if whole else []
    shared = Counter(one.what for one in lone if one.is_shared)
    return texts + [
        f"{what}, of {counted(count, 'tensor', 'tensors')}" for what, count in shared.items()
    ]
