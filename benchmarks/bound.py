"""How far is a pair from what this machine could do? CPU seconds of one thread by phase, and those
of an ideal machine.

For every kind of matrix in a layer of Qwen2.5-0.5B (made-up weights): the time of each phase of
`measure_pair`, and what the same work would take at the highest rates that this machine
shows in these libraries, at any size:

- products: half of a full product, as a matrix meets its own transpose, at the highest rate of
  products;
- eigenproblems: 4/3 n^3 for each reduction to tridiagonal form, at the highest rate of LAPACK's
  reduction, and 2 n^2 k for k vectors, at the rate of products;
- reading: each stored entry of both sides once, at the rate of converting bfloat16 to float32.

Everything else (sums over entries, subspaces, the fit that undoes rounding, tails) has no bound
here: an ideal machine does it in no time. The least of --repeats, so that others on the machine
change it little.
"""

from __future__ import annotations

import os

# read when torch and NumPy are imported
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import cProfile
import pstats
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import numpy as np
import torch
import typer
from make_pair import SMALL, layer, matrix_blocks
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from shadow.spectra.delta import measure_pair, summed
from shadow.spectra.method import Method
from shadow.spectra.solvers import Means
from shadow.spectra.spectrum import BLOCK, Sides, Workspace, working_dtype
from shadow.spectra.subspace import VECTORS
from shadow.spectra.sums import Sums
from shadow.spectra.tridiagonal import eigensystem

LAYER = {  # module, such as attn.q: (rows, cols)
    name.removeprefix("self_").removesuffix("_proj.weight"): (shape[0], shape[1])
    for name, shape in layer(SMALL).items()
    if len(shape) == 2
}
EXACT_SIDE = 256  # matrices of a smaller short side are measured in float64
FORMATS = ("BF16", "BF16")
# Phases by the functions whose cumulative time they are; `other` is what is left of the whole.
PHASES = {
    "products": ("gram",),
    "eigenproblems": ("eigensystem", "eigenvalues"),
    "subspaces": ("subspace_values",),
    "undoing the rounding": ("undo",),
    "sums over entries": ("sums",),
    "sharp edge": ("sharp_edge_values",),
    "tails": ("power_law", "hill", "marchenko_pastur"),
}


def least(work: Callable[[], object], repeats: int) -> float:
    """CPU seconds of the fastest of several calls, after one that warms up."""
    work()
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


def peak_product(dtype: type[np.floating], repeats: int) -> float:
    """The highest rate of A B, in multiply-adds, half the usual flops a second, of squares."""
    rates = []
    for side in (512, 1024, 2048):
        a, b = (
            np.random.default_rng(seed).standard_normal((side, side)).astype(dtype)
            for seed in (0, 1)
        )
        out = np.empty_like(a)
        seconds = least(partial(np.matmul, a, b, out=out), repeats)
        rates.append(side**3 / seconds)
    return max(rates)


