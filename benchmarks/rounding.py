"""Rounding undone, compared with the truth: planted updates and really trained ones, stored in BF16
and F16.

    python benchmarks/rounding.py            # writes build/rounding.md, in minutes; trains models
    python benchmarks/rounding.py --quick    # prints a small version, without trained models

Truth is the update in float64 before anything was stored. Planted: W Gaussian, 512 x 768, and an
update of a given kind and relative norm. Trained: an MLP and a decoder in float32, first on one
task and then on another, by AdamW and by SGD with momentum, at learning rates that give relative
norms of 1e-2 to 1e-4; what is trained is kept in a folder, and a run that was cut off goes on from
there. Each update is stored in every way that checkpoints have been: from a stored base, from a
master copy that nobody stored, from an F32 base that was rounded first or not, and so on.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from page_text import page, table
from rounding_updates import (
    HISTORIES,
    PLANTS,
    RATES,
    SHAPE,
    Array,
    coherent,
    planted,
    purity,
    share,
    stored,
    trained,
)
from safetensors.torch import save_file
from scipy.linalg import eigh

import shadow
from shadow.dtypes import FLOATS
from shadow.spectra import purity as purity_module
from shadow.spectra import rounding, rounding_counts, rounding_model
from shadow.spectra.delta import measure_pair, summed
from shadow.spectra.edge import levels, sharp_edge
from shadow.spectra.levels import round_trip
from shadow.spectra.method import Method
from shadow.spectra.purity import NOISE, dominated, purity_z
from shadow.spectra.solvers import Means
from shadow.spectra.spectrum import Sides, Workspace
from shadow.spectra.sums import Sums

DOCUMENT = Path(__file__).parents[1] / "build" / "rounding.md"
COMMAND = "python benchmarks/rounding.py"
CACHE = Path(tempfile.gettempdir()) / "shadow-rounding"
NORMS = {"BF16": (1e-2, 2e-3, 1e-3, 5e-4), "F16": (5e-4, 1.2e-4)}
# relative norms of trained updates that are stored
TRAINED = {"BF16": (1e-4, 1.2e-2), "F16": (3e-5, 2e-3)}
WITHIN = 0.12


@dataclass(frozen=True)
class Entry:
    """One stored update: the kind and history, what is true, what was found (None: refused)."""

    kind: str
    name: str
    history: str
    dtype: str
    norm: float
    kept_true: float
    kept: float | None
    reason: str | None
    found_history: str | None
    norm_error: float | None
    size_error: float | None  # of 1/X
    stored_error: float  # of 1/X without a correction
    misfit: float | None
    purity: bool  # is 1/X told, or too near its noise, or dominated by one direction
    normal_error: float | None  # of 1/X with a normal shape in place of the fitted one

    @property
    def verdict(self) -> str:
        if self.kept is None:
            return (
                "refused" if self.reason in ("rounding_unexplained", "few_changed") else "unchanged"
            )
        if self.reason == "rounded_away":
            return "away"
        assert self.norm_error is not None
        assert self.size_error is not None
        if not self.purity:
            return "norm right" if abs(self.norm_error) <= WITHIN else "wrong"
        return "right" if max(abs(self.norm_error), abs(self.size_error)) <= WITHIN else "wrong"


def judged(
    kind: str, name: str, history: str, dtype: str, norm: float, W: Array, D: Array
) -> Entry | None:
    """Store, undo, compare. None where nothing changed."""
    rng = np.random.default_rng([len(kind), len(history), round(1e6 * norm)])
    base, tuned, update = stored(history, W, D, dtype, norm, rng)
    formats = ("F32" if base.dtype == torch.float32 else dtype, dtype)
    working = torch.float64 if "F32" in formats else torch.float32
    difference = tuned.double().numpy() - base.double().numpy()
    if not difference.any():
        return None
    lines = ((difference**2).sum(1), (difference**2).sum(0))
    largest = float(base.double().abs().max())
    sides = Sides(base, tuned, working, Workspace())
    found = rounding.undo(sides, formats, lines, largest)
    true, seen = purity(update), purity(difference)
    known = found.kept is not None and found.norm is not None
    product = float((difference * update).sum())
    r, c = (difference**2).sum(1), (difference**2).sum(0)
    normal, told = None, False
    if known:
        small = (
            difference @ difference.T
            if difference.shape[0] <= difference.shape[1]
            else difference.T @ difference
        )
        top = float(
            eigh(small, eigvals_only=True, subset_by_index=[len(small) - 1] * 2)[0]
            / np.trace(small)
        )
        clear = purity_z(seen, share(r) * len(r), share(c) * len(c)) > NOISE
        told = clear and not dominated(seen, found.kept or 0.0, top)
    if history == "stored base" and known:
        lines = (difference**2).sum(1), (difference**2).sum(0)
        counts = rounding_counts.count(sides, FLOATS[dtype], lines, largest)
        normal = _relative(
            true * rounding.kept_share(rounding_model.fit(counts, rounds=0)) ** 2, seen
        )
    return Entry(
        kind,
        name,
        history,
        dtype,
        norm,
        product**2 / float((difference**2).sum() * (update**2).sum()),
        found.kept,
        found.reason,
        found.history,
        found.norm / float(np.linalg.norm(update)) - 1 if known and found.norm else None,
        _relative(true * found.kept**2, seen) if known and found.kept else None,
        _relative(true, seen),
        found.misfit,
        told,
        normal,
    )


def entries(folder: Path | None, plants: Sequence[str] = PLANTS) -> Iterator[Entry]:
    """Every entry; those of planted updates, and of trained ones where there is a folder."""
    for kind in plants:
        W, D = planted(kind, np.random.default_rng([7, *kind.encode()]))
        for history in HISTORIES:
            for dtype, norms in NORMS.items():
                for norm in norms:
                    yield from _one(judged(kind, kind, history, dtype, norm, W, D))
    for optimiser, name, W, D in trained(folder) if folder else ():
        norm = float(np.linalg.norm(D) / np.linalg.norm(W))
        for history in HISTORIES:
            for dtype, (low, high) in TRAINED.items():
                if low < norm < high:
                    yield from _one(judged(optimiser, name, history, dtype, norm, W, D))


def _relative(purity_true: float, purity_seen: float) -> float:
    """Error of 1/X, relative to the true one."""
    return purity_true / purity_seen - 1 if purity_seen else math.inf


def _one(entry: Entry | None) -> Iterator[Entry]:
    if entry is not None:
        yield entry


def kept_entries(folder: Path) -> list[Entry]:
    """All entries, from a file of the folder where this version of the method has made them."""
    method = b"".join(Path(one.__file__).read_bytes() for one in (rounding, purity_module))
    path = folder / f"entries-{hashlib.sha256(method).hexdigest()[:16]}.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part")
        aside.write_text("".join(json.dumps(asdict(one)) + "\n" for one in entries(folder)))
        aside.rename(path)
    return [Entry(**json.loads(line)) for line in path.read_text().splitlines()]


# -------------------------------------------------------------------------------- purity, edge

PURITY = (  # name, rank, part of the energy, power, limit of 1/X
    ("4 equal, half", 4, 0.5, 0.0, 16.0),
    ("4 equal, a fifth", 4, 0.2, 0.0, 100.0),
    ("32 as 1/i, half", 32, 0.5, 1.0, 9.6),
    ("64 as 1/sqrt(i), half", 64, 0.5, 0.5, 55.0),
    ("m/4 equal, half", 0, 0.5, 0.0, math.nan),
)


def purity_part(sides: Sequence[int]) -> str:
    rows = []
    for name, rank, part, power, limit in PURITY:
        concentrations, sizes = [], []
        for side in sides:
            rng = np.random.default_rng([side, rank])
            D = coherent(rng, rank or side // 4, part, power, (side, side))
            r, c, E = (D**2).sum(1), (D**2).sum(0), float((D**2).sum())
            null = E**2 / float((r**2).sum() + (c**2).sum() - (D**4).sum())
            real = 1 / (purity(D) + 1 / null)
            concentrations.append(f"{math.log(null / real) / math.log(null):.2f}")
            sizes.append(f"{1 / (1 / real - 1 / null):.3g}")
        end = f"{limit:g}" if math.isfinite(limit) else "grows"
        rows.append([name, " / ".join(concentrations), " / ".join(sizes), end])
    at = " / ".join(map(str, sides))
    return table(["plant", f"`concentration`, m = {at}", f"1/X, m = {at}", "limit of 1/X"], rows)


def noise(name: str, rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Noise without structure, of a profile."""
    D = rng.standard_normal(shape)
    if name == "separable":
        D *= np.exp(0.7 * rng.standard_normal(shape[0]))[:, None] * np.exp(
            0.4 * rng.standard_normal(shape[1])
        )
    elif name == "4 x 4 blocks":
        D *= np.kron(np.exp(rng.standard_normal((4, 4))), np.ones((shape[0] // 4, shape[1] // 4)))
    elif name == "block diagonal":
        D *= np.kron(np.eye(4), np.ones((shape[0] // 4, shape[1] // 4)))
    elif name == "sparse, 5 %":
        D *= rng.random(shape) < 0.05
    elif name == "heavy tails, t3":
        D = rng.standard_t(3, shape)
    elif name == "rounding of BF16":
        W = torch.from_numpy(0.02 * D)
        D = (W.bfloat16().double() - W).numpy()
    return D


NOISES = (
    "flat", "separable", "4 x 4 blocks", "block diagonal", "sparse, 5 %", "heavy tails, t3",
    "rounding of BF16",
)  # fmt: skip


def edge_part(shapes: Sequence[tuple[int, int]], draws: int) -> str:
    rows = []
    for name in NOISES:
        for shape in shapes:
            rng = np.random.default_rng([len(name), *shape])
            over, old, false, z = [], [], 0, []
            for _ in range(draws):
                D = noise(name, rng, shape)
                r, c = (D**2).sum(1), (D**2).sum(0)
                sigma = float(np.linalg.svd(D, compute_uv=False)[0])
                edge = sharp_edge(r, c)
                over.append(sigma / edge)
                old.append(sigma / (math.sqrt(r.max()) + math.sqrt(c.max())))
                false += sigma > edge * (1 + min(shape) ** (-2 / 3))
                z.append(purity(D) * share(r) * len(r) * share(c) * len(c) / 2)
            rows.append(
                [
                    name, f"{shape[0]} x {shape[1]}", f"{min(over):.2f} to {max(over):.2f}",
                    f"{min(old):.2f} to {max(old):.2f}", f"{false} of {draws}", f"{np.std(z):.2f}",
                    f"{max(np.abs(z)):.1f}",
                ]
            )  # fmt: skip
    heads = [
        "noise", "shape", "sigma_1 over the sharp edge", "over `null_edge`", "false spikes, sharp",
        "standard deviation of `purity_z`", "largest",
    ]  # fmt: skip
    return table(heads, rows)


# -------------------------------------------------------------------------------- levels

DRAWS = 200  # matrices of noise of each kind
LENGTHS = (256, 512, 1024, 4096)  # of rows
WEIGHTS = ("normal", "t3", "uneven columns")
ROUTES = (
    "nothing",
    "INT8, rows",
    "INT8, groups of 128",
    "FP8 E4M3",
    "INT4, groups of 128",
    "half pruned",
)


def through(W: Array, route: str) -> Array:
    """Weights after a round trip through a narrow format, or with the smaller half of their entries
    set to 0.
    """
    if route == "nothing":
        return W
    if route == "half pruned":
        return W * (np.abs(W) > np.median(np.abs(W)))
    if route == "FP8 E4M3":
        scale = np.abs(W).max() / 448
        return torch.from_numpy(W / scale).float().to(torch.float8_e4m3fn).double().numpy() * scale
    grouped = W.reshape(len(W), -1, 128) if "groups" in route else W[:, None]
    scale = np.abs(grouped).max(2, keepdims=True) / (7 if "INT4" in route else 127)
    back: Array = np.rint(grouped / scale) * scale
    return back.reshape(W.shape)


def weights(kind: str, rng: np.random.Generator, length: int) -> Array:
    """(64, length): as many rows as are looked at."""
    W = 0.02 * (
        rng.standard_t(3, (64, length)) if kind == "t3" else rng.standard_normal((64, length))
    )
    return W * np.exp(0.5 * rng.standard_normal(length)) if kind == "uneven columns" else W


def named(kind: str, route: str, dtype: torch.dtype, length: int, draws: int) -> tuple[int, int]:
    """Of that many matrices, how many are said to have been in INT4, and how many in 8 bits."""
    told = []
    for draw in range(draws):
        rng = np.random.default_rng([draw, length, len(kind)])
        rows = torch.from_numpy(through(weights(kind, rng, length), route)).to(dtype)
        told.append(round_trip(levels(rows), length))
    return told.count("INT4"), told.count("8 bits")


def told_as(four: int, eight: int) -> str:
    """`20 as INT4, 1 as 8 bits`, without what did not occur."""
    parts = [f"{count} as {name}" for count, name in ((four, "INT4"), (eight, "8 bits")) if count]
    return ", ".join(parts) or "none"


def levels_part(lengths: Sequence[int], draws: int) -> str:
    rows = []
    for kind in WEIGHTS:
        for dtype, name in ((torch.bfloat16, "BF16"), (torch.float16, "F16")):
            for route in ROUTES:
                cells = [told_as(*named(kind, route, dtype, length, draws)) for length in lengths]
                rows.append([kind, name, route, *cells])
    return table(
        ["weights", "stored", "went through", *(f"rows of {length}" for length in lengths)], rows
    )


# -------------------------------------------------------------------------------- the document


def verdicts_part(found: Sequence[Entry]) -> str:
    """Counts of verdicts by kind and history."""
    rows = []
    for kind in dict.fromkeys(one.kind for one in found):
        row = [kind]
        for history in HISTORIES:
            own = [one.verdict for one in found if one.kind == kind and one.history == history]
            told = [
                f"{own.count(name)} {name}"
                for name in ("right", "norm right", "refused", "away", "wrong")
                if name in own
            ]
            row.append(
                ", ".join(told).replace(
                    f"{own.count('wrong')} wrong", f"**{own.count('wrong')} wrong**"
                )
            )
        rows.append(row)
    return table(["update", *HISTORIES], rows)


def errors_part(found: Sequence[Entry]) -> str:
    """Errors of what was told from a stored base, by kind and by kept."""
    rows = []
    for kind in dict.fromkeys(one.kind for one in found):
        for low, high in ((0.9, 1.01), (0.5, 0.9), (0.25, 0.5)):
            own = [
                one
                for one in found
                if (one.kind, one.history) == (kind, "stored base")
                and one.verdict in ("right", "wrong")
                and one.purity
                and low <= (one.kept or 0) < high
            ]
            if own:
                known = [_span(getattr(one, name) for one in own) for name in ERRORS]
                rows.append([kind, f"{low:g} to {min(high, 1):g}", str(len(own)), *known])
    shapes = ["normal shape in cells", "fitted shape", "norm, fitted shape"]
    return table(["update", "`kept`", "n", "1/X as stored", *shapes], rows)


ERRORS = ("stored_error", "normal_error", "size_error", "norm_error")


def _span(errors: Iterable[float | None]) -> str:
    own = [100 * one for one in errors if one is not None]
    low, high = f"{min(own):+.0f}", f"{max(own):+.0f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def gate_part(found: Sequence[Entry]) -> str:
    """Refusals by history and relative norm, and the misfits."""
    rows = []
    for dtype, bounds in {
        "BF16": (1e-4, 8e-4, 1.5e-3, 3e-3, 1.3e-2),
        "F16": (3e-5, 2e-4, 6e-4, 2e-3),
    }.items():
        for low, high in pairwise(bounds):
            row = [dtype, f"{low:.2g} to {high:.2g}"]
            for trained_ones in (False, True):
                for history in ("stored base", "master copy"):
                    own = [
                        one
                        for one in found
                        if one.dtype == dtype
                        and low <= one.norm < high
                        and one.history == history
                        and (one.kind in RATES) == trained_ones
                    ]
                    refused = sum(one.verdict == "refused" for one in own)
                    wrong = sum(one.verdict == "wrong" for one in own)
                    row.append(
                        f"{refused} of {len(own)}" + (f", **{wrong} wrong**" if wrong else "")
                    )
            rows.append(row)
    ways = ("stored base", "master copy")
    kinds = [f"{kind}, {way}" for kind in ("planted", "trained") for way in ways]
    return table(["stored", "relative norm", *kinds], rows)


def milliseconds(work: Callable[[], object]) -> float:
    """CPU time, best of seven: other processes take wall time away."""
    times = []
    for _ in range(7):
        start = time.process_time()
        work()
        times.append(1e3 * (time.process_time() - start))
    return min(times)


def cost(shape: tuple[int, int]) -> list[str]:
    """The audit of a pair without this, and what this adds."""
    g = torch.Generator().manual_seed(0)
    base = (0.02 * torch.randn(shape, generator=g)).bfloat16()
    tuned = (base.float() + 2e-5 * torch.randn(shape, generator=g)).bfloat16()
    D = tuned.double().numpy() - base.double().numpy()
    lines = ((D**2).sum(1), (D**2).sum(0))
    sides = Sides(base, tuned, torch.float32, Workspace())
    formats = ("BF16", "BF16")
    total = summed(sides, formats)
    assert isinstance(total, Sums), "both sides are finite and differ"
    audit = milliseconds(
        lambda: measure_pair(base, tuned, formats, total, Means(Method(), Workspace()), "")
    )
    undo = milliseconds(lambda: rounding.undo(sides, formats, lines, total.size.base))
    edge = milliseconds(lambda: sharp_edge(*lines))
    audit -= undo + edge
    added = 100 * (undo + edge) / audit
    return [
        f"{shape[0]} x {shape[1]}",
        f"{audit:.0f}",
        f"{undo:.0f}",
        f"{edge:.0f}",
        f"{added:.0f} %",
    ]


def cost_part(shapes: Sequence[tuple[int, int]]) -> str:
    return table(["shape", "audit, ms", "`undo`, ms", "sharp edge, ms", "added"], map(cost, shapes))


# -------------------------------------------------------------------------------- made copies

LAYERS = 4  # of the models that go through the whole command


def copies(W: Array, rng: np.random.Generator) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Base and tuned matrices of other published models: copies, merges, adapters, strangers."""
    base = torch.from_numpy(W).bfloat16()
    stored = base.double().numpy()
    scale = np.abs(stored).max(1, keepdims=True) / 127
    norm = np.linalg.norm(stored)

    def moved(update: Array, relative: float) -> torch.Tensor:
        return torch.from_numpy(
            stored + relative * norm * update / np.linalg.norm(update)
        ).bfloat16()

    adapter, learnt = coherent(rng, 8, 1.0), coherent(rng, 4, 0.3)
    left, right = np.linalg.svd(rng.standard_normal(SHAPE), full_matrices=False)[::2]
    other = moved(learnt, 1e-2).double().numpy()
    return {
        "frozen": (base, base.clone()),
        "BF16 copy of an F32 base": (torch.from_numpy(W).float(), base),
        "int8 round trip": (base, torch.from_numpy(np.rint(stored / scale) * scale).bfloat16()),
        "rank 8, merged, 0.002": (base, moved(adapter, 2e-3)),
        "rank 8, merged, 0.0005": (base, moved(adapter, 5e-4)),
        "tuned, 0.01": (base, moved(learnt, 1e-2)),
        "50:50 merge of that": (base, torch.from_numpy((stored + other) / 2).bfloat16()),
        "flat update, 0.01": (base, moved(left @ right, 1e-2)),
        "unrelated": (base, torch.from_numpy(0.02 * rng.standard_normal(SHAPE)).bfloat16()),
    }


def copies_part() -> str:
    """Each through the whole command, as models of a few layers; medians of the report."""
    models: dict[str, list[dict[str, torch.Tensor]]] = {}
    for layer in range(LAYERS):
        rng = np.random.default_rng([11, layer])
        for name, sides in copies(0.02 * rng.standard_normal(SHAPE), rng).items():
            found = models.setdefault(name, [{}, {}])
            for side, matrix in zip(found, sides, strict=True):
                side[f"model.layers.{layer}.mlp.down_proj.weight"] = matrix
    return table(
        [
            "model", "relative norm", "`kept`", "unrounded", "`kept_history`", "zeros", "expected",
            "`purity_z`", "`equivalent_directions`", "`concentration`", "`decay_cosine`",
            "`levels_tuned`", "warnings",
        ],
        (copy_row(name, *sides) for name, sides in models.items()),
    )  # fmt: skip


def copy_row(name: str, base: dict[str, torch.Tensor], tuned: dict[str, torch.Tensor]) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        for side, tensors in (("base", base), ("tuned", tuned)):
            path = Path(folder) / side
            path.mkdir()
            save_file(tensors, path / "model.safetensors")
        report = shadow.audit(
            base=f"{folder}/base", tuned=f"{folder}/tuned", output=f"{folder}/out", jobs=1
        )
        deltas, warnings = report.deltas, report.summary.warnings
        if deltas.empty:
            return [name, "identical", *[""] * 11]

        def median(column: str) -> str:
            known = deltas[column].dropna()
            return f"{float(known.median()):.3g}" if len(known) else "-"

        def word(column: str) -> str:
            return ", ".join(sorted(set(deltas[column].dropna()))) or "-"

        kept = f"{median('kept')} {word('kept_reason')}".replace(" -", "").strip("- ")
        numbers = [median(column) for column in ("zero_share", "zero_share_expected", "purity_z")]
        rest = [
            median(c)
            for c in ("equivalent_directions", "concentration", "decay_cosine", "levels_tuned")
        ]
        sizes = (
            median("relative_norm"),
            kept,
            median("relative_norm_unrounded"),
            word("kept_history"),
        )
        return [name, *sizes, *numbers, *rest, ", ".join(one.code for one in warnings) or "-"]


def document(
    found: Sequence[Entry], sides: Sequence[int], shapes: Sequence[tuple[int, int]], draws: int
) -> str:
    """The page: what was stored, what was found, and what follows from it."""
    given = [one for one in found if one.verdict in ("right", "wrong") and one.purity]
    wrong = [one for one in found if one.verdict == "wrong"]
    worst = max((abs(one.size_error or 0) for one in given), default=0.0)
    clean = [one for one in found if one.kind in RATES and one.history == "stored base"]
    own = [
        abs(one.size_error or 0)
        for one in given
        if one.kind in RATES and one.history == "stored base"
    ]
    largest = max(own, default=0.0)
    beyond = [sum(abs(one.size_error or 0) > limit for one in given) for limit in (0.15, 0.2)]
    refused = sum(one.verdict == "refused" for one in clean)
    parts = [
        "# Rounding",
        f"""How much of a stored change belongs to the update, and how much is rounding? `kept` and
        the figures that rest on it say so. This page compares them with updates that are known.
        `{COMMAND}` makes it; the script trains small models first and saves them.""",
        f"""Of {len(given)} norms and 1/X that were given together, {len(wrong)} are off by more
        than {100 * WITHIN:.0f} %, {beyond[0]} in 1/X by more than 15 % and {beyond[1]} by more than
        20 %, the worst in 1/X by {100 * worst:.0f} %. Of {len(clean)} trained updates from a stored
        base, {refused} were refused, and the others are within {100 * largest:.0f} %.""",
        f"""`kept` is null (`rounding_unexplained`) where the changes are not what storage would
        have left, and below {rounding.ROUNDED_AWAY} nothing corrected is given (`rounded_away`).
        The part of an update of which nothing was stored leaves no trace. Where decay alone moves
        the rows of an embedding that no step reached, by less than half an ulp each, norm and 1/X
        are those of the rest.""",
        "## Updates and the ways they were stored",
        f"""Planted updates have a rank-4 part with 30 % of the energy, unless the name says
        otherwise, on Gaussian weights of {SHAPE[0]} x {SHAPE[1]}; numbers after *uneven rows* are
        the participation share of the energies of rows, and of columns. *adam* and *sgd* are really
        trained in float32: an MLP and a decoder of width 192, taught one task and then another.
        Each is stored in BF16 and F16 at relative norms from 1e-2 to 1e-4: from a stored base; from
        a *master copy*, of which both stored sides are roundings; from an *F32 base*, loaded in the
        tuned side's format or kept in F32; with four fifths of the entries *masked*, with half of
        the *rows frozen*, with sizes *as* those of the *weights*, and with a fifth of the energy in
        weight *decay*. **right**: norm and 1/X are within {100 * WITHIN:.0f} % of the float64
        truth. **norm right**: the norm is, and 1/X is null, as it is within its noise or one
        direction in noise has most of it. **refused**: `kept` is null, `rounding_unexplained`.
        **away**: `kept` is below {rounding.ROUNDED_AWAY}, `rounded_away`, and nothing corrected is
        given.""",
        verdicts_part(found),
        "## Errors",
        """Relative errors of 1/X and of the norm, from a stored base. *Normal shape in cells*
        solves each cell of row and column classes for the scale of a normal update; *fitted shape*,
        which is used, fits the distribution of |d| too.""",
        errors_part(found),
        """The error that is left comes from a coherent part whose entries are larger in some rows
        and columns than the noise around them: they pass the rounding better than the whole does,
        so that 1/X comes out too small. It grows as `kept` falls. Where one direction has most of X
        it reaches a third, and 1/X is null.""",
        "## The gate",
        f"""Refused, by relative norm. The gate refuses where more than
        {100 * rounding.MISFIT:.0f} % of the stored energy lies in other binades than the model has
        it, or {100 * rounding.OF_MASTER:.0f} % where `kept` is {rounding.AT_KEPT[0]} to
        {rounding.AT_KEPT[1]}; where the entries that the update reaches have a fourth moment above
        {rounding.TAILED:g} and `kept` is below {rounding.WELL_KEPT:g}; and where changes go with
        the sign of the weights, (away - toward) / changed times (1 - kept) above
        {rounding.LOPSIDED:g}. A master copy that passes is one far above its rounding, where both
        histories give nearly the same figures.""",
        gate_part(found),
        "## Copies, merges and strangers",
        f"""{LAYERS} matrices of each through the whole of `shadow audit`; medians.""",
        copies_part(),
        "## Cost",
        """CPU time beside the audit of a pair, one thread, best of seven. One more pass over at
        most half a million entries of both sides, and some hundred small sums. Small matrices pay
        most, and are a small part of an audit: all matrices of a block of Qwen2.5-0.5B together
        take 8 % more.""",
        cost_part(((128, 896), (896, 896), (896, 4864), (2048, 2048))),
        "## Purity over shapes",
        """Concentration and 1/X, X = 1/participation_ratio - 1/null_participation_ratio, of a
        coherent part in noise, m x m. 1/X goes to a limit where concentration goes to 1, unless the
        rank grows with the width.""",
        purity_part(sides),
        "## The sharp edge",
        f"""Noise without structure, {draws} matrices of each. The sharp edge is that of a separable
        profile; spikes are counted above it times 1 + m^(-2/3). Both it and `purity_z` hold for
        flat, separable, sparse and heavy-tailed profiles; profiles of blocks give some false
        spikes, and a larger spread of `purity_z`.""",
        edge_part(shapes, draws),
        "## Levels",
        f"""Which of {draws} matrices of 64 rows are said to have gone through 4 or 8 bits, by
        `levels_base` and `levels_tuned` and the thresholds of the sentence `few_values`. A matrix
        that went through nothing and is named all the same is a false alarm. Groups of 128 have a
        scale each: in long rows, 8 bits in groups look like BF16, and INT4 in groups like 8 bits. A
        pruned matrix has few values too.""",
        levels_part(LENGTHS, draws),
    ]
    return page(parts)


def main(
    quick: Annotated[bool, typer.Option(help="A small version, printed.")] = False,
    cache: Annotated[Path, typer.Option(help="Folder of what was trained and measured.")] = CACHE,
) -> None:
    """Train, store, undo, and write build/rounding.md."""
    torch.set_num_threads(1)
    if quick:
        sys.stdout.write(document(list(entries(None, ("even rows",))), (64,), ((64, 64),), 5))
        return
    text = document(
        kept_entries(cache),
        (64, 256, 1024),
        ((16, 16), (8, 32), (64, 64), (32, 256), (256, 256)),
        DRAWS,
    )
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
