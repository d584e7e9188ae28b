"""Checkpoints whose contents are known, for tests and benchmarks: written tensor by tensor, saved
by transformers, trained from each other, packed, in shards, as adapters and GGUF files, damaged.

quantisers.py quantises their matrices.
"""

import copy
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

UP = "model.layers.{}.mlp.up_proj.weight"
LLAMA = {"model_type": "llama"}


# files


def write(
    folder: Path, tensors: Tensors, config: dict | None = None, name: str = "model.safetensors"
) -> Path:
    """A checkpoint of one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def sharded(folder: Path, tensors: Tensors, shards: int, config: dict = LLAMA) -> Path:
    """A checkpoint of so many shards, cut in the order of its tensors."""
    folder.mkdir(parents=True)
    names, weight_map = list(tensors), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        save_file({name: tensors[name].contiguous() for name in mine}, folder / file)
        weight_map |= dict.fromkeys(mine, file)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def adapter(
    folder: Path,
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]],
    extra: Tensors | None = None,
    **config: object,
) -> Path:
    """A LoRA adapter of rank 4 at scale 2. pairs: (B, A) by matrix; extra: by their own names."""
    factors = dict(extra or {})
    for name, (b, a) in pairs.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        factors |= {f"{module}.lora_B.weight": b, f"{module}.lora_A.weight": a}
    write(folder, factors, name="adapter_model.safetensors")
    recorded = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}
    (folder / "adapter_config.json").write_text(json.dumps(recorded))
    return folder


def edit(folder: Path, name: str = "config.json", **keys: object) -> None:
    """Change keys of a file of JSON, which need not be there."""
    path = folder / name
    content = (json.loads(path.read_text()) if path.exists() else {}) | keys
    path.write_text(json.dumps(content))


# toys of few matrices


def matrices(seed: int, layers: int = 2, size: int = 8) -> Tensors:
    """The weights of a toy: a square matrix a layer."""
    generator = torch.Generator().manual_seed(seed)
    return {
        UP.format(layer): torch.randn(size, size, generator=generator) for layer in range(layers)
    }


def gaussian(seed: int, layers: int, width: int = 32) -> Tensors:
    """All matrices of a small decoder; the MLP is half as wide again."""
    generator = torch.Generator().manual_seed(seed)
    middle = width + width // 2
    shapes = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"}
    shapes |= dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (middle, width))
    shapes["mlp.down_proj"] = (width, middle)
    made = {
        f"model.layers.{layer}.{module}.weight": torch.randn(*shape, generator=generator)
        for layer in range(layers)
        for module, shape in shapes.items()
    }
    return made | {"model.embed_tokens.weight": torch.randn(64, width, generator=generator)}


def toy(folder: Path, seed: int, layers: int = 2, size: int = 8) -> Path:
    """A checkpoint of the matrices of a seed."""
    return write(folder, matrices(seed, layers, size), LLAMA)


def perturbed(source: Path, target: Path, size: float = 1e-2, seed: int = 0) -> Path:
    """A copy of a one-file checkpoint with noise of relative size on every tensor."""
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(source / "model.safetensors")
    changed = {}
    for name, one in tensors.items():
        step = size * one.float().std(correction=0).clamp_min(0.01)
        noise = step * torch.randn(one.shape, generator=generator)
        changed[name] = (one.float() + noise).to(one.dtype)
    return write(target, changed, json.loads((source / "config.json").read_text()))


# models that transformers builds


SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
GATED = {**SIZES, "intermediate_size": 96, "num_key_value_heads": 2}
KINDS = {
    "llama": ("LlamaConfig", GATED),
    "qwen2": ("Qwen2Config", {**GATED, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**GATED, "head_dim": 16}),
    "mistral": ("MistralConfig", GATED),
    "gemma2": ("Gemma2Config", {**GATED, "head_dim": 16}),
    "gemma3_text": ("Gemma3TextConfig", {**GATED, "head_dim": 16}),
    "olmo2": ("Olmo2Config", GATED),
    "smollm3": ("SmolLM3Config", {**GATED, "pad_token_id": 0}),
    "gpt2": ("GPT2Config", {
        "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 32,
    }),
    "gpt_neox": ("GPTNeoXConfig", {**SIZES, "intermediate_size": 96}),
}  # fmt: skip


LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
FAMILIES = {
    kind: (entry.get("auto", "AutoModelForCausalLM"), entry["config"], entry["with"])
    for kind, entry in yaml.load(
        (Path(__file__).parent / "families.yaml").read_text(), LOADER
    ).items()
    if not kind.startswith(".")
}


def built(kind: str, seed: int = 0, **more: object):
    """A tiny model of a kind or family, as transformers builds it; more: of its config."""
    import transformers

    transformers.logging.disable_progress_bar()
    auto, name, sizes = FAMILIES.get(kind) or ("AutoModelForCausalLM", *KINDS[kind])
    torch.manual_seed(seed)
    return getattr(transformers, auto).from_config(
        getattr(transformers, name)(**copy.deepcopy(sizes) | more)
    )


def saved(kind: str, folder: Path, seed: int = 0, **more: object) -> Path:
    """The same, saved by transformers."""
    built(kind, seed, **more).save_pretrained(folder)
    return folder


def saved_twice(kind: str, folder: Path) -> tuple[Path, Path]:
    """One model in the layout of its files, and in the one that transformers has in memory."""
    model, file, memory = built(kind), folder / "file", folder / "memory"
    model.save_pretrained(file)
    model.save_pretrained(memory, save_original_format=False)
    return file, memory


def tiny_llava(folder):
    """A LLaVA of a tiny Llama and a tiny CLIP tower, and these two, saved by transformers."""
    import transformers

    def sized(hidden, inner):
        heads = {"num_hidden_layers": 2, "num_attention_heads": 4}
        return {"hidden_size": hidden, "intermediate_size": inner, **heads}

    torch.manual_seed(0)
    text = transformers.LlamaConfig(**sized(32, 48), vocab_size=64)
    sizes = sized(24, 40)
    vision = transformers.CLIPVisionConfig(**sizes, image_size=16, patch_size=8, projection_dim=24)
    words = {**sizes, "vocab_size": 50, "max_position_embeddings": 8}
    both = transformers.CLIPConfig(
        text_config=words, vision_config=vision.to_dict(), projection_dim=16
    )
    language, clip = transformers.LlamaForCausalLM(text), transformers.CLIPModel(both)
    llava = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(text_config=text, vision_config=vision)
    )
    llava.model.language_model.load_state_dict(language.model.state_dict())
    llava.lm_head.load_state_dict(language.lm_head.state_dict())
    llava.model.vision_tower.load_state_dict(clip.vision_model.state_dict(), strict=False)
    for name, model in (("language", language), ("clip", clip), ("llava", llava)):
        model.save_pretrained(folder / name)
    path = folder / "llava" / "model.safetensors"
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(path)
    for name, tensor in tensors.items():  # the language was trained on, the tower was frozen
        if "language_model" in name or name.startswith("lm_head"):
            tensors[name] = tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, path)
    return folder


# decoders of 64 columns and what can be done to them; numbers of a stream that NumPy promises to
# keep, so that two commits measure the same
DECODER = {
    "model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64,
}  # fmt: skip
LAYER = "model.layers.{}.{}.weight"
HIDDEN, INNER, WORDS = 64, 96, 80
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}  # fmt: skip


def normal(seed: int, *shape: int) -> torch.Tensor:
    """Standard normal numbers of a stream that NumPy promises to keep."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def write_decoder(folder: Path, tensors: Tensors, config: dict | None = None) -> Path:
    return write(folder, tensors, DECODER | (config or {}))


