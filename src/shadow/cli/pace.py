"""How far pairs are and how long they still take; and lines that say so where no terminal is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from shadow.text import byte_size, duration

if TYPE_CHECKING:
    from shadow.run.runtime import Progress

Update = Callable[["Progress"], None]
Watch = Callable[[str], contextlib.AbstractContextManager[Update]]
EVERY = 30.0  # seconds between two lines


class Pace:
    """How far several pairs are, one after another or side by side, and the time that they still
    take, by those of this run that were really measured.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.ended = 0
        self._clock = clock
        self._started = clock()
        self._running: dict[str, Progress | None] = {}
        self._measured = 0  # that ended and were not only read
        self._moved = 0  # bytes, of those that ended

    def begin(self, title: str) -> None:
        """A pair begins. What was only read before the first one is measured takes no time."""
        if not self._measured and not any(self._running.values()):
            self._started = self._clock()
        self._running[title] = None

    def update(self, title: str, state: Progress) -> None:
        """How far a pair is, if it has begun and not ended."""
        if title in self._running:
            self._running[title] = state

    def end(self, title: str) -> None:
        """A pair ends. One without progress was only read, and does not count."""
        state = self._running.pop(title, None)
        self.ended = min(self.ended + 1, self.total)
        if state is not None:
            self._measured += 1
            self._moved += state.moved

    def left(self) -> str:
        """`3:20 left`; empty while nothing can be said."""
        shares = [state.cost_done / (state.cost_total or 1) for state in self._at_work()]
        measured = self._measured + sum(shares)
        if measured < 0.01:
            return ""
        seconds = (self._clock() - self._started) / measured
        return f"{duration(seconds * max(self.total - self.ended - sum(shares), 0.0))} left"

    def in_words(self) -> str:
        """`4 at work, 1.2 GB fetched, 3:20 left`."""
        moved = self._moved + sum(state.moved for state in self._at_work())
        fetched = f"{byte_size(moved)} fetched" if moved else ""
        return ", ".join(filter(None, (f"{len(self._running)} at work", fetched, self.left())))

    def of_all(self) -> Iterator[str]:
        """`3 of 10 pairs done`, `1:20 left`, of several pairs."""
        if self.total > 1:
            yield f"{self.ended:,} of {self.total:,} pairs done"
            yield from filter(None, [self.left()])

    def _at_work(self) -> list[Progress]:
        return [state for state in self._running.values() if state is not None]


@contextlib.contextmanager
def in_lines(
    total: int, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> Iterator[Watch]:
    """A line every half minute of how far the work is. Yields what begins a pair, by its title."""
    pace, last = Pace(total, clock), clock()

    @contextlib.contextmanager
    def begin(title: str) -> Iterator[Update]:
        began, first = clock(), None

        def update(state: Progress) -> None:
            nonlocal last, began, first
            if first is None or not first.total:  # what was done before this run has no rate
                began, first = clock(), state
            pace.update(title, state)
            if clock() - last >= EVERY:
                last = clock()
                words = [*told(state, first, last - began), *pace.of_all()]
                say(f"{title}: {', '.join(words) or 'at work'}")

        pace.begin(title)
        try:
            yield update
        finally:
            pace.end(title)

    yield begin


def told(state: Progress, first: Progress, elapsed: float) -> Iterator[str]:
    """`45 % done`, `120 of 296 matrices`, `3.1/s`, `1:20 left`, as far as they are known.

    The rate is since `first`; the time left is by operations, not by count, as sizes differ a lot.
    """
    if state.total:
        yield f"{100 * state.cost_done / (state.cost_total or 1):.0f} % done"
        yield f"{state.done:,} of {state.total:,} matrices"
    if state.to_move:
        yield f"{byte_size(state.moved)} of {byte_size(state.to_move)} fetched"
    if (done := state.done - first.done) and elapsed:
        yield f"{done / elapsed:.2g}/s" if done < 10 * elapsed else f"{done / elapsed:,.0f}/s"
    if (spent := state.cost_done - first.cost_done) and elapsed:
        yield f"{duration(elapsed * (state.cost_total - state.cost_done) / spent)} left"
