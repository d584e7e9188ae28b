"""The audit of pairs: the loop behind every audit, of one pair, of a family or of a list."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from shadow.checks.summary import Summary
from shadow.engines.engine import (
    Ended,
    Engine,
    InProcess,
    Task,
    Watch,
    completed,
    portable,
    require_sight,
)
from shadow.engines.finished import AuditResult
from shadow.engines.pair import run_pair
from shadow.errors import BusyError, KeptError, ShadowError
from shadow.quantities import text_of
from shadow.run.runtime import Progress, Runtime
from shadow.run.settings import Settings
from shadow.run.sides import client_for, references_of
from shadow.targets.families import Pair
from shadow.targets.references import ComponentBase, Reference
from shadow.telling.size import of_what
from shadow.text import byte_size, took

State = Literal["done", "kept", "failed", "stopped"]
# seconds that a task waits for another audit of the same pair before others have their turn
PATIENCE = 30.0
BUG = "a fault of shadow itself; its traceback follows at the end"


@dataclass(frozen=True)
class PairOutcome:
    """What became of one pair."""

    pair: Pair
    state: State
    """kept: a finished report that differs from what was asked for is there, and stays. stopped: by
    the user.
    """
    result: AuditResult | None = None
    fault: BaseException | None = None
    """A ShadowError, or a fault of shadow itself; None where it is done."""
    began: bool = False
    """Whether anything was measured or fetched, rather than only read."""
    seconds: float = 0.0
    moved: int = 0
    """Bytes of weights that came over the network for it."""

    @property
    def error(self) -> ShadowError | None:
        """What went wrong, for people; None where the pair is done."""
        if self.fault is None or isinstance(self.fault, ShadowError):
            return self.fault
        return ShadowError(f"{type(self.fault).__name__}: {self.fault}", BUG)

    def finished(self) -> AuditResult:
        """The report of the pair. Raises what went wrong where there is none."""
        if self.result is None:
            assert self.fault is not None
            raise self.fault
        return self.result

    def __getstate__(self) -> dict[str, Any]:
        """For another process: with a fault that can be pickled."""
        state = dict(vars(self))
        if self.fault is not None:
            state["fault"] = portable(self.fault)
        return state


def audit_pairs(
    pairs: Sequence[Pair],
    settings: Settings,
    output: Path,
    runtime: Runtime = Runtime(),  # noqa: B008 - frozen
    *,
    watch: Watch | None = None,
    numbered: bool = False,
    audit: Callable[..., AuditResult] = run_pair,
    engine: Engine | None = None,
) -> Generator[PairOutcome, None, None]:
    """Audit pairs into one folder; yields what became of each as they end.

    Whatever goes wrong with one, the next is tried.

    Of a pair that is stopped, as by Ctrl-C, the outcome is yielded too; what stopped it is raised
    after that.

    watch is called with each pair that begins and
    gives what gets its progress, instead of `runtime.show`. numbered: what is said of a pair begins
    with its number and its name, and ends with a line on its report. audit is called as run_pair
    is. engine: what carries out the pairs; None: this process, in turn.
    """
    engine = InProcess() if engine is None else engine
    pins = Pins(runtime) if engine.elsewhere else None
    of_task: dict[Task, tuple[Pair, Callable[[str], None]]] = {}
    for number, pair in enumerate(pairs, 1):
        own = runtime
        if numbered:
            own = runtime.prefixed(f"[{number}/{len(pairs)}] {pair.full_name}: ")
        work = partial(_audited, audit, pair, settings, output)
        task = Task(pair.full_name, work, partial(_runtime_of, pair, own, pins), near_of(pair))
        of_task[task] = pair, own.say
        engine.submit(task)
    with closing(completed(engine, _is_to_be_tried_again, watch)) as ended_tasks:
        for ended in ended_tasks:
            pair, say = of_task[ended.task]
            outcome = _lost(pair, ended.fault) if ended.fault is not None else ended.result
            if engine.elsewhere:
                outcome = _seen_here(outcome, output)
            if numbered and outcome.began and outcome.result is not None:
                moved = f", {byte_size(outcome.moved)} fetched" if outcome.moved else ""
                found = _in_short(outcome.result.summary)
                say(f"done in {took(outcome.seconds)}{moved}, {found}")
            yield outcome
            if outcome.state == "stopped" and not engine.elsewhere:
                outcome.finished()  # raises


def _is_to_be_tried_again(ended: Ended) -> bool:
    """Whether another audit of the pair was at work, or somebody stopped this one elsewhere."""
    if ended.fault is not None:
        return isinstance(ended.fault, BusyError)
    outcome: PairOutcome = ended.result
    return isinstance(outcome.fault, BusyError) or outcome.state == "stopped"


def _in_short(summary: Summary) -> str:
    """How far the weights moved, and the gates that failed: part of a line."""
    norm = summary.figures.relative_norm_overall
    parts = ["nothing changed"]
    if norm and summary.figures.matrices:
        parts = [f"{text_of(norm, 'share')} {of_what(summary)}"]
    standing = summary.stopped
    if standing is not None:
        parts.append(standing)
    return ", ".join(parts)


def near_of(pair: Pair) -> str:
    """What pairs of one base have in common: the name of the base, without its revision."""
    if isinstance(pair.base, ComponentBase):
        return " ".join(part.repo for _, part in pair.base.parts)
    return pair.base.repo


class Pins:
    """The commits of what pairs name, each looked up once, so that all tasks of a run read the
    same.

    Offline nothing is looked up: each machine has what its cache has.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._commits: dict[Reference, str | None] = {}

    def of(self, pair: Pair) -> dict[Reference, str]:
        """The commits of the sides of a pair that are on the Hub.

        A side whose commit cannot be had is left out: the audit of the pair will say what is wrong.
        """
        found = {side: self._commit(side) for side in references_of(pair) if not side.is_folder}
        return {side: commit for side, commit in found.items() if commit is not None}

    def _commit(self, reference: Reference) -> str | None:
        if self._runtime.access.offline:
            return None
        if self._commits.get(reference) is None:
            self._commits[reference] = None
            with suppress(ShadowError), client_for([reference]):
                from shadow.checkpoints.hub import commit_of

                self._commits[reference] = commit_of(
                    reference.repo, reference.revision, say=self._runtime.say
                )
        return self._commits[reference]


