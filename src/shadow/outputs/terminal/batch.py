"""How the pairs of a list stand, and those of a command that has no list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import ConsoleOptions, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from shadow.claims.footprint import label_or_gates
from shadow.outputs.terminal.typeset import fixed, share
from shadow.text import byte_size, several, took, visible

if TYPE_CHECKING:
    from shadow.audits.list_index import Index, Row
    from shadow.claims.verdicts import Judgement


NO_LABEL = "not assessable"
BATCH_WIDE = 110  # columns from which a list's table has one of errors
STATE_STYLES = {"done": "green", "failed": "bold red", "kept": "magenta", "pending": "yellow"}


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
        position = "-" if row.position is None else str(row.position)
        cells = [
            Text(position),
            Text(visible(row.family)),
            Text(visible(row.pair)),
            Text(row.state, STATE_STYLES[row.state]),
            Text(visible(_label(row))),
            Text(fixed(row.concentration)),
            Text(share(row.relative_norm_overall)),
            Text("-" if row.seconds is None else took(row.seconds)),
        ]
        if wide:
            cells.append(Text(visible(row.error or "")))
        elif row.error:
            fault = Text(visible(f"{row.name}: {row.error}"), overflow="fold")
            if row.hint:
                fault.append(visible(f" ({row.hint})"), "dim")
            faults.add_row(Text(position), fault)
        table.add_row(*cells)
    parts: list[RenderableType] = [Rule(Text("list", "bold"), align="left", style="dim"), table]
    if faults.rows:
        parts += [faults, ""]
    return Group(*parts, _batch_footer(index), "")


def pairs_view(judged: Sequence[Judgement]) -> RenderableType:
    """The pairs of a family, a row each, after their reports: those may be screens apart."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("family", overflow="fold")
    table.add_column("pair", style="cyan", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("label")
    for head in ("conc.", "norm"):
        table.add_column(head, justify="right", no_wrap=True)
    for judgement in judged:
        names = [Text(visible(judgement.family)), Text(visible(judgement.pair))]
        summary = judgement.summary
        if summary is None:
            table.add_row(*names, Text("failed", STATE_STYLES["failed"]))
            continue
        table.add_row(
            *names,
            Text("done", STATE_STYLES["done"]),
            Text(label_or_gates(summary.label, summary.gates, applies=summary.has_label) or "-"),
            Text(fixed(summary.figures["concentration"])),
            Text(share(summary.figures["relative_norm_overall"])),
        )
    return Group(Rule(Text("pairs", "bold"), align="left", style="dim"), table)


def _label(row: Row) -> str:
    """A dash where the label says nothing of the pair, as on the page."""
    return row.label if row.label and row.label != NO_LABEL else "-"


def _batch_footer(index: Index) -> RenderableType:
    rows = Table.grid(padding=(0, 2))
    counts = Counter[str](row.state for row in index.rows)
    pairs = f"{len(index.rows):,}"
    states = ", ".join(f"{counts[state]:,} {state}" for state in STATE_STYLES if counts[state])
    if states:
        pairs += f": {states}"
    rows.add_row(Text("pairs", "dim"), pairs)
    if any(row.label == NO_LABEL for row in index.rows):
        why = "- where a gate failed or no known training is of this size: `shadow show REPORT`"
        rows.add_row(Text("label", "dim"), why)
    what_it_took = took(sum(row.seconds or 0.0 for row in index.rows))
    moved = sum(row.bytes or 0 for row in index.rows)
    if moved:
        what_it_took += f", {byte_size(moved)} fetched"
    rows.add_row(Text("took", "dim"), what_it_took)
    if missing := index.missing_shards:
        rows.add_row(
            Text("shards", "dim"),
            f"{several(index.shards)} of the list; not here: {several(missing)}",
        )
    return rows
