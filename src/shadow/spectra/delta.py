"""A matrix pair -> its three spectra and all their numbers.

The delta D = tuned - base is formed block by block: in float32 from formats of at most 16 bits,
where it is exact to the last bit that matters, and in float64 from F32 and F64. Its Gram is never
computed from the other Grams, which would lose everything to cancellation (errors up to 410 % were
measured).
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from shadow.dtypes import FLOATS, FloatFormat, float_format
from shadow.spectra.copies import stored_levels
from shadow.spectra.entries import compared, cosine, decay_cosine, norm_values
from shadow.spectra.lazy import Matrix, Updated, is_quantised
from shadow.spectra.levels import round_trip
from shadow.spectra.measurement import Formats, Measurement, Precision, Shape, Values, norm_alone
from shadow.spectra.noise import (
    Rest,
    coverage_values,
    noise_like_rest,
    purity_values,
    rest_values,
)
from shadow.spectra.relations.format_noise import COLUMNS as FORMAT_COLUMNS
from shadow.spectra.relations.format_noise import format_values
from shadow.spectra.rounding import (
    MORE,
    Undone,
    rounding_share,
    undo,
    without_few_levels,
    zero_share_excess,
)
from shadow.spectra.rounding import values as undone_values
from shadow.spectra.solvers import Means, solver_of
from shadow.spectra.spectrum import (
    Sides,
    Spectrum,
    Workspace,
    power_of_two_scale,
    scaled_blocks,
    shape_of,
    working_dtype,
)
from shadow.spectra.subspace import NO_SUBSPACES
from shadow.spectra.sums import Extent, Sums, sums


class Measured(NamedTuple):
    """The numbers of a matrix pair."""

    base: Measurement
    tuned: Measurement
    delta: Measurement


def summed(sides: Sides, formats: Formats) -> Sums | Extent:
    """The sums of both sides, as in `sums`, with ulps of the coarser of the stored formats."""
    grids = [float_format(stored) for stored in formats]
    coarser = min(grids, key=lambda grid: grid.mantissa_bits)
    if is_quantised(sides.base) or is_quantised(sides.tuned):
        # scales move 8-bit steps to where the weights are: no weight lies below the smallest
        # normal number
        smallest = FLOATS["F32"].min_exponent
        coarser = replace(coarser, min_exponent=smallest)
    return sums(sides, coarser)


class Result(NamedTuple):
    """Facts about a matrix pair."""

    broken: Extent | None  # with an entry that is not finite, or sums that float64 does not hold
    base_norm: float = 0.0
    measurements: tuple[Measurement, ...] = ()  # of base, tuned and delta; none of equal entries
    may_be_cast: bool = True  # to another format of floats


def measure(sides: Sides, formats: Formats, means: Means, key: str) -> Result:
    """Measure a matrix pair at the level of a method, that of means.

    sides: of one shape. formats: the stored dtypes. key: as in `measure_pair`.
    """
    has_spectra = means.method.has_spectra
    if not has_spectra:
        entries = compared(sides, formats)
        if entries.is_safe:
            measurements: tuple[Measurement, ...] = ()
            if entries.changed:
                measurements = norm_values(entries)
            return Result(
                broken=None,
                base_norm=math.sqrt(entries.base),
                measurements=measurements,
                may_be_cast=entries.rounded is not None,
            )
    total = summed(sides, formats)
    if isinstance(total, Extent):
        if not total.in_range:
            return Result(total)
        norm = frobenius_norm(sides.base, total.base, sides.dtype, sides.space)
        return Result(broken=None, base_norm=norm)
    if has_spectra:
        measured = measure_pair(sides.base, sides.tuned, formats, total, means, key)
    else:
        measured = _norms(total, sides.shape)
    return Result(None, total.base_norm, measured)


def measure_pair(
    base: Matrix,
    tuned: Matrix,
    formats: Formats,
    total: Sums,
    means: Means,
    key: str,
) -> Measured:
    """All numbers of base, tuned and delta.

    base and tuned: (rows, cols), or (groups, rows / groups, cols). formats: the stored dtypes.
    total: the sums of `summed`. means: the method and buffers of a worker. key: names the matrix
    for its sketch.
    """
    sides = Sides(base, tuned, working_dtype(*formats), means.space)
    profile = total.profile
    scale = profile.scale
    largest = total.size.base
    cols = sides.shape[1]
    solver = solver_of(means.method, sides.shape)
    assert solver is not None, "norms alone are sums over entries"
    figures = solver.of_pair(sides, total, formats, means, key)
    with np.errstate(over="ignore"):
        of_rows = profile.rows / scale / scale
    lines = of_rows, profile.cols
    values = NO_SUBSPACES | _sizes(total, sides.shape)
    values |= figures.values
    values["condition_number"] = None  # the smallest singular value of a delta says nothing
    if isinstance(tuned, Updated):
        values["floor_ratio"] = None  # nothing has been rounded
    values |= dict.fromkeys(FORMAT_COLUMNS)
    values |= format_values(sides, formats, float(of_rows.sum()))
    values |= coverage_values(profile)
    values["decay_cosine"] = _decay(total)
    values["levels_base"] = stored_levels(base, formats[0])
    values["levels_tuned"] = stored_levels(tuned, formats[1])
    undone = undo(sides, formats, lines, largest, values["floor_ratio"])
    format_of_base = round_trip(values["levels_base"], cols)
    format_of_tuned = round_trip(values["levels_tuned"], cols)
    undone = without_few_levels(undone, format_of_base, format_of_tuned)
    values["floor_ratio"] = _floor(values["floor_ratio"], undone, total.stored)
    values |= undone_values(undone, total.base_norm)
    count_now = partial(undo, sides, formats, lines, largest)
    values["zero_share_excess"] = zero_share_excess(undone, values, count_now)
    values |= purity_values(values, sides.shape, undone.kept, undone.reason)
    rest = None
    sigma = np.zeros(0)
    precision: Precision = "sketch"
    if figures.delta:
        rest = _rest(figures.delta, total)
        sigma = figures.delta.sigma
        precision = figures.delta.precision
    rounded = rounding_share(undone, values["floor_ratio"])
    values |= rest_values(rest, rounded, sides.shape)
    cells = {
        **values,
        "kept_reason": undone.reason,
        "kept_history": undone.history,
        "kept_misfit": undone.misfit,
    }
    delta = Measurement("delta", precision, cells, sigma)
    return Measured(figures.base, figures.tuned, delta)


def _rest(delta: Spectrum, total: Sums) -> Rest | None:
    """The rest of a delta that is like the rounding of storage, or like noise with the delta's own
    profile; None if there is none.
    """
    like_rounding = noise_like_rest(delta, total.ulp_rows, total.ulp_cols)
    if like_rounding is not None:
        return like_rounding
    profile = total.profile
    return noise_like_rest(delta, profile.rows, profile.cols)


def _norms(total: Sums, shape: Shape) -> Measured:
    """The columns of the level norms, from sums with a scale."""
    values = _sizes(total, shape)
    values["decay_cosine"] = _decay(total)
    del values["floor_ratio"]
    return Measured(
        base=norm_alone("base", total.base_norm),
        tuned=norm_alone("tuned", total.tuned_norm),
        delta=norm_alone("delta", total.delta_norm, values),
    )


def _decay(total: Sums) -> float | None:
    """decay_cosine, from scaled sums: scales cancel."""
    delta = math.sqrt(total.profile.energy)
    base = math.sqrt(total.base)
    return decay_cosine(total.along, delta, base)


def _sizes(total: Sums, shape: Shape) -> Values:
    """Size, direction and rounding of the delta relative to the base, from the sums."""
    profile = total.profile
    delta = total.delta_norm
    base = total.base_norm
    rounding = math.sqrt(total.ulps / 12.0) / total.scale
    of_delta = profile.scale / total.scale
    cosine_of_sides = cosine(
        base=math.sqrt(total.base),
        tuned=math.sqrt(total.tuned),
        energy=profile.energy / of_delta / of_delta,
        along=total.along / of_delta,
    )
    relative_norm = None
    if base > 0:
        relative_norm = delta / base
    floor_ratio = None
    if rounding > 0:
        floor_ratio = delta / rounding
    return {
        "relative_norm": relative_norm,
        "cosine": cosine_of_sides,
        "zero_share": total.zeros / math.prod(shape),
        "zeroed": int(total.zeroed),
        "floor_ratio": floor_ratio,
    }


def _floor(floor: float | None, undone: Undone, coarser: FloatFormat) -> float | None:
    """floor_ratio by the format that rounded: that of a tuned side in more bits than the
    base is its own. None for F32 or F64 if it depends on whether the base was rounded.
    """
    grid = undone.grid
    if floor is None or undone.history == "nothing_rounded":
        return None
    if grid is None or grid.mantissa_bits <= coarser.mantissa_bits:
        return floor
    if undone.history == "stored_base":
        finer = grid.mantissa_bits - coarser.mantissa_bits
        return math.ldexp(floor, finer)
    if grid.bits > 16 and undone.kept is None and floor < MORE:
        return None
    return floor


def measure_alone(
    matrix: Matrix, stored: str, largest: float, means: Means, key: str
) -> Measurement:
    """The numbers of a matrix without a base (a projector).

    stored: its dtype. largest: its largest absolute entry. means and key: as in `measure_pair`.
    """
    dtype = working_dtype(stored)
    norm = frobenius_norm(matrix, largest, dtype, means.space)
    shape = shape_of(matrix)
    solver = solver_of(means.method, shape)
    if means.method.subjects != "all" or solver is None:
        return norm_alone("tuned", norm)
    return solver.alone(matrix, norm, largest, stored, means, key)


def frobenius_norm(matrix: Matrix, largest: float, dtype: torch.dtype, space: Workspace) -> float:
    """The Frobenius norm of a matrix, given its largest absolute entry.

    dtype: of the sums of a block. space: its buffers.
    """
    scale = power_of_two_scale(largest)
    energies = []
    for block in scaled_blocks(matrix, scale, dtype, space):
        energy = block.square_().sum()
        energies.append(float(energy))
    return math.sqrt(sum(energies)) / scale
