"""A finished report as rules see it: its figures by place, its tensors and files, its claims.

A place changed if an entry of one of its tensors did, including vectors; it is unchanged if all of
its tensors were compared and none did; otherwise its state is unknown. Integers are left out, and
so are tied tensors, which are measured elsewhere.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from shadow.checks import files
from shadow.checks.answer import Outcome
from shadow.checks.files import EVERY
from shadow.checks.patterns import Pattern
from shadow.checks.summary import Summary
from shadow.comparing.matching import ComparedReport
from shadow.errors import ShadowError
from shadow.gates.rules import CHANGED, FAILS, FILES, GATE, HOLDS, UNCHANGED, Metric
from shadow.places.architecture import Place
from shadow.reports.columns import ESTIMATED
from shadow.reports.folders import finished_metadata, refuse_remains
from shadow.reports.report import Report
from shadow.run.runtime import Access, Runtime
from shadow.summary.making import MEDIANS
from shadow.summary.record import OverLayers
from shadow.summary.tables import (
    COPIED,
    OF_CASTS,
    OF_SIDES,
    Columns,
    are,
    columns_of,
    floats,
    only_rounded,
)
from shadow.telling.reading import AuditReport
from shadow.text import several

if TYPE_CHECKING:
    from shadow.checks.answer import Question, Verification

State = str | None  # None: not known
TENSORS = (
    *("tensor", "side", "component", "layer", "module", "expert", "status", "reason", "detail"),
    *("relative_norm", "compared", "cast"),
)
LEFT_OUT = ("tied", "not_float", "adapter")  # reasons that say nothing of a change
# kinds of files of which a change of bytes matters only if something in them differs
LOOKED_INTO = ("config", "generation", "chat_template", "tokenizer", "code")
Scope = tuple[str, ...]  # () the pair, (component,) or (component, module)
# columns that must be known of the matrices that a figure rests on, where its name is none
COLUMNS = {
    "participation_share": ("participation_ratio", "null_participation_ratio"),
    "spiked": ("spikes",),
    "zero_share": ("zero_share",),
    "rank_ceiling": ("rank_ceiling",),
}
OF_DEPTH = ("depth_entropy", "effective_layers")  # figures that rest on matrices in layers alone
LEAST = 1e-300  # instead of a norm of nothing
NAMED = 5  # figures that a sentence names one by one


OFFLINE = Runtime(access=Access(offline=True))


@dataclass(frozen=True)
class JudgedFigure:
    """One figure of a report."""

    name: str  # its name, with component and module before it
    value: float | None
    bounds: tuple[float, float] | None = None  # its interval over layers; None where it has none
    why: str = ""


@dataclass(frozen=True)
class JudgedReport:
    """A finished report as rules see it. Rows are read when a rule needs more than the summary."""

    source: Report
    label: str  # what to call it: this report, or the baseline
    summary: Summary
    reading: Runtime = OFFLINE
    """How both sides are read for a check that the report does not answer."""

    @cached_property
    def report(self) -> ComparedReport:
        """Return how it was made, as one side of a comparison."""
        return ComparedReport(self.label, self.source)

    @cached_property
    def rows(self) -> dict[Scope, OverLayers]:
        """The summary's rows of the pair, of each component and of each module."""
        rows: dict[Scope, OverLayers] = {(): self.summary}
        rows |= {(row.component,): row for row in self.summary.components}
        return rows | {(row.component, row.module): row for row in self.summary.modules}

    def places(self, name: Metric) -> list[Scope]:
        """Return the places of the report that a rule names, in the order of the summary."""
        if name.component is None:
            return [()]
        return [at for at in self.rows if at and name.covers(at[0], at[1] if at[1:] else None)]

    @cached_property
    def _changed(self) -> dict[Scope, Columns]:
        """Return the delta rows on which the figures of each place rest, with energy."""
        tensors = columns_of(self.source.table("tensors").select(OF_CASTS))
        table = self.source.table("matrices")
        deltas = columns_of(table.filter(pc.equal(table["subject"], "delta")))
        is_rounded = only_rounded(deltas.each(*OF_SIDES), tensors.each(*OF_CASTS))
        deltas = deltas.where(~is_rounded)
        norms = np.nan_to_num(deltas["frobenius_norm"])
        # over the largest, so that squares are finite
        deltas = deltas.added(energy=(norms / max([*norms, LEAST])) ** 2)
        by_module = deltas.groups("component", "module")
        return {(): deltas, **dict(deltas.groups("component")), **dict(by_module)}

    def resting(self, at: Scope, metric: str) -> tuple[float, float]:
        """Return how much energy of change is in the matrices that a figure rests on, and in all
        of its place.
        """
        if at not in self._changed:
            return 0.0, 0.0
        deltas = self._changed[at]
        known = np.ones(len(deltas), dtype=np.bool_)
        names = COLUMNS.get(metric, (metric,) if metric in MEDIANS else ())
        for name in () if (len(at), metric) == (1, "relative_norm") else names:  # which is of all
            known &= ~np.isnan(deltas[name])
        if metric in OF_DEPTH:
            component = at[0] if at else self.summary.main_component
            known &= are(deltas["component"], component or "") & ~np.isnan(deltas["layer"])
        energy = deltas["energy"]
        return float(energy[known].sum()), float(energy.sum())

    @cached_property
    def _tensors(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.source.table("tensors").select(TENSORS).to_pylist()
        grown = {(row.component, row.module) for row in self.summary.vocabulary}
        for row in rows:  # of which only common rows were compared
            if row["status"] == "identical" and (row["component"], row["module"]) in grown:
                row["status"] = "skipped"
        return rows

    def states(self, figure: Metric) -> dict[str, str | None]:
        """Return the state of each place or file that a rule names, by name."""
        if figure.component == FILES:
            if self.summary.files is None:
                return {}
            return file_states(figure, self.source.table("files").to_pylist())
        assert figure.place is not None, "a place, or files"
        return states(figure.place, self._tensors)

    def is_identical(self, figure: Metric) -> bool:
        """Return whether all matrices that a rule names were compared and none changed, or none by
        more than rounding where the figures are those of others.
        """
        matrices = [row for row in self._tensors if row["reason"] != "not_a_matrix"]
        if self.summary.figures.matrices_rounded:
            rounded = {"status": "identical"}
            matrices = [row | rounded if row["cast"] in COPIED else row for row in matrices]
        place = Pattern("", figure.component or "*", module=figure.module or "*")
        found = states(place, matrices)
        return bool(found) and set(found.values()) == {UNCHANGED}

    def answer(self, claim: Metric) -> tuple[str | None, str]:
        """Return the state of a gate or a claim, None if inconclusive, and the reason."""
        if claim.component == GATE:
            gate = next(gate for gate in self.summary.gates if gate.name == claim.metric)
            if gate.figure is None and not gate.passed:
                return None, gate.reason
            return HOLDS if gate.passed else FAILS, gate.reason
        if claim.metric == FILES:
            recorded = files.CHECK.judge(self.source.table("files").to_pylist())
            state = None if recorded.outcome is Outcome.INCONCLUSIVE else recorded.outcome.words
            return state, files.CHECK.say_all(recorded.reasons)
        found = states(Pattern("*"), self._tensors)
        apart = [f"{name} is {state}" for name, state in found.items() if state != UNCHANGED]
        if any(state not in (UNCHANGED, None) for state in found.values()):
            return FAILS, several(apart, NAMED)
        if None in found.values():
            unknown = [name for name, state in found.items() if state is None]
            return None, f"not all of {several(unknown, NAMED)} was compared"
        return (HOLDS, "nothing changed") if found else (None, "nothing was compared")

    def figure(self, at: Scope, metric: str) -> JudgedFigure:
        """A figure of the summary, with its interval over layers."""
        name, row = ".".join((*at, metric)), self.rows.get(at)
        if row is None:
            return JudgedFigure(name, None)
        value = getattr(row if at else self.summary.figures, metric)
        why = (metric in row.intervals and row.no_interval) or "no spread"
        return JudgedFigure(name, value, row.intervals.get(metric), why)

    def error(self, at: Scope, metric: str) -> float:
        """Return the largest possible error of a median of estimates: the largest error of one."""
        is_share = metric == "participation_share"  # of a participation ratio in that of the null
        column = "participation_ratio" if is_share else metric
        if not self.summary.estimated or column not in ESTIMATED:
            return 0.0
        keys, null = ["subject", "component", "module"], "null_participation_ratio"
        rows = self.source.columns("matrices", [*keys, f"{column}_error", null])
        for key, wanted in zip(keys, ("delta", *at), strict=False):
            rows = rows[rows[key] == wanted]
        errors = np.nan_to_num(floats(rows[f"{column}_error"]))
        return float(max(errors / floats(rows[null]) if is_share else errors, default=0.0))

    def why_absent(self, name: Metric) -> str:
        """Return why the report has no figure that a rule names."""
        if name.place is not None or name.component == FILES:
            return f"the report has no {name.place.text if name.place else FILES}"
        if name.component is None:
            return next(str(one.reason) for one in self.summary.gates if one.name == "changed")
        what = ".".join(filter(None, (name.component, name.module)))
        by = " by more than rounding" if self.summary.figures.matrices_rounded else ""
        return f"the report has no matrix of {what} that was measured and changed{by}"


def read_measured(
    folder: Path,
    label: str = "this report",
    summary: Summary | None = None,
    reading: Runtime = OFFLINE,
) -> JudgedReport:
    """Read a finished report as rules see it, with its summary unless that is given.

    reading: for checks that the report does not answer. Raises ShadowError.
    """
    report = AuditReport(folder)
    assert report.provenance  # read now, so that a folder without a report is found here
    return JudgedReport(report, label, summary or report.summary, reading)


def read_baselines(
    against: Path, folders: Sequence[Path], pairs: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], JudgedReport]:
    """The report of each pair (family, pair) that has one in folders, which are those in or below
    against.

    A single pair may also be compared with a report of any name, if against is that report's own
    folder. Raises ShadowError if one cannot be read.
    """
    if len(pairs) == 1 and finished_metadata(against) is not None:
        return {pairs[0]: _baseline(against)}
    baselines = {}
    for folder in folders:
        metadata = finished_metadata(folder)
        if metadata is None:
            refuse_remains(folder)
        if metadata is not None and (which := (metadata["family"], metadata["pair"])) in pairs:
            if which in baselines:
                raise ShadowError(
                    f"{against} has two reports of {':'.join(which)}",
                    "name the folder of one of them",
                )
            baselines[which] = _baseline(folder)
    return baselines


