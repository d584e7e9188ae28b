"""What is recognised in planted pairs, by codes and figures."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import planted
import pytest
import torch
from measuring import pair_of

from shadow.audits.pair import run_pair
from shadow.checkpoints.pairing import Filter
from shadow.checks.recognised import recognised
from shadow.run.settings import Settings
from shadow.spectra.delta import Method

Weights = dict[str, torch.Tensor]
SETTINGS = Settings(Method(subspaces=False), Filter())
BASE = planted.gaussian(0, layers=6, width=64)
OTHER = {name: one for name, one in planted.gaussian(1, layers=6, width=64).items() if ".l" in name}
LAYER = re.compile(r"(?<=layers\.)\d+")


def layers_of(*numbers: int) -> Weights:
    """The base's layers of these numbers, one after the other."""
    made = {name: one for name, one in BASE.items() if "layers" not in name}
    for at, number in enumerate(numbers):
        made |= {
            LAYER.sub(str(at), name): one.clone()
            for name, one in BASE.items()
            if f"layers.{number}." in name
        }
    return made


def trained(base: Weights, size: float) -> Weights:
    generator = torch.Generator().manual_seed(3)
    return {
        name: one + size * one.std() * torch.randn(one.shape, generator=generator)
        for name, one in base.items()
    }


def rotation(size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


def through(base: Weights, stream: torch.Tensor) -> Weights:
    """With another basis of the residual stream, as QuaRot turns it."""
    writes = ("o_proj", "down_proj")
    return {
        name: (
            (
                stream.T @ one.double()
                if any(end in name for end in writes)
                else one.double() @ stream
            )
            .float()
            .bfloat16()
        )
        for name, one in base.items()
    }


def turned_heads(base: Weights) -> Weights:
    """Rotated v and o."""
    q, made = rotation(64, 1), dict(base)
    for name, one in base.items():
        if "v_proj" in name:
            made[name] = (q @ one.double()).float()
        if "o_proj" in name:
            made[name] = (one.double() @ q.T).float()
    return made


def permuted(base: Weights) -> Weights:
    """With the neurons of every MLP in another order."""
    order = torch.randperm(96, generator=torch.Generator().manual_seed(6))
    return {
        name: one[:, order] if "down" in name else one[order] if ".mlp." in name else one
        for name, one in base.items()
    }


SIGNS = torch.diag(
    torch.where(torch.rand(64, generator=torch.Generator().manual_seed(2)) < 0.5, 1.0, -1.0)
)
UPS = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in (1, 4)]
PLANTED: dict[str, Callable[[], Weights]] = {
    "dropped": lambda: layers_of(0, 1, 3, 4, 5),
    "repeated": lambda: layers_of(0, 1, 2, 3, 2, 3, 4, 5),
    "times -2": lambda: {name: -2 * one for name, one in BASE.items()},
    "layer negated": lambda: {name: -one if ".2." in name else one for name, one in BASE.items()},
    "negated": lambda: trained(
        {name: -one if "up_proj" in name else one for name, one in BASE.items()}, 1e-3
    ),
    "neurons": lambda: permuted(BASE),
    "rotated heads": lambda: turned_heads(BASE),
    "rotated stream": lambda: through(BASE, rotation(64)),
    "signs": lambda: through(BASE, SIGNS.double()),
    "exchanged": lambda: BASE | {UPS[0]: BASE[UPS[1]].clone(), UPS[1]: BASE[UPS[0]].clone()},
    "unrelated": lambda: BASE | OTHER,
    "trained": lambda: trained(BASE, 0.1),
}


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """The summary of a planted pair, made once."""
    there = tmp_path_factory.mktemp("changes")
    base = planted.write(there / "base", BASE, planted.LLAMA)

    @cache
    def run(case: str):
        side = planted.write(there / case.replace(" ", "-"), PLANTED[case](), planted.LLAMA)
        return run_pair(pair_of(base, side), SETTINGS, there / "out").summary

    return run


@pytest.mark.parametrize(
    ("case", "codes"),
    [
        ("dropped", ["layers_moved"]),
        ("repeated", ["layers_moved"]),
        ("times -2", ["scaled"]),
        ("layer negated", ["scaled"]),
        ("negated", ["not_comparable"]),
        ("neurons", ["not_comparable"]),
        ("rotated heads", ["not_comparable"]),
        ("rotated stream", ["not_comparable"]),
        ("signs", ["not_comparable"]),
        ("exchanged", ["replaced"]),
        ("unrelated", []),
        ("trained", []),
    ],
)
def test_what_no_training_does_is_recognised_and_nothing_else(audited, case, codes):
    """The codes, and that no other sentence says that the two have little in common."""
    summary = audited(case)
    assert recognised(summary) == codes
    said = {sentence.code for sentence in summary.finding.sentences}
    apart = {"unrelated"} if case == "unrelated" else set()
    assert said & {"unrelated", "hardly_related", *codes} == {*codes, *apart}


def test_figures_of_what_was_planted(audited):
    """Which layers moved, the factor, and how many matrices cannot be compared."""
    moved = audited("dropped").recognised.rearranged.moved
    assert moved.layers == 3
    (row,) = moved.rows
    assert (row.first_layer, row.last_layer, row.base_first) == (2, 4, 3)
    (row,) = audited("repeated").recognised.rearranged.moved.rows
    assert (row.first_layer, row.last_layer, row.base_first) == (4, 7, 2)
    assert audited("times -2").recognised.scaled.factor == pytest.approx(-2)
    counts = {"negated": 6, "neurons": 18, "rotated heads": 12, "rotated stream": 43, "signs": 43}
    for case, matrices in counts.items():
        assert audited(case).recognised.rearranged.not_comparable.matrices == matrices
    replaced = audited("exchanged").recognised.replaced
    assert (replaced.matrices, [one.layers for one in replaced.rows]) == (2, [[1, 4]])
