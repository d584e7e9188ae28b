"""Angles between the leading singular subspaces of two matrices, and of a delta with them.

For a base and its tuned side, vectors of the short side come with the spectra. Those of the long
side are never whole in memory: block by block Y_b = W_bᵀ U_b / sigma and Y_t = W_tᵀ U_t / sigma are
formed, and only their inner products and D Y_b are summed up. That is only as good as the Gram
matrix that the vectors came from, so the products of a block are in the precision of that matrix;
sums over blocks are in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from shadow.spectra.measurement import Values
from shadow.spectra.noise import Profile
from shadow.spectra.spectrum import (
    SMALL_BLOCK,
    Floats,
    Sides,
    Spectrum,
    power_of_two_scale,
)

SUBSPACE = 16  # dimension of the subspaces that are compared, at most the short side
INTRUDERS = 10  # leading left vectors of the tuned side that may be intruders
# Leading vectors of either side that are needed. A tuned side needs SUBSPACE of them; as many as of
# a base cost the pair 3 to 8 % more, and make its spectrum that of the base of the next stage.
VECTORS = 64
SIMILAR = 0.5  # the |cosine| above which a vector of the tuned side is one of the base's, moved
GAPS = ("subspace_gap_base", "subspace_gap_tuned")
NO_SUBSPACES: Values = dict.fromkeys((
    "overlap_left", "overlap_right", "alignment_left", "alignment_right", "alignment_left_null",
    "alignment_right_null", "intruders", *GAPS,
))  # fmt: skip
Floating = NDArray[np.floating]


def subspace_values(
    base: Spectrum,
    tuned: Spectrum,
    delta: Spectrum,
    sides: Sides,
    profile: Profile,
) -> Values:
    """overlap_*, alignment_*, intruders, subspace_gap_*, from spectra and one pass over matrices.

    With U_b and U_t the leading k = min(16, m) left vectors, overlap_left = ||U_bᵀ U_t||_F² / k in
    [0, 1], the mean squared cosine of the principal angles: 1 where nothing turned, k / rows on
    average for random subspaces. alignment_left = (||U_bᵀ D||_F² / ||D||_F²) / (k / rows) in [0,
    rows / k], on average 1 for a D without preferred directions. alignment_left_null = (sum_i r_i
    ||U_i||² / E) / (k / rows), U_i the i-th row of U_b, is what D would have on average with random
    signs: 1 where its rows or those of U_b are even. On the right the same with right vectors and
    cols. intruders: how many of the tuned side's leading min(10, m) left vectors have no |cosine|
    above 0.5 with any of the base's leading min(64, m) (Shuttleworth et al. 2024, who search all).
    subspace_gap = (sigma_k - sigma_{k+1}) / sigma_k in [0, 1].

    None where a singular value that the number needs is not resolved. In the gap, sigma_{k+1} is
    the floor where it is not resolved, and 0 where there is none. base, tuned and delta: the
    spectra; sides: what they were made from; profile: D's.
    """
    m = len(base.sigma)
    k = min(SUBSPACE, m)
    values = NO_SUBSPACES.copy()
    values["subspace_gap_base"] = _gap(base, k)
    values["subspace_gap_tuned"] = _gap(tuned, k)
    u_b = resolved(base)
    u_t = resolved(tuned)[:, :SUBSPACE]
    known_b = u_b.shape[1]
    known_t = u_t.shape[1]
    if known_b < k:
        return values
    short = "left"
    long = "right"
    short_energies = profile.rows
    long_energies = profile.cols
    left_is_short = base.rows <= base.cols
    if not left_is_short:
        short = "right"
        long = "left"
        short_energies = profile.cols
        long_energies = profile.rows
    is_exact = "exact" in (base.precision, tuned.precision)
    is_plain = all(power_of_two_scale(side.sigma[0]) == 1.0 for side in (base, tuned))
    dtype = torch.float64
    if is_plain and not is_exact:
        dtype = torch.float32
    leading = u_b[:, :k]
    to_base = leading / base.sigma[:k]
    to_tuned = u_t / tuned.sigma[:known_t]
    base_gram, weighted, tuned_gram, between, inside, images, on_base = _streamed(
        leading,
        to_base,
        to_tuned,
        replace(sides, dtype=dtype),
        profile.scale,
        long_energies,
    )
    leverages = (leading**2).sum(axis=1)
    short_null = float(short_energies @ leverages / profile.energy)
    half_whitened = whitened(base_gram, weighted)
    weighted = whitened(base_gram, half_whitened.T)
    long_null = float(weighted.trace() / profile.energy)
    values[f"alignment_{short}_null"] = short_null * m / k
    values[f"alignment_{long}_null"] = long_null * base.long_side / k
    images = whitened(base_gram, images.T)
    share = k * (delta.norm * profile.scale) ** 2
    values[f"alignment_{short}"] = inside * m / share
    inside_long = float((images**2).sum())
    values[f"alignment_{long}"] = inside_long * base.long_side / share
    if known_t >= k:
        half_whitened = whitened(base_gram, between)
        between = whitened(tuned_gram, half_whitened.T)
        values[f"overlap_{short}"] = _mean_square(leading.T @ u_t)
        values[f"overlap_{long}"] = _mean_square(between)
    if known_b >= min(VECTORS, m) and known_t >= min(INTRUDERS, m):
        cosines = u_b.T @ u_t
        if not left_is_short:
            cosines = u_b.T @ on_base / base.sigma[:known_b, None]
        nearest = np.abs(cosines[:, :INTRUDERS]).max(axis=0)
        values["intruders"] = int(np.count_nonzero(nearest <= SIMILAR))
    return values


def _gap(side: Spectrum, k: int) -> float | None:
    """(sigma_k - sigma_{k+1}) / sigma_k of a side, in [0, 1]."""
    last = float(side.sigma[k - 1])
    if last == 0:
        return None
    following = 0.0
    if k < len(side.sigma):
        following = max(float(side.sigma[k]), side.floor)
    return 1.0 - following / last


def resolved(side: Spectrum) -> Floats:
    """The leading vectors of a side whose singular values are resolved, as columns (m, k)."""
    assert side.vectors is not None
    known = np.count_nonzero(side.sigma)
    return side.vectors[:, :known]


def _mean_square(cosines: Floats) -> float:
    """||C||_F² / k of (k, k) cosines between two orthonormal bases, at most 1."""
    squares = cosines**2
    return min(1.0, float(squares.sum()) / len(cosines))


def whitened(products: Floats, columns: Floats) -> Floats:
    """Orthonormalise inner products (k, ...), as columns, with vectors whose Gram matrix is
    `products`.
    """
    root = np.linalg.cholesky(products)
    solved = solve_triangular(root, columns, lower=True)
    return np.asarray(solved, dtype=np.float64)


def _streamed(
    u_b: Floats,
    to_base: Floats,
    to_tuned: Floats,
    sides: Sides,
    scale: float,
    energies: Floats,
) -> tuple[Floats, Floats, Floats, Floats, float, Floats, Floats]:
    """Sum in one pass over both matrices, whose blocks are multiplied in the dtype of sides.

    With Y_b (n, k) and Y_t (n, t) the vectors of the long side, nearly orthonormal, it gives
    - Y_bᵀ Y_b, and the same with D's energies along the long side as weights,
    - Y_tᵀ Y_t and Y_bᵀ Y_t,
    - the energy of D in the short side's subspace,
    - (m, k): D Y_b,
    - (m, t): W_b Y_t with Y_t's columns at length 1, or 0 where the long side is the right one:
      vᵀ of it / sigma are the cosines of Y_t with the base's left vector W_b v / sigma.

    u_b (m, k) are vectors of the short side of base; to_base (m, k) and to_tuned (m, t) those of
    both over their singular values; energies: of D along the long side.
    """
    m, k = u_b.shape
    t_count = to_tuned.shape[1]
    working = np.float64 if sides.dtype == torch.float64 else np.float32
    basis = np.ascontiguousarray(u_b.T, dtype=working)
    to_base = np.ascontiguousarray(to_base.T, dtype=working)
    to_tuned = np.ascontiguousarray(to_tuned.T, dtype=working)
    base = np.zeros((k, k))
    weighted = np.zeros((k, k))
    tuned = np.zeros((t_count, t_count))
    between = np.zeros((k, t_count))
    inside = 0.0
    images = np.zeros((k, m))
    on_base = np.zeros((t_count, m))
    left_is_long = sides.shape[0] > m
    energies = energies.astype(working)
    start = 0
    for b, t, d in _triples(sides, scale):
        y_b = _times(to_base, b)
        y_t = _times(to_tuned, t)
        inner = _times(basis, d)
        part = energies[start : start + y_b.shape[1]]
        start += len(part)
        base += y_b @ y_b.T
        weighted += (y_b * part) @ y_b.T
        tuned += y_t @ y_t.T
        between += y_b @ y_t.T
        inside += float(np.vdot(inner, inner))
        images += _times(y_b, d.T)
        if left_is_long:
            on_base += _times(y_t, b.T)
    lengths = np.sqrt(tuned.diagonal())
    on_base = on_base.T / lengths
    return base, weighted, tuned, between, inside, images.T, on_base


def _times(few: NDArray[Any], block: NDArray[Any]) -> NDArray[Any]:
    """few @ block, where few (k, n) has few rows, without transposing the block in memory.

    OpenBLAS takes up to 1.9 times as long for it in float32.
    """
    if block.flags.c_contiguous:
        return np.asarray(few @ block)
    transposed = block.T @ few.T
    return np.asarray(transposed.T)


def _triples(sides: Sides, scale: float) -> Iterator[tuple[Floating, Floating, Floating]]:
    """Yield the blocks of base, tuned and scale * (tuned - base), each (short, part of the long
    side).
    """
    rows, cols = sides.shape
    for base, tuned in sides.blocks(SMALL_BLOCK):
        delta = sides.space.take("work", base.shape, sides.dtype)
        torch.sub(tuned, base, out=delta)
        if scale != 1.0:
            delta.mul_(scale)
        b = base.numpy()
        t = tuned.numpy()
        d = delta.numpy()
        if rows <= cols:
            yield b, t, d
        else:
            yield b.T, t.T, d.T
