"""Finished reports -> a figure for a paper: depth, spectrum, heatmap, modules.

Figures are as wide as a column, tell curves apart by dashes and markers as well as by colour (Okabe
& Ito's, which the colour-blind tell apart; maps get darker all the way), and are the same bytes for
the same reports and version. Text of files is shown as it is: never as mathematics, and never in a
way that a drawing program would run. Drawn with matplotlib's objects, not pyplot, so that no
window, backend or setting of a user plays a part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.errors import ShadowError, UsageError
from shadow.files import placing, read_start
from shadow.outputs.figures.depth import draw_depth
from shadow.outputs.figures.heatmap import draw_heatmap
from shadow.outputs.figures.modules import draw_modules
from shadow.outputs.figures.source import Choice, FigureData, read_source
from shadow.outputs.figures.spectrum import draw_spectrum
from shadow.outputs.figures.style import MARK, STYLE, empty_figure, saved, styled, undrawn
from shadow.reports.columns import delta_metrics
from shadow.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FORMATS = ("svg", "pdf", "png")
LARGEST = 100_000_000  # bytes of a file that may be such a figure
MOST_REPORTS = 4  # in one figure
OPTIONS = {  # of the command line, and the kinds that they are for
    "component": ("depth", "spectrum", "heatmap", "modules"),
    "module": ("depth", "spectrum", "heatmap", "modules"),
    "layer": ("spectrum",),
    "expert": ("spectrum",),
    "metric": ("depth", "heatmap"),
}


def write_figure(
    kind: str, folders: Sequence[Path], output: Path, choice: Choice | None = None
) -> list[str]:
    """Draw a figure of the reports in folders to output. Returns what was chosen, for people.

    Raises UsageError for a choice that makes no sense, ShadowError where a report cannot be read
    or shows nothing.
    """
    suffix = output.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise UsageError(
            f"cannot draw to {output.name!r}",
            f"use a name that ends in {', '.join(f'.{suffix_of}' for suffix_of in FORMATS)}",
        )
    content, notes = draw(kind, folders, suffix=suffix, choice=choice or Choice())
    with placing(output, is_our_figure, "a figure of shadow") as aside:
        aside.write_bytes(content)
    return notes


def is_our_figure(path: Path) -> bool:
    """Whether the file was drawn by this command."""
    content = read_start(path, LARGEST) or b""
    return len(content) < LARGEST and MARK.encode() in content


def draw(
    kind: str, folders: Sequence[Path], suffix: str, choice: Choice
) -> tuple[bytes, list[str]]:
    """The bytes of a figure, and what was chosen."""
    if choice.metric is not None and choice.metric not in delta_metrics():
        raise UsageError(
            f"no metric {choice.metric!r} of a delta", "`shadow explain` lists the columns"
        )
    if kind in ("spectrum", "heatmap") and len(folders) > 1:
        raise ShadowError(
            f"a {kind} shows one report, and there are {len(folders)}",
            f"name one of them, such as {folders[0]}",
        )
    if len(folders) > MOST_REPORTS:
        raise ShadowError(
            f"{len(folders)} reports are more than a figure of this kind can show",
            f"name a folder of at most {MOST_REPORTS}, such as one of links to them (ln -s);"
            " `shadow report` draws any number on a page",
        )
    sources = [read_source(folder, choice.component) for folder in folders]
    with styled():
        figure, notes = compose(kind, sources, choice)
        if boxes := undrawn(figure):
            notes = [
                *notes,
                f"drawn as boxes, as {STYLE['font.family']} has no such letters: {visible(boxes)}",
            ]
        return saved(figure, suffix), notes


def compose(kind: str, sources: list[FigureData], choice: Choice) -> tuple[Figure, list[str]]:
    """The figure as matplotlib's objects, and what was chosen. Call it and save it in `styled`."""
    figure = empty_figure(choice.width, choice.width)
    return figure, DRAWN[kind](figure, sources, choice)


DRAWN: dict[str, Callable[[Figure, list[FigureData], Choice], list[str]]] = {
    "depth": draw_depth,
    "spectrum": draw_spectrum,
    "heatmap": draw_heatmap,
    "modules": draw_modules,
}
