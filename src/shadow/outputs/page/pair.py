"""One report on the page: its sections, and the JSON of the charts that its script draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from shadow.checks.summary import Summary
from shadow.comparing.lineage import Step
from shadow.outputs.page.cells import cells_of, drawn_cells
from shadow.outputs.page.curves import points_for, thinned_spectra
from shadow.outputs.page.html import script_json
from shadow.outputs.page.sections import (
    Chart,
    PageSection,
    far_note,
    report_blocks,
    sections_of,
)
from shadow.outputs.page.strips import concentration_chart, energy_chart
from shadow.summary.columns import columns_of
from shadow.summary.depth import LAYERS
from shadow.summary.rows import Row
from shadow.telling.document import Block, Paragraph, Picture
from shadow.telling.reading import SummarisedReport, read_step

NOTHING = Paragraph("There is nothing to draw.", quiet=True)


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
    every = cells_of(rows, columns_of(tensors))
    cells = [cell for cell in every if (cell.place[1] or 0) < LAYERS]
    deltas = rows.where(rows["subject"] == "delta")
    place = {cell.place: index for index, cell in enumerate(cells)}
    spectra = thinned_spectra(report, place, points_for(3 * len(cells) * pairs))
    blocks = report_blocks(summary, report.provenance, where)
    charts: dict[str, list[Block]] = {}
    if len(rows):
        charts = {"heat": [Chart("heat"), *far_note(len(every) - len(cells))]}
        charts |= {"spectra": [Chart("spectra")], "depth": [Chart("depth")]}
        charts["concentration"] = [concentration_chart(deltas, summary) or NOTHING]
        charts["energy"] = [energy_chart(summary) or NOTHING]
    return PairSection(
        number=number,
        where=where,
        summary=summary,
        blocks=blocks,
        sections=sections_of(summary, blocks, report.provenance, charts),
        data=script_json({**drawn_cells(rows, cells), "spectra": spectra}),
        step=read_step(report, where),
    )
