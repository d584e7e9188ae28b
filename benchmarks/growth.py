"""What does each level cost for a parameter, from layers of 0.5B to those of 70B? CPU seconds and
memory of audits of one layer.

Each audit is a fresh process of the `shadow` command, with no cache. What it takes to start, that
of an audit of one tiny matrix, is taken off its CPU time. --weightwatcher-python adds
WeightWatcher, whose import is counted too.
"""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Annotated

import typer
from make_pair import MODELS, Shape, config, layer, write_tensors
from processes import Usage, clean_environment, run_measured
from rich.filesize import decimal

HERE = Path(__file__).parent
SHADOW = Path(sys.executable).parent / "shadow"
EXPERTS = "60,000 experts"
TIERS = {  # options of `shadow audit`
    "norms": ("--level", "norms"),
    "sketch, delta": ("--level", "sketch", "--subjects", "delta"),
    "sketch": ("--level", "sketch"),
    "full, delta": ("--subjects", "delta"),
    "full": (),
}
WEIGHTWATCHER = "weightwatcher"
EVERYTHING = "1000000"  # a max_N of WeightWatcher that leaves nothing out
TINY: dict[str, Shape] = {"model.layers.0.mlp.up_proj.weight": (32, 32)}


def shapes_of(size: str) -> dict[str, Shape]:
    """The tensors of one layer."""
    if size == EXPERTS:
        return {
            f"model.layers.0.mlp.experts.{expert}.{part}_proj.weight": shape
            for expert in range(20_000)
            for part, shape in (("gate", (32, 128)), ("up", (32, 128)), ("down", (128, 32)))
        }
    return {f"model.layers.0.{name}": shape for name, shape in layer(MODELS[size]).items()}


def least(command: Callable[[Path], Sequence[str | Path]], repeats: int) -> Usage:
    """Of several runs of a command that is given a file or folder for its results."""
    runs = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            environment = clean_environment() | {"SHADOW_NO_CACHE": "1"}
            log = Path(folder) / "log"
            runs.append(run_measured(command(Path(folder) / "out"), environment, log))
    return min(runs, key=attrgetter("cpu"))


def main(
    size: Annotated[
        list[str] | None, typer.Option(help=f"Only these: {', '.join((*MODELS, EXPERTS))}.")
    ] = None,
    tier: Annotated[list[str] | None, typer.Option(help="Only these tiers.")] = None,
    jobs: Annotated[int, typer.Option(min=1)] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Of which the least counts.")] = 1,
    weightwatcher_python: Annotated[
        Path | None, typer.Option(help="Of an environment with weightwatcher==0.7.7 and torch.")
    ] = None,
) -> None:
    """Measure, and print a line for each size and tier."""
    with tempfile.TemporaryDirectory() as folder:
        pair = Path(folder) / "pair"
        sides = pair / "base", pair / "tuned"

        def cost(name: str, repeats: int) -> Usage:
            def command(out: Path) -> Sequence[str | Path]:
                if name == WEIGHTWATCHER and weightwatcher_python:
                    script = HERE / "weightwatcher_steps.py"
                    return [weightwatcher_python, script, *sides, EVERYTHING, out]
                more = ("--quiet", "--jobs", str(jobs), *TIERS[name])
                return [SHADOW, "audit", *sides, "-o", out, *more]

            return least(command, repeats)

        write_tensors(pair, TINY, config(1), seed=0, count=1)
        start = cost("full", 3).cpu
        print(f"start: {start:.2f} CPU s")
        for one in size or (*MODELS, EXPERTS):
            shutil.rmtree(pair)
            settings: dict[str, object] = {"model_type": "qwen3_moe", "num_experts": 20_000}
            shapes = shapes_of(one)
            write_tensors(
                pair, shapes, config(1, MODELS[one]) if one in MODELS else settings, 0, count=1
            )
            millions = sum(map(math.prod, shapes.values())) / 1e6
            for name in tier or (*TIERS, *([WEIGHTWATCHER] if weightwatcher_python else [])):
                used = cost(name, repeats)
                each = max(0.0, used.cpu - start) / millions
                print(
                    f"{one}, {millions:.0f} M parameters, {name}: {used.cpu:.1f} CPU s,"
                    f" {each:.3f} a million, {used.wall:.1f} s, {decimal(used.anonymous)}",
                    flush=True,
                )


if __name__ == "__main__":
    typer.run(main)
