"""Scores of a pair, and the correlations of a set of reports, as blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from shadow.comparing.gains import Gain, GroupGain
from shadow.quantities import bounds_text, text_of
from shadow.telling.document import Block, Note, Paragraph, named, number, table_of, worded
from shadow.text import counted, several

if TYPE_CHECKING:
    from shadow.claims.summary import Summary
    from shadow.comparing.correlation import Correlation, ScoredSet

ROWS = 20  # benchmarks, reports and correlations that a table shows; JSON has all
NAMED = 3  # benchmarks without a group that the line names one by one
GROUPS = 4  # groups that the line names
COLUMNS, MORE_COLUMNS = 2, 2  # gains that a table of reports has, and where there is room


def scores_line(summary: Summary) -> str:
    """`narrow gain +12, held-out gain +1, concentration 0.41`; empty without scores."""
    groups = summary.score_groups
    parts = []
    only = len(groups) == 1
    for group in groups[:GROUPS]:
        scores = [
            row for row in summary.scores if row.group == group.group and row.gain is not None
        ]
        if group.group is None and only and 0 < len(scores) <= NAMED:
            parts += [f"{row.benchmark} gain {_gain(row)}" for row in scores]
        else:
            unnamed = "mean" if only else "other"
            parts.append(f"{group.group or unnamed} gain {_group_gain(group, len(scores))}")
    if len(groups) > GROUPS:
        parts.append(f"{len(groups) - GROUPS} more groups")
    concentration = summary.figures.concentration
    if parts and concentration is not None:
        parts.append(f"concentration {text_of(concentration, 'fixed')}")
    return ", ".join(parts)


def _gain(row: Gain | GroupGain) -> str:
    gain = text_of(row.gain, "gain")
    return gain if row.gain_stderr is None else f"{gain} ± {text_of(row.gain_stderr, 'ratio')}"


def _group_gain(group: GroupGain, benchmarks: int) -> str:
    """`+12 ± 1.5 over 3 benchmarks`, or why there is none."""
    if group.gain is None:
        return f"none: {group.reason}"
    return f"{_gain(group)} over {benchmarks} benchmarks" if benchmarks > 1 else _gain(group)


def _benchmark(row: Gain) -> str:
    return f"{row.benchmark} (less is better)" if row.higher_is_better is False else row.benchmark


def scores_blocks(summary: Summary, most: int = ROWS) -> Iterator[Block]:
    """Base, tuned and gain of the first benchmarks, their files, and what is doubtful there."""
    shown = summary.scores[:most]
    fields = [
        named("benchmark", _benchmark),
        worded("group", lambda row: row.group or None),
        worded("metric", lambda row: row.metric or None),
        number("base", "base", "score"),
        number("tuned", "tuned", "score"),
        number("gain", "gain", "gain"),
        number("±", "gain_stderr", "ratio"),
    ]
    optional = {"group": "group", "metric": "metric", "±": "gain_stderr"}
    absent = {head for head, of in optional.items() if not any(getattr(one, of) for one in shown)}
    named_files = several([file.name for file in summary.score_files], 3)
    title = f"Scores, measured by others: {named_files}"
    yield table_of([field for field in fields if field.head not in absent], shown, title)
    yield from map(Note, summary.score_notes)
    if len(summary.scores) > most:
        yield Note(f"{len(summary.scores) - most} more benchmarks are in summary.json")


def scored_set_blocks(scored: ScoredSet, *, p_values: bool = False) -> Iterator[Block]:
    """The reports with concentration and gains, then the correlations."""
    keys, gains = _gains_shown(scored)
    fields = [
        named("report", lambda entry: f"{entry.label} {entry.pair}"),
        number("conc.", "concentration", "fixed"),
    ]
    for place, key in enumerate(keys):
        rank = max(0, place - COLUMNS + 1)
        fields.append(
            number(key, lambda entry, key=key: gains.get((entry.label, key)), "gain", rank)
        )
    title = "Concentration, and gains in scores that others measured"
    yield table_of(fields, scored.entries[:ROWS], title)
    yield from map(Note, _left_out(scored))
    yield from _correlations(scored.correlations, p_values)


def _gains_shown(scored: ScoredSet) -> tuple[list[str], dict[tuple[str, str], float]]:
    """The heads of the gains that may fit, groups first; each report's gain by (label, head)."""
    cells: dict[tuple[str, str], float] = {}
    groups: dict[str, None] = {}
    benchmarks: dict[str, None] = {}
    for entry in scored.entries:
        for group in entry.scored.groups:
            if group.group is not None:
                groups[group.group] = None
                if group.gain is not None:
                    cells[entry.label, group.group] = group.gain
        for gain in entry.scored.gains:
            if gain.gain is not None:
                benchmarks[gain.benchmark] = None
                cells.setdefault((entry.label, gain.benchmark), gain.gain)
    return list(groups or benchmarks)[: COLUMNS + MORE_COLUMNS], cells


def _left_out(scored: ScoredSet) -> Iterable[str]:
    reasons: dict[str, list[str]] = {}
    for entry in scored.entries:
        if entry.left_out is not None:
            reasons.setdefault(entry.left_out, []).append(entry.label)
        elif not entry.scored.gains:
            reasons.setdefault("no scores", []).append(entry.label)
    hidden = len(scored.entries) - ROWS
    if hidden > 0:
        yield f"{counted(hidden, 'more report is', 'more reports are')} in --format json"
    for why, labels in reasons.items():
        yield f"left out of the correlations: {', '.join(labels)} ({why})"
    notes = dict.fromkeys(
        f"{entry.label}: {note}" for entry in scored.entries for note in entry.scored.notes
    )
    yield from list(notes)[:ROWS]
    if len(notes) > ROWS:
        yield f"{counted(len(notes) - ROWS, 'more note', 'more notes')} on scores in --format json"


def _correlations(correlations: Sequence[Correlation], p_values: bool) -> Iterator[Block]:
    """A row for each: n, rank correlation and interval, or the reason why there is none."""
    if all(one.rho is None for one in correlations):
        reasons = list(dict.fromkeys(one.reason for one in correlations if one.reason))
        text = f"No rank correlation of gain and concentration: {'; '.join(reasons[:NAMED])}"
        yield Paragraph(text, quiet=True)
        return
    fields = [
        named("gain in", _what),
        number("n", "n", "count"),
        number("bases", "bases", "count"),
        number("rho", "rho", "correlation"),
        number("95 % interval", _interval),
        *([number("p", "p", "number")] if p_values else []),
        worded("", lambda one: one.reason or ""),
    ]
    title = "Rank correlation of gain and concentration over these reports"
    yield table_of(fields, correlations[:ROWS], title)
    if len(correlations) > ROWS:
        yield Paragraph(f"{len(correlations) - ROWS} more are in --format json", quiet=True)


def _interval(one: Correlation) -> str | None:
    if one.low is None or one.high is None:
        return None
    return bounds_text((one.low, one.high), "correlation")


def _what(correlation: Correlation) -> str:
    """Of which gain a correlation is."""
    if correlation.benchmark is not None and correlation.metric:
        return f"{correlation.benchmark} ({correlation.metric})"
    if correlation.benchmark is not None:
        return correlation.benchmark
    if correlation.less is not None:
        return f"group {correlation.group} less {correlation.less}"
    return f"group {correlation.group}"
