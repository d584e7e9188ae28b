"""Finished reports -> a figure for a paper: depth, spectrum, heatmap, modules.

Figures are as wide as a column, tell curves apart by dashes and markers as well as by colour (Okabe & Ito's, which the
colour-blind tell apart; maps get darker all the way), and are the same bytes for the same reports and version. Text of
files is shown as it is: never as mathematics, and never in a way that a drawing program would run. Drawn with
matplotlib's objects, not pyplot, so that no window, backend or setting of a user plays a part.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shadow.architecture import name_rules
from shadow.console import visible
from shadow.diagnostics import DELTA, MATRICES, SPECTRAL, TABLES
from shadow.errors import ShadowError, UsageError
from shadow.footprint import MARGIN
from shadow.placing import placing
from shadow.summary import UP, Summary, read_summary
from shadow.tables import conformed, read_tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("svg", "pdf", "png")
MARK = "shadow-audit figure"  # in the metadata of every file, by which an own figure is known again
LARGEST = 100_000_000  # bytes of a file that may be such a figure
COLUMN = 3.3  # inches: a column of a two-column paper
SHIFT = "effective_rank_shift"
MOST_CURVES = 7  # of modules in one panel; more cannot be told apart
MOST_REPORTS = 4  # in one figure
LABEL = 44  # letters of a name that are shown

BLACK, BLUE, RED, GREEN, ORANGE, PINK, SKY = (
    "#000000", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9",
)  # fmt: skip
GREY, PALE = "#777777", "#d9d9d9"
CURVES: tuple[dict[str, Any], ...] = (  # by colour, dashes and marker: each of them alone is enough
    {"color": BLACK, "linestyle": "-", "marker": "o"},
    {"color": RED, "linestyle": (0, (4, 1.5)), "marker": "s"},
    {"color": BLUE, "linestyle": (0, (1, 1)), "marker": "^"},
    {"color": GREEN, "linestyle": (0, (5, 1, 1, 1)), "marker": "D"},
    {"color": PINK, "linestyle": (0, (2, 1)), "marker": "v"},
    {"color": ORANGE, "linestyle": (0, (7, 2)), "marker": "P"},
    {"color": SKY, "linestyle": (0, (3, 1, 1, 1, 1, 1)), "marker": "X"},
)
SUBJECTS: dict[str, dict[str, Any]] = {
    "base": {"color": "#aaaaaa", "linewidth": 2.4},
    "tuned": {"color": BLACK, "linewidth": 0.8, "linestyle": "--"},
    "delta": {"color": RED, "linewidth": 1.1},
}
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 6,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.0,
    "lines.markersize": 2.8,
    "hatch.linewidth": 0.4,
    "savefig.dpi": 300,
    "text.parse_math": False,
    "text.usetex": False,
    "svg.hashsalt": "shadow",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # journals refuse type 3
    "pdf.compression": 6,
}


@dataclass(frozen=True)
class Choice:
    """What to draw. None and empty leave it to the figure: see each of them."""

    component: str | None = None
    modules: tuple[str, ...] = ()
    layer: int | None = None
    expert: int | None = None
    metric: str | None = None
    width: float = COLUMN
    title: bool = True


@dataclass(frozen=True)
class Source:
    """A report that is drawn: its summary and the delta rows of one component, with NaN for null."""

    folder: Path
    summary: Summary
    component: str
    deltas: pd.DataFrame

    @property
    def name(self) -> str:
        return f"{self.summary.family} {self.summary.pair}"

    @property
    def inside(self) -> pd.DataFrame:
        """The rows inside layers."""
        return self.deltas[self.deltas["layer"].notna()].astype({"layer": int})


OPTIONS = {  # of the command line, and the kinds that they are for
    "component": ("depth", "spectrum", "heatmap", "modules"),
    "module": ("depth", "spectrum", "heatmap", "modules"),
    "layer": ("spectrum",),
    "expert": ("spectrum",),
    "metric": ("depth", "heatmap"),
}


def write_figure(kind: str, folders: Sequence[Path], output: Path, choice: Choice = Choice()) -> list[str]:
    """Draw a figure of the reports in folders to output. Returns what was chosen, for people.

    Raises UsageError for a choice that makes no sense, ShadowError where a report cannot be read or shows nothing.
    """
    suffix = output.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise UsageError(f"{output.name!r} is no figure", f"end its name in {', '.join(f'.{one}' for one in FORMATS)}")
    content, notes = draw(kind, folders, suffix, choice)
    with placing(output, is_our_figure, "a figure of shadow") as aside:
        aside.write_bytes(content)
    return notes


def is_our_figure(path: Path) -> bool:
    """Was the file drawn by this command?"""
    return path.is_file() and path.stat().st_size < LARGEST and MARK.encode() in path.read_bytes()


def draw(kind: str, folders: Sequence[Path], suffix: str, choice: Choice) -> tuple[bytes, list[str]]:
    """The bytes of a figure, and what was chosen."""
    if choice.metric is not None and choice.metric not in metrics():
        raise UsageError(f"no metric {choice.metric!r} of a delta", "a number of `shadow schema matrices`")
    if kind in ("spectrum", "heatmap") and len(folders) > 1:
        raise ShadowError(f"{len(folders)} reports: a {kind} is of one", f"name one of them, such as {folders[0]}")
    if len(folders) > MOST_REPORTS:
        raise ShadowError(
            f"{len(folders)} reports are more than a figure can show", f"name a folder of at most {MOST_REPORTS}"
        )
    sources = [read_source(folder, choice.component) for folder in folders]
    with styled():
        figure, notes = compose(kind, sources, choice)
        if boxes := undrawn(figure):
            notes = [*notes, f"drawn as boxes, as {STYLE['font.family']} has no such letters: {visible(boxes)}"]
        content = io.BytesIO()
        figure.savefig(content, format=suffix, metadata=_metadata(suffix))
    return content.getvalue(), notes


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """The style of figures, whatever a user's own settings are; they are back afterwards."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ShadowError("matplotlib is not installed", "pip install matplotlib") from error
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with warnings.catch_warnings(), mpl.rc_context():
        warnings.simplefilter("ignore")  # of letters that the font lacks
        mpl.rcdefaults()
        settings: Any = mpl.rcParams
        settings.update(STYLE)
        yield


