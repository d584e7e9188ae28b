"""The `huggingface_hub` client as audits need it: a session with limits, retries, and each error as
a line and a hint.

The client keeps its session and its settings for the whole process, so changes to them apply only
inside `own_client`; other users of the client find it unchanged. No token is sent to another origin
than the Hub's, or put into a message, and what a server writes is not repeated. The client's HTTP
library has changed twice, so its exceptions are recognised by their names.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import random
import re
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Lock
from typing import Any, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import constants, errors, get_session
from huggingface_hub.utils import get_token, hf_raise_for_status, parse_ratelimit_headers

from shadow.checkpoints.transfers import StoppedError, Transfer
from shadow.errors import ShadowError
from shadow.targets.references import as_folder

T = TypeVar("T")
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
MISLED = ("TooManyRedirects", "UnsupportedProtocol", "InvalidURL")
UNCONNECTED = ("ConnectError", "ConnectTimeout")  # refused, an unknown name, or no answer
ATTEMPTS = 6  # in a row without a byte of progress
MAX_WAIT = 300.0  # seconds that a server may ask to wait; for more, the command is given back

NO_HUB = "check that HF_ENDPOINT is a Hub"
AGAIN = "run the same command again: it continues from here"
OFFLINE = "not in the cache, and this run is offline"
CACHED = "--offline uses what is in the cache"
Words = tuple[str, str]  # a message and a hint, both templates
NOT_A_HUB: Words = ("{what}: the server does not answer like a Hub ({kind})", NO_HUB)
# the first that an error is an instance of: most are subclasses of others
OF_TYPE: tuple[tuple[type[Exception], Words], ...] = (
    (
        errors.GatedRepoError,
        ("{repo} is gated: its owner grants access", "ask for it at {address}; {token}"),
    ),
    (errors.RepositoryNotFoundError, ("{repo} is not on the Hub, or it is private", "{named}")),
    (
        errors.RevisionNotFoundError,
        ("{repo} has no revision {revision!r}", "its branches and tags: {address}/tree/main"),
    ),
    (errors.EntryNotFoundError, ("{what} is not there", "its files: {address}/tree/{tree}")),
    (errors.OfflineModeIsEnabled, (f"{{what}} is {OFFLINE}", "run once without HF_HUB_OFFLINE")),
    (errors.FileMetadataError, NOT_A_HUB),
    (errors.HFValidationError, ("{repo!r} cannot be the name of a repository", "write org/name")),
)
OF_STATUS: dict[int, Words] = {
    401: ("{what}: the Hub requires a valid login (401)", "{token}; check that it is still valid"),
    403: ("{what}: the Hub refuses access (403)", "see {address}; {token}"),
    429: ("{what}: too many requests to the Hub (429)", "{wait}"),
}


def cache_folder() -> Path:
    """The client's cache of repositories (HF_HUB_CACHE)."""
    return Path(constants.HF_HUB_CACHE).expanduser()


def is_of_hub(url: str) -> bool:
    """True if an address belongs to the Hub itself, not to a server that it redirects to."""
    return _origin(url) == _origin(constants.ENDPOINT)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _cause(error: BaseException) -> BaseException:
    """The error behind the client's own errors of a missing file or a forced download."""
    wrappers = errors.LocalEntryNotFoundError, errors.RevisionResolutionError, ValueError
    while isinstance(error, wrappers) and isinstance(error.__cause__, FAILURES):
        error = error.__cause__
    return error


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def retry_after(error: BaseException) -> float | None:
    """The seconds that the answer asks to wait; None if it does not."""
    response = getattr(_cause(error), "response", None)
    if response is None:
        return None
    if response.status_code == 429:
        limit = parse_ratelimit_headers(response.headers)
        if limit is not None and limit.remaining == 0:
            return float(limit.reset_in_seconds)
    value = response.headers.get("retry-after", "").strip()
    return float(value) if re.fullmatch(r"\d{1,9}", value) else None