def decoder(layers: int = 2) -> Tensors:
    """A decoder with grouped queries, norms, an embedding and a head, in bfloat16."""
    found = {"model.embed_tokens.weight": normal(1, WORDS, HIDDEN) * 0.05}
    for layer in range(layers):
        for place, (name, shape) in enumerate(SHAPES.items()):
            found[LAYER.format(layer, name)] = (
                normal(10 * layer + place + 2, *shape) / shape[1] ** 0.5
            )
        found[LAYER.format(layer, "input_layernorm")] = 1 + 0.1 * normal(layer + 70, HIDDEN)
        found[LAYER.format(layer, "post_attention_layernorm")] = torch.ones(HIDDEN)
    found["model.norm.weight"] = torch.ones(HIDDEN)
    found["lm_head.weight"] = normal(99, WORDS, HIDDEN) * 0.05
    return {name: tensor.bfloat16() for name, tensor in found.items()}


def tuned(tensors: Tensors, seed: int, *, rank: int, size: float, noise: float) -> Tensors:
    """The tensors after an update of low rank and noise, of sizes relative to each matrix."""
    found = {}
    for place, (name, tensor) in enumerate(tensors.items()):
        change = torch.zeros(tensor.shape)
        if tensor.ndim == 2:
            rows, cols = tensor.shape
            first = 1000 * seed + 3 * place
            low = normal(first, rows, rank) @ normal(first + 1, rank, cols) / rank**0.5
            change = (size * low + noise * normal(first + 2, rows, cols)) * tensor.float().std()
        found[name] = (tensor.float() + change).to(tensor.dtype)
    return found


def fused(tensors: Tensors, into: str, parts: tuple[str, ...]) -> Tensors:
    """Projections put below each other under one name, weights and biases."""
    found = {
        name: one for name, one in tensors.items() if not any(f"{part}." in name for part in parts)
    }
    for name in tensors:
        if parts[0] in name:
            whole = [tensors[name.replace(parts[0], part)] for part in parts]
            found[name.replace(parts[0], into)] = torch.cat(whole)
    return found


