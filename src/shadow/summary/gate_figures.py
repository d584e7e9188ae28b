"""The figures of a pair that its gates judge: how far the two sides are one model, and whether what
is stored is the change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shadow.dtypes import FLOATS
from shadow.summary.layer_medians import held_rank
from shadow.summary.tables import (
    VECTORS,
    Columns,
    Rows,
    are,
    count,
    is_known,
    largest,
    mask_of,
    median,
)

# With norms that are equal, a cosine below 0.5 is a delta longer than the base itself: it tells of
# the base's spectrum, not of a change. Fine-tunes have 0.9 and more, unrelated models of one shape
# 0 within 1 / sqrt(rows cols).
LINEAGE = 0.5
ROUNDING = 2.0  # floor_ratio: a copy rounded once has 1
OUTSIDE = ("embed", "head", "position")  # modules that unrelated models may share
UNREAD = ("unknown_dtype", "quantized")  # reasons of tensors that are there, and are not read


@dataclass(frozen=True)
class GateFigures:
    """Figures of a pair that are not about its change."""

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


def gate_figures(rows: Rows) -> GateFigures:
    """The figures of a pair that its gates judge."""
    weights = _weights(rows.tensors)
    total = max(1, sum(weights["size"]))
    compared = int(sum(weights["compared"]))
    unread = sum(weights.having(reason=UNREAD)["size"])
    inside = rows.deltas.without("module", *OUTSIDE)
    measured = rows.measured.without("module", *OUTSIDE)
    same = np.ones(_identical(weights.without("module", *OUTSIDE)))
    cosines = np.concatenate([measured["cosine"], same])
    rank = held_rank(inside)
    share = rank / np.fmin(inside["rows"], inside["cols"])
    # the few that are known do not say it of most
    is_mostly_known = 2 * count(is_known(share)) >= len(share)
    return GateFigures(
        identical=_identical(weights),
        cosine=median(cosines),
        compared=compared / total,
        compared_percent=1000 * compared // total / 10,
        is_part=len(weights.having(reason="filtered")) > 0,
        rank=median(rank) if is_mostly_known else None,
        rank_share=median(share) if is_mostly_known else None,
        rank_ceiling=largest(inside["rank_ceiling"]),
        unread=unread / total,
        formats=sorted(dtype for dtype in {*rows.measured["dtype"]} if dtype and "/" in dtype),
        unjudged=unjudged_formats(rows.deltas),
    )


def unjudged_formats(deltas: Columns) -> list[str]:
    """The formats whose rounding is unknown, quantised ones and those of a side in more bits than
    the other, if more than half of the changed matrices have one; the floors of the others do not
    apply to these.
    """
    has_floor = is_known(deltas["floor_ratio"]) | is_known(deltas["rank_ceiling"])
    unknown = deltas.where(~has_floor).without("kept_reason", "nothing_rounded")
    matrices = 0
    unjudged: set[str] = set()
    for dtype, reason in unknown.each("dtype", "kept_reason"):
        formats = set((dtype or "").split("/")) - {""}
        if reason != "rounding_unexplained":
            formats = formats.difference(FLOATS)
        matrices += bool(formats)
        unjudged |= formats
    return sorted(unjudged) if 2 * matrices > len(deltas) else []


def _weights(tensors: Columns) -> Columns:
    """The tensors of the larger side that count as its weights, with their size and compared
    parameters.

    Left out are a tied head, which is its embedding, integers, components without a base, and what
    a checkpoint holds beside the component that it is the base of.
    """
    weights = tensors.added(size=tensors.sizes).without("reason", "tied", "not_float")
    # a filter of the user's has no detail
    has_detail = mask_of([detail is not None for detail in weights["detail"]])
    is_elsewhere = are(weights["reason"], "filtered") & has_detail
    # a projector, for example
    has_no_base = are(weights["reason"], "only_in_tuned") & are(weights["status"], "measured")
    weights = weights.where(~(is_elsewhere | has_no_base))
    sides = [weights.having(side=side) for side in ("tuned", "base")]
    larger = max(sides, key=lambda side: sum(side["size"]))
    return larger.added(compared=np.nan_to_num(larger["compared"]))  # null where it is forged


def _identical(weights: Columns) -> int:
    """The number of matrices that are identical on both sides."""
    same = weights.having(status="identical").without("module", *VECTORS)
    matrices = same.where(same.are_matrices)
    return sum(shape[0] if len(shape) == 3 else 1 for shape in matrices["shape"])
