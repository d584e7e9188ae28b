"""Finished reports -> the stages of one base in order, and what each step changed beside the step
before.

A report says which checkpoint is its base and which its tuned side: by commit on the Hub, by
content or fingerprint everywhere. Two reports follow one another where the tuned side of one is the
base of the other, by these and not by name: another commit of a repository is another checkpoint.
Reports that pass over stages (base..instruct beside base..sft and sft..instruct) are no steps; they
stand below the chain that they span. Stages of one base need no reference: they have one set of
shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from shadow.comparing.one_checkpoint import numbered
from shadow.places.groups import ATTENTION, MLP
from shadow.reports.report import Report
from shadow.storage import as_given
from shadow.summary.numbers import over
from shadow.summary.record import PairRecord
from shadow.summary.rows import CheckpointSide

if TYPE_CHECKING:
    import pandas as pd

    from shadow.targets.families import Family

MOST_REPORTS = 200  # of one lineage
MOST_CHAINS = 40  # that are told
# of the parameters: less of them with a known update, and the whole update's norm is not known
KNOWN = 0.9
SUFFIX = re.compile(r"-[0-9a-f]{8}$")  # of the name of a pair that was given by two references


@dataclass(frozen=True)
class Group:
    """A group of modules: its shares of the energy and of the parameters that changed."""

    name: str
    """attention, MLP, embedding, head, or another component."""
    energy_share: float
    parameter_share: float


@dataclass(frozen=True)
class Joint:
    """Two deltas that follow one another, held against each other matrix by matrix: see
    shadow.spectra.joint.

    All matrices count as one vector. Figures are None where they cannot be told.
    """

    matrices: int
    """Matrices of both deltas, 0 or more."""
    left_out: int
    """Matrices that one of the two reports has alone, or in another shape, 0 or more."""
    cosine: float | None
    """Of the two deltas as stored, -1 to 1."""
    chance_cosine: float | None
    """The standard deviation of the cosine if all signs were random, 0 to 1."""
    chance_cosine_master: float | None
    """The mean cosine of unrelated updates, -1 to 1, if training went on from a master copy in more
    bits: both deltas share the rounding of the middle stage. Where training began from the stored
    stage, the mean is 0.
    """
    directions: int
    """The most leading singular directions of the old delta that are taken of each matrix."""
    inside_left: float | None
    """The share of the new delta's energy in these directions of the outputs, 0 to 1; None where no
    matrix has such directions.
    """
    inside_right: float | None
    chance_inside_left: float | None
    """What chance gives for inside_left, by the new delta's own rows, 0 to 1."""
    chance_inside_right: float | None
    """What chance gives for inside_right, by the new delta's own columns, 0 to 1."""


@dataclass(frozen=True)
class Step:
    """One report as a step of a lineage.

    Norms are over all matrices that changed, as one vector.
    """

    family: str
    pair: str
    folder: str
    base: CheckpointSide
    tuned: CheckpointSide
    start: str
    end: str
    matrices: int
    failed_gates: list[str]
    relative_norm: float | None
    """The norm of the change over that of the base, as stored, 0 or more."""
    relative_norm_unrounded: float | None
    """The same before storage; None where no_unrounded says why."""
    no_unrounded: str | None
    """Why the norms before storage are not known; None where they are."""
    norm: float | None
    """The norm of the change as stored, in units of the weights; None where nothing changed."""
    norm_unrounded: float | None
    """The same before storage; None where no_unrounded says why."""
    kept: float | None
    """The share of the stored change's energy that is the update's, 0 to 1."""
    zero_share: float | None
    """The share of unchanged entries in the matrices that changed, 0 to 1."""
    rounded_away: int
    """Matrices of which less than a quarter is the update's."""
    unexplained: int
    """Matrices whose rounding is not that of one training from the stored base."""
    groups: list[Group]
    """The groups of modules, the most energy first."""
    quarters: list[float] | None
    """Shares of the energy inside layers, by depth, 0 to 1; None below four layers."""
    equivalent_directions: float | None
    """As coherent as so many equally strong directions, 1 or more, before storage where that is
    known: the median over the matrices inside layers.
    """
    excess_purity: float | None
    """Purity less that of the null, -1 to 1, before storage where that is known: the median over
    the matrices inside layers.
    """
    coherent: int
    """Matrices inside layers that have equivalent_directions."""
    inside: int
    """Matrices inside layers that changed."""
    chosen: Mapping[str, list[Any]]
    """The components, layers and modules that the audit was restricted to; without a key where it
    was not.
    """
    above_short_side: int = 0
    """Matrices inside layers that are less coherent than a change along all their directions alike.
    Where they are half or more of what is known, equivalent_directions is None.
    """
    ratio: float | None = None
    """This step's norm over that of the step before, 0 or more. Norms are in units of the weights,
    since relative norms of two steps may have other bases.
    """
    ratio_of: str | None = None
    """Which norms ratio is of: unrounded, or stored."""
    no_ratio: str | None = None
    """Why there is no ratio; None where there is one."""
    joint: Joint | None = None
    """What this delta and the one before say of each other."""
    no_joint: str | None = None
    """Why there is no joint figure; None where there is one, or nobody asked."""

    @property
    def size(self) -> float | None:
        """The relative norm: unrounded where it is known."""
        if self.relative_norm_unrounded is not None:
            return self.relative_norm_unrounded
        return self.relative_norm


