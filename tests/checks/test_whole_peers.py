"""`verify whole`: tensors beside their peers, in a model of layers with experts in memory."""

from __future__ import annotations

import pytest
import torch
from wholes import FAILS, HOLDS

import shadow

NORM, UP, BIAS = "input_layernorm.weight", "mlp.up_proj.weight", "self_attn.q_proj.bias"
EXPERT = "mlp.experts.1.up_proj.weight"


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
    is_fault = code in ("far_from_peers", "clipped")
    assert (faults, notes) == (([(code, name)], []) if is_fault else ([], [(code, name)]))


@pytest.mark.parametrize("case", WELL)
def test_what_is_like_its_peers_is_not(case):
    """Just inside each constant, and near misses of copies."""
    tensors = model()
    WELL[case](tensors)
    assert codes_of(tensors) == ([], [])


def test_of_three_none_is_unusual():
    """Whatever one of them is like; copies need no peers."""
    tensors = model(layers=3)
    times(1e6)(tensors)
    constant(NORM, 1.0, 2)(tensors)
    assert codes_of(tensors) == ([], [])
