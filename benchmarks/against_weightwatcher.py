"""Time `shadow audit` against WeightWatcher 0.7.7 on one pair, each in a process of its own.

WeightWatcher runs the three steps that give the same subjects (base, tuned, and tuned with
`base_model`) in one process, reading the folders tensor by tensor; `shadow` runs once for each
precision. Both may use every core, with no thread count set in the environment, and all files are
read once beforehand so that nobody waits for the disk.

Both measure the same matrices, each as base, tuned and delta: the seven of every layer and the
embedding. WeightWatcher leaves matrices with a side above 50,000 out unless `max_N` says otherwise,
so that is the one setting changed; `--skip-embedding` leaves the embedding out of both instead, and
then it has all its defaults. What is not equal:

- WeightWatcher takes float64 SVDs (LAPACK gesdd through SciPy); `shadow` takes eigenvalues of Gram
  matrices, in float32 products and float64 eigenvalues at its default precision. `--exact` adds a
  run with float64 throughout, whose singular values are resolved down to 1e-7 of the largest.
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
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from processes import Usage, clean_environment, limit_cores, run_measured
from rich.console import Console
from rich.table import Table

# Imports here stay light: the kernel may count this process's peak as the start of a child's.
HERE = Path(__file__).parent
WHOLE = 24  # layers of the whole model
LEFT_OUT_ABOVE = 50_000  # WeightWatcher's default max_N
EVERYTHING = 1_000_000  # a max_N that leaves nothing out
WEIGHTWATCHER = "weightwatcher"
GIB = 1 << 30

SAME = ("frobenius_norm", "spectral_norm", "stable_rank", "energy_rank")  # both define them alike
COMPARED = (*SAME, "alpha")
AGREEMENT = 1e-4  # the largest relative difference that is allowed in them

Figures = dict[tuple[str, str], dict[str, float]]  # (tensor, subject) -> numbers by name
Differences = dict[str, tuple[float, float]]  # name -> median and largest


@dataclass(frozen=True)
class Contender:
    """One program on one pair. command: given the folder for its results. read: the figures from
    that folder.
    """

    name: str
    command: Callable[[Path], list[str | Path]]
    read: Callable[[Path], Figures]


def weightwatcher(python: Path, pair: Path, skip_embedding: bool) -> Contender:
    """The three steps of WeightWatcher."""
    max_n = LEFT_OUT_ABOVE if skip_embedding else EVERYTHING

    def command(out: Path) -> list[str | Path]:
        script = HERE / "weightwatcher_steps.py"
        return [python, script, pair / "base", pair / "tuned", str(max_n), out / "details.json"]

    return Contender(WEIGHTWATCHER, command, lambda out: weightwatcher_figures(_details(out)))


def shadow(program: Path, pair: Path, precision: str, skip_embedding: bool) -> Contender:
    """One `shadow audit` with a precision."""
    only_layers = ["--layer", f"0-{layers_of(pair) - 1}"] if skip_embedding else []

    def command(out: Path) -> list[str | Path]:
        sides: list[str | Path] = ["--base", pair / "base", "--tuned", pair / "tuned"]
        return [program, "audit", *sides, "-o", out, "--level", precision, *only_layers]

    return Contender(f"shadow {precision}", command, shadow_figures)


def layers_of(pair: Path) -> int:
    """The number of layers that config.json states."""
    return int(json.loads((pair / "base" / "config.json").read_text())["num_hidden_layers"])


def _details(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "details.json").read_text())
    return content


def weightwatcher_figures(content: dict[str, Any]) -> Figures:
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
        for subject, rows in content["details"].items()
        for row in rows
    }


def shadow_figures(out: Path) -> Figures:
    """The same figures from matrices.parquet; alpha is None where it is not defined."""
    import pyarrow.parquet as pq

    (path,) = out.glob("*/*/matrices.parquet")
    rows = pq.read_table(path, columns=["tensor", "subject", *COMPARED]).to_pylist()
    return {(row["tensor"], row["subject"]): {name: row[name] for name in COMPARED} for row in rows}


def differences(ours: Figures, theirs: Figures) -> Differences:
    """(median, largest) relative difference of every figure over all spectra.

    Raises ValueError when a spectrum is on one side only.
    """
    alone = sorted(f"{tensor} ({subject})" for tensor, subject in ours.keys() ^ theirs.keys())
    if alone:
        raise ValueError(f"measured on one side only: {', '.join(alone)}")
    apart = {
        name: [_relative(ours[key][name], theirs[key][name]) for key in ours] for name in COMPARED
    }
    return {name: (statistics.median(values), max(values)) for name, values in apart.items()}


def _relative(ours: float | None, theirs: float) -> float:
    return math.inf if ours is None else abs(ours - theirs) / abs(theirs)


def warm(pair: Path) -> None:
    """Read every file once, so that the first contender finds them in memory as the others do."""
    for path in sorted(pair.glob("*/*.safetensors")):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def make_pair(folder: Path, layers: int) -> Path:
    """A synthetic pair, made by a process of its own (it needs torch and memory)."""
    subprocess.run(
        [sys.executable, HERE / "make_pair.py", folder, "--layers", str(layers)], check=True
    )
    return folder


def compete(
    contenders: Sequence[Contender], repeats: int, folder: Path, say: Callable[[str], None]
) -> list[list[Usage]]:
    """Usages of each contender, in `repeats` rounds, one by one. Results: folder/NUMBER."""
    usages: list[list[Usage]] = [[] for _ in contenders]
    for round_number in range(repeats):
        for number, contender in enumerate(contenders):
            out = folder / f"{round_number}-{number}"
            out.mkdir()
            usage = run_measured(contender.command(out), clean_environment(), out / "log.txt")
            usages[number].append(usage)
            say(f"round {round_number + 1}, {contender.name}: {usage.wall:.1f} s")
    return usages


def usage_table(
    contenders: Sequence[Contender], usages: Sequence[Sequence[Usage]], counts: Sequence[int]
) -> Table:
    """Median times, largest memory, and how many times less than the first contender's they are."""
    rounds = f"median of {len(usages[0])}" if len(usages[0]) > 1 else "one run"
    table = comparison_table(
        f"Time ({rounds}) and largest memory; times less than {contenders[0].name}", contenders
    )
    measures: list[tuple[str, str, Callable[[Sequence[float]], float], float]] = [
        ("wall", "wall, s", statistics.median, 1),
        ("cpu", "CPU, s", statistics.median, 1),
        ("rss", "resident, GiB", max, GIB),
        ("anonymous", "anonymous, GiB", max, GIB),
    ]
    for name, text, over_rounds, unit in measures:
        values = [over_rounds([getattr(run, name) for run in runs]) / unit for runs in usages]
        table.add_row(
            text,
            f"{values[0]:.2f}",
            *(f"{value:.2f} ({values[0] / value:.1f}x)" for value in values[1:]),
        )
    table.add_row("spectra", *map(str, counts))
    return table


