"""Test of whether two MLPs share their hidden units: a test that is exact under permutation.

A hidden unit is a row of the up-projection and of the gate, and a column of the down-projection.
Training treats units alike, so if two models were initialised separately, any order of the units of
one is as likely as any other. The sum of the cosines of unit i of both is then one draw from its
values over all orders (cf. Zhu et al. 2025, Independence tests for language models), whatever the
weights look like.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]  # (units, width)
AT_ONCE = 4_096  # orders that are drawn at a time


@dataclass(frozen=True)
class Units:
    """Some units of one matrix of a model, and the same ones of a candidate."""

    group: Hashable
    """Of the matrices that have the same units."""
    module: str
    model: Rows
    candidate: Rows
    whole: NDArray[np.float32] | None = None
    """Every unit of the candidate, of the first group alone."""


@dataclass(frozen=True)
class Relation:
    """Figures of sampled units of a model and a candidate."""

    p: float | None
    """Of the match of units; None where they cannot be compared."""
    z: float = 0.0
    cosine: float = 0.0
    """Of all sampled weights."""
    distance: float = 0.0
    """norm(model - candidate) / norm(candidate) of the sampled weights."""
    reordered: float | None = None
    """The cosine of units at their best match; None where none was looked for."""
    unknown: Literal["", "no_mlp", "equal_units"] = ""
    """Why units cannot be compared."""
    is_moved: bool = False
    """Whether they are of layers or experts that correspond, but not by number."""


def relation(sampled: Sequence[Units], level: float) -> Relation:
    """Match units in their order and, if p is above the level, in any order."""
    finite = [one for one in sampled if np.isfinite([one.candidate, one.model]).all()]
    if not finite:
        return Relation(None, unknown="no_mlp")
    draws = round(10 / level) - 1  # enough for a tenth of the level
    (p, z), reordered = _matched(finite, draws), None
    if p > level:
        for side in ("model", "candidate"):
            own = [replace(one, model=getattr(one, side), candidate=getattr(one, side))
                   for one in finite]  # fmt: skip
            if _matched(own, draws)[0] > level:
                return Relation(None, unknown="equal_units")
        # what all units of a matrix have in common, such as a mean above 0, is no match
        cosines = [
            unit_cosines(one.model - one.model.mean(axis=0), one.whole - one.whole.mean(axis=0))
            for one in finite
            if one.whole is not None
        ]
        reordered = at_best(*cosines[:2]) if len(cosines) > 1 else None
    model = np.concatenate([one.model.ravel() for one in finite])
    candidate = np.concatenate([one.candidate.ravel() for one in finite])
    norms = [float(np.linalg.norm(one)) for one in (model, candidate)]
    cosine = float(model @ candidate) / (norms[0] * norms[1]) if all(norms) else 0.0
    distance = float(np.linalg.norm(model - candidate)) / norms[1] if norms[1] else 0.0
    return Relation(p, z, cosine, distance, reordered)


def corners(sampled: Sequence[Sequence[Units]]) -> dict[tuple[int, int], float | None]:
    """By indices of candidates (here, there), the corner at the first between the model and
    the second, over the matrices that were sampled in both; none if no matrix was.
    """
    by_key = [
        {(units.group, units.module, units.candidate.shape): units for units in of_candidate}
        for of_candidate in sampled
    ]
    cosines = {}
    for pair in itertools.permutations(range(len(by_key)), 2):
        here = by_key[pair[0]]
        there = by_key[pair[1]]
        shared = here.keys() & there
        if shared:
            first = _joined(here[key].candidate for key in here if key in shared)
            model = _joined(here[key].model for key in here if key in shared)
            second = _joined(there[key].candidate for key in here if key in shared)
            cosines[pair] = corner(first, model, second)
    return cosines


def _joined(matrices: Iterable[Rows]) -> Rows:
    """All entries of some matrices, one after another."""
    return np.concatenate([matrix.ravel() for matrix in matrices])


def _matched(sampled: Sequence[Units], draws: int) -> tuple[float, float]:
    """p and z of both sides, by group: all matrices of a group share their units."""
    cosines: dict[Hashable, Rows] = {}
    for one in sampled:
        of_matrix = unit_cosines(one.model, one.candidate)
        cosines[one.group] = of_matrix + cosines.get(one.group, np.zeros(of_matrix.shape))
    return matched([*cosines.values()], draws=draws)


@np.errstate(over="ignore", invalid="ignore")  # of what overflows no cosine is known
def unit_cosines(first: Rows, second: Rows | NDArray[np.float32]) -> Rows:
    """The cosine of each unit of one (rows) with each of the other (columns); 0 for a row of
    0.
    """
    norms = np.outer(np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1))
    inner = np.matmul(first.astype(second.dtype), second.T)
    cosines: Rows = inner / np.where(norms > 0, norms, 1.0)
    return cosines


def matched(cosines: Sequence[Rows], seed: int = 0, draws: int = 9_999) -> tuple[float, float]:
    """(p, z) of the cosines on the diagonals, over orders of the columns of each square
    matrix.

    p: the probability of so large a sum if all orders are equally likely, at least 1 / (draws + 1);
    uniform on multiples of that for independent models; units that are equal make it larger, as
    their orders have one sum. z: the sum in its standard deviations over all orders (Hoeffding
    1951). Flat matrices do not count; without others p is 1.
    """
    scaled = [one for one in map(_scaled, cosines) if one is not None]
    if not scaled:
        return 1.0, 0.0
    observed = math.fsum(float(np.trace(one)) for one in scaled)
    generator = np.random.default_rng(seed)
    at_least = 0
    slack = 1e-9 * (1.0 + abs(observed))  # an order that gives the same sum counts
    for start in range(0, draws, AT_ONCE):
        count = min(AT_ONCE, draws - start)
        sums = np.zeros(count)
        for one in scaled:
            order = np.argsort(generator.random((count, len(one)), dtype=np.float32), axis=1)
            sums += one[np.arange(len(one)), order].sum(axis=1)
        at_least += int((sums >= observed - slack).sum())
    return (1 + at_least) / (draws + 1), observed / math.sqrt(len(scaled))


def _scaled(cosines: Rows) -> Rows | None:
    """The matrix without its row and column means, scaled so that its sum over a random
    order has variance 1; None if all orders have one sum.
    """
    apart = cosines - cosines.mean(axis=0) - cosines.mean(axis=1, keepdims=True) + cosines.mean()
    deviation = math.sqrt(float((apart**2).sum()) / max(1, len(apart) - 1))
    return apart / deviation if deviation > 1e-12 * len(apart) else None


def at_best(first: Rows, second: Rows) -> float:
    """The agreement of units in any order: the median cosine of `second` where `first` is
    largest in each row. Both are cosines of the same units in two matrices, so that one checks the
    other.
    """
    best = first.argmax(axis=1)
    return float(np.median(second[np.arange(len(best)), best]))


def corner(at: Rows, one: Rows, other: Rows) -> float | None:
    """The cosine of the angle at a model between the paths to two others; None if a path has
    no length. 0 if two models left it independently, or one lies behind it; 1/2 among three that
    left a fourth one equally far.
    """
    ways = one - at, other - at
    lengths = [float(np.linalg.norm(way)) for way in ways]
    if not all(lengths):
        return None
    return float((ways[0] * ways[1]).sum() / (lengths[0] * lengths[1]))