def compose(kind: str, sources: list[Source], choice: Choice) -> tuple[Figure, list[str]]:
    """The figure as matplotlib's objects, and what was chosen. To be called, and saved, while styled."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(choice.width, choice.width), layout=ConstrainedLayoutEngine(h_pad=0.02, w_pad=0.02))
    return figure, DRAWN[kind](figure, sources, choice)


def undrawn(figure: Figure) -> str:
    """The letters of a figure that its font lacks. The fonts of a machine are no help: other machines have others."""
    from matplotlib.font_manager import findfont, get_font
    from matplotlib.text import Text

    known = get_font(findfont(str(STYLE["font.family"]))).get_charmap()
    letters = "".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))
    return "".join(dict.fromkeys(letter for letter in letters if letter != "\n" and ord(letter) not in known))


def _metadata(suffix: str) -> dict[str, Any]:
    """Who drew it, and no date."""
    if suffix == "png":
        return {"Software": MARK}
    return {"Creator": MARK, **({"Date": None} if suffix == "svg" else {"Producer": MARK, "CreationDate": None})}


def metrics() -> list[str]:
    """The columns of delta rows that are numbers."""
    return [column.name for column in (*SPECTRAL, *DELTA) if column.type in ("int", "float")]


def shown(text: str, letters: int = LABEL) -> str:
    """Text of files as a label: one line, cut in the middle, and no `_` first, which leaves a legend without it."""
    text = visible(text)
    if len(text) > letters:
        text = f"{text[: letters // 2 - 1]}…{text[-(letters // 2) :]}"
    return f" {text}" if text.startswith("_") else text


def read_source(folder: Path, component: str | None) -> Source:
    """A report and the delta rows of a component: language where there is one, else the one of most layers."""
    summary, _ = read_summary(folder)
    names = [row["component"] for row in summary.components if row["matrices"]]
    if not names:
        raise ShadowError(f"{folder}: no matrix changed, there is nothing to draw")
    if component is not None and component not in names:
        raise ShadowError(f"{folder}: no matrix of {component} changed", f"it has {', '.join(names)}")
    chosen = component or max(names, key=lambda name: (name == "language", _layers(summary, name)))
    rows = read_tables(folder, ["matrices"])["matrices"]
    own = rows.filter((pc.field("subject") == "delta") & (pc.field("component") == chosen)).to_pandas()
    for column in MATRICES:
        if column.type in ("int", "float"):
            numbers = own[column.name].astype(float)
            own[column.name] = numbers.where(np.isfinite(numbers))
    return Source(folder, summary, chosen, own)


def _layers(summary: Summary, component: str) -> int:
    return sum(row["component"] == component for row in summary.depth)


def module_order(names: Sequence[str]) -> list[str]:
    """Modules in the order of names.yaml."""
    known = {name: place for place, name in enumerate(name_rules().modules)}
    return sorted(set(names), key=lambda name: (known.get(name, len(known)), name))


def _chosen_modules(source: Source, patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    if not names:
        raise ShadowError(f"{source.folder}: no matrix inside a layer changed")
    found = [name for name in module_order(names) if not patterns or any(fnmatchcase(name, one) for one in patterns)]
    if not found:
        raise ShadowError(
            f"{source.folder}: no such module changed: {', '.join(patterns)}",
            f"it has {', '.join(module_order(names))}",
        )
    return found


def _title(figure: Figure, sources: Sequence[Source], choice: Choice, more: str = "") -> None:
    """Which reports these are, in small type."""
    if choice.title:
        families = list(dict.fromkeys(source.summary.family for source in sources))
        component = _component(sources)
        text = shown(sources[0].name if len(sources) == 1 else ", ".join(families), 60) + (
            f", {component}" if component not in ("language", "") else ""
        )
        figure.suptitle("\n".join(filter(None, (text, more))), fontsize=6, color=GREY, x=0.01, ha="left")


def _names(sources: Sequence[Source]) -> list[str]:
    """What tells the reports of a figure apart."""
    one_family = len({source.summary.family for source in sources}) == 1
    names = [shown(source.summary.pair if one_family else source.name, 30) for source in sources]
    return (
        names if _component(sources) else [f"{n}, {source.component}" for n, source in zip(names, sources, strict=True)]
    )


def _component(sources: Sequence[Source]) -> str:
    """The component of all, empty where they have different ones."""
    components = {source.component for source in sources}
    return components.pop() if len(components) == 1 else ""


def _of_interval(sources: Sequence[Source]) -> str:
    """What the bars are, where there are any."""
    levels = {source.summary.interval_level for source in sources if not source.summary.no_interval}
    told = " to ".join(f"{100 * level:.3g}" for level in sorted(levels))
    return f" with {told} % intervals over layers" if levels else ""


def _above(labels: Sequence[str]) -> dict[str, Any]:
    """Where a legend stands: above the axes, in as many columns as names of that length leave room for."""
    columns = max(1, min(4, 44 // (max(map(len, labels)) + 5)))
    return {"ncols": columns, "loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "borderaxespad": 0.2,
            "columnspacing": 1.0}  # fmt: skip


def _note(figure: Figure, *lines: str) -> None:
    """What the marks mean, in small type under the figure."""
    figure.supxlabel("\n".join(filter(None, lines)), fontsize=5, color=GREY, x=0.99, ha="right")


def _quiet(axes: Axes) -> None:
    axes.tick_params(length=2, pad=2)
    axes.margins(x=0.03)


# Depth


def _draw_depth(figure: Figure, sources: list[Source], choice: Choice) -> list[str]:
    """By layer: a metric by module (of several reports, of one module each), relative norm, concentration."""
    metric = choice.metric or SHIFT
    for source in sources:
        if source.inside.empty:
            hint = "leave it out, or choose another --component" if len(sources) > 1 else None
            raise ShadowError(f"{source.folder}: no matrix of {source.component} inside a layer changed", hint)
    modules, left = _depth_modules(sources, choice)
    figure.set_size_inches(choice.width, choice.width * 1.35)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(1.5, 1, 1.2))
    top.axhline(0, color=GREY, linewidth=0.5)
    curves = list(_depth_curves(sources, modules, metric))
    if choice.metric and not any(np.isfinite(values).any() for _, _, values in curves):
        raise _all_null(sources[0], metric)
    for label, style, values in curves:
        top.plot(values.index, values, label=label, **style)
    top.set_ylabel(_axis(metric) if len(modules) > 1 else f"{_axis(metric)}\n{shown(modules[0])}")
    top.legend(**_above(_names(sources) if len(sources) > 1 else modules))
    for place, source in enumerate(sources):
        style = CURVES[place]
        depth = pd.DataFrame([row for row in source.summary.depth if row["component"] == source.component])
        middle.plot(depth["layer"], 100 * depth["relative_norm"].astype(float), **_thinned(style, len(depth), place))
        _draw_concentration(bottom, source, style, place, alone=len(sources) == 1)
    norms = np.concatenate([line.get_ydata() for line in middle.lines])
    middle.set_ylim(0, 1.1 * (norms[np.isfinite(norms)].max(initial=0) or 1))
    middle.set_ylabel("relative\nnorm, %")
    bottom.axhline(0, color=GREY, linewidth=0.5)
    bottom.set_ylabel("concentration")
    bottom.set_xlabel("layer")
    quartiles = "; grey: quartiles in a layer" if len(sources) == 1 else ""
    _note(figure, f"lower panels: all modules{quartiles}", f"right: median of all{_of_interval(sources)}")
    from matplotlib.ticker import MaxNLocator

    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (top, middle, bottom):
        _quiet(axes)
    _title(figure, sources, choice)
    notes = [f"{metric} of {', '.join(modules)}; {_chosen_components(sources)}"]
    if left:
        most = f"at most {MOST_CURVES}" if len(sources) == 1 else "of several reports one"
        notes.append(f"without {', '.join(left)}: --module chooses, {most}")
    if len(sources) > 1:
        for source, (_, _, values) in zip(sources, curves, strict=True):
            if not np.isfinite(values).any():
                notes.append(f"no curve of {source.folder}: no {metric} of {modules[0]}")
    return notes


def _depth_modules(sources: list[Source], choice: Choice) -> tuple[list[str], list[str]]:
    """The modules whose curves are drawn: all where few, else the up-projections, which the paper plots; and the rest.

    Of several reports it is one, of those that changed in all of them if there are any.
    """
    changed = [set(source.inside["module"]) for source in sources]
    found = _chosen_modules(sources[0], choice.modules, list(set.union(*changed)))
    ups = [name for name in UP if name in found]
    drawn = [*ups, *(name for name in found if name not in ups)]
    if len(sources) > 1:
        drawn = sorted(drawn, key=lambda name: not all(name in one for one in changed))[:1]
    elif len(found) > MOST_CURVES:
        drawn = ups if not choice.modules and ups else drawn[:MOST_CURVES]
    return drawn, [name for name in found if name not in drawn]


def _depth_curves(
    sources: list[Source], modules: list[str], metric: str
) -> Iterator[tuple[str, dict[str, Any], pd.Series[float]]]:
    """(label, style, values by layer): of several reports one each, of one report one for each module."""
    for place, source in enumerate(sources):
        for number, module in enumerate(modules):
            own = source.inside[source.inside["module"] == module]
            values = own.groupby("layer")[metric].median()
            values = (
                values.reindex(range(int(values.index.min()), int(values.index.max()) + 1)) if len(values) else values
            )
            style = _thinned(CURVES[place + number], len(values), place + number)
            style |= {"linewidth": 0.7, "markersize": 2.2} if number else {"zorder": 3}
            yield shown(module, 24) if len(sources) == 1 else _names(sources)[place], style, values


def _thinned(style: Mapping[str, Any], points: int, place: int) -> dict[str, Any]:
    """Of many layers, markers on a dozen of them, on others in each curve."""
    every = max(1, round(points / 12))
    return {**style, "markevery": (place * 2 % every, every)}


def _draw_concentration(axes: Axes, source: Source, style: Mapping[str, Any], place: int, *, alone: bool) -> None:
    """Medians by layer, with the quartiles of a layer's matrices; at the right the median of all with its interval."""
    by_layer = source.inside.groupby("layer")["concentration"]
    medians = by_layer.median()
    if alone:
        low, high = by_layer.quantile(0.25), by_layer.quantile(0.75)
        axes.vlines(medians.index, low, high, color=GREY, linewidth=2.5, alpha=0.4)
    axes.plot(medians.index, medians, **_thinned(style, len(medians), place))
    row = next(row for row in source.summary.components if row["component"] == source.component)
    if row["concentration"] is None:
        return
    bounds = _component_interval(source)
    axes.errorbar(
        [1.02 + 0.025 * place], [row["concentration"]], yerr=_spread(row["concentration"], bounds), clip_on=False,
        transform=axes.get_yaxis_transform(), capsize=1.5, elinewidth=0.9, **{**style, "linestyle": "none"},
    )  # fmt: skip


