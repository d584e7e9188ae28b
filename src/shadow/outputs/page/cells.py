"""A report -> the cells of its heat map and what is drawn from them, as JSON.

A cell is a component, a layer and a module. It holds one matrix, or several: the experts of a layer. What is drawn of a
cell is the median over its matrices, and the range where there are several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from shadow.findings.bootstrap import blocks_of, interval_of_median
from shadow.findings.depth import LAYERS, compared_layers
from shadow.findings.summary_rows import MEDIANS
from shadow.outputs.page.curves import Key, short, shortened
from shadow.places.names import name_rules
from shadow.reports.columns import DELTA, SPECTRAL
from shadow.text import visible

PLACE = ["component", "layer", "module"]
SUBJECTS = ("delta", "base", "tuned")
FIRST = ("concentration", "relative_norm", "participation_ratio", "effective_rank_shift", "stable_rank")
UNDER_NULL: dict[str, str | float] = {  # what a column of a delta would be with random signs: a column, or a number
    "concentration": 0.0,
    "participation_ratio": "null_participation_ratio",
    "spectral_norm": "null_edge",
    "spikes": 0.0,
    "spike_energy": 0.0,
    "spikes_sampled": 0.0,
    "null_participation_ratio_sampled": "null_participation_ratio",
}
SIGNED = (
    "concentration",
    "effective_rank_shift",
    "stable_rank_shift",
    "cosine",
    "excess_purity",
    "excess_purity_unrounded",
    "decay_cosine",
)  # columns whose 0 divides
DRAWN = tuple(column for column in DELTA if column.type in ("int", "float"))  # not words
EXPERTS = 10_000  # as spread.LAYERS
EXPERT_VALUES = 250_000  # numbers of single experts on a page, about 1.5 MB


def columns_of(subject: str) -> tuple[str, ...]:
    """The columns that a row of a subject has, headline ones first."""
    own = [column.name for column in ((*DRAWN, *SPECTRAL) if subject == "delta" else SPECTRAL)]
    return tuple(dict.fromkeys([*(name for name in FIRST if name in own), *own]))


def metric_texts() -> dict[str, dict[str, Any]]:
    """What `explain` says of every column that can be drawn, and how to draw it."""
    delta_only = {column.name for column in DELTA}
    return {
        column.name: {
            "text": column.text,
            "formula": column.formula,
            "unit": column.unit,
            "range": column.range,
            "null": column.null,
            "source": column.source,
            "pitfalls": column.pitfalls,
            "delta": column.name in delta_only,
            "under_null": UNDER_NULL.get(column.name),
            "signed": column.name in SIGNED,
        }
        for column in (*DRAWN, *SPECTRAL)
    }


def cell_table(matrices: pd.DataFrame, tensors: pd.DataFrame) -> pd.DataFrame:
    """One row for each place that has a matrix: PLACE, state, reason. In the order of reports, layers ascending.

    state is measured; alone (no base, so no delta); or, from the tuned side's tensors, identical or skipped, with the
    reason in words of tensors.parquet.
    """
    rules = name_rules()
    measured = matrices.groupby(PLACE, dropna=False, sort=False)["subject"].agg(set).reset_index()
    measured["state"] = ["measured" if "delta" in found else "alone" for found in measured["subject"]]
    others = tensors[
        (tensors["side"] == "tuned")
        & tensors["status"].isin(["identical", "skipped"])
        & ~tensors["module"].isin(["norm", "bias"])
        & ~tensors["reason"].isin(["not_a_matrix", "not_float"])
    ]
    found = pd.concat(
        [measured.assign(reason=None)[[*PLACE, "state", "reason"]],
         others.assign(state=others["status"])[[*PLACE, "state", "reason"]]],
        ignore_index=True,
    ).drop_duplicates(PLACE)  # fmt: skip
    known = {name: number for number, name in enumerate((*rules.components, *rules.modules))}
    order = [
        (known.get(component, 999), known.get(module, 999), -1 if layer is None else layer)
        for component, layer, module in cell_keys(found)
    ]
    return found.iloc[sorted(range(len(found)), key=order.__getitem__)].reset_index(drop=True)


def cell_keys(cells: pd.DataFrame) -> list[Key]:
    return [
        (component, None if pd.isna(layer) else int(layer), module)
        for component, layer, module in cells[PLACE].itertuples(index=False)
    ]


def drawn_cells(matrices: pd.DataFrame, tensors: pd.DataFrame, cells: pd.DataFrame, pairs: int) -> dict[str, Any]:
    """Places, values, ranges, intervals by module and experts of a report that shares a page with pairs - 1 others."""
    keys = cell_keys(cells)
    number = {key: index for index, key in enumerate(keys)}
    rows = matrices.assign(cell=[number[key] for key in cell_keys(matrices)])
    groups = list(dict.fromkeys((component, module) for component, _, module in keys))
    place = {group: index for index, group in enumerate(groups)}
    firsts = rows.drop_duplicates("cell").set_index("cell").reindex(range(len(keys)))
    counts = rows.groupby("cell")["tensor"].count() // rows.groupby("cell")["subject"].nunique()
    counts = counts.reindex(range(len(keys)), fill_value=0)
    by_subject = {subject: rows[rows["subject"] == subject] for subject in SUBJECTS}
    return {
        "groups": [[visible(component), visible(module)] for component, module in groups],
        "group": [place[component, module] for component, _, module in keys],
        "layer": [layer for _, layer, _ in keys],
        "state": cells["state"].tolist(),
        "reason": [None if pd.isna(reason) else visible(str(reason)) for reason in cells["reason"]],
        "matrices": counts.astype(int).tolist(),
        "tensor": [None if pd.isna(name) else visible(name) for name in firsts["tensor"]],
        "rows": shortened(firsts["rows"].to_numpy(dtype=np.float64, na_value=np.nan)),
        "cols": shortened(firsts["cols"].to_numpy(dtype=np.float64, na_value=np.nan)),
        "values": {subject: _medians(own, columns_of(subject), len(keys)) for subject, own in by_subject.items()},
        "shift": _shifts(rows, len(keys)),
        "ranges": _ranges(by_subject["delta"], len(keys)),
        "modules": {subject: _by_group(own, place, columns_of(subject)) for subject, own in by_subject.items()},
        "experts": _experts(by_subject["delta"], EXPERT_VALUES // pairs),
        "layers": _layer_counts(tensors),
    }


def _layer_counts(tensors: pd.DataFrame) -> dict[str, int]:
    return {visible(str(name)): int(n) for name, n in compared_layers(tensors)["component"].value_counts().items()}


def _present(rows: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """The columns that have any value in rows."""
    there = rows[list(names)].notna().any()
    return [name for name in names if there[name]]


def _listed(found: pd.Series, cells: int) -> list[float | int | None]:
    return shortened(found.reindex(range(cells)).to_numpy(dtype=np.float64, na_value=np.nan))


def _medians(rows: pd.DataFrame, names: Sequence[str], cells: int) -> dict[str, list[float | int | None]]:
    """The median of every column by cell; columns that are null everywhere are left out."""
    names = _present(rows, names)
    found = rows[["cell", *names]].astype(dict.fromkeys(names, float)).groupby("cell").median()
    return {name: _listed(found[name], cells) for name in names}


def _shifts(rows: pd.DataFrame, cells: int) -> dict[str, list[float | int | None]]:
    """tuned - base of every spectral column by cell, from the unrounded rows; of several matrices the median."""
    names = [column.name for column in SPECTRAL]
    keys = ["cell", "tensor", "expert"]
    sides = [
        rows.loc[rows["subject"] == subject, [*keys, *names]]
        .astype({"expert": float, **dict.fromkeys(names, float)})
        .fillna({"expert": -1.0})
        .set_index(keys)
        for subject in ("tuned", "base")
    ]
    if sides[1].empty:
        return {}
    found = (sides[0][~sides[0].index.duplicated()] - sides[1][~sides[1].index.duplicated()]).groupby("cell").median()
    return {name: _listed(found[name], cells) for name in names if found[name].notna().any()}


def _ranges(deltas: pd.DataFrame, cells: int) -> dict[str, dict[str, list[float | int | None]]]:
    """Least and largest value of every column of deltas in the cells that hold several matrices."""
    sizes = deltas.groupby("cell")["cell"].transform("size")
    several = deltas[sizes > 1]
    if several.empty:
        return {}
    names = _present(several, columns_of("delta"))
    found = several[["cell", *names]].astype(dict.fromkeys(names, float)).groupby("cell")
    low, high = found.min(), found.max()
    return {name: {"low": _listed(low[name], cells), "high": _listed(high[name], cells)} for name in names}


def _by_group(rows: pd.DataFrame, place: Mapping[tuple[str, str], int], names: Sequence[str]) -> dict[str, Any]:
    """The median of every column over the matrices of a module, its interval over layers, and over how many."""
    names = _present(rows, names)
    found: dict[str, Any] = {name: [None] * len(place) for name in names}
    for (component, module), group in rows.groupby(["component", "module"], sort=False):
        layers = group["layer"].to_numpy(dtype=np.float64, na_value=np.nan)
        blocks = blocks_of(group["component"].tolist(), layers)
        columns = group[names].to_numpy(dtype=np.float64, na_value=np.nan)
        known = np.flatnonzero(~np.isnan(columns).all(axis=0))
        medians = np.nanmedian(columns[:, known], axis=0)
        for index, median in zip(known, medians, strict=True):
            name, values = names[index], columns[:, index]
            told = interval_of_median(values, blocks)
            bounds = None if told.bounds is None else [short(bound) for bound in told.bounds]
            found[name][place[str(component), str(module)]] = [
                short(median),
                bounds,
                told.layers,
                told.level,
            ]
    return found


def _experts(deltas: pd.DataFrame, most: int) -> dict[str, Any]:
    """The single experts of every cell that has several, in as many columns as the page has room for."""
    rows = deltas[(deltas["expert"] < EXPERTS) & (deltas["layer"].isna() | (deltas["layer"] < LAYERS))]
    wanted = dict.fromkeys([*FIRST, *MEDIANS, *columns_of("delta")])
    names = _present(rows, [name for name in wanted if name in rows.columns])
    names = names[: most // len(rows)] if len(rows) else []
    if not names:
        return {}
    ordered = rows.sort_values(["cell", "expert"], kind="stable")
    return {
        "cell": ordered["cell"].tolist(),
        "expert": ordered["expert"].astype(int).tolist(),
        "values": {name: shortened(ordered[name].to_numpy(dtype=np.float64, na_value=np.nan)) for name in names},
    }
