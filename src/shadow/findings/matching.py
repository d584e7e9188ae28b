"""Finished reports -> rows of the same matrices side by side, and how reports are related. Reads, prints nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from shadow.reports.metadata import ReportMetadata, Side
from shadow.reports.report import Report
from shadow.storage import as_given

Relation = Literal["the same pair", "one base", "consecutive stages", "one lineage", "different bases"]

PLACE = ("component", "layer", "module", "expert")
SPECTRA = {  # columns that tell checkpoints apart, and the relative tolerance of each
    "frobenius_norm": 1e-6,  # measured twice, in any two precisions, it was equal to the last bit
    "spectral_norm": 1e-6,  # and this within 2e-7
    "stable_rank": 5e-6,  # 5e-7
    "participation_ratio": 5e-6,  # 1e-6
}
COMPARED = (
    "concentration", "stable_rank", "top4_energy", "participation_ratio", "null_participation_ratio", "spike_energy",
    "relative_norm", "floor_ratio", "cosine", "numerical_rank",
)  # fmt: skip
READ = tuple(
    dict.fromkeys((
        *PLACE, "tensor", "base_tensor", "subject", "rows", "cols", "dtype", "parameters", "rank_ceiling", "verified",
        *COMPARED, *SPECTRA,
    ))
)  # fmt: skip
EXAMPLES = 3  # tensors named for each reason


@dataclass(frozen=True)
class ComparedReport:
    """One of the reports that are compared: its letter, its folder, its provenance and its rows."""

    label: str
    folder: Path
    metadata: ReportMetadata
    matrices: pd.DataFrame
    tensors: pd.DataFrame

    @property
    def name(self) -> str:
        """`A (base..sft)`."""
        return f"{self.label} ({self.metadata['pair']})"

    def subject(self, name: str) -> pd.DataFrame:
        return self.matrices[self.matrices["subject"] == name]

    def setting(self, *keys: str) -> Any:
        found: Any = self.metadata["settings"]
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    def as_json(self) -> dict[str, Any]:
        """Where the report lies, of what it is and how it was made."""
        told = {
            "version": self.metadata["version"],
            "family": self.metadata["family"],
            "pair": self.metadata["pair"],
            "base": self.metadata["base"],
            "tuned": self.metadata["tuned"],
            "settings": self.metadata["settings"],
        }
        plain = json.loads(json.dumps(told), parse_constant=lambda _: None)  # no NaN, whatever the file says
        return {"label": self.label, "folder": as_given(self.folder), **plain}


def read_report(folder: Path, label: str, more: Sequence[str] = ()) -> ComparedReport:
    """The rows of a finished report, with more columns of matrices.parquet where asked for.

    Raises ShadowError for a report that is broken or of another schema.
    """
    report = Report(folder)
    matrices = _filled(report, "matrices", tuple(dict.fromkeys((*READ, *more))))
    tensors = _filled(report, "tensors", ("tensor", "side", *PLACE, "status", "reason"))
    return ComparedReport(label, folder, report.provenance.told, matrices, tensors)


def _filled(report: Report, table: str, names: Sequence[str]) -> pd.DataFrame:
    """Some columns of a table with values that NumPy matches: texts that are missing are empty, layers and experts -1.

    Whole numbers of which some are missing become floats with NaN.
    """
    frame = report.columns(table, names)
    return pd.DataFrame({name: _plain(frame[name]) for name in names})


def _plain(values: pd.Series[Any]) -> pd.Series[Any]:
    if values.name in ("layer", "expert", "rank_ceiling"):
        return values.fillna(-1).astype("int64")
    if isinstance(values.dtype, pd.StringDtype):
        return values.astype(object).where(values.notna(), "")
    if isinstance(values.dtype, pd.Int64Dtype):
        return values.astype("float64" if values.hasnans else "int64")
    if isinstance(values.dtype, pd.BooleanDtype):
        return values.astype(object).where(values.notna(), None)
    return values


# How two reports are related


def relations(
    reports: Sequence[ComparedReport], pairs: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], tuple[Relation, str | None]]:
    """How every two reports are related, and how that is known; of different bases, what tells them apart."""
    found = {(i, j): relate(reports[i], reports[j]) for i, j in pairs}
    # base..sft and dpo..instruct belong together if sft..dpo is among the reports
    lineage = list(range(len(reports)))
    for (i, j), (relation, _) in found.items():
        if relation != "different bases":
            lineage = [lineage[i] if one == lineage[j] else one for one in lineage]
    return {
        (i, j): ("one lineage", None) if relation == "different bases" and lineage[i] == lineage[j] else (relation, why)
        for (i, j), (relation, why) in found.items()
    }


def relate(first: ComparedReport, second: ComparedReport) -> tuple[Relation, str | None]:
    """Do two reports start from one base, or one where the other ends? And how is that known?

    By commit, by content (fingerprints), else by the measured spectra of the checkpoint that they should share.
    """
    base = _same(first, "base", second, "base")
    if base:
        return ("the same pair", base) if _same(first, "tuned", second, "tuned") else ("one base", base)
    step = _same(first, "tuned", second, "base") or _same(first, "base", second, "tuned")
    if step:
        return "consecutive stages", step
    apart = _spectra_apart(first, "base", second, "base")
    if apart is None:
        tuned = _spectra_apart(first, "tuned", second, "tuned")
        return "the same pair" if tuned is None else "one base", "spectra"
    if None in (_spectra_apart(first, "tuned", second, "base"), _spectra_apart(first, "base", second, "tuned")):
        return "consecutive stages", "spectra"
    return "different bases", apart


def _same(first: ComparedReport, side: Side, second: ComparedReport, other: Side) -> str | None:
    """How a checkpoint of one report and one of another are known to be the same; None when they are not."""
    one, two = first.metadata[side], second.metadata[other]
    for key, pattern, how in (("commit", "[0-9a-f]{40}", "commit"), ("fingerprint", "[0-9a-f]{64}", "content")):
        value = one.get(key)
        known = isinstance(value, str) and re.fullmatch(pattern, value) is not None and value == two.get(key)
        if known and (how == "content" or one["repo"] == two["repo"]):  # a commit may hold several checkpoints
            return how
    return None


def _spectra_apart(first: ComparedReport, side: str, second: ComparedReport, other: str) -> str | None:
    """What tells two checkpoints apart by their measured spectra; None when every matrix of both looks the same."""
    found = match(first.subject(side), second.subject(other), by_base=False)
    if found.empty:
        return "they have no matrix of one place and shape in common"
    apart = np.zeros(len(found), bool)
    for name, tolerance in SPECTRA.items():
        one, two = found[f"{name}|1"].to_numpy(), found[f"{name}|2"].to_numpy()
        close = np.abs(one - two) <= tolerance * np.maximum(np.abs(one), np.abs(two))
        apart |= ~(close | (np.isnan(one) & np.isnan(two)))
    if not apart.any():
        return None
    return f"the spectra of {apart.sum()} of {len(found)} matrices differ"


# Matching


def match(first: pd.DataFrame, second: pd.DataFrame, *, by_base: bool) -> pd.DataFrame:
    """Rows of one subject each, side by side: the columns of the first end in |1, those of the second in |2.

    A row belongs to the one of the same place and base tensor; where the names of base tensors may differ (by_base
    False), to the one of the same place, and of the same name only where several share the place. Left out: what has
    no partner, another shape, or still several.
    """
    one, two = first.assign(slot=first["base_tensor"]), second.assign(slot=second["base_tensor"])
    if not by_base:
        several = pd.concat([frame[list(PLACE)][frame.duplicated(PLACE, keep=False)] for frame in (one, two)])
        taken = pd.MultiIndex.from_frame(several)
        for frame in (one, two):
            frame.loc[~pd.MultiIndex.from_frame(frame[list(PLACE)]).isin(taken), "slot"] = ""
    keys = [*PLACE, "slot", "rows", "cols"]
    one, two = (frame[~frame.duplicated(keys, keep=False)] for frame in (one, two))
    rename = [{name: f"{name}|{n}" for name in one.columns if name not in keys} for n in (1, 2)]
    found = one.rename(columns=rename[0]).merge(two.rename(columns=rename[1]), on=keys)
    return found.sort_values(keys, kind="stable", ignore_index=True)


def unmatched(first: ComparedReport, second: ComparedReport, found: pd.DataFrame) -> list[dict[str, Any]]:
    """Deltas of one report that the other has not, by reason, with a few names."""
    rows: dict[str, list[str]] = {}
    for own, other, suffix in ((first, second, "1"), (second, first, "2")):
        deltas = own.subject("delta")
        keys = ["tensor", *PLACE]
        matched = pd.MultiIndex.from_arrays([found[f"tensor|{suffix}"], *(found[name] for name in PLACE)])
        alone = deltas[~pd.MultiIndex.from_frame(deltas[keys]).isin(matched)]
        if alone.empty:
            continue
        measured = set(other.subject("delta")[list(PLACE)].itertuples(index=False, name=None))
        base = other.tensors[other.tensors["side"] == "base"]
        by_place = {row[:-2]: row[-2:] for row in base[[*PLACE, "status", "reason"]].itertuples(index=False, name=None)}
        by_name = {row[0]: row[1:] for row in base[["tensor", "status", "reason"]].itertuples(index=False, name=None)}
        for tensor, base_tensor, *place in alone[["tensor", "base_tensor", *PLACE]].itertuples(index=False, name=None):
            if tuple(place) in measured:
                why = "of another shape or name in"
            else:
                status, reason = by_name.get(base_tensor) or by_place.get(tuple(place)) or ("", "")
                why = {
                    "identical": "identical to the base in",
                    "skipped": f"{reason or 'skipped'} in",
                    "measured": "unchanged in",  # though other matrices of its tensor did change
                }.get(status, "not in")
            rows.setdefault(f"{why} {other.label}", []).append(tensor)
    return [
        {"reason": reason, "matrices": len(names), "examples": names[:EXAMPLES]}
        for reason, names in sorted(rows.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
