"""Take the law of width out of a lab in which presets of widths are finished:

    for width in 64 128 256 512; do shadow lab run --preset width-$width -o lab; done
    python benchmarks/publish_widths.py lab

Writes `docs/lab/widths.parquet` (the last state of every run), and `docs/width.md` and
`docs/lab/widths.svg`, made from it. Widths that are not finished there stay as they are published;
without a table those that are 64 wide come from `docs/lab/runs.parquet`. Others are left out, and
told.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from shadow.lab.design import WIDTHS, presets
from shadow.lab.experiment import record
from shadow.lab.findings import main_runs
from shadow.lab.results import collect, final
from shadow.lab.width_page import figure, page

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "lab" / "widths.parquet"
# of the preset full, which has the decoders that are 64 wide
FULL = ROOT / "docs" / "lab" / "runs.parquet"


def main(
    lab: Annotated[
        Path, typer.Argument(help="Folder of finished presets of widths.", file_okay=False)
    ],
) -> None:
    """Publish the law of width into this checkout."""
    published = pd.read_parquet(TABLE if TABLE.exists() else FULL)
    published = final(
        main_runs(published[published["scale"].isin([scale for scale, _ in WIDTHS.values()])])
    )
    tables = []
    for width in WIDTHS:
        preset = presets()[f"width-{width}"]
        missing = [run.name for run in preset.runs if not record(lab, run.base, run.name).exists()]
        if missing:
            before = published[published["width"] == width]
            what = "stays as it is published" if len(before) else "is left out"
            print(
                f"width {width} {what}: {len(missing)} of {len(preset.runs)} runs are not finished"
            )
            tables += [before] if len(before) else []
            continue
        tables.append(final(collect(preset, lab)["runs"]))
    pd.concat(tables, ignore_index=True).to_parquet(TABLE, index=False, compression="zstd")
    runs = pd.read_parquet(TABLE)
    (ROOT / "docs" / "width.md").write_text(page(runs), encoding="utf-8")
    figure(runs, TABLE.with_suffix(".svg"))


if __name__ == "__main__":
    typer.run(main)
