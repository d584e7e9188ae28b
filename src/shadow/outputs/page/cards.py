"""The small picture on the card of a pair: where it moved."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup

from shadow.quantities import share
from shadow.summary.picture import Picture, picture
from shadow.summary.rows import GridRow

COLUMNS = 40
LEVELS = 6  # colours of the page's scale


def small_picture(rows: Sequence[GridRow]) -> Markup:
    """An SVG of one component's modules by layers; classes stand for the colours of the page."""
    drawing = picture(rows, COLUMNS)
    return Markup("") if drawing is None else _svg(rows[0].component, drawing)


def _svg(component: str, drawing: Picture) -> Markup:
    """Cells of one unit each, equal neighbours as one."""
    label = (
        f"{component}: relative norm of {', '.join(drawing.modules)} by layer {drawing.first} to"
        f" {drawing.last}, {share(drawing.least)} to {share(drawing.largest)}"
    )
    rects = []
    for row, cells in enumerate(drawing.cells):
        column = 0
        for level, several in groupby(_class(value, drawing) for value in cells):
            width = len(list(several))
            if level:
                rects.append(
                    Markup('<rect class="{}" x="{}" y="{}" width="{}" height="1"/>').format(
                        level, column, row, width
                    )
                )
            column += width
    size = Markup(
        '<svg class="small-heat" role="img" aria-label="{}" viewBox="0 0 {} {}"'
        ' preserveAspectRatio="none">'
    )
    return (
        size.format(label, len(drawing.cells[0]), len(drawing.cells))
        + Markup("").join(rects)
        + Markup("</svg>")
    )


def _class(value: float | None, drawing: Picture) -> str:
    """The class of a cell; empty where the module is in none of its layers."""
    if value is None:
        return ""
    if value == 0:
        return "unmoved"
    return f"heat-{min(LEVELS - 1, int(drawing.level(value) * LEVELS))}"
