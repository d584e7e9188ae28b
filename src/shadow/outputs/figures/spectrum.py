"""spectrum: the singular values of base, tuned and delta of one matrix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from shadow.errors import ShadowError
from shadow.outputs.figures.source import Choice, FigureData, chosen_modules, shown
from shadow.outputs.figures.style import (
    BLACK,
    BLUE,
    RED,
    SUBJECTS,
    entitle,
    legend_above,
    plain_numbers,
)
from shadow.places.groups import UP
from shadow.reports.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_spectrum(figure: Figure, sources: list[FigureData], choice: Choice) -> list[str]:
    """Singular values of one matrix: base, tuned, delta, the null's edge, what lies above it."""
    (source,) = sources
    row = _chosen_matrix(source, choice)
    sigmas = _spectra(source.report, row)
    figure.set_size_inches(choice.width, choice.width * 0.78)
    axes = figure.subplots()
    for subject, style in SUBJECTS.items():
        resolved = sigmas[subject][sigmas[subject] > 0]
        axes.plot(np.arange(1, len(resolved) + 1), resolved, label=subject, **style)
    delta, edge = sigmas["delta"], float(row["null_edge"])
    if math.isfinite(edge):
        axes.axhline(
            edge, color=BLUE, linewidth=0.8, linestyle=(0, (4, 2)), label=f"null edge, {edge:.3g}"
        )
        spikes = delta[delta > edge]
        if len(spikes):
            label = f"{len(spikes)} {'spike' if len(spikes) == 1 else 'spikes'}"
            axes.plot(
                np.arange(1, len(spikes) + 1), spikes, label=label, linestyle="none",
                marker="o", markersize=3.5, color=RED, markeredgecolor=BLACK, markeredgewidth=0.5,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        plain_numbers(axis)
    axes.set_xlabel("index of the singular value")
    axes.set_ylabel("singular value")
    axes.legend(**legend_above([""]) | {"ncols": 3})
    axes.tick_params(which="both", length=2, pad=2)
    subtitle = f"{shown(str(row['tensor']), 56)}\nconcentration {_figure(row['concentration'])}"
    zeros = int((delta <= 0).sum())
    if zeros:
        subtitle += f"; {zeros} of {len(delta)} of the delta not resolved"
    entitle(figure, sources, choice=choice, more=subtitle)
    return [f"{row['tensor']}: {row['module']}, layer {_figure(row['layer'])}; {source.component}"]


def _figure(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.3g}"


def _chosen_matrix(source: FigureData, choice: Choice) -> pd.Series[Any]:
    """The delta row that was asked for; by default an up-projection in the middle of the layers."""
    rows = source.deltas
    modules = chosen_modules(source, choice.modules, list(rows["module"]))
    module = next((name for name in UP if name in modules), modules[0])
    rows = rows[rows["module"] == module]
    if choice.layer is not None:
        rows = rows[rows["layer"] == choice.layer]
        if rows.empty:
            raise ShadowError(
                f"{source.folder}: no {module} changed in layer {choice.layer} of"
                f" {source.component}"
            )
    elif rows["layer"].notna().any():
        layers = sorted(rows["layer"].dropna().unique())
        rows = rows[rows["layer"] == layers[len(layers) // 2]]
    if choice.expert is not None:
        rows = rows[rows["expert"] == choice.expert]
        if rows.empty:
            raise ShadowError(
                f"{source.folder}: no expert {choice.expert} of {module} changed in that layer"
            )
    return rows.iloc[0]


def _spectra(report: Report, row: pd.Series[Any]) -> dict[str, np.ndarray[Any, Any]]:
    """The singular values of base, tuned and delta of a matrix."""
    if not report.has_spectra:
        raise ShadowError(
            f"{report.folder}: audited with --norms or --no-spectra, so it has no singular values",
            "audit it again without them",
        )
    wanted = (pc.field("tensor") == row["tensor"]) & (pc.field("module") == row["module"])
    for name in ("layer", "expert"):
        if math.isfinite(row[name]):
            wanted &= pc.field(name) == int(row[name])
        else:
            wanted &= pc.field(name).is_null()
    sigmas: dict[str, np.ndarray[Any, Any]] = {}
    for spectrum in report.spectra_where(wanted).to_pylist():
        values = np.array(spectrum["sigma"] or [], dtype=float)  # NaN where it is None
        sigmas.setdefault(str(spectrum["subject"]), values[np.isfinite(values)])
    if not {"base", "tuned", "delta"} <= set(sigmas):
        raise ShadowError(
            f"{report.folder / 'spectra.parquet'}: no spectra of {row['tensor']}",
            "run the audit again",
        )
    return sigmas
