"""What do engines cost and save? The overhead of a task, a list on one and on two workers, and a
fleet in simulation.

`python engine.py overhead` sends --tasks tasks that do nothing through each engine.
`python engine.py list` audits --pairs synthetic pairs of one base in this process and on Ray with
one and with two workers. Both start a Ray of this machine.

`python engine.py simulate` computes, without any Ray, what --pairs pairs on --nodes machines move
and take. It assumes:

- pairs of --bases bases, of which number k has a share of the pairs that falls as 1/k, in random
  order;
- checkpoints of 3, 16, 30 and 140 GB (half, a third, an eighth, the rest of the bases), tuned as
  large as base;
- machines of 16 cores, four pairs at a time, with a line of 250 MB/s that these share equally;
- 4 cores compute a pair of 16 GB in 900 s, and compute while the pair is fetched;
- a cache that holds all that its machine has fetched.

It compares the order of the list (what an engine does by itself), one task for each base, and the
queue of shadow.audits.engine. Whole indexes are written as shadow.audits.list_index says, half a
second and 9 MB each.
"""

from __future__ import annotations

import heapq
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from processes import clean_environment
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from safetensors.torch import save_file

from shadow.audits.engine import InProcess, Queue, Task
from shadow.audits.list_index import EVERY, SHARE
from shadow.audits.pair import Runtime
from shadow.audits.ray_engine import Ray, ray_engine

app = typer.Typer()
LANES = 4
LINE = 250e6  # bytes a second of a machine
COMPUTE = 16e9 / 900  # bytes of one side a second, on the cores of one pair
# seconds and bytes of one whole index of 10,000 pairs, measured (many_pairs.py)
INDEX = 0.5, 9_000_000
ROW = 900  # bytes that a pair adds to rows.jsonl


def nothing(runtime: Runtime) -> int:
    return 0


@app.command()
def overhead(tasks: Annotated[int, typer.Option(min=1)] = 200) -> None:
    """Time tasks that do nothing."""
    table = Table(
        "engine", "start, s", "first task, s", "a task, ms", "CPU of the driver a task, ms"
    )

    def run(engine: Any, started: float, name: str) -> None:
        ready = time.perf_counter()
        engine.submit(Task("first", nothing, Runtime))
        list(engine.as_completed())
        first = time.perf_counter()
        cpu = time.process_time()
        for number in range(tasks):
            engine.submit(Task(str(number), nothing, Runtime))
        assert len(list(engine.as_completed())) == tasks
        each, cpu = (time.perf_counter() - first) / tasks, (time.process_time() - cpu) / tasks
        table.add_row(
            name,
            f"{ready - started:.1f}",
            f"{first - ready:.1f}",
            f"{1e3 * each:.2f}",
            f"{1e3 * cpu:.2f}",
        )

    run(InProcess(), time.perf_counter(), "this process")
    started = time.perf_counter()
    with ray_engine(Ray(cpus_per_task=1), Runtime()) as engine:
        run(engine, started, f"Ray, {engine.lanes()} workers")
    Console().print(table)


@app.command("list")
def a_list(
    pairs: Annotated[int, typer.Option(min=1)] = 8,
    matrices: Annotated[int, typer.Option(min=1)] = 24,
    side: Annotated[int, typer.Option(min=2)] = 768,
) -> None:
    """Time a list in this process, and on Ray with one and with two workers."""
    table = Table(
        "how",
        "wall, s",
        "CPU of the driver, s",
        title=f"{pairs} pairs of {matrices} matrices of side {side}",
    )
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(matrices)]
        base = {name: torch.randn(side, side).bfloat16() for name in names}
        entries = []
        for number in range(pairs + 1):
            target = folder / str(number)
            target.mkdir()
            changed = {
                name: (t.float() + 0.01 * number * torch.randn(side, side)).bfloat16()
                for name, t in base.items()
            }
            save_file(changed, target / "model.safetensors")
            (target / "config.json").write_text('{"model_type": "llama"}')
            entries += [f"- {{base: ./0, tuned: ./{number}}}\n"] if number else []
        (folder / "list.yaml").write_text("".join(entries))
        ways = {
            "this process, one thread": ("--jobs", "1"),
            "Ray, one worker of one core": (
                "--jobs",
                "1",
                "--engine",
                "ray",
                "--cpus-per-task",
                str(os.cpu_count()),
            ),
            "Ray, a worker for each core": ("--engine", "ray", "--cpus-per-task", "1"),
        }
        for number, (name, options) in enumerate(ways.items()):
            command = [
                sys.executable, "-m", "shadow", "audit", "--list", folder / "list.yaml", "--quiet",
                "--no-cache", "-o", folder / f"out-{number}", *options,
            ]  # fmt: skip
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(
                list(map(str, command)),
                env=clean_environment(),
                check=True,
                stdout=subprocess.DEVNULL,
            )
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
            table.add_row(name, f"{time.perf_counter() - started:.1f}", f"{cpu:.1f}")
    Console().print(table)


