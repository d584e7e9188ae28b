"""Some hidden units of two models that correspond, for a test of whether they share them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, MatrixPair, Partners, pair_checkpoints
from shadow.relations.matching import NEAR
from shadow.run.correspondence import Matching, differing
from shadow.run.runtime import AlignedPair, Runtime, gather_together
from shadow.run.scan import scan, sides_of
from shadow.spectra.relations.units import Units
from shadow.spectra.spectrum import Sides, tiles

STACKS = ("mlp", "shared", "experts")  # of which up, gate and down have the same units
MATRICES = ("up", "gate", "down")  # units are rows of the first two, and columns of the last
LAYERS = 6  # places whose units are compared, spread over the depth
SAMPLED = 64  # units of each
WHOLE = 1 << 26  # entries of a matrix of which every unit is looked at for another order
FEWEST = 8  # units of an MLP, for a test
# modules that say which layer of a candidate a layer is, and which expert an expert
VOTERS = ("mlp.up", "shared.up", "attn.o", "linear_attn.o")
EXPERTS = "experts.up"

Group = tuple[str, str, int, int]  # component, stack, layer and expert, -1 for none


def sampled_units(
    model: Checkpoint, candidate: Checkpoint, runtime: Runtime, scratch: Path
) -> tuple[list[Units], bool]:
    """Some units of both models, by places in order, none if nothing aligns; and whether
    they are those of layers or experts that correspond, but not by number. These are looked for
    where numbers of layers or experts differ, or entries have little in common.
    """
    aligned = _aligned(candidate, model)
    groups = _groups(aligned.pairs)
    chosen = _spread(sorted(groups))
    units = _read(aligned, groups, chosen, runtime, scratch)
    if not differing(aligned) and not any(map(_is_unlike, units)):
        return units, False
    matching = _matching(aligned, runtime, scratch)
    if matching is None:
        return units, False
    aligned = _aligned(candidate, model, matching.partners)
    groups = _groups(aligned.pairs)
    matched = [pair for pair in aligned.pairs if pair.place in matching.chosen]
    chosen = _spread(sorted(_groups(matched)))
    moved = _read(aligned, groups, chosen, runtime, scratch)
    if not moved:
        return units, False
    return moved, True


def has_moved(
    first: Checkpoint, second: Checkpoint, runtime: Runtime, scratch: Path, *, may_have: bool
) -> bool:
    """True if layers or experts of the second are the first's of other numbers. may_have:
    also where both have the same numbers.
    """
    aligned = _aligned(first, second)
    if not may_have and not differing(aligned):
        return False
    matching = _matching(aligned, runtime, scratch)
    return matching is not None


def _aligned(
    base: Checkpoint,
    tuned: Checkpoint,
    partners: Partners = {},  # noqa: B006 - it is only read
) -> AlignedPair:
    pairs, skipped = pair_checkpoints(base, tuned, Filter(), may_differ=True, partners=partners)
    return AlignedPair(base, tuned, pairs, skipped)


def _matching(aligned: AlignedPair, runtime: Runtime, scratch: Path) -> Matching | None:
    """Look for what corresponds: one or two matrices a layer, and the experts of some, say it. None
    where that is what numbers say.
    """
    groups = _spread(sorted(_groups(aligned.pairs)))
    layers = {layer for _, _, layer, _ in groups}
    voters = set()
    for pair in aligned.pairs:
        place = pair.place
        is_of_experts = place.module == EXPERTS and place.layer in layers
        if place.module in VOTERS or is_of_experts:
            voters.add(place)
    matching = Matching(runtime, scratch / "signatures")
    matching.seek(aligned, voters)
    ways = {partner.by for partner in matching.partners.values()}
    if ways <= {"number"}:
        return None
    return matching


def _groups(pairs: Sequence[MatrixPair]) -> dict[Group, list[MatrixPair]]:
    """The matrices of MLPs by what shares their units."""
    groups = defaultdict[Group, list[MatrixPair]](list)
    for pair in pairs:
        stack, _, matrix = pair.place.module.partition(".")
        if pair.base is None or stack not in STACKS or matrix not in MATRICES:
            continue
        if _count(pair) >= FEWEST:
            group = _group(pair)
            groups[group].append(pair)
    return groups


def _read(
    aligned: AlignedPair,
    groups: Mapping[Group, Sequence[MatrixPair]],
    chosen: Sequence[Group],
    runtime: Runtime,
    scratch: Path,
) -> list[Units]:
    """Some units of the chosen groups."""
    pairs: list[MatrixPair] = []
    order: dict[Hashable, int] = {}
    for number, group in enumerate(chosen):
        pairs += groups[group]
        order[group] = number
    if not pairs:
        return []

    def measure(pair: MatrixPair, first: Checkpoint, second: Checkpoint) -> Units:
        is_small = pair.entries <= WHOLE
        is_whole = is_small and _group(pair) == chosen[0]
        sides = sides_of(pair, first, second)
        return _units(pair, sides, whole=is_whole)

    scanning = scan(replace(aligned, pairs=pairs), measure, runtime, scratch)
    (units,) = gather_together([scanning])
    units.sort(key=lambda matrix: (order[matrix.group], matrix.module))
    return units


@np.errstate(over="ignore", invalid="ignore")
def _is_unlike(units: Units) -> bool:
    """True if units have less in common than those that correspond."""
    model_norm = np.linalg.norm(units.model)
    candidate_norm = np.linalg.norm(units.candidate)
    inner = np.vdot(units.model, units.candidate)
    least = NEAR * (model_norm * candidate_norm)
    return bool(inner < least)


def _group(pair: MatrixPair) -> Group:
    place = pair.place
    stack, _, _ = place.module.partition(".")
    stack_of_size = f"{stack} {_count(pair)}{place.slot}"
    layer = -1 if place.layer is None else place.layer
    expert = -1 if place.expert is None else place.expert
    return place.component, stack_of_size, layer, expert


def _is_down(pair: MatrixPair) -> bool:
    return pair.place.module.endswith(".down")


def _count(pair: MatrixPair) -> int:
    """The number of units."""
    if _is_down(pair):
        return pair.cols
    return pair.rows


def _spread(groups: Sequence[Group]) -> list[Group]:
    """Choose at most LAYERS of them, evenly, from the component with the most layers."""
    components = defaultdict[str, list[Group]](list)
    for group in groups:
        component, *_ = group
        components[component].append(group)
    longest = max(components.values(), key=len, default=[])
    count = len(longest)
    steps = np.linspace(0, count - 1, min(LAYERS, count))
    indices = np.unique(steps.round().astype(int))  # in order
    return [longest[index] for index in indices]


@np.errstate(over="ignore")  # F64 beyond float32
def _units(pair: MatrixPair, sides: Sides, *, whole: bool) -> Units:
    """SAMPLED units of both sides: the same ones for all matrices and all candidates."""
    units = _count(pair)
    rows, cols = sides.shape
    width = cols
    if _is_down(pair):
        width = rows
    group = _group(pair)
    entropy = [units, *repr(group).encode()]
    seed = np.random.SeedSequence(entropy)
    order = np.random.default_rng(seed).permutation(units)
    chosen = np.sort(order[:SAMPLED])
    model = np.zeros((len(chosen), width))
    candidate = np.zeros_like(model)
    every = None
    if whole:
        every = np.zeros((units, width), dtype=np.float32)
    for index, (first_unit, first_weight) in tiles(sides.tuned):
        base, tuned = sides.read(index)
        if _is_down(pair):
            base = base.T
            tuned = tuned.T
            first_unit, first_weight = first_weight, first_unit
        unit_count, weight_count = base.shape
        end = first_unit + unit_count
        weights = slice(first_weight, first_weight + weight_count)
        bounds = np.searchsorted(chosen, (first_unit, end))
        lines = slice(*bounds)
        within = chosen[lines] - first_unit
        candidate_tile = base.numpy()
        candidate[lines, weights] = candidate_tile[within]
        model[lines, weights] = tuned.numpy()[within]
        if every is not None:
            every[first_unit:end, weights] = candidate_tile
    return Units(group, pair.place.module, model, candidate, every)
