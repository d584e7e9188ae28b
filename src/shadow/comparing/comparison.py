"""Finished reports -> Comparison: whose delta is more concentrated, over the same matrices. Reads,
prints nothing.

One system of names holds from the frames to the JSON and the Parquet file: `X_first` and `X_second`
are of the two reports, `X_difference` is the difference on the scale of the figure X. The JSON,
where a row has a figure's difference alone, calls that X.

Two deltas are compared matrix by matrix, so that shape, place and base drop out of the difference.
The median of the paired differences comes with an interval over layers, a sign-flip test and a
declared margin: 0 lies outside the interval for a fifth of the pairs that differ in their seed
alone, so an interval alone proves too much.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from shadow import __version__
from shadow.claims.footprint import FULL_RANK, LINEAGE, ROUNDING
from shadow.comparing.correlation import ScoredSet, score_reports
from shadow.comparing.gains import MEASURED_BY_OTHERS
from shadow.comparing.matching import (
    ComparedReport,
    Relation,
    ReportIdentity,
    UnmatchedMatrices,
    match,
    read_report,
    relations,
    settings_apart,
    unmatched,
)
from shadow.comparing.scores import ScoreFiles
from shadow.errors import ShadowError, UsageError
from shadow.places.names import name_rules
from shadow.reports.column_types import Cell
from shadow.reports.columns import COMPARISON
from shadow.summary.bootstrap import LEVEL, blocks_of, interval_of_median, sign_flip_p
from shadow.summary.layer_medians import LOW, held_rank, rank_bounds
from shadow.text import and_list, counted

ComparisonVerdict = Literal[
    "more concentrated",
    "less concentrated",
    "different, below the margin",
    "not distinguished",
    "mixed evidence",
    "not comparable",
]

# of what `--format json` prints and of the files of `-o`; raised when a field changes its meaning
COMPARISON_SCHEMA = 1
# of concentration: above the differences of two seeds in the lab, inside those of narrow and broad
# data; "The margin" in docs/compare.md has both, made from the tables
MARGIN = 0.05
MIN_AGREEING = 2  # of the four figures that vote beside concentration
# relative norms further apart are warned of: concentration falls as an update grows
FAR_NORMS = 3.0
MOST = 0.9  # share of a report's measured parameters that should be compared
MAX_REPORTS = 12
MAX_SCORED = 200  # reports of which scores are correlated
CLAIMS: ComparisonClaims = {
    "measured": ["differences of the spectra of two deltas, paired over the same matrices"],
    "not_shown": [
        (
            "whether two more runs would differ: the spread is over layers of these runs, not over"
            " training runs"
        ),
        (
            "why they differ: optimiser, adapters, learning rate and novelty of the data move these"
            " figures as much as narrowness does"
        ),
        "what the models can or cannot do",
    ],
}
SIDES = ("first", "second")  # of a contrast: the ends of the columns of its frames
OPPOSITE: dict[ComparisonVerdict, ComparisonVerdict] = {
    "more concentrated": "less concentrated",
    "less concentrated": "more concentrated",
}


@dataclass(frozen=True)
class ComparedFigure:
    """A figure that two reports are compared by."""

    name: str
    """Its name in the JSON and in the Parquet file."""

    title: str
    """Its name for people."""

    columns: tuple[str, ...]
    """The columns that it is made of: its value is the first, or the first over the second."""

    scale: Literal["difference", "log ratio"]
    """Two values differ by first - second, or by ln(first / second)."""

    direction: int
    """+1 where more of it is more concentrated, -1 where less of it is; 0: it does not vote."""

    margin: Literal["same", "power"] | None
    """For a margin M of concentration: `same` is M; `power` is M ln N with N the null participation
    ratio, because at an equal null a concentration M higher means N^M times fewer directions; None:
    it has none.
    """


FIGURES = (
    ComparedFigure(
        name="concentration",
        title="concentration",
        columns=("concentration",),
        scale="difference",
        direction=1,
        margin="same",
    ),
    ComparedFigure(
        name="stable_rank",
        title="stable rank",
        columns=("stable_rank",),
        scale="log ratio",
        direction=-1,
        margin="power",
    ),
    ComparedFigure(
        name="top4_energy",
        title="top-4 energy",
        columns=("top4_energy",),
        scale="difference",
        direction=1,
        margin="same",
    ),
    ComparedFigure(
        name="participation_ratio_over_null",
        title="PR / null PR",
        columns=("participation_ratio", "null_participation_ratio"),
        scale="log ratio",
        direction=-1,
        margin="power",
    ),
    ComparedFigure(
        name="spike_energy",
        title="spike energy",
        columns=("spike_energy",),
        scale="difference",
        direction=1,
        margin="same",
    ),
    ComparedFigure(
        name="relative_norm",
        title="median rel. norm",
        columns=("relative_norm",),
        scale="log ratio",
        direction=0,
        margin=None,
    ),
)


@dataclass(frozen=True)
class Difference:
    """One figure of two reports, over the matrices in layers.

    Numbers are None where no matrix has the figure.
    """

    figure: str
    """The name of the figure."""

    scale: str
    """difference or log ratio: of difference, low, high and margin."""

    direction: int
    """+1 where more of it is more concentrated, -1 where less of it is; 0: it does not vote."""

    cells: int
    """Matrices, the experts of one module and layer taken as one (their median), 0 or more."""

    layers: int
    """How many layers they lie in, 0 or more."""

    first: float | None
    """The median of the figure itself in the first report."""

    second: float | None
    """The same of the second."""

    difference: float | None
    """The median of the paired differences."""

    low: float | None
    """The lower bound of its interval over layers; None where no_interval says why."""

    high: float | None
    """The upper bound."""

    level: float | None
    """The confidence that the interval may claim, 0 to 1."""

    no_interval: str | None
    """Why there is no interval; None where there is one."""

    p_within_pair: float | None
    """Two-sided, of sign flips by layer, 0 to 1; it says nothing of other runs."""

    margin: float | None
    """The least difference that counts, above 0; None for a figure that has none."""

    verdict: ComparisonVerdict | None
    """What this figure alone says; None for one that does not vote."""

    @property
    def points(self) -> int:
        """+1 where the interval lies wholly where the first is more concentrated, -1 where less,
        else 0.
        """
        if self.low is None or self.high is None:
            return 0
        if self.low > 0:
            return self.direction
        if self.high < 0:
            return -self.direction
        return 0


@dataclass(frozen=True)
class MatchedCounts:
    """What two reports are compared over."""

    matrices: int
    """Matrices of both, 1 or more."""

    in_layers: int
    """Those of them that lie in layers, and so have a vote."""

    cells: int
    """The same, the experts of one module and layer taken as one."""

    layers: int
    """How many layers these lie in."""

    parameters: int
    """The entries of all of them."""

    share_of_first: float
    """The share of the first report's changed parameters that is compared, 0 to 1."""

    share_of_second: float
    """The same of the second."""


