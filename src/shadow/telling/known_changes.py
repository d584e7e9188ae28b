"""Sentences of what no training does: copies, factors, zeros, layers at other numbers."""

from __future__ import annotations

from collections.abc import Collection

from shadow.checks.explanations import COPIES, recognised
from shadow.checks.summary import Sentence
from shadow.summary.changes import CHANGES, Places
from shadow.summary.record import PairRecord
from shadow.telling.told import tell
from shadow.telling.wording import places_of

FIRST = ("layers_moved", "not_comparable")  # codes that stand before the size of a change


def known_changes(summary: PairRecord) -> list[Sentence]:
    """Sentences of the recognised changes that stand before the size."""
    holds = {*recognised(summary)} - {*FIRST}
    return _sentences(summary, holds & COPIES or holds)  # else it is of rounding


def not_in_place(summary: PairRecord) -> list[Sentence]:
    """Sentences of what a comparison place by place does not find."""
    return _sentences(summary, FIRST)


def _sentences(summary: PairRecord, codes: Collection[str]) -> list[Sentence]:
    said = []
    for one in CHANGES:
        found, at = one.figures(summary.recognised), f"recognised.{one.place}"
        if one.code in codes and found is not None:
            code = one.sentence or one.code
            places = places_of(summary, found.rows) if isinstance(found, Places) else None
            said.append(tell(summary, code, one.text, found, at, places=places))
    return said
