"""The pictures of where a pair moved: beside its finding, and small on its card."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from shadow.quantities import share
from shadow.summary.picture import FLAT, Picture, picture
from shadow.summary.rows import Row
from shadow.text import visible

COLUMNS = 40
LEVELS = 6  # colours of the page's scale


class Scale(NamedTuple):
    """The norms between which colours lie, by their logarithm."""

    least: float
    """Above 0."""
    largest: float

    def level(self, value: float) -> int:
        """The colour of a norm above 0: from 0 to LEVELS - 1, which all have if they are flat."""
        if self.largest <= FLAT * self.least:
            return LEVELS - 1
        place = math.log(value / self.least) / math.log(self.largest / self.least)
        return min(LEVELS - 1, int(place * LEVELS))


def drawn_picture(rows: Sequence[Row], scale: Scale | None = None) -> Markup:
    """The modules of one component by layers, with the names of the modules.

    scale: that of several pictures; without one the picture has a scale of its own, and shows it.
    """
    drawing = picture(rows, COLUMNS)
    if drawing is None:
        return Markup("")
    own = Scale(drawing.least, drawing.largest)
    names = Markup("").join(
        Markup("<li>{}</li>").format(visible(module)) for module in drawing.modules
    )
    picture_of = Markup('<div class="cells"><ol>{}</ol><div>{}</div></div>').format(
        names, _svg(rows[0].component, drawing, scale or own)
    )
    if scale is not None:
        return picture_of
    layers = f"layers {drawing.first} to {drawing.last}"
    return picture_of + scale_line(own, layers, unmoved=_has_unmoved([drawing]))


def shared_scale(pictures: Iterable[Sequence[Row]]) -> tuple[Scale, bool] | None:
    """The scale of pictures, and whether something in them did not move; None if nothing did."""
    drawings = [one for rows in pictures if (one := picture(rows, COLUMNS)) is not None]
    if not drawings:
        return None
    scale = Scale(min(one.least for one in drawings), max(one.largest for one in drawings))
    return scale, _has_unmoved(drawings)


def scale_line(scale: Scale, note: str, *, unmoved: bool) -> Markup:
    """The colours of a scale between its ends, and what else there is to say of it."""
    colours = Markup("").join(
        Markup('<i class="heat-{}"></i>').format(level) for level in range(LEVELS)
    )
    rest = Markup(' <i class="unmoved"></i> did not move') if unmoved else Markup("")
    return Markup('<p class="scale">{} <span>{}</span> {}{} · {}</p>').format(
        share(scale.least), colours, share(scale.largest), rest, note
    )


def _has_unmoved(drawings: Iterable[Picture]) -> bool:
    return any(value == 0 for one in drawings for cells in one.cells for value in cells)


def _svg(component: str, drawing: Picture, scale: Scale) -> Markup:
    """Cells of one unit each: a path for each colour of the page."""
    label = (
        f"{component}: relative norm of {', '.join(drawing.modules)} by layer {drawing.first} to"
        f" {drawing.last}, {share(drawing.least)} to {share(drawing.largest)}"
    )
    lines: dict[str, str] = {}  # by colour
    for row, cells in enumerate(drawing.cells):
        for column, value in enumerate(cells):
            if colour := _class(value, scale):
                lines[colour] = lines.get(colour, "") + f"M{column} {row}.04h1v.92h-1z"
    paths = Markup("").join(
        Markup('<path class="{}" d="{}"/>').format(*line) for line in sorted(lines.items())
    )
    return Markup(
        '<svg role="img" aria-label="{}" viewBox="0 0 {} {}" preserveAspectRatio="none">{}</svg>'
    ).format(visible(label), len(drawing.cells[0]), len(drawing.cells), paths)


def _class(value: float | None, scale: Scale) -> str:
    """The class of a cell; empty where the module is in none of its layers."""
    if value is None:
        return ""
    return f"heat-{scale.level(value)}" if value else "unmoved"
