"""Pairs whose history is known.

Each pair is a small checkpoint of made-up weights (four layers of width 256, BF16 unless said
otherwise) and what a known history makes of it. Nothing is trained: what a finding says can be held
against what was done.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# threads of matrices this small only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

import shadow
from shadow.claims.summary import Summary

WIDTH, MLP, LAYERS, TOKENS, EXPERTS = 256, 512, 4, 512, 4
Array = NDArray[np.float64]
Weights = dict[str, Array]


# ---------------------------------------------------------------------------- weights


def generator(*key: object) -> np.random.Generator:
    """A generator of its own for each key, whatever was drawn before."""
    return np.random.default_rng(zlib.crc32("\t".join(map(str, key)).encode()))


def block(
    prefix: str, width: int = WIDTH, mlp: int = MLP, experts: int = 0
) -> dict[str, tuple[int, int]]:
    """Names and shapes of a layer of a decoder."""
    attention = {f"{prefix}.self_attn.{one}_proj.weight": (width, width) for one in "qkvo"}
    shapes = {"gate_proj": (mlp, width), "up_proj": (mlp, width), "down_proj": (width, mlp)}
    if not experts:
        return attention | {f"{prefix}.mlp.{name}.weight": shape for name, shape in shapes.items()}
    routed = {
        f"{prefix}.mlp.experts.{number}.{name}.weight": shape
        for number in range(experts)
        for name, shape in shapes.items()
    }
    return {**attention, f"{prefix}.mlp.gate.weight": (experts, width), **routed}


def decoder(
    layers: int = LAYERS, experts: int = 0, prefix: str = "model"
) -> dict[str, tuple[int, int]]:
    shapes: dict[str, tuple[int, int]] = {f"{prefix}.embed_tokens.weight": (TOKENS, WIDTH)}
    for layer in range(layers):
        shapes |= block(f"{prefix}.layers.{layer}", experts=experts)
    return {**shapes, "lm_head.weight": (TOKENS, WIDTH)}


def vision_language() -> dict[str, tuple[int, int]]:
    """A decoder with a vision tower and a projector before it, as LLaVA has them."""
    tower = "vision_tower.vision_model.encoder.layers"
    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(2):
        shapes |= {
            f"{tower}.{layer}.self_attn.{one}_proj.weight": (128, 128)
            for one in ("q", "k", "v", "out")
        }
        shapes |= {
            f"{tower}.{layer}.mlp.fc1.weight": (256, 128),
            f"{tower}.{layer}.mlp.fc2.weight": (128, 256),
        }
    shapes |= {
        "multi_modal_projector.linear_1.weight": (WIDTH, 128),
        "multi_modal_projector.linear_2.weight": (WIDTH, WIDTH),
    }
    return shapes | {f"language_model.{name}": shape for name, shape in decoder().items()}


@cache
def made_up(name: str, rows: int, cols: int, seed: int) -> Array:
    """A matrix of entries of about 0.02 and a spectrum that decays."""
    rng = generator("weights", seed, name)
    scale = np.arange(1, cols + 1) ** -0.3
    W = 0.02 * rng.standard_normal((rows, cols)) * scale / np.sqrt((scale**2).mean())
    return np.asarray(W @ np.linalg.qr(rng.standard_normal((cols, cols)))[0])


def drawn(shapes: Mapping[str, tuple[int, int]], seed: int = 0) -> Weights:
    return {name: made_up(name, rows, cols, seed) for name, (rows, cols) in shapes.items()}


def learned(name: str, W: Array, size: float, seed: int = 0) -> Array:
    """An update of a relative norm: half of its energy in 64 directions of energies 1, 1/2, 1/3,
    ..., the rest noise.

    Half of the inputs of these directions are the base's leading ones.
    """
    return size * float(np.linalg.norm(W)) * direction(name, W.shape, seed)


@cache
def direction(name: str, shape: tuple[int, int], seed: int) -> Array:
    """The update of norm 1 of a matrix of the base; random by its name and the seed."""
    rng = generator("update", seed, name)
    rank = min(64, *shape)
    left = np.linalg.qr(rng.standard_normal((shape[0], rank)))[0]
    leading = np.linalg.svd(made_up(name, *shape, 0), full_matrices=False)[2][:rank].T
    right = np.linalg.qr(leading + rng.standard_normal((shape[1], rank)) / np.sqrt(shape[1]))[0]
    S = (left * np.arange(1, rank + 1) ** -0.5) @ right.T
    N = rng.standard_normal(shape)
    return np.asarray(S / np.linalg.norm(S) + N / np.linalg.norm(N)) / np.sqrt(2)


def fine_tuned(base: Weights, size: float = 1e-2, seed: int = 0) -> Weights:
    return {name: W + learned(name, W, size, seed) for name, W in base.items()}


def stored(weights: Weights, dtype: torch.dtype = torch.bfloat16) -> Weights:
    """What a checkpoint of a format holds."""
    return {name: torch.from_numpy(W).to(dtype).double().numpy() for name, W in weights.items()}


# ---------------------------------------------------------------------------- histories


def through_int8(base: Weights) -> Weights:
    """Each row as whole numbers from -127 to 127 and a scale."""
    found = {}
    for name, W in base.items():
        scale = np.abs(W).max(axis=1, keepdims=True) / 127
        found[name] = np.round(W / scale) * scale
    return found


def with_adapter(base: Weights, rank: int = 8) -> Weights:
    """An adapter merged into every matrix of the layers."""
    found = dict(base)
    for name, W in base.items():
        if ".layers." in name:
            rng = generator("adapter", name)
            D = rng.standard_normal((W.shape[0], rank)) @ rng.standard_normal((rank, W.shape[1]))
            found[name] = W + 1e-2 * np.linalg.norm(W) * D / np.linalg.norm(D)
    return found


def flat(base: Weights, size: float = 2e-2) -> Weights:
    """All singular values of the update alike, as one step of Muon leaves them."""
    found = {}
    for name, W in base.items():
        U, _, V = np.linalg.svd(
            generator("flat", name).standard_normal(W.shape), full_matrices=False
        )
        found[name] = W + size * np.linalg.norm(W) * (U @ V) / np.sqrt(min(W.shape))
    return found


def frozen_below(base: Weights, layer: int = 2) -> Weights:
    """Fine-tuned from a layer on, embeddings and head not at all."""
    trained = fine_tuned(base)
    kept = [
        name for name in base if not any(f".layers.{at}." in name for at in range(layer, LAYERS))
    ]
    return trained | {name: base[name] for name in kept}


def frozen_tower(base: Weights) -> Weights:
    """Projector and language model trained, the projector the most; the vision tower as it was."""
    trained = fine_tuned(base)
    for name, W in base.items():
        if name.startswith("multi_modal_projector"):
            trained[name] = W + learned(name, W, 0.3)
        elif name.startswith("vision_tower"):
            trained[name] = W
    return trained


@dataclass(frozen=True)
class Case:
    """A pair: what was done, in words, and the weights of both sides with their formats."""

    name: str
    done: str
    make: Callable[[], tuple[Weights, Weights]]
    formats: tuple[torch.dtype, torch.dtype] = (torch.bfloat16, torch.bfloat16)
    config: str = "llama"


def _from(
    change: Callable[[Weights], Weights], shapes: Mapping[str, tuple[int, int]] | None = None
) -> Callable[[], tuple[Weights, Weights]]:
    """Both sides of a history that begins with the base as it is stored."""

    def make() -> tuple[Weights, Weights]:
        base = stored(drawn(shapes or decoder()))
        return base, change(base)

    return make


def _merged(base: Weights) -> Weights:
    one, other = fine_tuned(base, seed=1), fine_tuned(base, seed=2)
    return {name: (one[name] + other[name]) / 2 for name in base}


def _float32_base() -> tuple[Weights, Weights]:
    base = stored(drawn(decoder()), torch.float32)
    return base, base


def _unrelated() -> tuple[Weights, Weights]:
    return stored(drawn(decoder())), drawn(decoder(), 1)


def _shallower() -> tuple[Weights, Weights]:
    base = stored(drawn(decoder()))
    kept = decoder(LAYERS - 1)
    return base, {name: W for name, W in fine_tuned(base).items() if name in kept}


def cases() -> list[Case]:
    bf16, f32 = torch.bfloat16, torch.float32
    return [
        Case(
            "Fine-tune",
            "An update of 1 % of the base's norm in every matrix: half of its energy in 64"
            " directions, of which the inputs lean to the base's leading ones, and half noise.",
            _from(fine_tuned),
        ),
        Case(
            "Copy through int8",
            "Every row rounded to 255 levels and stored in BF16 again. No training.",
            _from(through_int8),
        ),
        Case(
            "Copy in BF16", "An F32 base, stored in BF16. No training.", _float32_base, (f32, bf16)
        ),
        Case(
            "Merged adapter",
            "An adapter of rank 8 on every matrix of the layers, merged. Embeddings and head were"
            " left alone.",
            _from(with_adapter),
        ),
        Case(
            "Merge of two models",
            "The mean of two fine-tunes of one base, each as the first example with other random"
            " numbers.",
            _from(_merged),
        ),
        Case(
            "Flat update",
            "All singular values of each update alike, as one step of an orthogonalised optimiser"
            " leaves them.",
            _from(flat),
        ),
        Case(
            "Frozen layers",
            "The fine-tune, but only of the upper two of four layers.",
            _from(frozen_below),
        ),
        Case("Unrelated models", "Two models of one shape, drawn apart.", _unrelated),
        Case("Another depth", "The fine-tune, with the last layer taken off.", _shallower),
        Case(
            "A small stage",
            "The fine-tune at a fifteenth of its size: 0.07 % of the base's norm.",
            _from(lambda base: fine_tuned(base, 7e-4)),
        ),
        Case(
            "A stage that is rounded away",
            "The fine-tune at a hundredth of its size: 0.01 % of the base's norm.",
            _from(lambda base: fine_tuned(base, 1e-4)),
        ),
        Case(
            "Vision and language, frozen tower",
            "Projector and language model trained, the projector by 30 % of its norm; the vision"
            " tower left alone.",
            _from(frozen_tower, vision_language()),
            config="llava",
        ),
        Case(
            "Experts",
            "The fine-tune of a mixture of four experts.",
            _from(fine_tuned, decoder(experts=EXPERTS)),
            config="qwen3_moe",
        ),
        Case("No change", "A copy of the base.", _from(dict)),
    ]


# ---------------------------------------------------------------------------- audit


def save(folder: Path, weights: Weights, dtype: torch.dtype, config: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.from_numpy(W).to(dtype).contiguous() for name, W in weights.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": config}))
    return folder


def audited(case: Case, folder: Path) -> Summary:
    """The summary of a case, whose checkpoints and report lie in folder."""
    base, tuned = case.make()
    sides = [
        save(folder / side, weights, dtype, case.config)
        for side, weights, dtype in (
            ("base", base, case.formats[0]),
            ("tuned", tuned, case.formats[1]),
        )
    ]
    return shadow.audit(
        base=str(sides[0]), tuned=str(sides[1]), output=folder / "reports", overwrite=True
    ).summary
