"""Names -> places, on what transformers really saves."""

import json
import math
import time

import numpy as np
import planted
import pytest
import torch
from any_tensors import CONFIGS, SHAPES
from effort import examples
from hypothesis import given, settings
from safetensors.torch import load_file

from shadow.places.architecture import Part, Place, place_tensors
from shadow.places.names import name_rules

DECODER = {"attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down"}


def places(tensors, config=None):
    return place_tensors(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()}, config or {}
    )


@pytest.mark.parametrize("kind", planted.KINDS)
def test_every_matrix_of_a_family_has_its_module(kind, tmp_path):
    """A layer has each projection once, no matrix is `other`, vectors are norms or biases."""
    folder = planted.saved(kind, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    found = places(tensors, json.loads((folder / "config.json").read_text()))
    assert found.keys() == tensors.keys()
    parts = [(part, tensors[name]) for name, some in found.items() for part in some]
    matrices = [part.place for part, tensor in parts if tensor.ndim >= 2]
    gate = set() if kind in ("gpt2", "gpt_neox") else {"mlp.gate"}
    for layer in range(2):
        assert sorted(p.module for p in matrices if p.layer == layer) == sorted(DECODER | gate)
    outside = {p.module for p in matrices if p.layer is None}
    assert outside >= {"embed"}
    assert outside <= {"embed", "head", "position"}
    assert {p.component for p in matrices} == {"language"}
    assert {part.place.module for part, tensor in parts if tensor.ndim < 2} <= {"norm", "bias"}
    assert all(part.place.module in name_rules().modules for part, _ in parts)


def test_the_heads_of_bert_are_heads():
    """That of masked words, that of the next sentence, and the pooler below it."""
    names = ("cls.seq_relationship", "cls.predictions.decoder", "bert.pooler.dense")
    for name in names:
        ((part,),) = place_tensors({f"{name}.weight": (2, 64)}, {"model_type": "bert"}).values()
        assert (part.place.component, part.place.module) == ("language", "head")


def test_gpt2_is_read_transposed_and_its_fused_projection_split(tmp_path):
    """Conv1D is (in, out): q, k, v are thirds of the transposed c_attn, with and without config."""
    tensors = load_file(planted.saved("gpt2", tmp_path) / "model.safetensors")
    name = "transformer.h.1.attn.c_attn.weight"
    for config in ({"model_type": "gpt2"}, {}):
        parts = places(tensors, config)[name]
        assert [part.place.module for part in parts] == ["attn.q", "attn.k", "attn.v"]
        for i, part in enumerate(parts):
            assert torch.equal(part.view(tensors[name]), tensors[name].T[64 * i : 64 * (i + 1)])
            assert part.shape(tuple(tensors[name].shape)) == (64, 64)
        up = places(tensors, config)["transformer.h.0.mlp.c_fc.weight"][0]
        assert up.shape((64, 256)) == (256, 64)


def test_a_linear_c_attn_is_not_taken_for_conv1d():
    """An (out, in) projection called c_attn is known by its shape, and stays whole."""
    tensors = {"transformer.h.0.attn.c_attn.weight": torch.zeros(192, 64)}
    (part,) = places(tensors)["transformer.h.0.attn.c_attn.weight"]
    assert (part.place.module, part.transposed) == ("attn.qkv", False)


def test_gpt_neox_projection_is_split_per_head(tmp_path):
    """Rows are (head, q|k|v, head size): parts have their heads in order, given a head count."""
    tensors = load_file(planted.saved("gpt_neox", tmp_path) / "model.safetensors")
    name = "gpt_neox.layers.0.attention.query_key_value.weight"
    W = tensors[name].numpy()
    for i, part in enumerate(
        places(tensors, {"model_type": "gpt_neox", "num_attention_heads": 4})[name]
    ):
        view = part.view(tensors[name])
        assert part.place.module == ("attn.q", "attn.k", "attn.v")[i]
        expected = np.concatenate(
            [W[head * 48 + 16 * i : head * 48 + 16 * (i + 1)] for head in range(4)]
        )
        assert np.array_equal(view.reshape(-1, 64).numpy(), expected)
        assert view.data_ptr() - tensors[name].data_ptr() == i * 16 * 64 * 4, "a view, not a copy"
    (whole,) = places(tensors, {"model_type": "gpt_neox"})[name]
    assert whole.place.module == "attn.qkv"


def test_bert_with_and_without_prefix_has_the_same_places():
    """`bert.encoder.layer.3...` is `encoder.layer.3...`, and an old LayerNorm.gamma its weight."""
    suffixes = {
        "encoder.layer.3.attention.self.query.weight": ("attn.q", 3),
        "encoder.layer.3.attention.output.dense.weight": ("attn.o", 3),
        "encoder.layer.3.intermediate.dense.weight": ("mlp.up", 3),
        "encoder.layer.3.output.dense.weight": ("mlp.down", 3),
        "embeddings.word_embeddings.weight": ("embed", None),
        "embeddings.position_embeddings.weight": ("position", None),
    }
    bare = places({name: torch.zeros(4, 4) for name in suffixes})
    prefixed = places({f"bert.{name}": torch.zeros(4, 4) for name in suffixes})
    for name, (module, layer) in suffixes.items():
        assert bare[name] == prefixed[f"bert.{name}"] == (Part(Place("language", layer, module)),)
    old = places({"bert.embeddings.LayerNorm.gamma": torch.zeros(4)})[
        "bert.embeddings.LayerNorm.gamma"
    ]
    assert (
        old
        == places({"embeddings.LayerNorm.weight": torch.zeros(4)})["embeddings.LayerNorm.weight"]
    )
    assert old[0].place.module == "norm"


def test_two_tensors_on_one_place_both_keep_their_names():
    """A collision loses neither: both are paired by name, as `other`."""
    tensors = {
        "model.embed_tokens.weight": torch.zeros(4, 4),
        "transformer.wte.weight": torch.zeros(4, 4),
    }
    found = places(tensors)
    assert {part.place.slot.lstrip("\0") for some in found.values() for part in some} == set(
        tensors
    )
    assert {part.place.module for some in found.values() for part in some} == {"other"}


def test_unknown_names_keep_themselves_as_place():
    """What no rule knows is `other` under its own name, so that equal names still pair."""
    (part,) = places({"something.odd.weight": torch.zeros(4, 4)})["something.odd.weight"]
    assert part.place == Place("other", None, "other", None, "something.odd.weight")


@pytest.mark.parametrize("module", ["down_proj", "odd"])
@pytest.mark.parametrize(
    ("count", "experts"), [(1, [0]), (2, [0, 1]), (4096, None), (4097, [None])]
)
def test_a_stack_has_1_to_4096_experts(module, count, experts):
    """Also of a module that no rule knows; a larger number is a hostile shape."""
    name = f"model.layers.0.mlp.experts.{module}"
    found = place_tensors({name: (count, 3, 4)}, {})[name]
    assert [part.place.expert for part in found] == (experts or [*range(count)])


@pytest.mark.parametrize(("gate_up", "down", "hidden", "is_upright"), [
    ((6, 8), (8, 3), None, True), ((8, 6), (3, 8), None, False), ((8, 8), (8, 4), None, True),
    ((8, 8), (4, 8), None, False), ((7, 8), (8, 3), None, None), ((7, 8), None, 8, True),
    ((8, 7), None, 8, False), (None, (8, 3), 8, True), (None, (3, 8), 8, False),
    ((8, 8), None, 8, None), ((5, 7), None, 8, None), ((6, 8), (8, 3), 3, True),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_shapes_say_how_stacks_of_experts_lie(gate_up, down, hidden, is_upright, kind):
    """(2f, d) beside (d, f), or the hidden size of config; else the model's class says it."""
    config = {"model_type": kind} | ({"hidden_size": hidden} if hidden else {})
    stacks = {"gate_up_proj": gate_up, "down_proj": down}
    names = {f"model.layers.0.mlp.experts.{name}": of for name, of in stacks.items() if of}
    found = place_tensors({name: (2, *of) for name, of in names.items()}, config)
    expected = kind == "gpt_oss" if is_upright is None else not is_upright
    assert {part.transposed for parts in found.values() for part in parts} == {expected}


@pytest.mark.parametrize(("name", "shape", "config", "is_turned"), [
    ("h.0.mlp.c_fc.weight", (64, 256), {"model_type": "gpt2"}, True),
    ("layers.0.mlp.experts.gate_up_proj", (2, 8, 6), {"model_type": "gpt_oss"}, False),
    ("layers.0.mlp.up_proj.weight", (6, 8), {}, False),
])  # fmt: skip
def test_two_names_of_one_place_are_whole_tensors_of_no_module(name, shape, config, is_turned):
    """As they lie, but for one that is stored in rows of inputs; a stack is not turned whole."""
    head = "transformer." if "h." in name[:2] else "model."
    found = place_tensors({name: shape, head + name: shape}, config)
    (first,), (second,) = found.values()
    assert first.place != second.place
    assert {part.place.module for part in (first, second)} == {"other"}
    assert [part.transposed for part in (first, second)] == [is_turned] * 2
    assert place_tensors({name: shape}, config)[name][0].place.module != "other"


def test_a_stack_of_experts_is_one_matrix_each():
    """A 3-D tensor of experts is never folded into one matrix."""
    name = "model.layers.0.mlp.experts.down_proj"
    tensor = torch.arange(24.0).view(2, 3, 4)
    parts = places({name: tensor})[name]
    assert [part.place.expert for part in parts] == [0, 1]
    assert torch.equal(parts[1].view(tensor), tensor[1])
    assert parts[1].shape((2, 3, 4)) == (3, 4)


@settings(max_examples=examples(400))
@given(SHAPES, CONFIGS)
def test_whatever_the_names_shapes_and_config_nothing_is_lost_or_doubled(shapes, config):
    """Parts make up every tensor, each entry once, at places of their own; nothing raises."""
    found = place_tensors(shapes, config)
    assert found.keys() == shapes.keys()
    every = [part.place for parts in found.values() for part in parts]
    assert len(set(every)) == len(every)
    assert {place.module for place in every} <= set(name_rules().modules)
    assert {place.component for place in every} <= set(name_rules().components)
    for name, parts in found.items():
        assert parts
        assert len(
            {
                (part.place.module, part.place.expert)
                for part in parts
                if part.place.module != "bias"
            }
        ) in (0, len(parts))
        tensor = torch.arange(math.prod(shapes[name])).reshape(shapes[name])
        views = [part.view(tensor) for part in parts]
        assert [(view.shape[:-1].numel(), view.shape[-1]) for view in views] == [
            part.shape(shapes[name]) for part in parts
        ]
        assert sorted(torch.cat([view.flatten() for view in views]).tolist()) == list(
            range(tensor.numel())
        )


def test_names_of_hostile_length_are_read_in_no_time():
    """No rule tries for ever on a name made to confuse it."""
    names = [
        "a." * 500 + "weight", "experts." * 120, "model." * 160 + "layers.1.x", "image_vit." * 100,
        "conv" * 250,
    ]  # fmt: skip
    names += [
        "layers." * 140 + "1.weight", "_" * 1000, "self_attn.indexer." * 55, "hc_head" * 140,
        "vision_tower." * 75,
    ]  # fmt: skip
    start = time.perf_counter()
    place_tensors({f"{name}{i}": (4, 4) for name in names for i in range(20)}, {})
    assert time.perf_counter() - start < 40
