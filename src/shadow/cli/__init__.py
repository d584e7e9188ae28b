"""The command line. `main` is the command `shadow`; all else is imported when it runs.

This module imports nothing: an interrupt before `main` has begun would end in a traceback.
"""

from __future__ import annotations


def main() -> None:
    """The `shadow` command. Ends the process by SystemExit, whatever happens.

    From its first line on, its own imports included, Ctrl-C ends it with one line on stderr and
    exit code 130.
    """
    try:
        from shadow.cli.interrupts import hold_during_imports, raise_held

        hold_during_imports(main.__code__)
        from shadow.cli.commands import run

        raise_held()
        code = run()
    except KeyboardInterrupt:
        from shadow.cli.interrupts import tell

        code = tell("stopped")
    finally:
        # the results are written, or the command was stopped: what is left is the end of Python
        from shadow.cli.interrupts import end_silently

        end_silently()
    raise SystemExit(code)
