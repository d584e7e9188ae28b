"""The command line. `main` is the command `shadow`; it imports all other modules when it runs.

This module imports nothing: an interrupt before `main` would end in a traceback.
"""

from __future__ import annotations


def main() -> None:
    """Run the `shadow` command; always ends the process by SystemExit.

    From its first line on, its own imports included, Ctrl-C ends it with one line on stderr and
    exit code 130.
    """
    try:
        from shadow.cli.interrupts import end_in_imports, end_silently

        end_in_imports(main.__code__)
        from shadow.cli.commands import run

        code = run()
        end_silently()  # the results are written: what is left is the end of Python
    except KeyboardInterrupt:
        from shadow.cli.interrupts import STOPPED, stop

        code = stop(STOPPED)
    raise SystemExit(code)
