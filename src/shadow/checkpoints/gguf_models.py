"""What a GGUF file holds in transformers' terms: names and shapes of tensors, config, tokenizer.

llama.cpp's converter renames tensors, stores rows of q and k in pairs for some architectures, and
adds 1 to some norms. Names are turned back by the tables of the `gguf` package, the rest by the
lists below, which follow the classes of the converter.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial

from shadow.checkpoints.gguf_files import GgufHeader, Texts, Value
from shadow.checkpoints.safetensors_files import Packing, TensorInfo
from shadow.dtypes import FLOATS, INTEGERS
from shadow.errors import FileError

KIND = "gguf"  # of packings
# Architectures whose rotary embeddings turn neighbouring rows in llama.cpp, and halves of a head in
# transformers: the converter permutes q and k.
PAIRED = frozenset({
    "llama", "llama-embed", "llada", "deci", "baichuan", "internlm2", "minicpm", "xverse", "olmo",
    "arctic", "deepseek", "granite", "granitemoe", "granitehybrid", "chameleon", "bailingmoe",
    "smollm3", "arcee", "mistral3",
})  # fmt: skip
# whose norms multiply by 1 + weight: the converter adds the 1
ADDED = frozenset({
    "gemma", "gemma2", "gemma3", "gemma-embedding", "nemotron", "qwen3next", "qwen35", "qwen35moe",
})  # fmt: skip
# what the converter rearranges in ways that are not undone: state spaces, linear attention, and
# fused q, k and v
REARRANGED = re.compile(r"blk\.\{bid\}\.ssm_\w+")
ALSO_REARRANGED = {
    **dict.fromkeys(("qwen3next", "qwen35", "qwen35moe"), ("attn_qkv", "attn_gate")),
    **dict.fromkeys(("bloom", "falcon", "gptneox"), ("attn_qkv",)),
}
# what llama.cpp computes from the config and stores, and transformers computes when it loads
COMPUTED = re.compile(r"(rope_freqs|rope_factors_(long|short))(\.weight)?")
# names that the tables list for another model of the architecture first
OWN = {
    "phi3": {
        "blk.{bid}.ffn_up": "model.layers.{bid}.mlp.gate_up_proj",
        "blk.{bid}.attn_qkv": "model.layers.{bid}.self_attn.qkv_proj",
    }
}
# whose Linear layers transformers stores transposed
TRANSPOSED = frozenset({"gpt2"})
MODEL_TYPES = {  # what transformers calls an architecture where that is another word
    "gptneox": "gpt_neox", "command-r": "cohere", "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe",
    "qwen2vl": "qwen2_vl", "qwen3vl": "qwen3_vl", "gemma3": "gemma3_text", "phi2": "phi",
    "deepseek2": "deepseek_v2", "starcoder": "gpt_bigcode", "glm4moe": "glm4_moe",
}  # fmt: skip
# keys of the metadata, behind the name of the architecture, and of config.json
KEYS = {
    "block_count": "num_hidden_layers", "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.sliding_window": "sliding_window", "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta", "vocab_size": "vocab_size", "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "attention.q_lora_rank": "q_lora_rank", "attention.kv_lora_rank": "kv_lora_rank",
}  # fmt: skip
# how names of an architecture begin in transformers, the first that the tables know
STYLES = {
    "gpt2": ("transformer.",), "gptj": ("transformer.",), "starcoder": ("transformer.",),
    "falcon": ("transformer.",), "qwen": ("transformer.",), "jais": ("transformer.",),
    "mpt": ("transformer.blocks.", "transformer."), "gptneox": ("gpt_neox.",),
    "bert": ("encoder.layer.", "embeddings."), "bloom": ("h.",), "dbrx": ("transformer.blocks.",),
}  # fmt: skip
USUAL = ("model.layers.{bid}.", "model.", "layers.{bid}.", "lm_head")
ODD = re.compile(
    r"model\.(layers\.layers|transformer|decoder|vision\w*)\.|.*_no_perm$|.*_expert_|.*\.(q|k|query|key)_layernorm$"
)
ARCHITECTURE, TOKENIZER = "general.architecture", "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"
TOKENS, MERGES = f"{TOKENIZER}tokens", f"{TOKENIZER}merges"


@dataclass(frozen=True)
class GgufModel:
    """A model from one GGUF file, or from the parts of a split one."""

    tensors: Mapping[str, TensorInfo]  # as transformers names them
    config: Mapping[str, object]  # as config.json would say it
    files: Callable[[], Mapping[str, bytes]]  # small files that a folder of it would have


def model_of(headers: Iterable[GgufHeader], shard: str) -> GgufModel:
    """The model of the headers of one file, or of all its parts in order. shard: the first's name.

    Raises FileError for an architecture that the `gguf` package does not know.
    """
    headers = list(headers)
    metadata = headers[0].metadata
    architecture = metadata.get(ARCHITECTURE)
    if not isinstance(architecture, str):
        raise FileError(f"{shard}: it does not name its architecture", "convert the model again")
    names = _names(architecture, shard)
    of_q = metadata.get(f"{architecture}.attention.head_count")
    of_k = metadata.get(f"{architecture}.attention.head_count_kv", of_q)
    heads = {"q": of_q, "k": of_k} if architecture in PAIRED else {}
    tensors: dict[str, TensorInfo] = {}
    for info in (info for header in headers for info in header.tensors.values()):
        found = _translated(info, architecture, names, heads)
        if found.name in tensors:
            raise FileError(f"{shard}: {found.name!r} is there twice", "fetch the file again")
        tensors[found.name] = found
    tied = not any("output.weight" in header.tensors for header in headers)
    config = _config(metadata, architecture, tied=tied)
    return GgufModel(tensors, config, partial(_files, metadata, config))


def _names(architecture: str, shard: str) -> dict[str, str]:
    """`blk.{bid}.attn_q` -> `model.layers.{bid}.self_attn.q_proj`, of an architecture."""
    from gguf import MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES, TensorNameMap

    kinds = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}
    if architecture not in kinds:
        raise FileError(
            f"{shard}: the architecture {architecture[:60]!r} is unknown to the gguf package",
            "update it with: pip install -U gguf",
        )
    own = TensorNameMap.arch_block_mappings_cfg.get(kinds[architecture], {})
    tables = (own, TensorNameMap.block_mappings_cfg, TensorNameMap.mappings_cfg)
    names: dict[str, str] = {}
    for tensor in MODEL_TENSORS[kinds[architecture]]:
        known = next((table[tensor] for table in tables if tensor in table), ())
        if known and not COMPUTED.fullmatch(TENSOR_NAMES[tensor]):
            names[TENSOR_NAMES[tensor]] = _chosen(known, architecture)
    return names | OWN.get(architecture, {})


def _chosen(known: Iterable[str], architecture: str) -> str:
    """Of all names that converters meet for a tensor, the one that transformers uses today."""
    plain = [name for name in known if not ODD.match(name)] or list(known)
    for style in (*STYLES.get(architecture, ()), *USUAL):
        for name in plain:
            if name.startswith(style):
                return name
    return plain[0]


def _translated(
    info: TensorInfo, architecture: str, names: Mapping[str, str], heads: Mapping[str, Value]
) -> TensorInfo:
    """An entry of a GGUF file by its name in transformers, with what is to be undone. heads: of q
    and k where rows of theirs are stored in pairs, a number or one a layer.
    """
    stem, dot, kind = info.name.rpartition(".")
    if kind not in ("weight", "bias"):
        stem, dot, kind = info.name, "", ""
    number = next((part for part in stem.split(".") if part.isdecimal()), "")
    pattern = ".".join("{bid}" if part == number else part for part in stem.split("."))
    known = names.get(pattern)
    if known and known.endswith("e_score_correction"):
        dot = "_"  # a parameter of its own in transformers
    name = f"{known.replace('{bid}', number)}{dot}{kind}" if known else info.name
    found, last = replace(info, name=name), pattern.rpartition(".")[2]
    if REARRANGED.fullmatch(pattern) or last in ALSO_REARRANGED.get(architecture, ()):
        return replace(found, problem="llama.cpp stores it in another order than transformers")
    paired: int | None = 0
    if heads and pattern in ("blk.{bid}.attn_q", "blk.{bid}.attn_k"):
        paired = _count(heads[pattern[-1]], number, info)
    if paired is None:
        return replace(found, problem="the file does not say how many heads its rows are of")
    if info.dtype in INTEGERS or not _is_decoded(info.dtype):
        return found
    added = int(architecture in ADDED and info.name.endswith("_norm.weight") and "ssm_" not in stem)
    if info.dtype not in FLOATS or paired or added:
        found = replace(found, packing=Packing(KIND, _raw(info), facts=(paired, added)))
    if architecture in TRANSPOSED and len(info.shape) == 2 and pattern.startswith("blk."):
        rows, cols = info.shape
        found = replace(found, shape=(cols, rows), strides=(1, cols))
    return found


def _count(said: Value, layer: str, info: TensorInfo) -> int | None:
    """Heads of a layer; None where they are not said, or do not fit its rows."""
    if isinstance(said, list):
        said = said[int(layer)] if len(layer) < 9 and int(layer) < len(said) else None
    if type(said) is not int or said < 1 or not info.shape or info.shape[0] % (2 * said):
        return None
    return said


@cache
def _is_decoded(dtype: str) -> bool:
    """Whether the numbers of a type can be had."""
    from gguf import quants

    return dtype in FLOATS or "dequantize_blocks" in vars(getattr(quants, dtype, object))


def _raw(info: TensorInfo) -> TensorInfo:
    """Rows and columns, or bytes, of a tensor as it is stored."""
    if info.dtype in FLOATS:
        return replace(info, shape=(math.prod(info.shape[:1]), math.prod(info.shape[1:])))
    rows = math.prod(info.shape[:-1])
    return replace(info, dtype="U8", shape=(rows, (info.end - info.start) // max(1, rows)))


def _config(metadata: Mapping[str, Value], architecture: str, *, tied: bool) -> dict[str, object]:
    """What config.json would say."""
    said = {word: metadata.get(f"{architecture}.{key}") for key, word in KEYS.items()}
    config: dict[str, object] = {
        "model_type": MODEL_TYPES.get(architecture, architecture.replace("-", "_")),
        **{w: value for w, value in said.items() if value is not None and type(value) is not Texts},
    }
    if isinstance(tokens := metadata.get(TOKENS), Texts):
        config.setdefault("vocab_size", tokens.count)
    if "num_experts" in config:
        config["num_local_experts"] = config["num_experts"]
    if scaling := _under(metadata, f"{architecture}.rope.scaling."):
        config["rope_scaling"] = scaling
    return {**config, "tie_word_embeddings": tied}


def _files(metadata: Mapping[str, Value], config: Mapping[str, object]) -> dict[str, bytes]:
    """config.json, tokenizer and chat template, from the metadata."""
    files: dict[str, object] = {"config.json": config}
    tokens, merges = metadata.get(TOKENS), metadata.get(MERGES)
    if isinstance(tokens, Texts):
        model: dict[str, object] = {"vocab": {token: at for at, token in enumerate(tokens.read())}}
        if isinstance(merges, Texts):
            model["merges"] = merges.read()
        files["tokenizer.json"] = {"model": model}
    if settings := _under(metadata, TOKENIZER):
        files["tokenizer_config.json"] = settings
    found = {name: json.dumps(content).encode() for name, content in files.items()}
    if isinstance(template := metadata.get(TEMPLATE), str):
        found["chat_template.jinja"] = template.encode()
    return found


def _under(metadata: Mapping[str, Value], start: str) -> dict[str, object]:
    """The single values of keys that begin so, without it."""
    return {
        key.removeprefix(start): value
        for key, value in metadata.items()
        if key.startswith(start) and isinstance(value, str | int | float)
    }
