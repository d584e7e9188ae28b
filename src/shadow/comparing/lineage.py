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
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

from shadow.comparing.codes import LineageNote, StepDoubt, say
from shadow.places.names import ATTENTION, MLP
from shadow.reports.provenance import CheckpointMetadata, chosen_in
from shadow.reports.report import Report
from shadow.storage import as_given
from shadow.summary.record import Gate, PairRecord
from shadow.templates import Reason

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
    ratio_of: Literal["unrounded", "stored"] | None = None
    """Which norms ratio is of."""
    doubt: StepDoubt | None = None
    """Why the change is no update; None where nothing shows it."""

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
    remarks: list[Reason]
    """What was left out, and what has no order."""

    @property
    def notes(self) -> list[str]:
        """The remarks, in words."""
        return [say(remark) for remark in self.remarks]

    def as_json(self) -> dict[str, Any]:
        """For machines: remarks by code and figures, and in words."""
        return {**asdict(self), "notes": self.notes}


def step_of(report: Report, summary: PairRecord, failed_gates: Sequence[Gate]) -> Step | None:
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
        failed_gates=[gate.name for gate in failed_gates],
        relative_norm=figures.relative_norm_overall,
        relative_norm_unrounded=figures.relative_norm_overall_unrounded,
        norm=math.sqrt(energy) if energy else None,
        kept=summary.inside_layers.kept,
        groups=_groups(summary, energy),
        short_side=figures.short_side,
        equivalent_directions=summary.inside_layers.equivalent_directions,
        chosen=chosen_in(provenance.recorded["settings"]) or None,
        doubt=_doubt(failed_gates),
    )


def _doubt(failed_gates: Sequence[Gate]) -> StepDoubt | None:
    """Say why the gate of the lineage failed; None where its figure is not known."""
    for gate in failed_gates:
        if gate.name == "lineage" and gate.figure is not None:
            is_close = gate.figure >= gate.threshold
            return StepDoubt.STEP_REARRANGED if is_close else StepDoubt.STEP_UNRELATED
    return None


def _groups(summary: PairRecord, whole: float) -> list[Group]:
    """The groups of modules with their energy; another component is a group of its own."""
    if not whole:
        return []
    energies: defaultdict[str, float] = defaultdict(float)
    for row in summary.modules:
        name = row.module
        if row.component not in (summary.main_component, "language"):
            name = row.component
        elif name.startswith(ATTENTION):
            name = "attention"
        elif name.startswith(MLP):
            name = "MLP"
        if name == "embed":
            name = "embedding"
        energies[name] += row.energy or 0.0
    groups = [Group(name, energy / whole) for name, energy in energies.items()]
    return sorted(groups, key=lambda group: (-group.energy_share, group.name))


# -------------------------------------------------------------------------------------------- order


def lineage(steps: Sequence[Step]) -> Lineage:
    """Put steps in order: the chains that they make, in the order of the steps."""
    remarks: list[Reason] = []
    edges = _edges(steps, remarks)
    # a report is no step where another way leads from its base to its tuned side
    direct = []
    for first, last in edges:
        others = [edge for edge in edges if edge != (first, last)]
        if last not in _reached(first, others):
            direct.append((first, last))
    ends = {last for _, last in direct}
    roots = dict.fromkeys(first for first, _ in direct if first not in ends)
    every_path = (path for root in roots for path in _paths([root], direct))
    paths = list(islice(every_path, MOST_CHAINS + 1))
    if len(paths) > MOST_CHAINS:
        remarks.append(Reason(LineageNote.TOO_MANY_CHAINS, most=MOST_CHAINS))
    return Lineage([_chain(path, edges) for path in paths[:MOST_CHAINS]], remarks)


def _edges(steps: Sequence[Step], remarks: list[Reason]) -> dict[Edge, Step]:
    """The steps by the numbers of their checkpoints, and by the names of these; adds remarks on
    steps that have no order.
    """
    edges: dict[Edge, Step] = {}
    sides = [side for step in steps for side in (step.base, step.tuned)]
    numbers = numbered(sides)
    ends = zip(numbers[::2], numbers[1::2], strict=True)
    for step, (first, last) in zip(steps, ends, strict=True):
        folder = {"folder": step.folder}
        if first == last:
            remarks.append(Reason(LineageNote.SAME_FILES, folder))
        elif (first, last) in edges:
            other = edges[first, last].folder
            remarks.append(Reason(LineageNote.SAME_STEP, folder, other=other))
        else:
            edges[first, last] = step
    names = _names(edges)
    for (first, last), step in edges.items():
        named = replace(step, start=names[first], end=names[last])
        edges[first, last] = named
    circular = [edge for edge in edges if edge[0] in _reached(edge[1], edges)]
    for edge in circular:
        step = edges.pop(edge)
        circle = Reason(LineageNote.CIRCULAR, folder=step.folder, start=step.start, end=step.end)
        remarks.append(circle)
    return edges


