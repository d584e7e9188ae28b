"""Finished reports -> Comparison: whose delta is more concentrated, over the same matrices. Reads, prints nothing.

Two deltas are compared matrix by matrix, so that shape, place and base drop out of the difference. The median of the
paired differences comes with an interval over layers, a sign-flip test and a declared margin: two runs of one regime
differ "significantly" in every fourth case, by up to 0.021 in concentration, so an interval alone proves too much.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from shadow import __version__
from shadow.errors import ShadowError
from shadow.findings.bootstrap import LEVEL, blocks_of, interval_of_median, sign_flip_p
from shadow.findings.correlation import ScoredSet, score_reports
from shadow.findings.footprint import FULL_RANK, LINEAGE, ROUNDING
from shadow.findings.gains import MEASURED_BY_OTHERS
from shadow.findings.matching import PLACE, ComparedReport, Relation, match, read_report, relations, unmatched
from shadow.findings.scores import ScoreFiles
from shadow.places.names import name_rules
from shadow.reports.columns import COMPARISON

ComparisonVerdict = Literal[
    "more concentrated",
    "less concentrated",
    "different, below the margin",
    "not distinguished",
    "mixed evidence",
    "not comparable",
]

COMPARISON_SCHEMA = (
    1  # of what `--format json` prints and of the files of `-o`; raised when a field changes its meaning
)
MARGIN = 0.05  # of concentration: two seeds of one regime differed by at most 0.021, narrow and broad data by 0.12
MIN_AGREEING = 2  # of the four figures that vote beside concentration
FAR_NORMS = 3.0  # relative norms further apart are warned of: concentration falls as an update grows
MOST = 0.9  # share of a report's measured parameters that should be compared
MAX_REPORTS = 12
MAX_SCORED = 200  # reports of which scores are correlated
CLAIMS = {
    "measured": ["differences of the spectra of two deltas, paired over the same matrices"],
    "not_shown": [
        "whether two more runs would differ: the spread is over layers of these runs, not over training runs",
        "why they differ: optimiser, adapters, learning rate and novelty of the data move these figures as much as "
        "narrowness does",
        "what the models can or cannot do",
    ],
}
OPPOSITE: dict[ComparisonVerdict, ComparisonVerdict] = {
    "more concentrated": "less concentrated",
    "less concentrated": "more concentrated",
}


@dataclass(frozen=True)
class ComparedFigure:
    """A figure that two reports are compared by.

    Its value is columns[0], or columns[0] / columns[1]. Two values differ by first - second, or by ln(first / second)
    where scale is "log ratio". direction: +1 where more of it is more concentrated, -1 where less of it is; 0 does not
    vote. margin, for a margin M of concentration: "same" is M; "power" is M ln N with N the null participation ratio,
    because at an equal null a concentration M higher means N^M times fewer directions.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    scale: Literal["difference", "log ratio"]
    direction: int
    margin: Literal["same", "power"] | None


FIGURES = (
    ComparedFigure("concentration", "concentration", ("concentration",), "difference", 1, "same"),
    ComparedFigure("stable_rank", "stable rank", ("stable_rank",), "log ratio", -1, "power"),
    ComparedFigure("top4_energy", "top-4 energy", ("top4_energy",), "difference", 1, "same"),
    ComparedFigure(
        "participation_ratio_over_null",
        "PR / null PR",
        ("participation_ratio", "null_participation_ratio"),
        "log ratio",
        -1,
        "power",
    ),
    ComparedFigure("spike_energy", "spike energy", ("spike_energy",), "difference", 1, "same"),
    ComparedFigure("relative_norm", "relative norm", ("relative_norm",), "log ratio", 0, None),
)


@dataclass(frozen=True)
class Difference:
    """One figure of two reports, over the matrices in layers.

    cells are the matrices, the experts of one module and layer taken as one (their median), and layers how many layers
    they lie in. first and second are medians of the figure itself. difference is the median of the paired differences
    on the figure's scale; low and high bound it at the confidence that is level, or are null and no_interval says why.
    p_within_pair is two-sided, of sign flips by layer, and says nothing of other runs. margin is on the same scale.
    All are null where no matrix has the figure.
    """

    figure: str
    scale: str
    direction: int
    cells: int
    layers: int
    first: float | None
    second: float | None
    difference: float | None
    low: float | None
    high: float | None
    level: float | None
    no_interval: str | None
    p_within_pair: float | None
    margin: float | None
    verdict: ComparisonVerdict | None

    @property
    def points(self) -> int:
        """+1 where the interval lies wholly where the first is more concentrated, -1 where less, else 0."""
        if self.low is None or self.high is None:
            return 0
        return self.direction * ((self.low > 0) - (self.high < 0))


