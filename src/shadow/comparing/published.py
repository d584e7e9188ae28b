"""Figures of released pairs that others published: does an audit of one agree, and where does
another pair lie.

`registry/reference/published.csv` has 52 pairs as modeldelta measured them (MIT, Nikolay Yudin,
2026), and `published.md` beside it their source, licence and definitions. Nothing of it is a
verdict. Families are counted and not pairs, as pairs of one base are not independent: all models
that come from one base are a family, a value of it is the median of its pairs, and a pair's own
family is left out. There are fewer than 20 families, so a place is a rank among them and never a
percentile. Models of one vendor that differ in size are families of their own, and alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, median
from typing import TYPE_CHECKING

import numpy as np
from pyarrow.csv import read_csv

from shadow.files import registry_folder
from shadow.quantities import text_of
from shadow.summary.numbers import Floats, are
from shadow.summary.rows import PublishedCheck, PublishedFigures, PublishedPair, PublishedPlace
from shadow.text import counted

if TYPE_CHECKING:
    from shadow.reports.metadata import ReportMetadata
    from shadow.summary.columns import Columns

SOURCE = "modeldelta, github.com/nick-yudin/modeldelta, paper/final_table_paper.csv, 2026"
SMALLEST = 1000  # entries of a tensor, below which modeldelta leaves it out
# both tools were run on one released pair, and no figure differed by more than 2e-4: five times
# that
TOLERANCE = 1e-3  # of the published figure; of a cosine as it is
LAST_DIGIT = 5e-7  # half a unit of the last digit that is published
WITHIN = 3.0  # pairs whose relative norm is within this factor are of about the size of another
# short side of the smallest published model: energy in 20 directions says other things below it
NARROWEST = 896
# where the table begins with a model that was itself made from another; by the model cards of both
ORIGINS = {
    "allenai/Llama-3.1-Tulu-3-8B-SFT": "meta-llama/Llama-3.1-8B",
    "meta-llama/Llama-3.1-70B-Instruct": "meta-llama/Llama-3.1-70B",
    "Qwen/Qwen2.5-Math-1.5B": "Qwen/Qwen2.5-1.5B",
}
# reasons: their norm is not known
UNKNOWN = ("quantized", "unknown_dtype", "nonfinite", "unreadable")
DEFINITIONS = {
    "mean_relative_norm": (
        "mean of norm(tuned - base) / norm(base) over the tensors that both sides have under one "
        f"name and in one shape, of {SMALLEST:,} entries or more: norms and biases too"
    ),
    "mean_cosine": "mean of the cosine of base and tuned over the same tensors",
    "mean_top20_energy": (
        "mean of the share of the energy of tuned - base in its 20 largest singular values, over "
        "those of two dimensions that changed"
    ),
    "oq_ratio": (
        "mean over layers of the relative norm of the weights attn.o, over the same mean of attn.q"
        " (of attn.qkv where that is stored fused)"
    ),
}


@dataclass(frozen=True)
class Released:
    """A pair of the table. Figures are those of DEFINITIONS, None where they were not published."""

    base: str
    tuned: str
    mean_relative_norm: float | None
    """Over the tensors of one name and shape, above 0."""
    mean_cosine: float | None
    """Over the same tensors, -1 to 1."""
    mean_top20_energy: float | None
    """Over those with two dimensions that changed, 0 to 1."""
    oq_ratio: float
    """The mean relative norm of attn.o over that of attn.q, above 0."""
    modules: int | None
    """How many tensors the means are over."""
    modules_with_spectrum: int | None


@lru_cache
def released() -> tuple[Released, ...]:
    """The shipped table, in its order."""
    rows = read_csv(registry_folder() / "reference" / "published.csv").to_pylist()
    return tuple(Released(**row) for row in rows)


def family_of(repo: str, table: Iterable[Released]) -> str:
    """The base that a model comes from, in lower case, as far as the table and ORIGINS tell; itself
    where they do not.

    Stages follow one another: of OLMo-2-7B, base -> SFT -> DPO -> Instruct, all are of the family
    of the base.
    """
    parents = {tuned.lower(): base.lower() for tuned, base in ORIGINS.items()}
    parents |= {pair.tuned.lower(): pair.base.lower() for pair in table}
    ancestor = repo.lower()
    seen = {ancestor}
    while (parent := parents.get(ancestor)) is not None and parent not in seen:
        ancestor = parent
        seen.add(ancestor)
    return ancestor


def published_figures(
    tensors: Columns, deltas: Columns, metadata: ReportMetadata, unrelated: bool
) -> PublishedFigures:
    """What the published figures say of a report.

    tensors: the rows of tensors.parquet. deltas: those of deltas in matrices.parquet.
    metadata: what Identity has. unrelated: whether the report's lineage gate failed.
    """
    table = released()
    base, tuned = metadata["base"]["repo"], metadata["tuned"]["repo"]
    fault = _not_whole(tensors, metadata)
    published = find(table, base, tuned)
    paired = _paired(tensors)
    no_size = fault or _no_pair(metadata, unrelated) or _no_norm(paired)
    no_top20 = no_size or _no_top20(deltas)
    families = {family_of(base, table), family_of(tuned, table)}
    others = [pair for pair in table if family_of(pair.base, table) not in families]
    size = top20 = None
    norm = mean_relative_norm(paired)
    if no_size is None and norm is not None:
        size = place("mean_relative_norm", norm, others)
        if no_top20 is None:
            near = [pair for pair in others if _is_near(pair, norm)]
            top20 = place("mean_top20_energy", fmean(deltas["top20_energy"]), near)
            if top20 is None:
                no_top20 = "no other family has a pair of about its size"
    pair = None
    if published is not None:
        pair = _agreement(published, tensors, deltas=deltas, fault=fault)
    return PublishedFigures(
        source=SOURCE,
        pair=pair,
        size=size,
        no_size=no_size,
        top20=top20,
        no_top20=no_top20,
        within=WITHIN,
    )


def find(table: Iterable[Released], base: str, tuned: str) -> Released | None:
    """The published pair of two repositories, their names in any case; None where there is none."""
    names = base.lower(), tuned.lower()
    return next((pair for pair in table if (pair.base.lower(), pair.tuned.lower()) == names), None)


def _not_whole(tensors: Columns, metadata: ReportMetadata) -> str | None:
    """Why means over a report's tensors are not those of the whole pair; None where they are."""
    chosen = metadata["settings"].get("chosen") or {}
    if any(chosen.get(name) for name in ("components", "layers", "modules")):
        return "only a part of the pair was audited"
    missing = are(tensors["reason"], *UNKNOWN) & are(tensors["status"], "skipped")
    if not missing.any():
        return None
    return f"{int(missing.sum())} tensors could not be measured"


