"""`verify whole`: tensors beside their peers, in a model of layers with experts in memory."""

from __future__ import annotations

import planted
import pytest
import torch
from safetensors.torch import load_file
from wholes import FAILS, FILE, HOLDS, OPEN, codes, store, verified

import shadow
from shadow.checks.whole import RULES
from shadow.checks.whole.part import Findings
from shadow.checks.whole.peers import judge_pieces

NORM, UP, BIAS = "input_layernorm.weight", "mlp.up_proj.weight", "self_attn.q_proj.bias"
EXPERT = "mlp.experts.1.up_proj.weight"
STACK = "mlp.experts.down_proj"


def model(layers=6, experts=0):
    """Layers of random matrices, norms and biases."""
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for layer in range(layers):
        shapes = {UP: (32, 24), NORM: (24,), BIAS: (24,)}
        shapes |= {EXPERT.replace("1", str(number)): (24, 24) for number in range(experts)}
        for name, shape in shapes.items():
            values = torch.randn(shape, generator=generator)
            tensors[f"model.layers.{layer}.{name}"] = 0.1 * values + (name == NORM)
    return tensors


def at(layer, name):
    return f"model.layers.{layer}.{name}"


def times(factor):
    return lambda tensors: tensors[at(2, UP)].mul_(factor)


def clipped(entries, value=65504.0, dtype=torch.float32):
    def change(tensors):
        for layer in range(6):
            tensors[at(layer, UP)] = (3e4 * tensors[at(layer, UP)]).to(dtype)
        tensors[at(2, UP)].view(-1)[:entries] = value

    return change


def constant(name, value, *layers):
    return lambda tensors: [tensors[at(layer, name)].fill_(value) for layer in layers]


def stored(dtype, *layers):
    return lambda tensors: tensors.update(
        {at(layer, UP): tensors[at(layer, UP)].to(dtype) for layer in layers}
    )


def copied(name, first, second, change=None):
    def do(tensors):
        tensors[second] = tensors[first].clone()
        if change:
            change(tensors[second])

    return do


def stacked(change):
    """A stack of five experts, which are not read as a block each."""

    def do(tensors):
        generator = torch.Generator().manual_seed(4)
        tensors[at(0, STACK)] = stack = torch.randn(5, 300, 400, generator=generator)
        change(stack[3].copy_(stack[1]))

    return do


def two_stacks(change, layers=1):
    """Stacks of three experts whose last is a copy of the first, but for a change of one stack."""

    def do(tensors):
        for layer in range(layers):
            for name in (STACK, STACK.replace("down", "gate_up")):
                stack = planted.normal(layer, 3, 300 * 400).view(3, 300, 400)
                tensors[at(layer, name)] = stack
                stack[2] = stack[0]
            change(stack[2])

    return do


def exchanged(matrix):
    """Other values in the same rows, whose sums of squares stay."""
    matrix[3, [5, 6]] = matrix[3, [6, 5]]


SICK = {
    "as large as 1.1e4 peers": (times(1.1e4), "far_from_peers", at(2, UP)),
    "nine entries of F16's largest": (clipped(9), "clipped", at(2, UP)),
    "the same in BF16": (clipped(9, 65536.0, torch.bfloat16), "clipped", at(2, UP)),
    "a norm of ones": (constant(NORM, 1.0, 2), "constant_beside_peers", at(2, NORM)),
    "one in BF16": (stored(torch.bfloat16, 2), "other_dtype", at(2, UP)),
    "a layer twice": (copied(UP, at(1, UP), at(4, UP)), "unit_copied", "model.layers.4"),
    "an expert twice": (
        copied(EXPERT, at(0, EXPERT), at(0, EXPERT.replace("1", "2"))),
        "unit_copied",
        at(0, "mlp.experts.2"),
    ),
    "of a stack, twice": (stacked(lambda expert: None), "unit_copied", f"{at(0, STACK)}[3]"),
    "of two stacks": (two_stacks(torch.abs), "unit_copied", at(0, "mlp.experts[2]")),
    "of one of two": (two_stacks(torch.Tensor.neg_), "unit_copied", f"{at(0, STACK)}[2]"),
    "one of one value": (stacked(lambda one: one.fill_(0.5)), "constant_experts", at(0, STACK)),
}
WELL = {
    "nothing": lambda tensors: None,
    "as large as .9e4 peers": times(0.9e4),
    "eight entries of F16's largest": clipped(8),
    "another large value": clipped(9, 65000.0),
    "norms of ones in a third": constant(NORM, 1.0, 2, 3),
    "a third in BF16": stored(torch.bfloat16, 2, 3),
    "a layer but for one entry": copied(
        UP, at(1, UP), at(4, UP), lambda matrix: matrix.view(-1)[9:10].mul_(1.0001)
    ),
    "sines of a Fourier transform": lambda tensors: tensors.update(
        {"stft_conv.weight": torch.cat([torch.zeros(1, 64), torch.randn(9, 64)])}
    ),
    "an expert of a stack, but for its sign": stacked(torch.Tensor.neg_),
    "a layer of equal sums": copied(UP, at(1, UP), at(4, UP), exchanged),
}


def codes_of(tensors):
    """The codes and names of faults and of notes, but for what was looked at."""
    found = shadow.verify("whole", tensors)
    notes = [note for note in found.answer.notes if note.code != "looked"]
    faults = [(row.code, row.name) for row in found.against]
    assert found.outcome is (FAILS if faults else HOLDS)
    return faults, [(note.code, *note.figures["names"]) for note in notes]


