"""`shadow lab run`: train tiny models on known data and audit them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from shadow.cli import console
from shadow.cli import options as shared
from shadow.cli.options import written
from shadow.extras import require
from shadow.options import option


def lab_run(
    preset: Literal["smoke", "quick", "full"] = option(
        "smoke: a quarter of a minute, learns nothing; quick: minutes, two bases; full: ten bases,"
        " each three times, over an hour on two cores.",
        "quick",
        metavar="PRESET",
    ),
    output: Path = written("Folder for tables and page.", Path("lab"), file_okay=False),
    jobs: int = option("Number of processes; results do not depend on it.", 2, min=1, max=256),
    format: shared.Format = shared.FORMAT,
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
