"""Finished reports -> Comparison: whose delta is more concentrated, over the same matrices.

Two deltas are compared matrix by matrix, so that shape, place and base cancel out. The median of
the paired differences has an interval over layers and a declared margin: 0 lies outside the
interval for a fifth of the pairs that differ only in their seed, so the interval alone proves too
much.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from shadow import __version__
from shadow.comparing.differences import (
    FIGURES,
    OPPOSITE,
    SIDES,
    ComparisonVerdict,
    DeltaDirections,
    Difference,
    cells_of,
    difference,
    with_differences,
)
from shadow.comparing.matching import (
    ComparedReport,
    Relation,
    ReportIdentity,
    compared,
    match,
    relate,
    settings_apart,
)
from shadow.comparing.scores import NOT_SHOWN, Score, ScoredSet, score_reports
from shadow.dtypes import FLOATS
from shadow.errors import ShadowError, UsageError
from shadow.reports.report import Report
from shadow.spectra.levels import round_trip
from shadow.spectra.measurement import WITHOUT_SPECTRA
from shadow.summary.bootstrap import LEVEL
from shadow.summary.coverage import LINEAGE, ROUNDING
from shadow.summary.layer_medians import LOW, SHORTEST, held_rank
from shadow.text import and_list, counted

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
    pairs = [(*both, *relate(*both)) for both in itertools.combinations(reports, 2)]
    for one, other, relation, why in () if allow_different_base else pairs:
        if relation == "different bases":
            apart = f"{one.name} and {other.name} have different bases: {why}"
            if not scores:
                hint = "compare models tuned from one base, or add --allow-different-base"
                raise ShadowError(apart, hint)
            without = f"{apart}; not compared matrix by matrix without --allow-different-base"
            return replace(comparison, not_contrasted=without)
    return replace(comparison, contrasts=[contrast(*pair, margin=margin) for pair in pairs])


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


MIN_AGREEING = 2  # of the four figures that vote beside concentration
# relative norms further apart are warned of: concentration falls as an update grows
FAR_NORMS = 3.0
MOST = 0.9  # share of a report's measured parameters that should be compared
ROUNDED = 0.25  # share of a change beyond its format's rounding, below which it is that rounding
NOISE = 5.0  # of purity_z: within it a delta has no structure beyond noise
DOUBTFUL = {
    "different bases": "the bases differ, so the difference may come from them",
    "consecutive stages": "these are steps of one lineage, which start from different weights",
    "the same pair": "both reports are of the same pair of checkpoints",
}
UNSEEN = "the figures show how concentrated each change is, not whether both are the same change"


@dataclass(frozen=True)
class MatchedCounts:
    """Numbers of matrices in a comparison of two reports."""

    matrices: int
    """Matrices of both, 1 or more."""
    in_layers: int
    """Those of them that lie in layers, and so have a vote."""
    cells: int
    """The same, the experts of one module and layer taken as one."""
    layers: int
    parameters: int
    share_of_first: float
    """The share of the first report's changed parameters that is compared, 0 to 1."""
    share_of_second: float
    alone_in_first: int
    """Changed matrices of the first report that the second has not, or in another shape."""
    alone_in_second: int


@dataclass(frozen=True)
class Contrast:
    """The comparison of two reports: a difference is first - second or first / second."""

    first: str
    second: str
    relation: Relation
    verified: str | None
    """How it is known which weights they share: by commit or content."""
    matched: MatchedCounts
    figures: list[Difference]
    """Every figure, concentration first."""
    verdict: ComparisonVerdict
    """About the first report."""
    sentence: str
    not_comparable: list[str]
    """Why no verdict can be defended; empty where one can."""
    warnings: list[str]
    """What makes the comparison doubtful, though not void."""
    joint: DeltaDirections | None = None
    no_joint: str | None = None
    """Why that is not known; None where it is, or nobody asked."""


