"""Changes that no training makes and figures prove: how each is recognised and described."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from shadow.summary.bootstrap import Mask
from shadow.summary.gate_figures import OUTSIDE
from shadow.summary.record import (
    Casts,
    FewEntries,
    InPlaces,
    Masked,
    PlacesRow,
    Rearranged,
    Recognised,
    Replaced,
    Row,
    Scaled,
    Zeroed,
)
from shadow.summary.tables import Columns, median

# cosines of base and tuned: below, another matrix stands there; the model's median has to be above
OTHER = 0.5
SAME_MODEL = 0.9
# How far singular values may be apart, and how far times sqrt(rows cols): those of independent
# matrices of one size have 3 (planted, 32 to 1,024 wide), of a matrix and its rotation in BF16 0.1.
AGREE = 0.01
AGREE_OF_ENTRIES = 2.0
# The equation holds to 4e-10 for F32; a format of fewer bits breaks it, and nothing is said.
EXACT = 1e-6
UNEVEN = 0.01  # how far factors may be apart, of how far they are from 1
EXCESS = 0.3  # of unchanged entries over what storage explains, from which a matrix was masked
ALONG = 0.5  # cosine of a change with the base from which it may be in proportion to that
ASTRAY = 0.5  # kept_misfit from which the sizes of changes go with those of the weights
SOME_KEPT = 0.01  # share of entries that are the same, without which nothing was set to 0 alone


@dataclass(frozen=True)
class Change:
    """A recognised change."""

    code: str
    title: str
    place: str  # of its figures, in what is recognised
    text: str  # a template of its figures, and of the places of matrices in words
    sentence: str = ""  # the code of its sentence, where that is another
    meaning: str = ""  # where it is another than that of the sentence

    def figures(self, changes: Recognised) -> Row | None:
        """The figures of the change if it holds, otherwise None."""
        figures: Row | None = changes
        for name in self.place.split("."):
            figures = figures and getattr(figures, name)
        if not isinstance(figures, Casts):
            return figures
        are_most = figures.beside <= figures.tensors > 0
        code = "mostly_copy" if figures.beside else "copy"
        return figures if are_most and self.code == code else None


CHANGES = (
    Change(
        "copy",
        "rounded copy",
        "casts",
        "{tensors:count tensor that changed is|tensors that changed are} the other side's in"
        " another format, equal but for rounding.",
        sentence="rounding",
        meaning="every changed tensor is the other side's tensor in another format",
    ),
    Change(
        "mostly_copy",
        "rounded copy with changes",
        "casts",
        "{beside:count tensor|tensors} changed by more than rounding. {tensors:count more is|more"
        " are} the other side's in another format, equal but for rounding.",
    ),
    Change(
        "scaled",
        "scaled base",
        "scaled",
        "Every matrix that changed is the base's times {factor:factor}; nothing else changed in"
        " it.",
    ),
    Change(
        "zeroed",
        "pruned base",
        "zeroed",
        "Entries were set to 0, as by pruning, and no other entry changed: {share:share} of the"
        " entries in the median of {matrices:count matrix|matrices}.",
    ),
    Change(
        "replaced",
        "replaced matrices",
        "replaced",
        "{matrices:count matrix has|matrices have} little or nothing in common with the base's"
        " (cosines {cosine_least:fixed} to {cosine_most:fixed}), unlike most others, as if"
        " replaced, exchanged, rotated or reordered: {places}.",
    ),
    Change(
        "few_entries",
        "few entries",
        "few_entries",
        "Only {entries:count} of {of:count} entries changed, in {places}.",
    ),
    Change(
        "masked",
        "masked entries",
        "masked",
        "In {matrices:count} of {of:count matrix|matrices}, more entries stayed the same than"
        " rounding leaves of normally distributed updates (by {excess:share} of those counted, in"
        " the median). Sparse training, TIES, DARE, pruning and frozen columns do that, and so do"
        " updates of widely differing sizes.",
    ),
    Change(
        "not_comparable",
        "not comparable entry by entry",
        "rearranged.not_comparable",
        "{matrices:count matrix is|matrices are} not comparable entry by entry: far from the"
        " base's, with the same singular values, as if rotated, reordered or of another model"
        " ({places}). {matrices|Its|Their} difference is no measure of a change.",
    ),
)


def recognised(deltas: Columns, tensors: Columns, lineage: float | None) -> Recognised:
    """The changes that all rows prove, None for each of which nothing is known. lineage: the median
    cosine of the two models.
    """
    scaled = _scaled(deltas)
    zeroed = _zeroed(deltas)
    few_entries = _few_entries(deltas)
    is_turned = _has_same_spectrum(deltas) & (deltas["cosine"] < OTHER)
    if scaled is not None:
        is_turned = np.zeros_like(is_turned)
    return Recognised(
        replaced=_replaced(deltas.where(~is_turned), lineage),
        scaled=scaled,
        zeroed=None if scaled is not None else zeroed,
        casts=_casts(tensors),
        rearranged=_rearranged(deltas, is_turned),
        few_entries=few_entries,
        masked=None if scaled or zeroed or few_entries else _masked(deltas),
    )


def _has_same_spectrum(deltas: Columns) -> Mask:
    """A mask of the matrices that have the base's singular values."""
    entries = deltas["rows"] * deltas["cols"]
    spread = np.fmin(AGREE, AGREE_OF_ENTRIES / np.sqrt(entries))
    is_same_size = np.abs(deltas["sigma_scale"] - 1.0) <= AGREE
    is_same: Mask = is_same_size & (deltas["sigma_scale_iqr"] <= spread)
    return is_same


