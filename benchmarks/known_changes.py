"""Planted deltas, subspaces and depth against the truth, and how often intervals hold it.

    python benchmarks/known_changes.py            # writes build/planted.md, some minutes
    python benchmarks/known_changes.py --quick    # prints a small version of it

Matrices: D = relative norm x (rank-k part with a share of the energy + Gaussian noise) on a
Gaussian base, stored in F32, F16 or BF16; the truth is what NumPy finds in D before the sum is
stored. Subspaces: a base of given singular values, and D given by its coefficients in the base's
singular vectors, so that the truth has a closed form. Depth: two checkpoints of eight layers whose
deltas have given energies, audited as a whole. Intervals: layers drawn from distributions whose
figure is known.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from page_text import page, table
from safetensors.torch import save_file
from threadpoolctl import threadpool_limits

from shadow.checkpoints.pairing import Filter
from shadow.checks.inside import LIKE_NOISE
from shadow.dtypes import FLOATS
from shadow.engines.pair import Runtime, Settings, run_pair
from shadow.spectra.delta import measure_pair, summed
from shadow.spectra.method import Method
from shadow.spectra.solvers import Means
from shadow.spectra.spectrum import Sides, Workspace, working_dtype
from shadow.spectra.subspace import INTRUDERS, SIMILAR, SUBSPACE, VECTORS
from shadow.spectra.sums import Extent
from shadow.summary.bootstrap import (
    DRAWS,
    FEWEST,
    Statistic,
    cut,
    draws,
    expanded_tail,
    medians,
)
from shadow.summary.depth import Sum, ratio
from shadow.summary.standing import ROUNDING
from shadow.targets.families import given_pair
from shadow.targets.references import parse_reference

DOCUMENT = Path(__file__).parents[1] / "build" / "planted.md"
COMMAND = "python benchmarks/known_changes.py"
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
    """One planted delta: what was planted, what is true of it, what was measured after storing."""

    dtype: str
    norm: float
    rank: int
    share: float
    true: dict[str, float]
    found: dict[str, float]

    @property
    def off(self) -> float:
        """Error of the concentration."""
        return self.found["concentration"] - self.true["concentration"]

    @property
    def recovered(self) -> bool:
        return self.found["spikes"] == self.true["spikes"] and abs(self.off) <= LIKE_NOISE


# two pools of threads on small matrices take a hundred times as long
@threadpool_limits.wrap(limits=1)
def plant(
    dtype: str, norm: float, rank: int, share: float, shape: tuple[int, int] = SHAPE, seed: int = 0
) -> Planted:
    """Plant a delta, store both sides, measure."""
    rng = np.random.default_rng([seed, rank, round(100 * share)])
    stored = getattr(torch, FLOATS[dtype].torch_name)
    base = torch.from_numpy(0.02 * rng.standard_normal(shape)).to(stored)
    noise = rng.standard_normal(shape)
    D = math.sqrt(1 - share) * noise / np.linalg.norm(noise)
    if rank:
        left, right = (np.linalg.qr(rng.standard_normal((side, rank)))[0] for side in shape)
        D += math.sqrt(share / rank) * left @ right.T
    D *= norm * float(base.double().norm()) / np.linalg.norm(D)
    tuned = (base.double() + torch.from_numpy(D)).to(stored)
    return Planted(
        dtype, norm, rank, share, truth(D, base.double().numpy()), measured(base, tuned, dtype)
    )


def measured(base: torch.Tensor, tuned: torch.Tensor, dtype: str) -> dict[str, float]:
    """The columns of the delta of two stored matrices; nothing where they are equal."""
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


def planted(
    norms: Sequence[float] = NORMS,
    dtypes: Sequence[str] = DTYPES,
    plants: Sequence[tuple[int, float]] = PLANTS,
) -> list[Planted]:
    return [plant(dtype, norm, *one) for dtype in dtypes for norm in norms for one in plants]


def floor_of(found: Iterable[Planted]) -> float:
    """The floor_ratio from which on every plant is recovered."""
    return max(
        (one.found.get("floor_ratio", 0.0) for one in found if not one.recovered), default=0.0
    )


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

    @property
    def has_gap(self) -> bool:
        return bool(self.true["subspace_gap_base"] > TOLERANCE["subspace"])


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
    stored = getattr(torch, FLOATS[dtype].torch_name)
    base = torch.from_numpy(W).to(stored)
    tuned = (base.double() + torch.from_numpy(D)).to(stored)
    return Subspaces(plant, dtype, norm, angle, true, measured(base, tuned, dtype))


def planted_subspaces(sizes: dict[str, tuple[float, ...]] = SIZES) -> list[Subspaces]:
    return [
        plant_subspaces(one, dtype, norm)
        for one in SUBSPACES
        for dtype in sizes
        for norm in sizes[dtype]
    ]


# -------------------------------------------------------------------------------- depth

HIDDEN, INNER, VOCABULARY, LAYERS = 64, 160, 300, 8
MODULES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}  # fmt: skip
PROFILES = {
    "even": np.ones(LAYERS),
    "halving with depth": 0.5 ** np.arange(LAYERS),
    "last two layers only": np.r_[np.zeros(LAYERS - 2), 1.0, 1.0],
}
ATTENTION_SHARE = 0.3  # of the energy of every layer
TOKENS = 45  # of the vocabulary that change
DEPTH = (
    "depth_entropy", "effective_layers", "attention_to_mlp", "embedding_rows_changed",
)  # fmt: skip


@threadpool_limits.wrap(limits=1)
def depth(profile: Array, dtype: str, norm: float) -> tuple[dict[str, float], dict[str, float]]:
    """(true, found) figures of two checkpoints whose layers have energies of a given profile."""
    rng = np.random.default_rng(0)
    stored = getattr(torch, FLOATS[dtype].torch_name)
    energies = profile / profile.sum()
    base, tuned = {}, {}
    weights = {name: 0.02 * rng.standard_normal(shape) for name, shape in _names()}
    size = norm * math.sqrt(sum(float((W**2).sum()) for W in weights.values()))
    for name, W in weights.items():
        change = np.zeros_like(W)
        if "layers." in name:
            layer, module = int(name.split(".")[2]), ".".join(name.split(".")[3:5])
            share = ATTENTION_SHARE / 4 if "attn" in module else (1 - ATTENTION_SHARE) / 3
            change = rng.standard_normal(W.shape)
            change *= size * math.sqrt(energies[layer] * share) / np.linalg.norm(change)
        elif "embed" in name:
            change[:TOKENS] = 0.02 * norm * rng.standard_normal((TOKENS, HIDDEN))
        base[name] = torch.from_numpy(W).to(stored)
        tuned[name] = (base[name].double() + torch.from_numpy(change)).to(stored)
    p = energies[energies > 0]
    true = {
        "depth_entropy": float(-(p * np.log(p)).sum()) / math.log(LAYERS),
        "effective_layers": math.exp(-(p * np.log(p)).sum()),
        "attention_to_mlp": ATTENTION_SHARE / (1 - ATTENTION_SHARE),
        "embedding_rows_changed": TOKENS / VOCABULARY,
    }
    figures = audited(base, tuned)
    return true, {name: figures[name] for name in DEPTH}


def _names() -> list[tuple[str, tuple[int, int]]]:
    inside = [
        (f"model.layers.{i}.{name}.weight", shape)
        for i in range(LAYERS)
        for name, shape in MODULES.items()
    ]
    return [("model.embed_tokens.weight", (VOCABULARY, HIDDEN)), *inside]


def audited(base: dict[str, torch.Tensor], tuned: dict[str, torch.Tensor]) -> dict[str, float]:
    """The figures of the audit of two checkpoints."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for side, tensors in (("base", base), ("tuned", tuned)):
            (folder / side).mkdir()
            save_file(tensors, folder / side / "model.safetensors")
            (folder / side / "config.json").write_text(
                json.dumps({"model_type": "llama", "hidden_size": HIDDEN})
            )
        pair = given_pair(*(parse_reference(str(folder / side)) for side in ("base", "tuned")))
        settings = Settings(Method(), Filter(), spectra=False)
        return dict(run_pair(pair, settings, folder / "out", Runtime(jobs=1)).summary.figures)


