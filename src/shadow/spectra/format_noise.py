"""What the format of a quantised copy makes of an original, and what lies beyond it.

A format rounds each entry to the nearest of its levels. The cell of a level is what is rounded to
it: from half the way to the level below to half the way to the one above. Where levels are even it
is q - s/2 to q + s/2, with the step s of the entry's block; codebooks (NF4, FP4, MXFP4, NVFP4, and
8-bit floats with scales) have cells of several widths. So each entry of an original lies in the
cell of its copy, with two exceptions that formats make themselves:

- An entry beyond the last level of its block is clipped: its copy is the smallest or the largest
  value of the block, and the entry lies beyond that, by no more steps and in no more entries of the
  block than `Scales` has.
- A scale that is rounded after the levels were chosen moves them, by SCALE_ERROR of their size in
  16 bits.
- Scales of K types are whole multiples of one for 256 columns. A block far smaller than the largest
  of these has the scale 0: all its entries get one value, and lie no further from it than scales
  below half a multiple reach.

Measured with ggml's quantisers on normal, Student-t and column-scaled matrices: no entry is
elsewhere, of Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, TQ1_0 and TQ2_0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.dtypes import FLOATS
from shadow.spectra.lazy import Matrix, Quantised, Updated, is_quantised, is_stored
from shadow.spectra.levels import FormatNoise
from shadow.spectra.measurement import Values
from shadow.spectra.spectrum import TILE, Sides, tiles

Floats = NDArray[np.float64]

SCALE_ERROR = 2.0**-11  # the relative error of a number rounded to F16
# of codebooks: an original or its quotient by the scale, and the scale, are each rounded to BF16
CODEBOOK_ERROR = 2.0**-8
ARITHMETIC = 1e-5  # of a step: what quantisers lose that compute in float32
SMALLEST = 2.0**-25  # half the distance of the smallest numbers of F16
SHORTEST = 8  # columns of a block; formats have at least 16
COLUMNS = ("format_ratio", "format_outside", "format_copy", "kept_low", "kept_high")
# The energy of errors over s²/12, at least: entries that fix a scale have none. .76 to 1.0 measured
# of eleven types of ggml on normal weights, .58 of Q3_K with columns that differ by a factor e.
LEAST_EVEN = 0.55
# Formats whose quantisers may make up for errors in other columns, as GPTQ does: their error is no
# measure of the update. Of levels.CALIBRATED, floats are rounded entry by entry as a rule.
COMPENSATED = ("GPTQ", "AWQ", "INT", "MLX")
ALIKE = 0.125  # of a step: steps that are further apart put most levels at other places
# mean d² over the squared mean |d| of an update, at most; it is 1.6 if normal, and 8 if a fifth of
# the entries have a normal one and the others none, as trainings in BF16 leave
PEAKED = 8.0
PLAIN_CLIP = 4.0  # steps: a clipped entry further off counts as no more energy of the format


@dataclass(frozen=True)
class Scales:
    """What quantisers leave of a format: `clip` and `share`, how many steps beyond its last level
    an entry is left, and of what share of a block. Of ggml's types on normal, Student-t,
    column-scaled and real matrices at most 2.0 and .13; where the scales of blocks are rounded too,
    23 and .41, and of Q2_K, with its four levels, 5.5 and .81.

    Of K types also: by how many of the largest steps, and of the largest offset, the rounding of
    both moves the last level of a block; and how many times as far a fit leaves entries, which
    weighs others more. At most 1.1 was measured of 15 levels and more, 1.6 of fewer, and with an
    importance matrix 1.1 and 3.1.
    """

    clip: float = PLAIN_CLIP
    share: float = 0.25
    reach: float = 0.0
    offset: float = 0.0
    fitted: float = 1.0


PLAIN = Scales()
# levels on one side of 0, or above the offset, times half of one over the last code of scales
K_TYPES = {
    "Q2_K": Scales(16.0, 0.9, 3 / 30, 1 / 30, 2.0),
    "Q3_K": Scales(32.0, 0.6, 4 / 64, 0.0, 2.0),
    "Q4_K": Scales(32.0, 0.6, 15 / 126, 1 / 126, 1.25),
    "Q5_K": Scales(32.0, 0.6, 31 / 126, 1 / 126, 1.25),
    "Q6_K": Scales(32.0, 0.6, 32 / 256, 0.0, 1.25),
}
FEW = 1 / 8  # of the entries of a block without scale lie up to twice as far
ONE_LEVEL = 1.5  # steps that a block of one level leaves at most
EMPTY = 2.0**-8  # of the largest cell of a row: that of a block of a codebook without a scale
# Of normal values the share that repeats within 32 columns is .015 in BF16, .07 in 8 bits with a
# scale for 32 columns, more with fewer scales, .2 in 8-bit floats and .5 in 4 bits. Where columns
# of a scale do not lie together, it shows within 1,024.
BESIDE, SAMPLED, MORE, REPEATS = (32, 1024), 1 << 14, 1.05, 0.01
JITTER = 2.0**-7  # a unit of BF16: the original may be stored in fewer bits than its copy
SUPER_BLOCK = 256  # columns whose scales are rounded to that of the largest, of K_TYPES
# The step of blocks whose scale is below the smallest of F16: 255 of these, or in a super-block 63
# times 31, reach half of it.
UNDERFLOW, SUPER_UNDERFLOW = 510 * SMALLEST, 3906 * SMALLEST


def format_noise(original: Matrix, copy: Quantised) -> FormatNoise:
    """Compare an original with a quantised copy of the same shape, in one pass by whole rows."""
    sums = _Sums(original.shape[-1], K_TYPES.get(copy.format, PLAIN))
    for index, _ in tiles(original, TILE, original.shape[-1]):
        x, q = (_rows(part) for part in (original[index], copy[index]))
        steps, bounds = copy.steps(index), copy.cells(index)
        sums.add(
            x,
            q,
            None if steps is None else _rows(steps),
            None if bounds is None else (_rows(bounds[0]), _rows(bounds[1])),
        )
    return sums.found()


def format_values(sides: Sides, formats: tuple[str, str], delta: float) -> Values:
    """The columns of a delta of which a side is quantised; delta: its energy, in weights². Empty
    where none is.
    """
    stepped = [
        (side, stored)
        for side, stored in zip((sides.base, sides.tuned), formats, strict=True)
        if is_quantised(side)
    ]
    if not stepped:
        return {}
    nothing: Values = dict.fromkeys(COLUMNS)
    if any(stored not in FLOATS for _, stored in stepped):
        nothing["floor_ratio"] = None  # no ulps
    compensated = any(stored.startswith(COMPENSATED) for _, stored in stepped)
    unknown: Values = dict.fromkeys(("kept_low", "kept_high")) if compensated else {}
    if len(stepped) == 2:
        return nothing | _of_two_grids(sides, delta) | unknown
    copy, stored = stepped[0]
    original = sides.base if copy is sides.tuned else sides.tuned
    if isinstance(original, Updated):
        return nothing
    found = format_noise(original, copy)
    if not found.made or not 0 < delta < math.inf:
        return nothing
    error = 2.0 * math.sqrt(found.even * delta / found.entries)  # of chance: e is not along D
    return {
        "floor_ratio": math.sqrt(delta / found.even),
        "format_ratio": math.sqrt(found.error / found.made),
        "format_outside": found.outside / found.entries,
        "format_copy": int(found.is_copy(stored) is True),
        **_kept((LEAST_EVEN * found.even - error) / delta, (found.even + error) / delta),
        **unknown,
    }


def _of_two_grids(sides: Sides, delta: float) -> Values:
    """Of two quantised sides. Where steps are nearly the same, or codebooks the same, their errors
    go together: those of a difference f of a step have s² f (1 - f), s²/6 on average and s²/4 at
    most. Of a difference far below a step that is nearly all there is; then |D| has the mean of the
    update's |d|, of a codebook too, whose thresholds lie in the middle of its levels.
    """
    base, tuned = sides.base, sides.tuned
    if not (is_quantised(base) and is_quantised(tuned)):
        return {}
    apart, together, spread, sizes = [], [], [], []
    for index, _ in tiles(tuned, TILE, tuned.shape[-1]):
        first, second = _evens(base, index), _evens(tuned, index)
        if first is None or second is None:
            return {}
        (b, b_even), (t, t_even) = first, second
        even = b_even + t_even
        alike = np.full(even.shape, base.format == tuned.format)
        if b is not None and t is not None:
            alike = np.abs(b - t) <= ALIKE * np.maximum(b, t)
        apart.append(float(even[~alike].sum()))
        together.append(float(even[alike].sum()))
        spread.append(float((even * even).sum()))
        sizes.append(float(np.abs(_rows(tuned[index]) - _rows(base[index])).sum()))
    different, equal = math.fsum(apart), math.fsum(together)
    if not delta or not different + equal:
        return {}
    # of sums of squares of errors, and of their products with the update
    error = 2.0 * math.sqrt(1.4 * math.fsum(spread) + 4 * delta * math.sqrt(math.fsum(spread)))
    # few entries may have moved, so that the sum of |D| is one of chance
    size = math.fsum(sizes) + 2.0 * math.sqrt(delta)
    most = PEAKED * size**2 / tuned.numel() / delta
    least = max(0.0, LEAST_EVEN * different - error) / delta
    return {
        "floor_ratio": math.sqrt(delta / (different + equal)),
        **_kept(max(least, 1.0 - most), (different + 1.5 * equal + error) / delta),
    }


def _evens(side: Quantised, index: tuple[slice, ...]) -> tuple[Floats | None, Floats] | None:
    """The steps of a part, None of a codebook, and the squares of errors that are even over cells.
    None where the format has no known cells.
    """
    if (steps := side.steps(index)) is not None:
        s = _rows(steps)
        return s, s * s / 12
    if (bounds := side.cells(index)) is None:
        return None
    q = _rows(side[index])
    return None, cells_between(q, q, *map(_rows, bounds)).even


def _kept(least: float, most: float) -> Values:
    """The range of kept where rounding has at least and at most these shares of the energy."""
    return {
        "kept_low": min(1.0, max(0.0, 1.0 - most)),
        "kept_high": min(1.0, max(0.0, 1.0 - max(0.0, least))),
    }


class _Sums:
    """Sums in the making."""

    def __init__(self, cols: int, scales: Scales) -> None:
        self.counts = dict.fromkeys(("entries", "outside", "clipped", "unscaled"), 0)
        self.made: list[float] = []
        self.even: list[float] = []
        self.in_steps: list[float] = []
        self.error: list[float] = []
        self.furthest = 0.0
        self.by_column = np.zeros((3, cols))  # the sums of x², x q and q²
        self.block = cols
        self.order: slice | NDArray[np.intp] = slice(None)  # of columns, block by block
        self.scales = scales
        self.finite = True

    def add(
        self, x: Floats, q: Floats, s: Floats | None, bounds: tuple[Floats, Floats] | None
    ) -> None:
        """Some rows: original, copy, and steps or the bounds of cells."""
        if not all(np.isfinite(part).all() for part in (x, q, s) if part is not None):
            self.finite = False
            return
        if s is not None:
            if self.block == x.shape[1]:  # no blocks yet, as rows of zeros show none
                self.order = columns_by_block(s)
                self.block = block_length(s[:, self.order])
            x, q, s = (part[:, self.order] for part in (x, q, s))
        self.counts["entries"] += x.size
        error = q - x
        squares = error * error
        self.error.append(float(squares.sum()))
        self.by_column += [np.einsum("ij,ij->j", a, b) for a, b in ((x, x), (x, q), (q, q))]
        if s is not None:
            self._add_cells(cells(x, q, s, self.block, self.scales), squares)
        elif bounds is not None:
            self._add_cells(cells_between(x, q, *bounds), squares)

    def _add_cells(self, cell: Cells, squares: Floats) -> None:
        wide = cell.width**2
        made = np.where(cell.outside, cell.even, np.minimum(squares, PLAIN_CLIP**2 * wide))
        u2 = squares / np.where(wide > 0, wide, 1.0)
        self.made.append(float(made.sum()))
        self.even.append(float(cell.even.sum()))
        self.in_steps.append(float(u2.sum()))
        self.counts["outside"] += int(np.count_nonzero(cell.outside))
        self.counts["clipped"] += int(np.count_nonzero(cell.clipped))
        self.counts["unscaled"] += int(np.count_nonzero(cell.unscaled))
        self.furthest = max(self.furthest, math.sqrt(u2[cell.outside].max(initial=0.0)))

    def found(self) -> FormatNoise:
        x, inner, q = self.by_column
        known = x > 0
        scaled = q.sum() - float((inner[known] ** 2 / x[known]).sum())
        scaled += float(x[q == 0].sum())  # no factor
        return FormatNoise(
            **self.counts,
            furthest=self.furthest,
            original=float(x.sum()),
            copy=float(q.sum()),
            error=math.fsum(self.error),
            made=math.fsum(self.made) if self.made else None,
            even=math.fsum(self.even),
            in_steps=math.fsum(self.in_steps),
            inner=float(inner.sum()),
            scaled=max(0.0, float(scaled)),
            finite=self.finite,
        )


@dataclass(frozen=True)
class Cells:
    """Which entries of some rows lie where, of the rows' shape."""

    width: Floats
    even: Floats
    """The mean of squared errors that are even over the cell."""
    outside: NDArray[np.bool_]
    clipped: NDArray[np.bool_]
    unscaled: NDArray[np.bool_]


