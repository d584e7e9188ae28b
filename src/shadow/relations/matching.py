"""The unit of a base that a unit of the tuned side is: by number, by content or by likeness; and
rows of vocabularies, also by the text of their tokens.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from shadow.checkpoints.pairing import MatchedBy, Rows
from shadow.relations.signature import (
    EQUAL,
    Block,
    Floats,
    RowSignatures,
    Signature,
    Words,
    cosines,
    directions,
)

NEAR = 0.5  # cosine from which two matrices may correspond; unrelated ones have about 0
CLEAR = 0.2  # how far below it the next has to be, unless that is its copy
COPY = 0.9  # cosine from which two units of the base are copies of each other
ALIKE = 0.8  # cosine of these from which rows may correspond: of 150,000 others the best has .65
MOST_COPIES = 16  # units of the base that are named
LEAST = 32  # sums of a row; fewer are alike by chance
AT_ONCE = 1 << 24  # cosines that are in memory
WAYS: Sequence[MatchedBy] = ("number", "content", "likeness", "token")  # the surest first
FLOOR = 0.01  # of the mean variance, added to all, so that no direction is noise alone


@dataclass(frozen=True)
class UnitChoice:
    """A unit of the base."""

    unit: int
    by: MatchedBy
    copies: Sequence[int] = field(default=(), compare=False)
    """The first units of the base that it is, where those are equal to each other."""


def least_sure(ways: Iterable[MatchedBy]) -> MatchedBy:
    """Return the way that says least of several."""
    return max(ways, key=WAYS.index)


Units = dict[int, UnitChoice | None]
"""By number of a unit of the tuned side; None for a new one."""
Tokens = Mapping[str, int]
"""The number of each token, as a tokenizer says it."""

Signed = Sequence[tuple[int, Signature]]
"""Signatures of matrices, each with the number of its unit, in order."""


def choose(tuned: Signed, base: Signed) -> dict[int, UnitChoice]:
    """Choose the unit of the base that each matrix is of, of matrices of one role, by their index;
    without those that are of none. Of equal units the one that follows that of the matrix before.
    """
    units = [number for number, _ in base]
    first, second = ([one for _, one in side] for side in (tuned, base))
    if not first or not second:
        return {}
    among = cosines(second, second)
    choices: dict[int, UnitChoice] = {}
    expected: dict[int, int] = {}
    for at, found in enumerate(cosines(first, second)):
        number, _ = tuned[at]
        follows = expected.get(number, number)
        if choice := _choice(number, follows, found, units, among):
            choices[at] = choice
            expected[number + 1] = choice.unit + 1
    return choices


def _choice(
    own: int, expected: int, found: Floats, units: Sequence[int], among: Floats
) -> UnitChoice | None:
    """Choose a unit by cosines, EQUAL for equal digests. among: those of the base's with each
    other.
    """
    if own in units and found[units.index(own)] >= NEAR:
        return UnitChoice(own, "number")
    best = found.argmax()
    if not found[best] >= NEAR:
        return None
    is_equal = found[best] == EQUAL
    fits = found == EQUAL if is_equal else among[best] >= COPY
    if not is_equal and np.max(found[~fits], initial=-1.0) > found[best] - CLEAR:
        return None
    fitting = [units[at] for at in np.flatnonzero(fits).tolist()]
    nearest = min(fitting, key=lambda unit: abs(unit - expected))
    if not is_equal:
        return UnitChoice(nearest, "likeness")
    return UnitChoice(nearest, "content", fitting[:MOST_COPIES])


def elected(votes: Mapping[int, Sequence[tuple[UnitChoice, int]]], base: Set[int]) -> Units:
    """Return the unit of the base that most parameters of each unit are of. One without votes has
    other contents than the base's of its number, or is new where that is another's.

    votes: of the matrices of each unit, with their sizes. base: numbers of its units.
    """
    units: Units = {}
    for number, choices in votes.items():
        sizes = Counter[int]()
        ways = defaultdict[int, set[MatchedBy]](set)
        for choice, size in choices:
            sizes[choice.unit] += size
            ways[choice.unit].add(choice.by)
        for unit, _ in sizes.most_common(1):
            copies = set.intersection(*[set(choice.copies) for choice, _ in choices])
            units[number] = UnitChoice(unit, least_sure(ways[unit]), sorted(copies))
    taken = {one.unit for one in units.values() if one is not None}
    for number in votes.keys() - units.keys():
        is_free = number in base and number not in taken
        units[number] = UnitChoice(number, "number") if is_free else None
    return units


@dataclass(frozen=True)
class RowPairs:
    """Rows of two matrices that correspond, one by one."""

    rows: tuple[Rows, Rows]  # of the base, of the tuned side
    by: MatchedBy


def rows_of_units(units: Units, base: int, tuned: int) -> RowPairs | None:
    """Pair rows as units correspond, such as those of a router; None for fewer than two, where
    sides of these numbers of rows lack some, and where numbers say the same.
    """
    found = {number: one for number, one in units.items() if one is not None}
    if len(found) < 2:
        return None
    of_tuned = np.array(sorted(found))
    of_base = np.array([found[number].unit for number in of_tuned.tolist()])
    by = least_sure(one.by for one in found.values())
    is_inside = of_base.max() < base and of_tuned.max() < tuned
    is_needed = by != "number" or base != tuned
    return RowPairs((of_base, of_tuned), by) if is_inside and is_needed else None


def match_rows(
    base: RowSignatures,
    tuned: RowSignatures,
    tokens: Callable[[], tuple[Tokens, Tokens]] = lambda: ({}, {}),
) -> RowPairs | None:
    """Pair the rows of two vocabularies; None if fewer than half of the smaller one have a partner,
    or if numbers say the same.

    tokens: reads those of the base and of the tuned side, which takes a moment; none where one has
    no tokenizer.
    """
    base_rows = len(base.digests)
    enough = min(base_rows, len(tuned.digests)) / 2
    by: MatchedBy = "content"
    partners = _by_content(base.digests, tuned.digests)
    if np.count_nonzero(partners >= 0) >= enough:
        partners = _filled(partners, base_rows)
    if (partners < 0).any():
        of_tokens = _by_token(base, tuned, tokens())
        is_free = (partners < 0) & (of_tokens >= 0) & ~np.isin(of_tokens, partners)
        if is_free.any():
            by = "token"
            partners = np.where(is_free, of_tokens, partners)
    if np.count_nonzero(partners >= 0) < enough:
        by = "likeness"
        partners = _one_each(_by_likeness(base.sums, tuned.sums))
        if np.count_nonzero(partners >= 0) < enough:
            return None
        partners = _filled(partners, base_rows)
    of_tuned = np.flatnonzero(partners >= 0)
    of_base = partners[of_tuned]
    if (of_tuned == of_base).all():
        return None
    return RowPairs((of_base, of_tuned), by)


def _by_token(base: RowSignatures, tuned: RowSignatures, tokens: tuple[Tokens, Tokens]) -> Rows:
    """The row of the base with the token of each row, -1 for none; of none where the entries of
    most say otherwise, as of a tokenizer that is another's.
    """
    of_base, of_tuned = tokens
    partners = np.full(len(tuned.digests), -1)
    for text, row in of_tuned.items():
        base_row = of_base.get(text, -1)
        if 0 <= row < len(partners) and 0 <= base_row < len(base.digests):
            partners[row] = base_row
    partners = _one_each(partners)
    paired = np.flatnonzero(partners >= 0)
    sides = _spread(base.sums, tuned.sums)
    if sides is not None and len(paired):
        found = np.einsum("ij,ij->i", sides[0][partners[paired]], sides[1][paired])
        if np.median(found) >= NEAR:
            return partners
    return np.full(len(partners), -1)


def _by_content(base: Words, tuned: Words) -> Rows:
    """Return the row of the base with the digest of each row, -1 for none; digests that occur
    several times on a side say nothing.
    """
    (of_base, base_rows), (of_tuned, tuned_rows) = map(_once, (base, tuned))
    _, first, second = np.intersect1d(of_base, of_tuned, return_indices=True)
    partners = np.full(len(tuned), -1)
    partners[tuned_rows[second]] = base_rows[first]
    return partners


def _once(digests: Words) -> tuple[Words, Rows]:
    """Return the digests that occur once, and the rows that have them."""
    values, rows, counts = np.unique(digests, return_index=True, return_counts=True)
    return values[counts == 1], rows[counts == 1]


def _by_likeness(base: Block, tuned: Block) -> Rows:
    """The row of the base that is like each row, and far more so than any other; -1 for none."""
    partners = np.full(len(tuned), -1)
    sides = _spread(base, tuned)
    if sides is None or base.shape[1] < LEAST:
        return partners
    first, second = sides
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


def _spread(base: Block, tuned: Block) -> tuple[Block, Block] | None:
    """Directions of rows, in which sums that hardly differ between rows count as much as others.
    None where no rows can be compared.
    """
    if tuned.shape[1] != base.shape[1] or not np.isfinite(base).all():
        return None
    mean = base.mean(axis=0)
    variances, axes = np.linalg.eigh((base - mean).T @ (base - mean))
    if not variances.any():  # all rows are equal
        return None
    scale = axes / np.sqrt(variances.clip(0.0) + FLOOR * variances.mean())
    return directions((base - mean) @ scale), directions((tuned - mean) @ scale)


def _one_each(partners: Rows) -> Rows:
    """Leave each row of the base to one row: that of its own number, or the first; others are
    copies that were added.
    """
    rows = np.arange(len(partners))
    order = np.lexsort((rows, partners != rows))
    _, first = np.unique(partners[order], return_index=True)
    owners = order[first]
    single = np.full(len(partners), -1)
    single[owners] = partners[owners]
    return single


def _filled(partners: Rows, count: int) -> Rows:
    """Give rows without a partner the one that follows that of the row before, where the row after
    agrees: such as rows that were trained. count: rows of the base.
    """
    known = np.flatnonzero(partners >= 0)
    shifts = partners[known] - known
    rows = np.arange(len(partners))
    shift = np.interp(rows, known, shifts)
    is_same = np.interp(rows, known, shifts**2) == shift**2  # only between two that are equal
    guess = rows + shift.astype(np.intp)
    is_free = (guess >= 0) & (guess < count) & ~np.isin(guess, partners)
    return np.where((partners < 0) & is_same & is_free, guess, partners)
