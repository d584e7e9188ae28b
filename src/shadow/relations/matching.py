"""Which unit of a base a unit of the tuned side is: by its number, by content or by likeness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shadow.checkpoints.pairing import MatchedBy, Rows
from shadow.relations.signature import EQUAL, Floats, RowSignatures, Words

NEAR = 0.5  # cosine from which two matrices may correspond; unrelated ones have about 0
CLEAR = 0.2  # how far below it the next has to be, unless that is its copy
COPY = 0.9  # cosine from which two units of the base are copies of each other
ALIKE = 0.8  # cosine of these from which rows may correspond: of 150,000 others the best has .65
AT_ONCE = 1 << 24  # cosines that are in memory
MOST = 1 << 41  # products of all rows with all rows: beyond, rows are not compared by likeness
FLOOR = 0.01  # of the mean variance, added to all, so that no direction is noise alone


@dataclass(frozen=True)
class Choice:
    """A unit of the base."""

    unit: int
    by: MatchedBy


def choose(
    own: int, expected: int, cosines: Floats, units: Sequence[int], among: Floats
) -> Choice | None:
    """Choose the unit of the base that a unit of the tuned side is; None if none is it.

    own: its number. expected: the unit that follows the one before, which is taken where several
    are equal. cosines: with the units of the base, whose numbers are `units`; EQUAL for equal
    digests. among: those of the base with each other.
    """
    if own in units and cosines[units.index(own)] >= NEAR:
        return Choice(own, "number")
    best = int(cosines.argmax())
    if not cosines[best] >= NEAR:
        return None
    fits = among[best] >= COPY
    fits[best] = True
    if cosines[best] == EQUAL:
        fits = cosines == EQUAL
    elif np.max(cosines[~fits], initial=-1.0) > cosines[best] - CLEAR:
        return None
    nearest = min(np.flatnonzero(fits).tolist(), key=lambda at: abs(units[at] - expected))
    return Choice(units[nearest], "content" if cosines[best] == EQUAL else "likeness")


@dataclass(frozen=True)
class RowPairs:
    """Rows of two vocabularies that correspond, one by one."""

    rows: tuple[Rows, Rows]  # of the base, of the tuned side
    by: MatchedBy


def match_rows(base: RowSignatures, tuned: RowSignatures) -> RowPairs | None:
    """Pair the rows of two vocabularies; None if fewer than half of the smaller one have a partner,
    or if numbers say the same.
    """
    by: MatchedBy = "content"
    partners = _by_content(base.digests, tuned.digests)
    enough = min(len(partners), len(base.digests)) / 2
    if np.count_nonzero(partners >= 0) < enough:
        by = "likeness"
        partners = _by_likeness(base.sums, tuned.sums)
    if np.count_nonzero(partners >= 0) < enough:
        return None
    partners = _filled(partners, len(base.digests))
    of_tuned = np.flatnonzero(partners >= 0)
    of_base = partners[of_tuned]
    if (of_tuned == of_base).all():
        return None
    return RowPairs((of_base, of_tuned), by)


def _by_content(base: Words, tuned: Words) -> Rows:
    """Return the row of the base with the digest of each row, -1 for none; digests that occur
    several times on a side say nothing.
    """
    digests, firsts, counts = np.unique(base, return_index=True, return_counts=True)
    _, own, own_counts = np.unique(tuned, return_inverse=True, return_counts=True)
    at = np.searchsorted(digests, tuned).clip(max=len(digests) - 1)
    is_known = (digests[at] == tuned) & (counts[at] == 1) & (own_counts[own] == 1)
    return np.where(is_known, firsts[at], -1)


def _by_likeness(base: NDArray[np.float32], tuned: NDArray[np.float32]) -> Rows:
    """Return the row of the base that is like each row, and far more so than any other; -1 for
    none. Directions in which all rows differ little count as much as others.
    """
    partners = np.full(len(tuned), -1)
    if len(base) * len(tuned) * base.shape[1] > MOST or not np.isfinite(base).all():
        return partners
    mean = base.mean(axis=0)
    covariance = (base - mean).T @ (base - mean)
    variances, directions = np.linalg.eigh(covariance)
    scale = directions / np.sqrt(variances.clip(0.0) + FLOOR * variances.mean())
    first, second = (_directions((side - mean) @ scale) for side in (base, tuned))
    step = max(1, AT_ONCE // len(base))
    for start in range(0, len(tuned), step):
        found = second[start : start + step] @ first.T
        lines = np.arange(len(found))
        best = found.argmax(axis=1)
        highest = found[lines, best]
        found[lines, best] = -1.0
        is_clear = (highest >= ALIKE) & (found.max(axis=1) <= highest - CLEAR)
        partners[start : start + step] = np.where(is_clear, best, -1)
    return partners


def _directions(rows: Floats) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


def _filled(partners: Rows, count: int) -> Rows:
    """Give rows without a partner the one that follows that of the row before, where the row after
    agrees: such as rows that were trained. count: rows of the base.
    """
    known = np.flatnonzero(partners >= 0)
    shifts = partners[known] - known
    rows = np.arange(len(partners))
    after = np.searchsorted(known, rows)
    before = np.searchsorted(known, rows, side="right") - 1
    left = shifts[before.clip(min=0)]
    right = shifts[after.clip(max=len(known) - 1)]
    guess = rows + np.where(before < 0, right, left)
    agrees = (left == right) | (before < 0) | (after == len(known))
    is_free = (guess >= 0) & (guess < count) & ~np.isin(guess, partners)
    return np.where((partners < 0) & agrees & is_free, guess, partners)
