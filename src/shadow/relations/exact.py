"""Exact relations of two tensors that differ: ways in which one is the other in every entry.

`RELATIONS` has them in the order in which they are tried. A finder begins with a few entries, so
that a pair without a relation costs next to nothing; what it finds holds of all entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.dtypes import FLOATS, FloatFormat
from shadow.relations.signature import row_signatures_of
from shadow.spectra.entries import possible_casts
from shadow.spectra.lazy import Selected, Transposed, half_ulp
from shadow.spectra.spectrum import Sides, tiles
from shadow.spectra.sums import parts
from shadow.templates import Reason, Value

HEAD = 1 << 10  # entries that are tried first
LEAST = 16  # entries that differ from which they prove a number
SLACK = 2.0**-10  # of half a unit in the last place, for a product that F32 rounded before

Figures = Mapping[str, Value]
Operation = Callable[[Tensor, Tensor], Tensor]
Rounding = Callable[[Tensor, FloatFormat], Tensor]
WHICH = {"tuned": "B is A", "base": "A is B"}


@dataclass(frozen=True)
class Differing:
    """Two tensors of one shape that differ, all of whose entries are finite.

    The base is called A, the tuned side B.
    """

    sides: Sides
    formats: tuple[str, str]
    whole: Sides | None
    """Of parts of a tensor that fuses several, the tensors themselves; None if norms show that the
    entries are not the same ones in another order.
    """

    def facing(self, side: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the first entries, then all part by part, in float64: those of the source, and of
        the side that may be made of it.
        """
        step = 1
        if side == "base":
            step = -1
        source, made = self._head[::step]
        yield source, made
        for numbers in self._numbers():
            source, made = numbers[::step]
            yield source.double(), made.double()

    def _numbers(self) -> Iterator[list[Tensor]]:
        sides = self.sides
        tensors = sides.base, sides.tuned
        for part in parts(tensors, sides.dtype, sides.space):
            part.load(0, 1)
            yield part.numbers

    @cached_property
    def _head(self) -> list[Tensor]:
        first = next(self._numbers())
        return [side[:HEAD].to(torch.float64, copy=True) for side in first]

    @property
    def casts(self) -> list[tuple[str, str]]:
        """(side, format) of what may have made that side of the other."""
        base, tuned = self.formats
        casts = [*possible_casts(self.sides, self.formats)]
        casts += [("tuned", tuned), ("base", base)]
        return casts


def relation_of(pair: Differing) -> Reason | None:
    """The first relation that holds; None without any."""
    for code, find in RELATIONS.items():
        figures = find(pair)
        if figures is not None:
            return Reason(code, figures)
    return None


def _number(pair: Differing, operation: Operation, neutral: float) -> Figures | None:
    """Find the roundest number that makes every entry, to within half a unit in the last place:
    each entry leaves an interval of them. None if the neutral one may do.
    """
    for side, name in pair.casts[-2:]:
        low = -math.inf
        high = math.inf
        entries = 0
        for source, made in pair.facing(side):
            half = half_ulp(made, FLOATS[name])
            reach = half * (1 + SLACK)
            first = operation(made - reach, source)
            second = operation(made + reach, source)
            lowest = torch.minimum(first, second).max()
            highest = torch.maximum(first, second).min()
            low = max(low, lowest.item())
            high = min(high, highest.item())
            differing = torch.count_nonzero(made != source)
            entries = max(entries, int(differing))
            if low > high:
                break
        if low > high or low <= neutral <= high:
            continue
        if entries >= LEAST:
            return {"which": WHICH[side], "number": roundest(low, high)}
    return None


def roundest(low: float, high: float) -> float:
    """The number with the fewest digits in an interval; of several, the nearest to its middle."""
    middle = (low + high) / 2
    for digits in range(-12, 17):
        number = round(middle, digits)
        if low <= number <= high:
            return number
    return middle


def _cut(values: Tensor, grid: FloatFormat) -> Tensor:
    unit = 2 * half_ulp(values, grid)
    levels = (values / unit).trunc_()
    return levels.mul_(unit)


def _flushed(values: Tensor, grid: FloatFormat) -> Tensor:
    """Round, and make subnormal numbers 0."""
    unit = 2 * half_ulp(values, grid)
    levels = (values / unit).round_()
    rounded = levels.mul_(unit)
    least = 2.0**grid.min_exponent
    return rounded.masked_fill_(rounded.abs() < least, 0.0)


