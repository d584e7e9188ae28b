"""What a copy of a matrix in fewer bits kept of it, and of its change from a base."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shadow.dtypes import float_format
from shadow.spectra.lazy import Matrix, torch_dtype
from shadow.spectra.spectrum import shape_of, tiles


@dataclass(frozen=True)
class Kept:
    """Sums over the entries of a matrix, its copy, and its base, in float64."""

    grid: str
    """The format to which the copy's values are rounded: its dtype, or one of fewer bits."""
    entries: int
    off: int
    """Entries of the copy that are not the matrix's rounded to that format."""
    full: float
    error: float
    finite: bool
    update: float | None
    stored_update: float | None
    inner: float | None
    unchanged: int | None
    unchanged_expected: int | None


def kept_of(full: Matrix, copy: Matrix, base: Matrix | None, stored: str) -> Kept:
    """Compare a copy with the matrix that it is of, and with its base. stored: its dtype."""
    grids = [stored, *(name for name in ("BF16", "F16") if float_format(stored).bits > 16)]
    off, expected = dict.fromkeys(grids, 0), dict.fromkeys(grids, 0)
    unchanged = 0
    finite = True
    sums: list[list[float]] = [[] for _ in range(5)]
    for index, _ in tiles(copy):
        raw, c = full[index], _flat(copy[index])
        f = _flat(raw)
        rounded = {name: _flat(raw.to(torch_dtype(float_format(name)))) for name in grids}
        for name, values in rounded.items():
            off[name] += _differing(values, c) + _saturated(f, values, c, name)
        b = None if base is None else _flat(base[index])
        norm, error = _square(f), _square(c - f)
        if not (math.isfinite(norm + error) and (b is None or math.isfinite(_square(b)))):
            finite = False
            continue
        sums[0].append(norm)
        sums[1].append(error)
        if b is None:
            continue
        u, v = f - b, c - b
        sums[2].append(_square(u))
        sums[3].append(_square(v))
        sums[4].append(float(torch.dot(u, v)))
        unchanged += c.numel() - _differing(c, b)
        for name, values in rounded.items():
            expected[name] += c.numel() - _differing(values, b)
    rows, cols = shape_of(copy)
    totals = [math.fsum(each) for each in sums]
    has_base = base is not None
    grid = min(grids, key=lambda name: off[name])
    return Kept(
        grid=grid,
        entries=rows * cols,
        off=off[grid],
        full=totals[0],
        error=totals[1],
        finite=finite,
        update=totals[2] if has_base else None,
        stored_update=totals[3] if has_base else None,
        inner=totals[4] if has_base else None,
        unchanged=unchanged if has_base else None,
        unchanged_expected=expected[grid] if has_base else None,
    )


def _saturated(full: Tensor, rounded: Tensor, copy: Tensor, name: str) -> int:
    """Entries of a copy that are as a cast leaves them, of numbers that the format cannot hold:
    those beyond its largest by more than half a unit in the last place.
    """
    form, largest = float_format(name), torch.finfo(torch_dtype(float_format(name))).max
    limit = largest + 2.0 ** (math.frexp(largest)[1] - 2 - form.mantissa_bits)
    if form.bits >= 64 or not len(full) or float(full.abs().max()) <= limit:
        return 0
    return int(((full.abs() > limit) & full.isfinite() & (rounded == copy)).sum())


def _flat(part: Tensor) -> Tensor:
    return part.double().reshape(-1)


def _differing(one: Tensor, other: Tensor) -> int:
    """Entries that differ; NaN beside NaN does not."""
    differ = np.not_equal(one.numpy(), other.numpy())
    count = int(np.count_nonzero(differ))
    if count and not math.isfinite(float(one.sum())):
        return int((torch.from_numpy(differ) & ~(one.isnan() & other.isnan())).sum())
    return count


def _square(values: Tensor) -> float:
    return float(torch.dot(values, values))
