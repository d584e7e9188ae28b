"""Commands that make something of finished reports: a page, a figure, a file of another format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import typer

from shadow.cli import console
from shadow.cli.options import FOLDER, RUN, reports_here, written
from shadow.errors import UsageError
from shadow.extras import require
from shadow.options import ARGUMENT, option
from shadow.reports.folders import found_below, reports_below
from shadow.text import counted

# the formats of `export`, as `shadow.outputs.exports` has them, and the kinds of `figure`
ExportFormat = Literal["csv", "parquet", "markdown"]
FigureKind = Literal["depth", "spectrum", "heatmap"]


def report(
    run: Path = option(FOLDER, Path("reports"), ARGUMENT, **RUN),
    output: Path = written(
        "The page, one file.", Path("report.html"), metavar="FILE", dir_okay=False
    ),
) -> None:
    """Write finished reports as one web page that works offline. It has charts and tables, light
    and dark.

    Exit codes: 0 done, also if there is no finished report (the page says so); 1 a report cannot be
    read.
    """
    require("report")
    from shadow.outputs.page import write_page

    run = reports_here(run, spectra=True)
    folders = found_below(run)
    was_there = output.exists()
    with console.steps("report") as update:
        written = write_page(run, folders, output, show=update)
    for _, fault in written.unreadable:
        console.complain(fault)
    if not written.pairs:
        console.say(
            f"there is no finished report below {run}: name a folder that `shadow audit` made"
        )
    if was_there:
        console.say(f"replaced {output}")
    console.say(
        f"{counted(written.pairs, 'report', 'reports')} in {output}, {written.size / 1e6:.1f} MB"
    )
    if written.unreadable:
        raise typer.Exit(1)


def figure(
    run: Path = option(FOLDER, ..., ARGUMENT, **RUN),
    kind: FigureKind = option("What to draw.", "depth"),
    output: Path | None = written(
        "File to draw to: .svg, .pdf or .png.",
        metavar="FILE",
        dir_okay=False,
        show_default="KIND.svg, here",
    ),
    component: str | None = option("Component to draw.", show_default="language"),
    module: Sequence[str] = option("Only this module, or attn.*; may be repeated.", ()),
    layer: int | None = option("The layer of a spectrum.", min=0, show_default="the middle"),
    metric: str | None = option("The column of a heatmap, or of the curves of depth."),
    width: float = option("Width in inches.", 3.3, min=2, max=20),
) -> None:
    """Draw a figure for a paper.

    depth: a metric by layer and module (the effective-rank shift), of up to four reports.

    spectrum: the singular values of one matrix. heatmap: a metric by layer and module.

    Exit codes: 0 done; 1 failed; 2 wrong usage.
    """
    from shadow.outputs.figures import OPTIONS, Choice, write_figure

    given = {"layer": layer, "metric": metric}
    for name, kinds in OPTIONS.items():
        if given[name] is not None and kind not in kinds:
            raise UsageError(
                f"--{name} does not apply to a {kind}", f"it is for --kind {' and '.join(kinds)}"
            )
    if component is not None:
        from shadow.places.names import check_component

        check_component(component)
    choice = Choice(component, tuple(module), layer=layer, metric=metric, width=width)
    folders = reports_below(reports_here(run, spectra=True))
    output = output or Path(f"{kind}.svg")
    for note in write_figure(kind, folders, output, choice=choice):
        console.say(f"{output}: {note}")
    console.say(f"wrote {output}")


def export(
    run: Path = option(FOLDER, ..., ARGUMENT, **RUN),
    to: ExportFormat = option("The format.", ..., "--to"),
    output: Path | None = written(
        "Folder to write.", metavar="PATH", show_default="RUN-csv and so on, here"
    ),
) -> None:
    """Export finished reports as CSV, Parquet or Markdown. All have one set of tables.

    An export is written completely or not at all, and replaces nothing.

    Exit codes: 0 done; 1 failed; 2 wrong usage.
    """
    from shadow.outputs.exports import export as export_to

    run = reports_here(run, spectra=True)
    target = output or Path(f"{run.absolute().resolve().name or 'reports'}-{to}")
    folders = reports_below(run)
    console.say(f"{counted(len(folders), 'report', 'reports')} in {export_to(folders, to, target)}")
