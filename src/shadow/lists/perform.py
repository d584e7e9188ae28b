"""A request -> its audits, with the loop over pairs."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from shadow.engines.engine import (
    Ended,
    Engine,
    InProcess,
    Task,
    Watch,
    completed,
    require_sight,
)
from shadow.engines.finished import AuditResult, PairOutcome, State, standing
from shadow.engines.pair import Parts, run_pair
from shadow.errors import BusyError, KeptError, ShadowError, UsageError
from shadow.files import (
    PARTIAL,
    alone_at,
    remove_empty,
    report_folder,
    require_utf8,
    writing,
)
from shadow.lists.planning import runtime_of, settings_of
from shadow.lists.request import AuditRequest
from shadow.reports.folders import FILES_OF_A_PAIR, FINISHED, fetched_if_any, publish
from shadow.run.journal import JOURNAL
from shadow.run.runtime import Progress, Runtime, ignore
from shadow.run.settings import Settings
from shadow.run.sides import client_for, identity_of, references_of
from shadow.storage import Store, as_given, work_folder
from shadow.targets.families import Pair
from shadow.targets.references import Reference
from shadow.text import byte_size, took

Audit = Callable[..., AuditResult]


def perform(
    request: AuditRequest,
    *,
    say: Callable[[str], None] = ignore,
    show: Callable[[Progress], None] = ignore,
    watch: Watch | None = None,
) -> Generator[PairOutcome, None, None]:
    """Audit the pairs of a request, and yield the result of each.

    watch: called with each pair that begins; it returns the function that gets its progress instead
    of show. Raises ShadowError at once if the request cannot be carried out.
    """
    settings = settings_of(request.measuring)
    if request.checkpoints and request.ray is not None:
        raise UsageError("a model in memory is measured in this process only", "leave engine out")
    if request.ray is not None:
        cores = request.ray.cpus_per_task
        if cores is not None and cores < 1:
            raise UsageError(f"cpus_per_task={cores}", "1 or more")
        _ = request.ray.memory  # raises what is wrong with it
    runtime = replace(runtime_of(request, say), show=show)
    if isinstance(request.output, Store):
        request.output.require_access()
    else:
        require_utf8(request.output)
    return _performed(request, settings, runtime, watch)


def _performed(
    request: AuditRequest, settings: Settings, runtime: Runtime, watch: Watch | None
) -> Generator[PairOutcome, None, None]:
    store = None
    audit: Audit = run_pair
    output = request.output
    if isinstance(output, Store):
        store = output
        output = work_folder(store)
        audit = partial(run_remote_pair, store=store)
    with ExitStack() as stack:
        engine: Engine | None = None
        if request.ray is not None:
            from shadow.engines.ray_engine import ray_engine

            engine = stack.enter_context(ray_engine(request.ray, runtime))
            if request.is_alone:  # its tasks are parts of the pair
                # what a driver that was killed has left at work ends soon
                runtime = replace(runtime, elsewhere=Parts(engine).measure, patience=PATIENCE)
                engine = None
        selection = request.selection
        # what is said of several at a time says of which
        numbered = selection.is_list or (engine is not None and not request.is_alone)
        audited = audit_pairs(
            selection.own,
            settings,
            output,
            runtime,
            watch=watch,
            numbered=numbered,
            audit=audit,
            engine=engine,
        )
        if selection.is_list:
            from shadow.lists.index import with_index

            yield from with_index(selection, settings, output, audited, store)
        else:
            yield from audited


def run_remote_pair(
    pair: Pair,
    settings: Settings,
    output: Path,
    runtime: Runtime,
    *,
    store: Store,
) -> AuditResult:
    """Audit one pair in output like `run_pair`, and move the report to the store.

    Raises ShadowError if the store fails; the report then stays, and the same call uploads it.
    """
    place = report_folder(pair.family, pair.name)
    folder = output / place
    target = store.at(place)
    copy = None
    if not (folder / FINISHED).is_file():  # else an earlier upload failed
        copy = fetched_if_any(target, spectra=False)
    if copy is not None:
        earlier = standing(copy, identity_of(pair, settings, runtime), runtime, spectra=False)
        if earlier.result is not None:
            return replace(earlier.result, url=target.url)
        if earlier.other and not runtime.overwrite:
            message = as_given(f"{copy}: the finished report there differs: {earlier.other}")
            raise KeptError(message, "replace it with --overwrite, or choose another place with -o")
        if earlier.broken:
            runtime.say(as_given(f"measuring again: {earlier.broken}"))
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


# seconds that a task waits for another audit of the same pair before others have their turn
PATIENCE = 30.0


def audit_pairs(
    pairs: Sequence[Pair],
    settings: Settings,
    output: Path,
    runtime: Runtime = Runtime(),  # noqa: B008 - frozen
    *,
    watch: Watch | None = None,
    numbered: bool = False,
    audit: Audit = run_pair,
    engine: Engine | None = None,
) -> Generator[PairOutcome, None, None]:
    """Audit pairs into one folder, and yield the result of each.

    If one fails, the next is still tried. A pair that is stopped, as by Ctrl-C, is yielded before
    that is raised. watch: called with each name; returns the function that gets its progress.
    numbered: lines begin with the number and name of the pair. audit: called like run_pair. engine:
    None is this process.
    """
    engine = InProcess() if engine is None else engine
    pins = Pins(runtime) if engine.elsewhere else None
    of_task: dict[Task, tuple[Pair, Callable[[str], None]]] = {}
    for number, pair in enumerate(pairs, 1):
        own = runtime
        if numbered:
            own = runtime.prefixed(f"[{number}/{len(pairs)}] {pair.full_name}: ")
        when_begun = partial(_runtime_of, pair, own, pins)
        work = partial(_audited, audit, pair, settings, output)
        task = Task(pair.full_name, work, when_begun, near_of(pair))
        of_task[task] = pair, own.say
        engine.submit(task)
    with closing(completed(engine, _is_to_be_tried_again, watch)) as ended_tasks:
        for ended in ended_tasks:
            pair, say = of_task[ended.task]
            outcome: PairOutcome = ended.result
            if ended.fault is not None:  # what it took is not known
                outcome = PairOutcome(pair, state_after(ended.fault), fault=ended.fault)
            if engine.elsewhere:
                outcome = _seen_here(outcome)
            if numbered and outcome.began and outcome.result is not None:
                parts = [f"done in {took(outcome.seconds)}"]
                if outcome.moved:
                    parts.append(f"{byte_size(outcome.moved)} fetched")
                if gates := outcome.result.summary.stopped:
                    parts.append(gates)
                say(", ".join(parts))
            yield outcome
            if outcome.state == "stopped" and not engine.elsewhere:
                outcome.finished()  # raises


def _is_to_be_tried_again(ended: Ended) -> bool:
    """True if another audit of the pair was running, or somebody stopped this one
    elsewhere.
    """
    if ended.fault is not None:
        return isinstance(ended.fault, BusyError)
    outcome: PairOutcome = ended.result
    return isinstance(outcome.fault, BusyError) or outcome.state == "stopped"


def near_of(pair: Pair) -> str:
    """The name that pairs of one base share: its name, without the revision."""
    return " ".join(part.repo for _, part in pair.base.parts)


class Pins:
    """Commits of references, looked up once so that all tasks read the same; none offline."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._commits: dict[Reference, str] = {}

    def of(self, pair: Pair) -> dict[Reference, str]:
        """The commits of sides on the Hub that can be resolved; the audit reports errors."""
        if self._runtime.access.offline:
            return {}
        sides = [side for side in references_of(pair) if not side.is_folder]
        for side in sides:
            if side not in self._commits:
                with suppress(ShadowError), client_for([side]):
                    from shadow.checkpoints.hub import commit_of

                    commit = commit_of(side.repo, side.revision, say=self._runtime.say)
                    self._commits[side] = commit
        return {side: self._commits[side] for side in sides if side in self._commits}


