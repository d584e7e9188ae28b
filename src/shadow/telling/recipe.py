"""What came of a recipe, as a document: its panels, the figures behind them and what noise alone
would leave.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from shadow.quantities import Quantity
from shadow.summary.by_layer import HEADS, PairByLayer, medians
from shadow.targets.families import Pair
from shadow.targets.recipes import Panel, Recipe
from shadow.telling.document import (
    Block,
    Cell,
    Column,
    Document,
    Image,
    Note,
    Paragraph,
    Section,
    Table,
)

ALONE = (
    "Every figure is a median over the layers; alone: what noise of the delta's norm, or the"
    " rounding of the stored weights, would give."
)


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
    yield Paragraph(f"Of {recipe.source}, by the recipe {recipe.name}.")
    yield Paragraph(ALONE)
    for panel in panels:
        yield Section(panel.name)
        yield Paragraph(panel.text)
        yield Paragraph(panel.bears_on)
        if any(pair in measured for pair in panel.pairs):
            yield Image(panel.name, f"{panel.name}.svg")
        yield _table(recipe, panel, measured)
        for pair in panel.pairs:
            if pair in faults:
                yield Note(f"missing: {pair.full_name}: {faults[pair]}", "fault")


def _table(recipe: Recipe, panel: Panel, measured: Mapping[Pair, PairByLayer]) -> Table:
    columns = [Column("pair", "name"), Column("figure", "name"), Column("layers", rank=2)]
    columns += [Column("relative norm", rank=1), *map(Column, HEADS)]
    rows = []
    for pair in panel.pairs:
        for metric in recipe.metrics:
            cells: list[Cell] = [pair.full_name, metric]
            if pair in measured:
                figures = measured[pair].figures[metric]
                cells += [Quantity(len(figures), "count")]
                cells += [Quantity(measured[pair].relative_norm, "share")]
                cells += [Quantity(value, "number") for value in medians(figures)]
            else:
                cells += [None] * (2 + len(HEADS))
            rows.append(cells)
    return Table(columns, rows)
