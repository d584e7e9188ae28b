"""Made-up weights of small checkpoints and updates of them, random by their names."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from functools import cache

# threads of matrices this small only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

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