def _runtime_of(pair: Pair, runtime: Runtime, pins: Pins | None) -> Runtime:
    """The runtime of a pair's audit, made when the pair begins."""
    return runtime if pins is None else replace(runtime, commits=pins.of(pair), patience=PATIENCE)


def _audited(
    audit: Audit,
    pair: Pair,
    settings: Settings,
    output: Path,
    runtime: Runtime,
) -> PairOutcome:
    """Run one task: the audit of a pair, whatever its outcome."""
    started = time.monotonic()
    latest: Progress | None = None

    def show(progress: Progress) -> None:
        nonlocal latest
        latest = progress
        runtime.show(progress)

    result: AuditResult | None = None
    fault: BaseException | None = None
    state: State = "done"
    try:
        result = audit(pair, settings, output, replace(runtime, show=show))
    except BaseException as error:
        fault = error  # a bug too: the others are tried nevertheless, and it keeps its traceback
        state = state_after(error)
    return PairOutcome(
        pair,
        state,
        result,
        fault,
        began=latest is not None,
        seconds=time.monotonic() - started,
        moved=0 if latest is None else latest.moved,
    )


def state_after(fault: BaseException) -> State:
    """The state of a pair whose audit ended with an exception."""
    if isinstance(fault, KeptError):
        return "kept"
    return "failed" if isinstance(fault, Exception) else "stopped"


def _seen_here(outcome: PairOutcome) -> PairOutcome:
    """The outcome of another machine once its report is visible; failed if it never is."""
    if outcome.result is None or outcome.result.url is not None:
        return outcome
    folder = outcome.result.folder
    fault = f"{folder}: the report was written on another machine, and is not here"
    try:
        require_sight((folder / "summary.json").is_file, fault)
    except ShadowError as error:
        return replace(outcome, state="failed", result=None, fault=error)
    return outcome