@dataclass(frozen=True)
class Differences:
    """Medians of each figure's paired differences, on its scale; None where no matrix has it."""

    concentration: float | None
    """first - second."""

    stable_rank: float | None
    """ln(first / second)."""

    top4_energy: float | None
    """first - second."""

    participation_ratio_over_null: float | None
    """ln(first / second)."""

    spike_energy: float | None
    """first - second."""

    relative_norm: float | None
    """ln(first / second)."""


@dataclass(frozen=True)
class _Module:
    component: str
    """The component."""

    module: str
    """The module."""

    matrices: int
    """Matrices that are compared, 1 or more."""

    concentration_first: float | None
    """The median in the first report."""

    concentration_second: float | None
    """The median in the second report."""


@dataclass(frozen=True)
class ModuleDifferences(Differences, _Module):
    """What two reports differ by in one module, over its matrices."""


@dataclass(frozen=True)
class _Layer:
    component: str
    """The component."""

    layer: int
    """The layer, from 0."""

    cells: int
    """Matrices that are compared, the experts of one module as one, 1 or more."""


@dataclass(frozen=True)
class LayerDifferences(Differences, _Layer):
    """What two reports differ by in one layer, over its cells."""


@dataclass(frozen=True)
class Contrast:
    """The first report against the second: a difference is first - second or first / second."""

    first: str
    """The letter of the first report."""

    second: str
    """The letter of the second report."""

    relation: Relation
    """How the two are related."""

    verified: str | None
    """How they are known to share the weights that relation says they share: by commit, content or
    spectra.
    """

    matched: MatchedCounts
    """What is compared."""

    unmatched: list[UnmatchedMatrices]
    """What one of them has alone, by reason."""

    figures: list[Difference]
    """Every figure, concentration first."""

    modules: list[ModuleDifferences]
    """By module, those outside layers too, in the order of names.yaml."""

    layers: list[LayerDifferences]
    """By layer."""

    verdict: ComparisonVerdict
    """About the first report."""

    sentence: str
    """The verdict in words."""

    consistent_with: list[str]
    """What would explain the verdict; never what did."""

    not_comparable: list[str]
    """Why no verdict can be defended; empty where one can."""

    warnings: list[str]
    """What makes the comparison doubtful, though not void."""

    rows: list[dict[str, Cell]]
    """The matched matrices, a row each, with the columns of `shadow.reports.columns.COMPARISON`."""


