"""How many directions of the residual stream the changes of a layer share.

A matrix that reads the residual stream (q, k, v, gate, up) has it on its input side, one that
writes it (o, down) on its output side. G = sum of DᵀD over the readers, or of D Dᵀ over the
writers, is the Gram of the stacked deltas on the residual side, and its participation ratio (tr G)²
/ ||G||_F² the number of residual directions that the change of the layer, or of the whole
component, is about. Deltas that share directions have a smaller one than deltas that do not.

Of each matrix the trace and the norm of its own G are known from its spectrum; only the inner
products between matrices are not, and a hidden x hidden Gram for each cannot be kept. So each is
kept as Pᵀ G P with one random projection P of WIDTH columns for all: residual streams up to that
width are exact, wider ones have an error of 1 % where the deltas share all or nothing, and of up to
9 % (standard deviation) for steep spectra half of which is shared. It costs 1-2 % of the audit of a
2048 x 8192 matrix, 6-9 % at 896 x 4864; twice the width would cost twice that for 0.7 of the error.
Of a stream wider than WHOLE the projection is never whole in memory: it is drawn anew, block by
block, for each matrix that has it on its long side.
Experts of a mixture are left out: there are too many, and each sees few tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

# the residual stream; shadow.places.groups says which module does what
Direction = Literal["reading", "writing"]

WIDTH = 128  # 33 kB for each matrix
SEED = 0
LEFT_OUT = 8  # parts of the projection that are left out in turn, to estimate the error
WHOLE = 1 << 15  # width up to which the projection is kept: 17 MB in float32
PIECE = 1 << 13  # rows of a wider one that are in memory at a time: 8 MiB in float64
QR = 4  # times what a QR decomposition returns may be taken while it is made: an estimate
_DRAWING = threading.Lock()  # one worker draws at a time


def projection(width: int, dtype: np.dtype[Any]) -> NDArray[np.floating]:
    """P, (width, min(width, WIDTH)): random orthonormal columns, or the identity up to WIDTH."""
    if width <= WIDTH:
        return np.eye(width, dtype=dtype)
    with _DRAWING:
        return _drawn_whole(width, dtype)


@lru_cache(maxsize=4)
def _drawn_whole(width: int, dtype: np.dtype[Any]) -> NDArray[np.floating]:
    if width > WHOLE:
        out = np.empty((width, WIDTH), dtype)
        pieces = _pieces(width)
        for start in range(0, width, PIECE):
            out[start : start + PIECE] = pieces(min(PIECE, width - start))
        return out
    normal = np.random.default_rng([SEED, width]).standard_normal((width, WIDTH))
    return np.asarray(np.linalg.qr(normal)[0], dtype=dtype)


def _pieces(width: int) -> Callable[[int], NDArray[np.float64]]:
    """What draws the next so many rows of the projection of a stream wider than WHOLE.

    P = N R⁻¹, N the normal numbers and RᵀR = NᵀN: as orthonormal as by QR, since N is far from
    singular.
    """
    root = _root(width)
    rng = np.random.default_rng([SEED, width])
    return lambda count: rng.standard_normal((count, WIDTH)) @ root


@lru_cache(maxsize=4)
def _root(width: int) -> NDArray[np.float64]:
    """R⁻¹ of `_pieces`, (WIDTH, WIDTH)."""
    rng, total = np.random.default_rng([SEED, width]), np.zeros((WIDTH, WIDTH))
    for start in range(0, width, PIECE):
        normal = rng.standard_normal((min(PIECE, width - start), WIDTH))
        total += normal.T @ normal
    return np.asarray(np.linalg.inv(np.linalg.cholesky(total).T))


def projection_memory(width: int, *, short_side: bool) -> tuple[int, int]:
    """Bytes that the projection of a stream of that width takes at most in a process, in all
    dtypes, and in a worker. short_side: where a matrix has the stream.
    """
    kept, pieces = (4 + 8) * WIDTH * width, 3 * 8 * WIDTH * PIECE
    if width <= WIDTH:
        return 0, 0
    if width <= WHOLE:
        return kept + QR * 8 * WIDTH * width, 0
    return (kept + pieces, 0) if short_side else (0, pieces)


class Residual:
    """Sums over the blocks of one delta, of any size, in the order of `spectrum.blocks`."""

    def __init__(self, shape: tuple[int, int], direction: Direction) -> None:
        self._reads = direction == "reading"
        self._width = width = shape[1] if self._reads else shape[0]
        self._total = np.zeros((min(width, WIDTH),) * 2)
        # D P, where D is cut along the residual side
        self._gathered: NDArray[np.floating] | None = None
        self._drawn = None
        if width > WHOLE and not on_short_side(shape, direction):
            self._drawn = _pieces(width)

    def add(self, block: Tensor, corner: tuple[int, int]) -> None:
        """The next block of D, and the (row, column) where it begins."""
        entries = block.numpy()
        x, first = (entries, corner[1]) if self._reads else (entries.T, corner[0])
        for part in _products(x, first, self._width, self._drawn):
            if self._drawn is None and x.shape[1] == self._width:
                self._total += part.T @ part
            elif self._gathered is None:
                self._gathered = part
            else:
                self._gathered += part

    def sketch(self, energy: float) -> NDArray[np.float32]:
        """Pᵀ G P / tr G, its upper triangle as (k (k + 1) / 2,), k the columns of P.

        energy: the sum of squares of D.
        """
        if self._gathered is not None:
            self._total += self._gathered.T @ self._gathered
            self._gathered = None
        return _packed(self._total, energy)


def _products(
    x: NDArray[np.floating],
    first: int,
    width: int,
    drawn: Callable[[int], NDArray[np.float64]] | None,
) -> Iterator[NDArray[np.floating]]:
    """x P, x the columns of D from `first` on; in parts that add up to it where P is drawn."""
    count = x.shape[1]
    if drawn is None:
        yield x @ projection(width, x.dtype)[first : first + count]
        return
    for start in range(0, count, PIECE):
        some = x[:, start : start + PIECE]
        yield some @ drawn(some.shape[1]).astype(x.dtype)


def sketch_of_gram(
    times: Callable[[NDArray[np.floating]], NDArray[np.floating]], side: int, energy: float
) -> NDArray[np.float32]:
    """What `Residual.sketch` returns of a delta whose Gram matrix G on the residual side is known.

    times: what multiplies G, (side, side), by a few columns, (side, k) -> (side, k); energy: its
    trace. 6 times as fast as `Residual` at 896 x 4864.
    """
    columns = projection(side, np.dtype(np.float32))
    return _packed(columns.T @ times(columns), energy)


def on_short_side(shape: tuple[int, int], direction: Direction) -> bool:
    """Whether the Gram matrix of a (rows, cols) matrix is made on the residual side."""
    return (direction == "writing") == (shape[0] <= shape[1])


def _packed(total: NDArray[np.floating], energy: float) -> NDArray[np.float32]:
    """The upper triangle of total / energy, row by row."""
    return np.asarray((total / energy)[np.triu_indices(len(total))], dtype=np.float32)


def overlaps(
    sketches: NDArray[np.float32], participation: NDArray[np.float64], width: int
) -> NDArray[np.float64]:
    """(n, n) cosines <G_a, G_b> / (||G_a|| ||G_b||) between the Grams of n deltas, in [0, 1].

    sketches (n, k (k + 1) / 2): of `Residual.sketch`. participation (n,): participation ratios of
    the deltas. Estimated as the ratio of unbiased estimates from one projection, whose errors
    cancel where directions are shared.
    """
    k = min(width, WIDTH)
    wide = sketches.astype(np.float64)
    cosines = _cosines((wide * _weights(k)) @ wide.T, k, participation, width)
    return np.clip(cosines, 0.0, 1.0)


def overlaps_left_out(
    sketches: NDArray[np.float32], participation: NDArray[np.float64], width: int
) -> list[NDArray[np.float64]]:
    """`overlaps` from the projection without one eighth of its columns, for each eighth.

    Empty where it is exact.

    Not kept in [0, 1]: how far they scatter is what they are for.
    """
    if width <= WIDTH:
        return []
    weights, wide = _weights(WIDTH), sketches.astype(np.float64)
    row_part, col_part = (side * LEFT_OUT // WIDTH for side in np.triu_indices(WIDTH))
    touched = np.zeros((LEFT_OUT, len(wide), len(wide)))
    whole = np.zeros((len(wide), len(wide)))
    for first in range(LEFT_OUT):
        for second in range(first, LEFT_OUT):
            columns = np.flatnonzero((row_part == first) & (col_part == second))
            products = (wide[:, columns] * weights[columns]) @ wide[:, columns].T
            whole += products
            for group in {first, second}:
                touched[group] += products
    k = WIDTH - WIDTH // LEFT_OUT
    return [_cosines(whole - part, k, participation, width) for part in touched]


def _weights(k: int) -> NDArray[np.float64]:
    """How often each entry of a sketch of k columns stands in the whole matrix."""
    rows, cols = np.triu_indices(k)
    return np.where(rows == cols, 1.0, 2.0)


def _cosines(
    products: NDArray[np.float64], k: int, participation: NDArray[np.float64], width: int
) -> NDArray[np.float64]:
    """Cosines from the inner products (n, n) of sketches by k columns."""
    # Of a random projection Π = P Pᵀ, E tr(G_a Π G_b Π) = (x + y) <G_a, G_b> + y tr G_a tr G_b.
    y = k * (width - k) / (width * (width - 1) * (width + 2)) if width > 1 else 0.0
    x = k / width - y * (width + 1)
    inner = (products - y) / (x + y)  # with traces of 1
    # 1 / participation, but for the projection.
    norms = np.sqrt(np.maximum(np.diag(inner), 0.5 / participation))
    cosines = inner / np.outer(norms, norms)
    np.fill_diagonal(cosines, 1.0)
    return np.asarray(cosines)


def stacked_participation(
    cosines: NDArray[np.float64], energies: NDArray[np.float64], participation: NDArray[np.float64]
) -> float:
    """(tr G)² / ||G||_F² of the stacked deltas, from each one's overlaps, energy and own ratio."""
    norms = _norms(energies, participation)
    return 1.0 / float(norms @ cosines @ norms)


