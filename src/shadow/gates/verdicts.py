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
from shadow.checks.registry import pair_claim
from shadow.checks.summary import Summary, broken
from shadow.comparing.codes import ReportRelation, say
from shadow.comparing.matching import relate, settings_apart
from shadow.errors import ShadowError
from shadow.gates.measured import JudgedReport, checked
from shadow.gates.rules import (
    FAILS,
    HOLDS,
    IS_BROKEN,
    MOVED,
    OF_REPORTS,
    STATES,
    VERIFY,
    Rule,
)
from shadow.quantities import text_of
from shadow.summary.record import not_measured
from shadow.templates import Reason, Value, fill

Verdicts = Literal["passed", "met", "missing", "skipped"]

LEAST = 1e-300  # instead of a width of nothing
# The same report made on another machine may differ by this much, relative:
# shadow.comparing.matching measured 5e-7.
NOISE = 1e-6
# of the energy of the change that a rule names: what its figures have to rest on
LEAST_SHARE = 0.5
# codes of what leaves a rule open: exit code 5
OPEN = ("inconclusive", "small_part", "moved_small_part")
# figures that are 0 where all that a rule names is identical
NORMS = ("relative_norm", "relative_norm_overall")
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
        is_open = self.why.code in OPEN
        return {"met": 4, "missing": 5 if is_open else 1}.get(self.outcome, 0)

    @property
    def detail(self) -> str:
        """Return what was found, in a line."""
        text = fill(WORDS_OF_VERDICTS[self.why.code], self.why.figures)
        if self.outcome in ("met", "passed"):
            return text
        return f"{'not judged' if self.why.code in OPEN else 'nothing to judge'}: {text}"

    def as_json(self) -> dict[str, Any]:
        """The rule, its outcome and its figures, for machines."""
        keys = ("name", "condition", "severity", "message", "file", "line")
        rule = {key: getattr(self.rule, key) for key in keys}
        figures = [asdict(figure) for figure in self.findings]
        found = {"outcome": self.outcome, "code": self.why.code, "detail": self.detail}
        return {**rule, **found, "figures": figures}


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
        rules = [verdict.as_json() for verdict in self.verdicts]
        pair = {key: getattr(self, key) for key in ("family", "pair", "code", "fault")}
        return {**pair, "notes": list(self.notes), "rules": rules}

    @property
    def code(self) -> int:
        """The exit code for these verdicts."""
        codes = {verdict.code for verdict in self.verdicts}
        if self.fault is not None:
            codes.add(1)
        if self.objections or (self.summary is not None and broken(self.summary)):
            codes.add(3)
        return first_code(codes)


def notes_on(baseline: JudgedReport, now: JudgedReport) -> list[str]:
    """Return how a baseline differs from an earlier run of the same audit."""
    before, after = baseline.report, now.report
    if before.metadata == after.metadata:
        return ["the baseline is this report itself, so nothing can have moved"]
    notes = []
    which, this = (f"{side.provenance.family}:{side.provenance.pair}" for side in (before, after))
    if which != this:
        notes.append(f"the baseline is of another pair: {which}")
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
    notes = [
        f"gate {gate.name} {summary.state_of(gate)}: {gate.reason}" for gate in summary.failed_gates
    ]
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
    rules: Sequence[Rule], now: JudgedReport, baseline: JudgedReport | None = None
) -> tuple[Verdict, ...]:
    """Judge every rule. Without a baseline, `moved` rules are missing."""
    return tuple(_judged(rule, now, baseline) for rule in rules)


def _judged(rule: Rule, now: JudgedReport, baseline: JudgedReport | None) -> Verdict:
    if rule.comparison == MOVED:
        return _moved(rule, now, baseline)
    if rule.comparison not in (HOLDS, FAILS):
        return _in_state(rule, now) if rule.comparison in STATES else _threshold(rule, now)
    if rule.figure.component == IS_BROKEN:
        return _broken(rule, now)
    return _answered(rule, now)


def _verdict(
    rule: Rule, code: str, figures: Mapping[str, Value], findings: Sequence[RuleFigure]
) -> Verdict:
    """Make the verdict of a rule from its figures."""
    is_met = any(finding.met for finding in findings)
    return Verdict(rule, "met" if is_met else "passed", Reason(code, figures), tuple(findings))


