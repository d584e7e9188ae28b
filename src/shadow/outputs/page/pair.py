"""One report as the page tells it: what stands in the HTML, and the JSON of its charts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from shadow.findings.depth import LAYERS
from shadow.findings.lineage import Step
from shadow.findings.reference import OPTIMIZERS, Position, runs
from shadow.findings.summary import Summary, read_summary
from shadow.outputs.page.cells import Matrices, cells_of, drawn_cells
from shadow.outputs.page.curves import points_for, short, thinned_spectra
from shadow.outputs.page.html import script_json
from shadow.reports.provenance import METADATA_KEY
from shadow.reports.tables import read_tables
from shadow.text import visible

LISTED = 400  # skipped tensors of a page that are named one by one, or 40 of each pair


@dataclass(frozen=True)
class PairSection:
    """One pair on the page. where is its folder below the one that was asked for; data is JSON for the charts.

    skipped are tensors that were not measured, as many as the page has room for. step: the pair as a step of a lineage;
    None for siblings.
    """

    number: int
    where: str
    summary: Summary
    provenance: Mapping[str, Any]
    skipped: list[dict[str, Any]]
    data: Markup
    step: Step | None = None

    @property
    def name(self) -> str:
        return f"{self.summary.family} {self.summary.pair}"

    @property
    def failed(self) -> list[str]:
        """The gates that it does not pass, by name."""
        return [gate.name for gate in self.summary.failed_gates]

    def overview(self) -> dict[str, Any]:
        """What the charts of several pairs need of this one."""
        figures, intervals = self.summary.figures, self.summary.intervals
        return {
            "pair": self.number,
            "name": self.name,
            "failed": self.failed,
            "label": self.summary.label,
            "concentration": short(figures["concentration"]),
            "interval": _shorter(intervals.get("concentration")),
            "relative_norm": short(figures["relative_norm_overall"]),
            "norm_interval": _shorter(intervals.get("relative_norm_overall")),
            "matrices": figures["matrices"],
            "gains": [{"name": name, "gain": short(gain)} for name, gain in self._gains() if gain is not None],
        }

    def _gains(self) -> list[tuple[str, float | None]]:
        """Gains in scores that others measured: means of groups, then single benchmarks."""
        groups = [
            (f"{row['group']}, mean of its benchmarks", row["gain"])
            for row in self.summary.score_groups
            if row["group"]
        ]
        single = [
            (", ".join(filter(None, (row["benchmark"], row["metric"]))), row["gain"]) for row in self.summary.scores
        ]
        return [*groups, *single]

    def origins(self) -> list[tuple[str, str]]:
        """Where the numbers come from, as titles and texts."""
        return [(title, text) for title, text in _origins(self.where, self.provenance) if text]


def read_pair(folder: Path, where: str, number: int, pairs: int) -> PairSection:
    """Read a finished report for a page of so many pairs. Raises ShadowError when it cannot be read."""
    summary, provenance = read_summary(folder)
    tables = read_tables(folder, ("matrices", "tensors"))
    rows, tensors = Matrices(tables["matrices"]), tables["tensors"]
    metadata = rows.table.schema.metadata[METADATA_KEY]
    cells = cells_of(rows, tensors)
    nulls = zip(rows.places, rows.subjects, rows.numbers("null_edge").tolist(), strict=True)
    edges = {place: edge for place, subject, edge in nulls if subject == "delta" and edge > 0}
    curves = len(set(zip(rows.places, rows.subjects, strict=True)))
    place = {cell.place: index for index, cell in enumerate(cells)}
    spectra = thinned_spectra(folder / "spectra.parquet", place, edges, points_for(curves * pairs), metadata)
    known = reference_distributions(summary.reference, runs())
    drawn = {
        "name": f"{summary.family} {summary.pair}",
        **drawn_cells(rows, cells, pairs),
        "layers": _layer_counts(summary),
        "spectra": spectra,
        "overall": {
            "concentration": summary.figures["concentration"],
            "interval": _shorter(summary.intervals.get("concentration")),
        },
        "references": [{"name": name, "values": [short(value) for value in values]} for name, values in known.items()],
        "components": [_rounded(vars(row)) for row in summary.components],
        "modules_table": [_rounded(vars(row)) for row in summary.modules],
        "depth": [_rounded(vars(row)) for row in summary.depth if row.layer < LAYERS],
    }
    skipped = _skipped(tensors, max(40, LISTED // pairs))
    return PairSection(number, where, summary, provenance, skipped, script_json(drawn))


def reference_distributions(place: Position | None, table: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Median concentrations of the known trainings that a pair is held against, by what they are called on the page.

    place is the summary's reference, null where the pair is like none of them; table is like
    `shadow.findings.reference.runs()`.
    """
    if place is None:
        return {}
    optimizers = (place.optimizer,) if place.optimizer else OPTIMIZERS
    own = [row for row in table if row["short_side"] == place.short_side and row["optimizer"] in optimizers]
    found = {
        f"{data} trainings": [float(row["concentration"]) for row in own if row["data"] == data]
        for data in ("narrow", "broad")
    }
    return {name: values for name, values in found.items() if values}


def _shorter(bounds: tuple[float, float] | None) -> list[float | int | None] | None:
    return None if bounds is None else [short(bound) for bound in bounds]


def _rounded(value: Any) -> Any:
    """A row of the summary with its numbers shortened."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return short(value) if isinstance(value, float) else value


def _layer_counts(summary: Summary) -> dict[str, int]:
    """How many layers of each component were compared, the most first."""
    return dict(Counter(visible(row.component) for row in summary.depth).most_common())


def _skipped(tensors: pa.Table, most: int) -> list[dict[str, Any]]:
    """The first skipped tensors by reason, with what is null as None."""
    wanted = ["tensor", "side", "shape", "dtype", "component", "reason", "detail"]
    skipped = tensors.select(wanted).filter(pc.equal(tensors["status"], "skipped")).to_pylist()
    named = sorted(skipped, key=lambda row: (row["reason"] is None, row["reason"]))[:most]
    return [{**row, "shape": " × ".join(map(str, row["shape"]))} for row in named]


def _origins(where: str, provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    settings, libraries = provenance["settings"], provenance.get("libraries") or {}
    method, chosen = settings["method"], settings.get("chosen") or {}
    filters = "; ".join(f"{name} {', '.join(map(str, values))}" for name, values in chosen.items() if values)
    seconds = provenance.get("seconds")
    return [
        *((f"{side} {key}", str(provenance[side].get(key) or "")) for side in ("base", "tuned")
          for key in ("repo", "commit", "fingerprint")),
        ("relation", str(settings.get("relation", ""))),
        ("report", where),
        ("shadow", f"{provenance['version']}, schema {provenance['schema']}"),
        ("precision", str(method["precision"])),
        ("nulls", f"{method['nulls']} sign flips, seed {method.get('seed')}" if method.get("nulls") else "not sampled"),
        ("only", filters),
        ("computed in", str(provenance.get("compute_dtype") or "")),
        ("on", str(provenance.get("device") or "")),
        ("with", ", ".join(f"{name} {version}" for name, version in sorted(libraries.items()))),
        ("started", str(provenance.get("started") or "")),
        ("took", "" if seconds is None else f"{seconds:.1f} s"),
    ]  # fmt: skip
