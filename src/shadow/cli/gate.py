"""`shadow gate`, and the rules, baselines and exit codes that it shares with `audit`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from shadow.cli import console
from shadow.cli import options as shared
from shadow.errors import ShadowError, UsageError
from shadow.files import safe_name
from shadow.process_settings import keep_pandas_out
from shadow.reports.folders import (
    fetched_if_any,
    found_below,
    here,
    meant,
    report_metadata,
    reports_below,
)
from shadow.run.runtime import ignore
from shadow.storage import Store, as_given, located, url_of
from shadow.text import visible

if TYPE_CHECKING:
    from shadow.gates.measured import JudgedReport, Name
    from shadow.gates.rules import Rule
    from shadow.gates.verdicts import Judgement
    from shadow.telling.document import Document


def gate(
    rules: shared.Rules,
    runs: Sequence[Path] = shared.SEVERAL,
    listed: str | None = shared.LISTED,
    registry: Path | None = shared.REGISTRY,
    format: shared.Format = shared.FORMAT,
    quiet: bool = shared.QUIET,
) -> None:
    """Check finished reports against rules and a baseline, for CI. `audit` does the same with the
    same options.

    A missing pair of a list is an error, and does not pass: of the list that --list names, or of
    the one that was audited into the folder.

    Exit codes: 0 no rule was violated; 1 failed, or a rule had nothing to judge; 2 wrong usage; 3
    a side is broken, or the two are not states of one model; 4 a rule was violated; 5 a check
    is inconclusive, or a figure rests on less than half of the change.
    """
    begin(rules.junit, "gate")
    judging = rules_of(rules)
    if not judging and listed is None:
        hint = "add --fail-on, --policy, --against or --list"
        raise UsageError("nothing to check the reports against", hint)
    from shadow.gates.document import rules_document
    from shadow.gates.measured import OFFLINE, read_measured
    from shadow.gates.verdicts import judge_report
    from shadow.lists.index import read_index
    from shadow.targets.lists import select

    selection = select(registry=registry, listed=listed)
    runs = [here(run) for run in runs]
    below = reports_below if listed is None else found_below
    folders: dict[Path, Path] = {}  # the last path to each
    indexes = {}
    for run in runs:
        index = read_index(run)
        if index is not None:
            indexes[run] = index
        for folder in below(run):
            # a folder of a list of which no pair is done holds no report
            if folder != run or run not in indexes:
                folders[folder.resolve()] = folder
    judged: list[Judgement] = []
    names: dict[Path, Name] = {}
    for path, folder in folders.items():
        try:
            metadata = report_metadata(folder)
            names[folder] = (metadata["family"], metadata["pair"])
        except ShadowError as error:
            judged.append(at_fault((path.parent.name, path.name), error))
    known = {*names.values()}
    known |= {(judgement.family, judgement.pair) for judgement in judged}
    wanted = {(pair.family, pair.name): "not audited yet" for pair in selection.pairs}
    for index in indexes.values():
        for row in index.rows:
            wanted[row.key] = row.error or f"{row.state} by index.json"
            if row.state == "kept":  # a report of other settings
                known.discard(row.key)
    for name, why in wanted.items():
        as_folders = (safe_name(name[0]), safe_name(name[1]))
        if name not in known and as_folders not in known:
            fault = f"{':'.join(name)} has no report of its list: {why}"
            hint = "audit the list again, with --overwrite where a report differs"
            judged.append(at_fault(name, ShadowError(fault, hint)))
    say = ignore if quiet else console.say
    baselines = baselines_of(rules, list(names.values()), say)
    watch = console.pairs_progress(len(names), hidden=quiet)
    for folder, name in names.items():
        baseline = baselines.get(name)
        try:
            if baseline is not None and baseline.source.folder.resolve() == folder.resolve():
                hint = "name an earlier report with --against"
                raise ShadowError(f"{folder} is its own baseline", hint)
            with watch(":".join(name)) as show:
                now = read_measured(folder, reading=replace(OFFLINE, show=show))
                judgement = judge_report(judging, now, baseline)
        except ShadowError as error:
            judged.append(at_fault(name, error))
            continue
        judged.append(judgement)
        if format == "table" and not quiet:
            console.show(rules_document(judgement, titled=True))
    if format != "table":
        console.show_json([judgement.as_json() for judgement in judged])
    elif quiet or not judging:
        show_headlines(judged)
    finish(judged, rules)


def show_headlines(judged: Sequence[Judgement]) -> None:
    """Print a line for each pair that has a report, instead of its tables."""
    for judgement in judged:
        if judgement.summary is not None:
            line = f"{judgement.name}: {judgement.summary.finding.headline}"
            console.show_text(f"{visible(line)}\n")


def begin(junit: Path | None, command: str) -> None:
    """Replace the JUnit file of an earlier run by an error, before the work begins."""
    keep_pandas_out()
    if junit is not None:
        from shadow.outputs.ci import begin_junit

        begin_junit(junit, command)


def rules_of(rules: shared.Rules) -> tuple[Rule, ...]:
    """The rules of a command. Raises UsageError for an invalid one."""
    if not rules.fail_on and rules.policy is None and rules.against is None:
        return ()
    from shadow.gates.rules import gather

    against = rules.against is not None
    return gather(rules.fail_on, rules.policy, against=against, allow_missing=rules.allow_missing)


def at_fault(name: Name, error: ShadowError, **more: Any) -> Judgement:
    """Print the error of a pair that has no new report, and judge the pair."""
    from shadow.gates.verdicts import Judgement

    console.complain(error)
    return Judgement(*name, fault=as_given(error.message), **more)


def baselines_of(
    rules: shared.Rules, pairs: Sequence[Name], say: Callable[[str], None]
) -> dict[Name, JudgedReport]:
    """The earlier reports of pairs. say: called with a line if there are none.

    Raises ShadowError if there is no such folder, or it holds no reports.
    """
    against = rules.against
    if against is None:
        return {}
    from shadow.gates.measured import read_baselines

    place = located(against)
    if isinstance(place, Store):
        place = fetched_if_any(place, spectra=False) or against
    if place.is_dir():
        return read_baselines(place, reports_below(place), pairs)
    url = url_of(against)
    close = None if url else meant(against)
    if not rules.allow_missing:
        hint = close or "name finished reports, or add --allow-missing for a first run"
        raise ShadowError(f"no such folder: {url or against}", hint)
    note = f"no baseline: there is no folder {url or against}"
    say(f"{note}; {close}" if close else note)
    return {}


def summarise(shown: Document) -> None:
    """Append to the summary of the step, if GitHub Actions runs one."""
    from shadow.outputs.ci import append_summary

    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            append_summary(Path(summary), shown)
        except OSError as error:  # the answers are what was asked for
            fault = f"cannot write {summary}: {error.strerror or error}"
            console.say(f"no summary of the step: {fault}")


def finish(judged: Sequence[Judgement], rules: shared.Rules, *, wrong_usage: bool = False) -> None:
    """Report the results of all pairs to people, GitHub Actions and a JUnit file, and exit with
    their code.

    wrong_usage: no pair has what was asked for.
    """
    from shadow.checks.answer import first_code
    from shadow.gates.document import gate_document
    from shadow.outputs import ci

    without_baseline = None
    if rules.against is not None and ci.is_without_baseline(judged):
        against = url_of(rules.against) or rules.against
        without_baseline = f"no baseline: nothing was compared with {against}"
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for command in ci.workflow_commands(judged, without_baseline):
            console.annotate(command)
    else:
        for text in ci.sentences(judged):
            console.say(text)
    summarise(gate_document(judged))
    if rules.junit is not None:
        ci.write_document(rules.junit, ci.junit(judged))
    if total := ci.counts(judged):
        console.say(total)
    if without_baseline is not None:
        console.say(f"WARNING: {without_baseline}")
    code = first_code({judgement.code for judgement in judged})
    if wrong_usage:
        code = 2
    if code:
        raise typer.Exit(code)
