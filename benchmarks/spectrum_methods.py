"""Ways to the singular values of a bfloat16 matrix, by shape: time and errors, on one thread.

Every method starts from the stored bfloat16 matrix. "whole Gram" is one product by torch; 32 and 64
are the bits of the product and of the eigenvalues, "eig". `default` and `exact` are those of
`shadow`, by torch as it takes values alone, by SciPy as it takes them with vectors. The error is
the largest relative one among the singular values above the floor (`shadow.spectra.spectrum.FLOOR`)
that `shadow` gives the method, against `svdvals` in float64; "resolved" says how many of them lie
above it. "medium" is `torch.set_float32_matmul_precision("medium")`, which multiplies float32 as
bfloat16 with float32 sums where the processor can: the factors lose nothing, since these matrices
are bfloat16 to begin with.
"""

from __future__ import annotations

import os

# read when torch and NumPy are imported
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import typer
from make_pair import matrix_blocks
from rich.console import Console
from rich.table import Table
from torch import Tensor

from shadow.spectra import spectrum
from shadow.spectra.measurement import Precision
from shadow.spectra.spectrum import FLOOR, Workspace
from shadow.spectra.tridiagonal import eigensystem

SHAPES = ((128, 896), (896, 896), (896, 4864), (151936, 896), (1024, 4096), (2048, 8192))
LARGE = ((4096, 4096),)
ENOUGH = 1.0  # seconds of repetitions after which a method has been timed enough

Matmul = Literal["highest", "medium"]


@dataclass(frozen=True)
class Method:
    """solve: stored matrix -> singular values, descending. floor: whose floor its errors are
    measured above.
    """

    name: str
    solve: Callable[[Tensor], Tensor]
    floor: Precision
    matmul: Matmul = "highest"


def svdvals(matrix: Tensor) -> Tensor:
    """The direct way."""
    sigma: Tensor = torch.linalg.svdvals(matrix.float())
    return sigma


def full_gram(product: torch.dtype, eigenvalues: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The whole Gram matrix on the short side by one product."""

    def solve(matrix: Tensor) -> Tensor:
        x = matrix.to(product)
        return _roots((x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x).to(eigenvalues))

    return solve


def of_shadow(product: torch.dtype, by: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """The way of `shadow`: block by block, with torch's eigenvalues or those of one reduction."""
    space = Workspace()

    def solve(matrix: Tensor) -> Tensor:
        rows, cols = matrix.shape
        blocks = spectrum.scaled_blocks(matrix, 1.0, product, space)
        lower = spectrum.gram(blocks, min(rows, cols), rows <= cols, product).double()
        return torch.from_numpy(by(lower)).clamp_min(0.0).sqrt().flip(0)

    return solve


def by_reduction(lower: Tensor) -> Any:
    """Eigenvalues as they come with vectors."""
    return eigensystem(lower.numpy(), 0)[0]


def _roots(lower: Tensor) -> Tensor:
    eigenvalues: Tensor = torch.linalg.eigvalsh(lower, UPLO="L")
    return eigenvalues.double().clamp_min(0.0).sqrt().flip(0)


SINGLE, DOUBLE = torch.float32, torch.float64
METHODS = (
    Method("svdvals 32", svdvals, "default"),
    Method("whole Gram 32, eig 64", full_gram(SINGLE, DOUBLE), "default"),
    Method("whole Gram 64, eig 64", full_gram(DOUBLE, DOUBLE), "exact"),
    Method("whole Gram 32, eig 64, medium", full_gram(SINGLE, DOUBLE), "default", "medium"),
    Method("default by torch", of_shadow(SINGLE, spectrum.eigenvalues), "default"),
    Method("default by SciPy", of_shadow(SINGLE, by_reduction), "default"),
    Method("exact by torch", of_shadow(DOUBLE, spectrum.eigenvalues), "exact"),
    Method("exact by SciPy", of_shadow(DOUBLE, by_reduction), "exact"),
)


@contextmanager
def matmul_precision(wanted: Matmul) -> Iterator[None]:
    """Multiply float32 matrices that way inside the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(wanted)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def stored_matrix(rows: int, cols: int) -> Tensor:
    """A bfloat16 matrix with a spectrum like a weight's."""
    name = f"{rows}x{cols}"
    return torch.cat([base for base, _ in matrix_blocks(name, (rows, cols), seed=0)])


def seconds(solve: Callable[[Tensor], Tensor], matrix: Tensor) -> float:
    """Median time of a call, after one that does not count."""
    solve(matrix)
    times: list[float] = []
    while not times or (sum(times) < ENOUGH and len(times) < 50):
        started = time.perf_counter()
        solve(matrix)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def error(sigma: Tensor, truth: Tensor, floor: float) -> tuple[float, int]:
    """(largest relative error, number) of the singular values above the floor, a share of the
    largest one.
    """
    resolved = truth > floor * truth[0]
    found = (sigma.double() - truth).abs() / truth
    return float(found[resolved].max()), int(resolved.sum())


def shape_table(rows: int, cols: int) -> Table:
    """All methods on one shape."""
    matrix = stored_matrix(rows, cols)
    truth = torch.linalg.svdvals(matrix.double())
    table = Table("", title=f"{rows} x {cols}", title_justify="left")
    for heading in ("ms", "of svdvals", "error", "resolved"):
        table.add_column(heading, justify="right")
    direct: float | None = None
    for method in METHODS:
        with matmul_precision(method.matmul):
            taken = seconds(method.solve, matrix)
            wrong, resolved = error(method.solve(matrix), truth, FLOOR[method.floor])
        direct = direct or taken
        share = f"{taken / direct:.3f}"
        table.add_row(
            method.name, f"{taken * 1e3:.2f}", share, f"{wrong:.0e}", f"{resolved}/{len(truth)}"
        )
    return table


def main(
    shape: Annotated[
        list[str] | None, typer.Option(help="Only this shape, as 896x4864; may be repeated.")
    ] = None,
    large: Annotated[bool, typer.Option("--large", help="Also 4096x4096 (minutes).")] = False,
) -> None:
    """Compare ways to get singular values."""
    torch.set_num_threads(1)
    console = Console()
    console.print(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread"
    )
    chosen = [tuple(map(int, text.split("x"))) for text in shape or []] or [
        *SHAPES,
        *(LARGE if large else ()),
    ]
    for rows, cols in chosen:
        console.print(shape_table(rows, cols))


if __name__ == "__main__":
    typer.run(main)