@dataclass(frozen=True)
class RankedReport:
    """The place of a report among all of a comparison."""

    rank: int
    """1 is the most concentrated."""

    label: str
    """The letter of the report."""

    concentration: float | None
    """Its median over the cells that every report has."""

    cells: int
    """How many these are, 0 or more."""

    to_next: ComparisonVerdict | None
    """What the contrast with the next report says of it; None for the last."""


class ComparisonClaims(TypedDict):
    """What a comparison measures, and what it does not show."""

    measured: list[str]
    not_shown: list[str]


@dataclass(frozen=True)
class Comparison:
    """Two reports or more."""

    schema: int
    """COMPARISON_SCHEMA."""

    version: str
    """The version of shadow that compared them."""

    margin: float
    """The least difference of concentration that counts, 0 to 1."""

    reports: list[ReportIdentity]
    """The reports, in the order in which they were named."""

    contrasts: list[Contrast]
    """Every two of them, those with the first report first."""

    ranking: list[RankedReport]
    """All by their median concentration over the matrices that every report has; empty for two."""

    claims: ComparisonClaims
    """What is measured, and what is not shown."""

    not_contrasted: str | None = None
    """Why a set of which the scores are correlated has no contrasts."""

    scores: ScoredSet | None = None
    """What others measured of the models; None where nobody gave any."""

    def as_json(self) -> dict[str, Any]:
        """For machines; the rows of single matrices are left to the Parquet file."""
        without_rows = [replace(contrast, rows=[]) for contrast in self.contrasts]
        as_dict = asdict(replace(self, contrasts=without_rows, scores=None))
        for contrast in as_dict["contrasts"]:
            del contrast["rows"]
        if self.scores is not None:
            as_dict["scores"] = self.scores.as_json()
        return as_dict

    @property
    def rows(self) -> list[dict[str, Cell]]:
        """The rows of all contrasts: those of the Parquet file."""
        return [row for contrast in self.contrasts for row in contrast.rows]

    @property
    def provenance(self) -> dict[str, object]:
        """What the Parquet file says of how it was made."""
        keys = ("first", "second", "relation", "verified", "verdict")
        contrasts = [{key: getattr(contrast, key) for key in keys} for contrast in self.contrasts]
        reports = [asdict(report) for report in self.reports]
        comparison = {
            "schema": self.schema,
            "margin": self.margin,
            "reports": reports,
            "contrasts": contrasts,
        }
        return {"version": self.version, "comparison": comparison}


def compare(
    folders: Sequence[Path],
    *,
    margin: float = MARGIN,
    allow_different_base: bool = False,
    scores: ScoreFiles | None = None,
) -> Comparison:
    """Compare finished reports, every two of them.

    Raises ShadowError when one cannot be read, when two share no measured matrix, and when two rest
    on different bases, unless that is allowed. With scores, different bases and more than
    MAX_REPORTS are no fault: gains and concentrations of all are correlated, and matrices are not
    compared.
    """
    reports = [read_report(folder, report_label(index)) for index, folder in enumerate(folders)]
    scored = score_reports(reports, scores)
    not_shown = list(CLAIMS["not_shown"])
    if scored is not None:
        not_shown += [MEASURED_BY_OTHERS, *scored.not_shown]
    comparison = Comparison(
        schema=COMPARISON_SCHEMA,
        version=__version__,
        margin=margin,
        reports=[report.identity for report in reports],
        contrasts=[],
        ranking=[],
        claims={"measured": CLAIMS["measured"], "not_shown": not_shown},
        scores=scored,
    )
    if len(reports) > MAX_REPORTS:
        too_many = f"more than {MAX_REPORTS} reports are not compared matrix by matrix"
        return replace(comparison, not_contrasted=too_many)
    pairs = list(itertools.combinations(range(len(reports)), 2))
    related = relations(reports, pairs)
    apart = None
    if not allow_different_base:
        apart = _different_bases(reports, related)
    if apart is not None and scores is None:
        raise ShadowError(
            apart, "compare models tuned from one base, or add --allow-different-base"
        )
    if apart is not None:
        without = f"{apart}; not compared matrix by matrix without --allow-different-base"
        return replace(comparison, not_contrasted=without)
    contrasts = [contrast(reports[i], reports[j], *related[i, j], margin=margin) for i, j in pairs]
    return replace(comparison, contrasts=contrasts, ranking=_ranking(reports, contrasts))


