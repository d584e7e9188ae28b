"""Finished reports and rules -> verdicts. Reads reports, prints and writes nothing.

A rule is violated (`met` in JSON) if one of its figures is what it must not be. A rule about
something that the report lacks, or has only as identical or null, does not pass: it is `missing`,
unless it allows that.

A figure has moved when it lies outside the interval over layers that the baseline's report gives
it. The baseline's interval, not the new one's, because a baseline is what was accepted: a report
with uneven layers would otherwise widen its own limits. It is a measure of size and not a test: two
runs of one training leave it now and then.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from shadow.checks.answer import Outcome, first_code
from shadow.checks.patterns import Pattern
from shadow.checks.registry import pair_claim
from shadow.checks.summary import Summary, broken
from shadow.comparing.codes import ReportRelation, say
from shadow.comparing.matching import relate, settings_apart
from shadow.errors import ShadowError
from shadow.gates.measured import JudgedReport, checked, states_are
from shadow.gates.rows import LEAST, Scope
from shadow.gates.rules import (
    FAILS,
    HOLDS,
    IS_BROKEN,
    MOVED,
    OF_FILES,
    OF_REPORTS,
    VERIFY,
    Rule,
)
from shadow.summary.record import not_measured
from shadow.templates import Reason, Value, in_words

Verdicts = Literal["passed", "met", "missing", "skipped"]

# The same report made on another machine may differ by this much, relative:
# shadow.comparing.matching measured 5e-7.
NOISE = 1e-6
# of the energy of the change that a rule names: what its figures have to rest on
LEAST_SHARE = 0.5
# codes of what leaves a rule open: exit code 5
OPEN = ("inconclusive", "small_part", "moved_small_part")
# figures that are 0 where all that a rule names is identical
NORMS = ("relative_norm", "relative_norm_overall")
DIGITS = range(2, 17)  # of a number beside its threshold
WORDS_OF_VERDICTS: Mapping[str, str] = {
    "broken": "{what}",
    "not_broken": "it is not {word}",
    "answered": "{what} {answer}: {why}",
    "unanswered": "{what} is inconclusive: {why}",
    "checked": "{answer}: {why}[ ({against})]",
    "unchecked": "{what} was not checked: {why}",
    "inconclusive": "it is inconclusive: {why}",
    "absent": "{why}",
    "states": "{states}",
    "not_compared": "not all of {what} was compared, or the model does not have it",
    "identical": "{what} is 0, because all that it names is identical[ or {rounded}]",
    "within_error": "{figures} is an estimate whose error reaches the threshold: measure with"
    " --level full",
    "small_part": "{figures} {count|rests|rest} on matrices that hold {share:share} of the energy"
    " of the change[; null: {nulls}]",
    "moved_small_part": "{left}",
    "null": "{figures} is null[ ({why})]",
    "violated": "{figures} ({condition})[; null: {nulls}]",
    "within": "{figures} (not {condition})[; null: {nulls}]",
    "no_baseline": "the baseline has no report of this pair",
    "absent_before": "in the baseline, {why}",
    "unjudged": "{left}",
    "moved": "{moved}[; not judged: {left}]",
    "unmoved": "{count:count figure is|figures are} inside the spread over layers in the baseline"
    "[; not judged: {left}]",
    # parts of these
    "figure_is": "{figure} is {value}",
    "figure_was": "{figure} is {value}, was {before} ({low} to {high})",
    "state_is": "{name} is {state}",
    "without_interval": "{figure} ({why})",
    "null_before": "{figure} (null in the baseline)",
    "rests_on_little": "{figure} (of {share:share} of the change)",
    "error_reaches_bound": "{figure} (an estimate whose error reaches its end)",
    "no_such": "the report has no {what}",
    "no_matrix": "the report has no matrix of {what} that was measured and changed"
    "[ by more than {rounded}]",
    "places_left_open": "not all of {places} was compared",
    "none_changed": "nothing changed",
    "none_compared": "nothing was compared",
}


@dataclass(frozen=True)
class RuleFigure:
    """A figure to which a rule was applied."""

    figure: str
    """Its name, with component and module before it."""
    value: float | str | None
    met: bool
    before: float | None = None
    """What the baseline has of it; None without one."""
    low: float | None = None
    """The lower bound of the baseline's interval."""
    high: float | None = None
    energy_share: float | None = None
    """How much of the energy of the change in its place the matrices hold that it rests on."""


