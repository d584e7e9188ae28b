"""`shadow audit`: measure pairs, one by one or as a list."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from shadow.audits.request import AuditRequest, Measuring, Ray
from shadow.cli import console
from shadow.cli import options as option
from shadow.cli.arguments import (
    files_of,
    of_pair,
    say_left_out,
    selected,
)
from shadow.cli.gate import at_fault, baselines_of, begin, claims_of, finish, judged_of, rules_of
from shadow.cli.screens import SIDE_BY_SIDE, show_headlines, show_pair, show_pairs
from shadow.errors import ShadowError, UsageError
from shadow.storage import Store, located, work_folder

if TYPE_CHECKING:
    from shadow.audits.pairs import PairOutcome
    from shadow.gates.measured import Measured
    from shadow.gates.rules import Rule
    from shadow.gates.verdicts import Judgement
    from shadow.targets.families import Pair


def audit(
    targets: option.Targets = None,
    base: option.BaseReference = None,
    tuned: option.TunedReference = None,
    name: option.OwnName = None,
    listed: option.ListFile = None,
    tag: option.Tag = None,
    shard: option.Shard = None,
    output: option.Output = option.DEFAULT_OUTPUT,
    component: option.Component = None,
    layer: option.Layer = None,
    module: option.Module = None,
    level: option.Level = "full",
    subjects: option.Subjects = "all",
    nulls: Annotated[
        int,
        typer.Option(
            help="Also sample the null with this many sign flips.",
            min=0,
            max=1000,
            rich_help_panel=option.MEASURING,
        ),
    ] = 0,
    device: option.Device = "cpu",
    jobs: option.Jobs = None,
    no_cache: option.NoCache = False,
    cache_dir: option.CacheFolder = None,
    spectra: Annotated[
        bool,
        typer.Option(
            "--spectra/--no-spectra",
            help="Write spectra.parquet.",
            rich_help_panel=option.MEASURING,
        ),
    ] = True,
    overwrite: option.Overwrite = False,
    file: option.FilePattern = None,
    allow_pickle: option.Pickle = False,
    fetch: option.Fetch = "auto",
    max_disk: option.MaxDisk = None,
    offline: option.Offline = False,
    engine: option.Engine = "local",
    address: option.Address = None,
    cpus_per_task: option.CoresPerTask = None,
    memory_per_task: option.MemoryPerTask = "auto",
    parts: option.Parts = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit with 3 if a tensor was skipped that should have been measured.",
            rich_help_panel=option.RULES,
        ),
    ] = False,
    fail_on: option.FailOn = None,
    policy: option.PolicyFile = None,
    against: option.Against = None,
    allow_missing: option.AllowMissing = False,
    junit: option.Junit = None,
    format: option.PairsFormat = "table",
    json: option.Json = False,
    full: option.Full = False,
    quiet: option.Quiet = False,
    verbose: option.Verbose = False,
    registry: option.Registry = None,
    help_all: option.HelpAll = False,
) -> None:
    """Measure pairs of checkpoints and write their reports.

    With a list, a glob, --tag or --shard, index.json and batch.parquet say how each pair stands.

    If a finished report has other settings, files or commits, it is kept (exit code 1); --overwrite
    replaces it.

    Exit codes: 0 done; 1 failed; 2 wrong usage; 3 done, but a side is broken, the two are not
    states of one model, or --strict found a skipped tensor; 4 done, but a rule was violated; 5
    done, but a check is inconclusive.
    """
    begin(junit, "audit")
    if quiet and verbose:
        raise UsageError("--quiet and --verbose exclude each other", "leave one of them out")
    rules = rules_of(fail_on, policy, against, allow_missing=allow_missing)
    ray = _ray(engine, address, cpus_per_task, memory_per_task)
    say = console.say_nothing if quiet else console.say
    selection = selected(
        targets,
        base=base,
        tuned=tuned,
        name=name,
        listed=listed,
        tags=tag,
        shard=shard,
        registry=registry,
    )
    claims = claims_of(selection)
    from shadow.run.machine_limits import uncollected

    with uncollected():
        from shadow.audits.perform import perform
        from shadow.run.runtime import tell_nobody

        gc.freeze()  # all of torch and pandas stays: to look for cycles there took 0.1 s

    request = AuditRequest(
        selection,
        located(output),
        Measuring(
            component or [],
            layer or [],
            module or [],
            level,
            subjects,
            nulls,
            spectra=spectra,
            device=device,
        ),
        files_of(
            allow_pickle=allow_pickle,
            offline=offline,
            fetch=fetch,
            max_disk=max_disk,
            no_cache=no_cache,
            cache_dir=cache_dir,
            file=file,
        ),
        overwrite=overwrite,
        jobs=jobs,
        ray=ray,
        parts=parts,
    )
    shown = _Shown(
        request,
        rules,
        claims,
        baselines_of(
            against,
            [(pair.family, pair.name) for pair in selection.own],
            say,
            allow_missing=allow_missing,
        ),
        strict=strict,
        format="json" if json else format,
        full=full,
        quiet=quiet,
        say=say,
    )
    bars = console.pairs_progress(
        len(selection.own),
        is_list=selection.is_list,
        hidden=quiet,
        several=ray is not None and not request.is_cut,
    )
    with console.continuable(request.folders()), bars as watch:
        detail = console.say if verbose else tell_nobody
        outcomes = perform(request, say=say, detail=detail, watch=watch)
        if selection.is_list:
            say_left_out(selection, say)
        with closing(outcomes):
            judged, wrong_usage = _judged(shown, outcomes)
    _show(shown, judged)
    if shown.bugs:
        raise ExceptionGroup("faults of shadow itself, while it audited a list", shown.bugs)
    finish(judged, junit, against=against, wrong_usage=wrong_usage)


def _ray(engine: str, address: str | None, cores: int | None, memory: str) -> Ray | None:
    """Which Ray is asked for; None: none."""
    if engine == "ray":
        return Ray(address, cores, None if memory == "auto" else memory)
    given = {
        "--address": address is not None,
        "--cpus-per-task": cores is not None,
        "--memory-per-task": memory != "auto",
    }
    for name, is_given in given.items():
        if is_given:
            raise UsageError(f"{name} without --engine ray", "add --engine ray")
    return None


@dataclass(frozen=True)
class _Shown:
    """A request, what its reports are held against, and what is printed of them."""

    request: AuditRequest
    rules: Sequence[Rule]
    claims: Mapping[Pair, Sequence[Rule]]
    """Further rules of pairs: what a list says of them."""
    baselines: Mapping[tuple[str, str], Measured]
    """By family and pair: the earlier reports that figures must not have moved from."""
    strict: bool
    format: Literal["table", "json", "jsonl"]
    full: bool
    quiet: bool
    say: Callable[[str], None]
    bugs: list[Exception] = field(default_factory=list)
    """Faults of shadow itself, which do not stop a list."""

    @property
    def as_json(self) -> bool:
        """Whether JSON is printed, of all pairs at the end."""
        return self.format != "table"

    @property
    def shows_each(self) -> bool:
        """Whether a report is shown when it is finished."""
        return not (self.as_json or self.quiet or self.request.selection.is_list)


def _judged(shown: _Shown, outcomes: Iterable[PairOutcome]) -> tuple[list[Judgement], bool]:
    """The judgements in the order of the pairs, and whether no pair has what was asked for."""
    from shadow.gates.verdicts import Judgement

    request = shown.request
    judged: dict[Pair, Judgement] = {}
    wrong = 0
    for outcome in outcomes:
        family, name = outcome.pair.family, outcome.pair.name
        try:
            judged[outcome.pair] = _judgement(shown, outcome)
        except ShadowError as error:  # one failing pair does not stop the others
            if isinstance(error, UsageError) and request.is_alone:
                raise
            wrong += isinstance(error, UsageError)
            fault = error if request.is_alone else of_pair(error, outcome.pair)
            judged[outcome.pair] = at_fault(
                family, name, fault, seconds=outcome.seconds, kept=outcome.state == "kept"
            )
        except Exception as bug:
            if not request.selection.is_list or outcome.error is None:
                raise
            shown.bugs.append(bug)
            judged[outcome.pair] = Judgement(
                family, name, seconds=outcome.seconds, fault=outcome.error.message
            )
    pairs = request.selection.own
    return [judged[pair] for pair in pairs if pair in judged], 0 < wrong == len(pairs)


def _judgement(shown: _Shown, outcome: PairOutcome) -> Judgement:
    """What came of one report; outside of a list both are shown at once."""
    from shadow.gates.document import rules_document
    from shadow.gates.pair_check import Reading

    result = outcome.finished()
    summary, pairs = result.summary, len(shown.request.selection.own)
    if shown.shows_each:
        show_pair(summary, result.provenance, result.place, of=pairs, full=shown.full)
    baseline = shown.baselines.get((summary.family, summary.pair))
    claims = {rule.name: rule for rule in shown.claims.get(outcome.pair, ())}
    judgement = judged_of(
        result,
        [*(rule for rule in shown.rules if rule.name not in claims), *claims.values()],
        baseline,
        Reading(shown.request.files, shown.request.jobs, shown.say),
        seconds=outcome.seconds,
        strict=shown.strict,
    )
    if shown.shows_each:
        titled = pairs > SIDE_BY_SIDE and not shown.full
        console.show(rules_document(judgement, titled=titled, full=shown.full))
    return judgement


def _show(shown: _Shown, judged: Sequence[Judgement]) -> None:
    """At the end: of several pairs how they stand, and all that is given as JSON."""
    request = shown.request
    if shown.quiet and not shown.as_json:
        show_headlines(one.summary for one in judged if one.summary is not None)
        return
    if not request.selection.is_list:
        if shown.as_json:
            console.show_json_pairs(_summaries(judged), shown.format)
        elif not request.is_alone:
            show_pairs(judged, str(request.output), full=shown.full)
        return
    from shadow.audits.document import list_document
    from shadow.audits.list_index import read_index
    from shadow.gates.document import rules_document

    output = request.output
    index = read_index(work_folder(output) if isinstance(output, Store) else output)
    assert index is not None
    if shown.as_json:
        console.show_json_pairs(_summaries(judged), shown.format, index.as_json())
        return
    console.show(list_document(index))
    for judgement in judged:
        console.show(rules_document(judgement, titled=True, full=shown.full))


def _summaries(judged: Sequence[Judgement]) -> list[dict[str, Any]]:
    """The summaries of what was audited, with what came of the rules where there are any."""
    summaries = []
    for judgement in judged:
        if judgement.summary is not None:
            summary = judgement.summary.as_json()
            if judgement.verdicts:
                summary["judged"] = judgement.as_json()
            summaries.append(summary)
    return summaries
