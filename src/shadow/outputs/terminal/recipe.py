"""What came of a recipe: a table for each panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from shadow.outputs.terminal.typeset import number
from shadow.summary.by_layer import HEADS, PairByLayer, medians
from shadow.targets.families import Pair
from shadow.targets.recipes import Panel, Recipe
from shadow.text import visible


def recipe_view(
    recipe: Recipe, panels: Sequence[Panel], measured: Mapping[Pair, PairByLayer]
) -> RenderableType:
    """Medians over layers of every audited pair, by panel, beside those of noise and rounding."""
    parts: list[RenderableType] = []
    for panel in panels:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("pair", style="cyan", overflow="fold")
        table.add_column("figure", overflow="fold")
        for head in HEADS:
            table.add_column(head, justify="right")
        for pair in panel.pairs:
            for metric in recipe.metrics:
                cells = ["-"] * len(HEADS)
                if pair in measured:
                    figures = medians(measured[pair].figures[metric])
                    cells = [number(value) for value in figures]
                table.add_row(Text(visible(pair.full_name)), metric, *cells)
        parts += [
            Rule(Text(visible(panel.name), "bold"), align="left", style="dim"),
            Text(visible(panel.text)),
            table,
        ]
    parts.append(
        Text("medians over layers; alone: what noise or rounding of that size would give", "dim")
    )
    return Group(*parts)
