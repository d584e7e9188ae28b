"""GGUF files for tests: models of transformers' names, converted as llama.cpp's converter does."""

from __future__ import annotations

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import quantize

HEADS, KV_HEADS, WIDTH, INNER, VOCABULARY, LAYERS = 4, 2, 256, 512, 320, 2


def permuted(weight, heads):
    """Rows of q or k as `LlamaModel.permute` of llama.cpp's converter leaves them."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def llama(seed=0, heads=HEADS, kv_heads=KV_HEADS, width=WIDTH, scale=0.02):
    """Tensors of a small Llama by transformers' names, float32 with values of BF16."""
    rng = np.random.default_rng(seed)

    def matrix(*shape):
        values = rng.standard_normal(shape).astype(np.float32) * scale
        return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)

    keys = width // heads * kv_heads
    tensors = {"model.embed_tokens.weight": matrix(VOCABULARY, width)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        tensors |= {
            f"{at}.input_layernorm.weight": 1 + matrix(width),
            f"{at}.self_attn.q_proj.weight": matrix(width, width),
            f"{at}.self_attn.k_proj.weight": matrix(keys, width),
            f"{at}.self_attn.v_proj.weight": matrix(keys, width),
            f"{at}.self_attn.o_proj.weight": matrix(width, width),
            f"{at}.post_attention_layernorm.weight": 1 + matrix(width),
            f"{at}.mlp.gate_proj.weight": matrix(INNER, width),
            f"{at}.mlp.up_proj.weight": matrix(INNER, width),
            f"{at}.mlp.down_proj.weight": matrix(width, INNER),
        }
    norms = [name for name in tensors if "norm" in name]
    return (
        tensors
        | {name: bf16(tensors[name]) for name in norms}
        | {
            "model.norm.weight": bf16(1 + matrix(width)),
            "lm_head.weight": matrix(VOCABULARY, width),
        }
    )


def bf16(values):
    """Values cut to those of BF16."""
    return (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


def decoded(weight, kind):
    """A matrix after a way through a type of ggml, float32."""
    weight = np.ascontiguousarray(weight, np.float32)
    return gguf.quants.dequantize(quantize(weight, Type[kind]), Type[kind])


def iq4_nl(weight):
    """Blocks of 32 with a scale of 16 bits and the nearest of 16 levels: gguf cannot write them."""
    blocks = weight.astype(float).reshape(-1, 2, 16)
    scale = (abs(blocks).max((1, 2)) / 113).astype(np.float16)
    levels = np.array(gguf.quants.IQ4_NL.kvalues, float)
    codes = abs(blocks[..., None] / scale[:, None, None, None] - levels).argmin(-1).astype(np.uint8)
    raw = np.hstack([scale[:, None].view(np.uint8), codes[:, 0] | codes[:, 1] << 4])
    return raw.reshape(len(weight), -1)


def write(
    path,
    tensors,
    kind="Q8_0",
    arch="llama",
    *,
    added=0.0,
    paired=True,
    metadata=None,
    kinds=None,
    tokens=VOCABULARY,
):
    """A GGUF file of tensors by transformers' names. kind: of matrices, but for those that kinds
    names. added: to norms. Returns path.
    """
    name_map = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], 64)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{number}" for number in range(tokens)])
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_chat_template("{{ messages }}")
    for key, value in (metadata or {}).items():
        writer.add_string(key, value)
    for name, weight in tensors.items():
        if paired and "q_proj" in name:
            weight = permuted(weight, HEADS)
        if paired and "k_proj" in name:
            weight = permuted(weight, KV_HEADS)
        if name.endswith("norm.weight"):
            weight = weight + np.float32(added)
        called = name_map.get_name(name, try_suffixes=(".weight", ".bias")) or name
        type_ = Type[(kinds or {}).get(name, kind)] if weight.ndim > 1 else Type.F32
        weight = np.ascontiguousarray(weight, np.float32)
        data = iq4_nl(weight) if type_ == Type.IQ4_NL else quantize(weight, type_)
        writer.add_tensor(called, data, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
