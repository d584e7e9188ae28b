"""Models that were put together: a base for each component, spectra alone for what has none."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from shadow.delta import Method
from shadow.pairing import Filter
from shadow.registry import find_pairs, load_families
from shadow.run import Settings, run_pair


def tiny_llava(folder):
    """A LLaVA of a tiny Llama and a tiny CLIP tower, and the two models that it was made of, saved by transformers."""
    torch.manual_seed(0)
    text = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
    )
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = transformers.CLIPVisionConfig(**sizes, image_size=16, patch_size=8, projection_dim=24)
    language = transformers.LlamaForCausalLM(text)
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**sizes, "vocab_size": 50, "max_position_embeddings": 8},
            vision_config=vision.to_dict(),
            projection_dim=16,
        )
    )
    llava = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(text_config=text, vision_config=vision))
    llava.model.language_model.load_state_dict(language.model.state_dict())
    llava.lm_head.load_state_dict(language.lm_head.state_dict())
    llava.model.vision_tower.load_state_dict(clip.vision_model.state_dict(), strict=False)
    for name, model in (("language", language), ("clip", clip), ("llava", llava)):
        model.save_pretrained(folder / name)
    path = folder / "llava" / "model.safetensors"
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(path)
    for name, tensor in tensors.items():  # the language was trained on, the tower was frozen
        if "language_model" in name or name.startswith("lm_head"):
            tensors[name] = tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, path)
    return folder


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    folder = tiny_llava(tmp_path_factory.mktemp("llava"))
    (folder / "families.yaml").write_text(
        "tiny-llava:\n  base: {language: ./language, vision: ./clip}\n  instruct: ./llava\n"
    )
    (pair,) = find_pairs("tiny-llava", load_families(folder))
    result = run_pair(pair, Settings(Method(), Filter()), folder / "out")
    return folder, result, *(pd.read_parquet(result.folder / f"{name}.parquet") for name in ("matrices", "tensors"))


def test_each_component_is_compared_with_its_own_base(audited):
    """Language deltas are against the Llama; the frozen tower is identical; the projector has spectra and no delta."""
    _, result, matrices, tensors = audited
    deltas = matrices[matrices["subject"] == "delta"]
    assert set(deltas["component"]) == {"language"}
    assert len(deltas) == 2 * 7 + 2
    projector = matrices[matrices["component"] == "projector"]
    assert len(projector) == 2
    assert set(projector["subject"]) == {"tuned"}
    tower = tensors[(tensors["component"] == "vision") & (tensors["side"] == "tuned")]
    compared = tower[~tower["tensor"].str.contains("post_layernorm|position_ids")]
    assert set(compared["status"]) <= {"identical", "skipped"}
    assert (compared["status"] == "identical").sum() == 2 * 6 + 2
    assert (compared[compared["status"] == "skipped"]["reason"] == "not_a_matrix").all()
    assert [row["component"] for row in result.summary.without_base] == ["projector"]
    told = {row["component"]: (row["matrices"], row["identical"]) for row in result.summary.components}
    assert told == {"language": (16, 0), "vision": (0, 14), "projector": (0, 0)}


def test_every_tensor_of_every_part_has_a_row(audited):
    """Also those of CLIP's text tower, which is nobody's base here."""
    folder, _, _, tensors = audited
    for side, parts in (("base", ("language", "clip")), ("tuned", ("llava",))):
        names = sorted(name for part in parts for name in load_file(folder / part / "model.safetensors"))
        assert sorted(tensors[tensors["side"] == side]["tensor"]) == names
    unused = tensors[(tensors["side"] == "base") & tensors["tensor"].str.startswith("text_model.encoder")]
    assert set(unused["reason"]) == {"filtered"}
    assert unused["detail"].str.contains("is the base of vision only").all()


def test_the_report_says_where_each_part_came_from(audited):
    """References, commits and fingerprint of a base of two checkpoints, by component."""
    _, result, _, _ = audited
    base = json.loads((result.folder / "summary.json").read_text())["base"]
    assert base["repo"].startswith("language=/")
    assert " vision=/" in base["repo"]
    assert base["commit"] is None
    assert len(base["fingerprint"]) == 64