def _baseline(folder: Path) -> JudgedReport:
    """Read a baseline completely: the next measurement may overwrite it."""
    baseline = read_measured(folder, "the baseline")
    assert baseline.report is not None
    return baseline


def checked(asked: Question, summary: Summary, runtime: Runtime) -> Verification:
    """Return the answer to a check that a report does not contain.

    Raises ShadowError if a side has changed since its audit.
    """
    from shadow.checks.registry import question, verify
    from shadow.run.sides import client_for, find_audited, reference_of

    sides = summary.base, summary.tuned
    references = [reference_of(side) for side in sides]
    every = [part for reference in references for _, part in reference.parts]
    runtime.say(f"{summary.family}:{summary.pair}: check {asked}")
    with tempfile.TemporaryDirectory() as scratch, client_for(every):
        found = [
            find_audited(side, reference, runtime, Path(scratch) / str(number))
            for number, (side, reference) in enumerate(zip(sides, references, strict=True))
        ]
        if references[0] != references[1]:  # a side is read, and freed, for itself
            runtime = replace(runtime, found=dict(zip(references, found, strict=True)))
        asked_of = question(asked.claim, references, moved=asked.moved, frozen=asked.frozen)
        return verify(asked_of, runtime)


def states(pattern: Pattern, tensors: Iterable[Mapping[str, Any]]) -> dict[str, State]:
    """Return the state of each place that a rule names, by name: `changed`, `unchanged` or None.

    Each layer of a range is a place of its own. tensors: rows of tensors.parquet, with TENSORS.
    """
    found: dict[str, list[bool | None]] = {}
    places = set()
    for row in tensors:
        component, layer, module = row["component"] or "", row["layer"], row["module"] or ""
        place = Place(component, layer, module, row["expert"])
        places.add(place)
        if row["reason"] not in LEFT_OUT and pattern.covers(place):
            parts = [component, *([module] if pattern.module != "*" else [])]
            parts += [f"layers.{layer}"] if pattern.layers else []
            found.setdefault(".".join(parts), []).append(_is_changed(row))
    if found and (beyond := pattern.beyond(places)):
        found[beyond] = [None]  # which the model does not have
    return {
        name: CHANGED if any(of_place) else None if None in of_place else UNCHANGED
        for name, of_place in found.items()
    }


