"""A comparison as a document: who is compared, the verdicts and the figures behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from shadow.quantities import DASH, Kind, Quantity, bounds_text, text_of
from shadow.telling.document import (
    Block,
    Document,
    FigureRow,
    Figures,
    Headline,
    Note,
    Paragraph,
    Provenance,
    Section,
    Table,
    named,
    number,
    table_of,
    worded,
)
from shadow.telling.scores import scored_set_blocks
from shadow.telling.wording import capital
from shadow.text import counted

if TYPE_CHECKING:
    from shadow.comparing.comparison import Comparison
    from shadow.comparing.contrast import Contrast
    from shadow.comparing.differences import Difference
    from shadow.comparing.directions import DeltaDirections

# counted in the lab: docs/compare.md, whose table tests/telling/test_comparison.py compares
HOW_SURE = (
    "in the lab, with AdamW, 0 of 140 pairs that differ in their seed alone were called more or"
    " less concentrated, and 15 of 99 pairs of narrow and broad data were missed"
)
KNOWN_BY = {"commit": "its commit", "content": "its content"}
NO_CHANCE = 0.005  # a shared rounding of less is not shown
KINDS: Mapping[str, Kind] = {"difference": "difference", "log ratio": "log_ratio"}


def comparison_document(comparison: Comparison) -> Document:
    """Every report against the first."""
    return Document([*_blocks(comparison)])


def _blocks(comparison: Comparison) -> Iterator[Block]:
    from shadow.comparing.comparison import MARGIN

    first = comparison.reports[0].label
    contrasts = [contrast for contrast in comparison.contrasts if contrast.first == first]
    yield Section("compare")
    rows = [
        FigureRow(report.label, report.pair, f"of {report.family}  {report.folder}/")
        for report in comparison.reports
    ]
    yield Figures(rows, close=True)
    if comparison.not_contrasted:
        yield Headline(f"{capital(comparison.not_contrasted)}.", "warning")
    if comparison.scores is not None:
        yield from scored_set_blocks(comparison.scores)
    for contrast in contrasts:
        if len(contrasts) > 1:
            yield Section(f"{first} against {contrast.second}")
        yield from _contrast(contrast)
    not_shown = list(comparison.claims["not_shown"])
    if any(row.joint is None and row.no_joint is None for row in contrasts):
        not_shown.append("whether the deltas point the same way: add --joint")
    origin = [("not shown", "; ".join(not_shown))]
    if comparison.margin == MARGIN and any(
        row.relation == "one base" and row.figures[0].difference is not None for row in contrasts
    ):
        origin.insert(0, ("how sure", HOW_SURE))
    yield Provenance(origin)


def _contrast(contrast: Contrast) -> Iterator[Block]:
    """The verdict, the figures behind it and what makes it doubtful."""
    relation: str = contrast.relation
    if contrast.verified:
        relation += f", known by {KNOWN_BY[contrast.verified]}"
    matched = contrast.matched
    layers = counted(matched.layers, "layer", "layers")
    over = f"{counted(matched.matrices, 'matrix', 'matrices')} of both"
    over += f"; the {matched.in_layers:,} in {layers} decide"
    rows = [FigureRow("relation", relation), FigureRow("over", over)]
    if matched.alone_in_first or matched.alone_in_second:
        alone = f"{matched.alone_in_first:,} of {contrast.first} alone"
        rows.append(
            FigureRow("left out", f"{alone}, {matched.alone_in_second:,} of {contrast.second}")
        )
    if margins := _margins(contrast):
        rows.append(FigureRow("margin", margins))
    yield Figures(rows)
    sure = contrast.verdict in ("more concentrated", "less concentrated")
    yield Headline(f"{capital(contrast.sentence)}.", "" if sure else "warning")
    for text in contrast.warnings:
        yield Note(text, "warning")
    if contrast.joint is not None:
        yield Paragraph(directions_text(contrast.joint))
    elif contrast.no_joint is not None:
        yield Note(f"where the deltas point is not known: {contrast.no_joint}", "warning")
    yield _figures_apart(contrast)


def directions_text(joint: DeltaDirections) -> str:
    """Where two deltas point, beside chance: two sentences."""
    if joint.cosine is None:
        return "Both models changed no matrix in common, so their deltas have no cosine."
    than = {1: "more than chance", -1: "less than chance", 0: "no more than chance"}
    chance = f"0 ± {text_of(joint.chance_cosine, 'ratio')}"
    master = joint.chance_cosine_master
    if master is not None and master > NO_CHANCE:
        chance += (
            f", up to {text_of(master, 'fixed')} if both trainings started from a copy of the base"
            " in more bits than it is stored in"
        )
    cosine = text_of(joint.cosine, "thousandths")
    of = counted(joint.matrices, "matrix", "matrices")
    text = f"Over the {of} that both changed"
    if joint.left_out:
        text += f" ({joint.left_out:,} others left out)"
    text += f", the two deltas have a cosine of {cosine}, {than[joint.beyond_chance]} ({chance})."
    if joint.overlap is None:
        return text
    return (
        f"{text} Their leading {joint.directions} directions overlap by"
        f" {text_of(joint.overlap, 'share')}; by chance {text_of(joint.chance_overlap, 'share')}."
    )


def _margins(contrast: Contrast) -> str:
    """Those of differences and of ratios: `0.050, of ratios x 1.18`."""
    of_kind: dict[Kind, list[float]] = {}
    for row in contrast.figures:
        if row.margin is not None:
            of_kind.setdefault(KINDS[row.scale], []).append(row.margin)
    texts = []
    for kind, margins in of_kind.items():
        text = bounds_text((min(margins), max(margins)), kind).replace("+", "")
        texts.append(text if kind == "difference" else f"of ratios {text}")
    return ", ".join(texts)


def _figures_apart(contrast: Contrast) -> Table:
    """A row for each figure: both medians, the paired difference with its spread over layers, and
    what it says.
    """
    from shadow.comparing.differences import FIGURES

    # that they are medians says the title of the table
    titles = {figure.name: figure.title.removeprefix("median ") for figure in FIGURES}
    levels = [figure.level for figure in contrast.figures if figure.level is not None]
    spread = f"spread, {100 * min(levels):.3g} %" if levels else "spread"

    def median(value: float | None, figure: Difference) -> Quantity:
        return Quantity(value, "share" if figure.figure == "relative_norm" else "number")

    fields = [
        named("figure", lambda row: titles[row.figure]),
        number(contrast.first, lambda row: median(row.first, row)),
        number(contrast.second, lambda row: median(row.second, row)),
        number(
            f"{contrast.first} - {contrast.second}",
            lambda row: Quantity(row.difference, KINDS[row.scale]),
        ),
        number(spread, _spread, rank=1),
    ]
    title = (
        f"{contrast.first} and {contrast.second}: medians over matrices. {contrast.first} -"
        f" {contrast.second}: the median of the differences matrix by matrix, which is not the"
        " difference of the two medians"
    )
    fields.append(worded("verdict", lambda row: row.verdict or "not in the verdict"))
    return table_of(fields, contrast.figures, title)


def _spread(figure: Difference) -> str:
    """How far a difference would move with other layers."""
    if figure.low is None or figure.high is None:
        return DASH
    return bounds_text((figure.low, figure.high), KINDS[figure.scale])
