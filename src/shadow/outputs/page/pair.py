"""One report as the page tells it: what stands in the HTML, and the JSON of its charts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import pyarrow as pa
from markupsafe import Markup

from shadow.claims.reference import OPTIMIZERS, Position, ReferenceRun, runs
from shadow.claims.summary import Summary
from shadow.comparing.lineage import Step
from shadow.outputs.page.cells import Matrices, cells_of, drawn_cells
from shadow.outputs.page.curves import points_for, short, thinned_spectra
from shadow.outputs.page.html import script_json
from shadow.reports.provenance import Provenance
from shadow.summary.depth import LAYERS
from shadow.telling.reading import SummarisedReport, read_step
from shadow.text import visible

LISTED = 400  # skipped tensors of a page that are named one by one, or 40 of each pair


class SkippedTensor(TypedDict):
    """A tensor that was not measured, as the page lists it; None where tensors.parquet has null."""

    tensor: str
    side: str  # base or tuned
    shape: str  # `64 × 32`
    dtype: str | None
    component: str | None
    reason: str | None  # of shadow.reasons
    detail: str | None


class DrawnGain(TypedDict):
    """What a pair gained in a benchmark, or on average in a group of them, as charts have it."""

    name: str
    gain: float | int | None


class Overview(TypedDict):
    """What the charts of several pairs need of one. Numbers have four significant digits."""

    pair: int  # its number on the page, from 0
    name: str
    failed: list[str]  # gates
    label: str
    concentration: float | int | None
    interval: list[float | int | None] | None  # of the concentration over layers: low, high
    relative_norm: float | int | None  # 0 or more
    norm_interval: list[float | int | None] | None
    matrices: float | int | None  # that changed
    gains: list[DrawnGain]


@dataclass(frozen=True)
class PairSection:
    """One pair on the page."""

    number: int
    """Its number there, from 0."""

    where: str
    """Its folder below the one that was asked for."""

    summary: Summary
    """Its summary."""

    provenance: Provenance
    """How it was measured."""

    skipped: list[SkippedTensor]
    """Tensors that were not measured, as many as the page has room for."""

    data: Markup
    """JSON for the charts."""

    step: Step | None = None
    """The pair as a step of a lineage; None where it follows no other and none follows it, and for
    siblings.
    """

    @property
    def name(self) -> str:
        """`family base..tuned`."""
        return f"{self.summary.family} {self.summary.pair}"

    @property
    def failed(self) -> list[str]:
        """The gates that it does not pass, by name."""
        return [gate.name for gate in self.summary.failed_gates]

    def overview(self) -> Overview:
        """What the charts of several pairs need of this one."""
        figures, intervals = self.summary.figures, self.summary.intervals
        return {
            "pair": self.number,
            "name": self.name,
            "failed": self.failed,
            "label": self.summary.label,
            "concentration": short(figures.concentration),
            "interval": _shorter(intervals.get("concentration")),
            "relative_norm": short(figures.relative_norm_overall),
            "norm_interval": _shorter(intervals.get("relative_norm_overall")),
            "matrices": figures.matrices,
            "gains": [
                {"name": name, "gain": short(gain)}
                for name, gain in self._gains()
                if gain is not None
            ],
        }

    def _gains(self) -> list[tuple[str, float | None]]:
        """Gains in scores that others measured: means of groups, then single benchmarks."""
        summary = self.summary
        groups = [
            (f"{row.group}, mean of its benchmarks", row.gain)
            for row in summary.score_groups
            if row.group
        ]
        single = [
            (", ".join(filter(None, (row.benchmark, row.metric))), row.gain)
            for row in summary.scores
        ]
        return [*groups, *single]

    def origins(self) -> list[tuple[str, str]]:
        """Where the numbers come from, as titles and texts."""
        return [(title, text) for title, text in _origins(self.where, self.provenance) if text]


def read_pair(
    report: SummarisedReport, where: str, number: int, pairs: int, *, with_step: bool = False
) -> PairSection:
    """A finished report as a page of so many pairs tells it; with_step: as a step of a lineage too.

    Raises ShadowError when it cannot be read.
    """
    summary = report.summary
    rows, tensors = Matrices(report.table("matrices")), report.table("tensors")
    cells = cells_of(rows, tensors)
    nulls = zip(rows.places, rows.subjects, rows.numbers("null_edge").tolist(), strict=True)
    edges = {place: edge for place, subject, edge in nulls if subject == "delta" and edge > 0}
    curves = len(set(zip(rows.places, rows.subjects, strict=True)))
    place = {cell.place: index for index, cell in enumerate(cells)}
    spectra = thinned_spectra(report, place, edges=edges, points=points_for(curves * pairs))
    known = reference_distributions(summary.reference, runs())
    drawn = {
        "name": f"{summary.family} {summary.pair}",
        **drawn_cells(rows, cells, pairs),
        "layers": _layer_counts(summary),
        "spectra": spectra,
        "overall": {
            "concentration": summary.figures.concentration,
            "interval": _shorter(summary.intervals.get("concentration")),
        },
        "references": [
            {"name": name, "values": [short(value) for value in values]}
            for name, values in known.items()
        ],
        "components": [_rounded(vars(row)) for row in summary.components],
        "modules_table": [_rounded(vars(row)) for row in summary.modules],
        "depth": [_rounded(vars(row)) for row in summary.depth if row.layer < LAYERS],
    }
    return PairSection(
        number=number,
        where=where,
        summary=summary,
        provenance=report.provenance,
        skipped=_skipped(tensors, max(40, LISTED // pairs)),
        data=script_json(drawn),
        step=read_step(report, where) if with_step else None,
    )


def reference_distributions(
    place: Position | None, table: Sequence[ReferenceRun]
) -> dict[str, list[float]]:
    """Median concentrations of the known trainings that a pair is held against, by what they are
    called on the page.

    place is the summary's reference, null where the pair is like none of them; table is like
    `shadow.claims.reference.runs()`.
    """
    if place is None:
        return {}
    optimizers: Sequence[str] = OPTIMIZERS
    if place.optimizer:
        optimizers = (place.optimizer,)
    near = [
        run for run in table if run.short_side == place.short_side and run.optimizer in optimizers
    ]
    by_data = {
        f"{data} trainings": [run.concentration for run in near if run.data == data]
        for data in ("narrow", "broad")
    }
    return {name: values for name, values in by_data.items() if values}


def _shorter(bounds: tuple[float, float] | None) -> list[float | int | None] | None:
    if bounds is None:
        return None
    return [short(bound) for bound in bounds]


def _rounded(value: object) -> object:
    """A row of the summary with its numbers shortened."""
    if isinstance(value, float):  # first, as most are
        return short(value)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value


def _layer_counts(summary: Summary) -> dict[str, int]:
    """How many layers of each component were compared, the most first."""
    return dict(Counter(visible(row.component) for row in summary.depth).most_common())


def _skipped(tensors: pa.Table, most: int) -> list[SkippedTensor]:
    """The first skipped tensors by reason."""
    wanted = ["tensor", "side", "shape", "dtype", "component", "reason", "detail"]
    reasons = tensors["reason"].to_pylist()
    # in Python, since Arrow's filters import pandas, which takes half a second
    places = [
        place for place, status in enumerate(tensors["status"].to_pylist()) if status == "skipped"
    ]
    places.sort(key=lambda place: (reasons[place] is None, reasons[place]))
    told = tensors.select(wanted)
    rows = [told.slice(place, 1).to_pylist()[0] for place in places[:most]]
    return [
        SkippedTensor(
            tensor=row["tensor"],
            side=row["side"],
            shape=" × ".join(map(str, row["shape"])),
            dtype=row["dtype"],
            component=row["component"],
            reason=row["reason"],
            detail=row["detail"],
        )
        for row in rows
    ]


def _origins(where: str, provenance: Provenance) -> list[tuple[str, str]]:
    """Titles and texts; an empty text where an older report does not tell it."""
    filters = [
        f"{name} {', '.join(map(str, values))}"
        for name, values in (
            ("components", provenance.components),
            ("layers", provenance.layers),
            ("modules", provenance.modules),
        )
        if values
    ]
    nulls = "not sampled"
    if provenance.nulls:
        nulls = f"{provenance.nulls} sign flips, seed {provenance.seed}"
    took = ""
    if provenance.seconds is not None:
        took = f"{provenance.seconds:.1f} s"
    libraries = (f"{name} {version}" for name, version in sorted(provenance.libraries.items()))
    sides = [
        (f"{side} {key}", text or "")
        for side, checkpoint in (("base", provenance.base), ("tuned", provenance.tuned))
        for key, text in checkpoint.as_json().items()
    ]
    return [
        *sides,
        ("relation", provenance.relation or ""),
        ("report", where),
        ("shadow", f"{provenance.version}, schema {provenance.schema}"),
        ("precision", provenance.precision),
        ("nulls", nulls),
        ("only", "; ".join(filters)),
        ("computed in", provenance.compute_dtype or ""),
        ("on", provenance.device or ""),
        ("with", ", ".join(libraries)),
        ("started", provenance.started or ""),
        ("took", took),
    ]