def _rearranged(deltas: Columns, is_turned: Mask) -> Rearranged | None:
    """Find matrices that are not comparable entry by entry."""
    turned = deltas.where(is_turned)
    if not len(turned):
        return None
    return Rearranged(
        matrices=len(turned.without("module", *OUTSIDE)),
        changed=len(deltas.without("module", *OUTSIDE)),
        not_comparable=InPlaces(**_places(turned)),
    )


def _places(deltas: Columns) -> dict[str, Any]:
    """The values of InPlaces: how many rows there are, and how many of each module and layers."""
    rows = []
    for (component, module), group in deltas.groups("component", "module"):
        layers = {int(layer) for layer in group.inside["layer"]}
        row = PlacesRow(
            component=component, module=module, layers=sorted(layers), matrices=len(group)
        )
        rows.append(row)
    return {"matrices": len(deltas), "rows": rows}


def _replaced(deltas: Columns, lineage: float | None) -> Replaced | None:
    """Find matrices with little in common with the base's, in a model that is close to it."""
    others = deltas.where(np.abs(deltas["cosine"]) < OTHER)
    if lineage is None or lineage < SAME_MODEL or not len(others):
        return None
    cosines = others["cosine"]
    return Replaced(
        cosine_least=float(cosines.min()),
        cosine_most=float(cosines.max()),
        **_places(others),
    )


def _scaled(deltas: Columns) -> Scaled | None:
    """Find that every changed matrix is its base times one factor: the delta is the base times
    (factor - 1), and their cosine 1 or -1.
    """
    cosines = deltas["decay_cosine"]
    is_along = np.abs(cosines) >= 1.0 - EXACT
    if len(deltas) < 2 or not is_along.all():
        return None
    offsets = deltas["relative_norm"] * cosines.round()
    offset = median(offsets)
    if not offset:
        return None
    furthest = np.nanmax(np.abs(offsets - offset))
    if not furthest <= UNEVEN * abs(offset):
        return None
    return Scaled(matrices=len(deltas), factor=1.0 + offset)


def _zeroed(deltas: Columns) -> Zeroed | None:
    """Find that in every changed matrix some entries, a median share of them, became 0, and all
    others stayed.
    """
    same = deltas["zero_share"]
    has_same = (same >= SOME_KEPT) & (same <= 1.0)
    is_zeroed = has_same & (deltas["zeroed"] == 1)
    if len(deltas) < 2 or not is_zeroed.all():
        return None
    return Zeroed(matrices=len(deltas), share=1.0 - float(np.median(same)))


def _few_entries(deltas: Columns) -> FewEntries | None:
    """Find that fewer entries changed than each matrix has rows or columns. An adapter stores no
    entries, and has no such share.
    """
    entries = deltas["parameters"]
    changed = np.round((1.0 - deltas["zero_share"]) * entries)
    is_few = changed < np.fmin(deltas["rows"], deltas["cols"])
    if not len(deltas) or not is_few.all():
        return None
    return FewEntries(entries=int(changed.sum()), of=int(entries.sum()), **_places(deltas))


def _masked(deltas: Columns) -> Masked | None:
    """Find matrices of layers with more unchanged entries than storage leaves, by a median share.

    Updates in proportion to the base move its smallest entries least, and do not count; nor do
    unseen tokens of an embedding.
    """
    inside = deltas.inside
    excess = inside["zero_share_excess"]
    is_along = np.abs(inside["decay_cosine"]) >= ALONG
    is_astray = inside["kept_misfit"] >= ASTRAY
    masked = excess[(excess >= EXCESS) & ~is_along & ~is_astray]
    if 2 * len(masked) <= len(inside):
        return None
    return Masked(matrices=len(masked), of=len(inside), excess=float(np.median(masked)))


def _casts(tensors: Columns) -> Casts | None:
    """Count changed tensors that are the other side's in another format, those whose base was cast,
    and those that changed more, including vectors; None if a changed tensor does not say whether it
    is a cast, and if there are few.
    """
    tuned = tensors.having(side="tuned")
    base = tensors.having(side="base")
    changed = tuned.where(tuned["relative_norm"] > 0)
    if None in changed["cast"]:
        return None
    # a quantised side has its scales as tensors beside these
    of_tuned = min(len(base.having(cast="tuned")), len(tuned.having(cast="tuned")))
    of_base = min(len(base.having(cast="base")), len(tuned.having(cast="base")))
    beside = len(tuned.having(cast="neither"))
    if not len(tuned.having(module="head")):  # it is tied, and its row is the base's
        beside += len(base.having(module="head", cast="neither"))
    return Casts(tensors=of_tuned + of_base, of_base=of_base, beside=beside)
