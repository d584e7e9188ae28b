"""What an audit will take, before the first byte of a weight moves: sources, order, bytes, disk, memory."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from shadow.checkpoint import Checkpoint, Located
from shadow.errors import ShadowError
from shadow.pairing import MatrixPair, Side
from shadow.schedule import Schedule, Shard, schedule
from shadow.shards import TensorInfo
from shadow.source import ByteRanges, Source, WholeFile, coalesced

Fetch = Literal["auto", "shards", "ranges"]
WORTH_IT = 0.9  # ranges must save at least a tenth of a shard: they cannot be verified and do not stay in the cache


@dataclass(frozen=True)
class Access:
    """How checkpoints may be read: what one run decides and no number depends on.

    max_disk is the most disk in bytes that fetched shards may take at any time (None: what is free).
    """

    allow_pickle: bool = False
    offline: bool = False
    fetch: Fetch = "auto"
    max_disk: int | None = None


@dataclass(frozen=True)
class Plan:
    """What is left to do, and what it takes. All sizes are bytes.

    frees: fetched shards are removed from the Hub's cache at their last use. peak is the most disk that fetched
    bytes take at any time, report about what the report will, free what there is.
    """

    base: Checkpoint
    tuned: Checkpoint
    work: Schedule
    to_move: int
    frees: bool
    peak: int
    report: int
    free: int
    problem: str | None

    def require_disk(self) -> None:
        """Raises ShadowError, with the numbers, when the disk does not suffice."""
        if self.problem:
            raise ShadowError(self.problem, "free some space, move HF_HUB_CACHE, or audit less (--layer, --module)")


def make_plan(
    base: Checkpoint,
    tuned: Checkpoint,
    pairs: Sequence[MatrixPair],
    access: Access,
    *,
    filtered: bool,
    folder: Path,
    scratch: Path,
    ours: Collection[tuple[str, str, str]] = (),
) -> Plan:
    """Choose where every shard comes from, order the work, and see whether the disk suffices.

    folder is where the report goes, scratch where byte ranges may lie meanwhile. ours are the (repository, commit,
    path) of shards that an earlier run of this audit fetched to free them: they count as fetched by this one.
    """
    base = _with_sources(base, "base", pairs, access, filtered, scratch)
    tuned = _with_sources(tuned, "tuned", pairs, access, filtered, scratch)
    work = schedule(pairs, base, tuned)
    sources = {visit.shard: _source(base, tuned, visit.shard) for visit in work.visits}
    to_move = sum(source.bytes_to_move() for source in sources.values())
    is_ours = {shard: _is_ours(source, ours) for shard, source in sources.items()}
    whole, ranges = _sizes(sources, is_ours)
    report = sum(2_000 + 45 * min(pair.rows, pair.cols) for pair in pairs)  # journal and Parquet of three spectra
    places = _Places(whole, ranges, report, folder)
    ways = [(True, work), (True, work.unhurried())]
    if access.max_disk is None:
        ways.insert(0, (False, work))
    frees, chosen = next(((frees, way) for frees, way in ways if not places.lacks(way, frees, access)), ways[-1])
    problem = places.lacks(chosen, frees, access)
    if frees:
        base, tuned = _freeing(base, "base", is_ours), _freeing(tuned, "tuned", is_ours)
    peak = sum(places.peaks(chosen, frees))
    return Plan(base, tuned, chosen, to_move, frees and bool(whole), peak, report, places.free(), problem)


def require_disk_for_pickles(located: Located, access: Access) -> None:
    """`.bin` files must all be there before anything is known of them: refuse them if they do not fit."""
    from shadow.hub import cache_folder

    sources = [WholeFile(located.snapshot, located.snapshot.files[shard]) for shard in located.weights.shards]
    need, free = sum(source.bytes_to_move() for source in sources), _free(cache_folder())
    limit = free if access.max_disk is None else min(free, access.max_disk)
    if need > limit:
        raise ShadowError(
            f"{located.reference}: its .bin files need {size(need)} of disk all at once, {size(limit)} may be used",
            "free some space, move HF_HUB_CACHE, or raise --max-disk",
        )


def _source(base: Checkpoint, tuned: Checkpoint, shard: Shard) -> Source:
    return (base if shard[0] == "base" else tuned).sources[shard[1]]


def _with_sources(
    checkpoint: Checkpoint, side: Side, pairs: Sequence[MatrixPair], access: Access, filtered: bool, scratch: Path
) -> Checkpoint:
    """The checkpoint with byte ranges in the place of whole shards where those move clearly less."""
    wanted: dict[str, list[TensorInfo]] = {}
    for pair in pairs:
        operand = pair.base if side == "base" else pair.tuned
        if operand is not None:
            wanted.setdefault(operand.info.shard, []).append(operand.info)
    sources = dict(checkpoint.sources)
    for number, (shard, infos) in enumerate(sorted(wanted.items())):
        source = sources[shard]
        if isinstance(source, WholeFile) and _takes_ranges(source, infos, checkpoint, access, filtered):
            part = scratch / f"{side}-{number}.part"
            sources[shard] = ByteRanges(source.snapshot, source.file, tuple(infos), part)
    return replace(checkpoint, sources=sources)


def _takes_ranges(
    source: WholeFile, infos: Sequence[TensorInfo], checkpoint: Checkpoint, access: Access, filtered: bool
) -> bool:
    size = source.bytes_to_move()
    if access.fetch == "shards" or size == 0:
        return False
    if access.fetch == "ranges":
        if not checkpoint.ranges:
            raise ShadowError(f"{checkpoint.reference}: parts of its files cannot be asked for", "use --fetch shards")
        return True
    moved = sum(stop - start for start, stop in coalesced(infos))
    return filtered and checkpoint.ranges and moved < WORTH_IT * size


def _is_ours(source: Source, ours: Collection[tuple[str, str, str]]) -> bool:
    return isinstance(source, WholeFile) and source.identity in ours


def _sizes(sources: Mapping[Shard, Source], is_ours: Mapping[Shard, bool]) -> tuple[dict[Shard, int], dict[Shard, int]]:
    """The disk that each shard takes because of this audit: in the Hub's cache, and in scratch."""
    whole = {
        shard: source.file.size if is_ours[shard] else source.bytes_to_move()
        for shard, source in sources.items()
        if isinstance(source, WholeFile)
    }
    ranges = {shard: source.bytes_to_move() for shard, source in sources.items() if isinstance(source, ByteRanges)}
    return {**whole, **dict.fromkeys(ranges, 0)}, {**dict.fromkeys(whole, 0), **ranges}


