"""Bars on a terminal: how far an audit is, and how long it still takes.

Imported only where a person watches, as it takes a while.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from shadow.text import byte_size, duration, visible

if TYPE_CHECKING:
    from shadow.audits.runtime import Progress

Update = Callable[["Progress"], None]
Watch = Callable[[str], contextlib.AbstractContextManager[Update]]


@contextlib.contextmanager
def pair_after_pair(console: Console) -> Iterator[Watch]:
    """A bar for each pair: matrices done, rate, bytes, time left. Yields what begins a pair."""

    @contextlib.contextmanager
    def begin(title: str) -> Iterator[Update]:
        bar, begin_pair = _matrix_bar(console)
        with bar:
            yield begin_pair(title)

    yield begin


@contextlib.contextmanager
def of_list(console: Console, total: int) -> Iterator[Watch]:
    """Two bars: pairs done and time left for the list, and the bar of the current pair.

    Yields what begins the next pair, by its title.
    """
    bar, begin_pair = _matrix_bar(console)
    pace = Pace(total)
    overall = _bar(console, TextColumn("{task.fields[left]}", style="cyan"))
    task = overall.add_task("pairs", total=total, left="")

    @contextlib.contextmanager
    def begin(title: str) -> Iterator[Update]:
        pace.begin(title)
        update_pair = begin_pair(title)

        def update(state: Progress) -> None:
            update_pair(state)
            pace.update(title, state)
            overall.update(task, left=pace.left())

        try:
            yield update
        finally:
            pace.end(title)
            overall.update(task, completed=pace.ended)

    with Live(Group(overall, bar), console=console, transient=True):
        yield begin


@contextlib.contextmanager
def side_by_side(console: Console, total: int) -> Iterator[Watch]:
    """One bar for tasks side by side: how many ended, how many run, bytes, time left.

    Yields what begins a task, by its name.
    """
    bar = _bar(console, TextColumn("{task.fields[more]}", style="cyan"))
    pace = Pace(total)
    task = bar.add_task("pairs", total=total, more="")

    @contextlib.contextmanager
    def begin(title: str) -> Iterator[Update]:
        def update(state: Progress) -> None:
            pace.update(title, state)
            bar.update(task, more=pace.in_words())

        pace.begin(title)
        try:
            yield update
        finally:
            pace.end(title)
            bar.update(task, completed=pace.ended, more=pace.in_words())

    with bar:
        yield begin


@contextlib.contextmanager
def of_steps(console: Console, title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar of steps, with the last one's name."""
    with _bar(console, TimeRemainingColumn(), width=40) as bar:
        task = bar.add_task(escape(title), total=None)

        def update(done: int, total: int, what: str) -> None:
            text = f"{title}: {what}" if what else title
            bar.update(task, completed=done, total=total, description=escape(visible(text)))

        yield update


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

    def _at_work(self) -> list[Progress]:
        return [state for state in self._running.values() if state is not None]


def _bar(console: Console, *columns: ProgressColumn, width: int | None = None) -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=width),
        MofNCompleteColumn(),
        *columns,
        console=console,
        transient=True,
    )


class _Rate(ProgressColumn):
    """Matrices a second, and the time left by operations, not by count: sizes differ a lot."""

    def render(self, task: Task) -> Text:
        state: Progress | None = task.fields.get("state")
        elapsed = time.monotonic() - task.fields["began"]
        if state is None or state.done == task.fields["first"] or elapsed < 0.5:
            return Text("")
        rate = (state.done - task.fields["first"]) / elapsed
        spent = state.cost_done - task.fields["first_cost"]
        left = elapsed * (state.cost_total - state.cost_done) / spent if spent else 0.0
        return Text(f"{rate:.1f}/s, {duration(left)} left", style="cyan")


class _Bytes(ProgressColumn):
    """Bytes that have come over the network, and the rate of the last seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: deque[tuple[float, int]] = deque(maxlen=40)

    def render(self, task: Task) -> Text:
        state: Progress | None = task.fields.get("state")
        if state is None or not state.to_move:
            self.seen.clear()
            return Text("")
        now = time.monotonic()
        if self.seen and state.moved < self.seen[-1][1]:  # another download, or one that failed
            self.seen.clear()
        self.seen.append((now, state.moved))
        first, before = self.seen[0]
        elapsed = now - first
        text = f"{byte_size(state.moved)} of {byte_size(state.to_move)}"
        if state.moved < state.to_move and elapsed > 0.5:
            text += f", {byte_size(int((state.moved - before) / elapsed))}/s"
        return Text(text, style="green")


def _matrix_bar(console: Console) -> tuple[Bar, Callable[[str], Update]]:
    """The bar of one pair, and what begins a pair in it."""
    bytes_column = _Bytes()
    bar = _bar(console, _Rate(), bytes_column)

    def begin(title: str) -> Update:
        for old in bar.task_ids:
            bar.remove_task(old)
        bytes_column.seen.clear()
        fields: dict[str, Any] = {
            "first": 0,
            "first_cost": 0,
            "state": None,
            "began": time.monotonic(),
        }
        task = bar.add_task(escape(visible(title)), total=None, **fields)

        def update(state: Progress) -> None:
            if bar.tasks[0].total is None and state.total:
                bar.update(task, total=state.total, first=state.done, first_cost=state.cost_done)
            bar.update(task, completed=state.done, state=state)

        return update

    return bar, begin
