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
        """The number of layers."""
        return len(self.strata)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Layers of each component that has any."""
        _, sizes = np.unique(self.strata, return_counts=True)
        return tuple(sizes.tolist())

    @property
    def free(self) -> int:
        """The number of layers of a single component that leave as much to chance: the only layer
        of a component is in every draw.
        """
        return self.layers - len(self.sizes) + 1

    def where(self, chosen: Mask) -> Blocks:
        """The layers of some of the rows, without those that have no rows left."""
        codes = self.codes[chosen]  # a copy
        is_inside = codes >= 0
        used, codes[is_inside] = np.unique(codes[is_inside], return_inverse=True)
        return Blocks(codes, self.strata[used])


def blocks_of(components: Sequence[str], layers: ArrayLike) -> Blocks:
    """The blocks of rows by component and layer (NaN outside the layers), in any order."""
    numbers = np.asarray(layers, dtype=np.float64)
    places = list(zip(components, numbers.tolist(), strict=True))
    inside = sorted({(name, layer) for name, layer in places if not math.isnan(layer)})
    code = {place: number for number, place in enumerate(inside)}
    # no place with NaN is in code, so that what lies outside the layers gets -1
    codes = [code.get(place, -1) for place in places]
    names = sorted(set(components))
    strata = [names.index(component) for component, _ in inside]
    return Blocks(np.array(codes, dtype=np.intp), np.array(strata, dtype=np.intp))


def interval_of_median(values: ArrayLike, blocks: Blocks) -> Interval:
    """The interval of the median over rows, each counted once; NaN rows are left out."""
    numbers = np.asarray(values, dtype=np.float64)
    is_known = ~np.isnan(numbers)
    numbers = numbers[is_known]
    blocks = blocks.where(is_known)
    statistic = partial(medians, numbers, blocks.codes)
    return interval(statistic, blocks)


def interval(statistic: Statistic, blocks: Blocks) -> Interval:
    """The interval of any figure: statistic takes Counts and returns a value per draw."""
    layers = blocks.layers
    if not layers:
        return Interval(None, layers, reason="outside the layers")
    if blocks.free < FEWEST:
        components = len(blocks.sizes)
        among = f" in {components} components" if components > 1 else ""
        fewest = FEWEST + components - 1
        reason = f"only {counted(layers, 'layer', 'layers')}{among}, at least {fewest} are needed"
        return Interval(None, layers, reason=reason)
    values = statistic(draws(blocks.sizes))
    if not np.isfinite(values).all():
        return Interval(None, layers, reason=UNDEFINED)
    # the probability that all draws are on one side of a median
    outside = 2.0 ** (1 - blocks.free)
    bounds = cut(values, expanded_tail(blocks.free))
    return Interval(bounds, layers, min(LEVEL, 1.0 - outside))


def cut(values: Floats, tail: float) -> tuple[float, float]:
    """The least and the largest value without this share at each end, rounded down.

    Values are not interpolated, so that -values has the same bounds to the last bit, negated.
    """
    last = len(values) - 1
    low = min(int(tail * len(values)), last)
    high = last - low
    parted = np.partition(values, (low, high))
    return float(parted[low]), float(parted[high])


@lru_cache(maxsize=16)
def draws(sizes: tuple[int, ...]) -> Counts:
    """The layers of each draw, (draws, sum of sizes): with replacement, within components of these
    sizes.

    Every ordered draw if there are at most DRAWS of them, otherwise DRAWS random ones of a fixed
    seed. They are the same for every figure over the same layers, so that figures can be compared
    draw by draw.
    """
    if math.prod(size**size for size in sizes) <= DRAWS:
        counts = _every_draw(sizes)
    else:
        generator = np.random.default_rng(SEED)
        parts = []
        for size in sizes:
            even = np.full(size, 1.0 / size)
            parts.append(generator.multinomial(size, even, size=DRAWS))
        counts = np.concatenate(parts, axis=1, dtype=np.int32)
    counts.flags.writeable = False
    return counts


def _every_draw(sizes: tuple[int, ...]) -> Counts:
    of_components = [
        [np.bincount(draw, minlength=size) for draw in itertools.product(range(size), repeat=size)]
        for size in sizes
    ]
    every = [np.concatenate(draw) for draw in itertools.product(*of_components)]
    return np.array(every, dtype=np.int32)


@lru_cache(maxsize=1024)
def expanded_tail(layers: int) -> float:
    """The share that is cut off at each end, below (1 - LEVEL) / 2: Hesterberg's expanded
    percentile.
    """
    expansion = math.sqrt(layers / (layers - 1))
    t = _quantile(layers - 1)
    return math.erfc(t * expansion / math.sqrt(2.0)) / 2


def _quantile(freedom: int) -> float:
    """The number between which and its negative Student's t lies with probability LEVEL, halved
    down to: SciPy's takes a tenth of a second to import.
    """
    low = 0.0
    high = 100.0  # freedom 1 has 12.7
    while low < (middle := (low + high) / 2) < high:
        if _share_within(middle, freedom) < LEVEL:
            low = middle
        else:
            high = middle
    return high


def _share_within(t: float, freedom: int) -> float:
    """The probability that Student's t lies between -t and t: the integral of a power of the cosine
    of an angle, two powers at a time by parts.
    """
    angle = math.atan2(t, math.sqrt(freedom))
    sine = math.sin(angle)
    cosine = math.cos(angle)
    is_odd = freedom % 2 == 1
    share = 2 * angle / math.pi if is_odd else sine
    term = 2 / math.pi * sine * cosine if is_odd else sine * cosine**2 / 2
    for power in range(2 if is_odd else 3, freedom, 2):
        share += term
        term *= cosine**2 * power / (power + 1)
    return share


def medians(values: Floats, codes: Places, counts: Counts) -> Floats:
    """The median of the rows in each draw, as if they were repeated.

    codes: the layer of each row, -1 for rows that are in every draw once. The rows in ascending
    order are counted in stretches, then one by one within the stretch of the middle.
    """
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    length = max(1, math.isqrt(len(values)) // 2)  # of a stretch
    every_draw = np.ones(len(counts))
    weights = np.vstack([counts.T, every_draw], dtype=np.float32)  # whole numbers
    # the layer of each row, those outside last; rows behind the last are never counted
    stretches = math.ceil(len(values) / length)
    layers = np.zeros((stretches, length), dtype=np.intp)
    layers.flat[: len(values)] = codes[order] % len(weights)
    # by stretch, then by layer: the rows in all stretches up to this one
    shape = stretches, len(weights)
    cells = layers + np.arange(stretches)[:, None] * len(weights)
    rows = np.bincount(cells.flat[: len(values)], minlength=math.prod(shape))
    rows = rows.reshape(shape).cumsum(axis=0)
    upto = rows.astype(np.float32) @ weights
    draw = np.arange(len(counts))
    middle = []
    for rank in ((upto[-1] + 1) // 2, upto[-1] // 2 + 1):
        at = (upto < rank).sum(axis=0, dtype=np.int16)
        left = rank - np.where(at > 0, upto[at - 1, draw], 0.0)
        place = at.astype(int) * length
        for row in layers[at].T[: length - 1]:
            left -= weights[row, draw]
            place += left > 0
        middle.append(ascending[place])
    return np.asarray((middle[0] + middle[1]) / 2)
