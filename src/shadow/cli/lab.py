"""`shadow lab run`: train tiny models on known data and audit them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shadow.cli import console
from shadow.cli.options import Format, FormatOption, Json, PresetName, on_this_machine
from shadow.extras import require


def lab_run(
    preset: Annotated[
        PresetName,
        typer.Option(
            help=(
                "smoke: about a minute, learns nothing; quick: minutes; full: every control,"
                " over an hour on two cores; width-64, width-128, width-256 or width-512:"
                " decoders of one width, half an hour to an hour and a half on two cores;"
                " pretrained: a real decoder of 135M parameters on real texts, fetched from PyPI"
                " and Debian, about three hours of one core."
            ),
            metavar="PRESET",
        ),
    ] = PresetName.quick,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="Folder for tables, page and figure.",
            file_okay=False,
            callback=on_this_machine,
        ),
    ] = Path("lab"),
    jobs: Annotated[
        int, typer.Option(help="Number of processes; results do not depend on it.", min=1, max=256)
    ] = 2,
    format: FormatOption = Format.table,
    json: Json = False,
) -> None:
    """Train small models on known data, audit each one, and report what the data left in their
    weights.

    Writes runs.parquet, comparisons.parquet, lab.md and lab.svg. After an interruption, the same
    command continues.

    Exit codes: 0 done, whatever was found; 1 failed; 2 wrong usage.
    """
    if json:
        format = Format.json
    require("lab")
    from shadow.lab.run import run
    from shadow.lab.view import terminal

    with console.steps(f"lab {preset.value}") as update:
        try:
            done = run(preset.value, output, jobs=jobs, show=update)
        except KeyboardInterrupt:
            console.say("stopped; run the same command again to continue")
            raise typer.Exit(130) from None
    if format is Format.json:
        console.show_json({"preset": preset.value, "runs": done.rows, "folder": str(output)})
    else:
        console.display(terminal(done.view))
    console.say(f"tables, page and figure in {output}/: {', '.join(done.files)}")
