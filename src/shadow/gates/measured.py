"""A finished report as rules see it: its figures by place, its tensors and files, its claims."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from shadow.checks import files
from shadow.checks.answer import Outcome
from shadow.checks.summary import Summary
from shadow.comparing.matching import ComparedReport, compared
from shadow.gates.pair_check import Reading
from shadow.gates.rules import COLUMNS, FAILS, FILES, GATE, HOLDS, UNCHANGED, Metric
from shadow.gates.states import TENSORS, file_states, states
from shadow.reports.columns import ERRORS, ESTIMATED
from shadow.reports.report import Report
from shadow.summary.bootstrap import blocks_of, interval_of_median
from shadow.summary.layer_medians import directions, median_directions
from shadow.summary.numbers import floats, median
from shadow.summary.rows import Row
from shadow.text import several

Scope = tuple[str, ...]  # () the pair, (component,) or (component, module)
NAMED = 5  # figures that a sentence names one by one


@dataclass(frozen=True)
class JudgedFigure:
    """One figure of a report."""

    name: str
    """Its name, with component and module before it."""
    value: float | str | None
    bounds: tuple[float, float] | None = None
    """Its interval over layers; None where it has none."""
    why: str = ""


@dataclass(frozen=True)
class Measured:
    """A finished report as rules see it. Rows are read when a rule needs more than the summary."""

    source: Report
    label: str
    """What to call it: this report, or the baseline."""
    summary: Summary
    reading: Reading | None = None
    """How both sides are read for a check that the report does not answer."""

    @cached_property
    def report(self) -> ComparedReport:
        """Its rows, with every column that a rule may name."""
        return compared(
            self.source,
            self.label,
            more=(*COLUMNS, "kept_reason", *(column.name for column in ERRORS)),
        )

    @cached_property
    def deltas(self) -> pd.DataFrame:
        return self.report.subject("delta")

    @cached_property
    def _rows(self) -> dict[Scope, Summary | Row]:
        """The summary's rows of the pair, of each component and of each module."""
        rows: dict[Scope, Summary | Row] = {(): self.summary}
        rows |= {(row.component,): row for row in self.summary.components}
        return rows | {(row.component, row.module): row for row in self.summary.modules}

    def _figures(self, at: Scope) -> Row:
        """The figures of a place by name; None where one is undefined."""
        row = self._rows[at]
        return row.figures if isinstance(row, Summary) else row

    def places(self, name: Metric) -> list[Scope]:
        """Where the report has what a rule names, in the order of the summary."""
        if name.component is None:
            return [()]
        return [at for at in self._rows if at and name.covers(at[0], at[1] if at[1:] else None)]

    def changed(self, at: Scope, layers: tuple[int, int] | None = None) -> int:
        """How many deltas of a place have been measured, in these layers or in all."""
        if layers is not None:
            return len(self._deltas_of(at, layers))
        return int(self._figures(at)["matrices"])

    @cached_property
    def _tensors(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.source.table("tensors").select(TENSORS).to_pylist()
        return rows

    def states(self, figure: Metric) -> dict[str, str | None]:
        """What is known of each place or file that a rule names: see `shadow.gates.states`."""
        if figure.component == FILES:
            if self.summary.files is None:
                return {}
            return file_states(figure, self.source.table("files").to_pylist())
        deltas = self.deltas[["component", "module", "layer"]].astype(object)
        places = deltas.where(deltas.notna(), None).itertuples(index=False, name=None)
        return states(figure, self._tensors, set(places))

    def is_identical(self, figure: Metric) -> bool:
        """Whether all matrices that a rule names were compared and none changed."""
        matrices = [row for row in self._tensors if row["reason"] != "not_a_matrix"]
        found = states(figure, matrices, set())
        return bool(found) and set(found.values()) == {UNCHANGED}

    def answer(self, claim: Metric) -> tuple[str | None, str]:
        """Whether a gate or a claim holds, None where it is inconclusive, and the reason."""
        if claim.component == GATE:
            gate = next(gate for gate in self.summary.gates if gate.name == claim.metric)
            if gate.figure is None and not gate.passed:
                return None, gate.reason
            return HOLDS if gate.passed else FAILS, gate.reason
        if claim.metric == FILES:
            told = files.CHECK.judge(self.source.table("files").to_pylist())
            state = None if told.outcome is Outcome.INCONCLUSIVE else told.outcome.words
            return state, files.CHECK.say_all(told.reasons)
        found = self.states(Metric("*", None, ""))
        apart = [f"{name} is {state}" for name, state in found.items() if state != UNCHANGED]
        if any(state not in (UNCHANGED, None) for state in found.values()):
            return FAILS, several(apart, NAMED)
        if None in found.values():
            unknown = [name for name, state in found.items() if state is None]
            return None, f"not all of {several(unknown, NAMED)} was compared"
        return (HOLDS, "nothing changed") if found else (None, "nothing was compared")

    def with_intervals(self, at: Scope) -> list[str]:
        """The figures of a place that intervals are made of."""
        return list(self._rows[at].intervals)

    def figure(self, at: Scope, metric: str, layers: tuple[int, int] | None = None) -> JudgedFigure:
        """The summary's figure of that name, else, and in some layers, the median of delta rows."""
        name = ".".join((*at, metric))
        if layers is not None:
            component, module = at[0] if at else None, at[1] if len(at) > 1 else None
            name = str(Metric(component, module, metric, layers))
            return self._median(name, at, metric, layers)
        row = self._rows.get(at)
        if row is None:
            return JudgedFigure(name, None)
        figures = self._figures(at)
        if metric not in figures:
            return self._median(name, at, metric)
        why = "it has no spread"
        if metric in row.intervals:
            why = row.no_interval or f"{row.layers} layers are too few for it"
        return JudgedFigure(name, figures[metric], row.intervals.get(metric), why)

    def errors(
        self, at: Scope, metric: str, layers: tuple[int, int] | None = None
    ) -> tuple[float, float] | None:
        """Between which values a median of estimates lies, over all matrices and over those inside
        layers; None where it is of none.

        The median of what each is at least, and at most: the truth of each lies between.
        """
        is_share = metric == "participation_share"  # of a participation ratio in that of the null
        column = "participation_ratio" if is_share else metric
        if not self.summary.estimated or column not in ESTIMATED:
            return None
        rows = self._deltas_of(at, layers)
        values, errors = floats(rows[column]), np.nan_to_num(floats(rows[f"{column}_error"]))
        if is_share:
            null = floats(rows["null_participation_ratio"])
            values, errors = values / null, errors / null
        every, inside = np.ones(len(rows), dtype=np.bool_), ~np.isnan(floats(rows["layer"]))
        ends = [
            median((values + sign * errors)[some]) for some in (every, inside) for sign in (-1, 1)
        ]
        known = [end for end in ends if end is not None]
        return (min(known), max(known)) if known else None

    def _deltas_of(self, at: Scope, layers: tuple[int, int] | None) -> pd.DataFrame:
        """The delta rows of a place, in these layers or in all."""
        rows = self.deltas
        for key, wanted in zip(("component", "module"), at, strict=False):
            rows = rows[rows[key] == wanted]
        if layers is not None:
            numbers = floats(rows["layer"])
            rows = rows[(numbers >= layers[0]) & (numbers <= layers[1])]
        return rows

    def _median(
        self, name: str, at: Scope, metric: str, layers: tuple[int, int] | None = None
    ) -> JudgedFigure:
        rows = self._deltas_of(at, layers)
        values = floats(rows[metric])
        middle = median(values)
        if metric == "equivalent_directions":
            values = directions(rows.__getitem__)
            middle, _ = median_directions(rows.__getitem__)
        blocks = blocks_of(rows["component"].tolist(), floats(rows["layer"]))
        interval = interval_of_median(values, blocks)
        bounds = None if middle is None else interval.bounds
        return JudgedFigure(name, middle, bounds, interval.reason or "")

    def beyond_last(self, name: Metric) -> str:
        """Says where a rule names layers that the model does not have."""
        numbers = [
            int(row["layer"])
            for row in self._tensors
            if row["layer"] is not None
            and (name.component is None or fnmatch.fnmatchcase(row["component"], name.component))
        ]
        if name.layers is None or not numbers or name.layers[1] <= max(numbers):
            return ""
        return f"; the last layer is {max(numbers)}"

    def why_absent(self, name: Metric) -> str:
        """Why the report has no delta of what a rule names."""
        if name.component == FILES:
            return "the report lists no files: it was made before they were"
        if name.layers is not None:
            at = f"the report has no changed matrix of {replace(name, metric='')}"
            return f"{at}{self.beyond_last(name)}"
        if name.component is None:
            return next(gate.reason for gate in self.summary.gates if gate.name == "changed")
        what = ".".join(filter(None, (name.component, name.module)))
        of_scope = [
            row
            for row in self._tensors
            if name.covers(row["component"] or "", (row["module"] or "") if name.module else None)
        ]
        if not of_scope:
            return f"the report has no {what}"
        if any(row["status"] == "identical" for row in of_scope):
            return f"{what} is identical to the base's"
        reasons = {row["reason"] for row in of_scope if row["status"] == "skipped"} - {None}
        if not reasons:
            return f"{what} has no base"
        return f"{what} was not measured ({', '.join(sorted(reasons))})"
