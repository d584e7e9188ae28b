"""Python's collector of cycles, held off for a while."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """While much is made that stays, Python does not look for cycles of what nobody holds any more.

    Headers of 200,000 tensors are millions of objects: to go through them again and again took a
    quarter of the time.
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
