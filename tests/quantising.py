"""Quantised copies in memory, for tests: ggml's legacy types by the package, a super-block of
4 bits, GPTQ and AWQ by a few lines of NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize


@dataclass
class Copy:
    """Numbers and their steps, as a quantised matrix of a file has them."""

    numbers: torch.Tensor
    each: torch.Tensor | None
    format: str = "made up"
    dtype = torch.float32

    @property
    def shape(self):
        return self.numbers.shape

    @property
    def ndim(self):
        return self.numbers.ndim

    def numel(self):
        return self.numbers.numel()

    def __getitem__(self, index):
        return self.numbers[index]

    def steps(self, index):
        return None if self.each is None else self.each[index]

    def cells(self, index):
        return None


def _copy(numbers: np.ndarray, steps: np.ndarray, name: str) -> Copy:
    parts = (torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in (numbers, steps))
    return Copy(*parts, name)


def ggml(original: torch.Tensor, kind: str) -> Copy:
    """One of ggml's types with blocks of 32."""
    raw = quantize(original.numpy(), GGMLQuantizationType[kind])
    scale = raw.reshape(-1, raw.shape[1] * 32 // original.shape[1])[:, :2].copy().view(np.float16)
    steps = np.repeat(abs(scale.astype(np.float32)), 32).reshape(original.shape)
    return _copy(dequantize(raw, GGMLQuantizationType[kind]), steps, kind)


def k_like(original: torch.Tensor) -> Copy:
    """As Q4_K: 4 bits with a scale and an offset of 6 bits in blocks of 32, of 256 together."""
    blocks = original.double().numpy().reshape(-1, 8, 32)
    low = np.minimum(blocks.min(-1, keepdims=True), 0)
    high = blocks.max(-1, keepdims=True)
    scale, offset = (high - low) / 15, -low
    of_scale, of_offset = (part.max(1, keepdims=True) / 63 for part in (scale, offset))
    scale = np.maximum(np.floor(scale / of_scale), 1) * of_scale  # below, so that some are clipped
    offset = np.round(offset / np.maximum(of_offset, 1e-30)) * of_offset
    levels = np.clip(np.round((blocks + offset) / scale), 0, 15)
    steps = np.broadcast_to(scale, blocks.shape)
    return _copy(
        (levels * scale - offset).reshape(original.shape), steps.reshape(original.shape), "Q4_K"
    )


def gptq(original: torch.Tensor, group: int = 128, seed: int = 0, in_order: bool = True) -> Copy:
    """GPTQ (Frantar et al. 2022) in 4 bits, with inputs whose columns are correlated; in_order:
    otherwise the columns with the largest inputs come first (`desc_act`).
    """
    weights = original.double().numpy().copy()
    rows, cols = weights.shape
    rng = np.random.default_rng(seed)
    mixed = np.eye(cols) + rng.standard_normal((cols, cols)) / np.sqrt(cols)
    inputs = rng.standard_normal((2 * cols, cols)) @ mixed
    hessian = inputs.T @ inputs
    order = np.arange(cols) if in_order else np.argsort(-np.diag(hessian))
    weights, hessian = weights[:, order], hessian[order][:, order]
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(cols)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    numbers, steps = np.zeros_like(weights), np.zeros_like(weights)
    scale = zero = np.zeros(rows)
    for col in range(cols):
        if col % group == 0:
            of_group = weights[:, col : col + group]
            low, high = np.minimum(of_group.min(1), 0), np.maximum(of_group.max(1), 0)
            scale = ((high - low) / 15).astype(np.float16).astype(float)
            zero = np.round(-low / scale)
        level = np.clip(np.round(weights[:, col] / scale) + zero, 0, 15)
        numbers[:, col], steps[:, col] = scale * (level - zero), scale
        error = (weights[:, col] - numbers[:, col]) / upper[col, col]
        weights[:, col:] -= np.outer(error, upper[col, col:])
    back = np.argsort(order)
    return _copy(numbers[:, back], steps[:, back], "GPTQ-4")


def awq(original: torch.Tensor, factors: torch.Tensor, group: int = 128) -> Copy:
    """AWQ (Lin et al. 2023) in 4 bits: columns times factors, rounded to the nearest."""
    scaled = (original.double() * factors).numpy().reshape(len(original), -1, group)
    low, high = scaled.min(-1, keepdims=True), scaled.max(-1, keepdims=True)
    scale = ((high - low) / 15).astype(np.float16).astype(float)
    zero = np.clip(np.round(-low / scale), 0, 15)
    numbers = (np.clip(np.round(scaled / scale) + zero, 0, 15) - zero) * scale
    steps = np.broadcast_to(scale, scaled.shape)
    return _copy(numbers.reshape(original.shape), steps.reshape(original.shape), "AWQ")
