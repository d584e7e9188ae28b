"""Finished reports -> the stages of one base in order, a step a report.

A report identifies its base and its tuned side: by commit on the Hub, by content or fingerprint
everywhere. One report follows another if its base is the other's tuned side, by these and not by
name. Reports that skip stages (base..instruct beside base..sft and sft..instruct) are not steps;
they stand below the chain that they span.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from shadow.places.names import ATTENTION, MLP
from shadow.reports.provenance import CheckpointMetadata, chosen_in
from shadow.reports.report import Report
from shadow.storage import as_given
from shadow.summary.record import PairRecord

MOST_REPORTS = 200  # of one lineage
MOST_CHAINS = 200  # that are shown
SUFFIX = re.compile(r"-[0-9a-f]{8}$")  # of the name of a pair that was given by two references
Edge = tuple[int, int]
Key = tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """A group of modules: its shares of the energy and of the changed parameters."""

    name: str
    """attention, MLP, embedding, head, or another component."""
    energy_share: float


@dataclass(frozen=True)
class Step:
    """One report as a step. Norms are over all matrices that changed, as one vector."""

    family: str
    pair: str
    folder: str
    base: CheckpointMetadata
    tuned: CheckpointMetadata
    start: str
    end: str
    matrices: int
    failed_gates: list[str]
    relative_norm: float | None
    """The norm of the change over that of the base, as stored, 0 or more."""
    relative_norm_unrounded: float | None
    """The same before storage; None where that is not known."""
    norm: float | None
    """The norm of the change as stored, in units of the weights; None where nothing changed."""
    kept: float | None
    """The share of the stored change's energy that is the update's: the median inside layers."""
    groups: list[Group]
    """The groups of modules, the most energy first."""
    short_side: float | None
    """How many directions a matrix has: the median inside layers."""
    equivalent_directions: float | None
    """As coherent as so many equally strong directions, 1 or more: the median inside layers."""
    chosen: Mapping[str, list[Any]] | None = None
    """What the audit was restricted to; None where it was not."""
    ratio: float | None = None
    """This step's norm over that of the step before, 0 or more; None where it has none."""
    ratio_of: str | None = None
    """Which norms ratio is of: unrounded, or stored."""

    @property
    def size(self) -> float | None:
        """The relative norm, unrounded if known."""
        if self.relative_norm_unrounded is not None:
            return self.relative_norm_unrounded
        return self.relative_norm

    @property
    def norm_unrounded(self) -> float | None:
        """The norm before storage, in units of the weights."""
        if not self.relative_norm or self.relative_norm_unrounded is None or self.norm is None:
            return None
        return self.norm * self.relative_norm_unrounded / self.relative_norm


@dataclass(frozen=True)
class Chain:
    """A sequence of stages."""

    stages: list[str]
    steps: list[Step]
    whole: list[Step]
    """Reports that pass over stages of it."""


@dataclass(frozen=True)
class Lineage:
    """The chains that some reports make."""

    chains: list[Chain]
    """In the order of the steps, MOST_CHAINS at most."""
    notes: list[str]
    """What was left out, and what has no order."""


def step_of(report: Report, summary: PairRecord, failed_gates: list[str]) -> Step | None:
    """Make a step of a finished report; None for one of siblings, neither of which came from the
    other.

    Raises ShadowError if the report cannot be read.
    """
    provenance = report.provenance
    if provenance.relation == "sibling":
        return None
    start, _, end = SUFFIX.sub("", summary.pair).partition("..")
    figures = summary.figures
    energy = math.fsum(row.energy or 0.0 for row in summary.modules)
    return Step(
        family=summary.family,
        pair=summary.pair,
        folder=as_given(report.folder),
        base=summary.base,
        tuned=summary.tuned,
        start=start,
        end=end,
        matrices=figures.matrices,
        failed_gates=failed_gates,
        relative_norm=figures.relative_norm_overall,
        relative_norm_unrounded=figures.relative_norm_overall_unrounded,
        norm=math.sqrt(energy) if energy else None,
        kept=summary.inside_layers.kept,
        groups=_groups(summary, energy),
        short_side=figures.short_side,
        equivalent_directions=summary.inside_layers.equivalent_directions,
        chosen=chosen_in(provenance.recorded["settings"]) or None,
    )


def _groups(summary: PairRecord, whole: float) -> list[Group]:
    """Return groups of modules with their energy; another component is a group of its own."""
    sums: defaultdict[str, float] = defaultdict(float)
    for row in summary.modules:
        name = row.module
        if row.component not in (summary.main_component, "language"):
            name = row.component
        elif name.startswith(ATTENTION):
            name = "attention"
        elif name.startswith(MLP):
            name = "MLP"
        sums["embedding" if name == "embed" else name] += row.energy or 0.0
    groups = [Group(name, energy / whole) for name, energy in sums.items() if whole]
    return sorted(groups, key=lambda group: (-group.energy_share, group.name))


# -------------------------------------------------------------------------------------------- order


