"""What the claim `quantised` answers for copies that are calibrated, or of unknown formats."""

import math

import numpy as np
import pytest
import torch
from quantisers import Copy, awq_copy, ggml_copy, gptq_copy, k_like, k_quants

from shadow.checks.quantised import Quantised, quantised
from shadow.run.scanned import Apart
from shadow.spectra.format_noise import format_noise
from shadow.templates import Reason, said

ROWS, COLS = 128, 512


@pytest.fixture
def original():
    rng = np.random.default_rng(11)
    return torch.from_numpy((rng.standard_normal((ROWS, COLS)) * 0.02).astype(np.float32))


def row(original, copy, **changed):
    found = format_noise(original, copy)
    place = {"place": "p", "tensor": "t", "format": copy.format}
    return Quantised(**place, **(vars(found) | changed))


def answer(*rows, lone=(), unread=()):
    return quantised(rows, lone, unread)


def test_gptq_and_awq_cannot_be_excluded(original):
    """They make more error than rounds; a change of that size in a type of ggml does not hold."""
    factors = torch.exp(0.3 * torch.randn(COLS, generator=torch.Generator().manual_seed(2)))
    by_activations = gptq_copy(original, in_order=False)
    for copy in (gptq_copy(original), by_activations, awq_copy(original, factors)):
        found, against = answer(row(original, copy))
        assert found.outcome == "inconclusive"
        assert found.reason.endswith("cannot be excluded")
        assert len(against) == 1
    noise = 0.003 * torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(3))
    found, _ = answer(row(original, k_like(original + noise)))
    assert found.outcome == "does_not_hold"


def test_scales_of_an_importance_matrix_hold(original):
    """Scales that are fitted after levels were chosen leave few entries outside."""
    copy = ggml_copy(original, "Q4_0")
    x, q = (part.double().reshape(-1, 32) for part in (original, copy.numbers))
    factor = (x * q).sum(1, keepdim=True) / q.square().sum(1, keepdim=True)
    factor = 1 + 0.4 * (factor - 1)  # as far as a matrix that weighs columns moves scales
    numbers = (q * factor).float().view(ROWS, COLS)
    steps = copy.each.view(-1, 32) * factor.float()
    rescaled = row(original, Copy(numbers, steps.view(ROWS, COLS), "Q4_0"))
    assert 0 < rescaled.outside < 0.01 * rescaled.entries
    assert answer(rescaled)[0].outcome == "holds"
    other = row(original, Copy(numbers, steps.view(ROWS, COLS), "Q4_K"))
    assert answer(other)[0].outcome == "does_not_hold"


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K"])
def test_blocks_without_a_scale_cannot_be_told(original, kind):
    """With an importance matrix or without; one of 32 blocks, far smaller than the others, has no
    scale. Without such a block they hold.
    """
    copies = [k_quants(original, kind, of) for of in (None, np.ones(COLS))]
    assert answer(*(row(original, copy) for copy in copies))[0].outcome == "holds"
    original[:, :16] *= 0.01
    importance = np.exp(np.random.default_rng(1).standard_normal(COLS))
    for of in (None, importance):
        found, _ = answer(row(original, k_quants(original, kind, of)))
        assert found.outcome == "inconclusive"


def test_a_format_of_unknown_levels_cannot_be_told(original):
    """With an error of the size of a copy; what is nothing like the original does not hold."""
    copy = Copy(ggml_copy(original, "Q4_0").numbers, None, "IQ4_NL")
    found, against = answer(row(original, copy))
    assert (found.outcome, len(against)) == ("inconclusive", 1)
    assert "IQ4_NL" in against[0].what
    other = Copy(torch.flip(copy.numbers, (0,)), None, "IQ4_NL")
    assert answer(row(original, other))[0].outcome == "does_not_hold"


@pytest.mark.parametrize("step", [0.0, 0.002, None])
def test_a_copy_of_zeros_is_no_calibration(original, step):
    """It has nothing of an original that has entries; of one of zeros it is the copy."""
    zeros = torch.zeros(ROWS, COLS)
    copy = Copy(zeros, None if step is None else zeros + step, "GPTQ 4-bit")
    found, against = answer(row(original, copy))
    assert found.outcome == "does_not_hold", found
    assert len(against) == 1


def test_what_is_on_one_side_or_not_read_is_said(original):
    """A tensor on one side only does not hold; one that is not read cannot be told."""
    copy = row(original, ggml_copy(original, "Q8_0"))
    lone, unread = Apart("a", "base", Reason("one_side")), Apart("b", "tuned", said("unknown"))
    assert answer(copy, lone=[lone])[0].outcome == "does_not_hold"
    assert answer(copy, unread=[unread])[0].outcome == "inconclusive"
    broken = row(original, ggml_copy(original, "Q8_0"), finite=False)
    assert answer(broken)[0].outcome == "does_not_hold"


def test_figures_are_those_of_all_tensors(original):
    """The ratio and the size of the error over all of them, by NumPy."""
    copies = [ggml_copy(original, kind) for kind in ("Q4_0", "Q8_0")]
    found, _ = answer(*(row(original, copy) for copy in copies))
    errors = [(copy.numbers - original).double().square().sum() for copy in copies]
    expected = math.sqrt(sum(errors) / (2 * original.double().square().sum()))
    assert found.figures["relative_error"] == pytest.approx(expected)
    assert found.figures["error_ratio"] == pytest.approx(1, abs=1e-3)
    assert (found.figures["tensors_Q4_0"], found.figures["tensors_Q8_0"]) == (1, 1)
