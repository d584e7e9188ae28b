"""Changes that the figures of matrices name beyond doubt, because a training does not make them:
matrices put in the place of others, the base times a constant, entries set to 0, a few rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from shadow.dtypes import FLOATS
from shadow.summary.numbers import are, finite, median
from shadow.summary.rearranged import by_module, contents_of
from shadow.summary.rows import (
    Casts,
    ChangedRow,
    FewEntries,
    FewRowsRow,
    Masked,
    Recognised,
    Replaced,
    Scaled,
    ScaledLines,
    Zeroed,
)

if TYPE_CHECKING:
    from shadow.summary.columns import Columns

# cosines of base and tuned: below, another matrix stands there; the model's median has to be above
OTHER, SAME_MODEL = 0.5, 0.9
# Both equations hold to 4e-10 for F32; a format of fewer bits breaks them, and nothing is said.
EXACT = 1e-6
UNEVEN = 0.01  # how far factors may be apart, of how far they are from 1
FEW_ROWS = 0.05  # of the rows
MANY_ROWS = 100  # rows from which a few are few
MOST = 0.5  # of a change that factors for its rows or columns explain, from which it is a scaling
EXCESS = 0.3  # of unchanged entries over what storage explains, from which a matrix was masked
ALONG = 0.5  # cosine of a change with the base from which it may be in proportion to that
ASTRAY = 0.5  # kept_misfit from which the sizes of changes go with those of the weights
SOME_KEPT = 0.01  # share of entries that are the same, without which nothing was set to 0 alone


def recognised(deltas: Columns, tensors: Columns, lineage: float | None) -> Recognised:
    """What all rows show beyond doubt. lineage: the median cosine of the two models."""
    scale, zeroed, lines = _scaled(deltas), _zeroed(deltas), _scaled_lines(deltas)
    few = _few_entries(deltas)
    made_otherwise = any(one is not None for one in (scale, zeroed, lines, few))
    contents = contents_of(deltas, tensors)
    return Recognised(
        replaced=_replaced(deltas.where(~contents.anywhere), lineage),
        scaled=scale,
        zeroed=None if scale is not None else zeroed,
        few_rows=_few_rows(deltas),
        casts=_casts(tensors, deltas),
        scaled_lines=None if scale is not None else lines,
        rearranged=contents.rearranged,
        few_entries=few,
        masked=None if made_otherwise else _masked(deltas),
    )


def _replaced(deltas: Columns, lineage: float | None) -> Replaced | None:
    """Matrices that have little in common with the base's while the others are close to it.

    One with the opposite sign is the base's all the same.
    """
    if lineage is None or lineage < SAME_MODEL:
        return None
    other = deltas.where(np.abs(deltas["cosine"]) < OTHER)
    if not len(other):
        return None
    return Replaced(
        matrices=len(other),
        cosine_least=float(other["cosine"].min()),
        cosine_most=float(other["cosine"].max()),
        rows=by_module(other),
    )


def _scaled(deltas: Columns) -> Scaled | None:
    """The one factor that every changed matrix is its base times, if there is one: the delta then
    is the base times (factor - 1), and their cosine 1 or -1.
    """
    cosine, norm = deltas["decay_cosine"], deltas["relative_norm"]
    if len(deltas) < 2 or not (np.abs(cosine) >= 1.0 - EXACT).all():
        return None
    offsets = norm * cosine.round()
    middle = median(offsets)
    if not middle or not np.nanmax(np.abs(offsets - middle)) <= UNEVEN * abs(middle):
        return None
    return Scaled(matrices=len(deltas), factor=1.0 + middle)


def _zeroed(deltas: Columns) -> Zeroed | None:
    """Entries that became 0 while all others stayed: the delta is then minus a part of the base, so
    that its cosine with the base is minus its relative norm.

    A base without some of its singular directions has that too, but there no entry stays the same.
    """
    cosine, norm, same = (deltas[name] for name in ("decay_cosine", "relative_norm", "zero_share"))
    if len(deltas) < 2 or not (np.abs(cosine + norm) <= EXACT * norm).all():
        return None
    if not ((same >= SOME_KEPT) & (same <= 1.0)).all():
        return None
    return Zeroed(matrices=len(deltas), share=1.0 - float(np.median(same)))


def _few_rows(deltas: Columns) -> list[FewRowsRow]:
    """Embeddings of which only a few rows, those of tokens, changed."""
    rows = deltas.where(
        (deltas["module"] == "embed")
        & (deltas["rows"] >= MANY_ROWS)
        & (deltas["rows_changed"] <= FEW_ROWS)
    )
    return [
        FewRowsRow(component, module, round(share * int(count)), int(count))
        for component, module, share, count in rows.each(
            "component", "module", "rows_changed", "rows"
        )
    ]


def _few_entries(deltas: Columns) -> FewEntries | None:
    """So few changed entries in every matrix that they bound its rank: fewer than its short side.

    An adapter stores no entries, so that it has no such share.
    """
    changed = np.round((1.0 - deltas["zero_share"]) * deltas["parameters"])
    if not len(deltas) or not (changed < np.fmin(deltas["rows"], deltas["cols"])).all():
        return None
    return FewEntries(
        entries=int(changed.sum()),
        of=int(deltas["parameters"].sum()),
        matrices=len(deltas),
        rows=by_module(deltas),
    )


def _masked(deltas: Columns) -> Masked | None:
    """Entries that stayed in most changed matrices of layers, more than rounding explains.

    What is in proportion to the base moves its smallest entries least, and is none of these. Of an
    embedding, tokens that were not seen stay.
    """
    inside = deltas.inside
    known = inside.where(~np.isnan(inside["zero_share_excess"]))
    along = np.nan_to_num(np.abs(known["decay_cosine"])) >= ALONG
    along |= np.nan_to_num(known["kept_misfit"]) >= ASTRAY
    found = known["zero_share_excess"][~along]
    found = found[found >= EXCESS]
    if 2 * len(found) <= len(inside):
        return None
    return Masked(matrices=len(found), of=len(inside), excess=float(np.median(found)))


def _casts(tensors: Columns, deltas: Columns) -> Casts | None:
    """The tensors of the tuned side that are the base's in another format, and those that are not.

    A report that does not say which are casts has changed matrices without a word of it.
    """
    tuned = tensors.where(are(tensors["side"], "tuned"))
    others = tuned.where(are(tuned["cast"], "neither"))
    unknown = (tuned["relative_norm"] > 0) & (tuned["cast"] == None)  # noqa: E711
    if unknown.any():
        return None
    rows = [
        ChangedRow(
            component=component,
            module=module,
            layers=sorted({int(layer) for layer in group.inside["layer"]}),
            tensors=len(group),
            relative_norm=finite(np.fmax.reduce(group["relative_norm"])),
        )
        for (component, module), group in others.groups("component", "module")
    ]
    counts = {
        how: min(
            int((are(tensors["side"], side) & are(tensors["cast"], how)).sum())
            for side in ("base", "tuned")
        )
        for how in ("tuned", "base")
    }
    rounded = 0 if counts["base"] and not counts["tuned"] else -1
    stored = {pair.split("/")[rounded] for pair in deltas["dtype"] if pair}
    return Casts(
        tensors=sum(counts.values()),  # a quantised side has its scales as tensors beside these
        of_base=counts["base"],
        beside=len(others),
        rows=rows,
        formats=sorted(stored - {name for name, form in FLOATS.items() if form.bits > 8}),
    )


def _scaled_lines(deltas: Columns) -> ScaledLines | None:
    """Matrices of which factors for rows, or for columns, explain most of the change; what one
    factor for all explains, as weight decay does, is not of these.
    """
    by_row, by_col, cosine = (
        deltas[name] for name in ("row_scaling", "col_scaling", "decay_cosine")
    )
    one_factor = np.nan_to_num(cosine) ** 2
    # a factor explains 1 / n of what it has nothing to do with, n the entries of its line
    by_chance = np.where(by_row >= by_col, 1.0 / deltas["cols"], 1.0 / deltas["rows"])
    share = np.fmax(by_row, by_col) - one_factor - by_chance
    found = share >= MOST
    if not found.any():
        return None
    rows = by_row[found] >= by_col[found]
    return ScaledLines(
        matrices=int(found.sum()),
        by_row=int(rows.sum()),
        share=float(np.median(np.fmax(by_row, by_col)[found])),
    )