def numbered(sides: Sequence[CheckpointMetadata]) -> list[int]:
    """Number the sides from 0, with equal numbers for equal checkpoints.

    Two are equal if their content, their files or their commit are. Files have a fingerprint, made
    from a sample: if those of one fingerprint have several contents, the content decides.
    """
    contents: defaultdict[str | None, set[str]] = defaultdict(set)
    for side in sides:
        if content := side.get("content"):
            contents[side["fingerprint"]].add(content)
    keys_of_sides = [_keys(side, contents) for side in sides]
    numbers: dict[Key, int] = {}
    for keys in sorted(keys_of_sides, key=len, reverse=True):  # the best known first
        known = [numbers[key] for key in keys if key in numbers]
        number = known[0] if known else len(numbers)
        for key in keys:
            numbers.setdefault(key, number)
    of_sides = [numbers[keys[0]] for keys in keys_of_sides]
    order = list(dict.fromkeys(of_sides))
    return [order.index(number) for number in of_sides]


def _keys(side: CheckpointMetadata, contents: Mapping[str | None, set[str]]) -> list[Key]:
    """The identifiers of a checkpoint: checkpoints that share one are equal. contents: by
    fingerprint.
    """
    keys: list[Key] = []
    content = side.get("content")
    fingerprint = side["fingerprint"]
    if content:
        keys.append(("content", content))
    if fingerprint and not (content and len(contents[fingerprint]) > 1):
        keys.append(("files", fingerprint))
    if side["commit"]:
        keys.append(("commit", side["repo"].lower(), side["commit"]))
    return keys or [("name", side["repo"])]


def _names(edges: Mapping[Edge, Step]) -> dict[int, str]:
    """The stage of each checkpoint, or the end of its repository's name if two share it."""
    names: dict[int, str] = {}
    repos: dict[int, str] = {}
    for (first, last), step in edges.items():
        repos.setdefault(first, step.base["repo"])
        repos.setdefault(last, step.tuned["repo"])
        names.setdefault(first, step.start or repos[first])
        names.setdefault(last, step.end or repos[last])
    uses = Counter(names.values())
    for node, name in names.items():
        if uses[name] > 1:
            names[node] = Path(repos[node]).name or repos[node]
    return names


def _reached(start: int, edges: Iterable[Edge]) -> set[int]:
    """The checkpoints that edges lead to from one, and this one."""
    following: defaultdict[int, list[int]] = defaultdict(list)
    for first, last in edges:
        following[first].append(last)
    reached = {start}
    waiting = [start]
    while waiting:
        for node in following[waiting.pop()]:
            if node not in reached:
                reached.add(node)
                waiting.append(node)
    return reached


def _paths(path: list[int], direct: Sequence[Edge]) -> Iterator[list[int]]:
    """Yield every continuation of a path up to a checkpoint that no step begins at."""
    following = [last for first, last in direct if first == path[-1]]
    for node in following:
        yield from _paths([*path, node], direct)
    if not following:
        yield path


def _chain(path: Sequence[int], edges: Mapping[Edge, Step]) -> Chain:
    between = list(pairwise(path))
    steps: list[Step] = []
    for edge in between:
        before = steps[-1] if steps else None
        steps.append(_with_ratio(edges[edge], before))
    nodes = set(path)
    whole = []
    for edge, step in edges.items():
        if edge not in between and nodes.issuperset(edge):
            whole.append(step)
    stages = [steps[0].start]
    stages += [step.end for step in steps]
    return Chain(stages, steps, whole)


def _with_ratio(step: Step, before: Step | None) -> Step:
    """Add to a step the ratio of its norm to the one before, unrounded if both are known."""
    if before is None or step.chosen != before.chosen:
        return step
    if step.norm_unrounded is not None and before.norm_unrounded:
        return replace(
            step, ratio=step.norm_unrounded / before.norm_unrounded, ratio_of="unrounded"
        )
    if step.norm is not None and before.norm:
        return replace(step, ratio=step.norm / before.norm, ratio_of="stored")
    return step
