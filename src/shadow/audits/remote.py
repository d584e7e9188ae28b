"""The audit of one pair whose report is at a URL: measured on this disk, then uploaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shadow.audits.finished import already_done, differences, finished, named
from shadow.audits.pair import run_pair
from shadow.audits.result import AuditResult
from shadow.errors import KeptError, ShadowError
from shadow.files import PARTIAL, alone_at, remove_empty, safe_name, writing
from shadow.reports.atomic_replacement import FILES_OF_A_PAIR, FINISHED
from shadow.reports.remote import fetched_if_any, publish
from shadow.run.journal import JOURNAL
from shadow.run.runtime import Runtime
from shadow.run.settings import Settings
from shadow.run.sides import identity_of
from shadow.storage import Store, as_given
from shadow.targets.families import Pair


def run_remote_pair(
    pair: Pair,
    settings: Settings,
    output: Path,
    runtime: Runtime = Runtime(),  # noqa: B008 - frozen
    *,
    store: Store,
) -> AuditResult:
    """Audit one pair in output as `run_pair` does, and move the report to the store.

    Raises what run_pair raises, and ShadowError where the store fails; then the report stays in
    output, and the same call uploads it.
    """
    names = safe_name(pair.family), safe_name(pair.name)
    folder, target = output.joinpath(*names), store.at(*names)
    if not (folder / FINISHED).is_file():  # else an earlier upload failed
        copy = fetched_if_any(target, spectra=False)
        there = None if copy is None else _there(copy, pair, settings, runtime)
        if there is not None:
            return replace(there, url=target.url)
    result = run_pair(pair, settings, output, runtime)
    with writing(folder), alone_at(folder, JOURNAL):
        if (folder / FINISHED).is_file():  # else another process has just uploaded it
            try:
                publish(folder, target)
            except ShadowError as error:
                hint = "run the same command again, which measures nothing: its report is finished"
                raise ShadowError(f"{error.message}; not uploaded: {folder}", hint) from None
            for name in reversed(FILES_OF_A_PAIR):
                (folder / name).unlink(missing_ok=True)
    remove_empty(folder.absolute() / PARTIAL, output.absolute().parent)
    return replace(result, url=target.url)


def _there(copy: Path, pair: Pair, settings: Settings, runtime: Runtime) -> AuditResult | None:
    """The report that was fetched, if it is what was asked for; None where it is measured again.

    Raises KeptError where it is another one and stays.
    """
    there, broken = finished(copy)
    if there is not None:
        asked = identity_of(pair, settings, runtime)
        other = differences(there, asked)
        if other and not runtime.overwrite:
            message = as_given(f"{copy}: the finished report there differs: {named(other)}")
            raise KeptError(message, "replace it with --overwrite, or choose another place with -o")
        if not other:
            done, broken = already_done(copy, there, asked, runtime, spectra=False)
            if done is not None:
                return done
    if broken:
        runtime.say(as_given(f"measuring again: {broken}"))
    return None
