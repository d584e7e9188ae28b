"""Expected errors of `shadow`. Any other exception is a bug and keeps its traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class ShadowError(Exception):
    """Something could not be done: one line for people, and what to do next.

    The command line prints both and exits with 1. str() is the message alone; the hint is a note of
    the exception, which tracebacks show.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")


class UsageError(ShadowError):
    """A request that is invalid, whatever the files contain. Exit code 2."""


class KeptError(ShadowError):
    """A finished report was left unchanged because it differs from the request."""


class BusyError(ShadowError):
    """Another process is working on the same report; try again later."""


class FileError(ShadowError):
    """An error in a checkpoint's file. The message has only the file's name: see `naming`."""


class PointerError(FileError):
    """A file of Git-LFS that names its content, which was not fetched."""


class UndecodableError(ShadowError):
    """A quantised matrix whose data break the rules of its format. Others may be fine."""


@contextlib.contextmanager
def naming(checkpoint: str, hint: str | None = None) -> Iterator[None]:
    """Name the checkpoint in errors of its files. hint: replaces the file's own, for folders."""
    try:
        yield
    except FileError as error:
        raise ShadowError(f"{checkpoint}: {error.message}", hint or error.hint) from error
