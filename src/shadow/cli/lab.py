"""`shadow lab run`: train tiny models on known data and audit them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from shadow.cli import console
from shadow.cli import options as option
from shadow.extras import require

Preset = Literal[
    "smoke",
    "quick",
    "full",
    "frequency",
    "width-64",
    "width-128",
    "width-256",
    "width-512",
    "pretrained",
]


def lab_run(
    preset: Annotated[
        Preset,
        typer.Option(
            help=(
                "smoke: about a minute, learns nothing; quick: minutes; full: every control,"
                " over an hour on two cores; frequency: broad data of which ever fewer cells are"
                " frequent, a quarter of an hour; width-64, width-128, width-256 or width-512:"
                " decoders of one width, half an hour to an hour and a half on two cores;"
                " pretrained: a real decoder of 135M parameters on real texts, fetched from PyPI"
                " and Debian, about three hours of one core."
            ),
            metavar="PRESET",
        ),
    ] = "quick",
    output: Annotated[
        Path, option.written(help="Folder for tables, page and figure.", file_okay=False)
    ] = Path("lab"),
    jobs: Annotated[
        int, typer.Option(help="Number of processes; results do not depend on it.", min=1, max=256)
    ] = 2,
    format: option.Format = "table",
    json: option.Json = False,
) -> None:
    """Train small models on known data, audit each one, and report what the data left in their
    weights.

    Writes runs.parquet, comparisons.parquet, lab.md and lab.svg. After an interruption, the same
    command continues.

    Exit codes: 0 done, whatever was found; 1 failed; 2 wrong usage.
    """
    as_json = json or format == "json"
    require("lab")
    from shadow.lab.run import run

    with console.continuable([output]), console.steps(f"lab {preset}") as update:
        done = run(preset, output, jobs=jobs, show=update)
    if as_json:
        console.show_json({"preset": preset, "runs": done.rows, "folder": str(output)})
    else:
        console.show(done.document)
    console.say(f"tables, page and figure in {output}/: {', '.join(done.files)}")
