"""What the files of a folder are known by: names, sizes, times, headers, and a sample of weights.

Two checkpoints of one shape that came out of one archive may have the same names, sizes, times and
headers, and differ in their weights alone. The sample is of every tensor: PIECE bytes of each MiB,
from its first to its last. It is taken before anything is measured, in 10 to 30 ms a GB from memory
or from a disk.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Collection, Sequence

from shadow.checkpoints.held_files import HeldFile
from shadow.checkpoints.safetensors_files import TensorInfo

PIECE = 1 << 10  # bytes that are read at a place
EVERY = 1 << 20  # bytes of a tensor for which one place is read, two at least
# A shorter tensor is read whole: a disk reads as much for a single byte.
SHORT = 1 << 12


class Fingerprint:
    """The fingerprint of a folder, made while its files are opened one after another."""

    def __init__(self) -> None:
        self._now = hashlib.sha256()

    def add_shard(
        self,
        name: str,
        file: HeldFile,
        header: str,
        data: HeldFile,
        tensors: Collection[TensorInfo],
    ) -> None:
        """Add a file of weights. header: its text; data: the file that tensors lie in."""
        self.add(json.dumps([name, file.size, file.modified, header]))
        # no more of Python than this for a tensor, of which there may be a million
        starts = [info.start for info in tensors]
        sizes = list(map(operator.sub, [info.end for info in tensors], starts))
        self._now.update(_sample(data, starts, sizes))

    def add(self, text: str) -> None:
        """Add what is known from elsewhere, as the config is."""
        self._now.update(text.encode())

    @property
    def now(self) -> str:
        """The sha256, in hexadecimal digits."""
        return self._now.hexdigest()


def places(start: int, size: int) -> list[tuple[int, int]]:
    """(start, bytes) of what is read of a tensor of size bytes, from its first to its last."""
    if size <= SHORT:
        return [(start, size)]
    count = max(2, math.ceil(size / EVERY))
    return [(start + (size - PIECE) * place // (count - 1), PIECE) for place in range(count)]


def _sample(data: HeldFile, starts: Sequence[int], sizes: Sequence[int]) -> bytes:
    """A sample of every tensor, in the order of the file; what two share is read once."""
    pieces = sorted(set(zip(starts, sizes, strict=True)))
    if max(sizes, default=0) > SHORT:
        pieces = [place for piece in pieces for place in places(*piece)]
    return data.sample(*zip(*pieces, strict=True)) if pieces else b""
