"""What is recognised in planted pairs, by codes and figures."""

import re
from collections.abc import Callable
from functools import cache

import numpy as np
import planted
import pytest
import torch
from measuring import frame, planted_pair

from shadow.checkpoints.pairing import Filter
from shadow.checks.explanations import recognised
from shadow.engines.pair import run_pair
from shadow.run.settings import Settings
from shadow.spectra.measurement import Method
from shadow.telling.context import Context

Weights = dict[str, torch.Tensor]
SETTINGS = Settings(Method(), Filter())
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
    turned = {}
    for name, one in base.items():
        is_written = "o_proj" in name or "down_proj" in name
        matrix = stream.T @ one.double() if is_written else one.double() @ stream
        turned[name] = matrix.float().bfloat16()
    return turned


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
NAMES = [planted.UP.format(layer) for layer in range(4)]
SHAPE = 192, 512
rng = np.random.default_rng(0)
FULL = {name: torch.from_numpy(0.02 * rng.standard_normal(SHAPE)) for name in NAMES}
UPDATE = {name: torch.from_numpy(rng.standard_normal(SHAPE)) for name in NAMES}
BF16 = {name: one.bfloat16() for name, one in FULL.items()}


def moved(size: float) -> Weights:
    return {name: one.double() + 0.02 * size * UPDATE[name] for name, one in BF16.items()}


def of_all(made: Callable[[torch.Tensor], torch.Tensor], weights: Weights = BF16) -> Weights:
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


PLANTED: dict[str, Callable[[], Weights | tuple[Weights, Weights]]] = {
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
    # few bits, pruned models, files of more bits than rounded
    "GPTQ": lambda: (BF16, of_all(gptq)),
    "trained, then int8": lambda: (BF16, of_all(int8, moved(0.01))),
    "pruned": lambda: (BF16, of_all(pruned)),
    "2:4": lambda: (BF16, of_all(two_of_four)),
    "trained from pruned": lambda: (
        of_all(pruned),
        {name: (pruned(BF16[name].double()) + 2e-4 * UPDATE[name]).bfloat16() for name in NAMES},
    ),
    # weights of F32 that training loaded in BF16, saved in F32
    "F32 files": lambda: (
        {name: one.float() for name, one in FULL.items()},
        {name: one.bfloat16().float() for name, one in moved(1e-3).items()},
    ),
}


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """The summary of a planted pair, and its delta rows: made once."""
    there = tmp_path_factory.mktemp("changes")

    @cache
    def run(case: str):
        made = PLANTED[case]()
        base, tuned = made if isinstance(made, tuple) else (BASE, made)
        pair = planted_pair(there / re.sub(r"\W+", "-", case), base, tuned, planted.LLAMA)
        done = run_pair(pair, SETTINGS, there / "out" / case)
        return done.summary, frame(done.folder, subject="delta")

    return run


@pytest.mark.parametrize(("case", "codes"), [
    ("dropped", ["layers_moved"]), ("repeated", ["layers_moved"]), ("times -2", ["scaled"]),
    ("layer negated", ["scaled"]), ("negated", ["not_comparable"]),
    ("neurons", ["not_comparable"]), ("rotated heads", ["not_comparable"]),
    ("rotated stream", ["not_comparable"]), ("signs", ["not_comparable"]),
    ("exchanged", ["replaced"]), ("unrelated", []), ("trained", []),
])  # fmt: skip
def test_what_no_training_does_is_recognised_and_nothing_else(audited, case, codes):
    """The codes, and that no other sentence says that the two have little in common."""
    summary, _ = audited(case)
    assert recognised(summary) == codes
    said = {sentence.code for sentence in summary.finding.sentences}
    apart = {"unrelated"} if case == "unrelated" else set()
    assert said & {"unrelated", *codes} == {*codes, *apart}


def test_figures_of_what_was_planted(audited):
    """Which layers moved, the factor, and how many matrices cannot be compared."""
    moved = audited("dropped")[0].recognised.rearranged.moved
    assert moved.layers == 3
    (row,) = moved.rows
    assert (row.first_layer, row.last_layer, row.base_first) == (2, 4, 3)
    (row,) = audited("repeated")[0].recognised.rearranged.moved.rows
    assert (row.first_layer, row.last_layer, row.base_first) == (4, 7, 2)
    assert audited("times -2")[0].recognised.scaled.factor == pytest.approx(-2)
    counts = {"negated": 6, "neurons": 18, "rotated heads": 12, "rotated stream": 43, "signs": 43}
    for case, matrices in counts.items():
        assert audited(case)[0].recognised.rearranged.not_comparable.matrices == matrices
    replaced = audited("exchanged")[0].recognised.replaced
    assert (replaced.matrices, [one.layers for one in replaced.rows]) == (2, [[1, 4]])


def codes(summary) -> set[str]:
    return {sentence.code for sentence in summary.finding.sentences}


@pytest.mark.parametrize("case", ["GPTQ", "trained, then int8"])
def test_of_a_copy_in_few_bits_no_share_is_the_updates(audited, case):
    """kept is null with a reason, nothing is said of a share, and the size is that as stored."""
    summary, rows = audited(case)
    assert rows["kept"].isna().all()
    assert set(rows["kept_reason"]) == {"rounding_unexplained"}
    assert {"few_values"} <= codes(summary)
    assert not {"kept", "rounding"} & codes(summary)
    assert Context(summary).is_as_stored
    answers = {one.code: one.answer for one in summary.finding.other_explanations}
    assert answers["quantised_copy"] == "cannot_be_excluded"


@pytest.mark.parametrize("case", ["pruned", "2:4", "trained from pruned"])
def test_zeros_are_no_levels(audited, case):
    """Of pruned matrices, nothing is said of few values or of a copy."""
    summary, _ = audited(case)
    assert "few_values" not in codes(summary)
    assert (summary.inside_layers.levels_base_few, summary.inside_layers.levels_tuned_few) == (0, 0)
    assert recognised(summary) == ([] if case == "trained from pruned" else ["zeroed"])


def test_the_size_of_weights_in_files_of_more_bits_is_as_stored(audited):
    """F32 files whose tuned side holds BF16 numbers: rounding is half of what is stored."""
    summary, rows = audited("F32 files")
    assert set(rows["kept_reason"]) == {"rounding_unexplained"}
    assert summary.figures.floor_ratio > 4
    assert Context(summary).is_as_stored
