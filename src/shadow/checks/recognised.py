"""What the figures of a pair show of its change beyond doubt."""

from __future__ import annotations

from collections.abc import Mapping

from shadow.checks.answer import Answer, Check, Outcome, by_code
from shadow.reports.columns import read_words
from shadow.summary.changes import CHANGES, Change
from shadow.summary.record import PairRecord
from shadow.templates import Reason

MANY = 0.25  # of the changed matrices in layers: permuted neurons are 3 of 7
_MEANINGS = read_words("words.yaml")["sentences"]


def _check(one: Change) -> Check:
    """A recorded change as a check, with all figures of it."""

    def judge(record: PairRecord) -> Answer:
        if (found := one.figures(record.recognised)) is None:
            return Answer(Outcome.DOES_NOT_HOLD, [Reason("absent")])
        figures = {
            f"recognised.{one.place}.{name}": value
            for name, value in vars(found).items()
            if isinstance(value, float | int)
        }
        return Answer(Outcome.HOLDS, [Reason(one.code, vars(found))], figures)

    meaning = one.meaning or _MEANINGS[one.code]
    return Check(one.code, one.title, meaning, judge, {one.code: one.text})


RECOGNISED: Mapping[str, Check] = by_code(*map(_check, CHANGES))


def recognised(record: PairRecord) -> list[str]:
    """The codes of RECOGNISED that hold, in their order."""
    holds = Outcome.HOLDS
    return [code for code, one in RECOGNISED.items() if one.judge(record).outcome is holds]


def is_rearranged(record: PairRecord) -> bool:
    """Whether a comparison place by place shows no change: layers have moved, or MANY of the
    changed matrices are not comparable entry by entry.
    """
    if (found := record.recognised.rearranged) is None:
        return False
    return found.moved is not None or 0 < MANY * found.changed <= found.matrices


def is_copy(record: PairRecord) -> bool:
    """Whether all that changed is the other side's in another format; no, of old reports."""
    return "copy" in recognised(record)


def is_mostly_copy(record: PairRecord) -> bool:
    """Whether most tensors that changed are the other side's in another format, but not all."""
    return "mostly_copy" in recognised(record)


def is_of_base(record: PairRecord) -> bool:
    """Whether the base is the side that was cast, in every tensor that was."""
    casts = record.recognised.casts
    return casts is not None and casts.of_base == casts.tensors > 0
