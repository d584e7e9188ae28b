"""modules: the concentration of every matrix by module, against its null."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from shadow.claims.recognised import LIKE_NOISE
from shadow.outputs.figures.source import (
    Choice,
    FigureData,
    all_null,
    chosen_components,
    chosen_modules,
    names_of,
    shown,
)
from shadow.outputs.figures.style import (
    CURVES,
    GREY,
    PALE,
    annotate,
    entitle,
    interval_text,
    legend_above,
    spread,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_modules(figure: Figure, sources: list[FigureData], choice: Choice) -> list[str]:
    """Concentration by module: every matrix, the median and its interval; 0 is the null's."""
    names = [name for source in sources for name in source.deltas["module"]]
    modules = chosen_modules(sources[0], choice.modules, names)
    for source in sources:
        if not np.isfinite(source.deltas["concentration"]).any():
            raise all_null(source, "concentration")
    figure.set_size_inches(choice.width, 0.62 + len(modules) * (0.13 + 0.07 * len(sources)))
    axes = figure.subplots()
    axes.axvspan(-LIKE_NOISE, LIKE_NOISE, color=PALE, linewidth=0, zorder=0)
    axes.axvline(0, color=GREY, linewidth=0.6, zorder=1)
    for place, source in enumerate(sources):
        _draw_module_rows(axes, source, modules=modules, place=place, many=len(sources))
    labels = [shown(name, 24) for name in modules]
    counted = ""
    if len(sources) == 1:
        counts = sources[0].deltas["module"].value_counts()
        labels = [f"{shown(name, 24)} ({counts.get(name, 0)})" for name in modules]
        counted = "; number: how many"
    axes.set_yticks(range(len(modules)), labels)
    axes.set_ylim(len(modules) - 0.5, -0.5)
    axes.set_xlabel("concentration (0: the sign-flip null)")
    annotate(
        figure,
        f"medians{interval_text(sources)}; open: no spread over layers",
        f"tick: a matrix{counted}; grey: within {LIKE_NOISE:g} of 0",
    )
    if len(sources) > 1:
        from matplotlib.lines import Line2D

        handles = [
            Line2D([], [], color=style["color"], marker=style["marker"], linestyle="none")
            for style in CURVES[: len(sources)]
        ]
        axes.legend(handles, names_of(sources), **legend_above(names_of(sources)))
    axes.tick_params(length=2, pad=2)
    axes.tick_params(axis="y", length=0)
    entitle(figure, sources, choice)
    return [f"concentration of {', '.join(modules)}; {chosen_components(sources)}"]


def _draw_module_rows(
    axes: Axes, source: FigureData, modules: list[str], place: int, many: int
) -> None:
    style = CURVES[place]
    shift = (place - (many - 1) / 2) * 0.5 / many
    rows = {row.module: row for row in source.summary.modules if row.component == source.component}
    for y, module in enumerate(modules):
        row = rows.get(module)
        values = source.deltas.loc[source.deltas["module"] == module, "concentration"].dropna()
        axes.plot(
            values, np.full(len(values), y + shift), "|", color=style["color"], alpha=0.45,
            markersize=4, markeredgewidth=0.5, zorder=2,
        )  # fmt: skip
        if row is None or row.concentration is None:
            continue
        bounds = row.intervals.get("concentration")
        axes.errorbar(
            [row.concentration], [y + shift], xerr=spread(row.concentration, bounds),
            capsize=2, elinewidth=1.1, zorder=3, linestyle="none",
            color=style["color"], marker=style["marker"], markersize=3.6,
            markerfacecolor=style["color"] if bounds else "white",
        )  # fmt: skip
