"""What the claim `related` needs measured: rows of MLPs of a model and of each candidate."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, MatrixPair, pair_checkpoints
from shadow.checks.answer import Answer
from shadow.checks.old import combined
from shadow.checks.related import ALPHA, Candidate, related_to
from shadow.run.runtime import AlignedPair, Runtime
from shadow.run.scan import scan, sides_of
from shadow.run.sides import found_all, opened_models
from shadow.spectra.spectrum import Sides, tiles
from shadow.spectra.units import Rows, at_best, corner, matched, unit_cosines
from shadow.targets.references import Reference

STACKS = ("mlp", "shared", "experts")  # of which up, gate and down have the same units
MATRICES = ("up", "gate", "down")  # units are rows of the first two, and columns of the last
LAYERS = 6  # places whose units are compared, spread over the depth
SAMPLED = 64  # units of each
WHOLE = 1 << 26  # entries of a matrix of which every unit is looked at for another order
FEWEST = 8  # units of an MLP, for a test

Group = tuple[str, str, int, int]  # component, stack, layer and expert, -1 for none


@dataclass(frozen=True)
class _Sampled:
    """Some units of one matrix of both models."""

    group: Group
    module: str
    candidate: Rows
    model: Rows
    whole: NDArray[np.float32] | None
    """Every unit of the candidate's, of the first place alone."""


_Rows = Mapping[tuple[Group, str], _Sampled]


def verify_related(
    of: Mapping[str, str], references: Sequence[Reference], runtime: Runtime, scratch: Path
) -> Answer:
    """Which candidate the first model is related to. Raises UsageError for an adapter."""
    named = dict(zip(of, references, strict=True))
    model, *opened = opened_models(found_all(named, runtime, scratch), runtime, scratch)
    candidates: list[Candidate] = []
    rows: list[dict[tuple[Group, str], _Sampled]] = []
    for number, (reference, one) in enumerate(zip(references[1:], opened, strict=True)):
        sampled = _sampled(model, one, runtime, scratch / f"scan {number}")
        rows.append({(one.group, one.module): one for one in sampled})
        candidates.append(_candidate(str(reference), sampled, len(opened)))
    corners = {
        (here, there): _corner(rows[here], rows[there], both)
        for here, there in itertools.permutations(range(len(rows)), 2)
        if (both := _common(rows[here], rows[there]))
    }
    answer, against = related_to(candidates, corners)
    return combined(answer, against)


def _sampled(
    model: Checkpoint, candidate: Checkpoint, runtime: Runtime, scratch: Path
) -> list[_Sampled]:
    """Some units of both, by places in order; none where nothing lines up."""
    pairs, _ = pair_checkpoints(candidate, model, Filter(), may_differ=True)
    groups = defaultdict[Group, list[MatrixPair]](list)
    for pair in pairs:
        stack, _, matrix = pair.place.module.partition(".")
        is_of_units = stack in STACKS and matrix in MATRICES and _units(pair) >= FEWEST
        if pair.base is not None and is_of_units:
            groups[_group(pair)].append(pair)
    chosen = _spread(sorted(groups))
    lined = AlignedPair(candidate, model, [one for key in chosen for one in groups[key]], [])

    def measure(pair: MatrixPair, first: Checkpoint, second: Checkpoint) -> _Sampled:
        sides = sides_of(pair, first, second)
        is_first = _group(pair) == chosen[0] and pair.rows * pair.cols <= WHOLE
        return _rows(pair, sides, whole=is_first)

    found = list(scan(lined, measure, runtime, scratch)) if lined.pairs else []
    return sorted(found, key=lambda one: (chosen.index(one.group), one.module))


def _group(pair: MatrixPair) -> Group:
    place = pair.place
    stack = f"{place.module.partition('.')[0]} {_units(pair)}{place.slot}"
    layer, expert = (-1 if one is None else one for one in (place.layer, place.expert))
    return place.component, stack, layer, expert


def _units(pair: MatrixPair) -> int:
    return pair.cols if pair.place.module.endswith(".down") else pair.rows


def _spread(groups: Sequence[Group]) -> list[Group]:
    """At most LAYERS of them, evenly: of the component that has the most layers."""
    components = [component for component, *_ in groups]
    main = max(dict.fromkeys(components), key=components.count, default=None)
    own = [group for group in groups if group[0] == main]
    places = np.linspace(0, len(own) - 1, min(LAYERS, len(own))).round().astype(int)
    return [own[place] for place in dict.fromkeys(places.tolist())]


