"""Planted deltas and subspaces against the truth, and how often intervals over layers hold it.

    python benchmarks/known_changes.py            # prints the tables, some minutes
    python benchmarks/known_changes.py --quick    # a small version of them

Matrices: D = relative norm x (rank-k part with a share of the energy + Gaussian noise) on a
Gaussian base, stored in F32, F16 or BF16; the truth is what NumPy finds in D before the sum is
stored. Subspaces: a base of given singular values, and D given by its coefficients in the base's
singular vectors, so that the truth has a closed form. Intervals: layers drawn from distributions
whose figure is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Annotated

import numpy as np
import torch
import typer
from evidence.evidence_parts import table
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from shadow.dtypes import FLOATS
from shadow.spectra.delta import measure_pair, summed
from shadow.spectra.measurement import Method
from shadow.spectra.solvers import Means
from shadow.spectra.spectrum import Sides, Workspace, working_dtype
from shadow.spectra.subspace import INTRUDERS, SIMILAR, SUBSPACE, VECTORS
from shadow.spectra.sums import Extent
from shadow.summary.bootstrap import Statistic, cut, draws, expanded_tail, medians
from shadow.summary.making import Sum, ratio

DTYPES = ("F32", "F16", "BF16")
NORMS = (1e-1, 3e-2, 1e-2, 5e-3, 3e-3, 1e-3, 5e-4, 3e-4, 1e-4)
PLANTS = ((0, 0.0), (1, 0.1), (4, 0.5), (16, 0.5), (32, 0.5), (2, 1.0))  # rank, share of the energy
SHAPE = (384, 640)
ROWS = (
    "relative_norm", "participation_ratio", "stable_rank", "top1_energy", "rank_90",
    "effective_rank",
)  # fmt: skip
Array = NDArray[np.float64]


# -------------------------------------------------------------------------------- matrices


@dataclass(frozen=True)
class Planted:
    """One planted delta: what is true of it, and what was measured after storing."""

    true: dict[str, float]
    found: dict[str, float]

    @property
    def off(self) -> float:
        """Error of the concentration."""
        return self.found["concentration"] - self.true["concentration"]

    @property
    def recovered(self) -> bool:
        return (
            self.found["spikes"] == self.true["spikes"] and abs(self.off) <= 0.03
        )  # of a pair like noise


# two pools of threads on small matrices take a hundred times as long
@threadpool_limits.wrap(limits=1)
def plant(dtype: str, norm: float, rank: int, share: float) -> Planted:
    """Plant a delta, store both sides, measure."""
    rng = np.random.default_rng([0, rank, round(100 * share)])
    stored = getattr(torch, FLOATS[dtype].torch_name)
    W = torch.from_numpy(0.02 * rng.standard_normal(SHAPE)).to(stored).double().numpy()
    noise = rng.standard_normal(SHAPE)
    D = math.sqrt(1 - share) * noise / np.linalg.norm(noise)
    if rank:
        left, right = (np.linalg.qr(rng.standard_normal((side, rank)))[0] for side in SHAPE)
        D += math.sqrt(share / rank) * left @ right.T
    D *= norm * float(np.linalg.norm(W)) / np.linalg.norm(D)
    return Planted(truth(D, W), measured(W, D, dtype))


def measured(W: Array, D: Array, dtype: str) -> dict[str, float]:
    """The columns of a delta as both sides are stored; nothing where they are equal."""
    stored = getattr(torch, FLOATS[dtype].torch_name)
    base = torch.from_numpy(W).to(stored)
    tuned = (base.double() + torch.from_numpy(D)).to(stored)
    total = summed(Sides(base, tuned, working_dtype(dtype), Workspace()), (dtype, dtype))
    if isinstance(total, Extent):
        return {}
    means = Means(Method(), Workspace())
    values = measure_pair(base, tuned, (dtype, dtype), total, means, "planted").delta.values
    return {name: value for name, value in values.items() if value is not None}


def truth(D: Array, base: Array) -> dict[str, float]:
    """The columns of a delta by NumPy, from its definition."""
    sigma = np.linalg.svd(D, compute_uv=False)
    E, q, p = float((D**2).sum()), sigma**2 / (sigma**2).sum(), sigma / sigma.sum()
    r, c = (D**2).sum(1), (D**2).sum(0)
    null = E**2 / ((r**2).sum() + (c**2).sum() - (D**4).sum())
    participation = 1 / (q**2).sum()
    return {
        "relative_norm": math.sqrt(E) / float(np.linalg.norm(base)),
        "participation_ratio": participation,
        "stable_rank": 1 / q[0],
        "top1_energy": q[0],
        "rank_90": float(np.searchsorted(np.cumsum(q), 0.9) + 1),
        "effective_rank": math.exp(-(p * np.log(p)).sum()),
        "concentration": math.log(null / participation) / math.log(null),
        "spikes": float((sigma > math.sqrt(r.max()) + math.sqrt(c.max())).sum()),
    }


# -------------------------------------------------------------------------------- subspaces

SIDE = min(SHAPE)
# sigma of the base: a gap of a half
APART = np.r_[np.linspace(3, 2, SUBSPACE), np.linspace(1, 0.1, SIDE - SUBSPACE)]
# a gap of 3e-5
CLOSE = np.r_[np.linspace(2.002, 2, 2 * SUBSPACE), np.linspace(1, 0.1, SIDE - 2 * SUBSPACE)]
SIZES = {
    "F32": (0.75, 0.25, 0.1, 1e-2, 1e-6, 1e-7, 5e-8),
    "BF16": (0.75, 0.25, 0.1, 1e-2, 5e-3, 3e-3, 1e-3),
}
COLUMNS = (
    "overlap_left", "overlap_right", "alignment_left", "alignment_right", "intruders",
    "subspace_gap_base", "subspace_gap_tuned",
)  # fmt: skip
# alignment: of it, at least of 1
TOLERANCE = {"overlap": 0.01, "subspace": 0.01, "alignment": 0.1, "intruders": 0.0}
ANGLE = 0.1  # of it
NEW = slice(200, 204)  # directions of the base that are none of its leading VECTORS


@dataclass(frozen=True)
class Subspaces:
    """One planted delta whose subspaces are known; angle is that by which the leading left vectors
    turn, in degrees.
    """

    plant: str
    dtype: str
    norm: float
    angle: float
    true: dict[str, float]
    found: dict[str, float]

    @property
    def seen_angle(self) -> float:
        """The angle that overlap_left stands for."""
        return math.degrees(math.asin(math.sqrt(1 - self.found["overlap_left"])))

    def holds(self, column: str) -> bool:
        unit = max(1.0, self.true[column]) if column.startswith("alignment") else 1.0
        off = abs(self.found[column] - self.true[column])
        return off <= TOLERANCE[column.partition("_")[0]] * unit

    @property
    def angle_holds(self) -> bool:
        return not self.angle or abs(self.seen_angle - self.angle) <= ANGLE * self.angle


# of D in the base's vectors (SIDE, SIDE); the angle; what is true
Coefficients = tuple[Array, float, dict[str, float]]


def along(where: slice, sigma: Array, size: float) -> Coefficients:
    """D lies along some of the base's own singular directions and lengthens each by as much."""
    longer = np.zeros(SIDE)
    longer[where] = size / math.sqrt(len(longer[where]))
    order = np.argsort(-(sigma + longer), kind="stable")
    after = (sigma + longer)[order]
    overlap = float(np.mean(order[:SUBSPACE] < SUBSPACE))
    true = {
        "overlap_left": overlap,
        "overlap_right": overlap,
        "intruders": float(np.sum(order[:INTRUDERS] >= VECTORS)),
        "subspace_gap_tuned": 1 - after[SUBSPACE] / after[SUBSPACE - 1],
    }
    return np.diag(longer), 0.0, true


