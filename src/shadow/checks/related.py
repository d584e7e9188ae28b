"""`related TUNED CANDIDATE...`: which candidate a model is related to, and which one is nearest.

Relation is told by an exact test, nearness by angles. Which of two related models was trained from
the other is not told: their weights are as they are either way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shadow.checks.old import Against, Answer, Claim, Figure, are
from shadow.quantities import share
from shadow.text import and_list, several

RELATED = Claim(
    "related",
    "a candidate is its nearest relative",
    "the model shares the hidden units of a candidate, which is named; of several, the one that"
    " lies on the way to all others. Which of the two was trained from the other is not told",
)
ALPHA = 0.001  # the chance that any of the candidates of an unrelated model seems related
REORDERED = 0.7  # of the cosine of a unit where another matrix matches it; 0.2 for other models
BETWEEN = 0.42  # the cosine of the angle at a model that lies between two others, at most


@dataclass(frozen=True)
class Candidate:
    """What was measured of a candidate beside the model."""

    name: str
    p: float | None
    """Of the match of units; None where nothing can be compared."""
    z: float = 0.0
    cosine: float = 0.0
    """Of all sampled weights."""
    distance: float = 0.0
    """norm(model - candidate) / norm(candidate) of the sampled weights."""
    reordered: float | None = None
    """The cosine of units at their best match; None where none was looked for."""
    why: str = ""
    """Why nothing can be compared."""


def related_to(
    candidates: Sequence[Candidate], corners: Mapping[tuple[int, int], float | None]
) -> tuple[Answer, tuple[Against, ...]]:
    """The answer, and what speaks against other candidates. corners: by numbers of candidates
    (here, there), the cosine of the angle at the first between the model and the second; None where
    two of the three are equal. Candidates that share nothing have none.
    """
    level = ALPHA / max(1, len(candidates))
    related = [number for number, one in enumerate(candidates) if _is_related(one, level)]
    figures: dict[str, Figure] = {"candidates": len(candidates), "related": len(related)}
    others = tuple(
        Against(one.name, _of(one, number in related)) for number, one in enumerate(candidates)
    )
    unknown = [f"{one.name} ({one.why})" for one in candidates if one.p is None]
    if not related:
        if unknown:
            reason = f"{several(unknown, 3)} {are(len(unknown))} not compared"
            return Answer("related", "inconclusive", reason, figures), others
        if not all(one.reordered is not None for one in candidates):
            reason = "units do not match in their order, and no other order was looked for"
            return Answer("related", "inconclusive", reason, figures), others
        least = min(one.p or 0.0 for one in candidates)
        more = " or more" if len(candidates) > 1 else ""
        reason = f"its units match those of no candidate (p {least:.2g}{more})"
        return Answer("related", "does_not_hold", reason, {**figures, "p": least}), others
    nearest = min(related, key=lambda number: candidates[number].distance)
    if doubt := _doubt(candidates, related, nearest, corners):
        return Answer("related", "inconclusive", doubt, figures), others
    one = candidates[nearest]
    figures |= {"p": one.p or 0.0, "z": one.z, "cosine": one.cosine, "distance": one.distance}
    reason = f"{one.name} is the nearest relative: {_of(one, True)}"
    beyond = [candidates[number].name for number in related if number != nearest]
    if beyond:
        reason += f"; {and_list(beyond)} {'lies' if len(beyond) == 1 else 'lie'} beyond it"
    if unknown:
        reason += f"; {several(unknown, 3)} {are(len(unknown))} not compared"
    reason += "; which was trained from which is not told"
    told = tuple(against for number, against in enumerate(others) if number != nearest)
    return Answer("related", "holds", reason, figures), told


def _is_related(one: Candidate, level: float) -> bool:
    return (one.p is not None and one.p <= level) or (one.reordered or 0.0) >= REORDERED


def _doubt(
    candidates: Sequence[Candidate],
    related: Sequence[int],
    nearest: int,
    corners: Mapping[tuple[int, int], float | None],
) -> str:
    """Why the nearest of several is not the one on the way to the others; empty where it is."""
    for other in related:
        if other == nearest:
            continue
        if candidates[nearest].distance == 0 < candidates[other].distance:
            continue  # the model is that candidate
        names = f"{candidates[nearest].name} and {candidates[other].name}"
        if (nearest, other) not in corners:
            return f"{names} cannot be told apart: no MLP that was sampled is in both"
        near, far = corners[nearest, other], corners[other, nearest]
        if near is None or far is None:
            return f"{names} cannot be told apart: what was sampled of them is equal"
        if near <= BETWEEN:
            continue
        own = math.cos(math.pi - sum(math.acos(max(-1.0, min(1.0, one))) for one in (near, far)))
        if own <= BETWEEN:
            return f"it lies between {names}, as their common origin does"
        return f"{names} are its siblings, or it is a mix: neither lies on the way to the other"
    return ""


def _of(one: Candidate, is_related: bool) -> str:
    """`units match (p 1e-05), cosine 0.997, 8.0 % away in the units that were sampled`."""
    if one.p is None:
        return f"not compared: {one.why}"
    if not is_related:
        return f"units do not match (p {one.p:.2g}), cosine {one.cosine:.3f}"
    if one.reordered is not None and one.reordered >= REORDERED:
        return f"its units in another order (cosine {one.reordered:.2f} at the best match)"
    far = share(one.distance)
    where = "in the units that were sampled"
    return f"units match (p {one.p:.1g}), cosine {one.cosine:.3f}, {far} away {where}"
