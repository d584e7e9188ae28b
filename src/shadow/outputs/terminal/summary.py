"""What `audit` and `show` print about one pair."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from shadow.claims.reference import bases_of
from shadow.comparing.gains import MEASURED_BY_OTHERS
from shadow.outputs.terminal.finding import explanations_table, told
from shadow.outputs.terminal.heat import heat_maps
from shadow.outputs.terminal.scores import scores_line, scores_table
from shadow.outputs.terminal.skipped import skipped_table
from shadow.outputs.terminal.typeset import (
    SPARK,
    bars_of,
    bounds_text,
    fixed,
    layers_filled,
    number,
    percentage,
    rounded,
    share,
    span,
    sparkline,
    text_table,
)
from shadow.reasons import STRICT
from shadow.telling.size import of_what, parameter_ratio
from shadow.text import counted, visible

if TYPE_CHECKING:
    from shadow.claims.footprint import Gate
    from shadow.claims.reference import Position
    from shadow.reports.metadata import ReportMetadata
    from shadow.summary.rows import AloneRow, ComponentRow, LayerRow, ModuleRow
    from shadow.summary.summary import Summary


DepthMetric = tuple[str, str, Callable[[float], str]]  # a field of LayerRow, its title and form

SHIFTED = 1e-4  # of the short side: the same for shifts of the effective rank, which lie about 0
UNEVEN_BY = 0.05  # of the largest absolute value: by how much layers differ that have a chart
FAR = 100  # times the rounding of storage above which the exact factor tells nothing more


def _three_decimals(value: float) -> str:
    return fixed(value, 3)


DEPTH_METRICS: tuple[DepthMetric, ...] = (
    ("relative_norm", "rel. norm", share),
    ("energy_share", "energy", share),
    ("concentration", "concentration", fixed),
    ("reading_participation_ratio", "directions read", number),
)


def summary_view(
    summary: Summary,
    provenance: ReportMetadata,
    folder: Path | str,
    options: ConsoleOptions,
    *,
    full: bool = False,
) -> RenderableType:
    """What `audit` and `show` print about one pair: finding, figures, picture, modules.

    full: with every figure and table.
    """
    width = options.max_width
    parts: list[RenderableType] = [_title(summary), "", told(summary.finding), ""]
    if full:
        parts += [_all_figures(summary), ""]
    elif summary.figures["matrices"]:
        parts += [_three_figures(summary), ""]
    parts += [
        Padding(Text(visible(f"warning: {warning.text}"), "yellow"), (0, 0, 1, 0))
        for warning in summary.warnings
    ]
    if summary.scores and not full:
        parts += [Text.assemble(("scores  ", "dim"), visible(scores_line(summary))), ""]
    if summary.scores:
        parts += [scores_table(summary), ""]
    if summary.failed_gates:
        parts += [_gate_table(summary.failed_gates), ""]
    for picture in heat_maps(summary.grid):
        parts += [picture, ""]
    if full and len(summary.components) > 1:
        parts += [component_table(summary.components, width), ""]
    if summary.modules:
        parts += [module_table(summary.modules, width), ""]
    if full and (profile := _depth(summary, width, bars=bars_of(options))):
        parts += [profile, ""]
    if full and summary.without_base:
        parts += [_without_base(summary.without_base), ""]
    if summary.skipped and (full or _is_missed(summary)):
        parts += [skipped_table(summary.skipped, width), ""]
    if full and summary.finding.other_explanations:
        parts += [explanations_table(summary.finding.other_explanations), ""]
    if full:
        parts.append(_footer(summary, provenance, folder))
    else:
        parts.append(_next_step(folder))
    return Group(*parts)


def _is_missed(summary: Summary) -> bool:
    """Is there a tensor that should have been measured, and was not?"""
    return any(row.reason in STRICT for row in summary.skipped)


def _three_figures(summary: Summary) -> RenderableType:
    """How much, how coherent, where: each with its scale."""
    f, inside = summary.figures, summary.inside_layers
    rows = Table.grid(padding=(0, 2))
    rows.add_row(
        Text("relative norm", "dim"),
        Text(share(f["relative_norm_overall"]), "bold"),
        of_what(summary),
    )
    unrounded = inside["relative_norm_unrounded"]
    floor_ratio = f["floor_ratio"]
    if unrounded is not None and floor_ratio is not None and floor_ratio < FAR:
        rows.add_row("", "", f"inside layers: {share(unrounded)}, without the rounding of storage")
    if f["concentration"] is not None:
        scale = "0 is noise of the same profile, 1 is rank one"
        rows.add_row(Text("concentration", "dim"), Text(fixed(f["concentration"]), "bold"), scale)
    if f["effective_layers"] is not None:
        rows.add_row(
            Text("layers", "dim"),
            Text(layers_filled(f["effective_layers"], f["depth_layers"]), "bold"),
            "hold the change (effective number)",
        )
    if stopped := [gate.name for gate in summary.failed_gates]:
        rows.add_row(
            Text("gates", "dim"), Text("failed", "yellow"), Text(", ".join(stopped), "yellow")
        )
    else:
        rows.add_row(
            Text("gates", "dim"),
            Text(f"all {len(summary.gates)}", "bold"),
            f"passed; {label_line(summary)}",
        )
    return rows


def label_line(summary: Summary) -> str:
    """The label of a pair that passed every gate, in few words; why it has none."""
    if summary.has_label:
        return f"label: {summary.label}, by the lab's trainings"
    if summary.reference is not None:
        return "no label: known trainings are of decoders"
    if summary.figures["concentration"] is None:
        return "no label: no matrix is large enough to compare with its null"
    return "no label: no known training of this size"


def _next_step(folder: Path | str) -> RenderableType:
    rows = Table.grid(padding=(0, 2))
    rows.add_row(Text("report", "dim"), Text(visible(f"{folder}/"), overflow="fold"))
    typed = visible(shlex.quote(str(folder)))
    for title, command in (
        ("more", f"shadow show {typed} --full"),
        ("page", f"shadow report {typed}"),
        ("words", "shadow explain WORD"),
    ):
        rows.add_row(Text(title, "dim"), Text(command, "dim", overflow="fold"))
    return rows


def _title(summary: Summary) -> RenderableType:
    title = Text.assemble(
        (visible(summary.family), "bold"), "  ", (visible(summary.pair), "bold cyan")
    )
    line = Rule(title, align="left", style="dim")
    rows = Table.grid(padding=(0, 2))
    for side, which in (("base", summary.base), ("tuned", summary.tuned)):
        named = which["repo"]
        if which["commit"]:
            named += f" @ {which['commit'][:12]}"
        rows.add_row(Text(side, "dim"), Text(visible(named), overflow="fold"))
    return Group(line, rows)


def _all_figures(summary: Summary) -> RenderableType:
    """What changed, how much, how concentrated, where; gates, and a label where it has one."""
    f = summary.figures
    rows = Table.grid(padding=(0, 2))
    rows.add_row(Text("what", "dim"), _changed_line(summary))
    if f["matrices"]:
        rows.add_row(Text("how much", "dim"), _size_line(summary))
        rows.add_row(Text("how concentrated", "dim"), _concentration(summary))
        if text := _unrounded(summary.inside_layers):
            rows.add_row(Text("inside layers", "dim"), text)
        for title, text in (
            ("where", _where(summary)),
            ("directions", _directions(summary)),
            ("tokens", _tokens(f)),
        ):
            if text:
                rows.add_row(Text(title, "dim"), text)
        rows.add_row(
            Text("spread" if summary.no_interval else "in brackets", "dim"),
            _about_intervals(summary),
        )
    if summary.scores:
        rows.add_row(Text("scores", "dim"), Text(visible(scores_line(summary)), overflow="fold"))
    if stopped := [gate.name for gate in summary.failed_gates]:
        outcome = Text(f"{', '.join(stopped)} failed, see below", "yellow")
    else:
        outcome = Text(f"all {len(summary.gates)} passed")
    rows.add_row(Text("gates", "dim"), outcome)
    if summary.reference and summary.has_label:
        rows.add_row(
            Text("label", "dim"),
            Text.assemble((summary.label, "bold"), visible(f": {summary.label_reason}")),
        )
        rows.add_row(Text("reference", "dim"), _reference_line(summary.reference))
    return rows


def _changed_line(summary: Summary) -> str:
    """How many matrices changed, and what share of the parameters they are."""
    f = summary.figures
    matrices = counted(int(f["matrices"] or 0), "matrix", "matrices")
    measured = percentage(f["parameters_measured"], f["parameters"])
    line = f"{matrices} changed, {measured} of the parameters"
    if summary.counts["identical"]:
        same = percentage(f["parameters_identical"], f["parameters"])
        line += f"; {same} are identical"
    return line


def _reference_line(reference: Position) -> str:
    """Where the concentration lies among known trainings."""
    optimizer = reference.optimizer or "any optimiser"
    bases = counted(bases_of(reference.short_side, reference.optimizer), "base", "bases")
    line = (
        f"above {100 * reference.narrow_below:.0f} % of {reference.narrow} trainings on narrow data"
        f" and {100 * reference.broad_below:.0f} % of {reference.broad} on broad data, with"
        f" {optimizer}, of tiny decoders on {bases}"
    )
    if reference.nearest:
        nearest = reference.nearest[0]
        line += f"; nearest: {nearest.regime}, {nearest.concentration:.2f}"
    return line


def _size_line(summary: Summary) -> str:
    f = summary.figures
    norm = share(f["relative_norm_overall"])
    bounds = _within(summary, "relative_norm_overall", share)
    size = f"the delta's norm is {norm}{bounds} {of_what(summary)}"
    floor_ratio = f["floor_ratio"]
    if floor_ratio is None:
        return size
    if floor_ratio < FAR:
        return f"{size}, {number(floor_ratio, 2)} x the rounding of its storage"
    return f"{size}, far above the rounding of its storage"


def _concentration(summary: Summary) -> RenderableType:
    f = summary.figures
    if f["concentration"] is None:
        return Text("no matrix is large enough to compare with its null")
    text = Text.assemble(
        (fixed(f["concentration"]), "bold"),
        f"{_within(summary, 'concentration', fixed)} median concentration; 0 is noise of the same"
        " profile, 1 is rank one. ",
    )
    text.append(
        "PR, the effective number of directions, is"
        f" {number(f['participation_ratio'])}{_within(summary, 'participation_ratio', number)},"
        f" that of its sign-flip null {number(f['null_participation_ratio'])};"
        f" {number(f['spikes'])} singular "
    )
    text.append("value stands out" if f["spikes"] == 1 else "values stand out")
    if f["spikes"]:
        text.append(f" with {share(f['spike_energy'])} of the energy")
    text.append(f"{_over_all(summary)}.")
    return text


def _over_all(summary: Summary) -> str:
    """Which matrices a median is over, where those inside layers, as in the finding, are others."""
    matrices = summary.figures["matrices"]
    if matrices == summary.inside_layers["matrices"]:
        return ""
    return f", medians over all {number(matrices)} matrices"


def _unrounded(inside: Mapping[str, float | int | None]) -> str:
    """What is known of the update before it was stored, the median over matrices inside layers."""
    parts = []
    if inside["kept"] is not None:
        parts.append(
            f"{share(inside['kept'])} of what is stored is the update's, the rest rounding"
        )
    if inside["relative_norm_unrounded"] is not None:
        parts.append(f"its norm is {share(inside['relative_norm_unrounded'])} of the base's")
    known = (inside["coherent"] or 0) + (inside["above_short_side"] or 0)
    of = f"{number(known)} of {number(inside['matrices'])} matrices"
    if inside["equivalent_directions"] is None and inside["above_short_side"]:
        parts.append(f"less coherent than all directions of a matrix alike would be ({of})")
    if inside["equivalent_directions"] is not None:
        parts.append(
            f"as coherent as {number(inside['equivalent_directions'])} equally strong directions"
            f" ({of})"
        )
    for name, text in (
        ("unexplained", "with a rounding that storage does not explain"),
        ("rounded_away", "rounded away"),
    ):
        if inside[name]:
            parts.append(f"{number(inside[name])} {text}")
    return "; ".join(parts)


def _where(summary: Summary) -> str:
    """How evenly the update lies over layers, and over attention and MLP, or over components."""
    f = summary.figures
    parts = []
    if f["effective_layers"] is not None and f["depth_entropy"] is not None:
        parts.append(
            "the energy fills"
            f" {number(f['effective_layers'])}{_within(summary, 'effective_layers', number)} of"
            f" {number(f['depth_layers'])} layers"
        )
    for name, title in (
        ("attention_to_mlp", "attention : MLP"),
        ("vision_to_language", "vision : language"),
        ("projector_to_language", "projector : language"),
    ):
        if f[name] is not None:
            bounds = _within(summary, name, lambda value: number(value, 2))
            text = f"{title} is {number(f[name], 2)}{bounds}"
            sizes = parameter_ratio(summary, name)
            if sizes is not None:
                text += f", that of their parameters {number(sizes, 2)}"
            parts.append(text)
    return "; ".join(parts)


def _directions(summary: Summary) -> str:
    """How many directions of the residual stream a layer's change is about."""
    parts = [
        f"{rounded(summary.figures[name])}{_within(summary, name, rounded)} in matrices that {verb}"
        " the residual stream"
        for verb, name in (
            ("read", "reading_participation_ratio"),
            ("write to", "writing_participation_ratio"),
        )
        if summary.figures[name] is not None
    ]
    if not parts:
        return ""
    return f"effective number in the median layer: {', '.join(parts)}"