# -------------------------------------------------------------------------------- intervals

KINDS = ("percentile", "expanded")
LAYER_COUNTS, REPEATS = (4, 5, 6, 8, 16, 32, 64), 1000


def bounds(statistic: Statistic, layers: int) -> dict[str, tuple[float, float]]:
    """The interval of every kind; `expanded` is the tool's."""
    values, tail = statistic(draws((layers,))), expanded_tail(layers)
    tails = {
        "percentile": (0.025, 0.025),
        "expanded": (tail, tail),
    }
    once = np.ones(len(values), np.int64)
    ends = {kind: cut(values[None], once, own) for kind, own in tails.items()}
    return {kind: (float(low[0]), float(high[0])) for kind, (low, high) in ends.items()}


@dataclass(frozen=True)
class World:
    """Layers whose figure is known. draw(rng, layers): the statistic of a sample of that many."""

    name: str
    true: Callable[[int], float]
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

    middle = float(np.median(sample(np.random.default_rng(1), 400_000)))

    def draw(rng: np.random.Generator, layers: int) -> Statistic:
        codes = np.repeat(np.arange(layers), matrices)
        values = sample(rng, layers).reshape(-1, 1)
        return lambda counts: medians(values, codes, counts)[0]

    return World(name, lambda layers: middle, draw)


