"""Exact relations of two tensors that differ: ways in which one is the other in every entry.

`RELATIONS` has them in the order in which they are tried. A finder begins with a few entries, so
that a pair without a relation costs next to nothing; what it finds holds of all entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.dtypes import FLOATS, FloatFormat
from shadow.relations.signature import Words, hashed, mixed
from shadow.spectra.entries import possible_casts
from shadow.spectra.lazy import Matrix, Selected, Transposed, half_ulp
from shadow.spectra.spectrum import Sides, Workspace, read_block, shape_of, tiles
from shadow.spectra.sums import parts
from shadow.templates import Reason, Value

HEAD = 1 << 10  # entries that are tried first
LEAST = 16  # entries from which they prove a number
SLACK = 2.0**-10  # of half a unit in the last place, for a product that F32 rounded before
SAME_NORM = 1e-5  # how far energies of the same entries in another order may be apart, as summed

Figures = Mapping[str, Value]
Trial = Callable[[Tensor, Tensor], bool]  # of entries of A and of B, float64
Ends = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
WHICH = {"tuned": "B is A", "base": "A is B"}


@dataclass(frozen=True)
class Differing:
    """Two tensors of one shape that differ, all of whose entries are finite.

    The base is called A, the tuned side B.
    """

    sides: Sides
    formats: tuple[str, str]
    whole: Sides
    """Of parts of a tensor that fuses several, the tensors themselves."""
    has_same_norm: bool = True
    rounded: tuple[str, str] | None = None
    """(side, format) where that side is the other rounded to it."""

    @cached_property
    def head(self) -> tuple[Tensor, Tensor]:
        """The first entries of both."""
        base, tuned = next(self.blocks())
        return base[:HEAD].clone(), tuned[:HEAD].clone()

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the entries of both, (n,) of float64, part by part."""
        sides = self.sides
        for part in parts((sides.base, sides.tuned), sides.dtype, sides.space):
            part.load(0, 1)
            base, tuned = part.numbers
            yield base.double(), tuned.double()

    def holds(self, trial: Trial) -> bool:
        """True if all entries pass."""
        return trial(*self.head) and all(trial(*block) for block in self.blocks())

    def first(self, trials: Iterable[tuple[str, str, Trial]]) -> Figures | None:
        """The figures of the first trial that all entries pass: a side, and its format."""
        for side, name, trial in trials:
            if self.holds(_facing(side, trial)):
                return {"which": WHICH[side], "format": name}
        return None

    @property
    def casts(self) -> list[tuple[str, str]]:
        """(side, format) of casts that may have made that side of the other."""
        return possible_casts(self.sides, self.formats)


def relation_of(pair: Differing) -> Reason | None:
    """The first relation that holds; None without any."""
    for relation in RELATIONS:
        figures = relation.find(pair)
        if figures is not None:
            return Reason(relation.code, figures)
    return None


@dataclass(frozen=True)
class Relation:
    """A relation: its code, and what finds its figures."""

    code: str
    find: Callable[[Differing], Figures | None]


def _facing(side: str, trial: Trial) -> Trial:
    """Try entries of the source, and of the side that may be made of it."""
    return trial if side == "tuned" else lambda base, tuned: trial(tuned, base)


# Numbers: each entry leaves an interval, and what lies in all of them makes every entry


class _Number:
    """The numbers that make every entry, to within half a unit in the last place."""

    def __init__(self, grid: FloatFormat, ends: Ends) -> None:
        self._grid, self._ends = grid, ends
        self._low, self._high = -math.inf, math.inf
        self._entries = 0
        self._sources: set[float] = set()
        self._made: set[float] = set()

    def fits(self, source: Tensor, made: Tensor) -> bool:
        """Take more entries; false if no number is left."""
        reach = half_ulp(made, self._grid) * (1 + SLACK)
        first, second = self._ends(source, made, reach)
        self._low = max(self._low, float(torch.minimum(first, second).max()))
        self._high = min(self._high, float(torch.maximum(first, second).min()))
        self._entries += int(torch.count_nonzero(made))
        self._sources |= {float(end) for end in source.aminmax()}
        self._made |= {float(end) for end in made.aminmax()}
        return self._low <= self._high

    def value(self, neutral: float) -> float | None:
        """The middle of what is left; None if that may be the neutral one, or says too little."""
        is_flat = len(self._made) == 1 < len(self._sources)
        if self._low <= neutral <= self._high or self._entries < LEAST or is_flat:
            return None
        return (self._low + self._high) / 2


