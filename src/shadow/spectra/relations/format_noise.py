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
PLAIN_CLIP = 4.0  # steps: a clipped entry further off counts as no more energy of the format
# How many steps beyond its last level an entry is clipped at most, and of what share of a block.
CLIPS = {"Q2_K": (16.0, 0.9)} | dict.fromkeys(("Q3_K", "Q4_K", "Q5_K", "Q6_K"), (32.0, 0.6))
ONE_LEVEL = 1.5  # steps that a block of one level leaves at most
EMPTY = 2.0**-8  # of the largest cell of a row: that of a block of a codebook without a scale
# Steps of blocks whose scale is below F16's smallest: 255, or 63 times 31 of them reach half of it.
UNDERFLOW, SUPER_UNDERFLOW = 510 * SMALLEST, 3906 * SMALLEST


def format_noise(original: Matrix, copy: Quantised) -> FormatNoise:
    """Compare an original with a quantised copy of the same shape, in one pass by whole rows."""
    cols = original.shape[-1]
    block, known = cols, True  # known: the cells of all entries
    sums: dict[str, list[float]] = {name: [] for name in ("error", "made", "even")}
    counts = dict.fromkeys(("entries", "outside", "clipped"), 0)
    by_column = np.zeros((3, cols))  # the sums of x², x q and q²
    furthest, finite = 0.0, True
    for index, _ in tiles(original, TILE, cols):
        x, q = _rows(original[index]), _rows(copy[index])
        ends = [_rows(end) for end in copy.cells(index)]
        s = ends[0] if len(ends) == 1 else None
        if not all(np.isfinite(part).all() for part in (x, q, s) if part is not None):
            finite = False
            continue
        counts["entries"] += x.size
        squares = (q - x) ** 2
        sums["error"].append(float(squares.sum()))
        by_column += [np.einsum("ij,ij->j", a, b) for a, b in ((x, x), (x, q), (q, q))]
        if s is not None:
            if block == cols:  # no blocks yet, as rows of zeros show none
                block = block_length(s)
            if block == cols and (s != s[:, :1]).any():  # not together, as with `g_idx`
                known = False
                continue
            cell = cells(x, q, s, block, copy.format)
        elif ends:
            cell = cells_between(x, q, *ends)
        else:
            continue
        wide = cell.width**2
        made = np.where(cell.outside, cell.even, np.minimum(squares, PLAIN_CLIP**2 * wide))
        sums["made"].append(float(made.sum()))
        sums["even"].append(float(cell.even.sum()))
        counts["outside"] += int(np.count_nonzero(cell.outside))
        counts["clipped"] += int(np.count_nonzero(cell.clipped))
        known = known and not cell.unknown.any()
        u2 = squares / np.where(wide > 0, wide, 1.0)
        furthest = max(furthest, math.sqrt(u2[cell.outside].max(initial=0.0)))
    known = known and bool(sums["made"])
    x2, inner, q2 = by_column
    some = x2 > 0
    scaled = q2.sum() - float((inner[some] ** 2 / x2[some]).sum())
    scaled += float(x2[q2 == 0].sum())  # no factor
    return FormatNoise(
        **counts, furthest=furthest, finite=finite, original=float(x2.sum()), copy=float(q2.sum()),
        error=math.fsum(sums["error"]), made=math.fsum(sums["made"]) if known else None,
        even=math.fsum(sums["even"]), inner=float(inner.sum()), scaled=max(0.0, float(scaled)),
    )  # fmt: skip


def format_values(sides: Sides, formats: tuple[str, str], delta: float) -> Values:
    """The columns of a delta of which a side is quantised; delta: its energy, in weights².
    Empty if none is, null if both are.
    """
    both = zip((sides.base, sides.tuned), formats, strict=True)
    stepped = [(side, stored) for side, stored in both if is_quantised(side)]
    if not stepped:
        return {}
    nothing: Values = dict.fromkeys(COLUMNS)
    if len(stepped) == 2 or stepped[0][1] not in FLOATS:
        nothing["floor_ratio"] = None  # no ulps
    copy, stored = stepped[0]
    original = sides.base if copy is sides.tuned else sides.tuned
    if len(stepped) == 2 or isinstance(original, Updated):
        return nothing
    found = format_noise(original, copy)
    if not found.made or not 0 < delta < math.inf:
        return nothing
    values: Values = nothing | {
        "floor_ratio": math.sqrt(delta / found.even),
        "format_ratio": math.sqrt(found.error / found.made),
        "format_outside": found.outside / found.entries,
        "format_copy": int(found.is_copy(stored) is True),
    }
    if stored.startswith(COMPENSATED):
        return values
    error = 2.0 * math.sqrt(found.even * delta / found.entries)  # of chance: e is not along D
    least, most = (LEAST_EVEN * found.even - error) / delta, (found.even + error) / delta
    return values | {
        "kept_low": min(1.0, max(0.0, 1.0 - most)),
        "kept_high": min(1.0, max(0.0, 1.0 - max(0.0, least))),
    }


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
    """Locate entries of an original in cells, for rows whose blocks of columns share a step."""
    rows, cols = x.shape
    clip, share = CLIPS.get(stored, (PLAIN_CLIP, 0.25))
    empty = s == 0
    step = np.where(empty, SUPER_UNDERFLOW if stored in CLIPS else UNDERFLOW, s)
    blocked = q.reshape(rows, cols // block, block)
    largest = np.repeat(blocked.max(axis=-1), block, axis=-1)
    smallest = np.repeat(blocked.min(axis=-1), block, axis=-1)
    levels = q[s > 0] / s[s > 0]  # whole multiples of the step without an offset
    is_symmetric = bool((np.abs(levels - np.round(levels)) < 1e-3).all())
    moved = np.abs(q) if is_symmetric else np.abs(q - smallest) + np.abs(smallest)
    error = x - q
    of_scale = np.maximum(SCALE_ERROR, SMALLEST / step)  # more below the normal numbers of F16
    loose = step / 2 + of_scale * (moved + step / 2) + ARITHMETIC * step + SMALLEST
    reach = np.where(largest > smallest, clip, ONE_LEVEL) * step + SMALLEST
    far = np.abs(error) > loose
    at_end = far & (((q == largest) & (error > 0)) | ((q == smallest) & (error < 0)))
    clipped = at_end & (np.abs(error) <= reach)
    of_block = clipped.reshape(blocked.shape).mean(axis=-1)
    clipped &= np.repeat(of_block, block, axis=-1) <= share
    unknown = (at_end | (far & empty)) & ~clipped & (stored in CLIPS)
    return Cells(step, step**2 / 12, far & ~clipped & ~unknown, clipped, unknown)


def cells_between(x: Floats, q: Floats, low: Floats, high: Floats) -> Cells:
    """Locate entries of an original in a codebook's cells. A cell without an end has the same size
    on both sides of its level, and entries beyond it by at most ONE_LEVEL of it are clipped.
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
    return Cells(width, even, far & ~clipped, clipped, np.zeros_like(far))


def block_length(steps: Floats) -> int:
    """The number of columns that share a step, by where it changes along some rows; all if it never
    does.
    """
    cols = steps.shape[1]
    changes = np.flatnonzero((np.diff(steps, axis=1) != 0).any(axis=0)) + 1
    block = int(np.gcd.reduce([cols, *changes.tolist()]))
    return block if block >= SHORTEST else cols


def _rows(part: Tensor) -> Floats:
    """A part of a matrix as rows of float64."""
    return part.reshape(-1, part.shape[-1]).double().numpy()
