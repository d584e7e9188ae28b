"""Finished reports -> rows of the same matrices side by side, and how the reports are related.
Reads reports and prints nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shadow.comparing.codes import Doubt, ReportRelation, Verified
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
from shadow.summary.making import correspondence_in
from shadow.summary.record import Correspondence
from shadow.summary.tables import MOST, SUMMARISED, Columns, Rows, are, mask_of, read_rows
from shadow.templates import Reason

PLACE = ("component", "layer", "module", "expert")
OWN = ("layer_own", "expert_own")  # of the tuned side, where the place is the base's


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
    """A compared report: its provenance, and its rows, which are read on demand: ShadowError says
    that a report is broken or of another schema.
    """

    label: str
    report: Report

    @cached_property
    @np.errstate(all="ignore")  # a forged report may hold infinities
    def rows(self) -> Rows:
        """The rows of its tables."""
        return read_rows({name: self.report.table(name) for name in SUMMARISED})

    @property
    def deltas(self) -> Columns:
        """The rows of matrices about deltas, without those that are `only_rounded`."""
        return self.rows.deltas

    @property
    def provenance(self) -> Provenance:
        """The subject of the report, and how it was measured."""
        return self.report.provenance

    @property
    def metadata(self) -> ReportMetadata:
        """The metadata of its files, unchanged."""
        return self.provenance.recorded

    @property
    def failed_gates(self) -> list[str] | None:
        """The gates that the pair fails; None where its files do not say."""
        gates = self.metadata.get("gates")
        if not isinstance(gates, list) or not gates:
            return None
        recorded = [gate for gate in gates if isinstance(gate, Mapping)]
        return [str(gate.get("name")) for gate in recorded if gate.get("passed") is not True]

    @property
    def name(self) -> str:
        """`A (base..sft)`."""
        return f"{self.label} ({self.provenance.pair})"

    @cached_property
    def placed(self) -> Columns:
        """The same rows at the places of the base that they were compared with; layer_own and
        expert_own are those of the tuned side. Without matrices of which some rows were compared:
        which ones is not known.
        """
        deltas = self.deltas
        deltas = deltas.added(layer_own=deltas["layer"], expert_own=deltas["expert"])
        moved = correspondence_in(self.metadata)
        if moved is None:
            return deltas
        pruned = {(row.component, layer) for row in moved.experts for layer in row.layers}
        places = [*deltas.each(*PLACE)]
        is_pruned = [module == "router" and (of, at) in pruned for of, at, module, _ in places]
        is_part = np.isnan(deltas["layer"]) & ~are(deltas["matched_by"], "number")
        is_part |= mask_of(is_pruned)
        units = _base_units(moved, places)
        # a forged report may name any
        held = {name: np.clip(np.array(units[name], float), -1, MOST) for name in units}
        return deltas.added(**held).where(~is_part)

    @cached_property
    def identity(self) -> ReportIdentity:
        """Location, content and origin. A number that is not finite is None."""
        metadata = self.metadata
        return ReportIdentity(
            label=self.label,
            folder=as_given(self.report.folder),
            version=metadata["version"],
            family=metadata["family"],
            pair=metadata["pair"],
            base=metadata["base"],
            tuned=metadata["tuned"],
            settings=metadata["settings"],
        )


def _base_units(
    moved: Correspondence, places: Iterable[tuple[str, float, str, float]]
) -> dict[str, list[float]]:
    """The layer and the expert of the base that correspond to those of each place; NaN for none."""
    units: dict[str, list[float]] = {"layer": [], "expert": []}
    for component, layer, module, expert in places:
        base_layer = layer
        base_expert = expert
        if not np.isnan(layer):
            for row in moved.layers:
                if row.component == component:
                    base_layer = row.base_number(int(layer))
            for other in moved.matrices:
                is_here = (other.component, other.layer) == (component, layer)
                if is_here and module in other.modules:
                    base_layer = other.base_layer
        if not np.isnan(expert):
            for row in moved.experts:
                if row.component == component and layer in row.layers:
                    base_expert = row.base_number(int(expert))
        units["layer"].append(base_layer)
        units["expert"].append(base_expert)
    return units


# How two reports are related


def relate(first: ComparedReport, second: ComparedReport) -> tuple[ReportRelation, Verified | None]:
    """Find how two reports are related, and how it is known which weights they share; None if they
    share none.
    """
    before = first.provenance
    after = second.provenance
    if verified := _same(before.base, after.base):
        is_same_pair = _same(before.tuned, after.tuned) is not None
        return ReportRelation.SAME_PAIR if is_same_pair else ReportRelation.ONE_BASE, verified
    if verified := _same(before.tuned, after.base) or _same(before.base, after.tuned):
        return ReportRelation.CONSECUTIVE_STAGES, verified
    return ReportRelation.DIFFERENT_BASES, None


def _same(left: CheckpointIdentity, right: CheckpointIdentity) -> Verified | None:
    """Find how two checkpoints are known to be the same; None if they are not."""
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
    """The options that numbers depend on."""
    settings = provenance.recorded["settings"]
    options = {
        f"--{option.name}": settings["method"].get(option.name) or option.default
        for option in fields(Method)
    }
    options["--device"] = settings.get("device") or "cpu"
    return options


def settings_apart(first: ComparedReport, second: ComparedReport) -> Iterator[Reason]:
    """Yield how the settings of two reports differ."""
    before = first.provenance
    now = second.provenance
    labels = {"first": first.label, "second": second.label}
    if before.version != now.version:
        yield Reason(Doubt.VERSIONS_DIFFER, labels, before=before.version, now=now.version)
    options_now = _options(now)
    for option, value in _options(before).items():
        if value != options_now[option]:
            values = {"before": str(value), "now": str(options_now[option])}
            yield Reason(Doubt.SETTINGS_DIFFER, labels | values, option=option)
    if chosen_in(before.recorded["settings"]) != chosen_in(now.recorded["settings"]):
        yield Reason(Doubt.FILTERS_DIFFER)


def match(first: Columns, second: Columns, *, by_base: bool) -> Columns:
    """Rows of one subject each, side by side: columns of the first end in _first, those of the
    second in _second.

    Rows match if place and base tensor are equal; if the names of base tensors may differ (by_base
    False), if the place is, and the name if several share the place. Of rows with one place in the
    base those match first that have one place of their own. Left out are rows without a partner,
    with another shape, or with several partners. Places and shapes stand once; slot is the name
    that rows were matched by, missing if none was needed.
    """
    left = first.added(slot=first["base_tensor"])
    right = second.added(slot=second["base_tensor"])
    if not by_base:
        counts = [Counter(_keys(rows, PLACE)) for rows in (left, right)]
        shared = {place for places in counts for place in places if places[place] > 1}
        left = left.added(slot=_slots(left, shared))
        right = right.added(slot=_slots(right, shared))
    names = [*PLACE, "slot", "rows", "cols"]
    partners = _partners(left, right, [*names, *OWN], {})
    partners |= _partners(left, right, names, partners)
    keys = _keys(left, names)
    ordered = sorted(partners, key=lambda row: [(value is not None, value) for value in keys[row]])
    left = left.where(ordered)
    right = right.where([partners[row] for row in ordered])
    matched = {name: left[name] for name in names}
    for side, rows in (("first", left), ("second", right)):
        matched |= {f"{name}_{side}": rows[name] for name in rows.arrays if name not in names}
    return Columns(matched)


def _keys(rows: Columns, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """The values of some columns, row by row; None for a missing one."""
    columns = [
        [None if value != value else value for value in rows[name].tolist()] for name in names
    ]
    return list(zip(*columns, strict=True))


def _slots(rows: Columns, shared: Collection[tuple[Any, ...]]) -> NDArray[np.object_]:
    """The names of base tensors that rows are matched by: at these places alone."""
    named = zip(rows["slot"], _keys(rows, PLACE), strict=True)
    return np.array([slot if place in shared else None for slot, place in named], dtype=object)


def _partners(
    left: Columns, right: Columns, names: Sequence[str], known: Mapping[int, int]
) -> dict[int, int]:
    """The rows with equal keys that no other row of their side has, beside those that are known."""
    of_left = _once(left, names, {*known})
    of_right = _once(right, names, {*known.values()})
    return {row: of_right[key] for key, row in of_left.items() if key in of_right}


def _once(rows: Columns, names: Sequence[str], known: Set[int]) -> dict[tuple[Any, ...], int]:
    """The rows by their keys, without those whose keys another row has."""
    keys = {row: key for row, key in enumerate(_keys(rows, names)) if row not in known}
    counts = Counter(keys.values())
    return {key: row for row, key in keys.items() if counts[key] == 1}