def _made(pair: Differing, make: Rounding) -> Figures | None:
    for side, name in pair.casts:
        grid = FLOATS[name]
        for source, made in pair.facing(side):
            if not torch.equal(make(source, grid), made):
                break
        else:
            return {"which": WHICH[side], "format": name}
    return None


def _alike(pair: Differing) -> Figures | None:
    """Find that both are the same in the upper 16 bits of F32."""
    grid = FLOATS["BF16"]
    for first, second in pair.facing("tuned"):
        cut = _cut(first, grid)
        other = _cut(second, grid)
        if not torch.equal(cut, other):
            return None
    return {}


def is_transposed(pair: Differing) -> Figures | None:
    sides = pair.whole
    if sides is None:
        return None
    shape = sides.tuned.shape[::-1]
    if sides.base.shape != shape:
        return None
    transposed = Transposed(sides.base)
    turned = replace(sides, base=transposed)
    if _is_equal(turned):
        return {}
    return None


def _reordered(pair: Differing, *, is_of_columns: bool) -> Figures | None:
    sides = pair.whole
    if sides is None:
        return None
    if sides.base.ndim > 2:
        return None
    height, _ = sides.shape
    if is_of_columns:
        base = Transposed(sides.base)
        tuned = Transposed(sides.tuned)
        sides = replace(sides, base=base, tuned=tuned)
    if sides.shape[0] == 1:
        return None
    first_column = slice(None), slice(0, 1)
    column = sides.read(first_column)
    entries = [side.flatten().sort().values for side in column]
    if not torch.equal(*entries):
        return None
    orders = []
    for side in (sides.base, sides.tuned):
        signatures = row_signatures_of(side, sides.space)
        order = np.argsort(signatures.digests, kind="stable")
        orders.append(order)
    base_order, tuned_order = orders
    rows = np.empty_like(base_order)
    rows[tuned_order] = base_order
    selected = Selected(sides.base, rows)
    reordered = replace(sides, base=selected)
    if _is_equal(reordered):
        return {"order": order_of(rows), "rows": height}
    return None


def _is_equal(sides: Sides) -> bool:
    for index, _ in tiles(sides.tuned):
        entries = sides.read(index)
        if not torch.equal(*entries):
            return False
    return True


def order_of(rows: NDArray[np.intp]) -> Reason | None:
    """The name of an order, which has the number in A of each row of B; None without one."""
    count = len(rows)
    numbers = np.arange(count)
    halved = (numbers + count // 2) % count
    if np.array_equal(rows, halved):
        return Reason("halves")
    steps = np.diff(rows, prepend=-2)
    starts = np.flatnonzero(steps != 1)
    bounds = [count, *starts, *rows[starts]]
    block = int(np.gcd.reduce(bounds))
    step = int(rows[1])
    second = np.flatnonzero(rows == 1)
    back = int(second[0])
    named = (
        ("interleaved", "B", 2 * step, (-1, 2, step)),
        ("interleaved", "A", 2 * back, (-1, back, 2)),
        ("grouped", "B", block, (1, 3, -1, block)),
        ("grouped", "A", block, (1, -1, 3, block)),
    )
    for code, where, size, shape in named:
        known = abs(math.prod(shape))
        if known == 0 or count % known:
            continue
        groups = numbers.reshape(shape)
        swapped = groups.swapaxes(1, 2)
        if np.array_equal(swapped.ravel(), rows):
            return Reason(code, size=size, where=where)
    if block > 1:
        return Reason("blocks", size=block)
    return None


RELATIONS: Mapping[str, Callable[[Differing], Figures | None]] = {
    "is_multiple": partial(_number, operation=torch.div, neutral=1.0),
    "is_shifted": partial(_number, operation=torch.sub, neutral=0.0),
    "is_transposed": is_transposed,
    "rows_reordered": partial(_reordered, is_of_columns=False),
    "columns_reordered": partial(_reordered, is_of_columns=True),
    "is_cut": partial(_made, make=_cut),
    "is_flushed": partial(_made, make=_flushed),
    "upper_bits_equal": _alike,
}