def ratio_world(name: str, spread: float) -> World:
    """Energies of layers from a log-normal distribution of a given spread."""

    def draw(rng: np.random.Generator, layers: int) -> Statistic:
        energies = rng.lognormal(0, spread, layers)
        part = 0.5 * energies * rng.lognormal(0, spread / 3, layers)
        return partial(ratio, Sum(part, 0.0), Sum(energies, 0.0))

    return World(name, lambda layers: 0.5 * math.exp(spread**2 / 18), draw)


def worlds() -> list[World]:
    return [
        median_world("median, layers alike", 0.0, False),
        median_world("median, 30 % between layers", 0.3, False),
        median_world("median, 80 % between layers, skewed", 0.8, True),
        ratio_world("ratio of energies", 0.8),
    ]


@threadpool_limits.wrap(limits=1)
def coverage(world: World, layers: int, repeats: int) -> dict[str, float]:
    """How often the interval of each kind held the truth."""
    rng, true = np.random.default_rng([layers, repeats]), world.true(layers)
    held = dict.fromkeys(KINDS, 0)
    for _ in range(repeats):
        for kind, (low, high) in bounds(world.draw(rng, layers), layers).items():
            held[kind] += low <= true <= high
    return {kind: count / repeats for kind, count in held.items()}


# -------------------------------------------------------------------------------- the document


def matrices_part(found: Sequence[Planted]) -> str:
    plants = list(dict.fromkeys((one.rank, one.share) for one in found))
    heads = ["stored", "norm", "times its rounding"]
    heads += [f"rank {rank}, {100 * share:.0f} %" if rank else "noise" for rank, share in plants]
    rows = []
    cells = {}
    for one in found:
        cells.setdefault((one.dtype, one.norm), []).append(one)
    for (dtype, norm), own in cells.items():
        ratios = [one.found.get("floor_ratio", 0.0) for one in own]
        row = [dtype, f"{norm:g}", f"{np.median(ratios):.2g}"]
        for one in own:
            if one.found:
                mark = "" if one.recovered else " ✗"
                seen = f"{one.found['concentration']:.2f} ({one.off:+.2f})".replace("-0.00", "0.00")
                row.append(f"{one.found['spikes']} of {one.true['spikes']:.0f}, {seen}{mark}")
            else:
                row.append("nothing changed ✗")
        rows.append(row)
    return table(heads, rows)


def rows_part(found: Sequence[Planted]) -> str:
    """The largest relative error of columns, over plants and dtypes, by size above the rounding."""
    edges = (0.0, 1.0, 2.0, 5.0, 10.0, 100.0, math.inf)
    rows = []
    for low, high in pairwise(edges):
        own = [one for one in found if one.found and low <= one.found["floor_ratio"] < high]
        if own:
            span = f"{low:g} to {high:g}" if math.isfinite(high) else f"above {low:g}"
            errors = [
                max(abs(one.found[name] / one.true[name] - 1) for one in own) for name in ROWS
            ]
            rows.append([span, str(len(own)), *(f"{100 * error:.2g} %" for error in errors)])
    return table(["times its rounding", "n", *(f"`{name}`" for name in ROWS)], rows)