def agreement_table(contenders: Sequence[Contender], apart: Sequence[Differences]) -> Table:
    """How far the other contenders' figures are from the first one's."""
    title = f"Relative difference from {contenders[0].name} over all spectra: median (largest)"
    table = comparison_table(title, contenders[1:])
    for name in apart[0]:
        cells = [
            f"{median:.0e} ({largest:.0e})" for median, largest in (one[name] for one in apart)
        ]
        table.add_row(name if name in SAME else f"{name} (another fit)", *cells)
    return table


def comparison_table(title: str, contenders: Sequence[Contender]) -> Table:
    """A table with a column for each contender."""
    table = Table("", title=title, title_justify="left")
    for contender in contenders:
        table.add_column(contender.name, justify="right")
    return table


def main(
    weightwatcher_python: Annotated[
        Path,
        typer.Option(
            help="Python of an environment with weightwatcher==0.7.7 and torch.", dir_okay=False
        ),
    ],
    pair: Annotated[
        Path | None, typer.Option(help="Folder with base and tuned; made anew without it.")
    ] = None,
    layers: Annotated[
        int, typer.Option(help="Layers of the pair that is made.", min=1, max=WHOLE)
    ] = WHOLE,
    skip_embedding: Annotated[
        bool, typer.Option("--skip-embedding", help="Leave the embedding out of both.")
    ] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Also run shadow at precision exact.")
    ] = False,
    repeats: Annotated[int, typer.Option(help="Rounds.", min=1)] = 1,
    cores: Annotated[
        int | None, typer.Option(help="Pin everything to this many cores.", min=1)
    ] = None,
    shadow_program: Annotated[Path, typer.Option(help="The `shadow` command.")] = HERE.parent
    / ".venv/bin/shadow",
) -> None:
    """Time `shadow audit` against WeightWatcher on the same pair."""
    console, talk = Console(), Console(stderr=True)
    available = limit_cores(cores)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pair = pair.resolve() if pair else make_pair(folder / "pair", layers)
        console.print(f"{pair}: {layers_of(pair)} layers; {available} cores, no thread count set")
        warm(pair)
        precisions = ["default", *(["exact"] if exact else [])]
        contenders = [
            weightwatcher(weightwatcher_python, pair, skip_embedding),
            *(shadow(shadow_program, pair, precision, skip_embedding) for precision in precisions),
        ]
        usages = compete(contenders, repeats, folder, talk.print)
        outs = [folder / f"{repeats - 1}-{number}" for number in range(len(contenders))]
        figures = [contender.read(out) for contender, out in zip(contenders, outs, strict=True)]
        details = _details(outs[0])
    console.print(usage_table(contenders, usages, [len(found) for found in figures]))
    steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in details["seconds"].items())
    console.print(f"weightwatcher {details['version']}, last round: {steps}")
    apart = [differences(ours, figures[0]) for ours in figures[1:]]
    console.print(agreement_table(contenders, apart))
    if not all(one[name][1] <= AGREEMENT for one in apart for name in SAME):
        talk.print(f"they do not agree to {AGREEMENT:.0e}")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
