"""Pages of a stored matrix whose exponents are not those of the rest, as a damaged file has them.

The exponents of some entries are noted while a matrix is read. Other bytes, shifted ones, a flipped
bit or zeros make the exponents of a page far likelier than the frequencies in the matrix do. What
rows of another scale explain as well is damage only where part of a row is so, in few places.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from shadow.dtypes import FLOATS

PAGED = "F32", "BF16", "F16"
APART = 32  # bytes from one sampled entry to the next
WINDOW = 64  # samples of 2 KB: every page of 4 KB has a whole window, wherever it begins
FEWEST = 32  # windows that say which exponents a matrix has
MANY = 0.125  # of the windows: where more are unusual, the matrix is made so
PLACES = 4  # of zeros or flipped bits in rows: in more, blocks or columns are made so
GAIN = 1.5  # nats an entry by which damage is likelier than that the entries are as all others
SCALED = 0.6  # and by which it is likelier than that they are as others of another scale
UP = 12  # powers of two by which a row may be larger than all others; any row may be smaller
CALM = 0.5  # nats by which other entries of a row may be less likely than all are
FIT = 1.0  # nats by which a flipped bit may leave an entry less likely than all are
FEW = 8  # samples in which a row is seen to change
ZERO = -1.5  # nats: a run of zeros is unusual where zeros are rarer than this
NUMBERS = np.arange(256)
SCALES = np.clip(NUMBERS - np.arange(-255, UP + 1)[:, None], 0, 255)
# of exponents as F32 has them; the last is the first bit of F16
FLIPS = np.array([1, 2, 4, 8, 16, 32, 64, 128, 0xF0])[:, None]
EVEN = len(FLIPS)  # the cause of bytes that are no numbers
LEVELS = [4] * EVEN + [20, 1]  # exponents that each cause leaves in a window at least
AT_ONCE = 1 << 12  # windows


class PageSample:
    """Exponents of every so many entries of a matrix, in the order of the file."""

    def __init__(self, cols: int, dtype: str) -> None:
        stored = FLOATS[dtype]
        self._step = 8 * APART // stored.bits
        self._even = (stored.mantissa_bits + 1 - stored.bits) * math.log(2)
        self._cols = cols
        self._entries = 0
        self._counts = np.zeros(256, np.int64)
        self._exponents: list[NDArray[np.uint8]] = []

    def add(self, entries: NDArray[np.floating]) -> None:
        """Note the exponents of the next entries."""
        sample = entries[-self._entries % self._step :: self._step].astype(np.float32)
        exponents = (sample.view(np.int32) >> 23).astype(np.uint8)
        self._counts += np.bincount(exponents, minlength=256)
        self._exponents.append(exponents)
        self._entries += len(entries)

    def damaged(self) -> tuple[int, ...]:
        """The first byte of each window of 2 KB that damage explains. Short rows, and those that
        the samples do not divide, are not judged.
        """
        row = self._cols // self._step
        sample = np.concatenate(self._exponents)
        count = len(sample) // WINDOW
        if count < FEWEST or row < FEW or self._cols % self._step:
            return ()
        rows = sample.reshape(-1, row)[:, : row // FEW * FEW].reshape(-1, row // FEW, FEW)
        windows = sample[: count * WINDOW].reshape(count, WINDOW)
        usual = _logarithms(self._counts)
        blocks = np.array_split(windows, 1 + count // AT_ONCE)
        likelihoods = np.concatenate([usual[block].mean(axis=1) for block in blocks])
        suspects = np.flatnonzero(likelihoods < usual.max() - GAIN)
        if len(suspects) > MANY * count:
            return ()
        counts = self._counts - np.bincount(windows[suspects].reshape(-1), minlength=256)
        usual = _logarithms(counts)
        typical = counts @ usual / counts.sum()
        zero = np.where(NUMBERS, -math.inf, ZERO)
        causes = np.vstack([usual[NUMBERS ^ FLIPS], np.full(256, self._even), zero])
        scales = usual[SCALES]
        odd: list[int] = []
        odd_in_rows = []
        places = set()
        for rank, number in enumerate(suspects.tolist()):
            exponents = windows[number]
            likelihoods = causes[:, exponents].mean(axis=1)
            cause = int(likelihoods.argmax())
            gain = likelihoods[cause] - usual[exponents].mean()
            if gain < GAIN:
                continue
            if cause != EVEN:
                places.add(number - rank)  # equal until a window comes that is usual
            is_bad_fit = cause < EVEN and likelihoods[cause] < typical - FIT
            if is_bad_fit or len(set(exponents.tolist())) < LEVELS[cause]:
                continue
            scaled = scales[:, exponents].reshape(len(scales), -1, FEW).mean(axis=2).max(axis=0)
            if likelihoods[cause] > scaled.mean() + SCALED:
                odd.append(number)
                continue
            first = max(0, number - 1) * WINDOW // row
            near = rows[first : (number + 2) * WINDOW // row + 1]
            has_odd = (causes[cause] > usual)[near].all(axis=2).any(axis=1)
            has_calm = (usual[near].mean(axis=2) > typical - CALM).any(axis=1)
            if (has_odd & has_calm).any():
                odd_in_rows.append(number)
        if len(places) <= PLACES:
            odd = sorted(odd + odd_in_rows)
        while odd and not sample[odd[-1] * WINDOW :].any():
            odd.pop()  # padding
        return tuple(number * WINDOW * APART for number in odd)


def _logarithms(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """The logarithms of frequencies, none of which is 0."""
    return np.log((counts + 1) / counts.sum()).astype(np.float32)