def _no_pair(metadata: ReportMetadata, unrelated: bool) -> str | None:
    if metadata["settings"].get("relation") == "sibling":
        return "neither side was trained from the other"
    if unrelated:
        return "the two sides are not of one lineage"
    return None


def _no_norm(paired: Columns) -> str | None:
    if not len(paired):
        return f"no tensor of {SMALLEST:,} entries or more has a partner"
    if not (paired["relative_norm"] > 0).any():
        return "nothing changed"
    return None


def _paired(tensors: Columns) -> Columns:
    """The base's large tensors that were compared whole, whatever their partner is called.

    What an adapter leaves alone has no relative norm in the report, and did not move: with it an
    adapter and the same adapter merged have one mean.
    """
    base = tensors.where(are(tensors["side"], "base"))
    norms = base["relative_norm"]
    norms = np.where(are(base["status"], "identical") & np.isnan(norms), 0.0, norms)
    whole = ~np.isnan(norms) & (base.sizes >= SMALLEST) & (base["compared"] == base.sizes)
    return base.added(relative_norm=norms).where(whole.astype(np.bool_))


def _of_one_name(tensors: Columns) -> Columns:
    """The tensors that both sides have under one name and in one shape, of SMALLEST entries or
    more: modeldelta's.
    """
    base, tuned = (tensors.where(are(tensors["side"], side)) for side in ("base", "tuned"))
    shapes = dict(tuned.each("tensor", "shape"))
    places = enumerate(base.each("tensor", "shape"))
    return base.where(
        [
            at
            for at, (name, shape) in places
            if shapes.get(name) == shape and math.prod(shape) >= SMALLEST
        ]
    )


def mean_relative_norm(tensors: Columns) -> float | None:
    """The mean over tensors; null where one has none, as of a base that is 0."""
    return _mean_of_all(tensors["relative_norm"])


def _mean_of_all(values: Floats) -> float | None:
    """The mean; None where a value is missing, or where there is none."""
    if not len(values) or np.isnan(values).any():
        return None
    return fmean(values)


def oq_ratio(tensors: Columns) -> float | None:
    """Mean over layers of the relative norm of attn.o over that of attn.q, weights alone; null
    where either is absent.

    Of a fused attn.qkv where that is stored, as modeldelta has it.
    """
    weights = tensors.where(tensors.are_matrices).of("language").inside
    above, query, fused = (
        mean_relative_norm(weights.where(are(weights["module"], module)))
        for module in ("attn.o", "attn.q", "attn.qkv")
    )
    below = query if query is not None else fused
    if above is None or not below:
        return None
    return above / below