@dataclass(frozen=True)
class Verdict:
    """The verdict of one rule on one report."""

    rule: Rule
    outcome: Verdicts
    """`met`: violated; `passed`; `missing`: nothing to judge; `skipped`: so the rule allows."""
    why: Reason
    """What was found."""
    findings: tuple[RuleFigure, ...] = ()

    @property
    def code(self) -> int:
        """The exit code: 4 met, 1 missing, 5 left open; 0 if the rule is only a warning."""
        if self.rule.severity != "error":
            return 0
        if self.outcome == "missing":
            return 5 if self.why.code in OPEN else 1
        return 4 if self.outcome == "met" else 0

    @property
    def detail(self) -> str:
        """The finding in a line."""
        text = str(in_words(self.why, WORDS_OF_VERDICTS))
        if self.outcome in ("met", "passed"):
            return text
        what = "not judged" if self.why.code in OPEN else "nothing to judge"
        return f"{what}: {text}"

    @property
    def message(self) -> str:
        """The finding; before it, what the author of the rule says of a violation."""
        detail = self.detail
        if self.outcome != "met" or not self.rule.message:
            return detail
        return f"{self.rule.message} {detail}"

    def as_json(self) -> dict[str, Any]:
        """The rule, its outcome and its figures, for machines."""
        rule = self.rule
        return {
            "name": rule.name,
            "condition": rule.condition,
            "severity": rule.severity,
            "message": rule.message,
            "file": rule.file,
            "line": rule.line,
            "outcome": self.outcome,
            "code": self.why.code,
            "detail": self.detail,
            "figures": [asdict(figure) for figure in self.findings],
        }


@dataclass(frozen=True)
class Judgement:
    """The verdicts on one pair."""

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
        """For machines; the summary is that of `show --format json`."""
        return {
            "family": self.family,
            "pair": self.pair,
            "code": self.code,
            "fault": self.fault,
            "notes": list(self.notes),
            "rules": [verdict.as_json() for verdict in self.verdicts],
        }

    @property
    def code(self) -> int:
        """The exit code for these verdicts."""
        codes = {verdict.code for verdict in self.verdicts}
        if self.fault is not None:
            codes.add(1)
        is_broken = self.summary is not None and broken(self.summary)
        if is_broken or self.objections:
            codes.add(3)
        return first_code(codes)


def notes_on(baseline: JudgedReport, now: JudgedReport) -> list[str]:
    """The differences of a baseline from an earlier run of the same audit."""
    before = baseline.report
    after = now.report
    if before.metadata == after.metadata:
        return ["the baseline is this report itself, so nothing can have moved"]
    notes = []
    pair = baseline.source.name
    if pair != now.source.name:
        notes.append(f"the baseline is of another pair: {pair}")
    relation, _ = relate(before, after)
    if relation not in (ReportRelation.SAME_PAIR, ReportRelation.ONE_BASE):
        notes.append(f"the baseline does not start from the same base: {relation}")
    notes += map(say, settings_apart(before, after))
    return notes


# Judging


def judge_report(
    rules: Sequence[Rule],
    now: JudgedReport,
    baseline: JudgedReport | None = None,
    *,
    seconds: float | None = None,
    objections: tuple[str, ...] = (),
) -> Judgement:
    """Judge every rule on a report; seconds and objections are those of its audit.

    Rules are judged whatever the gates of the report say; a failed gate is a note.
    """
    summary = now.summary
    notes = []
    for gate in summary.failed_gates:
        notes.append(f"gate {gate.name} {summary.state_of(gate)}: {gate.reason}")
    if baseline is not None:
        notes += notes_on(baseline, now)
    return Judgement(
        family=summary.family,
        pair=summary.pair,
        summary=summary,
        seconds=seconds,
        verdicts=judge(rules, now, baseline),
        notes=tuple(notes),
        objections=objections,
    )


