"""The pairs of a page by concentration, as a table and a chart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from shadow.outputs.page.pair import PairSection
from shadow.outputs.page.strips import NOISE, Axis, Strip, Strips
from shadow.quantities import Kind, text_of
from shadow.telling.document import Cell, Table, named, number, table_of, worded
from shadow.telling.screen import quantity


def rank(section: PairSection) -> tuple[bool, float, str]:
    """Most concentrated first; after them the pairs whose figures no gate lets count."""
    concentration = section.summary.figures.concentration
    if concentration is None:
        concentration = -math.inf
    return bool(section.failed), -concentration, section.name


def ranking_table(ranked: Sequence[PairSection]) -> Table:
    """A row for each pair, with its place where its figures count."""
    places = {
        section.number: str(place)
        for place, section in enumerate(ranked, 1)
        if not section.failed and section.summary.figures.concentration is not None
    }

    def figure(name: str, kind: Kind) -> Callable[[PairSection], Cell]:
        return lambda section: quantity(section.summary, name, kind)

    fields = [
        number("rank", lambda section: places.get(section.number)),
        named("pair", "name"),
        number("concentration", figure("concentration", "fixed")),
        number("relative norm", figure("relative_norm_overall", "share")),
        number("spikes", figure("spikes", "number")),
    ]
    if any(section.failed for section in ranked):
        fields.append(worded("gates failed", lambda section: ", ".join(section.failed)))
    return table_of(fields, ranked)


def ranking_chart(ranked: Sequence[PairSection]) -> Strips | None:
    """The median concentration of every pair that has one; None where none has."""
    pairs = [
        (pair, value, pair.summary.intervals.get("concentration"))
        for pair in ranked
        if (value := pair.summary.figures.concentration) is not None
    ]
    if not pairs:
        return None
    reach = [0.1, *(end for _, value, bounds in pairs for end in (value, *(bounds or ())))]
    axis = Axis("concentration", min(-0.05, *reach), 1.05 * max(reach))
    strips = [
        Strip(
            pair.name,
            hue="soft" if pair.failed else "tuned",
            dots=[(axis.at(value), 50.0, text_of(value, "fixed"))],
            interval=axis.span(bounds),
            is_hollow=bool(pair.failed),
            link=f"#pair-{pair.number}",
        )
        for pair, value, bounds in pairs
    ]
    label = f"Median concentration of {len(pairs)} pairs, the most concentrated first"
    zones, lines = [(axis.span(NOISE), "soft")], [(axis.at(0.0), "", "text")]
    return Strips("ranking", label, axis, strips, zones=zones, lines=lines)