def lineage(steps: Sequence[Step]) -> Lineage:
    """Return the chains that steps make, in the order of the steps."""
    notes: list[str] = []
    edges: dict[Edge, Step] = {}
    numbers = numbered([side for step in steps for side in (step.base, step.tuned)])
    for step, ends in zip(steps, zip(numbers[::2], numbers[1::2], strict=True), strict=True):
        if ends[0] == ends[1]:
            notes.append(f"{step.folder}: left out, since base and tuned are the same files")
        elif ends in edges:
            other = edges[ends].folder
            notes.append(f"{step.folder}: left out, since {other} is of the same two checkpoints")
        else:
            edges[ends] = step
    names = _names(edges)
    for first, last in edges:
        edges[first, last] = replace(edges[first, last], start=names[first], end=names[last])
    for first, last in [ends for ends in edges if ends[0] in _reached(ends[1], edges)]:
        step = edges.pop((first, last))
        notes.append(
            f"{step.folder}: no order, since {step.start} and {step.end} lead to each other"
        )
    # a report is no step where another way leads from its base to its tuned side
    direct = [
        (first, last)
        for first, last in edges
        if last not in _reached(first, (ends for ends in edges if ends != (first, last)))
    ]
    ends_of_steps = {last for _, last in direct}
    roots = dict.fromkeys(first for first, _ in direct if first not in ends_of_steps)
    ways = (path for root in roots for path in _paths([root], direct))
    paths = list(islice(ways, MOST_CHAINS + 1))
    if len(paths) > MOST_CHAINS:
        notes.append(f"more than {MOST_CHAINS} chains: the first {MOST_CHAINS} are shown")
    return Lineage([_chain(path, edges, names) for path in paths[:MOST_CHAINS]], notes)


def numbered(sides: Sequence[CheckpointMetadata]) -> list[int]:
    """Number the sides from 0, with equal numbers for equal checkpoints.

    Two are equal if their content, their files or their commit are. Files have a fingerprint, made
    from a sample: if those of one fingerprint have several contents, the content decides.
    """
    contents: defaultdict[str | None, set[str]] = defaultdict(set)
    for side in sides:
        if content := side.get("content"):
            contents[side["fingerprint"]].add(content)
    known = [_keys(side, contents) for side in sides]
    numbers: dict[Key, int] = {}
    for keys in sorted(known, key=len, reverse=True):  # who is known by most joins the others
        number = next((numbers[key] for key in keys if key in numbers), len(numbers))
        numbers = {**dict.fromkeys(keys, number), **numbers}
    order = list(dict.fromkeys(numbers[keys[0]] for keys in known))
    return [order.index(numbers[keys[0]]) for keys in known]


def _keys(side: CheckpointMetadata, contents: Mapping[str | None, set[str]]) -> list[Key]:
    """Return identifiers of a checkpoint: checkpoints that share one are equal. contents: by
    fingerprint.
    """
    keys: list[Key] = []
    content, files = side.get("content"), side["fingerprint"]
    if content:
        keys.append(("content", content))
    if files and not (content and len(contents[files]) > 1):
        keys.append(("files", files))
    if side["commit"]:
        keys.append(("commit", side["repo"].lower(), side["commit"]))
    return keys or [("name", side["repo"])]


def _names(edges: Mapping[Edge, Step]) -> dict[int, str]:
    """Return the stage of each checkpoint, or the end of its repository's name if two share it."""
    names: dict[int, str] = {}
    repos: dict[int, str] = {}
    for (first, last), step in edges.items():
        for node, name, side in ((first, step.start, step.base), (last, step.end, step.tuned)):
            repos.setdefault(node, side["repo"])
            names.setdefault(node, name or side["repo"])
    taken = Counter(names.values())
    return {
        node: name if taken[name] == 1 else Path(repos[node]).name or repos[node]
        for node, name in names.items()
    }


def _reached(start: int, edges: Iterable[Edge]) -> set[int]:
    """The checkpoints that edges lead to from one."""
    steps, found = list(edges), {start}
    while more := {second for first, second in steps if first in found} - found:
        found |= more
    return found


def _paths(path: list[int], direct: Sequence[Edge]) -> Iterator[list[int]]:
    """Yield every continuation of a path up to a checkpoint that no step begins at."""
    after = [second for first, second in direct if first == path[-1]]
    for second in after:
        yield from _paths([*path, second], direct)
    if not after:
        yield path


def _chain(path: Sequence[int], edges: Mapping[Edge, Step], names: Mapping[int, str]) -> Chain:
    between = list(pairwise(path))
    each = [edges[ends] for ends in between]
    steps = [_beside(step, before) for step, before in zip(each, [None, *each], strict=False)]
    whole = [edges[ends] for ends in edges if ends not in between and set(ends) <= set(path)]
    return Chain([names[node] for node in path], steps, whole)


def _beside(step: Step, before: Step | None) -> Step:
    """Add to a step the ratio of its norm to the one before, unrounded if both are known."""
    if before is None or step.chosen != before.chosen:
        return step
    norm, last, kind = step.norm_unrounded, before.norm_unrounded, "unrounded"
    if norm is None or not last:
        norm, last, kind = step.norm, before.norm, "stored"
    return step if norm is None or not last else replace(step, ratio=norm / last, ratio_of=kind)