def subspaces_part(found: Sequence[Subspaces]) -> str:
    forms = {
        "overlap": "{:.3f}",
        "subspace": "{:.3f}",
        "alignment": "{:.2f}",
        "intruders": "{:.0f}",
    }
    rows = []
    for one in found:
        row = [one.plant, one.dtype, f"{one.norm:g}", f"{one.found['floor_ratio']:.2g}"]
        angle = f"{one.seen_angle:.2g}° ({one.angle:.2g}°)" + ("" if one.angle_holds else " ✗")
        row.append(angle if one.angle else "")
        for column in COLUMNS:
            seen, true = map(
                forms[column.partition("_")[0]].format, (one.found[column], one.true[column])
            )
            row.append(f"{seen} ({true})" + ("" if one.holds(column) else " ✗"))
        rows.append(row)
    return table(
        [
            "D",
            "stored",
            "norm",
            "times its rounding",
            "left turn",
            *(f"`{name}`" for name in COLUMNS),
        ],
        rows,
    )


def subspaces_floor(found: Sequence[Subspaces]) -> str:
    """What of the subspaces is recovered, in words."""
    gapped = [one for one in found if one.has_gap]
    turns = [one for one in gapped if one.angle]
    gapless = [one for one in found if not one.has_gap and one.dtype == "BF16"]

    def least(holds: Callable[[Subspaces], bool], plants: Sequence[Subspaces] = gapped) -> float:
        """The size above the rounding down to which every plant holds."""
        worst = max((one.found["floor_ratio"] for one in plants if not holds(one)), default=0.0)
        return min(one.found["floor_ratio"] for one in plants if one.found["floor_ratio"] > worst)

    def all_hold(kinds: tuple[str, ...]) -> Callable[[Subspaces], bool]:
        return lambda one: all(one.holds(column) for column in COLUMNS if column.startswith(kinds))

    overlaps = least(all_hold(("overlap", "subspace", "intruders")))
    overlap = min(one.found["overlap_left"] for one in gapless)
    intruders = max(one.found["intruders"] for one in gapless)
    return f"""**Floor.** Where the base has a gap, alignments are recovered down to a change of
        {least(all_hold(("alignment",))):.2g} times the rounding of its storage (`floor_ratio`), in
        either format, the angle of a turn down to {least(lambda one: one.angle_holds, turns):.2g}
        times. Below that, the measured delta is more and more rounding, which is spread evenly over
        all directions: alignments go to 1, whatever was planted, and a turn is underestimated.
        Overlaps, gaps and intruders are recovered down to {overlaps:.2g} times, the smallest change
        of all: rounding is far smaller than this gap and does not turn a subspace by itself. Where
        the gap is {gapless[0].true["subspace_gap_base"]:.0e}, it does turn one. Stored in BF16, a
        subspace that did not turn then has an overlap down to {overlap:.2f} at any size of the
        change, and up to {intruders:.0f} intruder where there is none; stored in F32 it is still
        recovered. Read overlaps and intruders together with the gaps."""


def depth_part(cases: Iterable[tuple[str, str, float]]) -> str:
    rows = []
    for profile, dtype, norm in cases:
        true, found = depth(PROFILES[profile], dtype, norm)
        rows.append(
            [
                profile,
                dtype,
                f"{norm:g}",
                *(f"{found[name]:.3f} ({true[name]:.3f})" for name in DEPTH),
            ]
        )
    return table(["energy", "stored", "norm", *(f"`{name}`" for name in DEPTH)], rows)


def coverage_part(layers: Sequence[int], repeats: int) -> str:
    rows = []
    for world in worlds():
        held = [coverage(world, n, repeats) for n in layers]
        for kind in KINDS:
            cells = [f"{100 * one[kind]:.0f}" for one in held]
            rows.append([world.name, f"**{kind}**" if kind == "expanded" else kind, *cells])
    return table(["figure", "interval", *(f"{n} layers" for n in layers)], rows)


