"""`shadow gate`, and the rules, baselines and exit codes that it shares with `audit`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shadow.cli import console
from shadow.cli.options import Against, AllowMissing, FailOn, Format, FormatOption, Junit, PolicyFile
from shadow.errors import ShadowError, UsageError
from shadow.reports.folders import reports_below

if TYPE_CHECKING:
    from shadow.audits.index import Index
    from shadow.audits.pair import AuditResult
    from shadow.gates.rules import Rule
    from shadow.gates.verdicts import Judgement, Measured


def gate(
    runs: Annotated[
        list[Path], typer.Argument(help="Finished reports: their folders, or folders above them.", metavar="RUN")
    ],
    fail_on: FailOn = None,
    policy: PolicyFile = None,
    against: Against = None,
    allow_missing: AllowMissing = False,
    junit: Junit = None,
    format: FormatOption = Format.table,
) -> None:
    """Check finished reports against rules and a baseline, for CI, as `audit` does with the same options.

    A missing pair or shard of a list is an error, and does not pass.

    Exit codes: 0 no rule was met; 1 could not, or a rule had nothing to judge; 2 wrong usage; 4 a rule was met.
    """
    rules = rules_of(fail_on, policy, against, allow_missing, junit)
    if not rules:
        raise UsageError("nothing to check the reports against", "add --fail-on, --policy or --against")
    from shadow.audits.index import read_index
    from shadow.gates.verdicts import judge_report, read_measured
    from shadow.outputs.terminal.rules import rules_view
    from shadow.reports.provenance import required_metadata

    judged: list[Judgement] = []
    names: dict[Path, tuple[str, str]] = {}
    found = {run: reports_below(run) for run in runs}
    indexes = {run: index for run in runs if (index := read_index(run)) is not None}
    for folder in {
        folder.resolve(): folder
        for run, folders in found.items()
        for folder in folders
        if folder != run or run not in indexes  # a list of which no pair is done
    }.values():
        try:
            metadata = required_metadata(folder)
            names[folder] = metadata["family"], metadata["pair"]
        except ShadowError as error:
            judged.append(at_fault(folder.resolve().parent.name, folder.resolve().name, error))
    for run, index in indexes.items():
        judged += _not_there(run, index, set(names.values()))
    baselines = baselines_of(against, list(names.values()), allow_missing)
    for folder, name in names.items():
        try:
            baseline = baselines.get(name)
            if baseline and baseline.report.folder.resolve() == folder.resolve():
                raise ShadowError(f"{folder} is its own baseline", "name an earlier report with --against")
            judged.append(judge_report(rules, read_measured(folder), baseline))
        except ShadowError as error:
            judged.append(at_fault(*name, error))
            continue
        if format is Format.table:
            console.display(rules_view(judged[-1], titled=True))
    if format is Format.json:
        console.show_json([one.as_json() for one in judged])
    finish(judged, junit)


def _not_there(run: Path, index: Index, there: set[tuple[str, str]]) -> list[Judgement]:
    """The faults of a list's folder: pairs that have no report or another one, and shards that are elsewhere."""
    kept = [
        at_fault(row.family, row.pair, ShadowError(f"{row.name}: {row.error}", "run the list again, with --overwrite"))
        for row in index.rows
        if row.state == "kept"
    ]
    hint = "finish the list, or name the folders of its families"
    missing = [
        at_fault(row.family, row.pair, ShadowError(f"{row.name} has no report: {row.error or row.state}", hint))
        for row in index.rows
        if row.key not in there and row.state != "kept"
    ]
    return (
        kept
        + missing
        + [
            at_fault(
                str(run), f"shard {shard}", ShadowError(f"{run} lacks shard {shard} of its list", "merge all shards")
            )
            for shard in index.missing_shards
        ]
    )


def judged_of(result: AuditResult, rules: Sequence[Rule], baseline: Measured | None, strict: bool) -> Judgement:
    from shadow.gates.verdicts import Judgement, judge_report, read_measured

    summary, seconds = result.summary, result.provenance.get("seconds") if result.measured else 0.0
    objections = tuple(sorted(result.should_not_have_skipped)) if strict else ()
    if not rules:
        return Judgement(summary.family, summary.pair, summary, seconds, objections=objections)
    now = read_measured(result.folder, summary=summary)
    return judge_report(rules, now, baseline, seconds=seconds, objections=objections)


def rules_of(
    fail_on: list[str] | None, policy: Path | None, against: Path | None, allow_missing: bool, junit: Path | None
) -> tuple[Rule, ...]:
    """The rules of a command; refuses a file for JUnit that may not be written over."""
    if junit is not None:
        from shadow.outputs.ci import check_junit

        check_junit(junit)
    if not fail_on and policy is None and against is None:
        return ()
    from shadow.gates.rules import gather

    return gather(fail_on or [], policy, against is not None, allow_missing)


def at_fault(family: str, pair: str, error: ShadowError) -> Judgement:
    from shadow.gates.verdicts import Judgement

    console.complain(error)
    return Judgement(family, pair, fault=error.message)


def baselines_of(
    against: Path | None, pairs: list[tuple[str, str]], allow_missing: bool
) -> dict[tuple[str, str], Measured]:
    from shadow.gates.verdicts import read_baselines

    if against is None:
        return {}
    if not against.is_dir():
        if not allow_missing:
            hint = "name finished reports, or add --allow-missing for a first run"
            raise ShadowError(f"no such folder: {against}", hint)
        console.say(f"no baseline: there is no folder {against}")
        return {}
    return read_baselines(against, reports_below(against), pairs)


def finish(judged: list[Judgement], junit: Path | None, *, wrong_usage: bool = False) -> None:
    """Tell what came of every pair to people, to GitHub Actions and to a JUnit file, and exit with its code.

    wrong_usage: no pair has what was asked for.
    """
    from shadow.gates.verdicts import first_code
    from shadow.outputs import ci

    if os.environ.get("GITHUB_ACTIONS") == "true":
        workspace = os.environ.get("GITHUB_WORKSPACE")
        for command in ci.workflow_commands(judged, Path(workspace) if workspace else None):
            console.annotate(command)
    else:
        for text in ci.sentences(judged):
            console.say(text)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            ci.append_summary(Path(summary), judged)
        except OSError as error:  # the audit is what was asked for
            console.say(f"no summary of the step: cannot write {summary}: {error.strerror or error}")
    if junit is not None:
        ci.write_junit(junit, judged)
    if code := 2 if wrong_usage else first_code({one.code for one in judged}):
        raise typer.Exit(code)
