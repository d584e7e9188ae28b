"""Sums over the entries of matrices, in one pass.

`sums` are the sums of a pair that spectra need: norms, products, ulps, profiles. `parts` reads
matrices of one shape together, in parts that fit in the caches of a core. Sums over a part are made
line by line in the working dtype and added up in float64: in float32 they are right to 1e-6. How
matrices are split depends on their shape, and on whether all lie in their files in order, but not
on what runs at the same time: sums of the same files are the same. `looked_at` examines a matrix
that may hold anything.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.dtypes import FloatFormat
from shadow.spectra.costs import PART
from shadow.spectra.lazy import InFile, Matrix, is_stored
from shadow.spectra.noise import Profile
from shadow.spectra.pages import PAGED, PageSample
from shadow.spectra.spectrum import Sides, Workspace, power_of_two_scale, read_block, tiles

# Entries of a tile and its columns at most: two sides, their difference and a product are 1 MB in
# float32, which the caches of a core hold.
SUMMED = 1 << 16
NARROW = 1 << 11
UNSCALED = 2.0**24  # a largest entry below which nothing needs a smaller scale
# Sizes whose norms float64 holds, and how many times a side may be larger than the other, so that
# the squares of both are held at one scale.
SMALLEST = 2.0**-1020
LARGEST = 2.0**1000
FURTHEST = 2.0**400


@dataclass(frozen=True)
class Extent:
    """The largest absolute entries, in units of the weights: NaN or infinite if any entry is."""

    base: float
    tuned: float
    delta: float  # of tuned - base; 0 where both sides are equal

    @property
    def finite(self) -> bool:
        """True if all entries of both sides are finite."""
        return math.isfinite(self.base) and math.isfinite(self.tuned)

    @property
    def in_range(self) -> bool:
        """True if float64 holds the sums of both sides and of the delta."""
        sizes = [size for size in (self.base, self.tuned, self.delta) if size]
        sides = [size for size in (self.base, self.tuned) if size]
        if not all(SMALLEST <= size <= LARGEST for size in sizes):
            return False
        return not sides or max(sides) / min(sides) <= FURTHEST

    @property
    def scales(self) -> tuple[float, float]:
        """Powers of two: of both sides, and of the delta of both scaled sides."""
        scale = power_of_two_scale(max(self.base, self.tuned))
        return scale, power_of_two_scale(self.delta) / scale

    @property
    def is_plain(self) -> bool:
        """True if squares of every side are safe without a scale."""
        return all(power_of_two_scale(size) == 1.0 for size in (self.base, self.tuned, self.delta))


def extent(sides: Sides) -> Extent:
    """The largest absolute entries of both sides and of their difference, in one pass."""
    largest = [0.0, 0.0, 0.0]
    for index, _ in tiles(sides.tuned):
        b, t = (side.numpy() for side in sides.read(index))
        largest[:2] = _larger(largest[0], b), _larger(largest[1], t)
        with np.errstate(invalid="ignore", over="ignore"):  # infinity less infinity
            largest[2] = _larger(largest[2], np.subtract(t, b, out=t))
    return Extent(*largest)


def largest_entry(matrix: Matrix, dtype: torch.dtype, space: Workspace) -> float:
    """The largest absolute entry, NaN or infinite if any entry is."""
    largest = 0.0
    for index, _ in tiles(matrix):
        largest = _larger(largest, read_block(matrix, index, "tuned", dtype, space).numpy())
    return largest


def _larger(largest: float, block: NDArray[np.floating]) -> float:
    # of both together torch takes twice as long; np.maximum hands NaN on, max() does not
    return float(np.maximum(largest, max(-float(block.min()), float(block.max()))))


@dataclass(frozen=True)
class Sums:
    """Sums over all entries of a pair, in units of weights squared times scale²."""

    profile: Profile  # of D, with a scale of its own
    base: float  # of squares
    tuned: float  # of squares
    along: float  # <W_base, D>, times profile.scale / scale; of any sign
    ulps: float  # of squared ulps, as `sums` defines them, > 0
    zeros: int  # entries in which both sides agree
    zeroed: bool  # whether all others are 0 in the tuned side
    scale: float  # the power of two that entries were multiplied by
    ulp_rows: NDArray[np.float64]  # (rows,): the same sums of squared ulps, by row
    ulp_cols: NDArray[np.float64]  # (cols,): and by column
    size: Extent
    stored: FloatFormat  # whose ulps they are


def sums(sides: Sides, stored: FloatFormat) -> Sums | Extent:
    """Every sum over entries; only the extent if an entry is not finite, if float64 does not
    hold the sums, or if both sides agree.

    stored: the coarser format of the two, for ulps. Usually one pass: entries whose squares are
    safe need no scale, and two sides that differ do so in the first tile. Entries whose squares are
    not safe are summed in float64.
    """
    result = _sums(sides, stored, None)
    if result is None:
        size = extent(sides)
        if not (size.finite and size.in_range and size.delta):
            return size
        dtype = sides.dtype if size.is_plain else torch.float64
        result = _sums(replace(sides, dtype=dtype), stored, size)
        assert result is not None, "its extent is known"
    return result


def _sums(sides: Sides, stored: FloatFormat, size: Extent | None) -> Sums | None:
    """size: None if unknown; then None is returned if the scales are not 1, or the first tile has
    no difference.
    """
    rows, cols = sides.shape
    largest = [0.0, 0.0, 0.0]
    scale = delta_scale = 1.0
    if size is not None:
        scale, delta_scale = size.scales
    # without its other bits a number x >= 0 is 2^floor(log2 x), or 0 where it is subnormal
    is_wide = sides.dtype == torch.float64
    integer: type[np.signedinteger] = np.int64 if is_wide else np.int32
    exponent_mask = 0x7FF << 52 if is_wide else 0xFF << 23
    smallest = np.array(math.ldexp(scale, stored.min_exponent), f"f{8 if is_wide else 4}")
    smallest_normal = smallest.view(integer)
    r = np.zeros(rows)
    c = np.zeros(cols)
    reached = np.zeros(rows, dtype=bool)
    ulp_rows = np.zeros(rows)
    ulp_cols = np.zeros(cols)
    totals = dict.fromkeys(("base", "tuned", "along", "ulps", "fourth"), 0.0)
    different = 0
    zeroed = True
    for index, (row, col) in tiles(sides.tuned, SUMMED, NARROW):
        b, t = (side.numpy() for side in sides.read(index))
        if size is None:
            largest[:2] = _larger(largest[0], b), _larger(largest[1], t)
            if not (largest[0] < UNSCALED and largest[1] < UNSCALED):
                return None
        d = sides.space.take("work", b.shape, sides.dtype).numpy()
        product = sides.space.take("product", b.shape, sides.dtype).numpy()
        differs = sides.space.take("differs", b.shape, torch.bool).numpy()
        if scale != 1.0:
            b *= scale
            t *= scale
        totals["base"] += _products(b, b)
        totals["tuned"] += _products(t, t)
        np.subtract(t, b, out=d)
        if size is None:
            largest[2] = _larger(largest[2], d)
            if not largest[2]:
                return None
        np.not_equal(d, 0, out=differs)
        different += int(np.count_nonzero(differs))
        zeroed = zeroed and not t[differs].any()
        in_rows = slice(row, row + len(b))
        in_cols = slice(col, col + b.shape[1])
        reached[in_rows] |= differs.any(axis=1)
        if delta_scale != 1.0:
            d *= delta_scale
        totals["along"] += _products(b, d)
        down = np.ones(len(d), d.dtype)
        # The exponents of numbers >= 0 are in the order of their bits.
        b_bits = b.view(integer)
        t_bits = t.view(integer)
        b_bits &= exponent_mask
        t_bits &= exponent_mask
        np.maximum(b_bits, t_bits, out=b_bits)
        np.maximum(b_bits, smallest_normal, out=b_bits)
        squares = np.vecdot(b, b)
        totals["ulps"] += float(squares.sum(dtype=np.float64))
        ulp_rows[in_rows] += squares
        ulp_cols[in_cols] += down @ np.square(b, out=product)
        r[in_rows] += np.vecdot(d, d)
        np.square(d, out=d)
        c[in_cols] += down @ d
        totals["fourth"] += _products(d, d)
    measured = Extent(*largest) if size is None else size
    if size is None and not measured.is_plain:
        return None
    fourth = totals.pop("fourth")
    totals["ulps"] *= math.ldexp(1.0, -2 * stored.mantissa_bits)
    zeros = rows * cols - different
    profile = Profile(r, c, fourth, scale * delta_scale, int(np.count_nonzero(reached)))
    return Sums(
        profile,
        **totals,
        zeros=zeros,
        zeroed=zeroed,
        scale=scale,
        size=measured,
        stored=stored,
        ulp_rows=ulp_rows,
        ulp_cols=ulp_cols,
    )


def _products(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Sum a_ij b_ij: over rows in the precision of both, and in float64 over these sums."""
    return float(np.vecdot(a, b).sum(dtype=np.float64))


