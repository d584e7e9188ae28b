"""Rank of a change among those of released families that others measured, by its norm."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from pyarrow.csv import read_csv

from shadow.files import registry_folder
from shadow.reports.provenance import chosen_in
from shadow.summary.record import PublishedRank
from shadow.summary.tables import are

if TYPE_CHECKING:
    from shadow.reports.provenance import ReportMetadata
    from shadow.summary.tables import Columns

SMALLEST = 1000  # entries of a tensor, below which the table leaves it out
# reasons of tensors without a known norm
UNKNOWN = ("quantized", "unknown_dtype", "nonfinite", "out_of_range", "unreadable")


def published_place(tensors: Columns, metadata: ReportMetadata) -> PublishedRank | None:
    """Rank the mean relative norm among other families; None of a part, without a change, or where
    units have other numbers, as one of the base may be compared with several.
    """
    unknown = are(tensors["reason"], *UNKNOWN)
    is_apart = chosen_in(metadata["settings"]) or metadata.get("correspondence")
    if unknown.any() or is_apart:
        return None
    base = tensors.where(are(tensors["side"], "base"))
    norms = np.where(are(base["status"], "identical"), 0.0, base["relative_norm"])
    is_whole = base["compared"] == base.sizes
    counted = ~np.isnan(norms) & is_whole & (base.sizes >= SMALLEST)
    if not (norms[counted] > 0).any():
        return None
    value = fmean(norms[counted])
    repos = {metadata["base"]["repo"].lower(), metadata["tuned"]["repo"].lower()}
    families = read_csv(registry_folder() / "reference" / "published.csv").to_pylist()
    others = [
        float(family["mean_relative_norm"])
        for family in families
        if repos.isdisjoint(family["models"].lower().split())
    ]
    return PublishedRank(
        value=value,
        below=sum(norm < value for norm in others),
        families=len(others),
        least=min(others),
        most=max(others),
    )
