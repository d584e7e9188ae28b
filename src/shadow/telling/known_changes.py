"""Sentences of what no training does: copies, factors, zeros, layers at other numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from shadow.checks.draft import Draft, Sentence
from shadow.checks.recognised import recognised
from shadow.quantities import FORMS
from shadow.summary.changes import CHANGES
from shadow.summary.record import PairRecord
from shadow.telling.wording import factor, places_of

FIRST = ("layers_moved", "not_comparable")  # codes that stand before the size of a change
TEXTS: Mapping[str, Callable[[float], str]] = {**dict[Any, Any](FORMS), "factor": factor}
# {share:share}, {matrices:count matrix|matrices}, {places}
SLOT = re.compile(r"\{(\w+)(?::(\w+)(?: ([^|{}]*)\|([^{}]*))?)?\}")


def known_changes(summary: PairRecord) -> list[Sentence]:
    """Sentences of the recognised changes that stand before the size."""
    holds = {*recognised(summary)} - {*FIRST}
    return _sentences(summary, holds & {"copy", "mostly_copy"} or holds)  # else it is of rounding


def not_in_place(summary: PairRecord) -> list[Sentence]:
    """Sentences of what a comparison place by place does not find."""
    return _sentences(summary, FIRST)


def _sentences(summary: PairRecord, codes: Collection[str]) -> list[Sentence]:
    told = []
    for one in CHANGES:
        figures = one.figures(summary.recognised)
        if one.code in codes and figures is not None:
            draft = Draft(summary)
            text = _filled(draft, one.text, one.place, figures)
            told.append(draft.sentence(one.sentence or one.code, text))
    return told


def _filled(draft: Draft, text: str, place: str, figures: Any) -> str:
    """A template with its figures, which the draft notes."""

    def slot(match: re.Match[str]) -> str:
        name, kind, one, many = match.groups()
        if name == "places":
            return places_of(draft.summary, figures.rows)
        value = getattr(figures, name)
        told = draft.write(value, f"recognised.{place}.{name}", TEXTS[kind])
        return told if one is None else f"{told} {one if value == 1 else many}"

    return SLOT.sub(slot, text)