def mean_cosine(tensors: Columns, deltas: Columns) -> tuple[float, float] | None:
    """The least and the most that the mean cosine over tensors can be.

    A report has the cosine of every matrix that changed; a tensor that is identical has 1, and a
    vector whose relative norm is r at least sqrt(1 - r^2), from 1 on -1. None where a matrix is
    stored in parts.
    """
    cosines = dict(deltas.each("base_tensor", "cosine"))
    if np.isnan(tensors["relative_norm"]).any():
        return None
    least, most = [], []
    for name, shape, norm in tensors.each("tensor", "shape", "relative_norm"):
        if norm > 0 and len(shape) > 1:
            cosine = cosines.get(name, math.nan)
            least.append(cosine)
            most.append(cosine)
            continue
        most.append(1.0)
        if norm < 1:
            least.append(math.sqrt(1 - norm * norm))
        else:
            least.append(-1.0)
    bounds = fmean(least), fmean(most)
    if math.isnan(bounds[0]):
        return None
    return bounds


def _no_top20(deltas: Columns) -> str | None:
    """Why the energy in 20 directions is not held against the table's; None where it is."""
    unknown = np.isnan(deltas["top20_energy"])
    if unknown.all():
        return "top20_energy is not in the report, or nothing changed"
    if unknown.any():
        return "a matrix has no top20_energy"
    if _has_parts(deltas):
        return "matrices that are stored as one were measured apart"
    inside = deltas.inside
    if not len(inside):
        return "no matrix inside a layer changed"
    if np.median(np.fmin(inside["rows"], inside["cols"])) < NARROWEST:
        return f"its matrices are smaller than the {NARROWEST} of the smallest model there"
    return None


def _has_parts(deltas: Columns) -> bool:
    """Whether a tensor was cut into several matrices: a fused projection, a stack of experts."""
    names = deltas["base_tensor"].tolist()
    return len(set(names)) < len(names)


def _is_near(pair: Released, norm: float) -> bool:
    """Whether the published mean relative norm of a pair is about as large."""
    if pair.mean_relative_norm is None:
        return False
    return norm / WITHIN <= pair.mean_relative_norm <= norm * WITHIN


def place(figure: str, value: float, others: Iterable[Released]) -> PublishedPlace | None:
    """The rank of a value among families, each with its pairs' median; None where there is none."""
    table = released()
    families: dict[str, list[float]] = {}
    for pair in others:
        if (known := getattr(pair, figure)) is not None:
            families.setdefault(family_of(pair.base, table), []).append(known)
    if not families:
        return None
    medians = [median(values) for values in families.values()]
    return PublishedPlace(
        value=value,
        below=sum(median < value for median in medians),
        families=len(medians),
        pairs=sum(len(values) for values in families.values()),
        least=min(medians),
        most=max(medians),
    )


def _agreement(
    published: Released, tensors: Columns, deltas: Columns, fault: str | None
) -> PublishedPair:
    """Every published figure of a pair beside ours, where both are of the same tensors."""
    named = _of_one_name(tensors)
    whole = fault or _other_count(len(named), published.modules, "tensors of one name and shape")
    matrices = named.where(named.are_matrices)
    names = set(matrices["tensor"])
    changed = deltas.where([i for i, name in enumerate(deltas["base_tensor"]) if name in names])
    spectra = whole or _other_count(
        len(matrices), published.modules_with_spectrum, "of them with two dimensions"
    )
    if spectra is None and _has_parts(changed):
        spectra = "stored there as one, measured here apart: fused projections or stacked experts"
    middle, slack, no_cosine = None, 0.0, spectra
    if whole is None and (cosines := mean_cosine(named, changed)) is not None:
        middle = sum(cosines) / 2
        slack = (cosines[1] - cosines[0]) / 2
    if no_cosine is None and slack > TOLERANCE:
        no_cosine = (
            "the cosines of vectors, which a report does not have, could move it by more than the"
            " tolerance"
        )
    top20 = _mean_of_all(changed["top20_energy"])
    checks = [
        _check("mean_relative_norm", published, fault=whole, ours=mean_relative_norm(named)),
        _check(
            "mean_cosine",
            published,
            fault=no_cosine,
            ours=middle,
            tolerance=TOLERANCE + LAST_DIGIT + slack,
        ),
        _check("mean_top20_energy", published, fault=spectra, ours=top20),
        _check("oq_ratio", published, fault=fault, ours=oq_ratio(named)),
    ]
    known = [check for check in checks if check is not None]
    compared = [check.agrees for check in known if check.agrees is not None]
    return PublishedPair(
        base=published.base,
        tuned=published.tuned,
        agrees=all(compared) if compared else None,
        checks=known,
    )


