"""One report on the page: its sections, and the JSON of the charts that its script draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from shadow.checks.summary import Summary
from shadow.outputs.page.data import cells_of, drawn_cells, thinned_spectra
from shadow.outputs.page.html import script_json
from shadow.summary.record import LAYERS
from shadow.summary.tables import columns_of
from shadow.telling.document import Block, Figures, Note, Paragraph, TableBlock
from shadow.telling.reading import AuditReport
from shadow.telling.report import faults, report_document

# the heading of each section by its name in addresses, in their order
TITLES: Mapping[str, str] = {
    "finding": "Finding",
    "heat": "Layer by module",
    "claims": "Other explanations",
    "gates": "Gates",
    "spectra": "Spectra",
    "depth": "Depth profiles",
    "components": "By component",
    "modules": "By module",
    "skipped": "Not measured",
    "files": "Files beside the weights",
    "provenance": "Provenance",
}
HALVES = ("spectra", "depth", "claims", "gates", "skipped", "provenance")  # beside a neighbour
NOTHING = {  # what a section says that would be empty
    "modules": "Nothing changed.",
    "claims": "No other explanation applies.",
    "skipped": "Every tensor was measured or is identical.",
}


@dataclass(frozen=True)
class PageSection:
    """A section of a pair: its blocks, and those that are shown when their title is clicked."""

    name: str
    blocks: Sequence[Block]
    folded: Sequence[Block] = ()
    fold: str = ""
    is_open: bool = False

    @property
    def title(self) -> str:
        return TITLES[self.name]

    @property
    def is_half(self) -> bool:
        """Return whether it stands beside a neighbour; what failed needs the width."""
        return self.name in HALVES and not self.is_open


@dataclass(frozen=True)
class PairSection:
    """One pair on the page."""

    number: int
    summary: Summary
    sides: Sequence[Block]
    sections: Sequence[PageSection]
    data: Markup
    """JSON for the charts."""

    @property
    def name(self) -> str:
        return f"{self.summary.family} {self.summary.pair}"

    @property
    def failed(self) -> list[str]:
        """The gates that it does not pass, by name, but for those that are unknown."""
        unknown = self.summary.unknown_gates
        return [gate.name for gate in self.summary.failed_gates if gate not in unknown]

    @property
    def rank(self) -> tuple[bool, float, str]:
        """Most concentrated first; after them the pairs whose figures no gate lets count."""
        concentration = self.summary.figures.concentration
        return bool(self.failed), math.inf if concentration is None else -concentration, self.name


def read_pair(report: AuditReport, where: str, number: int, pairs: int) -> PairSection:
    """A finished report as a page of so many pairs shows it.

    Raises ShadowError when it cannot be read.
    """
    summary = report.summary
    rows, tensors = columns_of(report.table("matrices")), report.table("tensors")
    every = cells_of(rows, columns_of(tensors))
    cells = {place: cell for place, cell in every.items() if (place[1] or 0) < LAYERS}
    place = {place: index for index, place in enumerate(cells)}
    spectra = thinned_spectra(report, place, 3 * len(cells) * pairs)
    blocks: dict[str, list[Block]] = {}
    for block in report_document(summary, report.provenance.recorded, where).blocks:
        blocks.setdefault(block.about, []).append(block)
    charts: dict[str, list[Block]] = {}
    if len(rows):
        charts = {"heat": [], "spectra": [], "depth": []}
        if far := len(every) - len(cells):
            text = f"Not drawn: {far:,} cells of layers from {LAYERS:,} on."
            charts["heat"].append(Paragraph(text, quiet=True))
    return PairSection(
        number=number,
        summary=summary,
        sides=blocks["sides"],
        sections=_sections(summary, {**blocks, **charts}),
        data=script_json({**drawn_cells(rows, cells), "spectra": spectra}),
    )


def _sections(summary: Summary, blocks: Mapping[str, Sequence[Block]]) -> list[PageSection]:
    """The sections of a pair that have anything in them."""
    sections = []
    for name, title in TITLES.items():
        own = list(blocks.get(name, ()))
        if name == "finding":
            own.sort(key=lambda block: (isinstance(block, Figures), isinstance(block, Note)))
            full = [one for one in own if isinstance(one, Figures) and one.when == "full"]
            shown = [one for one in own if one not in full]
            sections.append(PageSection(name, shown, full, "All figures"))
        elif name == "gates":
            (table,) = (block for block in own if isinstance(block, TableBlock))
            passed = f"All {len(summary.gates)} gates passed"
            fold = table.title if summary.failed_gates else passed
            is_open = bool(faults(summary))
            sections.append(PageSection(name, [], [replace(table, title="")], fold, is_open))
        elif own or name in blocks:
            untitled = [
                replace(block, title="")
                if isinstance(block, TableBlock) and block.title.startswith(title)
                else block
                for block in own
            ]
            sections.append(PageSection(name, untitled))
        elif name in NOTHING:
            sections.append(PageSection(name, [Paragraph(NOTHING[name], quiet=True)]))
    return sections
