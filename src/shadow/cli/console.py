"""stdout is data, stderr is talk. The only module that prints; faults become words here."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.markup import escape

from shadow.cli.interrupts import Unfinished
from shadow.errors import ShadowError
from shadow.storage import as_given
from shadow.text import byte_size, duration, inert, redacted, visible

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import Task

    from shadow.audits.runtime import Progress
    from shadow.telling.document import Document


out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
BLANK_LINE = r"(?m:^)(?:[^\S\n]|\x1b\[[0-9;]*m)*\n"  # colours are no letters


def forgive_letters() -> None:
    """A letter that the terminal lacks becomes a question mark: it must not end an audit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


_views = 0  # that this command has displayed


def begin() -> None:
    """A command begins: nothing has been displayed."""
    global _views
    _views = 0


def display(renderable: RenderableType) -> None:
    """Data for people, on stdout: one view. A blank line parts it from the view before.

    Tables bring blank lines of their own: none stays at either end, and two in a row become one.
    """
    global _views
    text = _rendered(out, renderable)
    text = re.sub(rf"(?:{BLANK_LINE})+", "\n", text).strip("\n")
    if text:
        out.file.write(f"\n{text}\n" if _views else f"{text}\n")
        _views += 1


def show(document: Document) -> None:
    """The same of a document."""
    from shadow.outputs.terminal.blocks import View

    display(View(document))


def show_json(value: Any) -> None:
    """Data for machines, on stdout: exactly JSON, never wrapped or coloured."""
    text = json.dumps(value, indent=2, allow_nan=False)
    print(text.replace("##", "#\\u0023"))  # only strings hold it: see inert


def show_text(text: str) -> None:
    """Data as it is, such as Markdown, on stdout: never wrapped or coloured."""
    if not _is_watched(out):
        text = inert(text)
    print(text, end="")


def say(text: str) -> None:
    """One line of talk, on stderr."""
    _print(err, escape(visible(redacted(as_given(text)))))


def say_nothing(text: str) -> None:
    """What `--quiet` does with a line of talk."""


def flush() -> None:
    """Write what stdout still holds: a full disk is told of now, and not by the interpreter."""
    if sys.stdout is not None:
        sys.stdout.flush()


