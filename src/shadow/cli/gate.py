"""`shadow gate`, and the rules, baselines and exit codes that it shares with `audit`."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shadow.cli import console
from shadow.cli import options as option
from shadow.cli.options import reports_here
from shadow.errors import ShadowError, UsageError
from shadow.reports.folders import found_below, meant, reports_below
from shadow.storage import Store, as_given, located, url_of

if TYPE_CHECKING:
    from shadow.engines.finished import AuditResult
    from shadow.gates.measured import Measured, Reading
    from shadow.gates.rules import Rule
    from shadow.gates.verdicts import Judgement
    from shadow.lists.index import Index
    from shadow.targets.families import Pair
    from shadow.targets.lists import Selection


@option.typed(rules=option.Rules)
def gate(
    rules: option.Rules,
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Finished reports: their folders, or folders above them; may be URLs.",
            metavar="RUN",
            callback=option.anywhere,
        ),
    ],
    listed: option.ListFile = None,
    registry: option.Registry = None,
    format: option.PairsFormat = "table",
    quiet: option.Quiet = False,
) -> None:
    """Check finished reports against rules and a baseline, for CI. `audit` does the same with the
    same options.

    A missing pair of a list is an error, and does not pass: of the list that --list names, or of
    the one that was audited into the folder.

    Exit codes: 0 no rule was violated; 1 failed, or a rule had nothing to judge; 2 wrong usage; 3
    a side is broken, or the two are not states of one model; 4 a rule was violated; 5 a check
    is inconclusive.
    """
    begin(rules.junit, "gate")
    judging = rules_of(rules)
    if not judging and listed is None:
        hint = "add --fail-on, --policy, --against or --list"
        raise UsageError("nothing to check the reports against", hint)
    from shadow.targets.lists import select

    selection = None if listed is None else select(registry=registry, listed=listed)
    claims = {} if selection is None else claims_of(selection)
    claimed = {(pair.family, pair.name): of_pair for pair, of_pair in claims.items()}
    from shadow.gates.document import rules_document
    from shadow.lists.index import read_index
    from shadow.reports.provenance import report_metadata

    runs = [reports_here(run) for run in runs]
    below = reports_below if selection is None else found_below
    indexes = {run: index for run in runs if (index := read_index(run)) is not None}
    # the last path to each folder; a folder of a list of which no pair is done holds no report
    folders = {
        folder.resolve(): folder
        for run in runs
        for folder in below(run)
        if folder != run or run not in indexes
    }
    judged: list[Judgement] = []
    names: dict[Path, tuple[str, str]] = {}
    faulty: set[Path] = set()
    for path, folder in folders.items():
        try:
            metadata = report_metadata(folder)
            names[folder] = metadata["family"], metadata["pair"]
        except ShadowError as error:
            judged.append(at_fault(path.parent.name, path.name, error))
            faulty.add(path)
    absent = _absent(indexes, selection, runs, set(names.values()), faulty)
    judged += [at_fault(*name, error) for name, error in absent.items()]
    baselines = baselines_of(
        rules.against,
        list(names.values()),
        console.say_nothing if quiet else console.say,
        allow_missing=rules.allow_missing,
    )
    for folder, name in names.items():
        try:
            own = [*judging, *claimed.get(name, ())]
            judged.append(_judgement(folder, own, baselines.get(name)))
        except ShadowError as error:
            judged.append(at_fault(*name, error))
            continue
        if format == "table":
            console.show(rules_document(judged[-1], titled=True))
    if format != "table":
        console.show_json_pairs([judgement.as_json() for judgement in judged], format)
    finish(judged, rules.junit, against=rules.against)


def _absent(
    indexes: Mapping[Path, Index],
    selection: Selection | None,
    runs: Sequence[Path],
    there: set[tuple[str, str]],
    faulty: set[Path],
) -> dict[tuple[str, str], ShadowError]:
    """Return the fault of each pair of a list that has no report, by family and pair.

    there: the pairs whose reports are read. faulty: folders of reports whose fault is known.
    """
    from shadow.lists.index import report_folder

    faults: dict[tuple[str, str], ShadowError] = {}
    for run, index in indexes.items():
        for row in index.rows:
            if row.state == "kept":
                fault, hint = f"{row.name}: {row.error}", "run the list again, with --overwrite"
            elif row.key in there or (run / row.folder).resolve() in faulty:
                continue
            else:
                why = row.error or f"{row.state} by index.json"
                fault, hint = f"{row.name} has no report: {why}", "run the list again"
            faults[row.key] = ShadowError(fault, hint)
    for pair in selection.pairs if selection else ():
        key, place = (pair.family, pair.name), report_folder(pair.family, pair.name)
        if key not in {*there, *faults} and not {(run / place).resolve() for run in runs} & faulty:
            fault = f"{pair.full_name} of the list has no report"
            faults[key] = ShadowError(fault, "audit the list again")
    return faults


def _judgement(folder: Path, rules: Sequence[Rule], baseline: Measured | None) -> Judgement:
    from shadow.gates.measured import Reading, read_measured
    from shadow.gates.verdicts import judge_report

    if baseline is not None and baseline.source.folder.resolve() == folder.resolve():
        raise ShadowError(f"{folder} is its own baseline", "name an earlier report with --against")
    return judge_report(rules, read_measured(folder, reading=Reading()), baseline)


def judged_of(
    result: AuditResult,
    rules: Sequence[Rule],
    baseline: Measured | None,
    reading: Reading,
    *,
    seconds: float,
    strict: bool,
) -> Judgement:
    """Judge the report of an audit. reading: for checks that the report does not answer; seconds:
    what it took; strict: object to what was skipped and should not be.

    Of a report that was uploaded the rows are fetched for rules.
    """
    from shadow.gates.measured import read_measured
    from shadow.gates.verdicts import Judgement, judge_report

    summary = result.summary
    objections = tuple(sorted(result.should_not_have_skipped)) if strict else ()
    if not rules:
        return Judgement(
            summary.family, summary.pair, summary=summary, seconds=seconds, objections=objections
        )
    folder = result.folder if result.url is None else reports_here(Path(result.url))
    now = read_measured(folder, summary=summary, reading=reading)
    judgement = judge_report(rules, now, baseline, seconds=seconds, objections=objections)
    if result.url is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return judgement


_begun: dict[Path, str] = {}  # JUnit files of this process, and their commands


def begin(junit: Path | None, command: str) -> None:
    """Before anything else: no JUnit file of an earlier run outlasts a fault of this one."""
    _begun.clear()
    if junit is not None:
        from shadow.outputs.ci import begin_junit

        begin_junit(junit, command)
        _begun[junit] = command


def ended_by(fault: ShadowError) -> None:
    """Say in the JUnit file of a command which fault ended it."""
    for junit, command in _begun.items():
        from shadow.outputs.ci import begin_junit

        with contextlib.suppress(ShadowError):  # the file can no longer be written
            begin_junit(junit, command, as_given(fault.message))


def rules_of(rules: option.Rules) -> tuple[Rule, ...]:
    """The rules of a command. Raises UsageError for one that makes no sense."""
    if not rules.fail_on and rules.policy is None and rules.against is None:
        return ()
    from shadow.gates.rules import gather

    has_baseline = rules.against is not None
    return gather(
        rules.fail_on, rules.policy, against=has_baseline, allow_missing=rules.allow_missing
    )


def claims_of(selection: Selection) -> dict[Pair, list[Rule]]:
    """What a list claims of its pairs, as rules. Raises UsageError, with its line."""
    if not any(selection.claims.values()):
        return {}
    from shadow.gates.rules import claim_rule

    return {
        pair: [claim_rule(claim.text, claim.file, claim.line) for claim in claims]
        for pair, claims in selection.claims.items()
    }


def at_fault(
    family: str, pair: str, error: ShadowError, *, seconds: float | None = None, kept: bool = False
) -> Judgement:
    """What came of a pair without a new report; its fault is said at once."""
    from shadow.gates.verdicts import Judgement

    console.complain(error)
    fault = as_given(error.message)
    return Judgement(family, pair, seconds=seconds, fault=fault, kept=kept)


def baselines_of(
    against: Path | None,
    pairs: list[tuple[str, str]],
    say: Callable[[str], None],
    *,
    allow_missing: bool,
) -> dict[tuple[str, str], Measured]:
    """The earlier reports of pairs, by family and pair. say: gets a line where there are none.

    Raises ShadowError where there is no such folder, or it holds no reports.
    """
    from shadow.gates.measured import read_baselines

    if against is None:
        return {}
    place = located(against)
    if isinstance(place, Store):
        from shadow.reports.remote import fetched_if_any

        place = fetched_if_any(place, spectra=False) or against
    if place.is_dir():
        folders = reports_below(place)
        is_report = (place / "matrices.parquet").exists()
        if folders == [place] and not is_report and any(place.glob("*.safetensors")):
            fault = f"{against} is a checkpoint, not a report"
            raise ShadowError(fault, "name the folder of finished reports")
        return read_baselines(place, folders, pairs)
    url = url_of(against)
    close = None if url else meant(against)
    if not allow_missing:
        hint = close or "name finished reports, or add --allow-missing for a first run"
        raise ShadowError(f"no such folder: {url or against}", hint)
    note = f"no baseline: there is no folder {url or against}"
    say(f"{note}; {close}" if close else note)
    return {}


def finish(
    judged: list[Judgement],
    junit: Path | None,
    *,
    against: Path | None = None,
    wrong_usage: bool = False,
) -> None:
    """Tell people, GitHub Actions and a JUnit file what came of every pair, and exit with its code.

    against: where the baseline was to be. wrong_usage: no pair has what was asked for.
    """
    from shadow.checks.answer import first_code
    from shadow.outputs import ci

    without_baseline = None
    if against is not None and ci.is_without_baseline(judged):
        without_baseline = f"no baseline: nothing was compared with {url_of(against) or against}"
    if os.environ.get("GITHUB_ACTIONS") == "true":
        workspace = os.environ.get("GITHUB_WORKSPACE")
        inside = Path(workspace) if workspace else None
        for command in ci.workflow_commands(judged, inside, without_baseline):
            console.annotate(command)
    else:
        for text in ci.sentences(judged):
            console.say(text)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            ci.append_summary(Path(summary), judged)
        except OSError as error:  # the audit is what was asked for
            fault = f"cannot write {summary}: {error.strerror or error}"
            console.say(f"no summary of the step: {fault}")
    if junit is not None:
        ci.write_document(junit, ci.junit(judged))
    if total := ci.counts(judged):
        console.say(total)
    if without_baseline is not None:
        console.say(f"WARNING: {without_baseline}")
    if code := 2 if wrong_usage else first_code({judgement.code for judgement in judged}):
        raise typer.Exit(code)
