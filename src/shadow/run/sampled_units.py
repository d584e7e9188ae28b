"""Some hidden units of the MLPs of a model beside those of another, over the depth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, MatrixPair, pair_checkpoints
from shadow.run.runtime import AlignedPair, Runtime
from shadow.run.scan import scan, sides_of
from shadow.spectra.relations.units import Units
from shadow.spectra.spectrum import Sides, tiles

STACKS = ("mlp", "shared", "experts")  # of which up, gate and down have the same units
MATRICES = ("up", "gate", "down")  # units are rows of the first two, and columns of the last
LAYERS = 6  # places whose units are compared, spread over the depth
SAMPLED = 64  # units of each
WHOLE = 1 << 26  # entries of a matrix of which every unit is looked at for another order
FEWEST = 8  # units of an MLP, for a test

Group = tuple[str, str, int, int]  # component, stack, layer and expert, -1 for none


def sampled_units(
    model: Checkpoint, candidate: Checkpoint, runtime: Runtime, scratch: Path
) -> list[Units]:
    """Some units of both, by places in order; none where nothing lines up."""
    pairs, _ = pair_checkpoints(candidate, model, Filter(), may_differ=True)
    groups = defaultdict[Group, list[MatrixPair]](list)
    for pair in pairs:
        stack, _, matrix = pair.place.module.partition(".")
        is_of_units = stack in STACKS and matrix in MATRICES and _count(pair) >= FEWEST
        if pair.base is not None and is_of_units:
            groups[_group(pair)].append(pair)
    chosen = _spread(sorted(groups))
    aligned = AlignedPair(candidate, model, [one for key in chosen for one in groups[key]], [])

    def measure(pair: MatrixPair, first: Checkpoint, second: Checkpoint) -> Units:
        is_first = _group(pair) == chosen[0] and pair.rows * pair.cols <= WHOLE
        return _units(pair, sides_of(pair, first, second), whole=is_first)

    found = list(scan(aligned, measure, runtime, scratch)) if aligned.pairs else []
    order: dict[Hashable, int] = {group: number for number, group in enumerate(chosen)}
    return sorted(found, key=lambda one: (order[one.group], one.module))


def _group(pair: MatrixPair) -> Group:
    place = pair.place
    stack = f"{place.module.partition('.')[0]} {_count(pair)}{place.slot}"
    layer, expert = (-1 if one is None else one for one in (place.layer, place.expert))
    return place.component, stack, layer, expert


def _count(pair: MatrixPair) -> int:
    return pair.cols if pair.place.module.endswith(".down") else pair.rows


def _spread(groups: Sequence[Group]) -> list[Group]:
    """At most LAYERS of them, evenly: of the component that has the most layers."""
    components = [component for component, *_ in groups]
    main = max(dict.fromkeys(components), key=components.count, default=None)
    own = [group for group in groups if group[0] == main]
    places = np.linspace(0, len(own) - 1, min(LAYERS, len(own))).round().astype(int)
    return [own[place] for place in dict.fromkeys(places.tolist())]


def _units(pair: MatrixPair, sides: Sides, *, whole: bool) -> Units:
    """SAMPLED units of both sides: the same ones of all matrices of a group and all candidates."""
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
