"""The cost of an audit, before the first download: sources, order, bytes, disk.

Work is ordered by (base shard, natural name), so that each base shard is needed during one stretch
of work and the tuned shards arrive nearly in order. The stretches between the arrivals of new
shards are the *steps*.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from heapq import heappop, heappush
from pathlib import Path

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, MatrixPair, Side
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.sources import ByteRanges, Source, WholeFile, coalesced
from shadow.errors import ShadowError
from shadow.files import nearest_folder
from shadow.process_settings import uncollected
from shadow.reports.provenance import SIDES
from shadow.run.runtime import Access, AlignedPair
from shadow.run.settings import Settings
from shadow.text import byte_size, size_for

DISK_HINT = "free some space, move HF_HUB_CACHE, or audit less (--layer, --module)"
# where tasks share a machine
SHARED_HINT = (
    "give --max-disk, so that a machine has one task at a time and removes used shards, or free"
    " some space, move HF_HUB_CACHE, or audit less (--layer, --module)"
)
# ranges must save at least a tenth of a shard: they cannot be verified and do not stay in the cache
WORTH_IT = 0.9


@dataclass(frozen=True)
class Plan:
    """Remaining work and its cost; sizes are in bytes."""

    base: Checkpoint
    tuned: Checkpoint
    work: Schedule
    to_move: int
    """What comes over the network."""
    frees: bool
    """Whether fetched shards are removed from the Hub's cache at their last use."""
    peak: int
    """The most disk that they take at any time."""
    free: int
    fault: ShadowError | None
    """Why the disk does not suffice, with the numbers; None where it does."""

    def require_disk(self) -> None:
        """Raise ShadowError if the disk is too small."""
        if self.fault:
            raise self.fault


@uncollected()
def make_plan(
    aligned: AlignedPair,
    access: Access,
    *,
    folder: Path,
    scratch: Path,
    filtered: bool = True,
    done: Collection[str] = (),
    ours: Collection[tuple[str, str, str]] = (),
) -> Plan:
    """Choose sources, order the work, and check the disk.

    folder: of the report; scratch: of byte ranges. done: keys of pairs that are measured. ours:
    (repository, commit, path) of shards that an earlier run fetched to remove later.
    """
    pairs = [pair for pair in aligned.pairs if pair.key not in done]
    with_sources = partial(
        _with_sources, pairs=pairs, access=access, filtered=filtered, scratch=scratch
    )
    base = with_sources(aligned.base, "base")
    tuned = with_sources(aligned.tuned, "tuned")
    work = schedule(pairs, base, tuned)
    sources = {visit.shard: source_of(base, tuned, visit.shard) for visit in work.visits}
    fetched = set()
    whole = Counter[ShardKey]()
    ranges = Counter[ShardKey]()
    for shard, source in sources.items():
        size = source.bytes_to_move()
        if isinstance(source, ByteRanges):
            ranges[shard] = size
        elif isinstance(source, WholeFile):
            if not size and _is_ours(source, ours):
                fetched.add(shard)
                size = source.file.size
            whole[shard] = size
    cache = folder
    if any(whole.values()):
        from shadow.checkpoints.hub_client import cache_folder

        cache = cache_folder()
    disks = _Disks(whole, ranges, fetched, cache, folder, access.max_disk)
    ways = [(True, work), (True, work.unhurried())]
    if access.max_disk is None:
        at_once = (False, work.eager())
        if not access.owns_cache:
            ways.clear()
        ways.insert(0, at_once)
    for frees, chosen in ways:
        problem = disks.lack(chosen, frees)
        if not problem:
            break
    if frees:
        base = _freeing(base, ours)
        tuned = _freeing(tuned, ours)
    peak = sum(disks.peaks(chosen, frees))
    hint = DISK_HINT
    if not access.owns_cache:
        hint = SHARED_HINT
    if access.max_disk is not None and peak > access.max_disk:
        hint = f"give --max-disk {size_for(peak)} or more, or audit less (--layer, --module)"
    return Plan(
        base=base,
        tuned=tuned,
        work=chosen,
        to_move=sum(source.bytes_to_move() for source in sources.values()),
        frees=frees and bool(whole),
        peak=peak,
        free=_free(cache),
        fault=ShadowError(problem, hint) if problem else None,
    )


