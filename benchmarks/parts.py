"""How much memory does the driver of a pair in parts take, for more and more expert matrices?

Made up: --matrices expert matrices (several numbers, to see the growth) of hidden x width entries,
as many_experts.py writes them. The memory is that of the driver alone, anonymous pages only, while
parts are measured and taken over, and while the report is written.

`python parts.py copied` measures the matrices of one layer and gives their outcomes to all others
of the same module, so that 60,000 take minutes: the driver does and holds what it would, and only
its numbers are not true. `python parts.py audited` measures every matrix, on Ray, and with --whole
in one process too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from many_experts import write
from processes import clean_environment
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from shadow.audits.engine import Ended, InProcess, Watch
from shadow.audits.journal import Journal
from shadow.audits.outcome import Outcome
from shadow.audits.pair import run_pair
from shadow.audits.parts import Parts
from shadow.audits.runtime import AlignedPair, Asked, Runtime, Settings
from shadow.checkpoints.pairing import Filter
from shadow.spectra.delta import Method
from shadow.targets.families import Pair, given_pair
from shadow.targets.references import parse_reference

app = typer.Typer()
EXPERTS = 128
SHADOW: tuple[str, ...] = (sys.executable, "-m", "shadow", "audit")


@dataclass
class Memory:
    """Most anonymous memory of one process, in bytes: while it waits for parts, and after that."""

    measuring: int = 0
    writing: int = 0


def measured(command: Sequence[str | Path], output: Path, log: Path) -> tuple[Memory, float]:
    """Run a command; its memory, and its wall time in seconds."""
    memory, started = Memory(), time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=file,
            stderr=file,
            env={**clean_environment(), "SHADOW_NO_CACHE": "1"},
        )
        sampler = threading.Thread(target=_sample, args=(process, output, memory))
        sampler.start()
        code = process.wait()
        sampler.join()
    if code:
        raise RuntimeError(log.read_text()[-2000:])
    return memory, time.monotonic() - started


def _sample(process: subprocess.Popen[bytes], output: Path, memory: Memory) -> None:
    begun = False
    while process.poll() is None:
        parts = list(output.glob("*/*/.partial/parts/*"))
        begun = begun or bool(parts)
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            return
        now = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)
        if begun and not parts:
            memory.writing = max(memory.writing, now)
        else:
            memory.measuring = max(memory.measuring, now)
        time.sleep(0.1)


class Copied(InProcess):
    """Parts whose matrices have the outcomes of others of the same module."""

    def __init__(self, known: Mapping[str, Outcome]) -> None:
        super().__init__()
        self._by_module = {json.loads(key)[3]: outcome for key, outcome in known.items()}

    def as_completed(self, watch: Watch | None = None) -> Generator[Ended, None, None]:
        while self._waiting:
            task = self._waiting.popleft()
            _, _, identity, keys, folder = task.work.args  # type: ignore[attr-defined]
            journal = Journal(folder, identity)
            for key in keys:
                journal.add(replace(self._by_module[json.loads(key)[3]], key=key))
            journal.close()
            yield Ended(task, folder, None)


@app.command()
def driver(folder: Path, parts: int) -> None:
    """Be the driver of `copied`, and print its memory: at the start, to the report, to the end."""
    settings = Settings(Method(subspaces=False), Filter())
    known: dict[str, Outcome] = {}

    class Noting(Parts):
        def measure(self, asked: Asked, lined: AlignedPair, journal: Journal) -> None:
            super().measure(asked, lined, journal)
            known.update({key: journal.outcomes[key] for key in journal.outcomes})

    def pair(name: str) -> Pair:
        return given_pair(
            *(parse_reference(str(folder / name / side)) for side in ("base", "tuned"))
        )

    few = run_pair(
        pair("few"), settings, folder / "few-out", Runtime(elsewhere=Noting(InProcess(), 1).measure)
    )
    assert few.measured
    most, ended = {"started": _anonymous(), "measuring": 0, "writing": 0}, threading.Event()
    phase = ["measuring"]

    def sample() -> None:
        while not ended.wait(0.02):
            most[phase[0]] = max(most[phase[0]], _anonymous())

    class Telling(Parts):
        def measure(self, asked: Asked, lined: AlignedPair, journal: Journal) -> None:
            super().measure(asked, lined, journal)
            phase[0] = "writing"

    thread = threading.Thread(target=sample)
    thread.start()
    started = time.monotonic()
    engine = Copied(known)
    runtime = Runtime(elsewhere=Telling(engine, parts).measure)
    run_pair(pair("many"), settings, folder / "many-out", runtime)
    ended.set()
    thread.join()
    sys.stdout.write(json.dumps({**most, "seconds": time.monotonic() - started}))


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@app.command()
def copied(
    matrices: Annotated[
        str, typer.Option(help="Numbers of expert matrices.")
    ] = "15000,30000,60000",
    parts: Annotated[int, typer.Option(min=1)] = 16,
    hidden: Annotated[int, typer.Option(min=2)] = 128,
    width: Annotated[int, typer.Option(min=2)] = 96,
) -> None:
    """Measure the memory of the driver, with outcomes that are copies."""
    table = Table("matrices", "s", "at the start", "until the report", "writing it", "report")
    for count in map(int, matrices.split(",")):
        layers = -(-count // (3 * EXPERTS))
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            for side, seed in (("base", None), ("tuned", 1)):
                write(folder / "few" / side, 1, EXPERTS, hidden, width, seed)
                write(folder / "many" / side, layers, EXPERTS, hidden, width, seed)
            command = [sys.executable, __file__, "driver", str(folder), str(parts)]
            told = json.loads(
                subprocess.run(command, capture_output=True, check=True, text=True).stdout
            )
            report = sum(
                path.stat().st_size for path in (folder / "many-out").rglob("*") if path.is_file()
            )
            figures = (decimal(told[name]) for name in ("started", "measuring", "writing"))
            table.add_row(
                f"{3 * EXPERTS * layers:,}", f"{told['seconds']:.0f}", *figures, decimal(report)
            )
    Console().print(table)


@app.command()
def audited(
    matrices: Annotated[
        str, typer.Option(help="Numbers of expert matrices.")
    ] = "15000,30000,60000",
    parts: Annotated[int, typer.Option(min=1)] = 4,
    hidden: Annotated[int, typer.Option(min=2)] = 16,
    width: Annotated[int, typer.Option(min=2)] = 12,
    whole: bool = False,
) -> None:
    """Measure the memory of the driver."""
    table = Table("matrices", "how", "wall, s", "measuring", "writing", "report")
    for count in map(int, matrices.split(",")):
        layers = -(-count // (3 * EXPERTS))
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            for side, seed in (("base", None), ("tuned", 1)):
                write(folder / side, layers, EXPERTS, hidden, width, seed)
            pair = (folder / "base", folder / "tuned", "--no-subspaces", "--quiet", "-o")
            ways: dict[str, tuple[str, ...]] = {
                "parts": ("--engine", "ray", "--cpus-per-task", "1", "--parts", str(parts))
            }
            if whole:
                ways["whole"] = ("--jobs", str(os.cpu_count()))
            for name, options in ways.items():
                memory, wall = measured(
                    [*SHADOW, *pair, folder / name, *options], folder / name, folder / "log"
                )
                report = sum(
                    path.stat().st_size for path in (folder / name).rglob("*") if path.is_file()
                )
                of_matrices = f"{3 * EXPERTS * layers:,}"
                figures = (
                    decimal(memory.measuring),
                    decimal(memory.writing) if memory.writing else "",
                    decimal(report),
                )
                table.add_row(of_matrices, name, f"{wall:.0f}", *figures)
    Console().print(table)


if __name__ == "__main__":
    app()
