"""What audits of toy checkpoints are given, and what they wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from shadow.audits.runtime import Progress
from shadow.targets.families import Pair, given_pair
from shadow.targets.references import parse_reference


class StoppedError(Exception):
    """What stops an audit in a test."""


def stopped_after(count: int) -> Callable[[Progress], None]:
    """A `show` that stops the audit once so many matrices are measured."""

    def show(progress: Progress) -> None:
        if progress.done >= count:
            raise StoppedError

    return show


def pair_of(base: Path, tuned: Path) -> Pair:
    """The pair of two folders."""
    return given_pair(parse_reference(str(base)), parse_reference(str(tuned)))


def report_contents(folder: Path) -> dict[str, object]:
    """The data of every table of a report and the bytes of its summary."""
    return {
        path.name: pq.read_table(path).to_pylist()
        if path.suffix == ".parquet"
        else path.read_bytes()
        for path in sorted(folder.iterdir())
    }


def contents(output: Path) -> dict[str, object]:
    """Every report below an output folder, by its name."""
    return {
        str(folder.relative_to(output)): report_contents(folder)
        for folder in sorted(output.glob("*/*"))
        if folder.is_dir()
    }