@pytest.mark.parametrize("case", SICK)
def test_what_is_unlike_its_peers_is_named(case):
    """Faults where no training leaves it, notes where it may be meant."""
    change, code, name = SICK[case]
    tensors = model(experts=3 if "expert" in case else 0)
    change(tensors)
    faults, notes = codes_of(tensors)
    is_fault = code in ("far_from_peers", "clipped", "constant_experts")
    assert (faults, notes) == (([(code, name)], []) if is_fault else ([], [(code, name)]))


@pytest.mark.parametrize("case", WELL)
def test_what_is_like_its_peers_is_not(case):
    """Just inside each constant, and near misses of copies."""
    tensors = model()
    WELL[case](tensors)
    assert codes_of(tensors) == ([], [])


def test_copies_of_an_expert_in_every_layer_are_one_note():
    tensors = model(experts=3)
    two_stacks(torch.abs, layers=6)(tensors)
    for layer in range(6):
        copied(EXPERT, at(layer, EXPERT.replace("1", "0")), at(layer, EXPERT))(tensors)
    copy, _ = shadow.verify("whole", tensors).answer.notes
    assert copy.figures["other"] == "number 0 of its layer"
    ends = "mlp.experts[2]", "mlp.experts.1"
    assert {*copy.figures["names"]} == {at(layer, end) for layer in range(6) for end in ends}


def test_of_three_none_is_unusual():
    """Whatever one of them is like; copies need no peers."""
    tensors = model(layers=3)
    times(1e6)(tensors)
    constant(NORM, 1.0, 2)(tensors)
    assert codes_of(tensors) == ([], [])


Q_NORM, DENSE = "self_attn.q_norm.weight", "mlp.dense.weight"
WEIGHT = "self_attn.q_proj.weight"
WEIGHTS = {(layer, WEIGHT) for layer in range(6)}
# layers, without which tensors, with which others, and what is named
PIECES = [
    (5, {(2, Q_NORM)}, set(), [at(2, Q_NORM)]),
    (4, {(2, Q_NORM)}, set(), []),
    (6, {(1, BIAS), (3, BIAS), (4, NORM), (4, UP)}, set(), [at(4, NORM), at(4, UP)]),
    (6, {(0, NORM), (5, Q_NORM)}, set(), []),  # ends differ by design
    (6, {(3, Q_NORM)}, {(3, DENSE)}, []),  # has something else
    (6, {(3, Q_NORM)}, {(2, DENSE), (3, DENSE)}, [at(3, Q_NORM)]),
    # biases of modules that all layers of a kind have
    (6, {(0, BIAS), (3, BIAS), (5, BIAS)}, WEIGHTS, [at(0, BIAS), at(3, BIAS), at(5, BIAS)]),
    (5, {(at, BIAS) for at in range(3)}, WEIGHTS, [at(0, BIAS), at(1, BIAS), at(2, BIAS)]),
    (5, {(3, BIAS)}, WEIGHTS, [at(3, BIAS)]),
    (5, {(at, BIAS) for at in range(4)}, WEIGHTS, []),  # one layer of five has it
    (4, {(1, BIAS), (2, BIAS)}, WEIGHTS, []),
    (6, {(0, BIAS), (3, BIAS)}, WEIGHTS - {(0, WEIGHT)}, [at(3, BIAS)]),
    (6, {(0, BIAS), (3, BIAS)}, WEIGHTS | {(0, DENSE), (3, DENSE)}, []),  # of another kind
    (6, {(0, BIAS), (3, BIAS), (4, UP), (5, NORM)}, WEIGHTS, [at(4, UP)]),  # four of this kind
]


@pytest.mark.parametrize("case", PIECES)
@pytest.mark.parametrize("stack", ["model.layers", "blk"])
def test_what_a_layer_lacks_and_those_like_it_have_is_named(case, stack):
    layers, lacking, more, named = case
    every = {(layer, name) for layer in range(layers) for name in (NORM, UP, BIAS, Q_NORM)}
    pieces = (every - lacking) | {piece for piece in more if piece[0] < layers}
    names = [at(*piece).replace("model.layers", stack) for piece in pieces]
    findings = Findings(RULES)
    judge_pieces(findings, names)
    rows = [row for rows in findings.rows.values() for row in rows]
    assert [row.name for row in rows] == [name.replace("model.layers", stack) for name in named]
    for row in rows:
        piece = row.name.removeprefix(stack).lstrip(".0123456789")
        having = sum(name.endswith(piece) for name in names)
        assert row.why.figures["layers"] == having


def test_pieces_are_compared_where_no_loader_is_asked(in_this_process, tmp_path):
    """The class says by itself that there is no such tensor; without config its peers do."""
    planted.saved("qwen3", tmp_path, num_hidden_layers=6)
    tensors = load_file(tmp_path / FILE)
    tensors.pop(at(3, Q_NORM))
    store(tmp_path, tensors)
    found = verified(tmp_path)
    assert {note.code for note in found.answer.notes} == {"looked"}
    assert codes(found) == {"missing"}
    (tmp_path / "config.json").unlink()
    found = verified(tmp_path)
    assert (found.outcome, codes(found)) == (OPEN, set())
    assert found.answer.notes[0].figures["names"] == [at(3, Q_NORM)]