def give_up() -> None:
    """What stdout still holds cannot be written: let no flush at the end complain again."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def annotate(command: str) -> None:
    """A workflow command of GitHub Actions, a line on stderr, which the runner reads as well."""
    sys.stderr.write(command + "\n")


def complain(error: ShadowError) -> None:
    """An expected fault: one line, and what to do next.

    What was typed may be told as it was, so passwords are left out here.
    """
    message, hint = (redacted(as_given(text)) for text in (error.message, error.hint or ""))
    _print(err, f"[bold red]error:[/] {escape(visible(message))}")
    if hint:
        _print(err, f"[dim]hint:[/]  {escape(visible(hint))}")


@contextlib.contextmanager
def continuable() -> Iterator[None]:
    """An interrupt of the work of a block leaves it to the same command to continue."""
    try:
        yield
    except KeyboardInterrupt:
        raise Unfinished from None


def _print(console: Console, renderable: RenderableType) -> None:
    if _is_watched(console):
        console.print(renderable)
        return
    console.file.write(_rendered(console, renderable))


def _rendered(console: Console, renderable: RenderableType) -> str:
    """What a console would print. For a file or a pipe, without the spaces that fill cells up to
    their width, and without commands to what may run this.
    """
    with console.capture() as captured:
        console.print(renderable)
    if _is_watched(console):
        return captured.get()
    return inert(re.sub(r"[^\S\n]+$", "", captured.get(), flags=re.MULTILINE))


def _is_watched(console: Console) -> bool:
    """Does a person see it? Not Console.is_terminal, which FORCE_COLOR makes true in CI too."""
    return console.is_terminal and console.file.isatty()


Update = Callable[["Progress"], None]
Watch = Callable[[str], contextlib.AbstractContextManager[Update]]


@contextlib.contextmanager
def progress(title: str) -> Iterator[Update]:
    """A progress bar on stderr: matrices done, rate, time left. Silent unless on a terminal."""
    if not _is_watched(err):
        with _no_progress(title) as update:
            yield update
        return
    bar, begin = _matrix_bar()
    with bar:
        yield begin(title)


def _no_progress(title: str) -> contextlib.AbstractContextManager[Update]:
    """A bar that nobody sees."""
    return contextlib.nullcontext(lambda state: None)


def pairs_progress(
    total: int, *, is_list: bool, hidden: bool = False, several: bool = False
) -> contextlib.AbstractContextManager[Watch]:
    """Of a list the bars of `list_progress`; otherwise a bar for each pair while it is audited.

    several: pairs are audited several at a time, and have one bar together. hidden: no bar at all.
    """
    if hidden:
        return contextlib.nullcontext(_no_progress)
    if several:
        return side_by_side_progress(total)
    if is_list:
        return list_progress(total)
    return contextlib.nullcontext(progress)


@contextlib.contextmanager
def list_progress(total: int) -> Iterator[Watch]:
    """Two bars on stderr: pairs done and time left for the list, and the bar of the current pair.

    Yields what begins the next pair, by its title. Silent when stderr is not a terminal.
    """
    if not _is_watched(err):
        yield progress
        return
    from rich.console import Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    bar, begin_pair = _matrix_bar()
    pace = ListPace(total)
    overall = Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}", style="cyan"),
        console=err,
    )
    task = overall.add_task("pairs", total=total, left="")

    @contextlib.contextmanager
    def begin(title: str) -> Iterator[Update]:
        overall.update(task, completed=pace.begun)
        pace.begin()
        update = begin_pair(title)

        def told(state: Progress) -> None:
            update(state)
            share = state.cost_done / state.cost_total if state.cost_total else 1.0
            left = pace.left(share)
            overall.update(task, left="" if left is None else f"{duration(left)} left")

        yield told

    with Live(Group(overall, bar), console=err, transient=True):
        yield begin


@contextlib.contextmanager
def side_by_side_progress(total: int) -> Iterator[Watch]:
    """One bar on stderr for tasks side by side: how many ended, how many run, bytes, time left.

    Yields what begins a task, by its name. Silent when stderr is not a terminal.
    """
    if not _is_watched(err):
        yield _no_progress
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn()
    bar = Bar(
        *columns, TextColumn("{task.fields[more]}", style="cyan"), console=err, transient=True
    )
    fleet = Fleet(total)
    task = bar.add_task("pairs", total=total, more="")

    @contextlib.contextmanager
    def begin(title: str) -> Iterator[Update]:
        def told(state: Progress) -> None:
            fleet.tell(title, state)
            bar.update(task, more=fleet.told())

        fleet.begin(title)
        try:
            yield told
        finally:
            fleet.end(title)
            bar.update(task, completed=fleet.ended, more=fleet.told())

    with bar:
        yield begin


class Fleet:
    """Tasks that run side by side: what is told of all of them in one line."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.ended = 0
        self._clock = clock
        self._started = clock()
        self._running: dict[str, Progress | None] = {}
        self._measured = 0  # tasks that ended and were not only read
        self._moved = 0  # bytes, of those that ended

    def begin(self, title: str) -> None:
        """A task begins."""
        self._running[title] = None

    def tell(self, title: str, state: Progress) -> None:
        """How far a task is, if it has begun and not ended."""
        if title in self._running:
            self._running[title] = state

    def end(self, title: str) -> None:
        """A task ends."""
        state = self._running.pop(title, None)
        self.ended = min(self.ended + 1, self.total)
        if state is not None:
            self._measured += 1
            self._moved += state.moved

    def told(self) -> str:
        """`4 at work, 1.2 GB fetched, 3 min left`."""
        states = [state for state in self._running.values() if state is not None]
        parts = [f"{len(self._running)} at work"]
        moved = self._moved + sum(state.moved for state in states)
        if moved:
            parts.append(f"{byte_size(moved)} fetched")
        done = self._measured + sum(
            state.cost_done / state.cost_total for state in states if state.cost_total
        )
        left = self.total - self.ended - done + self._measured
        if done >= 0.01:
            seconds = (self._clock() - self._started) / done * max(left, 0.0)
            parts.append(f"{duration(seconds)} left")
        return ", ".join(parts)


class ListPace:
    """The time that a list still takes, by the pairs of this run that were really measured."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.begun = 0
        self._clock = clock
        self._started = clock()
        self._spent = 0.0  # seconds, on the measured pairs before this one
        self._measured = 0  # how many these are
        self._share = 0.0  # of this pair, how much is done

    def begin(self) -> None:
        """The next pair begins. One that has told no progress was only read, and does not count."""
        now = self._clock()
        if self._share:
            self._spent += now - self._started
            self._measured += 1
        self.begun += 1
        self._started = now
        self._share = 0.0

    def left(self, share: float) -> float | None:
        """Seconds left when this share of the current pair is done, 0 to 1; None if unknown yet."""
        self._share = max(share, 1e-9)
        measured = self._measured + share
        if measured < 0.01:
            return None
        elapsed = self._spent + self._clock() - self._started
        return elapsed / measured * (self.total - self.begun + 1 - share)


def _matrix_bar() -> tuple[Bar, Callable[[str], Update]]:
    """The bar of one pair, and what begins a pair in it."""
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Pace(ProgressColumn):
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

    class Bytes(ProgressColumn):
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

    bytes_column = Bytes()
    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        Pace(),
        bytes_column,
        console=err,
        transient=True,
    )

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


@contextlib.contextmanager
def steps(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on stderr of steps, with the last one's name. Silent unless on a terminal."""
    if not _is_watched(err):
        yield lambda done, total, what: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=err, transient=True) as bar:
        task = bar.add_task(escape(title), total=None)

        def update(done: int, total: int, what: str) -> None:
            text = f"{title}: {what}" if what else title
            bar.update(task, completed=done, total=total, description=escape(visible(text)))

        yield update
