"""Two deltas of three matrices: those that follow one another, and those of one base.

D1 = middle - first, D2 = last - middle. One pass sums their inner product, and a second holds D2
against the leading singular directions of D1. Formed block by block in float64: in memory are four
blocks and one Gram matrix. Two models tuned from one base are the same three matrices, with the
base in the middle and the sign of D1 turned.

What a cosine of two updates that have nothing to do with one another is, depends on the rounding of
the middle matrix, which both deltas share with opposite signs. Where the second training began from
the stored matrix, the cosine is 0 on average. Where a master copy in more bits went on, it is below
0: see `shared_rounding`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.dtypes import FLOATS, FloatFormat
from shadow.spectra.delta import delta_blocks, working_dtype
from shadow.spectra.lazy import Matrix, Updated, is_quantised
from shadow.spectra.rounding_counts import coarser_grid
from shadow.spectra.spectrum import (
    SMALL_BLOCK,
    Corner,
    Sides,
    Spectrum,
    Workspace,
    blocks,
    power_of_two_scale,
    read_block,
    shape_of,
    spectrum,
)
from shadow.spectra.subspace import SUBSPACE, resolved, whitened

SAMPLE = 1 << 18  # entries of a matrix that the share of rounding is counted from
FEWEST = 64  # entries of a binade of these, below which it says nothing

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Shared:
    """What rounding alone does where a master copy went on, in units of weights²."""

    inner: float = 0.0  # added to <D1, D2>; of any sign
    first: float = 0.0  # added to ||D1||², 0 or more
    second: float = 0.0  # added to ||D2||², 0 or more


@dataclass(frozen=True)
class Inside:
    """How D2 lies in the leading singular directions of D1."""

    directions: int = 0  # k = min(16, m), or as many as are resolved
    energy: float = 0.0  # ||D2||², in weights²; 0 where there are no directions
    # energy of D2 in the leading k left singular directions (outputs) of D1, 0 to energy
    left: float = 0.0
    right: float = 0.0  # the same for the right ones (inputs)
    chance_left: float = 0.0  # what the rows of D2 give on the left with random signs
    chance_right: float = 0.0  # what its columns give on the right with random signs


@dataclass(frozen=True)
class Overlap:
    """How the leading singular subspaces of two deltas lie to each other."""

    directions: int = 0  # k = min(16, m), or as many as are resolved in both; 0: nothing is known
    # mean squared cosine of the principal angles of the leading k left (outputs) and right (inputs)
    # singular vectors, 0 to 1
    left: float = 0.0
    right: float = 0.0
    # its mean if the entries of one side's vectors had random signs: sum_i l_i l'_i / k with l_i
    # the squared norm of row i of the k vectors; k / rows, or k / cols, where these are even
    chance_left: float = 0.0
    chance_right: float = 0.0


@dataclass(frozen=True)
class JointValues:
    """Sums over the entries of a matrix, in units of weights² where nothing else is said."""

    inner: float  # <D1, D2>
    first: float  # ||D1||²
    second: float  # ||D2||²
    spread: float  # sum of (D1_ij D2_ij)², weights⁴: the variance of inner if all signs were random
    shared: Shared = Shared()
    inside: Inside = Inside()
    overlap: Overlap = Overlap()

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, (self.inner, self.first, self.second, self.spread)))


Pairs = tuple[tuple[Matrix, Matrix], tuple[Matrix, Matrix]]  # (first, middle), (middle, last)


def joint_values(pairs: Pairs, formats: tuple[str, str, str], space: Workspace) -> JointValues:
    """Both deltas held against one another, of matrices of one shape with these stored dtypes."""
    sums = _sums(pairs, _grid(pairs[1][0], formats, space), space)
    values = sums.values
    if not values.finite or values.first == 0 or values.second == 0:
        return values
    return replace(values, inside=_inside(pairs, formats, sums, space))


def sibling_values(pairs: Pairs, formats: tuple[str, str, str], space: Workspace) -> JointValues:
    """The deltas of two models against their base, which lies in the middle: (first, base), (base,
    second). Both begin at the base, so inner and shared.inner have the other sign than in a chain.
    """
    sums = _sums(pairs, _grid(pairs[1][0], formats, space), space)
    values = sums.values
    shared = replace(values.shared, inner=-values.shared.inner)
    values = replace(values, inner=-values.inner, shared=shared)
    if not values.finite or values.first == 0 or values.second == 0:
        return values
    return replace(values, overlap=_overlap(pairs, formats, sums, space))


@dataclass(frozen=True)
class _Sums:
    values: JointValues
    largest: tuple[float, float]  # absolute entries of D1 and of D2
    rows: Array  # energies of D2
    cols: Array


def _triples(pairs: Pairs, space: Workspace) -> Iterator[tuple[Corner, Tensor, Tensor, Tensor]]:
    """(where it begins, the middle, D1 and D2) of every block, in float64."""
    (first, middle), (again, last) = pairs
    for index, corner in blocks(middle, SMALL_BLOCK):
        a = read_block(first, index, "base", torch.float64, space)
        b = read_block(middle, index, "tuned", torch.float64, space)
        d2 = read_block(last, index, "last", torch.float64, space)
        d2.sub_(read_block(again, index, "work", torch.float64, space))
        yield corner, b, torch.sub(b, a, out=a), d2


def _sums(pairs: Pairs, grid: FloatFormat | None, space: Workspace) -> _Sums:
    size = shape_of(pairs[0][1])
    rows, cols = np.zeros(size[0]), np.zeros(size[1])
    totals = dict.fromkeys(("inner", "first", "second", "spread"), 0.0)
    largest, step = (0.0, 0.0), max(1, size[0] * size[1] // SAMPLE)
    kept: list[tuple[Array, Array, Array]] = []
    for (row, col), b, d1, d2 in _triples(pairs, space):
        if grid is not None:
            kept.append(tuple(part.reshape(-1)[::step].numpy().copy() for part in (b, d1, d2)))  # type: ignore[arg-type]
        product = torch.mul(d1, d2, out=b)
        totals["inner"] += float(product.sum())
        totals["spread"] += float(torch.vdot(product.reshape(-1), product.reshape(-1)))
        totals["first"] += float(torch.vdot(d1.reshape(-1), d1.reshape(-1)))
        largest = max(largest[0], float(d1.abs().max())), max(largest[1], float(d2.abs().max()))
        energies = d2.square_()
        totals["second"] += float(energies.sum())
        rows[row : row + len(d2)] += energies.sum(1).numpy()
        cols[col : col + d2.shape[1]] += energies.sum(0).numpy()
    shared = Shared()
    if grid is not None and math.isfinite(totals["first"] + totals["second"]):
        middle, old, new = (np.concatenate(parts) for parts in zip(*kept, strict=True))
        scale = size[0] * size[1] / len(middle)
        sampled = shared_rounding(middle, old, new, grid)
        shared = Shared(sampled.inner * scale, sampled.first * scale, sampled.second * scale)
    inner, first, second, spread = totals.values()
    values = JointValues(inner, first, second, spread, shared)
    return _Sums(values, largest, rows, cols)


def _grid(middle: Matrix, formats: tuple[str, str, str], space: Workspace) -> FloatFormat | None:
    """The format whose rounding both deltas share; None for a middle that was not rounded so."""
    if is_quantised(middle) or isinstance(middle, Updated):
        return None
    return FLOATS[coarser_grid(middle, formats[1], working_dtype(formats[1]), space)]


def shared_rounding(middle: Array, d1: Array, d2: Array, grid: FloatFormat) -> Shared:
    """What a master copy in more bits makes of two unrelated updates, each rounded when stored.

    Let Q round to steps of u, and x lie anywhere between two of them. A normal update of standard
    deviation s moves the stored value by V(s) = E (Q(x + d) - Q(x))² = s² + u² g(s / u) on average,
    g(t) = E f (1 - f) with f the fractional part of |t z|, z standard normal. Q(x + d1) - Q(x) and
    Q(x + d1 + d2) - Q(x + d1) add up to a move by d1 + d2, so the mean of their product is
    (V(hypot(s1, s2)) - V(s1) - V(s2)) / 2 = u² (g12 - g1 - g2) / 2, at most 0: what is rounded up
    is rounded down again. The cosine of the two falls from 0 for large updates to -0.293 for small
    ones. s1 and s2 are found from the stored energies, in each binade of the middle, as u is
    another in each.
    """
    _, exponents = np.frexp(middle)
    steps = np.maximum(exponents - 1, grid.min_exponent) - grid.mantissa_bits
    inner = first = second = 0.0
    for exponent in np.unique(steps[middle != 0]):
        in_binade = (steps == exponent) & (middle != 0)
        count = int(in_binade.sum())
        if count < FEWEST:
            continue
        energies = float(d1[in_binade] @ d1[in_binade]), float(d2[in_binade] @ d2[in_binade])
        first, second = first + energies[0], second + energies[1]
        unit = math.ldexp(1.0, 2 * int(exponent)) * count
        widths = [width_of(energy / unit) for energy in energies]
        if min(widths) > 0:
            both = moved_by(math.hypot(*widths))
            inner += unit * (both - moved_by(widths[0]) - moved_by(widths[1])) / 2
    return Shared(inner, first, second)


def moved_by(width: float) -> float:
    """g(t) = 1/6 - sum over k of exp(-2 pi² k² t²) / (pi² k²), the Fourier series of f (1 - f)."""
    if width >= 2:
        return 1 / 6
    k = np.arange(1, max(8, math.ceil(1.5 / width)) + 1, dtype=np.float64)
    # the terms left out are below 1e-19; narrow updates have the series of sqrt(2 / pi) t - t²
    terms = np.exp(-2 * (math.pi * k * width) ** 2) / (math.pi * k) ** 2
    return max(0.0, 1 / 6 - float(terms.sum()))


@cache
def _widths() -> tuple[Array, Array]:
    """(t² + g(t), t) on a grid of t, both in logarithms."""
    widths = np.geomspace(1e-3, 4.0, 1200)
    return np.log([t * t + moved_by(t) for t in widths]), np.log(widths)


def width_of(energy: float) -> float:
    """t with t² + g(t) = energy, that of the stored moves in units of u²; 0 if nothing moved."""
    if energy <= 0:
        return 0.0
    if energy > 9:
        return math.sqrt(energy - 1 / 6)
    logarithms, widths = _widths()
    if math.log(energy) < logarithms[0]:  # of t the first term, sqrt(2 / pi) t
        return energy / math.sqrt(2 / math.pi)
    return math.exp(float(np.interp(math.log(energy), logarithms, widths)))


def _inside(pairs: Pairs, formats: tuple[str, str, str], sums: _Sums, space: Workspace) -> Inside:
    """How D2 lies in D1, from the spectrum of D1 and one more pass over both deltas."""
    leading, _ = _leading(pairs[0], formats, sums.largest[0], sums.values.first, space)
    basis = resolved(leading)
    k, energy = basis.shape[1], sums.values.second
    if k == 0:
        return Inside()
    wide_shape = leading.rows <= leading.cols
    # of the short side, and of the long
    energies = (sums.rows, sums.cols) if wide_shape else (sums.cols, sums.rows)
    short, long, long_chance = _against(basis, leading, pairs, energies[1], space)
    short_chance = float(energies[0] @ (basis**2).sum(axis=1))
    if wide_shape:
        return Inside(k, energy, short, long, short_chance, long_chance)
    return Inside(k, energy, long, short, long_chance, short_chance)


def _leading(
    pair: tuple[Matrix, Matrix],
    formats: tuple[str, str, str],
    largest: float,
    energy: float,
    space: Workspace,
) -> tuple[Spectrum, Callable[[torch.dtype], Iterator[Tensor]]]:
    """The spectrum of a delta with its leading vectors, and what reads the blocks it is made of."""
    scale = power_of_two_scale(largest)
    wide = working_dtype(*formats) == torch.float64 or any(
        isinstance(matrix, Updated) for matrix in pair
    )
    read = partial(delta_blocks, Sides(*pair, torch.float64, space), scale)
    shape, norm = shape_of(pair[1]), math.sqrt(energy)
    vectors = min(SUBSPACE, *shape)
    return spectrum(read, shape, norm, scale, "default", wide, vectors), read


def _overlap(pairs: Pairs, formats: tuple[str, str, str], sums: _Sums, space: Workspace) -> Overlap:
    """How the leading directions of both deltas lie to each other, from their spectra and one more
    pass over each.
    """
    energies = sums.values.first, sums.values.second
    sides = [
        _leading(*of_delta, space)
        for of_delta in zip(pairs, [formats] * 2, sums.largest, energies, strict=True)
    ]
    short = [resolved(leading) for leading, _ in sides]
    k = min(basis.shape[1] for basis in short)
    if k == 0:
        return Overlap()
    short = [basis[:, :k] for basis in short]
    is_wide = sides[0][0].rows <= sides[0][0].cols
    long = []
    for basis, (_, read) in zip(short, sides, strict=True):
        images = [(part if is_wide else part.T).numpy().T @ basis for part in read(torch.float64)]
        long.append(np.linalg.qr(np.concatenate(images))[0])
    left, right = (short, long) if is_wide else (long, short)
    (on_left, by_chance_left), (on_right, by_chance_right) = _between(*left), _between(*right)
    return Overlap(k, on_left, on_right, by_chance_left, by_chance_right)


def _between(first: Array, second: Array) -> tuple[float, float]:
    """The mean squared cosine of two bases of k columns, and its mean over random signs."""
    k = first.shape[1]
    leverages = (first**2).sum(axis=1) @ (second**2).sum(axis=1)
    return float(((first.T @ second) ** 2).sum() / k), float(leverages / k)


def _against(
    basis: Array, leading: Spectrum, pairs: Pairs, energies: Array, space: Workspace
) -> tuple[float, float, float]:
    """Energies of D2 in the short and in the long side's basis, and what its profile gives there.

    The long side's directions Y = D1ᵀ U / sigma are formed block by block and made orthonormal in
    the sums.
    """
    m, k = basis.shape
    left = np.ascontiguousarray(basis.T)
    onto = left / leading.sigma[:k, None]
    gram, weighted, images = np.zeros((k, k)), np.zeros((k, k)), np.zeros((k, m))
    inside, start = 0.0, 0
    for _, _, d1, d2 in _triples(pairs, space):
        old, new = d1.numpy(), d2.numpy()
        if leading.rows > leading.cols:
            old, new = old.T, new.T
        y, inner = onto @ old, left @ new
        part = energies[start : start + y.shape[1]]
        start += len(part)
        gram += y @ y.T
        weighted += (y * part) @ y.T
        images += y @ new.T
        inside += float(np.vdot(inner, inner))
    long = float((whitened(gram, images) ** 2).sum())
    return inside, long, float(whitened(gram, whitened(gram, weighted).T).trace())
