"""`python -m shadow`: the same as the command `shadow`."""

from __future__ import annotations

from shadow.cli import main

if __name__ == "__main__":
    main()
