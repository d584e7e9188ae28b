"""Pages of a stored tensor whose exponents are not those of the rest, as a damaged file has them.

The exponents of some entries are noted while a tensor is read. A page of other bytes has exponents
that are far likelier if they were drawn evenly, or have a flipped bit, or are those of zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from shadow.dtypes import FLOATS

PAGED = "F32", "BF16", "F16"
APART = 32  # bytes from one sampled entry to the next
WINDOW = 64  # samples of 2 KB: every page of 4 KB has a whole window, wherever it begins
FEWEST = 32  # windows that say which exponents a tensor has
MANY = 0.125  # of the windows or the rows: where more are odd, the tensor is made so
GAIN = 1.5  # nats an entry by which damage is likelier than that the entries are as all others
SCALED = 0.6  # and by which it is likelier than that they are as others of another scale
ZERO = -1.5  # nats: a run of zeros is odd where zeros are rarer than this
UP = 12  # powers of two by which a row may be larger than all others; any row may be smaller
CLEAR = 0.95  # share of a window, from which the end of the odd entries can be seen in a row
PART = 0.75  # of a row that is odd as a whole
FEW = 8  # samples in which the end is seen
FLIPS = 1, 2, 4, 8, 16, 32, 64, 128, 0xF0  # of an exponent of F32; the last is F16's first bit
EVEN = len(FLIPS)
DISTINCT = 16
FIT = 1.0
AT_ONCE = 1 << 12  # windows

Exponents = NDArray[np.uint8]
Logarithms = NDArray[np.float32]
NUMBERS = np.arange(256)
SCALES = np.clip(NUMBERS - np.arange(-255, UP + 1)[:, None], 0, 255)


class PageSample:
    """Exponents of every so many entries of a tensor, in the order of the file."""

    def __init__(self, shape: Sequence[int], dtype: str) -> None:
        stored = FLOATS[dtype]
        self.step = 8 * APART // stored.bits
        self.bits = stored.bits - 1 - stored.mantissa_bits
        self.row = _row(shape, FEW * self.step) / self.step
        self._entries = 0
        self._exponents: list[Exponents] = []

    def add(self, entries: NDArray[np.floating]) -> None:
        """Note the exponents of the next entries."""
        sample = entries[-self._entries % self.step :: self.step].astype(np.float32)
        self._exponents.append(((sample.view(np.int32) >> 23) & 0xFF).astype(np.uint8))
        self._entries += len(entries)

    def damaged(self) -> tuple[int, ...]:
        """The first byte of each window of 2 KB that damage explains; none of few windows."""
        sample = np.concatenate(self._exponents)
        count = len(sample) // WINDOW
        if count < FEWEST:
            return ()
        windows = sample[: count * WINDOW].reshape(count, WINDOW)
        usual = np.log((np.bincount(sample, minlength=256) + 1) / len(sample)).astype(np.float32)
        causes = self._causes(usual)
        typical = float(np.exp(usual) @ usual)
        scales = usual[SCALES]
        odd = []
        for number in _suspects(windows, usual):
            exponents = windows[number]
            likelihoods = causes[:, exponents].mean(axis=1)
            cause = int(likelihoods.argmax())
            if likelihoods[cause] < usual[exponents].mean() + GAIN:
                continue
            if cause == EVEN and len(set(exponents.tolist())) < DISTINCT:
                continue
            if cause < EVEN and likelihoods[cause] < typical - FIT:
                continue
            scaled = scales[:, exponents].reshape(len(SCALES), -1, FEW).mean(axis=2).max(axis=0)
            is_scaled = likelihoods[cause] < scaled.mean() + SCALED
            if not is_scaled or self._ends_in_a_row(sample, number, causes[cause] > usual):
                odd.append(number)
        rows = {int(number * WINDOW / self.row) for number in odd}
        most = max(1.0, MANY * len(sample) / self.row)
        if len(odd) > MANY * count or len(rows) > most:
            return ()
        return tuple(number * WINDOW * APART for number in odd)

    def _causes(self, usual: Logarithms) -> Logarithms:
        """(10, 256): the logarithm of how likely each kind of damage leaves an exponent."""
        flipped = usual[NUMBERS ^ np.array(FLIPS)[:, None]]
        even = np.full((1, 256), -self.bits * math.log(2))
        zero = np.where(NUMBERS == 0, ZERO, -math.inf)[None]
        return np.vstack([flipped, even, zero]).astype(np.float32)

    def _ends_in_a_row(self, sample: Exponents, number: int, is_odd: NDArray[np.bool_]) -> bool:
        """True if a row at a window has odd entries and others. Rows that are odd as a whole are
        those of unused tokens, or were pruned.
        """
        if is_odd[sample[number * WINDOW :][:WINDOW]].mean() < CLEAR:
            return False
        first = max(0, number - 1) * WINDOW
        last = min(len(sample), (number + 2) * WINDOW)
        for row in range(int(first / self.row), math.ceil(last / self.row)):
            start = math.ceil(row * self.row)
            end = math.ceil((row + 1) * self.row)
            near = is_odd[sample[max(start, first) : min(end, last)]]
            if near.sum() >= FEW and is_odd[sample[start:end]].mean() < PART:
                return True
        return False


def _row(shape: Sequence[int], least: int) -> int:
    """The entries of a row, or of as many of its last dimensions as have enough of them."""
    entries = 1
    for size in reversed(shape[1:]):
        entries *= size
        if entries >= least:
            break
    return entries


def _suspects(windows: Exponents, usual: Logarithms) -> Iterator[int]:
    """Yield windows so unlike the rest that any damage is likelier by GAIN."""
    for first in range(0, len(windows), AT_ONCE):
        likelihoods = usual[windows[first : first + AT_ONCE]].mean(axis=1)
        yield from (first + np.flatnonzero(likelihoods < usual.max() - GAIN)).tolist()
