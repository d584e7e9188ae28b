"""What the format of a quantised copy makes of an original, and what lies beyond it.

A format rounds each entry to the nearest of its levels, so an original lies in the cell of its
copy: q - s/2 to q + s/2 where levels are even, with the step s of the entry's block; codebooks have
cells of several widths. Beyond its cell lies what a block clips (`Scales` has how far, and of how
many entries), what rounding a scale to 16 bits moves, and, of K types, blocks whose scale is 0
beside far larger ones. ggml's quantisers leave no entry elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shadow.dtypes import FLOATS
from shadow.spectra.lazy import Matrix, Quantised, Updated, is_quantised
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
    """How many steps beyond its last level an entry is clipped, and of what share of a block.

    Of K types also: by how many of the largest steps, and of the largest offset, the rounding of
    both moves the last level of a block; and how many times as far a weighed fit leaves entries.
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
SUPER_BLOCK = 256  # columns whose scales are rounded to that of the largest, of K_TYPES
# The step of blocks whose scale is below the smallest of F16: 255 of these, or in a super-block 63
# times 31, reach half of it.
UNDERFLOW, SUPER_UNDERFLOW = 510 * SMALLEST, 3906 * SMALLEST


def format_noise(original: Matrix, copy: Quantised) -> FormatNoise:
    """Compare an original with a quantised copy of the same shape, in one pass by whole rows."""
    cols = original.shape[-1]
    scales, block = K_TYPES.get(copy.format, PLAIN), cols
    order: slice | NDArray[np.intp] = slice(None)  # of columns, block by block
    sums: dict[str, list[float]] = {name: [] for name in ("error", "made", "even")}
    counts = dict.fromkeys(("entries", "outside", "clipped", "unscaled"), 0)
    by_column = np.zeros((3, cols))  # the sums of x², x q and q²
    furthest, finite = 0.0, True
    for index, _ in tiles(original, TILE, cols):
        x, q = _rows(original[index]), _rows(copy[index])
        steps, bounds = copy.steps(index), copy.cells(index)
        s = None if steps is None else _rows(steps)
        if not all(np.isfinite(part).all() for part in (x, q, s) if part is not None):
            finite = False
            continue
        if s is not None:
            if block == cols:  # no blocks yet, as rows of zeros show none
                order = columns_by_block(s)
                block = block_length(s[:, order])
            x, q, s = (part[:, order] for part in (x, q, s))
        counts["entries"] += x.size
        squares = (q - x) ** 2
        sums["error"].append(float(squares.sum()))
        by_column += [np.einsum("ij,ij->j", a, b) for a, b in ((x, x), (x, q), (q, q))]
        if s is not None:
            cell = cells(x, q, s, block, scales)
        elif bounds is not None:
            cell = cells_between(x, q, *map(_rows, bounds))
        else:
            continue
        wide = cell.width**2
        made = np.where(cell.outside, cell.even, np.minimum(squares, PLAIN_CLIP**2 * wide))
        sums["made"].append(float(made.sum()))
        sums["even"].append(float(cell.even.sum()))
        for name in ("outside", "clipped", "unscaled"):
            counts[name] += int(np.count_nonzero(getattr(cell, name)))
        u2 = squares / np.where(wide > 0, wide, 1.0)
        furthest = max(furthest, math.sqrt(u2[cell.outside].max(initial=0.0)))
    x2, inner, q2 = by_column
    known = x2 > 0
    scaled = q2.sum() - float((inner[known] ** 2 / x2[known]).sum())
    scaled += float(x2[q2 == 0].sum())  # no factor
    return FormatNoise(
        **counts, furthest=furthest, finite=finite, original=float(x2.sum()), copy=float(q2.sum()),
        error=math.fsum(sums["error"]), made=math.fsum(sums["made"]) if sums["made"] else None,
        even=math.fsum(sums["even"]), inner=float(inner.sum()), scaled=max(0.0, float(scaled)),
    )  # fmt: skip


def format_values(sides: Sides, formats: tuple[str, str], delta: float) -> Values:
    """The columns of a delta of which a side is quantised; delta: its energy, in weights². Empty
    where none is.
    """
    both = zip((sides.base, sides.tuned), formats, strict=True)
    stepped = [(side, stored) for side, stored in both if is_quantised(side)]
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
    rows, cols = s.shape
    size = SUPER_BLOCK if cols % SUPER_BLOCK == 0 else cols
    coarsest, offset = s.reshape(rows, -1, size).max(-1), -q.reshape(rows, -1, size).min(-1)
    ends = scales.reach * coarsest + scales.offset * np.maximum(0.0, offset)
    return np.repeat(ends, size, axis=1)


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
