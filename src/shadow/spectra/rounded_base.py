"""Whether a change holds what rounding took from its base."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from shadow.dtypes import FloatFormat
from shadow.spectra.rounding_counts import Floats, classes
from shadow.spectra.spectrum import SMALL_BLOCK, Sides, blocks

PER_OCTAVE = 4  # bins of |W_base| in a factor of two
OCTAVES = 24  # below the largest entry that are told apart; the last bin has all smaller ones


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
