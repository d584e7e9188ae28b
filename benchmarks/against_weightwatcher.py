"""Time `shadow audit` against WeightWatcher 0.7.7 on one pair, each in a process of its own.

WeightWatcher runs the three steps that give the same subjects (base, tuned, and tuned with
`base_model`) in one process, reading the folders tensor by tensor; `shadow` runs once for each
level. Both may use every core, with no thread count set in the environment, and all files are
read once beforehand so that nobody waits for the disk.

Both measure the same matrices, each as base, tuned and delta: the seven of every layer and the
embedding. WeightWatcher leaves matrices with a side above 50,000 out unless `max_N` says otherwise,
so that is the one setting changed. What is not equal:

- WeightWatcher takes float64 SVDs (LAPACK gesdd through SciPy); `shadow` takes eigenvalues of Gram
  matrices, in float32 products and float64 eigenvalues at level full. `--exact` adds a run with
  float64 throughout, whose singular values are resolved down to 1e-7 of the largest.
- WeightWatcher fits its power law to any tail by the one-sided distance, `shadow` to tails of at
  least 50 by the two-sided one: the two alphas are different estimates and are not expected to
  agree.
- For the same matrices `shadow` computes more: 30-odd columns, the delta's null and its relation to
  the base; it also measures vectors, and writes Parquet files and the spectra. WeightWatcher writes
  nothing.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
import typer
from processes import Usage, clean_environment, run_measured
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
EVERYTHING = 1_000_000  # a max_N that leaves nothing out
WEIGHTWATCHER = "weightwatcher"
GIB = 1 << 30
SAME = ("frobenius_norm", "spectral_norm", "stable_rank", "energy_rank")  # both define them alike
COMPARED = (*SAME, "alpha")
AGREEMENT = 1e-4  # the largest relative difference that is allowed in them
Figures = dict[tuple[str, str], dict[str, float | None]]  # (tensor, subject) -> numbers by name


def weightwatcher_figures(details: Mapping[str, Any]) -> Figures:
    """WeightWatcher's figures under the names and in the units of `shadow`.

    Its `norm` and `spectral_norm` are of eigenvalues (sigma²), its entropy is divided by the log of
    the rank.
    """
    return {
        (f"{row['longname']}.weight", subject): {
            "frobenius_norm": math.sqrt(row["norm"]),
            "spectral_norm": math.sqrt(row["spectral_norm"]),
            "stable_rank": row["stable_rank"],
            "energy_rank": math.exp(row["entropy"] * math.log(row["matrix_rank"])),
            "alpha": row["alpha"],
        }
        for subject, rows in details.items()
        for row in rows
    }


def shadow_figures(out: Path) -> Figures:
    """The same figures from matrices.parquet; alpha is None where it is not defined."""
    (path,) = out.glob("*/*/matrices.parquet")
    rows = pq.read_table(path, columns=["tensor", "subject", *COMPARED]).to_pylist()
    return {(row["tensor"], row["subject"]): {name: row[name] for name in COMPARED} for row in rows}


def differences(ours: Figures, theirs: Figures) -> dict[str, tuple[float, float]]:
    """(median, largest) relative difference of every figure over all spectra."""
    if alone := ours.keys() ^ theirs.keys():
        raise ValueError(f"measured on one side only: {sorted(alone)}")
    found = {}
    for name in COMPARED:
        both = [(ours[key][name], theirs[key][name]) for key in ours]
        apart = [math.inf if a is None or b is None else abs(a - b) / abs(b) for a, b in both]
        found[name] = (statistics.median(apart), max(apart))
    return found


def usage_table(usages: Mapping[str, Sequence[Usage]], counts: Sequence[int]) -> Table:
    """Median times, largest memory, and how many times less than the first contender's they are."""
    table = Table("", *usages, title="Times (medians), largest memory; times less than the first")
    for field, text, over_rounds, unit in (
        ("wall", "wall, s", statistics.median, 1),
        ("cpu", "CPU, s", statistics.median, 1),
        ("rss", "resident, GiB", max, GIB),
        ("anonymous", "anonymous, GiB", max, GIB),
    ):
        values = [
            over_rounds(getattr(run, field) for run in runs) / unit for runs in usages.values()
        ]
        less = (f"{value:.2f} ({values[0] / value:.1f}x)" for value in values[1:])
        table.add_row(text, f"{values[0]:.2f}", *less)
    table.add_row("spectra", *map(str, counts))
    return table


def main(
    weightwatcher_python: Annotated[
        Path, typer.Option(help="Python of an environment with weightwatcher==0.7.7 and torch.")
    ],
    pair: Annotated[Path, typer.Option(help="Folder with base and tuned, as make_pair.py makes.")],
    exact: Annotated[bool, typer.Option("--exact", help="Also run shadow at level exact.")] = False,
    repeats: Annotated[int, typer.Option(help="Rounds.", min=1)] = 1,
) -> None:
    """Time `shadow audit` against WeightWatcher on the same pair."""
    console = Console()
    for path in sorted(pair.glob("*/*.safetensors")):  # so that the first finds them in memory too
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    sides = [pair.resolve() / side for side in ("base", "tuned")]
    levels = {f"shadow {level}": level for level in ("full", *(["exact"] if exact else []))}
    usages: dict[str, list[Usage]] = {name: [] for name in (WEIGHTWATCHER, *levels)}
    figures: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats):
            for name, used in usages.items():
                out = Path(folder) / f"{name} {number}"
                out.mkdir()
                command = [
                    weightwatcher_python, HERE / "weightwatcher_steps.py", *sides, str(EVERYTHING),
                    out / "details.json",
                ]  # fmt: skip
                if name in levels:
                    shadow = Path(sys.executable).parent / "shadow"
                    command = [shadow, "audit", *sides, "-o", out, "--level", levels[name]]
                used.append(run_measured(command, clean_environment(), out / "log.txt"))
                console.print(f"round {number + 1}, {name}: {used[-1].wall:.1f} s")
                if name in levels:
                    figures[name] = shadow_figures(out)
                else:
                    recorded = json.loads((out / "details.json").read_text())
                    figures[name] = weightwatcher_figures(recorded["details"])
    console.print(usage_table(usages, [len(one) for one in figures.values()]))
    steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in recorded["seconds"].items())
    console.print(f"weightwatcher {recorded['version']}, last round: {steps}")
    apart = {name: differences(figures[name], figures[WEIGHTWATCHER]) for name in levels}
    table = Table("", *apart, title="Relative difference from the first: median (largest)")
    for name in COMPARED:
        cells = [f"{one[name][0]:.0e} ({one[name][1]:.0e})" for one in apart.values()]
        table.add_row(name if name in SAME else f"{name} (another fit)", *cells)
    console.print(table)
    if any(one[name][1] > AGREEMENT for one in apart.values() for name in SAME):
        console.print(f"they do not agree to {AGREEMENT:.0e}")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
