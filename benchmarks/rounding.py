"""Rounding undone, compared with the truth: planted updates and really trained ones, stored in BF16
and F16.

    python benchmarks/rounding.py            # prints the tables, in minutes; trains models first
    python benchmarks/rounding.py --quick    # a small version, without trained models

Truth is the update in float64 before anything was stored. Planted: W Gaussian, 512 x 768, and an
update of a given kind and relative norm. Trained: the two decoders of bytes of kind_models.py in
float32, tuned on other text by AdamW and by SGD with momentum, at learning rates that give relative
norms of 1e-2 to 1e-4; what is trained is kept in a folder, and a run that was cut off goes on from
there. Each update is stored from a stored base, from a master copy that nobody stored, and in ways
that the storage model does not have.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from evidence.evidence_parts import table
from histories import Array, purity
from kind_models import SIZES, Rule, adamw, kept, matrices, next_byte, train
from kind_models import base as decoder_base
from kind_trainings import plain
from scipy.linalg import eigh

from shadow.dtypes import FLOATS
from shadow.spectra import rounding
from shadow.spectra.noise import NOISE, dominated, purity_z
from shadow.spectra.spectrum import Sides, Workspace

SHAPE = (512, 768)
CACHE = Path(tempfile.gettempdir()) / "shadow-rounding"
NORMS = {"BF16": (1e-2, 2e-3, 1e-3, 5e-4), "F16": (5e-4, 1.2e-4)}
# relative norms of trained updates that are stored
TRAINED = {"BF16": (1e-4, 1.2e-2), "F16": (3e-5, 2e-3)}
WITHIN = 0.12
VERDICTS = ("right", "norm right", "refused", "away", "unchanged", "wrong")


def share(energies: Array) -> float:
    return float(energies.sum() ** 2 / (energies**2).sum() / len(energies))


# -------------------------------------------------------------------------------- updates


def coherent(
    rng: np.random.Generator,
    rank: int,
    part: float,
    power: float = 0.0,
    shape: tuple[int, int] = SHAPE,
) -> Array:
    """An update of norm 1: sigma_i ~ i^-power up to a rank with a part of the energy, and noise."""
    left, right = (np.linalg.qr(rng.standard_normal((side, rank)))[0] for side in shape)
    S = (left * np.arange(1, rank + 1) ** -float(power)) @ right.T
    N = rng.standard_normal(shape)
    return math.sqrt(part) * S / np.linalg.norm(S) + math.sqrt(1 - part) * N / np.linalg.norm(N)


def uneven(rng: np.random.Generator, participation: float, size: int) -> Array:
    """Log-normal scales of lines whose energies have that participation share."""
    return np.exp(math.sqrt(-math.log(participation)) / 2 * rng.standard_normal(size))


def planted(name: str, rng: np.random.Generator) -> tuple[Array, Array]:
    """Weights and an update of a kind, the update of any norm."""
    W, D = 0.02 * rng.standard_normal(SHAPE), coherent(rng, 4, 0.3)
    if name.startswith("uneven rows"):
        of = float(name.rsplit(" ", 1)[1])
        D *= uneven(rng, of, SHAPE[0])[:, None] * uneven(rng, of, SHAPE[1])
    elif name.startswith("uneven weights"):
        scales = uneven(rng, 0.6, SHAPE[0])[:, None] * uneven(rng, 0.6, SHAPE[1])
        W *= scales
        D *= scales if name.endswith("both") else 1.0
    elif name == "embeddings":
        D *= (
            np.where(rng.random(SHAPE[0]) < 0.1, 1.0, 0.05)[:, None]
            * uneven(rng, 0.7, SHAPE[0])[:, None]
        )
    elif name == "rank 1":
        D = coherent(rng, 1, 1.0)
    elif name == "rank 4":
        D = coherent(rng, 4, 1.0)
    elif name == "1/i":
        D = coherent(rng, 256, 1.0, 1.0)
    elif name == "1/i, half noise":
        D = coherent(rng, 256, 0.5, 1.0)
    elif name == "heavy tails, t3":
        tails = rng.standard_t(3, SHAPE)
        D = math.sqrt(0.7) * tails / np.linalg.norm(tails) + math.sqrt(0.3) * coherent(rng, 4, 1.0)
    return W, D


PLANTS = (
    "even rows", "uneven rows 0.9", "uneven rows 0.7", "uneven rows 0.5", "uneven rows 0.3",
    "uneven weights", "uneven weights, both", "embeddings", "rank 1", "rank 4", "1/i",
    "1/i, half noise", "heavy tails, t3",
)  # fmt: skip


# -------------------------------------------------------------------------------- trained

RULES: Mapping[str, tuple[Callable[[float], Rule], tuple[float, ...]]] = {  # and their rates
    "adam": (lambda rate: adamw(rate, 0.01), (3e-5, 1e-5, 3e-6, 1e-6)),
    "sgd": (plain, (3e-3, 1e-3, 3e-4, 1e-4)),
}


def trained(folder: Path) -> Iterator[tuple[str, Array, Array]]:
    """Optimiser, base weights and update of decoders of bytes, all of float32 training; from
    the folder where it is there.
    """
    for which in SIZES:
        base = decoder_base(which, folder)
        for optimiser, (rule, rates) in RULES.items():
            for rate in rates:
                make = partial(train, base.full, next_byte("prose"), rule(rate), 50, 2)
                after = kept(folder / f"{which}-{optimiser}-{rate:g}.pt", make)
                for name in (n for n in matrices(base.full) if ".layers.1." in n):
                    W = base.full[name].double().numpy()
                    yield optimiser, W, after[name].double().numpy() - W


# -------------------------------------------------------------------------------- storage

HISTORIES = ("stored base", "master copy", "masked", "frozen rows", "as weights", "decay")


def stored(
    history: str, W: Array, D: Array, dtype: str, norm: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, Array]:
    """Base and tuned side as stored, and the update before it was, of that relative norm."""

    def narrow(x: Array) -> torch.Tensor:
        return torch.from_numpy(x).to(getattr(torch, FLOATS[dtype].torch_name))

    if history == "masked":
        D = D * (rng.random(D.shape) < 0.2)
    elif history == "frozen rows":
        D = D * (rng.random(len(D)) < 0.5)[:, None]
    elif history == "as weights":
        D = D * np.abs(W)
    elif history == "decay":  # a fifth of the energy
        D = math.sqrt(0.8) * D / np.linalg.norm(D) - math.sqrt(0.2) * W / np.linalg.norm(W)
    D = D * (norm * np.linalg.norm(W) / np.linalg.norm(D))
    rounded = narrow(W).double().numpy()
    if history == "master copy":
        return narrow(W), narrow(W + D), D
    return narrow(W), narrow(rounded + D), D


# -------------------------------------------------------------------------------- undone


@dataclass(frozen=True)
class Entry:
    """One stored update: the kind and history, what is true, what was found (None: refused)."""

    kind: str
    history: str
    kept: float | None
    reason: str | None
    norm_error: float | None
    size_error: float | None  # of 1/X
    stored_error: float  # of 1/X without a correction
    purity: bool  # whether 1/X is told: not too near its noise, nor dominated by one direction

    @property
    def verdict(self) -> str:
        if self.kept is None:
            return "unchanged" if self.reason == "nothing_rounded" else "refused"
        if self.reason == "rounded_away":
            return "away"
        assert self.norm_error is not None
        assert self.size_error is not None
        if not self.purity:
            return "norm right" if abs(self.norm_error) <= WITHIN else "wrong"
        return "right" if max(abs(self.norm_error), abs(self.size_error)) <= WITHIN else "wrong"


def judged(kind: str, history: str, dtype: str, norm: float, W: Array, D: Array) -> Entry | None:
    """Store, undo, compare. None where nothing changed."""
    rng = np.random.default_rng([len(kind), len(history), round(1e6 * norm)])
    base, tuned, update = stored(history, W, D, dtype, norm, rng)
    difference = tuned.double().numpy() - base.double().numpy()
    if not difference.any():
        return None
    r, c = (difference**2).sum(1), (difference**2).sum(0)
    sides = Sides(base, tuned, torch.float32, Workspace())
    found = rounding.undo(sides, (dtype, dtype), (r, c), float(base.double().abs().max()))
    true, seen = purity(update), purity(difference)
    norm_error = size_error = None
    recorded = False
    if found.kept and found.norm:
        norm_error = found.norm / float(np.linalg.norm(update)) - 1
        size_error = _relative(true * found.kept**2, seen)
        wide = difference.shape[0] <= difference.shape[1]
        small = difference @ difference.T if wide else difference.T @ difference
        (largest,) = eigh(small, eigvals_only=True, subset_by_index=[len(small) - 1] * 2)
        clear = purity_z(seen, share(r) * len(r), share(c) * len(c)) > NOISE
        recorded = clear and not dominated(seen, found.kept, float(largest / np.trace(small)))
    off = _relative(true, seen)
    return Entry(kind, history, found.kept, found.reason, norm_error, size_error, off, recorded)


def entries(folder: Path | None, plants: Sequence[str] = PLANTS) -> Iterator[Entry]:
    """Every entry; those of planted updates, and of trained ones where there is a folder."""
    for kind in plants:
        W, D = planted(kind, np.random.default_rng([7, *kind.encode()]))
        cases = [(dtype, norm) for dtype, norms in NORMS.items() for norm in norms]
        yield from _stored_in_all_ways(kind, cases, W, D)
    for optimiser, W, D in trained(folder) if folder else ():
        norm = float(np.linalg.norm(D) / np.linalg.norm(W))
        cases = [(dtype, norm) for dtype, (low, high) in TRAINED.items() if low < norm < high]
        yield from _stored_in_all_ways(optimiser, cases, W, D)


def _stored_in_all_ways(
    kind: str, cases: Sequence[tuple[str, float]], W: Array, D: Array
) -> Iterator[Entry]:
    for history in HISTORIES:
        for dtype, norm in cases:
            if (entry := judged(kind, history, dtype, norm, W, D)) is not None:
                yield entry


def _relative(purity_true: float, purity_seen: float) -> float:
    """Error of 1/X, relative to the true one."""
    return purity_true / purity_seen - 1 if purity_seen else math.inf


# -------------------------------------------------------------------------------- the tables


def by_kind(found: Sequence[Entry]) -> str:
    """Counts of verdicts by kind and history."""
    rows = []
    for kind in dict.fromkeys(one.kind for one in found):
        row = [kind]
        for history in HISTORIES:
            own = [one.verdict for one in found if one.kind == kind and one.history == history]
            words = [word for word in VERDICTS if word in own]
            row.append(", ".join(f"{own.count(word)} {word}" for word in words))
        rows.append(row)
    return table(["update", *HISTORIES], rows)


def summary(found: Sequence[Entry]) -> str:
    """What docs/evidence.md has of it."""
    given = [one for one in found if one.verdict in ("right", "wrong") and one.purity]
    clean = [one for one in found if one.kind in RULES and one.history == "stored base"]
    refused = sum(one.verdict == "refused" for one in clean)

    def worst(some: Sequence[Entry], error: str) -> float:
        return 100 * max((abs(getattr(one, error) or 0.0) for one in some), default=0.0)

    own = [one for one in given if one in clean]
    return (
        f"Trained updates from a stored base: {refused} of {len(clean)} refused, the others within"
        f" {worst(own, 'size_error'):.0f} %. Of {len(given)} that were given,"
        f" {sum(one.verdict == 'wrong' for one in found)} are off by more than"
        f" {100 * WITHIN:.0f} %; worst {worst(given, 'size_error'):.0f} % in 1/X,"
        f" {worst(given, 'norm_error'):.0f} % in the norm."
    )


def main(quick: Annotated[bool, typer.Option(help="A small version.")] = False) -> None:
    """Train, store, undo, and print the tables."""
    torch.set_num_threads(1)
    found = list(entries(None, ("even rows",)) if quick else entries(CACHE))
    print(by_kind(found), summary(found), sep="\n\n")


if __name__ == "__main__":
    typer.run(main)
