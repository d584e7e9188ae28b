"""The audit of pairs, one after another: the loop behind every audit, of one pair, of a family or of a list."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from shadow.audits.pair import AuditResult, Progress, Runtime, Settings, run_pair
from shadow.errors import KeptError, ShadowError
from shadow.findings.scores import ScoreFiles
from shadow.targets.families import Pair
from shadow.text import byte_size, took

Watch = Callable[[str], AbstractContextManager[Callable[[Progress], None]]]
"""Called with the name of a pair: while the pair is audited, what is entered gets its progress."""

State = Literal["done", "kept", "failed", "stopped"]
BUG = "a fault of shadow itself; its traceback follows at the end"


@dataclass(frozen=True)
class PairOutcome:
    """What became of one pair."""

    pair: Pair
    """The pair."""

    state: State
    """kept: a finished report is there that differs from what was asked for, and stays. stopped: by the user."""

    result: AuditResult | None
    """Its report; None unless it is done."""

    fault: BaseException | None
    """What went wrong: a ShadowError, or a fault of shadow itself; None where it is done."""

    began: bool
    """Was anything measured or fetched, rather than only read?"""

    seconds: float
    """How long it took, 0 or more."""

    moved: int
    """Bytes of weights that came over the network for it, 0 or more."""

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


def audit_pairs(
    pairs: Sequence[Pair],
    settings: Settings,
    output: Path,
    runtime: Runtime = Runtime(),  # noqa: B008 - frozen
    *,
    scores: Mapping[Pair, ScoreFiles] = MappingProxyType({}),
    watch: Watch | None = None,
    numbered: bool = False,
    audit: Callable[..., AuditResult] = run_pair,
) -> Iterator[PairOutcome]:
    """Audit pairs in turn into one folder; yields what became of each. Whatever goes wrong with one, the next is tried.

    Of a pair that is stopped, as by Ctrl-C, the outcome is yielded too; what stopped it is raised after that.

    scores are those of the pairs that have any. watch is told each pair that begins and gives who is told its progress,
    instead of `runtime.show`. numbered: what is said of a pair begins with its number and its name, and ends with a
    line on its report. audit is called as run_pair is.
    """
    for number, pair in enumerate(pairs, 1):
        say, detail = runtime.say, runtime.detail
        if numbered:
            prefix = f"[{number}/{len(pairs)}] {pair.full_name}: "
            say, detail = partial(_say_behind, prefix, say), partial(_say_behind, prefix, detail)
        watching = nullcontext(runtime.show) if watch is None else watch(pair.full_name)
        with watching as show:
            meter = _Meter(show)
            metered = replace(runtime, say=say, detail=detail, show=meter.show)
            outcome = _outcome(pair, meter, partial(audit, pair, settings, output, metered, scores=scores.get(pair)))
        if numbered and outcome.began and outcome.result is not None:
            moved = f", {byte_size(outcome.moved)} fetched" if outcome.moved else ""
            say(f"{outcome.result.summary.label} in {took(outcome.seconds)}{moved}")
        yield outcome
        if outcome.state == "stopped":
            outcome.finished()  # raises


def _say_behind(prefix: str, say: Callable[[str], None], text: str) -> None:
    say(prefix + text)


def _outcome(pair: Pair, meter: _Meter, audit: Callable[[], AuditResult]) -> PairOutcome:
    """What becomes of a pair when it is audited."""
    result: AuditResult | None = None
    fault: BaseException | None = None
    state: State = "failed"
    try:
        result = audit()
        state = "done"
    except KeptError as error:
        fault = error
        state = "kept"
    except Exception as error:  # a bug too: the others are tried nevertheless, and it keeps its traceback
        fault = error
    except BaseException as error:
        fault = error
        state = "stopped"
    return PairOutcome(
        pair=pair,
        state=state,
        result=result,
        fault=fault,
        began=meter.began,
        seconds=meter.seconds(),
        moved=meter.moved,
    )


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
