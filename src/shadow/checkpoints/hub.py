"""The Hub: commits, listings, whole files and byte ranges, all by the `huggingface_hub` client.

Its HTTP library has changed twice, so only `huggingface_hub.errors`, OSError and the session it
hands out are used. Everything after `pin` names a 40-hex commit. A fault becomes one line and a
hint here, in words of our own: what a server writes is not repeated, and no token is ever put into
a message or sent to another origin.

The client keeps its session and its settings for the whole process, so what this module needs of
them holds only inside `own_client`; whoever else uses the client finds it as it was.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Lock, get_ident
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import huggingface_hub as hf
from huggingface_hub import constants, errors
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (
    WeakFileLock,
    _http,
    build_hf_headers,
    get_session,
    get_token,
    hf_raise_for_status,
    parse_ratelimit_headers,
)
from huggingface_hub.utils import tqdm as hf_tqdm
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential, wait_random

from shadow.checkpoints.safetensors_files import MAX_OFFSET
from shadow.errors import ShadowError
from shadow.targets.references import as_folder

# HfHubHTTPError's bases hold its HTTP library's own base class, whichever library that is.
FAILURES: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    errors.RevisionResolutionError,
    errors.XetDownloadError,
    *errors.HfHubHTTPError.__bases__,
)
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # answers worth a second try
# names of faults of the client's HTTP library
CIRCLES = ("TooManyRedirects",)
NOWHERE = ("UnsupportedProtocol", "InvalidURL")
UNCONNECTED = ("ConnectError", "ConnectTimeout")
ATTEMPTS = 6  # in a row without a byte of progress
# seconds of trying for a connection before the Hub has answered once: more likely an address or a
# network that is wrong than an outage
PATIENCE = 5.0
WAITS = 0.5, 30.0  # seconds before the second try, doubled from try to try, and at most
MAX_WAIT = 300.0  # seconds that a server may ask to wait; for more, the command is given back
HEADER_GUESS = 1 << 16  # bytes; the headers of 9 in 10 real shards are shorter: one request
CHUNK = 1 << 20  # bytes
ANSWERED = "shadow.answered"  # noted with a request once its answer has begun
COMMIT = re.compile(r"[0-9a-f]{40}")

OnBytes = Callable[[int], None]
Say = Callable[[str], None]
T = TypeVar("T")


class StoppedError(Exception):
    """A download was given up because the audit around it ended."""


class RangeIgnoredError(ShadowError):
    """The server answered a request for a byte range with something else."""


@dataclass(frozen=True)
class _Before:
    """The client's session and settings as they were found."""

    session: Any
    factory: Callable[[], Any]
    level: int  # of its logger
    own_blobs: bool
    added: Any  # the filter of warnings that was put before the others; None if there was one


_lock = Lock()
_answered = Event()  # has any server answered this process?
_holders = 0
_before: _Before | None = None


@contextlib.contextmanager
def own_client() -> Iterator[None]:
    """The Hub's client with our sessions, and without its own warnings.

    It is as it was before once the last holder leaves.

    Left alone it waits for some answers without an end, sleeps for as long as a server asks it to,
    up to five times, and takes the token along to any address that a listing names as its next
    page. May be entered inside itself and in several threads. Every function here that asks the Hub
    enters it; who asks often holds it meanwhile, so that connections are kept. A download that
    nobody waits for any more holds it until it ends.
    """
    global _holders, _before
    with _lock:
        if not _holders:
            _before = _taken_over()
        _holders += 1
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if not _holders and _before is not None:
                _give_back(_before)
                _before = None


