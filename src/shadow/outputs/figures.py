"""Finished reports -> a figure for a paper: depth, spectrum or heatmap.

Figures are as wide as a column, distinguish curves by dashes and markers as well as colours (Okabe
& Ito's, safe for the colour-blind), and have the same bytes for the same reports and version. Text
from files is shown literally, never as mathematics. No window, backend or user setting has an
effect: matplotlib's objects draw, not pyplot.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import math
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from shadow.errors import ShadowError, UsageError
from shadow.extras import require
from shadow.files import marked, placing
from shadow.places.names import UP
from shadow.reports.columns import delta_metrics
from shadow.reports.report import Report
from shadow.summary.components import LAYERS, order_of
from shadow.summary.layer_medians import above_short_side
from shadow.summary.tables import columns_of
from shadow.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "pdf", "png")
LARGEST = 100_000_000  # bytes in which a figure has its mark
MOST_REPORTS = 4  # in one figure
# of curves; their numbers have no common divisor, so that no two of the first 315 are alike
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (2, 1)))
MARKERS = "os^Dv<>pX"
SUBJECTS: dict[str, Any] = {
    "base": {"color": "#aaaaaa", "linewidth": 2.4},
    "tuned": {"color": "#000000", "linewidth": 0.8, "linestyle": "--"},
    "delta": {"color": "#D55E00", "linewidth": 1.1},
}
EDGE: dict[str, Any] = {"color": "#0072B2", "linewidth": 0.8, "linestyle": (0, (4, 2))}
LEGEND: dict[str, Any] = {
    "loc": "lower left",
    "bbox_to_anchor": (-0.02, 1.0),
    "borderaxespad": 0.2,
}
STYLE = {
    "font.size": 7,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 6,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.0,
    "lines.markersize": 2.8,
    "savefig.dpi": 300,
    "text.parse_math": False,
    "text.usetex": False,
    "svg.hashsalt": "shadow",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # journals refuse type 3
}
MARK = "shadow-audit figure"  # in the metadata of every file, by which an own figure is known again
METADATA: dict[str, Any] = {  # who drew a file, and no date
    "png": {"Software": MARK},
    "svg": {"Creator": MARK, "Date": None},
    "pdf": {"Creator": MARK, "Producer": MARK, "CreationDate": None},
}


@dataclass(frozen=True)
class Choice:
    """Options of a figure. None and empty leave the choice to the figure."""

    component: str | None = None  # None: language, or the one of most matrices
    modules: tuple[str, ...] = ()  # names, or patterns such as `attn.*`
    layer: int | None = None
    metric: str | None = None
    width: float = 3.3  # in inches: a column of a two-column paper


@dataclass(frozen=True)
class DrawnReport:
    """A report to draw, and the delta rows of one of its components."""

    report: Report
    component: str
    deltas: pd.DataFrame


def write_figure(kind: str, folders: Sequence[Path], output: Path, choice: Choice) -> list[str]:
    """Draw a figure of the reports in folders to output.

    Returns what was chosen, for people. Raises UsageError for an invalid choice, ShadowError if a
    report cannot be read or has nothing to draw.
    """
    suffix = output.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        hint = f"use a name that ends in {', '.join(f'.{name}' for name in FORMATS)}"
        raise UsageError(f"cannot draw to {output.name!r}", hint)
    content, notes = draw(kind, folders, suffix, choice)
    is_ours = marked(MARK, LARGEST)
    with placing(output, is_ours, "a figure of shadow") as aside:
        aside.write_bytes(content)
    return notes


def draw(
    kind: str, folders: Sequence[Path], suffix: str, choice: Choice
) -> tuple[bytes, list[str]]:
    """The bytes of a figure, and what was chosen."""
    metric = choice.metric
    if metric is not None and metric not in delta_metrics():
        hint = "`shadow explain` lists the columns"
        raise UsageError(f"no metric {metric!r} of a delta", hint)
    most = MOST_REPORTS if kind == "depth" else 1
    if len(folders) > most:
        fault = f"--kind {kind} draws {most} at most, and there are {len(folders)} reports"
        raise ShadowError(fault, f"name one of them, such as {folders[0]}")
    if len(folders) > 1 and len(choice.modules) > 1:
        raise UsageError("several modules of several reports", "name one --module, or one report")
    sources = [read_source(folder, choice.component) for folder in folders]
    with styled():
        figure, notes = compose(kind, sources, choice)
        content = io.BytesIO()
        metadata = METADATA[suffix]
        figure.savefig(content, format=suffix, metadata=metadata)
        return content.getvalue(), notes


def compose(kind: str, sources: Sequence[DrawnReport], choice: Choice) -> tuple[Figure, list[str]]:
    """The figure as matplotlib's objects, and what was chosen. Save it in `styled`."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    layout = ConstrainedLayoutEngine(h_pad=0.02, w_pad=0.02)
    size = (choice.width, choice.width * 0.78)
    figure = Figure(figsize=size, layout=layout)
    draw_kind = DRAWN[kind]
    notes = draw_kind(figure, sources, choice)
    for axes in figure.axes:
        axes.tick_params(which="both", length=2, pad=2)
        if axes.get_xlabel() == "layer":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, notes


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Set the style of figures for a block, whatever the user's own settings."""
    require("figure")
    import matplotlib as mpl

    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with warnings.catch_warnings(), mpl.rc_context():
        warnings.simplefilter("ignore")  # of letters that the font lacks
        mpl.rcdefaults()
        settings: Any = mpl.rcParams
        settings.update(STYLE)
        yield


