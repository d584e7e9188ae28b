"""Finished runs of a folder -> tables, and the page that people see first.

The unit is the base: runs of one base share it, so every figure is a mean over bases, with a t
interval over them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from shadow.files import require_utf8, write_beside
from shadow.lab import experiment
from shadow.lab.experiment import (
    PRESETS,
    PROBES,
    REGIMES,
    Run,
    Show,
    comparisons_of,
    read_json,
    record,
)
from shadow.outputs.markdown import markdown
from shadow.quantities import Kind, Quantity
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
    runs = tables["runs"]
    before = [f"base_{probe}" for probe in PROBES]
    after = [f"right_{probe}" for probe in PROBES]
    answers = runs[before + after].astype(float)
    has_learned = (answers >= LEARNED).any(axis=None)
    if not has_learned:
        warning = f"{preset}: nothing was learned; the figures mean nothing"
        blocks.append(doc.Headline(warning, "warning"))
    blocks += _regimes(runs)
    document = doc.Document(blocks)
    page = out / "lab.md"
    text = markdown(document, level=1)
    page.write_text(text, encoding="utf-8")
    return document


def collect(runs: Sequence[Run], out: Path) -> dict[str, pd.DataFrame]:
    """The tables of finished runs.

    runs: a row per run, with figures as in `summary.json`, their medians over the matrices inside
    layers as `layers_*`, accuracies as `right_*` and those of its base as `base_*`. comparisons:
    the verdict of `shadow compare` on every two runs of a base.
    """
    own = [_row(run, out) for run in runs]
    table = pd.DataFrame(own)
    is_empty = table.isna().all()
    for name in table.columns[is_empty]:  # a figure that no run has is of no type yet
        table[name] = pd.to_numeric(table[name])
    rows: list[object] = []
    for key in table["base"].unique():
        file = comparisons_of(out, key)
        rows += read_json(file)["rows"]
    comparisons = pd.DataFrame(rows)
    return {"runs": table.copy(), "comparisons": comparisons}


def write(tables: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Write each table as Parquet, atomically."""
    for name, table in tables.items():
        path = folder / f"{name}.parquet"
        content = table.to_parquet(index=False, compression="zstd")
        write_beside(path, content)


def _row(run: Run, out: Path) -> dict[str, object]:
    """The row of one run in the table `runs`."""
    base = run.base
    own = read_json(record(out, base, run.name))
    before = read_json(record(out, base))
    row: dict[str, object] = {
        "base": base.key,
        "scale": base.scale.name,
        "width": base.scale.size.width,
        "base_seed": base.seed,
        "run": run.name,
        "regime": run.regime.key,
        "seed": run.seed,
    }
    for probe in PROBES:
        row[f"base_{probe}"] = before["accuracies"][probe]
    for probe in PROBES:
        row[f"right_{probe}"] = own["accuracies"][probe]
    row |= own["figures"]
    return row


def over_bases(values: Iterable[float], kind: Kind = "thousandths") -> Quantity:
    """The mean of one value per base, with a t interval at LEVEL over two bases or more."""
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return Quantity(None, kind)
    mean = float(np.mean(known))
    if len(known) == 1:
        return Quantity(mean, kind)
    result = ttest_1samp(known, 0.0)
    interval = result.confidence_interval(LEVEL)
    low = float(interval.low)
    high = float(interval.high)
    return Quantity(mean, kind, low, high)


def by_base(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """The means of a column: a row for each base, a column for each regime."""
    groups = runs.groupby(["base", "regime"])
    means = groups[column].mean()
    return means.unstack("regime").astype(float)


def contrast(runs: pd.DataFrame, first: str, second: str, column: str = OUTCOME) -> Quantity:
    """The first regime's mean minus the second's."""
    means = by_base(runs, column)
    of_both = means.reindex(columns=[first, second])
    difference = of_both[first] - of_both[second]
    return over_bases(difference, "difference")


def _regimes(runs: pd.DataFrame) -> Iterator[doc.Block]:
    """A table of the regimes, and the differences that the lab examines."""
    probes = ("narrow", "broad", "held_out")
    figures: list[tuple[pd.DataFrame, Kind]] = []
    for column in (NORM, OUTCOME):
        figures.append((by_base(runs, column), "thousandths"))
    for probe in probes:
        after = by_base(runs, f"right_{probe}")
        before = by_base(runs, f"base_{probe}")
        figures.append((after - before, "difference"))
    rows: list[list[doc.Cell]] = []
    for key, regime in REGIMES.items():
        row: list[doc.Cell] = [f"{key}  {regime.name}"]
        for means, kind in figures:
            mean = over_bases(means[key], kind)
            row.append(replace(mean, low=None))
        rows.append(row)
    count = runs["base"].nunique()
    yield doc.Section(f"{counted(count, 'base', 'bases')}: concentration, and answers gained")
    heads = ["rel. norm", "conc.", "narrow", "broad", "held out"]
    fields = map(doc.Field, heads)
    yield doc.TableBlock([doc.worded(""), *fields], rows)
    differences = []
    for first, second in ("BC", "DA", "CA"):
        difference = contrast(runs, first, second)
        differences.append(doc.FigureRow(f"{first} - {second}", difference))
    over = "one base, so no interval"
    if count > 1:
        over = "mean over bases and 95 % interval"
    yield doc.Figures(differences, f"concentration, {over}")
