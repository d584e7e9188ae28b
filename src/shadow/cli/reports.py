"""Commands about finished reports: show, clean. What is printed of pairs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from shadow.cli import console
from shadow.cli import options as shared
from shadow.cli.options import FOLDER, RUN, reports_here
from shadow.errors import ShadowError
from shadow.options import ARGUMENT, option
from shadow.reports.folders import reports_below
from shadow.storage import Store, as_given, located, work_folder
from shadow.text import byte_size, counted, several

if TYPE_CHECKING:
    from shadow.checks.summary import Summary
    from shadow.gates.verdicts import Judgement
    from shadow.lists.index import Index
    from shadow.reports.metadata import ReportMetadata

    Shown = tuple[Summary, ReportMetadata, Path]

SIDE_BY_SIDE = 2  # pairs that fit a screen with their pictures; of more a table has a line each


def show(
    run: Path = option(FOLDER, Path("reports"), ARGUMENT, **RUN),
    format: Literal["table", "json", "jsonl", "markdown"] = option(
        "Print a table, json (short: --json), jsonl, which is JSON, one pair a line, or markdown,"
        " for a model card or a pull request.",
        "table",
        metavar="FORMAT",
    ),
    full: bool = option("Show every number and table of a pair.", False),
) -> None:
    """Show finished reports again. Of several also a table of them.

    For a list, first show how its pairs stand. Its index.json is brought up to date, as
    after copying the folders of several shards together.

    Exit codes: 0 done; 1 a report cannot be read; 2 wrong usage.
    """
    from shadow.lists.index import read_index
    from shadow.telling.reading import read_summary

    run = reports_here(run)
    index = read_index(run)
    folders = reports_below(run)
    if index is not None and folders == [run]:  # a list of which no pair is done
        folders = []
    reports: list[Shown] = []
    for folder in folders:
        try:
            reports.append((*read_summary(folder), folder))
        except ShadowError as fault:
            if len(folders) == 1:
                raise
            console.complain(fault)
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
        console.show_json_pairs(summaries, format, None if index is None else index.as_json())
    else:
        _show(reports, index, run, full=full)
    if len(reports) < len(folders):
        raise typer.Exit(1)


def _up_to_date(run: Path, index: Index, reports: Sequence[Shown]) -> Index:
    """Make the index of a list again from the reports in its folder.

    It is written where that is possible: not while the list is audited, nor without permission.
    """
    from shadow.files import alone_at
    from shadow.lists.index import LOCK, refreshed, report_folder, write_index

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


def _show(reports: Sequence[Shown], index: Index | None, run: Path, *, full: bool) -> None:
    """Print reports, and how the pairs of their list stand."""
    if index is not None:
        from shadow.lists.document import list_document

        console.show(list_document(index, as_given(run)))
    if index is None or full:  # of a list, a line a pair is there already
        for summary, provenance, folder in reports:
            show_pair(summary, provenance, folder, of=len(reports), full=full)
    if index is None and len(reports) > 1:
        from shadow.gates.verdicts import Judgement

        done = [Judgement(one.family, one.pair, summary=one) for one, _, _ in reports]
        show_pairs(done, run, full=full)


def show_pair(
    summary: Summary, provenance: ReportMetadata, folder: Path | str, *, of: int, full: bool = False
) -> None:
    """Print one of so many pairs, if it is shown by itself."""
    from shadow.telling.report import beside_another, report_document

    if of <= SIDE_BY_SIDE or full:
        document = report_document(summary, provenance, as_given(folder)).shown(full=full)
        console.show(document if of == 1 or full else beside_another(document))


def show_pairs(judged: Sequence[Judgement], folder: Path | str, *, full: bool = False) -> None:
    """Print how several pairs stand, how many they are, and where the rest is."""
    from shadow.gates.document import pairs_document

    all_seen = len(judged) <= SIDE_BY_SIDE and all(one.summary is not None for one in judged)
    console.show(pairs_document(judged, as_given(folder), has_table=full or not all_seen))


def clean(
    output: Path = shared.OUTPUT,
    cache: bool = option("Instead remove the spectra that are kept for later audits.", False),
) -> None:
    """Remove what unfinished audits left. That is partial results, and shards that were to be
    removed after use.

    Finished reports stay, and so does all the rest in the Hub's cache.
    """
    if cache:
        _clean_cache()
        return
    from shadow.run.journal import remove_unfinished

    place = located(output)
    here = work_folder(place) if isinstance(place, Store) else place  # where the work is done
    is_empty = here is not place and not here.is_dir()
    removed, busy = list[str](), list[str]()
    for folder, fetched in () if is_empty else remove_unfinished(here):
        (busy if fetched is None else removed).append(str(folder))
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


def _clean_cache() -> None:
    from shadow.run.runtime import default_folder, make_room, size_of

    folder = default_folder()
    if folder is None:
        raise ShadowError("there is no cache", "SHADOW_CACHE_DIR names its folder")
    size = size_of(folder)
    left = make_room(folder, 0)
    console.say(f"{folder}: {byte_size(size - left)} of spectra removed")
    if left:
        fault = f"{folder}: {byte_size(left)} could not be removed"
        raise ShadowError(fault, "check who owns the files")
