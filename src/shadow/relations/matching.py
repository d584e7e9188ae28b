"""The unit of a base that a unit of the tuned side is: by number, by content or by likeness; and
rows of vocabularies, also by the text of their tokens.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
BY_CHANCE = 1e-3  # rows of a vocabulary that may be as clearly like another's by chance
ROUNDING = 1e-6  # of 1 - cosine²
MOST_COPIES = 8  # units of the base that are named
FEWEST = 8  # rows that have other numbers, from which their entries can confirm it
SAMPLED = 1 << 12  # rows that say whether tokens are those of rows
LEAST = 32  # sums of a row; fewer are alike by chance
AT_ONCE = 1 << 24  # cosines that are in memory
WAYS: Sequence[MatchedBy] = ("number", "content", "likeness", "token")  # the surest first
WAYS_OF_ROWS: Sequence[MatchedBy] = ("content", "token", "likeness")  # those that cost least first
FLOOR = 0.01  # of the mean variance, added to all, so that no direction is noise alone


@dataclass(frozen=True)
class UnitChoice:
    """A unit of the base."""

    unit: int
    by: MatchedBy
    copies: Sequence[int] = ()
    """Units of the base that it is as much, itself among them; the first MOST_COPIES."""


def least_sure(ways: Iterable[MatchedBy]) -> MatchedBy:
    """Choose the way that says least."""
    return max(ways, key=WAYS.index)


Units = dict[int, UnitChoice | None]
"""By number of a unit of the tuned side; None for a new one."""
Vote = tuple[UnitChoice, int]
"""The choice of a matrix, and its size."""
Tokens = Mapping[str, int]
"""The number of each token, as a tokenizer says it."""
ReadTokens = Callable[[], Sequence[Tokens]]
"""Reads the tokens of base and tuned side; of neither where one is not known."""
Signed = Sequence[tuple[int, Signature]]
"""Signatures of matrices, each with the number of its unit, in order."""


def choose(tuned: Signed, base: Signed) -> dict[int, UnitChoice]:
    """Choose the unit of the base that each matrix is of, of matrices of one role, by their index;
    without those that are of none. Of equal units the one that follows that of the matrix before.
    """
    if not tuned or not base:
        return {}
    units = [number for number, _ in base]
    of_base = [signature for _, signature in base]
    of_tuned = [signature for _, signature in tuned]
    among = cosines(of_base, of_base)
    choices: dict[int, UnitChoice] = {}
    expected: dict[int, int] = {}
    with_all = cosines(of_tuned, of_base)
    for at, with_base in enumerate(with_all):
        number, _ = tuned[at]
        follows = expected.get(number, number)
        choice = _choice(number, follows, with_base, units, among)
        if choice is not None:
            choices[at] = choice
            expected[number + 1] = choice.unit + 1
    return choices


def _choice(
    own_number: int,
    expected_unit: int,
    with_base: Floats,
    base_units: Sequence[int],
    among_base: Floats,
) -> UnitChoice | None:
    """Choose a unit by cosines, EQUAL for equal digests. among_base: those of its units with each
    other.
    """
    if own_number in base_units:
        at = base_units.index(own_number)
        if with_base[at] >= NEAR:
            return UnitChoice(own_number, "number")
    best = with_base.argmax()
    highest = with_base[best]
    if not highest >= NEAR:
        return None
    if highest == EQUAL:
        fits = with_base == EQUAL
    else:
        fits = among_base[best] >= COPY
        next_highest = np.max(with_base[~fits], initial=-1.0)
        if next_highest > highest - CLEAR:
            return None
    places = np.flatnonzero(fits).tolist()
    fitting = [base_units[at] for at in places]
    nearest = min(fitting, key=lambda unit: abs(unit - expected_unit))
    if highest == EQUAL:
        return UnitChoice(nearest, "content", fitting[:MOST_COPIES])
    return UnitChoice(nearest, "likeness")


def elected(votes: Mapping[int, Sequence[Vote]], base: Set[int]) -> Units:
    """Elect the unit of the base that most parameters of each unit are of. One without votes has
    other contents than the base's of its number, or is new where that is another's.

    votes: of the matrices of each unit, by its number. base: numbers of its units.
    """
    units: Units = {}
    taken: set[int] = set()
    for number, choices in votes.items():
        sizes = Counter[int]()
        ways = defaultdict[int, set[MatchedBy]](set)
        for choice, size in choices:
            sizes[choice.unit] += size
            ways[choice.unit].add(choice.by)
        for unit, _ in sizes.most_common(1):
            taken.add(unit)
            way = least_sure(ways[unit])
            alike = [set(choice.copies) for choice, _ in choices]
            copies = set.intersection(*alike)
            units[number] = UnitChoice(unit, way, sorted(copies))
    for number in votes.keys() - units.keys():
        units[number] = None
        if number in base and number not in taken:
            units[number] = UnitChoice(number, "number")
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
    choices = {number: choice for number, choice in units.items() if choice is not None}
    if len(choices) < 2:
        return None
    numbers = sorted(choices)
    of_tuned = np.array(numbers)
    of_base = np.array([choices[number].unit for number in numbers])
    if of_base.max() >= base:
        return None
    if of_tuned.max() >= tuned:
        return None
    by = least_sure(choice.by for choice in choices.values())
    if by == "number" and base == tuned:
        return None
    return RowPairs((of_base, of_tuned), by)


def match_rows(
    base: RowSignatures,
    tuned: RowSignatures,
    tokens: ReadTokens = tuple,
    known: RowPairs | None = None,
) -> RowPairs | None:
    """Pair the rows of two vocabularies; None if fewer than half of the smaller one have a partner,
    or if numbers say the same. tokens: called if entries leave a row without a partner. known: what
    other vocabularies with these rows say, such as the head's of an embedding.
    """
    base_rows = len(base.digests)
    partners = np.full(len(tuned.digests), -1)
    enough = min(base_rows, len(partners)) / 2
    by: MatchedBy = "content"
    if known is not None:
        of_base, of_tuned = known.rows
        partners[of_tuned] = of_base
        by = known.by
    for way in WAYS_OF_ROWS:
        is_open = partners < 0
        if not is_open.any():
            break
        if way == "content":
            found = _by_content(base.digests, tuned.digests)
        elif way == "token":
            found = _by_token(base, tuned, tokens())
        else:
            found = _by_likeness(base.sums, tuned.sums, is_open)
        is_taken = np.isin(found, partners)  # so are those without one: partners has -1
        is_open &= ~is_taken
        if not is_open.any():
            continue
        partners[is_open] = found[is_open]
        by = least_sure([by, way])
        if by != "token" and _count(partners) >= enough:
            partners = _filled(partners, base_rows)
    if _count(partners) < enough:
        return None
    of_tuned = np.flatnonzero(partners >= 0)
    of_base = partners[of_tuned]
    is_same = of_tuned == of_base
    if is_same.all():
        return None
    return RowPairs((of_base, of_tuned), by)


def _count(partners: Rows) -> int:
    return int(np.count_nonzero(partners >= 0))


def _by_content(base: Words, tuned: Words) -> Rows:
    """The row of the base with the digest of each row, -1 for none; digests that occur several
    times on a side say nothing.
    """
    of_base, base_rows = _once(base)
    of_tuned, tuned_rows = _once(tuned)
    _, first, second = np.intersect1d(of_base, of_tuned, return_indices=True)
    partners = np.full(len(tuned), -1)
    paired = tuned_rows[second]
    partners[paired] = base_rows[first]
    return partners


def _once(digests: Words) -> tuple[Words, Rows]:
    """The digests that occur once, and the rows that have them."""
    values, rows, counts = np.unique(digests, return_index=True, return_counts=True)
    is_single = counts == 1
    return values[is_single], rows[is_single]


def _by_token(base: RowSignatures, tuned: RowSignatures, tokens: Sequence[Tokens]) -> Rows:
    """The row of the base with the token of each row, -1 for none; of none unless entries say it
    too: those of most rows that have another number there. Otherwise a tokenizer is another's.
    """
    none = np.full(len(tuned.digests), -1)
    partners = none.copy()
    if tokens:
        base_tokens, tuned_tokens = tokens
        for text, row in tuned_tokens.items():
            base_row = base_tokens.get(text, -1)
            if 0 <= row < len(partners) and 0 <= base_row < len(base.digests):
                partners[row] = base_row
    partners = _one_each(partners)
    is_other = partners != np.arange(len(partners))
    moved = np.flatnonzero((partners >= 0) & is_other)
    if len(moved) < FEWEST:
        return none
    step = 1 + len(moved) // SAMPLED
    sample = moved[::step]
    base_sums = base.sums[partners[sample]]
    sides = _spread(base_sums, tuned.sums[sample])
    if sides is None:
        return none
    first, second = sides
    likeness = (first * second).sum(axis=1)
    if np.median(likeness) >= NEAR:
        return partners
    return none


def _by_likeness(base: Block, tuned: Block, is_open: NDArray[np.bool_]) -> Rows:
    """The row of the base that each open row is like, and so much more than any other that among so
    many rows with so few sums it is not by chance; -1 for none.

    A share of 1 - cosine² of a row is noise, if it is that row of the base. The ratio of the shares
    of two, to the power of half the number of sums, is how much likelier the one is.
    """
    partners = np.full(len(tuned), -1)
    sides = _spread(base, tuned)
    rows = np.flatnonzero(is_open)
    _, width = base.shape
    if sides is None or width < LEAST:
        return partners
    first, second = sides
    chances = len(base) * len(tuned) / BY_CHANCE
    clear = chances ** (2 / width)
    step = max(1, AT_ONCE // len(base))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        found = second[block] @ first.T
        lines = np.arange(len(found))
        best = found.argmax(axis=1)
        highest = found[lines, best].clip(0.0)
        found[lines, best] = 0.0
        next_highest = found.max(axis=1)
        unlike = np.maximum(1 - highest**2, ROUNDING)
        is_clear = 1 - next_highest**2 >= clear * unlike
        partners[block] = np.where(is_clear, best, -1)
    return _one_each(partners)


def _spread(base: Block, tuned: Block) -> tuple[Block, Block] | None:
    """Directions of rows from the mean of their side, in which sums that hardly differ between rows
    count as much as others. None where no rows can be compared.
    """
    if tuned.shape[1] != base.shape[1]:
        return None
    total = np.zeros(())
    sides = []
    for sums in (base, tuned):
        is_sound = np.isfinite(sums)
        side = np.where(is_sound, sums, 0.0)
        covariance = np.cov(side, rowvar=False, bias=True)
        variance = covariance.trace()
        if not variance:  # all rows are equal
            return None
        total = total + covariance / variance
        mean = side.mean(axis=0)
        sides.append(side - mean)
    variances, axes = np.linalg.eigh(total)
    floor = FLOOR * variances.mean()
    deviations = np.sqrt(variances.clip(0.0) + floor)
    scale = axes / deviations
    first, second = sides
    return directions(first @ scale), directions(second @ scale)


def _one_each(partners: Rows) -> Rows:
    """Leave each row of the base to one row: that of its own number, or the first; others are
    copies that were added.
    """
    rows = np.arange(len(partners))
    is_other = partners != rows
    order = np.lexsort((rows, is_other))
    in_order = partners[order]
    _, first = np.unique(in_order, return_index=True)
    owners = order[first]
    single = np.full(len(partners), -1)
    single[owners] = partners[owners]
    return single


def _filled(partners: Rows, count: int) -> Rows:
    """Give rows without a partner the one that follows that of the row before, where the row after
    agrees: such as rows that were trained; at the ends, where the two nearest agree. count: rows of
    the base.
    """
    known = np.flatnonzero(partners >= 0)
    shifts = partners[known] - known
    rows = np.arange(len(partners))
    is_run = np.diff(shifts) == 0
    first = known[0]
    if is_run[:1].all():
        first = 0
    last = known[-1]
    if is_run[-1:].all():
        last = rows[-1]
    shift = np.interp(rows, known, shifts)
    square = np.interp(rows, known, shifts**2)
    is_same = square == shift**2  # only between two that are equal
    is_same &= (rows >= first) & (rows <= last)
    steps = shift.astype(np.intp)
    guess = rows + steps
    is_inside = (guess >= 0) & (guess < count)
    is_free = is_inside & ~np.isin(guess, partners)
    is_open = (partners < 0) & is_same
    is_filled = is_open & is_free
    return np.where(is_filled, guess, partners)