def _different_bases(
    reports: Sequence[ComparedReport],
    related: Mapping[tuple[int, int], tuple[Relation, str | None]],
) -> str | None:
    """The first two reports of different bases, in words; None where there are none."""
    for (i, j), (relation, why) in related.items():
        if relation == "different bases":
            return f"{reports[i].name} and {reports[j].name} have different bases: {why}"
    return None


def report_label(index: int) -> str:
    """A to Z, then AA, AB and on."""
    before, place = divmod(index, 26)
    letter = chr(ord("A") + place)
    if not before:
        return letter
    return report_label(before - 1) + letter


# From matched matrices to differences


def _with_differences(matched: pd.DataFrame) -> pd.DataFrame:
    """Adds to matched deltas, for every figure X, X_first, X_second and X_difference, and null: ln
    N of both.
    """
    added: dict[str, NDArray[np.float64]] = {}
    with np.errstate(all="ignore"):
        for figure in FIGURES:
            first, second = (_values(figure, matched, side) for side in SIDES)
            added[f"{figure.name}_first"] = first
            added[f"{figure.name}_second"] = second
            if figure.scale == "log ratio":
                added[f"{figure.name}_difference"] = np.log(first) - np.log(second)
            else:
                added[f"{figure.name}_difference"] = first - second
        nulls = [
            np.log(matched[f"null_participation_ratio_{side}"].to_numpy(float)) for side in SIDES
        ]
        added["null"] = nulls[0] / 2 + nulls[1] / 2
    finite = {name: np.where(np.isfinite(values), values, np.nan) for name, values in added.items()}
    others = matched.drop(columns=[name for name in finite if name in matched])
    return pd.concat([others, pd.DataFrame(finite, index=matched.index)], axis=1)


def _values(figure: ComparedFigure, matched: pd.DataFrame, side: str) -> NDArray[np.float64]:
    """What the matrices of one report have of a figure."""
    parts = [matched[f"{column}_{side}"].to_numpy(float) for column in figure.columns]
    if len(parts) == 1:
        return np.asarray(parts[0])
    return np.asarray(parts[0] / parts[1])


def _cells(matched: pd.DataFrame) -> pd.DataFrame:
    """The matrices inside layers, experts of one module and layer as one: medians of columns."""
    inside = matched[matched["layer"].notna()]
    # a number has nothing to do with what an expert does, so experts are told apart neither by it
    # nor by name
    cell = inside["slot"].where(inside["expert"].isna(), "").fillna("")
    names = [f"{figure.name}_{what}" for figure in FIGURES for what in (*SIDES, "difference")]
    keys = ["component", "layer", "module", "cell"]
    medians = inside.assign(cell=cell).groupby(keys, sort=True)[[*names, "null"]].median()
    cells: pd.DataFrame = medians.reset_index()
    return cells


def difference(figure: ComparedFigure, cells: pd.DataFrame, margin: float) -> Difference:
    """The difference of one figure over cells that lie in layers; margin is that of concentration.
    See Difference.
    """
    column = f"{figure.name}_difference"
    known = cells[cells[column].notna()]
    by_layer = known.groupby(["component", "layer"])
    blocks = blocks_of(known["component"].tolist(), known["layer"].to_numpy(np.float64))
    interval = interval_of_median(known[column], blocks)
    low, high = interval.bounds or (None, None)
    apart = number(known[column].median())
    asked = None
    if figure.margin == "power":
        asked = number(margin * known["null"].median())
    elif figure.margin == "same":
        asked = margin
    return Difference(
        figure=figure.name,
        scale=figure.scale,
        direction=figure.direction,
        cells=len(known),
        layers=by_layer.ngroups,
        first=number(known[f"{figure.name}_first"].median()),
        second=number(known[f"{figure.name}_second"].median()),
        difference=apart,
        low=low,
        high=high,
        level=interval.level,
        no_interval=interval.reason,
        p_within_pair=sign_flip_p(by_layer[column].median().to_numpy(float)),
        margin=asked,
        verdict=_figure_verdict(figure, apart, low=low, high=high, margin=asked),
    )


def _figure_verdict(
    figure: ComparedFigure,
    apart: float | None,
    low: float | None,
    high: float | None,
    margin: float | None,
) -> ComparisonVerdict | None:
    """What one figure says: a direction only if 0 is outside the interval and the margin is
    reached.
    """
    if not figure.direction:
        return None
    if apart is None or low is None or high is None or low <= 0 <= high:
        return "not distinguished"
    if margin is None or abs(apart) < margin:
        return "different, below the margin"
    if apart * figure.direction > 0:
        return "more concentrated"
    return "less concentrated"


