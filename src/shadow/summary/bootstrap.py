"""What the layers of one report can say of a figure: intervals by a bootstrap over layers, p by
flips of their signs.

Matrices of one layer are trained together, so layers (blocks) are drawn, and flipped, whole. Layers
are drawn with replacement and each brings all its matrices; components keep their numbers of
layers, and what lies outside the layers (an embedding, a head) is in every draw, as a model has one
of it. All of this speaks of layers: not of other training runs, other seeds or other models.

Medians, shares, ratios and paired differences get the expanded percentile interval (Hesterberg
2015, The American Statistician 69, 371): the percentiles are those that a t interval of as many
layers would need, Phi(sqrt(n / (n - 1)) t_{n-1}(0.025)), since plain percentiles are too narrow for
few layers; docs/evidence.md holds the coverage of each. Even the whole range of n draws holds a
median only with probability 1 - 2^(1-n), so few layers lower the level that an interval may claim.

`scipy.stats.bootstrap` can draw layers too (of their indices), but has no expanded percentile,
draws anew for every figure, and is a second's import; a test holds these intervals against its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shadow.text import counted

LEVEL = 0.95
# of layers; where there are no more ways than that to draw them (up to 5 layers), every one is
# taken
DRAWS = 10_000
FLIPS, ALL_FLIPS = 9_999, 13  # of signs; up to 13 layers every pattern (2^13) is taken
SEED = 0
# layers without which there is no interval: of 3, even their whole range holds a median only 3
# times in 4
FEWEST = 4
COUNTED = 128  # rows up to which a median is found by counting; more are bisected
STRETCH = 32  # rows between which counts by layer are kept: a count for each takes 4 bytes a layer
TOGETHER = 40_000  # medians made at once: 160 kB of counts, which stay in the cache of a core
UNDEFINED = "not defined for every choice of layers"

Counts = NDArray[np.int32]  # (draws, layers): how often each draw took each layer
Statistic = Callable[[Counts], NDArray[np.float64]]


@dataclass(frozen=True)
class Interval:
    """How far a figure would move with other layers, or the reason why that cannot be said."""

    bounds: tuple[float, float] | None
    """(low, high), in the unit of the figure; None where reason says why."""
    layers: int
    level: float | None = None
    """The probability that the interval may claim at most, up to LEVEL; None without bounds."""
    reason: str | None = None
    """Why there are no bounds; None where there are."""


@dataclass(frozen=True)
class Blocks:
    """The layers that the rows of a table lie in."""

    codes: NDArray[np.intp]
    """(n,): the number of each row's layer, from 0; -1 outside the layers."""
    strata: NDArray[np.intp]
    """(layers,): the number of each layer's component, from 0, in ascending order."""

    @property
    def layers(self) -> int:
        """How many layers there are, 0 or more."""
        return len(self.strata)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Layers of each component that has any."""
        return tuple(int(count) for count in np.unique(self.strata, return_counts=True)[1])

    @property
    def free(self) -> int:
        """How many layers of a single component leave as much to chance: the only layer of one is
        in every draw.
        """
        return self.layers - max(0, len(self.sizes) - 1)

    def where(self, kept: NDArray[np.bool_]) -> Blocks:
        """The same for some of the rows; layers that lose all their rows, or had none, are gone."""
        codes = self.codes[kept]
        used, inside = np.unique(codes[codes >= 0], return_inverse=True)
        codes = codes.copy()
        codes[codes >= 0] = inside
        return Blocks(codes, self.strata[used])


def blocks_of(components: Sequence[str], layers: ArrayLike) -> Blocks:
    """The blocks of rows by component and layer (NaN outside the layers), in any order."""
    numbers = np.asarray(layers, dtype=np.float64)
    places = list(zip(components, numbers, strict=True))
    known = {component: number for number, component in enumerate(sorted(set(components)))}
    known_places = sorted(
        {(known[component], layer) for component, layer in places if not np.isnan(layer)}
    )
    code = {place: number for number, place in enumerate(known_places)}
    # no place with NaN is in code, so that what lies outside the layers gets -1
    codes = [code.get((known[component], layer), -1) for component, layer in places]
    return Blocks(
        np.array(codes, dtype=np.intp),
        np.array([stratum for stratum, _ in known_places], dtype=np.intp),
    )


def interval_of_median(values: ArrayLike, blocks: Blocks) -> Interval:
    """The interval of the median over rows, each counted once; rows that are NaN are left out."""
    return intervals_of_medians(np.asarray(values, dtype=np.float64)[:, None], blocks)[0]


def intervals_of_medians(columns: NDArray[np.float64], blocks: Blocks) -> list[Interval]:
    """`interval_of_median` of every column, at once for those that are NaN in the same rows."""
    known = ~np.isnan(columns)
    alike: dict[bytes, list[int]] = {}
    for column in range(columns.shape[1]):
        alike.setdefault(known[:, column].tobytes(), []).append(column)
    intervals: dict[int, Interval] = {}
    for places in alike.values():
        kept, own, of_own = known[:, places[0]], columns[:, places], blocks
        if not kept.all():
            own, of_own = own[kept], blocks.where(kept)
        intervals |= zip(places, _intervals_of_known(own, of_own), strict=True)
    return [intervals[column] for column in range(columns.shape[1])]


def _intervals_of_known(columns: NDArray[np.float64], blocks: Blocks) -> list[Interval]:
    """`intervals_of_medians` of columns without NaN."""
    if blocks.free < FEWEST:
        return [_none(blocks)] * columns.shape[1]
    counts, times = distinct_draws(blocks.sizes)
    together = max(1, TOGETHER // len(counts))
    pieces = [columns[:, at : at + together] for at in range(0, columns.shape[1], together)]
    values = (medians(piece, blocks.codes, counts) for piece in pieces)
    return [one for of_piece in values for one in _intervals(of_piece, times, blocks)]


def interval(statistic: Statistic, blocks: Blocks) -> Interval:
    """The interval of any figure: statistic takes Counts and returns one value for each draw."""
    if blocks.free < FEWEST:
        return _none(blocks)
    counts = draws(blocks.sizes)
    return _intervals(statistic(counts)[None], np.ones(len(counts), np.int64), blocks)[0]


def _intervals(
    values: NDArray[np.float64], times: NDArray[np.int64], blocks: Blocks
) -> list[Interval]:
    """The intervals of figures by their values in each draw, (figures, draws)."""
    tail, layers = expanded_tail(blocks.free), blocks.layers
    ends = zip(*(end.tolist() for end in cut(values, times, (tail, tail))), strict=True)
    level = min(LEVEL, 1.0 - 2.0 ** (1 - blocks.free))
    defined: NDArray[np.bool_] = np.all(np.isfinite(values), axis=1)
    return [
        Interval(bounds, layers, level) if is_defined else Interval(None, layers, reason=UNDEFINED)
        for bounds, is_defined in zip(ends, defined, strict=True)
    ]


def _none(blocks: Blocks) -> Interval:
    """No interval, as there are too few layers."""
    layers, components = blocks.layers, len(blocks.sizes)
    among = f" in {components} components" if components > 1 else ""
    fewest = FEWEST + components - 1
    reason = f"only {counted(layers, 'layer', 'layers')}{among}, it takes {fewest}"
    return Interval(None, layers, reason=reason if layers else "outside the layers")


def cut(
    values: NDArray[np.float64], times: NDArray[np.int64], tails: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The least and the largest of every row of (rows, draws) without the given share at each end,
    rounded down.

    No value between two is made up, so that -values has the same bounds to the last bit, negated.
    times (draws,): how often each draw is repeated.
    """
    most = int(times.sum()) - 1
    below, above = (min(int(tail * (most + 1)), most) for tail in tails)
    if len(times) > most:  # every draw once: a third of the time
        parted = np.partition(values, (below, most - above), axis=1)
        return parted[:, below], parted[:, most - above]
    order = np.argsort(values, axis=1)
    upto = np.cumsum(times[order], axis=1)
    ends = [(upto <= rank).sum(axis=1, keepdims=True) for rank in (below, most - above)]
    low, high = (
        np.take_along_axis(values, np.take_along_axis(order, end, axis=1), axis=1)[:, 0]
        for end in ends
    )
    return low, high


