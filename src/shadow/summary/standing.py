"""Conditions under which figures can be those of a training: how far the two sides are one model,
and how far what is stored is the change. The gates judge it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shadow.dtypes import FLOATS
from shadow.summary.layer_medians import held_rank
from shadow.summary.tables import are, median

if TYPE_CHECKING:
    from shadow.summary.tables import Columns

# With norms that are equal, a cosine below 0.5 is a delta longer than the base itself: it tells of
# the base's spectrum, not of a change. Fine-tunes have 0.9 and more, unrelated models of one shape
# 0 within 1 / sqrt(rows cols).
LINEAGE = 0.5
ROUNDING = 2.0  # floor_ratio: a copy rounded once has 1
FULL_RANK = 0.5  # of the directions of a matrix; an adapter of rank 16 in 896 has 0.02
OUTSIDE = ("embed", "head", "position")  # modules that unrelated models may share


@dataclass(frozen=True)
class Standing:
    """Figures of a pair that are not of its change."""

    identical: int  # matrices of the larger side that are the same on both
    cosine: float | None  # of base and tuned: median over matrices outside embeddings and heads
    compared: float  # the share of the larger side's parameters that was compared
    compared_percent: float  # with one decimal, rounded down: 100.0 is all of them
    is_part: bool  # a filter left something out
    rank: float | None  # that the median delta outside embeddings and heads has at most
    rank_share: float | None  # of its directions: the median over matrices
    rank_ceiling: float | None  # the largest of an adapter outside embeddings and heads
    unread: float  # the share of the parameters whose format cannot be read as numbers
    formats: list[str]  # that the two sides of a matrix have where they differ, as `BF16/F32`
    unjudged: list[str]  # as `unjudged_formats`


def standing_of(deltas: Columns, tensors: Columns) -> Standing:
    """The standing of a pair, from its delta rows and all of tensors.parquet."""
    weights = _weights(tensors)
    total, compared = sum(weights["size"]), int(sum(weights["compared"]))
    unread = weights["size"][are(weights["reason"], "unknown_dtype", "quantized")]
    inside = deltas.where(~are(deltas["module"], *OUTSIDE))
    rank = held_rank(inside.__getitem__)
    with np.errstate(all="ignore"):  # a forged report may hold infinities
        share = rank / np.fmin(inside["rows"], inside["cols"])
    if 2 * int(np.isnan(share).sum()) > len(share):
        rank = share = np.full(len(share), np.nan)  # the few that are known do not say it of most
    ceilings = inside["rank_ceiling"]
    same = np.ones(_identical(weights, OUTSIDE))
    return Standing(
        identical=_identical(weights),
        cosine=median(np.concatenate([inside["cosine"], same])),
        compared=compared / total if total else 0.0,
        compared_percent=1000 * compared // total / 10 if total else 0.0,
        is_part=bool(are(weights["reason"], "filtered").any()),
        rank=median(rank),
        rank_share=median(share),
        rank_ceiling=None if np.isnan(ceilings).all() else float(np.nanmax(ceilings)),
        unread=float(sum(unread)) / max(1, total),
        formats=sorted({dtype for dtype in deltas["dtype"] if dtype and "/" in dtype}),
        unjudged=unjudged_formats(deltas),
    )


def unjudged_formats(deltas: Columns) -> list[str]:
    """The formats of which it is not known what rounding to them left, quantised ones and those of
    a side in more bits than the other, where more than half of the changed matrices have one; the
    floors of the others do not say it of these.
    """
    unknown = np.isnan(deltas["floor_ratio"]) & np.isnan(deltas["rank_ceiling"])
    unknown &= ~are(deltas["kept_reason"], "nothing_rounded")
    mixed = unknown & are(deltas["kept_reason"], "rounding_unexplained")
    formats = [
        {one for one in (dtype or "").split("/") if one and (is_mixed or one not in FLOATS)}
        for dtype, is_mixed in zip(deltas["dtype"][unknown], mixed[unknown], strict=True)
    ]
    unjudged = [of_matrix for of_matrix in formats if of_matrix]
    return sorted(set().union(*unjudged)) if 2 * len(unjudged) > len(deltas) else []


def _weights(tensors: Columns) -> Columns:
    """The tensors of the side with more parameters that count as its weights, with size and their
    compared parameters.

    Left out are a tied head, which is its embedding, integers, components without a base, and what
    a checkpoint holds beside the component that it is the base of.
    """
    # a filter of the user's has no detail
    has_detail = np.array([detail is not None for detail in tensors["detail"]], dtype=np.bool_)
    elsewhere = are(tensors["reason"], "filtered") & has_detail
    # a projector, for example
    without_base = are(tensors["reason"], "only_in_tuned") & are(tensors["status"], "measured")
    weights = tensors.added(size=tensors.sizes).where(
        ~(are(tensors["reason"], "tied", "not_float") | elsewhere | without_base)
    )
    sides = {side: weights.where(are(weights["side"], side)) for side in ("base", "tuned")}
    rows = max(sides["tuned"], sides["base"], key=lambda of_side: sum(of_side["size"]))
    return rows.added(compared=np.nan_to_num(rows["compared"]))  # null where it is forged


def _identical(weights: Columns, apart: Sequence[str] = ()) -> int:
    """Return how many matrices are identical on both sides, but for modules that are left apart."""
    same = weights.where(
        are(weights["status"], "identical") & ~are(weights["module"], *apart, "norm", "bias")
    )
    stacks = [shape[0] if len(shape) == 3 else 1 for shape in same["shape"] if len(shape) > 1]
    return sum(stacks)
