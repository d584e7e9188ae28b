"""The first report against the second: verdict, what would explain it, and what makes it doubtful.

Two deltas are compared matrix by matrix, so that shape, place and base drop out of the difference.
The median of the paired differences comes with an interval over layers, a sign-flip test and a
declared margin: 0 lies outside the interval for a fifth of the pairs that differ in their seed
alone, so an interval alone proves too much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from shadow.comparing.differences import (
    FIGURES,
    OPPOSITE,
    SIDES,
    ComparisonVerdict,
    Difference,
    LayerDifferences,
    ModuleDifferences,
    by_layer,
    by_module,
    cells_of,
    difference,
    with_differences,
)
from shadow.comparing.directions import DeltaDirections
from shadow.comparing.matching import (
    ComparedReport,
    Relation,
    UnmatchedMatrices,
    match,
    settings_apart,
    unmatched,
)
from shadow.errors import ShadowError
from shadow.reports.column_types import Cell
from shadow.reports.columns import COMPARISON
from shadow.summary.bootstrap import LEVEL
from shadow.summary.layer_medians import LOW, held_rank, rank_bounds
from shadow.summary.standing import FULL_RANK, LINEAGE, ROUNDING
from shadow.text import and_list, counted

MIN_AGREEING = 2  # of the four figures that vote beside concentration
# relative norms further apart are warned of: concentration falls as an update grows
FAR_NORMS = 3.0
MOST = 0.9  # share of a report's measured parameters that should be compared
UNSEEN = "the figures show how concentrated each change is, not whether both are the same change"


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
    parameters: int
    share_of_first: float
    """The share of the first report's changed parameters that is compared, 0 to 1."""
    share_of_second: float


@dataclass(frozen=True)
class Contrast:
    """The first report against the second: a difference is first - second or first / second."""

    first: str
    second: str
    relation: Relation
    verified: str | None
    """How it is known which weights they share: by commit, content or spectra."""
    matched: MatchedCounts
    unmatched: list[UnmatchedMatrices]
    """What one of them has alone, by reason."""
    figures: list[Difference]
    """Every figure, concentration first."""
    modules: list[ModuleDifferences]
    layers: list[LayerDifferences]
    verdict: ComparisonVerdict
    """About the first report."""
    sentence: str
    consistent_with: list[str]
    """What would explain the verdict; never what did."""
    not_comparable: list[str]
    """Why no verdict can be defended; empty where one can."""
    warnings: list[str]
    """What makes the comparison doubtful, though not void."""
    rows: list[dict[str, Cell]]
    """The matched matrices, a row each, with the columns of `shadow.reports.columns.COMPARISON`."""
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
    """The first report against the second. Raises ShadowError if they share no measured matrix."""
    by_base = relation in ("the same pair", "one base") and how in ("commit", "content")
    rows = match(first.subject("delta"), second.subject("delta"), by_base=by_base)
    if rows.empty:
        raise ShadowError(
            f"{first.name} and {second.name} have no changed matrix of one place and shape in"
            " common",
            "audit both without filters, and see `shadow show` for what is identical or skipped",
        )
    matched = with_differences(rows)
    cells = cells_of(matched)
    figures = [difference(figure, cells, margin) for figure in FIGURES]
    counts = _counts(first, second, matched=matched, cells=cells)
    fatal = _not_comparable(first, second, matched[matched["layer"].notna()])
    if fatal:
        figures = [
            replace(figure, verdict="not comparable") if figure.direction else figure
            for figure in figures
        ]
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
        modules=by_module(matched),
        layers=by_layer(cells),
        verdict=verdict,
        sentence=_sentence(
            first, second, verdict=verdict, figures=figures, fatal=fatal, different=different
        ),
        consistent_with=_consistent_with(first, second, verdict, figures[0]),
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


