"""Low-rank factors beside the matrices of a decoder's layers (Hu et al. 2021)."""

from __future__ import annotations

import math

import torch
import transformers
from torch import nn
from torch.nn.utils import parametrize


class _LowRank(nn.Module):
    """W + B A, with A (rank, in) drawn and B (out, rank) zero at first."""

    def __init__(self, rows: int, cols: int, rank: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(rank, cols) / math.sqrt(cols))
        self.second = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.second @ self.first


def add_factors(model: transformers.LlamaForCausalLM, rank: int) -> None:
    """Freeze the model, and put factors beside every matrix of its layers (Hu et al. 2021)."""
    model.requires_grad_(False)
    for layer in model.model.layers:
        for linear in [module for module in layer.modules() if isinstance(module, nn.Linear)]:
            rows, cols = linear.weight.shape
            parametrize.register_parametrization(linear, "weight", _LowRank(rows, cols, rank))


def merged(model: transformers.LlamaForCausalLM) -> transformers.LlamaForCausalLM:
    """The model itself, or where it has factors a plain one whose matrices have them added.

    Not `remove_parametrizations` on a copy: it takes the property off the class, which copy and
    model share.
    """
    weights = {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module)
    }
    if not weights:
        return model
    plain = transformers.LlamaForCausalLM(model.config)
    others = {
        name: weight
        for name, weight in model.state_dict().items()
        if "parametrizations" not in name
    }
    plain.load_state_dict(others | weights)
    return plain
