"""Ctrl-C: one line and exit code 130, neither in the middle of an import nor after the command."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from types import CodeType, FrameType

INTERRUPTED = 130  # the exit code
STOPPED = "stopped"
IMPORTING = "<frozen importlib._bootstrap>"  # the file of the frames of an import


class Unfinished(BaseException):
    """Interrupted work that the same command can continue. Error handlers ignore it, and typer,
    which handles a KeyboardInterrupt.
    """


def end_in_imports(outermost: CodeType) -> None:
    """End the process at once, from now on, where an interrupt falls into an import.

    Native libraries such as torch dump core where a KeyboardInterrupt rises through their
    initialisation. The same where Python would swallow it, as in `__del__`. outermost: the function
    that runs the command; imports around it do not count. A process that ignores interrupts, as one
    in the background, continues doing so.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    report = sys.unraisablehook

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code is not outermost:
            if frame.f_code.co_filename == IMPORTING:
                os._exit(stop(STOPPED))
            frame = frame.f_back
        raise KeyboardInterrupt

    def on_unraisable(fault: sys.UnraisableHookArgs) -> None:
        if isinstance(fault.exc_value, KeyboardInterrupt):
            os._exit(stop(STOPPED))
        report(fault)

    signal.signal(signal.SIGINT, on_interrupt)
    sys.unraisablehook = on_unraisable


def stop(line: str) -> int:
    """Say in a line on stderr that the command was stopped, which needs no other module; returns
    the exit code. From now on an interrupt ends the process silently with that code.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stderr.write(line + "\n")
    if not ignored:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
        # when the last thread has ended, Python would give the signal its own meaning again
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    return INTERRUPTED


def end_silently() -> None:
    """From now on an interrupt ends the process at once, as Python's own end would be noisy."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
