"""What `compare` prints: who is compared, the verdicts and the figures behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from shadow.outputs.terminal.scores import scored_set_view
from shadow.outputs.terminal.typeset import (
    SPARK,
    WIDE,
    apart,
    apart_span,
    bars_of,
    fixed,
    number,
    share,
    span,
    sparkline,
    text_table,
)
from shadow.text import counted, visible

if TYPE_CHECKING:
    from shadow.comparing.comparison import Comparison
    from shadow.comparing.contrast import Contrast
    from shadow.comparing.differences import Difference


KNOWN_BY = {"commit": "its commit", "content": "its fingerprint", "spectra": "its measured spectra"}
MODULE_FIGURES = {  # columns of the table by module: name, title, scale
    "concentration": ("conc.", "difference"),
    "stable_rank": ("st. rank", "log ratio"),
    "top4_energy": ("top-4", "difference"),
    "participation_ratio_over_null": ("PR/null", "log ratio"),
    "spike_energy": ("spike en.", "difference"),
}


def comparison_view(
    comparison: Comparison, options: ConsoleOptions, *, p_values: bool = False
) -> RenderableType:
    """Everything `compare` prints: who is compared, then every report against the first.

    Of two reports it also tells in which modules and layers they differ. p_values: also show p.
    """
    width, bars = options.max_width, bars_of(options)
    first = comparison.reports[0].label
    against_first = [contrast for contrast in comparison.contrasts if contrast.first == first]
    parts: list[RenderableType] = [_compared(comparison), ""]
    if comparison.ranking:
        parts += [_ranking(comparison), ""]
    if comparison.not_contrasted:
        reason = comparison.not_contrasted
        parts += [Text(visible(f"{reason[:1].upper()}{reason[1:]}."), "yellow"), ""]
    if comparison.scores is not None:
        parts += scored_set_view(comparison.scores, width, p_values=p_values)
    for contrast in against_first:
        if len(against_first) > 1:
            parts.append(
                Rule(Text(f"{first} against {contrast.second}", "bold"), align="left", style="dim")
            )
        parts += _contrast(contrast, width, p_values)
        if len(against_first) == 1:
            parts += [modules_apart(contrast, width), "", *_layers_apart(contrast, width, bars)]
    parts.append(_not_shown(comparison, against_first))
    return Group(*parts)


def _compared(comparison: Comparison) -> RenderableType:
    """The reports by their letters, and where they lie."""
    rows = Table.grid(padding=(0, 2))
    for report in comparison.reports:
        name = Text(overflow="fold").append(visible(report.pair), "bold cyan")
        name.append(f" of {visible(report.family)}  ").append(visible(f"{report.folder}/"), "dim")
        rows.add_row(Text(report.label, "bold"), name)
    return Group(Rule(Text("compare", "bold"), align="left", style="dim"), rows)


def _ranking(comparison: Comparison) -> RenderableType:
    count = counted(comparison.ranking[0].cells, "matrix", "matrices")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.title = f"By median concentration over the {count} in layers that all have changed"
    table.add_column("rank", justify="right")
    table.add_column("report", style="cyan", overflow="fold")
    table.add_column("conc.", justify="right", no_wrap=True)
    table.add_column("against the next")
    pairs = {report.label: report.pair for report in comparison.reports}
    for row in comparison.ranking:
        name = Text(visible(f"{row.label} {pairs[row.label]}"), overflow="fold")
        table.add_row(str(row.rank), name, fixed(row.concentration), row.to_next or "")
    return table


def _contrast(contrast: Contrast, width: int, p_values: bool) -> list[RenderableType]:
    """The verdict, the figures behind it and what makes it doubtful."""
    facts = Table.grid(padding=(0, 2))
    relation: str = contrast.relation
    if contrast.verified:
        relation += f", known by {KNOWN_BY[contrast.verified]}"
    facts.add_row(Text("relation", "dim"), relation)
    matched = contrast.matched
    votes = f"{matched.in_layers:,} of them in {counted(matched.layers, 'layer', 'layers')} vote"
    facts.add_row(
        Text("over", "dim"), f"{counted(matched.matrices, 'matrix', 'matrices')} of both; {votes}"
    )
    for row in contrast.unmatched:
        left = Text(f"{row.matrices:,} {visible(row.reason)}", overflow="fold")
        facts.add_row(
            Text("left out", "dim"), left.append(f", e.g. {visible(row.examples[0])}", "dim")
        )
    sentence = visible(contrast.sentence)
    sure = contrast.verdict in ("more concentrated", "less concentrated")
    verdict = Text(f"{sentence[:1].upper()}{sentence[1:]}.", "bold" if sure else "yellow")
    parts: list[RenderableType] = [facts, "", verdict, ""]
    parts += [
        Padding(Text(visible(f"warning: {text}"), "yellow"), (0, 0, 1, 0))
        for text in contrast.warnings
    ]
    return [*parts, _figures_apart(contrast, width, p_values), ""]


def _figures_apart(contrast: Contrast, width: int, p_values: bool) -> RenderableType:
    """A row for each figure: both medians, the paired difference with its spread over layers, and
    what it says.
    """
    from shadow.comparing.differences import FIGURES
    from shadow.summary.bootstrap import holm

    titles = {figure.name: figure.title for figure in FIGURES}
    adjusted = holm([figure.p_within_pair for figure in contrast.figures])
    wide = width >= WIDE
    padding = (0, 1) if wide else (0, 1, 0, 0)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=padding, title_justify="left")
    table.title = "Medians over matrices, and of paired differences"
    if p_values:
        table.title += "; p is within this pair, adjusted over the figures"
    if not wide and (margins := _margins(contrast)):
        table.title += f"\nMargin: {margins}"
    table.add_column("figure", style="cyan", no_wrap=True)
    heads = [contrast.first, contrast.second, f"{contrast.first} - {contrast.second}"]
    heads.append(_spread_head(contrast))
    if wide:
        heads.append("margin")
    if p_values:
        heads.append("p")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("verdict")
    for difference, p in zip(contrast.figures, adjusted, strict=True):
        cells = [
            *_both(difference),
            apart(difference.difference, difference.scale),
            _spread(difference),
        ]
        if wide:
            cells.append(apart(difference.margin, difference.scale).replace("+", ""))
        if p_values:
            cells.append(number(p))
        title = titles[difference.figure]
        if not wide:  # the table's title has it, and the verdict needs the room
            title = title.removeprefix("median ")
        table.add_row(title, *cells, difference.verdict or "has no vote")
    return table


def _margins(contrast: Contrast) -> str:
    """Those of differences and of ratios, where the table has no room for a column: `0.050, of
    ratios x 1.18`.
    """
    of_scale: dict[str, list[float]] = {}
    for row in contrast.figures:
        if row.margin is not None:
            of_scale.setdefault(row.scale, []).append(row.margin)
    texts = []
    for scale, margins in of_scale.items():
        ends = (apart(end, scale).replace("+", "") for end in (min(margins), max(margins)))
        texts.append(("" if scale == "difference" else "of ratios ") + span(*ends))
    return ", ".join(texts)


def _spread_head(contrast: Contrast) -> str:
    """With the least level of the spreads, where there is any."""
    levels = [figure.level for figure in contrast.figures if figure.level is not None]
    if not levels:
        return "spread"
    return f"spread, {100 * min(levels):.3g} %"


def _both(difference: Difference) -> tuple[str, str]:
    """The medians of a figure in both reports."""
    form = share if difference.figure == "relative_norm" else number
    return form(difference.first), form(difference.second)


def _spread(difference: Difference) -> str:
    """How far a difference would move with other layers."""
    if difference.low is None or difference.high is None:
        return "-"
    return apart_span(difference.low, difference.high, difference.scale)


def modules_apart(contrast: Contrast, width: int) -> Table:
    """A row for each module: the concentration of both, and as many differences as fit."""
    rows = contrast.modules
    columns = [
        ("module", [visible(row.module) for row in rows]),
        ("n", [f"{row.matrices:,}" for row in rows]),
        (f"conc. {contrast.first}", [fixed(row.concentration_first) for row in rows]),
        (f"conc. {contrast.second}", [fixed(row.concentration_second) for row in rows]),
    ]
    if len({row.component for row in rows}) > 1:
        columns.insert(0, ("component", [visible(row.component) for row in rows]))
    # the first difference is that of the two columns beside it
    first = {"concentration": f"{contrast.first} - {contrast.second}"}
    wider = [
        (99, first.get(name, title), [apart(getattr(row, name), scale) for row in rows])
        for name, (title, scale) in MODULE_FIGURES.items()
    ]
    title = (
        f"By module: {contrast.first} - {contrast.second}, or x {contrast.first} /"
        f" {contrast.second}"
    )
    return text_table(title, columns, wider=wider, width=width, gap=2)


def _layers_apart(contrast: Contrast, width: int, bars: str) -> list[RenderableType]:
    """A sparkline by layer for each component and figure, from its least to its largest value."""
    grid = Table.grid(padding=(0, 2))
    components = list(dict.fromkeys(row.component for row in contrast.layers))
    for component in components:
        for name in ("concentration", "stable_rank", "top4_energy"):
            figures = [getattr(row, name) for row in contrast.layers if row.component == component]
            values = [figure for figure in figures if figure is not None]
            if len(values) < 2:
                continue
            title, scale = MODULE_FIGURES[name]
            line = sparkline(values, min(SPARK, max(8, width - 50)), bars)
            ends = apart_span(min(values), max(values), scale)
            prefix = f"{visible(component)} " if len(components) > 1 else ""
            grid.add_row(Text(f"{prefix}{title}"), Text(line, "cyan"), Text(ends, "dim"))
    if not grid.rows:
        return []
    layers = [row.layer for row in contrast.layers]
    return [Text(f"By depth, layer {min(layers)} to {max(layers)}", "italic"), grid, ""]


def _not_shown(comparison: Comparison, contrasts: Sequence[Contrast]) -> RenderableType:
    rows = Table.grid(padding=(0, 2))
    if len(contrasts) == 1 and contrasts[0].consistent_with:
        rows.add_row(
            Text("consistent with", "dim"),
            Text(visible("; or ".join(contrasts[0].consistent_with)), "dim"),
        )
    rows.add_row(Text("not shown", "dim"), Text("; ".join(comparison.claims["not_shown"]), "dim"))
    return rows
