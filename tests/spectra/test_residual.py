"""Stacked deltas on the residual side, against the Gram written out."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from measuring import measure_all

from shadow.dtypes import FLOATS
from shadow.places.groups import READING, WRITING
from shadow.reports.columns import RESIDUAL
from shadow.spectra import residual
from shadow.spectra.residual import (
    WIDTH,
    Residual,
    overlaps,
    overlaps_left_out,
    projection,
    stacked_participation,
    stacked_stderr,
)
from shadow.spectra.spectrum import blocks

RNG = np.random.default_rng(0)


def deltas(width, shared, direction, lengths=(96, 200, 32, 96, 400), rank=20):
    """Low-rank deltas on a stream of that width, which share some directions, and noise."""
    common = np.linalg.qr(RNG.standard_normal((width, rank)))[0]
    found = []
    for length in lengths:
        own = np.linalg.qr(RNG.standard_normal((width, rank)))[0]
        fall = 1 / np.arange(1, rank + 1)
        left, other = (np.linalg.qr(RNG.standard_normal((length, rank)))[0] for _ in range(2))
        D = (
            np.sqrt(shared) * (left * fall) @ common.T
            + np.sqrt(1 - shared) * (other * fall) @ own.T
        )
        D += 0.3 * RNG.standard_normal(D.shape) / np.sqrt(D.size)
        found.append(
            (RNG.uniform(0.5, 2) * D if direction == "reading" else D.T).astype(np.float32).copy()
        )
    return found


def sketched(D, direction):
    matrix = torch.from_numpy(D)
    energy = (D.astype(float) ** 2).sum()
    residual = Residual(D.shape, direction)
    for index, corner in blocks(matrix):
        residual.add(matrix[index], corner)
    return residual.sketch(energy)


def with_error(Ds, width, direction):
    energies = np.array([(D.astype(float) ** 2).sum() for D in Ds])
    grams = [D @ D.T if D.shape[0] < D.shape[1] else D.T @ D for D in Ds]
    participation = energies**2 / np.array([(G.astype(float) ** 2).sum() for G in grams])
    kept = np.stack([sketched(D, direction) for D in Ds])
    cosines = overlaps(kept, participation, width)
    found = stacked_participation(cosines, energies, participation)
    left_out = overlaps_left_out(kept, participation, width)
    exact = np.zeros(len(Ds))
    return found, stacked_stderr(cosines, left_out, energies, participation, exact)


def written_out(Ds, direction):
    stack = np.concatenate(Ds if direction == "reading" else [D.T for D in Ds]).astype(float)
    G = stack.T @ stack
    return np.trace(G) ** 2 / (G**2).sum()


@pytest.mark.parametrize("direction", ["reading", "writing"])
@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("width", [2, 64, WIDTH])
def test_narrow_streams_are_exact(width, shared, direction):
    """Up to the sketch's width the ratio is that of the Gram written out, to float32's rounding."""
    Ds = deltas(width, shared, direction, rank=min(20, width))
    found, stderr = with_error(Ds, width, direction)
    assert found == pytest.approx(written_out(Ds, direction), rel=1e-5)
    assert stderr == 0.0


def test_the_error_of_an_estimated_ratio_is_in_that_of_its_stack():
    """As the stack's ratio scatters where those of its deltas do, and that of one as it does."""
    energies, ratios = RNG.uniform(1, 4, 5), RNG.uniform(2, 90, 5)
    cosines, errors = np.full((5, 5), 0.3) + 0.7 * np.eye(5), RNG.uniform(0.005, 0.02, 5)
    drawn = [
        stacked_participation(cosines, energies, ratios * (1 + errors * RNG.standard_normal(5)))
        for _ in range(4000)
    ]
    stderr = stacked_stderr(cosines, [], energies, ratios, errors)
    assert stderr == pytest.approx(np.std(drawn), rel=0.06)
    one = np.ones(1)
    assert stacked_stderr(np.eye(1), [], one, 50 * one, 0.01 * one) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("direction", "shared", "typical"),
    [
        ("reading", 0.0, 0.02), ("writing", 0.0, 0.02), ("reading", 0.5, 0.12),
        ("writing", 0.5, 0.12), ("reading", 1.0, 0.002), ("writing", 0.8, 0.12),
    ],
)  # fmt: skip
def test_wide_streams_are_within_a_few_percent_and_their_standard_error_says_so(
    direction, shared, typical
):
    """Four times the sketch's width: errors of 1 %, 8 % for half shared steep spectra, no bias,
    and as large as the standard error says, to a factor of 2.5.
    """
    errors, apart = [], []
    for _ in range(8):
        Ds = deltas(4 * WIDTH, shared, direction)
        found, stderr = with_error(Ds, 4 * WIDTH, direction)
        truth = written_out(Ds, direction)
        assert stderr > 0
        errors.append(found / truth - 1)
        apart.append((found - truth) / stderr)
    assert np.sqrt(np.mean(np.square(errors))) < typical
    assert abs(np.mean(errors)) < typical
    assert 0.25 < np.sqrt(np.mean(np.square(apart))) < 2.5


