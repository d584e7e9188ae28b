"""Summary -> rich renderables, for 80 columns and up. Pure: returns what to show, prints nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import ConsoleOptions, Group, RenderableType
from rich.filesize import decimal
from rich.markup import escape
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from shadow.console import duration, took, visible
from shadow.diagnostics import NOTATION, SCHEMA, Column
from shadow.diagnostics import Table as ReportTable
from shadow.schema import RULES, is_later, null_cases

if TYPE_CHECKING:
    from shadow.batch_index import Index
    from shadow.compare import Comparison, Contrast
    from shadow.gate import Judged
    from shadow.reference import Calibration
    from shadow.registry import Family, Pair
    from shadow.summary import Summary

BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.-=+*%#"
WIDE = 100  # columns of terminal from which the wide tables fit
BATCH_WIDE = 110  # columns from which a list's table has one of errors
FAR = 100  # times the rounding of storage above which the exact factor tells nothing more
SPARK = 48  # layers a sparkline shows one by one; more are averaged in bins

REASONS = {
    "only_in_base": "no partner in the tuned model",
    "only_in_tuned": "no partner in the base model",
    "tied": "a head tied to its embedding, measured there",
    "shape_differs": "shapes differ",
    "not_a_matrix": "vectors: only their relative norm is taken",
    "not_float": "integers",
    "quantized": "packed or scaled weights",
    "unknown_dtype": "a dtype this version does not know",
    "nonfinite": "NaN or infinite entries",
    "filtered": "left out: not asked for, or of a component that has another base",
    "adapter": "parts of an adapter that are not applied",
    "unreadable": "announced by the index, found in no shard",
}


WORDS = {
    "concentrated": "more concentrated than every broad training of the reference",
    "distributed": "less concentrated than every narrow one",
    "mixed": "where both lie, or its figures disagree",
    "indeterminate": "like noise of its own profile: nothing tells it from rounding",
    "not assessable": "a gate failed, or the reference has no trainings of about this size",
}
LABEL_RULE = (
    "Concentration decides, and at least two of stable rank, top-4 energy, PR / null PR and spike energy must agree, "
    "each beyond its own bound. The reference is of the pair's size, with its optimiser (--optimizer) or with all it "
    "has. A word says where a spectrum lies, never what data did it: data new to the base look as narrow data do."
)


def summary_view(
    summary: Summary, provenance: Mapping[str, Any], folder: Path, options: ConsoleOptions
) -> RenderableType:
    """Everything `audit` and `show` print about one pair."""
    width, bars = options.max_width, ASCII_BARS if options.ascii_only else BARS
    parts: list[RenderableType] = [_title(summary), "", _headline(summary), ""]
    parts += [Padding(Text(visible(f"warning: {text}"), "yellow"), (0, 0, 1, 0)) for text in summary.warnings]
    if summary.scores:
        from shadow.scores_view import scores_table

        parts += [scores_table(summary), ""]
    if any(not gate["passed"] for gate in summary.gates):
        parts += [_gate_table(summary.gates), ""]
    if len(summary.components) > 1:
        parts += [_component_table(summary.components, width), ""]
    if summary.modules:
        parts += [_module_table(summary.modules, width), ""]
    if profile := _depth(summary.depth, width, bars):
        parts += [profile, ""]
    if summary.without_base:
        parts += [_without_base(summary.without_base), ""]
    if summary.skipped:
        parts += [_skipped(summary.skipped, width), ""]
    parts.append(_footer(summary, provenance, folder))
    return Group(*parts)


def number(value: float | int | None, digits: int = 3) -> str:
    """A figure for people: significant digits, and a dash where it is null."""
    if value is None:
        return "-"
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e6):
        return f"{int(value):,}"
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def fixed(value: float | None, places: int = 2) -> str:
    return "-" if value is None else f"{value:.{places}f}".replace("-0." + "0" * places, "0." + "0" * places)


def _title(summary: Summary) -> RenderableType:
    title = Text.assemble((visible(summary.family), "bold"), "  ", (visible(summary.pair), "bold cyan"))
    line = Rule(title, align="left", style="dim")
    rows = Table.grid(padding=(0, 2))
    for side, which in (("base", summary.base), ("tuned", summary.tuned)):
        commit = f" @ {which['commit'][:12]}" if which.get("commit") else ""
        rows.add_row(Text(side, "dim"), Text(visible(f"{which['repo']}{commit}"), overflow="fold"))
    return Group(line, rows)


def _headline(summary: Summary) -> RenderableType:
    """What changed, how much, how concentrated against its null, where; gates and label last."""
    f = summary.figures
    rows = Table.grid(padding=(0, 2))
    changed = f"{_counted(int(f['matrices'] or 0), 'matrix', 'matrices')} changed"
    share = _percent(f["parameters_measured"], f["parameters"])
    identical = summary.counts["identical"]
    if identical:
        same = _percent(f["parameters_identical"], f["parameters"])
        changed += f", {share} of the parameters; {same} are identical"
    else:
        changed += f", {share} of the parameters"
    rows.add_row(Text("what", "dim"), changed)
    if f["matrices"]:
        rows.add_row(Text("how much", "dim"), _size_line(summary))
        rows.add_row(Text("how concentrated", "dim"), _concentration(summary))
        for title, text in (("where", _where(summary)), ("directions", _directions(summary)), ("tokens", _tokens(f))):
            if text:
                rows.add_row(Text(title, "dim"), text)
        rows.add_row(Text("in brackets", "dim"), _about_intervals(summary))
    if summary.scores:
        from shadow.scores_view import scores_line

        rows.add_row(Text("scores", "dim"), Text(visible(scores_line(summary)), overflow="fold"))
    stopped = [gate["name"] for gate in summary.gates if not gate["passed"]]
    told = Text(f"{', '.join(stopped)} failed, see below", "yellow") if stopped else f"all {len(summary.gates)} passed"
    rows.add_row(Text("gates", "dim"), told)
    reason = "" if stopped else f": {summary.label_reason}"
    rows.add_row(Text("label", "dim"), Text.assemble((summary.label, "bold"), visible(reason)))
    if summary.reference and not stopped:
        rows.add_row(Text("reference", "dim"), _reference_line(summary.reference))
    return rows


def _reference_line(reference: Mapping[str, Any]) -> str:
    """Where the concentration lies among known trainings."""
    whose = f"with {reference['optimizer']}" if reference["optimizer"] else "with any optimiser"
    nearest = reference["nearest"][0] if reference["nearest"] else None
    told = (
        f"above {100 * reference['narrow_below']:.0f} % of {reference['narrow']} trainings on narrow data and "
        f"{100 * reference['broad_below']:.0f} % of {reference['broad']} on broad data, {whose}, of tiny decoders"
    )
    return told + (f"; nearest: {nearest['regime']}, {nearest['concentration']:.2f}" if nearest else "")


def _size_line(summary: Summary) -> str:
    f = summary.figures
    size = (
        f"the delta's norm is {_share(f['relative_norm_overall'])}{_within(summary, 'relative_norm_overall', _share)}"
    )
    size += " of the base's over all matrices"
    if f["floor_ratio"] is not None:
        times = f"{number(f['floor_ratio'], 2)} x" if f["floor_ratio"] < FAR else "far above"
        size += f", {times} the rounding of its storage"
    return size


def _concentration(summary: Summary) -> RenderableType:
    f = summary.figures
    if f["concentration"] is None:
        return Text("no matrix is large enough to compare with its null")
    text = Text.assemble(
        (fixed(f["concentration"]), "bold"),
        f"{_within(summary, 'concentration', fixed)} median concentration; 0 is noise of the same profile, 1 is rank "
        "one. ",
    )
    text.append(
        f"The energy sits in {number(f['participation_ratio'])}{_within(summary, 'participation_ratio', number)} "
        f"directions, its sign-flip null's in {number(f['null_participation_ratio'])}; {number(f['spikes'])} singular "
        "values stand out."
    )
    return text


def _where(summary: Summary) -> str:
    """How evenly the update lies over layers, and over attention and MLP, or over components."""
    f, parts = summary.figures, []
    if f["effective_layers"] is not None and f["depth_entropy"] is not None:
        parts.append(
            f"the energy fills {number(f['effective_layers'])}{_within(summary, 'effective_layers', number)} of "
            f"{number(f['depth_layers'])} layers"
        )
    for name, title in (
        ("attention_to_mlp", "attention : MLP"),
        ("vision_to_language", "vision : language"),
        ("projector_to_language", "projector : language"),
    ):
        if f[name] is not None:
            parts.append(f"{title} is {number(f[name], 2)}{_within(summary, name, lambda value: number(value, 2))}")
    return "; ".join(parts)


def _directions(summary: Summary) -> str:
    """How many directions of the residual stream a layer's change is about."""
    parts = [
        f"what {verb} it along {number(summary.figures[name])}{_within(summary, name, number)}"
        for verb, name in (("reads", "reading_participation_ratio"), ("writes", "writing_participation_ratio"))
        if summary.figures[name] is not None
    ]
    return f"of the residual stream: a layer changes {', '.join(parts)}" if parts else ""