def _taken_over() -> _Before:
    """Put our session and settings into the client; what was there."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its warnings name URLs and repeat what is said here
    filters = list(warnings.filters)
    # of little disk and of no symlinks, which are said here or no fault
    warnings.filterwarnings("ignore", module="huggingface_hub")
    first = warnings.filters[0]
    with _http._CLIENT_LOCK:
        # Not by set_client_factory, which closes the session that is there and does not tell its
        # factory.
        session, factory = _http._GLOBAL_CLIENT, _http._GLOBAL_CLIENT_FACTORY
        _http._GLOBAL_CLIENT, _http._GLOBAL_CLIENT_FACTORY = None, partial(_own_session, factory)
    return _Before(
        session=session,
        factory=factory,
        level=level,
        own_blobs=constants.HF_HUB_DISABLE_SHARED_BLOBS,
        added=None if first in filters else first,
    )


def _give_back(before: _Before) -> None:
    """Put back what was there, except where somebody else has set another factory meanwhile."""
    with _http._CLIENT_LOCK:
        factory = _http._GLOBAL_CLIENT_FACTORY
        if isinstance(factory, partial) and factory.func is _own_session:
            ours = _http._GLOBAL_CLIENT
            _http._GLOBAL_CLIENT, _http._GLOBAL_CLIENT_FACTORY = before.session, before.factory
            if ours is not None:
                ours.close()
    logging.getLogger("huggingface_hub").setLevel(before.level)
    if before.added in warnings.filters:
        warnings.filters.remove(before.added)  # type: ignore[attr-defined]
    constants.HF_HUB_DISABLE_SHARED_BLOBS = before.own_blobs


def _own_session(factory: Callable[[], Any]) -> Any:
    """A session of the user's making, as one with a proxy, that obeys the two functions below."""
    session = factory()
    hooks = session.event_hooks
    session.event_hooks = {
        "request": [*hooks["request"], _before_request],
        "response": [_after_response],
    }
    return session


def _before_request(request: Any) -> None:
    request.extensions.pop(ANSWERED, None)  # of the request that was redirected here
    longest = max(constants.HF_HUB_DOWNLOAD_TIMEOUT, constants.HF_HUB_ETAG_TIMEOUT)
    unlimited = dict.fromkeys(("connect", "read", "write", "pool"))
    limits = request.extensions.get("timeout") or unlimited
    request.extensions["timeout"] = {
        name: min(value or longest, longest) for name, value in limits.items()
    }
    if _origin(str(request.url)) != _origin(constants.ENDPOINT):
        request.headers.pop("authorization", None)


