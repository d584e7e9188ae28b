"""What came of a recipe, as a document: its panels, the figures behind them and what noise alone
would leave.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from shadow.summary.by_layer import PairByLayer
from shadow.targets.families import Pair
from shadow.targets.recipes import Panel, Recipe
from shadow.telling.document import (
    Block,
    Document,
    Image,
    Note,
    Paragraph,
    Section,
    Table,
    named,
    number,
    table_of,
)

ALONE = (
    "Every figure is of the matrices inside layers: a median over the layers unless its recipe says"
    " a mean. Noise alone is what independent entries with the norm of the delta give, or what the"
    " recipe names; rounding alone is what the rounding of the stored weights gives."
)
RUN = (
    "Linearity is R² of a straight line through the stages of a run at even steps, over all entries"
    " of its layers together; noise alone is a walk whose steps are the run's own in random places."
)
HEADS = {"measured": "measured", "noise": "noise alone", "rounding": "rounding alone"}


def recipe_document(
    recipe: Recipe,
    panels: Sequence[Panel],
    measured: Mapping[Pair, PairByLayer],
    faults: Mapping[Pair, str] | None = None,
) -> Document:
    """measured: the pairs that were audited; faults: what went wrong with others."""
    return Document([*_blocks(recipe, panels, measured, faults or {})])


def _blocks(
    recipe: Recipe,
    panels: Sequence[Panel],
    measured: Mapping[Pair, PairByLayer],
    faults: Mapping[Pair, str],
) -> Iterator[Block]:
    yield Section(recipe.title)
    yield Paragraph(f"A claim of {recipe.source}, checked by the recipe {recipe.name}.")
    yield Paragraph(ALONE)
    for panel in panels:
        yield Section(panel.name)
        yield Paragraph(panel.text)
        yield Paragraph(panel.bears_on)
        if panel.run:
            yield Paragraph(RUN)
        if any(pair in measured for pair in panel.drawn):
            yield Image(panel.name, f"{panel.name}.svg")
        yield _table(recipe, panel, measured)
        for pair in dict.fromkeys((*panel.drawn, *panel.pairs)):
            if pair in faults:
                yield Note(f"missing: {pair.full_name}: {faults[pair]}", "fault")


def _table(recipe: Recipe, panel: Panel, measured: Mapping[Pair, PairByLayer]) -> Table:
    figures = panel.figures(recipe.metrics)
    rows = [(pair, measured.get(pair), name) for pair, name in figures]
    fields = [
        named("pair", lambda row: row[0].full_name),
        named("figure", lambda row: row[2]),
        number("layers", lambda row: row[1] and len(row[1].figures[row[2]]), "count", rank=2),
        number("relative norm", lambda row: row[1] and row[1].relative_norm, "share", rank=1),
    ]
    if panel.published:
        told = panel.published
        fields.append(
            number("published", lambda row: told.get(row[0].full_name, {}).get(row[2]), "number")
        )
    fields += [
        number(
            head, lambda row, kind=kind: row[1] and getattr(row[1].whole[row[2]], kind), "number"
        )
        for kind, head in HEADS.items()
    ]
    return table_of(fields, rows)
