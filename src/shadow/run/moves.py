"""Whether a matrix that differs from its base moved, or may be the base's after a rounding."""

from __future__ import annotations

from typing import Literal

from shadow.checkpoints.pairing import MatrixPair
from shadow.dtypes import FLOATS, float_format
from shadow.run.aligned import is_raw
from shadow.run.scanned import Scanned
from shadow.spectra.entries import Binades
from shadow.spectra.format_noise import format_noise
from shadow.spectra.lazy import is_quantised
from shadow.spectra.levels import Made
from shadow.spectra.merging import half_ulp
from shadow.spectra.repeats import has_few_levels
from shadow.spectra.spectrum import Sides, tiles

SMALLEST = 2.0**-24  # of F16, which may have come between
Rounding = (
    Made | Literal["not_finite", "both_quantised", "base_rounded", "few_levels", "another_way"]
)


def rounding_between(sides: Sides, row: Scanned, *, is_matrix: bool) -> Rounding | None:
    """Tell what rounding may have made one side of the other, beside a cast of floats in every
    entry; None where none did. row: what a scan found of them.
    """
    if not row.finite:
        return "not_finite"
    first, second = sides.base, sides.tuned
    if is_quantised(second):
        if is_quantised(first):
            return "both_quantised"
        return format_noise(first, second).may_be(row.formats[1])
    if is_quantised(first):
        is_base = format_noise(second, first).may_be(row.formats[0]) is not None
    else:
        is_base = row.rounded == ("base", row.formats[0])
    if is_base:
        return "base_rounded"
    if row.rounded:
        return None
    if is_matrix and has_few_levels(first, second):
        return "few_levels"
    return "another_way" if _is_within_a_unit(sides, row) else None


def _is_within_a_unit(sides: Sides, row: Scanned) -> bool:
    """Whether no entry of a tuned side of fewer bits than the base lies a unit in the last place
    away, as none does after several roundings, or one that is not to the nearest. A file of more
    bits may hold what BF16 rounded, and F16 may have come between.
    """
    first, second = map(float_format, row.formats)
    is_file_alone = first.bits <= second.bits
    if is_file_alone:
        second = FLOATS["BF16"]
    units = 2 if first.mantissa_bits > second.mantissa_bits else 0
    if not units and row.delta_energy > row.entries * SMALLEST**2:
        return False
    for index, _ in tiles(sides.tuned):
        base, tuned = (tile.double().contiguous() for tile in sides.read(index))
        if is_file_alone and (tuned.bfloat16().double() != tuned).any():
            return False
        if ((tuned - base).abs() > units * half_ulp(base, second) + SMALLEST).any():
            return False
    return True


def is_initial(sides: Sides) -> bool:
    """Whether every entry of the base is 1, or every one is 0, as norms and biases begin."""
    ends = {float(end) for index, _ in tiles(sides.tuned) for end in sides.read(index)[0].aminmax()}
    return ends in ({0.0}, {1.0})


def binades_of(pair: MatrixPair) -> Binades | None:
    """What counts entries by the size of the base's; None where these are no steps of floats."""
    assert pair.base is not None, "lined up"
    infos = pair.base.info, pair.tuned.info
    if is_raw(pair) or any(one.packing or one.dtype not in FLOATS for one in infos):
        return None
    first, second = (FLOATS[one.dtype] for one in infos)
    # what the cast to fewer bits moved is no step
    return None if first.bits > second.bits else Binades(second)