def _tokens(f: Mapping[str, float | int | None]) -> str:
    if f["embedding_rows_changed"] is None:
        return ""
    carrying = number(f["embedding_row_participation_ratio"])
    return f"{_share(f['embedding_rows_changed'])} of the embeddings changed; {carrying} of them carry the change"


def _about_intervals(summary: Summary) -> str:
    if summary.no_interval:
        return f"no intervals: {summary.no_interval}"
    level = 100 * (summary.interval_level or 0)
    return f"{level:.3g} % intervals over {summary.layers} layers: not over other runs or seeds"


def _within(summary: Summary, name: str, form: Callable[[float], str]) -> str:
    """The bounds of a figure in brackets; empty where it has none."""
    bounds = summary.intervals.get(name)
    return f" ({_range(bounds, form)})" if bounds and form(bounds[0]) != form(bounds[1]) else ""


def _range(bounds: Sequence[float], form: Callable[[float], str]) -> str:
    low, high = (form(bound) for bound in bounds)
    return f"{low.removesuffix(' %')} to {high}"


def _gate_table(gates: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The gates that stopped a label, and why."""
    table = Table(title="Failed gates", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("gate", style="yellow", no_wrap=True)
    table.add_column("reason", ratio=1)
    for gate in gates:
        if not gate["passed"]:
            table.add_row(gate["name"], Text(visible(gate["reason"])))
    return table


def _percent(part: float | int | None, whole: float | int | None) -> str:
    return f"{100 * part / whole:.1f} %" if whole and part is not None else "-"


def _share(value: float | int | None) -> str:
    """A share as a percentage with two significant digits."""
    if value is None:
        return "-"
    percent = 100 * value
    return f"{percent:.0f} %" if percent >= 99.5 else f"{percent:.2g} %"


Columns = list[tuple[str, list[str]]]  # of a table: heads and cells


def _table(
    title: str, columns: Columns, wider: Sequence[tuple[int, str, list[str]]], width: int, gap: int = 3
) -> RenderableType:
    """A table of texts, with gap (2 or 3) between columns.

    wider are (place, head, cells) for as long as the terminal is wide enough, in that order.
    """
    columns = list(columns)
    for place, head, cells in wider:
        if sum(gap + max(map(len, (name, *own))) for name, own in (*columns, (head, cells))) > width + gap - 2:
            break
        columns.insert(place, (head, cells))
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, gap - 2))
    named = [name for name, _ in columns if name in ("component", "module")]
    for name, _ in columns:
        style = "cyan" if name == named[-1] else None
        table.add_column(name, justify="left" if name in named else "right", no_wrap=True, style=style)
    for row in zip(*(own for _, own in columns), strict=True):
        table.add_row(*map(Text, row))
    return table


def _intervals(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [row["intervals"].get("concentration") for row in rows]
    return [_range(bounds, fixed) if bounds else "-" for bounds in found]


def _component_table(components: Sequence[Mapping[str, Any]], width: int) -> RenderableType:
    columns = [
        ("component", [row["component"] for row in components]),
        ("changed", [number(row["matrices"]) for row in components]),
        ("identical", [number(row["identical"]) for row in components]),
        ("rel. norm", [_share(row["relative_norm"]) for row in components]),
        ("energy", [_share(row["energy_share"]) for row in components]),
        ("conc.", [fixed(row["concentration"]) for row in components]),
        ("spikes", [number(row["spikes"]) for row in components]),
    ]
    return _table("By component", columns, [(6, "interval", _intervals(components))], width)


def _module_table(modules: Sequence[Mapping[str, Any]], width: int) -> RenderableType:
    several = len({row["component"] for row in modules}) > 1
    columns = [
        *([("component", [row["component"] for row in modules])] if several else []),
        ("module", [row["module"] for row in modules]),
        ("n", [number(row["matrices"]) for row in modules]),
        ("rel. norm", [_share(row["relative_norm"]) for row in modules]),
        ("conc.", [fixed(row["concentration"]) for row in modules]),
    ]
    wider = [
        (99, "PR", [number(row["participation_ratio"]) for row in modules]),
        (99, "null PR", [number(row["null_participation_ratio"]) for row in modules]),
        (99, "spikes", [number(row["spikes"]) for row in modules]),
        (4 + several, "interval", _intervals(modules)),
        (99, "energy", [_share(row["energy_share"]) for row in modules]),
        (99, "shift", [fixed(row["effective_rank_shift"], 3) for row in modules]),
        (99, "spike energy", [fixed(row["spike_energy"]) for row in modules]),
        (99, "stable rank", [number(row["stable_rank"]) for row in modules]),
        (99, "eff. rank", [number(row["effective_rank"]) for row in modules]),
    ]
    return _table("By module, medians over matrices", columns, wider, width)


def _depth(depth: Sequence[Mapping[str, Any]], width: int, bars: str) -> RenderableType | None:
    """One sparkline by layer for each component and metric, scaled from its own least to its own largest value."""
    components = list(dict.fromkeys(row["component"] for row in depth))
    grid = Table.grid(padding=(0, 2))
    for component in components:
        rows = [row for row in depth if row["component"] == component]
        up = any(row["up_effective_rank_shift"] is not None for row in rows)
        shift = ("up_effective_rank_shift", "MLP up shift") if up else ("effective_rank_shift", "eff. rank shift")
        for name, title, form in (
            ("relative_norm", "rel. norm", _share),
            ("energy_share", "energy", _share),
            ("concentration", "concentration", fixed),
            ("reading_participation_ratio", "directions read", number),
            (*shift, lambda value: fixed(value, 3)),
        ):
            values = [row[name] for row in rows if row[name] is not None]
            if len(values) < 2 or not any(values):
                continue
            prefix = f"{component} " if len(components) > 1 else ""
            line = sparkline([row[name] for row in rows], min(SPARK, max(8, width - 50)), bars)
            grid.add_row(
                f"{prefix}{title}",
                Text(line, "cyan"),
                Text(f"{form(min(values))} to {form(max(values))}", "dim"),
            )
    if not grid.rows:
        return None
    first, last = depth[0]["layer"], max(row["layer"] for row in depth)
    return Group(Text(f"By depth, layer {first} to {last}", "italic"), grid)


def sparkline(values: Sequence[float | None], width: int, bars: str = BARS) -> str:
    """Levels from the least to the largest value; more values than width are averaged in equal bins.

    A value that is None leaves a gap.
    """
    bins = [[value] for value in values]
    if len(values) > width:
        bins = [list(values[i * len(values) // width : (i + 1) * len(values) // width]) for i in range(width)]
    known = [[value for value in some if value is not None] for some in bins]
    levels = [sum(some) / len(some) if some else None for some in known]
    found = [level for level in levels if level is not None]
    low, span = min(found), (max(found) - min(found)) or 1.0
    return "".join(" " if x is None else bars[round((x - low) / span * (len(bars) - 1))] for x in levels)


def _without_base(rows: Iterable[Mapping[str, Any]]) -> RenderableType:
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
        figures = [number(row[name]) for name in ("matrices", "stable_rank", "effective_rank", "participation_ratio")]
        table.add_row(row["component"], *figures)
    return table


def _skipped(rows: Iterable[Mapping[str, Any]], width: int) -> RenderableType:
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title="Not measured, tensors of base + tuned",
        title_justify="left",
    )
    table.add_column("reason", style="yellow", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("what", ratio=1)
    for row in rows:
        meaning = REASONS.get(row["reason"], row["reason"])
        examples = ", ".join(visible(name) for name in row["examples"][: 2 if width >= WIDE else 1])
        detail = f" ({visible(row['detail'])})" if row["detail"] and row["reason"] != "filtered" else ""
        text = Text(meaning + detail)
        text.append(f" e.g. {examples}", "dim")
        table.add_row(row["reason"], f"{row['base']} + {row['tuned']}", text)
    return table


def _footer(summary: Summary, provenance: Mapping[str, Any], folder: Path) -> RenderableType:
    rows = Table.grid(padding=(0, 2))
    rows.add_row(Text("report", "dim"), Text(visible(f"{folder}/"), overflow="fold"))
    seconds = provenance.get("seconds")
    how = f"shadow {provenance['version']}, precision {provenance['settings']['method']['precision']}"
    rows.add_row(Text("how", "dim"), how if seconds is None else f"{how}, {seconds:.1f} s")
    if unverified := summary.figures.get("unverified"):
        rows.add_row(Text("unverified", "dim"), f"{unverified} matrices came as byte ranges, which no checksum covers")
    for title, told in (("measured", "measured"), ("consistent with", "consistent_with"), ("not shown", "not_shown")):
        if summary.claims[told]:
            rows.add_row(Text(title, "dim"), Text("; ".join(summary.claims[told]), "dim"))
    return rows


STATE_STYLES = {"done": "green", "failed": "bold red", "pending": "yellow"}


def batch_view(index: Index, options: ConsoleOptions) -> RenderableType:
    """How the pairs of a list stand, a row each; then how many, and what they took.

    What went wrong is the last column where it fits, else it stands below.
    """
    wide = options.max_width >= BATCH_WIDE
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("#", justify="right", style="dim", no_wrap=True)
    table.add_column("family", overflow="fold")
    table.add_column("pair", style="cyan", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("label")
    for head in ("conc.", "norm", "time"):
        table.add_column(head, justify="right", no_wrap=True)
    if wide:
        table.add_column("error", overflow="fold", ratio=1)
    faults = Table.grid(padding=(0, 2))
    for row in index.rows:
        place = Text("-" if row.position is None else f"{row.position}")
        cells = [place, Text(visible(row.family)), Text(visible(row.pair)), Text(row.state, STATE_STYLES[row.state])]
        cells.append(Text(visible(row.label or "-")))
        cells += [Text(figure) for figure in (fixed(row.concentration), _share(row.relative_norm_overall))]
        cells.append(Text("-" if row.seconds is None else took(row.seconds)))
        table.add_row(*cells, *([Text(visible(row.error or ""))] if wide else []))
        if row.error and not wide:
            told = Text(visible(f"{row.name}: {row.error}"), overflow="fold")
            faults.add_row(place.copy(), told.append(visible(f" ({row.hint})") if row.hint else "", "dim"))
    parts: list[RenderableType] = [Rule(Text("list", "bold"), align="left", style="dim"), table]
    parts += [faults, ""] if faults.rows else []
    return Group(*parts, _batch_footer(index), "")


def _batch_footer(index: Index) -> RenderableType:
    rows, counts = Table.grid(padding=(0, 2)), Counter[str](row.state for row in index.rows)
    states = ", ".join(f"{counts[state]:,} {state}" for state in STATE_STYLES if counts[state])
    rows.add_row(Text("pairs", "dim"), f"{len(index.rows):,}{': ' if states else ''}{states}")
    moved = sum(row.bytes or 0 for row in index.rows)
    fetched = f", {decimal(moved)} fetched" if moved else ""
    rows.add_row(Text("took", "dim"), f"{took(sum(row.seconds or 0.0 for row in index.rows))}{fetched}")
    if missing := index.missing_shards:
        rows.add_row(Text("shards", "dim"), f"{several(index.shards)} of the list; not here: {several(missing)}")
    return rows


def several(words: Sequence[str], shown: int = 8) -> str:
    """The first of many words, and how many more there are."""
    more = f" and {len(words) - shown:,} more" if len(words) > shown else ""
    return f"{', '.join(words[:shown])}{more}"


def comparison_view(comparison: Comparison, options: ConsoleOptions) -> RenderableType:
    """Everything `compare` prints: who is compared, then every report against the first.

    Of two reports it also tells in which modules and layers they differ.
    """
    width, bars = options.max_width, ASCII_BARS if options.ascii_only else BARS
    first = comparison.reports[0]["label"]
    against_first = [one for one in comparison.contrasts if one.first == first]
    parts: list[RenderableType] = [_compared(comparison), ""]
    if comparison.ranking:
        parts += [_ranking(comparison), ""]
    if comparison.not_contrasted:
        told = comparison.not_contrasted
        parts += [Text(visible(f"{told[:1].upper()}{told[1:]}."), "yellow"), ""]
    if comparison.scores is not None:
        from shadow.scores_view import scored_set_view

        parts += scored_set_view(comparison.scores, width)
    for contrast in against_first:
        if len(against_first) > 1:
            parts.append(Rule(Text(f"{first} against {contrast.second}", "bold"), align="left", style="dim"))
        parts += _contrast(contrast, width)
        if len(against_first) == 1:
            parts += [_modules_apart(contrast, width), "", *_layers_apart(contrast, width, bars)]
    parts.append(_not_shown(comparison, against_first))
    return Group(*parts)


def _compared(comparison: Comparison) -> RenderableType:
    """The reports by their letters, and where they lie."""
    rows = Table.grid(padding=(0, 2))
    for report in comparison.reports:
        name = Text(overflow="fold").append(visible(report["pair"]), "bold cyan")
        name.append(f" of {visible(report['family'])}  ").append(visible(f"{report['folder']}/"), "dim")
        rows.add_row(Text(report["label"], "bold"), name)
    return Group(Rule(Text("compare", "bold"), align="left", style="dim"), rows)


def _ranking(comparison: Comparison) -> RenderableType:
    count = _counted(comparison.ranking[0]["cells"], "matrix", "matrices")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.title = f"By median concentration over the {count} in layers that all have changed"
    table.add_column("rank", justify="right")
    table.add_column("report", style="cyan", overflow="fold")
    table.add_column("conc.", justify="right", no_wrap=True)
    table.add_column("against the next")
    pairs = {report["label"]: report["pair"] for report in comparison.reports}
    for row in comparison.ranking:
        name = Text(visible(f"{row['label']} {pairs[row['label']]}"), overflow="fold")
        table.add_row(str(row["rank"]), name, fixed(row["concentration"]), row["to_next"] or "")
    return table


def _contrast(contrast: Contrast, width: int) -> list[RenderableType]:
    """The verdict, the figures behind it and what makes it doubtful."""
    facts, matched = Table.grid(padding=(0, 2)), contrast.matched
    known = f", known by {KNOWN_BY[contrast.verified]}" if contrast.verified else ""
    facts.add_row(Text("relation", "dim"), f"{contrast.relation}{known}")
    votes = f"{matched['in_layers']:,} of them in {_counted(int(matched['layers']), 'layer', 'layers')} vote"
    facts.add_row(Text("over", "dim"), f"{_counted(int(matched['matrices']), 'matrix', 'matrices')} of both; {votes}")
    for row in contrast.unmatched:
        left = Text(f"{row['matrices']:,} {visible(row['reason'])} ", overflow="fold")
        facts.add_row(Text("left out", "dim"), left.append(f"e.g. {visible(row['examples'][0])}", "dim"))
    told = visible(contrast.sentence)
    sure = contrast.verdict in ("more concentrated", "less concentrated")
    parts: list[RenderableType] = [facts, "", Text(f"{told[:1].upper()}{told[1:]}.", "bold" if sure else "yellow"), ""]
    parts += [Padding(Text(visible(f"warning: {text}"), "yellow"), (0, 0, 1, 0)) for text in contrast.warnings]
    return [*parts, _figures_apart(contrast, width), ""]


def _figures_apart(contrast: Contrast, width: int) -> RenderableType:
    """A row for each figure: both medians, the paired difference with its interval, p, and what it says."""
    from shadow.compare import FIGURES

    titles = {figure.name: figure.title for figure in FIGURES}
    wide = width >= WIDE
    levels = [one.level for one in contrast.figures if one.level is not None]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, int(wide)), title_justify="left")
    table.title = "Medians over matrices, and of paired differences; p is within this pair"
    table.add_column("figure", style="cyan", no_wrap=True)
    heads = [contrast.first, contrast.second, f"{contrast.first} - {contrast.second}"]
    heads.append(f"{100 * min(levels):.3g} % interval" if levels else "interval")
    for head in [*heads, *(["margin"] if wide else []), "p"]:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("verdict")
    for one in contrast.figures:
        values = [_share(v) if one.figure == "relative_norm" else number(v) for v in (one.first, one.second)]
        bounds = f"{_apart(one.low, one.scale)} to {_apart(one.high, one.scale)}" if one.low is not None else "-"
        margin = _apart(one.margin, one.scale).replace("+", "")
        cells = [*values, _apart(one.difference, one.scale), bounds, *([margin] if wide else [])]
        table.add_row(titles[one.figure], *cells, number(one.p_within_pair), one.verdict or "has no vote")
    return table


def _apart(value: float | None, scale: str) -> str:
    """A difference with its sign, or a ratio: `+0.092`, `x 0.67`."""
    if value is None:
        return "-"
    if scale == "difference":
        return f"{value:+.3f}"
    ratio = math.exp(min(value, 700.0))
    return f"x {ratio:.2f}" if 0.1 <= ratio < 100 else f"x {number(ratio, 2)}"


KNOWN_BY = {"commit": "its commit", "content": "its fingerprint", "spectra": "its measured spectra"}
MODULE_FIGURES = {  # columns of the table by module: name, title, scale
    "concentration": ("conc.", "difference"),
    "stable_rank": ("st. rank", "log ratio"),
    "top4_energy": ("top-4", "difference"),
    "participation_ratio_over_null": ("PR/null", "log ratio"),
    "spike_energy": ("spike en.", "difference"),
}


def _modules_apart(contrast: Contrast, width: int) -> RenderableType:
    rows = contrast.modules
    several = len({row["component"] for row in rows}) > 1
    columns = [
        *([("component", [visible(row["component"]) for row in rows])] if several else []),
        ("module", [visible(row["module"]) for row in rows]),
        ("n", [f"{row['matrices']:,}" for row in rows]),
        (f"conc. {contrast.first}", [fixed(row["concentration_first"]) for row in rows]),
        (contrast.second, [fixed(row["concentration_second"]) for row in rows]),
    ]
    wider = [(99, title, [_apart(row[name], scale) for row in rows]) for name, (title, scale) in MODULE_FIGURES.items()]
    title = f"By module: {contrast.first} - {contrast.second}, or x {contrast.first} / {contrast.second}"
    return _table(title, columns, wider, width, gap=2)


def _layers_apart(contrast: Contrast, width: int, bars: str) -> list[RenderableType]:
    """One sparkline by layer for each component and figure, scaled from its own least to its own largest value."""
    grid = Table.grid(padding=(0, 2))
    components = list(dict.fromkeys(row["component"] for row in contrast.layers))
    for component in components:
        for name in ("concentration", "stable_rank", "top4_energy"):
            values = [row[name] for row in contrast.layers if row["component"] == component and row[name] is not None]
            if len(values) < 2:
                continue
            title, scale = MODULE_FIGURES[name]
            line = sparkline(values, min(SPARK, max(8, width - 50)), bars)
            span = f"{_apart(min(values), scale)} to {_apart(max(values), scale)}"
            prefix = f"{visible(component)} " if len(components) > 1 else ""
            grid.add_row(Text(f"{prefix}{title}"), Text(line, "cyan"), Text(span, "dim"))
    if not grid.rows:
        return []
    layers = [row["layer"] for row in contrast.layers]
    return [Text(f"By depth, layer {min(layers)} to {max(layers)}", "italic"), grid, ""]


def _not_shown(comparison: Comparison, contrasts: Sequence[Contrast]) -> RenderableType:
    rows = Table.grid(padding=(0, 2))
    for contrast in contrasts if len(contrasts) == 1 else ():
        if contrast.consistent_with:
            rows.add_row(Text("consistent with", "dim"), Text(visible("; or ".join(contrast.consistent_with)), "dim"))
    rows.add_row(Text("not shown", "dim"), Text("; ".join(comparison.claims["not_shown"]), "dim"))
    return rows


def rules_view(judged: Judged, *, titled: bool = False) -> RenderableType:
    """What came of the rules of one pair; titled: with the name of the pair above it, where nothing else has it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title="Rules")
    table.add_column("outcome", no_wrap=True)
    table.add_column("rule", style="cyan", overflow="fold", ratio=2)
    table.add_column("what was found", overflow="fold", ratio=3)
    for verdict in judged.verdicts:
        rule, grave = verdict.rule, verdict.rule.severity == "error"
        style = {"passed": "green", "skipped": "dim"}.get(verdict.outcome, "bold red" if grave else "yellow")
        outcome = verdict.outcome if grave or style in ("green", "dim") else f"{verdict.outcome} (warning)"
        name = Text(visible(rule.name))
        if rule.condition != rule.name:
            name.append(f"\n{visible(rule.condition)}", "dim")
        found = Text(visible(verdict.detail))
        if rule.message and verdict.outcome == "met":
            found.append(f"\n{visible(rule.message)}", "bold")
        table.add_row(Text(outcome, style), name, found)
    title = Rule(Text.assemble((visible(judged.family), "bold"), "  ", (visible(judged.pair), "bold cyan")),
                 align="left", style="dim")  # fmt: skip
    notes = [Text(visible(f"note: {note}"), "yellow") for note in judged.notes]
    return Group(title if titled else "", table, *notes, "")