@dataclass(frozen=True)
class Contrast:
    """The first report against the second: every difference is first - second, or first / second.

    verified says how the two are known to share the weights that relation says they share: by commit, content or
    spectra. matched counts the matrices of both, unmatched those of one by reason. modules are medians over matrices,
    layers medians over cells. verdict is about the first; sentence says it in words. not_comparable are reasons why no
    verdict can be defended. rows are the matched matrices, one each, with the columns of diagnostics.COMPARISON.
    """

    first: str
    second: str
    relation: Relation
    verified: str | None
    matched: Mapping[str, int | float]
    unmatched: list[dict[str, Any]]
    figures: list[Difference]
    modules: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    verdict: ComparisonVerdict
    sentence: str
    consistent_with: list[str]
    not_comparable: list[str]
    warnings: list[str]
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """Two reports or more. contrasts has every pair of them, those with the first report first.

    ranking orders all by their median concentration over the matrices that every report has; empty for two.
    not_contrasted says why a set of which the scores are correlated has neither. scores are what others measured of the
    models, null where nobody gave any.
    """

    schema: int
    version: str
    margin: float
    reports: list[dict[str, Any]]
    contrasts: list[Contrast]
    ranking: list[dict[str, Any]]
    claims: Mapping[str, list[str]]
    not_contrasted: str | None = None
    scores: ScoredSet | None = None

    def as_json(self) -> dict[str, Any]:
        """For machines; the rows of single matrices are left to the Parquet file."""
        told = asdict(replace(self, contrasts=[replace(one, rows=[]) for one in self.contrasts], scores=None))
        for contrast in told["contrasts"]:
            del contrast["rows"]
        return told | {"scores": None if self.scores is None else self.scores.as_json()}

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for contrast in self.contrasts for row in contrast.rows]

    @property
    def provenance(self) -> dict[str, Any]:
        """What the Parquet file says of how it was made."""
        found = [
            {key: getattr(one, key) for key in ("first", "second", "relation", "verified", "verdict")}
            for one in self.contrasts
        ]
        told = {"schema": self.schema, "margin": self.margin, "reports": self.reports, "contrasts": found}
        return {"version": self.version, "comparison": told}


def compare(
    folders: Sequence[Path],
    *,
    margin: float = MARGIN,
    allow_different_base: bool = False,
    scores: ScoreFiles | None = None,
) -> Comparison:
    """Compare finished reports, every two of them.

    Raises ShadowError when one cannot be read, when two share no measured matrix, and when two rest on different
    bases, unless that is allowed. With scores, different bases and more than MAX_REPORTS are no fault: gains and
    concentrations of all are correlated, and matrices are not compared.
    """
    reports = [read_report(folder, report_label(index)) for index, folder in enumerate(folders)]
    told = [report.as_json() for report in reports]
    scored = score_reports(reports, scores)
    claims = CLAIMS
    if scored is not None:
        claims = CLAIMS | {"not_shown": [*CLAIMS["not_shown"], MEASURED_BY_OTHERS, *scored.not_shown]}
    if len(reports) > MAX_REPORTS:
        too_many = f"more than {MAX_REPORTS} reports are not compared matrix by matrix"
        return Comparison(COMPARISON_SCHEMA, __version__, margin, told, [], [], claims, too_many, scored)
    pairs = list(itertools.combinations(range(len(reports)), 2))
    related = relations(reports, pairs)
    if not allow_different_base:
        for (one, other), (relation, why) in related.items():
            if relation != "different bases":
                continue
            message = f"{reports[one].name} and {reports[other].name} have different bases: {why}"
            if scores is None:
                raise ShadowError(message, "compare models tuned from one base, or add --allow-different-base")
            message += "; not compared matrix by matrix without --allow-different-base"
            return Comparison(COMPARISON_SCHEMA, __version__, margin, told, [], [], claims, message, scored)
    contrasts = [contrast(reports[i], reports[j], *related[i, j], margin) for i, j in pairs]
    ranking = _ranking(reports, contrasts)
    return Comparison(COMPARISON_SCHEMA, __version__, margin, told, contrasts, ranking, claims, scores=scored)


