"""What do the subspace columns cost? The whole audit with and without them, by precision, in turns;
prints the ratios.

Each audit is a fresh process of the `shadow` command, without OMP_NUM_THREADS and its like. The
least time of the rounds counts, as a shared machine only ever adds to it. Exit code 1 where the CPU
time of a precision grew by more than
--most.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from make_pair import LAYERS, write_pair
from processes import Usage, clean_environment, limit_cores, run_measured
from rich.console import Console
from rich.table import Table

SHADOW = Path(sys.executable).parent / "shadow"
PRECISIONS = ("default", "exact")
FLAGS = ("--no-subspaces", "--subspaces")


def main(
    pair: Annotated[
        Path | None, typer.Option(help="Folder with base and tuned; none makes one.")
    ] = None,
    layers: Annotated[int, typer.Option(help="Of the pair that is made.", min=1, max=LAYERS)] = 4,
    precision: Annotated[
        list[str] | None, typer.Option(help="Only these; may be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    jobs: Annotated[int | None, typer.Option(min=1, help="Workers of each audit.")] = None,
    module: Annotated[
        list[str] | None, typer.Option(help="Only these modules, as for `shadow audit`.")
    ] = None,
    cores: Annotated[int | None, typer.Option(min=1)] = None,
    most: Annotated[
        float, typer.Option(help="The ratio of CPU times that is still accepted.")
    ] = 1.25,
) -> None:
    """Time `shadow audit` with and without subspaces."""
    limit_cores(cores)
    console, environment = Console(), clean_environment()
    chosen = [f"--module={one}" for one in module or ()] + ([f"--jobs={jobs}"] if jobs else [])
    table = Table(title=f"Whole audit, least of {rounds} rounds")
    for heading in (
        "precision",
        "wall without, s",
        "with",
        "ratio",
        "CPU without, s",
        "with",
        "ratio",
        "anonymous, MiB",
    ):
        table.add_column(heading, justify="left" if heading == "precision" else "right")
    worst = 0.0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if pair is None:
            write_pair(pair := folder / "pair", layers, seed=0)
        sides: list[str | Path] = [
            "--base",
            (pair / "base").absolute(),
            "--tuned",
            (pair / "tuned").absolute(),
        ]
        for name in precision or PRECISIONS:
            used: dict[str, list[Usage]] = {flag: [] for flag in FLAGS}
            for _ in range(rounds):
                for flag in FLAGS:
                    out = folder / "out"
                    command = [
                        SHADOW,
                        "audit",
                        *sides,
                        "-o",
                        out,
                        "--precision",
                        name,
                        flag,
                        *chosen,
                    ]
                    used[flag].append(run_measured(command, environment, folder / "log"))
                    shutil.rmtree(out)
            walls = [min(one.wall for one in used[flag]) for flag in FLAGS]
            cpus = [min(one.cpu for one in used[flag]) for flag in FLAGS]
            memory = [min(one.anonymous for one in used[flag]) / 2**20 for flag in FLAGS]
            worst = max(worst, cpus[1] / cpus[0])
            cells = [
                f"{value:.2f}"
                for before, after in (walls, cpus)
                for value in (before, after, after / before)
            ]
            table.add_row(name, *cells, f"{memory[0]:.0f} -> {memory[1]:.0f}")
    console.print(table)
    raise typer.Exit(worst > most)


if __name__ == "__main__":
    typer.run(main)