@dataclass(frozen=True)
class Linearity:
    """How well a straight line tells the path of the weights over stages, if these lie at even
    steps: see shadow.spectra.line.
    """

    stages: int
    """Three or more."""
    matrices: int
    """Matrices of all stages, 0 or more."""
    left_out: int
    """Matrices that only some stages have, 0 or more."""
    r2: float | None
    """R² of the line over all entries together, 0 to 1: those that moved most count most. None
    where nothing moved.
    """
    r2_by_chance: float | None
    """The same of a walk whose steps are these with their entries in random places."""


@dataclass(frozen=True)
class Chain:
    """Stages that follow one another."""

    stages: list[str]
    steps: list[Step]
    whole: list[Step]
    """Reports that pass over stages of it."""
    linearity: Linearity | None = None
    """What a straight line through all stages tells of them."""
    no_linearity: str | None = None
    """Why there is no such figure; None where there is one, or nobody asked."""


@dataclass(frozen=True)
class Lineage:
    """The chains of some reports."""

    chains: list[Chain]
    """In the order of the steps, MOST_CHAINS at most; then those that end where they began."""
    notes: list[str]
    """What is to be said of their order: gaps, and what could not be told."""

    @property
    def is_one(self) -> bool:
        """Whether any step follows another."""
        return any(len(chain.steps) > 1 for chain in self.chains)

    def noting(self, notes: Sequence[str]) -> Lineage:
        """The same with more notes."""
        return replace(self, notes=[*self.notes, *notes])

    def as_json(self) -> dict[str, Any]:
        """For machines: every field, as `lineage --format json` prints it."""
        return asdict(self)


def step_of(
    report: Report, summary: PairRecord, failed_gates: list[str], where: str | None = None
) -> Step | None:
    """A finished report as a step; None for one of siblings, of which neither came from the other.

    where: its folder, as the step tells it. Raises ShadowError when the report cannot be read.
    """
    provenance = report.provenance
    if provenance.relation == "sibling":
        return None
    start, end = _stages_of(summary.pair)
    main = summary.main_component
    quarters = [row.energy_share for row in summary.quarters if row.component == main]
    inside = summary.inside_layers
    purity = inside.excess_purity_unrounded
    if purity is None:
        purity = inside.excess_purity
    return Step(
        family=summary.family,
        pair=summary.pair,
        folder=as_given(report.folder) if where is None else where,
        base=summary.base,
        tuned=summary.tuned,
        start=start,
        end=end,
        matrices=summary.figures.matrices,
        failed_gates=failed_gates,
        relative_norm=summary.figures.relative_norm_overall,
        **_norms(report.matrices),
        zero_share=summary.figures.zero_share,
        groups=_groups(summary),
        quarters=quarters or None,
        equivalent_directions=inside.equivalent_directions,
        excess_purity=purity,
        coherent=inside.coherent,
        inside=inside.matrices,
        chosen={
            name: list(kept)
            for name in ("components", "layers", "modules")
            if (kept := getattr(provenance, name))
        },
        above_short_side=inside.above_short_side,
    )


def _stages_of(pair: str) -> tuple[str, str]:
    """The names of the two stages in the name of a pair."""
    start, _, end = SUFFIX.sub("", pair).partition("..")
    return start, end


