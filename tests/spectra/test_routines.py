"""Arrays that LAPACK must not get: each is a TypeError with the routine's name, and nothing dies.

The calls run in a fork of this process, whose memory they may corrupt.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shadow.spectra import routines, spectrum
from shadow.spectra.routines import ROUTINES, Array, Letter, Number, check, lapack

SIDE, COUNT = 70, 5
INTEGERS = {"lwork": 64 * SIDE + 2 * 64**2, "lda": SIDE, "ldz": SIDE, "ldc": SIDE}
WRONG: dict[str, Callable[[NDArray], object]] = {
    "float32": lambda a: a.astype(np.float32),
    "complex": lambda a: a.astype(np.complex128),
    "big endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "object": lambda a: a.astype(object),
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: a[::-1],
    "read-only": lambda a: _read_only(a),
    "unaligned": lambda a: _unaligned(a),
    "empty": lambda a: np.empty((0,) * a.ndim, a.dtype),
    "too small": lambda a: np.ascontiguousarray(a[..., :-1]),
    "another dimension": lambda a: a[None],
    "Fortran's order": lambda a: np.asfortranarray(a),
    "list": lambda a: a.tolist(),
    "tensor": lambda a: torch.from_numpy(a.copy()),
    "none": lambda a: None,
    "number": lambda a: 0,
}
NUMBERS = (-1, 0, 1 << 31, 1.0, None, b"U", True, np.int64(SIDE))


def _read_only(a: NDArray) -> NDArray:
    a = a.copy()
    a.flags.writeable = False
    return a


def _unaligned(a: NDArray) -> NDArray:
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:]
    return raw.view(a.dtype).reshape(a.shape)


def right(name: str) -> dict[str, object]:
    """Arguments that the routine takes."""
    rows = COUNT if name == "dormtr" else SIDE  # columns of the vectors in Fortran's order
    sizes = {"n": rows, "m": SIDE if name == "dormtr" else COUNT, **INTEGERS}
    made: dict[str, object] = {}
    for key, kind in ROUTINES[name].items():
        if isinstance(kind, Letter):
            made[key] = kind.allowed[:1]
        elif isinstance(kind, Number):
            made[key] = sizes[key]
        else:
            made[key] = np.ones(kind.shape(sizes), kind.dtype)
    return made


def wrong_calls(name: str) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Calls with one wrong argument, each with what is wrong."""
    good = right(name)
    yield "one argument less", tuple(good.values())[:-1]
    for key, kind in ROUTINES[name].items():
        if isinstance(kind, Array):
            bad = {
                what: made(good[key])
                for what, made in WRONG.items()
                if good[key].ndim > 1 or what != "Fortran's order"
                if good[key].size > 1 or what not in ("reversed", "strided")
            }
        elif isinstance(kind, Number):
            bad = {str(number): number for number in NUMBERS}
            bad["too large"] = 10 * SIDE * SIDE
        else:
            bad = {"unknown": b"x", "long": b"UU", "text": "U", "none": None}
        for what, value in bad.items():
            yield f"{key}: {what}", tuple({**good, key: value}.values())


def matrices() -> Iterator[tuple[str, object]]:
    """Matrices that `eigensystem` and `eigenvalues` refuse."""
    good = np.eye(SIDE)
    for what, made in WRONG.items():
        if what not in ("reversed", "Fortran's order"):
            yield what, made(good)
    yield "transposed", np.random.default_rng(0).random((SIDE, SIDE)).T
    yield "a vector", np.ones(SIDE)


@contextmanager
def refused(name: str, what: str) -> Iterator[None]:
    """A TypeError with the routine's name; what: the wrong thing that it is given."""
    try:
        yield
    except TypeError as error:
        if name not in str(error):
            raise AssertionError(f"{what}: {error}") from error
    else:
        raise AssertionError(f"{name} took {what}")


def no_call_dies() -> None:
    """Make every wrong call, in this process."""
    of_lapack = lapack()
    assert of_lapack is not None
    for name, routine in of_lapack.items():
        check(name, tuple(right(name).values()))
        for what, arguments in wrong_calls(name):
            with refused(name, what):
                routine(*arguments)
    for what, matrix in matrices():
        with refused("eigensystem", what):
            routines.eigensystem(matrix, 3)
    for count in (-1, SIDE + 1):
        with pytest.raises(TypeError, match="eigensystem"):
            routines.eigensystem(np.eye(SIDE), count)
    for mkl in (False, True):
        spectrum.mkl_is_at_home = lambda mkl=mkl: mkl
        for matrix in (
            torch.eye(SIDE),
            torch.eye(2 * SIDE, dtype=torch.float64)[::2, ::2],
            torch.ones((SIDE, SIDE + 1), dtype=torch.float64),
            torch.empty((0, 0), dtype=torch.float64),
            torch.ones(SIDE, dtype=torch.float64),
        ):
            with pytest.raises(TypeError, match="eigenvalues"):
                spectrum.eigenvalues(matrix)
    for routine in ("dsterf", "dstein"):  # blocks that lie elsewhere
        good = right(routine)
        for key in {"iblock", "isplit"} & good.keys():
            for index in (0, SIDE + 1, -1):
                with pytest.raises(TypeError, match=key):
                    of_lapack[routine](*{**good, key: good[key] * 0 + index}.values())


def test_no_wrong_array_reaches_lapack() -> None:
    """In a fork, as a wrong one would end it: it does not die, and refuses each."""
    child = os.fork()
    if not child:
        signal.alarm(120)
        try:
            no_call_dies()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_calls_are_counted() -> None:
    """At least a hundred wrong calls, so that an empty table of them is noticed."""
    assert sum(1 for name in ROUTINES for _ in wrong_calls(name)) > 100