def report_label(index: int) -> str:
    """A to Z, then AA, AB and on."""
    before, own = divmod(index, 26)
    return (report_label(before - 1) if before else "") + chr(ord("A") + own)


# From matched matrices to differences


def _with_differences(found: pd.DataFrame) -> pd.DataFrame:
    """Adds to matched deltas, for every figure, its two values (`name=1`, `name=2`) and their difference (`name`)."""
    added: dict[str, NDArray[np.float64]] = {}
    for figure in FIGURES:
        values = []
        for side in (1, 2):
            parts = [found[f"{column}|{side}"].to_numpy(float) for column in figure.columns]
            with np.errstate(all="ignore"):
                values.append(parts[0] / parts[1] if len(parts) == 2 else parts[0])
        with np.errstate(all="ignore"):
            first, second = (np.log(value) for value in values) if figure.scale == "log ratio" else values
            apart = first - second
        added |= {f"{figure.name}=1": values[0], f"{figure.name}=2": values[1], figure.name: apart}
    with np.errstate(all="ignore"):
        nulls = [found[f"null_participation_ratio|{side}"].to_numpy(float) for side in (1, 2)]
        added["null"] = np.log(nulls[0]) / 2 + np.log(nulls[1]) / 2
    added = {name: np.where(np.isfinite(values), values, np.nan) for name, values in added.items()}
    return pd.concat([found, pd.DataFrame(added, index=found.index)], axis=1)


def _cells(found: pd.DataFrame) -> pd.DataFrame:
    """The matrices inside layers, the experts of one module and layer as one, by the median of every column."""
    inside = found[found["layer"] >= 0]
    one = inside["slot"].where(inside["expert"] < 0, "")  # a number has nothing to do with what an expert does
    names = [f"{figure.name}{suffix}" for figure in FIGURES for suffix in ("=1", "=2", "")]
    keys = ["component", "layer", "module", "cell"]
    cells: pd.DataFrame = inside.assign(cell=one).groupby(keys, sort=True)[[*names, "null"]].median().reset_index()
    return cells


def difference(figure: ComparedFigure, cells: pd.DataFrame, margin: float) -> Difference:
    """The difference of one figure over cells that lie in layers; margin is that of concentration. See Difference."""
    known = cells[cells[figure.name].notna()]
    by_layer = known.groupby(["component", "layer"])
    found = interval_of_median(known[figure.name], blocks_of(known["component"].tolist(), known["layer"]))
    low, high = found.bounds or (None, None)
    apart = number(known[figure.name].median())
    if figure.margin == "power":
        asked = number(margin * known["null"].median())
    else:
        asked = margin if figure.margin == "same" else None
    return Difference(
        figure=figure.name,
        scale=figure.scale,
        direction=figure.direction,
        cells=len(known),
        layers=by_layer.ngroups,
        first=number(known[f"{figure.name}=1"].median()),
        second=number(known[f"{figure.name}=2"].median()),
        difference=apart,
        low=low,
        high=high,
        level=found.level,
        no_interval=found.reason,
        p_within_pair=sign_flip_p(by_layer[figure.name].median().to_numpy(float)),
        margin=asked,
        verdict=_figure_verdict(figure, apart, low, high, asked),
    )


def _figure_verdict(
    figure: ComparedFigure, apart: float | None, low: float | None, high: float | None, margin: float | None
) -> ComparisonVerdict | None:
    """What one figure says: a direction only if 0 is outside the interval and the margin is reached."""
    if not figure.direction:
        return None
    if apart is None or low is None or high is None or low <= 0 <= high:
        return "not distinguished"
    if margin is None or abs(apart) < margin:
        return "different, below the margin"
    return "more concentrated" if apart * figure.direction > 0 else "less concentrated"