def turned(sigma: Array, size: float) -> Coefficients:
    """Each of the leading left vectors turns towards one far from them, all by one angle; no right
    vector does.
    """
    these, others = np.arange(SUBSPACE), np.arange(SUBSPACE) + NEW.start
    angle = 2 * math.asin(size / np.linalg.norm(sigma[[*these, *others]]) / 2)
    turn = np.eye(SIDE)
    turn[these, these] = turn[others, others] = math.cos(angle)
    turn[others, these], turn[these, others] = math.sin(angle), -math.sin(angle)
    true = {
        "overlap_left": math.cos(angle) ** 2,
        "overlap_right": 1.0,
        "intruders": float(INTRUDERS) if math.cos(angle) <= SIMILAR else 0.0,
        "subspace_gap_tuned": 1 - sigma[SUBSPACE] / sigma[SUBSPACE - 1],
    }
    return (turn - np.eye(SIDE)) * sigma, math.degrees(angle), true


SUBSPACES: dict[str, tuple[Array, Callable[[Array, float], Coefficients]]] = {
    "inside": (APART, partial(along, slice(SUBSPACE))),
    "outside": (APART, partial(along, slice(-100, None))),
    "turned": (APART, turned),
    "four new": (APART, partial(along, NEW)),
    "outside, no gap": (CLOSE, partial(along, slice(-100, None))),
}


