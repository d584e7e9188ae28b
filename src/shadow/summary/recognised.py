"""Changes that the figures of matrices name beyond doubt, because a training does not make them:
matrices put in the place of others, the base times a constant, entries set to 0, a few rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shadow.summary.rows import (
    FewRowsRow,
    Recognised,
    Replaced,
    ReplacedRow,
    Scaled,
    Zeroed,
)

if TYPE_CHECKING:
    import pandas as pd

# cosines of base and tuned: below, another matrix stands there; the model's median has to be above
OTHER, SAME_MODEL = 0.5, 0.9
# Both equations hold to 4e-10 for F32; a format of fewer bits breaks them, and nothing is said.
EXACT = 1e-6
UNEVEN = 0.01  # how far factors may be apart, of how far they are from 1
FEW_ROWS = 0.05  # of the rows
MANY_ROWS = 100  # rows from which a few are few
SOME_KEPT = 0.01  # share of entries that are the same, without which nothing was set to 0 alone


def recognised(deltas: pd.DataFrame, lineage: float | None) -> Recognised:
    """What the delta rows show beyond doubt. lineage: the median cosine of the two models."""
    scale = _scaled(deltas)
    return Recognised(
        replaced=_replaced(deltas, lineage),
        scaled=scale,
        zeroed=None if scale is not None else _zeroed(deltas),
        few_rows=_few_rows(deltas),
    )


def _replaced(deltas: pd.DataFrame, lineage: float | None) -> Replaced | None:
    """Matrices that have little in common with the base's while the others are close to it.

    One with the opposite sign is the base's all the same.
    """
    if lineage is None or lineage < SAME_MODEL:
        return None
    other = deltas[deltas["cosine"].astype(float).abs() < OTHER]
    if other.empty:
        return None
    rows = [
        ReplacedRow(
            component=str(component),
            module=str(module),
            layers=sorted({int(layer) for layer in group["layer"].dropna()}),
            matrices=len(group),
        )
        for (component, module), group in other.groupby(["component", "module"], sort=False)
    ]
    cosines = other["cosine"].astype(float)
    return Replaced(
        matrices=len(other),
        cosine_least=float(cosines.min()),
        cosine_most=float(cosines.max()),
        rows=rows,
    )


def _scaled(deltas: pd.DataFrame) -> Scaled | None:
    """The one factor that every changed matrix is its base times, if there is one: the delta then
    is the base times (factor - 1), and their cosine 1 or -1.
    """
    cosine, norm = (deltas[name].astype(float) for name in ("decay_cosine", "relative_norm"))
    if len(deltas) < 2 or not (cosine.abs() >= 1.0 - EXACT).all():
        return None
    offsets = norm * cosine.round()
    middle = float(offsets.median())
    if not middle or not (offsets - middle).abs().max() <= UNEVEN * abs(middle):
        return None
    return Scaled(matrices=len(deltas), factor=1.0 + middle)


def _zeroed(deltas: pd.DataFrame) -> Zeroed | None:
    """Entries that became 0 while all others stayed: the delta is then minus a part of the base, so
    that its cosine with the base is minus its relative norm.

    A base without some of its singular directions has that too, but there no entry stays the same.
    """
    cosine, norm, same = (
        deltas[name].astype(float) for name in ("decay_cosine", "relative_norm", "zero_share")
    )
    if len(deltas) < 2 or not ((cosine + norm).abs() <= EXACT * norm).all():
        return None
    if not same.between(SOME_KEPT, 1.0).all():
        return None
    return Zeroed(matrices=len(deltas), share=1.0 - float(same.median()))


def _few_rows(deltas: pd.DataFrame) -> list[FewRowsRow]:
    """Embeddings of which only a few rows, those of tokens, changed."""
    rows = deltas[
        (deltas["module"] == "embed")
        & (deltas["rows"] >= MANY_ROWS)
        & (deltas["rows_changed"].astype(float) <= FEW_ROWS)
    ]
    return [
        FewRowsRow(str(component), str(module), round(float(share) * int(count)), int(count))
        for component, module, share, count in zip(
            rows["component"], rows["module"], rows["rows_changed"], rows["rows"], strict=True
        )
    ]
