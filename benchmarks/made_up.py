"""Made-up weights of small checkpoints and updates of them, random by their names."""

from __future__ import annotations

import os
import zlib
from functools import cache

# threads of matrices this small only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = dict[str, Array]
Shapes = dict[str, tuple[int, ...]]


def generator(*key: object) -> np.random.Generator:
    """A generator of its own for each key, whatever was drawn before."""
    return np.random.default_rng(zlib.crc32("\t".join(map(str, key)).encode()))


def decoder(
    layers: int, width: int, mlp: int, tokens: int, kv: int = 0, prefix: str = "",
    gated: bool = True, norms: bool = True, biases: bool = False,
) -> Shapes:  # fmt: skip
    """Names and shapes of a decoder; kv: rows of k and v, where they are fewer."""
    found: Shapes = {f"{prefix}model.embed_tokens.weight": (tokens, width)}
    for number in range(layers):
        layer = f"{prefix}model.layers.{number}"
        rows = {"q": width, "k": kv or width, "v": kv or width, "o": width}
        found |= {f"{layer}.self_attn.{one}_proj.weight": (rows[one], width) for one in "qkvo"}
        if biases:
            found |= {f"{layer}.self_attn.{one}_proj.bias": (rows[one],) for one in "qkv"}
        if mlp:
            up = ("gate", "up") if gated else ("up",)
            found |= {f"{layer}.mlp.{one}_proj.weight": (mlp, width) for one in up}
            found[f"{layer}.mlp.down_proj.weight"] = (width, mlp)
        if norms:
            found[f"{layer}.input_layernorm.weight"] = (width,)
            found[f"{layer}.post_attention_layernorm.weight"] = (width,)
    if norms:
        found[f"{prefix}model.norm.weight"] = (width,)
    return found | {f"{prefix}lm_head.weight": (tokens, width)}


def vision_language() -> Shapes:
    """A decoder with a vision tower and a projector before it, as LLaVA has them."""
    shapes: Shapes = {}
    for number in range(2):
        layer = f"vision_tower.vision_model.encoder.layers.{number}"
        for one in ("q", "k", "v", "out"):
            shapes[f"{layer}.self_attn.{one}_proj.weight"] = (128, 128)
        shapes |= {f"{layer}.mlp.fc1.weight": (256, 128), f"{layer}.mlp.fc2.weight": (128, 256)}
    shapes["multi_modal_projector.linear_1.weight"] = (256, 128)
    shapes["multi_modal_projector.linear_2.weight"] = (256, 256)
    return shapes | decoder(4, 256, 512, 512, prefix="language_model.", norms=False)


@cache
def made_up(name: str, rows: int, cols: int, seed: int) -> Array:
    """A matrix of entries of about 0.02 and a spectrum that decays."""
    rng = generator("weights", seed, name)
    scale = np.arange(1, cols + 1) ** -0.3
    W = 0.02 * rng.standard_normal((rows, cols)) * scale / np.sqrt((scale**2).mean())
    return np.asarray(W @ np.linalg.qr(rng.standard_normal((cols, cols)))[0])


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


def purity(D: Array) -> float:
    """X = 1 / participation_ratio - 1 / null_participation_ratio, by NumPy from the definition."""
    r, c = (D**2).sum(1), (D**2).sum(0)
    G = D @ D.T if D.shape[0] <= D.shape[1] else D.T @ D
    return float(((G**2).sum() - (r**2).sum() - (c**2).sum() + (D**4).sum()) / r.sum() ** 2)
