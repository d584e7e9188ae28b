"""Matrices entry by entry, in one pass: how many entries of two differ, how far, and whether one
side is the other in another format.

Sums are made as in shadow.spectra.sums.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shadow.dtypes import FLOATS, FloatFormat
from shadow.spectra.costs import PART
from shadow.spectra.lazy import Matrix, Updated, half_ulp, is_quantised, torch_dtype
from shadow.spectra.measurement import Cast, Measurement, Values, norm_alone
from shadow.spectra.spectrum import SMALL_BLOCK, Sides, tiles
from shadow.spectra.sums import parts

CASTS = ("BF16", "F16", "F32", "F8_E4M3", "F8_E5M2")
SQUARES = 1e-280  # energy, below which squares may have vanished in float64
FAR = 2.0**20  # a norm so many times another is far larger
AS_ROUNDING = 0.5  # of the energy that rounding leaves on average
HIGHEST = 128  # exponent of a base beyond which binades are not told apart


@dataclass(frozen=True, slots=True)
class Entries:
    """Sums of a pass over the entries of two matrices of one shape."""

    entries: int
    changed: int  # entries whose values differ; +0 and -0 are one value, and so are two NaN
    base: float  # the sum of W_base², as those below in float64
    tuned: float
    delta: float  # of (W_tuned - W_base)²
    along: float  # of W_base (W_tuned - W_base)
    finite: bool  # both sides are; otherwise the sums are those of the parts in which they are
    zeroed: bool  # whether entries that differ are 0 in the tuned side
    # (side, format) where that side is the other rounded to a format, in every entry; None where
    # neither is, or nothing changed
    rounded: tuple[str, str] | None = None

    @property
    def is_safe(self) -> bool:
        """True if both sides are finite, and no square has vanished or overflowed."""
        held = (self.base, self.tuned, *((self.delta,) if self.changed else ()))
        return self.finite and all(energy > SQUARES for energy in held)


# what overflows is summed in float64
@np.errstate(over="ignore", invalid="ignore")
def compared(sides: Sides, formats: tuple[str, str], binades: Binades | None = None) -> Entries:
    """Compare both sides entry by entry. formats: the stored dtypes, of base and tuned. binades:
    also gets the numbers of every part.
    """
    energies: list[list[float]] = [[], [], [], []]  # of base, tuned and delta, and <base, delta>
    changed = 0
    finite = True
    alive = possible_casts(sides, formats)
    zeroed = True
    for part in parts((sides.base, sides.tuned), sides.dtype, sides.space):
        equal = part.is_equal()
        part.load(0)
        if alive or binades or not equal:
            part.load(1)
        alive = [cast for cast in alive if _is_cast(cast, *part.numbers)]
        if zeroed and not equal:
            b, t = part.numbers
            zeroed = not t[t != b].any()
        if binades:
            binades.add(*part.numbers)
        here, products = (0, [part.energy()] * 2) if equal else part.products()
        if all(map(math.isfinite, products)):
            for sums, value in zip(energies, products, strict=False):
                sums.append(value)
        else:
            finite = False
            here = 0 if equal else part.changed()
        changed += here
    rounded = alive[0] if alive and changed else None
    base, tuned, delta, along = map(math.fsum, energies)
    return Entries(sides.tuned.numel(), changed, base, tuned, delta, along, finite, zeroed, rounded)


def norm_values(entries: Entries) -> tuple[Measurement, ...]:
    """The columns of base, tuned and a nonzero delta from a pass over entries that is safe."""
    base, tuned, delta = (
        math.sqrt(energy) for energy in (entries.base, entries.tuned, entries.delta)
    )
    of_delta: Values = {
        "relative_norm": delta / base,
        "cosine": cosine(base, tuned, entries.delta, entries.along),
        "decay_cosine": decay_cosine(entries.along, delta, base),
        "zero_share": (entries.entries - entries.changed) / entries.entries,
        "zeroed": int(entries.zeroed),
    }
    sides = norm_alone("base", base), norm_alone("tuned", tuned)
    return *sides, norm_alone("delta", delta, of_delta)


def differing_bytes(sides: Sides) -> int:
    """Say how many bytes differ between two matrices of 8-bit values, whatever their meaning."""
    changed = 0
    for index, _ in tiles(sides.tuned):
        b, t = (side[index].view(torch.uint8).numpy() for side in (sides.base, sides.tuned))
        changed += int(np.count_nonzero(np.not_equal(b, t)))
    return changed


class Cell(NamedTuple):
    """The entries of a matrix whose base lies between two powers of two."""

    half_ulp: float
    """Half a unit in the last place of the tuned side's format there."""
    entries: int
    changed: int
    energy: float
    """The sum of squares of the differences."""


