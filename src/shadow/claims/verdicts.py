"""Finished reports and rules -> verdicts. Reads reports, prints and writes nothing.

A rule is violated (`met` in JSON) when one of the figures that it names is what it must not be.
What a rule names and the report does not have, or has only as identical or null, is no pass: the
rule is `missing`, unless it allows that.

A figure has moved when it lies outside the interval over layers that the baseline's report gives
it. The baseline's interval, not the new one's, because a baseline is what was accepted: a report
with uneven layers would else widen what is allowed to it. It is a yardstick of size and no test:
two runs of one training leave it now and then.
"""

from __future__ import annotations

import fnmatch
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from shadow.claims.answer import first_code
from shadow.claims.rules import (
    COLUMNS,
    FAILS,
    FILES,
    GATE,
    HOLDS,
    LABEL,
    MOVED,
    OF_THE_PAIR,
    STATES,
    UNCHANGED,
    Metric,
    Rule,
)
from shadow.claims.states import TENSORS, file_states, states
from shadow.claims.summary import Summary
from shadow.claims.verify.files import files
from shadow.comparing.matching import ComparedReport, compared, relate, settings_apart
from shadow.reports.columns import DELTA, ERRORS, ESTIMATED, FIGURES, SPECTRAL
from shadow.reports.report import Report
from shadow.summary.bootstrap import LEVEL, blocks_of, interval_of_median
from shadow.summary.layer_medians import directions, median_directions
from shadow.summary.numbers import floats, median
from shadow.summary.rows import ComponentRow, ModuleRow
from shadow.summary.tiers import WORDS
from shadow.text import counted, several

Verdicts = Literal["passed", "met", "missing", "skipped"]
Scope = tuple[str, ...]  # () the pair, (component,) or (component, module)
Row = Summary | ComponentRow | ModuleRow

# metrics that are no medians: of the pair, of a component and of a module
WHOLE_OF_PAIR = {*OF_THE_PAIR, "zero_share"} - {"participation_share"}
WHOLE_OF_COMPONENT = {"relative_norm", "energy_share"}
WHOLE_OF_MODULE = {"energy_share"}
# are named before others that moved further
FIRST = ("relative_norm_overall", "relative_norm", "concentration")
NAMED = 5  # figures that a sentence names one by one
ALL = 1_000_000
TOO_NEAR = "an estimate whose error reaches"
# The same report made on another machine may differ by this much, relative:
# shadow.comparing.matching measured 5e-7.
NOISE = 1e-6
# figures that are 0 where all that a rule names is identical
NORMS = (
    *("relative_norm", "relative_norm_overall", "relative_spectral", "frobenius_norm"),
    *("spectral_norm", "nuclear_norm"),
)
NULLS = {column.name: column.null for column in (*SPECTRAL, *DELTA, *FIGURES)}


@dataclass(frozen=True)
class JudgedFigure:
    """One figure of a report."""

    name: str
    """Its name, with component and module before it."""
    value: float | str | None
    bounds: tuple[float, float] | None = None
    """Its interval over layers; None where it has none."""
    why: str = ""


