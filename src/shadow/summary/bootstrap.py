"""Intervals of figures over the layers of one report, by a bootstrap.

Matrices of one layer are trained together, so layers (blocks) are drawn whole, with replacement,
with all their matrices; components keep their numbers of layers, and matrices outside the layers
(an embedding, a head) are in every draw, as a model has one of each. Intervals are over layers, not
over other training runs, other seeds or other models.

Medians, shares, ratios and paired differences get the expanded percentile interval (Hesterberg
2015, The American Statistician 69, 371): the percentiles are those that a t interval of as many
layers would need, Phi(sqrt(n / (n - 1)) t_{n-1}(0.025)), since plain percentiles are too narrow for
few layers; docs/evidence.md holds the coverage of each. Even the whole range of n draws holds a
median only with probability 1 - 2^(1-n), so few layers lower the level that an interval may claim.

`scipy.stats.bootstrap` can draw layers too (of their indices), but has no expanded percentile,
draws again for every figure, and is a second's import; a test holds these intervals against its
own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shadow.text import counted

LEVEL = 0.95
# of layers; where there are no more ways than that to draw them (up to 5 layers), every one is
# taken
DRAWS = 10_000
SEED = 0
# layers without which there is no interval: of 3, even their whole range holds a median only 3
# times in 4
FEWEST = 4
UNDEFINED = "not defined for every choice of layers"

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Places = NDArray[np.intp]
Counts = NDArray[np.int32]  # (draws, layers): how often each draw took each layer
Statistic = Callable[[Counts], Floats]


@dataclass(frozen=True)
class Interval:
    """The interval of a figure over layers, or the reason why there is none."""

    bounds: tuple[float, float] | None  # (low, high), in the unit of the figure
    layers: int
    level: float | None = None  # the probability that it may claim at most; None without bounds
    reason: str | None = None  # why there are no bounds; None where there are


@dataclass(frozen=True)
class Blocks:
    """The layers of the rows of a table."""

    codes: Places  # (n,): the number of each row's layer, from 0; -1 outside the layers
    strata: Places  # (layers,): the number of each layer's component, ascending from 0

    @property
    def layers(self) -> int:
        """Return the number of layers."""
        return len(self.strata)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Layers of each component that has any."""
        return tuple(np.unique(self.strata, return_counts=True)[1].tolist())

    @property
    def free(self) -> int:
        """Return how many layers of a single component leave as much to chance: the only layer of a
        component is in every draw.
        """
        return self.layers - max(0, len(self.sizes) - 1)

    def where(self, kept: Mask) -> Blocks:
        """Return the same for some of the rows, without layers that have no rows left."""
        codes = self.codes[kept]
        used, inside = np.unique(codes[codes >= 0], return_inverse=True)
        codes = codes.copy()
        codes[codes >= 0] = inside
        return Blocks(codes, self.strata[used])


def blocks_of(components: Sequence[str], layers: ArrayLike) -> Blocks:
    """Return the blocks of rows by component and layer (NaN outside the layers), in any order."""
    places = list(zip(components, np.asarray(layers, dtype=np.float64).tolist(), strict=True))
    known = sorted({place for place in places if not math.isnan(place[1])})
    code = {place: number for number, place in enumerate(known)}
    names = sorted(set(components))
    # no place with NaN is in code, so that what lies outside the layers gets -1
    return Blocks(
        np.array([code.get(place, -1) for place in places], dtype=np.intp),
        np.array([names.index(component) for component, _ in known], dtype=np.intp),
    )


def interval_of_median(values: ArrayLike, blocks: Blocks) -> Interval:
    """Return the interval of the median over rows, each counted once; NaN rows are left out."""
    numbers = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(numbers)
    if not known.all():
        numbers, blocks = numbers[known], blocks.where(known)
    return interval(partial(medians, numbers, blocks.codes), blocks)


def interval(statistic: Statistic, blocks: Blocks) -> Interval:
    """Return the interval of any figure: statistic takes Counts and returns a value per draw."""
    layers, components = blocks.layers, len(blocks.sizes)
    if blocks.free < FEWEST:
        among = f" in {components} components" if components > 1 else ""
        fewest = FEWEST + components - 1
        reason = f"only {counted(layers, 'layer', 'layers')}{among}, at least {fewest} are needed"
        return Interval(None, layers, reason=reason if layers else "outside the layers")
    values = statistic(draws(blocks.sizes))
    if not np.all(np.isfinite(values)):
        return Interval(None, layers, reason=UNDEFINED)
    level = min(LEVEL, 1.0 - 2.0 ** (1 - blocks.free))
    return Interval(cut(values, expanded_tail(blocks.free)), layers, level)


def cut(values: Floats, tail: float) -> tuple[float, float]:
    """Return the least and the largest value without this share at each end, rounded down.

    Values are not interpolated, so that -values has the same bounds to the last bit, negated.
    """
    last = len(values) - 1
    below = min(int(tail * len(values)), last)
    parted = np.partition(values, (below, last - below))
    return float(parted[below]), float(parted[last - below])


@lru_cache(maxsize=16)
def draws(sizes: tuple[int, ...]) -> Counts:
    """Return the layers of each draw, (draws, sum of sizes): with replacement, within components of
    these sizes.

    Every ordered draw if there are at most DRAWS of them, otherwise DRAWS random ones of a fixed
    seed. They are the same for every figure over the same layers, so that figures can be compared
    draw by draw.
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


@lru_cache(maxsize=1024)
def expanded_tail(layers: int) -> float:
    """Return what is cut off at each end, below (1 - LEVEL) / 2: Hesterberg's expanded
    percentile.
    """
    from scipy.special import ndtr, stdtrit

    t = stdtrit(layers - 1, (1.0 - LEVEL) / 2)
    return float(ndtr(t * np.sqrt(layers / (layers - 1))))


def medians(values: Floats, codes: Places, counts: Counts) -> Floats:
    """Return the median of the rows in each draw, as if they were repeated.

    codes: the layer of each row, -1 for rows that are in every draw once. The rows in ascending
    order are counted in stretches, then one by one within the stretch of the middle.
    """
    order = np.argsort(values, kind="stable")
    ascending, stretch = values[order], max(1, math.isqrt(len(values)) // 2)
    weights = np.vstack([counts.T, np.ones(len(counts))]).astype(np.float32)  # whole numbers
    # the layer of each row, those outside last; rows behind the last are never counted
    layers = np.zeros((-(-len(values) // stretch), stretch), dtype=np.intp)
    layers.flat[: len(values)] = codes[order] % len(weights)
    cells = (layers + np.arange(len(layers))[:, None] * len(weights)).flat[: len(values)]
    inside = np.bincount(cells, minlength=len(layers) * len(weights))
    inside = inside.reshape(len(layers), len(weights)).cumsum(axis=0)
    upto = inside.astype(np.float32) @ weights
    middle, draw = [], np.arange(len(counts))
    for rank in ((upto[-1] + 1) // 2, upto[-1] // 2 + 1):
        at = (upto < rank).sum(axis=0, dtype=np.int16)
        left, place = rank - np.where(at > 0, upto[at - 1, draw], 0.0), at.astype(int) * stretch
        for row in layers[at].T[: stretch - 1]:
            left -= weights[row, draw]
            place += left > 0
        middle.append(ascending[place])
    return np.asarray((middle[0] + middle[1]) / 2)
