"""How often moved layers, negated matrices and neurons in another order are named, and how often
they are where there are none.

    python benchmarks/rearranged.py [--pairs 40]    # prints a table, some minutes

Pairs of small decoders with random matrices (3 sizes, 4 to 8 layers, F32 and BF16; Gaussian, of
heavy tails, or with rows and columns of very different sizes that both models share). The tuned
side has noise of a relative norm of 0, 1, 3 or 10 % besides. Each pair is audited as a whole, so
that the claims are those of a report. `error_rate` in `src/shadow/claims/recognised.py` has the
counts of the last column: pairs of all kinds for which a claim held and should not have, or the
other way round.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import models
import rearranging as made
from rearranging import Weights
from runs import pair_of

from shadow.audits.pair import run_pair
from shadow.audits.runtime import Runtime, Settings
from shadow.checkpoints.pairing import Filter
from shadow.claims.recognised import recognised
from shadow.spectra.delta import Method

WIDTHS, NOISE, SHAPES = (32, 64, 128), (0.0, 0.01, 0.03, 0.1), ("gaussian", "heavy", "profile")
CLAIMS = ("layers_moved", "negated", "reordered")


def shaped(weights: Weights, shape: str) -> Weights:
    """The same with heavy tails, or with sizes of rows and columns that every model has."""
    if shape == "gaussian":
        return weights
    if shape == "heavy":
        return {name: matrix * matrix.abs().square() for name, matrix in weights.items()}
    profile = torch.Generator().manual_seed(0)

    def scales(count: int) -> torch.Tensor:
        return torch.randn(count, generator=profile).exp()

    return {
        name: scales(len(matrix))[:, None] * matrix * scales(matrix.shape[1])
        for name, matrix in weights.items()
    }


def unrelated(base: Weights, number: int) -> Weights:
    """Another model of the shape; every other one has the embeddings of the base."""
    layers, width = 4 + number % 5, WIDTHS[number % 3]
    other = shaped(made.weights(10_000 + number, layers, width), SHAPES[number % 7 % 3])
    embed = {name: base[name] for name in base if "embed" in name and number % 2}
    return other | embed


# by kind of pair: what is done to the base of a number, and what is to be named
KINDS: dict[str, tuple[Callable[[Weights, int], Weights], str]] = {
    "layer dropped": (lambda base, n: made.dropped(base, n % 3), "layers_moved"),
    "layer inserted": (lambda base, n: made.inserted(base, n % 3, seed=n), "layers_moved"),
    "layers negated": (lambda base, n: made.negated(base, range(0, 8, 2)), "negated"),
    "neurons permuted": (lambda base, n: made.permuted(base, seed=n), "reordered"),
    "trained": (lambda base, n: made.tuned(base, 0.05, seed=n), ""),
    "unrelated": (unrelated, ""),
}


def named(kind: str, number: int, folder: Path) -> set[str]:
    """The claims that hold of a pair."""
    layers, width = 4 + number % 5, WIDTHS[number % 3]
    base = shaped(made.weights(number, layers, width), SHAPES[number % 7 % 3])
    side = made.tuned(KINDS[kind][0](base, number), NOISE[number % 4], seed=20_000 + number)
    stored = torch.bfloat16 if number % 2 else torch.float32
    sides = [
        models.write(folder / name, {one: w.to(stored) for one, w in weights.items()}, models.LLAMA)
        for name, weights in (("base", base), ("tuned", side))
    ]
    settings = Settings(Method(subspaces=False), Filter(), spectra=False)
    done = run_pair(pair_of(*sides), settings, folder / "out", Runtime(jobs=1))
    return {*recognised(done.summary)} & {*CLAIMS}


def main(pairs: Annotated[int, typer.Option(help="Of each kind.")] = 40) -> None:
    """Print how often each claim holds, by kind of pair, and how often it is wrong."""
    table = Table("pairs", "n", *CLAIMS)
    wrong = Counter[str]()
    for kind, (_, right) in KINDS.items():
        held = Counter[str]()
        for number in range(pairs):
            with tempfile.TemporaryDirectory() as folder:
                found = named(kind, number, Path(folder))
            held.update(found)
            wrong.update(found ^ {right} - {""})
        table.add_row(kind, str(pairs), *(str(held[claim]) for claim in CLAIMS))
    of = pairs * len(KINDS)
    table.add_row("wrong", str(of), *(str(wrong[claim]) for claim in CLAIMS))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
