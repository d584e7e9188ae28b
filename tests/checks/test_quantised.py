"""What `quantised` answers of copies that ggml's, GPTQ's and AWQ's quantisers made."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from quantisers import Copy, awq_copy, ggml_copy, gptq_copy, k_like, k_quants

from shadow.checks.quantised import CHECK, Copied, Copies, judge
from shadow.run.scanned import Unmatched
from shadow.spectra.relations.format_noise import format_noise
from shadow.templates import Reason

ROWS, COLS = 128, 512
HOLDS, BEYOND, OPEN = (
    ("holds", ["at_error"], []),
    ("does_not_hold", ["beyond"], ["outside"]),
    ("inconclusive", ["not_excluded"], ["outside"]),
)
FAR = ("does_not_hold", ["beyond"], ["far"])


@pytest.fixture
def original():
    rng = np.random.default_rng(11)
    return torch.from_numpy((rng.standard_normal((ROWS, COLS)) * 0.02).astype(np.float32))


def copied(original, copy, **changed):
    return Copied("t", copy.format, replace(format_noise(original, copy), **changed))


def said(*tensors, **apart):
    """The outcome, and the codes of reasons and of what speaks against it."""
    answer = judge(Copies(tensors, **apart))
    assert CHECK.say_all([*answer.reasons, *(one.why for one in answer.against)])
    against = [one.why.code for one in answer.against]
    return answer.outcome, [one.code for one in answer.reasons], against


def test_gptq_and_awq_cannot_be_excluded(original):
    """They make more error than rounds; a change of that size in a type of ggml does not hold."""
    factors = torch.exp(0.3 * torch.randn(COLS, generator=torch.Generator().manual_seed(2)))
    by_activations = gptq_copy(original, in_order=False)
    for copy in (gptq_copy(original), by_activations, awq_copy(original, factors)):
        assert said(copied(original, copy)) == OPEN
    noise = 0.003 * torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(3))
    assert said(copied(original, k_like(original + noise))) == BEYOND


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K"])
def test_blocks_without_a_scale_cannot_be_told(original, kind):
    """One of 32 blocks, far smaller than the others, has no scale; without it copies hold."""
    copies = [k_quants(original, kind, of) for of in (None, np.ones(COLS))]
    assert said(*(copied(original, copy) for copy in copies)) == HOLDS
    original[:, :16] *= 0.01
    importance = np.exp(np.random.default_rng(1).standard_normal(COLS))
    for of in (None, importance):
        assert said(copied(original, k_quants(original, kind, of))) == OPEN


def test_a_format_of_unknown_levels_cannot_be_told(original):
    """With an error of the size of a copy; what is nothing like the original does not hold."""
    copy = Copy(ggml_copy(original, "Q4_0").numbers, None, "IQ4_NL")
    assert said(copied(original, copy)) == OPEN
    other = Copy(torch.flip(copy.numbers, (0,)), None, "IQ4_NL")
    assert said(copied(original, other)) == FAR


@pytest.mark.parametrize("step", [0.0, 0.002, None])
def test_a_copy_of_zeros_is_no_calibration(original, step):
    zeros = torch.zeros(ROWS, COLS)
    copy = Copy(zeros, None if step is None else zeros + step, "GPTQ 4-bit")
    assert said(copied(original, copy)) == FAR


@pytest.mark.parametrize("factor", [0.1, 0.5, 2.0, 10.0])
@pytest.mark.parametrize("make", [gptq_copy, lambda one: ggml_copy(one, "Q8_0")])
def test_a_factor_of_a_whole_tensor_is_named(original, make, factor):
    """As of a global scale that is ten times too large; no quantiser scales so."""
    copy = make(original)
    steps = None if copy.each is None else factor * copy.each
    wrong = copied(original, Copy(factor * copy.numbers, steps, copy.format))
    assert said(wrong) == ("does_not_hold", ["beyond"], ["scaled"])
    assert wrong.noise.factor == pytest.approx(factor, rel=0.02)
    assert copied(original, copy).noise.factor is None


def test_what_is_on_one_side_or_not_read_is_said(original):
    copy = copied(original, ggml_copy(original, "Q8_0"))
    apart = [Unmatched("a", "base", Reason("one_side"))]
    assert said(copy, unmatched=apart) == ("does_not_hold", ["apart"], ["one_side"])
    assert said(copy, unread=apart) == ("inconclusive", ["not_compared"], ["one_side"])
    broken = replace(copy, noise=replace(copy.noise, finite=False))
    assert said(broken, unread=apart) == ("does_not_hold", ["beyond"], ["not_finite"])
    assert said(replace(copy, is_float=True)) == ("inconclusive", ["floats"], [])


def test_figures_are_those_of_all_tensors(original):
    """The ratio and the size of the error over all of them, by NumPy."""
    copies = [ggml_copy(original, kind) for kind in ("Q4_0", "Q8_0")]
    figures = judge(Copies([copied(original, copy) for copy in copies])).figures
    errors = [(copy.numbers - original).double().square().sum() for copy in copies]
    expected = math.sqrt(sum(errors) / (2 * original.double().square().sum()))
    assert figures["relative_error"] == pytest.approx(expected)
    assert figures["error_ratio"] == pytest.approx(1, abs=1e-3)
    assert (figures["tensors_Q4_0"], figures["tensors_Q8_0"]) == (1, 1)
