"""Commands about finished reports: show, report, export, figure, clean."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from shadow.cli import console
from shadow.cli import options as shared
from shadow.cli.options import written
from shadow.errors import ShadowError, UsageError
from shadow.extras import require
from shadow.options import option
from shadow.outputs import ExportFormat
from shadow.process_settings import keep_pandas_out
from shadow.reports.folders import found_below, here, reports_below
from shadow.storage import Store, as_given, located, work_folder
from shadow.text import counted, several

if TYPE_CHECKING:
    from shadow.checks.summary import Summary
    from shadow.gates.verdicts import Judgement
    from shadow.lists.index import Index
    from shadow.reports.provenance import ReportMetadata

    Shown = tuple[Summary, ReportMetadata, Path]

SIDE_BY_SIDE = 2  # pairs that fit a screen with their pictures; of more a table has a line each


def show(
    run: Path = shared.REPORTS,
    format: shared.MarkdownFormat = shared.MARKDOWN,
    full: bool = option("Show every number and table of a pair.", False),
) -> None:
    """Show finished reports again. Of several also a table of them.

    For a list, first show how its pairs stand. Its index.json is brought up to date, as
    after copying the folders of several shards together.

    Exit codes: 0 done; 1 a report cannot be read; 2 wrong usage.
    """
    keep_pandas_out()
    from shadow.lists.index import read_index
    from shadow.telling.reading import read_summary

    run = here(run)
    index = read_index(run)
    folders = reports_below(run)
    if index is not None and folders == [run]:  # a list of which no pair is done
        folders = []
    reports: list[Shown] = []
    for folder in console.each("show", folders):
        try:
            reports.append((*read_summary(folder), folder))
        except ShadowError as fault:
            if len(folders) == 1:
                raise
            console.complain(fault)
    reports.sort(key=lambda shown: str(shown[1].get("started")))  # as `audit` lists them
    if index is not None:
        index = _up_to_date(run, index, reports)
    if format == "markdown":
        from shadow.outputs.markdown import markdown
        from shadow.telling.report import report_document

        documents = [report_document(summary, provenance) for summary, provenance, _ in reports]
        texts = [markdown(document.shown(full=full), level=3) for document in documents]
        console.show_text("\n".join(texts))
    elif format != "table":
        summaries = [summary.as_json() for summary, _, _ in reports]
        console.show_json(summaries if index is None else {**index.as_json(), "reports": summaries})
    else:
        if index is not None:
            from shadow.gates.document import state_of
            from shadow.lists.document import list_document

            states = {pair.name: state_of(pair) for pair in _judged(reports)}
            console.show(list_document(index, as_given(run), states))
        if index is None or full:  # of a list, a line a pair is there already
            for summary, provenance, folder in reports:
                show_pair(summary, provenance, folder, of=len(reports), full=full)
        if index is None and len(reports) > 1:
            show_pairs(_judged(reports), run, [folder for *_, folder in reports], full=full)
    if len(reports) < len(folders):
        raise typer.Exit(1)


def _judged(reports: Sequence[Shown]) -> list[Judgement]:
    """The reports without rules: whether a pair is broken."""
    from shadow.gates.verdicts import Judgement

    return [Judgement(summary.family, summary.pair, summary=summary) for summary, *_ in reports]


def _up_to_date(run: Path, index: Index, reports: Sequence[Shown]) -> Index:
    """Make the index of a list again from the reports in its folder.

    It is written if possible: not while the list is audited, nor without permission.
    """
    from shadow.files import alone_at, report_folder
    from shadow.lists.index import LOCK, refreshed, write_index

    own = [
        (summary, provenance)
        for summary, provenance, folder in reports
        if folder == run / report_folder(summary.family, summary.pair)
    ]
    new = refreshed(index, own)
    if new != index:
        with contextlib.suppress(ShadowError), alone_at(run, LOCK):
            write_index(run, new)
    return new


def show_pair(
    summary: Summary, provenance: ReportMetadata, folder: Path | str, *, of: int, full: bool = False
) -> None:
    """Print one of several pairs, if each is shown separately."""
    from shadow.telling.report import beside_another, report_document

    if of <= SIDE_BY_SIDE or full:
        document = report_document(summary, provenance, as_given(folder)).shown(full=full)
        console.show(document if of == 1 or full else beside_another(document))


def show_pairs(
    judged: Sequence[Judgement], folder: Path | str, folders: Sequence[Path], *, full: bool = False
) -> None:
    """Print the states of several pairs, how many there are, how two models of one base differ, and
    where to find the rest.
    """
    from shadow.comparing.comparison import compare
    from shadow.telling.comparisons import contrast_document

    bases = {judgement.summary and judgement.summary.base.get("content") for judgement in judged}
    if len(folders) == 2 and len(bases) == 1:
        with contextlib.suppress(ShadowError):  # the two cannot be compared
            console.show(contrast_document(compare(folders)))
    from shadow.gates.document import pairs_document

    all_seen = len(judged) <= SIDE_BY_SIDE and all(
        judgement.summary is not None for judgement in judged
    )
    console.show(pairs_document(judged, as_given(folder), has_table=full or not all_seen))


def clean(output: Path = shared.OUTPUT) -> None:
    """Remove what unfinished audits left. That is partial results, and shards that were to be
    removed after use.

    Finished reports and other files in the Hub's cache stay.
    """
    from shadow.run.journal import remove_unfinished

    place = located(output)
    work = work_folder(place) if isinstance(place, Store) else place
    is_empty = work is not place and not work.is_dir()
    unfinished = [] if is_empty else remove_unfinished(work)
    removed: list[str] = []
    busy: list[str] = []
    for folder, fetched in unfinished:
        if fetched is None:
            busy.append(str(folder))
            continue
        removed.append(str(folder))
        if fetched:
            from shadow.checkpoints.hub import forget, remove_leftovers

            for shard in fetched:
                remove_leftovers(shard.repo, shard.checksum)
                if not shard.keep:
                    forget(shard.repo, shard.commit, shard.path, checksum=shard.checksum)
    if removed:
        console.say(f"removed the unfinished work of {counted(len(removed), 'audit', 'audits')}")
        for name in removed:
            console.say(f"  {name}")
    if busy:
        raise ShadowError(f"an audit is writing to {several(busy)}", "wait for it, or stop it")
    if not removed:
        console.say("no unfinished audits there")


FigureKind = Literal["depth", "spectrum", "heatmap"]


def report(
    run: Path = shared.REPORTS,
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
    keep_pandas_out()
    from shadow.outputs.page import write_page

    run = here(run, spectra=True)
    folders = found_below(run)
    was_there = output.exists()
    with console.steps("report") as update:
        pairs, size, unreadable = write_page(run, folders, output, show=update)
    for fault in unreadable:
        console.complain(fault)
    if not pairs:
        console.say(
            f"there is no finished report below {run}: name a folder that `shadow audit` made"
        )
    if was_there:
        console.say(f"replaced {output}")
    console.say(f"{counted(pairs, 'report', 'reports')} in {output}, {size / 1e6:.1f} MB")
    if unreadable:
        raise typer.Exit(1)


def figure(
    run: Path = shared.REPORTS,
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
    from shadow.outputs.figures import Choice, write_figure

    if layer is not None and kind != "spectrum":
        raise UsageError(f"--layer does not apply to a {kind}", "it is for --kind spectrum")
    if metric is not None and kind == "spectrum":
        hint = "it is for --kind depth and heatmap"
        raise UsageError("--metric does not apply to a spectrum", hint)
    if component is not None:
        from shadow.places.names import check_component

        check_component(component)
    choice = Choice(component, tuple(module), layer=layer, metric=metric, width=width)
    folders = reports_below(here(run, spectra=True))
    output = output or Path(f"{kind}.svg")
    for note in write_figure(kind, folders, output, choice):
        console.say(f"{output}: {note}")
    console.say(f"wrote {output}")


def export(
    run: Path = shared.REPORTS,
    to: ExportFormat = option("The format.", ..., "--to"),
    output: Path | None = written(
        "Folder to write.", metavar="PATH", show_default="RUN-csv and so on, here"
    ),
) -> None:
    """Export finished reports as CSV, Parquet or Markdown. All have one set of tables.

    An export is written completely or not at all, and replaces nothing.

    Exit codes: 0 done; 1 failed; 2 wrong usage.
    """
    keep_pandas_out()
    from shadow.outputs.exports import export as export_to

    run = here(run, spectra=True)
    target = output or Path(f"{run.absolute().resolve().name or 'reports'}-{to}")
    folders = reports_below(run)
    export_to(console.each("export", folders), to, target)
    console.say(f"{counted(len(folders), 'report', 'reports')} in {target}")
