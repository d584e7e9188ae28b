"""`shadow audit`: measure pairs, one by one or as a list."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shadow.cli import console
from shadow.cli.arguments import (
    NamedTargets,
    access_of,
    cache_of,
    list_here,
    scores_here,
    selected,
)
from shadow.cli.gate import GateOptions, at_fault, baselines_of, begin, finish, judged_of, rules_of
from shadow.cli.interrupts import Unfinished
from shadow.cli.options import (
    DEFAULT_OUTPUT,
    MEASURING,
    RULES,
    Address,
    Against,
    AllowMissing,
    BaseReference,
    CacheFolder,
    Component,
    CoresPerTask,
    Device,
    EngineName,
    EngineOption,
    FailOn,
    FetchName,
    FetchOption,
    Format,
    FormatOption,
    Full,
    Jobs,
    Json,
    Junit,
    Layer,
    ListFile,
    MaxDisk,
    MemoryPerTask,
    Module,
    NoCache,
    Offline,
    OptimizerOption,
    Output,
    Overwrite,
    OwnName,
    PartsOption,
    Pickle,
    PolicyFile,
    Precision,
    PrecisionName,
    Quiet,
    Registry,
    Scores,
    ShardOption,
    StorageOptions,
    Tag,
    Targets,
    TunedReference,
    Verbose,
)
from shadow.errors import ShadowError, UsageError
from shadow.extras import require
from shadow.storage import Store, located, parsed_options, work_folder

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shadow.audits.engine import Engine
    from shadow.audits.pair import AuditResult, Runtime, Settings
    from shadow.audits.pairs import PairOutcome
    from shadow.audits.ray_engine import RayRequest
    from shadow.claims.rules import Rule
    from shadow.claims.verdicts import Judgement, Measured
    from shadow.cli.console import Watch
    from shadow.comparing.scores import ScoreFiles
    from shadow.targets.families import Pair
    from shadow.targets.lists import Selection


def audit(
    targets: Targets = None,
    base: BaseReference = None,
    tuned: TunedReference = None,
    name: OwnName = None,
    listed: ListFile = None,
    tag: Tag = None,
    shard: ShardOption = None,
    output: Output = DEFAULT_OUTPUT,
    storage_options: StorageOptions = None,
    component: Component = None,
    layer: Layer = None,
    module: Module = None,
    precision: Precision = PrecisionName.default,
    nulls: Annotated[
        int,
        typer.Option(
            help="Also sample the null with this many sign flips.",
            min=0,
            max=1000,
            rich_help_panel=MEASURING,
        ),
    ] = 0,
    seed: Annotated[
        int, typer.Option(help="Seed of the sign flips.", min=0, rich_help_panel=MEASURING)
    ] = 0,
    subspaces: Annotated[
        bool,
        typer.Option(
            "--subspaces/--no-subspaces",
            help="Compare the leading singular subspaces.",
            rich_help_panel=MEASURING,
        ),
    ] = True,
    device: Device = "cpu",
    jobs: Jobs = None,
    no_cache: NoCache = False,
    cache_dir: CacheFolder = None,
    spectra: Annotated[
        bool,
        typer.Option(
            "--spectra/--no-spectra", help="Write spectra.parquet.", rich_help_panel=MEASURING
        ),
    ] = True,
    overwrite: Overwrite = False,
    optimizer: OptimizerOption = None,
    scores: Scores = None,
    allow_pickle: Pickle = False,
    fetch: FetchOption = FetchName.auto,
    max_disk: MaxDisk = None,
    offline: Offline = False,
    engine: EngineOption = EngineName.local,
    address: Address = None,
    cpus_per_task: CoresPerTask = None,
    memory_per_task: MemoryPerTask = "auto",
    parts: PartsOption = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit with 3 if a tensor was skipped that should have been measured.",
            rich_help_panel=RULES,
        ),
    ] = False,
    fail_on: FailOn = None,
    policy: PolicyFile = None,
    against: Against = None,
    allow_missing: AllowMissing = False,
    junit: Junit = None,
    format: FormatOption = Format.table,
    json: Json = False,
    full: Full = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    registry: Registry = None,
) -> None:
    """Measure pairs of checkpoints and write their reports.

    With a list, a glob, --tag or --shard, index.json and batch.parquet say how each pair stands.

    If a finished report has other settings, files or commits, it is kept (exit code 1); --overwrite
    replaces it.

    Exit codes: 0 done; 1 failed; 2 wrong usage; 3 done, but --strict found a skipped
    tensor; 4 done, but a rule was violated.
    """
    begin(junit, "audit")
    if quiet and verbose:
        raise UsageError("--quiet and --verbose exclude each other", "leave one of them out")
    options = parsed_options(storage_options)
    held = GateOptions(
        fail_on=fail_on or [],
        policy=policy,
        against=against,
        allow_missing=allow_missing,
        junit=junit,
        storage=options,
    )
    rules = rules_of(held)
    on_ray = _ray_request(engine, address=address, cores=cpus_per_task, memory=memory_per_task)
    say = console.say_nothing if quiet else console.say
    selection = selected(
        NamedTargets(
            targets=targets or [],
            base=base,
            tuned=tuned,
            registry=registry,
            listed=list_here(listed, options),
            tags=tag or [],
            shard=shard,
            name=name,
        )
    )
    from shadow.checkpoints.choosing import filter_of

    chosen = filter_of(component or [], layer or [], module or [])
    from shadow.audits.plan import uncollected

    with uncollected():
        import pandas  # noqa: F401 - the summary needs it

        from shadow.audits.devices import choose
        from shadow.audits.pair import Runtime, Settings, tell_nobody
        from shadow.comparing.score_files import scores_of_pairs
        from shadow.spectra.delta import Method

        gc.freeze()  # all of torch and pandas stays: to look for cycles there took 0.1 s

    place = located(output, options)
    store = None
    if isinstance(place, Store):
        store = place
        store.require_access()
        output = work_folder(store)
    access = access_of(allow_pickle=allow_pickle, offline=offline, fetch=fetch, max_disk=max_disk)
    request = AuditRequest(
        selection=selection,
        settings=Settings(
            method=Method(precision=precision.value, nulls=nulls, seed=seed, subspaces=subspaces),
            chosen=chosen,
            spectra=spectra,
            optimizer=None if optimizer is None else optimizer.value,
            device=choose(device),
        ),
        output=output,
        store=store,
        runtime=Runtime(
            jobs=jobs,
            access=access,
            overwrite=overwrite,
            cache=cache_of(no_cache=no_cache, folder=cache_dir),
            say=say,
            detail=console.say if verbose else tell_nobody,
        ),
        scores=scores_of_pairs(scores_here(scores, options), selection.own, say),
        rules=rules,
        baselines=baselines_of(held, [(pair.family, pair.name) for pair in selection.own], say),
        on_ray=on_ray,
        parts=parts,
        strict=strict,
        format=Format.json if json else format,
        full=full,
        quiet=quiet,
    )
    if selection.is_list:
        tell_left_out(selection, say)
    judged, wrong_usage = _audit(request)
    finish(judged, junit, against=against, wrong_usage=wrong_usage)


def _ray_request(
    engine: EngineName, *, address: str | None, cores: int | None, memory: str
) -> RayRequest | None:
    """Which Ray is asked for; None: none."""
    from shadow.text import bytes_of

    if engine is not EngineName.ray:
        given = {
            "--address": address is not None,
            "--cpus-per-task": cores is not None,
            "--memory-per-task": memory != "auto",
        }
        for option, is_given in given.items():
            if is_given:
                raise UsageError(f"{option} without --engine ray", "add --engine ray")
        return None
    most = None if memory == "auto" else bytes_of(memory)
    require("ray")
    from shadow.audits.ray_engine import RayRequest

    return RayRequest(address=address, cores=cores, memory=most)


@dataclass(frozen=True)
class AuditRequest:
    """What `shadow audit` is asked for."""

    selection: Selection
    """The pairs, and whether they make a list, which has an index."""

    settings: Settings
    """What the numbers depend on."""

    output: Path
    """The folder that reports are written below; with store, the one of this machine to work in."""

    store: Store | None
    """The URL that reports are published below; None: they stay on this machine."""

    runtime: Runtime
    """How the audit runs."""

    scores: Mapping[Pair, ScoreFiles]
    """Benchmark scores, of the pairs that have any."""

    rules: Sequence[Rule]
    """The rules that reports are held against."""

    baselines: Mapping[tuple[str, str], Measured]
    """By family and pair: the earlier reports that figures must not have moved from."""

    on_ray: RayRequest | None
    """Which Ray carries out the pairs; None: this process does."""

    parts: int | None
    """In how many parts each pair is measured, 1 or more; None: whole, or a single pair on Ray in
    as many as run at a time.
    """

    strict: bool
    """Is it an objection that something was skipped that should not be?"""

    format: Format
    """What is printed."""

    full: bool
    """Is every figure of a pair shown?"""

    quiet: bool
    """Is nothing told on stderr but errors and the count at the end?"""

    @property
    def is_alone(self) -> bool:
        """Is this one pair that is no list? Then its fault is the fault of the command."""
        return len(self.selection.own) == 1 and not self.selection.is_list

    @property
    def is_cut(self) -> bool:
        """Are the tasks parts of a pair, and pairs audited in turn?"""
        return self.parts is not None or (self.on_ray is not None and self.is_alone)

    @property
    def shows_each(self) -> bool:
        """Is every report shown when it is finished?"""
        return self.format is Format.table and not self.selection.is_list


def _audit(request: AuditRequest) -> tuple[list[Judgement], bool]:
    """Audit every pair and show what came of it.

    Returns the judgements, and whether no pair has what was asked for.
    """
    from shadow.claims.verdicts import Judgement

    pairs = request.selection.own
    judged: list[Judgement] = []
    bugs: list[Exception] = []
    wrong = 0
    bars = console.pairs_progress(
        len(pairs),
        is_list=request.selection.is_list,
        hidden=request.quiet,
        several=request.on_ray is not None and not request.is_cut,
    )
    try:
        with _engine(request) as engine, bars as watch:
            for outcome in _outcomes(request, watch, engine):
                family, pair = outcome.pair.family, outcome.pair.name
                try:
                    judged.append(_judgement(request, outcome.finished()))
                except ShadowError as error:  # one failing pair does not stop the others
                    if isinstance(error, UsageError) and request.is_alone:
                        raise
                    if isinstance(error, UsageError):
                        wrong += 1
                    named = error if request.is_alone else of_pair(error, outcome.pair)
                    judged.append(at_fault(family, pair, named))
                except Exception as bug:
                    if not request.selection.is_list or outcome.error is None:
                        raise
                    bugs.append(bug)
                    judged.append(Judgement(family, pair, fault=outcome.error.message))
    except KeyboardInterrupt:
        raise Unfinished from None
    # several at a time end in any order
    place = {(pair.family, pair.name): number for number, pair in enumerate(pairs)}
    judged.sort(key=lambda judgement: place[judgement.family, judgement.pair])
    _show(request, judged)
    if bugs:
        raise ExceptionGroup("faults of shadow itself, while it audited a list", bugs)
    return judged, 0 < wrong == len(pairs)


def _engine(request: AuditRequest) -> AbstractContextManager[Engine | None]:
    if request.on_ray is None:
        return nullcontext()
    from shadow.audits.ray_engine import ray_engine

    return ray_engine(request.on_ray, request.runtime)


def _outcomes(request: AuditRequest, watch: Watch, engine: Engine | None) -> Iterator[PairOutcome]:
    from shadow.audits.pair import run_pair
    from shadow.audits.pairs import PATIENCE, audit_pairs

    store = request.store
    audit: Callable[..., AuditResult] = run_pair
    if store is not None:
        from shadow.audits.remote import run_remote_pair

        audit = partial(run_remote_pair, store=store)
    runtime = request.runtime
    if request.is_cut:
        from shadow.audits.engine import InProcess
        from shadow.audits.parts import Parts

        # what a driver that was killed has left at work ends soon
        parts = Parts(engine or InProcess(), request.parts)
        runtime = replace(runtime, elsewhere=parts, patience=PATIENCE)
        engine = None
    if request.selection.is_list:
        from shadow.audits.list_audit import audit_list

        return audit_list(
            request.selection, request.settings, request.output, runtime=runtime,
            scores=request.scores, watch=watch, audit=audit, store=store, engine=engine,
        )  # fmt: skip
    # what is said of several at a time says of which
    numbered = engine is not None and not request.is_alone
    return audit_pairs(
        request.selection.own, request.settings, request.output, runtime=runtime,
        scores=request.scores, watch=watch, numbered=numbered, audit=audit, engine=engine,
    )  # fmt: skip


def _judgement(request: AuditRequest, result: AuditResult) -> Judgement:
    """What came of one report; outside of a list both are shown at once."""
    from shadow.outputs.terminal.rules import rules_view

    if request.shows_each:
        console.display(_view(request, result))
    baseline = request.baselines.get((result.summary.family, result.summary.pair))
    options = request.store.options if request.store is not None else {}
    judgement = judged_of(result, request.rules, baseline, strict=request.strict, storage=options)
    if request.shows_each and request.rules:
        console.display(rules_view(judgement))
    return judgement


def _view(request: AuditRequest, result: AuditResult) -> RenderableType:
    from shadow.outputs.terminal.summary import summary_view

    return summary_view(
        result.summary,
        result.provenance,
        result.place,
        options=console.out.options,
        full=request.full,
    )


def _show(request: AuditRequest, judged: Sequence[Judgement]) -> None:
    """At the end: of several pairs how they stand, and all that is told as JSON."""
    from shadow.outputs.terminal.batch import batch_view, pairs_view
    from shadow.outputs.terminal.rules import rules_view

    if not request.selection.is_list:
        if request.format is Format.json:
            console.show_json(_told(judged))
        elif not request.is_alone:
            console.display(pairs_view(judged))
        return
    from shadow.audits.list_index import read_index

    index = read_index(request.output)
    assert index is not None
    if request.format is Format.json:
        console.show_json({**index.as_json(), "reports": _told(judged)})
        return
    console.display(batch_view(index, console.out.options))
    for judgement in judged:
        if judgement.verdicts:
            console.display(rules_view(judgement, titled=True))


def _told(judged: Sequence[Judgement]) -> list[dict[str, Any]]:
    """The summaries of what was audited, with what came of the rules where there are any."""
    summaries = []
    for judgement in judged:
        if judgement.summary is not None:
            summary = judgement.summary.as_json()
            if judgement.verdicts:
                summary["judged"] = judgement.as_json()
            summaries.append(summary)
    return summaries


def tell_left_out(selection: Selection, say: Callable[[str], None]) -> None:
    """What a list, a glob or a tag left out."""
    for name in selection.passed_over:
        say(f"{name} has no pair to compare: `shadow families {name}` says why")
    if not selection.own:
        count = len(selection.pairs)
        pairs = f"{count} {'pair' if count == 1 else 'pairs'}"
        say(f"nothing to audit in shard {selection.shard}: the list has {pairs}")


def of_pair(error: ShadowError, pair: Pair) -> ShadowError:
    """The fault of one pair among several."""
    return ShadowError(f"{pair.full_name}: {error.message}", error.hint)
