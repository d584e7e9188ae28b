"""The Hub: commits, listings, whole files and byte ranges, and its cache on this machine.

Everything after `pin` uses a 40-digit commit. `hub_client` has the client, retries requests, and
words the errors.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from threading import Event, get_ident
from typing import Any
from urllib.parse import urljoin, urlsplit

import huggingface_hub as hf
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import WeakFileLock, build_hf_headers, get_session, hf_raise_for_status
from huggingface_hub.utils import tqdm as hf_tqdm

from shadow.checkpoints.gguf_files import SUFFIX as GGUF
from shadow.checkpoints.gguf_files import read_gguf
from shadow.checkpoints.hub_client import (
    FAILURES,
    NO_HUB,
    OFFLINE,
    cache_folder,
    is_of_hub,
    own_client,
    require_usable_settings,
    trying,
)
from shadow.checkpoints.listing import AGAIN, Listing, StoredFile, read_small, require_small
from shadow.checkpoints.safetensors_files import (
    MAX_OFFSET,
    Header,
    held_shard,
    read_safetensors,
)
from shadow.checkpoints.sources import Shard, WholeFile, digest_of, read_header
from shadow.checkpoints.transfers import Say, StoppedError, Transfer
from shadow.errors import FileError, ShadowError
from shadow.targets.references import as_folder

CHUNK = 1 << 20  # bytes
REDIRECTS = 8  # followed for a file at most
COMMIT = re.compile(r"[0-9a-f]{40}")
ONLINE = "run once without --offline (and without HF_HUB_OFFLINE)"
NO_RANGES = "the server does not send the byte ranges that it is asked for"
FOLDER = "download it with `hf download`, and name the folder"
DAMAGED = "run once without --offline, to download it again"


@dataclass(frozen=True, kw_only=True)
class RemoteFile(StoredFile):
    """A file of a commit of a repository."""

    repo: str  # `org/name`
    commit: str  # 40 hexadecimal digits
    size: int  # bytes
    offline: bool  # only the cache may be used


@dataclass(frozen=True, kw_only=True)
class Snapshot(Listing):
    """One commit of a repository, to which all reads refer."""

    files: Mapping[str, RemoteFile]  # below the subfolder, by path in it
    commit: str  # 40 hexadecimal digits
    access: str | None  # `open`, `gated` or `private`; None offline, where only the cache is asked

    @property
    def offline(self) -> bool:
        """Whether only the cache may be used."""
        return self.access is None

    def read(self, path: str, say: Say) -> bytes:
        file = self.files[path]
        parts = PurePosixPath(file.path).parts
        if ".." in parts or "\\" in file.path or file.path.startswith("/"):
            raise FileError(f"{path}: its name leaves the repository", AGAIN)
        require_small(path, file.size)
        local, _ = fetch_whole(file, Transfer(say))
        return read_small(local, path)

    def shard(self, path: str, by: Transfer) -> Shard:
        file = self.files[path]
        header = self._cached_header(file, path)
        if header is None:
            read = read_gguf if path.endswith(GGUF) else read_safetensors
            header = read(lambda count: read_range(file, 0, count, by), file.size, path)
        return header, WholeFile(file, digest_of(header))

    def _cached_header(self, file: RemoteFile, path: str) -> Header | None:
        """The header of a copy in the cache. One that is damaged is fetched again later."""
        local = cached(file)
        if local is None:
            return None
        try:
            return read_header(held_shard(local, path), path)
        except FileError as error:
            if not self.offline:
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
            found = hf.resolve_revision(repo, revision=revision, local_files_only=True)
        except FAILURES as error:
            what = f"{repo}@{revision}" if revision else repo
            raise ShadowError(f"{what} is {OFFLINE}", as_folder(repo) or ONLINE) from error
        commit: str = found.resolved
        if not COMMIT.fullmatch(commit):
            message = f"{repo}: the cache has no commit for it"
            raise ShadowError(message, "run once without --offline")
        listed = _cached_files(repo, commit)
    else:
        info = _model_info(repo, revision, say)
        access = "private" if info.private else "gated" if info.gated else "open"
        commit = str(info.sha)
        listed = trying(lambda: _listed_files(repo, commit), Transfer(say), repo, revision)
    if subfolder:
        start = f"{subfolder.strip('/')}/"
        listed = {
            path.removeprefix(start): file
            for path, file in listed.items()
            if path.startswith(start)
        }
    return Snapshot(
        name=f"{repo}/{subfolder}" if subfolder else repo,
        files=listed,
        is_complete=access is not None,
        commit=commit,
        access=access,
    )


@own_client()
def commit_of(repo: str, revision: str | None, *, say: Say) -> str:
    """Return the commit of a revision (None: the default branch). Raises ShadowError like `pin`."""
    return str(_model_info(repo, revision, say).sha)


def _model_info(repo: str, revision: str | None, say: Say) -> hf.ModelInfo:
    """Return the Hub's record of a repository; its `sha` is a commit."""
    require_usable_settings()
    model_info = partial(hf.HfApi().model_info, repo, revision=revision)
    info = trying(model_info, Transfer(say), repo, revision)
    if not COMMIT.fullmatch(str(info.sha)):
        raise ShadowError(f"{repo}: the Hub has no commit for it", NO_HUB)
    with contextlib.suppress(Exception):  # notes in the cache what the revision is, for --offline
        hf.resolve_revision(repo, revision=revision)
    return info


