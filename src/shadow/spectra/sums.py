"""Sums over the entries of a matrix pair, in one pass: norms, products, ulps, profiles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from shadow.dtypes import FloatFormat
from shadow.spectra.lazy import Matrix
from shadow.spectra.noise import Profile
from shadow.spectra.spectrum import Sides, Workspace, power_of_two_scale, read_block, tiles

# Entries of a tile and its columns at most: two sides, their difference and a product are 1 MB in
# float32, which the caches of a core hold.
SUMMED = 1 << 16
NARROW = 1 << 11
SAFE = 2.0**24  # a largest entry below which nothing needs a smaller scale


@dataclass(frozen=True)
class Extent:
    """The largest absolute entries, in units of the weights: NaN or infinite where any entry is."""

    base: float
    tuned: float
    delta: float  # of tuned - base; 0 where both sides are equal

    @property
    def finite(self) -> bool:
        """Return whether all entries of both sides are finite."""
        return math.isfinite(self.base) and math.isfinite(self.tuned)

    @property
    def scales(self) -> tuple[float, float]:
        """Powers of two: of both sides, and of the delta of both scaled sides."""
        scale = power_of_two_scale(max(self.base, self.tuned))
        return scale, power_of_two_scale(self.delta * scale)


def extent(sides: Sides) -> Extent:
    """The largest absolute entries of both sides and of their difference, in one pass."""
    largest = [0.0, 0.0, 0.0]
    for index, _ in tiles(sides.tuned):
        b, t = (side.numpy() for side in sides.read(index))
        largest[:2] = _larger(largest[0], b), _larger(largest[1], t)
        with np.errstate(invalid="ignore"):  # infinity less infinity
            largest[2] = _larger(largest[2], np.subtract(t, b, out=t))
    return Extent(*largest)


def largest_entry(matrix: Matrix, dtype: torch.dtype, space: Workspace) -> float:
    """The largest absolute entry, NaN or infinite where any entry is."""
    largest = 0.0
    for index, _ in tiles(matrix):
        largest = _larger(largest, read_block(matrix, index, "tuned", dtype, space).numpy())
    return largest


def _larger(largest: float, block: NDArray[np.floating]) -> float:
    # of both together torch takes twice as long; np.maximum hands NaN on, max() does not
    return float(np.maximum(largest, max(-float(block.min()), float(block.max()))))


@dataclass(frozen=True)
class Sums:
    """Sums over all entries of a pair, in units of weights squared times scale²."""

    profile: Profile  # of D, with a scale of its own
    base: float  # of squares
    tuned: float  # of squares
    along: float  # <W_base, D>, times profile.scale / scale; of any sign
    ulps: float  # of squared ulps, as `sums` defines them, > 0
    zeros: int  # entries in which both sides agree
    scale: float  # the power of two that entries were multiplied by
    ulp_rows: NDArray[np.float64]  # (rows,): the same sums of squared ulps, by row
    ulp_cols: NDArray[np.float64]  # (cols,): and by column
    size: Extent
    stored: FloatFormat  # whose ulps they are


def sums(sides: Sides, stored: FloatFormat) -> Sums | Extent:
    """Every sum over entries; the extent alone where an entry is not finite, or both sides agree.

    stored: the coarser format of the two, for ulps. One pass, as a rule: entries whose squares are
    safe need no scale, and two sides that differ do so in the first tile.
    """
    found = _sums(sides, stored, None)
    if found is None:
        size = extent(sides)
        found = _sums(sides, stored, size) if size.finite and size.delta else None
        return size if found is None else found
    return found


def _sums(sides: Sides, stored: FloatFormat, size: Extent | None) -> Sums | None:
    """size: None where it is not known; then None is returned where the scales are not 1, or the
    first tile has no difference.
    """
    rows, cols = sides.shape
    largest = [0.0, 0.0, 0.0]
    scale = delta_scale = 1.0
    if size is not None:
        scale, delta_scale = size.scales
    # without its other bits a number x >= 0 is 2^floor(log2 x), or 0 where it is subnormal
    is_wide = sides.dtype == torch.float64
    integer: type[np.signedinteger] = np.int64 if is_wide else np.int32
    exponent_mask = 0x7FF << 52 if is_wide else 0xFF << 23
    smallest = np.array(math.ldexp(scale, stored.min_exponent), f"f{8 if is_wide else 4}")
    smallest_normal = smallest.view(integer)
    r, c, reached = np.zeros(rows), np.zeros(cols), np.zeros(rows, dtype=bool)
    ulp_rows, ulp_cols = np.zeros(rows), np.zeros(cols)
    totals = dict.fromkeys(("base", "tuned", "along", "ulps", "fourth"), 0.0)
    different = 0
    for index, (row, col) in tiles(sides.tuned, SUMMED, NARROW):
        b, t = (side.numpy() for side in sides.read(index))
        if size is None:
            largest[:2] = _larger(largest[0], b), _larger(largest[1], t)
            if not (largest[0] < SAFE and largest[1] < SAFE):
                return None
        d = sides.space.take("work", b.shape, sides.dtype).numpy()
        product = sides.space.take("product", b.shape, sides.dtype).numpy()
        differs = sides.space.take("differs", b.shape, torch.bool).numpy()
        if scale != 1.0:
            b *= scale
            t *= scale
        totals["base"] += _products(b, b)
        totals["tuned"] += _products(t, t)
        np.subtract(t, b, out=d)
        if size is None:
            largest[2] = _larger(largest[2], d)
            if not largest[2]:
                return None
        np.not_equal(d, 0, out=differs)
        different += int(np.count_nonzero(differs))
        in_rows, in_cols = slice(row, row + len(b)), slice(col, col + b.shape[1])
        reached[in_rows] |= differs.any(axis=1)
        if delta_scale != 1.0:
            d *= delta_scale
        totals["along"] += _products(b, d)
        down = np.ones(len(d), d.dtype)
        # The exponents of numbers >= 0 are in the order of their bits.
        b_bits, t_bits = b.view(integer), t.view(integer)
        b_bits &= exponent_mask
        t_bits &= exponent_mask
        np.maximum(b_bits, t_bits, out=b_bits)
        np.maximum(b_bits, smallest_normal, out=b_bits)
        squares = np.vecdot(b, b)
        totals["ulps"] += float(squares.sum(dtype=np.float64))
        ulp_rows[in_rows] += squares
        ulp_cols[in_cols] += down @ np.square(b, out=product)
        r[in_rows] += np.vecdot(d, d)
        np.square(d, out=d)
        c[in_cols] += down @ d
        totals["fourth"] += _products(d, d)
    found = Extent(*largest) if size is None else size
    if found.scales != (scale, delta_scale):
        return None
    fourth = totals.pop("fourth")
    totals["ulps"] *= math.ldexp(1.0, -2 * stored.mantissa_bits)
    zeros = rows * cols - different
    profile = Profile(r, c, fourth, scale * delta_scale, int(np.count_nonzero(reached)))
    return Sums(
        profile,
        **totals,
        zeros=zeros,
        scale=scale,
        size=found,
        stored=stored,
        ulp_rows=ulp_rows,
        ulp_cols=ulp_cols,
    )


def _products(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Sum of a_ij b_ij: over rows in the precision of both, and in float64 over these sums."""
    return float(np.vecdot(a, b).sum(dtype=np.float64))
