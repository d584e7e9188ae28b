"""The error that the format of a quantised copy makes, and differences beyond it.

A format rounds each entry to the nearest of its levels, so an original lies in the cell of its
copy: q - s/2 to q + s/2 where levels are even, with the step s of the entry's block; codebooks have
cells of several widths. Beyond its cell lies what a block clips (`CLIPS`) and what rounding a scale
to 16 bits moves. K types round scales to few codes of a super-block: more beyond the last level, or
in a block without a scale, may be due to that. ggml's quantisers leave no entry elsewhere.
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
from shadow.spectra.measurement import Formats, Values
from shadow.spectra.spectrum import TILE, Floats, Sides, tiles

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
PLAIN_CLIP = 4.0  # steps: a clipped entry further off counts as no more energy of the format
# How many steps beyond its last level an entry is clipped at most, and of what share of a block.
CLIPS = {"Q2_K": (16.0, 0.9)} | dict.fromkeys(("Q3_K", "Q4_K", "Q5_K", "Q6_K"), (32.0, 0.6))
ONE_LEVEL = 1.5  # steps that a block of one level leaves at most
EMPTY = 2.0**-8  # of the largest cell of a row: that of a block of a codebook without a scale
# Steps of blocks whose scale is below F16's smallest: 255, or 63 times 31 of them reach half of it.
UNDERFLOW, SUPER_UNDERFLOW = 510 * SMALLEST, 3906 * SMALLEST


def format_noise(original: Matrix, copy: Quantised) -> FormatNoise:
    """Compare an original with a quantised copy of the same shape, in one pass by whole rows.

    Gives sums over the entries of the parts in which both are finite, squares in weights².
    """
    cols = original.shape[-1]
    block = cols
    known = True  # the cells of all entries
    entries = 0
    outside = 0
    clipped = 0
    energies: list[float] = []  # of errors
    explained: list[float] = []  # `FormatNoise.made`
    even: list[float] = []
    furthest = 0.0
    finite = True
    x2 = np.zeros(cols)  # sums of x², x q and q² by column
    inner = np.zeros(cols)
    q2 = np.zeros(cols)
    for index, _ in tiles(original, TILE, cols):
        x = _rows(original[index])
        q = _rows(copy[index])
        ends = [_rows(end) for end in copy.cells(index)]
        numbers = [x, q]
        if len(ends) == 1:  # a step: the ends of a codebook's cells may be infinite
            numbers += ends
        if not all(np.isfinite(part).all() for part in numbers):
            finite = False
            continue
        entries += x.size
        squares = (q - x) ** 2
        energies.append(float(squares.sum()))
        x2 += np.einsum("ij,ij->j", x, x)
        inner += np.einsum("ij,ij->j", x, q)
        q2 += np.einsum("ij,ij->j", q, q)
        if not ends:
            continue
        if len(ends) == 2:
            cell = cells_between(x, q, *ends)
        else:
            (step,) = ends
            if block == cols:  # no blocks yet, as rows of zeros show none
                block = block_length(step)
            if block == cols and (step != step[:, :1]).any():  # not together, as with `g_idx`
                known = False
                continue
            cell = cells(x, q, step, block, copy.format)
        squared_width = cell.width**2
        of_format = np.minimum(squares, PLAIN_CLIP**2 * squared_width)
        of_format = np.where(cell.outside, cell.even, of_format)
        explained.append(float(of_format.sum()))
        even.append(float(cell.even.sum()))
        outside += int(np.count_nonzero(cell.outside))
        clipped += int(np.count_nonzero(cell.clipped))
        known = known and not cell.unknown.any()
        squared_steps = squares / np.where(squared_width > 0, squared_width, 1.0)
        furthest_squared = squared_steps[cell.outside].max(initial=0.0)
        furthest = max(furthest, math.sqrt(furthest_squared))
    of_formats = None
    if known and explained:
        of_formats = math.fsum(explained)
    # by least squares a column's factor leaves q² - (x q)² / x²
    has_factor = x2 > 0
    of_fits = inner[has_factor] ** 2 / x2[has_factor]
    scaled = q2.sum() - float(of_fits.sum())
    scaled += float(x2[q2 == 0].sum())  # no factor
    return FormatNoise(
        entries=entries,
        outside=outside,
        clipped=clipped,
        furthest=furthest,
        original=float(x2.sum()),
        copy=float(q2.sum()),
        error=math.fsum(energies),
        made=of_formats,
        even=math.fsum(even),
        inner=float(inner.sum()),
        scaled=max(0.0, float(scaled)),
        finite=finite,
    )


def format_values(sides: Sides, formats: Formats, delta: float) -> Values:
    """The columns of a delta of which a side is quantised: empty if none is, null if both are.

    sides: base and tuned. formats: their stored dtypes. delta: the energy of tuned - base, in
    weights².
    """
    copy = sides.tuned
    original = sides.base
    stored = formats[1]
    if is_quantised(sides.base):
        copy = sides.base
        original = sides.tuned
        stored = formats[0]
    if not is_quantised(copy):
        return {}
    nothing: Values = dict.fromkeys(COLUMNS)
    has_original = not is_quantised(original)
    if not has_original or stored not in FLOATS:
        nothing["floor_ratio"] = None  # no ulps
    if not has_original or isinstance(original, Updated):
        return nothing
    noise = format_noise(original, copy)
    if not noise.made or not 0 < delta < math.inf:
        return nothing
    values: Values = nothing | {
        "floor_ratio": math.sqrt(delta / noise.even),
        "format_ratio": math.sqrt(noise.error / noise.made),
        "format_outside": noise.outside / noise.entries,
        "format_copy": int(noise.is_copy(stored) is True),
    }
    if stored.startswith(COMPENSATED):
        return values
    by_chance = 2.0 * math.sqrt(noise.even * delta / noise.entries)  # the error is not along D
    least = (LEAST_EVEN * noise.even - by_chance) / delta
    most = (noise.even + by_chance) / delta
    values["kept_low"] = max(0.0, 1.0 - most)
    values["kept_high"] = max(0.0, 1.0 - max(0.0, least))
    return values


@dataclass(frozen=True)
class Cells:
    """Positions of entries of some rows in their cells, in the rows' shape."""

    width: Floats
    even: Floats
    """The mean of squared errors that are even over the cell."""
    outside: NDArray[np.bool_]
    clipped: NDArray[np.bool_]
    unknown: NDArray[np.bool_]
    """Beyond their cell, where scales of K types may be the cause."""


