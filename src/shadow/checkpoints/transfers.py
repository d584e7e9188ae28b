"""Downloads: their callbacks, and threads that can be given up."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Thread
from typing import TypeVar

Say = Callable[[str], None]
OnBytes = Callable[[int], None]
T = TypeVar("T")
R = TypeVar("R")


class StoppedError(Exception):
    """A download was given up because the audit around it ended."""


def unheard(news: object) -> None:
    """Ignore a line or a count."""


@dataclass(frozen=True)
class Transfer:
    """The callbacks of a download."""

    say: Say = unheard  # called with a line before a request is retried
    # called with counts of bytes as they come; a negative one takes back a failed attempt's
    report: OnBytes = unheard
    stop: Event = field(default_factory=Event)  # ends it with StoppedError once set


def in_threads(function: Callable[[T, Event], R], items: Sequence[T], threads: int) -> list[R]:
    """Compute function(item, stop) for every item, in order, in that many daemon threads.

    stop is set when the call ends. Raises the error of the first item that fails.
    """
    futures: list[Future[R]] = []
    for _ in items:
        futures.append(Future())
    waiting = deque(zip(futures, items, strict=True))
    stop = Event()

    def work() -> None:
        with contextlib.suppress(IndexError):
            while not stop.is_set():
                future, item = waiting.popleft()
                _settle(future, partial(function, item, stop))

    for _ in range(min(threads, len(items))):
        thread = Thread(target=work, name="open", daemon=True)
        thread.start()
    try:
        return [future.result() for future in futures]
    finally:
        stop.set()


def begin(work: Callable[[], R]) -> Future[R]:
    """Start work() in a thread of its own. The future has what it returns or raises.

    The thread is a daemon: a download that does not answer must not delay the end of the process.
    """
    future: Future[R] = Future()
    thread = Thread(target=_settle, args=(future, work), name="fetch", daemon=True)
    thread.start()
    return future


@contextlib.contextmanager
def meanwhile(work: Callable[[], R]) -> Iterator[Future[R]]:
    """Run work() in a thread of its own while the block runs; its end is waited for."""
    future = begin(work)
    try:
        yield future
    finally:
        future.exception()


def _settle(future: Future[R], work: Callable[[], R]) -> None:
    """Give a future what work() returns or raises."""
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