def judge(
    rules: Sequence[Rule], now: JudgedReport, baseline: JudgedReport | None = None
) -> tuple[Verdict, ...]:
    """Judge every rule. Without a baseline, `moved` rules are missing."""
    return tuple(_judged(rule, now, baseline) for rule in rules)


def _judged(rule: Rule, now: JudgedReport, baseline: JudgedReport | None) -> Verdict:
    figure = rule.figure
    if rule.comparison == MOVED:
        if baseline is None:
            return _missing(rule, "no_baseline")
        return _moved(rule, now, baseline)
    if rule.comparison in OF_FILES:
        return _in_state(rule, now)
    if rule.comparison not in (HOLDS, FAILS):
        return _threshold(rule, now)
    if figure.component == IS_BROKEN:
        return _broken(rule, now.summary)
    if figure.component == VERIFY and figure.metric not in OF_REPORTS:
        return _checked(rule, now)
    return _answered(rule, now)


def _verdict(rule: Rule, code: str, findings: Sequence[RuleFigure], **figures: Value) -> Verdict:
    """Make the verdict of a rule from its figures."""
    is_met = any(finding.met for finding in findings)
    outcome: Verdicts = "met" if is_met else "passed"
    return Verdict(rule, outcome, Reason(code, figures), tuple(findings))


def _missing(
    rule: Rule, code: str, findings: Sequence[RuleFigure] = (), **figures: Value
) -> Verdict:
    outcome: Verdicts = "skipped" if rule.allow_missing else "missing"
    return Verdict(rule, outcome, Reason(code, figures), tuple(findings))


def _broken(rule: Rule, summary: Summary) -> Verdict:
    """Judge by a word for what is broken."""
    word = rule.figure.metric
    texts = [sentence.text for sentence in broken(summary) if sentence.code == word]
    if texts:
        findings = _answer(rule, Outcome.HOLDS)
        return _verdict(rule, "broken", findings, what=" ".join(texts))
    return _verdict(rule, "not_broken", _answer(rule, Outcome.DOES_NOT_HOLD), word=word)


def _answered(rule: Rule, now: JudgedReport) -> Verdict:
    """Judge a gate of the pair, or a check that its report answers."""
    what = str(rule.figure)
    outcome, why = now.answer(rule.figure)
    if outcome is Outcome.INCONCLUSIVE:
        return _missing(rule, "unanswered", what=what, why=why)
    findings = _answer(rule, outcome)
    return _verdict(rule, "answered", findings, what=what, answer=outcome.words, why=why)


def _checked(rule: Rule, now: JudgedReport) -> Verdict:
    """Judge a check for which both sides are read."""
    try:
        verification = checked(pair_claim(rule.figure.metric), now.summary, now.reading)
    except ShadowError as error:
        what = str(rule.figure)
        why = "; ".join(filter(None, (error.message, error.hint)))
        return _missing(rule, "unchecked", what=what, why=why)
    outcome = verification.outcome
    why = verification.reason
    if outcome is Outcome.INCONCLUSIVE:
        return _missing(rule, "inconclusive", why=why)
    against = [tensor.name for tensor in verification.against] or None
    findings = _answer(rule, outcome)
    return _verdict(rule, "checked", findings, answer=outcome.words, why=why, against=against)


def _answer(rule: Rule, outcome: Outcome) -> list[RuleFigure]:
    """The answer of a gate or a check as the figure of a rule."""
    answer = outcome.words
    return [RuleFigure(str(rule.figure), answer, rule.holds(answer))]


