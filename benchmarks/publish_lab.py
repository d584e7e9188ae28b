"""Take what the repository ships of the lab out of a finished run of it:

    shadow lab run --preset full -o lab
    python benchmarks/publish_lab.py lab

Writes `docs/lab/*.parquet` (every number), `docs/lab.md` and `docs/lab.svg` (made from them),
`registry/reference/` (what labels are held against, and how often they err) and `registry/demo/`
(three of its checkpoints). Tests hold the page and the reference against the tables.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import transformers
import typer

from shadow import __version__
from shadow.lab.calibration import all_rates, calibration_json, reference, reference_csv
from shadow.lab.demo import export
from shadow.lab.design import presets
from shadow.lab.page import figure, page
from shadow.lab.results import collect, write

ROOT = Path(__file__).parents[1]


def main(
    lab: Annotated[
        Path, typer.Argument(help="Folder of a finished run of the preset full.", file_okay=False)
    ],
    demo: Annotated[bool, typer.Option(help="Also write the demo's checkpoints.")] = True,
) -> None:
    """Publish a finished lab into this checkout."""
    torch.set_num_threads(1)
    tables = collect(presets()["full"], lab)
    write(tables, ROOT / "docs" / "lab")
    (ROOT / "docs" / "lab.md").write_text(page(tables, "full"), encoding="utf-8")
    figure(tables, ROOT / "docs" / "lab.svg")
    trainings = reference(tables["runs"])
    folder = ROOT / "registry" / "reference"
    # first, since a label counts the bases of the shipped trainings
    (folder / "runs.csv").write_text(reference_csv(trainings), encoding="utf-8")
    compared = pd.read_parquet(ROOT / "docs" / "lab" / "pretrained-comparisons.parquet")
    made = {
        "preset": "full",
        "bases": int(tables["runs"]["base"].nunique()),
        "trainings": len(trainings),
        "shadow": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    (folder / "calibration.json").write_text(
        calibration_json(trainings, all_rates(tables, compared), made), encoding="utf-8"
    )
    if demo:
        export(lab, ROOT / "registry" / "demo")


if __name__ == "__main__":
    typer.run(main)