def check_count(count: int, *, scored: bool) -> None:
    """Raises UsageError for one report, and for more than a table can hold.

    scored: scores are correlated, which more reports can take part in.
    """
    most = MAX_SCORED if scored else MAX_REPORTS
    if 2 <= count <= most:
        return
    hint = f"name two to {most}, or a folder above so many"
    if count > most:
        hint += "; `shadow show` has a table of any number"
        if not scored:
            hint += f", --scores correlates up to {MAX_SCORED}"
    raise UsageError(f"{counted(count, 'report', 'reports')} to compare", hint)


def number(value: float) -> float | None:
    """Null instead of NaN or infinity."""
    return float(value) if math.isfinite(value) else None


# One pair of reports


def contrast(
    first: ComparedReport,
    second: ComparedReport,
    relation: Relation,
    how: str | None,
    *,
    margin: float,
) -> Contrast:
    """The first report against the second. Raises ShadowError if they share no measured matrix."""
    by_base = relation in ("the same pair", "one base") and how in ("commit", "content")
    rows = match(first.subject("delta"), second.subject("delta"), by_base=by_base)
    if rows.empty:
        raise ShadowError(
            f"{first.name} and {second.name} have no changed matrix of one place and shape in"
            " common",
            "audit both without filters, and see `shadow show` for what is identical or skipped",
        )
    matched = _with_differences(rows)
    cells = _cells(matched)
    figures = [difference(figure, cells, margin) for figure in FIGURES]
    counts = _counts(first, second, matched=matched, cells=cells)
    fatal = _not_comparable(first, second, matched[matched["layer"].notna()])
    if fatal:
        figures = [_without_verdict(figure) for figure in figures]
        verdict: ComparisonVerdict = "not comparable"
    else:
        verdict = _verdict(figures)
    different = relation == "different bases"
    return Contrast(
        first=first.label,
        second=second.label,
        relation=relation,
        verified=None if different else how,
        matched=counts,
        unmatched=unmatched(first, second, matched),
        figures=figures,
        modules=_by_module(matched),
        layers=_by_layer(cells),
        verdict=verdict,
        sentence=_sentence(
            first, second, verdict=verdict, figures=figures, fatal=fatal, different=different
        ),
        consistent_with=_consistent_with(first, second, verdict),
        not_comparable=fatal,
        warnings=[
            *_warn_of_relation(first, second, relation=relation, how=how),
            *settings_apart(first, second),
            *_warn_of_coverage(
                first, second, matched=matched, counts=counts, concentration=figures[0]
            ),
            *_warn_of_deltas(
                first, second, matched=matched, concentration=figures[0], norm=figures[-1]
            ),
        ],
        rows=_rows(first, second, matched),
    )


def _without_verdict(figure: Difference) -> Difference:
    """The same figure where reports are not comparable; one that does not vote stays as it is."""
    if not figure.direction:
        return figure
    return replace(figure, verdict="not comparable")


def _counts(
    first: ComparedReport, second: ComparedReport, matched: pd.DataFrame, cells: pd.DataFrame
) -> MatchedCounts:
    """What is compared: matrices, how many of them lie in layers and so have a vote, and their
    share of each report.
    """
    parameters = int((matched["rows"] * matched["cols"]).sum())

    def share_of(report: ComparedReport) -> float:
        changed = int(report.subject("delta")["parameters"].sum())
        return min(parameters / max(changed, 1), 1.0)

    return MatchedCounts(
        matrices=len(matched),
        in_layers=int(matched["layer"].notna().sum()),
        cells=len(cells),
        layers=cells.groupby(["component", "layer"]).ngroups,
        parameters=parameters,
        share_of_first=share_of(first),
        share_of_second=share_of(second),
    )


