"""Finished reports -> rows of the same matrices side by side, and how the reports are related.
Reads reports and prints nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from shadow.reports.provenance import (
    CheckpointIdentity,
    CheckpointMetadata,
    Provenance,
    ReportMetadata,
    SettingsMetadata,
    chosen_in,
)
from shadow.reports.report import Report
from shadow.spectra.measurement import Method
from shadow.storage import as_given
from shadow.summary.tables import OF_CASTS, only_rounded

Relation = Literal["the same pair", "one base", "consecutive stages", "different bases"]

PLACE = ("component", "layer", "module", "expert")
READ = (  # of matrices.parquet
    *PLACE, "tensor", "base_tensor", "subject", "rows", "cols", "dtype", "parameters",
    # what is compared
    "concentration", "stable_rank", "top4_energy", "participation_ratio",
    "null_participation_ratio", "spike_energy", "relative_norm", "floor_ratio", "cosine",
    # what bounds the rank of a delta
    "rank_ceiling", "numerical_rank", "kept", "kept_reason", "kept_history", "rank_90", "rank_95",
    "rank_99", "top1_energy", "top16_energy", "top20_energy", "top64_energy", "rest_rank",
    "rest_over_rounding",
    # what shows that a tuned side is a copy
    "levels_base", "levels_tuned", "format_copy", "kept_high", "purity_z",
)  # fmt: skip


@dataclass(frozen=True)
class ReportIdentity:
    """Location, content and origin of a compared report."""

    label: str
    folder: str
    version: str
    family: str
    pair: str
    base: CheckpointMetadata
    tuned: CheckpointMetadata
    settings: SettingsMetadata
    """All settings of the audit, and how the two are related, as the report's files have them."""


@dataclass(frozen=True)
class ComparedReport:
    """A compared report: its provenance, and the columns of its rows that a comparison needs.

    Missing values are as in every frame of a report: see `shadow.reports.report`.
    """

    label: str
    folder: Path
    provenance: Provenance
    matrices: pd.DataFrame
    """Columns READ of matrices.parquet, and those that were asked for besides."""
    tensors: pd.DataFrame
    """tensor, side, PLACE, status, reason, cast and relative_norm of tensors.parquet."""

    @property
    def metadata(self) -> ReportMetadata:
        """Return what its files say about how it was made, unchanged."""
        return self.provenance.recorded

    @property
    def name(self) -> str:
        """`A (base..sft)`."""
        return f"{self.label} ({self.provenance.pair})"

    @cached_property
    def deltas(self) -> pd.DataFrame:
        """The rows of matrices about deltas, without those that are `only_rounded`."""
        deltas = self.matrices[self.matrices["subject"] == "delta"]
        casts = self.tensors.loc[:, [*OF_CASTS]].itertuples(index=False, name=None)
        known = ((name, side, None if pd.isna(how) else how) for name, side, how in casts)
        return deltas[~only_rounded(deltas["tensor"], known)]

    @cached_property
    def identity(self) -> ReportIdentity:
        """Location, content and origin. A number that is not finite is None."""
        stored: dict[str, Any] = {**self.provenance.recorded}
        more = {one.name: stored[one.name] for one in fields(ReportIdentity)[2:]}
        return ReportIdentity(self.label, as_given(self.folder), **more)


def compared(report: Report, label: str, more: Sequence[str] = ()) -> ComparedReport:
    """Read the rows of a finished report, with more columns of matrices.parquet if requested.

    Raises ShadowError for a report that is broken or of another schema.
    """
    return ComparedReport(
        label=label,
        folder=report.folder,
        provenance=report.provenance,
        matrices=report.columns("matrices", (*READ, *more)),
        tensors=report.columns(
            "tensors", ("tensor", "side", *PLACE, "status", "reason", "cast", "relative_norm")
        ),
    )


# How two reports are related


def relate(first: ComparedReport, second: ComparedReport) -> tuple[Relation, str | None]:
    """Return how two reports are related: one base, or one where the other ends, or neither; and
    how that is known: by commit or by content (digests or fingerprints). If bases differ, what is
    known about them.
    """
    one, two = first.provenance, second.provenance
    if base := _same(one.base, two.base):
        return "the same pair" if _same(one.tuned, two.tuned) else "one base", base
    if step := _same(one.tuned, two.base) or _same(one.base, two.tuned):
        return "consecutive stages", step
    return "different bases", "neither commit nor content is the same"


def _same(left: CheckpointIdentity, right: CheckpointIdentity) -> str | None:
    """Return how two checkpoints are known to be the same; None if they are not."""
    # a commit may hold several checkpoints
    is_pinned = left.commit and re.fullmatch("[0-9a-f]{40}", left.commit)
    if is_pinned and left.commit == right.commit and left.repo == right.repo:
        return "commit"
    if left.content and right.content:
        return "content" if left.content == right.content else None
    is_known = left.fingerprint and re.fullmatch("[0-9a-f]{64}", left.fingerprint)
    return "content" if is_known and left.fingerprint == right.fingerprint else None


# Matching


def _options(provenance: Provenance) -> dict[str, object]:
    """Return the options that numbers depend on."""
    settings = provenance.recorded["settings"]
    method = {
        f"--{one.name}": settings["method"].get(one.name) or one.default for one in fields(Method)
    }
    return {**method, "--device": settings.get("device") or "cpu"}


def settings_apart(first: ComparedReport, second: ComparedReport) -> Iterator[str]:
    """Yield how the settings of two reports differ."""
    left, right = first.provenance, second.provenance
    if left.version != right.version:
        versions = f"{first.label} by {left.version}, {second.label} by {right.version}"
        yield f"made by different versions of shadow: {versions}"
    others = _options(right)
    for option, one in _options(left).items():
        if one != others[option]:
            values = f"{one} in {first.label}, {others[option]} in {second.label}"
            yield f"measured with different settings: {option} {values}"
    chosen = [chosen_in(one.recorded["settings"]) for one in (left, right)]
    if chosen[0] != chosen[1]:
        yield "the audits were filtered differently: what both measured is compared"


def match(first: pd.DataFrame, second: pd.DataFrame, *, by_base: bool) -> pd.DataFrame:
    """Rows of one subject each, side by side: columns of the first end in _first, those of the
    second in _second.

    Rows match if place and base tensor are equal; if the names of base tensors may differ (by_base
    False), if the place is, and the name if several share the place. Left out are rows without a
    partner, with another shape, or with several partners. Places and shapes stand once; slot is the
    name that rows were matched by, missing if none was needed.
    """
    left, right = first.assign(slot=first["base_tensor"]), second.assign(slot=second["base_tensor"])
    if not by_base:
        several = pd.concat(
            [frame[list(PLACE)][frame.duplicated(PLACE, keep=False)] for frame in (left, right)]
        )
        shared = pd.MultiIndex.from_frame(several)
        for frame in (left, right):
            frame.loc[~pd.MultiIndex.from_frame(frame[list(PLACE)]).isin(shared), "slot"] = pd.NA
    keys = [*PLACE, "slot", "rows", "cols"]
    left, right = (frame[~frame.duplicated(keys, keep=False)] for frame in (left, right))
    left, right = (
        frame.rename(
            columns={name: f"{name}_{which}" for name in frame.columns if name not in keys}
        )
        for frame, which in ((left, "first"), (right, "second"))
    )
    return left.merge(right, on=keys).sort_values(
        keys, kind="stable", na_position="first", ignore_index=True
    )
