"""Cost of an audit, and the state of the pairs of a list, as documents."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from shadow.quantities import DASH
from shadow.telling.document import (
    Block,
    Document,
    FigureRow,
    Figures,
    Level,
    Origin,
    Section,
    Word,
    figures_of,
    named,
    number,
    table_of,
    worded,
)
from shadow.telling.skipped import skipped_table
from shadow.text import about_time, byte_size, counted, took

if TYPE_CHECKING:
    from shadow.lists.index import Index, Key, ListRow
    from shadow.run.pair_plan import PairPlan, PlannedSide

DOWNLOAD = 12.5e6  # bytes a second, by which the time of a download is told: 100 Mbit/s
STATES: Mapping[str, Level] = {
    "done": "passed",
    "failed": "fault",
    "kept": "warning",
    "pending": "quiet",
}


def _position(row: ListRow) -> str:
    return DASH if row.position is None else str(row.position)


def list_document(index: Index, folder: object, judged: Mapping[str, Word]) -> Document:
    """The state of the pairs of a list, a row each; errors; and their number and cost.

    folder: of the list. judged: the states of pairs by their full names, instead of `done`.
    """
    states: dict[Key, Word] = {}
    for row in index.rows:
        word = Word(row.state, STATES[row.state])
        if row.state == "done":
            word = judged.get(row.name, word)
        states[row.key] = word
    fields = (
        number("#", _position, None),
        named("family"),
        named("pair"),
        worded("state", lambda row: states[row.key]),
        number("norm", "relative_norm_overall", "share"),
        number("conc.", "concentration", "fixed"),
        number("time", "seconds", "seconds"),
    )
    faults = [
        FigureRow(_position(row), f"{row.name}: {row.error}{f' ({row.hint})' if row.hint else ''}")
        for row in index.rows
        if row.error
    ]
    blocks: list[Block] = [Section("list"), table_of(fields, index.rows, close=True)]
    if faults:
        blocks.append(Figures(faults))
    counts = Counter(states[row.key].text for row in index.rows)
    return Document([*blocks, Origin(_totals(index, folder, counts))])


def _totals(index: Index, folder: object, counts: Counter[str]) -> list[tuple[str, str]]:
    pairs = f"{len(index.rows):,}"
    order = dict.fromkeys((*STATES, *counts))
    states = ", ".join(f"{counts[state]:,} {state}" for state in order if counts[state])
    seconds = took(sum(row.seconds or 0.0 for row in index.rows))
    parts = [f"{pairs}: {states}" if states else pairs, f"took {seconds}"]
    if moved := sum(row.bytes or 0 for row in index.rows):
        parts.append(f"{byte_size(moved)} fetched")
    rows = {"pairs": "; ".join(parts)}
    first = next((row for row in index.rows if row.state in ("done", "kept")), None)
    if first is not None:
        place = f"{folder}/{first.folder}"
        rows["more"] = f"shadow show {shlex.quote(place)}"
    return list(rows.items())


def plan_document(plan: PairPlan) -> Document:
    """The cost of the audit of a pair."""
    sides = [FigureRow("base", _side(plan.base)), FigureRow("tuned", _side(plan.tuned))]
    blocks: list[Block] = [Section(plan.family, plan.pair), Figures(sides, close=True)]
    if plan.skipped:
        blocks.append(skipped_table(plan.skipped))
    blocks.append(figures_of(_costs(plan)))
    return Document(blocks)


def plans_document(plans: Sequence[PairPlan], of: int) -> Document:
    """The total cost of the audits of several pairs. of: how many were requested."""
    count = f"{of:,}" if len(plans) == of else f"{len(plans):,} of {of:,}"
    shared = "less where pairs share a checkpoint"
    rows = {"pairs": count}
    if moved := sum(plan.bytes_to_move for plan in plans):
        rows["to move"] = f"{byte_size(moved)}, {shared}"
    rows["memory"] = f"at most about {byte_size(max(plan.memory for plan in plans))}"
    rows["time"] = f"{about_time(sum(plan.seconds for plan in plans))} of computing, {shared}"
    return Document([Section("all pairs"), figures_of(rows)])


def _side(side: PlannedSide) -> str:
    named = side.repo
    if side.commit:
        named += f" @ {side.commit[:12]}"
    if side.access:
        named += f", {side.access}"
    shards = counted(side.shards, "shard", "shards")
    return f"{named}: {shards}, {byte_size(side.bytes)}, {', '.join(side.dtypes)}"


def _costs(plan: PairPlan) -> dict[str, str]:
    rows = {"work": f"{plan.matrices:,} matrices, {plan.vectors:,} vectors"}
    if plan.shards_to_fetch:
        rows["to move"] = byte_size(plan.bytes_to_move)
        if not plan.bytes_to_move:
            rows["to move"] = "nothing: everything is in the Hub's cache"
        elif plan.shards_in_ranges:
            shards = f"{plan.shards_in_ranges} of {plan.shards_to_fetch} shards"
            rows["to move"] += f", {shards} as byte ranges (unverified)"
        peak, free = byte_size(plan.disk_peak), byte_size(plan.disk_free)
        stays = "freed after use" if plan.frees else "whole shards stay in the Hub's cache"
        rows["disk"] = f"at most {peak} at a time, {stays}; {free} are free"
    rows["memory"] = (
        f"about {byte_size(plan.memory)} with {counted(plan.jobs, 'worker', 'workers')}, not"
        f" counting file caches; {byte_size(plan.memory_free)} available ({plan.memory_by})"
    )
    if plan.device != "cpu":
        rows["device"] = f"{plan.device} ({plan.device_name}), experimental"
    rows["cores"] = f"{plan.cores} ({plan.cores_by})"
    rows["time"] = f"{about_time(plan.seconds)} of computing on this machine"
    if plan.bytes_to_move:
        download = about_time(plan.bytes_to_move / DOWNLOAD)
        rows["time"] += f"; {download} of download at 100 Mbit/s"
    return rows