@lru_cache(maxsize=16)
def draws(sizes: tuple[int, ...]) -> Counts:
    """Which layers each draw takes, (draws, sum of sizes): with replacement, within components of
    these sizes.

    Every ordered draw where there are no more than DRAWS of them, else DRAWS random ones of a fixed
    seed. The same for every figure over the same layers, so that figures can be compared draw by
    draw.
    """
    if math.prod(size**size for size in sizes) <= DRAWS:
        ends = list(itertools.accumulate(sizes, initial=0))
        groups = [
            range(start, end) for start, end in itertools.pairwise(ends) for _ in range(end - start)
        ]
        every = np.array(list(itertools.product(*groups)), dtype=np.intp)
        counts = np.zeros(every.shape, dtype=np.int32)
        np.add.at(counts, (np.arange(len(every))[:, None], every), 1)
    else:
        generator = np.random.default_rng(SEED)
        parts = [
            generator.multinomial(size, np.full(size, 1.0 / size), size=DRAWS) for size in sizes
        ]
        counts = np.concatenate(parts, axis=1).astype(np.int32)
    counts.flags.writeable = False
    return counts


@lru_cache(maxsize=16)
def distinct_draws(sizes: tuple[int, ...]) -> tuple[Counts, NDArray[np.int64]]:
    """`draws` without repeats, and how often each was drawn: of 4 layers 35 instead of 256.

    Where the most of them differ (above 8 layers) they are as they were drawn.
    """
    counts = draws(sizes)
    ways = math.prod(math.comb(2 * size - 1, size) for size in sizes)
    if ways >= len(counts):
        return counts, np.ones(len(counts), dtype=np.int64)
    return np.unique(counts, axis=0, return_counts=True)


