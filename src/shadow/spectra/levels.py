"""Few distinct values as the trace of a copy that went through int8, fp8 or int4, and results for a
quantised copy and its original.

Imports nothing that computes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Literal

import numpy as np

LEVELS_OF = 1024  # entries of a row that are looked at for distinct values

# An importance matrix moves scales of these formats after levels were chosen, which leaves .1 to
# .7 % of the entries outside their cell, none of them further than 1 step; all others choose levels
# last (ggml's quantisers, on normal, Student-t and column-scaled matrices).
RESCALED = {"Q4_0", "Q4_1", "Q5_0", "Q5_1"}
RESCALED_SHARE = 0.01
RESCALED_STEPS = 1.5
# formats whose quantisers may weigh errors by activations: those of files in safetensors but
# bitsandbytes' of 4 bits
CALIBRATED = ("GPTQ", "AWQ", "INT", "MLX", "F8_", "NVFP4")
# times what rounding makes; 2.7 at most was measured of GPTQ in 2 to 8 bits, in groups of 32 and
# 128, on 128 to 1,024 columns, with inputs that are correlated a little to much
CALIBRATED_ERROR = 6.0
Made = Literal["copy", "calibrated", "unknown_levels"]
# a factor of a whole tensor, such as a scale that is ten times too large: from so far from 1, where
# all that the scaled original leaves is at most so many times what its format makes
FACTOR = 1.25
FITTED = 4.0
FAR = 0.5  # the cosine of original and copy below which it is not a copy of this tensor


@cache
def expected_levels(kind: str, length: int) -> float:
    """The expected share of distinct values among `length` normal entries stored in a
    format (kind).

    BF16 has floating-point cells; INT8 and INT4 have as many equal ones from -max to max of a row.
    """
    integers = kind in ("INT8", "INT4")
    if integers:
        half = 7
        if kind == "INT8":
            half = 127
        largest = NormalDist().inv_cdf(1.0 - 0.5 / length)  # one entry is larger
        middles = np.arange(half + 1) + 0.5
        edges = middles / half * largest
        edges[-1] = math.inf
    else:
        significands = 1.0 + np.arange(128) / 128
        powers = np.exp2(np.arange(-24, 4))
        edges = (significands * powers[:, None]).ravel()
    below = np.array([math.erf(edge / math.sqrt(2)) for edge in edges])
    chances = np.diff(np.append(0.0, below)) / 2  # of either sign
    signs = np.full(len(chances), 2.0)
    if integers:  # the cell of 0 has no sign
        chances[0] *= 2
        signs[0] = 1.0
    logs = np.log1p(-np.minimum(chances, 1 - 1e-12))  # of the chance that one entry lies elsewhere
    seen = -np.expm1(length * logs)
    distinct = float((signs * seen).sum())
    return distinct / length


def round_trip(share: float | None, length: int) -> str | None:
    """The format, INT4 or 8 bits, of a round trip that this share of distinct values shows.

    Thresholds lie in the geometric middle between what normal rows have in BF16, 8 bits and 4 bits.
    None below 256 entries, where BF16 and 8 bits are too close, for larger shares, and for none.
    length: of a row, of which at most LEVELS_OF are examined.
    """
    length = min(length, LEVELS_OF)
    if share is None or length < 256:
        return None
    fine = expected_levels("BF16", length)
    eight = expected_levels("INT8", length)
    four = expected_levels("INT4", length)
    if share < math.sqrt(eight * four):
        return "INT4"
    if share < math.sqrt(fine * eight):
        return "8 bits"
    return None


@dataclass(frozen=True)
class FormatNoise:
    """An original and its quantised copy, as sums over entries. error = copy - original."""

    entries: int = 0
    outside: int = 0
    """Not in the cell of their copy, nor clipped."""
    clipped: int = 0
    furthest: float = 0.0
    """Of entries outside, the furthest from its copy, in steps."""
    original: float = 0.0
    """The sum of squares, as those below."""
    copy: float = 0.0
    error: float = 0.0
    made: float | None = None
    """Of what the format makes: the error where the entry is in its cell or clipped, and that of
    `even` elsewhere. None where not all cells are known: `outside` counts those that are.
    """
    even: float = 0.0
    """What errors that are even over their cells would have: s²/12 each where levels are even."""
    inner: float = 0.0
    """Of original and copy."""
    scaled: float = 0.0
    """The sum of squares of the error after each column of the original was scaled to fit."""
    finite: bool = True

    def is_copy(self, stored: str) -> bool | None:
        """True if the copy is only what its format, stored, makes of the original; None if that is
        unknown.
        """
        if not self.finite:
            return False
        allowed = 0.0
        if stored in RESCALED and self.furthest <= RESCALED_STEPS:
            allowed = RESCALED_SHARE * self.entries
        if self.outside > allowed:
            return False
        if self.made is None:
            return None
        return True

    @property
    def is_far(self) -> bool:
        """True if the copy cannot be of this original, however it was made."""
        is_empty = self.copy == 0 < self.original
        norms = math.sqrt(self.original * self.copy)
        return is_empty or self.inner < FAR * norms

    @property
    def factor(self) -> float | None:
        """The factor between the original and its copy if no quantiser scales so; otherwise
        None.

        By least squares, if the rest is about what the format makes.
        """
        if not self.finite or self.is_far or not self.made or not self.original:
            return None
        factor = self.inner / self.original
        rest = self.copy - factor * self.inner
        is_far = not 1 / FACTOR < factor < FACTOR
        if is_far and rest <= FITTED * self.made:
            return factor
        return None

    def may_be_calibrated(self, stored: str) -> bool:
        """True if a quantiser of the stored format may have made more error than rounding on
        purpose: GPTQ rounds one column after another and adjusts the others, AWQ scales columns
        first.
        """
        if not stored.startswith(CALIBRATED) or not self.finite or self.is_far or not self.made:
            return False
        error = min(self.error, self.scaled)
        return error <= CALIBRATED_ERROR**2 * self.made

    def may_be(self, stored: str) -> Made | None:
        """Say how the stored format may have made the copy of the original; None if it did not."""
        is_copy = self.is_copy(stored)
        if is_copy is None:
            return "unknown_levels"
        if is_copy:
            return "copy"
        if self.factor is None and self.may_be_calibrated(stored):
            return "calibrated"
        return None
