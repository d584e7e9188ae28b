"""Types that audits and checks share: how they run, and who is notified."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

from shadow.errors import UsageError
from shadow.options import explained, option
from shadow.text import bytes_of, counted

if TYPE_CHECKING:
    from shadow.checkpoints.opening import AnyCheckpoint, Checkpoint
    from shadow.checkpoints.pairing import MatrixPair, Partners, Skipped
    from shadow.run.journal import Journal
    from shadow.run.machine import MachineLimits
    from shadow.run.settings import Settings
    from shadow.targets.families import Pair
    from shadow.targets.references import AnyReference, Reference


Place = str | PathLike[str]
Fetch = Literal["auto", "shards", "ranges"]
LEAST_DISK = 1_000  # bytes; no shard is smaller


@explained
@dataclass(frozen=True)
class Files:
    """Sources of checkpoints and of earlier results.

    fetch: how weights come from the Hub: auto (or the value of SHADOW_FETCH), shards or ranges.
    cache: a folder of spectra that were solved before, and of answers of transformers; True: that
    of the command; False: none is stored or used.
    """

    allow_pickle: bool = option(
        "Read pickles of torch (.bin, .pt, .pth, .distcp), in a child process.", False
    )
    offline: bool = option("Use the Hub's cache only, without a network.", False)
    fetch: Fetch = "auto"
    max_disk: int | str | None = option(
        "Disk limit for downloads, such as 40GB; each shard is removed after use.", type=str | None
    )
    cache: Place | bool = True
    file: str | None = option(
        "Which GGUF file of a side that has several, such as '*Q8_0*'.", metavar="PATTERN"
    )


@dataclass(frozen=True)
class Access:
    """Access to checkpoints, the same for a whole run; no number depends on it."""

    allow_pickle: bool = False
    offline: bool = False
    fetch: Fetch = "auto"
    """auto: ranges where a filter makes them much smaller than whole shards."""
    max_disk: int | None = None
    """Bytes that fetched shards may take at any time; None: what is free."""
    owns_cache: bool = True
    """Whether no other task of the run uses this machine's cache of the Hub. Otherwise nothing is
    removed from it unasked: another task may be reading it.
    """
    file: str | None = None
    """A pattern that chooses among several GGUF files of a side."""


def access_of(files: Files) -> Access:
    """The ways in which checkpoints may be read. Raises UsageError for an invalid size."""
    fetch: str = files.fetch
    if fetch == "auto":
        fetch = os.environ.get("SHADOW_FETCH", "auto")
    require_known("fetch", fetch, get_args(Fetch))
    most = files.max_disk
    if isinstance(most, str):
        most = bytes_of(most)
        if most < LEAST_DISK:
            fault = f"--max-disk: {counted(most, 'byte holds', 'bytes hold')} no shard"
            raise UsageError(fault, "write it with a unit, such as 40GB")
    return Access(
        allow_pickle=files.allow_pickle,
        offline=files.offline,
        fetch=cast(Fetch, fetch),
        max_disk=most,
        file=files.file,
    )


def require_known(name: str, value: str | None, known: tuple[str | None, ...]) -> None:
    if value not in known:
        raise UsageError(f"{name}={value!r}", f"one of {', '.join(map(repr, known))}")


@dataclass(frozen=True)
class Progress:
    """Progress of the audit of a pair, in pairs, in units of `workers.cost` and in bytes
    fetched.
    """

    done: int
    total: int
    """0 while `.bin` files are fetched, of which nothing is known before."""
    cost_done: int
    cost_total: int
    moved: int = 0
    to_move: int = 0
    stage: str = ""
    """What is at work, such as a claim; empty for an audit."""


def ignore(*_: object) -> None:
    """Ignore what it is called with; a named function, so that it can be pickled."""


@dataclass(frozen=True)
class AlignedPair:
    """Two open, aligned checkpoints; skipped has every tensor that is not measured."""

    base: Checkpoint
    tuned: Checkpoint
    pairs: list[MatrixPair]
    skipped: list[Skipped]
    partners: Partners = field(default_factory=dict)
    """What it was aligned by where numbers do not say it."""


@dataclass(frozen=True)
class Runtime:
    """Circumstances of a run; no number and no file depends on them. Picklable if say and
    show are.
    """

    jobs: int | None = None
    """Workers; None: as many as there are cores or as fit the memory; where stored floats are only
    summed up one.
    """
    access: Access = field(default_factory=Access)
    overwrite: bool = False
    """Whether a finished report of other settings, files or another version is replaced, when the
    new one is complete.
    """
    limits: MachineLimits | None = None
    """None: what this process may use."""
    commits: Mapping[Reference, str] = field(default_factory=dict, hash=False)
    """Of references to the Hub: the commits to read, where those were looked up before."""
    checkpoints: Mapping[AnyReference, AnyCheckpoint] = field(default_factory=dict, hash=False)
    """Checkpoints that were found before."""
    patience: float = 0.0
    """Seconds to wait for another audit of the same pair before it is refused."""
    elsewhere: Callable[[PairRequest, AlignedPair, Journal], None] | None = None
    """Measures what the journal of a pair does not hold yet, into it, instead of this process (see
    `shadow.engines.pair`). Raises what went wrong there.
    """
    cache: Path | None = None
    say: Callable[[str], None] = ignore
    """Gets one line for people now and then."""
    show: Callable[[Progress], None] = ignore

    def __post_init__(self) -> None:
        if self.jobs is not None and not (isinstance(self.jobs, int) and self.jobs >= 1):
            raise UsageError(f"jobs={self.jobs!r}", "give a whole number, 1 or more")

    def prefixed(self, prefix: str) -> Runtime:
        """The same, with lines that begin with a prefix."""
        return replace(self, say=partial(_say_behind, prefix, self.say))


def _say_behind(prefix: str, say: Callable[[str], None], text: str) -> None:
    """Call say with a prefix; not a closure, which could not be pickled."""
    say(prefix + text)


@dataclass(frozen=True)
class Pass:
    """A pass over the pairs of two checkpoints."""

    aligned: AlignedPair
    measure: Callable[[MatrixPair], Any]
    rows: list[Any] = field(default_factory=list)
    """What has been made, in any order, each behind its key."""
    guests: dict[str, list[tuple[Pass, MatrixPair]]] = field(default_factory=dict)
    """By key of a pair, those that are measured after it: they read one of its tensors."""


Result = TypeVar("Result")
Gathering = Generator[Pass, None, Result]
"""Yields each pass before it is made."""


def gather_together(gatherings: Sequence[Gathering[Result]]) -> list[Result]:
    """Run each to its end. Of passes that come at one time the first reads what others share."""
    results: dict[int, Result] = {}
    while len(results) < len(gatherings):
        passes = []
        for number, gathering in enumerate(gatherings):
            try:
                passes.append(next(gathering))
            except StopIteration as end:  # of one that ended before without a value
                results.setdefault(number, end.value)
        if len(passes) > 1:
            _join(passes)
    return [results[number] for number in range(len(gatherings))]


def _join(passes: Sequence[Pass]) -> None:
    """Make pairs of open files guests of a pair of the first pass."""
    host = passes[0]
    hosts: dict[object, str] = {}  # by tensor, the key of the pair that has guests
    for each in passes:
        aligned = each.aligned
        for pair in aligned.pairs:
            tensors = []
            for side, operand in pair.operands.items():
                for info in operand.infos:
                    held = getattr(aligned, side).sources[info.shard].held
                    tensors.append(held and (held.identity, info.start, info.end))
            if None in tensors:  # not here yet, or in memory
                continue
            known = [hosts[tensor] for tensor in tensors if tensor in hosts]
            key = pair.key
            if known:
                key = known[0]
                host.guests.setdefault(key, []).append((each, pair))
            if each is host:
                hosts |= dict.fromkeys(tensors, key)


@dataclass(frozen=True)
class PairRequest:
    """The arguments of `run_pair`, the folder of the report, and one for scratch."""

    pair: Pair
    settings: Settings
    runtime: Runtime
    folder: Path
    scratch: Path


# Of a spectrum or an answer, or of what a killed process left of one. Nothing of another name is
# ever removed: somebody may name a folder of models.
NAME = re.compile(r"[0-9a-f]{62}\.(safetensors|json)(\.[0-9a-f]{8}\.tmp)?")


def default_folder() -> Path | None:
    """`$SHADOW_CACHE_DIR`, `$XDG_CACHE_HOME/shadow/spectra` or `~/.cache/shadow/spectra`.

    None with `SHADOW_NO_CACHE=1`, and for a user without a home folder.
    """
    if os.environ.get("SHADOW_NO_CACHE", "0").lower() not in ("", "0", "false", "no"):
        return None
    own = os.environ.get("SHADOW_CACHE_DIR")
    if own:
        return Path(own)
    top = os.environ.get("XDG_CACHE_HOME")
    try:
        caches = Path(top) if top else Path.home() / ".cache"
    except RuntimeError:
        return None
    return caches / "shadow" / "spectra"


def cache_of(files: Files) -> Path | None:
    """The folder of the cache that was chosen; None for none."""
    cache = default_folder() if files.cache is True else files.cache
    if not cache:
        return None
    return Path(cache)


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """The time of last use, the bytes and the path of every such file, in any order."""
    files = []
    for path in folder.glob("[0-9a-f][0-9a-f]/*"):
        if not NAME.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError):
            stat = path.stat()
            files.append((stat.st_mtime, stat.st_size, path))
    return files


def size_of(folder: Path) -> int:
    """The bytes of such files in a folder; 0 if there is none."""
    return sum(size for _, size, _ in _files(folder))


def make_room(folder: Path, size: int) -> int:
    """Remove the least recently used until at most size bytes are left; return how many are."""
    total = size_of(folder)
    for _, file_size, path in sorted(_files(folder)):
        if total <= size:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            total -= file_size
    return total