def _missing(
    rule: Rule, code: str, findings: Sequence[RuleFigure] = (), **figures: Value
) -> Verdict:
    outcome: Verdicts = "skipped" if rule.allow_missing else "missing"
    return Verdict(rule, outcome, Reason(code, figures), tuple(findings))


def _broken(rule: Rule, now: JudgedReport) -> Verdict:
    """Return the word for what is broken."""
    word = rule.figure.metric
    texts = [sentence.text for sentence in broken(now.summary) if sentence.code == word]
    finding = RuleFigure(word, HOLDS if texts else FAILS, bool(texts))
    figures: Mapping[str, Value] = {"what": " ".join(texts), "word": word}
    return _verdict(rule, "broken" if texts else "not_broken", figures, [finding])


def _answered(rule: Rule, now: JudgedReport) -> Verdict:
    """A gate of the pair, or a check that its report answers, or for which both sides are read."""
    code, what, against = "answered", str(rule.figure), None
    if rule.figure.component == VERIFY and rule.figure.metric not in OF_REPORTS:
        code = "checked"
        try:
            found = checked(pair_claim(rule.figure.metric), now.summary, now.reading)
        except ShadowError as error:
            why = "; ".join(filter(None, (error.message, error.hint)))
            return _missing(rule, "unchecked", what=what, why=why)
        if found.outcome is Outcome.INCONCLUSIVE:
            return _missing(rule, "inconclusive", why=found.reason)
        answer, why = found.outcome.words, found.reason
        against = [one.name for one in found.against] or None
    else:
        state, why = now.answer(rule.figure)
        if state is None:
            return _missing(rule, "unanswered", what=what, why=why)
        answer = state
    figures: Mapping[str, Value] = {
        "what": what,
        "answer": answer,
        "why": why,
        "against": against,
    }
    return _verdict(rule, code, figures, [RuleFigure(what, answer, rule.holds(answer))])


def _in_state(rule: Rule, now: JudgedReport) -> Verdict:
    """Judge places or files that changed or did not; unknown ones do not pass."""
    found = now.states(rule.figure)
    if not found:
        return _missing(rule, "absent", why=now.why_absent(rule.figure))
    findings = [RuleFigure(name, one, rule.holds(one)) for name, one in found.items() if one]
    violating = [one for one in findings if one.met]
    if len(findings) < len(found) and not violating:
        unknown = [name for name, state in found.items() if state is None]
        return _missing(rule, "not_compared", what=unknown)
    texts = [f"{one.figure} is {one.value}" for one in violating or findings]
    return _verdict(rule, "states", {"states": texts}, findings)


def _threshold(rule: Rule, now: JudgedReport) -> Verdict:
    metric, places = rule.figure.metric, now.places(rule.figure)
    every = [(at, now.figure(at, metric)) for at in places]
    nulls = [one.name for _, one in every if one.value is None]
    known = [(one.name, one.value, at) for at, one in every if one.value is not None]
    if not known and not any(now.figure(at, "matrices").value for at in places):
        if metric not in NORMS or not now.is_identical(rule.figure):
            return _missing(rule, "absent", why=now.why_absent(rule.figure))
        zero = RuleFigure(str(rule.figure), 0.0, rule.holds(0.0))
        rounded = "only rounded" if now.summary.figures.matrices_rounded else None
        figures = {"what": str(rule.figure), "rounded": rounded}
        return _verdict(rule, "identical", figures, [zero])
    if not known:
        return _missing(rule, "null", figures=nulls, why=not_measured(now.summary.tier) or None)
    findings = [
        RuleFigure(name, value, rule.holds(value), energy_share=_share([now.resting(at, metric)]))
        for name, value, at in known
    ]
    if small := _of_a_small_part(rule, findings, [now.resting(at, metric) for at in places], nulls):
        return small
    open_ones = [  # the error of an estimate leaves open on which side of the threshold it lies
        name
        for name, value, at in known
        if (error := now.error(at, metric))
        and rule.holds(value - error) != rule.holds(value + error)
    ]
    if open_ones:
        findings = [one for one in findings if one.met and one.figure not in open_ones]
        if not findings:
            return _missing(rule, "within_error", figures=open_ones)
    _, _, condition = rule.condition.partition(" ")
    violating = [one for one in findings if one.met]
    texts = [f"{one.figure} is {_text(one.value, rule.holds)}" for one in violating or findings]
    of = {"figures": texts, "condition": condition, "nulls": nulls or None}
    return _verdict(rule, "violated" if violating else "within", of, findings)


