"""How fast are two checkpoints compared entry by entry, beside `cat` of their files?

DIR has base and tuned, as make_pair.py writes them; the files are read once before, so that they
lie in memory. Each round runs, one after another: `cat` of all files; `shadow audit --norms`;
`shadow verify same` and `shadow verify stored`, which asks what a copy kept; and a pass as it was
before 0.2.0 was finished, which held both whole tensors and worked in parts of 262,144 entries. The
start of a command, that of the same on the demo, is taken off. The least of the rounds counts.
Where other programs run beside it, compare CPU seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from shadow.checkpoints.opening import open_folder
from shadow.spectra.spectrum import Sides, Workspace, tiles

DEMO = Path(__file__).parents[1] / "registry" / "demo"


Took = tuple[float, float]  # seconds, and CPU seconds


def took(work: Callable[[], object]) -> Took:
    """How long some work takes, that of other processes for it included."""
    began, before = time.perf_counter(), sum(os.times()[:4])
    work()
    return time.perf_counter() - began, sum(os.times()[:4]) - before


def least(times: list[Took]) -> Took:
    """The least of each, of several rounds."""
    return min(wall for wall, _ in times), min(busy for _, busy in times)


def cat(files: list[Path]) -> None:
    subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)


def shadow(words: list[str], base: Path, tuned: Path) -> None:
    """A command on two checkpoints; a claim that does not hold is no fault."""
    with tempfile.TemporaryDirectory() as out:
        more = ["-o", out, "--no-cache"] if words[0] == "audit" else []
        command = [sys.executable, "-m", "shadow", *words, base, tuned, *more]
        done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode not in (0, 4, 5):
        raise SystemExit(done.stderr.decode())


def earlier(folders: list[Path], jobs: int) -> None:
    """Changed entries, three energies and an inner product of every tensor, in the earlier way."""
    base, tuned = (open_folder(f"{folder.absolute()}") for folder in folders)

    def compare(name: str) -> None:
        torch.set_num_threads(1)
        first, second = base.tensor(base.tensors[name]), tuned.tensor(tuned.tensors[name])
        if first.ndim != 2:
            return
        sides = Sides(first, second, torch.float32, Workspace())
        for index, _ in tiles(second):
            raw = first[index], second[index]
            torch.equal(*(part.view(torch.int16) for part in raw))
            b, t = sides.read(index)
            np.count_nonzero(np.not_equal(b.numpy(), t.numpy()))
            for one, other in ((b, b), (t, t), (b, t)):
                float(torch.dot(one.view(-1), other.view(-1)))
            t.sub_(b)
            float(torch.dot(t.view(-1), t.view(-1)))

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(compare, base.tensors))


def main(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Has base and tuned, in BF16.")],
    rounds: Annotated[int, typer.Option(min=1, help="The least of so many counts.")] = 3,
) -> None:
    sides = [folder / side for side in ("base", "tuned")]
    files = [path for side in sides for path in sorted(side.glob("*.safetensors"))]
    size = sum(path.stat().st_size for path in files) / 1e9
    cat(files)
    commands = {
        "shadow audit --norms": ["audit", "--norms"],
        "shadow verify same": ["verify", "same"],
        "shadow verify stored": ["verify", "stored"],
    }
    works: dict[str, Callable[[], object]] = {"cat": partial(cat, files)}
    starts: dict[str, Callable[[], object]] = {}
    for name, words in commands.items():
        works[name] = partial(shadow, words, *(side.absolute() for side in sides))
        starts[name] = partial(shadow, words, DEMO / "base", DEMO / "narrow")
    works["the earlier pass"] = partial(earlier, sides, os.cpu_count() or 1)
    rows: dict[str, list[Took]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            rows[name].append(took(work))
    began = {name: least([took(start) for _ in range(rounds)]) for name, start in starts.items()}
    table = Table("what", "s", "CPU s", "of start", "GB/s", "of cat", "GB/CPU s", "of cat")
    of_cat = least(rows["cat"])
    for name, times in rows.items():
        start = began.get(name, (0.0, 0.0))
        wall, busy = (max(1e-3, a - b) for a, b in zip(least(times), start, strict=True))
        table.add_row(
            name,
            f"{wall:.2f}",
            f"{busy:.2f}",
            f"{start[1]:.2f}" if name in began else "",
            f"{size / wall:.2f}",
            f"{100 * of_cat[0] / wall:.0f} %",
            f"{size / busy:.2f}",
            f"{100 * of_cat[1] / busy:.0f} %",
        )
    Console().print(f"{size:.2f} GB", table)


if __name__ == "__main__":
    typer.run(main)
