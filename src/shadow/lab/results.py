"""A folder of finished runs -> two tables: `runs`, a row a measured state, and `comparisons`, one
for each two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from shadow.errors import ShadowError
from shadow.lab.design import PROBES, SCALES, TREATMENTS, Preset, Run
from shadow.lab.experiment import flat, record, report

TABLES = ("runs", "comparisons")
# columns of runs that are text
WORDS = ("base", "scale", "run", "regime", "treatment", "method", "kind", "stopped")


def collect(preset: Preset, out: Path) -> dict[str, pd.DataFrame]:
    """The tables of a preset whose runs are all finished.

    runs: identity of the run, share of its steps, relative_norm and the like as in `summary.json`,
    their medians over the matrices inside layers as `layers_*`, the relative norm of a module over
    that of all as `allocation_*`, accuracies of the last state as `right_*` and of its base as
    `base_*`, and the gates that the last state fails. comparisons: the verdict of `shadow compare`
    on every two of the runs A to D of a base.
    """
    runs = pd.DataFrame([row for run in preset.runs for row in _rows(run, out)])
    files = [out / "comparisons" / f"{base.key}.json" for base in preset.bases]
    rows = [row for file in files if file.exists() for row in read_json(file)["rows"]]
    # a figure that no run has is of no type yet
    numbers = [str(name) for name in runs if name not in (*WORDS, "warm")]
    runs[numbers] = runs[numbers].apply(pd.to_numeric)
    return {"runs": runs.copy(), "comparisons": pd.DataFrame(rows)}


def write(tables: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Each table as Parquet, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        aside = folder / f".{name}.parquet"
        table.to_parquet(aside, index=False, compression="zstd")
        aside.replace(folder / f"{name}.parquet")


def read(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of a preset, as `write` made them."""
    return {name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES}


def _rows(run: Run, out: Path) -> Iterator[dict[str, object]]:
    """The rows of one run in the table `runs`, one for each measured state."""
    base, finished = run.base, read_json(record(out, run.base, run.name))
    before = read_json(record(out, base))["accuracies"]
    identity = {
        "base": base.key,
        "scale": base.scale,
        "width": SCALES[base.scale].size.width,
        "base_seed": base.seed,
        "warm": base.warm,
        "run": run.name,
        "regime": run.regime,
        "treatment": run.treatment,
        "method": TREATMENTS[run.treatment].method,
        "seed": run.seed,
        "kind": run.kind,
        "seconds": finished["seconds"],
    }
    for row in finished["rows"]:
        after = row.get("accuracies") or {}
        yield {
            **identity,
            "share": row["share"],
            "loss": row["loss"],
            **{f"base_{probe}": before[probe] for probe in PROBES},
            **{f"right_{probe}": after.get(probe) for probe in PROBES},
            **flat(row),
            "stopped": _stopped(report(out, base, run.name)) if row["share"] == 1 else None,
        }


def _stopped(folder: Path) -> str:
    """The names of the gates that a pair fails, with commas."""
    return ",".join(
        gate["name"] for gate in read_json(folder / "summary.json")["gates"] if not gate["passed"]
    )


def read_json(file: Path) -> Any:
    """What a file of a finished run holds."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ShadowError(
            f"{file} cannot be read: {type(error).__name__}", "remove it and run the lab again"
        ) from error