def cells(x: Floats, q: Floats, s: Floats, block: int, scales: Scales) -> Cells:
    """Where entries of an original lie, of rows whose blocks of columns share a step."""
    rows, cols = x.shape
    empty, step, ends = s == 0, s, None
    if scales.reach:
        ends = _rounded_ends(s, q, scales)
        step = np.where(empty, np.maximum(2 * ends, SUPER_UNDERFLOW), s)
    elif empty.any():
        step = np.where(empty, UNDERFLOW, s)
    blocked = q.reshape(rows, cols // block, block)
    largest = np.repeat(blocked.max(axis=-1), block, axis=-1)
    smallest = np.repeat(blocked.min(axis=-1), block, axis=-1)
    moved = np.abs(q) if _is_symmetric(q, s) else np.abs(q - smallest) + np.abs(smallest)
    error = x - q
    loose = step / 2 + SCALE_ERROR * (moved + step / 2) + ARITHMETIC * step + SMALLEST
    reach = np.where(largest > smallest, scales.clip, ONE_LEVEL) * step + SMALLEST
    share: float | Floats = scales.share
    if ends is not None:
        loose = np.where(empty, scales.fitted * loose, loose)
        reach = np.where(empty, 2 * loose, reach)
        share = np.where(empty, FEW, share)
    far = np.abs(error) > loose
    at_end = far & (((q == largest) & (error > 0)) | ((q == smallest) & (error < 0)))
    clipped = at_end & (np.abs(error) <= reach)
    of_block = clipped.reshape(blocked.shape).mean(axis=-1)
    clipped &= np.repeat(of_block, block, axis=-1) <= share
    if ends is not None:
        clipped |= at_end & ~empty & (np.abs(error) <= loose + scales.fitted * ends)
    return Cells(step, step**2 / 12, far & ~clipped, clipped, empty)


def _rounded_ends(s: Floats, q: Floats, scales: Scales) -> Floats:
    """How far the last levels of blocks move as scales and offsets of a super-block are rounded to
    codes of the largest.
    """
    coarsest, offset = _by_super_block(s).max(axis=-1), -_by_super_block(q).min(axis=-1)
    ends = scales.reach * coarsest + scales.offset * np.maximum(0.0, offset)
    return np.repeat(ends, s.shape[1] // ends.shape[1], axis=1)


def _by_super_block(values: Floats) -> Floats:
    rows, cols = values.shape
    return values.reshape(rows, -1, SUPER_BLOCK if cols % SUPER_BLOCK == 0 else cols)


def cells_between(x: Floats, q: Floats, low: Floats, high: Floats) -> Cells:
    """Where entries of an original lie, of a codebook's cells. A cell without an end has the same
    size on both sides of its level, and what is beyond by no more than ONE_LEVEL of it is clipped.
    """
    below, above = q - low, high - q
    open_below, open_above = ~np.isfinite(low), ~np.isfinite(high)
    below, above = np.where(open_below, above, below), np.where(open_above, below, above)
    width = below + above
    empty = ~(width > 0)  # a block whose scale was rounded to 0, beside the largest of its rows
    width = np.where(empty, 0.0, width)
    widest = EMPTY * width.max(axis=1, keepdims=True)
    width = np.where(empty, widest, width)
    below, above = (np.where(empty, widest / 2, side) for side in (below, above))
    loose = CODEBOOK_ERROR * (np.abs(q) + np.maximum(below, above)) + SMALLEST
    error = x - q
    far = (error < -below - loose) | (error > above + loose)
    near = far & (np.abs(error) <= ONE_LEVEL * width + SMALLEST)
    clipped = near & np.where(error < 0, open_below, open_above)
    even = (below**3 + above**3) / (3 * np.where(width > 0, width, 1.0))
    return Cells(width, even, far & ~clipped, clipped, empty)


def _is_symmetric(q: Floats, s: Floats) -> bool:
    """Whether levels are whole multiples of the step, as they are without an offset."""
    known = s > 0
    levels = q[known] / s[known]
    return bool((np.abs(levels - np.round(levels)) < 1e-3).all())


def columns_by_block(steps: Floats) -> slice | NDArray[np.intp]:
    """Where columns of a block do not lie together, as with `g_idx`: an order in which they do."""
    if block_length(steps) < steps.shape[1] or (steps == steps[:, :1]).all():
        return slice(None)
    _, blocks = np.unique(steps, axis=1, return_inverse=True)
    return np.argsort(blocks.reshape(-1), kind="stable")


def block_length(steps: Floats) -> int:
    """How many columns share a step, from where it changes along some rows; all of them where it
    never does.
    """
    cols = steps.shape[1]
    changes = np.flatnonzero((np.diff(steps, axis=1) != 0).any(axis=0)) + 1
    block = int(np.gcd.reduce([cols, *changes.tolist()]))
    return block if block >= SHORTEST else cols


def _rows(part: Tensor) -> Floats:
    """A part of a matrix as rows of float64."""
    return part.reshape(-1, part.shape[-1]).double().numpy()


def has_few_levels(original: Matrix, copy: Matrix) -> bool:
    """Whether values of a copy in floats that are not the original's repeat within rows as after a
    round trip through 8 bits or fewer: more than any values do in the format of the copy. Zeros are
    no levels: pruning makes them.
    """
    first, second = _sample(original), _sample(copy)
    formats = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    form = next(one for one in formats if torch.equal(second.to(one).double(), second))
    jitter = torch.rand(first.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    moved = (second != first) & (second != 0)
    any_values = (first * (1 + JITTER * jitter.double())).to(form).double() * moved
    second = second * moved
    return any(
        _repeats(second, beside) > MORE * _repeats(any_values, beside) + REPEATS
        for beside in BESIDE
    )


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
    """The share of entries that have the value of another one of so many columns."""
    beside = min(beside, rows.shape[1])
    blocks = rows[:, : rows.shape[1] // beside * beside].reshape(-1, beside).sort().values
    others = blocks != 0
    return float(((blocks.diff() == 0) & others[:, 1:]).sum()) / max(1, int(others.sum()))
