"""What does a CUDA card gain? Gram and solve apart, against the CPU of the same machine.

Times the matrices of one layer of Qwen2.5-0.5B and of Qwen2.5-7B, in BF16 with made-up weights. For
each: the Gram matrix on the CPU and on the card, copies included; the check with a vector, which
the CPU makes of what comes from the card; and the eigenvalues with 64 vectors, which stay on the
CPU. One thread of the CPU, as each worker has.

Errors are those of the Gram against float64, 1 being what the check allows. The memory that the
card took stands beside what `shadow plan` says. The exit code is 2 without a card.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from torch import Tensor

from shadow.spectra.device import SAME_GRAM, Probe, TorchDevice, device_memory, full_products
from shadow.spectra.spectrum import Workspace, gram, scaled_blocks, with_vectors
from shadow.spectra.subspace import VECTORS

SHAPES = {
    "0.5b": ((896, 896), (4864, 896), (896, 4864)),
    "7b": ((3584, 3584), (512, 3584), (18944, 3584), (3584, 18944)),
}


def main(
    model: Annotated[str, typer.Option(help="0.5b, 7b or both.")] = "both",
    device: Annotated[
        str, typer.Option(help="As torch calls it; cpu tries this script without a card.")
    ] = "cuda:0",
    repeats: Annotated[int, typer.Option(min=1, help="The median of so many is shown.")] = 5,
) -> None:
    console = Console(width=130)
    if device.startswith("cuda") and not torch.cuda.is_available():
        console.print("torch finds no CUDA card")
        raise typer.Exit(2)
    torch.set_num_threads(1)
    card = TorchDevice(device)
    fault = card.self_test()
    console.print(f"{card.name}, torch {torch.__version__}; self-test: {fault or 'passed'}")
    with full_products():
        for name in SHAPES if model == "both" else [model]:
            console.print(table_of(name, card, repeats))


def table_of(model: str, card: TorchDevice, repeats: int) -> Table:
    """A row for each shape of a layer, milliseconds."""
    table = Table(title=f"One layer of Qwen2.5-{model}, milliseconds", title_justify="left")
    heads = (
        "shape",
        "Gram, CPU",
        "Gram, device",
        "check",
        "CPU / device",
        "solve, CPU",
        "error, CPU",
        "error, device",
    )
    for head in (*heads, "memory", "planned"):
        table.add_column(head, justify="right")
    for rows, cols in SHAPES[model]:
        table.add_row(f"{rows} x {cols}", *row_of(rows, cols, card, repeats))
    return table


def row_of(rows: int, cols: int, card: TorchDevice, repeats: int) -> Iterator[str]:
    """The other cells of a row."""
    weights = torch.randn(rows, cols, generator=torch.Generator().manual_seed(0)).bfloat16()
    side, wide = min(rows, cols), rows <= cols
    space = Workspace()

    def blocks(dtype: torch.dtype = torch.float32) -> Iterator[Tensor]:
        return scaled_blocks(weights, 1.0, dtype, space)

    def read() -> None:
        for _ in blocks():
            pass

    def checked() -> None:
        probe = Probe(side, wide)
        for _ in probe.seen(blocks()):
            pass
        probe.residual(on_card)

    if card.kind == "cuda":
        torch.cuda.reset_peak_memory_stats(card.place)
    here, on_cpu = timed(lambda: gram(blocks(), side, wide, torch.float32), repeats)
    there, on_card = timed(lambda: card.gram(blocks(), side, wide), repeats)
    taken = torch.cuda.max_memory_allocated(card.place) if card.kind == "cuda" else 0
    check, reading = timed(checked, repeats)[0], timed(read, repeats)[0]
    solve, _ = timed(lambda: with_vectors(on_cpu.clone(), min(VECTORS, side)), min(repeats, 3))
    exact = gram(blocks(torch.float64), side, wide, torch.float64).tril()
    allowed = SAME_GRAM * float(exact.trace())
    errors = [
        float(torch.linalg.norm(found.double().tril() - exact)) / allowed
        for found in (on_cpu, on_card)
    ]
    times = (here, there, max(0.0, check - reading), here / there * 1e-3, solve)
    yield from (f"{1e3 * seconds:.1f}" for seconds in times)
    yield from (f"{error:.3f}" for error in errors)
    yield decimal(taken)
    yield decimal(device_memory(side, 1))


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median wall seconds after one round that is not counted, and the last result."""
    result = work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - started)
    return median(seconds), result


if __name__ == "__main__":
    typer.run(main)
