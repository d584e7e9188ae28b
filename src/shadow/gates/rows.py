"""Rows of a report's tables that rules read beside the summary's record: the states of places
and files, the energy that a figure rests on, and the error of estimates.

A place changed if an entry of one of its tensors did, including vectors; it is unchanged if all of
its tensors were compared and none did; otherwise its state is unknown. Integers are left out, and
so are tied tensors, which are measured elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np

from shadow.checks.files import EVERY
from shadow.checks.patterns import Pattern
from shadow.checks.summary import Summary
from shadow.comparing.matching import ComparedReport
from shadow.gates.rules import CHANGED, UNCHANGED
from shadow.places.architecture import Place
from shadow.reports.columns import ESTIMATED
from shadow.summary.bootstrap import Mask
from shadow.summary.record import Medians, keys_of
from shadow.summary.tables import COPIED, Columns, are, is_known
from shadow.telling.reading import AuditReport

State = str | None  # None: not known
Scope = tuple[str, ...]  # () the pair, (component,) or (component, module)
LEFT_OUT = ("tied", "not_float", "adapter")  # reasons that say nothing of a change
# kinds of files of which a change of bytes matters only if something in them differs
LOOKED_INTO = ("config", "generation", "chat_template", "tokenizer", "code")
NULL = "null_participation_ratio"
# columns that must be known of the matrices that a figure rests on
COLUMNS = {
    **{name: (name,) for name in keys_of(Medians)},
    "participation_share": ("participation_ratio", NULL),
    "spiked": ("spikes",),
    "zero_share": ("zero_share",),
    "rank_ceiling": ("rank_ceiling",),
}
OF_DEPTH = ("depth_entropy", "effective_layers")  # figures that rest on matrices in layers alone
LEAST = 1e-300  # instead of a norm of nothing
# columns of tensors.parquet that say of a change
OF_A_TENSOR = (
    *("component", "layer", "module", "expert"),
    *("status", "reason", "relative_norm", "compared", "cast"),
)


@dataclass(frozen=True)
class TensorState:
    """A row of tensors.parquet, as far as it says of a change."""

    place: Place
    reason: str | None
    cast: str | None
    is_changed: bool | None
    """True if an entry changed; None if unknown."""


def is_changed(row: Mapping[str, Any]) -> bool | None:
    """True if an entry of a tensor changed, by its row of tensors.parquet; None if unknown."""
    if row["status"] == "identical":
        return False
    if row["status"] == "measured":
        return None if row["reason"] else True  # with a reason it has no partner
    if row["reason"] != "not_a_matrix" or row["compared"] == 0:
        return None
    norm = row["relative_norm"]
    if norm is None and row["cast"] is None:
        return False if row["compared"] else None
    return norm is None or norm > 0  # from 0, no norm is relative


@dataclass(frozen=True)
class ReportRows:
    """The rows of a report, each table read when it is asked for."""

    source: AuditReport
    summary: Summary
    label: str  # what to call it: this report, or the baseline

    @cached_property
    def report(self) -> ComparedReport:
        """The report as one side of a comparison."""
        return ComparedReport(self.label, self.source)

    @cached_property
    def tensors(self) -> list[TensorState]:
        """The rows of tensors.parquet."""
        table = self.source.table("tensors").select(OF_A_TENSOR)
        grown = {(row.component, row.module) for row in self.summary.vocabulary}
        tensors = []
        for row in table.to_pylist():
            component = row["component"] or ""
            module = row["module"] or ""
            change = is_changed(row)
            # only rows that both vocabularies have were compared
            if row["status"] == "identical" and (component, module) in grown:
                change = None
            tensor = TensorState(
                place=Place(component, row["layer"], module, row["expert"]),
                reason=row["reason"],
                cast=row["cast"],
                is_changed=change,
            )
            tensors.append(tensor)
        return tensors

    @cached_property
    def deltas(self) -> dict[Scope, Columns]:
        """The delta rows on which the figures of each place rest, with energy."""
        deltas = self.report.deltas
        norms = np.nan_to_num(deltas["frobenius_norm"])
        largest = max(norms, default=0.0) or LEAST
        # over the largest, so that squares are finite
        deltas = deltas.added(energy=(norms / largest) ** 2)
        places: dict[Scope, Columns] = {(): deltas}
        places |= deltas.groups("component")
        places |= deltas.groups("component", "module")
        return places

    def share(self, scopes: Sequence[Scope], metric: str) -> float:
        """The share of the energy of change, in these places together, that lies in the matrices
        that a figure rests on; 1 if nothing changed.
        """
        known = 0.0
        total = 0.0
        for scope in scopes:
            if scope in self.deltas:
                energy = self.deltas[scope]["energy"]
                of_known = energy[self._is_known(scope, metric)]
                known += float(of_known.sum())
                total += float(energy.sum())
        return known / total if total else 1.0

    def _is_known(self, scope: Scope, metric: str) -> Mask:
        """A mask of the matrices of a place that a figure rests on."""
        deltas = self.deltas[scope]
        known = np.ones(len(deltas), dtype=np.bool_)
        if len(scope) == 1 and metric == "relative_norm":  # which is of all together
            return known
        for name in COLUMNS.get(metric, ()):
            known &= is_known(deltas[name])
        if metric in OF_DEPTH:
            component = scope[0] if scope else self.summary.main_component
            known &= are(deltas["component"], component or "")
            known &= is_known(deltas["layer"])
        return known

    def error(self, scope: Scope, metric: str) -> float:
        """The largest possible error of a median of estimates: the largest error of one. 0 of what
        was not estimated.
        """
        is_share = metric == "participation_share"  # of a participation ratio in that of the null
        column = "participation_ratio" if is_share else metric
        is_estimate = self.summary.estimated and column in ESTIMATED
        deltas = self.deltas.get(scope)
        if deltas is None or not is_estimate:
            return 0.0
        errors = np.nan_to_num(deltas[f"{column}_error"])
        if is_share:
            errors = errors / deltas[NULL]
        return float(max(errors, default=0.0))

    def are_identical(self, pattern: Pattern) -> bool:
        """True if all matrices of these places were compared and none changed, or none by more than
        rounding where the figures are those of others.
        """
        are_others = self.summary.figures.matrices_rounded > 0
        matrices = []
        for tensor in self.tensors:
            if are_others and tensor.cast in COPIED:
                tensor = replace(tensor, is_changed=False)
            if tensor.reason != "not_a_matrix":
                matrices.append(tensor)
        by_place = states(pattern, matrices)
        return set(by_place.values()) == {UNCHANGED}


def states(pattern: Pattern, tensors: Iterable[TensorState]) -> dict[str, State]:
    """The state of each place that a rule names, by name: `changed`, `unchanged` or None.

    Each layer of a range is a place of its own.
    """
    changes: dict[str, list[bool | None]] = {}
    places = set()
    for tensor in tensors:
        place = tensor.place
        places.add(place)
        if tensor.reason not in LEFT_OUT and pattern.covers(place):
            name = place.component
            if pattern.module != "*":
                name += f".{place.module}"
            if pattern.layers:
                name += f".layers.{place.layer}"
            changes.setdefault(name, []).append(tensor.is_changed)
    if changes and (beyond := pattern.beyond(places)):
        changes[beyond] = [None]  # which the model does not have
    return {name: _state(of_place) for name, of_place in changes.items()}


def _state(changes: Sequence[bool | None]) -> State:
    if any(changes):
        return CHANGED
    return None if None in changes else UNCHANGED


def file_states(pattern: str, name: str, rows: Iterable[Mapping[str, Any]]) -> dict[str, State]:
    """The state of each file that a rule names, by path: `changed`, `added`, `removed`, `unchanged`
    or None. Rows are those of files.parquet.

    If no file matches, they are unchanged under the name of the figure, unless not all files are
    known.
    """
    by_path: dict[str, State] = {}
    tuned_first = sorted(rows, key=lambda row: row["side"] != "tuned")
    for row in tuned_first:
        path = str(row["path"])
        kind = str(row["kind"])
        words = (row["differs"] or "").split()
        state = None
        if row["state"] != "unknown":
            state = str(row["state"])
        if path == EVERY:
            by_path[f"{row['side']} side"] = None
        elif path in by_path:
            continue
        elif fnmatchcase(kind, pattern):
            is_same = state == "same" or (kind in LOOKED_INTO and not words)
            by_path[path] = UNCHANGED if state and is_same else state
        elif any(fnmatchcase(f"{kind}.{word}", pattern) or word == pattern for word in words):
            by_path[path] = state
    return by_path or {name: UNCHANGED}
