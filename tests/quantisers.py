"""Quantised matrices: in the pieces that files hold, beside the numbers that the format says they
have, entry by entry; and as copies in memory with their steps (ggml's types, GPTQ, AWQ).
"""

import json
from dataclasses import dataclass

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import IQ4_NL, dequantize, quantize

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
        "qweight": awq_words(q.T.long()), "qzeros": awq_words(zeros.T.long()), "scales": scales.T,
    }, truth  # fmt: skip


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


# blocks of ggml


def ggml_blocks(weight, kind):
    """A matrix in a type of ggml, as a file has it."""
    weight = np.ascontiguousarray(weight, np.float32)
    if kind == "IQ4_NL":
        return _iq4_nl(weight)
    return quantize(weight, GGMLQuantizationType[kind])


def through_ggml(weight, kind):
    """A matrix after a way through a type of ggml, float32."""
    return dequantize(ggml_blocks(weight, kind), GGMLQuantizationType[kind])


def _iq4_nl(weight):
    """Blocks of 32 with a scale of 16 bits and the nearest of 16 levels: gguf cannot write them."""
    blocks = weight.astype(float).reshape(-1, 2, 16)
    scale = (abs(blocks).max((1, 2)) / 113).astype(np.float16)
    levels = np.array(IQ4_NL.kvalues, float)
    codes = abs(blocks[..., None] / scale[:, None, None, None] - levels).argmin(-1).astype(np.uint8)
    raw = np.hstack([scale[:, None].view(np.uint8), codes[:, 0] | codes[:, 1] << 4])
    return raw.reshape(len(weight), -1)


# copies in memory


@dataclass
class Copy:
    """Numbers and their steps, as a quantised matrix of a file has them."""

    numbers: torch.Tensor
    each: torch.Tensor | None
    format: str = "made up"
    ends: tuple[torch.Tensor, torch.Tensor] | None = None
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

    def cells(self, index):
        ends = self.ends or (() if self.each is None else (self.each,))
        return tuple(end[index] for end in ends)


def _copy(numbers: np.ndarray, steps: np.ndarray, name: str) -> Copy:
    parts = (torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in (numbers, steps))
    return Copy(*parts, name)


def ggml_copy(original: torch.Tensor, kind: str) -> Copy:
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


def codebook(original: torch.Tensor, levels: tuple[float, ...], block: int, name: str) -> Copy:
    """The nearest of levels, times the largest number of a block over the largest level."""
    ascending = np.unique(levels)
    blocks = original.double().numpy().reshape(-1, block)
    scale = abs(blocks).max(1, keepdims=True) / ascending[-1]
    middles = (ascending[1:] + ascending[:-1]) / 2
    place = np.searchsorted(middles, blocks / scale)
    edges = np.concatenate([ascending[:1], middles, ascending[-1:]])
    numbers, low, high = (
        torch.from_numpy((of[place + by] * scale).astype(np.float32)).view(original.shape)
        for of, by in ((ascending, 0), (edges, 0), (edges, 1))
    )
    return Copy(numbers, None, name, (low, high))