def require_disk_at_once(what: str, sources: Sequence[Source], access: Access) -> int:
    """Bytes that must be fetched before any is read. Raises ShadowError if they do not fit."""
    need = sum(source.bytes_to_move() for source in sources)
    if not need:
        return 0
    from shadow.checkpoints.hub_client import cache_folder

    limit = _free(cache_folder())
    hint = "free some space, or move HF_HUB_CACHE"
    if access.max_disk is not None and access.max_disk < limit:
        limit = access.max_disk
        hint = f"give --max-disk {size_for(need)} or more"
    if need > limit:
        disk = f"{byte_size(need)} of disk all at once, {byte_size(limit)} may be used"
        raise ShadowError(f"{what} need {disk}", hint)
    return need


def _with_sources(
    checkpoint: Checkpoint,
    side: Side,
    *,
    pairs: Sequence[MatrixPair],
    access: Access,
    filtered: bool,
    scratch: Path,
) -> Checkpoint:
    """The checkpoint with byte ranges instead of whole shards where they move
    clearly less.
    """
    wanted = defaultdict[str, list[TensorInfo]](list)
    for pair in pairs:
        if side in pair.operands:
            for info in pair.operands[side].infos:
                wanted[info.shard].append(info)
    sources = dict(checkpoint.sources)
    for number, (shard, infos) in enumerate(sorted(wanted.items())):
        source = sources[shard]
        size = source.bytes_to_move()
        if not isinstance(source, WholeFile) or not size or access.fetch == "shards":
            continue
        moved = sum(stop - start for start, stop in coalesced(infos))
        is_worth_it = filtered and moved < WORTH_IT * size
        if is_worth_it or access.fetch == "ranges":
            path = scratch / f"{side}-{number}.part"
            sources[shard] = ByteRanges(source.file, wanted=tuple(infos), path=path)
    return replace(checkpoint, sources=sources)


def _is_ours(source: WholeFile, ours: Collection[tuple[str, str, str]]) -> bool:
    """True if a shard is in the cache because this audit, or an earlier run of it, fetched
    it.
    """
    return source.fetched or source.identity in ours


def _freeing(checkpoint: Checkpoint, ours: Collection[tuple[str, str, str]]) -> Checkpoint:
    """The checkpoint with shards removed after their last use, unless they were there
    before.
    """
    sources = dict(checkpoint.sources)
    for shard, source in checkpoint.sources.items():
        if not isinstance(source, WholeFile):
            continue
        if source.bytes_to_move() or _is_ours(source, ours):
            sources[shard] = replace(source, keep=False)
    return replace(checkpoint, sources=sources)


@dataclass(frozen=True)
class _Disks:
    """The two disks that an audit writes to, often the same: the Hub's cache, and the report's."""

    whole: Mapping[ShardKey, int]
    """Bytes in the Hub's cache because of this audit, by shard;"""
    ranges: Mapping[ShardKey, int]
    """and in the folder of the report."""
    fetched: Collection[ShardKey]
    """Shards that take their part of the cache's disk already."""
    cache: Path
    """The folder of fetched shards; that of the report if none are fetched."""
    folder: Path
    limit: int | None

    def peaks(self, work: Schedule, frees: bool) -> tuple[int, int]:
        in_cache = sum(self.whole.values())
        if frees:
            in_cache = work.peak(self.whole, self.fetched)
        return in_cache, work.peak(self.ranges)

    def lack(self, work: Schedule, frees: bool) -> str | None:
        """The disk space that is missing, in words with numbers; None if there is enough."""
        in_cache, in_scratch = self.peaks(work, frees)
        peak = in_cache + in_scratch
        if not peak:
            return None  # only a report is written: if that fails, it says so and goes on later
        if self.limit is not None and peak > self.limit:
            need = f"{byte_size(peak)} of disk at once"
            return f"fetched shards need {need}, --max-disk allows {byte_size(self.limit)}"
        more = in_cache - sum(self.whole[shard] for shard in self.fetched)
        needs = {self.cache: more, self.folder: in_scratch}
        devices = {nearest_folder(folder).stat().st_dev for folder in needs}
        if len(devices) == 1:
            needs = {self.cache: more + in_scratch}
        for folder, size in needs.items():
            free = _free(folder)
            if size > free:
                need = f"{byte_size(size)} of disk are needed at {folder}"
                return f"{need}, {byte_size(free)} are free"
        return None


