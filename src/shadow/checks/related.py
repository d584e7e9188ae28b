"""`related TUNED CANDIDATE...`: which candidate a model is related to, and which one is nearest.

Relation is told by an exact test, nearness by angles. Which of two related models was trained from
the other is not told: their weights are as they are either way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.checks.answer import Against, Answer, Check, Figure, Outcome
from shadow.templates import Reason, Value

if TYPE_CHECKING:
    from shadow.checks.questions import Question
    from shadow.run.runtime import Runtime
    from shadow.spectra.units import Relation

ALPHA = 0.001  # the chance that any of the candidates of an unrelated model seems related
REORDERED = 0.7  # of the cosine of a unit where another matrix matches it; 0.2 for other models
BETWEEN = 0.42  # the cosine of the angle at a model that lies between two others, at most
WORDS = {
    "nearest": "{name} is the nearest relative: {how}",
    "beyond": "{names} {count|lies|lie} beyond it",
    "direction": "which was trained from which is not told",
    "no_candidate": "its units match those of no candidate (p {p:ratio}[{more}])",
    "candidates_not_compared": "{names} {count|is|are} not compared",
    "candidate": "{name} ({why})",
    "no_order": "units do not match in their order, and no other order was looked for",
    "nothing_shared": "{near} and {far} cannot be told apart: no MLP that was sampled is in both",
    "equal_samples": "{near} and {far} cannot be told apart: what was sampled of them is equal",
    "between": "it lies between {near} and {far}, as their common origin does",
    "siblings": "{near} and {far} are its siblings, or it is a mix: neither lies on the way to the"
    " other",
    "no_mlp": "no MLP of the same size, or no finite one",
    "equal_units": "too many of its or the model's units are equal",
    "unknown": "not compared: {why}",
    "unrelated": "units do not match (p {p:ratio}), cosine {cosine:thousandths}",
    "reordered": "its units in another order (cosine {cosine:fixed} at the best match)",
    "related": "units match (p {p:ratio}), cosine {cosine:thousandths}, {distance:share} away in"
    " the units that were sampled",
}


@dataclass(frozen=True)
class Candidate:
    """What was measured of a candidate beside the model."""

    name: str
    relation: Relation | None
    """None where no MLP of both lines up."""

    @property
    def p(self) -> float | None:
        return self.relation.p if self.relation else None


@dataclass(frozen=True)
class Measured:
    """A model beside its candidates."""

    candidates: Sequence[Candidate]
    corners: Mapping[tuple[int, int], float | None]
    """By numbers of candidates (here, there), the cosine of the angle at the first between the
    model and the second; None where two of the three are equal. Candidates that share nothing have
    none.
    """


def judge(found: Measured) -> Answer:
    """Name the related candidate that is nearest; open where another may be nearer."""
    candidates = found.candidates
    level = ALPHA / max(1, len(candidates))
    related = [number for number, one in enumerate(candidates) if _is_related(one, level)]
    figures: dict[str, Figure] = {"candidates": len(candidates), "related": len(related)}
    against = [Against(one.name, _how(one, n in related)) for n, one in enumerate(candidates)]
    open_ones = [Reason("candidate", {"name": one.name, "why": _unknown(one)})
                 for one in candidates if one.p is None]  # fmt: skip
    unknown = [_named("candidates_not_compared", open_ones)] if open_ones else []
    if not related:
        if doubt := unknown or _other_orders(candidates):
            return Answer(Outcome.INCONCLUSIVE, doubt, figures, against)
        least = min(one.p or 0.0 for one in candidates)
        more = " or more" if len(candidates) > 1 else None
        reason = Reason("no_candidate", {"p": least, "more": more})
        return Answer(Outcome.DOES_NOT_HOLD, [reason], {**figures, "p": least}, against)
    nearest = min(related, key=lambda number: _distance(candidates[number]))
    others = [number for number in related if number != nearest]
    for other in others:
        if doubts := _doubt(found, nearest, other):
            names = {"near": candidates[nearest].name, "far": candidates[other].name}
            return Answer(Outcome.INCONCLUSIVE, [Reason(doubts, names)], figures, against)
    one = candidates[nearest]
    assert one.relation is not None, "related"
    figures |= {"p": one.p or 0.0, "z": one.relation.z}
    figures |= {"cosine": one.relation.cosine, "distance": one.relation.distance}
    reasons = [Reason("nearest", {"name": one.name, "how": against.pop(nearest).why})]
    if others:
        reasons.append(_named("beyond", [candidates[other].name for other in others]))
    return Answer(Outcome.HOLDS, [*reasons, *unknown, Reason("direction")], figures, against)


def _named(code: str, names: Sequence[str | Reason]) -> Reason:
    return Reason(code, {"names": names, "count": len(names)})


def _is_related(one: Candidate, level: float) -> bool:
    return (one.p is not None and one.p <= level) or _is_reordered(one)


def _is_reordered(one: Candidate) -> bool:
    return one.relation is not None and (one.relation.reordered or 0.0) >= REORDERED


def _distance(one: Candidate) -> float:
    return one.relation.distance if one.relation else 0.0


def _other_orders(candidates: Sequence[Candidate]) -> list[Reason]:
    """Why units that match in no order are no answer; empty where each candidate was asked."""
    each = all(one.relation and one.relation.reordered is not None for one in candidates)
    return [] if each else [Reason("no_order")]


def _doubt(found: Measured, nearest: int, other: int) -> str:
    """Why the nearest is not the one on the way to another; empty where it is."""
    if _distance(found.candidates[nearest]) == 0 < _distance(found.candidates[other]):
        return ""  # the model is that candidate
    if (nearest, other) not in found.corners:
        return "nothing_shared"
    near, far = found.corners[nearest, other], found.corners[other, nearest]
    if near is None or far is None:
        return "equal_samples"
    if near <= BETWEEN:
        return ""
    own = math.cos(math.pi - sum(math.acos(max(-1.0, min(1.0, one))) for one in (near, far)))
    return "between" if own <= BETWEEN else "siblings"


def _unknown(one: Candidate) -> Reason:
    return Reason("equal_units" if one.relation else "no_mlp")


def _how(one: Candidate, is_related: bool) -> Reason:
    """What the units of a candidate say."""
    found = one.relation
    if found is None or found.p is None:
        return Reason("unknown", {"why": _unknown(one)})
    figures: dict[str, Value] = {"p": found.p, "cosine": found.cosine, "distance": found.distance}
    if is_related and _is_reordered(one):
        return Reason("reordered", {"cosine": found.reordered})
    return Reason("related" if is_related else "unrelated", figures)


def gather(asked: Question, runtime: Runtime, scratch: Path) -> Measured:
    """Rows of MLPs of the model and of each candidate. Raises UsageError for an adapter."""
    from shadow.run.sampled_units import sampled_units
    from shadow.run.sides import found_all, opened_models
    from shadow.spectra.units import corners, relation

    named = dict(zip(asked.of, asked.checkpoints, strict=True))
    model, *opened = opened_models(found_all(named, runtime, scratch), runtime, scratch)
    sampled = [
        sampled_units(model, one, runtime, scratch / f"scan {number}")
        for number, one in enumerate(opened)
    ]
    level = ALPHA / len(opened)
    candidates = [
        Candidate(str(reference), relation(units, level))
        for reference, units in zip(asked.checkpoints[1:], sampled, strict=True)
    ]
    return Measured(candidates, corners(sampled))


CHECK = Check(
    "related",
    "a candidate is its nearest relative",
    "the model shares the hidden units of a candidate, which is named; of several, the one that"
    " lies on the way to all others. Which of the two was trained from the other is not told",
    judge,
    WORDS,
    gather,
    checkpoints=("TUNED", "CANDIDATE"),
    says="the nearest relative of TUNED",
    repeats=True,
)
