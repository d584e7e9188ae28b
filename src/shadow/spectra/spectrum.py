"""Matrix -> Spectrum: the only module that solves eigenproblems and defines tolerances.

A matrix here is a torch tensor of any float dtype, usually a view of a mapped file, or what
shadow.spectra.lazy makes of some: (rows, cols), or (groups, rows / groups, cols) if its rows are
not evenly spaced in memory. It is read in blocks through the reused buffers of a Workspace, so that
a tensor of any size needs a few blocks and one Gram.

Singular values are the roots of the eigenvalues of the Gram matrix on the short side. Against
`torch.linalg.svdvals` that is faster at every shape measured, least for small squares (896 x 896:
1.8 times) and most for large ones (2048 x 8192: 11 times; one thread of a
Zen 4). The price is a floor below which a singular value is not resolved, and the floor
is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.dtypes import FLOATS
from shadow.spectra.costs import BLOCK
from shadow.spectra.lazy import Matrix
from shadow.spectra.measurement import Precision, Shape
from shadow.spectra.routines import array, eigensystem

Made = TypeVar("Made")
Floats = NDArray[np.float64]
# Of a block of which several copies are needed at once: three of float64 are 12 MiB.
SMALL_BLOCK = 1 << 19
# Elements of a tile: 1 MiB in float32. Passes that only sum take 0.4 of the time that they take by
# blocks. Its columns at most: a sum of so many squares in float32 is right to 1e-6.
TILE = 1 << 18
WIDEST = 1 << 13
# Up to this side leading vectors come with all eigenvalues from one tridiagonal form, by OpenBLAS,
# on processors other than Intel's: in 0.7 of the time at 2048. Above it torch's eigenvalues and
# Lanczos for the vectors take less, even where the spectrum is flat (800 products for 64 vectors;
# 200 where it decays).
OPENBLAS_SIDE = 2048
# The same on Intel's processors, where MKL's eigenvalues take half of OpenBLAS's time
# at 1536 and 2048, and Lanczos as long again where the spectrum is flat (benchmarks/README.md).
OPENBLAS_SIDE_AT_HOME = 1536
KRYLOV = 2.5  # dimension of the Krylov space for each vector; 4 and 6 took as long or longer
# Residual of an eigenvector in units of its eigenvalue, and how well Lanczos must find the
# eigenvalues that are known, in units of the largest: otherwise it has missed some. By the
# precision of the Gram matrix.
LANCZOS_TOLERANCE = {torch.float32: 1e-8, torch.float64: 1e-12}
SAME_EIGENVALUE = {torch.float32: 1e-5, torch.float64: 1e-10}

# Singular values below this share of the largest are not resolved: the rounding of the Gram
# (float32 or float64 accumulation) and of its eigenvalues, measured on planted spectra in
# tests/spectra/test_spectrum.py.
FLOOR: dict[Precision, float] = {"default": 3e-4, "exact": 1e-7}  # none of a sketch
# more of the singular values below the floor than this, and the matrix is redone in `exact`
UNRESOLVED_SHARE = 0.01
# Rounding of the Gram's sums, and how far it may move the effective rank (relative) before the
# matrix is redone in `exact`. Most of it where a few large values stand over many that are near the
# floor: 1e-3 to 7e-3 was measured there.
UNIT: dict[Precision, float] = {"default": 2.0**-24, "exact": 2.0**-53}
RANK_ERROR: dict[Precision, float] = {"default": 2.6e-4, "exact": math.inf}
# up to this short side `exact` costs under 2 ms more than `default`, so it is always taken
EXACT_SIDE = 256


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one matrix, in units of its weights."""

    # float64 (m,), m the short side, descending; 0 below floor, where they are noise of the method
    sigma: Floats
    rows: int  # outputs
    cols: int  # inputs
    norm: float  # the Frobenius norm, summed from the entries
    floor: float  # the singular value below which none is resolved
    precision: Precision  # as it was used
    # float64 (m, k), orthonormal, the leading singular vectors on the short side in the order of
    # sigma (left ones if rows <= cols), as many as were asked for; noise where sigma is
    vectors: Floats | None = None
    shift: float = 0.0  # of each sigma² by rounding, at most, in units of sigma_1²

    @property
    def long_side(self) -> int:
        """The larger of rows and cols."""
        return max(self.rows, self.cols)

    def above(self, edge: float) -> int:
        """Say how many singular values lie above an edge."""
        return int(np.count_nonzero(self.sigma > edge))


