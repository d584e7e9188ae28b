"""Statistics of tensors, made while checks read their bytes: none is read again for them."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

import torch

from shadow.checkpoints.held_files import HeldFile
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.stored_tensors import Reads, Starts
from shadow.dtypes import FLOATS, torch_name
from shadow.spectra.sums import Extremes, examined, joined, rows_at_once


def rows_and_columns(info: TensorInfo) -> tuple[int, int]:
    """The shape of a tensor as a matrix: all dimensions but the last are rows."""
    cols = info.shape[-1] if len(info.shape) > 1 else info.parameters
    return info.parameters // max(1, cols), cols


class Examination:
    """The statistics of a tensor, from its bytes as they are read in order. Bytes that are read
    again, or before their turn, do not count.
    """

    def __init__(self, info: TensorInfo) -> None:
        self._start = info.start
        self._size = info.end - info.start
        _, self._cols = rows_and_columns(info)
        self._dtype: torch.dtype = getattr(torch, torch_name(info.dtype))
        block = rows_at_once(self._cols) * self._cols * self._dtype.itemsize
        self._most = min(block, self._size)  # bytes that are examined together
        self._block = bytearray()
        self._seen = 0
        self._blocks: list[Extremes] = []
        self._lock = Lock()

    @property
    def found(self) -> Extremes | None:
        """The statistics; None before the last byte was read."""
        return joined(self._blocks, self._cols) if self._seen == self._size else None

    def add(self, start: int, content: memoryview) -> None:
        """Take bytes that were read from a position in the file."""
        with self._lock:
            known = self._start + self._seen - start
            while 0 <= known < len(content):
                part = content[known : known + self._most - len(self._block)]
                self._block += part
                self._seen += len(part)
                known += len(part)
                if len(self._block) == self._most or self._seen == self._size:
                    self._examine()

    def _examine(self) -> None:
        """Examine some rows, in float32 or in float64 if stored so."""
        stored = torch.frombuffer(self._block, dtype=self._dtype)
        wide = torch.float64 if self._dtype == torch.float64 else torch.float32
        self._blocks.append(examined(stored.to(wide).view(-1, self._cols).numpy()))
        self._block = bytearray()


@dataclass(frozen=True)
class ExaminedFile:
    """A file, one tensor of which is examined while it is read."""

    file: Reads
    examination: Examination

    def read_runs(self, starts: Starts, into: memoryview) -> None:
        """Fill a buffer with runs of equal length, one from each start."""
        self.file.read_runs(starts, into)
        width = len(into) // max(1, len(starts))
        for number, start in enumerate(map(int, starts)):
            self.examination.add(start, into[number * width : (number + 1) * width])


class Examinations:
    """The tensors of files, each under what changes when its file does."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Examination] = {}

    def through(self, file: HeldFile, info: TensorInfo) -> Reads:
        """The file, read so that a tensor of floats is examined; one in memory as it is."""
        is_plain = info.dtype in FLOATS and not info.strides and info.end > info.start
        if not is_plain or not isinstance(file, HeldFile):
            return file
        return ExaminedFile(file, self._known.setdefault(_key(file, info), Examination(info)))

    def found(self, file: HeldFile, info: TensorInfo) -> Extremes | None:
        """The statistics of a tensor; None of one that is packed or was not read as a whole."""
        if info.packing or not isinstance(file, HeldFile):
            return None
        examination = self._known.get(_key(file, info))
        return examination.found if examination else None


def _key(file: HeldFile, info: TensorInfo) -> tuple[object, ...]:
    return file.standing, info.start, info.end, info.dtype, info.shape
