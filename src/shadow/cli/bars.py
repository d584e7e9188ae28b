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

from shadow.cli.pace import Pace, Update, Watch, rate_and_left
from shadow.text import byte_size, visible

if TYPE_CHECKING:
    from shadow.run.runtime import Progress


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
    """Matrices a second, and the time left."""

    def render(self, task: Task) -> Text:
        state: Progress | None = task.fields.get("state")
        first: Progress | None = task.fields["first"]
        elapsed = time.monotonic() - task.fields["began"]
        if state is None or first is None or elapsed < 0.5:
            return Text("")
        return Text(", ".join(rate_and_left(state, first, elapsed)), style="cyan")


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
        fields: dict[str, Any] = {"first": None, "state": None, "began": time.monotonic()}
        task = bar.add_task(escape(visible(title)), total=None, **fields)

        def update(state: Progress) -> None:
            if bar.tasks[0].total is None and state.total:
                bar.update(task, total=state.total, first=state)
            bar.update(task, completed=state.done, state=state)

        return update

    return bar, begin