def _norms(matrices: pd.DataFrame) -> dict[str, Any]:
    """The fields of Step on norms of the change as one vector, as stored and unrounded, and on how
    much of it is the update's.
    """
    keys = ["component", "layer", "tensor", "module", "expert"]
    bases = matrices.loc[matrices["subject"] == "base", [*keys, "frobenius_norm"]]
    rows = matrices[matrices["subject"] == "delta"].merge(
        bases.rename(columns={"frobenius_norm": "base_norm"}), on=keys, how="left"
    )
    reasons = rows["kept_reason"].fillna("")
    rounded_away = int((reasons == "rounded_away").sum())
    # of an update that changed few entries as little is known
    unexplained = int(reasons.isin(["rounding_unexplained", "few_changed"]).sum())
    stored, base = rows["frobenius_norm"].astype(float), rows["base_norm"].astype(float)
    # of what was not rounded, the stored change is the update
    update = (rows["relative_norm_unrounded"].astype(float) * base).where(
        reasons != "nothing_rounded", stored
    )
    kept = rows["kept"].astype(float).where(reasons != "nothing_rounded", 1.0)
    known = update.notna() & base.notna()
    share = over(rows.loc[known, "parameters"].sum(), rows["parameters"].sum())
    relative = unrounded = no_unrounded = None
    if share is not None and share >= KNOWN:
        relative = over(math.hypot(*update[known]), math.hypot(*base[known]))
    if relative is None:
        no_unrounded = _no_unrounded(len(rows), rounded_away, unexplained)
    else:
        unrounded = relative * math.hypot(*base[base.notna()])
    energies = (stored**2)[kept.notna()]
    kept_of_all = None
    if kept.notna().any() and energies.sum() >= KNOWN * (stored**2).sum():
        kept_of_all = over((kept[kept.notna()] * energies).sum(), energies.sum())
    return {
        "relative_norm_unrounded": relative,
        "no_unrounded": no_unrounded,
        "norm": math.hypot(*stored) if len(rows) else None,
        "norm_unrounded": unrounded,
        "kept": kept_of_all,
        "rounded_away": rounded_away,
        "unexplained": unexplained,
    }


def _no_unrounded(matrices: int, rounded_away: int, unexplained: int) -> str:
    """Why the norm of the whole update is not known."""
    if not matrices:
        return "nothing changed"
    reasons = []
    if rounded_away:
        reasons.append(f"rounded away in {rounded_away} of {matrices} matrices")
    if unexplained:
        reasons.append(f"rounding unexplained in {unexplained} of {matrices} matrices")
    return "; ".join(reasons) or "the report has no share of rounding"


def _groups(summary: PairRecord) -> list[Group]:
    """Groups of modules by their energy: attention, MLP, embedding, head; another component is a
    group of its own.
    """
    main = summary.main_component
    sums: dict[str, tuple[float, int]] = {}
    for row in summary.modules:
        name = row.component
        if row.component in (main, "language"):
            name = _group(row.module)
        energy, parameters = sums.get(name, (0.0, 0))
        sums[name] = energy + (row.energy or 0.0), parameters + row.parameters
    whole = math.fsum(energy for energy, _ in sums.values())
    every = sum(size for _, size in sums.values())
    if not whole:
        return []
    groups = [Group(name, energy / whole, size / every) for name, (energy, size) in sums.items()]
    return sorted(groups, key=lambda group: (-group.energy_share, group.name))


def _group(module: str) -> str:
    if module.startswith(ATTENTION):
        return "attention"
    if module.startswith(MLP):
        return "MLP"
    if module == "embed":
        return "embedding"
    return module


# -------------------------------------------------------------------------------------------- order


def stage_names(families: Iterable[Family]) -> dict[str, str]:
    """The names of stages by repository, in lower case, as the registry has them."""
    return {
        reference.repo.lower(): stage
        for family in families
        for stage, component, reference in family.references()
        if component is None
    }


def unaudited(family: Family, steps: Iterable[Step]) -> list[str]:
    """A note for each declared pair of a family, one trained from the other, that has no report."""
    there = {step.pair for step in steps if step.family == family.name}
    missing = [
        pair.name for pair in family.pairs if pair.relation == "tuned" and pair.name not in there
    ]
    return [f"no report of {name}: shadow audit {family.name}:{name}" for name in missing]