def _not_comparable(
    first: ComparedReport, second: ComparedReport, voting: pd.DataFrame
) -> list[str]:
    """Why a verdict on these two could not be defended, whatever the figures say.

    Each of these moves concentration by more than data do: a low rank by 0.4 of 0.15, rounding
    takes it to 0, and the difference of two unrelated models is no update.
    """
    reasons = []
    ceilings = [
        voting[f"rank_ceiling_{side}"].to_numpy(np.float64, na_value=math.inf) for side in SIDES
    ]
    held = [held_rank(_of_side(voting, side)) for side in SIDES]
    apart = ceilings[0] != ceilings[1]
    for ceiling, side in zip(reversed(ceilings), SIDES, strict=True):
        # a merged adapter may have the rank of one that was not
        least, most = rank_bounds(_of_side(voting, side))
        apart &= ~((least <= ceiling) & (ceiling <= most) & (most <= LOW * _short(voting)))
    if apart.any():
        low = LOW * _short(voting)
        kinds = [
            _ceiling(ranks[apart], np.where(bound <= low, bound, math.inf)[apart])
            for ranks, bound in zip(ceilings, held, strict=True)
        ]
        reasons.append(
            f"{first.name} is {kinds[0]} and {second.name} {kinds[1]} (in {apart.sum()} matrices),"
            " and the rank that an update may have decides how many directions hold it"
        )
    for side, report in zip(SIDES, (first, second), strict=True):
        cosine, floor = voting[f"cosine_{side}"].median(), voting[f"floor_ratio_{side}"].median()
        if cosine < LINEAGE:
            reasons.append(
                f"the two sides of {report.name} have little in common (median cosine"
                f" {cosine:.2f}), so their difference is not an update"
            )
        if floor < ROUNDING:
            reasons.append(
                f"the delta of {report.name} is mostly rounding ({floor:.1f} times what storage"
                " alone would leave)"
            )
    return reasons


def _of_side(matched: pd.DataFrame, side: str) -> Callable[[str], pd.Series]:
    """The columns of one report among matched rows; rows and cols are of both."""

    def column(name: str) -> pd.Series:
        return matched[name if name in ("rows", "cols") else f"{name}_{side}"]

    return column


def _short(matched: pd.DataFrame) -> NDArray[np.float64]:
    sides: NDArray[np.float64] = matched[["rows", "cols"]].min(axis=1).to_numpy(np.float64)
    return sides


def _ceiling(ceilings: NDArray[np.float64], held: NDArray[np.float64]) -> str:
    """What bounds the rank of updates, in words: an adapter, else, where it is low, the rank that
    they have at most. Infinity is no bound.
    """
    kinds = []
    free = np.isinf(ceilings)
    if (free & np.isinf(held)).any():
        kinds.append("of full rank")
    if (merged := free & ~np.isinf(held)).any():
        kinds.append(f"of rank {held[merged].max():.0f} at most")
    kinds += [f"an adapter of rank {rank:.0f}" for rank in np.unique(ceilings[~free])]
    more = " or more" if len(kinds) > 2 else ""
    return " or ".join(kinds[:2]) + more


def _verdict(figures: Sequence[Difference]) -> ComparisonVerdict:
    """Concentration's own verdict, if at least two of the other four point its way, and more than
    point the other.
    """
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
    figures: Sequence[Difference],
    *,
    fatal: Sequence[str],
    different: bool,
) -> str:
    """The verdict in words."""
    if fatal:
        return f"not comparable: {'; '.join(fatal)}"
    concentration = figures[0]
    pointing = {way: and_list(_pointing(figures[1:], way)) for way in (1, -1)}
    size = ""
    if concentration.difference is not None:
        size = f"{concentration.difference:+.3f}"
    than = f"{first.name} is {concentration.verdict} than {second.name}"
    whose = ", from different bases," if different else ""
    way = concentration.points
    if verdict in ("more concentrated", "less concentrated"):
        text = (
            f"{than}{whose}: concentration differs by {size}, beyond the margin of"
            f" {concentration.margin:g}; {pointing[way]} point the same way"
        )
        if pointing[-way]:
            text += f"; {pointing[-way]} the other way"
        return text
    both = f"{first.name} and {second.name}{whose}"
    if verdict == "different, below the margin":
        least = f"less than the margin of {concentration.margin:g}"
        return (
            f"{both} differ, below the margin: concentration by {size}, {least}; two runs of one"
            " regime can differ as much"
        )
    if verdict == "not distinguished":
        return f"{both} are not distinguished: {_why_not_distinguished(concentration, size)}"
    if concentration.verdict in ("more concentrated", "less concentrated"):
        same, other = pointing[way] or "none", pointing[-way] or "none"
        return (
            f"mixed evidence: by concentration {than}{whose} ({size}), but of the other four"
            f" figures {same} point the same way and {other} the other way"
        )
    more, less = pointing[1] or "none", pointing[-1] or "none"
    what = "below the margin" if way else "not distinguished"
    return (
        f"mixed evidence on {both}: the difference in concentration is {what}, but by {more}"
        f" {first.label} is more concentrated, and by {less} {second.label}"
    )


def _pointing(figures: Sequence[Difference], way: int) -> list[str]:
    """The titles of the voting figures that point one way: +1 to the first report as more
    concentrated, -1 to less.
    """
    titles = {figure.name: figure.title for figure in FIGURES}
    return [
        titles[figure.figure] for figure in figures if figure.direction and figure.points == way
    ]