def _listed_files(repo: str, commit: str) -> dict[str, RemoteFile]:
    files = {}
    for entry in hf.HfApi().list_repo_tree(repo, recursive=True, revision=commit):
        if isinstance(entry, RepoFile):
            size, digest = entry.size, entry.blob_id
            if entry.lfs:
                size, digest = entry.lfs.size, entry.lfs.sha256
            if type(size) is not int or not 0 <= size <= MAX_OFFSET or type(entry.path) is not str:
                raise ValueError("an invalid size or name")
            entry.path.encode()  # a ValueError for half a surrogate
            files[entry.path] = RemoteFile(
                path=entry.path,
                size=size,
                checksum=_checksum(digest),
                repo=repo,
                commit=commit,
                offline=False,
            )
    return files


def _checksum(digest: object) -> str | None:
    """Prefix a digest with its kind, known by its length: Git-LFS uses sha256, Git itself sha1."""
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]+", digest):
        return None
    kind = {40: "git", 64: "sha256"}.get(len(digest))
    return f"{kind}:{digest}" if kind else None


def _repository_folder(repo: str) -> Path:
    return cache_folder() / repo_folder_name(repo_id=repo, repo_type="model")


def _cached_files(repo: str, commit: str) -> dict[str, RemoteFile]:
    root = _repository_folder(repo) / "snapshots" / commit
    files = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            name = path.relative_to(root).as_posix()
            # a link leads to a blob, which the cache names by its checksum
            blob = path.readlink().name if path.is_symlink() else None
            files[name] = RemoteFile(
                path=name,
                size=path.stat().st_size,
                checksum=_checksum(blob),
                repo=repo,
                commit=commit,
                offline=True,
            )
    return files


def cached(file: RemoteFile) -> Path | None:
    """Return the cached copy of a file, if there is one."""
    path = hf.try_to_load_from_cache(file.repo, file.path, revision=file.commit)
    return Path(path) if isinstance(path, str) else None


def in_cache(file: RemoteFile) -> bool:
    """Return whether a file's bytes are in the cache, for this commit or another one."""
    digest = _digest(file.checksum)
    blob = _repository_folder(file.repo) / "blobs" / digest
    return cached(file) is not None or (bool(digest) and blob.is_file())


def _digest(checksum: str | None) -> str:
    """The hexadecimal digits of a checksum; empty without one."""
    return (checksum or "").partition(":")[2]


@own_client()
def fetch_whole(file: RemoteFile, by: Transfer) -> tuple[Path, bool]:
    """A file in the cache, fetched if it is not there, and whether a checksum is known of it.

    A copy whose checksum is wrong is fetched again; ShadowError if a second download is wrong too.
    """
    path, downloads = cached(file), 0
    while path is None or _is_damaged(path, file, by.stop):
        if path is not None:
            hint = DAMAGED
            if not file.offline:
                forget(file.repo, file.commit, file.path, file.checksum)
                hint = "a proxy or the connection changes downloads; try another network"
            if file.offline or downloads == 2:
                raise ShadowError(f"{file.repo}: {file.path} does not match its checksum", hint)
            what = f"{file.path} arrived" if downloads else f"the cached {file.path} is"
            by.say(f"{file.repo}: {what} damaged; downloading it again")
        path = _download(file, by, force=path is not None)
        downloads += 1
    return path, file.checksum is not None


def _download(file: RemoteFile, by: Transfer, *, force: bool) -> Path:
    if file.offline:
        raise ShadowError(f"{file.repo}: {file.path} is {OFFLINE}", ONLINE)
    remove_leftovers(file.repo, file.checksum)

    def attempt() -> str:
        counted, thread = 0, get_ident()

        class Meter(hf_tqdm):  # the client's only hook into a running download
            """Progress bar that draws nothing: it passes on the counts, and ends a download that is
            no longer wanted.

            Xet calls it from another thread, prints what is raised there, and continues.
            """

            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

            def update(self, n: float | None = 1) -> None:
                nonlocal counted
                if not by.stop.is_set():
                    counted += int(n or 0)
                    by.report(int(n or 0))
                elif get_ident() == thread:
                    raise StoppedError

            def update_transfer(self, n: float) -> None:
                """Ignore bytes on the line, which may be fewer than those of the file."""

            def set_transfer_postfix_str(self, *args: Any, **options: Any) -> None:
                """Ignore the rate, in words for a bar."""

        try:
            return hf.hf_hub_download(
                file.repo,
                file.path,
                revision=file.commit,
                force_download=force,
                tqdm_class=Meter,
            )
        except BaseException:
            by.report(-counted)
            raise

    return Path(trying(attempt, by, file.repo, file.commit, file.path))


