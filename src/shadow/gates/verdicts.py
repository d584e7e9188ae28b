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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from shadow.checks.answer import Outcome, first_code
from shadow.checks.broken import broken
from shadow.checks.summary import Summary
from shadow.checks.table import pair_claim
from shadow.comparing.matching import relate, settings_apart
from shadow.errors import ShadowError
from shadow.gates.measured import NAMED, Measured, Scope
from shadow.gates.rules import (
    COLUMNS,
    FAILS,
    HOLDS,
    IS_BROKEN,
    MOVED,
    OF_REPORTS,
    OF_THE_PAIR,
    STATES,
    VERIFY,
    Metric,
    Rule,
)
from shadow.reports.columns import DELTA, FIGURES, SPECTRAL
from shadow.summary.bootstrap import LEVEL
from shadow.summary.tiers import WORDS
from shadow.text import counted, several

Verdicts = Literal["passed", "met", "missing", "skipped"]

# metrics that are no medians: of the pair, of a component and of a module
WHOLE_OF_PAIR = {*OF_THE_PAIR, "zero_share"} - {"participation_share"}
WHOLE_OF_COMPONENT = {"relative_norm", "energy_share"}
WHOLE_OF_MODULE = {"energy_share"}
# are named before others that moved further
FIRST = ("relative_norm_overall", "relative_norm", "concentration")
ALL = 1_000_000
FEW_AGAINST, MOST_AGAINST = 2, 100  # tensors that a line, and that a file names against a claim
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
    """`met`: violated; `passed`; `missing`: nothing to judge; `skipped`: so the rule allows."""
    detail: str
    """What was found, in a line: of many figures the first NAMED."""
    findings: tuple[RuleFigure, ...] = ()
    in_full: str = ""
    """The same with every figure; empty where the line has all."""
    is_open: bool = False
    """Whether both sides were read for a claim, and it is inconclusive."""

    @property
    def code(self) -> int:
        """The exit code: 4 met, 1 missing, 5 inconclusive; 0 if the rule is but a warning."""
        if self.rule.severity != "error":
            return 0
        return {"met": 4, "missing": 5 if self.is_open else 1}.get(self.outcome, 0)

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
        if self.objections or (self.summary is not None and broken(self.summary)):
            codes.add(3)
        return first_code(codes)


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
    notes = [f"gate {gate.name} failed: {gate.reason}" for gate in now.summary.failed_gates]
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
    """A gate, a claim about the pair, or a word for what is broken."""
    if rule.figure.component == IS_BROKEN:
        word = rule.figure.metric
        texts = [sentence.text for sentence in broken(now.summary) if sentence.code == word]
        finding = RuleFigure(word, HOLDS if texts else FAILS, bool(texts))
        detail = " ".join(texts) or f"it is not {word}"
        return Verdict(rule, "met" if texts else "passed", detail, (finding,))
    if rule.figure.component == VERIFY and rule.figure.metric not in OF_REPORTS:
        return _checked(rule, now)
    answer, reason = now.answer(rule.figure)
    if answer is None:
        return _missing(rule, f"{rule.figure} is inconclusive: {reason}")
    finding = RuleFigure(str(rule.figure), answer, rule.holds(answer))
    detail = f"{rule.figure} {answer}: {reason}"
    return Verdict(rule, "met" if finding.met else "passed", detail, (finding,))


def _checked(rule: Rule, now: Measured) -> Verdict:
    """A claim for which both sides are read."""
    assert now.check is not None, "a report that is judged"
    try:
        found = now.check(pair_claim(rule.figure.metric), now.summary)
    except ShadowError as error:
        why = "; ".join(filter(None, (error.message, error.hint)))
        return _missing(rule, f"{rule.figure} was not checked: {why}")
    outcome = found.outcome.words
    if found.outcome is Outcome.INCONCLUSIVE:
        return replace(_missing(rule, f"it is {outcome}: {found.reason}"), is_open=True)
    finding = RuleFigure(str(rule.figure), outcome, rule.holds(outcome))
    against = [one.name for one in found.against]

    def said(shown: int) -> str:
        named = several(against, MOST_AGAINST if shown == ALL else FEW_AGAINST)
        return f"{outcome}: {found.reason}" + (f" ({named})" if named else "")

    return _verdict(rule, "met" if finding.met else "passed", said, (finding,))


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
    """Whether a figure is the median over the matrices of its place."""
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
