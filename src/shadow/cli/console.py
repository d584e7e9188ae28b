"""Data goes to stdout, messages to stderr. The only module that prints; it words the errors."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.markup import escape

from shadow.cli.interrupts import Unfinished
from shadow.errors import ShadowError
from shadow.run.runtime import Progress as State
from shadow.storage import as_given
from shadow.text import about_time, byte_size, inert, redacted, took, visible

if TYPE_CHECKING:
    from rich.progress import Progress

    from shadow.engines.engine import Watch
    from shadow.telling.document import Document

TITLE = 24  # letters of what a bar is about
EVERY = 10.0  # seconds between two lines of progress
FEW = 20  # reports, which are read in well under a second
if os.environ.get("COLUMNS") == "0":  # of a terminal without a size: rich would print nothing
    del os.environ["COLUMNS"]
WIDE = 1000  # letters of a line that no terminal breaks
breaks_lines = "COLUMNS" in os.environ or (sys.stdout is not None and sys.stdout.isatty())
out = Console(highlight=False, emoji=False, width=None if breaks_lines else WIDE)
err = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
BLANK_LINE = r"(?m:^)(?:[^\S\n]|\x1b\[[0-9;]*m)*\n"  # colours are no letters
_views = 0  # that this command has displayed


def begin() -> None:
    """Begin a command: nothing has been shown yet. A character that the terminal lacks is a
    question mark from now on: no audit must end of it.
    """
    global _views
    _views = 0
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def show(document: Document) -> None:
    """Print data for people, on stdout: one view, after a blank line unless it is first or close.

    Blank lines of tables are removed at both ends, and two in a row become one.
    """
    from shadow.outputs.terminal import View

    global _views
    text = _rendered(out, View(document))
    text = re.sub(rf"(?:{BLANK_LINE})+", "\n", text).strip("\n")
    if text:
        is_apart = _views and not document.blocks[0].close
        out.file.write(f"\n{text}\n" if is_apart else f"{text}\n")
        out.file.flush()  # rich would end the process where its own flush finds the reader gone
        _views += 1


def show_json(value: Any) -> None:
    """Print data for machines, on stdout: exactly JSON, never wrapped or coloured."""
    text = json.dumps(value, indent=2, allow_nan=False)
    print(text.replace("##", "#\\u0023"))  # only strings hold it: see inert


def show_text(text: str) -> None:
    """Print Markdown or other data on stdout unchanged, never wrapped or coloured."""
    print(text if is_watched(out) else inert(text), end="")


def say(text: str, lead: str = "") -> None:
    """Print one message line on stderr, after markup. It may repeat what was typed, so passwords
    are left out here.
    """
    markup = lead + escape(visible(redacted(as_given(text))))
    if is_watched(err):
        err.print(markup)  # above bars
    else:
        err.file.write(_rendered(err, markup))


def give_up() -> None:
    """Drop what stdout still holds and cannot write, so that no later flush fails again."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def annotate(command: str) -> None:
    """Print a workflow command of GitHub Actions on stderr, which the runner reads as well."""
    sys.stderr.write(command + "\n")


def complain(error: ShadowError) -> None:
    """Print an expected error: one line, and what to do next."""
    say(error.message, "[bold red]error:[/] ")
    if error.hint:
        say(error.hint, "[dim]hint:[/]  ")


@contextlib.contextmanager
def continuable(folders: Iterable[Path]) -> Iterator[None]:
    """Mark an interrupt in this block as continuable by the same command, if the work created any
    of its folders; otherwise nothing was saved yet.
    """
    try:
        yield
    except KeyboardInterrupt:
        if any(folder.is_dir() for folder in folders):
            raise Unfinished from None
        raise


def _rendered(console: Console, renderable: RenderableType) -> str:
    """Render as a console would print. For a file or a pipe, without the spaces that fill cells,
    and without workflow commands to a CI runner.
    """
    with console.capture() as captured:
        console.print(renderable)
    if is_watched(console):
        return captured.get()
    return inert(re.sub(r"[^\S\n]+$", "", captured.get(), flags=re.MULTILINE))


def is_watched(console: Console) -> bool:
    """True if a person watches. Console.is_terminal is true in CI too, with FORCE_COLOR."""
    return console.is_terminal and console.file.isatty()


def pairs_progress(total: int = 1, *, hidden: bool = False) -> Watch:
    """A function that begins a pair, by its title, and shows its progress on stderr: as a
    bar if somebody watches, otherwise in a line every ten seconds. hidden: show nothing.

    Bars are there while a pair is at work: a report may be printed after it.
    """
    bars = _bars(hidden)
    every = bars.add_task("pairs", total=total, words="", visible=total > 1)
    is_in_lines = bars.disable and not hidden

    @contextlib.contextmanager
    def begin(title: str) -> Iterator[Callable[[State], None]]:
        task = bars.add_task(escape(visible(title)), total=None, words="")
        started = time.monotonic()
        begun = started  # of what is counted now
        ended = threading.Event()
        latest = State(0, 0, 0, 0)

        def update(state: State) -> None:
            nonlocal latest, begun
            if state.cost_done < latest.cost_done:
                begun = time.monotonic()
                bars.reset(task)
            latest = state
            words = ", ".join(_words(state))
            bars.update(
                task, total=state.cost_total or None, completed=state.cost_done, words=words
            )

        def say_in_lines() -> None:
            while not ended.wait(EVERY * (len(bars.task_ids) - 1)):  # of all pairs one
                words = _words(latest)
                share = latest.cost_done / (latest.cost_total or 1)
                now = time.monotonic()
                if share:
                    left = about_time((now - begun) * (1 / share - 1))
                    words = [f"{100 * share:.0f} % done", *words, f"{left} left"]
                with contextlib.suppress(OSError):  # of a reader that has gone
                    say(f"{title}: {', '.join(words or [f'{took(now - started)} so far'])}")

        bars.start()
        if is_in_lines:
            threading.Thread(target=say_in_lines, daemon=True).start()
        try:
            yield update
        finally:
            ended.set()
            bars.remove_task(task)
            bars.advance(every)
            if not bars.disable and bars.task_ids == [every]:  # else it would print a line
                bars.stop()

    return begin


def _words(state: State) -> list[str]:
    """The count of a state, in the words of a plan."""
    words = [state.stage] if state.stage else []
    if state.total:
        words.append(f"{state.done:,} of {state.total:,} matrices and vectors")
    if state.to_move:
        words.append(f"{byte_size(state.moved)} of {byte_size(state.to_move)} fetched")
    return words


@contextlib.contextmanager
def steps(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show the progress of steps, with the name of the last one."""
    with pairs_progress()(title) as update:
        yield lambda done, total, what: update(State(0, 0, done, total, stage=what))


def each(title: str, folders: Sequence[Path]) -> Iterator[Path]:
    """Yield the folders of reports, and show how many were read; of a few nothing is shown."""
    if len(folders) <= FEW:
        yield from folders
        return
    with steps(title) as update:
        for done, folder in enumerate(folders):
            update(done, len(folders), f"report {done + 1:,} of {len(folders):,}")
            yield folder


def _bars(hidden: bool) -> Progress:
    from rich.progress import Progress, TextColumn
    from rich.table import Column

    titles = TextColumn("{task.description}", table_column=Column(max_width=TITLE, no_wrap=True))
    words = TextColumn("{task.fields[words]}", style="cyan")
    columns = Progress.get_default_columns()[1:]
    return Progress(
        titles, *columns, words, console=err, transient=True, disable=hidden or not is_watched(err)
    )