def _fitted(weight, inputs, by_size: bool, group: int, most: int, least_zero: float):
    """GPTQ (Frantar et al. 2022): whole numbers up to most, scales and zeros of groups, and the
    group of each column. by_size: the columns with the largest inputs first (`desc_act`).
    """
    w, cols = weight.double().numpy().copy(), weight.shape[1]
    hessian = inputs.T @ inputs
    order = np.argsort(-np.diag(hessian)) if by_size else np.arange(cols)
    w, hessian = w[:, order], hessian[order][:, order]
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(cols)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    q, scales, zeros = np.zeros_like(w), [], []
    for col in range(cols):
        if col % group == 0:
            part = w[:, col : col + group]
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            scale = ((high - low) / most).astype(np.float16).astype(float)
            zero = np.clip(np.round(-low / scale), least_zero, most)
            scales.append(scale)
            zeros.append(zero)
        q[:, col] = np.clip(np.round(w[:, col] / scale) + zero, 0, most)
        error = (w[:, col] - scale * (q[:, col] - zero)) / upper[col, col]
        w[:, col:] -= np.outer(error, upper[col, col:])
    back = np.argsort(order)
    return q[:, back], np.stack(scales, 1), np.stack(zeros, 1), (np.arange(cols) // group)[back]


def gptq_copy(
    original: torch.Tensor, group: int = 128, seed: int = 0, in_order: bool = True
) -> Copy:
    """GPTQ in 4 bits, with inputs whose columns are correlated; in_order: not `desc_act`."""
    cols, rng = original.shape[1], np.random.default_rng(seed)
    mixed = np.eye(cols) + rng.standard_normal((cols, cols)) / np.sqrt(cols)
    inputs = rng.standard_normal((2 * cols, cols)) @ mixed
    q, scales, zeros, of = _fitted(original, inputs, not in_order, group, 15, -np.inf)
    return _copy(scales[:, of] * (q - zeros[:, of]), scales[:, of], "GPTQ-4")


def awq_copy(original: torch.Tensor, factors: torch.Tensor, group: int = 128) -> Copy:
    """AWQ (Lin et al. 2023) in 4 bits: columns times factors, rounded to the nearest."""
    scaled = (original.double() * factors).numpy().reshape(len(original), -1, group)
    low, high = scaled.min(-1, keepdims=True), scaled.max(-1, keepdims=True)
    scale = ((high - low) / 15).astype(np.float16).astype(float)
    zero = np.clip(np.round(-low / scale), 0, 15)
    numbers = (np.clip(np.round(scaled / scale) + zero, 0, 15) - zero) * scale
    steps = np.broadcast_to(scale, scaled.shape)
    return _copy(numbers.reshape(original.shape), steps.reshape(original.shape), "AWQ")


def k_blocks(original: np.ndarray, kind: str, importance: np.ndarray | None = None) -> np.ndarray:
    """Q2_K or Q3_K as ggml fits them, in bytes (rows, bytes of a row). importance: of columns."""
    fit = {"Q2_K": _q2_k, "Q3_K": _q3_k}[kind]
    x = np.asarray(original, float).reshape(-1, 16, 16)
    weights = None
    if importance is not None:
        size = np.sqrt((1 + (kind == "Q3_K")) * np.mean(x**2, (1, 2), keepdims=True) + x**2)
        weights = np.broadcast_to(importance, original.shape).reshape(x.shape) * size
    return np.hstack(fit(x, weights)).reshape(len(original), -1)


def k_copy(blocks: np.ndarray, kind: str) -> Copy:
    """What blocks of Q2_K or Q3_K hold."""
    numbers = dequantize(blocks, GGMLQuantizationType[kind])
    ends = []
    for level in (0x00, 0x55):
        filled = blocks.reshape(-1, {"Q2_K": 84, "Q3_K": 110}[kind]).copy()
        filled[:, slice(16, 80) if kind == "Q2_K" else slice(32, 96)] = level
        ends.append(dequantize(filled, GGMLQuantizationType[kind]).reshape(numbers.shape))
    return _copy(numbers, abs(ends[1] - ends[0]), kind)


def k_quants(original: torch.Tensor, kind: str, importance: np.ndarray | None = None) -> Copy:
    """The copy that `k_blocks` makes."""
    return k_copy(k_blocks(original.numpy(), kind, importance), kind)


def _q2_k(x: np.ndarray, weights: np.ndarray | None) -> list[np.ndarray]:
    """Scale and offset of 4 bits for each 16 entries, by the least |x| |error|; with weights by
    their squares. The largest scale of 256 entries becomes 15.
    """
    w, power = (abs(x), 1) if weights is None else (weights, 2)
    tries = 3 + (np.arange(-5, 11) / 10 if weights is None else np.arange(-18, 19) / 20)
    low, high = np.minimum(x.min(-1), 0), x.max(-1)
    scale = (high - low) / 3
    levels = _levels(x, scale, low, 3)
    best = (w * abs(scale[..., None] * levels + low[..., None] - x) ** power).sum(-1)
    sum_w, sum_x = w.sum(-1), (w * x).sum(-1)
    for count in tries:
        levels = _levels(x, (high - low) / count, low, 3)
        of, of2, ofx = ((w * one).sum(-1) for one in (levels, levels**2, levels * x))
        found = sum_w * of2 - of**2
        with np.errstate(all="ignore"):
            step, start = (sum_w * ofx - sum_x * of) / found, (of2 * sum_x - of * ofx) / found
            step = np.where(start > 0, ofx / of2, step)
        start = np.minimum(start, 0)
        error = (w * abs(step[..., None] * levels + start[..., None] - x) ** power).sum(-1)
        better = (found > 0) & (error < best)
        scale, low, best = (
            np.where(better, *pair) for pair in ((step, scale), (start, low), (error, best))
        )
    parts = []
    for each in (scale, -low):
        if weights is None:
            unit = each.max(-1) / 15
            codes = _levels(each, unit, np.zeros_like(unit), 15)
        else:
            unit, codes = _positive(each, sum_w, 15)
        parts.append((unit.astype(np.float16), codes.astype(np.uint8)))
    (d, ls), (dmin, lm) = parts
    steps, starts = (d[:, None].astype(float) * ls, dmin[:, None].astype(float) * lm)
    levels = _levels(x, steps, -starts, 3).astype(np.uint8)
    quarters = levels.reshape(-1, 2, 4, 32) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    ends = np.stack([d, dmin], 1).view(np.uint8)
    return [ls | lm << 4, np.bitwise_or.reduce(quarters, 2).reshape(-1, 64), ends]


def _q3_k(x: np.ndarray, weights: np.ndarray | None) -> list[np.ndarray]:
    """A scale of 6 bits for each 16 entries, by least squares weighed by x², or by the weights. The
    largest scale of 256 entries becomes -32.
    """
    if weights is None:
        scale = _descended(x, x**2, -4 / _furthest(x), -4, 3)[0]
        unit = -_furthest(scale) / 32
        codes = _levels(scale, unit, np.zeros_like(unit), 31, -32)
    else:
        scale, _ = _searched(x, weights, 4)
        unit, codes = _searched(scale, weights.sum(-1), 32)
    d = unit.astype(np.float16)
    steps = d[:, None].astype(float) * codes
    levels = (_levels(x, steps, np.zeros_like(steps), 3, -4) + 4).astype(np.uint8).reshape(-1, 256)
    eights = (levels >> 2).reshape(-1, 8, 32) << np.arange(8, dtype=np.uint8)[:, None]
    quarters = (levels & 3).reshape(-1, 2, 4, 32) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    stored = (codes + 32).astype(np.uint8)
    upper = (stored >> 4).reshape(-1, 4, 4) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    return [
        np.bitwise_or.reduce(eights, 1), np.bitwise_or.reduce(quarters, 2).reshape(-1, 64),
        (stored[:, :8] & 15) | (stored[:, 8:] & 15) << 4, np.bitwise_or.reduce(upper, 1),
        d[:, None].view(np.uint8),
    ]  # fmt: skip


def _levels(x: np.ndarray, step: np.ndarray, start: np.ndarray, most: int, least: int = 0):
    with np.errstate(all="ignore"):
        found = np.rint((x - start[..., None]) / step[..., None])
    return np.clip(np.nan_to_num(found, posinf=0, neginf=0), least, most)


def _furthest(x: np.ndarray) -> np.ndarray:
    found = np.take_along_axis(x, abs(x).argmax(-1)[..., None], -1)[..., 0]
    return np.where(found == 0, 1e-30, found)


def _searched(x: np.ndarray, w: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The best of scales that put the furthest number at about -most, and the levels."""
    best, scale, levels = np.zeros(x.shape[:-1]), np.zeros(x.shape[:-1]), np.zeros_like(x)
    for shift in (0, *range(-9, 10)):
        step = -_furthest(x) / (most + 0.1 * shift)
        tried = _levels(x, step, np.zeros_like(step), most - 1, -most)
        along, own = (w * x * tried).sum(-1), (w * tried**2).sum(-1)
        better = (own > 0) & (along**2 > best * own)
        with np.errstate(all="ignore"):
            scale = np.where(better, along / own, scale)
        best, levels = (
            np.where(better, scale * along, best),
            np.where(better[..., None], tried, levels),
        )
    return scale, levels


def _positive(x: np.ndarray, w: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """As `_searched`, of numbers above 0, one after another moved to a better level."""
    best, start = np.full(len(x), np.inf), np.ones(len(x))
    for shift in (0, *range(-4, 5)):
        step = x.max(-1) / (most + 0.1 * shift)
        tried = _levels(x, step, np.zeros_like(step), most)
        error = (w * (x - step[:, None] * tried) ** 2).sum(-1)
        start, best = np.where(error < best, step, start), np.minimum(error, best)
    return _descended(x, w, 1 / np.where(start > 0, start, 1), 0, most)


def _descended(x: np.ndarray, w: np.ndarray, by: np.ndarray, least: int, most: int):
    """The scale and the levels of a fit, where each entry in turn goes to a better level."""
    levels = np.clip(np.rint(by[..., None] * x), least, most)
    along, own = (w * x * levels).sum(-1), (w * levels**2).sum(-1)
    for turn in range(5 * x.shape[-1]):
        place = turn % x.shape[-1]
        v, u, level = x[..., place], w[..., place], levels[..., place]
        along_rest, own_rest = along - u * v * level, own - u * level**2
        with np.errstate(all="ignore"):
            tried = np.clip(np.nan_to_num(np.rint(v * own_rest / along_rest)), least, most)
        a, o = along_rest + u * v * tried, own_rest + u * tried**2
        better = (along_rest > 0) & (o > 0) & (a**2 * own > along**2 * o)
        levels[..., place] = np.where(better, tried, level)
        along, own = np.where(better, a, along), np.where(better, o, own)
    return np.where(own > 0, along / np.where(own > 0, own, 1), 0), levels


def compensated(weight, bits: int, group: int, seed: int = 0, by_size: bool = False):
    """GPTQ as files hold it: whole numbers, scales and zeros of groups, and the order of columns.

    Inputs are correlated, and some columns' far larger than others'. by_size: `desc_act`.
    """
    cols, rng = weight.shape[1], np.random.default_rng(seed)
    mixed = np.eye(cols) + rng.standard_normal((cols, cols)) / np.sqrt(cols)
    inputs = rng.standard_normal((4 * cols, cols)) @ mixed * np.exp(0.7 * rng.standard_normal(cols))
    found = _fitted(weight, inputs, by_size, group, (1 << bits) - 1, 1)
    return tuple(torch.from_numpy(np.ascontiguousarray(one)) for one in found)