def _after_response(response: Any) -> None:
    _answered.set()
    response.request.extensions[ANSWERED] = True
    if response.status_code in TRANSIENT:
        hf_raise_for_status(response)  # here, so that only `_trying` decides about another try


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository."""

    path: str  # in the repository
    size: int  # bytes
    checksum: str | None  # `sha256:...` (Git-LFS) or `git:...` (a plain blob), hexadecimal


@dataclass(frozen=True)
class Snapshot:
    """One commit of one repository: everything that is read of it is read at this commit."""

    repo: str  # `org/name`
    commit: str  # 40 hexadecimal digits
    subfolder: str | None  # the folder that is read; None for the whole repository
    files: Mapping[str, RemoteFile]  # below the subfolder, by path in it
    access: str | None  # `open`, `gated` or `private`; None offline, where only the cache is asked

    @property
    def offline(self) -> bool:
        """May nothing but the cache be asked?"""
        return self.access is None

    @property
    def name(self) -> str:
        """The repository and the subfolder, for people."""
        if not self.subfolder:
            return self.repo
        return f"{self.repo}/{self.subfolder}"


@own_client()
def pin(
    repo: str, revision: str | None, subfolder: str | None, *, offline: bool, say: Say
) -> Snapshot:
    """Resolve a revision (None: the default branch) to its commit, and list the commit's files.

    subfolder: only what lies below it (None: all). say: gets a line before a request is repeated.
    Raises ShadowError when there is no such repository or revision, when access is refused, when
    the Hub cannot be reached, and offline when the cache does not know the revision.
    """
    offline = offline or constants.HF_HUB_OFFLINE
    asked = partial(_in_words, repo=repo, revision=revision)
    if offline:
        access = None
        commit = _cached_commit(repo, revision)
        listed = _cached_files(repo, commit)
    else:
        info = _told(repo, revision, say)
        access = _access(info)
        commit = str(info.sha)
        listed = _trying(lambda: _listed_files(repo, commit), asked, say)
    if subfolder:
        prefix = f"{subfolder.strip('/')}/"
        listed = {
            path.removeprefix(prefix): file
            for path, file in listed.items()
            if path.startswith(prefix)
        }
    return Snapshot(repo, commit, subfolder=subfolder, files=listed, access=access)


@own_client()
def commit_of(repo: str, revision: str | None, *, say: Say) -> str:
    """The commit that a revision (None: the default branch) is now. Raises ShadowError as `pin`."""
    return str(_told(repo, revision, say).sha)


def _told(repo: str, revision: str | None, say: Say) -> hf.ModelInfo:
    """What the Hub tells of a repository, its commit being one."""
    _require_usable_settings()
    asked = partial(_in_words, repo=repo, revision=revision)
    info = _trying(lambda: hf.HfApi().model_info(repo, revision=revision), asked, say)
    if not COMMIT.fullmatch(str(info.sha)):
        raise ShadowError(f"{repo}: the Hub names no commit for it", "is HF_ENDPOINT a Hub?")
    with contextlib.suppress(Exception):  # notes in the cache what the revision is, for --offline
        hf.resolve_revision(repo, revision=revision)
    return info


def _access(info: hf.ModelInfo) -> str:
    """Who may read a repository."""
    if info.private:
        return "private"
    if info.gated:
        return "gated"
    return "open"


def _listed_files(repo: str, commit: str) -> dict[str, RemoteFile]:
    files = {}
    for entry in hf.HfApi().list_repo_tree(repo, recursive=True, revision=commit):
        if isinstance(entry, RepoFile):
            size, digest = entry.size, entry.blob_id
            if entry.lfs:
                size, digest = entry.lfs.size, entry.lfs.sha256
            if type(size) is not int or not 0 <= size <= MAX_OFFSET or type(entry.path) is not str:
                raise ValueError("a size or a name that is none")
            files[entry.path] = RemoteFile(entry.path, size, _checksum(digest))
    return files


def _checksum(digest: object) -> str | None:
    """A digest with its kind, told by its length: Git-LFS uses sha256, Git itself sha1."""
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]+", digest):
        return None
    kind = {40: "git", 64: "sha256"}.get(len(digest))
    if kind is None:
        return None
    return f"{kind}:{digest}"


def cache_folder() -> Path:
    """The client's cache of repositories (HF_HUB_CACHE)."""
    return Path(constants.HF_HUB_CACHE).expanduser()


def _repository_folder(repo: str) -> Path:
    return cache_folder() / repo_folder_name(repo_id=repo, repo_type="model")


def _cached_commit(repo: str, revision: str | None) -> str:
    try:
        commit: str = hf.resolve_revision(repo, revision=revision, local_files_only=True).resolved
    except FAILURES as error:
        what = f"{repo}@{revision}" if revision else repo
        raise ShadowError(
            f"{what} is not in the cache, and this run is offline",
            as_folder(repo) or "run once without --offline (and without HF_HUB_OFFLINE)",
        ) from error
    if not COMMIT.fullmatch(commit):
        raise ShadowError(f"{repo}: the cache names no commit for it", "run once without --offline")
    return commit


def _cached_files(repo: str, commit: str) -> dict[str, RemoteFile]:
    root = _repository_folder(repo) / "snapshots" / commit
    files = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            name = path.relative_to(root).as_posix()
            checksum = None
            if path.is_symlink():  # to a blob, which the cache names by its checksum
                checksum = _checksum(path.readlink().name)
            files[name] = RemoteFile(name, path.stat().st_size, checksum)
    return files


def cached(snapshot: Snapshot, file: RemoteFile) -> Path | None:
    """The cache's copy of a file, if it has one."""
    path = hf.try_to_load_from_cache(snapshot.repo, file.path, revision=snapshot.commit)
    if not isinstance(path, str):
        return None
    return Path(path)


def in_cache(snapshot: Snapshot, file: RemoteFile) -> bool:
    """Are a file's bytes in the cache, under its name or under that of another commit?"""
    digest = (file.checksum or "").partition(":")[2]
    blob = _repository_folder(snapshot.repo) / "blobs" / digest
    return cached(snapshot, file) is not None or (bool(digest) and blob.is_file())


