"""The audit of pairs: the loop behind every audit, of one pair, of a family or of a list."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

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
from shadow.run.runtime import Progress, Runtime
from shadow.run.settings import Settings
from shadow.run.sides import client_for, references_of
from shadow.targets.families import Pair
from shadow.targets.references import Reference
from shadow.text import byte_size, took

State = Literal["done", "kept", "failed", "stopped"]
# seconds that a task waits for another audit of the same pair before others have their turn
PATIENCE = 30.0
BUG = "a fault of shadow itself; its traceback follows at the end"


@dataclass(frozen=True)
class PairOutcome:
    """Result of one pair."""

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
        """Return what went wrong, for people; None where the pair is done."""
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
    """Audit pairs into one folder, and yield what became of each.

    Whatever goes wrong with one, the next is tried. A pair that is stopped, as by Ctrl-C, is
    yielded before that is raised. watch gets each name and gives what gets its progress. numbered:
    lines begin with the number and name of the pair. audit is called as run_pair is. engine: None
    is this process.
    """
    engine = InProcess() if engine is None else engine
    pins = Pins(runtime) if engine.elsewhere else None
    of_task: dict[Task, tuple[Pair, Callable[[str], None]]] = {}
    for number, pair in enumerate(pairs, 1):
        own = runtime
        if numbered:
            own = runtime.prefixed(f"[{number}/{len(pairs)}] {pair.full_name}: ")
        runtime_of = partial(_runtime_of, pair, own, pins)
        work = partial(_audited, audit, pair, settings, output)
        task = Task(pair.full_name, work, runtime_of, near_of(pair))
        of_task[task] = pair, own.say
        engine.submit(task)
    with closing(completed(engine, _is_to_be_tried_again, watch)) as ended_tasks:
        for ended in ended_tasks:
            pair, say = of_task[ended.task]
            outcome: PairOutcome = ended.result
            if ended.fault is not None:  # what it took is not known
                state: State = "failed" if isinstance(ended.fault, Exception) else "stopped"
                outcome = PairOutcome(pair, state, fault=ended.fault)
            if engine.elsewhere:
                outcome = _seen_here(outcome)
            if numbered and outcome.began and outcome.result is not None:
                moved = f", {byte_size(outcome.moved)} fetched" if outcome.moved else ""
                gates = outcome.result.summary.stopped
                say(f"done in {took(outcome.seconds)}{moved}{f', {gates}' if gates else ''}")
            yield outcome
            if outcome.state == "stopped" and not engine.elsewhere:
                outcome.finished()  # raises


def _is_to_be_tried_again(ended: Ended) -> bool:
    """Return whether another audit of the pair was at work, or somebody stopped this one
    elsewhere.
    """
    if ended.fault is not None:
        return isinstance(ended.fault, BusyError)
    outcome: PairOutcome = ended.result
    return isinstance(outcome.fault, BusyError) or outcome.state == "stopped"


def near_of(pair: Pair) -> str:
    """Return what pairs of one base have in common: the name of the base, without its revision."""
    return " ".join(part.repo for _, part in pair.base.parts)


class Pins:
    """Commits of references, each looked up once so that all tasks read the same; none offline."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._commits: dict[Reference, str] = {}

    def of(self, pair: Pair) -> dict[Reference, str]:
        """The commits of the sides on the Hub that can be had: the audit says what is wrong."""
        sides = [side for side in references_of(pair) if not side.is_folder]
        for side in sides if not self._runtime.access.offline else ():
            if side not in self._commits:
                with suppress(ShadowError), client_for([side]):
                    from shadow.checkpoints.hub import commit_of

                    commit = commit_of(side.repo, side.revision, say=self._runtime.say)
                    self._commits[side] = commit
        return {side: self._commits[side] for side in sides if side in self._commits}


def _runtime_of(pair: Pair, runtime: Runtime, pins: Pins | None) -> Runtime:
    """Return how the audit of a pair runs; asked for when the pair begins."""
    return runtime if pins is None else replace(runtime, commits=pins.of(pair), patience=PATIENCE)


def _audited(
    audit: Callable[..., AuditResult],
    pair: Pair,
    settings: Settings,
    output: Path,
    runtime: Runtime,
) -> PairOutcome:
    """The work of one task: what becomes of a pair, whatever that is."""
    started, began, moved = time.monotonic(), False, 0

    def show(state: Progress) -> None:
        nonlocal began, moved
        began, moved = True, state.moved
        runtime.show(state)

    result: AuditResult | None = None
    fault: BaseException | None = None
    state: State = "done"
    try:
        result = audit(pair, settings, output, replace(runtime, show=show))
    except KeptError as error:
        fault, state = error, "kept"
    except Exception as error:
        # a bug too: the others are tried nevertheless, and it keeps its traceback
        fault, state = error, "failed"
    except BaseException as error:
        fault, state = error, "stopped"
    return PairOutcome(pair, state, result, fault, began, time.monotonic() - started, moved)


def _seen_here(outcome: PairOutcome) -> PairOutcome:
    """The outcome of another machine, once its report is in sight; failed if it never is."""
    if outcome.result is None or outcome.result.url is not None:
        return outcome
    folder = outcome.result.folder
    fault = f"{folder}: the report was written on another machine, and is not here"
    try:
        require_sight((folder / "summary.json").is_file, fault)
    except ShadowError as error:
        return replace(outcome, state="failed", result=None, fault=error)
    return outcome
