"""Mixtures of which entries were dropped: TIES and DARE, known by their masks and factors.

Both add a part of each delta D_i = A_i - B to a base. TIES (Yadav et al. 2023) keeps the largest
entries of each delta, elects a sign for every entry and averages the deltas that have it. DARE (Yu
et al. 2024) drops entries at random and divides the others by the share that it keeps. Either is
made anew from masks and factors and must agree with every entry within the rounding of storage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray

from shadow.spectra.mixture import EXTREMES, UNIT, Floats, Read, extremes, joined, once, within
from shadow.spectra.mixture_fit import Mixed, simplest

MOST_SIDES = 4  # subsets of the sides are tried for each entry
CLEAR = 4.0  # an entry says whether it was dropped if its delta is so many bounds
LEAST = 500  # entries that must say so, of each side
OFF = 0.25  # the share of a sample that may disagree with factors that are not yet precise
SAMPLE = 400_000  # entries that factors are read from
FEW = 1 << 20  # entries of the smallest tensors, which may say that it is none of these
SORTED = 1 << 24  # entries at most of a tensor that is sorted as a whole
NEARLY = 1e-4  # a share of entries that factors may miss which are not yet exact
ROUNDS = 3  # looks at every entry in which factors are made exact
DROPPED = 0.02, 0.98  # shares between which entries were dropped


@dataclass(frozen=True)
class Masked:
    """A mixture of masked deltas that every entry agrees with."""

    method: str
    """`ties` or `dare`."""
    kept: Sequence[float]
    """The share of entries that is kept: of TIES one number, of DARE one for each side."""
    factors: Sequence[float]
    """What kept deltas are multiplied by: of TIES one number, of DARE one for each side."""
    errors: Sequence[float] = ()
    """Of DARE: the standard errors of the shares."""
    is_open: bool = False
    """Whether two sides are equal within the rounding, so that either may have no part in TIES."""


def masked(tensors: Sequence[Mixed], sides: int) -> Masked | None:
    """The mixture of masked deltas that this is; None where it is none."""
    if sides > MOST_SIDES:
        return None
    return _ties(tensors, sides) or _dare(tensors, sides)


def _whole(one: Mixed) -> Read:
    """All entries of a tensor."""
    return joined(list(one.parts()))


def _subsets(sides: int) -> Iterator[NDArray[np.bool_]]:
    for chosen in product((False, True), repeat=sides):
        yield np.array(chosen)


# ---------------------------------------------------------------------------------- TIES


def _ties(tensors: Sequence[Mixed], sides: int) -> Masked | None:
    """Trimmed by size to one share, signs elected, the mean of what agrees times one factor."""
    order = sorted(tensors, key=lambda one: one.sums.entries)
    before = np.cumsum([0, *(one.sums.entries for one in order)])
    few = [one for one, first in zip(order, before, strict=False) if first < FEW]
    share = _share(few)
    if share is None or not DROPPED[0] < share < DROPPED[1] or _far(few, share):
        return None
    share = _share([one for one in order if one in few or one.sums.entries <= SORTED])
    if share is None or not DROPPED[0] < share < DROPPED[1]:
        return None
    limits = {one.name: _limits(one, share) for one in order}
    for some in (few, order):  # a factor that is a simple number shows in a few
        low, high = _interval(some, limits)
        if not low <= high:
            return None
        if high == math.inf:
            continue
        half = (high - low) / 2
        factor = simplest(low + half, -half, half)
        clear = _agreeing(order, limits, factor)
        if clear is not None:
            if clear < LEAST:
                return None
            return Masked("ties", [share], [factor], is_open=_are_alike(tensors))
    return None


Limits = Mapping[str, tuple[Floats, Floats]]


def _interval(tensors: Sequence[Mixed], limits: Limits) -> tuple[float, float]:
    """Between what the factor lies, as the bounds of these entries say; an empty interval where
    they contradict one another.
    """
    low, high = 0.0, math.inf
    for one in tensors:
        for target, merged, most in _sure(one, limits[one.name]):
            ends = (target + most * np.array([[-1.0], [1.0]])) / merged
            low, high = max(low, float(ends.min(0).max())), min(high, float(ends.max(0).min()))
            if not low <= high:
                return low, high
    return low, high


def _agreeing(tensors: Sequence[Mixed], limits: Limits, factor: float) -> int | None:
    """How many entries changed beyond doubt; None where one disagrees with the factor."""
    clear = 0
    for one in tensors:
        for part in one.parts():
            most = once(part, np.full(len(part.terms), factor), one.stored)
            fits = np.zeros(len(most), bool)
            for merged in _trimmed(part.terms, *limits[one.name]):
                fits |= np.abs(part.target - factor * merged) <= most
                if fits.all():
                    break
            if not fits.all():
                return None
            clear += int((np.abs(factor * part.terms).max(0) > CLEAR * most).sum())
    return clear


def _share(tensors: Sequence[Mixed]) -> float | None:
    """The share that was kept of each side, as far as some tensors say; None where none does."""
    found = [_share_kept(_whole(one), one.stored) for one in tensors if one.sums.entries >= LEAST]
    known = [share for share in found if share is not None]
    if not known:
        return None
    share = max(known)
    return round(share, 2) if abs(share - round(share, 2)) < 0.003 else share


def _sure(one: Mixed, limits: tuple[Floats, Floats]) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Target, elected mean and bound of entries that are kept or dropped for sure, and changed."""
    for part in one.parts():
        keeps, drops = _trimmed(part.terms, *limits, only_ends=True)
        sure = (keeps == drops) & (keeps != 0)
        if sure.any():
            most = once(part, np.ones(len(part.terms)), one.stored)
            yield part.target[sure], keeps[sure], most[sure]


