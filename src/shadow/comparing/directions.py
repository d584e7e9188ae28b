"""Where two deltas of one base point, beside chance: what `shadow.audits.joint` finds of them."""

from __future__ import annotations

from dataclasses import dataclass

from shadow.comparing.matching import Relation

SURE = 4.0  # standard deviations of chance that a cosine is beyond it


@dataclass(frozen=True)
class Directions:
    """Two deltas, over matrices that both changed. Figures are None where they are not known."""

    matrices: int
    """Matrices that both models changed, 0 or more."""
    cosine: float | None
    """Of the two deltas as stored, -1 to 1: all these matrices as one vector."""
    chance_cosine: float | None
    """The standard deviation of the cosine if all signs were random, 0 to 1; the mean is 0."""
    chance_cosine_master: float | None
    """The mean cosine of unrelated updates, 0 to 0.293, if both trainings started from a copy of
    the base in more bits: both deltas share the rounding of the stored base. Where they started
    from the stored base, the mean is 0.
    """
    directions: int
    """The most leading singular directions that are taken of each matrix."""
    overlap_left: float | None
    """Mean squared cosine of the leading output directions, 0 to 1: mean over matrices."""
    overlap_right: float | None
    """The same of the inputs."""
    chance_overlap_left: float | None
    """What random signs give for overlap_left, 0 to 1."""
    chance_overlap_right: float | None

    @property
    def beyond_chance(self) -> int:
        """1 if the cosine is larger than unrelated updates would have it, -1 if smaller, else 0."""
        if self.cosine is None or self.chance_cosine is None:
            return 0
        far = SURE * self.chance_cosine
        if self.cosine > max(0.0, self.chance_cosine_master or 0.0) + far:
            return 1
        return -1 if self.cosine < -far else 0


@dataclass(frozen=True, kw_only=True)
class ModuleDirections(Directions):
    """Two deltas in one module."""

    component: str
    module: str


@dataclass(frozen=True, kw_only=True)
class DeltaDirections(Directions):
    """Two deltas as a whole."""

    left_out: int
    """Matrices that one of the two alone changed or has, or that are not finite, 0 or more."""
    modules: list[ModuleDirections]
    """In the order of names.yaml."""


def no_shared_base(relation: Relation, verified: str | None) -> str | None:
    """Why two deltas do not start at the same weights; None where they do."""
    if relation in ("consecutive stages", "one lineage"):
        return "these are steps of one lineage: `shadow lineage` compares them"
    if relation == "different bases":
        return "the bases differ"
    if verified not in ("commit", "content"):
        return "the reports do not say whether the bases have the same bytes: audit both again"
    return None
