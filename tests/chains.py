"""Chains of stages whose order, sizes and directions are known, as tiny checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

Weights = dict[str, Tensor]
LAYERS, WIDTH, HIDDEN, WORDS = 4, 96, 160, 128
SHAPES = {
    **{
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(LAYERS)
        for name, shape in {
            "self_attn.q_proj": (WIDTH, WIDTH),
            "self_attn.o_proj": (WIDTH, WIDTH),
            "mlp.up_proj": (HIDDEN, WIDTH),
            "mlp.down_proj": (WIDTH, HIDDEN),
        }.items()
    },
    "model.embed_tokens.weight": (WORDS, WIDTH),
}
CONFIG = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "tie_word_embeddings": True,
}


def drawn(seed: int) -> Weights:
    """Independent normal entries of standard deviation 1 for every matrix."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in SHAPES.items()
    }


def of_rank(rank: int, seed: int) -> Weights:
    """Products of two factors, entries of standard deviation 1."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, (rows, cols) in SHAPES.items():
        left, right = (
            torch.randn(size, rank, generator=generator, dtype=torch.float64)
            for size in (rows, cols)
        )
        found[name] = left @ right.T / math.sqrt(rank)
    return found


def added(weights: Weights, update: Weights, size: float, only: str = "") -> Weights:
    """Weights with an update of so much of their norm, in the matrices whose name has `only`."""
    found = {}
    for name, weight in weights.items():
        step = update[name] * (size * weight.norm() / update[name].norm())
        found[name] = weight + step if only in name else weight.clone()
    return found


def stored(weights: Weights, dtype: torch.dtype) -> Weights:
    """The weights as a file of a dtype has them."""
    return {name: weight.to(dtype).double() for name, weight in weights.items()}


def save(folder: Path, weights: Weights, dtype: torch.dtype) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: weight.to(dtype).contiguous() for name, weight in weights.items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def plant(
    folder: Path, dtype: torch.dtype = torch.bfloat16, scale: float = 0.02
) -> dict[str, Weights]:
    """base, sft, dpo and rl below a folder, each trained from the stored one before; returned as
    they are stored.

    sft moves everything by .05, half of its energy in eight directions; dpo everything by .001; rl
    the attention by .01, half of its energy along what dpo did.
    """
    base = stored({name: scale * weight for name, weight in drawn(0).items()}, dtype)
    noise, eight = drawn(1), of_rank(8, 2)
    mixed = {
        name: noise[name] / noise[name].norm() + eight[name] / eight[name].norm() for name in noise
    }
    sft = stored(added(base, mixed, 0.05), dtype)
    moved, fresh = drawn(3), drawn(4)
    dpo = stored(added(sft, moved, 0.001), dtype)
    along = {
        name: moved[name] / moved[name].norm() + fresh[name] / fresh[name].norm() for name in moved
    }
    rl = stored(added(dpo, along, 0.01, "self_attn"), dtype)
    stages = {"base": base, "sft": sft, "dpo": dpo, "rl": rl}
    for name, weights in stages.items():
        save(folder / name, weights, dtype)
    return stages


def registry(folder: Path, stages: Iterable[str], pairs: Iterable[str]) -> Path:
    """A registry folder with a family `toy` of these stages, which lie in folders beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "toy:",
        *(f"  {stage}: ../{stage}" for stage in stages),
        f"  pairs: [{', '.join(pairs)}]",
    ]
    (folder / "toy.yaml").write_text("\n".join(lines) + "\n")
    return folder


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / math.sqrt(first @ first) / math.sqrt(second @ second))


def explained(walked: np.ndarray) -> float:
    """R² of a straight line over rows at even steps, all columns together."""
    times, centred = np.arange(len(walked)), walked - walked.mean(axis=0)
    times = times - times.mean()
    return float(((times @ centred) ** 2).sum() / (times @ times) / (centred**2).sum())