def write_experts(here: Path) -> None:
    apart: Tensors = {"model.layers.0.mlp.gate.weight": normal(600, 3, 32)}
    for expert in range(3):
        for place, name in enumerate(("gate_proj", "up_proj", "down_proj")):
            shape = (32, 24) if name == "down_proj" else (24, 32)
            apart[f"model.layers.0.mlp.experts.{expert}.{name}.weight"] = (
                normal(610 + 3 * expert + place, *shape) / 6
            )
    config = {
        "model_type": "qwen3_moe", "num_experts": 3, "hidden_size": 32, "moe_intermediate_size": 24,
    }  # fmt: skip
    write_decoder(here / "experts", apart, config)


# GGUF files: of transformers' names, as llama.cpp's converter makes them


GGUF_HEADS, GGUF_KV_HEADS, GGUF_WIDTH, GGUF_INNER, GGUF_TOKENS, GGUF_LAYERS = 4, 2, 256, 512, 320, 2


OF_LAYER = re.compile(r"layers\.(\d+)\.")
OF_EXPERT = re.compile(r"experts\.(\d+)\.")


def _renumbered(base, units, order):
    of_unit = re.compile(rf"{units}\.(\d+)\.")
    made = {name: one for name, one in base.items() if not of_unit.search(name)}
    for at, number in enumerate(order):
        own = {name: one for name, one in base.items() if f"{units}.{number}." in name}
        made |= {of_unit.sub(f"{units}.{at}.", name): one for name, one in own.items()}
    return made


def layers(*order):
    """The layers of these numbers, one after another."""

    return lambda base: _renumbered(base, "layers", order)


def experts(*order):
    """The experts of these numbers in every layer, and their rows of the router."""

    def change(base):
        routers = {name: one for name, one in base.items() if name.endswith(".gate.weight")}
        return _renumbered(base, "experts", order) | {
            name: one[list(order)] for name, one in routers.items()
        }

    return change


def permuted(weight, heads):
    """Rows of q or k as `LlamaModel.permute` of llama.cpp's converter leaves them."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def gguf_llama(seed=0, heads=GGUF_HEADS, kv_heads=GGUF_KV_HEADS, width=GGUF_WIDTH, scale=0.02):
    """Tensors of a small Llama by transformers' names, float32 with values of BF16."""
    rng = np.random.default_rng(seed)

    def matrix(*shape):
        return bf16(rng.standard_normal(shape).astype(np.float32) * scale)

    keys = width // heads * kv_heads
    tensors = {"model.embed_tokens.weight": matrix(GGUF_TOKENS, width)}
    for layer in range(GGUF_LAYERS):
        at = f"model.layers.{layer}"
        tensors |= {
            f"{at}.input_layernorm.weight": 1 + matrix(width),
            f"{at}.self_attn.q_proj.weight": matrix(width, width),
            f"{at}.self_attn.k_proj.weight": matrix(keys, width),
            f"{at}.self_attn.v_proj.weight": matrix(keys, width),
            f"{at}.self_attn.o_proj.weight": matrix(width, width),
            f"{at}.post_attention_layernorm.weight": 1 + matrix(width),
            f"{at}.mlp.gate_proj.weight": matrix(GGUF_INNER, width),
            f"{at}.mlp.up_proj.weight": matrix(GGUF_INNER, width),
            f"{at}.mlp.down_proj.weight": matrix(width, GGUF_INNER),
        }
    norms = [name for name in tensors if "norm" in name]
    return (
        tensors
        | {name: bf16(tensors[name]) for name in norms}
        | {
            "model.norm.weight": bf16(1 + matrix(width)),
            "lm_head.weight": matrix(GGUF_TOKENS, width),
        }
    )


