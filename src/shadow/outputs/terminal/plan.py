"""What an audit of a pair will take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from shadow.outputs.terminal.skipped import skipped_table
from shadow.outputs.terminal.typeset import span
from shadow.text import byte_size, duration, several, visible

if TYPE_CHECKING:
    from shadow.audits.pair_plan import PairPlan, PlannedModule, PlannedSide


def plan_view(plan: PairPlan, width: int) -> RenderableType:
    """What an audit of a pair will take."""
    title = Text.assemble((visible(plan.family), "bold"), "  ", (visible(plan.pair), "bold cyan"))
    sides = Table.grid(padding=(0, 2))
    for side, planned in (("base", plan.base), ("tuned", plan.tuned)):
        sides.add_row(Text(side, "dim"), Text(_plan_side(planned), overflow="fold"))
    for name, (base, tuned) in plan.config_differs.items():
        sides.add_row(
            Text("config", "dim"), Text(visible(f"{name}: {base} in base, {tuned} in tuned"))
        )
    parts: list[RenderableType] = [Rule(title, align="left", style="dim"), sides, ""]
    parts += [plan_modules(plan.modules), ""]
    if plan.skipped:
        parts += [skipped_table(plan.skipped, width), ""]
    return Group(*parts, _plan_costs(plan))


def _plan_side(side: PlannedSide) -> str:
    named = side.repo
    if side.commit:
        named += f" @ {side.commit[:12]}"
    if side.access:
        named += f", {side.access}"
    shards = f"{side.shards} {'shard' if side.shards == 1 else 'shards'}"
    return visible(f"{named}: {shards}, {byte_size(side.bytes)}, {', '.join(side.dtypes)}")


def plan_modules(modules: Sequence[PlannedModule]) -> RenderableType:
    """A row for each component and module: how many matrices, in which layers, of which shapes."""
    table = Table(
        title="To be measured",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("component", style="dim", no_wrap=True)
    table.add_column("module", style="cyan", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("layers", justify="right", no_wrap=True)
    table.add_column("rows x cols")
    for row in modules:
        shapes = several([f"{rows} x {cols}" for rows, cols in row.shapes], 2)
        layers = "-"
        if row.layers:
            first, last = row.layers
            layers = span(str(first), str(last), between="-")
        table.add_row(row.component, row.module, f"{row.matrices:,}", layers, shapes)
    return table


def _limited(by: str) -> str:
    """What limits it, where that is not the machine itself."""
    if by == "the machine":
        return ""
    return f", limited by {by}"


def _to_move(plan: PairPlan) -> str:
    """What is fetched from the Hub, and how."""
    if not plan.bytes_to_move:
        return "nothing: all is in the Hub's cache"
    moved = byte_size(plan.bytes_to_move)
    if not plan.shards_in_ranges:
        return moved
    shards = f"{plan.shards_in_ranges} of {plan.shards_to_fetch} shards"
    return f"{moved}, {shards} as byte ranges (unverified)"


def _kept(plan: PairPlan) -> str:
    """What becomes of the files on the disk."""
    if plan.frees or plan.shards_in_ranges == plan.shards_to_fetch:
        return "freed after use"
    if plan.bytes_to_move:
        return "stays in the Hub's cache"
    return "nothing more"


def _plan_costs(plan: PairPlan) -> RenderableType:
    rows = Table.grid(padding=(0, 2))
    rows.add_row(Text("work", "dim"), f"{plan.matrices:,} matrices, {plan.vectors:,} vectors")
    if plan.shards_to_fetch:
        rows.add_row(Text("to move", "dim"), _to_move(plan))
        peak, free = byte_size(plan.disk_peak), byte_size(plan.disk_free)
        disk = f"at most {peak} at a time, {_kept(plan)}; {free} are free"
        rows.add_row(Text("disk", "dim"), disk)
    report = f"up to about {byte_size(plan.disk_report)} of disk while it is made"
    rows.add_row(Text("report", "dim"), report)
    workers = "worker" if plan.jobs == 1 else "workers"
    memory = f"about {byte_size(plan.memory)} with {plan.jobs} {workers}, beside file caches; "
    memory += f"{byte_size(plan.memory_free)} available{_limited(plan.memory_by)}"
    rows.add_row(Text("memory", "dim"), Text(visible(memory)))
    if plan.device_memory is not None and plan.device_memory_free is not None:
        taken = (
            f"at most {byte_size(plan.device_memory)} of its memory;"
            f" {byte_size(plan.device_memory_free)} are free"
        )
        rows.add_row(
            Text("device", "dim"), Text(visible(f"{plan.device} ({plan.device_name}): {taken}"))
        )
    rows.add_row(Text("cores", "dim"), Text(visible(f"{plan.cores}{_limited(plan.cores_by)}")))
    time = "under a second" if plan.seconds < 1 else f"about {duration(plan.seconds)}"
    time += " of computing on this machine"
    if plan.bytes_to_move:
        time += f"; the download takes {duration(plan.bytes_to_move / 12.5e6)} at 100 Mbit/s"
    rows.add_row(Text("time", "dim"), time)
    return rows
