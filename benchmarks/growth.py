"""What each level costs for a parameter, from layers of 0.5B to those of 70B: CPU seconds and
memory of audits of one layer.

Each audit is a fresh process of the `shadow` command, with no cache. What it takes to start, that
of an audit of one tiny matrix, is taken off its CPU time. --others-python adds WeightWatcher and
modeldelta, whose imports are counted too.

The weights are made up but not white: a spectrum that decays along the short side, and a few strong
directions. tuned is base plus an update of relative norm 0.01, half of its energy in rank 8 and
half in noise. Both are bfloat16. Each tensor is drawn by its own generator and written block by
block, so that a layer of 70B takes a few hundred MB of memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Annotated

import torch
import typer
from processes import Usage, clean_environment, run_measured
from rich.filesize import decimal
from torch import Tensor

HERE = Path(__file__).parent
SHADOW = Path(sys.executable).parent / "shadow"
LEVELS = {  # options of `shadow audit`
    "norms": ("--level", "norms"),
    "sketch, delta": ("--level", "sketch", "--subjects", "delta"),
    "sketch": ("--level", "sketch"),
    "full, delta": ("--subjects", "delta"),
    "full": (),
}
OTHERS: dict[str, tuple[str | Path, ...]] = {  # what Python runs, before the two sides
    "weightwatcher": (HERE / "weightwatcher_steps.py",),
    "modeldelta": ("-m", "modeldelta"),  # spectra of deltas only
}
WEIGHTS = "model-00001-of-00001.safetensors"  # of each side

BLOCK_ROWS = 1 << 14  # rows that are in memory at once
STANDARD_DEVIATION = 0.02
DECAY = 0.3  # the k-th coordinate of the short side is scaled by k^-DECAY
SPIKES, SPIKE_ENERGY = 16, 0.1  # strong directions of a base matrix and their share of its energy
RELATIVE_NORM = 1e-2  # of the update
RANK, LOW_RANK_ENERGY = 8, 0.5  # of the update, and the share of its energy in the low-rank part

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """The sizes of a decoder of the Qwen2 architecture."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head: int  # width of one
    vocabulary: int
    is_tied: bool = False  # whether the head is the embedding, and not stored


MODELS = {
    "0.5B": Model(896, 4864, 14, 2, 64, 151936, is_tied=True),
    "7B": Model(3584, 18944, 28, 4, 128, 152064),
    "32B": Model(5120, 27648, 40, 8, 128, 152064),
    "70B": Model(8192, 28672, 64, 8, 128, 128256),
}
EXPERTS = "60,000 experts"
TINY: dict[str, Shape] = {"model.layers.0.mlp.up_proj.weight": (32, 32)}