def _norms(
    energies: NDArray[np.float64], participation: NDArray[np.float64]
) -> NDArray[np.float64]:
    """||G||_F of each delta, in units of the trace of all."""
    return np.asarray(energies / energies.sum() / np.sqrt(participation))


def stacked_stderr(
    cosines: NDArray[np.float64],
    left_out: Sequence[NDArray[np.float64]],
    energies: NDArray[np.float64],
    participation: NDArray[np.float64],
    estimated: NDArray[np.float64],
) -> float:
    """Standard error of `stacked_participation` (found), from its inverses with each part left out.

    found² sqrt((g - 1) / g sum (x_i - mean x)²), g the number of parts (jackknife, Tukey 1958): on
    stacks of known ratio it was 0.5 to 1.2 of the root mean square error. 0 where nothing is left
    out, as it is exact there. estimated: the standard errors of each one's own ratio as shares of
    it, which are added in squares, each by the derivative of the inverse.
    """
    norms = _norms(energies, participation)
    towards = cosines @ norms
    found = 1.0 / float(norms @ towards)
    squares = float(((norms * towards * estimated) ** 2).sum())
    if left_out:
        inverse = np.array([norms @ part @ norms for part in left_out])
        squares += (
            (len(inverse) - 1) / len(inverse) * float(((inverse - inverse.mean()) ** 2).sum())
        )
    return found**2 * float(np.sqrt(squares))
