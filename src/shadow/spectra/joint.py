"""Two deltas of one base: their inner product, and how their leading directions lie to each other.

Formed block by block in float64: in memory are four blocks and one Gram matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.dtypes import FLOATS, FloatFormat
from shadow.spectra.lazy import Matrix, Updated, is_quantised
from shadow.spectra.rounding_counts import coarser_grid
from shadow.spectra.spectrum import (
    SMALL_BLOCK,
    Sides,
    Spectrum,
    Workspace,
    blocks,
    delta_blocks,
    power_of_two_scale,
    read_block,
    shape_of,
    spectrum,
    working_dtype,
)
from shadow.spectra.subspace import SUBSPACE, resolved

Array = NDArray[np.float64]
Pair = tuple[Matrix, Matrix]  # base, tuned


@dataclass(frozen=True)
class JointValues:
    """Sums over the entries of a matrix, in units of weights² where nothing else is said."""

    inner: float  # <D1, D2>
    first: float  # ||D1||²
    second: float  # ||D2||²
    spread: float  # sum of (D1_ij D2_ij)², weights⁴: the variance of inner if all signs were random
    # sum of ulp²/12 of the base: the most that rounding it adds to inner where both trainings
    # started from a copy of it in more bits; infinite where the base is quantised
    rounding: float
    directions: int = 0  # k = min(16, m), or as many as are resolved in both; 0: nothing is known
    # mean squared cosine of the principal angles of the leading k singular vectors, outputs and
    # inputs alike, 0 to 1
    overlap: float = 0.0
    # its mean if the entries of one side's vectors had random signs: sum_i l_i l'_i / k with l_i
    # the squared norm of row i of the k vectors
    chance_overlap: float = 0.0

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, (self.inner, self.first, self.second, self.spread)))


def sibling_values(
    pairs: tuple[Pair, Pair], formats: tuple[str, str, str], space: Workspace
) -> JointValues:
    """The deltas of two models against their base: (base, first) and (base, second).

    formats: the stored dtypes of base, first and second.
    """
    values, largest = _sums(pairs, _grid(pairs[0][0], formats[0], space), space)
    if not values.finite or values.first == 0 or values.second == 0:
        return values
    energies = values.first, values.second
    leading = [
        _leading(pair, (formats[0], dtype), most, energy, space)
        for pair, dtype, most, energy in zip(pairs, formats[1:], largest, energies, strict=True)
    ]
    k = min(vectors[0].shape[1] for vectors in leading)
    if k == 0:
        return values
    sides = [_between(one[:, :k], two[:, :k]) for one, two in zip(*leading, strict=True)]
    overlap, chance = np.mean(sides, axis=0)
    return replace(values, directions=k, overlap=float(overlap), chance_overlap=float(chance))


def _sums(
    pairs: tuple[Pair, Pair], grid: FloatFormat | None, space: Workspace
) -> tuple[JointValues, list[float]]:
    """The sums of one pass, and the largest absolute entries of both deltas."""
    inner = first = second = spread = rounding = 0.0
    largest = [0.0, 0.0]
    (base, one), (again, two) = pairs
    for index, _ in blocks(base, SMALL_BLOCK):
        b = read_block(base, index, "base", torch.float64, space)
        d1 = read_block(one, index, "tuned", torch.float64, space).sub_(b)
        d2 = read_block(two, index, "last", torch.float64, space)
        d2.sub_(read_block(again, index, "work", torch.float64, space))
        rounding += math.inf if grid is None else _rounding(b, grid)
        largest = [
            max(most, float(d.abs().max())) for most, d in zip(largest, (d1, d2), strict=True)
        ]
        first += float(torch.vdot(d1.reshape(-1), d1.reshape(-1)))
        second += float(torch.vdot(d2.reshape(-1), d2.reshape(-1)))
        product = d1.mul_(d2)
        inner += float(product.sum())
        spread += float(torch.vdot(product.reshape(-1), product.reshape(-1)))
    return JointValues(inner, first, second, spread, rounding), largest


def _grid(base: Matrix, dtype: str, space: Workspace) -> FloatFormat | None:
    """The format that the base was rounded to; None where it is quantised or made of factors."""
    if is_quantised(base) or isinstance(base, Updated):
        return None
    return FLOATS[coarser_grid(base, dtype, working_dtype(dtype), space)]


def _rounding(base: Tensor, grid: FloatFormat) -> float:
    """sum of ulp²/12. 0 has the smallest ulp there is."""
    exponents = torch.frexp(base).exponent.double().sub_(1)
    exponents[base == 0] = grid.min_exponent
    ulps = torch.exp2(exponents.clamp_(min=grid.min_exponent).sub_(grid.mantissa_bits))
    return float(ulps.square_().sum()) / 12


def _leading(
    pair: Pair, formats: tuple[str, str], largest: float, energy: float, space: Workspace
) -> tuple[Array, Array]:
    """The leading left and right singular vectors of a delta, as columns; as many as are resolved.

    The long side's are D's images of the short side's, made orthonormal.
    """
    scale = power_of_two_scale(largest)
    wide = working_dtype(*formats) == torch.float64 or any(
        isinstance(matrix, Updated) for matrix in pair
    )
    read: Callable[[torch.dtype], Iterator[Tensor]]
    read = partial(delta_blocks, Sides(*pair, torch.float64, space), scale)
    shape = shape_of(pair[1])
    vectors = min(SUBSPACE, *shape)
    found: Spectrum = spectrum(read, shape, math.sqrt(energy), scale, "default", wide, vectors)
    short, is_wide = resolved(found), found.rows <= found.cols
    images = [(part if is_wide else part.T).numpy().T @ short for part in read(torch.float64)]
    long = np.linalg.qr(np.concatenate(images))[0]
    return (short, long) if is_wide else (long, short)


def _between(first: Array, second: Array) -> tuple[float, float]:
    """The mean squared cosine of two bases of k columns, and its mean over random signs."""
    k = first.shape[1]
    leverages = (first**2).sum(axis=1) @ (second**2).sum(axis=1)
    return float(((first.T @ second) ** 2).sum() / k), float(leverages / k)
