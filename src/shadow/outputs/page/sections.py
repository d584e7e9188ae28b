"""The sections of a report on the page: blocks of its document, and the charts among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shadow.checks.summary import Summary
from shadow.reports.provenance import Provenance as Origin
from shadow.summary.depth import LAYERS
from shadow.telling.details import gates_blocks, resampling_note
from shadow.telling.document import (
    Block,
    Figures,
    Note,
    Paragraph,
    Provenance,
    Table,
)
from shadow.telling.report import component_table, report_document
from shadow.telling.screen import faults


@dataclass(frozen=True)
class Chart(Block):
    """A chart that the page's script draws, with its controls."""

    name: str
    """One of those in charts.html.j2."""


@dataclass(frozen=True)
class Fold(Block):
    """Blocks that are shown when their title is clicked."""

    title: str
    blocks: Sequence[Block]
    is_open: bool = False


@dataclass(frozen=True)
class Beside(Block):
    """Blocks beside others, where there is room."""

    left: Sequence[Block]
    right: Sequence[Block]


@dataclass(frozen=True)
class PageSection:
    """A section of a pair: its name in addresses, what the contents call it, its heading."""

    name: str
    contents: str
    title: str
    blocks: Sequence[Block]
    is_half: bool = False
    """Whether it stands beside the one before or after it, where there is room."""


WIDE = {"headline", "heat", "components", "modules", "files"}  # others stand beside a neighbour
TITLES: Mapping[str, tuple[str, str]] = {
    "headline": ("Finding", ""),
    "heat": ("Heat map", "Layer by module"),
    "claims": ("Other explanations", "Other explanations"),
    "gates": ("Gates", "Gates"),
    "spectra": ("Spectra", "Spectra"),
    "depth": ("Depth", "Depth profiles"),
    "concentration": ("Concentration", "Concentration"),
    "energy": ("Energy", "Update energy"),
    "components": ("Components", "Side by side"),
    "modules": ("Modules", "By module"),
    "skipped": ("Not measured", "Not measured"),
    "files": ("Files", "Files beside the weights"),
    "provenance": ("Provenance", "Provenance"),
}


def report_blocks(summary: Summary, origin: Origin, where: str) -> dict[str, list[Block]]:
    """The blocks of a report's document by the section that they stand in."""
    blocks: dict[str, list[Block]] = {}
    for block in report_document(summary, origin.told, Path(where)).blocks:
        blocks.setdefault(block.about, []).append(block)
    return blocks


def sections_of(
    summary: Summary,
    blocks: Mapping[str, Sequence[Block]],
    origin: Origin,
    charts: Mapping[str, Sequence[Block]],
) -> list[PageSection]:
    """The sections of a pair that have anything in them."""
    answers = [_untitled(block, TITLES["claims"][1]) for block in blocks.get("claims", ())]
    content: dict[str, Iterable[Block]] = {
        "headline": _finding(blocks),
        "claims": answers or [Paragraph("No other explanation applies.", quiet=True)],
        "gates": _gates(summary),
        "skipped": blocks.get("skipped")
        or [Paragraph("Every tensor was measured or is identical.")],
        "provenance": [
            *blocks["provenance"],
            Fold(
                "Checkpoints, settings and method",
                [Provenance(origins(origin)), resampling_note(summary)],
            ),
        ],
    }
    if charts:
        content |= charts
        content["modules"] = blocks.get("modules", [Paragraph("Nothing changed.")])
    if len(summary.components) > 1:
        content["components"] = [replace(component_table(summary.components), when="always")]
    if "files" in blocks:
        content["files"] = blocks["files"]
    # what failed is shown, and needs the width
    wide = WIDE | {"claims", "gates"} if faults(summary) else WIDE
    return [
        PageSection(name, *titles, blocks=[*content[name]], is_half=name not in wide)
        for name, titles in TITLES.items()
        if name in content
    ]


def far_note(count: int) -> list[Block]:
    """What is said of cells in layers that are too many to draw."""
    text = f"Not drawn: {count:,} cells of layers from {LAYERS:,} on."
    return [Paragraph(text, quiet=True)] if count else []


def _finding(blocks: Mapping[str, Sequence[Block]]) -> list[Block]:
    """What was found beside its picture, the main figures below, and all figures on request."""
    said = [block for block in blocks["finding"] if not isinstance(block, Figures)]
    said.sort(key=lambda block: isinstance(block, Note))
    pictures = blocks.get("picture", ())
    figures = [block for block in blocks["finding"] if isinstance(block, Figures)]
    return [
        *([Beside(said, pictures)] if pictures else said),
        *(block for block in figures if block.when != "full"),
        *(Fold("All figures", [block]) for block in figures if block.when == "full"),
    ]


def _untitled(block: Block, title: str) -> Block:
    """A table without its title where that stands above it already."""
    if isinstance(block, Table) and block.title == title:
        return replace(block, title="")
    return block


def _gates(summary: Summary) -> Iterator[Block]:
    """Tables are shown on request, that of the gates at once where one failed."""
    for number, block in enumerate(gates_blocks(summary)):
        if isinstance(block, Table):
            is_gates = number == 0
            is_open = is_gates and bool(faults(summary))
            title = block.title
            if is_gates and not summary.failed_gates:
                title = f"All {len(summary.gates)} gates passed"
            yield Fold(title, [_untitled(block, block.title)], is_open=is_open)
        else:
            yield block


def origins(origin: Origin) -> list[tuple[str, str]]:
    """Which checkpoints were compared, and what made the numbers, as far as the report says it."""
    sides = [
        (f"{side} {key}", text)
        for side, checkpoint in (("base", origin.base), ("tuned", origin.tuned))
        for key, text in checkpoint.as_json().items()
    ]
    told = origin.told
    draws = told["settings"]["method"].get("nulls")
    libraries = sorted((told.get("libraries") or {}).items())
    rows = [
        *sides,
        ("nulls", f"{draws} sign flips" if draws else "not sampled"),
        ("computed in", told.get("compute_dtype")),
        ("with", ", ".join(f"{name} {version}" for name, version in libraries)),
        ("started", told.get("started")),
    ]
    return [(name, str(text)) for name, text in rows if text]
