"""Write a checkpoint pair DIR/base, DIR/tuned with the names and shapes of Qwen2.5-0.5B, or of a
larger model: `--model 7B --layers 8` takes 12 GB with both sides.

The weights are made up but not white: a spectrum that decays along the short side, and a few strong
directions. tuned is base plus an update of relative norm 0.01, half of its energy in rank 8 and
half in noise. Both are bfloat16 in shards with an index and a config.json, as `transformers` would
save them. Each tensor is drawn by its own generator and written block by block, so that a pair of 2
GB takes a few hundred MB of memory, and so that `--layers 2` holds the same numbers as the first
two layers of the whole.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import torch
import typer
from torch import Tensor


@dataclass(frozen=True)
class Model:
    """The sizes of a decoder of the Qwen2 architecture."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head: int  # width of one
    vocabulary: int
    layers: int
    tied: bool = False  # whether the head is the embedding, and not stored


MODELS = {
    "0.5B": Model(896, 4864, 14, 2, 64, 151936, 24, tied=True),
    "7B": Model(3584, 18944, 28, 4, 128, 152064, 28),
    "32B": Model(5120, 27648, 40, 8, 128, 152064, 64),
    "70B": Model(8192, 28672, 64, 8, 128, 128256, 80),
}
SMALL = MODELS["0.5B"]
LAYERS = SMALL.layers
SIDES = ("base", "tuned")
BLOCK_ROWS = 1 << 14  # rows that are in memory at once

STANDARD_DEVIATION = 0.02
DECAY = 0.3  # the k-th coordinate of the short side is scaled by k^-DECAY
SPIKES, SPIKE_ENERGY = 16, 0.1  # strong directions of a base matrix and their share of its energy
RELATIVE_NORM = 1e-2  # of the update
RANK, LOW_RANK_ENERGY = 8, 0.5  # of the update, and the share of its energy in the low-rank part

Shape = tuple[int, ...]


def layer(model: Model = SMALL) -> dict[str, Shape]:
    """Names and shapes of one block, without its number."""
    hidden, intermediate, kv = model.hidden, model.intermediate, model.kv_heads * model.head
    return {
        "input_layernorm.weight": (hidden,),
        "mlp.down_proj.weight": (hidden, intermediate),
        "mlp.gate_proj.weight": (intermediate, hidden),
        "mlp.up_proj.weight": (intermediate, hidden),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.k_proj.bias": (kv,),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "self_attn.q_proj.bias": (hidden,),
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.v_proj.bias": (kv,),
        "self_attn.v_proj.weight": (kv, hidden),
    }


def tensors(layers: int, model: Model = SMALL) -> dict[str, Shape]:
    """Names and shapes in the file's order."""
    block, ends = layer(model), (model.vocabulary, model.hidden)
    return {
        "model.embed_tokens.weight": ends,
        **{f"model.layers.{i}.{name}": block[name] for i in range(layers) for name in block},
        "model.norm.weight": (model.hidden,),
        **({} if model.tied else {"lm_head.weight": ends}),
    }


def config(layers: int, model: Model = SMALL) -> dict[str, object]:
    """The config.json of such a model with that many layers."""
    return {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
        "hidden_size": model.hidden, "intermediate_size": model.intermediate,
        "num_attention_heads": model.heads, "num_key_value_heads": model.kv_heads,
        "num_hidden_layers": layers, "vocab_size": model.vocabulary, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "tie_word_embeddings": model.tied, "torch_dtype": "bfloat16",
    }  # fmt: skip