def _factors(source: Tensor, made: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    return (made - reach) / source, (made + reach) / source


def _differences(source: Tensor, made: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    return made - source - reach, made - source + reach


def _number(pair: Differing, ends: Ends, neutral: float) -> Figures | None:
    for side, name in zip(("tuned", "base"), reversed(pair.formats), strict=True):
        number = _Number(FLOATS[name], ends)
        if pair.holds(_facing(side, number.fits)):
            value = number.value(neutral)
            if value is not None:
                return {"which": WHICH[side], "number": value}
    return None


def _factor(pair: Differing) -> Figures | None:
    return _number(pair, _factors, 1.0)


def _added(pair: Differing) -> Figures | None:
    return _number(pair, _differences, 0.0)


# Bits


def _unit(values: Tensor, name: str) -> Tensor:
    return 2 * half_ulp(values, FLOATS[name])


def _cut_to(values: Tensor, name: str) -> Tensor:
    unit = _unit(values, name)
    return (values / unit).trunc_().mul_(unit)


def _flushed_to(values: Tensor, name: str) -> Tensor:
    """Round to a format, and make its subnormal numbers 0."""
    unit = _unit(values, name)
    rounded = (values / unit).round_().mul_(unit)
    rounded[rounded.abs() < 2.0 ** FLOATS[name].min_exponent] = 0.0
    return rounded


Make = Callable[[Tensor, str], Tensor]


def _is_made(make: Make, name: str) -> Trial:
    return lambda source, made: torch.equal(make(source, name), made)


def _rounded(pair: Differing) -> Figures | None:
    if pair.rounded is None:
        return None
    side, name = pair.rounded
    return {"which": WHICH[side], "format": name}


def _cut(pair: Differing) -> Figures | None:
    return pair.first((side, name, _is_made(_cut_to, name)) for side, name in pair.casts)


def _upper_bits(pair: Differing) -> Figures | None:
    if pair.formats != ("F32", "F32"):
        return None

    def agree(base: Tensor, tuned: Tensor) -> bool:
        return torch.equal(_cut_to(base, "BF16"), _cut_to(tuned, "BF16"))

    return {"format": "BF16"} if pair.holds(agree) else None


def _flushed(pair: Differing) -> Figures | None:
    casts = pair.casts
    if len(set(pair.formats)) == 1:
        casts = [("tuned", pair.formats[0]), ("base", pair.formats[0]), *casts]
    return pair.first((side, name, _is_made(_flushed_to, name)) for side, name in casts)


# Order


def _transposed(pair: Differing) -> Figures | None:
    sides = pair.whole
    rows, cols = sides.shape
    is_square = rows == cols > 1 and sides.base.ndim == 2
    if not (is_square and pair.has_same_norm):
        return None
    turned = replace(sides, base=Transposed(sides.base))
    corner = slice(0, 1)
    lines = (corner, slice(None)), (slice(None), corner)
    is_turned = all(torch.equal(*turned.read(line)) for line in lines) and is_equal(turned)
    return {} if is_turned else None


def _rows(pair: Differing) -> Figures | None:
    sides = pair.whole
    if shape_of(sides.base)[0] == 1:  # a vector
        sides = _turned(sides)
    return _reordered(pair, sides)


def _columns(pair: Differing) -> Figures | None:
    if shape_of(pair.whole.base)[0] == 1:
        return None
    return _reordered(pair, _turned(pair.whole))


def _turned(sides: Sides) -> Sides:
    return replace(sides, base=Transposed(sides.base), tuned=Transposed(sides.tuned))


def _reordered(pair: Differing, sides: Sides) -> Figures | None:
    is_possible = sides.base.ndim == sides.tuned.ndim == 2 and pair.has_same_norm
    if not is_possible:
        return None
    column = sides.read((slice(None), slice(0, 1)))
    first, second = (side.flatten().sort().values for side in column)
    if not torch.equal(first, second):
        return None
    of_base, of_tuned = (_digests(side, sides.space) for side in (sides.base, sides.tuned))
    base_order, tuned_order = (np.argsort(side, kind="stable") for side in (of_base, of_tuned))
    if not np.array_equal(of_base[base_order], of_tuned[tuned_order]):
        return None
    rows = np.empty_like(base_order)
    rows[tuned_order] = base_order
    if not is_equal(replace(sides, base=Selected(sides.base, rows))):
        return None
    return {"order": order_of(rows)}


@np.errstate(over="ignore")  # F64 beyond F32
def _digests(matrix: Matrix, space: Workspace) -> Words:
    """A digest of every row; -0 is 0."""
    rows, cols = shape_of(matrix)
    places = mixed(np.arange(cols, dtype=np.uint64))
    digests = np.zeros(rows, dtype=np.uint64)
    for index, (row, col) in tiles(matrix):
        block = read_block(matrix, index, "tuned", torch.float32, space).numpy() + np.float32(0)
        here = places[col : col + block.shape[1]]
        digests[row : row + len(block)] += hashed(block, here).sum(axis=1)
    return digests


def is_equal(sides: Sides) -> bool:
    """True if all entries are equal."""
    return all(torch.equal(*sides.read(index)) for index, _ in tiles(sides.tuned))


def order_of(rows: NDArray[np.intp]) -> Reason | None:
    """The name of an order, which has the number in A of each row of B; None without one."""
    count = len(rows)
    half, is_odd = divmod(count, 2)
    if not is_odd and np.array_equal(rows, np.roll(np.arange(count), half)):
        return Reason("halves")
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
    size = int(np.gcd.reduce([count, *starts, *rows[starts]]))
    for where, step in (("B", int(rows[1])), ("A", int(np.flatnonzero(rows == 1)[0]))):
        if step and count % (2 * step) == 0:
            if _is_exchange(rows, (-1, 2, step) if where == "B" else (-1, step, 2)):
                return Reason("interleaved", size=2 * step, where=where)
        if count % (3 * size) == 0:
            if _is_exchange(rows, (1, 3, -1, size) if where == "B" else (1, -1, 3, size)):
                return Reason("grouped", size=size, where=where)
    return Reason("blocks", size=size) if size > 1 else None


def _is_exchange(rows: NDArray[np.intp], shape: tuple[int, ...]) -> bool:
    """True if rows are numbered through after two dimensions of them were exchanged."""
    numbers = np.arange(len(rows)).reshape(shape)
    return np.array_equal(numbers.swapaxes(1, 2).ravel(), rows)


RELATIONS = (
    Relation("is_rounded", _rounded),
    Relation("is_multiple", _factor),
    Relation("is_shifted", _added),
    Relation("is_transposed", _transposed),
    Relation("rows_reordered", _rows),
    Relation("columns_reordered", _columns),
    Relation("is_cut", _cut),
    Relation("upper_bits", _upper_bits),
    Relation("is_flushed", _flushed),
)
