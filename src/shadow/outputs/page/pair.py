"""One report on the page: its sections, and the JSON of its charts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from shadow.checks.summary import Summary
from shadow.comparing.lineage import Step
from shadow.outputs.page.cells import cells_of, drawn_cells, places
from shadow.outputs.page.curves import points_for, short, thinned_spectra
from shadow.outputs.page.html import script_json
from shadow.outputs.page.sections import (
    LISTED,
    PageSection,
    report_blocks,
    sections_of,
    skipped_rows,
)
from shadow.summary.columns import columns_of
from shadow.summary.depth import LAYERS
from shadow.summary.rows import Row
from shadow.telling.document import Block, Headline, Picture
from shadow.telling.reading import SummarisedReport, read_step
from shadow.text import visible


@dataclass(frozen=True)
class PairSection:
    """One pair on the page."""

    number: int
    where: str
    """Its folder below the one that was asked for."""
    summary: Summary
    blocks: Mapping[str, Sequence[Block]]
    """Those of its document, by what they are about."""
    sections: Sequence[PageSection]
    data: Markup
    """JSON for the charts."""
    step: Step | None = None
    """The pair as a step of a lineage; None of siblings."""

    @property
    def name(self) -> str:
        return f"{self.summary.family} {self.summary.pair}"

    @property
    def failed(self) -> list[str]:
        """The gates that it does not pass, by name, but for those that are unknown."""
        unknown = self.summary.unknown_gates
        return [gate.name for gate in self.summary.failed_gates if gate not in unknown]

    def overview(self) -> dict[str, object]:
        """What the charts of several pairs need of this one; numbers have four digits."""
        figures, intervals = self.summary.figures, self.summary.intervals
        return {
            "pair": self.number,
            "name": self.name,
            "failed": self.failed,
            "concentration": short(figures.concentration),
            "interval": _rounded(intervals.get("concentration")),
            "relative_norm": short(figures.relative_norm_overall),
            "norm_interval": _rounded(intervals.get("relative_norm_overall")),
            "matrices": figures.matrices,
        }

    @property
    def headlines(self) -> list[Block]:
        """What its card says."""
        return [one for one in self.blocks["finding"] if isinstance(one, Headline)]

    @property
    def pictures(self) -> list[Sequence[Row]]:
        """How far the modules of each component moved, for its card."""
        blocks = self.blocks.get("picture", ())
        return [block.rows for block in blocks if isinstance(block, Picture)]


def read_pair(report: SummarisedReport, where: str, number: int, pairs: int) -> PairSection:
    """A finished report as a page of so many pairs shows it.

    Raises ShadowError when it cannot be read.
    """
    summary = report.summary
    rows, tensors = columns_of(report.table("matrices")), report.table("tensors")
    cells = cells_of(rows, columns_of(tensors))
    deltas = rows.where((rows["subject"] == "delta") & (rows["null_edge"] > 0))
    edges = dict(zip(places(deltas), deltas["null_edge"].tolist(), strict=True))
    curves = len(set(zip(places(rows), rows["subject"], strict=True)))
    place = {cell.place: index for index, cell in enumerate(cells)}
    spectra = thinned_spectra(report, place, edges=edges, points=points_for(curves * pairs))
    drawn = {
        "name": f"{summary.family} {summary.pair}",
        **drawn_cells(rows, cells, pairs),
        "layers": _layer_counts(summary),
        "spectra": spectra,
        "overall": {
            "concentration": summary.figures.concentration,
            "interval": _rounded(summary.intervals.get("concentration")),
        },
        "components": [_rounded(row) for row in summary.components],
        "modules_table": [_rounded(row) for row in summary.modules],
        "depth": [_rounded(row) for row in summary.depth if row.layer < LAYERS],
    }
    blocks = report_blocks(summary, report.provenance, where)
    skipped = skipped_rows(tensors, max(40, LISTED // pairs))
    return PairSection(
        number=number,
        where=where,
        summary=summary,
        blocks=blocks,
        sections=sections_of(
            summary, blocks, report.provenance, skipped, has_spectra=len(rows["subject"]) > 0
        ),
        data=script_json(drawn),
        step=read_step(report, where),
    )


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