def contrast(
    first: ComparedReport,
    second: ComparedReport,
    relation: Relation,
    how: str | None,
    *,
    margin: float,
) -> Contrast:
    """Compare the first report with the second. Raises ShadowError if they share no matrix."""
    by_base = relation in ("the same pair", "one base") and how in ("commit", "content")
    rows = match(first.deltas, second.deltas, by_base=by_base)
    if rows.empty:
        raise ShadowError(
            f"{first.name} and {second.name} have no changed matrix of one place and shape in"
            " common",
            "audit both without filters, and see `shadow show` for what is identical or skipped",
        )
    matched = with_differences(rows)
    cells = cells_of(matched)
    figures = [difference(figure, cells, margin) for figure in FIGURES]
    parameters = int((matched["rows"] * matched["cols"]).sum())
    deltas = [report.deltas for report in (first, second)]
    changed = [max(int(rows["parameters"].sum()), 1) for rows in deltas]
    counts = MatchedCounts(
        matrices=len(matched),
        in_layers=int(matched["layer"].notna().sum()),
        cells=len(cells),
        layers=cells.groupby(["component", "layer"]).ngroups,
        parameters=parameters,
        share_of_first=min(parameters / changed[0], 1.0),
        share_of_second=min(parameters / changed[1], 1.0),
        alone_in_first=len(deltas[0]) - len(matched),
        alone_in_second=len(deltas[1]) - len(matched),
    )
    fatal = _not_comparable(first, second, matched[matched["layer"].notna()])
    verdict = _verdict(figures)
    if fatal:
        verdict = "not comparable"
        figures = [replace(one, verdict=verdict if one.direction else None) for one in figures]
    return Contrast(
        first=first.label,
        second=second.label,
        relation=relation,
        verified=None if relation == "different bases" else how,
        matched=counts,
        figures=figures,
        verdict=verdict,
        sentence=_sentence(first, second, verdict, figures[0], fatal),
        not_comparable=fatal,
        warnings=list(_warnings(first, second, relation, matched, counts, figures)),
    )


def _not_comparable(
    first: ComparedReport, second: ComparedReport, voting: pd.DataFrame
) -> list[str]:
    """Return why no verdict on these two is justified, whatever the figures say.

    Each of these moves concentration more than data do: a low rank by 0.4 of 0.15, rounding takes
    it to 0, and the difference of two unrelated models is not an update.
    """
    reasons = []
    ranks = [_low_ranks(voting, side) for side in SIDES]
    adapters = [voting[f"rank_ceiling_{side}"].fillna(0).to_numpy(float) for side in SIDES]
    apart = (np.maximum(*adapters) > 0) & (np.isnan(ranks[0]) != np.isnan(ranks[1]))
    apart |= (np.minimum(*adapters) > 0) & (adapters[0] != adapters[1])
    if apart.any():
        reasons.append(
            f"{first.name} and {second.name} are of different ranks, as adapters are (in"
            f" {counted(int(apart.sum()), 'matrix', 'matrices')}), which limit their directions"
        )
    for side, report in zip(SIDES, (first, second), strict=True):
        if (level := report.provenance.level) in WITHOUT_SPECTRA:
            reasons.append(f"{report.name} has no spectra, which --level {level} leaves out")
        cosine, floor = voting[f"cosine_{side}"].median(), voting[f"floor_ratio_{side}"].median()
        if cosine < LINEAGE:
            reasons.append(
                f"the two sides of {report.name} have little in common (median cosine"
                f" {cosine:.2f}), so their difference is not an update"
            )
        elif copy := copy_reason(report):
            reasons.append(copy)
        elif floor < ROUNDING:
            reasons.append(
                f"the delta of {report.name} is only {floor:.2g} times as large as rounding alone"
                " would make it"
            )
    return reasons


def _low_ranks(voting: pd.DataFrame, side: str) -> NDArray[np.float64]:
    """Return the rank of each delta as far as it exceeds rounding, if it is low; otherwise NaN."""

    def column(name: str) -> pd.Series:
        return voting[name if name in ("rows", "cols") else f"{name}_{side}"]

    ranks = held_rank(column)
    ranks = np.where(
        ranks <= LOW * voting[["rows", "cols"]].min(axis=1).to_numpy(float), ranks, np.nan
    )
    known: NDArray[np.float64] = np.fmax(
        ranks, column("rank_ceiling").to_numpy(float, na_value=np.nan)
    )
    return known


def _verdict(figures: Sequence[Difference]) -> ComparisonVerdict:
    """Return the verdict on concentration, if two or more of the other figures, and most, agree."""
    concentration, others = figures[0], [figure for figure in figures[1:] if figure.direction]
    directed = ("more concentrated", "less concentrated")
    if concentration.verdict in directed:
        agree = sum(figure.points == concentration.points for figure in others)
        oppose = sum(figure.points == -concentration.points for figure in others)
        if agree < MIN_AGREEING or agree <= oppose:
            return "mixed evidence"
        return concentration.verdict
    beyond = sum(figure.verdict in directed for figure in others)
    if beyond >= MIN_AGREEING or concentration.verdict is None:
        return "mixed evidence"
    return concentration.verdict


