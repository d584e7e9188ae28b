"""Finished runs of a folder -> tables, and the page that people see first.

The unit is the base: runs of one base share it, so every figure is a mean over bases, with a t
interval over them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from shadow.files import require_utf8, write_beside
from shadow.lab import experiment
from shadow.lab.experiment import PRESETS, PROBES, REGIMES, Run, Show, read_json, record
from shadow.outputs.markdown import markdown
from shadow.telling import document as doc
from shadow.text import counted

LEVEL = 0.95
OUTCOME = "layers_concentration"  # chosen before any run
NORM = "layers_relative_norm"
LEARNED = 0.05  # the share of right answers from which a decoder has learned something


def run(preset: str, out: Path, *, jobs: int, show: Show) -> doc.Document:
    """Train and audit what out lacks of a preset, and write its tables and a page; return the page.

    Raises ShadowError like `experiment.perform`, and if the name of out is not UTF-8.
    """
    require_utf8(out)
    chosen = PRESETS[preset]
    experiment.perform(chosen, out, jobs=jobs, show=show)
    tables = collect(chosen, out)
    write(tables, out)
    blocks: list[doc.Block] = [doc.Section(f"shadow lab run --preset {preset}")]
    answers = [f"{when}_{probe}" for when in ("base", "right") for probe in PROBES]
    if not (tables["runs"][answers].astype(float) >= LEARNED).to_numpy().any():
        text = f"{preset}: nothing was learned; the figures mean nothing"
        blocks.append(doc.Headline(text, "warning"))
    document = doc.Document([*blocks, *_regimes(tables["runs"])])
    (out / "lab.md").write_text(markdown(document, level=1), encoding="utf-8")
    return document


def collect(runs: Sequence[Run], out: Path) -> dict[str, pd.DataFrame]:
    """The tables of finished runs.

    runs: a row per run, with figures as in `summary.json`, their medians over the matrices inside
    layers as `layers_*`, accuracies as `right_*` and those of its base as `base_*`. comparisons:
    the verdict of `shadow compare` on every two runs of a base.
    """
    table = pd.DataFrame([_row(run, out) for run in runs])
    for name in table.columns[table.isna().all()]:  # a figure that no run has is of no type yet
        table[name] = pd.to_numeric(table[name])
    files = [out / "comparisons" / f"{key}.json" for key in dict.fromkeys(table["base"])]
    rows = [row for file in files for row in read_json(file)["rows"]]
    return {"runs": table.copy(), "comparisons": pd.DataFrame(rows)}


def write(tables: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Write each table as Parquet, atomically."""
    for name, table in tables.items():
        content = table.to_parquet(index=False, compression="zstd")
        write_beside(folder / f"{name}.parquet", content)


def _row(run: Run, out: Path) -> dict[str, object]:
    """The row of one run in the table `runs`."""
    base, own = run.base, read_json(record(out, run.base, run.name))
    before, after = read_json(record(out, base))["accuracies"], own["accuracies"]
    return {
        "base": base.key,
        "scale": base.scale.name,
        "width": base.scale.size.width,
        "base_seed": base.seed,
        "run": run.name,
        "regime": run.regime.key,
        "seed": run.seed,
        **{f"base_{probe}": before[probe] for probe in PROBES},
        **{f"right_{probe}": after[probe] for probe in PROBES},
        **own["figures"],
    }


@dataclass(frozen=True)
class MeanOverBases:
    """A mean over bases and its interval at LEVEL, in the unit of the values.

    The mean is None over no base, the bounds are None over one base or none.
    """

    value: float | None
    low: float | None
    high: float | None
    bases: int

    def text(self, digits: str = ".3f") -> str:
        """`0.075 (0.068 to 0.083)`, without brackets if there are no bounds."""
        text = formatted(self.value, digits)
        if self.low is None or self.high is None:
            return text
        return f"{text} ({self.low:{digits}} to {self.high:{digits}})"


def formatted(value: float | None, digits: str = ".3f") -> str:
    """Format a number for a table, as Python does; `-` if there is none."""
    return "-" if value is None or pd.isna(value) else format(value, digits)


def over_bases(values: Iterable[float]) -> MeanOverBases:
    """The mean of one value per base, with a t interval."""
    known = [value for value in values if np.isfinite(value)]
    mean, count = float(np.mean(known)) if known else None, len(known)
    if mean is None or count < 2:
        return MeanOverBases(mean, None, None, count)
    low, high = ttest_1samp(known, 0.0).confidence_interval(LEVEL)
    return MeanOverBases(mean, float(low), float(high), count)


def level(runs: pd.DataFrame, column: str) -> dict[str, MeanOverBases]:
    """The mean of a column by regime."""
    means = runs.groupby(["regime", "base"])[column].mean()
    return {
        str(regime): over_bases(values.to_numpy(float))
        for regime, values in means.groupby("regime")
    }


def contrast(runs: pd.DataFrame, first: str, second: str, column: str = OUTCOME) -> MeanOverBases:
    """The first regime's mean minus the second's."""
    means = runs.groupby(["regime", "base"])[column].mean().unstack("regime")
    if not {first, second} <= set(means.columns):
        return over_bases(())
    return over_bases((means[first] - means[second]).to_numpy(float))


def _regimes(runs: pd.DataFrame) -> Iterator[doc.Block]:
    """A table of the regimes, and the differences that the lab examines."""
    probes = ("narrow", "broad", "held_out")
    gains = runs.assign(**{p: runs[f"right_{p}"] - runs[f"base_{p}"] for p in probes})
    norms, concentrations = level(runs, NORM), level(runs, OUTCOME)
    gained = {probe: level(gains, probe) for probe in probes}
    rows = [
        [
            f"{key}  {regime.name}",
            *(formatted(of[key].value) for of in (norms, concentrations)),
            *(formatted(gained[probe][key].value, "+.3f") for probe in probes),
        ]
        for key, regime in REGIMES.items()
    ]
    count = runs["base"].nunique()
    yield doc.Section(f"{counted(count, 'base', 'bases')}: concentration, and answers gained")
    heads = ("rel. norm", "conc.", "narrow", "broad", "held out")
    yield doc.TableBlock([doc.worded(""), *map(doc.Field, heads)], rows)
    over = "mean over bases and 95 % interval" if count > 1 else "one base, so no interval"
    differences = [
        doc.FigureRow(f"{first} - {second}", contrast(runs, first, second).text("+.3f"))
        for first, second in ("BC", "DA", "CA")
    ]
    yield doc.Figures(differences, f"concentration, {over}")
