"""Settings of the whole process that are changed for a while, by several threads at once."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class ProcessSetting(Generic[T]):
    """A setting that is changed by its first holder and restored as the last one leaves.

    change: changes it and returns what was there, which restore gets.
    """

    def __init__(self, change: Callable[[], T], restore: Callable[[T], None]) -> None:
        self._change, self._restore = change, restore
        self._lock = Lock()
        self._holders = 0
        self._before: list[T] = []

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """May be entered inside itself and in several threads."""
        with self._lock:
            if not self._holders:
                self._before.append(self._change())
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._restore(self._before.pop())


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
