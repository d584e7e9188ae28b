"""What do the commands that read finished reports cost when there are many? CPU seconds of each
over small reports.

Makes --reports audits of tiny decoders (--layers blocks, 16 x 24 matrices, one base) and scores of
two benchmarks, and runs `show`, `gate`, `compare` and `report` on them, each in a fresh process.
--keep leaves the reports in a folder and takes them from there the next time; summaries are made
again where another version of the code had made them.
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
from safetensors.torch import save_file

SHADOW = Path(sys.executable).parent / "shadow"
HIDDEN, WIDTH = 16, 24
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (WIDTH, HIDDEN),
    "mlp.up_proj": (WIDTH, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDTH),
}
COMPARED = 12  # `compare` takes no more matrix by matrix
SCORED = 200  # and no more with scores


def write_checkpoint(folder: Path, layers: int, seed: int | None) -> None:
    """One side; seed None is the base, others add a small change to it, narrow or wide by seed."""
    draw = torch.Generator().manual_seed(0)
    change = torch.Generator().manual_seed(seed or 0)
    tensors = {}
    for layer in range(layers):
        for name, shape in SHAPES.items():
            tensor = torch.randn(shape, generator=draw) * 0.02
            if seed is not None:
                rank = 1 + seed % HIDDEN
                left, right = (torch.randn(side, rank, generator=change) for side in shape)
                tensor += 0.0004 * left @ right.T / rank**0.5
            tensors[f"model.layers.{layer}.{name}.weight"] = tensor
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}')


def make(folder: Path, reports: int, layers: int) -> None:
    """The reports below folder/reports, and folder/scores.csv."""
    from shadow.audits.pair import Runtime, Settings, run_pair
    from shadow.checkpoints.pairing import Filter
    from shadow.spectra.delta import Method
    from shadow.targets.families import Pair
    from shadow.targets.references import Reference

    write_checkpoint(folder / "base", layers, None)
    scores = ["model,benchmark,score"]
    for number in range(reports):
        tuned = folder / f"tuned-{number:03d}"
        write_checkpoint(tuned, layers, number + 1)
        pair = Pair(
            "many", tuned.name, Reference(str(folder / "base"), True), Reference(str(tuned), True)
        )
        run_pair(pair, Settings(Method(), Filter()), folder / "reports", Runtime(jobs=1))
        scores += [
            f"{tuned.name},{name},{2 + number * step % 97}"
            for name, step in (("one", 7), ("two", 13))
        ]
    scores += ["base,one,40", "base,two,50"]
    (folder / "scores.csv").write_text("\n".join(scores) + "\n")


def main(
    reports: Annotated[int, typer.Option(min=2)] = 300,
    layers: Annotated[int, typer.Option(min=1)] = 4,
    keep: Annotated[Path | None, typer.Option(help="Folder for the reports.")] = None,
) -> None:
    """Time the commands that read finished reports."""
    environment = clean_environment()
    with tempfile.TemporaryDirectory() as made:
        folder = keep or Path(made)
        out = folder / "reports"
        if not out.is_dir():
            make(folder.absolute(), reports, layers)
        found = sorted(path.parent for path in out.glob("*/*/matrices.parquet"))
        page = Path(made) / "page.html"
        commands: dict[str, list[str | Path]] = {
            "show": ["show", out],
            "show --format json": ["show", out, "--format", "json"],
            "gate": ["gate", out, "--fail-on", "concentration > 2"],
            f"compare, {min(len(found), COMPARED)} reports": ["compare", *found[:COMPARED]],
            f"compare --scores, {min(len(found), SCORED)} reports": [
                "compare", *found[:SCORED], "--scores", folder / "scores.csv",
            ],
            "report": ["report", out, "-o", page],
        }  # fmt: skip
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        table = Table(title=f"{len(found)} reports, {decimal(size)}")
        for column in ("", "wall, s", "CPU, s", "resident"):
            table.add_column(column, justify="left" if not column else "right")
        for name, arguments in commands.items():
            used = run_measured([SHADOW, *arguments], environment, Path(made) / "log")
            table.add_row(name, f"{used.wall:.1f}", f"{used.cpu:.1f}", decimal(used.rss))
        Console().print(table)


if __name__ == "__main__":
    typer.run(main)
