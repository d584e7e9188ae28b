"""The origin of a report's delta: the rounding of a copy, or a training like those of the lab."""

from __future__ import annotations

import numpy as np

from shadow.comparing.codes import NoVerdict
from shadow.comparing.matching import ComparedReport
from shadow.dtypes import FLOATS
from shadow.reports.provenance import chosen_in
from shadow.summary.bootstrap import Mask
from shadow.summary.changes import CHANGES, recognised
from shadow.summary.layer_medians import has_few_levels
from shadow.summary.tables import COPIED, Columns, are, count, mask_of, median

ROUNDED = 0.25  # share of a change beyond its format's rounding, below which it is that rounding
NOISE = 5.0  # of purity_z: within it a delta has no structure beyond noise
ALONG_BASE = 0.1  # decay_cosine from which a change has the shape of the weights themselves
WITH_ALL_SPECTRA = ("full", "exact")  # levels at which spectra are not estimated
# Norms of a trained decoder move a sixth as far as its matrices; those that are folded into
# matrices move as far.
NORMS_FOLDED = 0.5


@np.errstate(all="ignore")  # a forged report may hold infinities
def is_training(report: ComparedReport) -> bool:
    """Check that a report is of the whole update of a full-rank training, as those that the error
    rates were measured on. Its record must not show another change: a copy, an adapter, a base that
    was scaled, pruned or rotated, or whose norms were folded into matrices.
    """
    provenance = report.provenance
    if provenance.relation != "tuned" or provenance.level not in WITH_ALL_SPECTRA:
        return False
    if report.failed_gates != [] or chosen_in(provenance.recorded["settings"]):
        return False
    if provenance.recorded.get("correspondence"):
        return False
    rows = report.rows
    cosine = median(rows.deltas["cosine"])
    changes = recognised(rows.deltas, rows.tensors, cosine)
    if any(change.figures(changes) is not None for change in CHANGES):
        return False
    tensors = rows.tensors.inside.having(side="tuned")
    matrices = tensors.where(tensors.are_matrices)
    if are(matrices["status"], "identical").any():
        return False
    inside = rows.deltas.inside
    along_base = median(np.abs(inside["decay_cosine"]))
    moved = median(inside["relative_norm"])
    norms_moved = median(tensors.having(module="norm")["relative_norm"])
    if along_base is None or moved is None or along_base >= ALONG_BASE:
        return False
    return norms_moved is None or norms_moved < NORMS_FOLDED * moved


def copy_reason(report: ComparedReport) -> NoVerdict | None:
    """Say why the delta of a report is the rounding of a copy; None if it may not be."""
    deltas = report.deltas.inside
    if not len(deltas):
        return None
    tensors = report.rows.tensors.having(side="tuned")
    casts = tensors.where(tensors["relative_norm"] > 0)["cast"]
    if len(casts) and are(casts, *COPIED).all():
        return NoVerdict.COPY_IN_ANOTHER_FORMAT
    if 2 * count(_of_few_bits(deltas)) > len(deltas):
        return NoVerdict.COPY_IN_FEW_BITS
    if 2 * count(np.abs(deltas["purity_z"]) <= NOISE) > len(deltas):
        return NoVerdict.LIKE_NOISE
    return None


def _of_few_bits(deltas: Columns) -> Mask:
    """Find the matrices of the tuned side, and not of the base, that went through 8 bits or fewer.

    This is judged by the levels of their format, by the format that they are stored in, or by how
    few distinct values their rows have.
    """
    rounded = (deltas["format_copy"] == 1) | (deltas["kept_high"] < ROUNDED)
    formats = [(dtype or "").partition("/") for dtype in deltas["dtype"]]
    stored = [_is_few(tuned or base) and not _is_few(base) for base, _, tuned in formats]
    levels = has_few_levels(deltas, "tuned") & ~has_few_levels(deltas, "base")
    return np.asarray(rounded | mask_of(stored) | levels)


def _is_few(dtype: str) -> bool:
    form = FLOATS.get(dtype)
    return bool(dtype) and (form is None or form.bits <= 8)
