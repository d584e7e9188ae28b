"""Eigenvalues and leading eigenvectors against NumPy's full decomposition, on matrices that are
hard for it too.
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow.spectra import routines
from shadow.spectra.routines import eigensystem, lapack


def rotated(eigenvalues, seed=0):
    Q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(eigenvalues),) * 2))
    return (Q * eigenvalues) @ Q.T


def assert_solved(matrix, count):
    """Values, residuals and orthonormality to rounding; the upper triangle is never read."""
    whole = (matrix + matrix.T) / 2
    values, vectors = eigensystem(np.where(np.tri(len(whole)) > 0, whole, np.nan), count)
    truth = np.linalg.eigvalsh(whole)
    size = np.abs(truth).max()
    np.testing.assert_allclose(values, truth, atol=1e-13 * size)
    np.testing.assert_allclose(whole @ vectors, vectors * values[::-1][:count], atol=1e-13 * size)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(count), atol=1e-12)


def test_scipys_routines_are_there():
    """The pointers that SciPy publishes have the arguments that are expected here."""
    assert lapack() is not None


@settings(max_examples=examples(40))
@given(st.integers(0, 1000), st.integers(1, 90), st.data())
def test_a_gram_matrix(seed, side, data):
    """Any side and count."""
    W = np.random.default_rng(seed).standard_normal((side, side + 5))
    assert_solved(W @ W.T, data.draw(st.integers(1, side)))


@pytest.mark.parametrize("side", [2, 65, 200])
@pytest.mark.parametrize("kind", [
    "identity", "zero", "diagonal", "pairs", "rank one", "two clusters", "graded", "tiny",
    "wilkinson", "equal",
])  # fmt: skip
def test_clusters_and_splits(kind, side):
    """Equal and nearly equal eigenvalues, and matrices whose tridiagonal form falls apart."""
    rng = np.random.default_rng(0)
    half = side // 2
    matrix = {
        "identity": lambda: np.eye(side),
        "equal": lambda: rotated(np.full(side, 3.0)),
        "zero": lambda: np.zeros((side, side)),
        "diagonal": lambda: np.diag(rng.random(side)),
        "pairs": lambda: np.diag(np.repeat(rng.random(half + 1), 2)[:side]),
        "rank one": lambda: np.ones((side, side)),
        "two clusters": lambda: rotated(np.repeat([5.0, 1.0], [half, side - half])),
        "graded": lambda: rotated(np.geomspace(1, 1e-16, side)),
        "tiny": lambda: 1e-150 * rotated(np.geomspace(1, 1e-3, side)),
        "wilkinson": lambda: (
            np.diag(np.abs(np.arange(side) - half + 0.0)) + np.eye(side, k=1) + np.eye(side, k=-1)
        ),
    }[kind]()
    assert_solved(matrix, min(64, side))


def test_values_do_not_depend_on_the_vectors():
    """The same bits with and without."""
    matrix = rotated(np.geomspace(1, 1e-3, 120))
    np.testing.assert_array_equal(
        eigensystem(matrix.copy(), 0)[0], eigensystem(matrix.copy(), 20)[0]
    )


def test_other_ways_where_this_one_is_not_to_be_had(monkeypatch):
    """Inverse iteration that fails is replaced, and so is a LAPACK with other integers."""

    def fails(*arguments):
        arguments[-1].data_as(ctypes.POINTER(ctypes.c_int))[0] = 1

    matrix = rotated(np.geomspace(1, 1e-3, 120))
    found = lapack()
    monkeypatch.setattr(routines, "lapack", lambda: {**found, "dstein": fails})
    assert_solved(matrix, 20)
    monkeypatch.setattr(routines, "lapack", lambda: None)
    assert_solved(matrix, 20)
    monkeypatch.undo()
    monkeypatch.setitem(routines.ARGUMENTS, "dsterf", 5)
    lapack.cache_clear()
    assert lapack() is None
    monkeypatch.undo()
    lapack.cache_clear()
