"""Does an audit stay within the memory that its plan tells, whatever the shape?

For each shape a pair of made-up checkpoints of one tensor (or an adapter over one), audited by one
worker without the cache in a fresh process. Prints the plan's memory, and the largest anonymous
memory of the process, which is what it holds itself: pages of mapped files are not in it, as the
kernel can drop them. Exit code 1 if a peak is above its plan. --only chooses among the names.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from processes import clean_environment, run_measured
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from safetensors.torch import save_file

SHADOW = Path(sys.executable).parent / "shadow"
LAYER = "model.layers.0"
CHUNK = 1 << 24  # entries that are drawn at a time
RANK = 64  # of the adapter
GROUPS = 2  # of the fused projection


@dataclass(frozen=True)
class Case:
    """One tensor of a pair."""

    tensor: str
    shape: tuple[int, ...]
    base: torch.dtype = torch.bfloat16
    tuned: torch.dtype = torch.bfloat16
    is_adapter: bool = False
    more: tuple[str, ...] = ()  # options


UP, DOWN = f"{LAYER}.mlp.up_proj.weight", f"{LAYER}.mlp.down_proj.weight"
CASES = {
    "a vector": Case("model.norm.weight", (100_000_000,)),
    "few rows": Case(UP, (16, 2_000_000)),
    "few columns": Case(DOWN, (2_000_000, 16)),
    "wide": Case(UP, (64, 300_000)),
    "tall": Case(DOWN, (300_000, 64)),
    "long": Case("model.embed_tokens.weight", (2_000_000, 24)),
    "an embedding": Case("model.embed_tokens.weight", (256_000, 1024)),
    "a layer of 7B": Case(DOWN, (4096, 11_008)),
    "square": Case(f"{LAYER}.self_attn.q_proj.weight", (5120, 5120)),
    "in float32": Case(UP, (8960, 1536), torch.float32, torch.float32),
    "a float32 base, signs drawn": Case(
        UP, (1536, 8960), base=torch.float32, more=("--nulls", "1")
    ),
    "groups of rows": Case(f"{LAYER}.attention.wqkv.weight", (2 * 6 * 2048, 1536)),
    "an adapter": Case("model.embed_tokens.weight", (256_000, 1024), is_adapter=True),
}
CONFIG = {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": GROUPS}


def drawn(shape: tuple[int, ...], scale: float, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Normal entries, drawn piece by piece."""
    generator, out = torch.Generator().manual_seed(seed), torch.empty(shape, dtype=dtype)
    for part in out.view(-1).split(CHUNK):
        part.copy_(torch.randn(len(part), generator=generator).mul_(scale))
    return out


def write(case: Case, folder: Path) -> tuple[Path, Path]:
    """The two sides of a pair."""
    base, tuned = folder / "base", folder / "tuned"
    weight = drawn(case.shape, 0.02, case.base, 0)
    save(base, {case.tensor: weight}, "model.safetensors", "config.json", CONFIG)
    if case.is_adapter:
        rows, cols = case.shape
        stem = f"base_model.model.{case.tensor.removesuffix('.weight')}"
        factors = {
            f"{stem}.lora_embedding_A": drawn((RANK, rows), 0.02, torch.bfloat16, 1),
            f"{stem}.lora_embedding_B": drawn((cols, RANK), 0.02, torch.bfloat16, 2),
        }
        recorded = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}
        save(tuned, factors, "adapter_model.safetensors", "adapter_config.json", recorded)
        return base, tuned
    changed = weight.to(case.tuned)
    for number, (old, new) in enumerate(
        zip(weight.view(-1).split(CHUNK), changed.view(-1).split(CHUNK), strict=True)
    ):
        new.copy_(old.float() + drawn((len(old),), 5e-4, torch.float32, number + 1))
    save(tuned, {case.tensor: changed}, "model.safetensors", "config.json", CONFIG)
    return base, tuned


def save(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    weights: str,
    config: str,
    recorded: dict[str, object],
) -> None:
    """One side."""
    folder.mkdir()
    save_file(tensors, folder / weights)
    (folder / config).write_text(json.dumps(recorded))


def planned(sides: tuple[Path, Path]) -> int:
    """The memory that the plan tells of one worker."""
    command = [SHADOW, "plan", *sides, "--jobs", "1", "--format", "json"]
    output = subprocess.run(command, capture_output=True, check=True, env=clean_environment())
    return int(json.loads(output.stdout)[0]["memory"])


def main(only: Annotated[list[str] | None, typer.Option(help="Shapes by name")] = None) -> None:
    """Print the plan and the peak of every shape."""
    table = Table(title="memory of an audit with one worker")
    for column in ("what", "shape", "stored", "planned", "peak", "peak / planned", "wall, s"):
        table.add_column(column, justify="left" if column in ("what", "shape") else "right")
    above = False
    for name, case in CASES.items():
        if only and name not in only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            sides = write(case, Path(folder))
            stored = sum(path.stat().st_size for path in sides[1].glob("*.safetensors"))
            plan = planned(sides)
            command = [SHADOW, "audit", *sides, "-o", Path(folder) / "out", "--jobs", "1"]
            command += ["--quiet", *case.more]
            environment = clean_environment() | {"SHADOW_NO_CACHE": "1"}
            used = run_measured(command, environment, Path(folder) / "log")
        above |= used.anonymous > plan
        table.add_row(
            name, " x ".join(f"{side:,}" for side in case.shape),
            *map(decimal, (stored, plan, used.anonymous)),
            f"{used.anonymous / plan:.2f}", f"{used.wall:.1f}",
        )  # fmt: skip
        print(f"{name}: planned {plan:,}, peak {used.anonymous:,}, {used.wall:.1f} s", flush=True)
    Console(width=110).print(table)
    raise typer.Exit(int(above))


if __name__ == "__main__":
    typer.run(main)
