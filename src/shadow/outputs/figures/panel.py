"""A panel of a recipe: metrics by layer, a column a pair, beside noise and rounding alone."""

from __future__ import annotations

from collections.abc import Sequence

from shadow.outputs.figures.source import shown
from shadow.outputs.figures.style import (
    BLACK,
    BLUE,
    GREY,
    RED,
    annotate,
    axis_label,
    empty_figure,
    quieten,
    saved,
    styled,
    whole_numbers,
)
from shadow.summary.by_layer import PairByLayer
from shadow.targets.recipes import LINEARITY

OF_PAIRS = (
    "noise alone: independent entries of the delta's norm; rounding alone: of its norm /"
    " floor_ratio"
)
OF_RUNS = "R² of a straight line; noise alone: a walk with the run's own steps in random places"
COLUMN = 2.1  # inches a pair
ROW = 1.5  # inches a metric


def draw_panel(pairs: Sequence[PairByLayer], metrics: Sequence[str]) -> bytes:
    """The panel as SVG. Pairs without a changed layer have an empty column."""
    with styled():
        figure = empty_figure(max(3.3, COLUMN * len(pairs)), ROW * len(metrics) + 0.6)
        grid = figure.subplots(len(metrics), len(pairs), sharex="col", sharey="row", squeeze=False)
        for row, metric in enumerate(metrics):
            for column, pair in enumerate(pairs):
                axes = grid[row][column]
                layers = pair.figures[metric]
                places = [one.layer for one in layers]
                noise = [one.noise for one in layers]
                rounding = [one.rounding for one in layers]
                axes.plot(places, noise, color=RED, linestyle=(0, (4, 1.5)), label="noise alone")
                # the rank of noise does not depend on its size, and that of a run is not known
                if rounding != noise and metric != LINEARITY:
                    axes.plot(
                        places, rounding, color=BLUE, linestyle=(0, (1, 1)), label="rounding alone"
                    )
                axes.plot(
                    places, [one.measured for one in layers],
                    color=BLACK, marker="o", markersize=1.8, label="measured",
                )  # fmt: skip
                if metric.endswith("_shift"):
                    axes.axhline(0, color=GREY, linewidth=0.5)
                if row == 0:
                    axes.set_title(
                        f"{shown(pair.family, 26)}\n{shown(pair.pair, 26)}", loc="left", fontsize=6
                    )
                if row == len(metrics) - 1:
                    axes.set_xlabel("layer")
                    whole_numbers(axes.xaxis)
                if column == 0:
                    axes.set_ylabel(axis_label(metric))
                quieten(axes)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=3, fontsize=6)
        annotate(figure, OF_RUNS if LINEARITY in metrics else OF_PAIRS)
        return saved(figure, "svg")
