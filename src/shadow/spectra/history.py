"""What stored values say of how they came about, entry by entry: a cast, a mean of stored models, a
base that was rounded only to be stored.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from shadow.dtypes import FLOATS, FloatFormat
from shadow.spectra.last_bits import EvenBits
from shadow.spectra.lazy import Updated, is_quantised, torch_dtype
from shadow.spectra.measurement import Cast, Values
from shadow.spectra.parts import PART
from shadow.spectra.rounding_counts import Floats, classes
from shadow.spectra.spectrum import SMALL_BLOCK, Sides, blocks, tiles

AS_ROUNDING = 0.5  # of the energy that rounding leaves on average
LOOKED_AT = 1 << 18  # entries in which last bits are looked at, about
PER_OCTAVE = 4  # bins of |W_base| in a factor of two
OCTAVES = 24  # below the largest entry that are told apart; the last bin has all smaller ones


def cast(sides: Sides, formats: tuple[str, str]) -> Cast | None:
    """Which side is the other, stored in another format, in every entry: `tuned` where the tuned
    side is the base cast, `base` the reverse; None where neither holds.

    formats: stored dtypes. An F32 file may hold the values of a coarser format, so casts to those
    are tried too. The first entry that is another ends a search, so that this costs a part of
    ordinary pairs. A tuned side in more bits that moved less than half an ulp everywhere, as norms
    may, has a base that equals its cast: `base` needs a difference as large as rounding leaves.
    """
    if (is_quantised(sides.tuned) or isinstance(sides.tuned, Updated)) or is_quantised(sides.base):
        return None
    for side, stored in zip(("tuned", "base"), reversed(formats), strict=True):
        for name in dict.fromkeys((stored, "BF16", "F16", "F32")):
            narrower = FLOATS[name].bits < FLOATS[stored].bits
            if not (name == stored or narrower) or not _all_cast(sides, side, FLOATS[name]):
                continue
            if side == "tuned":
                return "tuned"
            return "base" if _is_as_large_as_rounding(sides, FLOATS[name]) else None
    return None


def _all_cast(sides: Sides, side: str, to: FloatFormat) -> bool:
    """Whether one side is the other cast to a format, in every entry."""
    narrow = torch_dtype(to)
    for index, _ in tiles(sides.tuned, PART):
        b, t = sides.read(index)
        source, found = (b, t) if side == "tuned" else (t, b)
        if not torch.equal(source.to(narrow).to(sides.dtype), found):
            return False
    return True


def _is_as_large_as_rounding(sides: Sides, to: FloatFormat) -> bool:
    """Whether D has at least half of the energy that rounding to a format leaves on average,
    ulp² / 12 an entry.
    """
    energy, rounding = 0.0, 0.0
    for b, t in sides.blocks(SMALL_BLOCK):
        exponents = (torch.frexp(b).exponent - 1).clamp_min(to.min_exponent) - to.mantissa_bits
        ulps = torch.ldexp(torch.ones_like(b), exponents)
        rounding += float(ulps.square_().sum(dtype=torch.float64)) / 12
        energy += float(t.sub_(b).square_().sum(dtype=torch.float64))
    return energy >= AS_ROUNDING * rounding


def even_bits(sides: Sides, grid: FloatFormat) -> EvenBits | None:
    """How many of the changed entries of the tuned side have an even last bit on its grid.

    A mean of two models on one grid lies halfway between two numbers of it in half of the entries
    that differ, and is then rounded to the even one. None where nothing changed in the blocks that
    were looked at, or the tuned side lies on no grid of fewer bits than float32.
    """
    if grid.bits != 16 or (is_quantised(sides.tuned) or isinstance(sides.tuned, Updated)):
        return None
    narrow = torch_dtype(grid)
    step = max(1, sides.tuned.numel() // LOOKED_AT)
    even = changed = 0
    for number, (index, _) in enumerate(tiles(sides.tuned)):
        if number % step:
            continue
        b, t = sides.read(index)
        differs = b != t
        bits = t.to(narrow).view(torch.int16)
        changed += int(differs.sum())
        even += int((differs & ((bits & 1) == 0)).sum())
    return EvenBits(even / changed, changed) if changed else None


class Slope(NamedTuple):
    """How much of what rounding took from the base lies in D: 0 nothing, 1 all of it."""

    slope: float
    stderr: float


def base_slope(sides: Sides, grid: FloatFormat, rows: Floats, largest: float) -> Slope | None:
    """The slope of D² over ulp² / 12 of the base, ulps on its grid.

    A tuned side in more bits that was trained from the stored base has a D that knows nothing of
    the base's grid. Where the base was rounded only to be stored, D holds that rounding, whose size
    doubles from each binade of the base to the next. Least squares over classes of rows and
    quarters of a binade, with a level for each class and a term in W_base² for updates that go with
    the weights. rows: (rows,) energies of D; largest: the largest absolute entry of the base. None
    where the bins do not tell the terms apart.
    """
    row_class = classes(rows)
    kinds = int(row_class.max()) + 1
    top = math.frexp(largest)[1]
    width = OCTAVES * PER_OCTAVE
    number, energy, squares = (np.zeros(kinds * width) for _ in range(3))
    for index, (row, _) in blocks(sides.tuned, SMALL_BLOCK):
        b, t = (side.double().numpy() for side in sides.read(index))
        size = np.abs(b)
        with np.errstate(divide="ignore"):
            octave = np.ceil(PER_OCTAVE * (top - np.log2(size))) - 1
        place = np.clip(np.nan_to_num(octave, posinf=width - 1), 0, width - 1).astype(np.intp)
        place += (row_class[row : row + len(b)] * width)[:, None]
        flat = place.ravel()
        number += np.bincount(flat, minlength=len(number))
        energy += np.bincount(flat, weights=np.square(t - b).ravel(), minlength=len(number))
        squares += np.bincount(flat, weights=np.square(size).ravel(), minlength=len(number))
    of_class, bin_of = np.divmod(np.arange(len(number)), width)
    used = (number > 0) & (bin_of < width - 1)
    if not used.any():
        return None
    number, energy, squares = number[used], energy[used], squares[used]
    lowest = np.exp2(top - 1 - bin_of[used] // PER_OCTAVE)
    ulps = np.square(np.maximum(lowest, 2.0**grid.min_exponent) * 2.0**-grid.mantissa_bits) / 12
    levels = np.eye(kinds)[of_class[used]]
    terms = np.column_stack([ulps, squares / number, levels])
    return _slope(terms, energy / number, number)


def _slope(terms: Floats, energy: Floats, number: Floats) -> Slope | None:
    """The first coefficient of weighted least squares, with the standard error that the scatter of
    the bins gives it. The weights are those of squares of normal numbers, from a first fit.
    """
    expected = np.full(len(energy), float(energy @ number / number.sum()))
    for _ in range(2):
        weight = np.sqrt(number) / expected
        scaled = terms * weight[:, None]
        norms = np.linalg.norm(scaled, axis=0)
        if not norms.all():
            return None
        scaled /= norms
        found, _, rank, _ = np.linalg.lstsq(scaled, energy * weight, rcond=1e-9)
        spare = len(energy) - int(rank)
        if rank < scaled.shape[1] or spare < 1:
            return None
        rest = energy * weight - scaled @ found
        expected = np.maximum(terms @ (found / norms), 0.01 * expected)
    covariance = np.linalg.inv(scaled.T @ scaled)
    stderr = math.sqrt(float(rest @ rest) / spare * covariance[0, 0])
    return Slope(float(found[0] / norms[0]), stderr / float(norms[0]))


def even_values(found: EvenBits | None) -> Values:
    """even_share, even_entries."""
    if found is None:
        return {"even_share": None, "even_entries": None}
    return {"even_share": found.share, "even_entries": found.entries}
