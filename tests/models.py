"""Small checkpoints for tests: saved by transformers, or written tensor by tensor."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, pair_checkpoints

UP = "model.layers.{}.mlp.up_proj.weight"
LLAMA = {"model_type": "llama"}


def matrices(seed: int, layers: int = 2, size: int = 8) -> dict[str, torch.Tensor]:
    """The weights of a toy: a square matrix a layer."""
    generator = torch.Generator().manual_seed(seed)
    return {
        UP.format(layer): torch.randn(size, size, generator=generator) for layer in range(layers)
    }


def gaussian(seed: int, layers: int, width: int = 32) -> dict[str, torch.Tensor]:
    """All matrices of a small decoder; the MLP is half as wide again."""
    generator = torch.Generator().manual_seed(seed)
    middle = width + width // 2
    shapes = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"}
    shapes |= dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (middle, width))
    shapes["mlp.down_proj"] = (width, middle)
    made = {
        f"model.layers.{layer}.{module}.weight": torch.randn(*shape, generator=generator)
        for layer in range(layers)
        for module, shape in shapes.items()
    }
    return made | {"model.embed_tokens.weight": torch.randn(64, width, generator=generator)}


def write(folder: Path, tensors: dict[str, torch.Tensor], config: dict | None = None) -> Path:
    """A checkpoint of one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
    )
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def toy(folder: Path, seed: int, layers: int = 2, size: int = 8) -> Path:
    """A checkpoint of the matrices of a seed."""
    return write(folder, matrices(seed, layers, size), LLAMA)


def sharded(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> Path:
    """A checkpoint of so many shards, cut in the order of its tensors."""
    folder.mkdir(parents=True)
    names, weight_map = list(tensors), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        save_file({name: tensors[name].contiguous() for name in mine}, folder / file)
        weight_map |= dict.fromkeys(mine, file)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


def perturbed(source: Path, target: Path, size: float = 1e-2, seed: int = 0) -> Path:
    """A copy of a one-file checkpoint with noise of relative size on every tensor."""
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(source / "model.safetensors")
    changed = {
        name: (
            t.float()
            + size
            * t.float().std(correction=0).clamp_min(0.01)
            * torch.randn(t.shape, generator=generator)
        )
        .to(t.dtype)
        .contiguous()
        for name, t in tensors.items()
    }
    return write(target, changed, json.loads((source / "config.json").read_text()))


SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
GATED = {**SIZES, "intermediate_size": 96, "num_key_value_heads": 2}
KINDS = {
    "llama": ("LlamaConfig", GATED),
    "qwen2": ("Qwen2Config", {**GATED, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**GATED, "head_dim": 16}),
    "mistral": ("MistralConfig", GATED),
    "gemma2": ("Gemma2Config", {**GATED, "head_dim": 16}),
    "gemma3_text": ("Gemma3TextConfig", {**GATED, "head_dim": 16}),
    "olmo2": ("Olmo2Config", GATED),
    "smollm3": ("SmolLM3Config", {**GATED, "pad_token_id": 0}),
    "gpt2": (
        "GPT2Config",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 32},
    ),
    "gpt_neox": ("GPTNeoXConfig", {**SIZES, "intermediate_size": 96}),
}


LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
FAMILIES = {
    kind: (entry.get("auto", "AutoModelForCausalLM"), entry["config"], entry["with"])
    for kind, entry in yaml.load(
        (Path(__file__).parent / "families.yaml").read_text(), LOADER
    ).items()
    if not kind.startswith(".")
}


def built(kind: str, seed: int = 0):
    """A tiny model of a kind or family, built by transformers from its config."""
    import transformers

    transformers.logging.disable_progress_bar()
    auto, name, sizes = FAMILIES.get(kind) or ("AutoModelForCausalLM", *KINDS[kind])
    torch.manual_seed(seed)
    return getattr(transformers, auto).from_config(
        getattr(transformers, name)(**copy.deepcopy(sizes))
    )


def saved(kind: str, folder: Path, seed: int = 0) -> Path:
    """The same, saved by transformers."""
    built(kind, seed).save_pretrained(folder)
    return folder


def saved_twice(kind: str, folder: Path) -> tuple[Path, Path]:
    """One model in the layout of its files, and in the one that transformers has in memory."""
    model, file, memory = built(kind), folder / "file", folder / "memory"
    model.save_pretrained(file)
    model.save_pretrained(memory, save_original_format=False)
    return file, memory


def differences(base: Checkpoint, tuned: Checkpoint, apart: Collection[str] = ()) -> list[str]:
    """Tensors of two checkpoints that hold the same weights, and yet do not line up."""
    pairs, skipped = pair_checkpoints(base, tuned, Filter())
    found = [
        f"{s.side} {s.info.name} {s.reason} {s.detail}" for s in skipped if s.info.name not in apart
    ]
    for pair in pairs:
        if pair.base is None:
            found.append(f"{pair.tuned.info.name} has no base")
            continue
        sides = ((pair.base, base), (pair.tuned, tuned))
        views = [operand.part.view(side.tensor(operand.info).whole()) for operand, side in sides]
        views = [view[: pair.rows] if view.ndim == 2 and pair.is_matrix else view for view in views]
        one, other = (view.flatten() for view in views)
        if not torch.equal(one, other):
            found.append(
                f"{pair.base.info.name} differs from {pair.tuned.info.name} as {pair.place}"
            )
    return found