@own_client()
def fetch_whole(
    snapshot: Snapshot,
    file: RemoteFile,
    *,
    say: Say,
    report: OnBytes = lambda count: None,
    stop: Event | None = None,
) -> tuple[Path, bool]:
    """A file in the cache, fetched if it is not there, and whether a checksum is known of it.

    A copy whose checksum is wrong is fetched once more; ShadowError if that does not help. report
    is told of bytes as they come (a negative number takes back what a failed attempt counted).
    Raises StoppedError once stop is set.
    """
    path = cached(snapshot, file)
    if path is None or _right(path, file, stop) is False:
        if path is not None:
            if snapshot.offline:
                raise _damaged(snapshot, file, "run once without --offline, to download it again")
            say(f"{snapshot.repo}: the cached {file.path} is damaged; downloading it again")
            _remove_bytes(snapshot, path)
        path = _download(snapshot, file, force=path is not None, report=report, stop=stop, say=say)
        if _right(path, file, stop) is False:
            say(f"{snapshot.repo}: {file.path} arrived damaged; downloading it again")
            _remove_bytes(snapshot, path)
            path = _download(snapshot, file, force=True, report=report, stop=stop, say=say)
            if _right(path, file, stop) is False:
                _remove_bytes(snapshot, path)
                raise _damaged(
                    snapshot,
                    file,
                    "a proxy or the connection changes downloads; try another network",
                )
    return path, file.checksum is not None


def _damaged(snapshot: Snapshot, file: RemoteFile, hint: str) -> ShadowError:
    return ShadowError(f"{snapshot.repo}: {file.path} does not match its checksum", hint)


def _download(
    snapshot: Snapshot,
    file: RemoteFile,
    *,
    force: bool,
    report: OnBytes,
    stop: Event | None,
    say: Say,
) -> Path:
    if snapshot.offline:
        raise ShadowError(
            f"{snapshot.repo}: {file.path} is not in the cache, and this run is offline",
            "run once without --offline (and without HF_HUB_OFFLINE)",
        )

    remove_leftovers(snapshot.repo, file.checksum)

    def attempt() -> str:
        counted, thread = 0, get_ident()

        class Meter(hf_tqdm):  # the client's only hook into a running download
            """Draws nothing; hands the counts on, and ends a download that is no longer wanted.

            Xet calls from a thread of its own, prints what is raised there, and goes on.
            """

            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

            def update(self, n: float | None = 1) -> None:
                nonlocal counted
                if stop is not None and stop.is_set():
                    if get_ident() == thread:
                        raise StoppedError
                    return
                counted += int(n or 0)
                report(int(n or 0))

            def update_transfer(self, n: float) -> None:
                """Bytes on the line, which may be fewer than those of the file: not counted."""

            def set_transfer_postfix_str(self, *args: Any, **options: Any) -> None:
                """Their rate, in words for a bar."""

        try:
            return hf.hf_hub_download(
                snapshot.repo,
                file.path,
                revision=snapshot.commit,
                force_download=force,
                tqdm_class=Meter,
            )
        except BaseException:
            report(-counted)
            raise

    words = partial(_in_words, repo=snapshot.repo, revision=snapshot.commit, path=file.path)
    return Path(_trying(attempt, words, say, stop=stop))


def _right(path: Path, file: RemoteFile, stop: Event | None) -> bool | None:
    """Is the file what its checksum says? None where no checksum is known."""
    if file.checksum is None:
        return None
    kind, _, expected = file.checksum.partition(":")
    try:
        size = path.stat().st_size
        if kind == "sha256":
            digest = hashlib.sha256()
        else:  # Git names a blob by the sha1 of this header and the content
            digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with path.open("rb") as content:
            while block := content.read(CHUNK):
                if stop is not None and stop.is_set():
                    raise StoppedError
                digest.update(block)
    except OSError as error:
        raise ShadowError(f"{path}: {error.strerror or error}", "is the cache readable?") from error
    return digest.hexdigest() == expected


