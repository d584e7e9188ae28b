"""Four routines of SciPy's LAPACK, called by address without the interpreter's lock: all
eigenvalues and a few leading eigenvectors from one reduction to tridiagonal form.

A LAPACK routine that gets a wrong array corrupts memory, so `call` checks every argument first:
number and kind, dtype, contiguity, order, shape, whether it may be written, and sizes of work
arrays.

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cython_lapack, eigh_tridiagonal

Argument = bytes | int | NDArray[Any]
Sizes = Mapping[str, int]  # the integer arguments of a call by their names
Shape = Callable[[Sizes], tuple[int, ...]]
Routine = Callable[..., None]


@dataclass(frozen=True)
class Letter:
    """A character argument."""

    allowed: bytes


@dataclass(frozen=True)
class Number:
    """An integer argument, at least 1 and at least another one, or one computed from others."""

    least: Callable[[Sizes], int] = lambda _: 1


@dataclass(frozen=True)
class Array:
    """An array argument: a matrix has exactly the shape, a vector at least the length."""

    shape: Shape
    dtype: type[np.generic] = np.float64


def _vector(name: str, times: int = 1, dtype: type[np.generic] = np.float64) -> Array:
    return Array(lambda sizes: (times * sizes[name],), dtype)


N = Number()
LEADING = Number(lambda sizes: sizes["n"])
INFO = Array(lambda _: (1,), np.intc)
# In the order of LAPACK's arguments, and by its names. Matrices are given row by row, as columns of
# Fortran's: the leading dimension comes last here.
ROUTINES: Mapping[str, Mapping[str, Letter | Number | Array]] = {
    "dsytrd": {
        "uplo": Letter(b"UL"),
        "n": N,
        "a": Array(lambda sizes: (sizes["n"], sizes["lda"])),
        "lda": LEADING,
        "d": _vector("n"),
        "e": _vector("n"),
        "tau": _vector("n"),
        "work": _vector("lwork"),
        "lwork": N,
        "info": INFO,
    },
    "dsterf": {"n": N, "d": _vector("n"), "e": _vector("n"), "info": INFO},
    "dstein": {
        "n": N,
        "d": _vector("n"),
        "e": _vector("n"),
        "m": N,
        "w": _vector("m"),
        "iblock": _vector("m", 1, np.intc),
        "isplit": _vector("n", 1, np.intc),
        "z": Array(lambda sizes: (sizes["m"], sizes["ldz"])),
        "ldz": LEADING,
        "work": _vector("n", 5),
        "iwork": _vector("n", 1, np.intc),
        "ifail": _vector("m", 1, np.intc),
        "info": INFO,
    },
    "dormtr": {
        "side": Letter(b"L"),
        "uplo": Letter(b"UL"),
        "trans": Letter(b"NT"),
        "m": N,
        "n": N,
        "a": Array(lambda sizes: (sizes["m"], sizes["lda"])),
        "lda": Number(lambda sizes: sizes["m"]),
        "tau": _vector("m"),
        "c": Array(lambda sizes: (sizes["n"], sizes["ldc"])),
        "ldc": Number(lambda sizes: sizes["m"]),
        "work": _vector("lwork"),
        "lwork": LEADING,
        "info": INFO,
    },
}
INDICES = ("iblock", "isplit")  # arrays of numbers from 1 to n, which address other arrays


@cache
def lapack() -> dict[str, Routine] | None:
    """The routines by name; None if SciPy's LAPACK publishes others or has longer
    integers.
    """
    try:
        return {name: _checked(name, _address(name)) for name in ROUTINES}
    except (AttributeError, KeyError, ValueError):
        return None


def _address(name: str) -> Callable[..., None]:
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
    count = len(ROUTINES[name])
    if signature.count(b"*") != count or not re.search(rb"[(,] ?int \*", signature):
        raise ValueError(f"{name} takes other arguments: {signature!r}")
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * count)(pointer_of(capsule, signature))


def _checked(name: str, function: Callable[..., None]) -> Routine:
    def call(*arguments: Argument) -> None:
        check(name, arguments)
        function(*map(_pointer, arguments))

    return call


def check(name: str, arguments: tuple[Argument, ...]) -> None:
    """Raise TypeError with the routine's name for invalid arguments."""
    expected = ROUTINES[name]
    if len(arguments) != len(expected):
        raise TypeError(f"{name} takes {len(expected)} arguments, not {len(arguments)}")
    given = dict(zip(expected, arguments, strict=True))
    sizes = {key: value for key, value in given.items() if type(value) is int}
    numbers = [key for key, kind in expected.items() if isinstance(kind, Number)]
    faults = [f"{key} is no int" for key in numbers if key not in sizes]
    for key, kind in expected.items():
        if not faults and (fault := _fault(given[key], kind, sizes)):
            faults.append(f"{key} {fault}")
    faults += [
        f"{key} has numbers outside 1 to n"
        for key in INDICES
        if not faults and key in given and not _are_indices(given[key], sizes["n"])
    ]
    if faults:
        raise TypeError(f"{name}: {faults[0]}")