def cells(x: Floats, q: Floats, s: Floats, block: int, stored: str) -> Cells:
    """Locate entries of an original in cells, for rows whose blocks of columns share a step.

    x, q and s: (rows, cols) of the original, the copy and its steps. block: columns that share a
    step, a divisor of cols. stored: the format of the copy.
    """
    rows, cols = x.shape
    clip, share = CLIPS.get(stored, (PLAIN_CLIP, 0.25))
    is_k_type = stored in CLIPS
    empty = s == 0
    underflow = UNDERFLOW
    if is_k_type:
        underflow = SUPER_UNDERFLOW
    step = np.where(empty, underflow, s)
    blocked = q.reshape(rows, cols // block, block)
    of_blocks = blocked.max(axis=-1)
    largest = np.repeat(of_blocks, block, axis=-1)
    of_blocks = blocked.min(axis=-1)
    smallest = np.repeat(of_blocks, block, axis=-1)
    has_step = s > 0
    levels = q[has_step] / s[has_step]  # whole multiples of the step without an offset
    off_whole = np.abs(levels - np.round(levels))
    moved = np.abs(q)
    if not (off_whole < 1e-3).all():
        moved = np.abs(q - smallest)
        moved += np.abs(smallest)
    error = x - q
    distance = np.abs(error)
    half_step = step / 2
    of_scale = np.maximum(SCALE_ERROR, SMALLEST / step)  # more below the normal numbers of F16
    loose = half_step + of_scale * (moved + half_step)
    loose += ARITHMETIC * step
    loose += SMALLEST
    is_far = distance > loose
    beyond_last = (q == largest) & (error > 0)
    beyond_first = (q == smallest) & (error < 0)
    at_end = is_far & (beyond_last | beyond_first)
    steps_of_clip = np.where(largest > smallest, clip, ONE_LEVEL)
    reach = steps_of_clip * step + SMALLEST
    clipped = at_end & (distance <= reach)
    clipped_share = clipped.reshape(blocked.shape).mean(axis=-1)
    clipped &= np.repeat(clipped_share, block, axis=-1) <= share
    unknown = np.zeros_like(clipped)
    if is_k_type:
        unknown = at_end | (is_far & empty)
        unknown &= ~clipped
    return Cells(
        width=step,
        even=step**2 / 12,
        outside=is_far & ~clipped & ~unknown,
        clipped=clipped,
        unknown=unknown,
    )


def cells_between(x: Floats, q: Floats, low: Floats, high: Floats) -> Cells:
    """Locate entries of an original in a codebook's cells. A cell without an end has the same size
    on both sides of its level, and entries beyond it by at most ONE_LEVEL of it are clipped.

    x and q: (rows, cols) of the original and the copy. low and high: the ends of their cells.
    """
    to_low = q - low
    to_high = high - q
    open_below = ~np.isfinite(low)
    open_above = ~np.isfinite(high)
    below = np.where(open_below, to_high, to_low)
    above = np.where(open_above, to_low, to_high)
    width = below + above
    empty = ~(width > 0)  # a block whose scale was rounded to 0, beside the largest of its rows
    width = np.where(empty, 0.0, width)
    of_empty = EMPTY * width.max(axis=1, keepdims=True)
    width = np.where(empty, of_empty, width)
    below = np.where(empty, of_empty / 2, below)
    above = np.where(empty, of_empty / 2, above)
    largest_scaled = np.abs(q) + np.maximum(below, above)
    loose = CODEBOOK_ERROR * largest_scaled + SMALLEST
    error = x - q
    is_below = error < -below - loose
    is_above = error > above + loose
    is_far = is_below | is_above
    is_open = np.where(error < 0, open_below, open_above)
    reach = ONE_LEVEL * width + SMALLEST
    is_near = np.abs(error) <= reach
    clipped = is_far & is_near & is_open
    # the mean of t² over -below to above
    cubes = below**3 + above**3
    positive_width = np.where(width > 0, width, 1.0)
    return Cells(
        width=width,
        even=cubes / (3 * positive_width),
        outside=is_far & ~clipped,
        clipped=clipped,
        unknown=np.zeros_like(is_far),
    )


def block_length(steps: Floats) -> int:
    """The number of columns that share a step, by where it changes along some rows; all if it never
    does. steps: (rows, cols).
    """
    cols = steps.shape[1]
    changes = np.diff(steps, axis=1) != 0
    starts = np.flatnonzero(changes.any(axis=0)) + 1
    block = int(np.gcd.reduce([cols, *starts.tolist()]))
    if block < SHORTEST:
        block = cols
    return block


def _rows(part: Tensor) -> Floats:
    """A part of a matrix as rows of float64."""
    return part.reshape(-1, part.shape[-1]).double().numpy()