def test_a_single_delta_has_no_error():
    """Its own spectrum is known, however wide the stream is."""
    Ds = deltas(4 * WIDTH, 0.5, "reading", lengths=(96,))
    assert with_error(Ds, 4 * WIDTH, "reading")[1] == pytest.approx(0.0, abs=1e-9)


def test_blocks_along_either_side_give_one_sketch(monkeypatch):
    """A matrix whose residual side is cut into blocks has the sketch of the whole matrix."""
    monkeypatch.setattr("shadow.spectra.spectrum.BLOCK", 20_000)
    for shape, direction in (
        ((150, 280), "reading"),
        ((280, 150), "writing"),
        ((280, 150), "reading"),
    ):
        D = RNG.standard_normal(shape).astype(np.float32)
        assert len(list(blocks(torch.from_numpy(D)))) > 1
        P = projection(shape[1] if direction == "reading" else shape[0], np.dtype(float))
        x = (D if direction == "reading" else D.T).astype(float) @ P
        expected = (x.T @ x / (D.astype(float) ** 2).sum())[np.triu_indices(WIDTH)]
        assert np.abs(sketched(D, direction) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.fixture
def narrow(monkeypatch):
    """Streams from 200 on are wide, and their projection is drawn in three pieces or more."""
    monkeypatch.setattr(residual, "WHOLE", 200)
    monkeypatch.setattr(residual, "PIECE", 100)
    for cached in (residual._drawn_whole, residual._root):
        monkeypatch.setattr(residual, cached.__name__, lru_cache(cached.__wrapped__))


def test_the_projection_of_a_wide_stream_is_that_of_a_narrow_one_but_for_signs(narrow):
    """QR of the same random numbers makes the same orthonormal columns, of either sign."""
    P = projection(300, np.dtype(float))
    by_qr = np.linalg.qr(np.random.default_rng([residual.SEED, 300]).standard_normal((300, WIDTH)))
    np.testing.assert_allclose(np.abs(P.T @ by_qr[0]), np.eye(WIDTH), atol=1e-13)


@pytest.mark.parametrize("direction", ["reading", "writing"])
@pytest.mark.parametrize("shape", [(90, 300), (300, 90), (400, 300), (300, 400), (300, 300)])
def test_the_sketch_on_a_wide_stream_is_that_of_the_whole_projection(
    narrow, shape, direction, monkeypatch
):
    """Drawn piece by piece on the long side, within and across blocks, whole on the short one."""
    D = RNG.standard_normal(shape).astype(np.float32)
    P = projection(shape[1] if direction == "reading" else shape[0], np.dtype(float))
    x = (D if direction == "reading" else D.T).astype(float) @ P
    expected = (x.T @ x / (D.astype(float) ** 2).sum())[np.triu_indices(x.shape[1])]
    for block in (1 << 21, 20_000, 9_000):
        monkeypatch.setattr("shadow.spectra.spectrum.BLOCK", block)
        assert np.abs(sketched(D, direction) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("dtypes", [("BF16", "BF16"), ("F32", "F32")])
@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (260, 260), (100, 40)])
@pytest.mark.parametrize("direction", ["reading", "writing"])
def test_the_sketch_of_a_pair_is_that_of_its_delta_written_out(shape, direction, dtypes):
    """From the Gram matrix or from a pass of its own, whichever side the residual stream is on."""
    stored = [getattr(torch, FLOATS[dtype].torch_name) for dtype in dtypes]
    base = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(stored[0])
    tuned = (base.float() + 0.1 * torch.randn(shape, generator=torch.Generator())).to(stored[1])
    measured = measure_all(base, tuned, dtypes, direction=direction)
    D = tuned.double().numpy() - base.double().numpy()
    x = D if direction == "reading" else D.T
    x = x @ projection(x.shape[1], np.dtype(float))
    expected = (x.T @ x / (D**2).sum())[np.triu_indices(x.shape[1])]
    assert np.abs(measured.sketch - expected).max() < 1e-6 * np.abs(expected).max()
    assert measured.delta.number("frobenius_norm") == pytest.approx(np.linalg.norm(D), rel=1e-6)


def test_no_sketch_of_a_matrix_beside_the_residual_stream():
    """Without a direction there is none."""
    base = torch.eye(60).bfloat16()
    assert measure_all(base, 2 * base).sketch is None


def test_the_modules_that_are_stacked_are_those_that_the_schema_names():
    """The formula of `direction` lists every reader and writer, and no other."""
    text = next(column.formula or column.text for column in RESIDUAL if column.name == "direction")
    reading, writing = (set(part.split(": ")[1].split(", ")) for part in text.split("; "))
    assert (reading, writing) == (set(READING), set(WRITING))
