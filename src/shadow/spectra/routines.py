"""Routines of SciPy's BLAS and LAPACK, called without the interpreter's lock.

They are called through the pointers that `scipy.linalg.cython_blas` and `cython_lapack` publish.
The functions of `scipy.linalg.blas` and `scipy.linalg.lapack` hold the lock, which would stall the
other workers.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Argument = bytes | int | np.floating | NDArray[Any]
Routine = Callable[..., None]


def routines(library: ModuleType, counts: Mapping[str, int]) -> dict[str, Routine] | None:
    """Routines by name, from the numbers of their arguments; None where not all can be called."""
    try:
        return {name: routine(library, name, count) for name, count in counts.items()}
    except (AttributeError, KeyError, ValueError):
        return None


def routine(library: ModuleType, name: str, count: int) -> Routine:
    """A routine of a library, as a function of its `count` arguments, all passed by address.

    It takes characters as bytes, C ints as int, scalars as NumPy's numbers of their precision, and
    arrays, which have to be contiguous in the order that the routine reads.

    Raises KeyError where the library lacks the routine, ValueError where it takes other arguments
    or other integers than C's int, AttributeError where the library publishes no pointers.
    """
    capsule = library.__pyx_capi__[name]
    name_of, pointer_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    signature = name_of(capsule)
    if signature.count(b"*") != count or not re.search(rb"[(,] ?int \*", signature):
        raise ValueError(f"{name} takes other arguments: {signature!r}")
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * count)(pointer_of(capsule, signature))

    def call(*arguments: Argument) -> None:
        function(*map(_pointer, arguments))

    return call


def _pointer(argument: Argument) -> Any:
    """What ctypes takes for the address of a character, a number or an array."""
    if isinstance(argument, bytes):
        return argument
    if isinstance(argument, int):
        return ctypes.byref(ctypes.c_int(argument))
    if isinstance(argument, np.ndarray):
        return argument.ctypes.data
    return ctypes.byref(np.ctypeslib.as_ctypes_type(argument.dtype)(float(argument)))
