"""Copies of a matrix in fewer bits: what they keep of it and of its change from a base, and whether
their values repeat as after a round trip through 8 bits or fewer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.dtypes import FLOATS, float_format
from shadow.spectra.costs import BLOCK
from shadow.spectra.lazy import Matrix, Updated, is_quantised, is_stored, torch_dtype
from shadow.spectra.levels import LEVELS_OF, FormatNoise
from shadow.spectra.relations.format_noise import format_noise
from shadow.spectra.spectrum import Sides, shape_of
from shadow.spectra.sums import WORK, EntryBlock, differing, is_safe, parts


@dataclass(frozen=True)
class Kept:
    """Sums over the entries of a matrix, its copy, and its base, added up in float64."""

    grid: str
    """The format to which the copy's values are rounded: its dtype, or one of fewer bits."""
    entries: int
    off: int
    """Entries of the copy that are not the matrix's rounded to that format."""
    full: float = 0.0
    """Sums of squares, as those below; of bytes there are none."""
    copy: float = 0.0
    error: float = 0.0
    """Of copy - full."""
    along: float = 0.0
    """<full, copy - full>."""
    finite: bool = True
    update: float | None = None
    """Of full - base; None without a base, as those below."""
    stored_update: float | None = None
    """Of copy - base."""
    inner: float | None = None
    """<full - base, copy - base>."""

    @property
    def noise(self) -> FormatNoise:
        """Sums for a quantised copy. A cast makes an exact copy, or none."""
        return FormatNoise(
            entries=self.entries, outside=self.off, original=self.full, copy=self.copy,
            error=self.error, made=0.0, inner=self.full + self.along, finite=self.finite,
        )  # fmt: skip


def kept_of_copy(sides: Sides, base: Matrix | None, stored: str) -> Kept | None:
    """Compare a copy in any format: entries of a quantised one are off outside their cells. None if
    it is unknown what the format makes of the matrix, and the copy is not equal to it.
    """
    sums = kept_of(sides, base, stored if stored in FLOATS else "F32")
    if not is_quantised(sides.tuned):
        return sums
    noise = format_noise(sides.base, sides.tuned)
    is_copy = noise.is_copy(stored)
    if is_copy is None and (sums.error or not sums.finite):
        return None
    grid = f"{stored} with scales" if stored in FLOATS else stored
    off = max(1, noise.outside) if is_copy is False else 0
    return replace(sums, grid=grid, off=off)


# what overflows is summed in float64
@np.errstate(over="ignore", invalid="ignore")
def kept_of(sides: Sides, base: Matrix | None, stored: str) -> Kept:
    """Compare a copy (the tuned side) with its matrix (the base side), and with the base of both.
    stored: its dtype.
    """
    copy = sides.tuned
    grids = [stored]
    if float_format(stored).bits > 16:
        grids += ["BF16", "F16"]
    off = dict.fromkeys(grids, 0)
    finite = True
    sums: list[list[float]] = [[] for _ in range(7)]
    matrices = [sides.base, copy, *([] if base is None else [base])]
    for part in parts(matrices, sides.dtype, sides.space):
        if base is None and len(grids) == 1 and part.is_equal():
            part.load(0)
            products = [part.energy()] * 2
        else:
            part.load(*range(len(matrices)))
            changed, products = part.products(into=WORK)
            is_finite = all(map(math.isfinite, products))
            for name in grids:
                raw = part.raw[0]
                dtype = torch_dtype(float_format(name))
                values = part.numbers[0]
                if raw.dtype != dtype:  # rounded to the format
                    values = raw.to(dtype).to(values.dtype).reshape(-1)
                is_same = values is part.numbers[0] and is_finite
                off[name] += changed if is_same else differing(values, part.numbers[1])
                if not is_finite or float_format(name).bits == 8:
                    off[name] += _saturated(part, values, name)
            if base is not None and is_finite:
                products += _updates(part)
        if all(map(math.isfinite, products)):
            for each, value in zip(sums, products, strict=False):
                each.append(value)
        else:
            finite = False
    grid = min(grids, key=lambda name: off[name])
    full, of_copy, error, along, update, of_update, inner = map(math.fsum, sums)
    result = Kept(grid, copy.numel(), off[grid], full, of_copy, error, along, finite)
    if base is None:
        return result
    return replace(result, update=update, stored_update=of_update, inner=inner)


def _updates(part: EntryBlock) -> list[float]:
    """The energies of full - base and of copy - base, and their inner product. The latter
    overwrites the row of the copy, the former that of the rounded matrix.
    """
    full, copy, base = part.lines[:3]
    np.subtract(full, base, out=part.lines[WORK])
    np.subtract(copy, base, out=copy)
    products = [part.product(*pair) for pair in ((WORK, WORK), (1, 1), (WORK, 1))]
    rows = zip(products[:2], (WORK, 1), strict=True)
    if all(is_safe(energy) or not part.nonzero(row) for energy, row in rows):
        return products
    f, c, b = (raw.double().reshape(-1).numpy() for raw in part.raw)
    u = f - b
    v = c - b
    return [float(np.vecdot(*pair)) for pair in ((u, u), (v, v), (u, v))]


