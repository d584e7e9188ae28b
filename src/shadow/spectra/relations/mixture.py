"""Weights that make a model from others, if there are any: one linear fit, for all of it or by
layer.

With W the tuned tensor, A_1 ... A_k what it may be mixed of and B a base, the target is W - F and
its terms X are differences too, so that nothing cancels in a product:

    with a base      F = B,    X = A_i - B                          weights w_i = theta_i
    without one      F = A_1,  X = A_1, A_2 - A_1, ..., A_k - A_1   w_1 = 1 + theta_1 - the others

Least squares give theta, and the simplest numbers within its errors. Every entry is checked for a
larger remainder than rounding may leave; while some have one, a linear program over the entries
that bound theta best moves it to where these agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from shadow.dtypes import float_format
from shadow.spectra.lazy import Matrix, half_ulp
from shadow.spectra.spectrum import tiles

Floats = NDArray[np.float64]
Per = Literal["model", "layer"]

UNIT = 2.0**-24  # of float32, in which merges are computed at least
PART = 1 << 15  # entries of a tile: a dozen arrays of them in float64 stay in the caches
OF_TILE, OF_PROGRAM = 2, 200  # entries that are kept for each direction in which theta may move
ROUNDS = 6  # times that every entry is asked
LOOSE = 1 + 1e-6  # what a linear program leaves an entry at its bound
FEW = 1e-3  # a share of entries that no other weights explain
ERRORS = 3  # standard errors of theta, of errors as large as rounding may make them
RIDGE = 1e-14  # of terms that are each other's multiples
STEPS = 1.1  # times a model that rounding of products, sums and differences leaves, in energy
# of weights that people give, the likeliest first
DENOMINATORS = (1, 2, 3, 4, 5, 10, 20, *range(6, 10), 11, 12, 16, 100, 1_000, 10_000)
ALIKE = 1 / 3  # groups that need weights of their own, of all layers, at least


@dataclass(frozen=True)
class Read:
    """Entries of all models at one place, in float64."""

    tuned: Floats
    first: Floats
    terms: Floats
    """X, (terms, entries)."""


def read(tuned: Matrix, base: Matrix | None, sides: Sequence[Matrix]) -> Iterator[Read]:
    """Yield target and terms, tile by tile. All matrices have one shape."""
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


@dataclass(frozen=True)
class Products:
    """Sums over the entries of one tensor."""

    entries: int
    gram: Floats
    """X Xᵀ, (terms, terms)."""
    cross: Floats
    """X times the target, (terms,)."""
    energy: float
    """Of the target: the sum of its squares."""
    whole: float
    """Of the tuned tensor."""
    rounding: float
    """The most energy that one rounding to the stored format may leave."""
    finite: bool

    def rest(self, theta: Floats) -> float:
        """Return the energy that these weights leave, 0 or more."""
        return max(0.0, float(self.energy - 2 * theta @ self.cross + theta @ self.gram @ theta))


def products(parts: Iterable[Read], stored: str) -> Products:
    """Return the sums of a tensor. stored: the format of the tuned one."""
    entries, sums = 0, np.zeros(3)
    gram: Floats | float = 0.0
    cross: Floats | float = 0.0
    for part in parts:
        target = part.tuned - part.first
        most, _ = bounds(part, np.ones(len(part.terms)), stored)
        entries += len(target)
        gram = gram + part.terms @ part.terms.T
        cross = cross + part.terms @ target
        sums += [target @ target, part.tuned @ part.tuned, most @ most]
    finite = bool(np.isfinite([*sums, *np.ravel(gram), *np.ravel(cross)]).all())
    energy, whole, rounding = sums.tolist()
    return Products(entries, np.asarray(gram), np.asarray(cross), energy, whole, rounding, finite)


@dataclass(frozen=True)
class Mixed:
    """A tensor, or a part of one, to explain."""

    name: str
    layer: int | None
    stored: str
    """The format of the tuned one."""
    has_base: bool
    parts: Callable[[], Iterator[Read]]
    sums: Products


def ulp(values: Floats, stored: str) -> Floats:
    """Return the unit in the last place of each value in a format."""
    units: Floats = half_ulp(torch.from_numpy(values), float_format(stored)).mul_(2.0).numpy()
    return units


def bounds(part: Read, theta: Floats, stored: str) -> tuple[Floats, Floats]:
    """Return the most that can be left of each entry if the sum was made in float32 and then
    stored, and if every product, sum and difference was stored.
    """
    unit = UNIT if float_format(stored).bits <= 32 else 2.0**-53
    sizes = np.abs(part.first) + np.abs(theta) @ np.abs(part.terms)
    once = unit * (len(theta) + 2) * sizes + 0.5 * ulp(part.tuned, stored)
    return once, once + (len(theta) + 1) * ulp((1 + np.abs(theta).sum()) * sizes, stored)


def weights_of(theta: Floats, has_base: bool) -> Floats:
    """Return the weight of each side."""
    if has_base:
        return theta
    return np.concatenate([[1 + theta[0] - theta[1:].sum()], theta[1:]])


@dataclass(frozen=True)
class Remainder:
    """The residual of a tensor after a fit, and the residual that rounding may leave."""

    name: str
    beyond: int
    """Entries with more left than one rounding leaves;"""
    far: int
    """and than rounding at every step in the stored format leaves."""
    rows: Floats
    """Of the entries that bound weights best: terms, target and bound, (entries, terms + 2)."""


def remainder(one: Mixed, theta: Floats) -> Remainder:
    """Check every entry of a tensor for a larger remainder than rounding may leave."""
    beyond, far, rows = 0, 0, []
    for part in one.parts():
        target = part.tuned - part.first
        left, (most, steps) = target - theta @ part.terms, bounds(part, theta, one.stored)
        beyond += int(np.count_nonzero(np.abs(left) > most))
        far += int(np.count_nonzero(np.abs(left) > steps))
        chosen = extremes(part.terms, left, most, OF_TILE)
        rows.append(np.stack([*part.terms[:, chosen], target[chosen], most[chosen]], 1))
    return Remainder(one.name, beyond, far, np.concatenate(rows))


@dataclass(frozen=True)
class MixtureFit:
    """Weights that every entry agrees with, otherwise the best ones."""

    per: Per
    weights: Floats
    """Of each side, (groups, sides)."""
    errors: Floats
    """How far the weight of each side may be off: of the group that bounds it best."""
    agrees: bool = True
    """Whether one rounding explains what is left of every entry."""
    apart: Mapping[str, float] = field(default_factory=dict)
    """By tensor of which more is left than rounding at every step leaves: the norm of what is left
    over that of the tensor.
    """
    rest: float = 0.0
    """The norm of all that is left over that of the change that was to be explained."""


Each = Callable[[Callable[[Mixed], Remainder], Sequence[Mixed]], Iterable[Remainder]]
"""`map`, or that of a pool of threads."""


def fit(tensors: Sequence[Mixed], each: Each = map) -> MixtureFit:
    """Return the weights that every entry agrees with, or the best ones and what speaks against
    them.
    """
    whole = _Group(tensors, each)
    found = _fitted([whole], "model")
    if found or whole.few:
        return found or _misfit(tensors, whole.few)  # no other weights explain a few entries
    layers: dict[Hashable, list[Mixed]] = {}
    for one in tensors:
        layers.setdefault(one.name if one.layer is None else one.layer, []).append(one)
    groups = [_Group(members, each) for members in layers.values()]
    return _fitted(groups, "layer") or _misfit(tensors, ())


def _fitted(groups: Sequence[_Group], per: Per) -> MixtureFit | None:
    """Return the weights of groups; None if one agrees with none, or too few need their own."""
    if not all(group.may_fit() for group in groups) or not all(one.settle() for one in groups):
        return None
    weights = np.array([weights_of(group.theta, group.has_base) for group in groups])
    errors = np.array([group.errors for group in groups])
    own = (np.abs(weights - np.median(weights, 0)) > errors + 1e-3).any(1)
    layers = sum(group.members[0].layer is not None for group in groups)
    if per == "layer" and own.sum() < max(2, ALIKE * layers):
        return None
    return MixtureFit(per, weights, errors.min(0))


class _Group:
    """Tensors that share a theta."""

    def __init__(self, members: Sequence[Mixed], each: Each) -> None:
        self.members, self._each = members, each
        self.has_base = members[0].has_base
        self._start, self.errors = least_squares(members)
        self.theta = self._start
        self.few: Sequence[str] = ()
        """Tensors with entries that disagree with weights that nearly all entries agree with."""

    def may_fit(self) -> bool:
        """Return whether sums of products leave at most what rounding may."""
        return all(
            one.sums.rest(self._start) <= most_energy(one, self._start) for one in self.members
        )

    def settle(self) -> bool:
        """Find a theta that every entry agrees with; return whether there is one."""
        self.theta, rows = self._start, []
        few = max(2, FEW * sum(one.sums.entries for one in self.members))
        for _ in range(ROUNDS):
            rests = [*self._each(partial(remainder, theta=self.theta), self.members)]
            beyond = sum(rest.beyond for rest in rests)
            if not beyond:
                return True
            if beyond <= few:
                self.few = self.few or [rest.name for rest in rests if rest.far]
            rows += [rest.rows for rest in rests]
            self.theta, reached = within(np.concatenate(rows), self.theta)
            if reached > LOOSE:
                break
        return False


def extremes(slopes: Floats, left: Floats, most: Floats, count: int) -> NDArray[np.int64]:
    """Return the entries that limit theta first: those with most left, and count of them along each
    term and each direction of all terms, either way. slopes: (terms, entries).
    """
    scaled, away = slopes / most, left / most
    along = [*scaled, *(np.linalg.eigh(scaled @ scaled.T)[1].T @ scaled)]
    # a step s along a slope leaves (left - s slope) / most, which may reach 1 or -1
    below, above = (1 / np.maximum(1 + way * away, 1e-3) for way in (1, -1))
    asked = [np.abs(away)]
    for slope in along:
        asked += [np.maximum(slope * below, -slope * above)]
        asked += [np.maximum(slope * above, -slope * below)]
    count = min(count, len(left))
    return np.unique([np.argpartition(one, -count)[-count:] for one in asked])


def within(rows: Floats, theta: Floats) -> tuple[Floats, float]:
    """Return the theta that minimises the largest remainder as a share of its bound, and that
    share: above 1, no theta stays within the bounds. theta: one near it.
    """
    from scipy.optimize import linprog

    terms, left, most = rows[:, :-2], rows[:, -2] - rows[:, :-2] @ theta, rows[:, -1]
    chosen = extremes(terms.T, left, most, OF_PROGRAM)
    slopes, limits = (terms / most[:, None])[chosen], (left / most)[chosen]
    scale = np.maximum(np.abs(slopes).max(0), 1e-300)
    slack = np.ones((len(slopes), 1))
    above = np.block([[slopes / scale, -slack], [-slopes / scale, -slack]])
    cost = [0.0] * len(theta) + [1.0]
    free = [(None, None)] * len(theta) + [(0, None)]
    found = linprog(cost, above, np.concatenate([limits, -limits]), bounds=free, method="highs")
    if found.x is None:
        return theta, math.inf
    return theta + found.x[:-1] / scale, float(found.fun)


def simplest(value: float, error: float) -> float:
    """Return the number within an error with the smallest denominator; the value if that
    is large.
    """
    for denominator in DENOMINATORS:
        simple: float = round(value * denominator) / denominator
        if abs(simple - value) <= error < 1:
            return simple
    return value


def most_energy(one: Mixed, theta: Floats, *, in_steps: bool = False) -> float:
    """Return the most energy that rounding leaves, once or at every step, and the error
    of its sum.
    """
    largest = max(1.0, float(np.abs(weights_of(theta, one.has_base)).max()))
    narrow = in_steps and float_format(one.stored).bits <= 16
    times = max(1.0, STEPS * len(theta)) if narrow else 1.0
    doubt = 1e-12 * (one.sums.energy + float(np.trace(one.sums.gram)))
    return times * largest**2 * one.sums.rounding + doubt


def least_squares(members: Sequence[Mixed]) -> tuple[Floats, Floats]:
    """Return theta over a group, each tensor weighted by its rounding: the simplest numbers within
    its errors; and the errors of weights.
    """
    known = [(one.sums.entries / max(one.sums.rounding, 1e-300), one.sums) for one in members]
    gram = np.sum([weight * sums.gram for weight, sums in known], 0)
    scale = np.maximum(np.sqrt(np.diag(gram)), 1e-50)
    inverse = np.linalg.inv(gram / np.outer(scale, scale) + RIDGE * np.eye(len(gram)))
    inverse /= np.outer(scale, scale)
    theta = inverse @ np.sum([weight * sums.cross for weight, sums in known], 0)
    entries = sum(sums.entries for _, sums in known)
    left = sum(weight * sums.rest(theta) for weight, sums in known) / entries
    of_theta = np.eye(len(theta))
    if not members[0].has_base:
        of_theta[0, 1:] = -1.0
    size = ERRORS * math.sqrt(max(1.0, left))
    variances = (np.diag(inverse), np.einsum("ij,jk,ik->i", of_theta, inverse, of_theta))
    own, errors = (size * np.sqrt(np.maximum(each, 0.0)) for each in variances)
    return np.array([*map(simplest, theta, own)]), errors


def _misfit(tensors: Sequence[Mixed], few: Sequence[str]) -> MixtureFit:
    """Return what weights that most tensors agree with leave of each tensor."""
    each = [least_squares([one]) for one in tensors]
    theta, errors = np.median([one for one, _ in each], 0), np.min([one for _, one in each], 0)
    rests = {one.name: one.sums.rest(theta) for one in tensors}
    apart = {
        one.name: math.sqrt(rests[one.name] / one.sums.whole)
        for one in tensors
        if one.sums.whole
        if one.name in few or rests[one.name] > most_energy(one, theta, in_steps=True)
    }
    change, left = math.fsum(one.sums.energy for one in tensors), math.fsum(rests.values())
    weights = weights_of(theta, tensors[0].has_base)[None]
    rest = math.sqrt(left / change) if change else 0.0
    return MixtureFit("model", weights, errors, agrees=False, apart=apart, rest=rest)