def number(value: float) -> float | None:
    """Null instead of NaN or infinity."""
    return float(value) if math.isfinite(value) else None


# One pair of reports


def contrast(
    first: ComparedReport, second: ComparedReport, relation: Relation, how: str | None, margin: float
) -> Contrast:
    """The first report against the second. Raises ShadowError when they share no measured matrix."""
    by_base = relation in ("the same pair", "one base") and how in ("commit", "content")
    matched = match(first.subject("delta"), second.subject("delta"), by_base=by_base)
    if matched.empty:
        raise ShadowError(
            f"{first.name} and {second.name} have no changed matrix of one place and shape in common",
            "audit both without filters, and see `shadow show` for what is identical or skipped",
        )
    found = _with_differences(matched)
    cells = _cells(found)
    figures = [difference(figure, cells, margin) for figure in FIGURES]
    counts = _counts(first, second, found, cells)
    fatal = _not_comparable(first, second, found[found["layer"] >= 0])
    if fatal:
        figures = [replace(one, verdict="not comparable" if one.direction else None) for one in figures]
    verdict = "not comparable" if fatal else _verdict(figures)
    different = relation == "different bases"
    return Contrast(
        first=first.label,
        second=second.label,
        relation=relation,
        verified=None if different else how,
        matched=counts,
        unmatched=unmatched(first, second, found),
        figures=figures,
        modules=_by_module(found),
        layers=_by_layer(cells),
        verdict=verdict,
        sentence=_sentence(first, second, verdict, figures, fatal, different),
        consistent_with=_consistent_with(first, second, verdict),
        not_comparable=fatal,
        warnings=_warnings(first, second, relation, how, found, counts, figures),
        rows=_rows(first, second, found),
    )


def _counts(
    first: ComparedReport, second: ComparedReport, found: pd.DataFrame, cells: pd.DataFrame
) -> dict[str, int | float]:
    """What is compared: matrices, how many of them lie in layers and so have a vote, and their share of each report."""
    parameters = int((found["rows"] * found["cols"]).sum())
    shares = [parameters / max(int(one.subject("delta")["parameters"].sum()), 1) for one in (first, second)]
    return {
        "matrices": len(found),
        "in_layers": int((found["layer"] >= 0).sum()),
        "cells": len(cells),
        "layers": cells.groupby(["component", "layer"]).ngroups,
        "parameters": parameters,
        "share_of_first": min(shares[0], 1.0),
        "share_of_second": min(shares[1], 1.0),
    }


def _not_comparable(first: ComparedReport, second: ComparedReport, voting: pd.DataFrame) -> list[str]:
    """Why a verdict on these two could not be defended, whatever the figures say.

    Each of these moves concentration by more than data do: a low rank by 0.4 of 0.15, rounding takes it to 0, and the
    difference of two unrelated models is no update.
    """
    reasons = []
    ceilings = voting[["rank_ceiling|1", "rank_ceiling|2"]].to_numpy()
    if (apart := ceilings[:, 0] != ceilings[:, 1]).any():
        kinds = [_ceiling(ceilings[apart, side]) for side in (0, 1)]
        reasons.append(
            f"{first.name} is {kinds[0]} and {second.name} {kinds[1]} (in {apart.sum()} matrices), and the rank that "
            "an update may have decides how many directions hold it"
        )
    for side, report in ((1, first), (2, second)):
        cosine, floor = voting[f"cosine|{side}"].median(), voting[f"floor_ratio|{side}"].median()
        if cosine < LINEAGE:
            reasons.append(
                f"the two sides of {report.name} have little in common (median cosine {cosine:.2f}): their difference "
                "is no update"
            )
        if floor < ROUNDING:
            reasons.append(
                f"the delta of {report.name} is mostly rounding ({floor:.1f} times what storage alone would leave)"
            )
    return reasons


def _ceiling(ranks: NDArray[np.int64]) -> str:
    known = sorted({int(rank) for rank in ranks})
    words = ["of full rank" if rank < 0 else f"an adapter of rank {rank}" for rank in known[:2]]
    return " or ".join(words) + (" or more" if len(known) > 2 else "")


