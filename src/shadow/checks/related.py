"""`related TUNED CANDIDATE...`: which candidate a model is related to, and which one is nearest.

An exact test decides relation, angles decide nearness. Which of two related models was trained from
the other is unknown: their weights would be the same either way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.checks.answer import Against, Answer, Check, Figure, Outcome
from shadow.templates import Reason

if TYPE_CHECKING:
    from shadow.checks.answer import Question
    from shadow.run.runtime import Runtime
    from shadow.spectra.relations.units import Relation

ALPHA = 0.001  # the chance that any of the candidates of an unrelated model seems related
REORDERED = 0.7  # of the cosine of a unit where another matrix matches it; 0.2 for other models
BETWEEN = 0.42  # the cosine of the angle at a model that lies between two others, at most
WORDS = {
    "nearest": "{name} is the nearest relative: {how}",
    "beyond": "{names} {count|lies|lie} beyond it",
    "direction": "which was trained from which is unknown",
    "no_candidate": "its units match those of no candidate (p {p:ratio}[{more}])",
    "candidates_not_compared": "{names} {count|is|are} not compared",
    "candidate": "{name} ({why})",
    "no_order": "units do not match in their order, and no other order was looked for",
    "nothing_shared": "{near} and {far} cannot be distinguished: no sampled MLP is in both",
    "equal_samples": "{near} and {far} cannot be distinguished: what was sampled of them is equal",
    "between": "it lies between {near} and {far}, as their common origin does",
    "siblings": "{near} and {far} are its siblings, or it is a mix: neither lies on the way to the"
    " other",
    "no_mlp": "no MLP of the same size, or no finite one",
    "equal_units": "too many of its or the model's units are equal",
    "unknown": "not compared: {why}",
    "unrelated": "units do not match (p {p:ratio}), cosine {cosine:thousandths}",
    "reordered": "its units in another order (cosine {cosine:fixed} at the best match)",
    "moved": "units match where layers or experts that correspond have other numbers"
    " (p {p:ratio}), cosine {cosine:thousandths}, {distance:share} away in the units that were"
    " sampled",
    "related": "units match (p {p:ratio}), cosine {cosine:thousandths}, {distance:share} away in"
    " the units that were sampled",
}


@dataclass(frozen=True)
class RelatedUnits:
    """A model and its candidates."""

    candidates: Sequence[tuple[str, Relation]]
    corners: Mapping[tuple[int, int], float | None]
    """By numbers of candidates (here, there), the cosine of the angle at the first between the
    model and the second; None where two of the three are equal. Candidates that share nothing have
    none.
    """


def judge(evidence: RelatedUnits) -> Answer:
    """Name the nearest related candidate; open if another may be nearer."""
    names, relations = zip(*evidence.candidates, strict=True)
    level = ALPHA / len(names)
    related = []
    against = []
    of_none = []
    for number, (name, units) in enumerate(evidence.candidates):
        is_match = units.p is not None and units.p <= level
        is_related = is_match or (units.reordered or 0.0) >= REORDERED
        if is_related:
            related.append(number)
        if units.p is None:
            of_none.append(Reason("candidate", name=name, why=Reason(units.unknown)))
        against.append(Against(name, _how(units, is_related)))
    counts: dict[str, Figure] = {"candidates": len(names), "related": len(related)}
    unknown = [_named("candidates_not_compared", of_none)] if of_none else []
    if not related:
        if any(units.reordered is None for units in relations):
            unknown = unknown or [Reason("no_order")]
        if unknown:
            return Answer(Outcome.INCONCLUSIVE, unknown, counts, against)
        least = min(units.p for units in relations)
        more = " or more" if len(names) > 1 else None
        reason = Reason("no_candidate", p=least, more=more)
        return Answer(Outcome.DOES_NOT_HOLD, [reason], {**counts, "p": least}, against)
    nearest = min(related, key=lambda number: relations[number].distance)
    others = [number for number in related if number != nearest]
    for other in others:
        if doubt := _doubt(evidence, nearest, other):
            reason = Reason(doubt, near=names[nearest], far=names[other])
            return Answer(Outcome.INCONCLUSIVE, [reason], counts, against)
    units = relations[nearest]
    counts |= {
        "p": units.p,
        "z": units.z,
        "cosine": units.cosine,
        "distance": units.distance,
    }
    how = against.pop(nearest).why
    reasons = [Reason("nearest", name=names[nearest], how=how)]
    if others:
        further = [names[other] for other in others]
        reasons.append(_named("beyond", further))
    reasons += [*unknown, Reason("direction")]
    return Answer(Outcome.HOLDS, reasons, counts, against)


def _named(code: str, names: Sequence[str | Reason]) -> Reason:
    return Reason(code, names=names, count=len(names))


def _doubt(evidence: RelatedUnits, nearest: int, other: int) -> str:
    """The reason why the nearest is not on the way to another candidate; empty if it is."""
    _, close = evidence.candidates[nearest]
    _, away = evidence.candidates[other]
    if close.distance == 0 < away.distance:
        return ""  # the model is that candidate
    if (nearest, other) not in evidence.corners:
        return "nothing_shared"
    near = evidence.corners[nearest, other]
    far = evidence.corners[other, nearest]
    if near is None or far is None:
        return "equal_samples"
    if near <= BETWEEN:
        return ""
    angles = 0.0
    for cosine in (near, far):
        angles += math.acos(max(-1.0, min(1.0, cosine)))
    own = -math.cos(angles)  # of the third angle of a triangle
    return "between" if own <= BETWEEN else "siblings"


def _how(units: Relation, is_related: bool) -> Reason:
    """Describe what the units of a candidate show."""
    if units.p is None:
        return Reason("unknown", why=Reason(units.unknown))
    if (units.reordered or 0.0) >= REORDERED:
        return Reason("reordered", cosine=units.reordered)
    figures = {"p": units.p, "cosine": units.cosine, "distance": units.distance}
    if is_related:
        return Reason("moved" if units.is_moved else "related", figures)
    return Reason("unrelated", figures)


def gather(question: Question, runtime: Runtime, scratch: Path) -> RelatedUnits:
    """Read rows of MLPs of the model and of each candidate. Raises UsageError for an adapter."""
    from shadow.run.sampled import sampled_units
    from shadow.run.sides import find_checkpoints, opened_models
    from shadow.spectra.relations.units import corners, relation

    sides = find_checkpoints(question.named, runtime, scratch)
    model, *opened = opened_models(sides, runtime, scratch)
    sampled = [
        sampled_units(model, candidate, runtime, scratch / f"scan {number}")
        for number, candidate in enumerate(opened)
    ]
    level = ALPHA / len(opened)
    candidates = [
        (str(reference), replace(relation(units, level), is_moved=is_moved))
        for reference, (units, is_moved) in zip(question.checkpoints[1:], sampled, strict=True)
    ]
    return RelatedUnits(candidates, corners([units for units, _ in sampled]))


CHECK = Check(
    "related",
    "a candidate is its nearest relative",
    "the model shares the hidden units of a candidate, which is named; of several, the one that"
    " lies on the way to all others. Which of the two was trained from the other is unknown",
    judge,
    WORDS,
    gather,
    checkpoints=("TUNED", "CANDIDATE"),
    says="the nearest relative of TUNED",
    repeats=True,
)