def _rows(pair: MatrixPair, sides: Sides, *, whole: bool) -> _Sampled:
    """SAMPLED units of both sides, the same ones of all matrices of a place, whoever is beside."""
    units, is_down = _units(pair), pair.place.module.endswith(".down")
    width = sides.shape[not is_down]
    seed = np.random.SeedSequence([units, *repr(_group(pair)).encode()])
    chosen = np.sort(np.random.default_rng(seed).permutation(units)[:SAMPLED])
    every = np.zeros((units, width), dtype=np.float32) if whole else None
    model, candidate = np.zeros((len(chosen), width)), np.zeros((len(chosen), width))
    for index, corner_of in tiles(sides.tuned):
        b, t = (tile.numpy() for tile in sides.read(index))
        row, col = corner_of
        if is_down:
            b, t, row, col = b.T, t.T, col, row
        lines = slice(*np.searchsorted(chosen, (row, row + len(b))))
        columns = slice(col, col + b.shape[1])
        within = chosen[lines] - row
        candidate[lines, columns] = b[within]
        model[lines, columns] = t[within]
        if every is not None:
            every[row : row + len(b), columns] = b
    return _Sampled(_group(pair), pair.place.module, candidate, model, every)


def _candidate(name: str, sampled: Sequence[_Sampled], candidates: int) -> Candidate:
    """What the sampled units say of a candidate."""
    finite = [
        one for one in sampled if np.isfinite(one.candidate).all() and np.isfinite(one.model).all()
    ]
    if not finite:
        return Candidate(name, None, why="no MLP of the same size, or no finite one")
    draws = round(10 * candidates / ALPHA) - 1  # enough for a tenth of the level that is asked for
    p, z = _matched(((one.group, one.model, one.candidate) for one in finite), draws)
    if p > ALPHA / candidates:
        for rows in ("model", "candidate"):  # beside itself
            own = ((one.group, getattr(one, rows), getattr(one, rows)) for one in finite)
            if _matched(own, draws)[0] > ALPHA / candidates:
                return Candidate(name, None, why="too many of its or the model's units are equal")
    model = np.concatenate([one.model.ravel() for one in finite])
    candidate = np.concatenate([one.candidate.ravel() for one in finite])
    norms = [float(np.linalg.norm(one)) for one in (model, candidate)]
    cosine = float(model @ candidate) / (norms[0] * norms[1]) if all(norms) else 0.0
    distance = float(np.linalg.norm(model - candidate)) / norms[1] if norms[1] else 0.0
    reordered = None
    if p > ALPHA / candidates:
        reordered = _reordered(finite)
    return replace(Candidate(name, p, z, cosine, distance), reordered=reordered)


def _matched(sampled: Iterable[tuple[Group, Rows, Rows]], draws: int) -> tuple[float, float]:
    """p and z of the units of two models, by group: all matrices of a group share their units."""
    cosines: dict[Group, Rows] = {}
    for group, first, second in sampled:
        of_matrix = unit_cosines(first, second)
        cosines[group] = of_matrix + cosines.get(group, np.zeros(of_matrix.shape))
    return matched(list(cosines.values()), draws=draws)


def _reordered(sampled: Sequence[_Sampled]) -> float | None:
    """How well units match in any order, by two matrices of one place; None where it has no two.

    What all units of a matrix have in common, such as a mean above 0, is no match.
    """
    cosines = [
        unit_cosines(one.model - one.model.mean(axis=0), one.whole - one.whole.mean(axis=0))
        for one in sampled
        if one.whole is not None
    ]
    return at_best(*cosines[:2]) if len(cosines) > 1 else None


def _common(here: _Rows, there: _Rows) -> list[tuple[Group, str]]:
    """The matrices that were sampled of two candidates, of one size."""
    return [
        key
        for key in here
        if key in there and here[key].candidate.shape == there[key].candidate.shape
    ]


def _corner(here: _Rows, there: _Rows, both: Sequence[tuple[Group, str]]) -> float | None:
    """The cosine of the angle at a candidate between the model and another candidate; None where
    two of the three are equal.
    """
    at, model, other = (
        np.concatenate([one.ravel() for one in rows])
        for rows in (
            [here[key].candidate for key in both],
            [here[key].model for key in both],
            [there[key].candidate for key in both],
        )
    )
    return corner(at, model, other)