class Binades:
    """Counts entries of two matrices by the power of two below the base's. Zeros count with the
    smallest.
    """

    def __init__(self, grid: FloatFormat) -> None:
        """grid: the format that defines units in the last place."""
        self._grid = grid
        self._sums = np.zeros((3, HIGHEST - grid.min_exponent + 1))

    def add(self, base: Tensor, tuned: Tensor) -> None:
        """Count more entries, (n,) of float32 or float64."""
        lowest = self._grid.min_exponent
        count = self._sums.shape[1]
        # floor(log2 |x|), from the bits; far below the smallest normal number of 16 bits for zeros
        if base.dtype == torch.float32:
            exponents = ((base.view(torch.int32) >> 23) & 0xFF).long().sub_(127)
        else:
            exponents = ((base.view(torch.int64) >> 52) & 0x7FF).sub_(1023)
        cells = exponents.clamp_(lowest, HIGHEST).sub_(lowest).numpy()
        away = (tuned - base).numpy()
        self._sums += [
            np.bincount(cells, weights, count)
            for weights in (None, away != 0, np.square(away, dtype=np.float64))
        ]

    def cells(self) -> list[Cell]:
        """The cells that have entries, from small to large."""
        first = self._grid.min_exponent - self._grid.mantissa_bits - 1
        return [
            Cell(2.0 ** (first + cell), int(entries), int(changed), float(energy))
            for cell, (entries, changed, energy) in enumerate(self._sums.T)
            if entries
        ]


def possible_casts(sides: Sides, formats: tuple[str, str]) -> list[tuple[str, str]]:
    """The casts that may have made one side of the other: to its own format, or to one of
    fewer bits that holds its values.
    """
    if any(isinstance(side, Updated) for side in (sides.base, sides.tuned)):
        return []
    casts = []
    for side, stored, other in (("tuned", formats[1], formats[0]), ("base", *formats)):
        if is_quantised(getattr(sides, side)):
            continue
        for name in CASTS:
            own = name == stored != other
            narrower = FLOATS[name].bits < FLOATS[stored].bits and FLOATS[name].bits > 8
            if own or narrower:
                casts.append((side, name))
    return casts


def _is_cast(cast: tuple[str, str], b: Tensor, t: Tensor) -> bool:
    side, name = cast
    source, stored = (b, t) if side == "tuned" else (t, b)
    return torch.equal(source.to(torch_dtype(FLOATS[name])).to(b.dtype), stored)


def mark(matrix: Matrix) -> bytes:
    """A digest of the first values of a matrix, independent of their stored format: equal
    for equal matrices, and seldom for others.
    """
    index, _ = next(iter(tiles(matrix)))
    values = (matrix[index].double() + 0.0).numpy().tobytes()  # -0 is 0
    return hashlib.blake2b(values, digest_size=16).digest()


def cast(sides: Sides, formats: tuple[str, str]) -> Cast | None:
    """Say which side is the other in another format, in every entry: `tuned` if the tuned side
    is the base cast, `base` for the reverse; otherwise None.

    formats: stored dtypes. An F32 file may hold the values of a coarser format, so casts to those
    are tried too. The first entry that differs ends a search, so that this is cheap for ordinary
    pairs. A tuned side in more bits that moved less than half an ulp everywhere, as norms may, has
    a base that equals its cast: `base` needs a difference as large as rounding leaves.
    """
    if is_quantised(sides.tuned) or is_quantised(sides.base):
        return None
    alive = possible_casts(sides, formats)
    for index, _ in tiles(sides.tuned, PART):
        if not alive:
            return None
        numbers = sides.read(index)
        alive = [cast for cast in alive if _is_cast(cast, *numbers)]
    if not alive:
        return None
    side, name = alive[0]
    if side == "tuned":
        return "tuned"
    # of D, and of what rounding leaves on average: ulp² / 12 an entry
    energy = 0.0
    rounding = 0.0
    for b, t in sides.blocks(SMALL_BLOCK):
        rounding += float(half_ulp(b.double(), FLOATS[name]).square_().sum()) / 3
        energy += float(t.sub_(b).square_().sum(dtype=torch.float64))
    if energy >= AS_ROUNDING * rounding:
        return "base"
    return None


def cosine(base: float, tuned: float, energy: float, along: float) -> float | None:
    """<W_base, W_tuned> / (norm norm), from both norms, the energy of D and <W_base, D>, so
    that 1 - cosine is right to 1e-7 relative_norm². None if a norm is 0, or tuned is far smaller.

    1 - cos = (|D|² - (|t| - |b|)²) / (2 |b| |t|), and |t| - |b| = (2 <b, D> + |D|²) / (|t| + |b|).
    Summed from products of base and tuned in float32, 1 - cosine was 22 % off at a relative norm of
    1e-3. Where D is far larger than the base, that difference cancels, and the products do not.
    """
    if base == 0 or tuned == 0:
        return None
    if FAR * tuned < base:  # what is left of the base is less than the rounding of D
        return None
    if math.sqrt(energy) > FAR * base:
        return max(-1.0, min(1.0, (base + along / base) / tuned))
    longer = (2.0 * along + energy) / (tuned + base)
    distance = (energy - longer**2) / (2.0 * base * tuned)
    return max(-1.0, min(1.0, 1.0 - distance))


def decay_cosine(product: float, delta_norm: float, base_norm: float) -> float | None:
    """<D, W_base> / (norm norm), in [-1, 1]: below 0 if weights decayed. product: from D."""
    norms = delta_norm * base_norm
    if norms > 0:
        return max(-1.0, min(1.0, product / norms))
    return None
