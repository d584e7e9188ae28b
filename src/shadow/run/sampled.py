"""Some hidden units of two models that correspond, for a test of whether they share them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, MatrixPair, pair_checkpoints
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
    """Return some units of both models, by places in order, none if nothing aligns; and whether
    they are those of layers or experts that correspond, but not by number. These are looked for
    where numbers of layers or experts differ, or entries have little in common.
    """
    pairs, skipped = pair_checkpoints(candidate, model, Filter(), may_differ=True)
    aligned = AlignedPair(candidate, model, pairs, skipped)
    groups = _groups(pairs)
    chosen = _spread(sorted(groups))
    units = _read(aligned, groups, chosen, runtime, scratch)
    if not (differing(aligned) or any(map(_is_unlike, units))):
        return units, False
    matching = _matching(aligned, runtime, scratch)
    if matching is None:
        return units, False
    partners = matching.partners
    pairs, _ = pair_checkpoints(candidate, model, Filter(), may_differ=True, partners=partners)
    known = [pair for pair in pairs if pair.place in matching.chosen]
    groups = _groups(pairs)
    chosen = _spread(sorted(groups.keys() & _groups(known).keys()))
    moved = _read(aligned, groups, chosen, runtime, scratch)
    return moved or units, bool(moved)


def has_moved(
    first: Checkpoint, second: Checkpoint, runtime: Runtime, scratch: Path, *, may_have: bool
) -> bool:
    """Return whether layers or experts of the second are the first's of other numbers. may_have:
    also where both have the same numbers.
    """
    pairs, skipped = pair_checkpoints(first, second, Filter(), may_differ=True)
    aligned = AlignedPair(first, second, pairs, skipped)
    if not (may_have or differing(aligned)):
        return False
    return _matching(aligned, runtime, scratch) is not None


def _matching(aligned: AlignedPair, runtime: Runtime, scratch: Path) -> Matching | None:
    """Look for what corresponds: one or two matrices a layer, and the experts of some, say it. None
    where that is what numbers say.
    """
    layers = {layer for _, _, layer, _ in _spread(sorted(_groups(aligned.pairs)))}
    voters = {
        place
        for place in (pair.place for pair in aligned.pairs)
        if place.module in VOTERS or (place.module == EXPERTS and place.layer in layers)
    }
    matching = Matching(runtime, scratch / "signatures")
    matching.seek(aligned, voters)
    has_others = any(partner.by != "number" for partner in matching.partners.values())
    return matching if has_others else None


def _groups(pairs: Sequence[MatrixPair]) -> dict[Group, list[MatrixPair]]:
    """Return the matrices of MLPs by what shares their units."""
    groups = defaultdict[Group, list[MatrixPair]](list)
    for pair in pairs:
        stack, _, matrix = pair.place.module.partition(".")
        is_of_units = stack in STACKS and matrix in MATRICES and _count(pair) >= FEWEST
        if pair.base is not None and is_of_units:
            groups[_group(pair)].append(pair)
    return groups


def _read(
    aligned: AlignedPair,
    groups: Mapping[Group, Sequence[MatrixPair]],
    chosen: Sequence[Group],
    runtime: Runtime,
    scratch: Path,
) -> list[Units]:
    """Return some units of the chosen groups."""
    pairs = [pair for key in chosen for pair in groups[key]]

    def measure(pair: MatrixPair, first: Checkpoint, second: Checkpoint) -> Units:
        is_first = _group(pair) == chosen[0] and pair.rows * pair.cols <= WHOLE
        return _units(pair, sides_of(pair, first, second), whole=is_first)

    scanning = scan(replace(aligned, pairs=pairs), measure, runtime, scratch)
    (found,) = gather_together([scanning])
    order: dict[Hashable, int] = {group: number for number, group in enumerate(chosen)}
    return sorted(found, key=lambda one: (order[one.group], one.module))


@np.errstate(over="ignore", invalid="ignore")
def _is_unlike(units: Units) -> bool:
    """Return whether units have less in common than those that correspond."""
    norms = float(np.linalg.norm(units.model) * np.linalg.norm(units.candidate))
    return float(np.vdot(units.model, units.candidate)) < NEAR * norms


def _group(pair: MatrixPair) -> Group:
    place = pair.place
    stack = f"{place.module.partition('.')[0]} {_count(pair)}{place.slot}"
    layer, expert = (-1 if one is None else one for one in (place.layer, place.expert))
    return place.component, stack, layer, expert


def _count(pair: MatrixPair) -> int:
    return pair.cols if pair.place.module.endswith(".down") else pair.rows


def _spread(groups: Sequence[Group]) -> list[Group]:
    """Choose at most LAYERS of them, evenly, from the component with the most layers."""
    components = [component for component, *_ in groups]
    main = max(dict.fromkeys(components), key=components.count, default=None)
    own = [group for group in groups if group[0] == main]
    places = np.linspace(0, len(own) - 1, min(LAYERS, len(own))).round().astype(int)
    return [own[place] for place in dict.fromkeys(places.tolist())]


@np.errstate(over="ignore")  # F64 beyond float32
def _units(pair: MatrixPair, sides: Sides, *, whole: bool) -> Units:
    """Return SAMPLED units of both sides: the same ones for all matrices and all candidates."""
    units, is_down = _count(pair), pair.place.module.endswith(".down")
    width = sides.shape[not is_down]
    seed = np.random.SeedSequence([units, *repr(_group(pair)).encode()])
    chosen = np.sort(np.random.default_rng(seed).permutation(units)[:SAMPLED])
    every = np.zeros((units, width), dtype=np.float32) if whole else None
    model, candidate = np.zeros((len(chosen), width)), np.zeros((len(chosen), width))
    for index, (row, col) in tiles(sides.tuned):
        b, t = (tile.numpy() for tile in sides.read(index))
        if is_down:
            b, t, row, col = b.T, t.T, col, row
        lines = slice(*np.searchsorted(chosen, (row, row + len(b))))
        columns = slice(col, col + b.shape[1])
        within = chosen[lines] - row
        candidate[lines, columns] = b[within]
        model[lines, columns] = t[within]
        if every is not None:
            every[row : row + len(b), columns] = b
    return Units(_group(pair), pair.place.module, model, candidate, every)