def _verdict(figures: Sequence[Difference]) -> ComparisonVerdict:
    """Concentration's own verdict, if at least two of the other four point its way, and more than point the other."""
    own, others = figures[0], [one for one in figures[1:] if one.direction]
    if own.verdict in ("more concentrated", "less concentrated"):
        agree, oppose = (sum(one.points == way * own.points for one in others) for way in (1, -1))
        return own.verdict if agree >= MIN_AGREEING and agree > oppose else "mixed evidence"
    beyond = sum(one.verdict in ("more concentrated", "less concentrated") for one in others)
    return "mixed evidence" if beyond >= MIN_AGREEING or own.verdict is None else own.verdict


def _sentence(
    first: ComparedReport,
    second: ComparedReport,
    verdict: ComparisonVerdict,
    figures: Sequence[Difference],
    fatal: Sequence[str],
    different: bool,
) -> str:
    """The verdict in words."""
    if fatal:
        return f"not comparable: {'; '.join(fatal)}"
    own = figures[0]
    titles = {figure.name: figure.title for figure in FIGURES}
    others = {one.figure: one.points for one in figures[1:] if one.direction}
    pointing = {way: _listed([titles[name] for name, points in others.items() if points == way]) for way in (1, -1)}
    size = "" if own.difference is None else f"{own.difference:+.3f}"
    than = f"{first.name} is {own.verdict} than {second.name}"
    whose = ", from different bases," if different else ""
    if verdict in ("more concentrated", "less concentrated"):
        against = f"; {pointing[-own.points]} the other way" if pointing[-own.points] else ""
        text = f"{than}{whose}: concentration differs by {size}, beyond the margin of {own.margin:g}"
        return f"{text}; {pointing[own.points]} point the same way{against}"
    both = f"{first.name} and {second.name}{whose}"
    if verdict == "different, below the margin":
        least = f"less than the margin of {own.margin:g}"
        return (
            f"{both} differ, below the margin: concentration by {size}, {least}; two runs of one regime may do as much"
        )
    if verdict == "not distinguished":
        if own.difference is None:
            why = "no matrix in a layer has a concentration in both"
        elif own.no_interval:
            why = own.no_interval
        else:
            why = f"0 lies in the interval of the difference in concentration ({size})"
        return f"{both} are not distinguished: {why}"
    if own.verdict in ("more concentrated", "less concentrated"):
        same, other = pointing[own.points] or "none", pointing[-own.points] or "none"
        return (
            f"mixed evidence: by concentration {than}{whose} ({size}), but of the other four figures {same} point the "
            f"same way and {other} the other way"
        )
    more, less = pointing[1] or "none", pointing[-1] or "none"
    what = "below the margin" if own.points else "not distinguished"
    return (
        f"mixed evidence on {both}: the difference in concentration is {what}, but by {more} {first.label} is more "
        f"concentrated, and by {less} {second.label}"
    )


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def _consistent_with(first: ComparedReport, second: ComparedReport, verdict: ComparisonVerdict) -> list[str]:
    """What would explain the verdict; never what did."""
    if verdict in ("more concentrated", "less concentrated"):
        more = first if verdict == "more concentrated" else second
        return [
            f"narrower data, data newer to its base or heavy repetition behind {more.name}",
            "another optimiser or learning rate, or an adapter that was merged, on either side",
        ]
    if verdict in ("different, below the margin", "not distinguished"):
        return ["two runs of one regime", "regimes that differ by less than the margin can show"]
    return []


def _warnings(
    first: ComparedReport,
    second: ComparedReport,
    relation: Relation,
    how: str | None,
    found: pd.DataFrame,
    counts: Mapping[str, int | float],
    figures: Sequence[Difference],
) -> list[str]:
    """What makes the comparison doubtful, though not void."""
    return [
        *_warn_of_relation(first, second, relation, how),
        *settings_apart(first, second),
        *_warn_of_coverage(first, second, found, counts, figures[0]),
        *_warn_of_deltas(first, second, found, figures[0], figures[-1]),
    ]