# squares of float32 that neither vanish nor overflow; a part beyond them is summed in float64
SAFE = 1e-26, 1e36
HEAD = 256  # entries that are compared first: sides that differ do so there, as a rule
LINE = 1 << 10  # entries whose products are summed in float32
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
WORK = -1  # the row of `Part.lines` for what is made of the numbers


class EntryBlock:
    """The same entries of several matrices, in reusable buffers, and in every view that calls need:
    a view costs as much as a sum of a thousand numbers.
    """

    def __init__(
        self, space: Workspace, dtype: torch.dtype, matrices: int, count: int,
        stored: Sequence[torch.dtype] = (),
    ) -> None:  # fmt: skip
        """stored: the dtypes of all, if they are read as stored."""
        self.count = count
        self.raw = [  # what is stored, of any shape
            space.take(f"raw {number}", (count,), dtype_stored)
            for number, dtype_stored in enumerate(stored)
        ]
        bits: list[NDArray[Any]] = [raw.view(INTEGERS[raw.itemsize]).numpy() for raw in self.raw]
        self.bytes = [some.view(np.uint8).data for some in bits]
        self._bits = bits[:2]
        self._head = [some[:HEAD] for some in bits[:2]]
        self._one_format = len(set(stored[:2])) == 1
        height = -(-count // LINE)
        padded = space.take("parts", (matrices + 1, height * LINE), dtype)
        self.rest = padded[:, count:]
        self.numbers: list[Tensor] = [row[:count] for row in padded[:matrices]]
        self.lines = padded.view(matrices + 1, height, LINE).numpy()
        self._sums = np.empty((2, 2, height), self.lines.dtype)
        self._differ = space.take("differs", (height * LINE,), torch.bool).numpy()

    def load(self, *matrices: int) -> None:
        """Load the numbers of these matrices from their stored bytes."""
        for number in matrices:
            raw = self.raw[number]
            numbers = self.numbers[number]
            (numbers if raw.ndim == 1 else numbers.view(raw.shape)).copy_(raw)

    def is_equal(self) -> bool:
        """True if the first two, as read, have the same bits."""
        if not self._one_format or self._head[0].tobytes() != self._head[1].tobytes():
            return False
        differ = self._differ[: self.count]
        return not np.not_equal(self._bits[0], self._bits[1], out=differ).any()

    def energy(self) -> float:
        """The energy of the numbers of the first."""
        energy = self.product(0, 0)
        if is_safe(energy):
            return energy
        return self._in_float64(self.raw[0], self.raw[0])[0]

    def product(self, first: int, second: int) -> float:
        """The inner product of two rows of lines."""
        products = np.vecdot(self.lines[first], self.lines[second], out=self._sums[0, 0])
        return float(products.sum(dtype=np.float64))

    def products(self, into: int = 1) -> tuple[int, list[float]]:
        """Say how many numbers of the first two differ, the energies of both and of the delta,
        and <first, delta>. The delta becomes that row of lines. Correct if both are finite.
        """
        pair = self.lines[:2]
        out = self._sums
        delta = self.lines[into]
        np.vecdot(pair, pair, out=out[0])
        np.subtract(pair[1], pair[0], out=delta)
        changed = self.nonzero(into)
        np.vecdot(delta, pair[0], out=out[1, 0])
        np.vecdot(delta, delta, out=out[1, 1])
        first, second, along, energy = out.sum(axis=2, dtype=np.float64).ravel().tolist()
        if is_safe(first) and is_safe(second) and (is_safe(energy) or not changed):
            return changed, [first, second, energy, along]
        return changed, self._in_float64(*self.raw[:2])

    def nonzero(self, row: int) -> int:
        """Say how many numbers of a row of lines are not 0."""
        line = self.lines[row].reshape(-1)
        return int(np.count_nonzero(np.not_equal(line, 0, out=self._differ)))

    def changed(self) -> int:
        """Say how many numbers of the first two differ, if some are not finite; NaN equals NaN.
        Loads them.
        """
        self.load(0, 1)
        return differing(*self.numbers[:2])

    @staticmethod
    def _in_float64(base: Tensor, tuned: Tensor) -> list[float]:
        b, t = (side.double().reshape(-1).numpy() for side in (base, tuned))
        d = t - b
        return [float(np.vecdot(*pair)) for pair in ((b, b), (t, t), (d, d), (b, d))]


def differing(first: Tensor, second: Tensor) -> int:
    """Say how many entries differ; NaN beside NaN does not."""
    differ = np.not_equal(first.numpy(), second.numpy())
    if not differ.any():
        return 0
    return int(np.count_nonzero(differ & ~(np.isnan(first.numpy()) & np.isnan(second.numpy()))))


def is_safe(energy: float) -> bool:
    """True if no square of float32 can have vanished or overflowed."""
    return SAFE[0] < energy < SAFE[1]


def _part(
    space: Workspace, dtype: torch.dtype, matrices: int, count: int,
    stored: Sequence[torch.dtype] = (),
) -> EntryBlock:  # fmt: skip
    """The part of that many entries that a worker reuses, its numbers undefined."""
    key = "part", dtype, matrices, count, *stored
    part = space.once(key, lambda: EntryBlock(space, dtype, matrices, count, stored))
    part.rest.zero_()
    return part


def parts(matrices: Sequence[Matrix], dtype: torch.dtype, space: Workspace) -> Iterator[EntryBlock]:
    """Yield matrices of one shape part by part, with their stored bytes. Numbers are not loaded.

    dtype: of the numbers. A part must be used before the next is requested.
    """
    # those whose entries lie in their files in order, without gaps
    flat = [matrix for matrix in matrices if is_stored(matrix) and matrix.is_flat]
    if len(flat) < len(matrices):
        for index, _ in tiles(matrices[-1], PART, PART):
            raw = [matrix[index] for matrix in matrices]
            part = _part(space, dtype, len(raw), raw[0].numel())
            part.raw = raw
            yield part
            part.raw = []  # a part is kept, and what was read of a matrix would be with it
        return
    stored = [matrix.dtype for matrix in flat]
    whole = matrices[-1].numel()
    for start in range(0, whole, PART):
        if start == 0 or whole - start < PART:
            part = _part(space, dtype, len(flat), min(PART, whole - start), stored)
        for matrix, room in zip(flat, part.bytes, strict=True):
            matrix.fill(start, room)
        yield part


CLIP = 65504.0, 65536.0  # the largest number of F16, and that number in BF16


@dataclass(frozen=True)
class Extremes:
    """Statistics of the entries of a matrix."""

    entries: int
    nan: int
    infinite: int
    first: float
    """The first entry; where `is_constant`, every one."""
    is_constant: bool
    energy: float
    """The sum of squares of the rows that are finite."""
    zero_rows: tuple[int, ...] = ()
    """Of a matrix that is not constant."""
    constant_rows: tuple[int, ...] = ()
    """Rows of one value other than 0."""
    clipped: int = 0
    """Entries at the largest number of F16, or where BF16 has it."""
    damaged: tuple[int, ...] = ()
    """Where pieces of 2 KB begin that damage explains (see `pages`), in bytes."""
    slices: tuple[int, ...] = ()
    """A number for each matrix of a stack, the same for equal ones; 0 for one of zeros."""

    @property
    def is_zero(self) -> bool:
        """True if every entry is 0."""
        return self.is_constant and not self.first


class Examination:
    """The statistics of a matrix, all of whose entries come in order. dtype: as it is stored;
    slices: matrices that it is a stack of.
    """

    extremes: Extremes | None = None  # once all have come

    def __init__(self, rows: int, cols: int, dtype: str, slices: int) -> None:
        self.entries = rows * cols
        self._slices = np.zeros(slices, int)
        self._pages = PageSample(dtype) if rows > 1 and dtype in PAGED else None
        self._cols = cols
        self._waiting: list[NDArray[np.floating]] = []  # for the end of their row
        self._count = 0  # of their entries
        self._blocks = self._examine(rows)
        next(self._blocks)

    @np.errstate(over="ignore", invalid="ignore")
    def add(self, part: Tensor) -> None:
        """Take the next entries; none once all have come."""
        self._waiting.append(part.numpy())
        self._count += len(part)
        whole = self._count // self._cols * self._cols
        if not whole:
            self._waiting[-1] = self._waiting[-1].copy()
            return
        numbers = np.concatenate(self._waiting)
        self._waiting = [numbers[whole:]]
        self._count -= whole
        self._blocks.send(numbers[:whole].reshape(-1, self._cols))

    def _examine(self, rows: int) -> Generator[None, NDArray[np.floating]]:
        """Examine the blocks of rows that are sent."""
        nan = infinite = clipped = row = 0
        energy = 0.0
        first = None
        is_constant = True
        flat: list[tuple[int, float]] = []  # rows of one value
        while row < rows:
            block = yield
            squares = np.vecdot(block, block)
            total = float(squares.sum(dtype=np.float64))
            slices = np.arange(row, row + len(block)) * len(self._slices) // rows
            # integers have the same sum in any order
            np.add.at(self._slices, slices, squares.view(f"i{squares.itemsize}"))
            first = float(block[0, 0]) if first is None else first
            if squares.max() >= CLIP[0] ** 2:
                large = np.abs(block[squares >= CLIP[0] ** 2])
                clipped += int(np.isin(large, CLIP).sum())
            # squares of float32 may overflow, or vanish: such rows are looked at again
            if not (squares.min() > SAFE[0] and squares.max() < SAFE[1]):
                odd = ~((squares > SAFE[0]) & (squares < SAFE[1]))
                again = block[odd].astype(np.float64)
                nan += int(np.isnan(again).sum())
                infinite += int(np.isinf(again).sum())
                finite = again[np.isfinite(again).all(axis=1)]
                total = float(squares[~odd].sum(dtype=np.float64) + np.vecdot(finite, finite).sum())
            energy += total
            ends = block[:, 0] == block[:, -1]
            here = [at for at in np.flatnonzero(ends) if (block[at] == block[at, 0]).all()]
            if is_constant:
                is_constant = len(here) == len(block) and bool((block[:, 0] == first).all())
            flat += [(row + int(at), float(block[at, 0])) for at in here if block.shape[1] > 1]
            row += len(block)
            if self._pages:
                self._pages.add(block.reshape(-1))
        some = [] if is_constant else flat
        self.extremes = Extremes(
            self.entries, nan, infinite, first or 0.0, is_constant, energy,
            tuple(at for at, value in some if not value), tuple(at for at, value in some if value),
            clipped, self._pages.damaged() if self._pages else (), tuple(self._slices.tolist()),
        )  # fmt: skip
        while True:
            yield


def looked_at(
    matrix: InFile | torch.Tensor, space: Workspace, stored: str = "", slices: int = 1
) -> Extremes:
    """Examine a matrix (rows, cols) in one pass, including NaN and infinity. stored: its dtype;
    slices: matrices of one size that lie in it, one after the other.
    """
    rows, cols = matrix.shape
    examination = Examination(rows, cols, stored, slices)
    dtype = torch.float64 if matrix.dtype == torch.float64 else torch.float32
    for part in parts((matrix,), dtype, space):
        part.load(0)
        examination.add(part.numbers[0])
    assert examination.extremes, "every entry has come"
    return examination.extremes
