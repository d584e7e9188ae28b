"""The Hub: commits, listings, whole files and byte ranges, and its cache on this machine.

Everything after `pin` uses a 40-digit commit. `hub_client` has the client, retries requests, and
words the errors.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import get_ident
from typing import Any
from urllib.parse import urljoin, urlsplit

import huggingface_hub as hf
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import WeakFileLock, build_hf_headers, get_session, hf_raise_for_status
from huggingface_hub.utils import tqdm as hf_tqdm

from shadow.checkpoints.hub_client import (
    NO_HUB,
    OFFLINE,
    cache_folder,
    is_of_hub,
    own_client,
    require_usable_settings,
    trying,
)
from shadow.checkpoints.safetensors_files import (
    MAX_OFFSET,
)
from shadow.checkpoints.stored_files import StoredFile
from shadow.checkpoints.transfers import Say, StoppedError, Transfer
from shadow.errors import ShadowError

REDIRECTS = 8  # followed for a file at most
COMMIT = re.compile(r"[0-9a-f]{40}")
DIGESTS = {"git": COMMIT, "sha256": re.compile(r"[0-9a-f]{64}")}
ONLINE = "run once without --offline (and without HF_HUB_OFFLINE)"
NO_RANGES = "the server does not send the byte ranges that it is asked for"
FOLDER = "download it with `hf download`, and name the folder"
DAMAGED = "run once without --offline, to download it again"


@dataclass(frozen=True)
class RemoteFile(StoredFile):
    """A file of a commit of a repository."""

    repo: str = field(kw_only=True)  # `org/name`
    commit: str = field(kw_only=True)  # 40 hexadecimal digits
    offline: bool = field(kw_only=True)  # only the cache may be used


@own_client()
def commit_of(repo: str, revision: str | None, *, say: Say) -> str:
    """The commit of a revision (None: the default branch). Raises ShadowError like `pin`."""
    return str(model_info(repo, revision, say).sha)


def model_info(repo: str, revision: str | None, say: Say) -> hf.ModelInfo:
    """The Hub's record of a repository; its `sha` is a commit."""
    require_usable_settings()
    model_info = partial(hf.HfApi().model_info, repo, revision=revision)
    info = trying(model_info, Transfer(say), repo, revision)
    if not COMMIT.fullmatch(str(info.sha)):
        raise ShadowError(f"{repo}: the Hub has no commit for it", NO_HUB)
    with contextlib.suppress(Exception):  # notes in the cache what the revision is, for --offline
        hf.resolve_revision(repo, revision=revision)
    return info


def listed_files(repo: str, commit: str) -> dict[str, RemoteFile]:
    files = {}
    make = partial(RemoteFile, repo=repo, commit=commit, offline=False)
    for entry in hf.HfApi().list_repo_tree(repo, recursive=True, revision=commit):
        if isinstance(entry, RepoFile):
            size = entry.size
            digest = entry.blob_id
            if entry.lfs:
                size = entry.lfs.size
                digest = entry.lfs.sha256
            if type(size) is not int or not 0 <= size <= MAX_OFFSET:
                raise ValueError("an invalid size")
            if type(entry.path) is not str:
                raise ValueError("an invalid name")
            path = entry.path
            path.encode()  # a ValueError for half a surrogate
            files[path] = make(path, size, _checksum(digest))
    return files


def _checksum(digest: object) -> str | None:
    """Prefix a digest with its kind, known by its length: Git-LFS uses sha256, Git itself sha1."""
    for kind, pattern in DIGESTS.items():
        if re.fullmatch(pattern, str(digest)):
            return f"{kind}:{digest}"
    return None


def _repository_folder(repo: str) -> Path:
    return cache_folder() / repo_folder_name(repo_id=repo, repo_type="model")


def cached_files(repo: str, commit: str) -> dict[str, RemoteFile]:
    root = _repository_folder(repo) / "snapshots" / commit
    files = {}
    make = partial(RemoteFile, repo=repo, commit=commit, offline=True)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            name = path.relative_to(root).as_posix()
            # a link leads to a blob, which the cache names by its checksum
            blob = path.readlink().name if path.is_symlink() else None
            size = path.stat().st_size
            files[name] = make(name, size, _checksum(blob))
    return files


def cached(file: RemoteFile) -> Path | None:
    """The cached copy of a file, if there is one."""
    path = hf.try_to_load_from_cache(file.repo, file.path, revision=file.commit)
    return Path(path) if isinstance(path, str) else None


def in_cache(file: RemoteFile) -> bool:
    """True if a file's bytes are in the cache, for this commit or another one."""
    digest = _digest(file.checksum)
    blob = _repository_folder(file.repo) / "blobs" / digest
    return cached(file) is not None or blob.is_file()  # without a digest it is the folder


def _digest(checksum: str | None) -> str:
    """The hexadecimal digits of a checksum; empty without one."""
    return (checksum or "").partition(":")[2]


@own_client()
def fetch_whole(file: RemoteFile, by: Transfer) -> tuple[Path, bool]:
    """A file in the cache, fetched if it is not there, and whether a checksum is known of it.

    A copy whose checksum is wrong is fetched again; ShadowError if a second download is wrong too.
    """
    path = cached(file)
    downloads = 0
    while path is None or _is_damaged(path, file):
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
        counted = 0
        thread = get_ident()

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

    path = trying(attempt, by, file.repo, file.commit, file.path)
    return Path(path)


def _is_damaged(path: Path, file: RemoteFile) -> bool:
    """True if the file is not what its checksum says; False where no checksum is known."""
    if file.checksum is None:
        return False
    kind, _, expected = file.checksum.partition(":")
    try:
        # Git names a blob by the sha1 of this header and the content
        head = b"blob %d\0" % path.stat().st_size
        git = hashlib.sha1(head, usedforsecurity=False)
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256" if kind == "sha256" else lambda: git)
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
    holder = pointer.parent.resolve()
    if not holder.is_relative_to(snapshot.resolve()):
        return  # no file of that commit
    with contextlib.suppress(OSError):
        blobs = (root / "blobs").resolve()
        digest = _digest(checksum)
        blob = blobs / digest
        if pointer.is_symlink() or not digest:
            blob = pointer.resolve()
        is_used = False
        for link in (root / "snapshots").rglob("*"):
            if link.is_symlink() and link != pointer:
                is_used |= link.resolve() == blob
        if blob.parent == blobs and not is_used:
            blob.unlink(missing_ok=True)
        pointer.unlink(missing_ok=True)


@own_client()
def remove_leftovers(repo: str, checksum: str | None) -> None:
    """Remove what a killed download of a file left, unless it is being downloaded now.

    The client gives every download a new name, so that nothing ever continues such a piece.
    """
    digest = _digest(checksum)
    root = _repository_folder(repo)
    if not digest.isalnum():
        return
    pieces = [*(root / "blobs").glob(f"{digest}.*.incomplete")]
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
    """Read bytes start to stop (exclusive) of a file, as far as it has them. Raises like
    copy_range.
    """
    content = bytearray()
    stop = min(stop, file.size)
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
    session = get_session()
    seconds = constants.HF_HUB_DOWNLOAD_TIMEOUT
    for _ in range(REDIRECTS):
        # followed here, as the token belongs to the Hub and the file often lies elsewhere
        headers = ours | build_hf_headers() if is_of_hub(url) else ours
        with session.stream(
            "GET", url, headers=headers, follow_redirects=False, timeout=seconds
        ) as response:
            location = response.headers.get("location")
            is_redirect = response.status_code in (301, 302, 303, 307, 308)
            if is_redirect and location is not None:
                url = urljoin(url, location)
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