def _warn_of_relation(
    first: ComparedReport, second: ComparedReport, relation: Relation, how: str | None
) -> Iterator[str]:
    if relation == "different bases":
        yield f"the bases differ ({how}), so the difference may be theirs"
    elif relation in ("consecutive stages", "one lineage"):
        yield "these are steps of one lineage and start from different weights, the later step where the earlier ended"
    elif relation == "the same pair":
        yield "both reports are of the same pair of checkpoints"
    for report in (first, second):
        if report.setting("relation") == "sibling":
            yield f"{report.name} is a pair of siblings: neither side was tuned from the other"


def settings_apart(first: ComparedReport, second: ComparedReport) -> Iterator[str]:
    """How the making of two reports differs."""
    one, two = (report.metadata["version"] for report in (first, second))
    if one != two:
        yield f"made by different versions of shadow: {first.label} by {one}, {second.label} by {two}"
    for name, keys in (("precision", ("method", "precision")), ("nulls", ("method", "nulls"))):
        one, two = (report.setting(*keys) for report in (first, second))
        if one != two:
            also = "; no figure here rests on it" if name == "nulls" else ""
            yield f"measured with different settings: --{name} {one} in {first.label}, {two} in {second.label}{also}"
    one, two = (report.setting("device") or "cpu" for report in (first, second))
    if one != two:
        yield f"measured with different settings: --device {one} in {first.label}, {two} in {second.label}"
    if first.setting("chosen") != second.setting("chosen"):
        yield "the audits were filtered differently (--component, --layer, --module): what both measured is compared"


def _warn_of_coverage(
    first: ComparedReport,
    second: ComparedReport,
    found: pd.DataFrame,
    counts: Mapping[str, int | float],
    own: Difference,
) -> Iterator[str]:
    for report, share in ((first, counts["share_of_first"]), (second, counts["share_of_second"])):
        if share < MOST:
            yield f"only {100 * share:.0f} % of the changed parameters of {report.name} are compared"
    for side, report in ((1, first), (2, second)):
        if unverified := int((found[f"verified|{side}"] == False).sum()):  # noqa: E712 - null is not False here
            yield f"{unverified} matrices of {report.name} came as byte ranges, which no checksum covers"
    types = [found[f"dtype|{side}"] for side in (1, 2)]
    if (apart := types[0] != types[1]).any():
        one, two = (" and ".join(sorted(set(types[side][apart]))[:3]) for side in (0, 1))
        yield f"{apart.sum()} matrices are stored in different dtypes: {one} in {first.label}, {two} in {second.label}"
    if own.level is not None and own.level < LEVEL:
        yield (
            f"only {own.layers} layers: no spread over them covers more than {100 * own.level:.3g} %, and p cannot "
            f"be below {2.0 ** (1 - own.layers):.3g}"
        )


def _warn_of_deltas(
    first: ComparedReport, second: ComparedReport, found: pd.DataFrame, own: Difference, norm: Difference
) -> Iterator[str]:
    if norm.difference is not None and abs(norm.difference) > math.log(FAR_NORMS):
        large, small = (first, second) if norm.difference > 0 else (second, first)
        yield (
            f"relative to its base, the update of {large.name} is {math.exp(abs(norm.difference)):.2g} times as large "
            f"as that of {small.name}: concentration falls as an update grows"
        )
    short = found[["rows", "cols"]].min(axis=1)
    ranks = [(found[f"numerical_rank|{side}"] / short).median() for side in (1, 2)]
    if min(ranks) < FULL_RANK <= max(ranks):
        low = (first, second)[ranks.index(min(ranks))]
        yield (
            f"only the deltas of {low.name} are of low rank ({100 * min(ranks):.2g} % of what is possible): an adapter "
            "that was merged, perhaps"
        )
    outside = found[found["layer"] < 0].groupby("module")["concentration"].median()
    against = outside[outside * (own.difference or 0.0) < 0]
    if own.verdict in OPPOSITE and (names := sorted(against.index[against.abs() >= (own.margin or 0.0)])):
        sizes = _listed([f"{name} ({against[name]:+.3f})" for name in names])
        yield f"outside the layers, where no vote is taken, the other way is found: concentration of {sizes}"
    for side, report in ((1, first), (2, second)):
        turned = found.groupby("module")[f"cosine|{side}"].median()
        if names := sorted(turned.index[turned < LINEAGE]):
            yield f"{_listed(names)} of {report.name}: little in common with the base's; replaced, or renumbered?"


