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
from shadow.spectra.measurement import Cast, Formats, Measurement, Values, norm_alone
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
        if self.changed and not self.delta > SQUARES:
            return False
        return self.finite and self.base > SQUARES and self.tuned > SQUARES


# what overflows is summed in float64
@np.errstate(over="ignore", invalid="ignore")
def compared(sides: Sides, formats: Formats, binades: Binades | None = None) -> Entries:
    """Compare both sides entry by entry, in parts that are read once.

    sides: of one shape, read in the working dtype. formats: the stored dtypes, of base and tuned.
    binades: also gets the numbers of every part.
    """
    energies: list[list[float]] = [[], [], [], []]  # of base, tuned and delta, and <base, delta>
    changed = 0
    finite = True
    casts = possible_casts(sides, formats)
    zeroed = True
    for part in parts((sides.base, sides.tuned), sides.dtype, sides.space):
        equal = part.is_equal()
        part.load(0)
        if casts or binades or not equal:
            part.load(1)
        base, tuned = part.numbers
        casts = [cast for cast in casts if _is_cast(cast, base, tuned)]
        if zeroed and not equal:
            zeroed = not tuned[tuned != base].any()
        if binades:
            binades.add(base, tuned)
        if equal:
            changed_of_part = 0
            products = [part.energy()] * 2
        else:
            changed_of_part, products = part.products()
        if all(map(math.isfinite, products)):
            for sums, value in zip(energies, products, strict=False):
                sums.append(value)
        else:
            finite = False
            if not equal:
                changed_of_part = part.changed()
        changed += changed_of_part
    rounded = None
    if casts and changed:
        rounded = casts[0]
    base_energy, tuned_energy, delta_energy, along = map(math.fsum, energies)
    return Entries(
        entries=sides.tuned.numel(),
        changed=changed,
        base=base_energy,
        tuned=tuned_energy,
        delta=delta_energy,
        along=along,
        finite=finite,
        zeroed=zeroed,
        rounded=rounded,
    )


def norm_values(entries: Entries) -> tuple[Measurement, ...]:
    """The columns of base, tuned and a nonzero delta from a pass over entries that is safe."""
    base = math.sqrt(entries.base)
    tuned = math.sqrt(entries.tuned)
    delta = math.sqrt(entries.delta)
    of_delta: Values = {
        "relative_norm": delta / base,
        "cosine": cosine(base, tuned, entries.delta, entries.along),
        "decay_cosine": decay_cosine(entries.along, delta, base),
        "zero_share": (entries.entries - entries.changed) / entries.entries,
        "zeroed": int(entries.zeroed),
    }
    return (
        norm_alone("base", base),
        norm_alone("tuned", tuned),
        norm_alone("delta", delta, of_delta),
    )


def differing_bytes(sides: Sides) -> int:
    """Say how many bytes differ between two sides of 8-bit values, whatever their meaning."""
    changed = 0
    for index, _ in tiles(sides.tuned):
        base = sides.base[index].view(torch.uint8)
        tuned = sides.tuned[index].view(torch.uint8)
        differ = np.not_equal(base.numpy(), tuned.numpy())
        changed += int(np.count_nonzero(differ))
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
        binades = HIGHEST - grid.min_exponent + 1
        self._grid = grid
        self._sums = np.zeros((3, binades))  # of ones, of changes and of squares

    def add(self, base: Tensor, tuned: Tensor) -> None:
        """Count more entries. base and tuned: (n,) of float32 or float64."""
        lowest = self._grid.min_exponent
        # floor(log2 |x|), from the bits; far below the smallest normal number of 16 bits for zeros
        if base.dtype == torch.float32:
            bits = base.view(torch.int32) >> 23
            exponents = (bits & 0xFF).long()
            exponents -= 127
        else:
            bits = base.view(torch.int64) >> 52
            exponents = bits & 0x7FF
            exponents -= 1023
        exponents.clamp_(lowest, HIGHEST)
        cells = exponents.sub_(lowest).numpy()
        delta = (tuned - base).numpy()
        squares = np.square(delta, dtype=np.float64)
        all_weights = None, delta != 0, squares
        for sums, weights in zip(self._sums, all_weights, strict=True):
            sums += np.bincount(cells, weights, len(sums))

    def cells(self) -> list[Cell]:
        """The cells that have entries, from small to large."""
        first = self._grid.min_exponent - self._grid.mantissa_bits - 1
        cells = []
        for number, (entries, changed, energy) in enumerate(self._sums.T):
            half_ulp = 2.0 ** (first + number)
            if entries:
                cells.append(Cell(half_ulp, int(entries), int(changed), float(energy)))
        return cells


