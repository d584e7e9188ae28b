"""A commit of a repository on the Hub as a listing of files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import huggingface_hub as hf
from huggingface_hub import constants

from shadow.checkpoints.hub import (
    COMMIT,
    DAMAGED,
    ONLINE,
    RemoteFile,
    cached,
    cached_files,
    fetch_whole,
    listed_files,
    model_info,
    read_range,
)
from shadow.checkpoints.hub_client import FAILURES, OFFLINE, own_client, trying
from shadow.checkpoints.listing import AGAIN, Listing, read_small, require_small
from shadow.checkpoints.safetensors_files import Header, held_shard
from shadow.checkpoints.sources import (
    WITH_HEADER,
    Shard,
    WholeFile,
    digest_of,
    header_of,
    read_header,
    read_shard,
)
from shadow.checkpoints.transfers import Say, Transfer
from shadow.errors import FileError, ShadowError, naming
from shadow.targets.references import as_folder

OWNER = (
    "the file on the Hub is like this: tell its owner, or name another revision (org/name@revision)"
)


@dataclass(frozen=True)
class Snapshot(Listing):
    """One commit of a repository, to which all reads refer."""

    files: Mapping[str, RemoteFile]  # below the subfolder, by path in it

    def holds(self, path: str) -> bool:
        return path in self.files

    def read(self, path: str, say: Say) -> bytes:
        file = self.files[path]
        parts = PurePosixPath(file.path).parts
        if ".." in parts or "\\" in file.path or file.path.startswith("/"):
            raise FileError(f"{path}: its name leaves the repository", AGAIN)
        require_small(path, file.size)
        local, _ = fetch_whole(file, Transfer(say))
        return read_small(local, path)

    def shard(self, path: str, by: Transfer, scratch: Path | None) -> Shard:
        file = self.files[path]
        source = WholeFile(file)
        if not path.endswith(WITH_HEADER):
            source.fetched = source.bytes_to_move() > 0
            source.fetch(by)
            assert source.path is not None, "fetched"
            with naming(self.name):
                layout, held = read_shard(held_shard(source.path, path), path, scratch)
            return layout, replace(source, unpacked=held.path)
        header = self._cached_header(file, path)
        if header is None:

            def read(count: int) -> bytes:
                return read_range(file, 0, count, by)

            header = header_of(path, file.size, read)
        return header, WholeFile(file, digest_of(header))

    def _cached_header(self, file: RemoteFile, path: str) -> Header | None:
        """The header of a copy in the cache. One that is damaged is fetched again later."""
        local = cached(file)
        if local is None:
            return None
        try:
            return read_header(held_shard(local, path), path)
        except FileError as error:
            if self.is_complete:
                return None
            raise ShadowError(f"{self.name}: {error.message}", DAMAGED) from error


@own_client()
def pin(
    repo: str, revision: str | None, subfolder: str | None, *, offline: bool, say: Say
) -> Snapshot:
    """Resolve a revision (None: the default branch) to its commit, and list the commit's files.

    subfolder: list only what lies below it (None: everything). say: called with a line before a
    request is retried. Raises ShadowError if there is no such repository or revision, access is
    refused, the Hub cannot be reached, or the cache does not know the revision offline.
    """
    access: str | None = None
    if offline or constants.HF_HUB_OFFLINE:
        try:
            pinned = hf.resolve_revision(repo, revision=revision, local_files_only=True)
        except FAILURES as error:
            what = f"{repo}@{revision}" if revision else repo
            raise ShadowError(f"{what} is {OFFLINE}", as_folder(repo) or ONLINE) from error
        commit: str = pinned.resolved
        if not COMMIT.fullmatch(commit):
            message = f"{repo}: the cache has no commit for it"
            raise ShadowError(message, "run once without --offline")
        listed = cached_files(repo, commit)
    else:
        info = model_info(repo, revision, say)
        access = "private" if info.private else "gated" if info.gated else "open"
        commit = str(info.sha)
        attempt = partial(listed_files, repo, commit)
        listed = trying(attempt, Transfer(say), repo, revision)
    if subfolder:
        start = f"{subfolder.strip('/')}/"
        listed = {
            path.removeprefix(start): file
            for path, file in listed.items()
            if path.startswith(start)
        }
    absent = ("repository", "tell its owner")
    if access is None:
        absent = ("cache", "run without --offline")
    return Snapshot(
        f"{repo}/{subfolder}" if subfolder else repo,
        listed,
        is_complete=access is not None,
        commit=commit,
        access=access,
        absent=absent,
        hint=OWNER,
    )
