"""Finished reports -> Comparison: whose delta is more concentrated, over the same matrices.

Two deltas are compared matrix by matrix, so that shape, place and base cancel out. The median of
the paired differences has an interval over layers and a declared margin: 0 lies outside the
interval for a fifth of the pairs that differ only in their seed, so the interval alone proves too
much.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shadow.comparing.codes import NoContrast, ReportRelation, say
from shadow.comparing.contrast import MARGIN, Contrast, contrast
from shadow.comparing.matching import ComparedReport, ReportIdentity, relate
from shadow.comparing.scores import NOT_SHOWN, Score, ScoredSet, score_reports
from shadow.errors import ShadowError, UsageError
from shadow.reports.report import Report
from shadow.templates import Reason
from shadow.text import Shown, counted, visible
from shadow.version import __version__

# of what `--format json` prints; raised when a field changes its meaning
COMPARISON_SCHEMA = 1
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
class Comparison(Shown):
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
    no_contrast: Reason | None = None
    """Why a set of which the scores are correlated has no contrasts."""
    scores: ScoredSet | None = None
    """What others measured of the models; None where nobody gave any."""

    @property
    def not_contrasted(self) -> str | None:
        """The reason for no contrasts, in words."""
        return None if self.no_contrast is None else say(self.no_contrast)

    def __repr__(self) -> str:
        sentences = [contrast.sentence for contrast in self.contrasts]
        return "\n".join(map(visible, sentences or [self.not_contrasted or "nothing compared"]))

    def as_json(self) -> dict[str, Any]:
        """For machines: reasons by code and figures, and in words."""
        return {
            **asdict(self),
            "contrasts": [contrast.as_json() for contrast in self.contrasts],
            "not_contrasted": self.not_contrasted,
            "scores": None if self.scores is None else self.scores.as_json(),
        }


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
    reports = [
        ComparedReport(report_label(number), Report(folder))
        for number, folder in enumerate(folders)
    ]
    not_shown = list(CLAIMS["not_shown"])
    if scores:
        not_shown += NOT_SHOWN
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
        too_many = Reason(NoContrast.TOO_MANY_REPORTS, most=MAX_REPORTS)
        return replace(comparison, no_contrast=too_many)
    pairs = [
        (first, second, *relate(first, second))
        for first, second in itertools.combinations(reports, 2)
    ]
    for first, second, relation, _ in pairs:
        if relation is ReportRelation.DIFFERENT_BASES and not allow_different_base:
            names = {"first": first.name, "second": second.name}
            if not scores:
                raise ShadowError(
                    say(Reason(NoContrast.BASES_DIFFER, names)),
                    "compare models tuned from one base, or add --allow-different-base",
                )
            why = Reason(NoContrast.BASES_DIFFER, names, option="--allow-different-base")
            return replace(comparison, no_contrast=why)
    contrasts = [contrast(*pair, margin=margin) for pair in pairs]
    return replace(comparison, contrasts=contrasts)


def report_label(index: int) -> str:
    """A to Z, then A1, B1 and so on."""
    letter = chr(ord("A") + index % 26)
    return f"{letter}{index // 26 or ''}"


def check_count(count: int, *, scored: bool) -> None:
    """Raise UsageError for one report, and for more than a table can hold. scored: scores are
    correlated, which allows more reports.
    """
    most = MAX_SCORED if scored else MAX_REPORTS
    if not 2 <= count <= most:
        hint = f"name two to {most}, or a folder above so many; `shadow show` has a table of more"
        raise UsageError(f"{counted(count, 'report', 'reports')} to compare", hint)