def _why_not_distinguished(concentration: Difference, size: str) -> str:
    if concentration.difference is None:
        return "no matrix in a layer has a concentration in both"
    if concentration.no_interval:
        return concentration.no_interval
    return f"0 lies in the interval of the difference in concentration ({size})"


def _consistent_with(
    first: ComparedReport, second: ComparedReport, verdict: ComparisonVerdict
) -> list[str]:
    """What would explain the verdict; never what did."""
    more_concentrated = {"more concentrated": first, "less concentrated": second}.get(verdict)
    if more_concentrated is not None:
        name = more_concentrated.name
        return [
            f"narrower data, data newer to its base or heavy repetition behind {name}",
            "another optimiser or learning rate, or an adapter that was merged, on either side",
        ]
    if verdict in ("different, below the margin", "not distinguished"):
        return ["two runs of one regime", "regimes that differ by less than the margin can show"]
    return []


def _warn_of_relation(
    first: ComparedReport, second: ComparedReport, relation: Relation, how: str | None
) -> Iterator[str]:
    if relation == "different bases":
        yield f"the bases differ ({how}), so the difference may come from them"
    elif relation in ("consecutive stages", "one lineage"):
        yield (
            "these are steps of one lineage and start from different weights, the later step where"
            " the earlier ended"
        )
    elif relation == "the same pair":
        yield "both reports are of the same pair of checkpoints"
    for report in (first, second):
        if report.provenance.relation == "sibling":
            yield f"{report.name} is a pair of siblings: neither side was tuned from the other"


def _warn_of_coverage(
    first: ComparedReport,
    second: ComparedReport,
    matched: pd.DataFrame,
    *,
    counts: MatchedCounts,
    concentration: Difference,
) -> Iterator[str]:
    for report, share in ((first, counts.share_of_first), (second, counts.share_of_second)):
        if share < MOST:
            yield (
                f"only {100 * share:.0f} % of the changed parameters of {report.name} are compared"
            )
    for side, report in zip(SIDES, (first, second), strict=True):
        if unverified := int((~matched[f"verified_{side}"]).sum()):
            yield (
                f"{unverified} matrices of {report.name} came as byte ranges, which no checksum"
                " covers"
            )
    dtypes = [matched[f"dtype_{side}"].fillna("") for side in SIDES]
    if (apart := dtypes[0] != dtypes[1]).any():
        left, right = (" and ".join(sorted(set(names[apart]))[:3]) for names in dtypes)
        yield (
            f"{apart.sum()} matrices are stored in different dtypes: {left} in {first.label},"
            f" {right} in {second.label}"
        )
    if concentration.level is not None and concentration.level < LEVEL:
        yield (
            f"only {concentration.layers} layers: no spread over them covers more than"
            f" {100 * concentration.level:.3g} %, and p cannot be below"
            f" {2.0 ** (1 - concentration.layers):.3g}"
        )


def _warn_of_deltas(
    first: ComparedReport,
    second: ComparedReport,
    matched: pd.DataFrame,
    *,
    concentration: Difference,
    norm: Difference,
) -> Iterator[str]:
    if norm.difference is not None and abs(norm.difference) > math.log(FAR_NORMS):
        large, small = first, second
        if norm.difference < 0:
            large, small = second, first
        yield (
            f"relative to its base, the update of {large.name} is"
            f" {math.exp(abs(norm.difference)):.2g} times as large as that of {small.name}:"
            " concentration falls as an update grows"
        )
    held = [held_rank(_of_side(matched, side)) for side in SIDES]
    shares = [pd.Series(ranks / _short(matched)).median() for ranks in held]
    lower = shares.index(min(shares))
    is_adapter = matched[f"rank_ceiling_{SIDES[lower]}"].notna().any()  # and is called one already
    if min(shares) < FULL_RANK <= max(shares) and not is_adapter:
        low = (first, second)[lower]
        yield (
            f"only the deltas of {low.name} are of low rank (in the median matrix"
            f" {pd.Series(held[lower]).median():.0f} at most, {100 * min(shares):.2g} % of what is"
            " possible): perhaps a merged adapter"
        )
    outside = (
        matched[matched["layer"].isna()].groupby("module")["concentration_difference"].median()
    )
    against = outside[outside * (concentration.difference or 0.0) < 0]
    beyond = sorted(against.index[against.abs() >= (concentration.margin or 0.0)])
    if concentration.verdict in OPPOSITE and beyond:
        sizes = and_list([f"{name} ({against[name]:+.3f})" for name in beyond])
        yield (
            "outside the layers, which have no vote, it is the other way round: concentration of"
            f" {sizes}"
        )
    for side, report in zip(SIDES, (first, second), strict=True):
        cosines = matched.groupby("module")[f"cosine_{side}"].median()
        if turned := sorted(cosines.index[cosines < LINEAGE]):
            yield (
                f"{and_list(turned)} of {report.name}: little in common with the base's; replaced,"
                " or renumbered?"
            )