def forget(repo: str, commit: str, path: str, checksum: str | None) -> None:
    """Remove a file from the cache: the bytes if no other commit has them, then its name.

    In this order, so that whoever is killed in between finds the name and can do it again.
    """
    root = _repository_folder(repo)
    snapshot = root / "snapshots" / commit
    pointer = snapshot / path
    if not pointer.parent.resolve().is_relative_to(snapshot.resolve()):
        return  # no file of that commit
    with contextlib.suppress(OSError):
        blobs = (root / "blobs").resolve()
        digest = (checksum or "").partition(":")[2]
        blob = blobs / digest
        if pointer.is_symlink() or not digest:
            blob = pointer.resolve()
        if blob.parent == blobs and not _has_other_names(blob, root, pointer):
            blob.unlink(missing_ok=True)
        pointer.unlink(missing_ok=True)


def _has_other_names(blob: Path, root: Path, pointer: Path) -> bool:
    """Do names in the snapshots of a repository lead to a blob, besides this one?"""
    links = (link for link in (root / "snapshots").rglob("*") if link.is_symlink())
    return any(link.resolve() == blob for link in links if link != pointer)


def _remove_bytes(snapshot: Snapshot, path: Path) -> None:
    """Remove a damaged file from the cache for all commits, so that it frees its disk at once."""
    with contextlib.suppress(OSError):
        blob = path.resolve()
        path.unlink()
        if blob.parent == (_repository_folder(snapshot.repo) / "blobs").resolve():
            blob.unlink()


@own_client()
def remove_leftovers(repo: str, checksum: str | None) -> None:
    """Remove what a killed download of a file left, if nobody is downloading it now.

    The client gives every download a name of its own, so that nothing ever continues such a piece.
    """
    digest = (checksum or "").partition(":")[2]
    if not digest.isalnum():
        return
    root = _repository_folder(repo)
    pieces = list((root / "blobs").glob(f"{digest}.*.incomplete"))
    if not pieces:
        return
    with contextlib.suppress(OSError):
        lock = cache_folder() / ".locks" / root.name / f"{digest}.lock"
        with WeakFileLock(lock, timeout=0.1):
            for piece in pieces:
                piece.unlink(missing_ok=True)


def use_own_blobs() -> None:
    """Keep downloads out of the store that repositories share, so that freeing one frees its disk.

    Inside `own_client`, until its last holder leaves.
    """
    constants.HF_HUB_DISABLE_SHARED_BLOBS = True


@own_client()
def read_start(
    snapshot: Snapshot, file: RemoteFile, count: int, *, say: Say, stopped: Event | None = None
) -> tuple[bytes, bool]:
    """The first count bytes of a file, or all it has, and whether the server honours ranges.

    One that does not sends the file from its beginning, or is asked for it: the bytes are taken and
    the connection is closed. Raises ShadowError; StoppedError once stopped is set.
    """
    whole = False

    def attempt() -> tuple[bytes, bool]:
        nonlocal whole
        try:
            return begin()
        except RangeIgnoredError:
            whole = True
            return begin()

    def begin() -> tuple[bytes, bool]:
        stop = min(count, file.size)
        asked = None if whole else stop
        with _ranged(snapshot, file, 0, stop=asked) as (chunks, honoured):
            content = b""
            for chunk in chunks:
                content += chunk
                if len(content) >= stop:
                    break
        if len(content) < stop:
            raise OSError(errno.EPIPE, "cut short")
        return content[:stop], honoured

    words = partial(_in_words, repo=snapshot.repo, revision=snapshot.commit, path=file.path)
    return _trying(attempt, words, say, stop=stopped)


@own_client()
def copy_range(
    snapshot: Snapshot,
    file: RemoteFile,
    start: int,
    stop: int,
    write: Callable[[bytes], object],
    *,
    say: Say,
    report: OnBytes = lambda count: None,
    stopped: Event | None = None,
) -> None:
    """Bytes start to stop (exclusive) of a file, in order, going on after a connection was cut.

    write gets each piece, report its length. Raises RangeIgnoredError when the server sends other
    bytes than those asked for, ShadowError, and StoppedError once stopped is set.
    """
    position = start

    def attempt() -> None:
        nonlocal position
        with _ranged(snapshot, file, position, stop=stop) as (chunks, honoured):
            if not honoured:
                raise RangeIgnoredError(
                    f"{snapshot.repo}: the server ignores requests for byte ranges",
                    "use --fetch shards",
                )
            for chunk in chunks:
                if stopped is not None and stopped.is_set():
                    raise StoppedError
                if position + len(chunk) > stop:
                    raise RangeIgnoredError(
                        f"{snapshot.repo}: more bytes came than asked for", "use --fetch shards"
                    )
                write(chunk)
                report(len(chunk))
                position += len(chunk)
        if position < stop:
            raise OSError(errno.EPIPE, "cut short")

    words = partial(_in_words, repo=snapshot.repo, revision=snapshot.commit, path=file.path)
    _trying(attempt, words, say, stop=stopped, progress=lambda: position)