def _spread(value: float, bounds: tuple[float, float] | None) -> list[list[float]] | None:
    """An interval as matplotlib wants it: how far it reaches down and up."""
    return [[max(0.0, value - bounds[0])], [max(0.0, bounds[1] - value)]] if bounds else None


def _component_interval(source: Source) -> tuple[float, float] | None:
    row = next(row for row in source.summary.components if row["component"] == source.component)
    bounds: tuple[float, float] | None = row["intervals"].get("concentration")
    return bounds


def _axis(metric: str) -> str:
    """A metric's name as people write it, and of what it is where weights have it too."""
    text = textwrap.fill(metric.replace("_rank_shift", "-rank shift").replace("_", " "), 21)
    return f"{text}\nof the delta" if metric in {column.name for column in SPECTRAL} else text


def _all_null(source: Source, metric: str) -> ShadowError:
    return ShadowError(f"{source.folder}: {metric} is null in every layer", "`shadow explain` says when it is")


def _chosen_components(sources: Sequence[Source]) -> str:
    return ", ".join(dict.fromkeys(source.component for source in sources))


# Modules


def _draw_modules(figure: Figure, sources: list[Source], choice: Choice) -> list[str]:
    """Concentration by module: every matrix, the median, its interval over layers, against the null's 0."""
    names = [name for source in sources for name in source.deltas["module"]]
    modules = _chosen_modules(sources[0], choice.modules, names)
    figure.set_size_inches(choice.width, 0.62 + len(modules) * (0.13 + 0.07 * len(sources)))
    axes = figure.subplots()
    axes.axvspan(-MARGIN, MARGIN, color=PALE, linewidth=0, zorder=0)
    axes.axvline(0, color=GREY, linewidth=0.6, zorder=1)
    for place, source in enumerate(sources):
        _draw_module_rows(axes, source, modules, place, len(sources))
    counts = sources[0].deltas["module"].value_counts()
    labels = [
        f"{shown(name, 24)} ({counts.get(name, 0)})" if len(sources) == 1 else shown(name, 24) for name in modules
    ]
    axes.set_yticks(range(len(modules)), labels)
    axes.set_ylim(len(modules) - 0.5, -0.5)
    axes.set_xlabel("concentration (0: the sign-flip null)")
    counted = " and numbers" if len(sources) == 1 else ""
    _note(figure, f"medians{_of_interval(sources)}; open: no interval",
          f"ticks{counted}: matrices; grey: within {MARGIN:g} of 0")  # fmt: skip
    if len(sources) > 1:
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], **{**CURVES[place], "linestyle": "none"}) for place in range(len(sources))]
        axes.legend(handles, _names(sources), **_above(_names(sources)))
    axes.tick_params(length=2, pad=2)
    axes.tick_params(axis="y", length=0)
    _title(figure, sources, choice)
    return [f"concentration of {', '.join(modules)}; {_chosen_components(sources)}"]


