"""All eigenvalues and a few leading eigenvectors from one reduction to tridiagonal form.

Eigenvalues alone cost a reduction and a QL iteration. LAPACK's drivers either stop there or compute
every vector (2.7 times as long at side 896); but with the reflectors kept, a few vectors need only
inverse iteration on the tridiagonal matrix and a product: 64 of them add a fifth to the eigenvalues
at 896 and a tenth at 2048, 16 add a tenth and less (measured on one thread of a Zen 4; ARPACK adds
as much again as the eigenvalues took, and iterates longer the flatter the spectrum). What is
computed is as accurate as a full decomposition, whatever the gaps.

The routines are those of SciPy's LAPACK (`shadow.spectra.routines`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal

from shadow.spectra.routines import Routine, array_fault, lapack

PANEL = 64  # columns that LAPACK's blocked routines may take at once
# inner products of the vectors of one matrix; dstein leaves 1e-14, more says that it failed
ORTHONORMAL = 1e-10


def eigensystem(
    lower: NDArray[np.float64], count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues (n,), ascending, and eigenvectors (n, count) of the largest ones, largest first.

    lower: (n, n), C-contiguous float64, its lower triangle given; it is overwritten. The values are
    the same to the last bit whatever the count. Raises TypeError for any other matrix.
    """
    require_square("eigensystem", lower)
    n = len(lower)
    if not 0 <= count <= n:
        raise TypeError(f"eigensystem: {count} vectors of {n}")
    of_lapack = lapack()
    if of_lapack is None:
        values, vectors = np.linalg.eigh(lower, UPLO="L")
        return values, np.ascontiguousarray(vectors[:, ::-1][:, :count])
    diagonal, beside, scales = np.empty(n), np.empty(n), np.empty(n)
    work, info = np.empty(PANEL * n + 2 * PANEL**2), np.zeros(1, np.intc)
    # row by row the lower triangle is, in Fortran's order, the upper one
    of_lapack["dsytrd"](b"U", n, lower, n, diagonal, beside, scales, work, len(work), info)
    values, destroyed = diagonal.copy(), beside.copy()
    of_lapack["dsterf"](n, values, destroyed, info)
    if info[0]:
        raise np.linalg.LinAlgError("eigenvalues did not converge")
    if count == 0:
        return values, np.empty((n, 0))
    vectors = _of_tridiagonal(of_lapack["dstein"], diagonal, beside, values[n - count :])
    of_lapack["dormtr"](
        b"L", b"U", b"N", n, count, lower, n, scales, vectors, n, work, len(work), info
    )
    return values, vectors[::-1].T


def require_square(name: str, matrix: object) -> None:
    """Raise TypeError, with the function's name, but for a square matrix in C-contiguous float64
    that may be overwritten and is not empty.
    """
    n = len(matrix) if isinstance(matrix, np.ndarray) and matrix.ndim == 2 else 0
    fault = array_fault(matrix, (n, n)) or (None if n else "is empty")
    if fault:
        raise TypeError(f"{name}: the matrix {fault}")


def _of_tridiagonal(
    dstein: Routine,
    diagonal: NDArray[np.float64],
    beside: NDArray[np.float64],
    values: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Eigenvectors of a tridiagonal matrix as rows (count, n), by inverse iteration."""
    n, count = len(diagonal), len(values)
    vectors, info = np.empty((count, n)), np.zeros(1, np.intc)
    # of one block, which ends at n; LAPACK may read as many ends as there are rows
    blocks = np.ones(count, np.intc), np.full(n, n, np.intc)
    work, iwork, failed = np.empty(5 * n), np.empty(n, np.intc), np.empty(count, np.intc)
    tridiagonal = n, diagonal, beside
    dstein(*tridiagonal, count, values.copy(), *blocks, vectors, n, work, iwork, failed, info)
    if info[0] == 0 and np.abs(vectors @ vectors.T - np.eye(count)).max() < ORTHONORMAL:
        return vectors
    _, vectors = eigh_tridiagonal(
        diagonal, beside[: n - 1], select="i", select_range=(n - count, n - 1)
    )
    return np.ascontiguousarray(vectors.T)