def _share(resting: Sequence[tuple[float, float]]) -> float:
    """Return the share of the energy of a change that figures rest on, from what each rests on and
    what its place holds; 1 of nothing.
    """
    held = sum(of_figure for of_figure, _ in resting)
    total = sum(of_place for _, of_place in resting)
    return held / total if total else 1.0


def _of_a_small_part(
    rule: Rule,
    findings: Sequence[RuleFigure],
    resting: Sequence[tuple[float, float]],
    nulls: Sequence[str],
) -> Verdict | None:
    """Return that a rule is left open, as its figures rest on less than half of the change; None if
    they do not, or if one that rests on more violates it.
    """
    small = [one for one in findings if (one.energy_share or 0.0) < LEAST_SHARE]
    if any(one.met for one in findings if one not in small):
        return None
    share = _share(resting)
    violating = [one for one in small if one.met]
    if share >= LEAST_SHARE:
        if not violating:
            return None
        share = min(one.energy_share or 0.0 for one in violating)
    named = [one.figure for one in violating or small or findings]
    opened = [replace(one, met=False) for one in findings]
    of: dict[str, Value] = {"figures": named, "share": share, "nulls": [*nulls] or None}
    return _missing(rule, "small_part", opened, count=len(named), **of)


def _moved(rule: Rule, now: JudgedReport, baseline: JudgedReport | None) -> Verdict:
    if baseline is None:
        return _missing(rule, "no_baseline")
    findings: list[RuleFigure] = []
    left: list[str] = []  # figures that cannot be judged
    is_small = False
    for at in baseline.places(rule.figure):
        metric = rule.figure.metric
        names = [metric]
        if {"*", "?"} & set(metric):
            names = fnmatch.filter(baseline.rows[at].intervals, metric)
        for name in names:
            before, value = baseline.figure(at, name), now.figure(at, name).value
            if before.value is None or before.bounds is None:
                why = "null in the baseline" if before.value is None else before.why
                left.append(f"{before.name} ({why})")
                continue
            low, high = before.bounds
            sides = (baseline, now) if value is not None else (baseline,)
            share = min(_share([side.resting(at, name)]) for side in sides)
            if share < LEAST_SHARE:
                is_small = True
                left.append(f"{before.name} (of {text_of(share, 'share')} of the change)")
                continue
            error = now.error(at, name)
            if error and value is not None and min(abs(value - low), abs(value - high)) <= error:
                left.append(f"{before.name} (an estimate whose error reaches its end)")
                continue
            slack = NOISE * max(abs(low), abs(high))
            outside = value is None or not low - slack <= value <= high + slack
            findings.append(RuleFigure(before.name, value, outside, before.value, low, high))
    if not findings and left:
        return _missing(rule, "moved_small_part" if is_small else "unjudged", left=left)
    if not findings:
        return _missing(rule, "absent_before", why=baseline.why_absent(rule.figure))
    findings.sort(key=_distance, reverse=True)
    moved = [_move(finding) for finding in findings if finding.met]
    of: dict[str, Value] = {"moved": moved, "count": len(findings), "left": left or None}
    return _verdict(rule, "moved" if moved else "unmoved", of, findings)


def _distance(finding: RuleFigure) -> float:
    """Return how far it lies outside its interval, in widths."""
    if not isinstance(finding.value, float | int):
        return math.inf
    low, high = finding.low or 0.0, finding.high or 0.0
    return max(low - finding.value, finding.value - high, 0.0) / max(high - low, LEAST)


def _move(finding: RuleFigure) -> str:
    """Return `spiked is 0.5, was 1 (0.9 to 1)`."""
    low, high = finding.low or 0.0, finding.high or 0.0

    def inside(value: Any) -> bool:  # of the bounds as they are written
        return bool(float(f"{low:.3g}") <= value <= float(f"{high:.3g}"))

    value = "null" if finding.value is None else _text(finding.value, inside)
    return f"{finding.figure} is {value}, was {finding.before:.3g} ({low:.3g} to {high:.3g})"


def _text(value: Any, holds: Callable[[Any], bool]) -> str:
    """Format a number with enough digits to see whether the condition holds."""
    texts = (f"{value:.{digits}g}" for digits in range(2, 17))
    return next((text for text in texts if holds(float(text)) == holds(value)), repr(value))
