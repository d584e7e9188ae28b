"""heatmap: a metric by layer and module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from shadow.errors import ShadowError
from shadow.outputs.figures.source import Choice, FigureData, all_null, chosen_modules, shown
from shadow.outputs.figures.style import PALE, annotate, axis_label, entitle, whole_numbers
from shadow.summary.layer_medians import ranked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_heatmap(figure: Figure, sources: list[FigureData], choice: Choice) -> list[str]:
    """A metric by layer and module; of several experts the median."""
    (source,) = sources
    metric = choice.metric or "concentration"
    inside = source.inside
    if inside.empty:
        raise ShadowError(f"{source.folder}: no matrix inside a layer changed")
    modules = chosen_modules(source, choice.modules, list(inside["module"]))
    # the last layer of the component may be one in which nothing changed
    last = max([*source.depth["layer"], *inside["layer"]])
    layers = range(int(last) + 1)
    grid = ranked(inside, metric).pivot_table(
        index="module", columns="layer", values=metric, aggfunc="median"
    )
    grid = grid.where(np.isfinite(grid))
    grid = grid.reindex(index=modules, columns=layers)
    values = grid.to_numpy(float)
    if not np.isfinite(values).any():
        raise all_null(source, metric)
    figure.set_size_inches(choice.width, max(1.4, 0.75 + 0.17 * len(modules)))
    axes = figure.subplots()
    # shows where there is no value
    axes.patch.set(facecolor="white", hatch="//////", edgecolor=PALE)
    edges = (np.arange(count + 1) - 0.5 for count in (len(layers), len(modules)))
    line = 0.3 if len(layers) <= 32 else 0
    mesh = axes.pcolormesh(
        *edges, np.ma.masked_invalid(values), cmap="cividis", edgecolors="white", linewidth=line
    )
    _mark_negative(axes, values)
    axes.set_yticks(range(len(modules)), [shown(name, 24) for name in modules])
    axes.set_ylim(len(modules) - 0.5, -0.5)
    whole_numbers(axes.xaxis)
    axes.set_xlabel("layer")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=2, pad=2)
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=max(8, 5 * len(modules)), fraction=0.06)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, pad=2, labelsize=6)
    bar.set_label(axis_label(metric), fontsize=6)
    if np.nanmin(values) < 0 < np.nanmax(values):
        bar.ax.axhline(0, color="white", linewidth=1)
    marks = {
        "−: below 0": np.nanmin(values) < 0,
        "hatched: no value": not np.isfinite(values).all(),
    }
    if any(marks.values()):
        annotate(figure, "; ".join(text for text, there in marks.items() if there))
    entitle(figure, sources, choice)
    return [f"{metric} of {', '.join(modules)}; {source.component}", *source.left_out]


def _mark_negative(axes: Axes, values: np.ndarray[Any, Any]) -> None:
    """A minus on every cell below 0: the sign of a grey is not seen."""
    rows, columns = np.nonzero(values < 0)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for row, column in zip(rows, columns, strict=True):
        dark = values[row, column] < middle
        axes.plot(
            column,
            row,
            marker="_",
            markersize=2.5,
            color="white" if dark else "black",
            markeredgewidth=0.7,
        )
