"""What `--verbose` says of an audit, in lines for people: its settings, both sides, each matrix,
and the time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from shadow.checkpoints.held_files import Reading
from shadow.checkpoints.opening import Checkpoint, Found
from shadow.checkpoints.pairing import MatrixPair, Side, Skipped
from shadow.checkpoints.sources import ByteRanges, Source, WholeFile
from shadow.run.outcome import Outcome
from shadow.run.plan import Plan
from shadow.run.schedule import source_of
from shadow.run.settings import Settings
from shadow.text import byte_size, counted, several, took

NAMED = 3  # tensors that a line names


def of_settings(settings: Settings) -> str:
    """What the report depends on besides its checkpoints: `settings: precision default, ...`."""
    method = settings.method
    filters = [
        f"{name} {', '.join(map(str, values))}"
        for name, values in vars(settings.chosen).items()
        if values
    ]
    parts = [
        f"level {method.level}",
        f"spectra of {method.subjects}",
        counted(method.nulls, "sampled null", "sampled nulls"),
        f"spectra {'written' if settings.spectra else 'not written'}",
        f"only {'; '.join(filters)}" if filters else "every matrix",
    ]
    return f"settings: {', '.join(parts)}"


def of_found(side: Side, found: Found) -> str:
    """`base: org/name, commit 0123...`, or `base: ./name, a folder`."""
    return (
        f"{side}: {found.reference},"
        f" {'a folder' if found.commit is None else f'commit {found.commit}'}"
    )


def of_plan(
    plan: Plan, skipped: Sequence[Skipped], *, jobs: int, cache: Path | None
) -> Iterator[str]:
    """Both sides, what is skipped and why, and what does the work."""
    sides: dict[Side, Checkpoint] = {"base": plan.base, "tuned": plan.tuned}
    for side, checkpoint in sides.items():
        yield f"{side}: {_side(side, checkpoint, plan)}"
    groups = defaultdict[tuple[str, Side], list[str]](list)
    for tensor in skipped:
        groups[tensor.reason or tensor.status, tensor.side].append(tensor.info.name)
    for (reason, side), names in groups.items():
        yield (
            f"skipped, {reason}: {counted(len(names), 'tensor', 'tensors')} of {side}:"
            f" {several(names, NAMED)}"
        )
    kept = "no cache of spectra" if cache is None else f"spectra cached in {cache}"
    yield f"{counted(jobs, 'worker', 'workers')}, {kept}"


def _side(side: Side, checkpoint: Checkpoint, plan: Plan) -> str:
    """`4 shards, 15.2 GB, BF16; 7.6 GB to download`."""
    infos = [info for info in checkpoint.tensors.values() if not info.problem]
    formats = Counter[str]()
    for info in infos:
        formats[info.dtype] += info.end - info.start
    parts = [
        counted(len(checkpoint.sources), "shard", "shards"),
        byte_size(formats.total()),
        " and ".join(name for name, _ in formats.most_common()) or "no tensor",
    ]
    shards = {visit.shard for visit in plan.work.visits if visit.shard[0] == side}
    if not shards:
        return ", ".join(parts)
    to_move = sum(source_of(plan.base, plan.tuned, shard).bytes_to_move() for shard in shards)
    download = "all that is needed is in the Hub's cache"
    if to_move:
        download = f"{byte_size(to_move)} to download"
    return f"{', '.join(parts)}; {download}"


def of_source(source: Source) -> str:
    """A shard whose turn it is: what is downloaded of it, or that it is in the cache."""
    assert isinstance(source, ByteRanges | WholeFile), "the others are not fetched"
    part = "parts of " if isinstance(source, ByteRanges) else ""
    size = source.bytes_to_move()
    how = f"downloading {byte_size(size)}" if size else "in the cache of the Hub"
    return f"{part}{source.file.path}: {how}"


def of_outcome(pair: MatrixPair, outcome: Outcome) -> str:
    """`model.layers.0.mlp.up_proj.weight, 176 x 64: measured in 0.1 s, 2 spectra from the cache`"""
    expert = "" if pair.place.expert is None else f", expert {pair.place.expert}"
    size = (
        f"{pair.rows} x {pair.cols}" if pair.is_matrix else f"vector of {max(pair.rows, pair.cols)}"
    )
    if outcome.status == "skipped":
        fate = f"skipped, {outcome.reason}" + (f" ({outcome.detail})" if outcome.detail else "")
    else:
        spectra = (
            f", {counted(outcome.cached, 'spectrum', 'spectra')} from the cache"
            if outcome.cached
            else ""
        )
        fate = f"{outcome.status} in {_brief(outcome.seconds)}{spectra}"
    return f"{pair.tuned.info.name}{expert}, {size}: {fate}"


def _brief(seconds: float) -> str:
    return took(seconds) if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def of_time(seconds: float, busy: float, jobs: int, read: Reading) -> str:
    """How long measuring took, the share of it that the workers had something to do, and how much
    of that was reading files.

    busy: seconds of all workers together. The rest is waiting: for a download, or for the last
    matrix of another worker. read: what they read in that time.
    """
    share = min(1.0, busy / (seconds * jobs)) if seconds else 0.0
    reading = min(1.0, read.seconds / busy) if busy else 0.0
    rate = f" at {byte_size(round(read.size / read.seconds))} a second" if read.seconds else ""
    return (
        f"time: {took(seconds)} to measure; {counted(jobs, 'worker', 'workers')} busy"
        f" {100 * share:.0f} % of it: {100 * reading:.0f} % of that reading {byte_size(read.size)}"
        f" of files{rate}, {100 * (1 - reading):.0f} % computing"
    )
