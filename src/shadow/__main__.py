"""`python -m shadow`: the same as the command `shadow`."""

from __future__ import annotations

from shadow.cli import main

if __name__ == "__main__":
    try:
        main()
    except SystemExit as ended:
        import os

        from shadow.cli.interrupts import INTERRUPTED

        # Where the interrupt rose through a text that was evaluated, as those of annotations are,
        # Python would not believe that it was answered, and end by the signal.
        if ended.code == INTERRUPTED:
            os._exit(INTERRUPTED)
        raise
