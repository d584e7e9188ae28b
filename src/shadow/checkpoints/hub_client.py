"""The `huggingface_hub` client as audits need it: a session with limits, requests tried again.

The client keeps its session and its settings for the whole process, so what is needed of them
holds only inside `own_client`; whoever else uses the client finds it as it was. No token is sent
to another origin than the Hub's.
"""

from __future__ import annotations

import logging
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any, TypeVar

from huggingface_hub import constants, get_session
from huggingface_hub.utils import hf_raise_for_status

from shadow.checkpoints.hub_faults import (
    ATTEMPTS,
    TRANSIENT,
    StoppedError,
    in_words,
    is_of_hub,
    is_transient,
    is_unconnected,
    problem,
    retry_after,
)
from shadow.errors import ShadowError
from shadow.process_settings import ProcessSetting

# seconds of trying for a connection before the Hub has answered once: more likely an address or a
# network that is wrong than an outage
PATIENCE = 5.0
WAITS = 0.5, 30.0  # seconds before the second try, doubled from try to try, and at most

Say = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class _Before:
    """The client's settings as they were found."""

    level: int  # of its logger
    own_blobs: bool
    added: Any  # the filter of warnings that was put before the others; None if there was one


NEVER = Event()  # which nobody sets: what cannot be stopped
answered = Event()  # set once any server has answered this process
_hooked: list[tuple[Any, Any]] = []  # sessions that obey the two functions below, with their hooks
_HOOKING = Lock()


def _hook() -> None:
    """Let the client's session obey the two functions below, whoever made it.

    The client closes its session where no connection is made, so each try asks for this again.
    """
    with _HOOKING:
        session = get_session()
        hooks = session.event_hooks
        if _before_request not in hooks["request"]:
            _hooked.append((session, hooks))
            before = [*hooks["request"], _before_request]
            session.event_hooks = {"request": before, "response": [_after_response]}


def _taken_over() -> _Before:
    """Put our hooks and settings into the client; returns what was there."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its warnings name URLs and repeat what is said here
    filters = list(warnings.filters)
    # of little disk and of no symlinks, which are said here or no fault
    warnings.filterwarnings("ignore", module="huggingface_hub")
    first = warnings.filters[0]
    _hook()
    added = None if first in filters else first
    return _Before(level, constants.HF_HUB_DISABLE_SHARED_BLOBS, added)


def _give_back(before: _Before) -> None:
    """Put back what was there."""
    while _hooked:
        session, hooks = _hooked.pop()
        session.event_hooks = hooks
    logging.getLogger("huggingface_hub").setLevel(before.level)
    if before.added in warnings.filters:
        warnings.filters.remove(before.added)  # type: ignore[attr-defined]
    constants.HF_HUB_DISABLE_SHARED_BLOBS = before.own_blobs


# The Hub's client with our hooks and without its warnings, until the last holder leaves. Left
# alone it waits for some answers without an end, sleeps for as long as a server asks it to, up to
# five times, and takes the token along to any address that a listing names as its next page. Every
# function that asks the Hub enters it; a caller that asks often holds it meanwhile, so that
# connections are kept. A download that nobody waits for any more holds it until it ends.
own_client = ProcessSetting(_taken_over, _give_back).held


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
    say: Say,
    *,
    repo: str,
    revision: str | None,
    path: str | None = None,
    stop: Event = NEVER,
    progress: Callable[[], int] = lambda: 0,
) -> T:
    """attempt(), again after transient faults; then a ShadowError about what was asked for.

    Waits grow, or are those that the server asks for. Tries are counted from the last progress.
    Where no connection has ever been made, PATIENCE ends them. Raises StoppedError when stop is set
    meanwhile.
    """
    started, tries, reached = time.monotonic(), 0, progress()
    while True:
        try:
            if _hooked:  # the client is held, and may have made another session meanwhile
                _hook()
            return attempt()
        except (ShadowError, StoppedError):
            raise
        except Exception as error:  # the client's, on whatever the server sent
            if progress() != reached:
                tries, reached = 0, progress()
            tries += 1
            seconds = retry_after(error)
            if seconds is None:
                seconds = min(WAITS[0] * 2 ** (tries - 1), WAITS[1]) + random.uniform(0, WAITS[0])  # noqa: S311 - no secret
            waited = time.monotonic() - started + seconds
            is_hopeless = waited > PATIENCE and not answered.is_set() and is_unconnected(error)
            if tries >= ATTEMPTS or is_hopeless or not is_transient(error):
                # its chain of tries says nothing more to people
                raise in_words(error, repo=repo, revision=revision, path=path) from None
            if seconds >= 3:
                say(f"the Hub {problem(error)}; trying again in {seconds:.0f} s")
        if stop.wait(seconds):
            raise StoppedError