@lru_cache(maxsize=1024)
def expanded_tail(layers: int) -> float:
    """What is cut off at each end, below (1 - LEVEL) / 2: Hesterberg's expanded percentile."""
    from scipy.special import ndtr, stdtrit

    t = stdtrit(layers - 1, (1.0 - LEVEL) / 2)
    return float(ndtr(t * np.sqrt(layers / (layers - 1))))


def medians(
    columns: NDArray[np.float64], codes: NDArray[np.intp], counts: Counts
) -> NDArray[np.float64]:
    """The median of the rows that each draw took, as if they were repeated: (rows, columns) ->
    (columns, draws).

    codes: the layer of each row, -1 for rows that are in every draw once. Found by bisection in the
    sorted values, so that 20,000 rows cost as little as 200; few rows are counted one by one, which
    costs a fifth.
    """
    if len(columns) <= COUNTED:
        return _medians_of_few(columns, codes, counts)
    return np.stack([_median_of_many(values, codes, counts) for values in columns.T])


def _median_of_many(
    values: NDArray[np.float64], codes: NDArray[np.intp], counts: Counts
) -> NDArray[np.float64]:
    """The same of one column, by bisection."""
    order = np.argsort(values, kind="stable")
    weights = np.concatenate([counts, np.ones((len(counts), 1), dtype=np.int32)], axis=1)
    layers, stretches = weights.shape[1], -(-len(values) // STRETCH)
    ascending = values[order]
    # those outside last; rows behind the last are never counted
    layer_of = np.zeros(stretches * STRETCH, dtype=np.intp)
    layer_of[: len(values)] = codes[order] % layers
    # of the rows before each stretch, how many lie in each layer
    cells = np.arange(len(values)) // STRETCH * layers + layer_of[: len(values)]
    inside = np.bincount(cells, minlength=stretches * layers).reshape(stretches, layers)
    below = np.zeros((stretches + 1, layers), dtype=np.int32)
    np.cumsum(inside, axis=0, out=below[1:])
    total = weights @ below[-1]
    middle = [
        ascending[_place_of_rank(layer_of, below, weights=weights, rank=rank)]
        for rank in ((total + 1) // 2, total // 2 + 1)
    ]
    return np.asarray((middle[0] + middle[1]) / 2)


def _medians_of_few(
    columns: NDArray[np.float64], codes: NDArray[np.intp], counts: Counts
) -> NDArray[np.float64]:
    """The same, through the sorted rows of every column: how many a draw took before its middle."""
    order = np.argsort(columns, axis=0, kind="stable")
    ascending = np.take_along_axis(columns, order, axis=0).T
    # by layer, those outside last
    taken = np.concatenate([counts.T, np.ones((1, len(counts)), dtype=np.int32)])
    total = taken.T @ np.bincount(codes % len(taken), minlength=len(taken)).astype(np.int32)
    ranks = ((total + 1) // 2, total // 2 + 1)
    upto = np.zeros((columns.shape[1], len(counts)), dtype=np.int32)
    before = [np.zeros_like(upto) for _ in ranks]
    for row in codes[order]:
        upto += taken[row]
        for place, rank in zip(before, ranks, strict=True):
            place += upto < rank
    low, high = (np.take_along_axis(ascending, place, axis=1) for place in before)
    return np.asarray((low + high) / 2)


def _place_of_rank(
    layer_of: NDArray[np.intp], below: NDArray[np.int32], weights: Counts, rank: NDArray[np.int32]
) -> NDArray[np.intp]:
    """The place of each draw's row of a rank, from 1: its stretch by bisection, then row by row."""
    low = np.zeros(len(rank), dtype=np.intp)
    high = np.full(len(rank), len(below) - 1, dtype=np.intp)
    while (low < high).any():
        middle = (low + high) // 2
        enough = np.einsum("ij,ij->i", weights, below[middle]) >= rank
        low = np.where(enough, low, middle + 1)
        high = np.where(enough, middle, high)
    stretch = low - 1
    upto = np.einsum("ij,ij->i", weights, below[stretch])
    place = stretch * STRETCH
    draw = np.arange(len(rank))
    for row in stretch * STRETCH + np.arange(STRETCH)[:, None]:
        upto += weights[draw, layer_of[row]]
        place += upto < rank
    return place


def sign_flip_p(per_layer: NDArray[np.float64]) -> float | None:
    """Two-sided p of the mean of per_layer (L,): the share of sign patterns whose mean is as far
    from 0.

    Every pattern for L <= ALL_FLIPS, so that p is at least 2^(1 - L); else FLIPS random ones of a
    fixed seed beside the observed one. Null for L = 0. If there is no difference, each layer's sign
    is a toss.

    Source: Fisher 1935, The Design of Experiments; scipy.stats.permutation_test with
    permutation_type="samples".
    """
    count = len(per_layer)
    if not count:
        return None
    # sorted, so that p depends neither on the order of layers nor on which report is first
    sizes = np.sort(np.abs(per_layer))
    observed = abs(per_layer.sum()) * (1 - 1e-12)  # sums of one pattern differ by rounding
    if count <= ALL_FLIPS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=count)))
        return float(np.mean(np.abs(signs @ sizes) >= observed))
    drawn = np.random.default_rng(SEED).integers(0, 2, (FLIPS, count))
    return float((1 + np.sum(np.abs((1.0 - 2.0 * drawn) @ sizes) >= observed)) / (1 + FLIPS))
