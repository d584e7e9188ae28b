"""Pages of a stored matrix whose exponents are not those of the rest, as a damaged file has them.

The exponents of some entries are noted while a matrix is read. Bytes that are no numbers, shifted
ones or a flipped bit make the exponents of a page far likelier than the frequencies in the matrix
do. What rows of another scale explain as well is no damage: unused tokens have such rows.
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
GAIN = 1.5  # nats an entry by which damage is likelier than that the entries are as all others
SCALED = 0.6  # and by which it is likelier than that they are as others of another scale
UP = 12  # powers of two by which a row may be larger than all others; any row may be smaller
FIT = 1.0  # nats by which a flipped bit may leave an entry less likely than all are
FEW = 8  # samples that may have a scale of their own
MEAN = np.full(WINDOW, 1 / WINDOW, np.float32)
NUMBERS = np.arange(256)
SCALES = np.clip(NUMBERS - np.arange(-255, UP + 1)[:, None], 0, 255)
# of exponents as F32 has them; the last is the first bit of F16
FLIPS = np.array([1, 2, 4, 8, 16, 32, 64, 128, 0xF0])[:, None]
EVEN = len(FLIPS)  # the cause of bytes that are no numbers
DISTINCT = 20  # exponents that these leave in a window at least
LEVELS = 4  # and that numbers with a flipped bit do
AT_ONCE = 4096  # windows


class PageSample:
    """Exponents of every so many entries of a matrix, in the order of the file."""

    def __init__(self, dtype: str) -> None:
        stored = FLOATS[dtype]
        exponent_bits = stored.bits - stored.mantissa_bits - 1
        self._step = 8 * APART // stored.bits
        self._even = -exponent_bits * math.log(2)  # of exponents that are equally likely
        self._entries = 0
        self._exponents: list[NDArray[np.uint8]] = []

    def add(self, entries: NDArray[np.floating]) -> None:
        """Note the exponents of the next entries, (n,) in float32."""
        first = -self._entries % self._step
        bits = entries.view(np.int32)[first :: self._step]
        self._exponents.append((bits >> 23).astype(np.uint8))
        self._entries += len(entries)

    def damaged(self) -> tuple[int, ...]:
        """The first byte of each window of 2 KB that damage explains."""
        sample = np.concatenate(self._exponents)
        count = len(sample) // WINDOW
        if count < FEWEST:
            return ()
        windows = sample[: count * WINDOW].reshape(count, WINDOW)
        pieces = np.array_split(windows, 1 + count // AT_ONCE)
        counts = np.bincount(sample[count * WINDOW :], minlength=256)
        for piece in pieces:
            counts += np.bincount(piece.reshape(-1), minlength=256)
        usual = _logarithms(counts)
        likelihoods = np.concatenate([usual.take(piece) @ MEAN for piece in pieces])
        suspects = np.flatnonzero(likelihoods < usual.max() - GAIN)
        if len(suspects) > MANY * count:
            return ()
        of_suspects = np.bincount(windows[suspects].reshape(-1), minlength=256)
        counts -= of_suspects
        usual = _logarithms(counts)
        typical = counts @ usual / counts.sum()
        flipped = usual[NUMBERS ^ FLIPS]
        even = np.full(256, self._even)
        causes = np.vstack([flipped, even])
        odd = []
        for number in suspects.tolist():
            exponents = windows[number]
            likelihoods = causes[:, exponents].mean(axis=1)
            cause = int(likelihoods.argmax())
            likelihood = likelihoods[cause]
            unchanged = usual[exponents].mean()
            if likelihood < unchanged + GAIN:
                continue
            fewest = DISTINCT
            if cause < EVEN:
                fewest = LEVELS
                if likelihood < typical - FIT:
                    continue
            distinct = set(exponents.tolist())
            if len(distinct) < fewest:
                continue
            scaled = usual[SCALES[:, exponents]]
            scaled = scaled.reshape(len(SCALES), -1, FEW).mean(axis=2)
            best = scaled.max(axis=0)  # the scale of each piece of FEW samples
            if likelihood > best.mean() + SCALED:
                odd.append(number * WINDOW * APART)
        return tuple(odd)


def _logarithms(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """The logarithms of frequencies, none of which is 0."""
    total = int(counts.sum())
    frequencies = (counts + 1) / total
    return np.log(frequencies).astype(np.float32)
