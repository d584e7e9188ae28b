"""How figures look: colours, type, titles, notes, and which letters the font lacks."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from shadow.extras import require
from shadow.outputs.figures.source import Choice, FigureData, component_of, shown
from shadow.reports.columns import SPECTRAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


BLACK, BLUE, RED, GREEN, ORANGE, PINK, SKY = (
    "#000000", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9",
)  # fmt: skip
GREY, PALE = "#777777", "#d9d9d9"
FEW_DECADES = 1.7  # of an axis; more have room for powers of ten alone
CurveStyle = dict[str, Any]  # how a curve looks, as matplotlib's `plot` takes it
CURVES: tuple[CurveStyle, ...] = (  # by colour, dashes and marker: each of them alone is enough
    {"color": BLACK, "linestyle": "-", "marker": "o"},
    {"color": RED, "linestyle": (0, (4, 1.5)), "marker": "s"},
    {"color": BLUE, "linestyle": (0, (1, 1)), "marker": "^"},
    {"color": GREEN, "linestyle": (0, (5, 1, 1, 1)), "marker": "D"},
    {"color": PINK, "linestyle": (0, (2, 1)), "marker": "v"},
    {"color": ORANGE, "linestyle": (0, (7, 2)), "marker": "P"},
    {"color": SKY, "linestyle": (0, (3, 1, 1, 1, 1, 1)), "marker": "X"},
)
# all modules together, beside curves of single ones
ALL: CurveStyle = {
    "color": "#444444", "linestyle": "-", "marker": "h", "markerfacecolor": "white",
    "markersize": 4.2, "markeredgewidth": 0.8,
}  # fmt: skip
SUBJECTS: dict[str, CurveStyle] = {
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
MARK = "shadow-audit figure"  # in the metadata of every file, by which an own figure is known again
METADATA: dict[str, dict[str, str | None]] = {  # who drew a file, and no date
    "png": {"Software": MARK},
    "svg": {"Creator": MARK, "Date": None},
    "pdf": {"Creator": MARK, "Producer": MARK, "CreationDate": None},
}


def empty_figure(width: float, height: float) -> Figure:
    """A figure of so many inches, without pyplot."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(h_pad=0.02, w_pad=0.02)
    return Figure(figsize=(width, height), layout=layout)


def saved(figure: Figure, suffix: str) -> bytes:
    """The figure as a file of a format."""
    content = io.BytesIO()
    figure.savefig(content, format=suffix, metadata=METADATA[suffix])
    return content.getvalue()


def whole_numbers(axis: Axis) -> None:
    """Ticks at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def plain_numbers(axis: Axis, decades: float = math.inf) -> None:
    """Numbers of a logarithmic axis as they are said: at powers of ten, and at twice and five times
    these where it has few decades.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if decades < FEW_DECADES:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """The style of figures, whatever a user's own settings are; they are back afterwards."""
    require("figure")
    import matplotlib as mpl

    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with warnings.catch_warnings(), mpl.rc_context():
        warnings.simplefilter("ignore")  # of letters that the font lacks
        mpl.rcdefaults()
        settings: Any = mpl.rcParams
        settings.update(STYLE)
        yield


def undrawn(figure: Figure) -> str:
    """The letters that the font lacks; those of this machine are no help to others."""
    from matplotlib.font_manager import findfont, get_font
    from matplotlib.text import Text

    known = get_font(findfont(str(STYLE["font.family"]))).get_charmap()
    letters = "".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))
    return "".join(
        dict.fromkeys(letter for letter in letters if letter != "\n" and ord(letter) not in known)
    )


def entitle(figure: Figure, sources: Sequence[FigureData], choice: Choice, more: str = "") -> None:
    """Which reports these are, in small type."""
    if not choice.title:
        return
    which = sources[0].name
    if len(sources) > 1:
        which = ", ".join(dict.fromkeys(source.summary.family for source in sources))
    text = shown(which, 60)
    component = component_of(sources)
    if component not in ("language", ""):
        text += f", {component}"
    figure.suptitle(
        "\n".join(filter(None, (text, more))), fontsize=6, color=GREY, x=0.01, ha="left"
    )


def interval_text(sources: Sequence[FigureData]) -> str:
    """What bars show, where there are any."""
    levels = {
        source.summary.interval_level or 0.0 for source in sources if not source.summary.no_interval
    }
    if not levels:
        return ""
    shown_levels = " to ".join(f"{100 * level:.3g}" for level in sorted(levels))
    return f" with their spread over layers ({shown_levels} %)"


def legend_above(labels: Sequence[str]) -> dict[str, Any]:
    """Where a legend stands: above the axes, in as many columns as such names leave room for."""
    columns = max(1, min(4, 44 // (max(map(len, labels)) + 5)))
    return {
        "ncols": columns,
        "loc": "lower left",
        "bbox_to_anchor": (-0.02, 1.0),
        "borderaxespad": 0.2,
        "columnspacing": 1.0,
    }


def annotate(figure: Figure, *lines: str) -> None:
    """What the marks mean, in small type under the figure."""
    figure.supxlabel("\n".join(filter(None, lines)), fontsize=5, color=GREY, x=0.99, ha="right")


def quieten(axes: Axes) -> None:
    """Short ticks, and little room beside the data."""
    axes.tick_params(length=2, pad=2)
    axes.margins(x=0.03)


def thinned(style: CurveStyle, points: int, place: int) -> CurveStyle:
    """Of many layers, markers on a dozen of them, on others in each curve."""
    every = max(1, round(points / 12))
    return {**style, "markevery": (place * 2 % every, every)}


def spread(value: float, bounds: tuple[float, float] | None) -> list[list[float]] | None:
    """An interval as matplotlib wants it: how far it reaches down and up; None without bounds."""
    if bounds is None:
        return None
    low, high = bounds
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def axis_label(metric: str) -> str:
    """A metric's name as people write it, and of what it is where weights have it too."""
    text = textwrap.fill(metric.replace("_rank_shift", "-rank shift").replace("_", " "), 21)
    if metric in {column.name for column in SPECTRAL}:
        text += "\nof the delta"
    return text
