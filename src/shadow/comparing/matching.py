"""Finished reports -> rows of the same matrices side by side, and how reports are related. Reads,
prints nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from shadow.reports.metadata import CheckpointMetadata, ReportMetadata, SettingsMetadata, Side
from shadow.reports.provenance import CheckpointIdentity, Provenance
from shadow.reports.report import Report
from shadow.storage import as_given

Relation = Literal[
    "the same pair", "one base", "consecutive stages", "one lineage", "different bases"
]

PLACE = ("component", "layer", "module", "expert")
SPECTRA = {  # columns that tell checkpoints apart, and the relative tolerance of each
    "frobenius_norm": 1e-6,  # measured twice, in any two precisions, it was equal to the last bit
    "spectral_norm": 1e-6,  # and this within 2e-7
    "stable_rank": 5e-6,  # 5e-7
    "participation_ratio": 5e-6,  # 1e-6
}
COMPARED = (
    "concentration", "stable_rank", "top4_energy", "participation_ratio",
    "null_participation_ratio", "spike_energy",
    "relative_norm", "floor_ratio", "cosine", "numerical_rank",
)  # fmt: skip
RANKED = (  # with rows, cols, rank_ceiling and numerical_rank: what bounds the rank of a delta
    "kept", "kept_reason", "kept_history", "rank_90", "rank_95", "rank_99",
    "top1_energy", "top4_energy", "top16_energy", "top20_energy", "top64_energy",
    "rest_rank", "rest_over_rounding",
)  # fmt: skip
READ = tuple(
    dict.fromkeys((
        *PLACE, "tensor", "base_tensor", "subject", "rows", "cols", "dtype", "parameters",
        "rank_ceiling", "verified",
        *COMPARED, *SPECTRA, *RANKED,
    ))
)  # fmt: skip
TOLD = ["tensor", "dtype", "shape", "checksum"]  # of a tensor, wherever it lies
EXAMPLES = 3  # tensors named for each reason


@dataclass(frozen=True)
class ReportIdentity:
    """Where a report that is compared lies, of what it is and how it was made."""

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
    """One of the reports that are compared: its provenance, and the columns of its rows that a
    comparison needs.

    What is missing is missing as in every frame of a report: see `shadow.reports.report`.
    """

    label: str
    folder: Path
    provenance: Provenance
    matrices: pd.DataFrame
    """Columns READ of matrices.parquet, and those that were asked for besides."""
    tensors: pd.DataFrame
    """tensor, side, shape, dtype, PLACE, status, reason and checksum of tensors.parquet."""

    @property
    def metadata(self) -> ReportMetadata:
        """What its files say of how it was made, as it stands there."""
        return self.provenance.told

    @property
    def name(self) -> str:
        """`A (base..sft)`."""
        return f"{self.label} ({self.provenance.pair})"

    def subject(self, name: str) -> pd.DataFrame:
        """The rows of matrices of one subject: base, tuned or delta."""
        return self.matrices[self.matrices["subject"] == name]

    @cached_property
    def identity(self) -> ReportIdentity:
        """Where it lies, what it is of and how it was made. A number that is not finite is None."""
        stored = self.provenance.as_json()
        return ReportIdentity(
            label=self.label,
            folder=as_given(self.folder),
            version=stored["version"],
            family=stored["family"],
            pair=stored["pair"],
            base=stored["base"],
            tuned=stored["tuned"],
            settings=stored["settings"],
        )


def compared(report: Report, label: str, more: Sequence[str] = ()) -> ComparedReport:
    """The rows of a finished report, with more columns of matrices.parquet where asked for.

    Raises ShadowError for a report that is broken or of another schema.
    """
    return ComparedReport(
        label=label,
        folder=report.folder,
        provenance=report.provenance,
        matrices=report.columns("matrices", (*READ, *more)),
        tensors=report.columns(
            "tensors", ("tensor", "side", "shape", "dtype", *PLACE, "status", "reason", "checksum")
        ),
    )


# How two reports are related


def relations(
    reports: Sequence[ComparedReport], pairs: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], tuple[Relation, str | None]]:
    """How every two reports are related, and how that is known, or what tells their bases apart."""
    related = {(i, j): relate(reports[i], reports[j]) for i, j in pairs}
    # base..sft and dpo..instruct belong together if sft..dpo is among the reports
    lineage = list(range(len(reports)))
    for (i, j), (relation, _) in related.items():
        if relation != "different bases":
            lineage = [lineage[i] if number == lineage[j] else number for number in lineage]
    for (i, j), (relation, _) in related.items():
        if relation == "different bases" and lineage[i] == lineage[j]:
            related[i, j] = "one lineage", None
    return related


def relate(first: ComparedReport, second: ComparedReport) -> tuple[Relation, str | None]:
    """Do two reports start from one base, or one where the other ends? And how is that known?

    By commit, by content (digests, or fingerprints), else by the measured spectra of the checkpoint
    that they should share.
    """
    base = _same(first, "base", second=second, other="base")
    if base:
        if _same(first, "tuned", second=second, other="tuned"):
            return "the same pair", base
        return "one base", base
    step = _same(first, "tuned", second=second, other="base") or _same(
        first, "base", second=second, other="tuned"
    )
    if step:
        return "consecutive stages", step
    apart = _apart(first, "base", second=second, other="base")
    if apart is None:
        tuned = _apart(first, "tuned", second=second, other="tuned")
        if tuned is None:
            return "the same pair", "spectra"
        return "one base", "spectra"
    if None in (
        _apart(first, "tuned", second=second, other="base"),
        _apart(first, "base", second=second, other="tuned"),
    ):
        return "consecutive stages", "spectra"
    return "different bases", apart


def _same(first: ComparedReport, side: Side, second: ComparedReport, other: Side) -> str | None:
    """How a checkpoint of one report is known to be one of another; None when it is not."""
    left, right = _checkpoint(first, side), _checkpoint(second, other)
    # a commit may hold several checkpoints
    if _is_hash(left.commit, 40) and left.commit == right.commit and left.repo == right.repo:
        return "commit"
    if left.content and right.content:
        return "content" if left.content == right.content else None
    if _is_hash(left.fingerprint, 64) and left.fingerprint == right.fingerprint:
        return "content" if _bytes_apart(first, side, second, other) is None else None
    return None


def _is_hash(text: str | None, digits: int) -> bool:
    """Whether it is a hexadecimal number of so many digits."""
    return text is not None and re.fullmatch(f"[0-9a-f]{{{digits}}}", text) is not None


def _checkpoint(report: ComparedReport, side: Side) -> CheckpointIdentity:
    return report.provenance.base if side == "base" else report.provenance.tuned


def _apart(first: ComparedReport, side: Side, second: ComparedReport, other: Side) -> str | None:
    """What tells two checkpoints apart; None when every matrix of both looks the same."""
    by_bytes = _bytes_apart(first, side, second, other)
    return by_bytes or _spectra_apart(first, side, second=second, other=other)


def _bytes_apart(
    first: ComparedReport, side: Side, second: ComparedReport, other: Side
) -> str | None:
    """What tells two checkpoints apart by the checksums of tensors that are alike but for those."""
    left, right = (
        {
            (name, dtype, *shape): checksum
            for name, dtype, shape, checksum in tensors[TOLD].itertuples(index=False)
            if isinstance(checksum, str)
        }
        for tensors in (
            first.tensors[first.tensors["side"] == side],
            second.tensors[second.tensors["side"] == other],
        )
    )
    both = left.keys() & right.keys()
    differ = sum(left[key] != right[key] for key in both)
    return f"the bytes of {differ} of {len(both)} tensors differ" if differ else None


def _spectra_apart(
    first: ComparedReport, side: Side, second: ComparedReport, other: Side
) -> str | None:
    """What tells two checkpoints apart by their spectra; None when all their matrices are alike."""
    matched = match(first.subject(side), second.subject(other), by_base=False)
    if matched.empty:
        return "they share no matrix of the same place and shape"
    apart = np.zeros(len(matched), bool)
    for name, tolerance in SPECTRA.items():
        left, right = (matched[f"{name}_{which}"].to_numpy() for which in ("first", "second"))
        close = np.abs(left - right) <= tolerance * np.maximum(np.abs(left), np.abs(right))
        apart |= ~(close | (np.isnan(left) & np.isnan(right)))
    if not apart.any():
        return None
    return f"the spectra of {apart.sum()} of {len(matched)} matrices differ"


# Matching


def settings_apart(first: ComparedReport, second: ComparedReport) -> Iterator[str]:
    """How the making of two reports differs."""
    left, right = first.provenance, second.provenance
    if left.version != right.version:
        versions = f"{first.label} by {left.version}, {second.label} by {right.version}"
        yield f"made by different versions of shadow: {versions}"
    estimates = ""
    if "sketch" in (left.precision, right.precision):
        estimates = "; a sketch estimates figures of singular values, within its columns of errors"
    norms = [report.label for report in (first, second) if report.provenance.subjects == "none"]
    if len(norms) == 1:
        yield f"measured with different settings: --norms in {norms[0]} alone"
    for option, one, other, so in (
        ("--precision", left.precision, right.precision, estimates),
        ("--subjects", left.subjects, right.subjects, ""),
        ("--nulls", left.nulls, right.nulls, "; no figure here rests on it"),
        ("--device", left.asked_device, right.asked_device, ""),
    ):
        if one != other and not (norms and option != "--device"):
            values = f"{one} in {first.label}, {other} in {second.label}"
            yield f"measured with different settings: {option} {values}{so}"
    chosen = [(report.components, report.layers, report.modules) for report in (left, right)]
    if chosen[0] != chosen[1]:
        yield (
            "the audits were filtered differently (--component, --layer, --module): what both"
            " measured is compared"
        )


def match(first: pd.DataFrame, second: pd.DataFrame, *, by_base: bool) -> pd.DataFrame:
    """Rows of one subject each, side by side: columns of the first end in _first, those of the
    second in _second.

    A row belongs to the one of the same place and base tensor; where the names of base tensors may
    differ (by_base False), to the one of the same place, and of the same name only where several
    share the place. Left out: what has no partner, another shape, or still several. Places and
    shapes stand once; slot is the name that they were matched by, missing where none was needed.
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


