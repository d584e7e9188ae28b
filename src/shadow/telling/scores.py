"""Gains of reports in scores, and their correlations with concentration, as blocks."""

from __future__ import annotations

from collections.abc import Iterator

from shadow.comparing.scores import Correlation, Gain, ScoredSet
from shadow.telling.document import Block, Note, named, number, table_of

ROWS = 20  # of a table; JSON has all


def scored_set_blocks(scored: ScoredSet) -> Iterator[Block]:
    """A row for each report and benchmark, then one for each correlation."""
    gains = [(report, gain) for report in scored.reports for gain in report.gains]
    fields = [
        named("report", lambda row: f"{row[0].label} {row[0].pair}"),
        named("benchmark", lambda row: _named(row[1])),
        number("conc.", lambda row: row[0].concentration, "fixed"),
        number("base", lambda row: row[1].base, "score"),
        number("tuned", lambda row: row[1].tuned, "score"),
        number("gain", lambda row: row[1].gain, "gain"),
    ]
    yield table_of(fields, gains[:ROWS], "Scores, measured by others")
    for report in scored.reports:
        if report.left_out or not report.gains:
            why = report.left_out or "no scores of both sides"
            yield Note(f"{report.label} is left out of the correlations: {why}")
    ranks = [number("n", "n", "count"), number("rho", "rho", "correlation")]
    title = "Rank correlation of gain and concentration over these reports"
    yield table_of([named("gain in", _named), *ranks], scored.correlations[:ROWS], title)


def _named(row: Gain | Correlation) -> str:
    return f"{row.benchmark} ({row.metric})" if row.metric else row.benchmark
