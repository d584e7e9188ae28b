"""Pages of a stored tensor whose exponents are not those of the rest, as a damaged file has them.

The exponents of some entries are noted while a tensor is read. Other bytes, shifted ones, a flipped
bit or zeros make the exponents of a page far likelier than the frequencies in the tensor do. What
rows of another scale explain as well is damage only where a row is partly so, in few places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shadow.dtypes import FLOATS

PAGED = "F32", "BF16", "F16"
APART = 32  # bytes from one sampled entry to the next
WINDOW = 64  # samples of 2 KB: every page of 4 KB has a whole window, wherever it begins
FEWEST = 32  # windows that say which exponents a tensor has
MANY = 0.125  # of the windows or the rows: where more are odd, the tensor is made so
PLACES = 4  # separate places of odd windows: where there are more, rows or columns are made so
GAIN = 1.5  # nats an entry by which damage is likelier than that the entries are as all others
SCALED = 0.6  # and by which it is likelier than that they are as others of another scale
FIT = 1.0  # nats by which a flipped bit may leave an entry less likely than others are
ZERO = -1.5  # nats: a run of zeros is odd where zeros are rarer than this
UP = 12  # powers of two by which a row may be larger than all others; any row may be smaller
CLEAR = 0.95  # share of a window, from which the end of the odd entries can be seen in a row
CALM = 0.5  # nats by which the other entries of that row may be less likely than others are
FEW = 8  # samples in which the end is seen
CHANGES = 32  # of the exponent from sample to sample, of which smooth tables have fewer
AT_ONCE = 1 << 12  # windows

Exponents = NDArray[np.uint8]
Logarithms = NDArray[np.float32]
NUMBERS = np.arange(256)
SCALES = np.clip(NUMBERS - np.arange(-255, UP + 1)[:, None], 0, 255)
FLIPS = 1, 2, 4, 8, 16, 32, 64, 128, 0xF0  # of exponents of F32; the last is the first bit of F16
EVEN = len(FLIPS)  # the cause of bytes that are not numbers
DISTINCT = 16  # exponents that these leave in a window at least
ZEROED = EVEN + 1


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
        counts = np.bincount(sample, minlength=256)
        usual = _logarithms(counts)
        suspects = _suspects(windows, usual)
        if len(suspects) > MANY * count:
            return ()
        counts -= np.bincount(windows[suspects].reshape(-1), minlength=256)
        usual = _logarithms(counts)
        typical = float(counts @ usual) / counts.sum()
        causes = self._causes(usual)
        scales = usual[SCALES]
        odd = []
        odd_in_rows = []
        places = set()
        for rank, number in enumerate(suspects):
            exponents = windows[number]
            likelihoods = causes[:, exponents].mean(axis=1)
            cause = int(likelihoods.argmax())
            likelihood = likelihoods[cause]
            if likelihood < usual[exponents].mean() + GAIN:
                continue
            if cause != EVEN:
                places.add(number - rank)  # equal until a window comes that is not suspect
            if cause < EVEN and likelihood < typical - FIT:
                continue
            if cause != ZEROED and not _is_varied(exponents, DISTINCT if cause == EVEN else 4):
                continue
            scaled = scales[:, exponents].reshape(len(SCALES), -1, FEW).mean(axis=2).max(axis=0)
            if likelihood >= scaled.mean() + SCALED:
                odd.append(number)
            elif self._ends_in_a_row(sample, number, causes[cause] > usual, usual - typical):
                odd_in_rows.append(number)
        if len(places) <= PLACES:
            odd = sorted(odd + odd_in_rows)
        while odd and not sample[odd[-1] * WINDOW :].any():
            odd.pop()  # padding
        rows = {int(number * WINDOW / self.row) for number in odd}
        most = max(1.0, MANY * len(sample) / self.row)
        if len(rows) > most:
            return ()
        return tuple(number * WINDOW * APART for number in odd)

    def _causes(self, usual: Logarithms) -> Logarithms:
        """(11, 256): the logarithm of how likely each kind of damage leaves an exponent."""
        flipped = usual[NUMBERS ^ np.array(FLIPS)[:, None]]
        even = np.full((1, 256), -self.bits * math.log(2))
        zero = np.where(NUMBERS == 0, ZERO, -math.inf)[None]
        return np.vstack([flipped, even, zero]).astype(np.float32)

    def _ends_in_a_row(
        self, sample: Exponents, number: int, is_odd: NDArray[np.bool_], calm: Logarithms
    ) -> bool:
        """True if a row at a window has odd entries and usual ones. Rows that are odd as a whole
        are those of unused tokens, or were pruned.
        """
        if is_odd[sample[number * WINDOW :][:WINDOW]].mean() < CLEAR:
            return False
        first = max(0, number - 1) * WINDOW
        last = min(len(sample), (number + 2) * WINDOW)
        for row in range(int(first / self.row), math.ceil(last / self.row)):
            start = math.ceil(row * self.row)
            end = math.ceil((row + 1) * self.row)
            near = is_odd[sample[max(start, first) : min(end, last)]]
            whole = (end - start) // FEW * FEW
            parts = calm[sample[start : start + whole]].reshape(-1, FEW).mean(axis=1)
            if near.sum() >= FEW and parts.max(initial=-math.inf) > -CALM:
                return True
        return False


def _is_varied(exponents: Exponents, least: int) -> bool:
    """True if a window has that many exponents, and no smooth course."""
    is_rough = np.count_nonzero(np.diff(exponents)) >= CHANGES
    return is_rough and len(set(exponents.tolist())) >= least


def _row(shape: Sequence[int], least: int) -> int:
    """The entries of a row, or of as many of its last dimensions as have enough of them."""
    entries = 1
    for size in reversed(shape[1:]):
        entries *= size
        if entries >= least:
            break
    return entries


def _logarithms(counts: NDArray[np.int64]) -> Logarithms:
    """The logarithms of frequencies, none of which is 0."""
    return np.log((counts + 1) / counts.sum()).astype(np.float32)


def _suspects(windows: Exponents, usual: Logarithms) -> list[int]:
    """The windows so unlike the rest that any damage is likelier by GAIN."""
    suspects: list[int] = []
    for first in range(0, len(windows), AT_ONCE):
        likelihoods = usual[windows[first : first + AT_ONCE]].mean(axis=1)
        suspects += (first + np.flatnonzero(likelihoods < usual.max() - GAIN)).tolist()
    return suspects