def _is_damaged(path: Path, file: RemoteFile, stop: Event) -> bool:
    """Return whether the file is not what its checksum says; False where no checksum is known."""
    if file.checksum is None:
        return False
    kind, _, expected = file.checksum.partition(":")
    try:
        # Git names a blob by the sha1 of this header and the content
        head = b"blob %d\0" % path.stat().st_size
        git = hashlib.sha1(head, usedforsecurity=False)
        digest = hashlib.sha256() if kind == "sha256" else git
        with path.open("rb") as content:
            while block := content.read(CHUNK):
                if stop.is_set():
                    raise StoppedError
                digest.update(block)
    except OSError as error:
        raise ShadowError(
            f"{path}: {error.strerror or error}", "check that the cache can be read"
        ) from error
    return digest.hexdigest() != expected


def forget(repo: str, commit: str, path: str, checksum: str | None) -> None:
    """Remove a file from the cache: the bytes unless another commit has them, then its name.

    In this order, so that a process killed in between leaves the name, and the next can try again.
    """
    root = _repository_folder(repo)
    snapshot = root / "snapshots" / commit
    pointer = snapshot / path
    if not pointer.parent.resolve().is_relative_to(snapshot.resolve()):
        return  # no file of that commit
    with contextlib.suppress(OSError):
        blobs = (root / "blobs").resolve()
        digest = _digest(checksum)
        blob = blobs / digest
        if pointer.is_symlink() or not digest:
            blob = pointer.resolve()
        links = (link for link in (root / "snapshots").rglob("*") if link.is_symlink())
        others = (link for link in links if link != pointer)
        if blob.parent == blobs and not any(link.resolve() == blob for link in others):
            blob.unlink(missing_ok=True)
        pointer.unlink(missing_ok=True)


@own_client()
def remove_leftovers(repo: str, checksum: str | None) -> None:
    """Remove what a killed download of a file left, unless it is being downloaded now.

    The client gives every download a new name, so that nothing ever continues such a piece.
    """
    digest, root = _digest(checksum), _repository_folder(repo)
    pieces = [*(root / "blobs").glob(f"{digest}.*.incomplete")] if digest.isalnum() else []
    if not pieces:
        return
    with contextlib.suppress(OSError):
        lock = cache_folder() / ".locks" / root.name / f"{digest}.lock"
        with WeakFileLock(lock, timeout=0.1):
            for piece in pieces:
                piece.unlink(missing_ok=True)


def use_own_blobs() -> None:
    """Keep downloads out of the shared store, so that removing one frees disk; in `own_client`."""
    constants.HF_HUB_DISABLE_SHARED_BLOBS = True


def read_range(file: RemoteFile, start: int, stop: int, by: Transfer) -> bytes:
    """Return bytes start to stop (exclusive) of a file, as far as it has them. Raises like
    copy_range.
    """
    content, stop = bytearray(), min(stop, file.size)
    if start < stop:
        copy_range(file, start, stop, content.extend, by)
    return bytes(content)


@own_client()
def copy_range(
    file: RemoteFile, start: int, stop: int, write: Callable[[bytes], object], by: Transfer
) -> None:
    """Read bytes start to stop (exclusive) of a file, in order, resuming after a lost connection.

    write gets each piece. Raises ShadowError, also if the server sends other bytes than requested,
    and StoppedError once by.stop is set.
    """
    position = start

    def attempt() -> None:
        nonlocal position
        with _ranged(file, position, stop) as chunks:
            for chunk in chunks:
                if by.stop.is_set():
                    raise StoppedError
                if position + len(chunk) > stop:
                    raise ShadowError(f"{file.repo}: {NO_RANGES}", FOLDER)
                write(chunk)
                by.report(len(chunk))
                position += len(chunk)
        if position < stop:
            raise OSError(errno.EPIPE, "cut short")

    trying(attempt, by, file.repo, file.commit, file.path, progress=lambda: position)


@contextlib.contextmanager
def _ranged(file: RemoteFile, start: int, stop: int) -> Iterator[Iterator[bytes]]:
    """Open an answer with bytes start to stop, in chunks."""
    url = hf.hf_hub_url(file.repo, file.path, revision=file.commit)
    ours = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{stop - 1}"}
    session, seconds = get_session(), constants.HF_HUB_DOWNLOAD_TIMEOUT
    for _ in range(REDIRECTS):
        # followed here, as the token belongs to the Hub and the file often lies elsewhere
        headers = ours | build_hf_headers() if is_of_hub(url) else ours
        with session.stream(
            "GET", url, headers=headers, follow_redirects=False, timeout=seconds
        ) as response:
            if response.status_code in (301, 302, 303, 307, 308) and "location" in response.headers:
                url = urljoin(url, response.headers["location"])
                if urlsplit(url).scheme in ("http", "https"):
                    continue
                break
            hf_raise_for_status(response)
            sent = response.headers.get("content-range", "").strip()
            if response.status_code != 206 or sent != f"bytes {start}-{stop - 1}/{file.size}":
                raise ShadowError(f"{file.repo}: {NO_RANGES}", FOLDER)
            # in pieces as they come: a cut loses little
            yield response.iter_bytes()
            return
    raise ShadowError(f"{file.repo}: {file.path} is redirected to no file", NO_HUB)