def _in_state(rule: Rule, now: JudgedReport) -> Verdict:
    """Judge places or files that changed or did not; unknown ones do not pass."""
    states = now.states(rule.figure)
    if not states:
        return _missing(rule, "absent", why=now.why_absent(rule.figure))
    known = {}
    violating = {}
    unknown = []
    findings = []
    for name, state in states.items():
        if state is None:
            unknown.append(name)
            continue
        known[name] = state
        is_met = rule.holds(state)
        if is_met:
            violating[name] = state
        findings.append(RuleFigure(name, state, is_met))
    if unknown and not violating:
        return _missing(rule, "not_compared", what=unknown)
    shown = states_are(violating or known)
    return _verdict(rule, "states", findings, states=shown)


def _threshold(rule: Rule, now: JudgedReport) -> Verdict:
    """Judge figures by a threshold."""
    metric = rule.figure.metric
    scopes = now.scopes(rule.figure)
    findings: list[RuleFigure] = []
    nulls: list[str] = []
    within_error: list[str] = []  # estimates that may lie on either side of the threshold
    for scope in scopes:
        name = _name_of(scope, metric)
        value = now.figure(scope, metric)
        if value is None:
            nulls.append(name)
            continue
        share = now.share([scope], metric)
        is_met = rule.holds(value)
        findings.append(RuleFigure(name, value, is_met, energy_share=share))
        error = now.error(scope, metric)
        if rule.holds(value - error) != rule.holds(value + error):
            within_error.append(name)
    if not findings:
        return _without_value(rule, now, scopes, nulls)
    share = now.share(scopes, metric)
    small_part = _of_a_small_part(rule, findings, share, nulls)
    if small_part is not None:
        return small_part
    violating = [
        finding for finding in findings if finding.met and finding.figure not in within_error
    ]
    if within_error and not violating:
        return _missing(rule, "within_error", figures=within_error)
    if within_error:
        findings = violating
    figures = []
    for finding in violating or findings:
        text = _text(finding.value, rule.holds)
        figures.append(Reason("figure_is", figure=finding.figure, value=text))
    return _verdict(
        rule,
        "violated" if violating else "within",
        findings,
        figures=figures,
        condition=rule.limit,
        nulls=nulls or None,
    )


def _name_of(scope: Scope, metric: str) -> str:
    """The name of a figure, with component and module before it."""
    return ".".join((*scope, metric))


def _without_value(
    rule: Rule, now: JudgedReport, scopes: Sequence[Scope], nulls: Sequence[str]
) -> Verdict:
    """Judge a rule of whose figures none has a value."""
    figure = rule.figure
    if any(now.figure(scope, "matrices") for scope in scopes):
        why = not_measured(now.summary.tier)
        return _missing(rule, "null", figures=nulls, why=why)
    place = Pattern("", figure.component or "*", module=figure.module or "*")
    if figure.metric not in NORMS or not now.are_identical(place):
        return _missing(rule, "absent", why=now.why_absent(figure))
    rounded = "only rounded" if now.summary.figures.matrices_rounded else None
    what = str(figure)
    finding = RuleFigure(what, 0.0, rule.holds(0.0))
    return _verdict(rule, "identical", [finding], what=what, rounded=rounded)


def _of_a_small_part(
    rule: Rule, findings: Sequence[RuleFigure], share: float, nulls: Sequence[str]
) -> Verdict | None:
    """Leave a rule open whose figures rest on less than half of the change; None if they do not, or
    if one that rests on more violates it. share: what all of them rest on.
    """
    shares = {finding: finding.energy_share or 0.0 for finding in findings}
    small = [finding for finding in findings if shares[finding] < LEAST_SHARE]
    violating = [finding for finding in findings if finding.met]
    if not {*violating} <= {*small}:
        return None
    if share >= LEAST_SHARE:
        if not violating:
            return None
        share = min(shares[finding] for finding in violating)
    names = [finding.figure for finding in violating or small or findings]
    left_open = [replace(finding, met=False) for finding in findings]
    return _missing(
        rule,
        "small_part",
        left_open,
        figures=names,
        count=len(names),
        share=share,
        nulls=nulls or None,
    )


