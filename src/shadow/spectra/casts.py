"""Which side of a pair is the other, stored in another format."""

from __future__ import annotations

import torch

from shadow.dtypes import FLOATS, FloatFormat
from shadow.spectra.lazy import Updated, is_quantised, torch_dtype
from shadow.spectra.measurement import Cast
from shadow.spectra.parts import PART
from shadow.spectra.spectrum import SMALL_BLOCK, Sides, tiles

AS_ROUNDING = 0.5  # of the energy that rounding leaves on average


def cast(sides: Sides, formats: tuple[str, str]) -> Cast | None:
    """Which side is the other, stored in another format, in every entry: `tuned` where the tuned
    side is the base cast, `base` the reverse; None where neither holds.

    formats: stored dtypes. An F32 file may hold the values of a coarser format, so casts to those
    are tried too. The first entry that is another ends a search, so that this costs a part of
    ordinary pairs. A tuned side in more bits that moved less than half an ulp everywhere, as norms
    may, has a base that equals its cast: `base` needs a difference as large as rounding leaves.
    """
    if (is_quantised(sides.tuned) or isinstance(sides.tuned, Updated)) or is_quantised(sides.base):
        return None
    for side, stored in zip(("tuned", "base"), reversed(formats), strict=True):
        for name in dict.fromkeys((stored, "BF16", "F16", "F32")):
            narrower = FLOATS[name].bits < FLOATS[stored].bits
            if not (name == stored or narrower) or not _all_cast(sides, side, FLOATS[name]):
                continue
            if side == "tuned":
                return "tuned"
            return "base" if _is_as_large_as_rounding(sides, FLOATS[name]) else None
    return None


def _all_cast(sides: Sides, side: str, to: FloatFormat) -> bool:
    """Whether one side is the other cast to a format, in every entry."""
    narrow = torch_dtype(to)
    for index, _ in tiles(sides.tuned, PART):
        b, t = sides.read(index)
        source, found = (b, t) if side == "tuned" else (t, b)
        if not torch.equal(source.to(narrow).to(sides.dtype), found):
            return False
    return True


def _is_as_large_as_rounding(sides: Sides, to: FloatFormat) -> bool:
    """Whether D has at least half of the energy that rounding to a format leaves on average,
    ulp² / 12 an entry.
    """
    energy, rounding = 0.0, 0.0
    for b, t in sides.blocks(SMALL_BLOCK):
        exponents = (torch.frexp(b).exponent - 1).clamp_min(to.min_exponent) - to.mantissa_bits
        ulps = torch.ldexp(torch.ones_like(b), exponents)
        rounding += float(ulps.square_().sum(dtype=torch.float64)) / 12
        energy += float(t.sub_(b).square_().sum(dtype=torch.float64))
    return energy >= AS_ROUNDING * rounding
