"""When Ctrl-C is heard, and what is said: not in the middle of an import, and not when the command
has ended.
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import time
from types import CodeType, FrameType

INTERRUPTED = 130  # the exit code
STOPPED = "stopped"
HOLD = 0.02  # seconds after which a held interrupt asks again whether the import has ended
IMPORTING = "<frozen importlib._bootstrap>"  # the file of the frames of an import


class Unfinished(BaseException):
    """Work was interrupted that the same command continues.

    No Exception, as no handler of faults is meant, and no KeyboardInterrupt, which typer answers.
    """


# An interrupt that has not been raised yet, or nothing: of two threads only one can take it out.
_held: list[None] = []


def hold_during_imports(outermost: CodeType) -> None:
    """From now on an interrupt that falls into an import is raised when that import has ended; a
    second one meanwhile ends the process at once.

    Native libraries such as torch and pyarrow abort the process, with a core dump, where a
    KeyboardInterrupt rises through their initialisation. outermost: the function that runs the
    command; an import that it is itself part of does not count. A process that ignores interrupts,
    as one in the background does, goes on ignoring them.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return

    command, tell = _thread.get_ident(), sys.unraisablehook

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if not _is_importing(frame, outermost):
            _held.clear()
            raise KeyboardInterrupt
        if _held:
            os._exit(stop(STOPPED))
        _hold(command)

    def on_unraisable(fault: sys.UnraisableHookArgs) -> None:
        if isinstance(fault.exc_value, KeyboardInterrupt):
            _hold(command)  # code that may not raise, as of an extension, would have swallowed it
        else:
            tell(fault)

    signal.signal(signal.SIGINT, on_interrupt)
    sys.unraisablehook = on_unraisable


def _is_importing(frame: FrameType | None, outermost: CodeType) -> bool:
    """Whether one of the frames above that of outermost belongs to an import."""
    while frame is not None and frame.f_code is not outermost:
        if frame.f_code.co_filename == IMPORTING:
            return True
        frame = frame.f_back
    return False


def _hold(command: int) -> None:
    _held.append(None)
    # not threading.Thread, whose locks the interrupted code may hold
    _thread.start_new_thread(_ask_again, (command,))


def _ask_again(command: int) -> None:
    time.sleep(HOLD)
    if not _taken():
        return
    if sys.platform == "win32":
        signal.raise_signal(signal.SIGINT)
    else:  # the thread of the command, which may wait in the system, and not this one
        signal.pthread_kill(command, signal.SIGINT)


def _taken() -> bool:
    """Whether an interrupt was held, which is now the caller's to raise."""
    try:
        _held.pop()
    except IndexError:
        return False
    return True


def raise_held() -> None:
    """Raise an interrupt that an import has held, without waiting until it asks again."""
    if _taken():
        raise KeyboardInterrupt


def stop(line: str) -> int:
    """Say in a line on stderr that the command was stopped, which needs no other module; returns
    the exit code. From now on an interrupt ends the process with that code, and says nothing.
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