@dataclass(frozen=True)
class SpectrumKey:
    """The key of a matrix's spectrum in addition to the matrix itself."""

    stored: str  # the dtype in the checkpoint
    precision: Precision  # as it is asked for
    vectors: int  # leading singular vectors that are asked for
    solver: str = "cpu"  # of `Grams`


# How the spectrum of one side is had, its Frobenius norm being known: solved, or remembered.
Remember = Callable[[Matrix, SpectrumKey, float, Callable[[], Spectrum]], Spectrum]


class Workspace:
    """Buffers that one worker reuses for all matrices; not shared between threads."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """The result of make for a key, made on first use."""
        if key not in self._made:
            self._made[key] = make()
        result: Made = self._made[key]
        return result

    def take(self, name: str, shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The buffer of that name as a contiguous tensor of the shape and dtype.

        Its content is undefined.
        """
        key = name, dtype
        size = math.prod(shape)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < size:
            self._buffers.pop(key, None)
            buffer = torch.empty(max(size, BLOCK), dtype=dtype)
            self._buffers[key] = buffer
        return buffer[:size].view(shape)


def shape_of(matrix: Matrix) -> Shape:
    """(rows, cols) of a matrix; the first two of three dimensions together are rows."""
    rows = matrix.shape[:-1].numel()
    cols = matrix.shape[-1]
    return rows, cols


Index = tuple[slice, ...]  # of as many dimensions as the matrix has, or of the first alone
Corner = tuple[int, int]  # the (row, column) where a block begins


