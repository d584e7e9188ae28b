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

from shadow.dtypes import FLOATS, FloatFormat, float_format
from shadow.spectra.costs import BLOCK
from shadow.spectra.lazy import Matrix, Updated, is_quantised, is_stored, torch_dtype
from shadow.spectra.levels import LEVELS_OF, FormatNoise
from shadow.spectra.relations.format_noise import format_noise
from shadow.spectra.spectrum import Sides, shape_of
from shadow.spectra.sums import (
    WORK,
    EntryBlock,
    differing,
    in_float64,
    inner_product,
    is_safe,
    parts,
)


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
            entries=self.entries,
            outside=self.off,
            original=self.full,
            copy=self.copy,
            error=self.error,
            made=0.0,
            inner=self.full + self.along,
            finite=self.finite,
        )


def kept_of_copy(sides: Sides, base: Matrix | None, stored: str) -> Kept | None:
    """Compare a copy in any format: entries of a quantised one are off outside their cells. None if
    it is unknown what the format makes of the matrix, and the copy is not equal to it.

    sides: the matrix, and its copy as the tuned side. base: of both, for energies of updates, or
    None. stored: the copy's format, of floats or a quantised one.
    """
    comparable = "F32"
    if stored in FLOATS:
        comparable = stored
    sums = kept_of(sides, base, comparable)
    if not is_quantised(sides.tuned):
        return sums
    noise = format_noise(sides.base, sides.tuned)
    is_copy = noise.is_copy(stored)
    if is_copy is None and (sums.error or not sums.finite):
        return None
    grid = stored
    if stored in FLOATS:
        grid = f"{stored} with scales"
    off = 0
    if is_copy is False:
        off = max(1, noise.outside)
    return replace(sums, grid=grid, off=off)


# what overflows is summed in float64
@np.errstate(over="ignore", invalid="ignore")
def kept_of(sides: Sides, base: Matrix | None, stored: str) -> Kept:
    """Compare a copy (the tuned side of sides) with its matrix (the base side), and with the base
    of both. stored: its dtype.
    """
    copy = sides.tuned
    grids = [stored]
    if float_format(stored).bits > 16:
        grids += ["BF16", "F16"]
    off = dict.fromkeys(grids, 0)
    finite = True
    sums: list[list[float]] = [[] for _ in range(7)]
    matrices = [sides.base, copy]
    if base is not None:
        matrices.append(base)
    for part in parts(matrices, sides.dtype, sides.space):
        if base is None and len(grids) == 1 and part.is_equal():
            part.load(0)
            products = [part.energy()] * 2
        else:
            part.load(*range(len(matrices)))
            changed, products = part.products(into=WORK)
            is_finite = all(map(math.isfinite, products))
            for name in grids:
                off[name] += _off_grid(part, name, changed, is_finite)
            if base is not None and is_finite:
                products += _updates(part)
        if not all(map(math.isfinite, products)):
            finite = False
            continue
        for each, value in zip(sums, products, strict=False):
            each.append(value)
    grid = min(grids, key=off.__getitem__)
    full, of_copy, error, along, update, of_update, inner = map(math.fsum, sums)
    result = Kept(
        grid=grid,
        entries=copy.numel(),
        off=off[grid],
        full=full,
        copy=of_copy,
        error=error,
        along=along,
        finite=finite,
    )
    if base is None:
        return result
    return replace(result, update=update, stored_update=of_update, inner=inner)


def _off_grid(part: EntryBlock, name: str, changed: int, is_finite: bool) -> int:
    """Count entries of a copy that are not those of the matrix, rounded to a format.

    changed: how many differ from the matrix as it is stored, if the sums are finite.
    """
    form = float_format(name)
    dtype = torch_dtype(form)
    raw = part.raw[0]
    full, copy = part.numbers[:2]
    rounded = full
    if raw.dtype != dtype:
        rounded = raw.to(dtype).to(full.dtype).reshape(-1)
    off = changed
    if rounded is not full or not is_finite:
        off = differing(rounded, copy)
    if not is_finite or form.bits == 8:
        off += _saturated(part, rounded, form)
    return off


def _updates(part: EntryBlock) -> list[float]:
    """The energies of full - base and of copy - base, and their inner product. The latter
    overwrites the row of the copy, the former that of the rounded matrix.
    """
    full, copy, base = part.lines[:3]
    np.subtract(full, base, out=part.lines[WORK])
    np.subtract(copy, base, out=copy)
    energy = part.product(WORK, WORK)
    energy_of_copy = part.product(1, 1)
    is_exact = is_safe(energy) or not part.nonzero(WORK)
    copy_is_exact = is_safe(energy_of_copy) or not part.nonzero(1)
    if is_exact and copy_is_exact:
        inner = part.product(WORK, 1)
        return [energy, energy_of_copy, inner]
    full, copy, base = map(in_float64, part.raw)
    update = full - base
    stored_update = copy - base
    return [
        inner_product(update, update),
        inner_product(stored_update, stored_update),
        inner_product(update, stored_update),
    ]