def _is_changed(row: Mapping[str, Any]) -> bool | None:
    """Return whether an entry of a tensor changed; None if unknown."""
    if row["status"] == "identical":
        return False
    if row["status"] == "measured":
        return None if row["reason"] else True  # with a reason it has no partner
    if row["reason"] != "not_a_matrix" or row["compared"] == 0:
        return None
    if row["relative_norm"] is not None:
        return bool(row["relative_norm"] > 0)
    if row["cast"] is not None:  # from 0, of which no norm is relative
        return True
    return False if row["compared"] else None


def file_states(figure: Metric, rows: Sequence[Mapping[str, Any]]) -> dict[str, State]:
    """Return the state of each file that a rule names, by path: `changed`, `added`, `removed`,
    `unchanged` or None. Rows are those of files.parquet.

    If no file matches, they are unchanged under the name of the figure, unless not all files are
    known.
    """
    pattern = figure.module or ""
    found: dict[str, State] = {}
    for row in sorted(rows, key=lambda row: row["side"] != "tuned"):
        path = str(row["path"])
        if path == EVERY:
            found[f"{row['side']} side"] = None
        elif path not in found:
            kind, words = str(row["kind"]), (row["differs"] or "").split()
            state = None if row["state"] == "unknown" else str(row["state"])
            if fnmatchcase(kind, pattern):
                is_same = state == "same" or (kind in LOOKED_INTO and not words)
                found[path] = UNCHANGED if state and is_same else state
            elif any(fnmatchcase(f"{kind}.{word}", pattern) or word == pattern for word in words):
                found[path] = state
    return found or {str(figure): UNCHANGED}