@contextlib.contextmanager
def _ranged(
    snapshot: Snapshot, file: RemoteFile, start: int, stop: int | None
) -> Iterator[tuple[Iterator[bytes], bool]]:
    """An open answer with bytes start to stop of a file: (its chunks, True); or (the chunks of the
    whole file, False).

    stop None asks for the whole file.
    """
    url = hf.hf_hub_url(snapshot.repo, file.path, revision=snapshot.commit)
    ours = {"Accept-Encoding": "identity"}
    if stop is not None:
        ours["Range"] = f"bytes={start}-{stop - 1}"
    session = get_session()
    for _ in range(8):
        # Redirects are followed here, as the token belongs to the Hub and the file often lies
        # elsewhere.
        headers = dict(ours)
        if _origin(url) == _origin(constants.ENDPOINT):
            headers |= build_hf_headers()
        with session.stream(
            "GET",
            url,
            headers=headers,
            follow_redirects=False,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        ) as response:
            if response.status_code in (301, 302, 303, 307, 308) and "location" in response.headers:
                url = urljoin(url, response.headers["location"])
                if urlsplit(url).scheme not in ("http", "https"):
                    raise _nowhere(f"{snapshot.repo}: {file.path}")
                continue
            hf_raise_for_status(response)
            if response.status_code == 206 and stop is not None:
                expected = f"bytes {start}-{stop - 1}/{file.size}"
                if response.headers.get("content-range", "").strip() != expected:
                    raise RangeIgnoredError(
                        f"{snapshot.repo}: the server sent another range than requested",
                        "use --fetch shards",
                    )
            # in pieces as they come: a cut loses little
            yield response.iter_bytes(), response.status_code == 206
            return
    raise ShadowError(
        f"{snapshot.repo}: {file.path} is redirected in a circle", "is HF_ENDPOINT a Hub?"
    )


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _trying(
    attempt: Callable[[], T],
    words: Callable[[BaseException], ShadowError],
    say: Say,
    stop: Event | None = None,
    progress: Callable[[], int] = lambda: 0,
) -> T:
    """attempt(), again after transient faults; then a ShadowError.

    Waits grow, or are those that the server asks for. Tries are counted from the last progress.
    Where no connection has ever been made, PATIENCE ends them.
    Raises StoppedError when stop is set meanwhile.
    """
    stop = stop or Event()
    waits = wait_exponential(multiplier=WAITS[0], max=WAITS[1]) + wait_random(0, WAITS[0])
    last = [0, progress()]  # the try before the last progress, and how far that was

    def since_progress(state: RetryCallState) -> RetryCallState:
        if progress() != last[1]:
            last[:] = state.attempt_number - 1, progress()
        counted = copy(state)
        counted.attempt_number -= last[0]
        return counted

    def given_up(state: RetryCallState) -> bool:
        if since_progress(state).attempt_number >= ATTEMPTS:
            return True
        fault = state.outcome.exception() if state.outcome else None
        waited = (state.seconds_since_start or 0.0) + state.upcoming_sleep
        return _is_unconnected(fault) and not _answered.is_set() and waited > PATIENCE

    def wait(state: RetryCallState) -> float:
        asked = _retry_after(state.outcome.exception()) if state.outcome else None
        if asked is not None:
            return asked
        return waits(since_progress(state))

    def tell(state: RetryCallState) -> None:
        if state.outcome and state.upcoming_sleep >= 3:
            problem = _problem(state.outcome.exception())
            say(f"the Hub {problem}; trying again in {state.upcoming_sleep:.0f} s")

    def sleep(seconds: float) -> None:
        if stop.wait(seconds):
            raise StoppedError

    retrying = Retrying(
        retry=retry_if_exception(_is_transient),
        wait=wait,
        stop=given_up,
        before_sleep=tell,
        sleep=sleep,
        reraise=True,
    )
    try:
        return retrying(attempt)
    except (ShadowError, StoppedError):
        raise
    except Exception as error:  # the client's, on whatever the server sent
        raise words(error) from None  # the client's chain of tries says nothing more to people