def _runtime_of(pair: Pair, runtime: Runtime, pins: Pins | None) -> Runtime:
    """How the audit of a pair runs; asked for when the pair begins."""
    return runtime if pins is None else replace(runtime, commits=pins.of(pair), patience=PATIENCE)


def _audited(
    audit: Callable[..., AuditResult],
    pair: Pair,
    settings: Settings,
    output: Path,
    runtime: Runtime,
) -> PairOutcome:
    """The work of one task: what becomes of a pair, whatever that is."""
    meter = _Meter(runtime.show)
    result: AuditResult | None = None
    fault: BaseException | None = None
    state: State = "done"
    try:
        result = audit(pair, settings, output, replace(runtime, show=meter.show))
    except KeptError as error:
        fault, state = error, "kept"
    except Exception as error:
        # a bug too: the others are tried nevertheless, and it keeps its traceback
        fault, state = error, "failed"
    except BaseException as error:
        fault, state = error, "stopped"
    return PairOutcome(
        pair=pair,
        state=state,
        result=result,
        fault=fault,
        began=meter.began,
        seconds=meter.seconds(),
        moved=meter.moved,
    )


def _lost(pair: Pair, fault: BaseException) -> PairOutcome:
    """A pair that the engine has not brought to an end. What it took is not known."""
    state: State = "failed" if isinstance(fault, Exception) else "stopped"
    return PairOutcome(pair, state, fault=fault)


def _seen_here(outcome: PairOutcome, output: Path) -> PairOutcome:
    """An outcome of another machine.

    Its report must be where this one looks, perhaps after a moment.
    """
    if outcome.result is None or outcome.result.url is not None:
        return outcome
    folder = outcome.result.folder
    try:
        require_sight(
            (folder / "summary.json").is_file,
            f"{folder}: the report was written on another machine, and is not here",
        )
    except ShadowError as fault:
        return replace(outcome, state="failed", result=None, fault=fault)
    return outcome


class _Meter:
    """What one pair takes: the time since it began, and the bytes that its progress tells of."""

    def __init__(self, show: Callable[[Progress], None]) -> None:
        self._show = show
        self._started = time.monotonic()
        self.moved = 0
        self.began = False

    def show(self, state: Progress) -> None:
        self.moved = state.moved
        self.began = True
        self._show(state)

    def seconds(self) -> float:
        return time.monotonic() - self._started