def reductions(repeats: int, sides: Sequence[int] = (512, 896, 1536, 2048)) -> dict[int, float]:
    """By side: the rate of an eigenproblem without vectors, in units of 4/3 n^3 a second, of the
    faster of OpenBLAS and torch's library.
    """
    rates = {}
    for side in sides:
        a = np.random.default_rng(0).standard_normal((side, side))
        gram = a @ a.T
        seconds = [
            least(partial(solve, gram), max(1, repeats // 2)) for solve in (_by_openblas, _by_torch)
        ]
        rates[side] = 4 / 3 * side**3 / min(seconds)
    return rates


def _by_openblas(gram: NDArray[np.float64]) -> None:
    eigensystem(gram.copy(), 0)


def _by_torch(gram: NDArray[np.float64]) -> None:
    torch.linalg.eigvalsh(torch.from_numpy(gram))


def peak_reading(repeats: int) -> float:
    """Stored bfloat16 entries that become float32 in a second."""
    stored = torch.zeros(BLOCK * 16, dtype=torch.bfloat16)
    target = torch.empty(BLOCK)
    blocks = stored.view(16, BLOCK)

    def read() -> None:
        for block in blocks:
            target.copy_(block)

    return BLOCK * 16 / least(read, repeats)


def ideal(shape: tuple[int, int], peaks: dict[str, float]) -> dict[str, float]:
    """Seconds of the phases that have a bound."""
    short, long = sorted(shape)
    product = peaks["float64" if short <= EXACT_SIDE else "float32"]
    vectors = min(VECTORS, short)
    return {
        "products": 3 * short**2 * long / 2 / product,
        "eigenproblems": 3 * 4 / 3 * short**3 / peaks["reduction"]
        + 2 * 2 * short**2 * vectors / peaks["float64"],
        "reading": 2 * short * long / peaks["reading"],
    }


def measured(module: str, shape: tuple[int, int], repeats: int) -> dict[str, float]:
    """Seconds of every phase, of the repeat that took least."""
    base, tuned = (torch.cat(parts) for parts in zip(*matrix_blocks(module, shape, 0), strict=True))
    space, best = Workspace(), dict[str, float]()
    means = Means(Method(), space)
    for _ in range(repeats + 1):
        profile = cProfile.Profile(time.process_time)
        profile.enable()
        total = summed(Sides(base, tuned, working_dtype(*FORMATS), space), FORMATS)
        assert isinstance(total, Sums), "both sides are finite and differ"
        measure_pair(base, tuned, FORMATS, total, means, module)
        profile.disable()
        told = _phases(pstats.Stats(profile))
        if not best or told["whole"] < best["whole"]:
            best = told
    return best


def _phases(stats: pstats.Stats) -> dict[str, float]:
    cumulative: dict[str, float] = {}
    within = 0.0  # `eigensystem` in `eigenvalues`, which calls it where it takes this way
    for (file, _, name), told in stats.stats.items():  # type: ignore[attr-defined]
        if "shadow" in file:
            _, _, _, seconds, callers = told
            cumulative[name] = cumulative.get(name, 0.0) + seconds
            if name == "eigensystem":
                within += sum(of[3] for by, of in callers.items() if by[2] == "eigenvalues")
    phases = {
        phase: sum(cumulative.get(name, 0.0) for name in names) for phase, names in PHASES.items()
    }
    phases["eigenproblems"] -= within
    whole = float(stats.total_tt)  # type: ignore[attr-defined]
    return {**phases, "other": whole - sum(phases.values()), "whole": whole}


def main(repeats: Annotated[int, typer.Option(min=1)] = 5) -> None:
    """Print the peaks of the machine, and the phases of a layer beside their bounds."""
    torch.set_num_threads(1)
    by_side = reductions(repeats)
    peaks = {
        "float32": peak_product(np.float32, repeats),
        "float64": peak_product(np.float64, repeats),
        "reduction": max(by_side.values()),
        "reading": peak_reading(repeats),
    }
    units = {
        "float32": "G multiply-adds/s, products in float32",
        "float64": "G multiply-adds/s, products in float64",
        "reduction": "G (4/3 n^3)/s, eigenvalues",
        "reading": "G entries/s, bfloat16 to float32",
    }
    for name, rate in peaks.items():
        print(f"{rate / 1e9:7.1f} {units[name]}")
    sides = ", ".join(f"{rate / 1e9:.1f} at {side}" for side, rate in by_side.items())
    print(f"        eigenvalues by side: {sides}")
    bounds: dict[str, float] = {}
    times: dict[str, float] = {}
    for module, shape in LAYER.items():
        for phase, seconds in ideal(shape, peaks).items():
            bounds[phase] = bounds.get(phase, 0.0) + seconds
        for phase, seconds in measured(module, shape, repeats).items():
            times[phase] = times.get(phase, 0.0) + seconds
    table = Table(title="one layer of Qwen2.5-0.5B, CPU seconds of one thread")
    for column in ("phase", "measured", "of the whole", "ideal", "times the ideal"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    whole = times.pop("whole")
    for phase, seconds in sorted(times.items(), key=lambda item: -item[1]):
        bound = bounds.get(phase)
        ratio = "" if bound is None else f"{seconds / bound:.2f}"
        table.add_row(
            phase,
            f"{seconds:.3f}",
            f"{seconds / whole:.0%}",
            "" if bound is None else f"{bound:.3f}",
            ratio,
        )
    table.add_row("reading, once", "", "", f"{bounds['reading']:.3f}", "")
    total = sum(bounds.values())
    table.add_row(
        "whole", f"{whole:.3f}", "100%", f"{total:.3f}", f"{whole / total:.2f}", style="bold"
    )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