def _cause(error: BaseException) -> BaseException:
    """The fault behind the client's own `not found locally either` and `force download failed`."""
    wrappers = errors.LocalEntryNotFoundError, errors.RevisionResolutionError, ValueError
    while isinstance(error, wrappers) and isinstance(error.__cause__, FAILURES):
        error = error.__cause__
    return error


def _status(error: BaseException | None) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _elsewhere(error: BaseException) -> bool:
    """Did the answer come from a server that the Hub redirected to?"""
    response = getattr(error, "response", None)
    return response is not None and _origin(str(response.url)) != _origin(constants.ENDPOINT)


def _retry_after(error: BaseException | None) -> float | None:
    """Seconds that the answer asks to wait, if it does."""
    if error is None:
        return None
    response = getattr(_cause(error), "response", None)
    if response is None:
        return None
    if response.status_code == 429:
        limit = parse_ratelimit_headers(response.headers)
        if limit is not None and limit.remaining == 0:
            return float(limit.reset_in_seconds)
    value = response.headers.get("retry-after", "").strip()
    if not re.fullmatch(r"\d{1,9}", value):
        return None
    return float(value)


def _is_transient(error: BaseException) -> bool:
    error = _cause(error)
    if isinstance(
        error, (ShadowError, StoppedError, errors.OfflineModeIsEnabled, errors.FileMetadataError)
    ):
        return False
    status = _status(error)
    if status == 403 and _elsewhere(error):  # a signed address; the next attempt gets a new one
        return True
    if status is not None:
        return status in TRANSIENT and (_retry_after(error) or 0) <= MAX_WAIT
    if _is_local(error) or type(error).__name__ in (*CIRCLES, *NOWHERE):
        return False
    return isinstance(error, FAILURES) and not isinstance(error, ValueError)


def _is_unconnected(error: BaseException | None) -> bool:
    """Was there no connection: a refusal, a name that nobody knows, silence?"""
    return error is not None and type(_cause(error)).__name__ in UNCONNECTED


def _is_local(error: BaseException) -> bool:
    """A fault of this machine's disk. Those of the line are the HTTP library's, or have a type."""
    if not isinstance(error, OSError) or isinstance(error, ConnectionError | TimeoutError):
        return False
    return error.errno not in (None, errno.EPIPE)


def _came_short(error: BaseException | None) -> bool:
    """Did an answer begin, and end before its file did?"""
    if getattr(error, "errno", None) == errno.EPIPE or "Consistency check failed" in str(error):
        return True
    try:
        request = getattr(error, "request", None)
    except RuntimeError:  # the HTTP library's way to say that it knows none
        return False
    return bool(getattr(request, "extensions", {}).get(ANSWERED))


def _nowhere(what: str) -> ShadowError:
    return ShadowError(
        f"{what} is redirected to something that is no web address", "is HF_ENDPOINT a Hub?"
    )


def _problem(error: BaseException | None) -> str:
    """What is wrong with the Hub, in words."""
    cause = _cause(error) if error else None
    status = _status(cause)
    if status == 429:
        return "says that there were too many requests (429)"
    if status is not None:
        return f"answers {status}"
    if _came_short(cause):
        return "sends files cut short"
    return "cannot be reached"