def _draw_module_rows(axes: Axes, source: Source, modules: list[str], place: int, many: int) -> None:
    style = CURVES[place]
    shift = (place - (many - 1) / 2) * 0.5 / many
    rows = {row["module"]: row for row in source.summary.modules if row["component"] == source.component}
    for y, module in enumerate(modules):
        row = rows.get(module)
        values = source.deltas.loc[source.deltas["module"] == module, "concentration"].dropna()
        axes.plot(values, np.full(len(values), y + shift), "|", color=style["color"], alpha=0.45, markersize=4,
                  markeredgewidth=0.5, zorder=2)  # fmt: skip
        if row is None or row["concentration"] is None:
            continue
        bounds = row["intervals"].get("concentration")
        axes.errorbar(
            [row["concentration"]], [y + shift], xerr=_spread(row["concentration"], bounds), capsize=2, elinewidth=1.1,
            zorder=3, **{**style, "linestyle": "none", "markersize": 3.6},
            markerfacecolor=style["color"] if bounds else "white",
        )  # fmt: skip


# Heatmap


def _draw_heatmap(figure: Figure, sources: list[Source], choice: Choice) -> list[str]:
    """A metric by layer and module; of several experts the median."""
    (source,) = sources
    metric = choice.metric or "concentration"
    inside = source.inside
    if inside.empty:
        raise ShadowError(f"{source.folder}: no matrix inside a layer changed")
    modules = _chosen_modules(source, choice.modules, list(inside["module"]))
    layers = range(_last_layer(source) + 1)
    grid = inside.pivot_table(index="module", columns="layer", values=metric, aggfunc="median")
    grid = grid.reindex(index=modules, columns=layers)
    values = grid.to_numpy(float)
    if not np.isfinite(values).any():
        raise _all_null(source, metric)
    figure.set_size_inches(choice.width, max(1.4, 0.75 + 0.17 * len(modules)))
    axes = figure.subplots()
    axes.patch.set(facecolor="white", hatch="//////", edgecolor=PALE)  # shows where there is no value
    edges = (np.arange(count + 1) - 0.5 for count in (len(layers), len(modules)))
    line = 0.3 if len(layers) <= 32 else 0
    mesh = axes.pcolormesh(*edges, np.ma.masked_invalid(values), cmap="cividis", edgecolors="white", linewidth=line)
    _mark_negative(axes, values)
    axes.set_yticks(range(len(modules)), [shown(name, 24) for name in modules])
    axes.set_ylim(len(modules) - 0.5, -0.5)
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=2, pad=2)
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=max(8, 5 * len(modules)), fraction=0.06)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, pad=2, labelsize=6)
    bar.set_label(_axis(metric), fontsize=6)
    if np.nanmin(values) < 0 < np.nanmax(values):
        bar.ax.axhline(0, color="white", linewidth=1)
    marks = {"−: below 0": np.nanmin(values) < 0, "hatched: no value": not np.isfinite(values).all()}
    if any(marks.values()):
        _note(figure, "; ".join(text for text, there in marks.items() if there))
    _title(figure, sources, choice)
    return [f"{metric} of {', '.join(modules)}; {source.component}"]


