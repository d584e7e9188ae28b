"""Where two deltas of one base point, beside chance: what `shadow.lists.joint` finds of them."""

from __future__ import annotations

from dataclasses import dataclass

from shadow.comparing.matching import Relation

SURE = 4.0  # standard deviations of chance that a cosine is beyond it
MOST_SHARED = 0.293  # 1 - 1/sqrt(2): the cosine of two small updates that share their rounding


@dataclass(frozen=True)
class DeltaDirections:
    """Two deltas, over matrices that both changed. Figures are None where they are not known."""

    matrices: int
    """Matrices that both models changed, 0 or more."""
    left_out: int
    """Matrices that one of the two alone changed or has, or that are not finite, 0 or more."""
    cosine: float | None
    """Of the two deltas as stored, -1 to 1: all these matrices as one vector."""
    chance_cosine: float | None
    """The standard deviation of the cosine if all signs were random, 0 to 1; the mean is 0."""
    chance_cosine_master: float | None
    """The most that the shared rounding of the base adds to the cosine, 0 to 0.293, if both
    trainings started from a copy of it in more bits.
    """
    directions: int
    """The most leading singular directions that are taken of each matrix."""
    overlap: float | None
    """Mean squared cosine of the principal angles of leading directions, 0 to 1: over outputs and
    inputs and over matrices.
    """
    chance_overlap: float | None
    """What random signs give for overlap, 0 to 1."""

    @property
    def beyond_chance(self) -> int:
        """1 if the cosine is larger than unrelated updates would have it, -1 if smaller, else 0."""
        if self.cosine is None or self.chance_cosine is None:
            return 0
        far = SURE * self.chance_cosine
        if self.cosine > (self.chance_cosine_master or 0.0) + far:
            return 1
        return -1 if self.cosine < -far else 0


def no_shared_base(relation: Relation, verified: str | None) -> str | None:
    """Why two deltas do not start at the same weights; None where they do."""
    if relation == "consecutive stages":
        return "these are steps of one lineage"
    if relation == "different bases":
        return "the bases differ"
    if verified not in ("commit", "content"):
        return "the reports do not say whether the bases have the same bytes: audit both again"
    return None
