"""Two matrices entry by entry, in one pass: how many entries differ, how far, and whether one side
is the other in another format.

Sums are made tile by tile as a matrix is cut, in float32 for formats of at most 16 bits and in
float64 for others, and added up in float64: they are right to 1e-6 and do not depend on what runs
beside them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from shadow.dtypes import FLOATS, FloatFormat
from shadow.spectra.lazy import Matrix, Quantised, Updated
from shadow.spectra.spectrum import Sides, shape_of, tiles

# squares of float32 that neither vanish nor overflow; a tile beyond them is summed in float64
SAFE = 1e-26, 1e36
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
CASTS = ("BF16", "F16", "F32", "F8_E4M3", "F8_E5M2")
HIGHEST = 128  # exponent of a base beyond which binades are not told apart
MARKS = 1 << 14  # weights of a mark, which repeat


@dataclass(frozen=True, slots=True)
class Entries:
    """What a pass over the entries of two matrices of one shape finds."""

    entries: int
    changed: int
    """Entries whose values differ; +0 and -0 are one value, and so are two NaN."""
    base: float
    """The sum of W_base², as those below in float64."""
    tuned: float
    delta: float
    """Of (W_tuned - W_base)²."""
    inner: float
    """Of W_base W_tuned."""
    finite: bool
    """Whether both sides are; otherwise the sums are those of the tiles in which they are."""
    rounded: tuple[str, str] | None = None
    """(side, format) where that side is the other rounded to a format, in every entry; None where
    neither is, or nothing changed.
    """


@dataclass
class _Sums:
    """Sums in the making."""

    changed: int = 0
    base: list[float] = field(default_factory=list)
    tuned: list[float] = field(default_factory=list)
    delta: list[float] = field(default_factory=list)
    inner: list[float] = field(default_factory=list)
    finite: bool = True

    def add_equal(self, b: Tensor) -> None:
        """A tile of which both sides are b."""
        (energy,) = _dots((b, b))
        if not math.isfinite(energy):
            self.finite = False
            return
        self.base.append(energy)
        self.tuned.append(energy)
        self.inner.append(energy)

    def add(self, b: Tensor, t: Tensor) -> None:
        """A tile of both sides; t becomes the delta."""
        differ = np.not_equal(b.numpy(), t.numpy())
        changed = int(np.count_nonzero(differ))
        if changed == 0:
            self.add_equal(b)
            return
        base, tuned, inner = _dots((b, b), (t, t), (b, t))
        if not (math.isfinite(base) and math.isfinite(tuned)):
            self.finite = False
            self.changed += int((torch.from_numpy(differ) & ~(b.isnan() & t.isnan())).sum())
            return
        self.changed += changed
        self.base.append(base)
        self.tuned.append(tuned)
        self.inner.append(inner)
        t.sub_(b)
        self.delta += _dots((t, t))


def _dots(*pairs: tuple[Tensor, Tensor]) -> list[float]:
    """The inner product of each pair of contiguous tensors; in float64 where a square of float32
    might vanish or overflow.
    """
    found = []
    for one, other in pairs:
        first, second = one.view(-1), other.view(-1)
        value = float(torch.dot(first, second))
        if one.dtype == torch.float32 and not SAFE[0] < abs(value) < SAFE[1]:
            value = float(torch.dot(first.double(), second.double()))
        found.append(value)
    return found


def compared(sides: Sides, formats: tuple[str, str]) -> Entries:
    """Both sides entry by entry. formats: the stored dtypes, of base and tuned."""
    sums = _Sums()
    alive = _casts(sides, formats)
    for index, _ in tiles(sides.tuned):
        raw = sides.base[index], sides.tuned[index]
        equal = _same_bits(*raw)
        if equal and not alive:
            sums.add_equal(_read(sides, raw[1], "tuned"))
            continue
        b, t = _read(sides, raw[0], "base"), _read(sides, raw[1], "tuned")
        alive = [cast for cast in alive if _is_cast(cast, b, t)]
        if equal:
            sums.add_equal(t)
        else:
            sums.add(b, t)
    rows, cols = shape_of(sides.tuned)
    return Entries(
        entries=rows * cols,
        changed=sums.changed,
        base=math.fsum(sums.base),
        tuned=math.fsum(sums.tuned),
        delta=math.fsum(sums.delta),
        inner=math.fsum(sums.inner),
        finite=sums.finite,
        rounded=alive[0] if alive and sums.changed else None,
    )


def differing_bytes(sides: Sides) -> int:
    """How many bytes differ of two matrices of 8-bit values, whatever these mean."""
    changed = 0
    for index, _ in tiles(sides.tuned):
        b, t = (side[index].view(torch.uint8).numpy() for side in (sides.base, sides.tuned))
        changed += int(np.count_nonzero(np.not_equal(b, t)))
    return changed


def by_binade(sides: Sides, grid: FloatFormat) -> list[tuple[float, int, int, float]]:
    """Of the entries whose base lies between two powers of two, from small to large: half a unit in
    the last place of a format there, how many there are, how many changed, and the sum of squares
    of the differences. Zeros are with the smallest.
    """
    lowest = grid.min_exponent
    count = HIGHEST - lowest + 1
    entries, changed, energy = np.zeros(count), np.zeros(count), np.zeros(count)
    for index, _ in tiles(sides.tuned):
        b = _read(sides, sides.base[index], "base").view(-1)
        t = _read(sides, sides.tuned[index], "tuned").view(-1)
        cells = _exponents(b).clamp_(lowest, HIGHEST).sub_(lowest).numpy()
        away = t.sub_(b).numpy()
        entries += np.bincount(cells, minlength=count)
        changed += np.bincount(cells, away != 0, minlength=count)
        energy += np.bincount(cells, np.square(away, dtype=np.float64), minlength=count)
    return [
        (
            2.0 ** (int(cell) + lowest - grid.mantissa_bits - 1),
            int(entries[cell]),
            int(changed[cell]),
            float(energy[cell]),
        )
        for cell in np.flatnonzero(entries)
    ]


def _exponents(values: Tensor) -> Tensor:
    """floor(log2 |x|) of each number of float32 or float64, from its bits; int64. Far below the
    smallest normal number of a format of 16 bits for zeros.
    """
    if values.dtype == torch.float32:
        return ((values.view(torch.int32) >> 23) & 0xFF).long().sub_(127)
    return ((values.view(torch.int64) >> 52) & 0x7FF).sub_(1023)


def _read(sides: Sides, part: Tensor, name: str) -> Tensor:
    """A part as a contiguous tensor of the working dtype, in a buffer."""
    buffer = sides.space.take(name, part.shape, sides.dtype)
    return buffer.copy_(part)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype:
        return False
    whole = INTEGERS[one.dtype.itemsize]
    return torch.equal(one.view(whole), other.view(whole))


def _casts(sides: Sides, formats: tuple[str, str]) -> list[tuple[str, str]]:
    """The casts that may have made one side of the other: to its own format, or to one of fewer
    bits whose values it holds.
    """
    if any(isinstance(side, Updated | Quantised) for side in (sides.base, sides.tuned)):
        return []
    found = []
    for side, stored, other in (("tuned", formats[1], formats[0]), ("base", *formats)):
        for name in CASTS:
            own = name == stored != other
            narrower = FLOATS[name].bits < FLOATS[stored].bits and FLOATS[name].bits > 8
            if own or narrower:
                found.append((side, name))
    return found


def _is_cast(cast: tuple[str, str], b: Tensor, t: Tensor) -> bool:
    side, name = cast
    source, found = (b, t) if side == "tuned" else (t, b)
    return torch.equal(source.to(getattr(torch, FLOATS[name].torch_name)).to(b.dtype), found)


def mark(matrix: Matrix) -> tuple[float, float]:
    """Two sums that say whether two matrices of one shape hold the same values in the same order.

    Matrices with equal marks are equal but for chance: every entry counts with a weight of its own
    tile, drawn once.
    """
    weights = _weights()
    first, second = [], []
    for index, _ in tiles(matrix):
        values = matrix[index].double().reshape(-1)
        values = torch.nn.functional.pad(values, (0, -len(values) % MARKS)).view(-1, MARKS)
        each = values @ weights
        order = torch.arange(1, len(each) + 1, dtype=torch.float64)
        first.append(float(each.sum()))
        second.append(float(each @ order))
    steps = range(1, len(first) + 1)
    return math.fsum(first), math.fsum(a * step for a, step in zip(second, steps, strict=True))


def _weights() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(MARKS, generator=generator, dtype=torch.float64)
