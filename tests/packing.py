"""Checkpoints in quantised formats for tests: each matrix as a naive quantiser makes it, beside the
numbers that the format says it has, entry by entry.
"""

from __future__ import annotations

import json

import numpy as np
import torch

from shadow.dtypes import E2M1, NF4

Quantised = tuple[dict[str, torch.Tensor], torch.Tensor]
"""The pieces of a matrix by name behind the module's, and the numbers that they stand for."""


def stream(numbers, bits):
    """Whole numbers -> words of 32 bits of a stream, along the last dimension, int32."""
    flat = numbers.reshape(-1, numbers.shape[-1]).tolist()
    words = -(-numbers.shape[-1] * bits // 32)
    made = []
    for line in flat:
        whole = sum(int(number) << (i * bits) for i, number in enumerate(line))
        made += [(whole >> (32 * i)) & 0xFFFFFFFF for i in range(words)]
    array = np.array(made, np.uint32).reshape(*numbers.shape[:-1], words)
    return torch.from_numpy(array.view(np.int32))


def grouped(weight, group, bits):
    """(q, scales, zeros) of asymmetric groups of a row; q and zeros from 0 to 2^bits - 1."""
    parts = weight.float().reshape(len(weight), -1, group)
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    scales = ((high - low) / ((1 << bits) - 1)).clamp(min=1e-6).half()
    zeros = torch.round(-low / scales.float()).clamp(1, (1 << bits) - 1)
    q = torch.round(parts / scales.float()[..., None]) + zeros[..., None]
    return q.clamp(0, (1 << bits) - 1).view(weight.shape), scales, zeros


def spread(shared, group):
    return shared.float().repeat_interleave(group, 1)


def gptq(weight, bits=4, group=32, order=None, version=1) -> Quantised:
    """order: the group of each column."""
    columns = torch.arange(weight.shape[1]) if order is None else torch.argsort(order, stable=True)
    q, scales, zeros = grouped(weight[:, columns], group, bits)
    back = torch.argsort(columns)
    q, g_idx = q[:, back], (torch.arange(weight.shape[1]) // group)[back]
    truth = (q - zeros[:, g_idx]) * scales.float()[:, g_idx]
    pieces = {
        "qweight": stream(q.long(), bits).T,
        "qzeros": stream((zeros - int(version == 1)).T.long(), bits),
        "scales": scales.T,
        "g_idx": g_idx.int(),
    }
    return pieces, truth


def awq_words(numbers):
    """Eight outputs in a word, in the order 0 2 4 6 1 3 5 7, along the last dimension."""
    eights = numbers.view(*numbers.shape[:-1], -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
    return stream(eights.flatten(-2), 4)


def awq(weight, group=32) -> Quantised:
    q, scales, zeros = grouped(weight, group, 4)
    truth = (q - spread(zeros, group)) * spread(scales, group)
    return {
        "qweight": awq_words(q.T.long()),
        "qzeros": awq_words(zeros.T.long()),
        "scales": scales.T,
    }, truth


def mlx(weight, bits=4, group=32) -> Quantised:
    *stack, cols = weight.shape
    parts = weight.float().reshape(*stack, -1, group)
    low, high = parts.amin(-1), parts.amax(-1)
    scales, biases = ((high - low) / ((1 << bits) - 1)).clamp(min=1e-6).bfloat16(), low.bfloat16()
    wide, base = scales.float()[..., None], biases.float()[..., None]
    q = torch.round((parts - base) / wide).clamp(0, (1 << bits) - 1)
    words = stream(q.view(*stack, cols).long(), bits).view(torch.uint32)
    return {"weight": words, "scales": scales, "biases": biases}, (q * wide + base).view(
        weight.shape
    )


def pack_quantized(weight, bits=4, group=32) -> Quantised:
    q, scales, zeros = grouped(weight, group, bits)
    truth = (q - spread(zeros, group)) * spread(scales, group)
    return {
        "weight_packed": stream(q.long(), bits),
        "weight_scale": scales,
        "weight_zero_point": stream(zeros.T.long(), bits).T,
        "weight_shape": torch.tensor(weight.shape),
    }, truth


def int8_rows(weight) -> Quantised:
    scales = (weight.float().abs().amax(1, keepdim=True) / 127).bfloat16()
    q = torch.round(weight.float() / scales.float()).clamp(-128, 127)
    return {"weight": q.char(), "weight_scale": scales}, q * scales.float()


def fp8(weight, per="tensor") -> Quantised:
    most = weight.float().abs()
    scale = (most.amax() if per == "tensor" else most.amax(1, keepdim=True)) / 448
    raw = (weight.float() / scale).to(torch.float8_e4m3fn)
    return {
        "weight": raw, "weight_scale": scale, "input_scale": torch.tensor(1.0)
    }, raw.float() * scale  # fmt: skip


def nf4(weight, block=64) -> Quantised:
    flat = weight.float().flatten()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
    scales, levels = padded.abs().amax(1), torch.tensor(NF4)
    codes = (padded / scales[:, None].clamp(min=1e-9)).flatten()[: len(flat), None]
    codes = (codes - levels).abs().argmin(1)
    said = {"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16"}
    state = json.dumps({**said, "shape": list(weight.shape)}).encode()
    pieces = {
        "weight": (codes[::2] * 16 + codes[1::2]).byte()[:, None],
        "weight.absmax": scales,
        "weight.quant_map": levels,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(state), dtype=torch.uint8),
    }
    truth = levels[codes] * scales.repeat_interleave(block)[: len(flat)]
    return pieces, truth.view(weight.shape)


def llm_int8(weight) -> Quantised:
    scales = weight.float().abs().amax(1)
    q = torch.round(weight.float() * (127.0 / scales[:, None]))
    pieces = {"weight": q.char(), "SCB": scales, "weight_format": torch.tensor(0).byte()}
    return pieces, q * scales[:, None] * 7.874015718698502e-3


def _e2m1(parts, scales):
    levels = torch.tensor(E2M1)
    codes = (parts / scales[..., None])[..., None].sub(levels).abs().argmin(-1)
    return codes, levels[codes] * scales[..., None]


def nvfp4(weight) -> Quantised:
    parts = weight.float().reshape(len(weight), -1, 16)
    outer = torch.tensor([448 * 6 / float(parts.abs().max())])
    inner = (parts.abs().amax(-1) / 6 * outer).to(torch.float8_e4m3fn)
    codes, truth = _e2m1(parts, inner.float() / outer)
    codes = codes.view(weight.shape)
    return {
        "weight_packed": (codes[:, ::2] + 16 * codes[:, 1::2]).byte(),
        "weight_scale": inner,
        "weight_global_scale": outer,
    }, truth.view(weight.shape)


def mxfp4(weight) -> Quantised:
    """Of a stack (experts, in, out)."""
    parts = weight.float().transpose(1, 2).unflatten(-1, (-1, 32))
    exponents = torch.floor(torch.log2(parts.abs().amax(-1).clamp(min=1e-30))) - 2
    codes, truth = _e2m1(parts, torch.exp2(exponents))
    return {
        "_blocks": (codes[..., ::2] + 16 * codes[..., 1::2]).byte(),
        "_scales": (exponents + 127).byte(),
    }, truth.flatten(-2).transpose(1, 2)


ORDER = torch.tensor([1, 0, 1, 0] * 512)
FORMATS = {
    "gptq": (gptq, "GPTQ-4", {"quant_method": "gptq", "bits": 4}),
    "gptq-3": (lambda w: gptq(w, 3), "GPTQ-3", {"quant_method": "gptq", "bits": 3}),
    "gptq-8": (lambda w: gptq(w, 8), "GPTQ-8", {"quant_method": "gptq", "bits": 8}),
    "gptq-order": (
        lambda w: gptq(w, order=ORDER[: w.shape[1]]), "GPTQ-4", {"quant_method": "gptq"}
    ),
    "gptq-v2": (
        lambda w: gptq(w, 2, version=2), "GPTQ-2",
        {"quant_method": "gptq", "checkpoint_format": "gptq_v2"},
    ),
    "awq": (awq, "AWQ-4", {"quant_method": "awq", "bits": 4, "version": "gemm"}),
    "mlx": (mlx, "MLX-4", {"bits": 4, "group_size": 32}),
    "mlx-6": (lambda w: mlx(w, 6), "MLX-6", {"bits": 6, "group_size": 32}),
    "nf4": (nf4, "NF4", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "int8": (llm_int8, "INT8", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "int4": (pack_quantized, "INT4", {"quant_method": "compressed-tensors"}),
    "w8a8": (int8_rows, "INT8", {"quant_method": "compressed-tensors"}),
    "fp8": (fp8, "F8_E4M3", {"quant_method": "compressed-tensors"}),
    "fp8-rows": (lambda w: fp8(w, "row"), "F8_E4M3", {"quant_method": "fbgemm_fp8"}),
    "nvfp4": (nvfp4, "NVFP4", {"quant_method": "compressed-tensors"}),
}  # fmt: skip
"""By name: how a matrix is quantised, what the format is called, what config.json says."""


def quantised(name, tensors, which=lambda name: "proj" in name and name.endswith(".weight")):
    """(tensors of a checkpoint in a format, the same as numbers, quantization_config)"""
    make, _, said = FORMATS[name]
    packed, dense = {}, {}
    for key, tensor in tensors.items():
        if not which(key):
            packed[key] = dense[key] = tensor
            continue
        pieces, dense[key] = make(tensor)
        module = key.removesuffix(".weight")
        packed |= {f"{module}.{piece}": value for piece, value in pieces.items()}
    return packed, dense, said