def lineage(steps: Sequence[Step], stages: Mapping[str, str] | None = None) -> Lineage:
    """The chains that steps make, in the order of the steps. stages: names of stages by repository,
    in lower case.
    """
    notes: list[str] = []
    nodes = _numbered_pairs([(step.base, step.tuned) for step in steps])
    edges: dict[tuple[int, int], Step] = {}
    for step, ends in zip(steps, nodes, strict=True):
        if ends[0] == ends[1]:
            notes.append(f"{step.folder}: left out, since base and tuned are the same files")
        elif ends in edges:
            notes.append(
                f"{step.folder}: left out, since {edges[ends].folder} is of the same two"
                " checkpoints"
            )
        else:
            edges[ends] = step
    names = _names(edges, stages or {})
    edges = {
        ends: replace(step, start=names[ends[0]], end=names[ends[1]])
        for ends, step in edges.items()
    }
    notes += _gaps(edges)
    circle = _in_circles(edges)
    for ends in circle:
        notes.append(
            f"{edges[ends].folder}: no order, since {edges[ends].start} and {edges[ends].end} lead"
            " to each other"
        )
    open_edges = [ends for ends in edges if ends not in circle]
    direct = [ends for ends in open_edges if not _has_detour(ends, open_edges)]
    notes += _merges(direct, edges)
    paths = _paths(direct)
    if len(paths) > MOST_CHAINS:
        notes.append(f"more than {MOST_CHAINS} chains: the first {MOST_CHAINS} are shown")
    chains = [_chain(path, edges, names=names, every=open_edges) for path in paths[:MOST_CHAINS]]
    chains += [_chain(list(ends), edges, names=names, every=[]) for ends in circle]
    return Lineage(chains, notes)


def following(sides: Sequence[tuple[CheckpointSide, CheckpointSide]]) -> list[int]:
    """Which of several pairs, (base, tuned) each, are in a chain of two or more: as a step, or as
    the whole of some.
    """
    pairs = _numbered_pairs(sides)
    begun, ended = {base for base, _ in pairs}, {tuned for _, tuned in pairs}
    stages = {
        side for base, tuned in pairs if base in ended or tuned in begun for side in (base, tuned)
    }
    return [number for number, pair in enumerate(pairs) if stages.issuperset(pair)]


def _numbered_pairs(
    sides: Sequence[tuple[CheckpointSide, CheckpointSide]],
) -> list[tuple[int, int]]:
    """A number for both checkpoints of each pair, equal for equal checkpoints."""
    numbers = numbered([side for pair in sides for side in pair])
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _names(edges: Mapping[tuple[int, int], Step], stages: Mapping[str, str]) -> dict[int, str]:
    """What each checkpoint is called: its stage, or the last of its repository's name where two
    have one stage.
    """
    names: dict[int, str] = {}
    repos: dict[int, str] = {}
    for (first, second), step in edges.items():
        for node, name, side in ((first, step.start, step.base), (second, step.end, step.tuned)):
            repos.setdefault(node, side["repo"])
            names.setdefault(node, stages.get(side["repo"].lower(), name or side["repo"]))
    taken = list(names.values())
    for node, name in names.items():
        if taken.count(name) > 1:
            names[node] = repos[node].rstrip("/").rpartition("/")[2] or repos[node]
    return names


def _gaps(edges: Mapping[tuple[int, int], Step]) -> list[str]:
    """A note where a step begins at another version of a repository than an earlier one ends at."""
    notes = []
    ends = {step.tuned["repo"].lower(): (node, step) for (_, node), step in edges.items()}
    for (node, _), step in edges.items():
        last = ends.get(step.base["repo"].lower())
        if last is not None and last[0] != node and not any(second == node for _, second in edges):
            notes.append(
                f"{step.pair} begins at {_version(step.base)} of {step.base['repo']}, but"
                f" {last[1].pair} ends at {_version(last[1].tuned)}: the files differ, so the two"
                " are not one chain"
            )
    return notes


def _version(side: CheckpointSide) -> str:
    if side["commit"]:
        return f"commit {side['commit'][:7]}"
    return f"files {(side['fingerprint'] or 'unknown')[:7]}"


