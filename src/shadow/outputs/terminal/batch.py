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

from shadow.outputs.terminal.typeset import fixed, share
from shadow.text import byte_size, several, took, visible

if TYPE_CHECKING:
    from shadow.audits.list_index import Index
    from shadow.gates.verdicts import Judgement


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
        place = Text("-" if row.position is None else f"{row.position}")
        cells = [
            place,
            Text(visible(row.family)),
            Text(visible(row.pair)),
            Text(row.state, STATE_STYLES[row.state]),
        ]
        cells.append(Text(visible(row.label or "-")))
        cells += [
            Text(figure) for figure in (fixed(row.concentration), share(row.relative_norm_overall))
        ]
        cells.append(Text("-" if row.seconds is None else took(row.seconds)))
        table.add_row(*cells, *([Text(visible(row.error or ""))] if wide else []))
        if row.error and not wide:
            fault = Text(visible(f"{row.name}: {row.error}"), overflow="fold")
            faults.add_row(
                place.copy(), fault.append(visible(f" ({row.hint})") if row.hint else "", "dim")
            )
    parts: list[RenderableType] = [Rule(Text("list", "bold"), align="left", style="dim"), table]
    parts += [faults, ""] if faults.rows else []
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
        state = "failed" if judgement.summary is None else "done"
        cells = [
            Text(visible(judgement.family)),
            Text(visible(judgement.pair)),
            Text(state, STATE_STYLES[state]),
        ]
        if judgement.summary is not None:
            figures = judgement.summary.figures
            cells.append(Text(visible(judgement.summary.label)))
            cells += [
                Text(fixed(figures["concentration"])),
                Text(share(figures["relative_norm_overall"])),
            ]
        table.add_row(*cells)
    return Group(Rule(Text("pairs", "bold"), align="left", style="dim"), table)


def _batch_footer(index: Index) -> RenderableType:
    rows, counts = Table.grid(padding=(0, 2)), Counter[str](row.state for row in index.rows)
    states = ", ".join(f"{counts[state]:,} {state}" for state in STATE_STYLES if counts[state])
    rows.add_row(Text("pairs", "dim"), f"{len(index.rows):,}{': ' if states else ''}{states}")
    moved = sum(row.bytes or 0 for row in index.rows)
    fetched = f", {byte_size(moved)} fetched" if moved else ""
    rows.add_row(
        Text("took", "dim"), f"{took(sum(row.seconds or 0.0 for row in index.rows))}{fetched}"
    )
    if missing := index.missing_shards:
        rows.add_row(
            Text("shards", "dim"),
            f"{several(index.shards)} of the list; not here: {several(missing)}",
        )
    return rows