def _by_module(matched: pd.DataFrame) -> list[ModuleDifferences]:
    """Medians of the differences over all matrices, in the order of names.yaml."""
    rows = [
        ModuleDifferences(
            component=str(component),
            module=str(module),
            matrices=len(group),
            concentration_first=number(group["concentration_first"].median()),
            concentration_second=number(group["concentration_second"].median()),
            **_medians(group),
        )
        for (component, module), group in matched.groupby(["component", "module"])
    ]
    rules = name_rules()
    return sorted(
        rows,
        key=lambda row: (_rank(row.component, rules.components), _rank(row.module, rules.modules)),
    )


def _by_layer(cells: pd.DataFrame) -> list[LayerDifferences]:
    """Medians of the differences over the cells of each layer."""
    rows = [
        LayerDifferences(
            component=str(component),
            layer=int(group["layer"].iloc[0]),
            cells=len(group),
            **_medians(group),
        )
        for (component, _), group in cells.groupby(["component", "layer"])
    ]
    return sorted(rows, key=lambda row: (_rank(row.component, name_rules().components), row.layer))


def _medians(rows: pd.DataFrame) -> dict[str, float | None]:
    """The fields of Differences."""
    return {figure.name: number(rows[f"{figure.name}_difference"].median()) for figure in FIGURES}


def _rank(name: str, known: Sequence[str]) -> tuple[int, str]:
    """Sorts as known has it; a word that this version does not know comes last."""
    if name not in known:
        return len(known), name
    return known.index(name), ""


def _rows(
    first: ComparedReport, second: ComparedReport, matched: pd.DataFrame
) -> list[dict[str, Cell]]:
    """The matched matrices with the columns of COMPARISON."""
    labelled = matched.assign(
        first=first.label, second=second.label, votes=matched["layer"].notna()
    )
    wanted = labelled[[column.name for column in COMPARISON]]
    plain = wanted.astype(object).where(wanted.notna(), None)
    return [{str(name): cell for name, cell in row.items()} for row in plain.to_dict("records")]


def _ranking(
    reports: Sequence[ComparedReport], contrasts: Sequence[Contrast]
) -> list[RankedReport]:
    """All reports by median concentration over the cells that every one has, the most concentrated
    first.
    """
    if len(reports) < 3:
        return []
    medians = _shared_cells(contrasts[: len(reports) - 1])
    typical = {str(label): number(medians[label].median()) for label in medians}
    ordered = sorted(
        typical, key=lambda label: (typical[label] is None, -(typical[label] or 0.0), label)
    )
    verdicts = {(contrast.first, contrast.second): contrast.verdict for contrast in contrasts}
    for contrast in contrasts:
        verdicts[contrast.second, contrast.first] = OPPOSITE.get(contrast.verdict, contrast.verdict)
    ranking = []
    for rank, label in enumerate(ordered, start=1):
        to_next = None
        if rank < len(ordered):
            to_next = verdicts[label, ordered[rank]]
        ranked = RankedReport(
            rank=rank,
            label=label,
            concentration=typical[label],
            cells=len(medians),
            to_next=to_next,
        )
        ranking.append(ranked)
    return ranking


def _shared_cells(contrasts: Sequence[Contrast]) -> pd.DataFrame:
    """The concentrations of all reports, a column each, over the cells that every one has.

    contrasts: those of the first report with every other.
    """
    keys = ["component", "layer", "module", "expert", "tensor_first"]
    shared: pd.DataFrame | None = None
    for contrast in contrasts:
        voting = [row for row in contrast.rows if row["votes"]]
        rows = pd.DataFrame(voting, columns=[column.name for column in COMPARISON])
        rows["expert"] = pd.to_numeric(rows["expert"]).astype("Int64")
        values = rows.set_index(keys)[["concentration_first", "concentration_second"]].astype(float)
        values = values.set_axis([contrast.first, contrast.second], axis=1)
        if shared is not None:
            values = shared.join(values[[contrast.second]], how="inner")
        shared = values
    assert shared is not None
    places = shared.reset_index()
    # experts of one module and layer as one
    cell = places["tensor_first"].where(places["expert"].isna(), "")
    keyed = [places["component"], places["layer"], places["module"], cell]
    medians: pd.DataFrame = shared.reset_index(drop=True).groupby(keyed).median()
    return medians