def bf16(values):
    """Values cut to those of BF16."""
    return (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


def finish_gguf(writer):
    """Write what a GGUFWriter was given."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf(
    path, tensors, kind="Q8_0", arch="llama", *,
    added=0.0, paired=True, metadata=None, kinds=None, tokens=GGUF_TOKENS,
):  # fmt: skip
    """A GGUF file of tensors by transformers' names. kind: of matrices, but for those that kinds
    names. added: to norms. Returns path.
    """
    import gguf
    from quantisers import ggml_blocks

    name_map = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], 64)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(GGUF_LAYERS)
    writer.add_embedding_length(GGUF_WIDTH)
    writer.add_feed_forward_length(GGUF_INNER)
    writer.add_head_count(GGUF_HEADS)
    writer.add_head_count_kv(GGUF_KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{number}" for number in range(tokens)])
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_chat_template("{{ messages }}")
    add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
    for key, value in (metadata or {}).items():
        add[type(value)](key, value)
    for name, weight in tensors.items():
        if paired and "q_proj" in name:
            weight = permuted(weight, GGUF_HEADS)
        if paired and "k_proj" in name:
            weight = permuted(weight, GGUF_KV_HEADS)
        if name.endswith("norm.weight"):
            weight = weight + np.float32(added)
        called = name_map.get_name(name, try_suffixes=(".weight", ".bias")) or name
        of_matrix = (kinds or {}).get(name, kind) if weight.ndim > 1 else "F32"
        type_ = gguf.GGMLQuantizationType[of_matrix]
        writer.add_tensor(called, ggml_blocks(weight, of_matrix), raw_dtype=type_)
    finish_gguf(writer)
    return path


# chains of stages whose order, sizes and directions are known


CHAIN_LAYERS, CHAIN_WIDTH, CHAIN_HIDDEN, CHAIN_WORDS = 4, 96, 160, 128
CHAIN_LAYER = {
    "self_attn.q_proj": (CHAIN_WIDTH, CHAIN_WIDTH), "self_attn.o_proj": (CHAIN_WIDTH, CHAIN_WIDTH),
    "mlp.up_proj": (CHAIN_HIDDEN, CHAIN_WIDTH), "mlp.down_proj": (CHAIN_WIDTH, CHAIN_HIDDEN),
}  # fmt: skip
CHAIN_SHAPES = {
    LAYER.format(layer, name): shape
    for layer in range(CHAIN_LAYERS)
    for name, shape in CHAIN_LAYER.items()
} | {"model.embed_tokens.weight": (CHAIN_WORDS, CHAIN_WIDTH)}
CHAIN_CONFIG = {
    "model_type": "llama", "hidden_size": CHAIN_WIDTH, "num_hidden_layers": CHAIN_LAYERS,
    "tie_word_embeddings": True,
}  # fmt: skip


def drawn(seed: int) -> Tensors:
    """Independent normal entries of standard deviation 1 for every matrix."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in CHAIN_SHAPES.items()
    }


def of_rank(rank: int, seed: int) -> Tensors:
    """Products of two factors, entries of standard deviation 1."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, (rows, cols) in CHAIN_SHAPES.items():
        left, right = (
            torch.randn(size, rank, generator=generator, dtype=torch.float64)
            for size in (rows, cols)
        )
        found[name] = left @ right.T / math.sqrt(rank)
    return found


def added(weights: Tensors, update: Tensors, size: float, only: str = "") -> Tensors:
    """Tensors with an update of so much of their norm, in the matrices whose name has `only`."""
    found = {}
    for name, weight in weights.items():
        step = update[name] * (size * weight.norm() / update[name].norm())
        found[name] = weight + step if only in name else weight.clone()
    return found


def stored(weights: Tensors, dtype: torch.dtype) -> Tensors:
    """The weights as a file of a dtype has them."""
    return {name: weight.to(dtype).double() for name, weight in weights.items()}


def save(folder: Path, weights: Tensors, dtype: torch.dtype) -> Path:
    cast = {name: weight.to(dtype) for name, weight in weights.items()}
    return write(folder, cast, CHAIN_CONFIG)


def plant_stages(folder: Path) -> dict[str, Tensors]:
    """base, sft, dpo and rl below a folder, each trained from the stored one before; returned as
    they are stored.

    sft moves everything by .05, half of its energy in eight directions; dpo everything by .001; rl
    the attention by .01, half of its energy along what dpo did.
    """
    base = stored({name: 0.02 * weight for name, weight in drawn(0).items()}, torch.bfloat16)
    noise, eight = drawn(1), of_rank(8, 2)
    mixed = {
        name: noise[name] / noise[name].norm() + eight[name] / eight[name].norm() for name in noise
    }
    sft = stored(added(base, mixed, 0.05), torch.bfloat16)
    moved, fresh = drawn(3), drawn(4)
    dpo = stored(added(sft, moved, 0.001), torch.bfloat16)
    along = {
        name: moved[name] / moved[name].norm() + fresh[name] / fresh[name].norm() for name in moved
    }
    rl = stored(added(dpo, along, 0.01, "self_attn"), torch.bfloat16)
    stages = {"base": base, "sft": sft, "dpo": dpo, "rl": rl}
    for name, weights in stages.items():
        save(folder / name, weights, torch.bfloat16)
    return stages


def registry(folder: Path, stages: Iterable[str], pairs: Iterable[str]) -> Path:
    """A registry folder with a family `toy` of these stages, which lie in folders beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "toy:", *(f"  {stage}: ../{stage}" for stage in stages), f"  pairs: [{', '.join(pairs)}]",
    ]  # fmt: skip
    (folder / "toy.yaml").write_text("\n".join(lines) + "\n")
    return folder
