"""Which linear mixture a model is, if any: the same weights in every tensor, by layer, by layer and
kind of module, or spherical interpolation (SLERP) between two.

Weights come from sums of products first, then from the bounds of a sample of entries, of which the
simplest numbers are taken. Whether they hold is then asked of every entry: what is left of it may
be no more than rounding. Where it is more, the weights move to where it is least (a linear program
over the entries that stop them), and every entry is asked again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shadow.dtypes import float_format
from shadow.spectra.mixture import (
    ACTIVE,
    Asked,
    Floats,
    Products,
    Read,
    Remainder,
    extremes,
    interval,
    least_squares,
    once,
    remainder,
    steps,
    weights_of,
    within,
)

Method = Literal["average", "sum", "task", "slerp"]
Per = Literal["model", "layer", "module"]
ROUNDS = 6  # sweeps in which weights are sought that stay within the bounds
PARALLEL = 0.9995  # cosine above which mergekit's SLERP is a plain average
STEPS_SHARE = 0.005  # of the entries that rounded steps could take beyond one rounding, at least
# the energy of what is left over what rounded steps leave, at most; means of two leave half a unit
# or none, which is 1.5 times the energy of errors that are even
STEPS_ENERGY = 1.6
ENOUGH = 2_000  # entries of a tensor that shares and energies are asked of
FEW = 1e-3  # a share of entries that no other weights explain
AGAIN = 30  # times as many, which a second look may make few
DENOMINATORS = (*range(1, 13), 16, 20, 100, 1_000, 10_000)  # of weights that people give
ALIKE = 1 / 3  # groups that need weights of their own, of all groups, at least


@dataclass(frozen=True)
class Mixed:
    """A tensor, or a part of one, that is to be explained."""

    name: str
    layer: int | None
    kind: str
    """`attn`, `mlp` or another word for modules that one weight is given for."""
    tensor: str
    """The stored tensor that it is a part of: SLERP has one angle for all of it."""
    stored: str
    """The format of the tuned one."""
    parts: Callable[[], Iterator[Read]]
    sums: Products
    rest: Remainder | None = None
    """What likely weights leave, where they were asked of it in the pass that made its sums."""


@dataclass(frozen=True)
class Fit:
    """A mixture that every entry agrees with."""

    method: Method
    per: Per
    parameters: Sequence[Floats]
    """By group."""
    weights: Sequence[Floats]
    """By group, of each side; of SLERP of each tensor."""
    low: Floats
    """The ends between which the weight of each side may lie: of the group that bounds it best."""
    high: Floats
    in_steps: bool
    """Whether every step was rounded to the stored format."""

    @property
    def t(self) -> list[float]:
        """Of SLERP, by group."""
        return [float(one[0]) for one in self.parameters] if self.method == "slerp" else []


@dataclass(frozen=True)
class Misfit:
    """No mixture: what the weights that most tensors agree with leave."""

    weights: Floats
    apart: Mapping[str, float]
    """By tensor that does not agree: the norm of what is left over that of the tensor."""
    entries: Mapping[str, int]
    """Of tensors in which only a few entries do not agree: how many."""
    rest: float
    """The norm of all that is left over that of the change that was to be explained."""


# ---------------------------------------------------------------------------------- forms


@dataclass(frozen=True)
class Form:
    """What a method makes of its parameters."""

    method: Method
    sides: int
    has_base: bool
    angles: Mapping[str, float]
    """By tensor: between the two sides, for SLERP."""

    @property
    def size(self) -> int:
        """How many parameters there are."""
        return {"average": self.sides - 1, "slerp": 1}.get(self.method, self.sides)

    def theta(self, tensor: str, parameters: Floats) -> Floats:
        """The coefficients of the terms."""
        if self.method == "average":
            return np.concatenate([[0.0], parameters])
        if self.method == "slerp":
            first, second = _slerp(float(parameters[0]), self.angles[tensor])
            return np.array([first + second - 1, second])
        return parameters

    def slopes(self, tensor: str, parameters: Floats) -> Floats:
        """d theta / d parameters, (terms, parameters)."""
        if self.method == "slerp":
            step = 1e-6
            ends = [self.theta(tensor, parameters + way * step) for way in (1, -1)]
            return np.asarray((ends[0] - ends[1]) / (2 * step))[:, None]
        full = np.eye(self.sides)
        return full[:, 1:] if self.method == "average" else full

    @property
    def of_theta(self) -> Floats:
        """d weights / d theta, (sides, terms)."""
        found = np.eye(self.sides)
        if not self.has_base:
            found[0] = [1.0, *[-1.0] * (self.sides - 1)]
        return found


@dataclass(frozen=True)
class Likely:
    """Weights that some tensors agree with: others are asked for them while they are first read."""

    form: Form
    parameters: Floats
    in_steps: bool

    @property
    def asked(self) -> Asked:
        """What the entries of any tensor are asked."""
        theta, slopes = self.form.theta("", self.parameters), self.form.slopes("", self.parameters)
        return Asked(theta, slopes, self.form.has_base, self.in_steps)


def likely(some: Sequence[Mixed], sides: int, has_base: bool) -> Likely | None:
    """The weights that all of some tensors agree with; None where there are none, and for SLERP,
    whose weights are known once a tensor is read.
    """
    found = fit(some, sides, has_base)
    if isinstance(found, Misfit) or found.per != "model" or found.method == "slerp":
        return None
    return Likely(Form(found.method, sides, has_base, {}), found.parameters[0], found.in_steps)


def _slerp(t: float, angle: float) -> tuple[float, float]:
    """The weights of both sides; of nearly parallel ones those of a plain average."""
    if _is_parallel(angle):
        return 1 - t, t
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _is_parallel(angle: float) -> bool:
    return abs(math.cos(angle)) > PARALLEL or math.sin(angle) == 0


def angles(tensors: Sequence[Mixed]) -> dict[str, float]:
    """Between two sides, of every stored tensor, from the sums of its parts."""
    grams: dict[str, Floats] = {}
    for one in tensors:
        grams[one.tensor] = grams.get(one.tensor, np.zeros((2, 2))) + one.sums.gram
    found = {}
    for name, gram in grams.items():
        first, inner = gram[0, 0], gram[0, 0] + gram[0, 1]
        second = gram[0, 0] + 2 * gram[0, 1] + gram[1, 1]
        cosine = inner / math.sqrt(first * second) if first > 0 and second > 0 else 1.0
        found[name] = math.acos(max(-1.0, min(1.0, cosine)))
    return found


# ---------------------------------------------------------------------------------- fitting


def fit(
    tensors: Sequence[Mixed], sides: int, has_base: bool, first: Likely | None = None
) -> Fit | Misfit:
    """The simplest mixture that every entry agrees with, or what speaks against any. first: the
    weights that were asked of tensors in the pass that made their sums.
    """
    methods: list[Method] = ["task"] if has_base else ["average", "sum"]
    turned = angles(tensors) if not has_base and sides == 2 else {}
    if not all(map(_is_parallel, turned.values())):  # else it is the average
        methods.insert(1, "slerp")
    few: dict[str, int] = {}
    groupings: tuple[Per, ...] = ("model", "layer", "module")
    for per in groupings:
        for method in methods if per == "model" else [one for one in methods if one != "sum"]:
            form = Form(method, sides, has_base, turned)
            found = _fitted(tensors, form, per, first)
            if isinstance(found, Fit):
                return found
            if found is not None and per == "model":
                few = found
                break  # other weights do not explain a few entries
        if few:
            break
    return _misfit(tensors, Form(methods[0], sides, has_base, turned), few)


def _group(one: Mixed, per: Per) -> object:
    if per == "model":
        return "model"
    if one.layer is None:
        return one.name
    return one.layer if per == "layer" else (one.layer, one.kind)


def _fitted(
    tensors: Sequence[Mixed], form: Form, per: Per, first: Likely | None
) -> Fit | dict[str, int] | None:
    """A mixture; or how many entries disagree with one, by tensor, where they are few; or None."""
    groups: dict[object, list[Mixed]] = {}
    for one in tensors:
        groups.setdefault(_group(one, per), []).append(one)
    start = {key: _start(members, form) for key, members in groups.items()}
    # what sums of products rule out needs no second look
    pairs = [(one, form.theta(one.tensor, start[key])) for key in groups for one in groups[key]]
    if any(one.sums.rest(theta) > _most(one, form, theta) for one, theta in pairs):
        return None
    if first and first.form.method != form.method:
        first = None
    searches = {key: _Search(members, form, start[key], first) for key, members in groups.items()}
    if all(one.sums.rest(theta) <= _most(one, form, theta, steps=1.0) for one, theta in pairs) and (
        all(search.settle(in_steps=False) for search in searches.values())
    ):
        return _told(form, per, searches, in_steps=False)
    if all(float_format(one.stored).bits <= 16 for one in tensors) and all(
        search.settle(in_steps=True) for search in searches.values()
    ):
        rests = {name: rest for search in searches.values() for name, rest in search.rests.items()}
        if _rounded_on_the_way(rests):
            return _told(form, per, searches, in_steps=True)
    return searches["model"].few() if per == "model" else None


def _most(one: Mixed, form: Form, theta: Floats, steps: float | None = None) -> float:
    """The most energy that rounding leaves, by default at every step, and the error of its sum."""
    weights = np.abs(weights_of(theta, form.has_base))
    if steps is None:
        narrow = float_format(one.stored).bits <= 16
        steps = max(1.0, STEPS_ENERGY * (2 * form.sides) / 3) if narrow else 1.0
    return steps * max(1.0, float(weights.max())) ** 2 * one.sums.rounding + one.sums.doubt


def _rounded_on_the_way(rests: Mapping[str, Remainder]) -> bool:
    """Whether what is left is that of rounding at every step: about as many entries are beyond one
    rounding as such steps take there, in most tensors, and no energy is more.
    """
    large = [one for one in rests.values() if one.entries >= ENOUGH and one.energy > 0]
    if not large or any(one.energy > STEPS_ENERGY * one.expected_steps for one in large):
        return False
    beyond, slack = sum(one.beyond for one in large), math.fsum(one.slack for one in large)
    return beyond > STEPS_SHARE * slack and 2 * sum(one.beyond > 0 for one in large) > len(large)


def _start(members: Sequence[Mixed], form: Form) -> Floats:
    """Least squares over a group, each tensor weighted by its rounding."""
    parameters = np.full(form.size, 0.5 if form.method == "slerp" else 0.0)
    for _ in range(8 if form.method == "slerp" else 1):
        gram = np.zeros((form.size, form.size))
        cross = np.zeros(form.size)
        for one in members:
            weight = one.sums.entries / max(one.sums.rounding, 1e-300)
            theta, slopes = form.theta(one.tensor, parameters), form.slopes(one.tensor, parameters)
            gram += weight * slopes.T @ one.sums.gram @ slopes
            cross += weight * slopes.T @ (one.sums.cross - one.sums.gram @ theta)
        parameters = parameters + least_squares(gram, cross)
    return parameters


class _Search:
    """Parameters of a group, and the entries that bound them."""

    def __init__(
        self, members: Sequence[Mixed], form: Form, start: Floats, first: Likely | None
    ) -> None:
        self.members, self.form, self.start, self.parameters = members, form, start, start
        self._first = first
        self.in_steps: bool | None = None
        self.rests: dict[str, Remainder] = {}
        self._rows: list[tuple[str, Floats, Floats, Floats]] = []
        """Of a tensor, of entries: terms, target, and both bounds."""

    def ask_sample(self, *, in_steps: bool) -> bool:
        """Begin again with the parameters that the sample agrees with; False where none are."""
        self.parameters, self.in_steps, self.rests, self._rows = self.start, in_steps, {}, []
        for one in self.members:
            theta, sample = self.form.theta(one.tensor, self.parameters), one.sums.sample
            most = of_steps = once(sample, theta, one.stored)
            if in_steps:
                of_steps = most + steps(sample, theta, one.stored, self.form.has_base).sum(0)
            limits = np.stack([most, of_steps], 1)
            self._rows.append((one.tensor, sample.terms.T, sample.target, limits))
        if self._first and self._first.in_steps == in_steps:
            self.parameters = self._first.parameters
            _, left, most = self.bounds(in_steps)
            if (np.abs(left) <= most).all():
                return True
            self.parameters = self.start
        is_linear = self.form.method != "slerp"
        for _ in range(1 if is_linear else ROUNDS):
            change, reached = within(*self.bounds(in_steps))
            self.parameters = self.parameters + change
            if is_linear and reached > 1 + 1e-3:
                return False
        self._simplify(in_steps)
        return True

    def _simplify(self, in_steps: bool) -> None:
        """Move parameters to the simplest numbers within the bounds, where all fit together."""
        slopes, left, most = self.bounds(in_steps)
        first = extremes(slopes.T, left, most, ACTIVE)
        found = self.parameters.copy()
        for number, of in enumerate(np.eye(len(found))):
            ends = interval(slopes[first], left[first], most[first], of)
            found[number] = simplest(found[number], *ends)
        before, self.parameters = self.parameters, found
        _, left, most = self.bounds(in_steps)
        if (np.abs(left) > most).any():
            self.parameters = before

    def sweep(self) -> Iterator[Remainder]:
        """Ask every entry, a tensor at a time; what is left of it."""
        for one in self.members:
            theta = self.form.theta(one.tensor, self.parameters)
            slopes = self.form.slopes(one.tensor, self.parameters)
            asked = Asked(theta, slopes, self.form.has_base, bool(self.in_steps))
            rest = one.rest
            if rest is None or not rest.asked.is_as(asked):
                rest = remainder(one.parts(), asked, one.stored)
            self.rests[one.name] = rest
            count = len(theta)
            terms, left = rest.rows[:, :count], rest.rows[:, count]
            self._rows.append((one.tensor, terms, left + terms @ theta, rest.rows[:, count + 1 :]))
            yield rest

    def bounds(self, in_steps: bool) -> tuple[Floats, Floats, Floats]:
        """(slopes, left, most) of every entry that was kept, at the parameters of now."""
        slopes, left, most = [], [], []
        for tensor, terms, target, limits in self._rows:
            slopes.append(terms @ self.form.slopes(tensor, self.parameters))
            left.append(target - terms @ self.form.theta(tensor, self.parameters))
            most.append(limits[:, 1 if in_steps else 0])
        return np.concatenate(slopes), np.concatenate(left), np.concatenate(most)

    def settle(self, in_steps: bool) -> bool:
        """Whether parameters are found that every entry agrees with."""
        if not self.ask_sample(in_steps=in_steps):
            return False
        is_linear = self.form.method != "slerp"
        for _ in range(ROUNDS):
            disagree = 0
            for rest in self.sweep():
                disagree += bool(rest.beyond_steps if in_steps else rest.beyond)
                # the first that disagrees mostly shows that no other parameters agree either
                if disagree == 1 and is_linear and self._none_fits(in_steps):
                    return False
            if not disagree:
                return True
            change, most = within(*self.bounds(in_steps))
            if (most > 1 + 1e-9 and is_linear) or not np.any(change):
                return False
            self.parameters = self.parameters + change
        return False

    def _none_fits(self, in_steps: bool) -> bool:
        """Whether no parameters agree with the entries that were kept so far."""
        _, most = within(*self.bounds(in_steps))
        return most > 1 + 1e-9

    def few(self) -> dict[str, int] | None:
        """By tensor, how many entries disagree with parameters that nearly all agree with."""
        self.in_steps = False
        entries = sum(one.sums.entries for one in self.members)
        for limit in (AGAIN * max(2, FEW * entries), max(2, FEW * entries)):
            slopes, left, most = self.bounds(in_steps=False)
            # a linear program leaves some entries at their bounds, give or take its own rounding
            change, _ = within(slopes, left, most * (1 - 1e-6), by_sum=True)
            self.parameters = self.parameters + change
            disagree = 0
            for rest in self.sweep():
                disagree += rest.beyond
                if disagree > limit:
                    return None
        return {name: rest.beyond for name, rest in self.rests.items() if rest.beyond} or None

    def weights(self) -> list[Floats]:
        """By side: of the group, of SLERP of each of its tensors."""
        names = [one.tensor for one in self.members]
        chosen = names if self.form.method == "slerp" else names[:1]
        return [
            weights_of(self.form.theta(name, self.parameters), self.form.has_base)
            for name in chosen
        ]

    def ends(self, in_steps: bool) -> tuple[Floats, Floats]:
        """How far down and up the weight of each side may go."""
        center = self.weights()[0]
        jacobian = self.form.slopes(self.members[0].tensor, self.parameters)
        slopes, left, most = self.bounds(in_steps)
        first = extremes(slopes.T, left, most, ACTIVE)
        found = [
            interval(slopes[first], left[first], most[first], row @ jacobian)
            for row in self.form.of_theta
        ]
        low, high = np.array(found).T
        return center + low, center + high


def simplest(value: float, down: float, up: float) -> float:
    """The number with the smallest denominator between value + down and value + up; the value where
    that is large, or nothing limits it.
    """
    if math.isfinite(down) and math.isfinite(up):
        for denominator in DENOMINATORS:
            simple: float = round(value * denominator) / denominator
            if value + down <= simple <= value + up:
                return simple
    return value


def _told(form: Form, per: Per, searches: Mapping[object, _Search], in_steps: bool) -> Fit | None:
    """The mixture; None where one group in a few has weights of its own."""
    ends = [search.ends(in_steps) for search in searches.values()]
    if per != "model":
        usual = np.median([search.parameters for search in searches.values()], 0)
        sides = [weights_of(form.theta(one.members[0].tensor, usual), form.has_base)
                 for one in searches.values()]  # fmt: skip
        own = [
            bool(((side < low - 1e-3) | (side > high + 1e-3)).any())
            for side, (low, high) in zip(sides, ends, strict=True)
        ]
        if sum(own) < max(2, ALIKE * len(own)):
            return None
    width = np.array([high - low for low, high in ends])
    best = width.argmin(0)
    every = range(form.sides)
    return Fit(
        method=form.method,
        per=per,
        parameters=[one.parameters for one in searches.values()],
        weights=[one for search in searches.values() for one in search.weights()],
        low=np.array([ends[best[side]][0][side] for side in every]),
        high=np.array([ends[best[side]][1][side] for side in every]),
        in_steps=in_steps,
    )


def _misfit(tensors: Sequence[Mixed], form: Form, few: Mapping[str, int]) -> Misfit:
    """What weights that most tensors agree with leave of each."""
    own = [_start([one], form) for one in tensors]
    size = [one.sums.entries for one in tensors]
    usual = np.array([_weighted_median(column, size) for column in np.array(own).T])
    apart: dict[str, float] = {}
    left = 0.0
    for one in tensors:
        theta = form.theta(one.tensor, usual)
        rest = one.sums.rest(theta)
        left += rest
        if one.name not in few and rest > _most(one, form, theta) and one.sums.whole:
            apart[one.name] = math.sqrt(rest / one.sums.whole)
    change = math.fsum(one.sums.energy for one in tensors)
    return Misfit(
        weights_of(form.theta(tensors[0].tensor, usual), form.has_base), apart, few,
        math.sqrt(left / change) if change else 0.0,
    )  # fmt: skip


def _weighted_median(values: Floats, sizes: Sequence[int]) -> float:
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(np.asarray(sizes, float)[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])