def generator(*key: object) -> torch.Generator:
    """A generator of its own for each key, whatever was drawn before."""
    digest = hashlib.sha256("\t".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def matrix_blocks(name: str, shape: Shape, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(base, tuned) of a matrix (rows, cols) in bfloat16, BLOCK_ROWS rows at a time."""
    rows, cols = shape
    draw = generator(seed, name)
    size = STANDARD_DEVIATION * math.sqrt(rows * cols)  # the expected Frobenius norm of the base
    scale = torch.arange(1, min(shape) + 1).pow(-DECAY)
    scale *= math.sqrt(1 - SPIKE_ENERGY) * STANDARD_DEVIATION / scale.square().mean().sqrt()
    strengths = torch.arange(1, SPIKES + 1).pow(-0.5)
    left, right = _low_rank(shape, strengths, size * math.sqrt(SPIKE_ENERGY), draw)
    change = RELATIVE_NORM * size
    up, down = _low_rank(shape, torch.ones(RANK), change * math.sqrt(LOW_RANK_ENERGY), draw)
    noise = change * math.sqrt(1 - LOW_RANK_ENERGY) / math.sqrt(rows * cols)
    for start in range(0, rows, BLOCK_ROWS):
        part = slice(start, min(start + BLOCK_ROWS, rows))
        base = torch.randn(part.stop - start, cols, generator=draw)
        base *= scale[part, None] if rows <= cols else scale
        stored = base.addmm_(left[part], right).bfloat16()
        tuned = torch.randn(base.shape, generator=draw).mul_(noise)
        yield stored, tuned.addmm_(up[part], down).add_(stored).bfloat16()


def _low_rank(
    shape: Shape, strengths: Tensor, norm: float, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Factors (rows, r), (r, cols) of a matrix of that expected norm and of singular values close
    to the strengths.
    """
    rows, cols = shape
    left = torch.randn(rows, len(strengths), generator=draw) * (
        strengths / strengths.norm() * norm / math.sqrt(rows)
    )
    return left, torch.randn(len(strengths), cols, generator=draw) / math.sqrt(cols)


def vector_blocks(name: str, shape: Shape, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(base, tuned) of a norm's weight, around 1, or of a bias, around 0, in bfloat16."""
    draw = generator(seed, name)
    base = torch.randn(shape, generator=draw) * 0.1 + float(name.endswith("norm.weight"))
    stored = base.bfloat16()
    yield stored, (stored + torch.randn(shape, generator=draw) * 0.1 * RELATIVE_NORM).bfloat16()


def shard_names(shapes: dict[str, Shape], count: int) -> list[dict[str, Shape]]:
    """The tensors cut into at most count runs of about equal size, in order."""
    shards: list[dict[str, Shape]] = [{} for _ in range(count)]
    total, so_far = sum(map(math.prod, shapes.values())), 0
    for name, shape in shapes.items():
        shards[so_far * count // total][name] = shape
        so_far += math.prod(shape)
    return [shard for shard in shards if shard]


def header(shapes: dict[str, Shape]) -> bytes:
    """The beginning of a safetensors file of bfloat16 tensors."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8, as the library writes them
    return len(text).to_bytes(8, "little") + text


def write_shard(files: Sequence[BinaryIO], shapes: dict[str, Shape], seed: int) -> None:
    """Write one shard of both sides at once, block by block."""
    for file in files:
        file.write(header(shapes))
    for name, shape in shapes.items():
        draw = matrix_blocks if len(shape) == 2 else vector_blocks
        for blocks in draw(name, shape, seed):
            for file, block in zip(files, blocks, strict=True):
                file.write(block.contiguous().view(torch.uint8).numpy().data)


def write_tensors(
    folder: Path, shapes: dict[str, Shape], settings: dict[str, object], seed: int, count: int
) -> None:
    """Write a pair of these tensors and this config.json."""
    sides = [folder / side for side in SIDES]
    shards = shard_names(shapes, count)
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for side in sides:
        side.mkdir(parents=True, exist_ok=True)
        (side / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        where = {tensor: name for name, own in zip(names, shards, strict=True) for tensor in own}
        index = {
            "metadata": {"total_size": 2 * sum(map(math.prod, shapes.values()))},
            "weight_map": where,
        }
        (side / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    for name, own in zip(names, shards, strict=True):
        with (sides[0] / name).open("wb") as base, (sides[1] / name).open("wb") as tuned:
            write_shard((base, tuned), own, seed)


def main(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Of base and tuned.")],
    layers: Annotated[int | None, typer.Option(help="Blocks; fewer for a quick run.")] = None,
    model: Annotated[str, typer.Option(help=f"One of {', '.join(MODELS)}.")] = "0.5B",
    seed: Annotated[int, typer.Option(help="Another seed makes other weights.")] = 0,
    shards: Annotated[int, typer.Option(help="Files a side, at most.")] = 2,
) -> None:
    """Write a synthetic pair of checkpoints."""
    sizes = MODELS[model]
    layers = min(layers or sizes.layers, sizes.layers)
    shapes = tensors(layers, sizes)
    write_tensors(folder, shapes, config(layers, sizes), seed, shards)
    print(f"{folder}: {layers} layers, {sum(map(math.prod, shapes.values())):,} parameters a side")


if __name__ == "__main__":
    typer.run(main)
