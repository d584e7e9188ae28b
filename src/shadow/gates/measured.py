"""A finished report as rules see it: its figures by place, its tensors and files, its claims."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from shadow.checks import files
from shadow.checks.answer import Outcome, Question, Verification
from shadow.checks.patterns import Pattern
from shadow.checks.registry import question, verify
from shadow.checks.summary import Summary
from shadow.errors import ShadowError
from shadow.gates.rows import ReportRows, Scope, State, file_states, states
from shadow.gates.rules import FILES, GATE, UNCHANGED, Metric
from shadow.reports.folders import finished_metadata, refuse_remains
from shadow.run.runtime import Access, Runtime
from shadow.summary.record import Gate, OverLayers, Row, keys_of
from shadow.telling.reading import AuditReport
from shadow.templates import Reason

OFFLINE = Runtime(access=Access(offline=True))
BASELINE = "the baseline"  # the label of one
Name = tuple[str, str]  # of a pair: its family and its own


def figure_in(row: Row, key: str) -> float | None:
    """The figure that a rule names. Raises KeyError if the record has none of this name."""
    if key not in keys_of(type(row)):
        raise KeyError(key)
    value: float | None = getattr(row, key)
    return value


@dataclass(frozen=True)
class JudgedReport(ReportRows):
    """A finished report as rules see it. Rows are read when a rule needs more than the summary."""

    reading: Runtime = OFFLINE
    """How both sides are read for a check that the report does not answer."""

    @cached_property
    def rows(self) -> dict[Scope, OverLayers]:
        """The summary's rows of the pair, of each component and of each module."""
        rows: dict[Scope, OverLayers] = {(): self.summary}
        for component in self.summary.components:
            rows[component.component,] = component
        for module in self.summary.modules:
            rows[module.component, module.module] = module
        return rows

    def scopes(self, metric: Metric) -> list[Scope]:
        """The places of the report that a rule names, in the order of the summary."""
        return [scope for scope in self.rows if metric.covers(scope)]

    def figure(self, scope: Scope, metric: str) -> float | None:
        """A figure of the summary; None if it is null, or of a place that the report lacks."""
        if not scope:
            return figure_in(self.summary.figures, metric)
        row = self.rows.get(scope)
        return None if row is None else figure_in(row, metric)

    def states(self, metric: Metric) -> dict[str, State]:
        """The state of each place or file that a rule names, by name."""
        if metric.component == FILES:
            if self.summary.files is None:
                return {}
            pattern = metric.module or ""
            return file_states(pattern, str(metric), self.report.rows.files)
        assert metric.place is not None, "a place, or files"
        return states(metric.place, self.tensors)

    def answer(self, claim: Metric) -> tuple[Outcome, Reason | str]:
        """The outcome of a gate, or of a claim that the report answers, and the reason."""
        if claim.component == GATE:
            gate = self._gate(claim.metric)
            outcome = Outcome.HOLDS
            if not gate.passed:
                outcome = Outcome.DOES_NOT_HOLD
                if gate.figure is None:
                    outcome = Outcome.INCONCLUSIVE
            return outcome, gate.reason
        if claim.metric == FILES:
            answer = files.CHECK.judge(self.report.rows.files)
            return answer.outcome, files.CHECK.say_all(answer.reasons)
        return self._is_same()

    def _gate(self, name: str) -> Gate:
        return next(gate for gate in self.summary.gates if gate.name == name)

    def _is_same(self) -> tuple[Outcome, Reason]:
        """The outcome of `same`: it holds if no component changed."""
        by_component = states(Pattern("*"), self.tensors)
        changed = {name: state for name, state in by_component.items() if state != UNCHANGED}
        if not by_component:
            return Outcome.INCONCLUSIVE, Reason("none_compared")
        if not changed:
            return Outcome.HOLDS, Reason("none_changed")
        if any(changed.values()):
            return Outcome.DOES_NOT_HOLD, states_are(changed)
        return Outcome.INCONCLUSIVE, Reason("places_left_open", places=[*changed])

    def why_absent(self, metric: Metric) -> Reason | str:
        """The reason that the report has no figure that a rule names."""
        if metric.component == FILES:
            return Reason("no_such", what=FILES)
        if metric.place is not None:
            return Reason("no_such", what=metric.place.text)
        if metric.component is None:
            return self._gate("changed").reason
        what = str(replace(metric, metric=""))
        rounded = "rounding" if self.summary.figures.matrices_rounded else None
        return Reason("no_matrix", what=what, rounded=rounded)


def states_are(states: Mapping[str, State]) -> Reason:
    """The states of places or files, as a reason."""
    reasons = []
    for name, state in states.items():
        reason = Reason("state_is", name=name, state=state or "unknown")
        reasons.append(reason)
    return Reason("states", states=reasons)


def read_measured(
    folder: Path,
    label: str = "this report",
    summary: Summary | None = None,
    reading: Runtime = OFFLINE,
) -> JudgedReport:
    """Read a finished report as rules see it, with its summary unless that is given.

    A summary is read together with all tables, so that the next measurement may overwrite these.
    reading: for checks that the report does not answer. Raises ShadowError.
    """
    report = AuditReport(folder)
    return JudgedReport(report, summary or report.summary, label, reading)


def read_baselines(
    against: Path, folders: Sequence[Path], pairs: Sequence[Name]
) -> dict[Name, JudgedReport]:
    """The report of each pair that has one in folders, which are those in or below against.

    A single pair may also be compared with a report of any name, if against is that report's own
    folder. Raises ShadowError if one cannot be read.
    """
    if len(pairs) == 1 and finished_metadata(against) is not None:
        return {pairs[0]: read_measured(against, BASELINE)}
    baselines: dict[Name, JudgedReport] = {}
    for folder in folders:
        metadata = finished_metadata(folder)
        if metadata is None:
            refuse_remains(folder)
            continue
        pair = (metadata["family"], metadata["pair"])
        if pair in baselines:
            fault = f"{against} has two reports of {':'.join(pair)}"
            raise ShadowError(fault, "name the folder of one of them")
        if pair in pairs:
            baselines[pair] = read_measured(folder, BASELINE)
    return baselines


def checked(claim: Question, summary: Summary, runtime: Runtime) -> Verification:
    """The answer to a check that a report does not contain.

    Raises ShadowError if a side has changed since its audit.
    """
    from shadow.run.sides import client_for, find_audited, reference_of

    sides = (summary.base, summary.tuned)
    references = [reference_of(side) for side in sides]
    parts = [part for reference in references for _, part in reference.parts]
    runtime.say(f"{summary.family}:{summary.pair}: check {claim}")
    with tempfile.TemporaryDirectory() as scratch, client_for(parts):
        audited = {}
        for number, side in enumerate(sides):
            reference = references[number]
            folder = Path(scratch) / str(number)
            audited[reference] = find_audited(side, reference, runtime, folder)
        if len(audited) > 1:  # a side is read, and freed, for itself
            runtime = replace(runtime, checkpoints=audited)
        both_sides = question(claim.claim, references, moved=claim.moved, frozen=claim.frozen)
        return verify(both_sides, runtime)
