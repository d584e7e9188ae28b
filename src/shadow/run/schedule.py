"""The order of work, and when each shard arrives and goes, computed before the first download.

Work is ordered by (base shard, natural name), so that each base shard is needed during one stretch
of work and the tuned shards arrive nearly in order. The stretches between the arrivals of new
shards are the *steps*.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from heapq import heappop, heappush
from itertools import accumulate

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, MatrixPair, Side
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.sources import Source
from shadow.reports.provenance import SIDES
from shadow.run.runtime import AlignedPair
from shadow.run.settings import Settings
from shadow.spectra.solvers import solver_of

ShardKey = tuple[Side, str]


@dataclass(frozen=True)
class Visit:
    """The stay of one shard on the disk; each side is fetched at most one shard ahead."""

    shard: ShardKey
    first: int
    """The first step that needs it, from 0."""
    last: int
    after: int
    """It may be fetched once every step before this one is finished."""


@dataclass(frozen=True)
class Schedule:
    """The order of the work and of the shards that it needs."""

    steps: tuple[tuple[MatrixPair, ...], ...]
    """The pairs that are measured while the same shards are there, step by step."""
    visits: tuple[Visit, ...]
    """In the order of fetching; shards in folders have none."""

    def peak(self, sizes: Mapping[ShardKey, int], there: Collection[ShardKey] = ()) -> int:
        """Most bytes on the disk if each shard goes after its last use. there: at the start."""
        most = 0
        held = sum(sizes[stay.shard] for stay in self.visits if stay.shard in there)
        leaving: list[
            tuple[int, int]
        ] = []  # (last step, bytes) of what has come, the first to go on top
        # for each visit, the step that the work has certainly reached when its fetching begins
        reached_steps = accumulate((visit.after for visit in self.visits), max)
        for visit, reached in zip(self.visits, reached_steps, strict=True):
            size = sizes[visit.shard]
            held += 0 if visit.shard in there else size
            heappush(leaving, (visit.last, size))
            while leaving and leaving[0][0] < reached:
                held -= heappop(leaving)[1]
            most = max(most, held)
        return most

    def eager(self) -> Schedule:
        """The schedule with shards fetched at once, if none is removed.

        Otherwise a large matrix left the network idle for a quarter of a download.
        """
        return Schedule(self.steps, tuple(replace(visit, after=0) for visit in self.visits))

    def unhurried(self) -> Schedule:
        """The same without fetching ahead: less disk space, but the work waits for every shard."""
        return Schedule(
            self.steps, tuple(replace(visit, after=visit.first) for visit in self.visits)
        )


def schedule(pairs: Sequence[MatrixPair], base: Checkpoint, tuned: Checkpoint) -> Schedule:
    """Order pairs into steps, and find when each fetched shard arrives and may be removed."""
    checkpoints: dict[Side, Checkpoint] = {"base": base, "tuned": tuned}
    remote = {
        (side, shard)
        for side, checkpoint in checkpoints.items()
        for shard, source in checkpoint.sources.items()
        if not source.is_local
    }
    if not remote:
        # One step: any order does.
        return Schedule((tuple(sorted(pairs, key=lambda pair: pair.key)),), ())
    steps: list[list[MatrixPair]] = [[]]
    first: dict[ShardKey, int] = {}
    last: dict[ShardKey, int] = {}
    for pair in in_order(pairs):
        shards = [shard for shard in shards_of(pair) if shard in remote]
        new = [shard for shard in shards if shard not in first]
        if new and steps[-1]:
            steps.append([])
        first |= dict.fromkeys(new, len(steps) - 1)
        last |= dict.fromkeys(shards, len(steps) - 1)
        steps[-1].append(pair)
    visits, previous = [], {"base": 0, "tuned": 0}
    for shard, step in first.items():
        visits.append(Visit(shard, first=step, last=last[shard], after=previous[shard[0]]))
        previous[shard[0]] = step
    return Schedule(tuple(tuple(step) for step in steps), tuple(visits))


def shards_of(pair: MatrixPair) -> list[ShardKey]:
    """Return the shards of a pair's tensors."""
    used = ((side, info.shard) for side in SIDES for info in infos_of(side, pair))
    return list(dict.fromkeys(used))


def infos_of(side: Side, pair: MatrixPair) -> tuple[TensorInfo, ...]:
    """Return the tensors of a pair on this side; none if it has no base."""
    operand = pair.base if side == "base" else pair.tuned
    return () if operand is None else operand.infos


def named_of(side: Side, pair: MatrixPair) -> tuple[TensorInfo, ...]:
    """Return those of them that tables name."""
    operand = pair.base if side == "base" else pair.tuned
    return () if operand is None else operand.named


def source_of(base: Checkpoint, tuned: Checkpoint, shard: ShardKey) -> Source:
    """Return where the bytes of a shard come from."""
    side, name = shard
    return (base if side == "base" else tuned).sources[name]


def in_order(pairs: Sequence[MatrixPair]) -> list[MatrixPair]:
    """Sort by base shard, then by name with numbers in order; pairs without a base come last."""
    beside = defaultdict[str, set[str]](set)  # base shards by the tuned shard that they meet
    for pair in pairs:
        if pair.base:
            beside[pair.tuned.info.shard].add(pair.base.info.shard)
    latest = {shard: max(base_shards, key=natural) for shard, base_shards in beside.items()}
    sorts_as = cache(natural)  # of shards: there are few, and each is in many pairs

    def key(pair: MatrixPair) -> tuple[object, ...]:
        if pair.base:
            info = pair.base.info
            return (sorts_as(info.shard), False, natural(info.name), pair.key)
        info = pair.tuned.info
        shard = latest.get(info.shard, info.shard)
        return (sorts_as(shard), True, natural(info.name), pair.key)

    return sorted(pairs, key=key)


def natural(name: str) -> str:
    """Make a sort key that orders numbers: `layers.10` after `layers.9`."""
    return re.sub(r"\d{1,18}", lambda number: f"\0{int(number.group()):018}", name)


Summed = Mapping[str, Sequence[tuple[Side, TensorInfo]]]  # by key of a pair: tensors of either side


def summed_with(aligned: AlignedPair, settings: Settings) -> Summed:
    """Return the tensors whose checksums are computed with each pair; of chosen pairs, those it
    reads.

    Not for level norms, where that takes longer than measuring.
    """
    unfiltered = settings.chosen == Filter()
    if not solver_of(settings.method).has_spectra:
        return {}
    sums: defaultdict[str, list[tuple[Side, TensorInfo]]] = defaultdict(list)
    for side in SIDES:
        checkpoint = aligned.base if side == "base" else aligned.tuned
        known: set[str] = set()
        readers: dict[str, str] = {}  # by shard: the key of the first pair that reads it
        for pair in aligned.pairs:
            for info in infos_of(side, pair):
                readers.setdefault(info.shard, pair.key)
            for info in named_of(side, pair):
                if info.name not in known:
                    known.add(info.name)
                    sums[pair.key].append((side, info))
        if not unfiltered or not aligned.pairs:
            continue
        for skip in aligned.skipped:
            if skip.side != side or skip.info.name in known or skip.status != "skipped":
                continue
            reader = readers.get(skip.info.shard)
            if reader is None and checkpoint.sources[skip.info.shard].is_local:
                reader = aligned.pairs[0].key
            if reader is not None:
                known.add(skip.info.name)
                sums[reader].append((side, skip.info))
    return sums
