"""A matrix as a linear combination of others: sums of products, what rounding may leave of it, and
which weights stay within that in every entry.

With W the tuned matrix, A_1 ... A_k what it may be mixed of and B a base, the target is W - F and
its terms X are differences too, so that nothing cancels in a product:

    with a base      F = B,    X = A_i - B                          weights w_i = theta_i
    without one      F = A_1,  X = A_1, A_2 - A_1, ..., A_k - A_1   w_1 = 1 + theta_1 - rest

All is float64. A matrix is read tile by tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from shadow.dtypes import float_format
from shadow.spectra.lazy import Matrix
from shadow.spectra.spectrum import tiles

Floats = NDArray[np.float64]
UNIT = 2.0**-24  # of float32, in which merges are computed at least
PART = 1 << 15  # entries of a tile: a dozen arrays of them in float64 stay in the caches
EXTREMES = 2  # entries that are kept of a tile for each direction in which weights may move
SAMPLE = 64  # entries of a tile that are kept as its sample
ACTIVE = 40  # entries for each direction that a linear program starts with, and that are added
HOPELESS = 0.01  # share of entries beyond the bounds from which weights are not asked further
SOLVED = 12  # linear programs until all entries that were kept are in it
EXPONENT = np.int64(0x7FF0000000000000)  # of the bits of a float64


@dataclass(frozen=True)
class Read:
    """A tile of all matrices, each as float64 (entries,)."""

    tuned: Floats
    first: Floats
    terms: Floats
    """X, (terms, entries)."""
    _units: dict[str, Floats] = field(init=False, repr=False, default_factory=dict)

    @cached_property
    def target(self) -> Floats:
        """W - F."""
        return self.tuned - self.first

    @cached_property
    def sizes(self) -> Floats:
        """|F| and |X|, (1 + terms, entries)."""
        found = np.empty((1 + len(self.terms), len(self.first)))
        np.abs(self.first, out=found[0])
        np.abs(self.terms, out=found[1:])
        return found

    def unit(self, stored: str) -> Floats:
        """The unit in the last place of each entry of the tuned one in a format, made once."""
        if stored not in self._units:
            self._units[stored] = ulp(self.tuned, stored)
        return self._units[stored]

    @cached_property
    def is_finite(self) -> bool:
        """Whether all entries are, and their squares."""
        terms = self.terms.ravel()
        return math.isfinite(float(self.target @ self.target) + float(terms @ terms))

    def some(self, entries: slice) -> Read:
        """Copies of some entries."""
        return Read(*(one[..., entries].copy() for one in (self.tuned, self.first, self.terms)))


def read(tuned: Matrix, base: Matrix | None, sides: Sequence[Matrix]) -> Iterator[Read]:
    """Target and terms, tile by tile. All matrices have one shape."""
    others = [*sides] if base is None else [base, *sides]
    for index, _ in tiles(tuned, PART):
        w, first, *rest = (
            one[index].to(torch.float64, copy=True).reshape(-1).numpy() for one in (tuned, *others)
        )
        terms = np.empty((len(sides), len(w)))
        if base is None:
            terms[0] = first
        for row, other in zip(terms[base is None :], rest, strict=True):
            np.subtract(other, first, out=row)
        yield Read(w, first, terms)


def weights_of(theta: Floats, has_base: bool) -> Floats:
    """The weight of each side."""
    if has_base:
        return theta
    return np.concatenate([[1 + theta[0] - theta[1:].sum()], theta[1:]])


@dataclass(frozen=True)
class Products:
    """Sums over the entries of one matrix."""

    entries: int
    gram: Floats
    """X Xᵀ, (terms, terms)."""
    cross: Floats
    """X times the target, (terms,)."""
    energy: float
    """Of the target: the sum of its squares."""
    whole: float
    """Of the tuned matrix."""
    rounding: float
    """The most energy that one rounding to the stored format may leave."""
    finite: bool
    sample: Read
    """SAMPLE entries of each tile."""

    def rest(self, theta: Floats) -> float:
        """The energy that these weights leave, 0 or more."""
        return max(0.0, float(self.energy - 2 * theta @ self.cross + theta @ self.gram @ theta))

    @property
    def doubt(self) -> float:
        """How far `rest` may be off: the rounding of float64 in sums that cancel."""
        return 1e-12 * (self.energy + float(np.trace(self.gram)))


def products(parts: Iterator[Read], stored: str) -> Products:
    """The sums of a matrix. stored: the format of the tuned one."""
    entries, energy, whole, rounding = 0, 0.0, 0.0, 0.0
    gram: Floats | float = 0.0
    cross: Floats | float = 0.0
    some = []
    for part in parts:
        target = part.target
        entries += len(target)
        some.append(part.some(slice(None, None, max(1, len(target) // SAMPLE))))
        gram = gram + part.terms @ part.terms.T
        cross = cross + part.terms @ target
        energy += float(target @ target)
        whole += float(part.tuned @ part.tuned)
        most = once(part, np.ones(len(part.terms)), stored)
        rounding += float(most @ most)
    sums = np.array([energy, whole, *np.ravel(gram), *np.ravel(cross)])
    return Products(
        entries, np.asarray(gram), np.asarray(cross), energy, whole, rounding,
        bool(np.isfinite(sums).all()), joined(some),
    )  # fmt: skip


def joined(parts: Sequence[Read]) -> Read:
    """All parts as one."""
    return Read(
        np.concatenate([part.tuned for part in parts]),
        np.concatenate([part.first for part in parts]),
        np.concatenate([part.terms for part in parts], 1),
    )


# ------------------------------------------------------------------------------- rounding


def ulp(values: Floats, stored: str) -> Floats:
    """The unit in the last place of each value in a format."""
    form = float_format(stored)
    powers: Floats = (values.view(np.int64) & EXPONENT).view(np.float64)  # 2^floor(log2 |value|)
    least = 2.0 ** max(form.min_exponent, -1022)
    np.maximum(powers, least, out=powers)
    powers *= 2.0**-form.mantissa_bits
    return powers


def once(part: Read, theta: Floats, stored: str) -> Floats:
    """The most that is left of each entry where the sum was made in float32 and then stored."""
    unit = UNIT if float_format(stored).bits <= 32 else 2.0**-53
    each = unit * (len(theta) + 2) * np.abs([1.0, *theta])
    most: Floats = each @ part.sizes
    most += 0.5 * part.unit(stored)
    return most


def steps(part: Read, theta: Floats, stored: str, has_base: bool) -> Floats:
    """The half units in the last place of what is rounded on the way where every step is made in
    the stored format: (steps, entries).
    """
    weights = weights_of(theta, has_base)
    if has_base:
        summands = weights[:, None] * part.terms
        each = [
            *(ulp(one, stored) for one in summands),
            *(np.abs(weight) * ulp(term, stored)
              for weight, term in zip(weights, part.terms, strict=True)),
        ]  # fmt: skip
        partial = ulp(np.abs(summands).sum(0), stored)
    else:
        sides = np.concatenate([part.first[None], part.first + part.terms[1:]])
        products = zip(weights, sides, strict=True)
        each = [_of_product(weight, side, stored) for weight, side in products]
        # sums of exact products are rounded once
        partial = np.where(np.any(each, axis=0), part.unit(stored), 0.0)
    return 0.5 * np.stack([*each, *[partial] * (len(weights) - 1)])


def _of_product(weight: float, side: Floats, stored: str) -> Floats:
    """The unit in the last place of a product; 0 where it is exact, as half of a normal number."""
    product = weight * side
    unit = ulp(product, stored)
    if abs(math.frexp(weight)[0]) == 0.5:
        unit[np.abs(product) >= 2.0 ** float_format(stored).min_exponent] = 0.0
    return unit


@dataclass(frozen=True)
class Asked:
    """What is asked of every entry: whether these weights leave no more of it than rounding may."""

    theta: Floats
    slopes: Floats
    """d theta / d parameters, (terms, parameters)."""
    has_base: bool
    in_steps: bool
    """Whether steps are rounded; if not, they have the bound of one rounding."""

    def is_as(self, other: Asked) -> bool:
        """Whether the same is asked."""
        return (
            self.in_steps == other.in_steps
            and np.array_equal(self.theta, other.theta)
            and np.array_equal(self.slopes, other.slopes)
        )


@dataclass(frozen=True)
class Remainder:
    """What weights leave of a matrix, beside what rounding may."""

    asked: Asked
    entries: int
    energy: float
    beyond: int
    """Entries with more left than one rounding leaves."""
    beyond_steps: int
    """Than rounding at every step leaves."""
    expected_steps: float
    """The energy of errors that are even over the unit in the last place of every step."""
    slack: float
    """How many entries steps could take beyond one rounding: the sum of their share of its bound,
    1 at most.
    """
    rows: Floats
    """Entries by which weights are bounded: their terms, what is left, and both bounds."""


class Leaving:
    """What weights leave of a matrix whose tiles come one by one."""

    def __init__(self, asked: Asked, stored: str) -> None:
        """stored: the format of the tuned one."""
        self.asked, self._stored = asked, stored
        self._entries = self._beyond = self._beyond_steps = 0
        self._energy = self._expected_steps = self._slack = 0.0
        self._rows: list[Floats] = []

    @property
    def is_hopeless(self) -> bool:
        """Whether more is beyond the bounds than chance or a few entries make of good weights."""
        beyond = self._beyond_steps if self.asked.in_steps else self._beyond
        return beyond > 2 + HOPELESS * self._entries

    def add(self, part: Read) -> None:
        """Ask the entries of one more tile."""
        theta, stored = self.asked.theta, self._stored
        left = part.target - theta @ part.terms
        most = of_steps = once(part, theta, stored)
        self._entries += len(left)
        self._energy += float(left @ left)
        size = np.abs(left)
        self._beyond += int(np.count_nonzero(size > most))
        if self.asked.in_steps:
            on_the_way = steps(part, theta, stored, self.asked.has_base)
            of_steps = most + on_the_way.sum(0)
            self._slack += float(np.minimum(on_the_way.sum(0) / most, 1).sum())
            self._expected_steps += float(most @ most) / 3 + float((on_the_way**2).sum()) / 3
            self._beyond_steps += int(np.count_nonzero(size > of_steps))
        slopes = self.asked.slopes.T @ part.terms
        chosen = extremes(slopes, left, most, EXTREMES, by_part=True)
        self._rows.append(
            np.stack([*part.terms[:, chosen], left[chosen], most[chosen], of_steps[chosen]])
        )

    def found(self) -> Remainder:
        """What is left of all tiles."""
        return Remainder(
            self.asked, self._entries, self._energy, self._beyond,
            self._beyond_steps if self.asked.in_steps else self._beyond, self._expected_steps,
            self._slack, np.concatenate(self._rows, 1).T,
        )  # fmt: skip


def remainder(parts: Iterator[Read], asked: Asked, stored: str) -> Remainder:
    """What weights leave of a matrix. stored: the format of the tuned one."""
    leaving = Leaving(asked, stored)
    for part in parts:
        leaving.add(part)
    return leaving.found()


def sums_and_rest(
    parts: Iterator[Read], stored: str, asked: Asked | None
) -> tuple[Products, Remainder | None]:
    """The sums of a matrix, and in the same pass what weights leave of it that are likely; None
    where they are not those of this matrix, or none are known.
    """
    leaving = None if asked is None else Leaving(asked, stored)

    def seen() -> Iterator[Read]:
        nonlocal leaving
        for part in parts:
            if leaving is not None and part.is_finite:
                leaving.add(part)
            if leaving is not None and (leaving.is_hopeless or not part.is_finite):
                leaving = None
            yield part

    sums = products(seen(), stored)
    return sums, None if leaving is None else leaving.found()


def extremes(
    slopes: Floats, left: Floats, most: Floats, count: int, *, by_part: bool = False
) -> NDArray[np.int64]:
    """The entries that stop parameters first: those with most left, and along each of a few
    directions, either way; so many of each, by_part: of parts of the entries, which is faster.
    slopes: (parameters, entries).
    """
    largest = _of_parts if by_part else _largest
    precise = np.float32 if by_part else np.float64  # it only says which entries
    share = 1 / most
    scaled, away = (slopes * share).astype(precise), (left * share).astype(precise)
    directions = [*scaled]
    if len(scaled) > 1:
        gram = [[one @ other for one in scaled] for other in scaled]
        directions += [*(np.linalg.eigh(np.array(gram))[1].T @ scaled)]
    found = [largest(np.abs(away), count)]
    # a step s along a slope leaves (left - s slope) / most, which may reach 1 or -1
    below, above = (1 / np.maximum(1 + way * away, precise(1e-3)) for way in (1, -1))
    for slope in directions:
        down, up = slope * below, slope * above
        found += [largest(np.maximum(down, -up), count), largest(np.maximum(up, -down), count)]
    return np.unique(np.concatenate(found))


def _largest(values: Floats, count: int) -> NDArray[np.int64]:
    if len(values) <= count:
        return np.arange(len(values))
    return np.argpartition(values, -count)[-count:]


def _of_parts(values: Floats, count: int) -> NDArray[np.int64]:
    """The largest of each of so many parts."""
    length = -(-len(values) // count)
    return np.array(
        [start + int(values[start : start + length].argmax())
         for start in range(0, len(values), length)],
        dtype=np.int64,
    )  # fmt: skip


# ------------------------------------------------------------------------------- weights


def least_squares(gram: Floats, cross: Floats) -> Floats:
    """The parameters of least squares; of those that fit alike the smallest."""
    scale = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    found = np.linalg.lstsq(gram / np.outer(scale, scale), cross / scale, rcond=1e-11)[0]
    return np.asarray(found / scale)


def within(
    slopes: Floats, left: Floats, most: Floats, *, by_sum: bool = False
) -> tuple[Floats, float]:
    """The change of parameters that keeps |left - slopes change| / most smallest where it is
    largest, and how large it then is: above 1, no parameters stay within the bounds.

    by_sum: the change that keeps the sum of what is beyond the bounds smallest, and that sum; a few
    wrong entries then move nothing. A linear program over the entries that matter: others are added
    while they are further off.
    """
    count = slopes.shape[1]
    change, reached = np.zeros(count), 0.0
    chosen = extremes(slopes.T, left, most, ACTIVE)
    for _ in range(SOLVED):
        change, reached = _program(slopes[chosen], left[chosen], most[chosen], by_sum)
        share = np.abs(left - slopes @ change) / most
        limit = 1 + 1e-9 if by_sum else max(reached, 1.0) * (1 + 1e-9)
        further = np.setdiff1d(np.flatnonzero(share > limit), chosen)
        if not len(further) or not math.isfinite(reached):
            break
        worst = further[_largest(share[further], ACTIVE)]
        chosen = np.concatenate([chosen, worst])
    return change, reached


def _program(slopes: Floats, left: Floats, most: Floats, by_sum: bool) -> tuple[Floats, float]:
    from scipy import sparse
    from scipy.optimize import linprog

    scaled, scale = _scaled(slopes, most)
    rows, count = scaled.shape
    slack = sparse.eye(rows) if by_sum else sparse.csr_array(np.ones((rows, 1)))
    dense = sparse.csr_array(scaled)
    above = sparse.block_array([[dense, -slack], [-dense, -slack]], format="csr")
    limits = np.concatenate([left / most, -left / most]) + (1.0 if by_sum else 0.0)
    cost = [0.0] * count + [1.0] * slack.shape[1]
    free = [(None, None)] * count + [(0, None)] * slack.shape[1]
    found = linprog(cost, above, limits, bounds=free, method="highs")
    if found.x is None:
        return np.zeros(count), math.inf
    return found.x[:count] / scale, float(found.fun)


def interval(slopes: Floats, left: Floats, most: Floats, of: Floats) -> tuple[float, float]:
    """How far down and up the sum of parameters times `of` may go within the bounds of these
    entries; infinite where nothing stops it.
    """
    from scipy.optimize import linprog

    scaled, scale = _scaled(slopes, most)
    above = np.concatenate([scaled, -scaled])
    limits = np.concatenate([1 + left / most, 1 - left / most]).clip(0)
    ends = []
    for way in (1.0, -1.0):
        found = linprog(
            way * of / scale, above, limits, bounds=[(None, None)] * len(scale), method="highs"
        )
        ends.append(-way * math.inf if found.x is None else way * float(found.fun))
    return ends[0], ends[1]


def _scaled(slopes: Floats, most: Floats) -> tuple[Floats, Floats]:
    by_bound = slopes / most[:, None]
    scale = np.abs(by_bound).max(0)
    scale[scale == 0] = 1.0
    return by_bound / scale, scale
