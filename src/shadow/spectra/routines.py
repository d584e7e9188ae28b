"""Four routines of SciPy's LAPACK, called by address without the interpreter's lock.

They reduce a symmetric matrix to tridiagonal form and bring a few eigenvectors back. A LAPACK
routine that gets a wrong array corrupts memory, so `call` checks every argument first: number and
kind, dtype, contiguity, order, shape, whether it may be written, and sizes of work arrays.

`scipy.linalg.lapack` lacks one of them (dormtr) and holds the lock, which stalls other workers.
They stay because they pay: an audit of 0.5B shapes (64 vectors of two sides of each matrix) took
1.16 times the processor time with all values and `scipy.linalg.eigh(subset_by_index=...)`, and 1.36
times with `numpy.linalg.eigh` (medians of three paired runs, one thread of a Zen 4).
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
from scipy.linalg import cython_lapack

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
    """An integer argument, at least 1 and at least another one, or what is made of others."""

    least: Callable[[Sizes], int] = lambda _: 1


@dataclass(frozen=True)
class Array:
    """An array argument: a matrix has exactly the shape, a vector at least the length."""

    shape: Shape
    dtype: type[np.generic] = np.float64
    written: bool = True


def _vector(name: str, times: int = 1, dtype: type[np.generic] = np.float64) -> Array:
    return Array(lambda sizes: (times * sizes[name],), dtype)


N, LEADING = Number(), Number(lambda sizes: sizes["n"])
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
    """The routines by name; None where SciPy's LAPACK publishes others or has longer integers."""
    try:
        return {name: _checked(name, _address(name)) for name in ROUTINES}
    except (AttributeError, KeyError, ValueError):
        return None


def _address(name: str) -> Callable[..., None]:
    """The routine as a C function, all arguments by address.

    Raises KeyError where SciPy lacks it, ValueError where it takes other arguments or other
    integers than C's int, AttributeError where SciPy publishes no pointers.
    """
    capsule = cython_lapack.__pyx_capi__[name]
    name_of, pointer_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    signature, count = name_of(capsule), len(ROUTINES[name])
    if signature.count(b"*") != count or not re.search(rb"[(,] ?int \*", signature):
        raise ValueError(f"{name} takes other arguments: {signature!r}")
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * count)(pointer_of(capsule, signature))


def _checked(name: str, function: Callable[..., None]) -> Routine:
    def call(*arguments: Argument) -> None:
        check(name, arguments)
        function(*map(_pointer, arguments))

    return call


def check(name: str, arguments: tuple[Argument, ...]) -> None:
    """Raise TypeError with the routine's name for arguments that it must not get."""
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
        f"{key} has numbers beyond 1 to n"
        for key in INDICES
        if not faults and key in given and not _are_indices(given[key], sizes["n"])
    ]
    if faults:
        raise TypeError(f"{name}: {faults[0]}")


def _fault(value: Argument, kind: Letter | Number | Array, sizes: Sizes) -> str | None:
    """What is wrong with an argument, None where nothing is."""
    if isinstance(kind, Letter):
        fits = isinstance(value, bytes) and len(value) == 1 and value in kind.allowed
        return None if fits else f"is not one of {kind.allowed!r}"
    if isinstance(kind, Number):
        fits = isinstance(value, int) and max(1, kind.least(sizes)) <= value < 1 << 31
        return None if fits else "is out of range"
    return array_fault(value, kind.shape(sizes), kind.dtype)


def array_fault(
    value: object, shape: tuple[int, ...], dtype: type[np.generic] = np.float64
) -> str | None:
    """What is wrong with an array that a routine reads and writes, None where nothing is."""
    if type(value) is not np.ndarray:
        return "is no NumPy array"
    if value.dtype != np.dtype(dtype) or not value.dtype.isnative:
        return f"is {value.dtype}, not {np.dtype(dtype)}"
    if value.ndim != len(shape):
        return f"has {value.ndim} dimensions, not {len(shape)}"
    if value.shape != shape if value.ndim > 1 else value.size < shape[0]:
        return f"has the shape {value.shape}, not {shape}"
    if not value.flags.c_contiguous or not value.flags.aligned:
        return "is not contiguous, row by row"
    return None if value.flags.writeable else "is read-only"


def _are_indices(value: Argument, most: int) -> bool:
    return bool(np.min(value) >= 1 and np.max(value) <= most)


def _pointer(argument: Argument) -> Any:
    """What ctypes takes for the address of a character, a number or an array."""
    if isinstance(argument, np.ndarray):
        return argument.ctypes.data
    return argument if isinstance(argument, bytes) else ctypes.byref(ctypes.c_int(argument))