def _freeing(checkpoint: Checkpoint, side: Side, is_ours: Mapping[Shard, bool]) -> Checkpoint:
    """The checkpoint with shards that go at their last use, but those that were there before."""
    sources = {
        name: replace(source, keep=False)
        if isinstance(source, WholeFile) and (source.bytes_to_move() or is_ours.get((side, name)))
        else source
        for name, source in checkpoint.sources.items()
    }
    return replace(checkpoint, sources=sources)


@dataclass(frozen=True)
class _Places:
    """The two disks that an audit writes to, which are often one: the Hub's cache, and the report's."""

    whole: Mapping[Shard, int]
    ranges: Mapping[Shard, int]
    report: int
    folder: Path

    def peaks(self, work: Schedule, frees: bool) -> tuple[int, int]:
        return work.peak(self.whole) if frees else sum(self.whole.values()), work.peak(self.ranges)

    def free(self) -> int:
        return _free(self._cache())

    def _cache(self) -> Path:
        if not any(self.whole.values()):
            return self.folder
        from shadow.hub import cache_folder

        return cache_folder()

    def lacks(self, work: Schedule, frees: bool, access: Access) -> str | None:
        """What is missing, in words with numbers; None when there is enough."""
        in_cache, in_scratch = self.peaks(work, frees)
        limit = access.max_disk
        if limit is not None and in_cache + in_scratch > limit:
            return f"fetched shards need {size(in_cache + in_scratch)} of disk at once, --max-disk allows {size(limit)}"
        needs = {self._cache(): in_cache, self.folder: in_scratch + self.report}
        if _device(self._cache()) == _device(self.folder):
            needs = {self._cache(): in_cache + in_scratch + self.report}
        return next(
            (
                f"{size(need)} of disk are needed at {place}, {size(_free(place))} are free"
                for place, need in needs.items()
                if need > _free(place)
            ),
            None,
        )


def _there(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())


def _free(path: Path) -> int:
    return shutil.disk_usage(_there(path)).free


def _device(path: Path) -> int:
    return _there(path).stat().st_dev


def size(count: float) -> str:
    """Bytes in decimal units, as disks and lines are sold."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
