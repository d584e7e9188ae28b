"""Commands about finished reports: show, compare, clean."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from shadow.cli import console
from shadow.cli import options as option
from shadow.cli.arguments import reports_here, scores_of
from shadow.cli.screens import show_pair, show_pairs
from shadow.errors import ShadowError, UsageError
from shadow.reports.folders import reports_below, reports_of
from shadow.storage import Store, located, work_folder
from shadow.text import counted, several

if TYPE_CHECKING:
    from shadow.checks.summary import Summary
    from shadow.lists.index import Index
    from shadow.reports.metadata import ReportMetadata

    Shown = tuple[Summary, ReportMetadata, Path]


def show(
    run: option.RunFolders = option.DEFAULT_OUTPUT,
    format: Annotated[
        Literal["table", "json", "jsonl", "markdown"],
        typer.Option(
            "--format",
            help=(
                "Print a table, json, jsonl or markdown. jsonl is JSON, one pair a line;"
                " markdown is for a model card or a pull request."
            ),
            metavar="FORMAT",
        ),
    ] = "table",
    json: option.Json = False,
    full: Annotated[
        bool, typer.Option("--full", help="Show every number and table of a pair.")
    ] = False,
) -> None:
    """Show finished reports again, and a table of them if there are several.

    For a list, first show how its pairs stand. Its index.json and batch.parquet are brought up to
    date, as after copying the folders of several shards together.

    Exit codes: 0 done; 1 a report cannot be read; 2 wrong usage.
    """
    from shadow.lists.index import read_index

    if json:
        format = "json"
    run = reports_here(run)
    folders = reports_below(run)
    index = read_index(run)
    if index is not None and folders == [run]:  # a list of which no pair is done
        folders = []
    reports = _readable(folders)
    if index is not None:
        index = _up_to_date(run, index, reports)
    if index is not None and format == "table":
        from shadow.lists.document import list_document

        console.show(list_document(index))
    _show(reports, index, run, format, full=full)
    if len(reports) < len(folders):
        raise typer.Exit(1)


def _readable(folders: Sequence[Path]) -> list[Shown]:
    """The reports that can be read; of the others, what is wrong. A single one raises its fault."""
    from shadow.telling.reading import read_summary

    reports = []
    for folder in folders:
        try:
            reports.append((*read_summary(folder), folder))
        except ShadowError as fault:
            if len(folders) == 1:
                raise
            console.complain(fault)
    return reports


def _up_to_date(run: Path, index: Index, reports: Sequence[Shown]) -> Index:
    """Make the index of a list again from the reports in its folder.

    It is written where that is possible: not while the list is audited, nor without permission.
    """
    from shadow.files import alone_at
    from shadow.lists.index import LOCK, refreshed, report_folder, write_index

    new = refreshed(
        index,
        [
            (summary, provenance)
            for summary, provenance, folder in reports
            if folder == run / report_folder(summary.family, summary.pair)
        ],
    )
    if new != index:
        with contextlib.suppress(ShadowError), alone_at(run, LOCK):
            write_index(run, new)
    return new


def _show(
    reports: Sequence[Shown],
    index: Index | None,
    run: Path,
    format: str,
    *,
    full: bool,
) -> None:
    """Reports in the format that was asked for. index: of their list."""
    if format in ("json", "jsonl"):
        summaries = [summary.as_json() for summary, _, _ in reports]
        console.show_json_pairs(summaries, format, None if index is None else index.as_json())
        return
    if format == "markdown":
        from shadow.outputs.markdown import markdown
        from shadow.telling.report import report_document

        documents = [report_document(summary, provenance) for summary, provenance, _ in reports]
        texts = [markdown(document.shown(full=full), level=3) for document in documents]
        console.show_text("\n".join(texts))
        return
    if index is None or full:  # of a list, a line a pair is there already
        for summary, provenance, folder in reports:
            show_pair(summary, provenance, folder, of=len(reports), full=full)
    if index is None and len(reports) > 1:
        from shadow.gates.verdicts import Judgement

        done = [
            Judgement(summary.family, summary.pair, summary=summary) for summary, _, _ in reports
        ]
        show_pairs(done, run, full=full)


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Two or more reports: their folders, or folders above them; may be URLs.",
            metavar="RUN",
            callback=option.places,
        ),
    ],
    margin: Annotated[
        float,
        typer.Option(
            help=(
                "Smallest difference of concentration that counts. The margins of the other figures"
                " follow from it."
            )
        ),
    ] = 0.05,
    allow_different_base: Annotated[
        bool,
        typer.Option("--allow-different-base", help="Also compare deltas from different bases."),
    ] = False,
    scores: option.Scores = None,
    joint: Annotated[
        bool,
        typer.Option("--joint", help="Also compare where the deltas point; reads the checkpoints."),
    ] = False,
    output: Annotated[
        Path | None,
        option.written(
            help="Parquet file for the compared rows, one for each matrix.",
            metavar="FILE",
            dir_okay=False,
        ),
    ] = None,
    jobs: option.Jobs = None,
    allow_pickle: Annotated[
        bool,
        typer.Option("--allow-pickle", help="Read torch .bin files, in a child process."),
    ] = False,
    format: option.Format = "table",
    json: option.Json = False,
) -> None:
    """Compare whose delta is more concentrated: two models tuned from one base, or two stages of
    one lineage.

    Differences are paired over the same matrices, with their spread over layers and a margin.

    With --joint, also say how far two changes of one base point the same way. The checkpoints must
    be in folders or in the Hub's cache.

    With --scores, also correlate gains with concentrations, over up to 200 reports of any bases.

    Exit codes: 0 done, whatever the verdict; 1 failed; 2 wrong usage.
    """
    as_json = json or format == "json"
    from shadow.comparing import comparison as comparing
    from shadow.reports.columns import COMPARISON
    from shadow.reports.parquet import write_rows
    from shadow.telling.comparison import comparison_document

    runs = [reports_here(run) for run in runs]
    folders = reports_of(runs, once=bool(scores))
    comparing.check_count(len(folders), scored=bool(scores))
    if not 0 <= margin <= 1:
        raise UsageError(
            f"--margin {margin:g} is out of range", "give a number from 0 to 1, such as 0.05"
        )
    comparison = comparing.compare(
        folders,
        margin=margin,
        allow_different_base=allow_different_base,
        scores=scores_of(scores),
    )
    if joint:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before the client is imported, which reads it then
        from shadow.lists.joint import with_directions

        with console.steps("compare") as update:
            comparison = with_directions(
                comparison, jobs=jobs, allow_pickle=allow_pickle, say=console.say, show=update
            )
    if output is not None and comparison.not_contrasted:
        raise ShadowError(f"no rows for {output}: {comparison.not_contrasted}", "leave -o out")
    if output is not None:
        write_rows(output, COMPARISON, comparison.rows, provenance=comparison.provenance)
        console.say(f"{len(comparison.rows)} rows in {output}")
    if as_json:
        console.show_json(comparison.as_json())
    else:
        console.show(comparison_document(comparison))


def clean(
    output: option.Output = option.DEFAULT_OUTPUT,
    cache: Annotated[
        bool,
        typer.Option("--cache", help="Instead remove the spectra that are kept for later audits."),
    ] = False,
) -> None:
    """Remove what unfinished audits left: partial results, and shards that were to be removed after
    use.

    Finished reports stay, and so does everything else in the Hub's cache.
    """
    if cache:
        _clean_cache()
        return
    from shadow.run.journal import remove_unfinished

    place = located(output)
    if isinstance(place, Store):  # work is done on this machine
        place = work_folder(place)
        if not place.is_dir():
            console.say("no unfinished audits there")
            return
    removed, busy = list[Path](), list[Path]()
    for folder, fetched in remove_unfinished(place):
        (busy if fetched is None else removed).append(folder)
        if fetched:
            from shadow.checkpoints.hub import forget, remove_leftovers

            for shard in fetched:
                remove_leftovers(shard.repo, shard.checksum)
                if not shard.keep:
                    forget(shard.repo, shard.commit, shard.path, checksum=shard.checksum)
    if removed:
        audits = counted(len(removed), "audit", "audits")
        console.say(f"removed the unfinished work of {audits}")
        for folder in removed:
            console.say(f"  {folder}")
    if busy:
        where = several([str(folder) for folder in busy])
        raise ShadowError(f"an audit is writing to {where}", "wait for it, or stop it")
    if not removed:
        console.say("no unfinished audits there")


def _clean_cache() -> None:
    from shadow.run.runtime import default_folder, make_room, size_of
    from shadow.text import byte_size

    folder = default_folder()
    if folder is None:
        raise ShadowError("there is no cache", "SHADOW_CACHE_DIR names its folder")
    size = size_of(folder)
    left = make_room(folder, 0)
    console.say(f"{folder}: {byte_size(size - left)} of spectra removed")
    if left:
        raise ShadowError(
            f"{folder}: {byte_size(left)} could not be removed", "check who owns the files"
        )
