"""The audit of one pair into one folder: a function of the pair, the settings and the folder."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy
import torch

from shadow import __version__
from shadow.audit import audit, cost, default_jobs
from shadow.checkpoint import Checkpoint, open_folder
from shadow.delta import Method
from shadow.diagnostics import SCHEMA
from shadow.errors import ShadowError
from shadow.pairing import Filter, MatrixPair, pair_checkpoints
from shadow.registry import ComponentBase, Pair, Reference
from shadow.report import (
    PARTIAL,
    Identity,
    Journal,
    belongs_to,
    finished_metadata,
    remove_empty,
    safe_name,
    write_report,
    write_whole,
    writing,
)
from shadow.summary import Summary, read_summary, summarise, summary_bytes

UNPACKED = "unpacked"  # raw copies of old `.bin` files, inside .partial while an audit runs
STRICT = (
    "shape_differs",
    "nonfinite",
    "quantized",
    "unknown_dtype",
    "unreadable",
    "only_in_base",
    "only_in_tuned",
)


@dataclass(frozen=True)
class Settings:
    """Everything about an audit that its numbers or files depend on, except the two checkpoints."""

    method: Method
    chosen: Filter
    spectra: bool = True


@dataclass(frozen=True)
class Progress:
    """Told before the first and after every matrix. costs are in the units of `audit.cost`."""

    done: int
    total: int
    cost_done: int
    cost_total: int


@dataclass(frozen=True)
class Result:
    """A finished report. measured is how many matrices this run measured itself; 0 when the report was there."""

    folder: Path
    summary: Summary
    measured: int
    provenance: dict[str, Any]

    @property
    def should_not_have_skipped(self) -> list[str]:
        """Reasons that `--strict` objects to."""
        return [row["reason"] for row in self.summary.skipped if row["reason"] in STRICT]


def run_pair(
    pair: Pair,
    settings: Settings,
    output: Path,
    *,
    jobs: int | None = None,
    allow_pickle: bool = False,
    say: Callable[[str], None] = lambda text: None,
    show: Callable[[Progress], None] = lambda progress: None,
) -> Result:
    """Audit one pair into `output/<family>/<pair>/` and return its report.

    Goes on where an interrupted run of the same pair, settings and version stopped; measures nothing when the
    report is already there. say gets one line for people now and then, show the progress.
    Raises ShadowError; whatever happens, no half-written report is left.
    """
    folder = output / safe_name(pair.family) / safe_name(pair.name)
    there = next(parent for parent in (output, *output.absolute().parents) if parent.is_dir())
    try:
        return _run(pair, settings, folder, jobs, allow_pickle, say, show)
    finally:
        shutil.rmtree(folder / PARTIAL / UNPACKED, ignore_errors=True)
        remove_empty(folder.absolute() / PARTIAL, there.absolute())


def _run(
    pair: Pair,
    settings: Settings,
    folder: Path,
    jobs: int | None,
    allow_pickle: bool,
    say: Callable[[str], None],
    show: Callable[[Progress], None],
) -> Result:
    scratch = folder / PARTIAL / UNPACKED
    base = _open(pair.base, allow_pickle, scratch / "base")
    tuned = _open(pair.tuned, allow_pickle, scratch / "tuned")
    stored = {**asdict(settings), "relation": pair.relation}
    identity = Identity(__version__, SCHEMA, pair.family, pair.name, _side(base), _side(tuned), stored)
    if done := _already_done(folder, identity, say):
        return done
    pairs, skipped = pair_checkpoints(base, tuned, settings.chosen)
    started, clock = datetime.now(UTC), time.monotonic()
    matrices = {one.key for one in pairs if one.is_matrix}
    journal = Journal(folder, identity)
    try:
        resumed = len(journal.outcomes.keys() & matrices)
        if resumed:
            say(f"resuming: {resumed} of {len(matrices)} matrices already measured")
        _measure(base, tuned, pairs, settings.method, jobs or default_jobs(pairs), journal, show)
        provenance = _provenance(settings, started, time.monotonic() - clock)
        write_report(folder, identity, provenance, pairs, skipped, journal.outcomes, settings.spectra)
        summary = summarise(folder, identity.as_json())
        with writing(folder):
            write_whole(folder / "summary.json", summary_bytes(summary))
    except BaseException:
        journal.close()
        raise
    journal.remove()
    return Result(folder, summary, len(matrices) - resumed, {**identity.as_json(), **provenance})


def _measure(
    base: Checkpoint,
    tuned: Checkpoint,
    pairs: Sequence[MatrixPair],
    method: Method,
    jobs: int,
    journal: Journal,
    show: Callable[[Progress], None],
) -> None:
    """Measure what the journal does not hold yet, into the journal."""
    costs = {one.key: cost(one) for one in pairs}
    total, spent = sum(costs.values()), sum(costs.get(key, 0) for key in journal.outcomes)
    show(Progress(len(journal.outcomes), len(costs), spent, total))
    for outcome in audit(base, tuned, pairs, method, jobs, frozenset(journal.outcomes)):
        journal.add(outcome)
        spent += costs[outcome.key]
        show(Progress(len(journal.outcomes), len(costs), spent, total))


def _open(reference: Reference | ComponentBase, allow_pickle: bool, scratch: Path) -> Checkpoint:
    if isinstance(reference, ComponentBase):
        components = " and ".join(component for component, _ in reference.parts)
        raise ShadowError(
            f"the pair has a base per component, which this version does not audit yet ({components})",
            "compare one of them: --base ./DIR --tuned ./DIR --component NAME",
        )
    if not reference.is_folder:
        raise ShadowError(
            f"{reference.repo} is on the Hub, which this version does not read yet",
            f"fetch it with `hf download {reference.repo} --local-dir DIR` and name the folder: ./DIR",
        )
    return open_folder(reference.repo, allow_pickle=allow_pickle, scratch=scratch)


def _side(checkpoint: Checkpoint) -> dict[str, str | None]:
    return {"repo": checkpoint.reference, "commit": checkpoint.commit, "fingerprint": checkpoint.fingerprint}


def _already_done(folder: Path, identity: Identity, say: Callable[[str], None]) -> Result | None:
    try:
        metadata = finished_metadata(folder)
    except ShadowError:  # a broken report is measured again
        return None
    if metadata is None:
        return None
    if metadata["schema"] == SCHEMA and belongs_to(metadata, identity):
        summary, provenance = read_summary(folder)
        say("nothing to measure: the report is already there")
        return Result(folder, summary, 0, provenance)
    for side in ("base", "tuned") if metadata["schema"] == SCHEMA else ():
        before, now = metadata[side]["repo"], identity.as_json()[side]["repo"]
        if before != now:
            raise ShadowError(
                f"{folder} holds the report of another pair ({side} {before})",
                "choose another folder with -o",
            )
    say("starting afresh: the report there was made from other files, settings or another version")
    return None


def _provenance(settings: Settings, started: datetime, seconds: float) -> dict[str, Any]:
    return {
        "seed": settings.method.seed,
        "compute_dtype": {
            "default": "float32 Gram, float64 eigenvalues",
            "exact": "float64 Gram, float64 eigenvalues",
            "fast": "float32 Gram, float32 eigenvalues",
        }[settings.method.precision],
        "device": "cpu",
        "libraries": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
        },
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
    }