def shapes_of(size: str) -> dict[str, Shape]:
    """Return the tensors of one layer."""
    if size == EXPERTS:
        return {
            f"model.layers.0.mlp.experts.{expert}.{part}_proj.weight": shape
            for expert in range(20_000)
            for part, shape in (("gate", (32, 128)), ("up", (32, 128)), ("down", (128, 32)))
        }
    model = MODELS[size]
    hidden, intermediate, kv = model.hidden, model.intermediate, model.kv_heads * model.head
    layer: dict[str, Shape] = {
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
    return {f"model.layers.0.{name}": shape for name, shape in layer.items()}


def config(model: Model) -> dict[str, object]:
    """Return the config.json of such a model with one layer."""
    return {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
        "hidden_size": model.hidden, "intermediate_size": model.intermediate,
        "num_attention_heads": model.heads, "num_key_value_heads": model.kv_heads,
        "num_hidden_layers": 1, "vocab_size": model.vocabulary, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "tie_word_embeddings": model.is_tied, "torch_dtype": "bfloat16",
    }  # fmt: skip


def generator(name: str) -> torch.Generator:
    """Return a generator of its own for each tensor, whatever was drawn before."""
    digest = hashlib.sha256(f"0\t{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def matrix_blocks(name: str, shape: Shape) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (base, tuned) of a matrix (rows, cols) in bfloat16, BLOCK_ROWS rows at a time."""
    rows, cols = shape
    draw = generator(name)
    size = STANDARD_DEVIATION * math.sqrt(rows * cols)  # the expected Frobenius norm of the base
    scale = torch.arange(1, min(shape) + 1).pow(-DECAY)
    scale *= math.sqrt(1 - SPIKE_ENERGY) * STANDARD_DEVIATION / scale.square().mean().sqrt()

    def low_rank(strengths: Tensor, norm: float) -> tuple[Tensor, Tensor]:
        """Draw factors of a matrix of that expected norm, of singular values near strengths."""
        weights = strengths / strengths.norm() * norm / math.sqrt(rows)
        left = torch.randn(rows, len(strengths), generator=draw) * weights
        return left, torch.randn(len(strengths), cols, generator=draw) / math.sqrt(cols)

    left, right = low_rank(torch.arange(1, SPIKES + 1).pow(-0.5), size * math.sqrt(SPIKE_ENERGY))
    change = RELATIVE_NORM * size
    up, down = low_rank(torch.ones(RANK), change * math.sqrt(LOW_RANK_ENERGY))
    noise = change * math.sqrt(1 - LOW_RANK_ENERGY) / math.sqrt(rows * cols)
    for start in range(0, rows, BLOCK_ROWS):
        part = slice(start, min(start + BLOCK_ROWS, rows))
        base = torch.randn(part.stop - start, cols, generator=draw)
        base *= scale[part, None] if rows <= cols else scale
        stored = base.addmm_(left[part], right).bfloat16()
        tuned = torch.randn(base.shape, generator=draw).mul_(noise)
        yield stored, tuned.addmm_(up[part], down).add_(stored).bfloat16()


def vector_blocks(name: str, shape: Shape) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (base, tuned) of a norm's weight, around 1, or of a bias, around 0, in bfloat16."""
    draw = generator(name)
    base = torch.randn(shape, generator=draw) * 0.1 + float(name.endswith("norm.weight"))
    stored = base.bfloat16()
    yield stored, (stored + torch.randn(shape, generator=draw) * 0.1 * RELATIVE_NORM).bfloat16()


def header(shapes: dict[str, Shape]) -> bytes:
    """Return the beginning of a safetensors file of bfloat16 tensors."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8, as the library writes them
    return len(text).to_bytes(8, "little") + text


def write_pair(sides: Sequence[Path], shapes: dict[str, Shape], settings: object) -> None:
    """Write a pair of these tensors and this config.json, both sides at once, block by block."""
    index = {"metadata": {}, "weight_map": dict.fromkeys(shapes, WEIGHTS)}
    for side in sides:
        side.mkdir(parents=True)
        (side / "config.json").write_text(json.dumps(settings))
        (side / "model.safetensors.index.json").write_text(json.dumps(index))
        (side / WEIGHTS).write_bytes(header(shapes))
    with (sides[0] / WEIGHTS).open("ab") as base, (sides[1] / WEIGHTS).open("ab") as tuned:
        for name, shape in shapes.items():
            draw = matrix_blocks if len(shape) == 2 else vector_blocks
            for blocks in draw(name, shape):
                for file, block in zip((base, tuned), blocks, strict=True):
                    file.write(block.contiguous().view(torch.uint8).numpy().data)


def least(command: Callable[[Path], Sequence[str | Path]], repeats: int) -> Usage:
    """Return the cheapest of several runs of a command that is given a path for its results."""
    runs = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            environment = clean_environment() | {"SHADOW_NO_CACHE": "1"}
            log = Path(folder) / "log"
            runs.append(run_measured(command(Path(folder) / "out"), environment, log))
    return min(runs, key=attrgetter("cpu"))


def main(
    size: Annotated[
        list[str] | None, typer.Option(help=f"Only these: {', '.join((*MODELS, EXPERTS))}.")
    ] = None,
    level: Annotated[list[str] | None, typer.Option(help="Only these levels.")] = None,
    jobs: Annotated[int, typer.Option(min=1)] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Of which the least counts.")] = 1,
    others_python: Annotated[
        Path | None,
        typer.Option(help="Of an environment with weightwatcher==0.7.7, modeldelta==0.4.4, torch."),
    ] = None,
) -> None:
    """Measure, and print a line for each size and level."""
    with tempfile.TemporaryDirectory() as folder:
        pair = Path(folder) / "pair"
        sides = pair / "base", pair / "tuned"

        def cost(name: str, repeats: int) -> Usage:
            def command(out: Path) -> Sequence[str | Path]:
                if name in OTHERS and others_python:
                    return [others_python, *OTHERS[name], *sides]
                more = ("--quiet", "--jobs", str(jobs), *LEVELS[name])
                return [SHADOW, "audit", *sides, "-o", out, *more]

            return least(command, repeats)

        write_pair(sides, TINY, config(MODELS["0.5B"]))
        start = cost("full", 3).cpu
        print(f"start: {start:.2f} CPU s")
        for one in size or (*MODELS, EXPERTS):
            shutil.rmtree(pair)
            experts: dict[str, object] = {"model_type": "qwen3_moe", "num_experts": 20_000}
            shapes = shapes_of(one)
            write_pair(sides, shapes, config(MODELS[one]) if one in MODELS else experts)
            millions = sum(map(math.prod, shapes.values())) / 1e6
            for name in level or (*LEVELS, *(OTHERS if others_python else ())):
                used = cost(name, repeats)
                each = max(0.0, used.cpu - start) / millions
                print(
                    f"{one}, {millions:.0f} M parameters, {name}: {used.cpu:.1f} CPU s,"
                    f" {each:.3f} a million, {used.wall:.1f} s, {decimal(used.anonymous)}",
                    flush=True,
                )


if __name__ == "__main__":
    typer.run(main)
