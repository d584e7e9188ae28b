"""A matrix pair -> its three spectra and every number of them.

The delta D = tuned - base is formed block by block: in float32 from formats of at most 16 bits,
where it is exact to the last bit that matters, and in float64 from F32 and F64. Its Gram is never
put together from the other Grams: that loses everything to cancellation (errors up to 410 % were
measured).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.dtypes import FLOATS, FloatFormat, float_format
from shadow.spectra.edge import (
    cosine,
    decay_cosine,
    sharp_edge_values,
    sharp_null_edge,
    stored_levels,
)
from shadow.spectra.format_noise import COLUMNS as FORMAT_COLUMNS
from shadow.spectra.format_noise import format_values
from shadow.spectra.krylov import Estimate
from shadow.spectra.lazy import Matrix, Updated, is_quantised
from shadow.spectra.levels import round_trip
from shadow.spectra.measurement import Measurement, Precision, Subject, Subjects, Values, norm_alone
from shadow.spectra.null import (
    Profile,
    closed_null,
    coverage_values,
    null_values,
    sampled_values,
)
from shadow.spectra.purity import purity_values
from shadow.spectra.rank import condition_number, norms, ranks, top_energies
from shadow.spectra.rest import noise_like_rest, rest_values
from shadow.spectra.rounding import (
    MORE,
    Undone,
    excess_values,
    rounding_share,
    undo,
    without_few_levels,
    without_means,
)
from shadow.spectra.rounding import values as undone_values
from shadow.spectra.sketched import (
    SMALLEST,
    Sketch,
    effective_rank_shift,
    leading_directions,
    of_pair,
    one_alone,
    ratio_of,
    sketched_delta,
    sketches,
    subspace_errors,
    weight_values,
    with_errors,
)
from shadow.spectra.spectrum import (
    ON_CPU,
    Grams,
    Question,
    Read,
    Remember,
    Sides,
    Spectrum,
    Workspace,
    blocks,
    power_of_two_scale,
    scaled_blocks,
    shape_of,
    solve_anew,
    spectrum,
)
from shadow.spectra.subspace import NO_SUBSPACES, VECTORS, subspace_values
from shadow.spectra.sums import Extent, Sums, sums
from shadow.spectra.tail import hill, marchenko_pastur, power_law

FACTORS_FLOOR = 1e-13  # of the largest: singular values from factors are good to float64's rounding


@dataclass(frozen=True)
class Method:
    """How numbers are computed; part of what makes two reports comparable."""

    precision: Precision = "default"  # of Gram matrices and eigenvalues
    nulls: int = 0  # draws of the sampled null; 0 leaves its columns null
    seed: int = 0  # of these draws
    subspaces: bool = True  # whether singular vectors are compared too; only of all subjects
    subjects: Subjects = "all"


USUAL = Method()
NORMS = Method(subjects="none", subspaces=False)  # sums over entries, no spectra


@dataclass(frozen=True)
class Means:
    """What one worker measures with."""

    method: Method
    space: Workspace
    remember: Remember = solve_anew  # how the spectrum of one side is had
    grams: Grams = ON_CPU


class Measured(NamedTuple):
    """The numbers of a matrix pair."""

    base: Measurement
    tuned: Measurement
    delta: Measurement


def working_dtype(*formats: str) -> torch.dtype:
    """float64 as soon as a stored format has more bits than a float32 difference keeps. A quantised
    matrix is decoded to float32.
    """
    return (
        torch.float64
        if any(name in FLOATS and FLOATS[name].bits > 16 for name in formats)
        else torch.float32
    )


def delta_blocks(sides: Sides, scale: float, dtype: torch.dtype) -> Iterator[Tensor]:
    """The blocks of scale * (tuned - base) in dtype, in the order of `blocks`."""
    for b, t in replace(sides, dtype=dtype).blocks():
        t.sub_(b)
        yield t if scale == 1.0 else t.mul_(scale)


def summed(sides: Sides, formats: tuple[str, str]) -> Sums | Extent:
    """The sums of both sides, as `sums` says, with ulps of the coarser of the stored dtypes."""
    coarser = min(map(float_format, formats), key=lambda stored: stored.mantissa_bits)
    if is_quantised(sides.base) or is_quantised(sides.tuned):
        # scales move 8-bit steps to where the weights are: no weight lies below the smallest
        # normal number
        coarser = replace(coarser, min_exponent=FLOATS["F32"].min_exponent)
    return sums(sides, coarser)


def measure_pair(
    base: Matrix,
    tuned: Matrix,
    formats: tuple[str, str],
    total: Sums,
    means: Means,
    key: str,
) -> Measured:
    """All numbers of base, tuned and delta.

    base and tuned: (rows, cols), or (groups, rows / groups, cols). formats are the stored dtypes,
    total the sums of `summed`, key names the matrix for the sampled null.
    """
    sides = Sides(base, tuned, working_dtype(*formats), means.space)
    profile, scale, size = total.profile, total.profile.scale, total.size
    made = _by_spectra(sides, total, formats, means, key)
    with np.errstate(over="ignore"):
        lines = (profile.rows / scale / scale, profile.cols / scale / scale)
    values = {
        **made.values,
        **({"floor_ratio": None} if isinstance(tuned, Updated) else {}),  # nothing has been rounded
        **dict.fromkeys(FORMAT_COLUMNS),
        **format_values(sides, formats, float(lines[0].sum())),
        **coverage_values(profile),
        "decay_cosine": decay_cosine(total.along, math.sqrt(profile.energy), math.sqrt(total.base)),
        "levels_base": stored_levels(base, formats[0]),
        "levels_tuned": stored_levels(tuned, formats[1]),
    }
    undone = undo(sides, formats, lines, size.base, values["floor_ratio"])
    undone = without_means(undone, sides, values["relative_norm"])
    undone = without_few_levels(undone, *_round_trips(values, sides.shape[1]))
    values |= _floor(values["floor_ratio"], undone, total.stored)
    values |= undone_values(undone, math.sqrt(total.base) / total.scale)
    count_now = partial(undo, sides, formats, lines, size.base)
    values |= excess_values(undone, values, count_now)
    of_update = purity_values(values, sides.shape, undone.kept, undone.reason)
    values |= with_errors(of_update, values, undone.kept)
    beyond = made.delta and (
        noise_like_rest(made.delta, total.ulp_rows, total.ulp_cols)
        or noise_like_rest(made.delta, profile.rows, profile.cols)
    )
    rounded = rounding_share(undone, values["floor_ratio"])
    values |= rest_values(beyond or None, rounded, sides.shape)
    about_kept = {
        "kept_reason": undone.reason,
        "kept_history": undone.history,
        "kept_misfit": undone.misfit,
    }
    delta = Measurement("delta", made.precision, {**values, **about_kept}, made.sigma)
    return Measured(made.base, made.tuned, delta)


class _Figured(NamedTuple):
    """What singular values say of a pair."""

    base: Measurement
    tuned: Measurement
    values: Values  # of the delta
    precision: Precision  # of the delta, as it was used
    sigma: NDArray[np.float64]  # of the delta; none of them in `sketch`
    delta: Spectrum | None  # None in `sketch`


def _by_spectra(
    sides: Sides,
    total: Sums,
    formats: tuple[str, str],
    means: Means,
    key: str,
) -> _Figured:
    """The columns that rest on singular values, from all of them or, in `sketch`, by estimates."""
    means = _tier(means, sides.shape)
    if means.method.precision == "sketch":
        return _by_sketches(sides, total, means, key)
    method, profile, scale = means.method, total.profile, total.profile.scale
    vectors = VECTORS if method.subspaces else 0
    weights: list[Measurement] = []
    spectra: list[Spectrum] = []
    subject: Subject
    for subject, matrix, energy, largest, stored in (
        ("base", sides.base, total.base, total.size.base, formats[0]),
        ("tuned", sides.tuned, total.tuned, total.size.tuned, formats[1]),
    ):
        norm = math.sqrt(energy) / total.scale
        if method.subjects != "all":
            weights.append(norm_alone(subject, norm))
            continue
        found = _weight_spectrum(matrix, norm, largest, stored, means, vectors)
        spectra.append(found)
        of_weights = spectrum_values(found)
        weights.append(Measurement(subject, found.precision, of_weights, found.sigma))
    read = partial(delta_blocks, sides, scale)
    delta = _delta_spectrum(sides, read, profile, means)
    values = spectrum_values(delta)
    values |= {
        "condition_number": None,  # a delta's smallest sigma says nothing
        **_sizes(delta.norm, weights[0].number("frobenius_norm"), total, sides.shape),
        **_of_spectra(spectra, delta),
        **_shifts(*weights),
        **null_values(delta, profile, values["participation_ratio"]),
        **sharp_edge_values(delta, profile.rows, profile.cols, scale),
        **top_energies(delta, (20,)),
        **sampled_values(
            delta,
            method.nulls,
            f"{method.seed}\t{key}",
            read,
            [corner for _, corner in blocks(sides.tuned)],
            scale,
            means.grams,
        ),
        **NO_SUBSPACES,
    }
    if method.subspaces and spectra:
        values |= subspace_values(spectra[0], spectra[1], delta, sides, profile)
    return _Figured(
        weights[0],
        weights[1],
        values,
        delta.precision,
        delta.sigma,
        delta,
    )


def _tier(means: Means, shape: tuple[int, int]) -> Means:
    """The tier of a matrix: `default` instead of `sketch` where that costs no more."""
    if means.method.precision != "sketch" or min(shape) > SMALLEST:
        return means
    return replace(means, method=replace(means.method, precision="default"))


def _by_sketches(sides: Sides, total: Sums, means: Means, key: str) -> _Figured:
    """By products with few vectors; the delta of an adapter, from its factors, has all values, and
    so has a side of zeros.
    """
    profile, scale = total.profile, total.profile.scale
    subjects: tuple[Subject, ...] = ("base", "tuned", "delta")
    made: dict[Subject, Sketch] = {}
    scales = dict(zip(subjects, (total.scale, total.scale, scale), strict=True))
    energies = dict(zip(subjects, (total.base, total.tuned, profile.energy), strict=True))
    norms = {subject: math.sqrt(energies[subject]) / scales[subject] for subject in subjects}
    adapted = sides.tuned if isinstance(sides.tuned, Updated) else None
    asked: dict[Subject, float] = {
        name: by
        for name, by in scales.items()
        if norms[name] > 0
        and (adapted is None if name == "delta" else means.method.subjects == "all")
    }
    if asked:
        sizes = {name: (by, norms[name]) for name, by in asked.items()}
        made = sketches(of_pair(sides, asked), sides.shape, sizes, key)
    whole, nothing = None, np.zeros(0)
    if adapted is not None:
        whole = _update_spectrum(adapted, norms["delta"])
        values = spectrum_values(whole)
        values |= {
            **null_values(whole, profile, values["participation_ratio"]),
            **sharp_edge_values(whole, profile.rows, profile.cols, scale),
            **top_energies(whole, (20,)),
        }
        strongest = spectral = Estimate(float(whole.sigma[0]), 0.0)
    else:
        sharp = sharp_null_edge(profile.rows, profile.cols, scale)
        values = sketched_delta(made["delta"], *closed_null(profile), sharp)
        strongest, spectral = made["delta"].sigma(0), made["delta"].spectral_norm
    values |= {
        "condition_number": None,
        **_sizes(norms["delta"], norms["base"], total, sides.shape),
        **NO_SUBSPACES,
    }
    weights = [norm_alone(subject, norms[subject]) for subject in subjects[:2]]
    if means.method.subjects == "all":
        zeros, found = _of_zeros(sides.shape), [made.get(subject) for subject in subjects[:2]]
        weights = [
            Measurement(subject, zeros.precision, spectrum_values(zeros), zeros.sigma)
            if one is None
            else Measurement(subject, "sketch", weight_values(one), nothing)
            for subject, one in zip(subjects, found, strict=False)
        ]
        base, tuned = found
        if base:
            values |= ratio_of(spectral, base.spectral_norm, "relative_spectral")
        if base and tuned:
            values |= effective_rank_shift(base, tuned)
        if means.method.subspaces:
            before, after = (
                leading_directions(one, sides.shape) if one else zeros for one in found
            )
            of_delta = Spectrum(nothing, *sides.shape, norms["delta"], 0.0, "sketch")
            compared = subspace_values(before, after, of_delta, sides, profile)
            largest = (strongest.value + strongest.error) / norms["delta"]
            values |= compared | subspace_errors(compared, base, tuned, largest, profile)
    return _Figured(
        weights[0],
        weights[1],
        values,
        whole.precision if whole else "sketch",
        whole.sigma if whole else nothing,
        whole,
    )


def _floor(floor: float | None, undone: Undone, coarser: FloatFormat) -> Values:
    """floor_ratio by the format that rounded: of a tuned side in more bits than the base that is
    its own. None of one in F32 or F64 where it depends on whether the base was rounded.
    """
    if floor is None or undone.history == "nothing_rounded":
        return {"floor_ratio": None}
    if undone.grid is None or undone.grid.mantissa_bits <= coarser.mantissa_bits:
        return {"floor_ratio": floor}
    if undone.history == "stored_base":
        finer = undone.grid.mantissa_bits - coarser.mantissa_bits
        return {"floor_ratio": math.ldexp(floor, finer)}
    is_unknown = undone.grid.bits > 16 and undone.kept is None and floor < MORE
    return {"floor_ratio": None if is_unknown else floor}


def _delta_spectrum(sides: Sides, read: Read, profile: Profile, means: Means) -> Spectrum:
    """The spectrum of D, whose scaled blocks are read; that of an update from its factors."""
    norm = math.sqrt(profile.energy) / profile.scale
    if isinstance(sides.tuned, Updated):
        return _update_spectrum(sides.tuned, norm)
    return spectrum(
        read,
        sides.shape,
        norm,
        profile.scale,
        means.method.precision,
        sides.dtype == torch.float64,
        grams=means.grams,
    )


def _round_trips(values: Values, length: int) -> list[str | None]:
    """What base and tuned went through, by their distinct values in rows of a length."""
    shares = [values[f"levels_{side}"] for side in ("base", "tuned")]
    return [None if share is None else round_trip(share, length) for share in shares]


def measure_alone(
    matrix: Matrix, stored: str, largest: float, means: Means, key: str
) -> Measurement:
    """The numbers of a matrix that has no base at all (a projector); key as in `measure_pair`."""
    norm = frobenius_norm(matrix, largest, working_dtype(stored), means.space)
    if means.method.subjects != "all":
        return norm_alone("tuned", norm)
    shape = shape_of(matrix)
    means = _tier(means, shape)
    if means.method.precision == "sketch":
        if norm == 0:
            zeros = _of_zeros(shape)
            return Measurement("tuned", zeros.precision, spectrum_values(zeros), zeros.sigma)
        scale = power_of_two_scale(largest)
        read = partial(scaled_blocks, matrix, scale, working_dtype(stored), means.space)
        made = sketches(one_alone(read, means.space), shape, {"tuned": (scale, norm)}, key)
        return Measurement("tuned", "sketch", weight_values(made["tuned"]), np.zeros(0))
    found = _weight_spectrum(matrix, norm, largest, stored, means)
    return Measurement("tuned", found.precision, spectrum_values(found), found.sigma)


def frobenius_norm(matrix: Matrix, largest: float, dtype: torch.dtype, space: Workspace) -> float:
    """The Frobenius norm of a matrix whose largest absolute entry is given."""
    scale = power_of_two_scale(largest)
    scaled = scaled_blocks(matrix, scale, dtype, space)
    return math.sqrt(sum(float(block.square_().sum()) for block in scaled)) / scale


def _weight_spectrum(
    matrix: Matrix, norm: float, largest: float, stored: str, means: Means, vectors: int = 0
) -> Spectrum:
    """The spectrum of one side, with that many leading singular vectors of its short side."""
    precision, grams = means.method.precision, means.grams

    def solve() -> Spectrum:
        scale = power_of_two_scale(largest)
        wide_format = working_dtype(stored) == torch.float64
        read = partial(scaled_blocks, matrix, scale, space=means.space)
        return spectrum(read, shape_of(matrix), norm, scale, precision, wide_format, vectors, grams)

    question = Question(stored, precision, vectors, grams.solver)
    return means.remember(matrix, question, norm, solve)


def _of_zeros(shape: tuple[int, int]) -> Spectrum:
    """The spectrum of a matrix of zeros, which has no leading directions."""
    side = min(shape)
    return Spectrum(np.zeros(side), *shape, 0.0, 0.0, "exact", np.zeros((side, 0)))


def _update_spectrum(tuned: Updated, norm: float) -> Spectrum:
    """The spectrum of a low-rank update, from its factors: as good as float64 is."""
    sigma = tuned.singular_values().numpy()
    floor = FACTORS_FLOOR * float(sigma[0])
    sigma[sigma < floor] = 0.0
    return Spectrum(sigma, *shape_of(tuned), norm, floor, "exact")


def spectrum_values(spectrum: Spectrum) -> Values:
    """The columns that every subject has."""
    return {
        **norms(spectrum),
        **ranks(spectrum),
        **top_energies(spectrum),
        "sigma_floor": spectrum.floor,
        **condition_number(spectrum),
        **power_law(spectrum),
        **hill(spectrum),
        **marchenko_pastur(spectrum),
    }


def _of_spectra(weights: Sequence[Spectrum], delta: Spectrum) -> Values:
    """The delta's largest sigma relative to the base's, and the scale of sigmas; None where the
    spectra of base and tuned are not measured.
    """
    names = ("relative_spectral", "sigma_scale", "sigma_scale_iqr")
    if not weights:
        return dict.fromkeys(names)
    base, tuned = (side.sigma for side in weights)
    both = (base > 0) & (tuned > 0)
    ratios = tuned[both] / base[both]
    quartiles = [float(x) for x in np.percentile(ratios, [25, 50, 75])] if len(ratios) else None
    return {
        "relative_spectral": _ratio(float(delta.sigma[0]), float(base[0])),
        "sigma_scale": quartiles[1] if quartiles else None,
        "sigma_scale_iqr": quartiles[2] - quartiles[0] if quartiles else None,
    }


def _sizes(delta: float, base: float | None, total: Sums, shape: tuple[int, int]) -> Values:
    """Size, direction and rounding of the delta relative to the base, from both norms and sums."""
    rounding = math.sqrt(total.ulps / 12.0) / total.scale
    return {
        "relative_norm": _ratio(delta, base or 0.0),
        "cosine": _cosine(total),
        "zero_share": total.zeros / (shape[0] * shape[1]),
        "floor_ratio": _ratio(delta, rounding),
    }


def _cosine(total: Sums) -> float | None:
    """<W_base, W_tuned> / (norm norm)."""
    of_delta = total.profile.scale / total.scale
    return cosine(
        math.sqrt(total.base),
        math.sqrt(total.tuned),
        total.profile.energy / of_delta**2,
        total.along / of_delta,
    )


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 else None


def _shifts(base: Measurement, tuned: Measurement) -> Values:
    """None where the spectra of base and tuned are not measured."""

    def shift(name: str) -> float | None:
        if base.precision is None:
            return None
        before, after = base.number(name), tuned.number(name)
        return None if before is None or after is None else after - before

    return {
        "effective_rank_shift": shift("effective_rank"),
        "stable_rank_shift": shift("stable_rank"),
    }
