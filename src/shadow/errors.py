"""The faults that `shadow` expects. Any other one is a bug and keeps its traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class ShadowError(Exception):
    """Something that could not be done: one line for people, and what to do next.

    The command line prints both and exits with 1. str() is the message alone; the hint is a note of
    the exception, which a traceback shows.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")


class UsageError(ShadowError):
    """A request that makes no sense whatever the files hold. Exit code 2."""


class KeptError(ShadowError):
    """A finished report was left as it is, since what was asked for differs from it."""


class BusyError(ShadowError):
    """Another process is at work on the same report. Later it will have ended."""


class FileError(ShadowError):
    """A fault of a checkpoint's file. The message has the file's name alone: see `naming`."""


class UndecodableError(ShadowError):
    """A quantised matrix whose numbers break the rules of its format. Others may be fine."""


@contextlib.contextmanager
def naming(checkpoint: str, hint: str | None = None) -> Iterator[None]:
    """Faults of files say whose they are. hint: replaces the file's own, which is for folders."""
    try:
        yield
    except FileError as error:
        raise ShadowError(f"{checkpoint}: {error.message}", hint or error.hint) from error