@cache
def vectors() -> tuple[Array, Array]:
    """Orthonormal columns: left (384, 384) and right (640, 384)."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((side, SIDE)))[0] for side in SHAPE)
    return left, right


def subspaces_before(plant: str, norm: float) -> tuple[Array, Array, float, dict[str, float]]:
    """(base, D, angle, the columns' true values) of a plant, before anything is stored."""
    sigma, change = SUBSPACES[plant]
    left, right = vectors()
    C, angle, true = change(sigma, norm * float(np.linalg.norm(sigma)))
    energy = C**2 / (C**2).sum()
    true |= {
        "subspace_gap_base": 1 - sigma[SUBSPACE] / sigma[SUBSPACE - 1],
        "alignment_left": float(energy[:SUBSPACE].sum()) * SHAPE[0] / SUBSPACE,
        "alignment_right": float(energy[:, :SUBSPACE].sum()) * SHAPE[1] / SUBSPACE,
    }
    return (left * sigma) @ right.T, left @ C @ right.T, angle, true


@threadpool_limits.wrap(limits=1)
def plant_subspaces(plant: str, dtype: str, norm: float) -> Subspaces:
    """Plant a delta whose subspaces are known, store both sides, measure."""
    W, D, angle, true = subspaces_before(plant, norm)
    return Subspaces(plant, dtype, norm, angle, true, measured(W, D, dtype))


# -------------------------------------------------------------------------------- intervals

LAYER_COUNTS, REPEATS = (4, 5, 6, 8, 16, 32, 64), 1000


@dataclass(frozen=True)
class World:
    """Layers whose figure is known. draw(rng, layers): the statistic of a sample of that many."""

    name: str
    true: float
    draw: Callable[[np.random.Generator, int], Statistic]


def median_world(name: str, between: float, skewed: bool, matrices: int = 7) -> World:
    """Values of seven matrices a layer, each with an offset of its own; a share of the variance is
    between layers.
    """
    offsets = np.linspace(-0.5, 0.5, matrices)

    def sample(rng: np.random.Generator, layers: int) -> Array:
        shared, own = rng.standard_normal((layers, 1)), rng.standard_normal((layers, matrices))
        mixed = math.sqrt(between) * shared + math.sqrt(1 - between) * own
        return (np.exp(mixed) if skewed else mixed) + offsets

    def draw(rng: np.random.Generator, layers: int) -> Statistic:
        codes = np.repeat(np.arange(layers), matrices)
        values = sample(rng, layers).ravel()
        return lambda counts: medians(values, codes, counts)

    return World(name, float(np.median(sample(np.random.default_rng(1), 400_000))), draw)


def ratio_world(name: str, spread: float) -> World:
    """Energies of layers from a log-normal distribution of a given spread."""

    def draw(rng: np.random.Generator, layers: int) -> Statistic:
        energies = rng.lognormal(0, spread, layers)
        part = 0.5 * energies * rng.lognormal(0, spread / 3, layers)
        return partial(ratio, Sum(part, 0.0), Sum(energies, 0.0))

    return World(name, 0.5 * math.exp(spread**2 / 18), draw)


def worlds() -> list[World]:
    return [
        median_world("median, layers alike", 0.0, False),
        median_world("median, 30 % between layers", 0.3, False),
        median_world("median, 80 % between layers, skewed", 0.8, True),
        ratio_world("ratio of energies", 0.8),
    ]


@threadpool_limits.wrap(limits=1)
def coverage(world: World, layers: int, repeats: int) -> dict[str, float]:
    """How often the tool's interval, and that of plain percentiles, held the truth."""
    rng = np.random.default_rng([layers, repeats])
    tails = {"percentile": 0.025, "expanded": expanded_tail(layers)}
    held = dict.fromkeys(tails, 0)
    for _ in range(repeats):
        values = world.draw(rng, layers)(draws((layers,)))
        for kind, tail in tails.items():
            low, high = cut(values, tail)
            held[kind] += low <= world.true <= high
    return {kind: count / repeats for kind, count in held.items()}


# -------------------------------------------------------------------------------- the tables


def of_matrices(found: Sequence[Planted]) -> str:
    """By size above the rounding: what is recovered, and the largest error of each column."""
    edges = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 100.0, math.inf)
    rows = []
    for low, high in pairwise(edges):
        own = [one for one in found if one.found and low <= one.found["floor_ratio"] < high]
        if own:
            recovered = f"{sum(one.recovered for one in own)} of {len(own)}"
            off = f"{min(one.off for one in own):+.2f} to {max(one.off for one in own):+.2f}"
            errors = [max(abs(one.found[n] / one.true[n] - 1) for one in own) for n in ROWS]
            each = [f"{100 * error:.2g} %" for error in errors]
            rows.append([f"{low:g} to {high:g}", recovered, off, *each])
    heads = ["times its rounding", "spikes and concentration", "concentration off", *ROWS]
    lost = [one.found.get("floor_ratio", 0.0) for one in found if not one.recovered]
    return f"{table(heads, rows)}\n\nall recovered above {max(lost, default=0.0):.2f} times"