def _last_layer(source: Source) -> int:
    """Of the component, also where nothing of it changed."""
    layers = [int(row["layer"]) for row in source.summary.depth if row["component"] == source.component]
    return max([*layers, int(source.inside["layer"].max())])


def _mark_negative(axes: Axes, values: np.ndarray[Any, Any]) -> None:
    """A minus on every cell below 0: the sign of a grey is not seen."""
    rows, columns = np.nonzero(values < 0)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for row, column in zip(rows, columns, strict=True):
        dark = values[row, column] < middle
        axes.plot(column, row, marker="_", markersize=2.5, color="white" if dark else "black", markeredgewidth=0.7)


# Spectrum


def _draw_spectrum(figure: Figure, sources: list[Source], choice: Choice) -> list[str]:
    """The singular values of one matrix: base, tuned, delta, with the null's edge and what lies above it."""
    (source,) = sources
    row = _chosen_matrix(source, choice)
    sigmas = _spectra(source.folder, row)
    figure.set_size_inches(choice.width, choice.width * 0.78)
    axes = figure.subplots()
    for subject, style in SUBJECTS.items():
        resolved = sigmas[subject][sigmas[subject] > 0]
        axes.plot(np.arange(1, len(resolved) + 1), resolved, label=subject, **style)
    delta, edge = sigmas["delta"], float(row["null_edge"])
    if math.isfinite(edge):
        axes.axhline(edge, color=BLUE, linewidth=0.8, linestyle=(0, (4, 2)), label=f"null edge, {edge:.3g}")
        spikes = delta[delta > edge]
        if len(spikes):
            axes.plot(np.arange(1, len(spikes) + 1), spikes, linestyle="none", marker="o", markersize=3.5, color=RED,
                      markeredgecolor=BLACK, markeredgewidth=0.5, label=f"{len(spikes)} spikes" if len(spikes) > 1
                      else "1 spike")  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("index of the singular value")
    axes.set_ylabel("singular value")
    axes.legend(**_above([""]) | {"ncols": 3})
    axes.tick_params(which="both", length=2, pad=2)
    zeros = int((delta <= 0).sum())
    unresolved = f"; {zeros} of {len(delta)} of the delta not resolved" if zeros else ""
    told = f"{shown(str(row['tensor']), 56)}\nconcentration {_figure(row['concentration'])}{unresolved}"
    _title(figure, sources, choice, told)
    return [f"{row['tensor']}: {row['module']}, layer {_figure(row['layer'])}; {source.component}"]


