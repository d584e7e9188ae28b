"""Scores of a pair, and the correlations of a set of reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from shadow.outputs.terminal.typeset import WIDE, fixed, number
from shadow.text import several, visible

if TYPE_CHECKING:
    from shadow.comparing.correlation import Correlation, ScoredSet
    from shadow.comparing.gains import Gain, GroupGain
    from shadow.summary.summary import Summary

ROWS = 20  # benchmarks, reports and correlations that a table shows; JSON has all
NAMED = 3  # benchmarks without a group that the line names one by one
GROUPS = 4  # groups that the line names


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
    if parts and summary.figures["concentration"] is not None:
        parts.append(f"concentration {fixed(summary.figures['concentration'])}")
    return ", ".join(parts)


def _gain(row: Gain | GroupGain) -> str:
    if row.gain_stderr is None:
        return signed(row.gain)
    return f"{signed(row.gain)} ± {number(row.gain_stderr, 2)}"


def _group_gain(group: GroupGain, benchmarks: int) -> str:
    """`+12 ± 1.5 over 3 benchmarks`, or why there is none."""
    if group.gain is None:
        return f"none: {group.reason}"
    if benchmarks > 1:
        return f"{_gain(group)} over {benchmarks} benchmarks"
    return _gain(group)


def signed(value: float | None) -> str:
    """A gain with its sign and three digits: `+0.316`, `-12.5`; `-` for null."""
    if value is None:
        return "-"
    if abs(value) >= 999.5:
        return f"{value:+,.0f}"
    return f"{value or 0.0:+.3g}"


def scores_table(summary: Summary) -> RenderableType:
    """Base, tuned and gain of every benchmark, where they come from and what is doubtful there."""
    rows = summary.scores[:ROWS]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("benchmark", style="cyan", overflow="fold")
    with_groups = any(row.group for row in rows)
    with_metrics = any(row.metric for row in rows)
    with_errors = any(row.gain_stderr is not None for row in rows)
    for name, shown in (("group", with_groups), ("metric", with_metrics)):
        if shown:
            table.add_column(name, overflow="fold")
    figures = ["base", "tuned", "gain"]
    if with_errors:
        figures.append("±")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        benchmark = row.benchmark
        if row.higher_is_better is False:
            benchmark += " (less is better)"
        cells = [Text(visible(benchmark))]
        if with_groups:
            cells.append(Text(visible(row.group or "-")))
        if with_metrics:
            cells.append(Text(visible(row.metric or "-")))
        cells += [Text(number(row.base, 4)), Text(number(row.tuned, 4)), Text(signed(row.gain))]
        if with_errors:
            cells.append(Text(number(row.gain_stderr, 2)))
        table.add_row(*cells)
    named = several([file.name for file in summary.score_files], 3)
    title = Text(f"Scores, measured by others: {visible(named)}", "italic", overflow="fold")
    return Group(title, table, *_notes(summary.score_notes, len(summary.scores)))


def _notes(notes: Sequence[str], rows: int) -> list[RenderableType]:
    texts = list(notes)
    if rows > ROWS:
        texts.append(f"{rows - ROWS} more benchmarks are in summary.json")
    return [_note(text) for text in texts]


def _note(text: str) -> RenderableType:
    return Padding(Text(visible(f"note: {text}"), "yellow", overflow="fold"), (0, 0, 1, 0))


def scored_set_view(
    scored: ScoredSet, width: int, *, p_values: bool = False
) -> list[RenderableType]:
    """The reports with concentration and gains, then the correlations."""
    parts: list[RenderableType] = [
        Text("Concentration, and gains in scores that others measured", "italic")
    ]
    keys, cells = _gains_shown(scored, columns=2 if width < WIDE else 4)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("report", style="cyan", overflow="fold")
    table.add_column("conc.", justify="right", no_wrap=True)
    for key in keys:
        table.add_column(Text(visible(key)), justify="right", overflow="fold", max_width=22)
    for entry in scored.entries[:ROWS]:
        gains = [signed(cells.get((entry.label, key))) for key in keys]
        table.add_row(
            Text(visible(f"{entry.label} {entry.pair}")), fixed(entry.concentration), *gains
        )
    parts += [table, *_left_out(scored), _correlations(scored.correlations, p_values), ""]
    return parts


def _gains_shown(scored: ScoredSet, columns: int) -> tuple[list[str], dict[tuple[str, str], float]]:
    """The heads of the gains that fit, groups first, and each report's gain by (label, head)."""
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
    return list(groups or benchmarks)[:columns], cells


def _left_out(scored: ScoredSet) -> list[RenderableType]:
    reasons: dict[str, list[str]] = {}
    for entry in scored.entries:
        if entry.left_out is not None:
            reasons.setdefault(entry.left_out, []).append(entry.label)
        elif not entry.scored.gains:
            reasons.setdefault("no scores", []).append(entry.label)
    texts = []
    hidden = len(scored.entries) - ROWS
    if hidden > 0:
        texts.append(f"reports that --format json has besides: {hidden}")
    texts += [
        f"left out of the correlations: {', '.join(labels)} ({why})"
        for why, labels in reasons.items()
    ]
    notes = dict.fromkeys(
        f"{entry.label}: {note}" for entry in scored.entries for note in entry.scored.notes
    )
    texts += list(notes)[:ROWS]
    if len(notes) > ROWS:
        texts.append(f"{len(notes) - ROWS} more notes on scores are in --format json")
    return [_note(text) for text in texts]


def _correlations(correlations: Sequence[Correlation], p_values: bool) -> RenderableType:
    """A row for each: n, rank correlation and interval, or the reason why there is none."""
    if all(correlation.rho is None for correlation in correlations):
        reasons = list(
            dict.fromkeys(correlation.reason for correlation in correlations if correlation.reason)
        )
        return Text(
            f"No rank correlation of gain and concentration: {'; '.join(reasons[:NAMED])}", "dim"
        )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), title_justify="left")
    table.add_column("gain in", style="cyan", overflow="fold")
    figures = ["n", "bases", "rho", "95 % interval"]
    if p_values:
        figures.append("p")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for correlation in correlations[:ROWS]:
        rho = "-" if correlation.rho is None else f"{correlation.rho:+.2f}"
        bounds = "-"
        if correlation.low is not None and correlation.high is not None:
            bounds = f"{correlation.low:+.2f} to {correlation.high:+.2f}"
        cells = [str(correlation.n), str(correlation.bases), rho, bounds]
        if p_values:
            cells.append(number(correlation.p))
        table.add_row(Text(visible(_what(correlation))), *cells, correlation.reason or "")
    parts: list[RenderableType] = [
        Text("Rank correlation of gain and concentration over these reports", "italic"),
        table,
    ]
    if len(correlations) > ROWS:
        parts.append(Text(f"{len(correlations) - ROWS} more are in --format json", "dim"))
    return Group(*parts)


def _what(correlation: Correlation) -> str:
    """Of which gain a correlation is."""
    if correlation.benchmark is not None and correlation.metric:
        return f"{correlation.benchmark} ({correlation.metric})"
    if correlation.benchmark is not None:
        return correlation.benchmark
    if correlation.less is not None:
        return f"group {correlation.group} less {correlation.less}"
    return f"group {correlation.group}"
