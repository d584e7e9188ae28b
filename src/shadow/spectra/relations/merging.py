"""Test whether a matrix is a base plus a scaled low-rank update, entry by entry within what
rounding may do.

A merge that is computed in float32 or wider and stored once is within half a unit in the last place
of W_base + scale * left @ right, and within the rounding of its own arithmetic. One that is
computed in 16 bits also rounds the update. Other scales, and bases that were quantised and
dequantised, are tried as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shadow.dtypes import FP4, NF4, FloatFormat, float_format
from shadow.spectra.lazy import Matrix, half_ulp, torch_dtype
from shadow.spectra.spectrum import tiles
from shadow.spectra.sums import INTEGERS

ROWS = 1 << 15  # entries of a block, about: a dozen copies of it in float64 stay in the caches
SCALES = (0.0, 0.5, 1.0, 2.0)  # of the claimed one, which are tried
QUANTISED = ("NF4", "FP4", "INT8")
BLOCK = 64  # entries that share one scale in bitsandbytes' 4-bit formats
LEVELS = {"NF4": NF4, "FP4": sorted(set(FP4))}  # ascending


@dataclass(frozen=True)
class Update:
    """scale * left @ right, and for DoRA the norms of the rows of base plus update."""

    left: Tensor  # (rows, r)
    right: Tensor  # (r, cols)
    scale: float
    magnitude: Tensor | None = None  # (rows,)
    stored: str = "F32"  # the dtype of the factors


@dataclass(frozen=True)
class MergeFit:
    """The comparison of a matrix with base plus update.

    By scale, one of SCALES: how many entries are beyond the bound, of other scales than 1 up to
    the first block that has some. wide: of arithmetic in float32 or wider; narrow: in the stored
    format.
    """

    entries: int
    wide: dict[float, int]
    narrow: dict[float, int]
    update: float  # sums of squares: of the update
    residual: float  # and of merged - (base + update)
    inner: float  # <merged - base, update>
    rounding: float  # what storage leaves on average, ulp² / 12 an entry
    visible: int  # entries that the update changes when base plus update is stored
    finite: bool
    onto_rounded: bool  # whether the base was first rounded to the stored format, so that it fits
    quantised: tuple[str, float] | None = None  # the copy of the base that fits best, and residual²

    @property
    def fits(self) -> bool:
        """Return whether every entry is base plus update within one of the bounds."""
        return self.finite and not (self.wide[1.0] and self.narrow[1.0])

    @property
    def scale(self) -> float | None:
        """Return how much of the update it holds, by least squares; None without an update."""
        return self.inner / self.update if self.update else None


def merge_fit(
    base: Matrix, merged: Matrix, update: Update, formats: tuple[str, str], *, upright: bool
) -> MergeFit:
    """Compare a matrix with base plus update.

    formats: stored dtypes of base and merged. upright: whether rows are as stored, which blocks of
    quantised copies require.
    """
    fit = _fit(base, merged, update, formats, rounded=False)
    grid = float_format(formats[1])
    if not fit.wide[1.0] or not fit.finite:
        return fit
    if float_format(formats[0]).bits > float_format(formats[1]).bits:
        other = _fit(base, merged, update, formats, rounded=True)
        if not other.wide[1.0] or (fit.narrow[1.0] and not other.narrow[1.0]):
            return other
    if fit.narrow[1.0] and upright:
        return _with_quantised(base, merged, update, fit, grid)
    return fit


def _fit(
    base: Matrix, merged: Matrix, update: Update, formats: tuple[str, str], *, rounded: bool
) -> MergeFit:
    grid = float_format(formats[1])
    beyond = {way: dict.fromkeys(SCALES, 0) for way in ("wide", "narrow")}
    energies: list[list[float]] = [[] for _ in range(4)]
    entries, visible, finite = 0, 0, True
    for rows, (b, m) in _both(base, merged):
        entries += m.numel()
        if rounded:
            b = b.to(torch_dtype(grid)).double()
        if not (bool(b.isfinite().all()) and bool(m.isfinite().all())):
            finite = False
            continue
        left, right = update.left[rows].double(), update.right.double()
        delta = (left @ right).mul_(update.scale)
        bounds = _Bounds(left, right, delta, update, grid, half_ulp(m, grid))
        for scale in SCALES:
            # of other scales it counts only whether every entry fits
            if scale != 1.0 and beyond["narrow"][scale]:
                continue
            target, growth = _target(b, delta, scale, update, rows)
            away = (m - target).abs_()
            wide, narrow = bounds.beyond(b, target, away, scale, growth)
            beyond["wide"][scale] += wide
            beyond["narrow"][scale] += narrow
            if scale == 1.0:
                change = target - b
                stored = np.not_equal(_bits(target, grid), _bits(b, grid))
                visible += int(np.count_nonzero(stored))
                pairs = (change, change), (away, away), (m - b, change)
                half = bounds.half.view(-1)
                found = [float(torch.dot(one.view(-1), other.view(-1))) for one, other in pairs]
                found.append(float(torch.dot(half, half)) / 3)
                if not all(map(math.isfinite, found)):  # NaN is beyond no bound
                    finite = False
                    break
                for each, value in zip(energies, found, strict=True):
                    each.append(value)
    of_update, residual, inner, rounding = map(math.fsum, energies)
    return MergeFit(
        entries, beyond["wide"], beyond["narrow"], of_update, residual, inner, rounding, visible,
        finite, onto_rounded=rounded,
    )  # fmt: skip


def _bits(values: Tensor, grid: FloatFormat) -> Any:
    """Return values as stored; those of 8 and 16 bits as integers, for NumPy."""
    narrow = values.to(torch_dtype(grid))
    return (narrow.view(INTEGERS[narrow.itemsize]) if grid.bits < 32 else narrow).numpy()


@dataclass
class _Bounds:
    """Tolerances of a merge around base plus update in a block. Expensive ones are made only if an
    entry is further away than the cheap ones.
    """

    left: Tensor
    right: Tensor
    delta: Tensor
    update: Update
    grid: FloatFormat
    half: Tensor  # a unit in the last place at the merged entries
    _sizes: Tensor | None = None
    _more: Tensor | None = None

    def beyond(
        self, b: Tensor, target: Tensor, away: Tensor, scale: float, growth: Tensor | float
    ) -> tuple[int, int]:
        """Return entries further away than a merge in float32 or wider, or in 16 bits, can be."""
        bound = torch.maximum(self.half, half_ulp(target, self.grid))
        if not bool((away > bound).any()):
            return 0, 0
        if self._sizes is None:
            self._sizes = (self.left.abs() @ self.right.abs()).mul_(abs(self.update.scale))
        # each product and each sum of float32 is right to half a unit
        rank, unit = self.right.shape[0], 2.0**-24
        summed = 4 * (b.abs() + self.delta.abs() * scale)
        bound += (self._sizes * (scale * (rank + 4)) + summed) * growth * unit
        has_norms = self.update.magnitude is not None
        if has_norms:
            bound += target.abs() * ((2 * math.sqrt(b.shape[1]) + 8) * unit)
        wide = int((away > bound).sum())
        if not wide or self.grid.bits != 16:  # nothing computes in 8 bits
            return wide, wide
        if self._more is None:
            self._more = self._of_narrow(self._sizes)
        bound += self._more * scale * growth
        if has_norms:
            bound += target.abs() * (4 * 2.0 ** -(self.grid.mantissa_bits + 1))
        return wide, int((away > bound).sum())

    def _of_narrow(self, sizes: Tensor) -> Tensor:
        """Return how far rounding an update to a stored format may move it: the factors if they
        have more bits, their product, and the scaled product. The following sum does not count.
        """
        scale, grid = abs(self.update.scale), self.grid
        reach = self.delta.abs() * (1 + 2.0**-6)  # a rounded number may lie in the binade above
        found = half_ulp(reach, grid)
        if scale:
            found += half_ulp(reach / scale, grid) * scale
        if float_format(self.update.stored).bits > grid.bits:
            found += 2.0**-grid.mantissa_bits * sizes
            least = 2.0 ** (grid.min_exponent - grid.mantissa_bits - 1) * scale
            found += least * (self.left.abs().sum(1, keepdim=True) + self.right.abs().sum(0))
        return found


def _target(
    b: Tensor, delta: Tensor, scale: float, update: Update, rows: slice
) -> tuple[Tensor, Tensor | float]:
    """Return base plus that much of the update, and the factor of its entries afterwards."""
    target = torch.add(b, delta, alpha=scale)
    if update.magnitude is None or scale == 0.0:
        return target, 1.0
    norms = torch.linalg.vector_norm(target, dim=1)
    growth = torch.where(norms > 0, update.magnitude[rows].double() / norms, 1.0)[:, None]
    return target * growth, growth.abs()


def _both(base: Matrix, merged: Matrix) -> Iterator[tuple[slice, tuple[Tensor, Tensor]]]:
    """Yield whole rows of both in float64, as (rows, cols), and their indices."""
    cols = merged.shape[-1]
    for index, (start, _) in tiles(merged, ROWS, cols):
        m, b = (one[index].double().contiguous().view(-1, cols) for one in (merged, base))
        yield slice(start, start + len(m)), (b, m)


def _with_quantised(
    base: Matrix, merged: Matrix, update: Update, fit: MergeFit, grid: FloatFormat
) -> MergeFit:
    """Return the fit with the quantised copy of the base closest to the merged matrix.

    A copy is dequantised to the stored format of the merged matrix.
    """
    energies: dict[str, list[float]] = {name: [] for name in QUANTISED}
    for rows, (b, m) in _both(base, merged):
        delta = (update.left[rows].double() @ update.right.double()).mul_(update.scale)
        for name in QUANTISED:
            copy = quantised(b, name)
            if copy is None:
                energies.pop(name, None)
            elif name in energies:
                copy = copy.to(torch_dtype(grid)).double()
                target, _ = _target(copy, delta, 1.0, update, rows)
                energies[name].append(float((m - target).square().sum()))
    found = {name: math.fsum(each) for name, each in energies.items()}
    if not found:
        return fit
    best = min(found, key=lambda name: found[name])
    return replace(fit, quantised=(best, found[best]))


def quantised(matrix: Tensor, name: str) -> Tensor | None:
    """Return a (rows, cols) matrix after a round trip through bitsandbytes' 4-bit or 8-bit format;
    None if rows are not a whole number of blocks.

    NF4 and FP4: 64 entries in a row share their largest absolute value; INT8: a row does.
    """
    if name == "INT8":
        scale = matrix.abs().amax(1, keepdim=True) / 127
        return torch.round(matrix / scale).nan_to_num_() * scale
    if matrix.shape[1] % BLOCK:
        return None
    levels = torch.tensor(LEVELS[name], dtype=torch.float64)
    blocks = matrix.reshape(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True)
    middles = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize((blocks / scale).nan_to_num_(), middles)
    return (levels[codes] * scale).reshape(matrix.shape)