def possible_casts(sides: Sides, formats: Formats) -> list[tuple[str, str]]:
    """The casts (side, format) that may have made one of the sides of the other: to its own
    format, or to one of fewer bits that holds its values. formats: the stored dtypes.
    """
    if isinstance(sides.base, Updated) or isinstance(sides.tuned, Updated):
        return []
    casts = []
    base, tuned = formats
    candidates = (("tuned", sides.tuned, tuned, base), ("base", sides.base, base, tuned))
    for side, matrix, stored, other in candidates:
        if is_quantised(matrix):
            continue
        for name in CASTS:
            is_own = name == stored != other
            is_narrower = 8 < FLOATS[name].bits < FLOATS[stored].bits
            if is_own or is_narrower:
                casts.append((side, name))
    return casts


def _is_cast(cast: tuple[str, str], base: Tensor, tuned: Tensor) -> bool:
    """True if one part (n,) is the other after a cast (side, format) of `possible_casts`."""
    side, name = cast
    original = base
    copy = tuned
    if side == "base":
        original = tuned
        copy = base
    rounded = original.to(torch_dtype(FLOATS[name]))
    return torch.equal(rounded.to(copy.dtype), copy)


def mark(matrix: Matrix) -> bytes:
    """A digest of the first values of a matrix, independent of their stored format: equal
    for equal matrices, and seldom for others.
    """
    index, _ = next(iter(tiles(matrix)))
    values = matrix[index].double() + 0.0  # -0 is 0
    numbers = values.numpy().tobytes()
    return hashlib.blake2b(numbers, digest_size=16).digest()


def cast(sides: Sides, formats: Formats) -> Cast | None:
    """Say which of the sides is the other in another format, in every entry: `tuned` if the tuned
    side is the base cast, `base` for the reverse; otherwise None.

    formats: stored dtypes. An F32 file may hold the values of a coarser format, so casts to those
    are tried too. The first entry that differs ends a search, so that this is cheap for ordinary
    pairs. A tuned side in more bits that moved less than half an ulp everywhere, as norms may, has
    a base that equals its cast: `base` needs a difference as large as rounding leaves.
    """
    if is_quantised(sides.tuned) or is_quantised(sides.base):
        return None
    casts = possible_casts(sides, formats)
    for index, _ in tiles(sides.tuned, PART):
        if not casts:
            return None
        numbers = sides.read(index)
        casts = [cast for cast in casts if _is_cast(cast, *numbers)]
    if not casts:
        return None
    side, name = casts[0]
    if side == "tuned":
        return "tuned"
    # of D, and of what rounding leaves on average: ulp² / 12 an entry
    energy = 0.0
    rounding = 0.0
    for base, tuned in sides.blocks(SMALL_BLOCK):
        errors = half_ulp(base.double(), FLOATS[name])
        rounding += float(errors.square_().sum()) / 3
        delta = tuned.sub_(base)
        energy += float(delta.square_().sum(dtype=torch.float64))
    if energy >= AS_ROUNDING * rounding:
        return "base"
    return None


def cosine(base: float, tuned: float, energy: float, along: float) -> float | None:
    """<W_base, W_tuned> / (norm norm), from both norms, the energy of D and along = <W_base, D>, so
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
        return _clipped((base + along / base) / tuned)
    longer = (2.0 * along + energy) / (tuned + base)
    distance = (energy - longer**2) / (2.0 * base * tuned)
    return _clipped(1.0 - distance)


def _clipped(cosine: float) -> float:
    """The cosine between -1 and 1, which rounding may leave."""
    return max(-1.0, min(1.0, cosine))


def decay_cosine(product: float, delta_norm: float, base_norm: float) -> float | None:
    """<D, W_base> / (delta_norm base_norm), in [-1, 1]: below 0 if weights decayed. None if a norm
    is 0. product: the numerator, from D.
    """
    norms = delta_norm * base_norm
    if norms > 0:
        return _clipped(product / norms)
    return None