def plan_view(plan: Mapping[str, Any], width: int) -> RenderableType:
    """What an audit of a pair will take."""
    title = Text.assemble((visible(plan["family"]), "bold"), "  ", (visible(plan["pair"]), "bold cyan"))
    sides = Table.grid(padding=(0, 2))
    for side in ("base", "tuned"):
        sides.add_row(Text(side, "dim"), Text(_plan_side(plan[side]), overflow="fold"))
    for name, (base, tuned) in plan["config_differs"].items():
        sides.add_row(Text("config", "dim"), Text(visible(f"{name}: {base} in base, {tuned} in tuned")))
    parts: list[RenderableType] = [Rule(title, align="left", style="dim"), sides, ""]
    parts += [_plan_modules(plan["modules"]), ""]
    if plan["skipped"]:
        parts += [_skipped(plan["skipped"], width), ""]
    return Group(*parts, _plan_costs(plan))


def _plan_side(side: Mapping[str, Any]) -> str:
    commit = f" @ {side['commit'][:12]}" if side["commit"] else ""
    access = f", {side['access']}" if side["access"] else ""
    shards = f"{side['shards']} shard{'s' if side['shards'] != 1 else ''}"
    return visible(f"{side['repo']}{commit}{access}: {shards}, {decimal(side['bytes'])}, {', '.join(side['dtypes'])}")


