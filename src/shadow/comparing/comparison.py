"""Finished reports -> Comparison: whose delta is more concentrated, over the same matrices."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shadow import __version__
from shadow.comparing.contrast import Contrast, contrast
from shadow.comparing.matching import ReportIdentity, compared, relate
from shadow.comparing.scores import NOT_SHOWN, Score, ScoredSet, score_reports
from shadow.errors import ShadowError, UsageError
from shadow.reports.report import Report
from shadow.text import counted

# of what `--format json` prints; raised when a field changes its meaning
COMPARISON_SCHEMA = 1
# of concentration: above the differences of two seeds in the lab, inside those of narrow and broad
# data; "The margin" in docs/compare.md has both, made from the tables
MARGIN = 0.05
MAX_REPORTS = 12
MAX_SCORED = 200  # reports of which scores are correlated
CLAIMS: Mapping[str, list[str]] = {
    "measured": ["differences of the spectra of two deltas, paired over the same matrices"],
    "not_shown": [
        "whether other runs differ: the spread is over layers",
        "why: optimiser, adapter, rate and new data matter as much",
        "what the models can do",
    ],
}


@dataclass(frozen=True)
class Comparison:
    """Two reports or more."""

    schema: int
    version: str
    margin: float
    """The least difference of concentration that counts, 0 to 1."""
    reports: list[ReportIdentity]
    """The reports, in the order in which they were named."""
    contrasts: list[Contrast]
    """Every two of them, those with the first report first."""
    claims: dict[str, list[str]]
    """`measured`, and what that does not show (`not_shown`)."""
    not_contrasted: str | None = None
    """Why a set of which the scores are correlated has no contrasts."""
    scores: ScoredSet | None = None
    """What others measured of the models; None where nobody gave any."""

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


def compare(
    folders: Sequence[Path],
    *,
    margin: float = MARGIN,
    allow_different_base: bool = False,
    scores: Sequence[Score] = (),
) -> Comparison:
    """Compare finished reports, every two of them.

    Raises ShadowError if one cannot be read, two share no measured matrix, or two have different
    bases, unless that is allowed. With scores, different bases and more than MAX_REPORTS are
    allowed: gains and concentrations of all are correlated, and matrices are not compared.
    """
    reports = [compared(Report(folder), report_label(i)) for i, folder in enumerate(folders)]
    not_shown = [*CLAIMS["not_shown"], *(NOT_SHOWN if scores else ())]
    comparison = Comparison(
        schema=COMPARISON_SCHEMA,
        version=__version__,
        margin=margin,
        reports=[report.identity for report in reports],
        contrasts=[],
        claims={"measured": CLAIMS["measured"], "not_shown": not_shown},
        scores=score_reports(reports, scores) if scores else None,
    )
    if len(reports) > MAX_REPORTS:
        too_many = f"more than {MAX_REPORTS} reports are not compared matrix by matrix"
        return replace(comparison, not_contrasted=too_many)
    pairs = list(itertools.combinations(range(len(reports)), 2))
    related = {(i, j): relate(reports[i], reports[j]) for i, j in pairs}
    for (i, j), (relation, why) in () if allow_different_base else related.items():
        if relation == "different bases":
            apart = f"{reports[i].name} and {reports[j].name} have different bases: {why}"
            if not scores:
                hint = "compare models tuned from one base, or add --allow-different-base"
                raise ShadowError(apart, hint)
            without = f"{apart}; not compared matrix by matrix without --allow-different-base"
            return replace(comparison, not_contrasted=without)
    contrasts = [contrast(reports[i], reports[j], *related[i, j], margin=margin) for i, j in pairs]
    return replace(comparison, contrasts=contrasts)


def report_label(index: int) -> str:
    """Return A to Z, then A1, B1 and so on."""
    return f"{chr(ord('A') + index % 26)}{index // 26 or ''}"


def check_count(count: int, *, scored: bool) -> None:
    """Raise UsageError for one report, and for more than a table can hold. scored: scores are
    correlated, which allows more reports.
    """
    most = MAX_SCORED if scored else MAX_REPORTS
    if not 2 <= count <= most:
        hint = f"name two to {most}, or a folder above so many; `shadow show` has a table of more"
        raise UsageError(f"{counted(count, 'report', 'reports')} to compare", hint)
