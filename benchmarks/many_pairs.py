"""What does the index of a long list cost? CPU seconds and bytes of --pairs audits that do nothing.

Every pair is `audited` by a function that says at once that it failed, after --seconds of sleep (a
real audit takes minutes). --first stops after so many pairs and says what the rest would take at
the same pace.
"""

from __future__ import annotations

import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal

from shadow.audits.list_audit import audit_list
from shadow.audits.pair import Settings
from shadow.checkpoints.pairing import Filter
from shadow.errors import ShadowError
from shadow.spectra.delta import Method
from shadow.targets.families import Pair
from shadow.targets.lists import Selection
from shadow.targets.references import Reference


def written_bytes() -> int:
    """What this process has handed to write calls, from /proc."""
    told = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(told["wchar"])


def main(
    pairs: Annotated[int, typer.Option(min=1)] = 10_000,
    first: Annotated[int | None, typer.Option(min=1)] = None,
    seconds: Annotated[float, typer.Option(min=0.0)] = 0.0,
) -> None:
    """Time the index of a long list."""
    made = tuple(
        Pair(f"family-{number:05d}", "base..instruct", Reference(f"org/model-{number}", False),
             Reference(f"org/model-{number}-instruct", False))
        for number in range(pairs)
    )  # fmt: skip

    def fail(*arguments: Any, **options: Any) -> Any:
        time.sleep(seconds)
        raise ShadowError("org/model is private or missing", "run once without --offline")

    with tempfile.TemporaryDirectory() as folder:
        audited = audit_list(
            Selection(made, made), Settings(Method(), Filter()), Path(folder), audit=fail
        )
        cpu, bytes_before, count = time.process_time(), written_bytes(), 0
        for _ in islice(audited, first):
            count += 1
        audited.close()  # type: ignore[attr-defined]
        cpu, moved = time.process_time() - cpu, written_bytes() - bytes_before
    told = f"{count:,} of {pairs:,} pairs: {cpu:.1f} s of CPU, {decimal(moved)} written"
    if count < pairs:
        told += (
            f"; all at this pace: {cpu / count * pairs / 60:.0f} min,"
            f" {decimal(moved // count * pairs)}"
        )
    Console().print(told)


if __name__ == "__main__":
    typer.run(main)