def _sentence(
    first: ComparedReport,
    second: ComparedReport,
    verdict: ComparisonVerdict,
    concentration: Difference,
    fatal: Sequence[str],
) -> str:
    """Return the verdict in one sentence, with the difference of concentration."""
    if fatal:
        return f"not comparable: {'; '.join(fatal)}"
    both, difference = f"{first.name} and {second.name}", concentration.difference
    if difference is None:
        return f"{both} are not distinguished: no matrix in a layer has a concentration in both"
    apart, margin = f"{abs(difference):.3f}", f"{concentration.margin:g}"
    if concentration.no_interval:
        apart += f", without a spread ({concentration.no_interval})"
    if verdict in OPPOSITE:
        name = f"{first.name} is {verdict} than {second.name}"
        return f"{name}, by {apart} (margin {margin})"
    if verdict == "different, below the margin":
        return f"{both} differ by {apart}, less than the margin of {margin}"
    if verdict == "mixed evidence":
        return f"{both} differ by {apart} in concentration, and the other figures do not agree"
    return f"{both} are not distinguished: {UNSEEN}"


def _warnings(
    first: ComparedReport,
    second: ComparedReport,
    relation: Relation,
    matched: pd.DataFrame,
    counts: MatchedCounts,
    figures: Sequence[Difference],
) -> Iterator[str]:
    """Yield what makes a comparison doubtful, though not invalid."""
    if relation in DOUBTFUL:
        yield DOUBTFUL[relation]
    for report in (first, second):
        if report.provenance.relation == "sibling":
            yield f"{report.name} is a pair of siblings: neither side was tuned from the other"
    yield from settings_apart(first, second)
    for report, share in ((first, counts.share_of_first), (second, counts.share_of_second)):
        if share < MOST:
            part = f"only {100 * share:.0f} % of the changed parameters"
            yield f"{part} of {report.name} are compared"
    dtypes = [matched[f"dtype_{side}"].fillna("") for side in SIDES]
    if apart := int((dtypes[0] != dtypes[1]).sum()):
        yield f"dtypes differ in {counted(apart, 'matrix', 'matrices')}"
    concentration, norm = figures[0], figures[-1]
    if concentration.level is not None and concentration.level < LEVEL:
        yield (
            f"with only {concentration.layers} layers a spread covers at most"
            f" {100 * concentration.level:.2g} %"
        )
    if norm.difference is not None and abs(norm.difference) > math.log(FAR_NORMS):
        large, small = (first, second) if norm.difference > 0 else (second, first)
        yield (
            f"relative to its base, the update of {large.name} is"
            f" {math.exp(abs(norm.difference)):.2g} times as large as that of {small.name}:"
            " concentration falls as an update grows"
        )
    if concentration.verdict in OPPOSITE:
        outside = matched[matched["layer"].isna()].groupby("module")["concentration_difference"]
        against = outside.median() * -concentration.points
        if names := sorted(against.index[against >= (concentration.margin or 0.0)]):
            yield (
                "outside the layers, which do not count for the verdict, concentration differs the"
                f" other way: {and_list(names)}"
            )


# ------------------------------------------------------------------------------------------ copies


def copy_reason(report: ComparedReport) -> str | None:
    """Return why the delta of a report is the rounding of a copy, in words; None if it
    may not be.
    """
    deltas = report.deltas
    deltas = deltas[deltas["layer"].notna()]
    if deltas.empty:
        return None
    tensors = report.tensors
    changed = tensors[(tensors["side"] == "tuned") & (tensors["relative_norm"] > 0)]
    if len(changed) and changed["cast"].isin(["tuned", "base"]).all():
        return f"{report.name} is a copy of its base in another format"
    if 2 * _of_few_bits(deltas).sum() > len(deltas):
        what = "its delta is, at least in part, the rounding of that copy"
        return (
            f"{report.name} is a copy in few bits, of its base or of a model tuned from it: {what}"
        )
    if 2 * (deltas["purity_z"].abs() <= NOISE).sum() > len(deltas):
        what = "as the rounding of a copy leaves it: it may be a copy of its base"
        return f"the delta of {report.name} is like noise, {what}"
    return None


def _of_few_bits(deltas: pd.DataFrame) -> pd.Series[bool]:
    """Return which matrices of the tuned side, and not of the base, went through 8 bits or fewer.

    This is judged by the levels of their format, by the format that they are stored in, or by how
    few distinct values their rows have.
    """
    rounded = (deltas["format_copy"] == 1) | (deltas["kept_high"] < ROUNDED)
    formats = deltas["dtype"].fillna("").str.partition("/")
    base, tuned = formats[0], formats[2].where(formats[2] != "", formats[0])
    stored = tuned.map(_is_few) & ~base.map(_is_few)
    levels = {
        side: np.array(
            [
                share == share and cols >= SHORTEST and round_trip(share, int(cols)) is not None
                for share, cols in zip(deltas[f"levels_{side}"], deltas["cols"], strict=True)
            ],
            bool,
        )
        for side in ("base", "tuned")
    }
    found: pd.Series[bool] = rounded | stored | (levels["tuned"] & ~levels["base"])
    return found


def _is_few(dtype: str) -> bool:
    form = FLOATS.get(dtype)
    return bool(dtype) and (form is None or form.bits <= 8)
