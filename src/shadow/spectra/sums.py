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
from collections.abc import Iterator, Sequence
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
from shadow.spectra.spectrum import Floats, Sides, Workspace, power_of_two_scale, read_block, tiles

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
        """True if all entries are finite, and float64 holds the sums of both sides and of the
        delta.
        """
        sides = [size for size in (self.base, self.tuned) if size]
        sizes = [*sides, self.delta] if self.delta else sides
        if not all(SMALLEST <= size <= LARGEST for size in sizes):
            return False
        return not sides or max(sides) / min(sides) <= FURTHEST

    @property
    def scales(self) -> tuple[float, float]:
        """Powers of two: of both sides, and of the delta of both scaled sides."""
        scale = power_of_two_scale(max(self.base, self.tuned))
        of_delta = power_of_two_scale(self.delta)
        return scale, of_delta / scale

    @property
    def is_plain(self) -> bool:
        """True if squares of every side are safe without a scale."""
        return all(power_of_two_scale(size) == 1.0 for size in (self.base, self.tuned, self.delta))


def extent(sides: Sides) -> Extent:
    """The largest absolute entries of both sides and of their difference, in one pass."""
    of_base = 0.0
    of_tuned = 0.0
    of_delta = 0.0
    for index, _ in tiles(sides.tuned):
        base, tuned = sides.read(index)
        b = base.numpy()
        t = tuned.numpy()
        of_base = _larger(of_base, b)
        of_tuned = _larger(of_tuned, t)
        with np.errstate(invalid="ignore", over="ignore"):  # infinity less infinity
            delta = np.subtract(t, b, out=t)
            of_delta = _larger(of_delta, delta)
    return Extent(of_base, of_tuned, of_delta)


def largest_entry(matrix: Matrix, dtype: torch.dtype, space: Workspace) -> float:
    """The largest absolute entry of a matrix, read in dtype through space, in weights; NaN or
    infinite if any entry is.
    """
    largest = 0.0
    for index, _ in tiles(matrix):
        block = read_block(matrix, index, "tuned", dtype, space)
        largest = _larger(largest, block.numpy())
    return largest


def _larger(largest: float, block: NDArray[np.floating]) -> float:
    """The largest of a number and the absolute entries of a block, NaN if any of them is."""
    # of both together torch takes twice as long; np.maximum hands NaN on, max() does not
    lowest = float(block.min())
    highest = float(block.max())
    return float(np.maximum(largest, max(-lowest, highest)))


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
    ulp_rows: Floats  # (rows,): the same sums of squared ulps, by row
    ulp_cols: Floats  # (cols,): and by column
    size: Extent
    stored: FloatFormat  # whose ulps they are

    @property
    def base_norm(self) -> float:
        """The Frobenius norm, in weights, as those below."""
        return math.sqrt(self.base) / self.scale

    @property
    def tuned_norm(self) -> float:
        """That of the tuned side."""
        return math.sqrt(self.tuned) / self.scale

    @property
    def delta_norm(self) -> float:
        """That of tuned - base."""
        return math.sqrt(self.profile.energy) / self.profile.scale


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
        if not (size.in_range and size.delta):
            return size
        dtype = torch.float64
        if size.is_plain:
            dtype = sides.dtype
        result = _sums(replace(sides, dtype=dtype), stored, size)
        assert result is not None, "its extent is known"
    return result