def _other_count(ours: int, theirs: int | None, what: str) -> str | None:
    """Why two counts are not of the same tensors; None where they may be."""
    if theirs is None or ours == theirs:
        return None
    return f"{theirs} {what} there, {ours} here"


def _check(
    figure: str,
    published: Released,
    fault: str | None,
    ours: float | None,
    tolerance: float | None = None,
) -> PublishedCheck | None:
    """One figure; None where it was not published. fault: why it cannot be compared."""
    theirs = getattr(published, figure)
    if theirs is None:
        return None
    if tolerance is None:
        tolerance = TOLERANCE * theirs + LAST_DIGIT
    if fault is None and ours is None:
        fault = "the report does not have it"
    if fault is not None:
        ours = None
    agrees = None
    if ours is not None:
        agrees = abs(ours - theirs) <= tolerance
    return PublishedCheck(
        figure=figure,
        published=theirs,
        ours=ours,
        tolerance=tolerance,
        agrees=agrees,
        reason=fault,
    )


WORDS = {
    "mean_relative_norm": "mean relative norm",
    "mean_cosine": "mean cosine",
    "mean_top20_energy": "mean top-20 energy",
    "oq_ratio": "o/q ratio",
}


def context_sentence(
    figures_of_others: PublishedFigures,
) -> tuple[str, dict[str, float | int]] | None:
    """What is to be said of the published figures, and its numbers by their place in summary.json;
    None: nothing.
    """
    if figures_of_others.pair is not None and figures_of_others.pair.agrees is not None:
        return _of_pair(figures_of_others.pair)
    if figures_of_others.size is None:
        return None
    size = figures_of_others.size
    which = "published"
    if figures_of_others.pair is not None:  # the pair is a published one itself
        which = "other published"
    families = counted(size.families, f"{which} family", f"{which} families")
    text = (
        f"The mean relative norm of a tensor is {text_of(size.value, 'share')}, {_beside(size)}"
        f" {families} ({_range(size)})."
    )
    figures = _numbers("published.size", size)
    if figures_of_others.top20 is not None:
        top20 = figures_of_others.top20
        near = counted(top20.families, "published family", "published families")
        text += (
            f" The first 20 directions hold {text_of(top20.value, 'share')} of a matrix's change,"
            f" {_beside(top20)} {near} with changes of similar relative norm ({_range(top20)})."
        )
        figures |= _numbers("published.top20", top20)
    return text, figures


def _range(place: PublishedPlace) -> str:
    """`9.4 % to 22 %`; one value where the ends are written alike."""
    least, most = text_of(place.least, "share"), text_of(place.most, "share")
    if least == most:
        return least
    return f"{least} to {most}"


def _beside(place: PublishedPlace) -> str:
    """How a value lies among those of families, before their number: `more than in any of`, `more
    than in 5 of`.
    """
    among = "the" if place.families == 1 else "any of"
    if place.value < place.least:
        return f"less than in {among}"
    if not place.below:  # as little as in one of them
        return f"no more than in {among}"
    if place.below == place.families:
        return f"more than in {among}"
    return f"more than in {place.below} of"


def _numbers(where: str, place: PublishedPlace) -> dict[str, float | int]:
    return {
        f"{where}.{name}": getattr(place, name)
        for name in ("value", "below", "families", "least", "most")
    }


def _of_pair(pair: PublishedPair) -> tuple[str, dict[str, float | int]]:
    parts: list[str] = []
    figures: dict[str, float | int] = {}
    for check in pair.checks:
        if check.ours is not None:
            parts.append(
                f"{WORDS[check.figure]} {check.ours:.4g} here, {check.published:.4g} there"
            )
            place = f"published.pair.checks.{check.figure}"
            figures |= {f"{place}.ours": check.ours, f"{place}.published": check.published}
    differing = [WORDS[check.figure] for check in pair.checks if check.agrees is False]
    verdict = "they agree"
    if differing:
        verdict = f"they differ in {' and '.join(differing)}"
    text = (
        f"Others published figures of this pair, at a commit that they do not name, and {verdict}:"
        f" {'; '.join(parts)}."
    )
    return text, figures