def _in_words(
    error: BaseException, *, repo: str, revision: str | None = None, path: str | None = None
) -> ShadowError:
    """One line and a hint for a fault of the client. Nothing of its own text is repeated."""
    error = _cause(error)
    again = "run the same command again: it continues from here"
    what = f"{repo}: {path}" if path else repo
    address = f"{constants.ENDPOINT}/{repo}"
    if isinstance(error, errors.GatedRepoError):
        return ShadowError(
            f"{repo} is gated: its owner grants access",
            f"ask for it at {address}; {token_in_use()}",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ShadowError(
            f"{repo} is not on the Hub, or it is private",
            as_folder(repo) or f"check the name; {token_in_use()}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ShadowError(
            f"{repo} has no revision {revision!r}", f"its branches and tags: {address}/tree/main"
        )
    if isinstance(error, errors.DisabledRepoError):
        return ShadowError(f"{repo} has been disabled by the Hub", f"see {address}")
    if isinstance(error, errors.EntryNotFoundError):
        return ShadowError(
            f"{what} is not there", f"its files: {address}/tree/{revision or 'main'}"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ShadowError(
            f"{what} is not in the cache, and this run is offline",
            "run once without HF_HUB_OFFLINE",
        )
    if isinstance(error, errors.FileMetadataError):
        return ShadowError(
            f"{what}: the server does not answer like a Hub", "is HF_ENDPOINT a Hub?"
        )
    if isinstance(error, errors.HFValidationError):
        return ShadowError(f"{repo!r} cannot be the name of a repository", "write org/name")
    if type(error).__name__ in CIRCLES:
        return ShadowError(f"{what} is redirected in a circle", "is HF_ENDPOINT a Hub?")
    if type(error).__name__ in NOWHERE:
        return _nowhere(what)
    status = _status(error)
    if status == 401:
        return ShadowError(
            f"{what}: the Hub requires a valid login (401)", f"{token_in_use()}; is it still valid?"
        )
    if status == 403:
        return ShadowError(
            f"{what}: the Hub refuses access (403)", f"see {address}; {token_in_use()}"
        )
    if status == 429:
        seconds = _retry_after(error)
        hint = f"wait {seconds:.0f} s, then {again}" if seconds else again
        return ShadowError(f"{what}: the Hub says that there were too many requests (429)", hint)
    if status is not None:
        tries = f", also after {ATTEMPTS} tries" if status in TRANSIENT else ""
        return ShadowError(f"{what}: the Hub answers {status}{tries}", again)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ShadowError(
            f"{what}: the disk of {cache_folder()} is full",
            f"free some space, or --max-disk; {again}",
        )
    if _is_local(error):
        reason = getattr(error, "strerror", None)
        return ShadowError(
            f"cannot write to {cache_folder()}: {reason}", "set HF_HUB_CACHE to another folder"
        )
    if _came_short(error):
        return ShadowError(f"{what} arrived incomplete, also after {ATTEMPTS} tries", again)
    if not isinstance(error, FAILURES) or isinstance(error, ValueError):
        return ShadowError(
            f"{what}: the server does not answer like a Hub ({type(error).__name__})",
            "is HF_ENDPOINT a Hub?",
        )
    checked = "the connection and HF_ENDPOINT" if "HF_ENDPOINT" in os.environ else "the connection"
    return ShadowError(
        f"{what}: {constants.ENDPOINT} cannot be reached ({type(error).__name__})",
        as_folder(repo) or f"check {checked}, then {again}; --offline uses what is in the cache",
    )


def _require_usable_settings() -> None:
    """Refuse an address and a token that no request can have, before the HTTP library does it."""
    if not re.fullmatch(r"https?://[!-~]+", constants.ENDPOINT):
        raise ShadowError(
            f"{constants.ENDPOINT} is no web address", "HF_ENDPOINT must begin with https://"
        )
    try:
        token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    except Exception as error:
        raise ShadowError(f"cannot get a token ({type(error).__name__})", token_in_use()) from error
    if token and not re.fullmatch(r"[!-~]+", token):
        raise ShadowError(
            "the token has spaces, control characters or letters beyond ASCII: it cannot be one",
            f"{token_in_use()}; `hf auth login` asks for another",
        )


def token_in_use() -> str:
    """Which token goes with requests, in words and without the token."""
    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return "no token is sent (HF_HUB_DISABLE_IMPLICIT_TOKEN)"
    for name in ("HF_OIDC_RESOURCE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name):
            return f"the token of {name} is in use"
    with contextlib.suppress(*FAILURES):
        if get_token():
            return f"the token in {constants.HF_TOKEN_PATH} is in use"
    return "no token is in use: `hf auth login`, or HF_TOKEN"
