"""stdout is data, stderr is talk. The only module that prints; faults become words here."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.markup import escape

from shadow.errors import ShadowError

if TYPE_CHECKING:
    from rich.progress import Task

    from shadow.run import Progress

for _stream in (sys.stdout, sys.stderr):  # a letter that the terminal lacks must not end an audit
    if isinstance(_stream, io.TextIOWrapper):
        _stream.reconfigure(errors="replace")

out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)


def show(renderable: RenderableType) -> None:
    """Data for people, on stdout."""
    out.print(renderable)


def show_json(value: Any) -> None:
    """Data for machines, on stdout: exactly JSON, never wrapped or coloured."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def say(text: str) -> None:
    """One line of talk, on stderr."""
    err.print(escape(visible(text)))


def complain(error: ShadowError) -> None:
    """An expected fault: one line, and what to do next."""
    err.print(f"[bold red]error:[/] {escape(visible(error.message))}")
    if error.hint:
        err.print(f"[dim]hint:[/]  {escape(visible(error.hint))}")


def visible(text: str) -> str:
    """Text from files, with control characters, which could drive the terminal, made visible and on one line."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[Progress], None]]:
    """A progress bar on stderr: matrices done, rate, time left. Silent when stderr is not a terminal."""
    if not err.is_terminal:
        yield lambda state: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    started = time.monotonic()

    class Pace(ProgressColumn):
        """Matrices a second and the time left by floating-point operations, not by count: sizes differ a lot."""

        def render(self, task: Task) -> Text:
            state: Progress | None = task.fields.get("state")
            elapsed = time.monotonic() - started
            if state is None or state.done == task.fields["first"] or elapsed < 0.5:
                return Text("")
            rate = (state.done - task.fields["first"]) / elapsed
            spent = state.cost_done - task.fields["first_cost"]
            left = elapsed * (state.cost_total - state.cost_done) / spent if spent else 0.0
            return Text(f"{rate:.1f}/s, {duration(left)} left", style="cyan")

    class Bytes(ProgressColumn):
        """Bytes that have come over the network, and the rate of the last seconds."""

        def __init__(self) -> None:
            super().__init__()
            self.seen: deque[tuple[float, int]] = deque(maxlen=40)

        def render(self, task: Task) -> Text:
            state: Progress | None = task.fields.get("state")
            if state is None or not state.to_move:
                return Text("")
            now = time.monotonic()
            self.seen.append((now, state.moved))
            (first, before), elapsed = self.seen[0], now - self.seen[0][0]
            rate = f", {decimal(int((state.moved - before) / elapsed))}/s" if elapsed > 0.5 and first < now else ""
            going = rate if state.moved < state.to_move else ""
            return Text(f"{decimal(state.moved)} of {decimal(state.to_move)}{going}", style="green")

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        Pace(),
        Bytes(),
        console=err,
        transient=True,
    )
    with bar:
        task = bar.add_task(escape(title), total=None, first=0, first_cost=0, state=None)

        def update(state: Progress) -> None:
            if bar.tasks[0].fields["state"] is None:
                bar.update(task, total=state.total, first=state.done, first_cost=state.cost_done)
            bar.update(task, completed=state.done, state=state)

        yield update


@contextlib.contextmanager
def steps(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on stderr of so many steps, with the last one's name. Silent when stderr is not a terminal."""
    if not err.is_terminal:
        yield lambda done, total, what: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn()
    with Bar(*columns, console=err, transient=True) as bar:
        task = bar.add_task(escape(title), total=None)

        def update(done: int, total: int, what: str) -> None:
            told = f"{title}: {what}" if what else title
            bar.update(task, completed=done, total=total, description=escape(visible(told)))

        yield update


def duration(seconds: float) -> str:
    """`4:07`, or `1:02:03` with hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
