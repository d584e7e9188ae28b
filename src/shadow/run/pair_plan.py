"""The plan of a pair from headers alone, as shown by `shadow plan`."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shadow.checkpoints.opening import AnyCheckpoint, Checkpoint
from shadow.checkpoints.pairing import Filter, Skipped
from shadow.checkpoints.sources import ByteRanges
from shadow.dtypes import FLOATS
from shadow.errors import ShadowError
from shadow.files import report_folder
from shadow.run.machine import (
    PROCESS,
    default_jobs,
    kinds,
    lacking,
    machine_limits,
    pace,
    worker_memory,
)
from shadow.run.plan import make_plan, source_of
from shadow.run.runtime import Runtime
from shadow.run.settings import Settings
from shadow.run.sides import client_for, find_sides, line_up, pickled_part, references_of
from shadow.spectra.costs import cost_of
from shadow.summary.record import SkippedRow
from shadow.targets.families import Pair
from shadow.text import byte_size

SHORTEST = 0.01  # seconds that any audit takes: less is no estimate
EXAMPLES = 3  # tensors named for each reason


@dataclass(frozen=True)
class PlannedSide:
    """One checkpoint of a pair to audit."""

    repo: str
    """Its name on the Hub, or its folder."""
    commit: str | None
    """40 hexadecimal digits; None for a folder."""
    access: str | None
    """Whether the Hub asks for an account or a licence; None where it does not."""
    shards: int
    bytes: int
    dtypes: list[str]
    parameters: int
    """Entries of its tensors of floats."""


@dataclass(frozen=True)
class PairPlan:
    """The plan of a pair on this machine; sizes are in bytes."""

    family: str
    pair: str
    base: PlannedSide
    tuned: PlannedSide
    matrices: int
    vectors: int
    skipped: list[SkippedRow]
    """A row for each reason to skip tensors, the most tensors first."""
    shards_to_fetch: int
    shards_in_ranges: int
    """How many of these come as byte ranges, which no checksum covers."""
    bytes_to_move: int
    """What comes over the network."""
    frees: bool
    """Whether fetched shards are removed at their last use."""
    disk_peak: int
    """Of fetched shards at any time, at most."""
    disk_free: int
    problem: str | None
    """Why disk or memory do not suffice; None where they do."""
    jobs: int
    cores: int
    """Cores that this process may use."""
    cores_by: str
    """What limits them, in words."""
    memory_free: int
    memory_by: str
    """What limits it, in words."""
    memory: int
    seconds: float
    """Of computing on this machine, 0.01 or more."""
    device: str
    """cpu, or the kind of device that makes Gram matrices."""
    device_name: str | None
    hint: str | None = None
    """What to do about the problem."""

    def as_json(self) -> dict[str, Any]:
        """The text that `shadow plan --format json` prints."""
        return {name: value for name, value in asdict(self).items() if name != "hint"}


def plan_pair(pair: Pair, settings: Settings, output: Path, runtime: Runtime) -> PairPlan:
    """Plan the audit of a pair from headers alone.

    Writes only small files into the Hub's cache. Raises ShadowError where run_pair would.
    """
    folder = output / report_folder(pair.family, pair.name)
    with tempfile.TemporaryDirectory() as unpacked, client_for(references_of(pair)):
        scratch = Path(unpacked)
        base, tuned = find_sides(pair, runtime, scratch)
        part = pickled_part(base) or pickled_part(tuned)
        if part is not None:
            need = sum(part.listing.files[shard].size for shard in part.weights.shards)
            raise ShadowError(
                f"{part.reference}: listing its .bin files needs a download of {byte_size(need)}",
                "`shadow audit --allow-pickle` downloads and reads them",
            )
        aligned = line_up(base, tuned, settings.chosen, runtime, scratch=scratch)
        method = settings.method
        plan = make_plan(
            aligned,
            runtime.access,
            folder=folder,
            scratch=folder,
            filtered=settings.chosen != Filter(),
        )
        matrices = [matrix for matrix in aligned.pairs if matrix.is_matrix]
        sources = [source_of(plan.base, plan.tuned, visit.shard) for visit in plan.work.visits]
        machine = machine_limits()
        of_memory = kinds(aligned.pairs)
        jobs = runtime.jobs or default_jobs(of_memory, machine, method)
        fault = plan.fault or lacking(of_memory, machine, method)
        shapes = Counter(matrix.shape for matrix in matrices)
        cost = cost_of(method)
        work = sum(count * cost.on(shape).operations(shape) for shape, count in shapes.items())
        return PairPlan(
            family=pair.family,
            pair=pair.name,
            base=_side(base, plan.base),
            tuned=_side(tuned, plan.tuned),
            matrices=len(matrices),
            vectors=len(aligned.pairs) - len(matrices),
            skipped=_reasons(aligned.skipped),
            shards_to_fetch=len(sources),
            shards_in_ranges=sum(isinstance(source, ByteRanges) for source in sources),
            bytes_to_move=plan.to_move,
            frees=plan.frees,
            disk_peak=plan.peak,
            disk_free=plan.free,
            problem=fault.message if fault else None,
            hint=fault.hint if fault else None,
            jobs=jobs,
            cores=machine.cores,
            cores_by=machine.cores_by,
            memory_free=machine.memory,
            memory_by=machine.memory_by,
            memory=PROCESS + jobs * worker_memory(of_memory, method),
            seconds=max(float(f"{work / pace(method, jobs):.2g}"), SHORTEST),
            device=settings.device.kind,
            device_name=settings.device.name,
        )


def _side(located: AnyCheckpoint, checkpoint: Checkpoint) -> PlannedSide:
    infos = [info for info in checkpoint.tensors.values() if not info.problem]
    return PlannedSide(
        repo=checkpoint.reference,
        commit=checkpoint.commit,
        access=None if isinstance(located, Checkpoint) else located.access,
        shards=len(checkpoint.sources),
        bytes=sum(info.stored_size for info in infos),
        dtypes=sorted({info.dtype for info in infos}),
        parameters=sum(info.parameters for info in infos if info.packing or info.dtype in FLOATS),
    )


def _reasons(skipped: Sequence[Skipped]) -> list[SkippedRow]:
    """Counts by reason, with a few names and the first detail, as in a summary."""
    groups = defaultdict[str, list[Skipped]](list)
    for tensor in skipped:
        groups[tensor.reason or tensor.status].append(tensor)
    return [
        SkippedRow(
            reason=reason,
            tensors=len(group),
            base=sum(tensor.side == "base" for tensor in group),
            tuned=sum(tensor.side == "tuned" for tensor in group),
            examples=list(dict.fromkeys(tensor.info.name for tensor in group))[:EXAMPLES],
            detail=next((tensor.detail for tensor in group if tensor.detail), None),
        )
        for reason, group in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
