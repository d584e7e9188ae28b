"""`shadow audit`: measure pairs, one by one or as a list. `shadow plan`: what that would take."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from shadow.cli import console
from shadow.cli import options as shared
from shadow.cli.gate import at_fault, baselines_of, begin, claims_of, finish, rules_of
from shadow.cli.options import of_pair, prepare, reports_here, say_left_out, selected
from shadow.cli.reports import SIDE_BY_SIDE, show_pair, show_pairs
from shadow.engines.engine import Ray
from shadow.errors import ShadowError, UsageError
from shadow.lists.request import AuditRequest, Measuring
from shadow.options import option
from shadow.run.runtime import Files
from shadow.storage import Store, located, work_folder
from shadow.text import visible

if TYPE_CHECKING:
    from shadow.gates.measured import Measured
    from shadow.gates.rules import Rule
    from shadow.gates.verdicts import Judgement
    from shadow.lists.pairs import PairOutcome
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
        "--overwrite",
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
        "--strict",
        rich_help_panel=shared.PANELS["Rules"],
    ),
    format: shared.PairsFormat = shared.PAIRS_FORMAT,
    quiet: bool = shared.QUIET,
) -> None:
    """Measure pairs of checkpoints and write their reports.

    With a list, a glob or --shard, index.json says how each pair stands.

    If a finished report has other settings, files or commits, it is kept (exit code 1); --overwrite
    replaces it.

    Exit codes: 0 done; 1 failed; 2 wrong usage; 3 done, but a side is broken, the two are not
    states of one model, or --strict found a skipped tensor; 4 done, but a rule was violated; 5
    done, but a check is inconclusive.
    """
    begin(rules.junit, "audit")
    judging = rules_of(rules)
    ray = Ray.of(engine)
    say = console.say_nothing if quiet else console.say
    selection = selected(targets, pairs)
    claims = claims_of(selection)
    from shadow.process_settings import uncollected

    with uncollected():
        from shadow.lists.perform import perform

        gc.freeze()  # all of torch and pandas stays: to look for cycles there took 0.1 s

    prepare(files)
    request = AuditRequest(
        selection, located(output), measuring, files, overwrite=overwrite, jobs=jobs, ray=ray
    )
    own = [(pair.family, pair.name) for pair in selection.own]
    baselines = baselines_of(rules, own, say)
    shown = _Shown(request, judging, claims, baselines, strict, format, quiet, say)
    bars = console.pairs_progress(
        len(own),
        together=selection.is_list or (ray is not None and not request.is_cut),
        hidden=quiet,
    )
    with console.continuable(request.folders()), bars as watch:
        outcomes = perform(request, say=say, watch=watch)
        if selection.is_list:
            say_left_out(selection, say)
        with closing(outcomes):
            judged = [_judged(shown, outcome) for outcome in outcomes]
    in_order = {(one.family, one.pair): one for one in judged}
    judged = [in_order[name] for name in own if name in in_order]
    _show(shown, judged)
    if targets == ("demo",) and format == "table":
        say("your own: shadow audit ./BASE ./TUNED, in folders, or org/BASE org/TUNED on the Hub")
    bugs = [one for one in shown.faults if not isinstance(one, ShadowError)]
    if bugs:
        raise ExceptionGroup("faults of shadow itself, while it audited a list", bugs)
    is_wrong = 0 < sum(isinstance(one, UsageError) for one in shown.faults) == len(own)
    finish(judged, rules, wrong_usage=is_wrong)


@dataclass(frozen=True)
class _Shown:
    """A request, what its reports are judged by, and what is printed of them."""

    request: AuditRequest
    judging: Sequence[Rule]
    claims: Mapping[Pair, Sequence[Rule]]
    """Further rules of pairs: what a list says of them."""
    baselines: Mapping[tuple[str, str], Measured]
    """By family and pair: the earlier reports that figures must not have moved from."""
    strict: bool
    format: Literal["table", "json", "jsonl"]
    quiet: bool
    say: Callable[[str], None]
    faults: list[Exception] = field(default_factory=list)
    """What went wrong with pairs; faults of shadow itself do not stop a list."""


def _judged(shown: _Shown, outcome: PairOutcome) -> Judgement:
    """Judge what became of a pair. One that failed does not stop the others."""
    from shadow.gates.verdicts import Judgement

    request, pair = shown.request, outcome.pair
    try:
        return _judgement(shown, outcome)
    except ShadowError as error:
        if isinstance(error, UsageError) and request.is_alone:
            raise
        shown.faults.append(error)
        fault = error if request.is_alone else of_pair(error, pair)
        is_kept = outcome.state == "kept"
        return at_fault(pair.family, pair.name, fault, seconds=outcome.seconds, kept=is_kept)
    except Exception as bug:
        if not request.selection.is_list or outcome.error is None:
            raise
        shown.faults.append(bug)
        return Judgement(
            pair.family, pair.name, seconds=outcome.seconds, fault=outcome.error.message
        )


def _judgement(shown: _Shown, outcome: PairOutcome) -> Judgement:
    """Judge one report; outside of a list report and judgement are shown at once."""
    from shadow.gates.document import rules_document
    from shadow.gates.measured import Reading, read_measured
    from shadow.gates.verdicts import Judgement, judge_report

    request, result = shown.request, outcome.finished()
    summary, count = result.summary, len(request.selection.own)
    is_shown = shown.format == "table" and not (shown.quiet or request.selection.is_list)
    if is_shown:
        show_pair(summary, result.provenance, result.place, of=count)
    claims = {rule.name: rule for rule in shown.claims.get(outcome.pair, ())}
    rules = [*(rule for rule in shown.judging if rule.name not in claims), *claims.values()]
    objections = tuple(sorted(result.should_not_have_skipped)) if shown.strict else ()
    more: Any = {"seconds": outcome.seconds, "objections": objections}
    if not rules:
        return Judgement(summary.family, summary.pair, summary=summary, **more)
    # of a report that was uploaded the rows are fetched
    folder = result.folder if result.url is None else reports_here(Path(result.url))
    reading = Reading(request.files, request.jobs, shown.say)
    now = read_measured(folder, summary=summary, reading=reading)
    baseline = shown.baselines.get((summary.family, summary.pair))
    judgement = judge_report(rules, now, baseline, **more)
    if result.url is not None:
        shutil.rmtree(folder, ignore_errors=True)
    if is_shown:
        console.show(rules_document(judgement, titled=count > SIDE_BY_SIDE))
    return judgement


def _show(shown: _Shown, judged: Sequence[Judgement]) -> None:
    """At the end: of several pairs how they stand, and all that is given as JSON."""
    from shadow.gates.document import rules_document
    from shadow.lists.document import list_document
    from shadow.lists.index import read_index

    request = shown.request
    summaries = [one.summary for one in judged if one.summary is not None]
    if shown.quiet and shown.format == "table":
        for one in summaries:
            line = visible(f"{one.family}:{one.pair}: {one.finding.headline}")
            console.show_text(f"{line}\n")
        return
    index = None
    if request.selection.is_list:
        output = request.output
        index = read_index(work_folder(output) if isinstance(output, Store) else output)
        assert index is not None
    if shown.format != "table":
        found = [_as_json(one) for one in judged if one.summary is not None]
        console.show_json_pairs(found, shown.format, None if index is None else index.as_json())
    elif index is not None:
        console.show(list_document(index))
        for judgement in judged:
            console.show(rules_document(judgement, titled=True))
    elif not request.is_alone:
        show_pairs(judged, str(request.output))


def _as_json(judged: Judgement) -> dict[str, Any]:
    """The summary of a report, with what came of the rules where there are any."""
    assert judged.summary is not None
    rules = {"judged": judged.as_json()} if judged.verdicts else {}
    return {**judged.summary.as_json(), **rules}


def plan(
    pairs: shared.Pairs,
    measuring: Measuring,
    files: Files,
    targets: Sequence[str] = shared.TARGETS,
    output: Path = shared.OUTPUT,
    jobs: int | None = shared.JOBS,
    format: shared.PairsFormat = shared.PAIRS_FORMAT,
) -> None:
    """Show what an audit would measure, download and need. Only headers are read.

    Exit codes: 0 it can be done; 1 it cannot; 2 wrong usage.
    """
    selection = selected(targets, pairs)
    prepare(files)
    request = AuditRequest(selection, located(output), measuring, files, jobs=jobs)
    from shadow.lists.document import plan_document, plans_document
    from shadow.lists.perform import planner

    plan_of = planner(request, console.say)
    say_left_out(selection, console.say)
    plans = []
    faults: list[ShadowError] = []
    for pair in selection.own:
        try:
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
            console.complain(fault if request.is_alone else of_pair(fault, pair))
    if format != "table":
        console.show_json_pairs([planned.as_json() for planned in plans], format)
    elif len(selection.own) > 1 and plans:
        console.show(plans_document(plans, len(selection.own)))
    if faults:
        wrong = sum(isinstance(fault, UsageError) for fault in faults)
        raise typer.Exit(2 if wrong == len(selection.own) else 1)