def is_transient(error: BaseException) -> bool:
    """True if another attempt may succeed."""
    error = _cause(error)
    if isinstance(
        error, (ShadowError, StoppedError, errors.OfflineModeIsEnabled, errors.FileMetadataError)
    ):
        return False
    status = _status(error)
    response = getattr(error, "response", None)
    # a signed address of another server; the next attempt gets a new one
    if status == 403 and response is not None and not is_of_hub(str(response.url)):
        return True
    if status is not None:
        return status in TRANSIENT and (retry_after(error) or 0) <= MAX_WAIT
    if _is_local(error) or type(error).__name__ in MISLED:
        return False
    return isinstance(error, FAILURES) and not isinstance(error, ValueError)


def _is_local(error: BaseException) -> bool:
    """True if this machine's disk failed; network errors have another type, or no number."""
    if not isinstance(error, OSError) or isinstance(error, ConnectionError | TimeoutError):
        return False
    return error.errno not in (None, errno.EPIPE)


def in_words(
    error: BaseException, *, repo: str, revision: str | None = None, path: str | None = None
) -> ShadowError:
    """Make one line and a hint for an error of the client, without repeating its text."""
    error = _cause(error)
    seconds = retry_after(error)
    message, hint = _words(error)
    token = token_in_use()
    folder = as_folder(repo)
    facts = {
        "repo": repo,
        "what": f"{repo}: {path}" if path else repo,
        "revision": revision,
        "tree": revision or "main",
        "address": f"{constants.ENDPOINT}/{repo}",
        "token": token,
        "named": folder or f"check the name; {token}",
        "wait": f"wait {seconds:.0f} s, then {AGAIN}" if seconds else AGAIN,
        "cache": cache_folder(),
        "reason": getattr(error, "strerror", None),
        "hub": constants.ENDPOINT,
        "kind": type(error).__name__,
        "reached": folder or f"check the connection and HF_ENDPOINT, then {AGAIN}; {CACHED}",
    }
    return ShadowError(message.format(**facts), hint.format(**facts))


def _words(error: BaseException) -> Words:
    """The templates for an error."""
    for kind, words in OF_TYPE:
        if isinstance(error, kind):
            return words
    status = _status(error)
    if status is not None:
        tries = f", also after {ATTEMPTS} tries" if status in TRANSIENT else ""
        return OF_STATUS.get(status, (f"{{what}}: the Hub answers {status}{tries}", AGAIN))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "{what}: the disk of {cache} is full", f"free some space, or --max-disk; {AGAIN}"
    if _is_local(error):
        return "cannot write to {cache}: {reason}", "set HF_HUB_CACHE to another folder"
    is_misled = isinstance(error, ValueError) or type(error).__name__ in MISLED
    if is_misled or not isinstance(error, FAILURES):
        return NOT_A_HUB
    return "{what}: {hub} does not answer, or breaks off ({kind})", "{reached}"


def require_usable_settings() -> None:
    """Refuse an address or a token that no request can use, before the HTTP library does."""
    if not re.fullmatch(r"https?://[!-~]+", constants.ENDPOINT):
        raise ShadowError(
            f"{constants.ENDPOINT} is not a web address", "HF_ENDPOINT must begin with https://"
        )
    try:
        token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    except Exception as error:
        fault = f"cannot get a token ({type(error).__name__})"
        raise ShadowError(fault, "set HF_TOKEN, or type `hf auth login`") from error
    if token and not re.fullmatch(r"[!-~]+", token):
        raise ShadowError(
            "the token has spaces, control characters or letters beyond ASCII, and cannot be valid",
            "correct HF_TOKEN, or type `hf auth login`",
        )


def token_in_use() -> str:
    """Describe in words whether requests carry a token."""
    with contextlib.suppress(*FAILURES):
        if not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN and get_token():
            return "a token is in use"
    return "no token is in use: `hf auth login`, or HF_TOKEN"


# seconds of trying for a connection before the Hub has answered once: more likely an address or a
# network that is wrong than an outage
PATIENCE = 5.0
WAITS = 0.5, 30.0  # seconds before the second try, doubled from try to try, and at most


answered = Event()  # set once any server has answered this process
_hooked: list[tuple[Any, Any]] = []  # sessions that obey the two functions below, with their hooks
_HOOKING = Lock()
_HOLDING = Lock()
_holders: list[int] = []  # one a holder of the client
_before = contextlib.ExitStack()  # puts back what was there


