"""How checkpoints may be read: what a person chooses, and what a run makes of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from os import PathLike
from typing import Literal, cast, get_args

from shadow.errors import UsageError
from shadow.options import explained, option
from shadow.text import bytes_of, counted

Place = str | PathLike[str]
Fetch = Literal["auto", "shards", "ranges"]
LEAST_DISK = 1_000  # bytes; no shard is smaller
LEAST_WITHOUT_UNIT = 1_000_000  # bytes; below, somebody forgot the unit


def disk_limit(text: str) -> int:
    """The bytes of a limit such as `40GB`. Raises UsageError for what can hold nothing."""
    size = bytes_of(text)
    has_unit = not text.strip().replace(".", "").isdigit()
    if size < (LEAST_DISK if has_unit else LEAST_WITHOUT_UNIT):
        hint = "write it with a unit, such as 40GB"
        if size and not has_unit and size < LEAST_DISK:
            hint = f"did you mean {text.strip()}GB?"
        raise UsageError(f"--max-disk: {counted(size, 'byte holds', 'bytes hold')} no shard", hint)
    return size


@explained
@dataclass(frozen=True)
class Files:
    """Where checkpoints and solved spectra come from.

    fetch: how weights come from the Hub: auto (or what SHADOW_FETCH says), shards or ranges. cache:
    a folder of spectra that were solved before; True: the one of the command; False: none are kept
    or used.
    """

    allow_pickle: bool = option(
        "Read torch .bin files, in a child process.", False, "--allow-pickle"
    )
    offline: bool = option("Use the Hub's cache only, without a network.", False, "--offline")
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
    """How checkpoints may be read: what one run decides and no number depends on."""

    allow_pickle: bool = False
    offline: bool = False
    fetch: Fetch = "auto"
    """auto: ranges where a filter makes them much smaller than whole shards."""
    max_disk: int | None = None
    """Bytes that fetched shards may take at any time; None: what is free."""
    alone: bool = True
    """Whether no other task of the run uses this machine's cache of the Hub. Otherwise nothing is
    removed from it unasked: another task may be reading it.
    """
    dora: bool = False
    """Whether a DoRA adapter may be opened: what reads it must read its norms too."""
    file: str | None = None
    """A pattern that chooses among several GGUF files of a side."""


def access_of(files: Files) -> Access:
    """How checkpoints may be read. Raises UsageError for a size that is none."""
    fetch = os.environ.get("SHADOW_FETCH", "auto") if files.fetch == "auto" else files.fetch
    require_known("fetch", fetch, get_args(Fetch))
    most = disk_limit(files.max_disk) if isinstance(files.max_disk, str) else files.max_disk
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
