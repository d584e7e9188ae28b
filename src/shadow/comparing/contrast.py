"""Two reports matrix by matrix -> Contrast: a verdict, what voids it and what makes it doubtful."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from shadow.comparing.codes import (
    OPPOSITE,
    ComparisonVerdict,
    Doubt,
    NoVerdict,
    Rate,
    ReportRelation,
    Verified,
    say,
)
from shadow.comparing.differences import (
    EQUAL,
    FIGURES,
    SIDES,
    Difference,
    cells_of,
    difference,
    with_differences,
)
from shadow.comparing.matching import ComparedReport, match, settings_apart
from shadow.comparing.updates import copy_reason, is_training
from shadow.errors import ShadowError
from shadow.spectra.measurement import WITHOUT_SPECTRA
from shadow.summary.bootstrap import LEVEL, Floats
from shadow.summary.gate_figures import LINEAGE, ROUNDING
from shadow.summary.layer_medians import LOW, held_rank
from shadow.summary.tables import Columns, median
from shadow.templates import Reason, Value

# of concentration: above the differences of two seeds in the lab, inside those of narrow and broad
# data; "The margin" in docs/compare.md has both, made from the tables
MARGIN = 0.05
MIN_AGREEING = 2  # of the four figures that vote beside concentration
# relative norms further apart are warned of: concentration falls as an update grows
FAR_NORMS = 3.0
MOST = 0.9  # share of a report's measured parameters that should be compared
# doubts that pairs of the lab have, whose decoders have few layers
OF_THE_LAB = (Doubt.FEW_LAYERS, Doubt.OPPOSED_OUTSIDE_LAYERS)


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
    relation: ReportRelation
    verified: Verified | None
    """How it is known which weights they share; None if they share none."""
    matched: MatchedCounts
    figures: list[Difference]
    """Every figure, concentration first."""
    verdict: ComparisonVerdict
    """About the first report."""
    headline: Reason
    """The verdict with the difference of concentration."""
    voids: list[Reason]
    """Why no verdict can be defended; empty where one can."""
    doubts: list[Reason]
    """What makes the comparison doubtful, though not void."""
    rate: Rate | None
    """How often such verdicts were wrong; None where that was not measured on such pairs."""

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        if self.voids:
            why = "; ".join(self.not_comparable)
            return say(Reason(self.verdict.code, why=why))
        return say(self.headline)

    @property
    def not_comparable(self) -> list[str]:
        """The reasons for no verdict, in words."""
        return [say(reason) for reason in self.voids]

    @property
    def warnings(self) -> list[str]:
        """The doubts, in words."""
        return [say(reason) for reason in self.doubts]

    def as_json(self) -> dict[str, Any]:
        """For machines: reasons by code and figures, and in words."""
        return {
            **asdict(self),
            "relation_code": self.relation.code,
            "verdict_code": self.verdict.code,
            "figures": [figure.as_json() for figure in self.figures],
            "sentence": self.sentence,
            "not_comparable": self.not_comparable,
            "warnings": self.warnings,
        }


def contrast(
    first: ComparedReport,
    second: ComparedReport,
    relation: ReportRelation,
    verified: Verified | None,
    *,
    margin: float,
) -> Contrast:
    """Compare the first report with the second. Raises ShadowError if they share no matrix."""
    by_base = relation in (ReportRelation.SAME_PAIR, ReportRelation.ONE_BASE)
    rows = match(first.placed, second.placed, by_base=by_base)
    if not len(rows):
        raise ShadowError(
            f"{first.name} and {second.name} have no changed matrix of one place and shape in"
            " common",
            "audit both without filters, and see `shadow show` for what is identical or skipped",
        )
    matched = with_differences(rows)
    cells = cells_of(matched)
    figures = [difference(figure, cells, margin) for figure in FIGURES]
    verdict = _verdict(figures)
    voting = matched.inside
    names: dict[str, Value] = {"first": first.name, "second": second.name}
    voids = list(_voids(first, second, voting))
    if voids:
        verdict = ComparisonVerdict.NO_COMPARISON
        for number, figure in enumerate(figures):
            if figure.direction:
                figures[number] = replace(figure, verdict=verdict)
    counts = _counts(first.deltas, second.deltas, matched, cells)
    doubts = list(_doubts(first, second, relation, matched, counts, figures, is_void=bool(voids)))
    headline = _headline(names, verdict, figures[0])
    rate = _rate(first, second, relation, verdict, figures[0], doubts)
    if _are_equal(matched, counts):
        headline = Reason(NoVerdict.SAME_UPDATE, names, matrices=counts.matrices)
        rate = None
    return Contrast(
        first=first.label,
        second=second.label,
        relation=relation,
        verified=verified,
        matched=counts,
        figures=figures,
        verdict=verdict,
        headline=headline,
        voids=voids,
        doubts=doubts,
        rate=rate,
    )


def _are_equal(matched: Columns, counts: MatchedCounts) -> bool:
    """True if both changed the same matrices, and every figure of each is one in both."""
    if counts.alone_in_first or counts.alone_in_second:
        return False
    differences = [matched[f"{figure.name}_difference"] for figure in FIGURES]
    return all((np.abs(values) < EQUAL).all() for values in differences)


def _counts(first: Columns, second: Columns, matched: Columns, cells: Columns) -> MatchedCounts:
    """Count matched matrices. first, second: the deltas of the reports."""
    parameters = int(np.nansum(matched["rows"] * matched["cols"]))

    def share_of(deltas: Columns) -> float:
        changed = int(np.nansum(deltas["parameters"]))
        return min(parameters / max(changed, 1), 1.0)

    return MatchedCounts(
        matrices=len(matched),
        in_layers=len(matched.inside),
        cells=len(cells),
        layers=len({*cells.each("component", "layer")}),
        parameters=parameters,
        share_of_first=share_of(first),
        share_of_second=share_of(second),
        alone_in_first=len(first) - len(matched),
        alone_in_second=len(second) - len(matched),
    )


def _voids(first: ComparedReport, second: ComparedReport, voting: Columns) -> Iterator[Reason]:
    """Yield why no verdict on these two is justified, whatever the figures say.

    Each of these moves concentration more than data do: a low rank by 0.4 of 0.15, rounding takes
    it to 0, and the difference of two unrelated models is not an update.
    """
    if matrices := _unequal_ranks(voting):
        names = {"first": first.name, "second": second.name}
        yield Reason(NoVerdict.RANKS_DIFFER, names, matrices=matrices)
    for side, report in zip(SIDES, (first, second), strict=True):
        name = {"name": report.name}
        level = report.provenance.level
        if level in WITHOUT_SPECTRA:
            yield Reason(NoVerdict.SPECTRA_LEFT_OUT, name, level=level)
        cosine = median(voting[f"cosine_{side}"])
        floor = median(voting[f"floor_ratio_{side}"])
        if cosine is not None and cosine < LINEAGE:
            yield Reason(NoVerdict.SIDES_UNRELATED, name, cosine=cosine)
        elif copy := copy_reason(report):
            yield Reason(copy, name)
        elif floor is not None and floor < ROUNDING:
            yield Reason(NoVerdict.MOSTLY_ROUNDING, name, floor=floor)


def _unequal_ranks(voting: Columns) -> int:
    """Count the matrices of which one side has a low rank, or another one, as adapters have."""
    of_first, of_second = (np.fmax(voting[f"rank_ceiling_{side}"], 0.0) for side in SIDES)
    is_unknown = [np.isnan(_low_ranks(voting, side)) for side in SIDES]
    has_adapter = np.maximum(of_first, of_second) > 0
    are_adapters = np.minimum(of_first, of_second) > 0
    unequal = has_adapter & (is_unknown[0] != is_unknown[1])
    unequal |= are_adapters & (of_first != of_second)
    return int(unequal.sum())


def _low_ranks(voting: Columns, side: str) -> Floats:
    """The rank of each delta as far as it exceeds rounding, if it is low; otherwise NaN."""
    deltas = Columns({name.removesuffix(f"_{side}"): voting[name] for name in voting.arrays})
    ranks = held_rank(deltas)
    short_sides = np.fmin(deltas["rows"], deltas["cols"])
    low = np.where(ranks <= LOW * short_sides, ranks, np.nan)
    known: Floats = np.fmax(low, deltas["rank_ceiling"])
    return known


def _verdict(figures: Sequence[Difference]) -> ComparisonVerdict:
    """The verdict of concentration, if two or more of the other figures, and most, agree."""
    verdict = figures[0].verdict
    points = figures[0].points
    others = [figure for figure in figures[1:] if figure.direction]
    if verdict in OPPOSITE:
        agree = sum(figure.points == points for figure in others)
        oppose = sum(figure.points == -points for figure in others)
        is_mixed = agree < MIN_AGREEING or agree <= oppose
    else:
        is_mixed = sum(figure.verdict in OPPOSITE for figure in others) >= MIN_AGREEING
    return ComparisonVerdict.MIXED_EVIDENCE if is_mixed or verdict is None else verdict


def _headline(
    names: Mapping[str, Value], verdict: ComparisonVerdict, concentration: Difference
) -> Reason:
    """The verdict with the difference of concentration."""
    if concentration.difference is None:
        return Reason(NoVerdict.NO_CONCENTRATION, names)
    return Reason(
        verdict.code,
        names,
        size=abs(concentration.difference),
        margin=f"{concentration.margin:g}",
        no_interval=concentration.no_interval,
    )


def _doubts(
    first: ComparedReport,
    second: ComparedReport,
    relation: ReportRelation,
    matched: Columns,
    counts: MatchedCounts,
    figures: Sequence[Difference],
    *,
    is_void: bool,
) -> Iterator[Reason]:
    """Yield what makes a comparison doubtful, though not invalid."""
    if relation is not ReportRelation.ONE_BASE:
        yield Reason(relation.code)
    for report in (first, second):
        if report.provenance.relation == "sibling":
            yield Reason(Doubt.SIBLINGS_COMPARED, name=report.name)
    yield from settings_apart(first, second)
    shares = (counts.share_of_first, counts.share_of_second)
    for report, share in zip((first, second), shares, strict=True):
        if share < MOST:
            yield Reason(Doubt.PARTLY_COMPARED, name=report.name, share=share)
    dtypes = matched.each("dtype_first", "dtype_second")
    if differing := sum(before != now for before, now in dtypes):
        yield Reason(Doubt.DTYPES_DIFFER, matrices=differing)
    concentration = figures[0]
    norm = figures[-1].difference
    if concentration.level is not None and concentration.level < LEVEL:
        layers = concentration.layers
        yield Reason(Doubt.FEW_LAYERS, layers=layers, level=concentration.level)
    if norm is not None and abs(norm) > math.log(FAR_NORMS) and not is_void:
        names = {"larger": first.name, "smaller": second.name}
        if norm < 0:
            names = {"larger": second.name, "smaller": first.name}
        times = math.exp(min(abs(norm), 700.0))
        yield Reason(Doubt.NORMS_FAR_APART, names, times=times)
    if concentration.verdict in OPPOSITE:
        margin = concentration.margin or 0.0
        modules = []
        for (module,), rows in matched.outside.groups("module"):
            outside = median(rows["concentration_difference"])
            if outside is not None and outside * -concentration.points >= margin:
                modules.append(module)
        if modules:
            yield Reason(Doubt.OPPOSED_OUTSIDE_LAYERS, modules=sorted(modules))


def _rate(
    first: ComparedReport,
    second: ComparedReport,
    relation: ReportRelation,
    verdict: ComparisonVerdict,
    concentration: Difference,
    doubts: Sequence[Reason],
) -> Rate | None:
    """The share of such verdicts that were wrong in the lab; None for pairs unlike those there.

    Those are two trainings of one base, measured with the same settings, whose norms are similar.
    """
    if verdict is ComparisonVerdict.NO_COMPARISON or relation is not ReportRelation.ONE_BASE:
        return None
    if concentration.margin != MARGIN or concentration.no_interval is not None:
        return None
    if any(reason.code not in OF_THE_LAB for reason in doubts):
        return None
    if not (is_training(first) and is_training(second)):
        return None
    return Rate.SEEDS_CALLED if verdict in OPPOSITE else Rate.DATA_MISSED