def _plan_modules(modules: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = Table(title="To be measured", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("component", style="dim", no_wrap=True)
    table.add_column("module", style="cyan", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("layers", justify="right", no_wrap=True)
    table.add_column("rows x cols")
    for row in modules:
        shapes = ", ".join(f"{rows} x {cols}" for rows, cols in row["shapes"][:2])
        more = f" and {len(row['shapes']) - 2} more" if len(row["shapes"]) > 2 else ""
        layers = row["layers"]
        span = "-" if not layers else str(layers[0]) if layers[0] == layers[1] else f"{layers[0]}-{layers[1]}"
        table.add_row(row["component"], row["module"], f"{row['matrices']:,}", span, shapes + more)
    return table


def _plan_costs(plan: Mapping[str, Any]) -> RenderableType:
    rows = Table.grid(padding=(0, 2))
    rows.add_row(Text("work", "dim"), f"{plan['matrices']:,} matrices, {plan['vectors']:,} vectors")
    moved, ranges = plan["bytes_to_move"], plan["shards_in_ranges"]
    how = f", {ranges} of {plan['shards_to_fetch']} shards as byte ranges (unverified)" if ranges else ""
    if plan["shards_to_fetch"]:
        rows.add_row(
            Text("to move", "dim"), f"{decimal(moved)}{how}" if moved else "nothing: all is in the Hub's cache"
        )
        freed = plan["frees"] or ranges == plan["shards_to_fetch"]
        kept = "freed after use" if freed else "stays in the Hub's cache" if moved else "nothing more"
        peak, free = decimal(plan["disk_peak"]), decimal(plan["disk_free"])
        rows.add_row(Text("disk", "dim"), f"at most {peak} at a time, {kept}; {free} are free")
    memory = f"about {decimal(plan['memory'])} with {plan['jobs']} workers, beside file caches"
    rows.add_row(Text("memory", "dim"), memory)
    time = "under a second" if plan["seconds"] < 1 else f"about {duration(plan['seconds'])}"
    time += " of computing on this machine"
    if moved:
        time += f"; the download takes {duration(moved / 12.5e6)} at 100 Mbit/s"
    rows.add_row(Text("time", "dim"), time)
    return rows


def families_view(families: Sequence[Family], options: ConsoleOptions) -> RenderableType:
    """Many families, one a row: what may stand after the name and a colon, and the tags; their number last."""
    pairs_width, tags_width = 28, 17  # of `instruct..thinking (sibling)` and `dense, reasoning,`
    names_width = max((len(family.name) for family in families), default=0)
    room = options.max_width - names_width - pairs_width - tags_width - 11  # 11 between and beside four columns
    wide = room >= 24
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("family", style="cyan", no_wrap=True)
    table.add_column("pairs", max_width=pairs_width)
    if wide:
        table.add_column("last stage", max_width=room, no_wrap=True, overflow="ellipsis")
    table.add_column("tags", style="dim", max_width=tags_width)
    for family in families:
        pairs = Text(", ").join(_pair_name(pair) for pair in family.pairs) if family.pairs else Text("none", "yellow")
        *_, (_, _, last) = family.references()
        where = visible(f".../{last.last_name}" if last.is_folder else str(last))
        table.add_row(family.name, pairs, *([Text(where)] if wide else []), ", ".join(family.tags))
    count = sum(len(family.pairs) for family in families)
    return Group(table, Text(f"{_counted(len(families), 'family', 'families')}, {_counted(count, 'pair', 'pairs')}"))


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _pair_name(pair: Pair) -> Text:
    return Text(pair.name) if pair.relation == "tuned" else Text.assemble(pair.name, (f" ({pair.relation})", "yellow"))


def family_view(family: Family) -> RenderableType:
    """One family: every stage and where it is, every pair and its relation, what else its file says."""
    stages = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    stages.add_column("stage", style="cyan", no_wrap=True)
    references = family.references()
    by_component = any(component for _, component, _ in references)
    if by_component:
        stages.add_column("component", no_wrap=True)
    stages.add_column("checkpoint", overflow="fold", ratio=1)
    before = None
    for stage, component, reference in references:
        place = [component or "all"] if by_component else []
        stages.add_row("" if stage == before else stage, *place, Text(visible(str(reference))))
        before = stage
    facts = Table.grid(padding=(0, 2))
    for index, pair in enumerate(family.pairs):
        target = Text(f"{family.name}:{pair.name}")
        if pair.relation != "tuned":
            target.append(f" ({pair.relation})", "yellow")
        facts.add_row(Text("" if index else "pairs", "dim"), target)
    rows = {
        "pairs": "" if family.pairs else "none",
        "components": ", ".join(family.components),
        "tags": ", ".join(family.tags),
        "note": family.note,
        "source": family.source,
        "file": f"{family.file}:{family.line}",
    }
    for title, text in rows.items():
        if text:
            facts.add_row(Text(title, "dim"), Text(visible(text), overflow="fold"))
    return Group(Text(family.name, "bold"), stages, facts)


def columns_view(columns: Sequence[Column]) -> RenderableType:
    """`explain` without a column: every column in one line."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("column", style="cyan", no_wrap=True)
    table.add_column("meaning", ratio=1)
    for column in columns:
        table.add_row(column.name, escape(column.text))
    return table


def column_view(column: Column) -> RenderableType:
    """`explain COLUMN`: formula, range, null value, source, pitfalls."""
    rows = Table.grid(padding=(0, 2))
    facts = {
        "formula": column.formula,
        "type": column.type,
        "unit": column.unit or ("none" if column.formula else ""),
        "range": column.range,
        "null": column.null or "never",
        "source": column.source,
        "pitfalls": column.pitfalls,
    }
    for title, text in facts.items():
        if text:
            rows.add_row(Text(title, "dim"), Text(text))
    parts: list[RenderableType] = [
        Text.assemble((column.name, "bold cyan"), f"  {column.text}"),
        Padding(rows, (1, 0, 0, 2)),
    ]
    if column.formula:
        parts.append(Padding(Text(NOTATION, "dim"), (1, 0, 0, 2)))
    return Group(*parts)


def _figures_table(*heads: str) -> Table:
    """A table of text, then numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", overflow="fold")
    return table


def label_view(shipped: Calibration) -> RenderableType:
    """`explain label`: the five words, the bounds behind them, and how often they err."""
    words = Table.grid(padding=(0, 2))
    for word, text in WORDS.items():
        words.add_row(Text(word, "bold"), Text(text))
    bounds = _figures_table("short side, optimiser", "narrow", "broad", "concentrated above", "distributed below")
    for one in shipped.trainings:
        own = one.bounds["concentration"]
        bounds.add_row(
            f"{one.short_side}, {one.optimizer or 'not told'}", str(one.narrow), str(one.broad),
            fixed(own.concentrated, 3), fixed(own.distributed, 3),
        )  # fmt: skip
    rates = _figures_table("how often it errs", "cases", "bases", "95 %, of bases")
    for rate in shipped.rates:
        rates.add_row(
            rate.what, f"{rate.errors} of {rate.cases}", f"{rate.affected} of {rate.bases}",
            f"{rate.low:.2f} to {rate.high:.2f}",
        )  # fmt: skip
    made = ", ".join(f"{name} {value}" for name, value in shipped.made.items())
    return Group(
        Text.assemble(("label", "bold cyan"), "  what may be said of one pair, gates first"),
        Padding(words, (1, 0, 1, 2)),
        Text(LABEL_RULE, "dim"),
        Padding(bounds, (1, 0)),
        rates,
        Padding(Text(f"Trainings of shadow lab, in registry/reference: {made}", "dim"), (1, 0, 0, 0)),
    )


def schema_view(tables: Sequence[ReportTable]) -> RenderableType:
    """`schema` without a table: what each table is."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("table", style="cyan", no_wrap=True)
    shown.add_column("columns", justify="right", no_wrap=True)
    shown.add_column("where", overflow="fold")
    shown.add_column("one row is", ratio=1)
    for table in tables:
        shown.add_row(table.name, str(len(table.columns)), table.file, table.row)
    told = Text(
        f"Schema {SCHEMA}. `shadow schema TABLE` lists its columns, `shadow explain COLUMN` has formulas and sources."
    )
    rules = Table.grid(padding=(0, 1))
    for rule in RULES:
        rules.add_row(Text("-", "dim"), Text(rule, "dim"))
    return Group(shown, told, rules)


def table_view(table: ReportTable) -> RenderableType:
    """`schema TABLE`: type, unit, meaning and null case of every column."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("column", style="cyan", no_wrap=True)
    shown.add_column("type", no_wrap=True)
    shown.add_column("meaning", ratio=1)
    for column in table.columns:
        meaning = Text(column.text)
        null = "; null: " + ", ".join(null_cases(column)) if null_cases(column) else ""
        meaning.append(f"{column.unit and f'; in {column.unit}'}{null}", "dim")
        meaning.append("; later" if is_later(table, column) else "", "yellow")
        shown.add_row(column.name, column.type, meaning)
    head = Text.assemble((table.name, "bold cyan"), f"  {table.file}, schema {SCHEMA}; one row is {table.row}")
    return Group(head, shown)
