"""Weights of small decoders without training, and what may be done to them that is none."""

from __future__ import annotations

import re
from collections.abc import Collection

import torch

Weights = dict[str, torch.Tensor]
MODULES = {  # rows and columns, in widths of the residual stream and of the MLP
    "self_attn.q_proj": "rr", "self_attn.k_proj": "rr", "self_attn.v_proj": "rr",
    "self_attn.o_proj": "rr", "mlp.gate_proj": "mr", "mlp.up_proj": "mr", "mlp.down_proj": "rm",
}  # fmt: skip
LAYER = re.compile(r"(?<=layers\.)\d+")


def weights(seed: int, layers: int, width: int = 32, vocabulary: int = 64) -> Weights:
    """Gaussian matrices; the MLP is half as wide again."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"r": width, "m": width + width // 2}
    made = {
        f"model.layers.{layer}.{module}.weight": torch.randn(
            *(sizes[size] for size in shape), generator=generator
        )
        for layer in range(layers)
        for module, shape in MODULES.items()
    }
    made["model.embed_tokens.weight"] = torch.randn(vocabulary, width, generator=generator)
    return made


def tuned(base: Weights, size: float, seed: int) -> Weights:
    """With noise of this relative norm."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: matrix
        + size * matrix.std(correction=0) * torch.randn(matrix.shape, generator=generator)
        for name, matrix in base.items()
    }


def _renumbered(base: Weights, start: int, by: int) -> Weights:
    """With other numbers for the layers from one on."""

    def name(one: str) -> str:
        return LAYER.sub(lambda at: str(int(at[0]) + by * (int(at[0]) >= start)), one)

    return {name(one): matrix for one, matrix in base.items()}


def dropped(base: Weights, layer: int) -> Weights:
    """Without a layer; those after it are renumbered."""
    kept = {name: matrix for name, matrix in base.items() if f"layers.{layer}." not in name}
    return _renumbered(kept, layer, -1)


def inserted(base: Weights, layer: int, seed: int) -> Weights:
    """With a layer that was not there; those after it are renumbered."""
    generator = torch.Generator().manual_seed(seed)
    new = {
        name: torch.randn(matrix.shape, generator=generator)
        for name, matrix in base.items()
        if f"layers.{layer}." in name
    }
    return _renumbered(base, layer, 1) | new


def negated(base: Weights, layers: Collection[int], modules: Collection[str] = MODULES) -> Weights:
    """With the opposite sign of some modules of some layers."""
    chosen = {f"model.layers.{layer}.{module}.weight" for layer in layers for module in modules}
    return {name: -matrix if name in chosen else matrix for name, matrix in base.items()}


def permuted(base: Weights, seed: int) -> Weights:
    """With the neurons of every MLP in another order, which computes the same."""
    generator = torch.Generator().manual_seed(seed)
    orders: dict[str, torch.Tensor] = {}
    made = dict(base)
    for name, matrix in base.items():
        layer, _, module = name.partition(".mlp.")
        if not module:
            continue
        width = max(matrix.shape)
        order = orders.setdefault(layer, torch.randperm(width, generator=generator))
        made[name] = matrix[:, order] if module.startswith("down") else matrix[order]
    return made
