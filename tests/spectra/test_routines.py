"""Arrays that LAPACK must not get: each is a TypeError before any call."""

import math

import numpy as np
import pytest
import torch

from shadow.spectra import routines, spectrum
from shadow.spectra.routines import array, eigensystem, lapack

SIDE, COUNT = 70, 5
WRONG = {
    "float32": lambda a: a.astype(np.float32), "complex": lambda a: a.astype(np.complex128),
    "big endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "object": lambda a: a.astype(object),
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2], "reversed": lambda a: a[::-1],
    "read-only": lambda a: read_only(a), "unaligned": lambda a: unaligned(a),
    "empty": lambda a: np.empty((0,) * a.ndim, a.dtype),
    "too small": lambda a: np.ascontiguousarray(a[..., :-1]),
    "another dimension": lambda a: a[None],
    "Fortran's order": lambda a: np.asfortranarray(a) if a.ndim > 1 else a[::-1],
    "list": lambda a: a.tolist(), "tensor": lambda a: torch.from_numpy(a.copy()),
    "none": lambda a: None, "number": lambda a: 0,
}  # fmt: skip


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def unaligned(a):
    return np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("shape", [(SIDE, SIDE), (SIDE,), (COUNT, SIDE)])
def test_no_wrong_array_has_an_address(what, shape):
    """A matrix of any use, and a vector of floats or of C's integers."""
    for dtype in (np.float64, np.intc):
        good = np.ones(shape, dtype)
        assert array(good, *shape, dtype=dtype).data == good.ctypes.data
        with pytest.raises(TypeError):
            array(WRONG[what](good), *shape, dtype=dtype)


@pytest.mark.parametrize("what", [*WRONG, "transposed", "a vector"])
def test_no_wrong_matrix_is_solved(what, monkeypatch):
    monkeypatch.setattr(routines, "lapack", lambda: pytest.fail("it was called"))
    good = np.random.default_rng(0).random((SIDE, SIDE))
    more = {"transposed": lambda a: a.T, "a vector": lambda a: a[0].copy()}
    with pytest.raises(TypeError):
        eigensystem((WRONG | more)[what](good), 3)
    for count in (-1, SIDE + 1):
        with pytest.raises(TypeError, match="eigensystem"):
            eigensystem(good, count)


@pytest.mark.parametrize("mkl", [False, True])
def test_no_wrong_matrix_has_eigenvalues(mkl, monkeypatch):
    monkeypatch.setattr(spectrum, "mkl_is_at_home", lambda: mkl)
    whole = torch.eye(2 * SIDE, dtype=torch.float64)
    for matrix in (torch.eye(SIDE), whole[::2, ::2], whole[:SIDE], whole[0]):
        with pytest.raises(TypeError):
            spectrum.eigenvalues(matrix)


def test_every_array_has_the_size_that_lapack_documents(monkeypatch):
    """By routine the elements of its arrays in order, from the pages of LAPACK: N of the matrix is
    n, M of the vectors k; work arrays are as long as LWORK.
    """
    n, k, work = SIDE, COUNT, 64 * SIDE + 2 * 64**2
    documented = {
        "dsytrd": (n * n, n, n - 1, n - 1, work, 1), "dsterf": (n, n - 1, 1),
        "dstein": (n, n - 1, k, k, n, n * k, 5 * n, n, k, 1),
        "dormtr": (n * n, n - 1, n * k, work, 1),
    }  # fmt: skip
    found = lapack()
    called = []

    def checked(name):
        def call(*arguments):
            arrays = [one for one in arguments if hasattr(one, "data_as")]
            sizes = [math.prod(one.shape) for one in arrays]
            needed = documented[name]
            assert len(sizes) == len(needed)
            assert all(size >= least for size, least in zip(sizes, needed, strict=True)), name
            called.append(name)
            found[name](*arguments)

        return call

    monkeypatch.setattr(routines, "lapack", lambda: {name: checked(name) for name in found})
    eigensystem(np.eye(n), k)
    assert called == [*documented]