def _tokens(f: Mapping[str, float | int | None]) -> str:
    if f["embedding_rows_changed"] is None:
        return ""
    carrying = number(f["embedding_row_participation_ratio"])
    return (
        f"{share(f['embedding_rows_changed'])} of the embeddings changed; participation ratio"
        f" {carrying} tokens"
    )


def _about_intervals(summary: Summary) -> str:
    if summary.no_interval:
        return f"none over layers: {summary.no_interval}"
    level = 100 * (summary.interval_level or 0)
    return (
        f"the spread over {summary.layers} layers ({level:.3g} %), which says nothing of other runs"
        " or seeds"
    )


def _within(summary: Summary, name: str, form: Callable[[float], str]) -> str:
    """The bounds of a figure in brackets; empty where it has none."""
    bounds = summary.intervals.get(name)
    if not bounds or form(bounds[0]) == form(bounds[1]):
        return ""
    return f" ({bounds_text(bounds, form)})"


def _gate_table(failed: Sequence[Gate]) -> RenderableType:
    """The gates that stopped a label, and why."""
    table = Table(title="Failed gates", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("gate", style="yellow", no_wrap=True)
    table.add_column("reason", ratio=1)
    for gate in failed:
        table.add_row(gate.name, Text(visible(gate.reason)))
    return table


def _interval(row: ComponentRow | ModuleRow) -> str:
    """The bounds of the concentration."""
    bounds = row.intervals.get("concentration")
    if not bounds:
        return "-"
    return bounds_text(bounds, fixed)


def component_table(components: Sequence[ComponentRow], width: int) -> RenderableType:
    """A row for each component, and as many columns as fit into so many letters."""
    columns = [
        ("component", [row.component for row in components]),
        ("changed", [number(row.matrices) for row in components]),
        ("identical", [number(row.identical) for row in components]),
        ("rel. norm", [share(row.relative_norm) for row in components]),
        ("energy", [share(row.energy_share) for row in components]),
        ("conc.", [fixed(row.concentration) for row in components]),
        ("spikes", [number(row.spikes) for row in components]),
    ]
    wider = [(6, "spread", [_interval(row) for row in components])]
    return text_table("By component", columns, wider=wider, width=width)


def module_table(modules: Sequence[ModuleRow], width: int) -> RenderableType:
    """A row for each module, and as many columns as fit into so many letters."""
    columns = []
    if len({row.component for row in modules}) > 1:
        columns.append(("component", [row.component for row in modules]))
    columns += [
        ("module", [row.module for row in modules]),
        ("n", [number(row.matrices) for row in modules]),
        ("rel. norm", [share(row.relative_norm) for row in modules]),
        ("conc.", [fixed(row.concentration) for row in modules]),
    ]
    wider = [
        (99, "PR", [number(row.participation_ratio) for row in modules]),
        (99, "null PR", [number(row.null_participation_ratio) for row in modules]),
        (99, "spikes", [number(row.spikes) for row in modules]),
        (len(columns), "spread", [_interval(row) for row in modules]),
        (99, "energy", [share(row.energy_share) for row in modules]),
        (99, "shift", [fixed(row.effective_rank_shift, 3) for row in modules]),
        (99, "spike energy", [fixed(row.spike_energy) for row in modules]),
        (99, "stable rank", [number(row.stable_rank) for row in modules]),
        (99, "eff. rank", [number(row.effective_rank) for row in modules]),
    ]
    return text_table("By module, medians over matrices", columns, wider=wider, width=width)


def _depth(summary: Summary, width: int, bars: str) -> RenderableType | None:
    """A sparkline by layer for each component and metric, from its least to its largest value.

    Where layers hardly differ there is none, as its scale would make a trend of nothing.
    """
    depth = summary.depth
    components = list(dict.fromkeys(row.component for row in depth))
    grid = Table.grid(padding=(0, 2))
    for component in components:
        rows = [row for row in depth if row.component == component]
        prefix = f"{component} " if len(components) > 1 else ""
        for name, title, form in (*DEPTH_METRICS, _shift_metric(rows)):
            every: list[float | None] = [getattr(row, name) for row in rows]
            values = [value for value in every if value is not None]
            if len(values) < 2 or not any(values):
                continue
            if _is_flat(name, values, summary.figures["short_side"]):
                line = Text("flat", "dim")
            else:
                line = Text(sparkline(every, min(SPARK, max(8, width - 50)), bars), "cyan")
            ends = span(form(min(values)), form(max(values)))
            grid.add_row(f"{prefix}{title}", line, Text(ends, "dim"))
    if not grid.rows:
        return None
    first, last = depth[0].layer, max(row.layer for row in depth)
    return Group(Text(f"By depth, layer {first} to {last}", "italic"), grid)


def _shift_metric(rows: Sequence[LayerRow]) -> DepthMetric:
    """The shift of the effective rank that is shown: of up-projections where they have one."""
    if any(row.up_effective_rank_shift is not None for row in rows):
        return "up_effective_rank_shift", "MLP up shift", _three_decimals
    return "effective_rank_shift", "eff. rank shift", _three_decimals


def _is_flat(name: str, values: Sequence[float], short_side: float | None) -> bool:
    """Do the layers differ so little that a chart of them would show nothing?"""
    least = UNEVEN_BY * max(map(abs, values))
    if name.endswith("rank_shift"):
        least = max(least, SHIFTED * (short_side or 0))
    return max(values) - min(values) < least


def _without_base(rows: Iterable[AloneRow]) -> RenderableType:
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title="Without a base: the weights' own spectra",
        title_justify="left",
    )
    table.add_column("component", style="cyan")
    for title in ("n", "stable rank", "eff. rank", "PR"):
        table.add_column(title, justify="right")
    for row in rows:
        figures = row.matrices, row.stable_rank, row.effective_rank, row.participation_ratio
        table.add_row(row.component, *(number(figure) for figure in figures))
    return table


