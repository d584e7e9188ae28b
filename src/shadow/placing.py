"""Results that a person asked for by path: there whole or not at all, and never over what somebody else made."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from shadow.aside import FORMER, aside_in
from shadow.errors import ShadowError
from shadow.report import remove_empty

Recognise = Callable[[Path], bool]


@contextlib.contextmanager
def placing(output: Path, is_ours: Recognise, what: str) -> Iterator[Path]:
    """A path beside output to write a file or folder to: it becomes output when the block ends, and else vanishes.

    is_ours says of what lies at output whether the same command made it and nothing was added; that is replaced.
    Raises ShadowError for anything else there, which is left alone, and when the disk cannot be written.
    """
    _require_free(output, is_ours, what)
    parent = output.absolute().parent
    there = next((one for one in (parent, *parent.parents) if os.path.isdir(one)), parent)  # noqa: PTH112 - no error
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with aside_in(parent) as folder:  # and what a database keeps beside its file
            aside = folder / "new" / output.name
            aside.parent.mkdir()
            yield aside
            _flush(aside)
            _require_free(output, is_ours, what)
            _replace(aside, output, folder / FORMER)
    except OSError as error:
        hint = "free some space" if error.errno == errno.ENOSPC else "choose another place with -o"
        raise ShadowError(f"cannot write {output}: {error.strerror or error}", hint) from error
    finally:
        if parent != there:
            remove_empty(parent, there)


def _require_free(output: Path, is_ours: Recognise, what: str) -> None:
    try:
        free = not os.path.lexists(output) or (not output.is_symlink() and is_ours(output))
    except OSError:  # what cannot be read may be anybody's
        free = False
    if not free:
        raise ShadowError(
            f"{output} is there already, and is not or not only {what}", "move it away, or choose another place with -o"
        )


def _flush(aside: Path) -> None:
    """Onto the disk, before it gets its name."""
    for folder, _, names in os.walk(aside) if aside.is_dir() else [(str(aside.parent), [], [aside.name])]:
        for name in names:
            with (Path(folder) / name).open("rb") as file:
                os.fsync(file.fileno())


def _replace(aside: Path, output: Path, stepped_aside: Path) -> None:
    """Give aside its name. No folder can be renamed over another: the former one steps aside, where it is not lost."""
    if not output.is_dir():
        aside.replace(output)
        return
    stepped_aside.mkdir()
    output.rename(stepped_aside / output.name)
    aside.rename(output)
