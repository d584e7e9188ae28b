"""Take the continuations of the pretrained decoder out of a lab in which they are finished:

    shadow lab run --preset pretrained -o lab
    python benchmarks/publish_pretrained.py lab

Copies the tables and `pretrained.json` into `docs/lab/`, and makes `docs/pretrained.md` and
`docs/lab/pretrained.svg` of them and of `docs/lab/widths.parquet`. How often `shadow compare` errs
on them goes to `registry/reference/calibration.json`. No weight and no text is copied.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from shadow.claims.reference import calibration
from shadow.lab import results
from shadow.lab.calibration import all_rates, calibration_json, reference
from shadow.lab.pretrained_page import figure, page, read

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "docs" / "lab"
CALIBRATION = ROOT / "registry" / "reference" / "calibration.json"
TABLES = ("pretrained", "pretrained-comparisons", "pretrained-storage")
FILES = ("pretrained.json", *(f"{name}.parquet" for name in TABLES))


def main(
    lab: Annotated[Path, typer.Argument(help="Folder of the finished preset.", file_okay=False)],
) -> None:
    """Publish the continuations into this checkout."""
    for name in FILES:
        shutil.copyfile(lab / name, PUBLISHED / name)
    runs, widths = read(PUBLISHED), pd.read_parquet(PUBLISHED / "widths.parquet")
    text = page(runs, widths, picture="lab/pretrained.svg")
    (ROOT / "docs" / "pretrained.md").write_text(text, encoding="utf-8")
    figure(runs.states, PUBLISHED / "pretrained.svg")
    tables = results.read(PUBLISHED)
    rates = all_rates(tables, runs.compared)
    told = calibration_json(reference(tables["runs"]), rates, calibration().made)
    CALIBRATION.write_text(told, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