def _saturated(part: EntryBlock, rounded: Tensor, form: FloatFormat) -> int:
    """Count entries of a copy as a cast leaves numbers that the format cannot hold: those beyond
    its largest by more than half a unit in the last place, or by half if a cast makes infinities of
    them.
    """
    full, copy = part.numbers[:2]
    largest = torch.finfo(torch_dtype(form)).max
    _, exponent = math.frexp(largest)
    half_ulp = 2.0 ** (exponent - 2 - form.mantissa_bits)
    limit = largest + half_ulp
    sizes = full.double().abs()
    beyond = sizes > limit
    beyond |= rounded.isinf()
    beyond &= full.isfinite()
    beyond &= rounded == copy
    return int(beyond.sum())


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
    Zeros do not count as levels: pruning makes them. original, copy: of one shape, from which the
    first 16,384 entries are read, or a row.
    """
    first = _sample(original)
    second = _sample(copy)
    if not first.any():
        return False  # zeros are exact in every format
    form = _narrowest(second)
    seed = torch.Generator().manual_seed(0)
    jitter = torch.rand(first.shape, generator=seed) - 0.5
    moved = (second != first) & (second != 0)
    jittered = first * (1 + JITTER * jitter.double())
    any_values = jittered.to(form).double() * moved
    values = second * moved
    entries = max(1, int((values != 0).sum()))
    for beside in BESIDE:
        usual = _repeats(any_values, beside)
        variance = 2 * max(usual, REPEATS) / entries
        by_chance = ERRORS * math.sqrt(variance)
        systematic = (MORE - 1) * usual + REPEATS
        allowed = max(systematic, by_chance)
        if _repeats(values, beside) > usual + allowed:
            return True
    return False


def _narrowest(values: Tensor) -> torch.dtype:
    """The dtype of the fewest bits that holds float64 values."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if torch.equal(values.to(dtype).double(), values):
            return dtype
    return torch.float64


def _sample(matrix: Matrix) -> Tensor:
    """The first rows of a matrix, in float64."""
    cols = matrix.shape[-1]
    count = max(1, SAMPLED // cols)
    if is_stored(matrix) and matrix.is_flat:  # no more of it is read
        entries = min(count * cols, matrix.numel())
        rows = torch.empty(entries, dtype=matrix.dtype)
        room = rows.view(torch.uint8).numpy()
        matrix.fill(0, room.data)
    else:
        groups = (slice(0, 1),) * (matrix.ndim - 2)
        rows = matrix[(*groups, slice(0, count))]
    return rows.reshape(-1, cols).double()


def _repeats(rows: Tensor, beside: int) -> float:
    """The share of entries that equal another one among that many columns."""
    cols = rows.shape[1]
    width = min(beside, cols)
    whole = cols // width * width
    blocks = rows[:, :whole].reshape(-1, width)
    ordered = blocks.sort().values
    nonzero = ordered != 0
    repeated = ordered.diff() == 0
    repeated &= nonzero[:, 1:]
    count = max(1, int(nonzero.sum()))
    return float(repeated.sum()) / count


LEVELS_ROWS = 64  # rows, evenly spaced
UNPRUNED = 0.7  # share of the entries of a row that are not 0, below which it is pruned


def levels(rows: Tensor) -> float:
    """The median share of distinct values in the first 1,024 entries of rows, those of
    `levels_rows`, in (0, 1].

    Zeros of pruned rows do not count.
    """
    first = rows[:, :LEVELS_OF]
    values = first.float().numpy()
    count, width = values.shape
    ordered = np.sort(values, axis=1)
    steps = ordered[:, 1:] != ordered[:, :-1]
    distinct = 1 + np.count_nonzero(steps, axis=1)
    nonzero = np.count_nonzero(ordered, axis=1)
    pruned = (nonzero > 0) & (nonzero < UNPRUNED * width)
    if 2 * np.count_nonzero(pruned) < count:
        return float(np.median(distinct) / width)
    without_zero = distinct[pruned] - 1
    entries = nonzero[pruned]
    shares = without_zero / entries
    return float(np.median(shares))


def levels_rows(count: int) -> NDArray[np.intp]:
    """Say which rows of a matrix of `count` rows are sampled: up to 64, evenly spaced."""
    taken = min(count, LEVELS_ROWS)
    rows = np.arange(taken) * count // taken
    return rows.astype(np.intp)


def stored_levels(matrix: Matrix, stored: str) -> float | None:
    """`levels` of a stored matrix.

    None for formats of 8 bits, which have few by themselves, and for adapters. F32 and F64 are
    examined in float32. stored: the dtype in the checkpoint.
    """
    if is_quantised(matrix) or isinstance(matrix, Updated):
        return None
    if FLOATS[stored].bits <= 8:
        return None
    count, _ = shape_of(matrix)
    sampled = levels_rows(count)
    if matrix.numel() <= BLOCK:  # a reading for each row takes longer than all of it
        whole = matrix[slice(None),].reshape(count, -1)
        sample = whole[sampled, :LEVELS_OF]
        return levels(sample)
    rows = []
    for number in sampled.tolist():
        group, row = divmod(number, matrix.shape[-2])
        in_row = slice(row, row + 1)
        in_cols = slice(LEVELS_OF)
        index: tuple[slice, ...] = in_row, in_cols
        if matrix.ndim == 3:
            index = slice(group, group + 1), *index
        part = matrix[index].reshape(1, -1)
        rows.append(part.to(torch.float32, copy=True))
    sample = torch.cat(rows)
    return levels(sample)
