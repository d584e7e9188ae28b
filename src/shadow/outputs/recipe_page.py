"""What came of a recipe, as a Markdown page: its panels, the figures behind them and what noise
alone would leave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from shadow.files import read_start
from shadow.outputs.markdown import cell, plain, table
from shadow.outputs.terminal.typeset import number, share
from shadow.summary.by_layer import HEADS, PairByLayer, medians
from shadow.targets.families import Pair
from shadow.targets.recipes import Panel, Recipe

MARK = "<!-- shadow-audit recipe -->"  # the last line of a page, by which an own one is known again
LARGEST = 10_000_000  # bytes of a file that may be such a page


def is_our_page(path: Path) -> bool:
    """Was the file written by `shadow reproduce`?"""
    content = read_start(path, LARGEST) or b""
    return content.rstrip().endswith(MARK.encode())


def recipe_page(
    recipe: Recipe,
    panels: Sequence[Panel],
    measured: Mapping[Pair, PairByLayer],
    faults: Mapping[Pair, str],
) -> str:
    """The page, ending with a newline. measured: the pairs that were audited; faults: what went
    wrong with others.
    """
    lines = [
        f"# {plain(recipe.title)}",
        "",
        f"Of {plain(recipe.source)}, by the recipe {cell(recipe.name)}.",
        "",
    ]
    lines += [
        (
            "Every figure is a median over the layers. *Noise alone* is what independent entries of"
            " the delta's norm would give, *rounding alone* what the rounding of the stored weights"
            " would."
        ),
        "",
    ]
    for panel in panels:
        lines += [f"## {plain(panel.name)}", "", plain(panel.text), "", plain(panel.bears_on), ""]
        there = [measured[pair] for pair in panel.pairs if pair in measured]
        if there:
            lines += [f"![{plain(panel.name)}]({panel.name}.svg)", "", *_figures(recipe, there), ""]
        failed = [pair for pair in panel.pairs if pair in faults]
        lines += [f"Missing: {cell(pair.full_name)}: {plain(faults[pair])}\n" for pair in failed]
    return "\n".join([*lines, MARK]) + "\n"


def _figures(recipe: Recipe, pairs: Sequence[PairByLayer]) -> list[str]:
    rows = []
    for pair in pairs:
        for metric in recipe.metrics:
            layers = pair.figures[metric]
            told = [cell(pair.name), cell(metric), str(len(layers)), share(pair.relative_norm)]
            rows.append([*told, *(number(value) for value in medians(layers))])
    return table(["pair", "figure", "layers", "relative norm", *HEADS], rows)
