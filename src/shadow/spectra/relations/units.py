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

    @property
    def matrix(self) -> Hashable:
        """The key of the matrix and of the shape of its sample."""
        return self.group, self.module, self.candidate.shape

    @property
    def are_finite(self) -> bool:
        """True if all sampled numbers of both are finite."""
        is_finite = np.isfinite([self.candidate, self.model])
        return bool(is_finite.all())


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
    """Match units in their order and, if p is above the level, in any order.

    sampled: matrices with numbers that are not finite do not count. level: a probability.
    """
    finite = [units for units in sampled if units.are_finite]
    if not finite:
        return Relation(None, unknown="no_mlp")
    draws = round(10 / level) - 1  # enough for a tenth of the level
    p, z = _matched(finite, draws)
    reordered = None
    if p > level:
        models = [replace(units, candidate=units.model) for units in finite]
        candidates = [replace(units, model=units.candidate) for units in finite]
        for with_itself in (models, candidates):
            if _matched(with_itself, draws)[0] > level:
                return Relation(None, unknown="equal_units")
        reordered = _in_any_order(finite)
    model = _joined(units.model for units in finite)
    candidate = _joined(units.candidate for units in finite)
    model_norm = float(np.linalg.norm(model))
    candidate_norm = float(np.linalg.norm(candidate))
    cosine = 0.0
    if model_norm and candidate_norm:
        cosine = float(model @ candidate) / (model_norm * candidate_norm)
    distance = 0.0
    if candidate_norm:
        difference = model - candidate
        distance = float(np.linalg.norm(difference)) / candidate_norm
    return Relation(p, z, cosine, distance, reordered)


def _in_any_order(sampled: Sequence[Units]) -> float | None:
    """`at_best` of the first two matrices with every unit of the candidate; None with fewer."""
    cosines = []
    for units in sampled:
        if units.whole is None:
            continue
        # what all units of a matrix have in common, such as a mean above 0, is no match
        model = units.model - units.model.mean(axis=0)
        candidate = units.whole - units.whole.mean(axis=0)
        cosines.append(unit_cosines(model, candidate))
    if len(cosines) < 2:
        return None
    return at_best(cosines[0], cosines[1])


def corners(sampled: Sequence[Sequence[Units]]) -> dict[tuple[int, int], float | None]:
    """By indices of two candidates, the corner at the first between the model and the second, over
    the matrices that were sampled in both; none if no matrix was. sampled: by candidate.
    """
    by_matrix = []
    for of_candidate in sampled:
        by_matrix.append({units.matrix: units for units in of_candidate})
    cosines = {}
    for pair in itertools.permutations(range(len(by_matrix)), 2):
        of_first = by_matrix[pair[0]]
        of_second = by_matrix[pair[1]]
        shared = [matrix for matrix in of_first if matrix in of_second]
        if shared:
            first = _joined(of_first[matrix].candidate for matrix in shared)
            model = _joined(of_first[matrix].model for matrix in shared)
            second = _joined(of_second[matrix].candidate for matrix in shared)
            cosines[pair] = corner(first, model, second)
    return cosines


def _joined(matrices: Iterable[Rows]) -> Rows:
    """All entries of some matrices, one after another."""
    return np.concatenate([matrix.ravel() for matrix in matrices])


def _matched(sampled: Sequence[Units], draws: int) -> tuple[float, float]:
    """p and z of model and candidate, by group: all matrices of a group share their units."""
    cosines: dict[Hashable, Rows] = {}
    for units in sampled:
        of_matrix = unit_cosines(units.model, units.candidate)
        if units.group in cosines:
            of_matrix = of_matrix + cosines[units.group]
        cosines[units.group] = of_matrix
    return matched([*cosines.values()], draws=draws)


@np.errstate(over="ignore", invalid="ignore")  # of what overflows no cosine is known
def unit_cosines(first: Rows, second: Rows | NDArray[np.float32]) -> Rows:
    """The cosine of each unit of the first (rows) with each of the second (columns); 0 for a unit
    of 0.

    first: (n, width). second: (m, width). Gives (n, m).
    """
    first_norms = np.linalg.norm(first, axis=1)
    second_norms = np.linalg.norm(second, axis=1)
    norms = np.outer(first_norms, second_norms)
    inner = np.matmul(first.astype(second.dtype), second.T)
    divisors = np.where(norms > 0, norms, 1.0)
    cosines: Rows = inner / divisors
    return cosines


def matched(cosines: Sequence[Rows], draws: int = 9_999) -> tuple[float, float]:
    """(p, z) of the cosines on the diagonals, over orders of the columns of each square
    matrix.

    p: the probability of so large a sum if all orders are equally likely, at least 1 / (draws + 1);
    uniform on multiples of that for independent models; units that are equal make it larger, as
    their orders have one sum. z: the sum in its standard deviations over all orders (Hoeffding
    1951). Flat matrices do not count; without others p is 1. draws: how many orders are drawn.
    """
    scaled = [matrix for matrix in map(_scaled, cosines) if matrix is not None]
    if not scaled:
        return 1.0, 0.0
    traces = [float(np.trace(matrix)) for matrix in scaled]
    observed = math.fsum(traces)
    slack = 1e-9 * (1.0 + abs(observed))  # an order that gives the same sum counts
    generator = np.random.default_rng(0)
    at_least = 0
    for start in range(0, draws, AT_ONCE):
        count = min(AT_ONCE, draws - start)
        sums = _sums_of_orders(scaled, count, generator)
        is_as_large = sums >= observed - slack
        at_least += int(is_as_large.sum())
    p = (1 + at_least) / (draws + 1)
    z = observed / math.sqrt(len(scaled))
    return p, z


def _sums_of_orders(
    matrices: Sequence[Rows], count: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """The sums of the diagonals of square matrices in so many random orders of their columns,
    (count,).
    """
    sums = np.zeros(count)
    for matrix in matrices:
        side = len(matrix)
        units = np.arange(side)
        numbers = generator.random((count, side), dtype=np.float32)
        orders = np.argsort(numbers, axis=1)
        diagonals = matrix[units, orders]
        sums += diagonals.sum(axis=1)
    return sums


def _scaled(cosines: Rows) -> Rows | None:
    """The matrix without its row and column means, scaled so that its sum over a random
    order has variance 1; None if all orders have one sum.
    """
    by_column = cosines.mean(axis=0)
    by_row = cosines.mean(axis=1, keepdims=True)
    centred = cosines - by_column - by_row + cosines.mean()
    energy = float((centred**2).sum())
    freedom = max(1, len(centred) - 1)
    deviation = math.sqrt(energy / freedom)
    if deviation <= 1e-12 * len(centred):
        return None
    scaled: Rows = centred / deviation
    return scaled


def at_best(first: Rows, second: Rows) -> float:
    """The agreement of units in any order: the median cosine of `second` where `first` is
    largest in each row. Both are cosines of the same units in two matrices, (n, m), so that one
    checks the other.
    """
    best = first.argmax(axis=1)
    units = np.arange(len(best))
    cosines = second[units, best]
    return float(np.median(cosines))


def corner(at: Rows, first: Rows, second: Rows) -> float | None:
    """The cosine of the angle at a model between the paths to a first and a second one; None if a
    path has no length. 0 if both left it independently, or one lies behind it; 1/2 among three
    that left a fourth one equally far. All three have one shape.
    """
    to_first = first - at
    to_second = second - at
    first_length = float(np.linalg.norm(to_first))
    second_length = float(np.linalg.norm(to_second))
    if not (first_length and second_length):
        return None
    inner = (to_first * to_second).sum()
    return float(inner / (first_length * second_length))
