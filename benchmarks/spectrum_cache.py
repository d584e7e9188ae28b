"""What does keeping the spectra of single checkpoints save? Audits of a lineage and of a fleet,
with and without.

Makes --stages checkpoints of --layers blocks with the shapes of Qwen2.5-0.5B and made-up weights:
each stage is tuned from the one before (lineage), or all from the first (fleet). Every pair is
audited in a fresh process, by turns with an empty cache at the start and with --no-cache; prints
CPU seconds, the ratio, and the size of the cache. `all there` is the ratio when every pair is
audited once more: what can be saved at most.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from processes import clean_environment, run_measured
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from safetensors.torch import load_file, save_file

SHADOW = Path(sys.executable).parent / "shadow"
HIDDEN, KEYS, WIDTH = 896, 128, 4864
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (WIDTH, HIDDEN),
    "mlp.up_proj": (WIDTH, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDTH),
}


def write_stage(folder: Path, layers: int, seed: int, before: Path | None) -> Path:
    """A checkpoint in BF16: noise, or the one before with a change of a hundredth of its norm."""
    draw = torch.Generator().manual_seed(seed)
    start = {} if before is None else load_file(before / "model.safetensors")
    tensors = {}
    for layer in range(layers):
        for name, shape in SHAPES.items():
            full = f"model.layers.{layer}.{name}.weight"
            noise = torch.randn(shape, generator=draw) * 0.02
            tensors[full] = (
                noise if before is None else start[full].float() + 0.01 * noise
            ).bfloat16()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    return folder


def main(
    stages: Annotated[int, typer.Option(min=2, help="Checkpoints, the base included.")] = 5,
    layers: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Audit with and without the cache."""
    environment = clean_environment() | {"SHADOW_NO_CACHE": "0"}
    table = Table(title=f"{stages} checkpoints of {layers} layers, CPU seconds of all their pairs")
    for column in ("", "--no-cache", "cache", "ratio", "all there", "size of the cache"):
        table.add_column(column, justify="left" if not column else "right")
    with tempfile.TemporaryDirectory() as made:
        top = Path(made)
        for kind in ("lineage", "fleet"):
            named = [write_stage(top / kind / "0", layers, 0, None)]
            for number in range(1, stages):
                before = named[-1] if kind == "lineage" else named[0]
                named.append(write_stage(top / kind / str(number), layers, number, before))
            pairs = [
                (named[i - 1] if kind == "lineage" else named[0], named[i])
                for i in range(1, stages)
            ]

            def seconds(
                way: str,
                *options: str | Path,
                pairs: list[tuple[Path, Path]] = pairs,
                kind: str = kind,
            ) -> float:
                total = 0.0
                for number, (base, tuned) in enumerate(pairs):
                    output = top / "out" / kind / way / str(number)
                    command = [
                        SHADOW,
                        "audit",
                        "--base",
                        base,
                        "--tuned",
                        tuned,
                        "-o",
                        output,
                        "--jobs",
                        "1",
                        *options,
                    ]
                    total += run_measured(command, environment, top / "log").cpu
                return total

            folder = top / "cache" / kind
            plain = seconds("plain", "--no-cache")
            kept = seconds("kept", "--cache-dir", folder)
            there = seconds("there", "--cache-dir", folder)
            size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
            table.add_row(
                kind,
                f"{plain:.1f}",
                f"{kept:.1f}",
                f"{plain / kept:.2f}",
                f"{plain / there:.2f}",
                decimal(size),
            )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