def _far(tensors: Sequence[Mixed], share: float) -> bool:
    """Whether many entries are no elected mean times one factor, whatever the exact share."""
    found = [each for one in tensors for each in _sure(one, _limits(one, share))]
    if not found:
        return False
    target, merged, most = map(np.concatenate, zip(*found, strict=True))
    left = np.abs(target - np.median(target / merged) * merged)
    return bool(np.mean(left > most) > OFF)


def _are_alike(tensors: Sequence[Mixed]) -> bool:
    """Whether two of the deltas are no further apart than rounding."""
    gram = np.sum([one.sums.gram for one in tensors], axis=0)
    energies = np.diag(gram)
    apart = energies[:, None] + energies - 2 * gram + np.diag(np.full(len(gram), math.inf))
    return bool(apart.min() <= math.fsum(one.sums.rounding + one.sums.doubt for one in tensors))


def _share_kept(whole: Read, stored: str) -> float | None:
    """The share of entries by size, of either side, outside which nothing changed."""
    moved = np.abs(whole.target) > once(whole, np.ones(len(whole.terms)), stored)
    if not moved.any() or moved.all():
        return None
    count, sizes = len(moved), np.abs(whole.terms)
    ordered = np.sort(sizes)

    def needed(entries: Floats) -> int:
        """How many of the largest of each side have these entries among them, of either side."""
        ranks = [
            count - np.searchsorted(*two, "right") for two in zip(ordered, entries, strict=True)
        ]
        return int(np.min(ranks, 0).max()) + 1

    at_least = needed(sizes[:, moved][:, :: max(1, int(moved.sum()) // LEAST)])
    # most are among so many of the largest: the others are asked
    beyond = moved & (sizes < ordered[:, [count - at_least]]).all(0)
    return max(at_least, needed(sizes[:, beyond]) if beyond.any() else 0) / count


def _limits(one: Mixed, share: float) -> tuple[Floats, Floats]:
    """How large the smallest entry of each side is that is kept, and how far rounding moves it."""
    sizes = np.empty((len(one.sums.gram), one.sums.entries), np.float32)
    done, largest = 0, 0.0
    for part in one.parts():
        stop = done + len(part.first)
        sizes[:, done:stop] = np.abs(part.terms)
        done, largest = stop, max(largest, float(np.abs(part.first).max()))
    at = done - max(1, int(share * done))
    sizes.partition(at, axis=1)
    limits = sizes[:, at].astype(np.float64)
    return limits, 1e-6 * limits + UNIT * largest


def _trimmed(
    deltas: Floats, limits: Floats, near: Floats, *, only_ends: bool = False
) -> Iterator[Floats]:
    """The elected mean of the trimmed deltas; of entries as large as the smallest that is kept,
    once for each way to keep or drop them. only_ends: all kept, and all dropped.
    """
    size = np.abs(deltas)
    tied = (np.abs(size - limits[:, None]) <= near[:, None]) & (limits[:, None] > 0)
    ways = list(_subsets(len(deltas)))
    for also in (ways[0], ways[-1]) if only_ends else ways:
        kept = ((size > limits[:, None]) & ~tied) | (tied & ~also[:, None])
        each = np.where(kept, deltas, 0.0)
        sign = np.sign(each.sum(0))
        agree = (np.sign(each) == sign) & kept & (sign != 0)
        yield (each * agree).sum(0) / np.maximum(agree.sum(0), 1)


# ---------------------------------------------------------------------------------- DARE


def _dare(tensors: Sequence[Mixed], sides: int) -> Masked | None:
    """Dropped at random, the rest times a factor for each side."""
    factors = _factors(tensors, sides)
    for reads in (_samples, _samples, _every):
        if factors is None or (reads is _every and not _fits_samples(tensors, factors)):
            return None
        factors = _refined(reads(tensors), factors)
    if factors is None:
        return None
    for _ in range(ROUNDS):
        counts = _Counts(np.zeros((4, sides)))
        if not counts.ask(tensors, factors):
            return None
        if not counts.beyond:
            break
        change, reached = within(*map(np.concatenate, zip(*counts.rows, strict=True)))
        if reached > 1 + 1e-9:
            return None
        factors = factors + change
    if counts.beyond:
        return None
    clear, kept, size, size_kept = counts.of_sides
    if (clear < LEAST).any() or (kept == 0).any():
        return None
    share = kept / clear
    # what is dropped at random is as large as what is kept
    at_random = np.abs(size_kept / kept / (size / clear) - 1) < 0.1 + 3 / np.sqrt(kept)
    if not at_random.all() or not ((share > DROPPED[0]) & (share < DROPPED[1])).any():
        return None
    errors = np.sqrt(share * (1 - share) / clear)
    return Masked("dare", share.tolist(), factors.tolist(), errors.tolist())


@dataclass
class _Counts:
    """What one look at every entry tells of factors."""

    of_sides: Floats
    """Of each side, of entries that tell whether it was kept: how many there are and were kept, and
    the sums of their sizes.
    """
    beyond: int = 0
    """Entries that factors leave more of than rounding does."""
    rows: list[tuple[Floats, Floats, Floats]] = field(default_factory=list)
    """Entries by which factors are bounded: kept deltas, what is left, and the bounds."""

    def ask(self, tensors: Sequence[Mixed], factors: Floats) -> bool:
        """False, and no more is read, where more than a few entries are beyond."""
        for one in tensors:
            for part in one.parts():
                chosen, left, most = _nearest(part, factors, one.stored)
                off = int(np.count_nonzero(np.abs(left) > most * (1 + 1e-9)))
                if off > max(2, NEARLY * len(left)):
                    return False
                self.beyond += off
                deltas = part.terms * chosen
                ends = extremes(deltas, left, most, EXTREMES, by_part=True)
                self.rows.append((deltas[:, ends].T, left[ends], most[ends]))
                says = _says(factors[:, None] * part.terms, most)
                size = np.abs(part.terms) * says
                self.of_sides += [
                    says.sum(1), (says & chosen).sum(1), size.sum(1), (size * chosen).sum(1)
                ]  # fmt: skip
        return True


def _says(deltas: Floats, most: Floats) -> NDArray[np.bool_]:
    """Of each side the entries that tell whether it was kept, whatever was: no two ways to keep and
    drop the sides that differ in this one lie within one another's bounds.
    """
    says = np.abs(deltas) > CLEAR * most
    sides = len(deltas)
    for signs in product((-1, 0, 1), repeat=sides):
        differ = np.flatnonzero(signs)
        if len(differ) > 1 and signs[differ[0]] > 0:
            says[differ] &= np.abs(np.array(signs) @ deltas) > 2 * most
    return says


def _every(tensors: Sequence[Mixed]) -> Iterator[tuple[Read, str]]:
    """All entries with their formats."""
    for one in tensors:
        for part in one.parts():
            yield part, one.stored


def _samples(tensors: Sequence[Mixed]) -> Iterator[tuple[Read, str]]:
    """A few entries of every tensor with their formats."""
    for one in tensors:
        yield one.sums.sample, one.stored


def _fits_samples(tensors: Sequence[Mixed], factors: Floats) -> bool:
    """Whether most of a few entries were kept or dropped."""
    off = entries = 0
    for part, stored in _samples(tensors):
        _, left, most = _nearest(part, factors, stored)
        off += int(np.count_nonzero(np.abs(left) > most))
        entries += len(left)
    return off <= OFF * entries


def _refined(reads: Iterator[tuple[Read, str]], factors: Floats) -> Floats | None:
    """Factors by least squares of what they leave; None where those of the sides are open."""
    gram, cross = np.zeros((len(factors), len(factors))), np.zeros(len(factors))
    for part, stored in reads:
        chosen, _, most = _nearest(part, factors, stored)
        terms = part.terms * chosen / most
        gram += terms @ terms.T
        cross += terms @ (part.target / most)
    if np.linalg.matrix_rank(gram) < len(factors):
        return None
    return np.asarray(np.linalg.solve(gram, cross), np.float64)


def _factors(tensors: Sequence[Mixed], sides: int) -> Floats | None:
    """The factor of each side, where only that side was kept: the commonest ratio of the change to
    its delta.
    """
    largest = max(tensors, key=lambda one: one.sums.entries)
    step = -(-largest.sums.entries // (3 * SAMPLE))  # of these many are precise enough
    whole = joined([part.some(slice(None, None, step)) for part in largest.parts()])
    most = once(whole, np.ones(sides), largest.stored)
    found = []
    for delta in whole.terms:
        precise = np.abs(delta) / most
        chosen = np.flatnonzero(precise > max(2 * CLEAR, np.quantile(precise, 0.6)))[:SAMPLE]
        moved = chosen[np.abs(whole.target[chosen]) > most[chosen]]
        if len(moved) < LEAST / 5:
            return None
        ratios = np.sort(whole.target[moved] / delta[moved])
        found.append(_commonest(ratios, max(1e-4, 2 * float(np.median(1 / precise[moved])))))
    return np.array(found)


def _commonest(ordered: Floats, width: float) -> float:
    """The median of the window of this width, relative to where it lies, with most numbers."""
    ends = np.searchsorted(ordered, ordered + width * np.maximum(np.abs(ordered), 0.1), "right")
    at = int(np.argmax(ends - np.arange(len(ordered))))
    return float(np.median(ordered[at : ends[at]]))


def _nearest(part: Read, factors: Floats, stored: str) -> tuple[NDArray[np.bool_], Floats, Floats]:
    """The sides that were kept of each entry, as leaves least of it; that, and the bound."""
    most = once(part, np.abs(factors), stored)
    best = np.full(len(most), math.inf)
    chosen = np.zeros(part.terms.shape, bool)
    for subset in _subsets(len(factors)):
        left = part.target - (factors * subset) @ part.terms
        closer = np.abs(left) < np.abs(best)
        best = np.where(closer, left, best)
        chosen[:, closer] = subset[:, None]
    return chosen, best, most
