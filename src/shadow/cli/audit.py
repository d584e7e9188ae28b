"""`shadow audit`: measure pairs, one by one or as a list. `shadow plan`: what that would need.
`shadow lab run`: train tiny models on known data and audit them.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from shadow.cli import console
from shadow.cli import options as shared
from shadow.cli.gate import (
    at_fault,
    baselines_of,
    begin,
    finish,
    rules_of,
    show_headlines,
)
from shadow.cli.options import prepare, selected, written
from shadow.cli.reports import SIDE_BY_SIDE, show_pair, show_pairs
from shadow.engines.engine import Ray
from shadow.errors import ShadowError, UsageError
from shadow.lists.request import AuditRequest, Measuring
from shadow.options import option
from shadow.reports.folders import here
from shadow.run.runtime import Files, Runtime, access_of, ignore
from shadow.storage import Store, located, work_folder

if TYPE_CHECKING:
    from shadow.engines.finished import PairOutcome
    from shadow.gates.verdicts import Judgement
    from shadow.targets.families import Pair


def audit(
    pairs: shared.Pairs,
    measuring: Measuring,
    files: Files,
    rules: shared.Rules,
    targets: Sequence[str] = shared.TARGETS,
    output: Path = shared.OUTPUT,
    overwrite: bool = option(
        "Replace finished reports that differ. Otherwise those of other settings, files or commits"
        " are kept, with exit code 1, and those of another version with 0.",
        False,
    ),
    jobs: int | None = shared.JOBS,
    engine: str = option(
        "Run pairs one after another in this process (local), or as tasks of ray, several at a"
        " time. ray:cpus=2,memory=16GB,address=auto says what each task gets, and names a cluster.",
        "local",
        metavar="ENGINE",
    ),
    strict: bool = option(
        "Exit with 3 if a tensor was skipped that should have been measured.",
        False,
        rich_help_panel="Rules",
    ),
    format: shared.Format = shared.FORMAT,
    quiet: bool = shared.QUIET,
) -> None:
    """Measure pairs of checkpoints and write their reports.

    With a list, a glob or --shard, index.json says how each pair stands.

    If a finished report has other settings, files or commits, it is kept (exit code 1); --overwrite
    replaces it.

    Exit codes: 0 done; 1 failed; 2 wrong usage; 3 done, but a side is broken, the two are not
    states of one model, or --strict found a skipped tensor; 4 done, but a rule was violated; 5
    done, but a check is inconclusive, or a figure rests on less than half of the change.
    """
    begin(rules.junit, "audit")
    judging = rules_of(rules)
    ray = Ray.of(engine)
    say = ignore if quiet else console.say
    selection = selected(targets, pairs)
    from shadow.process_settings import uncollected

    with uncollected():
        from shadow.lists.perform import perform

        gc.freeze()  # all of torch and pandas stays: to look for cycles there took 0.1 s

    prepare(files.offline)
    request = AuditRequest(
        selection, located(output), measuring, files, overwrite=overwrite, jobs=jobs, ray=ray
    )
    names = [(pair.family, pair.name) for pair in selection.own]
    baselines = baselines_of(rules, names, say)
    is_shown = format == "table" and not (quiet or selection.is_list)
    faults: list[Exception] = []  # of pairs; those of shadow itself do not stop a list

    def judgement_of(outcome: PairOutcome) -> Judgement:
        """Judge the result of a pair."""
        from shadow.gates.document import rules_document
        from shadow.gates.measured import read_measured
        from shadow.gates.verdicts import Judgement, judge_report

        result = outcome.finished()
        summary, name = result.summary, names[selection.own.index(outcome.pair)]
        if is_shown:
            show_pair(summary, result.provenance, result.place, of=len(names))
        objections = tuple(sorted(result.should_not_have_skipped)) if strict else ()
        more: Any = {"seconds": outcome.seconds, "objections": objections}
        if not judging:
            return Judgement(summary.family, summary.pair, summary=summary, **more)
        folder = here(result.place)  # the rows of a report that was uploaded are fetched
        reading = Runtime(jobs, access_of(files), say=say)
        now = read_measured(folder, summary=summary, reading=reading)
        judgement = judge_report(judging, now, baselines.get(name), **more)
        if result.url is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if is_shown:
            document = rules_document(judgement, titled=len(names) > SIDE_BY_SIDE)
            console.show(document)
        return judgement

    def judge(outcome: PairOutcome) -> Judgement:
        """Judge it. A failed pair does not stop the others."""
        pair, is_alone = outcome.pair, request.is_alone
        try:
            return judgement_of(outcome)
        except Exception as error:
            fault = error if isinstance(error, ShadowError) else outcome.error
            is_bug = fault is not error
            if (
                fault is None
                or (is_bug and not selection.is_list)
                or (isinstance(error, UsageError) and is_alone)
            ):
                raise
            faults.append(error)
            fault = fault if is_alone else _of_pair(fault, pair)
            is_kept = outcome.state == "kept"
            name = (pair.family, pair.name)
            return at_fault(name, fault, seconds=outcome.seconds, kept=is_kept)

    watch = console.pairs_progress(len(names), hidden=quiet)
    outcomes = perform(request, say=say, watch=watch)
    with console.continuable(request.folders()), closing(outcomes):
        judged = sorted(
            map(judge, outcomes),
            key=lambda judgement: names.index((judgement.family, judgement.pair)),
        )
    if quiet and format == "table":
        show_headlines(judged)
    else:
        _show(request, judged, format)
    if targets == ("demo",) and format == "table":
        say("your own models: shadow audit ./BASE ./TUNED, or org/BASE org/TUNED")
    if bugs := [fault for fault in faults if not isinstance(fault, ShadowError)]:
        raise ExceptionGroup("errors in shadow itself, while it audited a list", bugs)
    is_wrong = 0 < sum(isinstance(fault, UsageError) for fault in faults) == len(names)
    finish(judged, rules, wrong_usage=is_wrong)


def _of_pair(error: ShadowError, pair: Pair) -> ShadowError:
    """Name the pair in an error, if it is one of several."""
    return ShadowError(f"{pair.full_name}: {error.message}", error.hint)


def _show(request: AuditRequest, judged: Sequence[Judgement], format: str) -> None:
    """Show at the end how several pairs stand, and everything that is printed as JSON."""
    from shadow.gates.document import rules_document, state_of
    from shadow.lists.document import list_document
    from shadow.lists.index import read_index

    index = None
    if request.selection.is_list:
        output = request.output
        index = read_index(work_folder(output) if isinstance(output, Store) else output)
        assert index is not None
    if format != "table":
        reports: list[dict[str, Any]] = []
        for judgement in judged:
            if judgement.summary is not None:
                rules = {"judged": judgement.as_json()} if judgement.verdicts else {}
                reports.append({**judgement.summary.as_json(), **rules})
        console.show_json(reports if index is None else {**index.as_json(), "reports": reports})
    elif index is not None:
        states = {
            judgement.name: state_of(judgement)
            for judgement in judged
            if judgement.summary is not None
        }
        console.show(list_document(index, request.output, states))
        for judgement in judged:
            console.show(rules_document(judgement, titled=True))
    elif not request.is_alone:
        folders = [] if isinstance(request.output, Store) else [*request.folders()]
        show_pairs(judged, str(request.output), folders)


def plan(
    pairs: shared.Pairs,
    measuring: Measuring,
    files: Files,
    targets: Sequence[str] = shared.TARGETS,
    output: Path = shared.OUTPUT,
    jobs: int | None = shared.JOBS,
    format: shared.Format = shared.FORMAT,
) -> None:
    """Show what an audit would measure, download and need. Only headers are read.

    Exit codes: 0 it can be done; 1 it cannot; 2 wrong usage.
    """
    selection = selected(targets, pairs)
    prepare(files.offline)
    request = AuditRequest(selection, located(output), measuring, files, jobs=jobs)
    from shadow.lists.document import plan_document, plans_document
    from shadow.lists.planning import planner

    plan_of = planner(request, console.say)
    watch = console.pairs_progress(len(selection.own))
    plans = []
    faults: list[ShadowError] = []
    for pair in selection.own:
        try:
            with watch(f"plan {pair.full_name}"):
                planned = plan_of(pair)
            plans.append(planned)
            if format == "table":
                console.show(plan_document(planned))
            if planned.problem:
                raise ShadowError(planned.problem, planned.hint)
        except ShadowError as fault:
            if isinstance(fault, UsageError) and request.is_alone:
                raise
            faults.append(fault)
            console.complain(fault if request.is_alone else _of_pair(fault, pair))
    if format != "table":
        console.show_json([planned.as_json() for planned in plans])
    elif len(selection.own) > 1 and plans:
        console.show(plans_document(plans, len(selection.own)))
    if faults:
        wrong = sum(isinstance(fault, UsageError) for fault in faults)
        raise typer.Exit(2 if wrong == len(selection.own) else 1)


def lab_run(
    preset: Literal["smoke", "quick", "full"] = option(
        "smoke: a quarter of a minute, learns nothing; quick: minutes, two bases; full: ten bases,"
        " each three times, over an hour on two cores.",
        "quick",
        metavar="PRESET",
    ),
    output: Path = written("Folder for tables and page.", Path("lab"), file_okay=False),
    jobs: int = option("Number of processes; results do not depend on it.", 2, min=1, max=256),
) -> None:
    """Train small models on known data, and audit each one. Reports what the data left in their
    weights.

    Writes runs.parquet, comparisons.parquet and lab.md. After an interruption, the same
    command continues.

    Exit codes: 0 done, whatever was found; 1 failed; 2 wrong usage.
    """
    from shadow.lab.results import run

    with console.continuable([output]), console.steps(f"lab {preset}") as update:
        document = run(preset, output, jobs=jobs, show=update)
    console.show(document)
    console.say(f"runs.parquet, comparisons.parquet and lab.md in {output}/")
