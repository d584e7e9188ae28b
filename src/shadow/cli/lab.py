"""`shadow lab run`: train tiny models on known data and audit them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from shadow.cli import console
from shadow.cli import options as option
from shadow.extras import require


def lab_run(
    preset: Annotated[
        Literal["smoke", "quick", "full"],
        typer.Option(
            help=(
                "smoke: a quarter of a minute, learns nothing; quick: minutes, two bases; full: ten"
                " bases, each three times, over an hour on two cores."
            ),
            metavar="PRESET",
        ),
    ] = "quick",
    output: Annotated[
        Path, option.written(help="Folder for tables and page.", file_okay=False)
    ] = Path("lab"),
    jobs: Annotated[
        int, typer.Option(help="Number of processes; results do not depend on it.", min=1, max=256)
    ] = 2,
    format: option.Format = "table",
) -> None:
    """Train small models on known data, and audit each one. Reports what the data left in their
    weights.

    Writes runs.parquet, comparisons.parquet and lab.md. After an interruption, the same
    command continues.

    Exit codes: 0 done, whatever was found; 1 failed; 2 wrong usage.
    """
    require("lab")
    from shadow.lab.results import run

    with console.continuable([output]), console.steps(f"lab {preset}") as update:
        document, rows = run(preset, output, jobs=jobs, show=update)
    if format == "json":
        console.show_json({"preset": preset, "runs": rows, "folder": str(output)})
    else:
        console.show(document)
    console.say(f"runs.parquet, comparisons.parquet and lab.md in {output}/")