def _hook() -> None:
    """Make the client's session call the two functions below, whoever created it.

    The client closes its session if no connection is made, so each attempt calls this again.
    """
    with _HOOKING:
        session = get_session()
        hooks = session.event_hooks
        if _before_request not in hooks["request"]:
            _hooked.append((session, hooks))
            before = [*hooks["request"], _before_request]
            session.event_hooks = {"request": before, "response": [_after_response]}


@contextlib.contextmanager
def own_client() -> Iterator[None]:
    """Hold the Hub's client with our hooks and without its warnings, until the last holder leaves.

    By itself it waits for some answers forever, sleeps as long as a server asks it to, up to five
    times, and sends the token to any address that a listing names as its next page. Every function
    that asks the Hub enters it; a caller that asks often holds it, so that connections are kept
    open. An abandoned download holds it until it ends.
    """
    with _HOLDING:
        if not _holders:
            _take_over()
        _holders.append(1)
    try:
        yield
    finally:
        with _HOLDING:
            _holders.pop()
            if not _holders:
                _before.close()


def _take_over() -> None:
    """Install our hooks and settings in the client."""
    logger = logging.getLogger("huggingface_hub")
    shared = "HF_HUB_DISABLE_SHARED_BLOBS"
    _before.callback(logger.setLevel, logger.level)
    _before.callback(setattr, constants, shared, getattr(constants, shared))
    logger.setLevel(logging.ERROR)  # its warnings name URLs and repeat what is said here
    filters: list[Any] = [*warnings.filters]
    # of little disk and of no symlinks, which are said here or no fault
    warnings.filterwarnings("ignore", module="huggingface_hub")
    added = warnings.filters[0]

    def put_back() -> None:
        while _hooked:
            session, hooks = _hooked.pop()
            session.event_hooks = hooks
        if added not in filters and added in warnings.filters:
            warnings.filters.remove(added)  # type: ignore[attr-defined]

    _before.callback(put_back)
    _hook()


def _before_request(request: Any) -> None:
    longest = max(constants.HF_HUB_DOWNLOAD_TIMEOUT, constants.HF_HUB_ETAG_TIMEOUT)
    unlimited = dict.fromkeys(("connect", "read", "write", "pool"))
    limits = request.extensions.get("timeout") or unlimited
    request.extensions["timeout"] = {
        name: min(value or longest, longest) for name, value in limits.items()
    }
    if not is_of_hub(str(request.url)):
        request.headers.pop("authorization", None)


def _after_response(response: Any) -> None:
    answered.set()
    if response.status_code in TRANSIENT:
        hf_raise_for_status(response)  # here, so that only `trying` decides about another try


def trying(
    attempt: Callable[[], T],
    by: Transfer,
    repo: str,
    revision: str | None,
    path: str | None = None,
    progress: Callable[[], int] = lambda: 0,
) -> T:
    """Call attempt() until it succeeds, retrying after transient errors; then raise a ShadowError
    about what was requested.

    Waits grow, or are those that the server asks for. Attempts are counted from the last progress.
    If no connection was ever made, PATIENCE ends them. Raises StoppedError once by.stop is set.
    """
    started = time.monotonic()
    tries = 0
    reached = progress()
    while True:
        try:
            if _hooked:  # the client is held, and may have made another session meanwhile
                _hook()
            return attempt()
        except (ShadowError, StoppedError):
            raise
        except Exception as error:  # the client's, on whatever the server sent
            if progress() != reached:
                tries = 0
                reached = progress()
            tries += 1
            seconds = retry_after(error)
            if seconds is None:
                seconds = min(WAITS[0] * 2 ** (tries - 1), WAITS[1]) + random.uniform(0, WAITS[0])  # noqa: S311 - no secret
            waited = time.monotonic() - started + seconds
            cause = _cause(error)
            is_unconnected = type(cause).__name__ in UNCONNECTED
            is_hopeless = is_unconnected and waited > PATIENCE and not answered.is_set()
            if tries >= ATTEMPTS or is_hopeless or not is_transient(error):
                # its chain of tries says nothing more to people
                raise in_words(error, repo=repo, revision=revision, path=path) from None
            if seconds >= 3:
                status = _status(cause)
                fault = f"answers {status}" if status else "does not answer, or breaks off"
                by.say(f"the Hub {fault}; trying again in {seconds:.0f} s")
        if by.stop.wait(seconds):
            raise StoppedError