def _moved(rule: Rule, now: JudgedReport, baseline: JudgedReport) -> Verdict:
    findings: list[RuleFigure] = []
    left: list[Reason] = []  # figures that cannot be judged
    for scope in baseline.scopes(rule.figure):
        for metric in _metrics(rule.figure.metric, baseline, scope):
            outcome = _move_of(metric, scope, now, baseline)
            if isinstance(outcome, Reason):
                left.append(outcome)
            else:
                findings.append(outcome)
    if not findings and left:
        codes = {reason.code for reason in left}
        code = "moved_small_part" if "rests_on_little" in codes else "unjudged"
        return _missing(rule, code, left=left)
    if not findings:
        why = baseline.why_absent(rule.figure)
        return _missing(rule, "absent_before", why=why)
    findings.sort(key=_distance, reverse=True)
    moved = [_was(finding) for finding in findings if finding.met]
    if moved:
        return _verdict(rule, "moved", findings, moved=moved, left=left or None)
    return _verdict(rule, "unmoved", findings, count=len(findings), left=left or None)


def _metrics(pattern: str, baseline: JudgedReport, scope: Scope) -> Sequence[str]:
    """The metrics of a place that a rule on what moved names."""
    if "*" in pattern or "?" in pattern:
        return fnmatch.filter(baseline.rows[scope].intervals, pattern)
    return [pattern]


def _move_of(
    metric: str, scope: Scope, now: JudgedReport, baseline: JudgedReport
) -> RuleFigure | Reason:
    """Compare a figure with its interval in the baseline, or give the reason why not."""
    name = _name_of(scope, metric)
    row = baseline.rows[scope]
    before = baseline.figure(scope, metric)
    if before is None:
        return Reason("null_before", figure=name)
    bounds = row.intervals.get(metric)
    if bounds is None:
        why = row.no_interval if metric in row.intervals else None
        return Reason("without_interval", figure=name, why=why or "no spread")
    low, high = bounds
    value = now.figure(scope, metric)
    share = baseline.share([scope], metric)
    if value is not None:
        share = min(share, now.share([scope], metric))
    if share < LEAST_SHARE:
        return Reason("rests_on_little", figure=name, share=share)
    is_outside = True
    if value is not None:
        error = now.error(scope, metric)
        to_bound = min(abs(value - low), abs(value - high))
        if error > 0 and to_bound <= error:
            return Reason("error_reaches_bound", figure=name)
        slack = NOISE * max(abs(low), abs(high))
        is_outside = not low - slack <= value <= high + slack
    return RuleFigure(name, value, is_outside, before, low, high)


def _distance(finding: RuleFigure) -> float:
    """The distance outside its interval, in widths."""
    if not isinstance(finding.value, float | int):
        return math.inf
    low = finding.low or 0.0
    high = finding.high or 0.0
    outside = max(low - finding.value, finding.value - high, 0.0)
    return outside / max(high - low, LEAST)


def _was(finding: RuleFigure) -> Reason:
    """`spiked is 0.5, was 1 (0.9 to 1)`."""
    low = f"{finding.low or 0.0:.3g}"
    high = f"{finding.high or 0.0:.3g}"

    def is_inside(value: Any) -> bool:  # of the bounds as they are written
        return float(low) <= float(value) <= float(high)

    return Reason(
        "figure_was",
        figure=finding.figure,
        value="null" if finding.value is None else _text(finding.value, is_inside),
        before=f"{finding.before or 0.0:.3g}",
        low=low,
        high=high,
    )


def _text(value: Any, holds: Callable[[Any], bool]) -> str:
    """Format a number with enough digits to see whether the condition holds."""
    for digits in DIGITS:
        text = f"{value:.{digits}g}"
        if holds(float(text)) == holds(value):
            return text
    return repr(value)
