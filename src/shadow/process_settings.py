"""Python's garbage collector, paused for a while."""

from __future__ import annotations

import contextlib
import gc
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
