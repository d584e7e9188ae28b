"""What an audit will take, before the first byte moves: sources, order, bytes, disk, memory."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shadow.checkpoints.opening import Checkpoint, Located
from shadow.checkpoints.pairing import MatrixPair, Side
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.sources import ByteRanges, Source, WholeFile, coalesced
from shadow.errors import ShadowError
from shadow.files import nearest_folder
from shadow.process_settings import uncollected
from shadow.run.runtime import Access
from shadow.run.schedule import Schedule, ShardKey, infos_of, schedule, source_of
from shadow.spectra.measurement import Method
from shadow.spectra.solvers import solver_of
from shadow.text import byte_size, size_for

DISK_HINT = "free some space, move HF_HUB_CACHE, or audit less (--layer, --module)"
# where tasks share a machine
SHARED_HINT = (
    "give --max-disk, so that a machine has one task at a time and removes used shards, or free"
    " some space, move HF_HUB_CACHE, or audit less (--layer, --module)"
)
# bytes on the disk, measured: of a matrix in the journal beside its spectra, and of its rows and
# tables; of a vector in either; of a tensor that is not compared; of all files whatever they hold
A_LINE, A_ROW, A_VECTOR, A_SKIP, FILES = 5_000, 6_000, 800, 350, 52_000
BASE64 = 4 / 3  # characters of a byte
# ranges must save at least a tenth of a shard: they cannot be verified and do not stay in the cache
WORTH_IT = 0.9


def disk_hint(peak: int, access: Access) -> str:
    """What to do where the disk does not suffice for shards that take peak bytes at a time."""
    if access.max_disk is not None and peak > access.max_disk:
        return f"give --max-disk {size_for(peak)} or more, or audit less (--layer, --module)"
    return DISK_HINT if access.alone else SHARED_HINT


@dataclass(frozen=True)
class Plan:
    """What is left to do, and what it takes."""

    base: Checkpoint
    tuned: Checkpoint
    work: Schedule
    to_move: int
    """Bytes that come over the network."""
    frees: bool
    """Whether fetched shards are removed from the Hub's cache at their last use."""
    peak: int
    """The most bytes of disk that they take at any time."""
    report: int
    """About the most bytes of disk that the report takes while it is made: its journal, those of
    its parts, its rows and its tables.
    """
    free: int
    """Bytes of disk."""
    problem: str | None
    """Why the disk does not suffice; None where it does."""
    hint: str = DISK_HINT

    def require_disk(self) -> None:
        """Raises ShadowError, with the numbers, when the disk does not suffice."""
        if self.problem:
            raise ShadowError(self.problem, self.hint)


@uncollected()
def make_plan(
    base: Checkpoint,
    tuned: Checkpoint,
    pairs: Sequence[MatrixPair],
    access: Access,
    *,
    skipped: int,
    method: Method = Method(),  # noqa: B008 - frozen
    filtered: bool,
    folder: Path,
    scratch: Path,
    ours: Collection[tuple[str, str, str]] = (),
) -> Plan:
    """Choose where every shard comes from, order the work, and see whether the disk suffices.

    skipped is how many rows of the report are of tensors that are not compared. folder is where the
    report goes, scratch where byte ranges may lie meanwhile. ours are the (repository, commit,
    path) of shards that an earlier run of this audit fetched to free them: they count as fetched by
    this one.
    """
    base = _with_sources(base, "base", pairs, access=access, filtered=filtered, scratch=scratch)
    tuned = _with_sources(tuned, "tuned", pairs, access=access, filtered=filtered, scratch=scratch)
    work = schedule(pairs, base, tuned)
    sources = {visit.shard: source_of(base, tuned, visit.shard) for visit in work.visits}
    to_move = sum(source.bytes_to_move() for source in sources.values())
    there = {
        shard
        for shard, source in sources.items()
        if _is_ours(source, ours) and not source.bytes_to_move()
    }
    whole, ranges = _sizes(sources, there)
    report = _report_disk(pairs, skipped, method)
    places = _Places(whole=whole, ranges=ranges, there=there, report=report, folder=folder)
    ways = [(True, work), (True, work.unhurried())]
    if access.max_disk is None:
        ways.insert(0, (False, work.eager()))
        if not access.alone:
            del ways[1:]
    fitting = (way for way in ways if not places.lacks(way[1], way[0], access))
    frees, chosen = next(fitting, ways[-1])  # the last, where none fits: its problem is given
    problem = places.lacks(chosen, frees, access)
    if frees:
        base, tuned = _freeing(base, ours), _freeing(tuned, ours)
    peak = sum(places.peaks(chosen, frees))
    return Plan(
        base=base,
        tuned=tuned,
        work=chosen,
        to_move=to_move,
        frees=frees and bool(whole),
        peak=peak,
        report=report,
        free=places.free(),
        problem=problem,
        hint=disk_hint(peak, access),
    )


def _report_disk(pairs: Sequence[MatrixPair], skipped: int, method: Method) -> int:
    """About the most bytes of disk that the report of these takes while it is made.

    The outcomes of parts lie in their journals until that of the pair has them too; rows and tables
    are written beside the journal of the pair.
    """
    journal, rows = FILES, FILES + skipped * A_SKIP
    for pair in pairs:
        shape, is_update = (pair.rows, pair.cols), pair.tuned.factor is not None
        journal += A_LINE if pair.is_matrix else A_VECTOR
        rows += A_ROW if pair.is_matrix else A_VECTOR
        if pair.is_matrix:
            many = 3 if method.subjects == "all" else 1
            sigmas = many * solver_of(method).on(shape).sigmas(shape, is_update)
            journal += int(BASE64 * 8 * sigmas)
            rows += 2 * 4 * sigmas  # as a row, and in the table
    return journal + max(journal, rows)