def _counts(
    first: ComparedReport, second: ComparedReport, matched: pd.DataFrame, cells: pd.DataFrame
) -> MatchedCounts:
    """What is compared: matrices, those in layers, which vote, and their share of each report."""
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
            f"{first.name} is {kinds[0]} and {second.name} {kinds[1]} (in"
            f" {counted(int(apart.sum()), 'matrix', 'matrices')}), and the rank of an update limits"
            " its directions"
        )
    if norms := [one.name for one in (first, second) if one.provenance.subjects == "none"]:
        have = "has" if len(norms) == 1 else "have"
        reasons.append(f"{' and '.join(norms)} {have} no spectra, which --norms leaves out")
    for side, report in zip(SIDES, (first, second), strict=True):
        cosine, floor = voting[f"cosine_{side}"].median(), voting[f"floor_ratio_{side}"].median()
        if cosine < LINEAGE:
            reasons.append(
                f"the two sides of {report.name} have little in common (median cosine"
                f" {cosine:.2f}), so their difference is not an update"
            )
        if floor < ROUNDING:
            reasons.append(
                f"the delta of {report.name} is only {floor:.2g} times as large as rounding alone"
                " would make it"
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
    stands out of their rounding. Infinity is no bound.
    """
    kinds = []
    free = np.isinf(ceilings)
    if (free & np.isinf(held)).any():
        kinds.append("of full rank")
    if (merged := free & ~np.isinf(held)).any():
        kinds.append(f"of rank {held[merged].max():.0f} beyond rounding")
    kinds += [f"an adapter of rank {rank:.0f}" for rank in np.unique(ceilings[~free])]
    more = " or more" if len(kinds) > 2 else ""
    return " or ".join(kinds[:2]) + more


def _verdict(figures: Sequence[Difference]) -> ComparisonVerdict:
    """Concentration's own verdict, if two or more of the others, and most of them, agree."""
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
        return (
            f"{both} differ by less than the margin: concentration by {size}, with a margin of"
            f" {concentration.margin:g}; two runs of one regime can differ as much"
        )
    if verdict == "not distinguished":
        why = _why_not_distinguished(concentration, size)
        text = f"{both} are not distinguished: {why}"
        return text if concentration.difference is None else f"{text}; {UNSEEN}"
    if concentration.verdict in ("more concentrated", "less concentrated"):
        same, other = pointing[way] or "none", pointing[-way] or "none"
        return (
            f"mixed evidence: by concentration {than}{whose} ({size}); of the other four figures"
            f" {same} point the same way and {other} the other way"
        )
    more, less = pointing[1] or "none", pointing[-1] or "none"
    what = "below the margin" if way else "not distinguished"
    return (
        f"mixed evidence on {both}: the difference in concentration is {what}, but"
        f" {first.label} is more concentrated by {more}, and {second.label} by {less}"
    )


def _pointing(figures: Sequence[Difference], way: int) -> list[str]:
    """The voting figures that call the first report more (+1) or less (-1) concentrated."""
    titles = {figure.name: figure.title for figure in FIGURES}
    return [
        titles[figure.figure] for figure in figures if figure.direction and figure.points == way
    ]


def _why_not_distinguished(concentration: Difference, size: str) -> str:
    if concentration.difference is None:
        return "no matrix in a layer has a concentration in both"
    if concentration.no_interval:
        return concentration.no_interval
    return f"the spread of the difference in concentration ({size}) includes 0"


def _consistent_with(
    first: ComparedReport,
    second: ComparedReport,
    verdict: ComparisonVerdict,
    concentration: Difference,
) -> list[str]:
    """What would explain the verdict; never what did. Nothing where no concentration is known."""
    if concentration.difference is None:
        return []
    more_concentrated = {"more concentrated": first, "less concentrated": second}.get(verdict)
    if more_concentrated is not None:
        name = more_concentrated.name
        return [
            f"narrower data, data newer to the base or heavy repetition in {name}",
            "another optimiser or learning rate, or a merged adapter, on either side",
        ]
    if verdict in ("different, below the margin", "not distinguished"):
        return ["two runs of one regime", "regimes that differ by less than the margin"]
    return []


def _warn_of_relation(
    first: ComparedReport, second: ComparedReport, relation: Relation, how: str | None
) -> Iterator[str]:
    if relation == "different bases":
        yield f"the bases differ ({how}), so the difference may come from them"
    elif relation in ("consecutive stages", "one lineage"):
        yield (
            "these are steps of one lineage: they start from different weights, as each starts"
            " where the step before ended"
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
                f"{counted(unverified, 'matrix', 'matrices')} of {report.name} came as byte"
                " ranges, which no checksum covers"
            )
    dtypes = [matched[f"dtype_{side}"].fillna("") for side in SIDES]
    if (apart := dtypes[0] != dtypes[1]).any():
        left, right = (" and ".join(sorted(set(names[apart]))[:3]) for names in dtypes)
        yield (
            f"dtypes differ in {counted(int(apart.sum()), 'matrix', 'matrices')}: {left} in"
            f" {first.label}, {right} in {second.label}"
        )
    if concentration.level is not None and concentration.level < LEVEL:
        yield (
            f"with only {concentration.layers} layers a spread covers at most"
            f" {100 * concentration.level:.2g} %"
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
            f" {pd.Series(held[lower]).median():.0f} beyond rounding, {100 * min(shares):.2g} % of"
            " what is possible), like a merged adapter"
        )
    outside = (
        matched[matched["layer"].isna()].groupby("module")["concentration_difference"].median()
    )
    against = outside[outside * (concentration.difference or 0.0) < 0]
    beyond = sorted(against.index[against.abs() >= (concentration.margin or 0.0)])
    if concentration.verdict in OPPOSITE and beyond:
        labels = first.label, second.label
        sizes = and_list(
            [
                f"{name} ({against[name]:+.3f}{_energy_shares(matched, name, labels)})"
                for name in beyond
            ]
        )
        yield (
            "outside the layers, which do not count for the verdict, concentration differs the"
            f" other way: {sizes}"
        )
    for side, report in zip(SIDES, (first, second), strict=True):
        cosines = matched.groupby("module")[f"cosine_{side}"].median()
        if turned := sorted(cosines.index[cosines < LINEAGE]):
            has = "has" if len(turned) == 1 else "have"
            yield (
                f"{and_list(turned)} of {report.name} {has} little in common with the base's, as"
                " after a replacement or renumbering"
            )


def _energy_shares(matched: pd.DataFrame, module: str, labels: Sequence[str]) -> str:
    """`; 46 % of the energy of A, 12 % of B`: a module's share; empty where norms are not known."""
    energies = matched[[f"frobenius_norm_{side}" for side in SIDES]].astype(float) ** 2
    shares = energies[matched["module"] == module].sum() / energies.sum()
    if not shares.gt(0).all():
        return ""
    one, other = (f"{100 * share:.2g} % of" for share in shares)
    return f"; {one} the energy of {labels[0]}, {other} {labels[1]}"


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