def _by_module(found: pd.DataFrame) -> list[dict[str, Any]]:
    """Medians of the differences over matrices, those outside layers too, in the order of names.yaml."""
    rows = [
        {
            "component": component,
            "module": module,
            "matrices": len(group),
            "concentration_first": number(group["concentration=1"].median()),
            "concentration_second": number(group["concentration=2"].median()),
            **{figure.name: number(group[figure.name].median()) for figure in FIGURES},
        }
        for (component, module), group in found.groupby(["component", "module"])
    ]
    rules = name_rules()
    return sorted(
        rows, key=lambda row: (_rank(row["component"], rules.components), _rank(row["module"], rules.modules))
    )


def _by_layer(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Medians of the differences over the cells of each layer."""
    rows = [
        {
            "component": component,
            "layer": int(group["layer"].iloc[0]),
            "cells": len(group),
            **{figure.name: number(group[figure.name].median()) for figure in FIGURES},
        }
        for (component, _), group in cells.groupby(["component", "layer"])
    ]
    return sorted(rows, key=lambda row: (_rank(row["component"], name_rules().components), row["layer"]))


def _rank(name: str, known: Sequence[str]) -> tuple[int, str]:
    """Sorts as known has it; a word that this version does not know comes last."""
    return (known.index(name), "") if name in known else (len(known), name)


def _rows(first: ComparedReport, second: ComparedReport, found: pd.DataFrame) -> list[dict[str, Any]]:
    """The matched matrices with the columns of diagnostics.COMPARISON."""
    told = pd.DataFrame({"first": first.label, "second": second.label}, index=found.index)
    for name in (*PLACE, "rows", "cols"):
        told[name] = found[name]
    for side, which in ((1, "first"), (2, "second")):
        told[f"tensor_{which}"] = found[f"tensor|{side}"]
        for figure in FIGURES:
            for column in figure.columns:
                told[f"{column}_{which}"] = found[f"{column}|{side}"]
    for figure in FIGURES:
        told[f"{figure.name}_difference"] = found[figure.name]
    told["votes"] = found["layer"] >= 0
    rows = told[[column.name for column in COMPARISON]].to_dict("records")
    return [{str(name): _null(str(name), value) for name, value in row.items()} for row in rows]


def _null(name: str, value: Any) -> Any:
    missing = value == -1 if name in ("layer", "expert") else isinstance(value, float) and math.isnan(value)
    return None if missing else value


def _ranking(reports: Sequence[ComparedReport], contrasts: Sequence[Contrast]) -> list[dict[str, Any]]:
    """All reports by median concentration over the cells that every one has, the most concentrated first.

    to_next is what the contrast of a report with the next one says of it.
    """
    if len(reports) < 3:
        return []
    keys = ["component", "layer", "module", "expert", "tensor_first"]
    shared: pd.DataFrame | None = None
    for one in contrasts[: len(reports) - 1]:
        rows = pd.DataFrame([row for row in one.rows if row["votes"]], columns=[column.name for column in COMPARISON])
        own = rows.assign(expert=pd.to_numeric(rows["expert"]).fillna(-1)).set_index(keys)
        values = own[["concentration_first", "concentration_second"]].set_axis([one.first, one.second], axis=1)
        shared = values if shared is None else shared.join(values[[one.second]], how="inner")
    assert shared is not None
    places = shared.reset_index()
    cell = places["tensor_first"].where(places["expert"] < 0, "")
    medians = (
        shared.reset_index(drop=True).groupby([places["component"], places["layer"], places["module"], cell]).median()
    )
    typical = {label: number(medians[label].median()) for label in shared.columns}
    ordered = sorted(typical, key=lambda label: (typical[label] is None, -(typical[label] or 0.0), label))
    verdicts = {(one.first, one.second): one.verdict for one in contrasts}
    verdicts |= {(one.second, one.first): OPPOSITE.get(one.verdict, one.verdict) for one in contrasts}
    return [
        {
            "rank": rank,
            "label": label,
            "concentration": typical[label],
            "cells": len(medians),
            "to_next": verdicts[label, ordered[rank]] if rank < len(ordered) else None,
        }
        for rank, label in enumerate(ordered, 1)
    ]