@dataclass(frozen=True)
class UnmatchedMatrices:
    """Deltas of one report that the other has not, for one reason."""

    reason: str
    """Why, and in which report they are missing, such as `not in B`."""
    matrices: int
    examples: list[str]
    """The names of the first EXAMPLES of them."""


def unmatched(
    first: ComparedReport, second: ComparedReport, matched: pd.DataFrame
) -> list[UnmatchedMatrices]:
    """Deltas of one report that the other has not, by reason, the most frequent first."""
    names: dict[str, list[str]] = {}
    for report, other, which in ((first, second, "first"), (second, first, "second")):
        for tensor, reason in _alone(report, other, matched=matched, which=which):
            names.setdefault(f"{reason} {other.label}", []).append(tensor)
    ordered = sorted(names.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        UnmatchedMatrices(reason=reason, matrices=len(tensors), examples=tensors[:EXAMPLES])
        for reason, tensors in ordered
    ]


def _alone(
    report: ComparedReport, other: ComparedReport, matched: pd.DataFrame, which: str
) -> Iterator[tuple[str, str]]:
    """The tensors of a report's deltas that have no partner in the other, each with the reason."""
    deltas = report.subject("delta")
    taken = pd.MultiIndex.from_arrays(
        [matched[f"tensor_{which}"], *(matched[name] for name in PLACE)]
    )
    alone = deltas[~pd.MultiIndex.from_frame(deltas[["tensor", *PLACE]]).isin(taken)]
    if alone.empty:
        return
    measured = set(_rows(other.subject("delta")[list(PLACE)]))
    base = other.tensors[other.tensors["side"] == "base"]
    statuses = _rows(base[["status", "reason"]])
    by_place = dict(zip(_rows(base[list(PLACE)]), statuses, strict=True))
    by_name = dict(zip(base["tensor"], statuses, strict=True))
    for tensor, base_tensor, *place in _rows(alone[["tensor", "base_tensor", *PLACE]]):
        if tuple(place) in measured:
            yield str(tensor), "of another shape or name in"
            continue
        status, reason = by_name.get(base_tensor) or by_place.get(tuple(place)) or (None, None)
        yield str(tensor), _reason(status, reason)


def _reason(status: object, reason: object) -> str:
    """Why a tensor of the other report has no delta, by what became of it there."""
    if status == "identical":
        return "identical to the base in"
    if status == "skipped":
        return f"{reason or 'skipped'} in"
    if status == "measured":
        return "unchanged in"  # though other matrices of its tensor did change
    return "not in"


def _rows(frame: pd.DataFrame) -> list[tuple[object, ...]]:
    """Rows as tuples that compare as Python's own: None where a value is missing."""
    plain = frame.astype(object).where(frame.notna(), None)
    return list(plain.itertuples(index=False, name=None))