def require_disk_for_pickles(located: Located, access: Access) -> int:
    """`.bin` files must all be there before anything is known of them: the bytes that this moves.

    Raises ShadowError if they do not fit.
    """
    sources = [
        WholeFile(located.snapshot, located.snapshot.files[shard])
        for shard in located.weights.shards
    ]
    return require_disk_at_once(f"{located.reference}: its .bin files", sources, access)


def require_disk_at_once(what: str, sources: Sequence[Source], access: Access) -> int:
    """The bytes that must all be fetched before any is read.

    Raises ShadowError if they do not fit on the disk. what: the files, as its message calls them.
    """
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
        there = byte_size(limit)
        raise ShadowError(
            f"{what} need {byte_size(need)} of disk all at once, {there} may be used",
            hint,
        )
    return need


def _with_sources(
    checkpoint: Checkpoint,
    side: Side,
    pairs: Sequence[MatrixPair],
    *,
    access: Access,
    filtered: bool,
    scratch: Path,
) -> Checkpoint:
    """The checkpoint with byte ranges in place of whole shards where those move clearly less."""
    wanted = defaultdict[str, list[TensorInfo]](list)
    for pair in pairs:
        for info in infos_of(side, pair):
            wanted[info.shard].append(info)
    sources = dict(checkpoint.sources)
    for number, (shard, infos) in enumerate(sorted(wanted.items())):
        source = sources[shard]
        if isinstance(source, WholeFile) and _takes_ranges(
            source, infos, checkpoint, access=access, filtered=filtered
        ):
            part = scratch / f"{side}-{number}.part"
            sources[shard] = ByteRanges(
                source.snapshot, source.file, wanted=tuple(infos), path=part
            )
    return replace(checkpoint, sources=sources)


def _takes_ranges(
    source: WholeFile,
    infos: Sequence[TensorInfo],
    checkpoint: Checkpoint,
    *,
    access: Access,
    filtered: bool,
) -> bool:
    size = source.bytes_to_move()
    if access.fetch == "shards" or size == 0:
        return False
    if access.fetch == "ranges":
        if not checkpoint.ranges:
            raise ShadowError(
                f"{checkpoint.reference}: its files cannot be read in parts",
                "set SHADOW_FETCH=shards",
            )
        return True
    moved = sum(stop - start for start, stop in coalesced(infos))
    return filtered and checkpoint.ranges and moved < WORTH_IT * size


def _is_ours(source: Source, ours: Collection[tuple[str, str, str]]) -> bool:
    """Whether a shard is in the cache because this audit, or an earlier run of it, fetched it."""
    return isinstance(source, WholeFile) and (source.fetched or source.identity in ours)


def _sizes(
    sources: Mapping[ShardKey, Source], there: Collection[ShardKey]
) -> tuple[Counter[ShardKey], Counter[ShardKey]]:
    """The disk that each shard takes because of this audit: in the Hub's cache, and in scratch."""
    whole, ranges = Counter[ShardKey](), Counter[ShardKey]()
    for shard, source in sources.items():
        if isinstance(source, ByteRanges):
            ranges[shard] = source.bytes_to_move()
        elif isinstance(source, WholeFile):
            whole[shard] = source.file.size if shard in there else source.bytes_to_move()
    return whole, ranges


def _freeing(checkpoint: Checkpoint, ours: Collection[tuple[str, str, str]]) -> Checkpoint:
    """The checkpoint with shards that go at their last use, but those that were there before."""
    sources = dict(checkpoint.sources)
    for name, source in checkpoint.sources.items():
        if isinstance(source, WholeFile) and (source.bytes_to_move() or _is_ours(source, ours)):
            sources[name] = replace(source, keep=False)
    return replace(checkpoint, sources=sources)


@dataclass(frozen=True)
class _Places:
    """The two disks that an audit writes to, often one: the Hub's cache, and the report's.

    there: shards that take their part of the cache's disk already.
    """

    whole: Mapping[ShardKey, int]
    ranges: Mapping[ShardKey, int]
    there: Collection[ShardKey]
    report: int
    folder: Path

    def peaks(self, work: Schedule, frees: bool) -> tuple[int, int]:
        in_cache = work.peak(self.whole, self.there) if frees else sum(self.whole.values())
        return in_cache, work.peak(self.ranges)

    def free(self) -> int:
        return _free(self._cache())

    def _cache(self) -> Path:
        if not any(self.whole.values()):
            return self.folder
        from shadow.checkpoints.hub_client import cache_folder

        return cache_folder()

    def lacks(self, work: Schedule, frees: bool, access: Access) -> str | None:
        """What is missing, in words with numbers; None when there is enough."""
        in_cache, in_scratch = self.peaks(work, frees)
        if not in_cache + in_scratch:
            return None  # only a report is written: if that fails, it says so and goes on later
        limit = access.max_disk
        if limit is not None and in_cache + in_scratch > limit:
            need = byte_size(in_cache + in_scratch)
            return (
                f"fetched shards need {need} of disk at once, --max-disk allows {byte_size(limit)}"
            )
        more = in_cache - sum(self.whole[shard] for shard in self.there)
        needs = {self._cache(): more, self.folder: in_scratch + self.report}
        if _device(self._cache()) == _device(self.folder):
            needs = {self._cache(): more + in_scratch + self.report}
        return next(
            (
                f"{byte_size(need)} of disk are needed at {place}, {byte_size(_free(place))} are"
                " free"
                for place, need in needs.items()
                if need > _free(place)
            ),
            None,
        )


def _free(path: Path) -> int:
    return shutil.disk_usage(nearest_folder(path)).free


def _device(path: Path) -> int:
    return nearest_folder(path).stat().st_dev