def _sums(sides: Sides, stored: FloatFormat, size: Extent | None) -> Sums | None:
    """size: None if unknown; then None is returned if the scales are not 1, or the first tile has
    no difference.
    """
    rows, cols = sides.shape
    largest_base = 0.0
    largest_tuned = 0.0
    largest_delta = 0.0
    scale = 1.0
    delta_scale = 1.0
    if size is not None:
        scale, delta_scale = size.scales
    # without its other bits a number x >= 0 is 2^floor(log2 x), or 0 where it is subnormal
    floating = "f4"
    integer = "i4"
    exponent_mask = 0xFF << 23
    if sides.dtype == torch.float64:
        floating = "f8"
        integer = "i8"
        exponent_mask = 0x7FF << 52
    smallest = math.ldexp(scale, stored.min_exponent)
    smallest_normal = np.array(smallest, floating).view(integer)
    r = np.zeros(rows)
    c = np.zeros(cols)
    reached = np.zeros(rows, dtype=bool)
    ulp_rows = np.zeros(rows)
    ulp_cols = np.zeros(cols)
    base = 0.0
    tuned = 0.0
    along = 0.0
    ulps = 0.0
    fourth = 0.0
    different = 0
    zeroed = True
    for index, (row, col) in tiles(sides.tuned, SUMMED, NARROW):
        b_tile, t_tile = sides.read(index)
        b = b_tile.numpy()
        t = t_tile.numpy()
        if size is None:
            largest_base = _larger(largest_base, b)
            largest_tuned = _larger(largest_tuned, t)
            if not (largest_base < UNSCALED and largest_tuned < UNSCALED):
                return None
        d = sides.space.take("work", b.shape, sides.dtype).numpy()
        product = sides.space.take("product", b.shape, sides.dtype).numpy()
        differs = sides.space.take("differs", b.shape, torch.bool).numpy()
        if scale != 1.0:
            b *= scale
            t *= scale
        base += inner_product(b, b)
        tuned += inner_product(t, t)
        np.subtract(t, b, out=d)
        if size is None:
            largest_delta = _larger(largest_delta, d)
            if not largest_delta:
                return None
        np.not_equal(d, 0, out=differs)
        different += int(np.count_nonzero(differs))
        zeroed = zeroed and not t[differs].any()
        in_rows = slice(row, row + len(b))
        in_cols = slice(col, col + b.shape[1])
        reached[in_rows] |= differs.any(axis=1)
        if delta_scale != 1.0:
            d *= delta_scale
        along += inner_product(b, d)
        down = np.ones(len(d), d.dtype)
        # The exponents of numbers >= 0 are in the order of their bits.
        b_bits = b.view(integer)
        t_bits = t.view(integer)
        b_bits &= exponent_mask
        t_bits &= exponent_mask
        np.maximum(b_bits, t_bits, out=b_bits)
        np.maximum(b_bits, smallest_normal, out=b_bits)
        squares = np.vecdot(b, b)
        ulps += float(squares.sum(dtype=np.float64))
        ulp_rows[in_rows] += squares
        ulp_cols[in_cols] += down @ np.square(b, out=product)
        r[in_rows] += np.vecdot(d, d)
        np.square(d, out=d)
        c[in_cols] += down @ d
        fourth += inner_product(d, d)
    if size is None:
        size = Extent(largest_base, largest_tuned, largest_delta)
        if not size.is_plain:
            return None
    profile = Profile(
        rows=r,
        cols=c,
        fourth=fourth,
        scale=scale * delta_scale,
        changed=int(np.count_nonzero(reached)),
    )
    return Sums(
        profile=profile,
        base=base,
        tuned=tuned,
        along=along,
        ulps=ulps * math.ldexp(1.0, -2 * stored.mantissa_bits),
        zeros=rows * cols - different,
        zeroed=zeroed,
        scale=scale,
        ulp_rows=ulp_rows,
        ulp_cols=ulp_cols,
        size=size,
        stored=stored,
    )