def _fault(value: Argument, kind: Letter | Number | Array, sizes: Sizes) -> str | None:
    """Say what is wrong with an argument, None if nothing is."""
    if isinstance(kind, Letter):
        fits = isinstance(value, bytes) and len(value) == 1 and value in kind.allowed
        if fits:
            return None
        return f"is not one of {kind.allowed!r}"
    if isinstance(kind, Number):
        fits = isinstance(value, int) and max(1, kind.least(sizes)) <= value < 1 << 31
        if fits:
            return None
        return "is out of range"
    return array_fault(value, kind.shape(sizes), kind.dtype)


def array_fault(
    value: object, shape: tuple[int, ...], dtype: type[np.generic] = np.float64
) -> str | None:
    """Say what is wrong with an array for a routine to read and write, None if nothing is."""
    if type(value) is not np.ndarray:
        return "is not a NumPy array"
    if value.dtype != np.dtype(dtype) or not value.dtype.isnative:
        return f"is {value.dtype}, not {np.dtype(dtype)}"
    if value.ndim != len(shape):
        return f"has {value.ndim} dimensions, not {len(shape)}"
    if value.shape != shape if value.ndim > 1 else value.size < shape[0]:
        return f"has the shape {value.shape}, not {shape}"
    if not value.flags.c_contiguous or not value.flags.aligned:
        return "is not contiguous, row by row"
    if value.flags.writeable:
        return None
    return "is read-only"


def _are_indices(value: Argument, most: int) -> bool:
    return bool(np.min(value) >= 1 and np.max(value) <= most)


def _pointer(argument: Argument) -> Any:
    """Say what ctypes accepts as the address of a character, a number or an array."""
    if isinstance(argument, np.ndarray):
        return argument.ctypes.data
    if isinstance(argument, bytes):
        return argument
    return ctypes.byref(ctypes.c_int(argument))


PANEL = 64  # columns that LAPACK's blocked routines may take at once
# inner products of the vectors of one matrix; dstein leaves 1e-14, more says that it failed
ORTHONORMAL = 1e-10


def eigensystem(
    lower: NDArray[np.float64], count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues (n,), ascending, and eigenvectors (n, count) of the largest ones, largest
    first.

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
    diagonal = np.empty(n)
    beside = np.empty(n)
    scales = np.empty(n)
    work = np.empty(PANEL * n + 2 * PANEL**2)
    info = np.zeros(1, np.intc)
    # row by row the lower triangle is, in Fortran's order, the upper one
    of_lapack["dsytrd"](b"U", n, lower, n, diagonal, beside, scales, work, len(work), info)
    values = diagonal.copy()
    destroyed = beside.copy()
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
    """Raise TypeError, with the function's name, unless a matrix is square, not empty, and writable
    C-contiguous float64.
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
    n = len(diagonal)
    count = len(values)
    vectors = np.empty((count, n))
    info = np.zeros(1, np.intc)
    # of one block, which ends at n; LAPACK may read as many ends as there are rows
    blocks = np.ones(count, np.intc), np.full(n, n, np.intc)
    work = np.empty(5 * n)
    iwork = np.empty(n, np.intc)
    failed = np.empty(count, np.intc)
    tridiagonal = n, diagonal, beside
    dstein(*tridiagonal, count, values.copy(), *blocks, vectors, n, work, iwork, failed, info)
    if info[0] == 0 and np.abs(vectors @ vectors.T - np.eye(count)).max() < ORTHONORMAL:
        return vectors
    _, vectors = eigh_tridiagonal(
        diagonal, beside[: n - 1], select="i", select_range=(n - count, n - 1)
    )
    return np.ascontiguousarray(vectors.T)