def _figure(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "-"


def _chosen_matrix(source: Source, choice: Choice) -> pd.Series[Any]:
    """The delta row that was asked for; what is left open is an up-projection in the middle of the layers."""
    rows = source.deltas
    modules = _chosen_modules(source, choice.modules, list(rows["module"]))
    module = next((name for name in UP if name in modules), modules[0])
    rows = rows[rows["module"] == module]
    if choice.layer is not None:
        rows = rows[rows["layer"] == choice.layer]
        if rows.empty:
            raise ShadowError(f"{source.folder}: no {module} changed in layer {choice.layer} of {source.component}")
    elif rows["layer"].notna().any():
        layers = sorted(rows["layer"].dropna().unique())
        rows = rows[rows["layer"] == layers[len(layers) // 2]]
    if choice.expert is not None:
        rows = rows[rows["expert"] == choice.expert]
        if rows.empty:
            raise ShadowError(f"{source.folder}: no expert {choice.expert} of {module} changed in that layer")
    return rows.iloc[0]


def _spectra(folder: Path, row: pd.Series[Any]) -> dict[str, np.ndarray[Any, Any]]:
    """The singular values of base, tuned and delta of a matrix."""
    path = folder / "spectra.parquet"
    if not path.exists():
        raise ShadowError(
            f"{folder}: audited with --no-spectra, so it has no singular values", "audit it again without"
        )
    wanted = (pc.field("tensor") == row["tensor"]) & (pc.field("module") == row["module"])
    for name in ("layer", "expert"):
        is_there = math.isfinite(row[name])
        wanted &= pc.field(name) == int(row[name]) if is_there else pc.field(name).is_null()
    try:
        table = conformed(pq.read_table(path, filters=wanted), TABLES["spectra"].columns, TABLES["spectra"].first)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ShadowError(f"{path}: cannot be read ({type(error).__name__})", "run the audit again") from error
    found: dict[str, np.ndarray[Any, Any]] = {}
    for one in table.to_pylist():
        values = np.array([x if x is not None else np.nan for x in one["sigma"] or []], float)
        found.setdefault(str(one["subject"]), values[np.isfinite(values)])
    if not {"base", "tuned", "delta"} <= set(found):
        raise ShadowError(f"{path}: no spectra of {row['tensor']}", "run the audit again")
    return found


DRAWN: dict[str, Callable[[Figure, list[Source], Choice], list[str]]] = {
    "depth": _draw_depth,
    "spectrum": _draw_spectrum,
    "heatmap": _draw_heatmap,
    "modules": _draw_modules,
}
KINDS = tuple(DRAWN)
