"""Data goes to stdout, messages to stderr. The only module that prints; it words the errors."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.markup import escape

from shadow.cli.interrupts import Unfinished
from shadow.errors import ShadowError
from shadow.storage import as_given
from shadow.text import byte_size, inert, redacted, visible

if TYPE_CHECKING:
    from rich.progress import Progress

    from shadow.run.runtime import Progress as State
    from shadow.telling.document import Document

Update = Callable[["State"], None]
Watch = Callable[[str], contextlib.AbstractContextManager[Update]]
EVERY = 30.0  # seconds between two lines of progress
if os.environ.get("COLUMNS") == "0":  # of a terminal without a size: rich would print nothing
    del os.environ["COLUMNS"]
out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
BLANK_LINE = r"(?m:^)(?:[^\S\n]|\x1b\[[0-9;]*m)*\n"  # colours are no letters


def forgive_letters() -> None:
    """Print a question mark for a character that the terminal lacks: no audit must end of it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


_views = 0  # that this command has displayed


def begin() -> None:
    """Begin a command: nothing has been shown yet."""
    global _views
    _views = 0


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


def say(text: str) -> None:
    """Print one message line on stderr."""
    _print(escape(visible(redacted(as_given(text)))))


def say_nothing(text: str) -> None:
    """Drop a message line, for `--quiet`."""


def flush() -> None:
    """Write what stdout still holds, so that a full disk is noticed here, not on exit."""
    if sys.stdout is not None:
        sys.stdout.flush()


def give_up() -> None:
    """Drop what stdout still holds and cannot write, so that no later flush fails again."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def annotate(command: str) -> None:
    """Print a workflow command of GitHub Actions on stderr, which the runner reads as well."""
    sys.stderr.write(command + "\n")


def complain(error: ShadowError) -> None:
    """Print an expected error: one line, and what to do next.

    The text may repeat what was typed, so passwords are left out here.
    """
    message, hint = (redacted(as_given(text)) for text in (error.message, error.hint or ""))
    _print(f"[bold red]error:[/] {escape(visible(message))}")
    if hint:
        _print(f"[dim]hint:[/]  {escape(visible(hint))}")


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


def _print(markup: str) -> None:
    if is_watched(err):
        err.print(markup)  # above bars
    else:
        err.file.write(_rendered(err, markup))


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
    """Return whether a person watches. Console.is_terminal is true in CI too, with FORCE_COLOR."""
    return console.is_terminal and console.file.isatty()


@contextlib.contextmanager
def pairs_progress(total: int, *, together: bool, hidden: bool = False) -> Iterator[Watch]:
    """Show bars on stderr if somebody watches, otherwise a line every half minute. Yields a
    function that begins a pair, by its title.

    together: bars stay until the last pair; otherwise each goes after its pair, whose report is
    printed then. hidden: show nothing.
    """
    if hidden:
        yield lambda title: contextlib.nullcontext(lambda state: None)
        return
    bars = _bars() if is_watched(err) else None
    if bars is not None:
        every = bars.add_task("pairs", total=total, words="", visible=total > 1)
    last, ended = time.monotonic(), 0

    @contextlib.contextmanager
    def begin(title: str) -> Iterator[Update]:
        nonlocal ended
        if bars is not None:
            task = bars.add_task(escape(visible(title)), total=None, words="")

        def update(state: State) -> None:
            nonlocal last
            words = [f"{state.done:,} of {state.total:,} matrices"] if state.total else []
            if state.to_move:
                words.append(f"{byte_size(state.moved)} of {byte_size(state.to_move)} fetched")
            if bars is not None:
                whole = state.cost_total or None
                bars.update(task, total=whole, completed=state.cost_done, words=", ".join(words))
            elif time.monotonic() - last >= EVERY:
                last = time.monotonic()
                if state.cost_total:
                    words.insert(0, f"{100 * state.cost_done / state.cost_total:.0f} % done")
                words += [f"{ended:,} of {total:,} pairs done"] if total > 1 else []
                say(f"{title}: {', '.join(words) or 'at work'}")

        with contextlib.nullcontext() if bars is None or together else bars:
            try:
                yield update
            finally:
                ended += 1
                if bars is not None:
                    bars.remove_task(task)
                    bars.advance(every)

    with bars if bars is not None and together else contextlib.nullcontext():
        yield begin


@contextlib.contextmanager
def steps(title: str, *, hidden: bool = False) -> Iterator[Callable[[int, int, str], None]]:
    """Show a bar of steps on stderr, with the last one's name, if somebody watches."""
    if hidden or not is_watched(err):
        yield lambda done, total, what: None
        return
    with _bars() as bars:
        task = bars.add_task(escape(title), total=None, words="")
        yield lambda done, total, what: bars.update(
            task, completed=done, total=total, words=escape(visible(what))
        )


def _bars() -> Progress:
    from rich.progress import Progress, TextColumn

    columns = *Progress.get_default_columns(), TextColumn("{task.fields[words]}", style="cyan")
    return Progress(*columns, console=err, transient=True)
