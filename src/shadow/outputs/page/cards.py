"""A card for each of several pairs: the first sentence of its finding, and a small picture of where it moved."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup

from shadow.findings.grid import Picture, by_component, picture
from shadow.findings.summary_rows import GridRow
from shadow.outputs.terminal.typeset import share

MOST_CARDS = 50  # pairs; more are in the table alone
COLUMNS = 40  # of a picture
LEVELS = 6  # colours of the page's scale


def small_pictures(grid: Sequence[GridRow]) -> Markup:
    """An SVG for each component that has layers and anything that moved; classes stand for the colours of the page."""
    drawn = []
    for component, rows in by_component(grid).items():
        found = picture(rows, COLUMNS)
        if found is not None:
            drawn.append(_svg(component, found))
    return Markup("").join(drawn)


def _svg(component: str, found: Picture) -> Markup:
    """Cells of one unit each, equal neighbours as one."""
    label = (
        f"{component}: relative norm of {', '.join(found.modules)} by layer {found.first} to {found.last}, "
        f"{share(found.least)} to {share(found.largest)}"
    )
    rects = []
    for row, cells in enumerate(found.cells):
        column = 0
        for level, several in groupby(_class(value, found) for value in cells):
            width = len(list(several))
            if level:
                rects.append(
                    Markup('<rect class="{}" x="{}" y="{}" width="{}" height="1"/>').format(level, column, row, width)
                )
            column += width
    size = Markup('<svg class="small-heat" role="img" aria-label="{}" viewBox="0 0 {} {}" preserveAspectRatio="none">')
    return size.format(label, len(found.cells[0]), len(found.cells)) + Markup("").join(rects) + Markup("</svg>")


def _class(value: float | None, found: Picture) -> str:
    """The class of a cell; empty where the module is in none of its layers."""
    if value is None:
        return ""
    return "unmoved" if value == 0 else f"heat-{min(LEVELS - 1, int(found.level(value) * LEVELS))}"
