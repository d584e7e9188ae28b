"""depth: a metric, the relative norm and the concentration by layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from shadow.errors import ShadowError
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
    ALL,
    CURVES,
    GREY,
    CurveStyle,
    annotate,
    axis_label,
    entitle,
    interval_text,
    legend_above,
    quieten,
    spread,
    thinned,
    whole_numbers,
)
from shadow.places.groups import UP
from shadow.summary.layer_medians import ranked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


SHIFT = "effective_rank_shift"
MOST_CURVES = 7  # of modules in one panel; more cannot be told apart


def draw_depth(figure: Figure, sources: list[FigureData], choice: Choice) -> list[str]:
    """By layer: a metric by module (one of each of several reports), norm, concentration."""
    alone = len(sources) == 1
    metric = choice.metric or SHIFT
    for source in sources:
        if source.inside.empty:
            raise ShadowError(
                f"{source.folder}: no matrix of {source.component} inside a layer changed",
                None if alone else "leave it out, or choose another --component",
            )
    modules, left = _depth_modules(sources, choice)
    figure.set_size_inches(choice.width, choice.width * 1.35)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(1.5, 1, 1.2))
    top.axhline(0, color=GREY, linewidth=0.5)
    curves = list(_depth_curves(sources, modules, metric))
    if choice.metric and not any(np.isfinite(values).any() for _, _, values in curves):
        raise all_null(sources[0], metric)
    for label, style, values in curves:
        top.plot(values.index, values, label=label, **style)
    label = axis_label(metric)
    if len(modules) == 1:
        label += f"\n{shown(modules[0])}"
    top.set_ylabel(label)
    top.legend(**legend_above(modules if alone else names_of(sources)))
    for place, source in enumerate(sources):
        style = ALL if alone else CURVES[place]
        depth = source.depth
        middle.plot(
            depth["layer"],
            100 * depth["relative_norm"].astype(float),
            **thinned(style, len(depth), place),
        )
        _draw_concentration(bottom, source, style=style, place=place, alone=alone)
    norms = np.concatenate([line.get_ydata() for line in middle.lines])
    middle.set_ylim(0, 1.1 * (norms[np.isfinite(norms)].max(initial=0) or 1))
    middle.set_ylabel("relative\nnorm, %")
    bottom.axhline(0, color=GREY, linewidth=0.5)
    bottom.set_ylabel("concentration")
    bottom.set_xlabel("layer")
    annotate(
        figure,
        "lower panels: all modules" + (", open; grey: quartiles in a layer" if alone else ""),
        f"right: median of all{interval_text(sources)}",
    )
    whole_numbers(bottom.xaxis)
    for axes in (top, middle, bottom):
        quieten(axes)
    entitle(figure, sources, choice)
    notes = [f"{metric} of {', '.join(modules)}; {chosen_components(sources)}"]
    notes += [text for source in sources for text in source.left_out]
    if left:
        most = f"at most {MOST_CURVES}" if alone else "of several reports one"
        notes.append(f"without {', '.join(left)}: --module chooses, {most}")
    if not alone:
        for source, (_, _, values) in zip(sources, curves, strict=True):
            if not np.isfinite(values).any():
                notes.append(f"no curve of {source.folder}: no {metric} of {modules[0]}")
    return notes


def _depth_modules(sources: list[FigureData], choice: Choice) -> tuple[list[str], list[str]]:
    """The modules whose curves are drawn: all where few, else the up-projections, which the paper
    plots; and the rest.

    Of several reports it is one, of those that changed in all of them if there are any.
    """
    changed = [set(source.inside["module"]) for source in sources]
    chosen = chosen_modules(sources[0], choice.modules, list(set.union(*changed)))
    ups = [name for name in UP if name in chosen]
    drawn = [*ups, *(name for name in chosen if name not in ups)]
    if len(sources) > 1:
        in_all = [name for name in drawn if all(name in modules_of for modules_of in changed)]
        drawn = (in_all or drawn)[:1]
    elif len(chosen) > MOST_CURVES and ups and not choice.modules:
        drawn = ups
    else:
        drawn = drawn[:MOST_CURVES]
    return drawn, [name for name in chosen if name not in drawn]


def _depth_curves(
    sources: list[FigureData], modules: list[str], metric: str
) -> Iterator[tuple[str, CurveStyle, pd.Series[float]]]:
    """(label, style, values by layer): one for each report, of one report one for each module."""
    for place, source in enumerate(sources):
        for number, module in enumerate(modules):
            rows = source.inside[source.inside["module"] == module]
            values = ranked(rows, metric).groupby("layer")[metric].median()
            values = values.where(np.isfinite(values))
            if len(values):
                values = values.reindex(range(int(values.index.min()), int(values.index.max()) + 1))
            style = thinned(CURVES[place + number], len(values), place + number)
            if number == 0:
                style |= {"zorder": 3}
            else:
                style |= {"linewidth": 0.7, "markersize": 2.2}
            name = shown(module, 24) if len(sources) == 1 else names_of(sources)[place]
            yield name, style, values


def _draw_concentration(
    axes: Axes, source: FigureData, style: CurveStyle, place: int, *, alone: bool
) -> None:
    """Medians and quartiles by layer; at the right the median of all with its interval."""
    by_layer = source.inside.groupby("layer")["concentration"]
    medians = by_layer.median()
    if alone:
        low, high = by_layer.quantile(0.25), by_layer.quantile(0.75)
        axes.vlines(medians.index, low, high, color=GREY, linewidth=2.5, alpha=0.4)
    axes.plot(medians.index, medians, **thinned(style, len(medians), place))
    value, bounds = source.row.concentration, source.row.intervals.get("concentration")
    if value is None:
        return
    axes.errorbar(
        [1.02 + 0.025 * place], [value], yerr=spread(value, bounds), clip_on=False,
        transform=axes.get_yaxis_transform(), capsize=1.5, elinewidth=0.9,
        color=style["color"], marker=style["marker"], linestyle="none",
        markerfacecolor=style.get("markerfacecolor"),
    )  # fmt: skip
