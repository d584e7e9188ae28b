"""What is said of planted copies in few bits, pruned models and files of more bits than rounded."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import numpy as np
import planted
import pyarrow.parquet as pq
import pytest
import torch
from measuring import pair_of

from shadow.audits.pair import run_pair
from shadow.checkpoints.pairing import Filter
from shadow.checks.recognised import recognised
from shadow.run.settings import Settings
from shadow.spectra.delta import Method
from shadow.telling.size import is_as_stored

Weights = dict[str, torch.Tensor]
SETTINGS = Settings(Method(), Filter())
NAMES = [planted.UP.format(layer) for layer in range(4)]
SHAPE = 192, 512
rng = np.random.default_rng(0)
FULL = {name: torch.from_numpy(0.02 * rng.standard_normal(SHAPE)) for name in NAMES}
UPDATE = {name: torch.from_numpy(rng.standard_normal(SHAPE)) for name in NAMES}
BASE = {name: one.bfloat16() for name, one in FULL.items()}


def trained(size: float) -> Weights:
    return {name: one.double() + 0.02 * size * UPDATE[name] for name, one in BASE.items()}


def of_all(made: Callable[[torch.Tensor], torch.Tensor], weights: Weights = BASE) -> Weights:
    return {name: made(one.double()).bfloat16() for name, one in weights.items()}


def int8(W: torch.Tensor) -> torch.Tensor:
    step = W.abs().amax(1, keepdim=True) / 127
    return (W / step).round() * step


def gptq(W: torch.Tensor) -> torch.Tensor:
    """4 bits by rows, each column's error made up for in the next, as correlated inputs allow."""
    step = W.abs().amax(1, keepdim=True) / 7
    W, made = W.clone(), torch.empty_like(W)
    for at in range(W.shape[1]):
        made[:, at : at + 1] = ((W[:, at : at + 1] / step).round().clamp(-8, 7)) * step
        if at + 1 < W.shape[1]:
            W[:, at + 1] += 0.8 * (W[:, at] - made[:, at])
    return made


def pruned(W: torch.Tensor, share: float = 0.7) -> torch.Tensor:
    return torch.where(W.abs() < W.abs().quantile(share), 0.0, W)


def two_of_four(W: torch.Tensor) -> torch.Tensor:
    fours = W.reshape(len(W), -1, 4)
    low = fours.abs().argsort(2)[..., :2]
    return fours.scatter(2, low, 0.0).reshape(W.shape)


PLANTED: dict[str, Callable[[], tuple[Weights, Weights]]] = {
    "GPTQ": lambda: (BASE, of_all(gptq)),
    "trained, then int8": lambda: (BASE, of_all(int8, trained(0.01))),
    "pruned": lambda: (BASE, of_all(pruned)),
    "2:4": lambda: (BASE, of_all(two_of_four)),
    "trained from pruned": lambda: (
        of_all(pruned),
        {name: pruned(BASE[name].double()) + 2e-4 * UPDATE[name] for name in NAMES},
    ),
    # weights of F32 that training loaded in BF16, saved in F32
    "F32 files": lambda: (
        {name: one.float() for name, one in FULL.items()},
        {name: one.bfloat16().float() for name, one in trained(1e-3).items()},
    ),
}
FEW = {"base_few_values", "few_values"}


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """The summary of a planted pair and its delta rows, made once."""
    there = tmp_path_factory.mktemp("few")

    @cache
    def run(case: str):
        sides = PLANTED[case]()
        folders = []
        for at, side in enumerate(sides):
            kept = {name: one if one.dtype != torch.float64 else one.bfloat16()
                    for name, one in side.items()}  # fmt: skip
            folder = there / re.sub(r"\W+", "-", f"{case} {at}")
            folders.append(planted.write(folder, kept))
        done = run_pair(pair_of(*folders), SETTINGS, there / "out")
        rows = pq.read_table(done.folder / "matrices.parquet").to_pylist()
        return done.summary, [row for row in rows if row["subject"] == "delta"]

    return run


def codes(summary) -> set[str]:
    return {sentence.code for sentence in summary.finding.sentences}


@pytest.mark.parametrize("case", ["GPTQ", "trained, then int8"])
def test_of_a_copy_in_few_bits_no_share_is_the_updates(audited, case):
    """kept is null with a reason, nothing is said of a share, and the size is that as stored."""
    summary, rows = audited(case)
    assert {(row["kept"], row["kept_reason"]) for row in rows} == {(None, "rounding_unexplained")}
    assert {"few_values"} <= codes(summary)
    assert not {"kept", "rounding"} & codes(summary)
    assert is_as_stored(summary)
    answers = {one.code: one.answer for one in summary.finding.other_explanations}
    assert answers["quantised_copy"] == "cannot_be_excluded"


@pytest.mark.parametrize("case", ["pruned", "2:4", "trained from pruned"])
def test_zeros_are_no_levels(audited, case):
    """Of pruned matrices, nothing is said of few values or of a copy."""
    summary, _ = audited(case)
    assert not FEW & codes(summary)
    assert (summary.inside_layers.levels_base_few, summary.inside_layers.levels_tuned_few) == (0, 0)
    assert recognised(summary) == ([] if case == "trained from pruned" else ["zeroed"])


def test_the_size_of_weights_in_files_of_more_bits_is_as_stored(audited):
    """F32 files whose tuned side holds BF16 numbers: rounding is half of what is stored."""
    summary, rows = audited("F32 files")
    assert {row["kept_reason"] for row in rows} == {"rounding_unexplained"}
    assert summary.figures.floor_ratio > 4
    assert is_as_stored(summary)