def _free(path: Path) -> int:
    return shutil.disk_usage(nearest_folder(path)).free


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

    def peak(self, sizes: Mapping[ShardKey, int], fetched: Collection[ShardKey] = ()) -> int:
        """Most bytes on the disk if each shard goes after its last use. fetched: at the start."""
        most = 0
        held = sum(sizes[visit.shard] for visit in self.visits if visit.shard in fetched)
        # (last step, bytes) of what has come, the first to go on top
        leaving: list[tuple[int, int]] = []
        reached = 0  # the step that the work has certainly reached when a visit's fetching begins
        for visit in self.visits:
            reached = max(reached, visit.after)
            size = sizes[visit.shard]
            if visit.shard not in fetched:
                held += size
            heappush(leaving, (visit.last, size))
            while leaving and leaving[0][0] < reached:
                _, gone = heappop(leaving)
                held -= gone
            most = max(most, held)
        return most

    def eager(self) -> Schedule:
        """The schedule with shards fetched at once, if none is removed.

        Otherwise a large matrix left the network idle for a quarter of a download.
        """
        visits = [replace(visit, after=0) for visit in self.visits]
        return Schedule(self.steps, tuple(visits))

    def unhurried(self) -> Schedule:
        """The same without fetching ahead: less disk space, but the work waits for every shard."""
        visits = [replace(visit, after=visit.first) for visit in self.visits]
        return Schedule(self.steps, tuple(visits))


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
        only_step = sorted(pairs, key=lambda pair: pair.key)
        return Schedule((tuple(only_step),), ())
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
    visits = []
    previous = {"base": 0, "tuned": 0}  # the first step of the shard before
    for (side, shard), step in first.items():
        key = (side, shard)
        visit = Visit(key, first=step, last=last[key], after=previous[side])
        visits.append(visit)
        previous[side] = step
    return Schedule(tuple(map(tuple, steps)), tuple(visits))


def shards_of(pair: MatrixPair) -> list[ShardKey]:
    """The shards of a pair's tensors."""
    used: dict[ShardKey, None] = {}  # in order
    for side, operand in pair.operands.items():
        for info in operand.infos:
            used[side, info.shard] = None
    return list(used)


def source_of(base: Checkpoint, tuned: Checkpoint, shard: ShardKey) -> Source:
    """The source of the bytes of a shard."""
    side, name = shard
    return (base if side == "base" else tuned).sources[name]


def sources_of(pair: MatrixPair, base: Checkpoint, tuned: Checkpoint) -> list[Source]:
    """The sources of the shards of a pair."""
    return [source_of(base, tuned, shard) for shard in shards_of(pair)]


def in_order(pairs: Sequence[MatrixPair]) -> list[MatrixPair]:
    """Sort by base shard, then by name with numbers in order; pairs without a base come last."""
    sorts_as = cache(natural)  # of shards: there are few, and each is in many pairs
    latest: dict[str, str] = {}  # by tuned shard: how its last base shard sorts
    for pair in pairs:
        if pair.base:
            shard = pair.tuned.info.shard
            base_shard = sorts_as(pair.base.info.shard)
            latest[shard] = max(latest.get(shard, ""), base_shard)

    def key(pair: MatrixPair) -> tuple[object, ...]:
        info = pair.base.info if pair.base else pair.tuned.info
        shard = sorts_as(info.shard)
        if pair.base is None:
            shard = latest.get(info.shard, shard)
        return shard, pair.base is None, natural(info.name), pair.key

    return sorted(pairs, key=key)


def natural(name: str) -> str:
    """Make a sort key that orders numbers: `layers.10` after `layers.9`."""
    return re.sub(r"\d{1,18}", lambda number: f"\0{int(number.group()):018}", name)


Summed = Mapping[str, Sequence[tuple[Side, TensorInfo]]]  # by key of a pair: tensors of either side


def summed_with(aligned: AlignedPair, settings: Settings) -> Summed:
    """The tensors whose checksums are computed with each pair; of chosen pairs, those it
    reads.

    Not for level norms, where that takes longer than measuring.
    """
    if not settings.method.has_spectra:
        return {}
    is_filtered = settings.chosen != Filter()
    sums: defaultdict[str, list[tuple[Side, TensorInfo]]] = defaultdict(list)
    for side in SIDES:
        checkpoint = aligned.base if side == "base" else aligned.tuned
        known: set[str] = set()
        readers: dict[str, str] = {}  # by shard: the key of the first pair that reads it
        for pair in aligned.pairs:
            operand = pair.operands.get(side)
            if operand is None:
                continue
            for info in operand.infos:
                readers.setdefault(info.shard, pair.key)
            for info in operand.named:
                if info.name not in known:
                    known.add(info.name)
                    sums[pair.key].append((side, info))
        if is_filtered or not aligned.pairs:
            continue
        for skip in aligned.skipped:
            info = skip.info
            if skip.side != side or info.name in known or skip.status != "skipped":
                continue
            reader = readers.get(info.shard)
            if reader is None and checkpoint.sources[info.shard].is_local:
                reader = aligned.pairs[0].key
            if reader is not None:
                known.add(info.name)
                sums[reader].append((side, info))
    return sums
