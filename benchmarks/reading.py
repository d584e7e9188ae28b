"""The cost of a pass over the entries beside `cat`: CPU seconds of norms, of the sweep of `whole`,
and of norms where layers are at other numbers, over two layers of a 7B. Medians of five.

    python benchmarks/reading.py
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import growth

import shadow
from shadow.checkpoints.opening import open_folder
from shadow.run.runtime import Runtime, gather_together
from shadow.run.scan import sweep
from shadow.run.workers import single_threads


def cat(sides: Sequence[Path]) -> None:
    files = [side / growth.WEIGHTS for side in sides]
    subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)


def swept(folder: Path, sides: Sequence[Path]) -> None:
    for side in sides:
        checkpoint = open_folder(str(side), allow_pickle=False, scratch=folder, file=None)
        with single_threads():
            gathering = sweep(checkpoint, checkpoint.tensors.values(), Runtime(jobs=1), folder)
            gather_together([gathering])


def norms(folder: Path, sides: Sequence[Path]) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as output:
        shadow.audit(*map(str, sides), output=output, jobs=1, level="norms")


def exchange(side: Path) -> None:
    """Give the two layers each other's numbers."""
    with (side / growth.WEIGHTS).open("r+b") as file:
        names = file.read(1 << 14)
        first, second, none = b"layers.0.", b"layers.1.", b"layers.#."
        file.seek(0)
        file.write(names.replace(first, none).replace(second, first).replace(none, second))


def seconds(step: Callable[[], None]) -> float:
    """CPU seconds of this process and its children, the median of five after one more."""
    costs = []
    for _ in range(6):
        before = os.times()
        step()
        costs.append(sum(os.times()[:4]) - sum(before[:4]))
    return median(costs[1:])


def main() -> None:
    os.environ["SHADOW_NO_CACHE"] = "1"
    one_layer = growth.shapes_of("7B")
    shapes = {
        name.replace(".0.", f".{at}."): one for at in range(2) for name, one in one_layer.items()
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = folder / "base", folder / "tuned"
        growth.write_pair(
            sides, shapes, growth.config(growth.MODELS["7B"]) | {"num_hidden_layers": 2}
        )
        costs = {
            "cat": seconds(partial(cat, sides)),
            "norms": seconds(partial(norms, folder, sides)),
        }
        costs["sweep"] = seconds(partial(swept, folder, sides))
        exchange(sides[1])
        costs["norms, layers exchanged"] = seconds(partial(norms, folder, sides))
    for what, cost in costs.items():
        ratios = cost / costs["cat"], cost / costs["norms"]
        print(f"| {what} | {cost:.2f} | {ratios[0]:.1f} | {ratios[1]:.2f} |")
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    print(f"{model and model[1]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