def inner_product(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Sum a_ij b_ij: over rows in the precision of both, and in float64 over these sums.

    a and b: (rows, cols), or (n,), which is one row.
    """
    by_row = np.vecdot(a, b)
    return float(by_row.sum(dtype=np.float64))


def in_float64(part: Tensor) -> Floats:
    """The entries of a part of a matrix, (n,)."""
    entries: Floats = part.double().reshape(-1).numpy()
    return entries


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
        self.raw: list[Tensor] = []  # what is stored, of any shape
        self.bytes: list[memoryview] = []
        bits: list[NDArray[Any]] = []
        for number, dtype_stored in enumerate(stored):
            raw = space.take(f"raw {number}", (count,), dtype_stored)
            integers = raw.view(INTEGERS[raw.itemsize]).numpy()
            self.raw.append(raw)
            self.bytes.append(integers.view(np.uint8).data)
            bits.append(integers)
        self._bits = bits[:2]
        self._heads = [integers[:HEAD] for integers in self._bits]
        self._one_format = len(set(stored[:2])) == 1
        height = -(-count // LINE)
        padded = space.take("parts", (matrices + 1, height * LINE), dtype)
        self.rest = padded[:, count:]
        self.numbers: list[Tensor] = [row[:count] for row in padded[:matrices]]
        self.lines = padded.view(matrices + 1, height, LINE).numpy()
        self._sums = np.empty((2, 2, height), self.lines.dtype)
        differ = space.take("differs", (height * LINE,), torch.bool)
        self._differ = differ.numpy()

    def load(self, *matrices: int) -> None:
        """Load the numbers of these matrices from their stored bytes."""
        for number in matrices:
            raw = self.raw[number]
            numbers = self.numbers[number]
            if raw.ndim > 1:
                numbers = numbers.view(raw.shape)
            numbers.copy_(raw)

    def is_equal(self) -> bool:
        """True if the first two, as read, have the same bits."""
        if not self._one_format:
            return False
        first, second = self._heads
        if first.tobytes() != second.tobytes():
            return False
        first, second = self._bits
        differ = self._differ[: self.count]
        np.not_equal(first, second, out=differ)
        return not differ.any()

    def energy(self) -> float:
        """The energy of the numbers of the first."""
        energy = self.product(0, 0)
        if is_safe(energy):
            return energy
        entries = in_float64(self.raw[0])
        return inner_product(entries, entries)

    def product(self, first: int, second: int) -> float:
        """The inner product of a first and a second row of lines."""
        by_line = self._sums[0, 0]
        np.vecdot(self.lines[first], self.lines[second], out=by_line)
        return float(by_line.sum(dtype=np.float64))

    def products(self, into: int = 1) -> tuple[int, list[float]]:
        """Say how many numbers of the first two differ, the energies of both and of the delta,
        and <first, delta>. The delta becomes that row of lines, into. Correct if both are finite.
        """
        pair = self.lines[:2]
        first = pair[0]
        delta = self.lines[into]
        by_line = self._sums
        np.vecdot(pair, pair, out=by_line[0])
        np.subtract(pair[1], first, out=delta)
        changed = self.nonzero(into)
        np.vecdot(delta, first, out=by_line[1, 0])
        np.vecdot(delta, delta, out=by_line[1, 1])
        totals = by_line.sum(axis=2, dtype=np.float64)
        base, tuned, along, energy = totals.ravel().tolist()
        delta_is_safe = is_safe(energy) or not changed
        if delta_is_safe and is_safe(base) and is_safe(tuned):
            return changed, [base, tuned, energy, along]
        b = in_float64(self.raw[0])
        t = in_float64(self.raw[1])
        d = t - b
        products = [
            inner_product(b, b),
            inner_product(t, t),
            inner_product(d, d),
            inner_product(b, d),
        ]
        return changed, products

    def nonzero(self, row: int) -> int:
        """Say how many numbers of a row of lines are not 0."""
        line = self.lines[row].reshape(-1)
        np.not_equal(line, 0, out=self._differ)
        return int(np.count_nonzero(self._differ))

    def changed(self) -> int:
        """Say how many numbers of the first two differ, if some are not finite; NaN equals NaN.
        Loads them.
        """
        self.load(0, 1)
        return differing(*self.numbers[:2])


def differing(first: Tensor, second: Tensor) -> int:
    """Say how many entries of a first and a second tensor (n,) differ; NaN beside NaN does not."""
    a = first.numpy()
    b = second.numpy()
    differ = np.not_equal(a, b)
    if not differ.any():
        return 0
    is_nan = np.isnan(a) & np.isnan(b)
    return int(np.count_nonzero(differ & ~is_nan))


def is_safe(energy: float) -> bool:
    """True if no square of float32 in a sum, energy, can have vanished or overflowed."""
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

    dtype: of the numbers. space: the buffers of a worker. A part must be used before the next is
    requested.
    """
    # those whose entries lie in their files in order, without gaps
    flat = [matrix for matrix in matrices if is_stored(matrix) and matrix.is_flat]
    if len(flat) < len(matrices):
        for index, _ in tiles(matrices[-1], PART, PART):
            raw = [matrix[index] for matrix in matrices]
            count = raw[0].numel()
            part = _part(space, dtype, len(raw), count)
            part.raw = raw
            yield part
            part.raw = []  # a part is kept, and what was read of a matrix would be with it
        return
    stored = [matrix.dtype for matrix in flat]
    whole = matrices[-1].numel()
    for start in range(0, whole, PART):
        count = min(PART, whole - start)
        if start == 0 or count < PART:
            part = _part(space, dtype, len(flat), count, stored)
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


def _whole_rows(matrix: InFile | Tensor, space: Workspace) -> Iterator[NDArray[np.floating]]:
    """Yield the numbers of a matrix (rows, cols), in order, one or more whole rows at a time, which
    the next ones may overwrite.
    """
    cols = matrix.shape[1]
    dtype = torch.float32
    if matrix.dtype == torch.float64:
        dtype = torch.float64
    waiting: list[NDArray[np.floating]] = []  # for the end of their row
    count = 0  # of their entries
    for part in parts((matrix,), dtype, space):
        part.load(0)
        numbers = part.numbers[0].numpy()
        held = count + len(numbers)
        count = held % cols
        if count == held:
            waiting.append(numbers.copy())
            continue
        if held > len(numbers):
            numbers = np.concatenate([*waiting, numbers])
        whole = held - count
        yield numbers[:whole].reshape(-1, cols)
        waiting = [numbers[whole:].copy()]


@np.errstate(over="ignore", invalid="ignore")
def looked_at(
    matrix: InFile | Tensor, space: Workspace, stored: str = "", slices: int = 1
) -> Extremes:
    """Examine a matrix (rows, cols) in one pass, including NaN and infinity.

    space: the buffers of a worker. stored: its dtype, without which pages are not examined.
    slices: matrices of one size that lie in it, one after the other.
    """
    rows, cols = matrix.shape
    pages = None
    if rows > 1 and stored in PAGED:
        pages = PageSample(stored)
    nan = 0
    infinite = 0
    clipped = 0
    energy = 0.0
    first = 0.0
    is_constant = True
    zero_rows: list[int] = []
    constant_rows: list[int] = []
    of_slices = np.zeros(slices, int)
    row = 0
    for block in _whole_rows(matrix, space):
        if row == 0:
            first = float(block[0, 0])
        squares = np.vecdot(block, block)
        integers = squares.view(f"i{squares.itemsize}")  # have the same sum in any order
        if slices == 1:
            of_slices += integers.sum()
        else:
            np.add.at(of_slices, np.arange(row, row + len(block)) * slices // rows, integers)
        lowest = squares.min()
        highest = squares.max()
        if highest >= CLIP[0] ** 2:
            large = block[squares >= CLIP[0] ** 2]
            clipped += int(np.isin(np.abs(large), CLIP).sum())
        if lowest > SAFE[0] and highest < SAFE[1]:
            energy += float(squares.sum(dtype=np.float64))
        else:  # squares of float32 may overflow, or vanish: such rows are looked at again
            safe = (squares > SAFE[0]) & (squares < SAFE[1])
            again = block[~safe].astype(np.float64)
            nan += int(np.isnan(again).sum())
            infinite += int(np.isinf(again).sum())
            finite = again[np.isfinite(again).all(axis=1)]
            of_safe = squares[safe].sum(dtype=np.float64)
            of_finite = np.vecdot(finite, finite).sum()
            energy += float(of_safe + of_finite)
        flat = 0  # rows of one value
        for number in np.flatnonzero(block[:, 0] == block[:, -1]).tolist():
            value = block[number, 0]
            if not (block[number] == value).all():
                continue
            flat += 1
            if value:
                constant_rows.append(row + number)
            else:
                zero_rows.append(row + number)
        if is_constant:
            is_constant = flat == len(block) and bool((block[:, 0] == first).all())
        row += len(block)
        if pages:
            pages.add(block.reshape(-1))
    if is_constant or cols == 1:
        zero_rows = []
        constant_rows = []
    damaged: tuple[int, ...] = ()
    if pages:
        damaged = pages.damaged()
    return Extremes(
        entries=rows * cols,
        nan=nan,
        infinite=infinite,
        first=first or 0.0,
        is_constant=is_constant,
        energy=energy,
        zero_rows=tuple(zero_rows),
        constant_rows=tuple(constant_rows),
        clipped=clipped,
        damaged=damaged,
        slices=tuple(of_slices.tolist()),
    )