def document(
    found: Sequence[Planted],
    subspaces: Sequence[Subspaces],
    depths: Iterable[tuple[str, str, float]],
    layers: Sequence[int],
    repeats: int,
) -> str:
    """The page: what was planted, what was found, and what follows from it."""
    parts = [
        "# Planted changes",
        f"""What the figures say about known changes. Made by `{COMMAND}`, which gives the same
        numbers again.""",
        "## Planted deltas",
        f"""D has a part of a given rank with equal singular values and a given share of the energy.
        The rest is Gaussian noise. The base is Gaussian, of {SHAPE[0]} x {SHAPE[1]}. The sum is
        stored in F32, F16 or BF16, and the delta is measured from what was stored. `norm` is the
        planted relative norm, `times its rounding` the measured `floor_ratio`. A cell has the
        measured spikes *of* those that D has before it is stored, the measured concentration, and
        in brackets its distance from that of D. ✗: the spikes differ, or the concentration differs
        by more than the margin of {LIKE_NOISE}.""",
        matrices_part(found),
        f"""**Floor.** Spikes and concentration of every planted change are recovered if the change
        is more than {math.ceil(10 * floor_of(found)) / 10} times the rounding of its storage
        (`floor_ratio`). The gate lies at {ROUNDING:g}: between the two, rounding dilutes a
        concentrated change. Its concentration is then too low, never too high. Below the
        gate, the smallest of these changes looks like rounding.""",
        """The largest relative error of other columns, over all planted changes, by size above the
        rounding:""",
        rows_part(found),
        """`effective_rank` of a change of rank 2 counts the directions of the rounding as soon as
        they are resolved. The label does not use it.""",
        "## Planted subspaces",
        f"""The base, {SHAPE[0]} x {SHAPE[1]}, has random singular vectors and given singular
        values: {SUBSPACE} from 3 down to 2, the others from 1 to 0.1. D is defined by what it does
        to them, so every column is known beforehand: *inside* lengthens the leading {SUBSPACE}
        directions, *outside* the last 100, *four new* four from the middle, which pass the leading
        ones as soon as they are long enough; *turned* turns the leading left vectors by one angle
        towards others from the middle, and no right vector. *No gap*: the first {2 * SUBSPACE}
        singular values lie between 2.002 and 2. The sum is stored in F32 or BF16. A cell has the
        measured value and in brackets the true one. ✗: an overlap or a gap is off by more than
        {TOLERANCE["overlap"]}, an alignment by {100 * TOLERANCE["alignment"]:.0f} % of it or of 1,
        the angle that follows from `overlap_left` by {100 * ANGLE:.0f} %, or the number of
        intruders differs.""",
        subspaces_part(subspaces),
        subspaces_floor(subspaces),
        "## Planted depth",
        f"""Two checkpoints of {LAYERS} layers, audited as a whole: the energy of the layers follows
        a profile, attention has {100 * ATTENTION_SHARE:.0f} % of it in each, and
        {TOKENS} of {VOCABULARY} tokens change. Measured (true):""",
        depth_part(depths),
        "## Intervals",
        f"""How many of a hundred intervals contained the true value, in {repeats:,} repetitions; 95
        is nominal. Layers are drawn from a distribution whose true value is known: seven
        matrices a layer with an offset each for medians, log-normal energies (sigma 0.8)
        for the rest. `shadow` uses those in **bold**. Even the whole range of n layers
        contains the median only 100 (1 - 2^(1-n)) times in a hundred: 75 for 3 layers, 88
        for 4, 94 for 5. Summaries and comparisons state this level for so few layers, and
        below {FEWEST} there is none. Up to 5 layers every possible draw is used, above that
        {DRAWS:,} random ones.""",
        coverage_part(layers, repeats),
        """Plain percentiles are too narrow for medians of few layers. All of this is about layers:
        an interval says nothing about another run of the same training.""",
    ]
    return page(parts)


def main(quick: Annotated[bool, typer.Option(help="A small version, printed.")] = False) -> None:
    """Plant, measure, and write build/planted.md."""
    if quick:
        found = planted((1e-2, 1e-3), ("BF16",), PLANTS[:3])
        subspaces = planted_subspaces({"F32": (0.25,), "BF16": (0.25, 3e-3)})
        sys.stdout.write(document(found, subspaces, [("even", "F32", 1e-2)], (4, 16), 50))
        return
    depths = [
        (profile, dtype, norm)
        for profile in PROFILES
        for dtype, norm in (("F32", 1e-2), ("BF16", 1e-2))
    ]
    DOCUMENT.parent.mkdir(exist_ok=True)
    text = document(planted(), planted_subspaces(), depths, LAYER_COUNTS, REPEATS)
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