def read_source(folder: Path, component: str | None) -> DrawnReport:
    """Read a report and the deltas of a component: language, or the one with most matrices."""
    report = Report(folder)
    columns = columns_of(report.table("matrices")).having(subject="delta")
    # of a median that may be infinite, which is not a number to draw
    is_above = above_short_side(columns)
    directions = np.where(is_above, np.inf, columns["equivalent_directions"])
    columns = columns.added(equivalent_directions=directions)
    deltas = pd.DataFrame(columns.arrays)
    counts = deltas["component"].value_counts()
    names = list(counts.index)
    if not names:
        raise ShadowError(f"{folder}: no matrix changed, there is nothing to draw")
    if component is None:
        component = "language" if "language" in names else names[0]
    if component not in names:
        fault = f"{folder}: no matrix of {component} changed"
        raise ShadowError(fault, f"it has {', '.join(names)}")
    is_own = deltas["component"] == component
    return DrawnReport(report, component, deltas[is_own])


def shown(text: str, letters: int = 44) -> str:
    """Prepare text from files as a label: one line, cut in the middle, no `_` first: it hides."""
    text = visible(text)
    if len(text) > letters:
        half = letters // 2
        text = f"{text[: half - 1]}…{text[-half:]}"
    return f" {text}" if text.startswith("_") else text


def _modules(source: DrawnReport, rows: pd.DataFrame, patterns: Sequence[str]) -> list[str]:
    """The modules of rows that a pattern matches, or all, in their usual order."""
    if rows.empty:
        raise ShadowError(f"{source.report.folder}: no matrix inside a layer changed")
    names = list(rows["module"].unique())
    names.sort(key=lambda name: order_of("", name))
    chosen = []
    for name in names:
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            chosen.append(name)
    if patterns and not chosen:
        fault = f"{source.report.folder}: no such module changed: {', '.join(patterns)}"
        raise ShadowError(fault, f"it has {', '.join(names)}")
    return chosen or names


def _grid(source: DrawnReport, metric: str, patterns: Sequence[str]) -> pd.DataFrame:
    """The median of a metric by module and layer. Raises ShadowError without values."""
    deltas = source.deltas
    is_drawn = deltas["layer"] < LAYERS
    rows = deltas[is_drawn].astype({"layer": int})
    modules = _modules(source, rows, patterns)
    medians = rows.pivot_table(metric, "module", "layer", aggfunc="median")
    last = int(rows["layer"].max())
    layers = range(last + 1)
    grid = medians.where(np.isfinite(medians))
    grid = grid.reindex(index=modules, columns=layers)
    if grid.isna().all(axis=None):
        fault = f"{source.report.folder}: {metric} is null in every layer"
        raise ShadowError(fault, "`shadow explain` says when it is; --level norms leaves most out")
    return grid


def _label(metric: str) -> str:
    words = metric.replace("_rank_shift", "-rank shift")
    words = words.replace("_", " ")
    return textwrap.fill(words, 24)


def draw_depth(figure: Figure, sources: Sequence[DrawnReport], choice: Choice) -> list[str]:
    """Draw a metric by layer in one panel: a curve per module of one report, or a curve per report
    for the first module that all have (an up-projection unless others are chosen).
    """
    metric = choice.metric or "effective_rank_shift"
    grids = [_grid(source, metric, choice.modules) for source in sources]
    indices = [set(grid.index) for grid in grids]
    common = set.intersection(*indices)
    modules = [name for name in grids[0].index if name in common]
    are_several = len(sources) > 1
    if are_several:
        modules.sort(key=lambda name: name not in UP)
        modules = modules[:1]
    axes = figure.subplots()
    axes.axhline(0, color="#777777", linewidth=0.5)
    if not modules:
        raise ShadowError("these reports have no module in common", "draw one of them")
    reports = zip(sources, grids, strict=True)
    curves = itertools.product(reports, modules)
    for number, ((source, grid), module) in enumerate(curves):
        curve = grid.loc[module]
        name = source.report.provenance.pair if are_several else module
        each = max(1, round(len(curve) / 12))  # of many layers, a dozen have a marker
        axes.plot(
            curve.index,
            curve,
            label=shown(name, 30),
            markevery=each,
            color=COLOURS[number % len(COLOURS)],
            linestyle=DASHES[number % len(DASHES)],
            marker=MARKERS[number % len(MARKERS)],
        )
    label = _label(metric)
    if len(modules) == 1:
        label += f"\n{shown(modules[0])}"
    axes.set_ylabel(label)
    axes.set_xlabel("layer")
    axes.legend(**LEGEND, ncols=3)
    return [f"{metric} of {', '.join(modules)}; {sources[0].component}"]


