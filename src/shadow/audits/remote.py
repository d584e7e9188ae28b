"""The audit of one pair whose report is published at a URL: measured on this disk, then uploaded.

Journal and scratch never leave the machine. A report that is finished stays on its disk until all
of it is at the URL.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from shadow.audits.finished import differences, named, notes_of_age
from shadow.audits.journal import remove_journal_of
from shadow.audits.list_index import is_held
from shadow.audits.pair import run_pair, when_free
from shadow.audits.runtime import AuditResult, Runtime, Settings
from shadow.audits.sides import identity_of
from shadow.errors import BusyError, KeptError, ShadowError
from shadow.files import PARTIAL, nearest_folder, remove_empty, safe_name, writing
from shadow.reports.atomic_replacement import FILES_OF_A_PAIR, FINISHED
from shadow.reports.metadata import ReportMetadata
from shadow.reports.provenance import Identity, finished_metadata, require_tables
from shadow.reports.remote import (
    OvertakenError,
    fetched,
    kept_token,
    outlined,
    publish,
    standing,
    told_as,
)
from shadow.reports.report import Report
from shadow.storage import Store
from shadow.targets.families import Pair
from shadow.telling.reading import read_summary

UPLOADER = "uploading"  # in the folder of a pair: who this machine was, when it began to upload


def run_remote_pair(
    pair: Pair,
    settings: Settings,
    output: Path,
    runtime: Runtime = Runtime(),  # noqa: B008 - frozen
    *,
    store: Store,
) -> AuditResult:
    """Audit one pair as `run_pair` does, and publish the report at `store/<family>/<pair>/`.

    output is the folder of this machine to work in; nothing of the pair is left there when its
    report is published. Of a report that is there already its provenance and its summary are read,
    and no table. Arguments, result and faults can be pickled. Raises what run_pair raises, and
    ShadowError where the store fails; then the report stays in output, and the same call goes on
    from there.
    """
    folder = output / safe_name(pair.family) / safe_name(pair.name)
    target = store.at(safe_name(pair.family), safe_name(pair.name))
    with _alone(folder, output, runtime):
        there, broken = standing(target)
        if there is not None:
            asked = identity_of(pair, settings, runtime, there)
            done, broken = _already_there(target, folder, there, asked, runtime)
            if done is not None:
                return done
        # an earlier upload failed
        waiting = (folder / FINISHED).is_file()
        if broken and not waiting:
            runtime.say(f"measuring again: {broken}")
        elif there is not None and not waiting:
            _take_over(target, folder)
        before = _digests(folder)
        result = run_pair(pair, settings, output, runtime)
        is_there = not waiting and _digests(folder) == before
        if there is None or not is_there or finished_metadata(folder) != there:
            try:
                _publish(folder, target, there, runtime)
            except OvertakenError:
                other = _other(
                    target,
                    folder,
                    partial(identity_of, pair, settings, runtime),
                    runtime,
                )
                if other is None:
                    raise
                return other
        _remove(folder)
        return replace(result, url=target.url)


def _other(
    target: Store,
    folder: Path,
    asked_of: Callable[[ReportMetadata], Identity],
    runtime: Runtime,
) -> AuditResult | None:
    """The report that another process was faster with; None where it is not what was asked for."""
    there, _ = standing(target)
    if there is None or differences(there, asked := asked_of(there)):
        return None
    runtime.say("another audit of the pair was faster: its report stays")
    done, _ = _already_there(target, folder, there, asked, replace(runtime, overwrite=False))
    return done


def _already_there(
    target: Store,
    folder: Path,
    there: ReportMetadata,
    asked: Identity,
    runtime: Runtime,
) -> tuple[AuditResult | None, str]:
    """The report at the URL, if it is what was asked for; or what is wrong with it.

    Neither where it is to be replaced or renewed.

    Raises KeptError where it is another one and stays.
    """
    other = differences(there, asked)
    if other and not runtime.overwrite:
        message = f"{target}: the finished report there differs: {named(other)}"
        raise KeptError(message, "replace it with --overwrite, or choose another place with -o")
    if other or there["settings"].get("optimizer") != asked.settings.get("optimizer"):
        return None, ""
    with outlined(target) as outline:
        if outline is None:  # removed meanwhile
            return None, ""
        try:
            with told_as(outline, target):
                require_tables(outline, there, spectra=True)
                notes = notes_of_age(there, Report(outline).absent)
        except ShadowError as error:
            return None, error.message
        if notes and runtime.overwrite:
            return None, ""
        try:
            summary, _ = read_summary(outline, with_rows=False)
        except ShadowError:  # made by another version: from the rows, then
            copy = fetched(target, spectra=False)
            try:
                with told_as(copy, target):
                    summary, _ = read_summary(copy)
            except ShadowError as error:
                return None, error.message
    runtime.say("; ".join(["nothing to measure: the report is already there", *notes]))
    _tidy(folder, asked, runtime)
    done = AuditResult(folder, summary, measured=0, provenance=there, url=target.url)
    return done, ""


def _tidy(folder: Path, asked: Identity, runtime: Runtime) -> None:
    """Remove what an audit left here whose report is published. One of anything else stays."""
    remove_journal_of(folder, asked)
    left = finished_metadata(folder)
    if left is not None:
        other = ""
        if differences(left, asked):
            other = "of other settings or files"
        elif left["settings"].get("optimizer") != asked.settings.get("optimizer"):
            other = "of another --optimizer"
        if other:
            runtime.say(f"a report {other}, which was not uploaded, stays in {folder}")
            return
    _remove(folder)


def _take_over(target: Store, folder: Path) -> None:
    """The report at the URL, as the one that is changed here."""
    copy = fetched(target)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES_OF_A_PAIR:  # the one by which it is found comes last
            if (copy / name).is_file():
                aside = folder / f".{name}.tmp"
                shutil.copyfile(copy / name, aside)
                aside.replace(folder / name)
    shutil.rmtree(copy, ignore_errors=True)


def _publish(folder: Path, target: Store, there: ReportMetadata | None, runtime: Runtime) -> None:
    """Upload the report. Raises ShadowError, which says where it is, when that fails."""
    try:
        token = kept_token(folder / UPLOADER)
        # What a task has measured lies on its machine alone. The other may be the same task, on a
        # machine that was lost while it uploaded.
        outlasts = runtime.patience > 0 and runtime.elsewhere is None
        publish(folder, target, token=token, replaces=there, say=runtime.say, outlasts=outlasts)
    except ShadowError as error:
        hint = (
            f"{error.hint or 'run the same command again'}; the same command measures nothing again"
        )
        message = f"{error.message}; the report is finished, but not uploaded: it is in {folder}"
        raise type(error)(message, hint) from None


def _digests(folder: Path) -> dict[str, str]:
    """A sha256 of every file of the report in a folder."""
    digests = {}
    for name in FILES_OF_A_PAIR:
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _remove(folder: Path) -> None:
    """Remove the report of a folder, which is published, the file by which it is found first."""
    with writing(folder):
        for name in (*reversed(FILES_OF_A_PAIR), UPLOADER):
            (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(folder: Path, output: Path, runtime: Runtime) -> Iterator[None]:
    """One process of this machine at a time works on a pair; a second one is refused, after it has
    waited for as long as it may.

    No empty folder is left.
    """
    there = nearest_folder(output)
    handle = when_free(partial(_held, folder), runtime)
    try:
        yield
    finally:
        remove_empty(folder.absolute() / PARTIAL, there)
        if handle is not None:
            os.close(handle)


def _held(folder: Path) -> int | None:
    """A handle that holds the folder of a pair, which is made; None where there are no handles.

    Raises BusyError where another process holds it, or has removed it just now, at its end.
    """
    busy = BusyError(
        f"another audit is writing to {folder}", "wait for it, or choose another place with -o"
    )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder, os.O_RDONLY)
        except PermissionError:  # Windows has no handles of folders
            return None
        except FileNotFoundError:
            raise busy from None
    if not is_held(folder, handle):
        os.close(handle)
        raise busy
    return handle