@dataclass(frozen=True)
class RuleFigure:
    """One figure that a rule was held against."""

    figure: str
    """Its name, with component and module before it."""
    value: float | str | None
    met: bool
    before: float | None = None
    """What the baseline has of it; None without one."""
    low: float | None = None
    """The lower bound of the baseline's interval."""
    high: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What came of one rule on one report."""

    rule: Rule
    outcome: Verdicts
    """`met`: violated; `passed`; `missing` where there was nothing to judge; `skipped` where the
    rule allows that.
    """
    detail: str
    """What was found, in a line: of many figures the first NAMED."""
    findings: tuple[RuleFigure, ...] = ()
    in_full: str = ""
    """The same with every figure; empty where the line has all."""

    @property
    def code(self) -> int:
        """The exit code it asks for: 4 met, 1 missing; 0 if the rule is but a warning."""
        if self.rule.severity != "error":
            return 0
        return {"met": 4, "missing": 1}.get(self.outcome, 0)

    def as_json(self) -> dict[str, Any]:
        """For machines: the rule, what came of it, and its figures."""
        rule = {
            key: getattr(self.rule, key)
            for key in ("name", "condition", "severity", "message", "file", "line")
        }
        figures = [asdict(figure) for figure in self.findings]
        return {
            **rule,
            "outcome": self.outcome,
            "detail": self.detail,
            "in_full": self.in_full or self.detail,
            "figures": figures,
        }


@dataclass(frozen=True)
class Judgement:
    """What came of one pair."""

    family: str
    pair: str
    summary: Summary | None = None
    seconds: float | None = None
    """How long the command worked on it, 0 or more; None where nothing was to be audited."""
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    """What a person should know of the report and of the baseline."""
    fault: str | None = None
    """Why there is no report; None where there is one."""
    kept: bool = False
    """Whether a finished report was left as it is, because what was asked for differs from it."""
    objections: tuple[str, ...] = ()
    """Reasons for skipping that `--strict` objects to."""

    @property
    def name(self) -> str:
        """`family:base..tuned`."""
        return f"{self.family}:{self.pair}"

    def as_json(self) -> dict[str, Any]:
        """For machines; the summary is what `show --format json` prints."""
        pair = {key: getattr(self, key) for key in ("family", "pair", "code", "fault")}
        return {
            **pair,
            "notes": list(self.notes),
            "rules": [verdict.as_json() for verdict in self.verdicts],
        }

    @property
    def code(self) -> int:
        """The exit code that it asks for."""
        codes = {verdict.code for verdict in self.verdicts}
        if self.fault is not None:
            codes.add(1)
        if self.objections:
            codes.add(3)
        return first_code(codes)


@dataclass(frozen=True)
class Measured:
    """A finished report as rules see it. Rows are read when a rule needs more than the summary."""

    source: Report
    label: str
    """What to call it: this report, or the baseline."""
    summary: Summary

    @cached_property
    def report(self) -> ComparedReport:
        """Its rows, with every column that a rule may name."""
        return compared(
            self.source,
            self.label,
            more=(*COLUMNS, "kept_reason", *(column.name for column in ERRORS)),
        )

    @cached_property
    def deltas(self) -> pd.DataFrame:
        """The rows of its deltas."""
        return self.report.subject("delta")

    @cached_property
    def _rows(self) -> dict[Scope, Row]:
        """The summary's rows of the pair, of each component and of each module."""
        rows: dict[Scope, Row] = {(): self.summary}
        rows |= {(row.component,): row for row in self.summary.components}
        return rows | {(row.component, row.module): row for row in self.summary.modules}

    def _figures(self, at: Scope) -> Mapping[str, Any]:
        """The figures of a place by name; None where one is undefined."""
        row = self._rows[at]
        if isinstance(row, Summary):
            return {**row.figures, LABEL: row.label}
        return vars(row)

    def places(self, name: Metric) -> list[Scope]:
        """Where the report has what a rule names, in the order of the summary."""
        if name.component is None:
            return [()]
        return [at for at in self._rows if at and name.covers(at[0], at[1] if at[1:] else None)]

    def changed(self, at: Scope, layers: tuple[int, int] | None = None) -> int:
        """How many deltas of a place have been measured, in these layers or in all."""
        if layers is not None:
            return len(self._deltas_of(at, layers))
        return int(self._figures(at)["matrices"])

    @cached_property
    def _tensors(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.source.table("tensors").select(TENSORS).to_pylist()
        return rows

    def states(self, figure: Metric) -> dict[str, str | None]:
        """What is known of each place, or of each file, that a rule names: see
        `shadow.claims.states`.
        """
        if figure.component == FILES:
            if self.summary.files is None:
                return {}
            return file_states(figure, self.source.table("files").to_pylist())
        deltas = self.deltas[["component", "module", "layer"]].astype(object)
        places = deltas.where(deltas.notna(), None).itertuples(index=False, name=None)
        return states(figure, self._tensors, set(places))

    def is_identical(self, figure: Metric) -> bool:
        """Whether all matrices that a rule names were compared and none changed."""
        matrices = [row for row in self._tensors if row["reason"] != "not_a_matrix"]
        found = states(figure, matrices, set())
        return bool(found) and set(found.values()) == {UNCHANGED}

    def answer(self, claim: Metric) -> tuple[str | None, str]:
        """Whether a gate or a claim holds, None where it cannot be told, and the reason."""
        if claim.component == GATE:
            gate = next(gate for gate in self.summary.gates if gate.name == claim.metric)
            if gate.figure is None and not gate.passed:
                return None, gate.reason
            return HOLDS if gate.passed else FAILS, gate.reason
        if claim.metric == FILES:
            told, _ = files(self.source.table("files").to_pylist())
            return {"holds": HOLDS, "does_not_hold": FAILS}.get(told.outcome), told.reason
        found = self.states(Metric("*", None, ""))
        apart = [f"{name} is {state}" for name, state in found.items() if state != UNCHANGED]
        if any(state not in (UNCHANGED, None) for state in found.values()):
            return FAILS, several(apart, NAMED)
        if None in found.values():
            unknown = [name for name, state in found.items() if state is None]
            return None, f"not all of {several(unknown, NAMED)} was compared"
        return (HOLDS, "nothing changed") if found else (None, "nothing was compared")

    def with_intervals(self, at: Scope) -> list[str]:
        """The figures of a place that intervals are made of."""
        return list(self._rows[at].intervals)

    def figure(self, at: Scope, metric: str, layers: tuple[int, int] | None = None) -> JudgedFigure:
        """The summary's figure of that name, else the median over the delta rows of the place; in
        some layers the latter.
        """
        name = ".".join((*at, metric))
        if layers is not None:
            component, module = at[0] if at else None, at[1] if len(at) > 1 else None
            name = str(Metric(component, module, metric, layers))
            return self._median(name, at, metric, layers)
        row = self._rows.get(at)
        if row is None:
            return JudgedFigure(name, None)
        figures = self._figures(at)
        if metric not in figures:
            return self._median(name, at, metric)
        why = "it has no spread"
        if metric in row.intervals:
            why = row.no_interval or f"{row.layers} layers are too few for it"
        return JudgedFigure(name, figures[metric], row.intervals.get(metric), why)

    def errors(
        self, at: Scope, metric: str, layers: tuple[int, int] | None = None
    ) -> tuple[float, float] | None:
        """Between which values a median of estimates lies, over all matrices and over those inside
        layers; None where it is of none.

        The median of what each is at least, and at most: the truth of each lies between.
        """
        is_share = metric == "participation_share"  # of a participation ratio in that of the null
        column = "participation_ratio" if is_share else metric
        if not self.summary.estimated or column not in ESTIMATED:
            return None
        rows = self._deltas_of(at, layers)
        values, errors = floats(rows[column]), np.nan_to_num(floats(rows[f"{column}_error"]))
        if is_share:
            null = floats(rows["null_participation_ratio"])
            values, errors = values / null, errors / null
        every, inside = np.ones(len(rows), dtype=np.bool_), ~np.isnan(floats(rows["layer"]))
        ends = [
            median((values + sign * errors)[some]) for some in (every, inside) for sign in (-1, 1)
        ]
        known = [end for end in ends if end is not None]
        return (min(known), max(known)) if known else None

    def _deltas_of(self, at: Scope, layers: tuple[int, int] | None) -> pd.DataFrame:
        """The delta rows of a place, in these layers or in all."""
        rows = self.deltas
        for key, wanted in zip(("component", "module"), at, strict=False):
            rows = rows[rows[key] == wanted]
        if layers is not None:
            numbers = floats(rows["layer"])
            rows = rows[(numbers >= layers[0]) & (numbers <= layers[1])]
        return rows

    def _median(
        self, name: str, at: Scope, metric: str, layers: tuple[int, int] | None = None
    ) -> JudgedFigure:
        rows = self._deltas_of(at, layers)
        values = floats(rows[metric])
        middle = median(values)
        if metric == "equivalent_directions":
            values = directions(rows.__getitem__)
            middle, _ = median_directions(rows.__getitem__)
        blocks = blocks_of(rows["component"].tolist(), floats(rows["layer"]))
        interval = interval_of_median(values, blocks)
        bounds = None if middle is None else interval.bounds
        return JudgedFigure(name, middle, bounds, interval.reason or "")

    def beyond_last(self, name: Metric) -> str:
        """Says where a rule names layers that the model does not have."""
        numbers = [
            int(row["layer"])
            for row in self._tensors
            if row["layer"] is not None
            and (name.component is None or fnmatch.fnmatchcase(row["component"], name.component))
        ]
        if name.layers is None or not numbers or name.layers[1] <= max(numbers):
            return ""
        return f"; the last layer is {max(numbers)}"

    def why_absent(self, name: Metric) -> str:
        """Why the report has no delta of what a rule names."""
        if name.component == FILES:
            return "the report lists no files: it was made before they were"
        if name.layers is not None:
            at = f"the report has no changed matrix of {replace(name, metric='')}"
            return f"{at}{self.beyond_last(name)}"
        if name.component is None:
            return next(gate.reason for gate in self.summary.gates if gate.name == "changed")
        tensors = self.report.tensors
        components = tensors["component"].fillna("")
        modules = [None] * len(tensors)
        if name.module is not None:
            modules = tensors["module"].fillna("").tolist()
        covered = [name.covers(*place) for place in zip(components, modules, strict=True)]
        of_scope = tensors[np.array(covered, dtype=np.bool_)]
        what = ".".join(filter(None, (name.component, name.module)))
        if of_scope.empty:
            return f"the report has no {what}"
        if (of_scope["status"] == "identical").any():
            return f"{what} is identical to the base's"
        reasons = set(of_scope.loc[of_scope["status"] == "skipped", "reason"].dropna())
        if not reasons:
            return f"{what} has no base"
        return f"{what} was not measured ({', '.join(sorted(reasons))})"


def notes_on(baseline: Measured, now: Measured) -> list[str]:
    """What makes a baseline another thing than the same audit before."""
    before, after = baseline.report, now.report
    if before.metadata == after.metadata:
        return ["the baseline is this report itself, so nothing can have moved"]
    notes = []
    which, this = (f"{side.provenance.family}:{side.provenance.pair}" for side in (before, after))
    if which != this:
        notes.append(f"the baseline is of another pair: {which}")
    relation, why = relate(before, after)
    if relation not in ("the same pair", "one base"):
        note = "the baseline does not start from the same base"
        if relation == "different bases":
            note += f": {why}"
        notes.append(note)
    notes += settings_apart(before, after)
    summary = baseline.summary
    if summary.no_interval is None and summary.interval_level is not None:
        level = f"{100 * summary.interval_level:.3g} %"
        note = f"the baseline's spread over layers covers {level}"
        if summary.interval_level < LEVEL:
            note += f", not {100 * LEVEL:.3g} %: only {summary.layers} layers"
        notes.append(note)
    return notes


# Judging


def judge_report(
    rules: Sequence[Rule],
    now: Measured,
    baseline: Measured | None = None,
    *,
    seconds: float | None = None,
    objections: tuple[str, ...] = (),
) -> Judgement:
    """What comes of every rule on a report; seconds and objections are those of its audit.

    Rules are judged whatever the gates of the report say; a gate that failed is a note.
    """
    notes = [f"not assessable: {gate.reason}" for gate in now.summary.failed_gates]
    if baseline is not None:
        notes += notes_on(baseline, now)
    return Judgement(
        family=now.summary.family,
        pair=now.summary.pair,
        summary=now.summary,
        seconds=seconds,
        verdicts=judge(rules, now, baseline),
        notes=tuple(notes),
        objections=objections,
    )


def judge(
    rules: Sequence[Rule], now: Measured, baseline: Measured | None = None
) -> tuple[Verdict, ...]:
    """What comes of every rule. Without a baseline, rules on what moved are missing."""
    return tuple(_judged(rule, now, baseline) for rule in rules)


def _judged(rule: Rule, now: Measured, baseline: Measured | None) -> Verdict:
    if rule.comparison == MOVED:
        return _moved(rule, now, baseline)
    if rule.comparison in (HOLDS, FAILS):
        return _claimed(rule, now)
    return _in_state(rule, now) if rule.comparison in STATES else _threshold(rule, now)


def _claimed(rule: Rule, now: Measured) -> Verdict:
    """A gate, or a claim on what the report has."""
    answer, reason = now.answer(rule.figure)
    if answer is None:
        return _missing(rule, f"{rule.figure} cannot be told: {reason}")
    finding = RuleFigure(str(rule.figure), answer, rule.holds(answer))
    detail = f"{rule.figure} {answer}: {reason}"
    return Verdict(rule, "met" if finding.met else "passed", detail, (finding,))


def _in_state(rule: Rule, now: Measured) -> Verdict:
    """Places or files that changed or did not: one that is not known is no pass."""
    found = now.states(rule.figure)
    if not found:
        return _missing(rule, now.why_absent(rule.figure))
    findings = tuple(
        RuleFigure(name, state, rule.holds(state))
        for name, state in found.items()
        if state is not None
    )
    violating = [f"{one.figure} is {one.value}" for one in findings if one.met]
    if violating:
        return Verdict(rule, "met", several(violating, NAMED), findings)
    unknown = [name for name, state in found.items() if state is None]
    if unknown:
        return _missing(rule, f"not all of {several(unknown, NAMED)} was compared")
    texts = list(dict.fromkeys(f"is {one.value}" for one in findings))
    noun = findings[0].figure if len(findings) == 1 else f"each of {len(findings)}"
    return Verdict(rule, "passed", f"{noun} {' or '.join(texts)}", findings)


def _threshold(rule: Rule, now: Measured) -> Verdict:
    places = now.places(rule.figure)
    figures = {at: now.figure(at, rule.figure.metric, rule.figure.layers) for at in places}
    findings = {
        at: RuleFigure(figure.name, value, rule.holds(value))
        for at, figure in figures.items()
        if (value := figure.value) is not None
    }
    if not findings and not any(now.changed(at, rule.figure.layers) for at in places):
        if rule.figure.metric not in NORMS or not now.is_identical(rule.figure):
            return _missing(rule, now.why_absent(rule.figure))
        zero = RuleFigure(str(rule.figure), 0.0, rule.holds(0.0))
        detail = f"{rule.figure} is 0, as all that it names is identical"
        return Verdict(rule, "met" if zero.met else "passed", detail, (zero,))
    nulls = [figure.name for figure in figures.values() if figure.value is None]
    if open_ones := [finding.figure for at, finding in findings.items() if _is_open(rule, now, at)]:
        sure = {at: finding for at, finding in findings.items() if not _is_open(rule, now, at)}
        findings = {at: finding for at, finding in sure.items() if finding.met}
        if not findings:
            why = f"{TOO_NEAR} the threshold: measure with --precision default"
            return _missing(rule, lambda shown: f"{several(open_ones, shown)} is {why}")
    if not findings:
        when = NULLS.get(rule.figure.metric)
        why = f"null (null when: {when})" if when else "null"
        if reason := WORDS[now.summary.tier].not_measured:
            why = f"null ({reason})"
        return _missing(rule, lambda shown: f"{several(nulls, shown)} is {why}")
    _, _, condition = rule.condition.partition(" ")
    violating = {at: finding for at, finding in findings.items() if finding.met}
    medians = _medians(rule.figure, now, list(violating or findings))
    texts = [
        f"{finding.figure} is {_text(finding.value, rule.holds)}"
        for finding in (violating or findings).values()
    ]

    def said(shown: int) -> str:
        rest = f"{medians}; null: {several(nulls, shown)}" if nulls else medians
        if violating:
            return f"{several(texts, shown)} ({condition}){rest}"
        if len(texts) == 1 or shown == ALL:
            return f"{several(texts, shown)} (not {condition}){rest}"
        ordered = sorted(findings.values(), key=lambda finding: float(finding.value or 0.0))
        least, most = (_text(ordered[end].value, rule.holds) for end in (0, -1))
        return f"{len(texts)} figures are {least} to {most} (none {condition}){rest}"

    return _verdict(rule, "met" if violating else "passed", said, tuple(findings.values()))


def _is_open(rule: Rule, now: Measured, at: Scope) -> bool:
    """Whether the error of an estimate leaves open on which side of a threshold it lies."""
    within = now.errors(at, rule.figure.metric, rule.figure.layers)
    return within is not None and rule.holds(within[0]) != rule.holds(within[1])


def is_median(figure: Metric) -> bool:
    """Whether a figure is the median over the matrices of its place, and not a sum, a share or a
    norm of all of them.
    """
    if figure.layers is not None:
        return True
    if figure.component is None:
        whole = WHOLE_OF_PAIR
    elif figure.module is None:
        whole = WHOLE_OF_COMPONENT
    else:
        whole = WHOLE_OF_MODULE
    return figure.metric in (*COLUMNS, "participation_share") and figure.metric not in whole


def _medians(figure: Metric, now: Measured, places: Sequence[Scope]) -> str:
    """Says that the figures of places are medians; of a single module, over how many matrices."""
    if not is_median(figure):
        return ""
    if len(places) > 1:
        return ", each the median over its matrices"
    if figure.module is not None or figure.layers is not None:
        count = now.changed(places[0], figure.layers)
        over = f", the median over {counted(count, 'matrix', 'matrices')}"
        return f"{over}{now.beyond_last(figure)}"
    return ", the median over matrices"


def _moved(rule: Rule, now: Measured, baseline: Measured | None) -> Verdict:
    if baseline is None:
        return _missing(rule, "the baseline has no report of this pair")
    findings: list[RuleFigure] = []
    left = defaultdict[str, list[str]](list)  # figures that cannot be judged, by the reason
    for at in baseline.places(rule.figure):
        metric = rule.figure.metric
        names = [metric]
        if {"*", "?"} & set(metric):
            names = fnmatch.filter(baseline.with_intervals(at), metric)
        for name in names:
            before = baseline.figure(at, name)
            if before.value is None:
                left["null in the baseline"].append(before.name)
                continue
            if before.bounds is None:
                left[f"no spread over layers in the baseline: {before.why}"].append(before.name)
                continue
            low, high = before.bounds
            value = now.figure(at, name).value
            slack = NOISE * max(abs(low), abs(high))
            within = now.errors(at, name)
            if within and (low <= within[0] <= high) != (low <= within[1] <= high):
                left[f"{TOO_NEAR} the end of its spread"].append(before.name)
                continue
            outside = not isinstance(value, float | int) or not low - slack <= value <= high + slack
            findings.append(
                RuleFigure(
                    figure=before.name,
                    value=value,
                    met=outside,
                    before=None if isinstance(before.value, str) else before.value,
                    low=low,
                    high=high,
                )
            )

    def unjudged(shown: int) -> str:
        return "; ".join(f"{several(figures, shown)} ({why})" for why, figures in left.items())

    if not findings:
        absent = None if left else f"in the baseline, {baseline.why_absent(rule.figure)}"
        return _missing(rule, absent or unjudged)
    findings.sort(key=_distance, reverse=True)
    moved = [_move(finding) for finding in sorted(findings, key=_is_aside) if finding.met]
    inside = f"{len(findings)} figures are inside their spread over layers in the baseline"
    if len(findings) == 1:
        inside = f"{findings[0].figure} is inside its spread over layers in the baseline"

    def said(shown: int) -> str:
        found = several(moved, shown) if moved else inside
        return f"{found}; not judged: {unjudged(shown)}" if left else found

    return _verdict(rule, "met" if moved else "passed", said, tuple(findings))


def _missing(rule: Rule, why: str | Callable[[int], str]) -> Verdict:
    def said(shown: int) -> str:
        return f"nothing to judge: {why if isinstance(why, str) else why(shown)}"

    return _verdict(rule, "skipped" if rule.allow_missing else "missing", said)


def _verdict(
    rule: Rule, outcome: Verdicts, said: Callable[[int], str], findings: tuple[RuleFigure, ...] = ()
) -> Verdict:
    """said: what was found, with so many figures by name."""
    line, in_full = said(NAMED), said(ALL)
    return Verdict(rule, outcome, line, findings, in_full if in_full != line else "")


def _distance(finding: RuleFigure) -> float:
    """How far a figure lies outside its interval, in widths of it; infinite if it is null now."""
    if not isinstance(finding.value, float | int):
        return math.inf
    low, high = finding.low or 0.0, finding.high or 0.0
    outside = max(low - finding.value, finding.value - high, 0.0)
    if high > low:
        return outside / (high - low)
    if outside:
        return math.inf
    return 0.0


def _is_aside(finding: RuleFigure) -> bool:
    """Whether a figure is none of those that the summary starts with."""
    return finding.figure.rpartition(".")[2] not in FIRST


def _move(finding: RuleFigure) -> str:
    """`spiked is 0.5, was 1 (0.9 to 1)`."""
    low, high = finding.low or 0.0, finding.high or 0.0

    def inside(value: Any) -> bool:  # of the bounds as they are written
        return bool(float(f"{low:.3g}") <= value <= float(f"{high:.3g}"))

    value = "null"
    if finding.value is not None:
        value = _text(finding.value, inside)
    return f"{finding.figure} is {value}, was {finding.before:.3g} ({low:.3g} to {high:.3g})"


def _text(value: float | str | None, holds: Callable[[Any], bool]) -> str:
    """A figure with as many digits as it takes to see whether it holds."""
    if not isinstance(value, float | int):
        return f'"{value}"'
    for digits in range(2, 17):
        short = f"{value:.{digits}g}"
        if holds(float(short)) == holds(value):
            return short
    return repr(value)
