"""Four routines of SciPy's LAPACK, called by address without the interpreter's lock: all
eigenvalues and a few leading eigenvectors from one reduction to tridiagonal form.

A LAPACK routine that gets a wrong array corrupts memory, so `array` checks each before
every call: dtype, contiguity, order, shape, and whether it may be written.

Eigenvalues alone cost a reduction and a QL iteration. LAPACK's drivers either stop there or
compute every vector (2.7 times as long at side 896); but with the reflectors kept, a few vectors
need only inverse iteration on the tridiagonal matrix and a product: 64 of them add a fifth to the
eigenvalues at 896 and a tenth at 2048, 16 add a tenth and less (measured on one thread of a Zen 4;
ARPACK adds as much again as the eigenvalues took, and iterates longer the flatter the spectrum).
What is computed is as accurate as a full decomposition, whatever the gaps.

`scipy.linalg.lapack` lacks one of the routines (dormtr) and holds the lock, which stalls other
workers. They stay because they pay: an audit of 0.5B shapes (64 vectors of two sides of each
matrix) took 1.16 times the processor time with all values and
`scipy.linalg.eigh(subset_by_index=...)`, and 1.36 times with `numpy.linalg.eigh` (medians of three
paired runs, one thread of a Zen 4).
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cython_lapack, eigh_tridiagonal

Routine = Callable[..., None]
Floats = NDArray[np.float64]
ARGUMENTS = {"dsytrd": 10, "dsterf": 4, "dstein": 13, "dormtr": 13}  # how many LAPACK's have


@cache
def lapack() -> dict[str, Routine] | None:
    """The routines by name; None if SciPy's LAPACK publishes others or has longer
    integers.
    """
    try:
        return {name: _address(name, count) for name, count in ARGUMENTS.items()}
    except (AttributeError, KeyError, ValueError):
        return None


def _address(name: str, count: int) -> Routine:
    """The routine as a C function, with all arguments by address.

    Raises KeyError if SciPy lacks it, ValueError if it takes other arguments or other integers than
    C's int, AttributeError if SciPy publishes no pointers.
    """
    capsule = cython_lapack.__pyx_capi__[name]
    name_of = ctypes.pythonapi.PyCapsule_GetName
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype = ctypes.c_char_p
    name_of.argtypes = [ctypes.py_object]
    pointer_of.restype = ctypes.c_void_p
    pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]
    signature = name_of(capsule)
    takes_int = re.search(rb"[(,] ?int \*", signature)
    if signature.count(b"*") != count or not takes_int:
        raise ValueError(f"{name} takes other arguments: {signature!r}")
    routine = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * count)
    return routine(pointer_of(capsule, signature))


def array(value: Any, *shape: int, dtype: type[np.generic] = np.float64) -> Any:
    """The address of an array, value, that a routine reads and writes.

    Raises TypeError unless it has exactly this shape and dtype, row by row, aligned and writable.
    """
    if isinstance(value, np.ndarray) and value.flags.carray:
        is_same = value.dtype == dtype and value.shape == shape
        if is_same:
            return value.ctypes  # which holds the array
    raise TypeError(f"no writable array of {shape}, {dtype.__name__}, in C's order")


def number(value: int) -> Any:
    """The address of an integer of that value."""
    return ctypes.byref(ctypes.c_int(value))


PANEL = 64  # columns that LAPACK's blocked routines may take at once
# inner products of the vectors of one matrix; dstein leaves 1e-14, more says that it failed
ORTHONORMAL = 1e-10


def eigensystem(lower: Floats, count: int) -> tuple[Floats, Floats]:
    """Eigenvalues (n,), ascending, and eigenvectors (n, count) of the largest ones, largest
    first.

    lower: (n, n), C-contiguous float64, its lower triangle given; it is overwritten. The values are
    the same to the last bit whatever the count. Raises TypeError for any other matrix.
    """
    n = len(lower)
    matrix = array(lower, n, n)
    if not n or not 0 <= count <= n:
        raise TypeError(f"eigensystem: {count} vectors of {n}")
    of_lapack = lapack()
    if of_lapack is None:
        values, vectors = np.linalg.eigh(lower, UPLO="L")
        return values, vectors[:, ::-1][:, :count]
    diagonal = np.empty(n)
    beside = np.empty(n)
    scales = array(np.empty(n), n)
    size = PANEL * n + 2 * PANEL**2
    work = array(np.empty(size), size)
    info = np.zeros(1, np.intc)
    outcome = array(info, 1, dtype=np.intc)
    tridiagonal = array(diagonal, n), array(beside, n)
    # row by row the lower triangle is, in Fortran's order, the upper one
    of_lapack["dsytrd"](
        b"U", number(n), matrix, number(n), *tridiagonal, scales, work, number(size), outcome
    )
    values = diagonal.copy()
    of_lapack["dsterf"](number(n), array(values, n), array(beside.copy(), n), outcome)
    if info[0]:
        raise np.linalg.LinAlgError("eigenvalues did not converge")
    if count == 0:
        return values, np.empty((n, 0))
    vectors = _of_tridiagonal(of_lapack["dstein"], diagonal, beside, values[n - count :])
    of_lapack["dormtr"](
        b"L", b"U", b"N", number(n), number(count), matrix, number(n), scales,
        array(vectors, count, n), number(n), work, number(size), outcome,
    )  # fmt: skip
    return values, vectors[::-1].T


def _of_tridiagonal(
    dstein: Routine,
    diagonal: Floats,
    beside: Floats,
    values: Floats,
) -> Floats:
    """Eigenvectors of a tridiagonal matrix as rows (count, n), by inverse iteration."""
    n = len(diagonal)
    count = len(values)
    vectors = np.empty((count, n))
    info = np.zeros(1, np.intc)
    # of one block, which ends at n; LAPACK may read as many ends as there are rows
    block_of_value = np.ones(count, np.intc)
    ends = np.full(n, n, np.intc)
    work = np.empty(5 * n)
    whole_work = np.empty(n, np.intc)
    failed = np.empty(count, np.intc)
    dstein(
        number(n),
        array(diagonal, n),
        array(beside, n),
        number(count),
        array(values.copy(), count),
        array(block_of_value, count, dtype=np.intc),
        array(ends, n, dtype=np.intc),
        array(vectors, count, n),
        number(n),
        array(work, 5 * n),
        array(whole_work, n, dtype=np.intc),
        array(failed, count, dtype=np.intc),
        array(info, 1, dtype=np.intc),
    )
    if info[0] == 0:
        products = vectors @ vectors.T
        errors = np.abs(products - np.eye(count))
        if errors.max() < ORTHONORMAL:
            return vectors
    _, columns = eigh_tridiagonal(
        diagonal, beside[: n - 1], select="i", select_range=(n - count, n - 1)
    )
    return np.ascontiguousarray(columns.T)