def _in_circles(edges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Edges between checkpoints that come from each other, in any number of steps."""
    edges = list(edges)
    return [(first, second) for first, second in edges if _reaches(second, first, edges)]


def _reaches(start: int, end: int, edges: Sequence[tuple[int, int]]) -> bool:
    following: dict[int, list[int]] = {}
    for first, second in edges:
        following.setdefault(first, []).append(second)
    seen, waiting = {start}, [start]
    while waiting:
        for node in following.get(waiting.pop(), ()):
            if node == end:
                return True
            if node not in seen:
                seen.add(node)
                waiting.append(node)
    return False


def _has_detour(ends: tuple[int, int], edges: Sequence[tuple[int, int]]) -> bool:
    """Whether another way leads from one to the other, over stages between them."""
    return _reaches(*ends, [edge for edge in edges if edge != ends])


def _merges(direct: Sequence[tuple[int, int]], edges: Mapping[tuple[int, int], Step]) -> list[str]:
    notes = []
    for node in dict.fromkeys(second for _, second in direct):
        into = [edges[ends] for ends in direct if ends[1] == node]
        if len(into) > 1:
            starts = " and ".join(step.start for step in into)
            notes.append(
                f"{into[0].end} is the tuned side of steps from {starts}: each has a chain of"
                " its own"
            )
    return notes


def _paths(direct: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Every way from a checkpoint that no step ends at to one that none begins at; one more than
    are told, at most.
    """
    ends = {second for _, second in direct}
    paths: list[list[int]] = []
    for root in dict.fromkeys(first for first, _ in direct if first not in ends):
        waiting = [[root]]
        while waiting and len(paths) <= MOST_CHAINS:
            path = waiting.pop()
            following = [second for first, second in direct if first == path[-1]]
            if not following:
                paths.append(path)
            waiting += [[*path, second] for second in reversed(following)]
    return paths


def _chain(
    path: Sequence[int],
    edges: Mapping[tuple[int, int], Step],
    names: Mapping[int, str],
    every: Sequence[tuple[int, int]],
) -> Chain:
    between = list(pairwise(path))
    each = [edges[ends] for ends in between]
    steps = [_beside(step, before) for step, before in zip(each, [None, *each], strict=False)]
    whole = [edges[ends] for ends in every if ends not in between and set(ends) <= set(path)]
    return Chain([names[node] for node in path], steps, whole)


def _beside(step: Step, before: Step | None) -> Step:
    """The step with the ratio of its norm to the one before, unrounded where both are known."""
    if before is None:
        return replace(step, no_ratio="the first step", no_joint="the first step")
    if step.chosen != before.chosen:
        return replace(step, no_ratio="the two audits were restricted in different ways")
    for kind, norm, last in (
        ("unrounded", step.norm_unrounded, before.norm_unrounded),
        ("stored", step.norm, before.norm),
    ):
        if norm is not None and last:
            return replace(step, ratio=norm / last, ratio_of=kind)
    return replace(step, no_ratio="nothing changed in one of the two")


def successions(known: Lineage) -> list[tuple[Step, Step]]:
    """Every step with the one before it, each two once."""
    pairs = {
        (before.folder, step.folder): (before, step)
        for chain in known.chains
        for before, step in pairwise(chain.steps)
    }
    return list(pairs.values())


def with_joint(known: Lineage, held: Mapping[tuple[str, str], Joint | str]) -> Lineage:
    """The same with what two deltas say of each other, or why nothing, by folders of reports."""
    chains = []
    for chain in known.chains:
        steps = chain.steps[:1]
        for before, step in pairwise(chain.steps):
            outcome = held.get((before.folder, step.folder))
            if isinstance(outcome, Joint):
                steps.append(replace(step, joint=outcome, no_joint=None))
            else:
                steps.append(replace(step, no_joint=outcome))
        chains.append(replace(chain, steps=steps))
    return replace(known, chains=chains)


def with_linearity(known: Lineage, told: Callable[[Chain], Linearity | str]) -> Lineage:
    """The same with what a line tells of each chain of three stages or more, or why nothing."""
    chains = []
    for chain in known.chains:
        found = told(chain) if len(chain.steps) > 1 else "fewer than three stages"
        if isinstance(found, Linearity):
            chains.append(replace(chain, linearity=found))
        else:
            chains.append(replace(chain, no_linearity=found))
    return replace(known, chains=chains)


def shrinking(step: Step, before: Step) -> float | None:
    """The least factor by which storage may have shrunk the cosine of two updates, from kept of
    both; at most 1.

    As stored, a cosine is that of the updates times a factor between sqrt(kept_1 kept_2) and 1. It
    is the lower bound where one of the two was hardly rounded. Where both were, both keep the same
    entries, those of small weights, whose steps are small, and it is nearer to 1.
    """
    if step.kept is None or before.kept is None:
        return None
    return math.sqrt(step.kept * before.kept)
