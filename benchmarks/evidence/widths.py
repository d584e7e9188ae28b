"""Decoders of several widths, trained as the lab's are.

    python benchmarks/evidence/widths.py OUT --width 128   # and 64, 256, 512; 64 is the preset full

Trains A to D from each base, half an hour to an hour and a half on two cores, and prints what
`docs/lab/widths.parquet` has of them. The table was recorded by 0.2.0, with more columns, and with
LoRA, SGD, doses, copies and cold bases in `docs/lab/runs.parquet`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from shadow.lab.experiment import SMALL, Base, Scale, every_regime, perform
from shadow.lab.results import OUTCOME, by_base, collect, contrast
from shadow.lab.training import Recipe, Size

BASES = {64: 10, 128: 5, 256: 3, 512: 1}  # as many as three hours of two cores allow


def scale(width: int) -> Scale:
    """The small decoders, wider: the same world, steps and tokens, MLPs of the same proportion."""
    factor = 64 / width
    return Scale(
        name="small" if width == 64 else f"wide{width}",
        size=Size(width=width, hidden=width * 21 // 8, rows=SMALL.size.rows),
        base=Recipe(1_200, 2e-2, weight_decay=0.1, muon=True, width_factor=factor),
        tune=Recipe(200, 1e-3, width_factor=factor),
    )


def main(
    out: Path,
    width: Annotated[int, typer.Option(help="64, 128, 256 or 512.")] = 128,
    jobs: Annotated[int, typer.Option(help="Processes of one thread.")] = 2,
) -> None:
    """Train and audit a width, and print its concentrations."""
    torch.set_num_threads(1)
    bases = [Base(scale(width), seed) for seed in range(BASES[width])]
    runs = every_regime(bases, 3 if width == 64 else 2)
    perform(runs, out, jobs=jobs)
    table = collect(runs, out)["runs"]
    means = by_base(table, OUTCOME).mean()
    cells = [f"{regime} {means[regime]:.3f}" for regime in "ABCD"]
    print(f"width {width}:", *cells, "B - C", contrast(table, "B", "C"))


if __name__ == "__main__":
    typer.run(main)
