"""How few distinct values tell of a copy that went through int8, fp8 or int4.

Imports nothing that computes.
"""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

import numpy as np

LEVELS_OF = 1024  # entries of a row that are looked at for distinct values

# An importance matrix moves scales of these formats after levels were chosen, which leaves .1 to
# .7 % of the entries outside their cell, none of them further than 1 step; all others choose levels
# last (ggml's quantisers, on normal, Student-t and column-scaled matrices).
RESCALED = {"Q4_0", "Q4_1", "Q5_0", "Q5_1"}
RESCALED_SHARE, RESCALED_STEPS = 0.01, 1.5


@cache
def expected_levels(kind: str, length: int) -> float:
    """The expected share of distinct values among `length` normal entries stored in a format.

    BF16 and FP8 (E4M3) have cells of floating point, INT8 and INT4 as many equal ones from -max to
    max of a row.
    """
    integers = kind in ("INT8", "INT4")
    if integers:
        half = 127 if kind == "INT8" else 7
        largest = NormalDist().inv_cdf(1.0 - 0.5 / length)  # one entry is larger
        edges = (np.arange(half + 1) + 0.5) / half * largest
        edges[-1] = math.inf
    else:
        bits = {"BF16": 7, "FP8": 3}[kind]
        lows = (1.0 + np.arange(1 << bits) / (1 << bits)) * np.exp2(np.arange(-24, 4))[:, None]
        edges = lows.ravel()
    below = np.array([math.erf(edge / math.sqrt(2)) for edge in edges])
    chances = np.diff(np.append(0.0, below)) / 2  # of either sign
    signs = np.full(len(chances), 2.0)
    if integers:  # the cell of 0 has no sign
        chances[0] *= 2
        signs[0] = 1.0
    seen = -np.expm1(length * np.log1p(-np.minimum(chances, 1 - 1e-12)))
    return float((signs * seen).sum()) / length


def round_trip(share: float, length: int) -> str | None:
    """The format, INT4 or 8 bits, of a round trip that this share of distinct values shows.

    Thresholds lie in the geometric middle between what normal rows have in BF16, 8 bits and 4 bits.
    None below 256 entries, where BF16 and 8 bits are too close, and for more.
    """
    length = min(length, LEVELS_OF)
    if length < 256:
        return None
    fine, eight, four = (expected_levels(kind, length) for kind in ("BF16", "INT8", "INT4"))
    if share < math.sqrt(eight * four):
        return "INT4"
    return "8 bits" if share < math.sqrt(fine * eight) else None


def is_beyond(stored: str, outside: int, entries: int, furthest: float) -> bool:
    """Whether a copy in a quantised format is more than the format makes: entries of the original
    lie outside the cell of their copy. furthest: of these, from their copy, in steps.
    """
    rescaled = stored in RESCALED and furthest <= RESCALED_STEPS
    return outside > (RESCALED_SHARE * entries if rescaled else 0)