def draw_heatmap(figure: Figure, sources: Sequence[DrawnReport], choice: Choice) -> list[str]:
    """Draw a metric by layer and module; the median of experts, hatched where there is none."""
    metric = choice.metric or "concentration"
    grid = _grid(sources[0], metric, choice.modules)
    rows, columns = grid.shape
    height = max(1.4, 0.75 + 0.17 * rows)
    figure.set_size_inches(choice.width, height)
    axes = figure.subplots()
    axes.patch.set(facecolor="white", hatch="//////", edgecolor="#d9d9d9")
    mesh = axes.pcolormesh(
        np.arange(columns + 1) - 0.5,
        np.arange(rows + 1) - 0.5,
        np.ma.masked_invalid(grid.to_numpy()),
        cmap="cividis",
        edgecolors="white",
        linewidth=0.3 if columns <= 32 else 0,
    )
    labels = [shown(name, 24) for name in grid.index]
    axes.set_yticks(range(rows), labels)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xlabel("layer")
    axes.spines[:].set_visible(False)
    aspect = max(8, 5 * rows)
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=aspect, fraction=0.06)
    bar.set_label(_label(metric), fontsize=6)
    return [f"{metric} of {', '.join(grid.index)}; {sources[0].component}"]


def draw_spectrum(figure: Figure, sources: Sequence[DrawnReport], choice: Choice) -> list[str]:
    """Draw the singular values of one matrix: base, tuned, delta, and the null's edge."""
    row = _matrix(sources[0], choice)
    sigmas = _spectra(sources[0].report, row)
    axes = figure.subplots()
    for subject, style in SUBJECTS.items():
        sigma = sigmas[subject]
        resolved = sigma[sigma > 0]
        index = np.arange(1, len(resolved) + 1)
        axes.plot(index, resolved, label=subject, **style)
    edge = float(row["null_edge"])
    if math.isfinite(edge):
        is_above = sigmas["delta"] > edge
        spikes = int(is_above.sum())
        label = f"null edge, {edge:.3g}; {spikes} above"
        axes.axhline(edge, label=label, **EDGE)
    axes.set(xscale="log", yscale="log", ylabel="singular value")
    name = shown(str(row["tensor"]), 56)
    axes.set_xlabel(f"index of the singular value\n{name}")
    axes.legend(**LEGEND, ncols=2)
    layer = "outside layers" if pd.isna(row["layer"]) else f"layer {row['layer']:.0f}"
    return [f"{row['tensor']}: {row['module']}, {layer}; {sources[0].component}"]


def _matrix(source: DrawnReport, choice: Choice) -> pd.Series[Any]:
    """The chosen delta row, of the first expert; by default an up-projection in the middle
    of the layers.
    """
    rows = source.deltas
    modules = _modules(source, rows, choice.modules)
    module = next((name for name in UP if name in modules), modules[0])
    rows = rows[rows["module"] == module]
    numbers = rows["layer"].dropna()
    layers = sorted(numbers.unique())
    layer = choice.layer
    if layer is None and layers:
        layer = layers[len(layers) // 2]
    if layer is not None:
        rows = rows[rows["layer"] == layer]
    if rows.empty:
        fault = f"{source.report.folder}: no {module} changed in layer {choice.layer}"
        raise ShadowError(fault, "choose another --module or --layer")
    return rows.iloc[0]


def _spectra(report: Report, row: pd.Series[Any]) -> dict[str, np.ndarray[Any, Any]]:
    """The singular values of base, tuned and delta of a matrix."""
    if not report.has_spectra:
        fault = f"{report.folder}: audited with --level norms or --no-spectra, so it has none"
        raise ShadowError(fault, "audit it again without them")
    wanted = pc.field("tensor") == row["tensor"]
    wanted &= pc.field("module") == row["module"]
    for name in ("layer", "expert"):
        field = pc.field(name)
        number = row[name]
        wanted &= field == int(number) if math.isfinite(number) else field.is_null()
    sigmas = {}
    for batch in report.spectrum_batches(where=wanted):
        for spectrum in batch.to_pylist():
            subject = str(spectrum["subject"])
            sigma = spectrum["sigma"] or []
            sigmas[subject] = np.array(sigma, dtype=float)
    if not SUBJECTS.keys() <= sigmas.keys():
        fault = f"{report.folder / 'spectra.parquet'}: no spectra of {row['tensor']}"
        raise ShadowError(fault, "run the audit again")
    return sigmas


DRAWN = {
    "depth": draw_depth,
    "spectrum": draw_spectrum,
    "heatmap": draw_heatmap,
}