def _saturated(part: EntryBlock, rounded: Tensor, name: str) -> int:
    """Count entries of a copy as a cast leaves numbers that the format cannot hold: those beyond
    its largest by more than half a unit in the last place, or by half if a cast makes infinities of
    them.
    """
    full, copy = part.numbers[:2]
    form = float_format(name)
    largest = torch.finfo(torch_dtype(float_format(name))).max
    limit = largest + 2.0 ** (math.frexp(largest)[1] - 2 - form.mantissa_bits)
    beyond = ((full.double().abs() > limit) | rounded.isinf()) & full.isfinite()
    return int((beyond & (rounded == copy)).sum())


# Of normal values the share that repeats within 32 columns is .015 in BF16, .07 in 8 bits with a
# scale for 32 columns, more with fewer scales, .2 in 8-bit floats and .5 in 4 bits. Where columns
# of a scale do not lie together, it shows within 1,024.
BESIDE = (32, 1024)
SAMPLED = 1 << 14
MORE = 1.05
REPEATS = 0.01
ERRORS = 4  # standard errors by which the shares of two small samples may differ by chance
JITTER = 2.0**-7  # a unit of BF16: the original may be stored in fewer bits than its copy


def has_few_levels(original: Matrix, copy: Matrix) -> bool:
    """True if values of a float copy that differ from the original repeat within rows as
    after a round trip through 8 bits or fewer: more than any values do in the format of the copy.
    Zeros do not count as levels: pruning makes them.
    """
    first = _sample(original)
    second = _sample(copy)
    if not first.any():
        return False  # zeros are exact in every format
    formats = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    form = next(dtype for dtype in formats if torch.equal(second.to(dtype).double(), second))
    jitter = torch.rand(first.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    moved = (second != first) & (second != 0)
    any_values = (first * (1 + JITTER * jitter.double())).to(form).double() * moved
    second = second * moved
    entries = max(1, int((second != 0).sum()))

    def repeat(beside: int) -> bool:
        usual = _repeats(any_values, beside)
        by_chance = ERRORS * math.sqrt(2 * max(usual, REPEATS) / entries)
        return _repeats(second, beside) > usual + max((MORE - 1) * usual + REPEATS, by_chance)

    return any(map(repeat, BESIDE))


def _sample(matrix: Matrix) -> Tensor:
    """The first rows of a matrix, in float64."""
    cols = matrix.shape[-1]
    count = max(1, SAMPLED // cols)
    if is_stored(matrix) and matrix.is_flat:  # no more of it is read
        rows = torch.empty(min(count * cols, matrix.numel()), dtype=matrix.dtype)
        matrix.fill(0, rows.view(torch.uint8).numpy().data)
    else:
        rows = matrix[(slice(0, 1),) * (matrix.ndim - 2) + (slice(0, count),)]
    return rows.reshape(-1, cols).double()


def _repeats(rows: Tensor, beside: int) -> float:
    """The share of entries that equal another one among that many columns."""
    beside = min(beside, rows.shape[1])
    blocks = rows[:, : rows.shape[1] // beside * beside].reshape(-1, beside).sort().values
    others = blocks != 0
    return float(((blocks.diff() == 0) & others[:, 1:]).sum()) / max(1, int(others.sum()))


LEVELS_ROWS = 64  # rows, evenly spaced
UNPRUNED = 0.7  # share of the entries of a row that are not 0, below which it is pruned


def levels(rows: Tensor) -> float:
    """The median share of distinct values in the first 1,024 entries of `levels_rows`, in
    (0, 1].

    Zeros of pruned rows do not count.
    """
    seen = np.sort(rows[:, :LEVELS_OF].float().numpy(), axis=1)
    distinct = 1 + np.count_nonzero(seen[:, 1:] != seen[:, :-1], axis=1)
    others = np.count_nonzero(seen, axis=1)
    pruned = (others > 0) & (others < UNPRUNED * seen.shape[1])
    if 2 * np.count_nonzero(pruned) < len(seen):
        return float(np.median(distinct) / seen.shape[1])
    return float(np.median((distinct[pruned] - 1) / others[pruned]))


def levels_rows(count: int) -> NDArray[np.intp]:
    """Say which rows of a matrix of `count` rows are sampled: up to 64, evenly spaced."""
    taken = min(count, LEVELS_ROWS)
    return (np.arange(taken) * count // taken).astype(np.intp)


def stored_levels(matrix: Matrix, stored: str) -> float | None:
    """`levels` of a stored matrix.

    None for formats of 8 bits, which have few by themselves, and for adapters. F32 and F64 are
    examined in float32.
    """
    if (is_quantised(matrix) or isinstance(matrix, Updated)) or FLOATS[stored].bits <= 8:
        return None
    count = shape_of(matrix)[0]
    if matrix.numel() <= BLOCK:  # a reading for each row takes longer than all of it
        whole = matrix[slice(None),].reshape(count, -1)
        return levels(whole[levels_rows(count), :LEVELS_OF])
    each = matrix.shape[-2]
    rows = []
    for row in levels_rows(count).tolist():
        group, place = divmod(row, each)
        groups = (slice(group, group + 1),) if matrix.ndim == 3 else ()
        part = matrix[(*groups, slice(place, place + 1), slice(LEVELS_OF))]
        rows.append(part.reshape(1, -1).to(torch.float32, copy=True))
    return levels(torch.cat(rows))
