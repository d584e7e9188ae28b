"""What the figures of a pair show of its change beyond doubt."""

from __future__ import annotations

from collections.abc import Mapping

from shadow.checks.answer import Answer, Check, Outcome, by_code
from shadow.reports.columns import read_words
from shadow.summary.changes import CHANGES, Change
from shadow.summary.record import PairRecord
from shadow.templates import Reason

COPIES = {"copy", "mostly_copy"}
MANY = 0.25  # of the changed matrices in layers: permuted neurons are 3 of 7
_MEANINGS = read_words("words.yaml")["sentences"]


def _check(change: Change) -> Check:
    """A recorded change as a check, with all figures of it."""

    def judge(record: PairRecord) -> Answer:
        if (found := change.figures(record.recognised)) is None:
            return Answer(Outcome.DOES_NOT_HOLD, [Reason("absent")])
        numbers = {key: one for key, one in vars(found).items() if isinstance(one, float | int)}
        figures = {f"recognised.{change.place}.{key}": one for key, one in numbers.items()}
        return Answer(Outcome.HOLDS, [Reason(change.code, numbers)], figures)

    code, meaning = change.code, change.meaning or _MEANINGS[change.code]
    return Check(code, change.title, meaning, judge, {code: change.text})


RECOGNISED: Mapping[str, Check] = by_code(*map(_check, CHANGES))


def recognised(record: PairRecord) -> list[str]:
    """The codes of RECOGNISED that hold, in their order."""
    return [code for code, check in RECOGNISED.items() if check.judge(record).holds]


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


def is_copied(record: PairRecord) -> bool:
    """Whether most tensors that changed are the other side's in another format, or all."""
    return not COPIES.isdisjoint(recognised(record))


def is_of_base(record: PairRecord) -> bool:
    """Whether the base is the side that was cast, in every tensor that was."""
    casts = record.recognised.casts
    return casts is not None and casts.of_base == casts.tensors > 0
