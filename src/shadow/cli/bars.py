"""Bars on a terminal: how far an audit is, in the words of `shadow.cli.pace`.

Imported only where a person watches, as it takes a while.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from shadow.cli.pace import Pace, Update, Watch, told
from shadow.text import visible

if TYPE_CHECKING:
    from shadow.run.runtime import Progress

WORDS = TextColumn("{task.fields[words]}", style="cyan")


@contextlib.contextmanager
def of_pairs(console: Console, total: int, *, together: bool) -> Iterator[Watch]:
    """A bar for each pair at work, and one for all of them. Yields what begins a pair.

    together: they stay from the first pair to the last; otherwise they go after each pair, as its
    report is printed then.
    """
    bar = Bar(TextColumn("{task.description}"), BarColumn(), WORDS, console=console, transient=True)
    pace, alone = Pace(total), contextlib.nullcontext()
    every = bar.add_task("pairs", total=total, words="", visible=total > 1)

    @contextlib.contextmanager
    def begin(title: str) -> Iterator[Update]:
        task = bar.add_task(escape(visible(title)), total=None, words="")
        began, first = time.monotonic(), None

        def update(state: Progress) -> None:
            nonlocal began, first
            if first is None or not first.total:  # what was done before this run has no rate
                began, first = time.monotonic(), state
            pace.update(title, state)
            words = ", ".join(told(state, first, time.monotonic() - began))
            whole = state.cost_total or None
            bar.update(task, total=whole, completed=state.cost_done, words=words)
            bar.update(every, words=pace.in_words())

        pace.begin(title)
        with alone if together else bar:
            try:
                yield update
            finally:
                pace.end(title)
                bar.remove_task(task)
                bar.update(every, completed=pace.ended, words=pace.in_words())

    with bar if together else alone:
        yield begin


@contextlib.contextmanager
def of_steps(console: Console, title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar of steps, with the last one's name."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Bar(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(escape(title), total=None)

        def update(done: int, total: int, what: str) -> None:
            text = f"{title}: {what}" if what else title
            bar.update(task, completed=done, total=total, description=escape(visible(text)))

        yield update
