"""Progress of an audit: bars on a terminal, otherwise a line every half minute."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from shadow.text import byte_size, duration, visible

if TYPE_CHECKING:
    from rich.console import Console

    from shadow.run.runtime import Progress as State

Update = Callable[["State"], None]
Watch = Callable[[str], contextlib.AbstractContextManager[Update]]
EVERY = 30.0  # seconds between two lines


def _in_words(state: State) -> Iterator[str]:
    """Return `120 of 296 matrices`, `1.2 GB of 3 GB fetched`, as far as these are known."""
    if state.total:
        yield f"{state.done:,} of {state.total:,} matrices"
    if state.to_move:
        yield f"{byte_size(state.moved)} of {byte_size(state.to_move)} fetched"


@contextlib.contextmanager
def in_lines(
    total: int, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> Iterator[Watch]:
    """Print every half minute how far a pair is. Yields a function that begins a pair, by its
    title.

    The remaining time is by operations, not by count, as sizes differ a lot; work done before this
    run is not part of the rate.
    """
    last, ended = clock(), 0

    @contextlib.contextmanager
    def begin(title: str) -> Iterator[Update]:
        nonlocal ended
        began, first = clock(), None

        def update(state: State) -> None:
            nonlocal last, began, first
            if first is None or not first.total:
                began, first = clock(), state
            if clock() - last < EVERY:
                return
            last = clock()
            words = list(_in_words(state))
            if state.cost_total:
                words.insert(0, f"{100 * state.cost_done / state.cost_total:.0f} % done")
            if spent := state.cost_done - first.cost_done:
                left = (last - began) * (state.cost_total - state.cost_done) / spent
                words.append(f"{duration(left)} left")
            words += [f"{ended:,} of {total:,} pairs done"] if total > 1 else []
            say(f"{title}: {', '.join(words) or 'at work'}")

        try:
            yield update
        finally:
            ended += 1

    yield begin


@contextlib.contextmanager
def in_bars(console: Console, total: int, *, together: bool) -> Iterator[Watch]:
    """Draw a bar for each pair at work, and one for all. Yields a function that begins a pair.

    together: bars stay until the last pair; otherwise each goes after its pair, whose report is
    printed then.
    """
    from rich.markup import escape
    from rich.progress import Progress, TextColumn

    columns = *Progress.get_default_columns(), TextColumn("{task.fields[words]}", style="cyan")
    bars = Progress(*columns, console=console, transient=True)
    every = bars.add_task("pairs", total=total, words="", visible=total > 1)

    @contextlib.contextmanager
    def begin(title: str) -> Iterator[Update]:
        task = bars.add_task(escape(visible(title)), total=None, words="")

        def update(state: State) -> None:
            words, whole = ", ".join(_in_words(state)), state.cost_total or None
            bars.update(task, total=whole, completed=state.cost_done, words=words)

        with contextlib.nullcontext() if together else bars:
            try:
                yield update
            finally:
                bars.remove_task(task)
                bars.advance(every)

    with bars if together else contextlib.nullcontext():
        yield begin


@contextlib.contextmanager
def of_steps(console: Console, title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Draw a bar of steps, with the name of the last one."""
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bars:
        task = bars.add_task(escape(title), total=None)

        def update(done: int, total: int, what: str) -> None:
            text = escape(visible(f"{title}: {what}" if what else title))
            bars.update(task, completed=done, total=total, description=text)

        yield update