def _footer(summary: Summary, provenance: ReportMetadata, folder: Path | str) -> RenderableType:
    rows = Table.grid(padding=(0, 2))
    rows.add_row(Text("report", "dim"), Text(visible(f"{folder}/"), overflow="fold"))
    precision = provenance["settings"]["method"]["precision"]
    how = f"shadow {provenance['version']}, precision {precision}"
    seconds = provenance.get("seconds")
    if seconds is not None:
        how += f", {seconds:.1f} s"
    rows.add_row(Text("how", "dim"), how)
    if unverified := summary.figures.get("unverified"):
        rows.add_row(
            Text("unverified", "dim"),
            f"{unverified} matrices came as byte ranges, which no checksum covers",
        )
    if not summary.has_label:
        label: str = summary.label
        if not summary.failed_gates:
            label += f": {summary.label_reason}"
        rows.add_row(Text("label", "dim"), Text(visible(label), "dim"))
    not_shown = [
        *summary.finding.not_shown,
        *(f"{text}." for text in summary.claims.not_shown if text == MEASURED_BY_OTHERS),
    ]
    for title, text in (
        ("measured", "; ".join(summary.claims.measured)),
        ("not shown", " ".join(not_shown)),
    ):
        if text:
            rows.add_row(Text(title, "dim"), Text(visible(text), "dim"))
    return rows
