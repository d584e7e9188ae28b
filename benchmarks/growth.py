"""What does each tier cost for a parameter, from layers of 0.5B to those of 70B? CPU seconds and
memory of audits of one layer.

Each audit is a fresh process of the `shadow` command, with no cache. What it takes to start, that
of an audit of one tiny matrix, is taken off its CPU time. Every figure goes into --out as soon as
it is there, and the same command goes on from there. A tier that this version does not have is left
out. --weightwatcher-python adds WeightWatcher, whose import is counted too.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import typer
from make_pair import MODELS, Shape, config, layer, write_tensors
from processes import Usage, clean_environment, run_measured
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

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
ENVIRONMENT = clean_environment() | {"SHADOW_NO_CACHE": "1"}
EVERYTHING = 1_000_000  # a max_N of WeightWatcher that leaves nothing out


def shapes_of(size: str) -> dict[str, Shape]:
    """The tensors of one layer."""
    if size == EXPERTS:
        return {
            f"model.layers.0.mlp.experts.{expert}.{part}_proj.weight": shape
            for expert in range(20_000)
            for part, shape in (("gate", (32, 128)), ("up", (32, 128)), ("down", (128, 32)))
        }
    return {f"model.layers.0.{name}": shape for name, shape in layer(MODELS[size]).items()}


def audit(pair: Path, options: tuple[str, ...], jobs: int) -> Usage:
    """One audit, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [SHADOW, "audit", pair / "base", pair / "tuned", "-o", Path(folder) / "out"]
        command += ["--quiet", "--jobs", str(jobs), *options]
        return run_measured(command, ENVIRONMENT, Path(folder) / "log")


def weightwatcher(python: Path, pair: Path) -> Usage:
    """The three steps that give the same subjects."""
    with tempfile.TemporaryDirectory() as folder:
        script, out = HERE / "weightwatcher_steps.py", Path(folder) / "out"
        command = [python, script, pair / "base", pair / "tuned", str(EVERYTHING), out]
        return run_measured(command, ENVIRONMENT, Path(folder) / "log")


def table_of(found: dict[str, Any]) -> Table:
    """What is there, in the order of shapes and tiers."""
    table = Table(title="one layer, whole audits")
    for column in ("shapes", "M parameters", "tier", "CPU, s", "CPU s / M", "of 0.5B", "of full",
                   "wall, s", "anonymous"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("shapes", "tier") else "right")

    def a_million(size: str, tier: str) -> float | None:
        used = found.get(f"{size} / {tier}")
        return used and max(0.0, used["cpu"] - found["start"]["cpu"]) / millions(size)

    for size in (*MODELS, EXPERTS):
        for tier in (*TIERS, WEIGHTWATCHER):
            each, small, full = (
                a_million(*key) for key in ((size, tier), ("0.5B", tier), (size, "full"))
            )
            if each is None:
                continue
            used = found[f"{size} / {tier}"]
            table.add_row(
                size, f"{millions(size):.0f}", tier, f"{used['cpu']:.1f}", f"{each:.3f}",
                f"{each / small:.2f}" if small else "", f"{each / full:.3f}" if full else "",
                f"{used['wall']:.1f}", decimal(used["anonymous"]),
            )  # fmt: skip
    return table


def millions(size: str) -> float:
    """Parameters of one side."""
    return sum(map(math.prod, shapes_of(size).values())) / 1e6


def main(
    out: Annotated[Path, typer.Option(help="Where figures are kept, as JSON.")],
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
    """Measure what is not in --out yet, and print all of it."""
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    talk = Console(stderr=True)
    cpu = attrgetter("cpu")

    def note(key: str, value: dict[str, float]) -> None:
        found[key] = value
        out.write_text(json.dumps(found, indent=2) + "\n")
        talk.print(f"{key}: {value.get('cpu', 0.0):.2f} CPU s")

    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny"
        if "start" not in found:
            shapes: dict[str, Shape] = {"model.layers.0.mlp.up_proj.weight": (32, 32)}
            write_tensors(tiny, shapes, config(1), seed=0, count=1)
            note("start", vars(min((audit(tiny, (), jobs) for _ in range(3)), key=cpu)))
        for one in size or (*MODELS, EXPERTS):
            pair = Path(folder) / one.replace(" ", "-")
            asked = tier or (*TIERS, *([WEIGHTWATCHER] if weightwatcher_python else []))
            for name in asked:
                if f"{one} / {name}" in found:
                    continue
                if not pair.exists():
                    settings: dict[str, object] = {"model_type": "qwen3_moe", "num_experts": 20_000}
                    if one in MODELS:
                        settings = config(1, MODELS[one])
                    write_tensors(pair, shapes_of(one), settings, seed=0, count=1)
                try:
                    runs = [
                        weightwatcher(weightwatcher_python, pair)
                        if name == WEIGHTWATCHER and weightwatcher_python
                        else audit(pair, TIERS[name], jobs)
                        for _ in range(repeats)
                    ]
                except RuntimeError as error:
                    talk.print(f"{one} / {name}: left out: {str(error).splitlines()[-1]}")
                    continue
                note(f"{one} / {name}", vars(min(runs, key=cpu)))
            shutil.rmtree(pair, ignore_errors=True)
    Console().print(table_of(found))


if __name__ == "__main__":
    typer.run(main)