# A fleet that is computed


@dataclass(frozen=True)
class Work:
    """A pair of the simulation: its base, and the bytes of one side."""

    base: int
    size: float


def fleet(pairs: int, bases: int, seed: int) -> list[Work]:
    draw = random.Random(seed)
    sizes = draw.choices([3e9, 16e9, 30e9, 140e9], [1 / 2, 1 / 3, 1 / 8, 1 / 24], k=bases)
    chosen = draw.choices(range(bases), [1 / (number + 1) for number in range(bases)], k=pairs)
    return [Work(base, sizes[base]) for base in chosen]


@dataclass(frozen=True)
class Told:
    """What a simulated fleet took."""

    moved: float  # bytes over the network
    fetches: float  # of each base, on the mean
    span: float  # seconds until the last pair has ended
    idle: float  # share of the time of all lanes in which there was nothing to do


def simulate(work: Sequence[Work], nodes: int, take: Callable[[int], Work | None]) -> Told:
    """Lanes that take work until there is none."""
    lanes = [(0.0, node) for node in range(nodes) for _ in range(LANES)]
    heapq.heapify(lanes)
    have: list[set[int]] = [set() for _ in range(nodes)]
    moved, busy, span, fetches = 0.0, 0.0, 0.0, 0
    while lanes:
        now, node = heapq.heappop(lanes)
        one = take(node)
        if one is None:
            continue
        bytes_now = one.size
        if one.base not in have[node]:
            have[node].add(one.base)
            fetches += 1
            bytes_now += one.size
        seconds = max(bytes_now / (LINE / LANES), one.size / COMPUTE)
        moved, busy, span = moved + bytes_now, busy + seconds, max(span, now + seconds)
        heapq.heappush(lanes, (now + seconds, node))
    bases = len({one.base for one in work})
    return Told(moved, fetches / bases, span, 1 - busy / (span * nodes * LANES))


def in_order(work: Sequence[Work]) -> Callable[[int], Work | None]:
    """What comes next on the list, whoever asks."""
    waiting = deque(work)
    return lambda node: waiting.popleft() if waiting else None


def by_queue(work: Sequence[Work]) -> Callable[[int], Work | None]:
    """The queue of shadow."""
    queue, of_task = Queue(), {}
    for number, one in enumerate(work):
        task = Task(str(number), nothing, Runtime, str(one.base))
        of_task[task] = one
        queue.put(task)

    def take(node: int) -> Work | None:
        task = queue.take(str(node))
        return None if task is None else of_task[task]

    return take


def whole_bases(work: Sequence[Work]) -> list[tuple[float, int]]:
    """By base: bytes of one side, and how many pairs it has; the longest first."""
    counts = Counter(one.base for one in work)
    sizes = {one.base: one.size for one in work}
    return sorted(
        ((sizes[base], count) for base, count in counts.items()),
        key=lambda group: -group[0] * group[1],
    )


def one_task_a_base(work: Sequence[Work], nodes: int) -> Told:
    """Each base is a task, whose pairs follow one another in one lane; the longest tasks first."""
    lanes = [0.0] * (nodes * LANES)
    groups = whole_bases(work)
    moved = busy = 0.0
    for size, count in groups:
        now = heapq.heappop(lanes)
        seconds = max(2 * size / (LINE / LANES), size / COMPUTE) + (count - 1) * max(
            size / (LINE / LANES), size / COMPUTE
        )
        moved, busy = moved + size * (count + 1), busy + seconds
        heapq.heappush(lanes, now + seconds)
    return Told(moved, 1.0, max(lanes), 1 - busy / (max(lanes) * len(lanes)))


@app.command("simulate")
def simulation(
    pairs: Annotated[int, typer.Option(min=1)] = 10_000,
    nodes: Annotated[int, typer.Option(min=1)] = 100,
    bases: Annotated[int, typer.Option(min=1)] = 400,
    seed: int = 0,
) -> None:
    """Compute what a fleet moves and takes."""
    work = fleet(pairs, bases, seed)
    table = Table(
        "order",
        "moved",
        "fetches of a base",
        "hours",
        "idle",
        "whole indexes",
        "index bytes",
        title=f"{pairs:,} pairs, {nodes} machines",
    )
    ways = {
        "of the list": simulate(work, nodes, in_order(work)),
        "one task a base": one_task_a_base(work, nodes),
        "queue": simulate(work, nodes, by_queue(work)),
    }
    for name, told in ways.items():
        seconds, size = INDEX[0] * pairs / 10_000, INDEX[1] * pairs // 10_000
        writes = 2 + int(told.span / max(EVERY, SHARE * seconds))
        written = decimal(int(writes * size + ROW * pairs))
        figures = (
            decimal(int(told.moved)),
            f"{told.fetches:.1f}",
            f"{told.span / 3600:.1f}",
            f"{100 * told.idle:.1f} %",
        )
        table.add_row(name, *figures, f"{writes:,}", written)
    Console(width=120).print(table)


if __name__ == "__main__":
    app()
