"""Settings of the process: the garbage collector, paused for a while; Arrow without pandas."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Pause the search for reference cycles while many lasting objects are created.

    Headers of 200,000 tensors are millions of objects: scanning them repeatedly took a quarter of
    the time.
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def keep_pandas_out() -> None:
    """Let Arrow believe that pandas is not installed, unless it is imported already. Arrow imports
    it, for a third of a second, to ask whether a list is a Series. For processes without other code
    than that of a command: a table still becomes a frame, but a Series is read as a list.
    """
    import pyarrow as pa

    refusal = _Refusal()
    sys.meta_path.insert(0, refusal)
    try:
        pa.array([0])  # Arrow tries to import it once
    finally:
        sys.meta_path.remove(refusal)


class _Refusal:
    """A finder of modules that finds no pandas, and leaves others to those behind it."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)
