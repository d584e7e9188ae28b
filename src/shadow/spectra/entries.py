"""Two matrices entry by entry, in one pass: how many entries differ, how far, and whether one side
is the other in another format.

Sums are made part by part, in float32 for formats of at most 32 bits and in float64 for others, and
added up in float64: they are right to 1e-6. How a matrix is cut depends on its shape alone, so that
they do not depend on what runs beside them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.dtypes import FLOATS, FloatFormat
from shadow.spectra.edge import cosine, decay_cosine
from shadow.spectra.lazy import Matrix, Quantised, Stored, Updated
from shadow.spectra.measurement import Measurement, Values, norm_alone
from shadow.spectra.spectrum import Sides, shape_of, tiles

# squares of float32 that neither vanish nor overflow; a part beyond them is summed in float64
SAFE = 1e-26, 1e36
# Entries of a part: two sides of 16 bits, both in float32 and what is made of them are 1 MB, which
# the caches of a core hold. Parts of twice as many take 1.5 times as long, of half as many 1.1.
PART = 1 << 16
HEAD = 256  # entries that are compared first: sides that differ do so there, as a rule
LINE = 1 << 10  # entries whose products are summed in float32
SIDES = ("base", "tuned")
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
    along: float
    """Of W_base (W_tuned - W_base)."""
    finite: bool
    """Whether both sides are; otherwise the sums are those of the parts in which they are."""
    rounded: tuple[str, str] | None = None
    """(side, format) where that side is the other rounded to a format, in every entry; None where
    neither is, or nothing changed.
    """


class _Part:
    """Buffers for parts of one number of entries, in every view that calls need: a view costs as
    much as a sum of a thousand numbers.
    """

    def __init__(self, sides: Sides, count: int, flat: Sequence[Stored] = ()) -> None:
        """flat: both sides where they are read as they are stored."""
        self.raw: list[Tensor] = [  # what is stored, of any shape
            sides.space.take(f"raw {name}", (count,), side.dtype)
            for name, side in zip(SIDES, flat, strict=False)
        ]
        self._bits: list[NDArray[Any]] = [
            raw.view(INTEGERS[raw.itemsize]).numpy() for raw in self.raw
        ]
        self._head = [bits[:HEAD] for bits in self._bits]
        self._one_format = len({side.dtype for side in flat}) == 1
        self.bytes = [bits.view(np.uint8).data for bits in self._bits]
        height = -(-count // LINE)
        padded = [sides.space.take(name, (height * LINE,), sides.dtype) for name in SIDES]
        for numbers in padded:
            numbers[count:] = 0
        self.numbers = [numbers[:count] for numbers in padded]
        self.lines = [numbers.view(height, LINE).numpy() for numbers in padded]
        self._products = np.empty((4, height), self.lines[0].dtype)
        self._differ = sides.space.take("differs", (count,), torch.bool).numpy()
        self._plain = [numbers.numpy() for numbers in self.numbers]

    def load(self, *sides: int) -> None:
        """The numbers of these sides, from what is stored."""
        for side in sides:
            self.numbers[side].view(self.raw[side].shape).copy_(self.raw[side])

    def is_equal(self) -> bool:
        """Whether what was read of both sides has the same bits."""
        if not self._one_format or self._head[0].tobytes() != self._head[1].tobytes():
            return False
        return not np.not_equal(self._bits[0], self._bits[1], out=self._differ).any()

    def changed(self) -> int:
        """How many numbers differ; NaN differs from NaN."""
        return int(np.count_nonzero(np.not_equal(self._plain[0], self._plain[1], out=self._differ)))

    def energy(self) -> float:
        """The energy of the numbers of the base."""
        b = self.lines[0]
        energy = float(np.vecdot(b, b, out=self._products[0]).sum(dtype=np.float64))
        return energy if _is_safe(energy) else self._in_float64(self.raw[0], self.raw[0])[0]

    def products(self) -> list[float]:
        """The energies of base, tuned and delta, and <base, delta>. Those of the tuned side become
        the numbers of the delta.
        """
        (b, t), out = self.lines, self._products
        np.vecdot(b, b, out=out[0])
        np.vecdot(t, t, out=out[1])
        np.subtract(t, b, out=t)
        np.vecdot(t, t, out=out[2])
        np.vecdot(b, t, out=out[3])
        found: list[float] = out.sum(axis=1, dtype=np.float64).tolist()
        return found if all(map(_is_safe, found[:3])) else self._in_float64(*self.raw)

    @staticmethod
    def _in_float64(base: Tensor, tuned: Tensor) -> list[float]:
        b, t = (side.double().reshape(-1).numpy() for side in (base, tuned))
        d = t - b
        return [float(np.vecdot(*pair)) for pair in ((b, b), (t, t), (d, d), (b, d))]


def _is_safe(energy: float) -> bool:
    """Whether no square of float32 can have vanished or overflowed."""
    return SAFE[0] < energy < SAFE[1]


def compared(sides: Sides, formats: tuple[str, str]) -> Entries:
    """Both sides entry by entry. formats: the stored dtypes, of base and tuned."""
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is summed in float64
        return _compared(sides, formats)


def _compared(sides: Sides, formats: tuple[str, str]) -> Entries:
    energies: list[list[float]] = [[], [], [], []]  # of base, tuned and delta, and <base, delta>
    changed, finite = 0, True
    alive = _casts(sides, formats)
    flat = [side for side in (sides.base, sides.tuned) if _is_flat(side)]
    for part in _flat_parts(sides, flat) if len(flat) == len(SIDES) else _tile_parts(sides):
        equal = part.is_equal()
        part.load(*((0,) if equal and not alive else (0, 1)))
        alive = [cast for cast in alive if _is_cast(cast, *part.numbers)]
        here = 0 if equal else part.changed()
        found = part.products() if here else [part.energy()]
        if not all(map(math.isfinite, found)):
            finite = False
            if here:
                part.load(0, 1)
                b, t = part.numbers
                changed += here - int((b.isnan() & t.isnan()).sum())
            continue
        changed += here
        for sums, value in zip(energies, found if here else found * 2, strict=False):
            sums.append(value)
    base, tuned, delta, along = map(math.fsum, energies)
    rows, cols = shape_of(sides.tuned)
    return Entries(
        entries=rows * cols,
        changed=changed,
        base=base,
        tuned=tuned,
        delta=delta,
        along=along,
        finite=finite,
        rounded=alive[0] if alive and changed else None,
    )


def norm_values(found: Entries) -> tuple[Measurement, ...]:
    """What a pass over entries says of base, tuned and a delta that is not 0, as columns."""
    base, tuned, delta = (math.sqrt(energy) for energy in (found.base, found.tuned, found.delta))
    of_delta: Values = {
        "relative_norm": delta / base if base > 0 else None,
        "cosine": cosine(base, tuned, found.delta, found.along),
        "decay_cosine": decay_cosine(found.along, delta, base),
        "zero_share": (found.entries - found.changed) / found.entries,
    }
    return (
        norm_alone("base", base),
        norm_alone("tuned", tuned),
        norm_alone("delta", delta, of_delta),
    )


def _is_flat(side: Matrix) -> TypeGuard[Stored]:
    """Whether all entries lie in a file in order, without gaps."""
    return isinstance(side, Stored) and side.is_flat


def _flat_parts(sides: Sides, flat: Sequence[Stored]) -> Iterator[_Part]:
    """Parts as they lie in files, of which the raw entries are read."""
    part, whole = _Part(sides, PART, flat), sides.tuned.numel()
    for start in range(0, whole, PART):
        if whole - start < PART:
            part = _Part(sides, whole - start, flat)
        for side, room in zip(flat, part.bytes, strict=True):
            side.fill(start, room)
        yield part


def _tile_parts(sides: Sides) -> Iterator[_Part]:
    """Parts of matrices of any kind."""
    for index, _ in tiles(sides.tuned, PART, PART):
        raw = sides.base[index], sides.tuned[index]
        part = _Part(sides, raw[0].numel())
        part.raw = list(raw)
        yield part


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


def _casts(sides: Sides, formats: tuple[str, str]) -> list[tuple[str, str]]:
    """The casts that may have made one side of the other: to its own format, or to one of fewer
    bits whose values it holds.
    """
    if any(isinstance(side, Updated) for side in (sides.base, sides.tuned)):
        return []
    found = []
    for side, stored, other in (("tuned", formats[1], formats[0]), ("base", *formats)):
        if isinstance(getattr(sides, side), Quantised):
            continue
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
