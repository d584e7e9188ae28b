"""Names of GGUF files lead back to the places of transformers' names, for every architecture that
the `gguf` package and the tiny models of `shared/hub` have in common.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH_NAMES

from shadow.checkpoints.gguf_files import STATE_SPACE, _names, _translated
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.places.architecture import place_tensors
from shadow.places.names import name_rules

HUB = Path(__file__).parents[3] / "shared" / "hub" / "tensor_names.json"
KINDS = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}
ARCHITECTURES = {  # by what transformers calls it
    **{one: one for one in ("llama", "qwen2", "qwen3", "gemma2", "phi3", "falcon", "gpt2", "olmo2",
                            "olmoe", "smollm3", "phimoe", "granitemoe")},
    "mistral": "llama", "mixtral": "llama", "ministral3": "mistral3", "olmo3": "olmo2",
    "gemma3_text": "gemma3", "gpt_neox": "gptneox", "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss",
    "deepseek_v3": "deepseek2", "llama4_text": "llama4", "gemma3n_text": "gemma3n",
    "gemma4_text": "gemma4", "qwen3_next": "qwen3next", "qwen3_5_text": "qwen35",
    "qwen3_5_moe_text": "qwen35moe",
}  # fmt: skip
EXPERT = re.compile(r"\.experts\.N\.")
# what the converter splits, renames by hand, or stores in another form, by the end of its name
APART = ("experts.gate_up_proj", "input_linear.weight", "_proj_bias", "linear_attn.dt_bias",
         "altup_projections.3.weight", "altup_unembed_projections.3.weight")  # fmt: skip
NORMS_OF_FALCON = ("ln_mlp.weight", "ln_mlp.bias")  # a place of their own beside ln_attn
CONFIG = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}
CONFIG |= {"num_local_experts": 4, "num_experts": 4}


def placed(name, shape, model_type):
    return place_tensors({name: tuple(shape)}, {"model_type": model_type, **CONFIG})[name]


def places(name, shape, model_type):
    """(module, slot, layer) of the parts of a tensor, with no regard to experts."""
    parts = placed(name, shape, model_type)
    return {(part.place.module, part.place.slot, part.place.layer) for part in parts}


def back(called, names):
    """A name of a GGUF file as the reader turns it back."""
    info = TensorInfo(called, "F32", (), "s", 0, 0)
    return _translated(info, "", names, {}).name


@pytest.mark.skipif(not HUB.exists(), reason="names of released models are not here")
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_name_that_the_package_knows_leads_back_to_its_place(model_type):
    """By the package's own map from transformers' names; experts are stacked by the converter."""
    arch = ARCHITECTURES[model_type]
    table, names = gguf.get_tensor_name_map(KINDS[arch], 64), _names(arch, "x")
    rearranged, known = name_rules().gguf["rearranged"].get(arch, ()), 0
    for raw, shape in json.loads(HUB.read_text())[model_type]["ckpt"].items():
        own = raw.replace(".N.", ".3.", 1)
        name = own.replace("e_score_correction_bias", "e_score_correction.bias")
        called = table.get_name(EXPERT.sub(".experts.", name), try_suffixes=(".weight", ".bias"))
        if called is None:
            assert own.endswith(APART), own
            continue
        stem = re.sub(r"\.(weight|bias)$", "", called)
        pattern = stem.replace("blk.3.", "blk.{bid}.")
        is_rearranged = pattern.startswith(STATE_SPACE) or pattern.rpartition(".")[2] in rearranged
        if is_rearranged or own.endswith(NORMS_OF_FALCON):
            continue
        found = places(
            back(called, names), [4, *shape] if EXPERT.search(own) else shape, model_type
        )
        assert found == places(own.replace(".N.", ".0."), shape, model_type), (own, called)
        known += 1
    assert known >= 8


STACKS = ("qwen2_moe", "qwen3_moe", "mixtral", "gpt_oss", "llama4_text", "granitemoe")


@pytest.mark.parametrize("model_type", STACKS)
def test_experts_of_a_gguf_file_are_those_of_transformers(model_type):
    """A GGUF file has (experts, out, in) for gate, up and down, whatever transformers stores."""
    arch = {**ARCHITECTURES, "qwen2_moe": "qwen2moe"}[model_type]
    names, numbers = _names(arch, "x"), np.random.default_rng(0)
    stacks = {part: numbers.random((4, 96, 64)) for part in ("gate", "up")}
    stacks["down"] = numbers.random((4, 64, 96))
    found = {}
    for part, stack in stacks.items():
        name = back(f"blk.3.ffn_{part}_exps.weight", names)
        for one in placed(name, stack.shape, model_type):
            found[one.place.module, one.place.expert] = one.view(torch.from_numpy(stack)).numpy()
    wanted = {(f"experts.{p}", n): stacks[p][n] for p in stacks for n in range(4)}
    assert found.keys() == wanted.keys()
    for key, matrix in wanted.items():
        np.testing.assert_array_equal(found[key], matrix)