def blocks(matrix: Matrix, size: int = 0) -> Iterator[tuple[Index, Corner]]:
    """Yield indices that split a matrix along its long side into blocks of about size elements, in
    order; 0: of BLOCK.

    Each comes with the (row, column) where it begins. The split depends on the shape alone, so that
    sums are the same whatever runs at the same time.
    """
    rows, cols = shape_of(matrix)
    size = size or BLOCK
    if matrix.numel() == 0:
        return
    if rows <= cols:
        all_rows = (slice(None),) * (matrix.ndim - 1)
        step = max(1, size // rows)
        for start in range(0, cols, step):
            in_cols = slice(start, start + step)
            yield (*all_rows, in_cols), (0, start)
        return
    count = matrix.shape[0]
    height = rows // count  # of a group where there are some
    step = max(1, size // (height * cols))
    within = max(1, min(height, size // cols))  # of a group that is larger than a block
    for start in range(0, count, step):
        first = start * height
        groups = slice(start, start + step)
        if matrix.ndim == 2 or step > 1 or within == height:
            yield (groups,), (first, 0)
            continue
        for row in range(0, height, within):
            in_rows = slice(row, row + within)
            yield (groups, in_rows), (first + row, 0)


def tiles(matrix: Matrix, size: int = TILE, widest: int = WIDEST) -> Iterator[tuple[Index, Corner]]:
    """Yield indices of tiles of a matrix for entry-by-entry work, and the (row, column) where each
    begins.

    They are in order, row by row: a tile is at most `widest` columns wide and about `size` elements
    large, so that it fits in the caches and float32 sums over its rows are short.
    """
    rows, cols = matrix.shape[-2:]
    width = max(1, min(cols, widest))
    height = max(1, size // width)
    if matrix.ndim == 2:
        yield from _tiles(rows, cols, height, width)
        return
    rows_of_group = max(1, rows)
    together = max(1, height // rows_of_group)
    for group in range(0, matrix.shape[0], together):
        first = group * rows
        groups = slice(group, group + together)
        for index, (row, col) in _tiles(rows, cols, height, width):
            yield (groups, *index), (first + row, col)


def _tiles(rows: int, cols: int, height: int, width: int) -> Iterator[tuple[Index, Corner]]:
    """Yield `tiles` of a height and a width of (rows, cols)."""
    for row in range(0, rows, height):
        in_rows = slice(row, row + height)
        for col in range(0, cols, width):
            in_cols = slice(col, col + width)
            yield (in_rows, in_cols), (row, col)


def read_block(
    matrix: Matrix, index: Index, name: str, dtype: torch.dtype, space: Workspace
) -> Tensor:
    """Read one block as a contiguous (rows, cols) tensor of dtype, in a buffer of the workspace.

    index: of `matrix`, as `blocks` and `tiles` yield it. name: of the buffer in `space`.
    """
    part = matrix[index]
    cols = part.shape[-1]
    buffer = space.take(name, part.shape, dtype)
    buffer.copy_(part)
    return buffer.view(-1, cols)


@dataclass(frozen=True)
class Sides:
    """Both sides of a matrix pair, of one shape, read in one dtype through one workspace."""

    base: Matrix
    tuned: Matrix
    dtype: torch.dtype
    space: Workspace

    @property
    def shape(self) -> Shape:
        """(rows, cols)."""
        return shape_of(self.tuned)

    def read(self, index: Index) -> tuple[Tensor, Tensor]:
        """One block of base and of tuned at an index, each in its buffer."""
        base = read_block(self.base, index, "base", self.dtype, self.space)
        tuned = read_block(self.tuned, index, "tuned", self.dtype, self.space)
        return base, tuned

    def blocks(self, size: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Every block of base and of tuned, in the order of `blocks`, which says what size is."""
        for index, _ in blocks(self.tuned, size):
            yield self.read(index)


def working_dtype(*formats: str) -> torch.dtype:
    """Float64 if a stored format has more bits than a float32 difference keeps. A quantised
    matrix is decoded to float32.
    """
    for name in formats:
        if name in FLOATS and FLOATS[name].bits > 16:
            return torch.float64
    return torch.float32


def delta_blocks(sides: Sides, scale: float, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield the blocks of scale * (tuned - base) of both sides in dtype, in the order of
    `blocks`.
    """
    for base, delta in replace(sides, dtype=dtype).blocks():
        delta -= base
        if scale != 1.0:
            delta *= scale
        yield delta


def power_of_two_scale(largest: float) -> float:
    """A power of two that brings the largest entry near 1, or 1 if squares are safe anyway.

    Squares of float32 vanish below 1e-19 and overflow above 1e19; multiplying by a power of two
    rounds nothing. float32 holds that of each number which it holds itself.
    """
    exponent = int(np.frexp(largest)[1])
    if abs(exponent) <= 24:
        return 1.0
    highest = 1000
    if exponent >= -150:
        highest = 126
    power = max(-1000, min(highest, -exponent))
    return float(np.ldexp(1.0, power))


def scaled_blocks(
    matrix: Matrix, scale: float, dtype: torch.dtype, space: Workspace
) -> Iterator[Tensor]:
    """Yield the blocks of scale * matrix, in the order of `blocks`, as (rows, cols) tensors of
    dtype in a buffer of space.
    """
    for index, _ in blocks(matrix):
        block = read_block(matrix, index, "tuned", dtype, space)
        if scale != 1.0:
            block *= scale
        yield block


@cache
def mkl_is_at_home() -> bool:
    """True if torch's linear algebra is Intel's library on an Intel processor.

    Elsewhere MKL takes slow paths: on a Zen 4 with two threads busy, SciPy's OpenBLAS found the
    eigenvalues of an 896-side Gram in 0.60 of the time. Products are NumPy's on any processor: on a
    Xeon with AMX, sides 896 to 4096, OpenBLAS's rank-k updates took 0.81 to 0.91 of the time of
    MKL's products by panels.
    """
    try:
        with_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        return with_mkl and "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def eigenvalues(lower: Tensor) -> Floats:
    """The eigenvalues, ascending, of the matrix with this lower triangle.

    Raises TypeError unless it is square, contiguous and float64. Uses NumPy's OpenBLAS where MKL
    takes slow paths: with torch's an audit of 0.5B shapes took up to 1.2 times as long on a Zen 4.
    """
    side = len(lower)
    matrix = lower.numpy()
    array(matrix, side, side)
    if mkl_is_at_home() or side > OPENBLAS_SIDE:
        values = torch.linalg.eigvalsh(lower, UPLO="L")
        return np.asarray(values.numpy())
    return np.asarray(np.linalg.eigvalsh(matrix, UPLO="L"))


def with_vectors(gram: Tensor, count: int) -> tuple[Floats, Floats]:
    """Eigenvalues, ascending, and the (side, count) eigenvectors of the largest, largest
    first.

    gram: symmetric, in float32 or float64; it may be overwritten.
    """
    largest_side = OPENBLAS_SIDE
    if mkl_is_at_home():
        largest_side = OPENBLAS_SIDE_AT_HOME
    if len(gram) <= largest_side:
        return eigensystem(gram.double().numpy(), count)
    values = eigenvalues(gram.double())
    return values, _leading(gram, values, count)


def _leading(gram: Tensor, values: Floats, count: int) -> Floats:
    """The leading eigenvectors (side, count) by restarted Lanczos, checked against all
    values.

    Products with a float32 matrix are in float32: their rounding turns the vectors no more than
    that of the Gram matrix. Lanczos can miss a copy of a multiple eigenvalue, or not converge: then
    the matrix is reduced to tridiagonal form.
    """
    # imported here: most audits have no side that large, and the import takes 20 ms
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    matrix = gram.numpy()
    side = len(gram)

    def times(vector: Floats) -> Floats:
        narrow = vector.reshape(-1).astype(matrix.dtype)
        product = matrix @ narrow
        return np.asarray(product, np.float64)

    dimension = int(KRYLOV * count) + 1
    options: dict[str, Any] = {
        "v0": np.random.default_rng(0).standard_normal(side),
        "ncv": min(side, dimension),
        "tol": LANCZOS_TOLERANCE[gram.dtype],
    }
    if "rng" in signature(eigsh).parameters:
        options["rng"] = 0  # for vectors to continue with where the space is full
    product = LinearOperator(matrix.shape, matvec=times, dtype=np.float64)
    try:
        largest, vectors = eigsh(product, count, **options)
        missed = np.abs(largest - values[-count:]).max()
        allowed = SAME_EIGENVALUE[gram.dtype] * values[-1]
        if missed <= allowed:
            return np.asarray(vectors[:, ::-1])
    except ArpackError:
        pass
    return eigensystem(gram.double().numpy(), count)[1]


Read = Callable[[torch.dtype], Iterator[Tensor]]


class Grams:
    """Gram matrices and their eigenvalues on the CPU."""

    solver = "cpu"  # what the last bits depend on besides the CPU

    def gram(self, read: Read, shape: Shape, norm: float, dtype: torch.dtype) -> Tensor:
        """The Gram matrix, (side, side), symmetric, of a matrix W of a shape (rows, cols) whose
        blocks `read(dtype)` yields in the order of `blocks`: W Wᵀ where it is wide, otherwise Wᵀ W.

        norm: their Frobenius norm. dtype: float32 or float64. NumPy makes the product of a matrix
        with its own transpose by a rank-k update, so that it costs half of another product.
        """
        rows, cols = shape
        side = min(shape)
        total = torch.zeros((side, side), dtype=dtype)
        product = torch.empty_like(total)
        for block in read(dtype):
            lines = block.contiguous().numpy()
            if rows > cols:
                lines = lines.T
            np.matmul(lines, lines.T, out=product.numpy())
            total += product
        return total

    def eigenvalues(self, gram: Tensor) -> Floats:
        """All eigenvalues, ascending, of one that `gram` returned."""
        return eigenvalues(gram.double())


ON_CPU = Grams()


def spectrum(
    read: Read,
    shape: Shape,
    norm: float,
    scale: float,
    precision: Precision,
    wide_format: bool,
    vectors: int = 0,
    grams: Grams = ON_CPU,
) -> Spectrum:
    """The singular values of a matrix of a shape (rows, cols) whose scaled blocks `read(dtype)`
    yields in order.

    norm is the Frobenius norm of the unscaled entries, scale the power of two the blocks were
    multiplied by. wide_format says that the stored numbers have more bits than float32 products
    keep (F32, F64): then, and where the short side is small, `exact` is taken instead of `default`.
    Returns `precision` as it was used. vectors: how many leading singular vectors of the short side
    to return as well, at most. grams: where its Gram matrix is made.
    """
    rows, cols = shape
    side = min(shape)
    if precision == "default" and (wide_format or side <= EXACT_SIDE):
        precision = "exact"
    shift = 0.0
    while True:
        values, floor, leading = gram_singular_values(
            read, shape, norm * scale, precision, min(vectors, side), grams
        )
        unresolved = int(np.count_nonzero(values < floor))
        values[values < floor] = 0.0
        if values[0] == 0.0:
            break
        shift = eigenvalue_shift(values, precision)
        if precision == "exact":
            break
        is_resolved = unresolved <= UNRESOLVED_SHARE * side
        if is_resolved and effective_rank_error(values, shift) <= RANK_ERROR[precision]:
            break
        precision = "exact"
    return Spectrum(
        sigma=values / scale,
        rows=rows,
        cols=cols,
        norm=norm,
        floor=floor / scale,
        precision=precision,
        vectors=leading,
        shift=shift,
    )


def eigenvalue_shift(sigma: Floats, precision: Precision) -> float:
    """Say how far the rounding of the Gram, by its precision, may move each of its eigenvalues, the
    squares of sigma (m,), in units of the largest.

    u E / (sqrt(m) sigma_1²), u the unit roundoff of the sums. Measured on planted and random
    spectra of seven shapes with both libraries: 0.1 to 0.9 of it, nearly all downwards.
    """
    squares = (sigma / sigma[0]) ** 2
    energy = float(squares.sum())
    norm_of_rounding = UNIT[precision] * energy
    return norm_of_rounding / math.sqrt(len(sigma))


def effective_rank_error(sigma: Floats, shift: float) -> float:
    """Say how far the effective rank of singular values sigma may be off, relatively, if every
    sigma² moves by shift sigma_1².

    d ln(effective_rank) = -sum dp (ln p + H), with dp = p shift / (2 sigma²).
    """
    resolved = sigma[sigma > 0] / sigma[0]
    p = resolved / resolved.sum()
    logs = np.log(p)
    negative_entropy = (p * logs).sum()
    slopes = (logs - negative_entropy) * p / (2.0 * resolved**2)
    slope = float(slopes.sum())
    return shift * abs(slope)


def gram_singular_values(
    read: Read,
    shape: Shape,
    norm: float,
    precision: Precision,
    vectors: int,
    grams: Grams,
) -> tuple[Floats, float, Floats | None]:
    """Singular values, descending, their floor, and as many leading vectors of the short side.

    read, shape and grams: as in `spectrum`; norm: of the scaled blocks. precision: of the sums.
    """
    dtype = torch.float32
    if precision == "exact":
        dtype = torch.float64
    product = grams.gram(read, shape, norm, dtype)
    leading = None
    if vectors:
        squares, columns = with_vectors(product.cpu(), vectors)
        # one layout in memory: the last bits of products depend on it
        leading = np.ascontiguousarray(columns)
    else:
        squares = grams.eigenvalues(product)
    positive = np.maximum(squares, 0.0)
    values = np.sqrt(positive)[::-1].copy()
    floor = FLOOR[precision] * float(values[0])
    return values, floor, leading