def of_subspaces(found: Sequence[Subspaces]) -> str:
    """Every plant; ✗: off by more than the tolerance."""
    rows = []
    for one in found:
        row = [f"{one.plant}, {one.dtype}, {one.norm:g}", f"{one.found['floor_ratio']:.2g}"]
        angle = f"{one.seen_angle:.2g}° ({one.angle:.2g}°)" + ("" if one.angle_holds else " ✗")
        row.append(angle if one.angle else "")
        for column in COLUMNS:
            seen, true = one.found[column], one.true[column]
            row.append(f"{seen:.3g} ({true:.3g})" + ("" if one.holds(column) else " ✗"))
        rows.append(row)
    return table(["planted", "times its rounding", "left turn", *COLUMNS], rows)


def of_intervals(layers: Sequence[int], repeats: int) -> str:
    """How many of a hundred intervals contained the true value; 95 is nominal."""
    rows = []
    for world in worlds():
        held = [coverage(world, count, repeats) for count in layers]
        rows += [
            [f"{world.name}, {kind}", *(f"{100 * one[kind]:.0f}" for one in held)]
            for kind in held[0]
        ]
    return table(["interval", *(f"{count} layers" for count in layers)], rows)


def main(quick: Annotated[bool, typer.Option(help="A small version.")] = False) -> None:
    """Plant, measure, and print the tables."""
    norms, dtypes, plants, sizes = NORMS, DTYPES, PLANTS, SIZES
    layers, repeats = LAYER_COUNTS, REPEATS
    if quick:
        norms, dtypes, plants, layers, repeats = (1e-2, 1e-3), ("BF16",), PLANTS[:3], (4, 16), 50
        sizes = {"F32": (0.25,), "BF16": (0.25, 3e-3)}
    deltas = [
        plant(*which) for which in ((d, n, *p) for d in dtypes for n in norms for p in plants)
    ]
    subspaces = [
        plant_subspaces(one, dtype, norm)
        for one in SUBSPACES
        for dtype, several in sizes.items()
        for norm in several
    ]
    intervals = of_intervals(layers, repeats)
    print(of_matrices(deltas), of_subspaces(subspaces), intervals, sep="\n\n")


if __name__ == "__main__":
    typer.run(main)
