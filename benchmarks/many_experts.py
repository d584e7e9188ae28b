"""Does an audit of very many small matrices strain? A made-up mixture in Qwen3-MoE's names.

Made up: --layers blocks of --experts experts of three matrices each (18,432 by default), every one
of hidden x width entries, bfloat16, in files of about 64 MB. Prints the seconds and the memory of
the plan, of the audit, of the same audit again, and of `show`, the size of the report, and the
share of the time that is not spent in the matrices themselves (against the same number of products
and eigenvalues alone).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
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
PER_FILE = 64_000_000  # bytes


def write(
    folder: Path, layers: int, experts: int, hidden: int, width: int, seed: int | None
) -> None:
    """One side; seed None is the base, any other adds a small change to it."""
    folder.mkdir(parents=True)
    draw = torch.Generator().manual_seed(0)
    change = torch.Generator().manual_seed(seed or 0)
    weight_map: dict[str, str] = {}
    tensors: dict[str, torch.Tensor] = {}

    def flush() -> None:
        if tensors:
            name = f"model-{len(set(weight_map.values())) + 1:05d}.safetensors"
            save_file(tensors, folder / name)
            weight_map.update(dict.fromkeys(tensors, name))
            tensors.clear()

    def add(name: str, *shape: int) -> None:
        tensor = torch.randn(shape, generator=draw) * 0.02
        if seed is not None:
            tensor += 0.0004 * torch.randn(shape, generator=change)
        tensors[name] = tensor.bfloat16()

    add("model.embed_tokens.weight", 1024, hidden)
    add("lm_head.weight", 1024, hidden)
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        add(f"{stem}.mlp.gate.weight", experts, hidden)
        for part in "qkvo":
            add(f"{stem}.self_attn.{part}_proj.weight", hidden, hidden)
        for expert in range(experts):
            for part, shape in (
                ("gate", (width, hidden)),
                ("up", (width, hidden)),
                ("down", (hidden, width)),
            ):
                add(f"{stem}.mlp.experts.{expert}.{part}_proj.weight", *shape)
        if sum(tensor.nbytes for tensor in tensors.values()) > PER_FILE:
            flush()
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(
        json.dumps({"model_type": "qwen3_moe", "num_experts": experts})
    )


def alone(layers: int, experts: int, hidden: int, width: int) -> float:
    """Seconds of the bare linear algebra, one thread: three Grams and their eigenvalues for each
    expert matrix.
    """
    torch.set_num_threads(1)
    matrix = torch.randn(width, hidden)
    started, rounds = time.perf_counter(), 50
    for _ in range(rounds):
        torch.linalg.eigvalsh((matrix @ matrix.T if width < hidden else matrix.T @ matrix).double())
    return (time.perf_counter() - started) / rounds * 3 * 3 * layers * experts


def main(
    layers: Annotated[int, typer.Option(min=1)] = 48,
    experts: Annotated[int, typer.Option(min=1)] = 128,
    hidden: Annotated[int, typer.Option(min=2)] = 128,
    width: Annotated[int, typer.Option(min=2)] = 96,
) -> None:
    """Time an audit of many small matrices."""
    environment = clean_environment()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for side, seed in (("base", None), ("tuned", 1)):
            write(folder / side, layers, experts, hidden, width, seed)
        pair: list[str | Path] = [
            "--base",
            folder / "base",
            "--tuned",
            folder / "tuned",
            "-o",
            folder / "out",
        ]
        commands: dict[str, list[str | Path]] = {
            "plan": [SHADOW, "plan", *pair],
            "audit": [SHADOW, "audit", *pair],
            "audit again": [SHADOW, "audit", *pair],
            "show": [SHADOW, "show", folder / "out"],
        }
        table = Table(title=f"{3 * layers * experts:,} expert matrices of {width} x {hidden}")
        for column in ("", "wall, s", "CPU, s", "resident", "anonymous"):
            table.add_column(column, justify="left" if not column else "right")
        walls = {}
        for name, command in commands.items():
            used = run_measured(command, environment, folder / "log")
            walls[name] = used.wall
            row = (
                name,
                f"{used.wall:.1f}",
                f"{used.cpu:.1f}",
                decimal(used.rss),
                decimal(used.anonymous),
            )
            table.add_row(*row)
        report = sum(path.stat().st_size for path in (folder / "out").rglob("*") if path.is_file())
        bare = float(
            subprocess.run(
                [
                    sys.executable,
                    __file__,
                    "bare",
                    str(layers),
                    str(experts),
                    str(hidden),
                    str(width),
                ],
                capture_output=True,
                check=True,
                text=True,
                env={**environment, "OMP_NUM_THREADS": "1"},
            ).stdout
        )
        Console().print(
            table, f"report {decimal(report)}; bare linear algebra, one thread: {bare:.1f} s"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["bare"]:
        sys.stdout.write(str(alone(*map(int, sys.argv[2:]))))
    else:
        typer.run(main)
