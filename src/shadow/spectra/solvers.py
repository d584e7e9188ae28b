"""Solvers of the levels that have singular values: each measures a matrix.

What a level costs is in `shadow.spectra.costs`, which says which solver a matrix has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from shadow.spectra.costs import GramCost, Shape, cost_of
from shadow.spectra.lazy import Matrix, Updated
from shadow.spectra.measurement import (
    Measurement,
    Method,
    Precision,
    Subject,
    Values,
    columns,
    norm_alone,
)
from shadow.spectra.noise import Profile, closed_null, null_values
from shadow.spectra.singular_values import spectrum_values, top_energies
from shadow.spectra.sketched import (
    Sketch,
    delta_figures,
    effective_rank_shift,
    of_pair,
    sketches,
    weight_figures,
)
from shadow.spectra.spectrum import (
    ON_CPU,
    Grams,
    Remember,
    Sides,
    Spectrum,
    SpectrumKey,
    Workspace,
    delta_blocks,
    power_of_two_scale,
    scaled_blocks,
    shape_of,
    spectrum,
    working_dtype,
)
from shadow.spectra.subspace import VECTORS, subspace_values
from shadow.spectra.sums import Sums

FACTORS_FLOOR = 1e-13  # of the largest: singular values from factors are good to float64's rounding
WEIGHTS: tuple[Subject, Subject] = ("base", "tuned")


@dataclass(frozen=True)
class Means:
    """The resources of one worker."""

    method: Method
    space: Workspace
    remember: Remember | None = None  # how the spectrum of one side is had; None: it is solved
    grams: Grams = ON_CPU


class SpectralFigures(NamedTuple):
    """Figures of a pair from singular values."""

    base: Measurement
    tuned: Measurement
    values: Values  # of the delta
    delta: Spectrum | None
    precision: Precision | None = "sketch"  # of a delta without a spectrum


@dataclass(frozen=True)
class Gram:
    """All singular values, from the eigenvalues of a Gram matrix."""

    precision: Precision

    def of_pair(
        self, sides: Sides, total: Sums, formats: tuple[str, str], means: Means, key: str
    ) -> SpectralFigures:
        """Measure by three spectra, or that of the delta."""
        method = means.method
        profile = total.profile
        scale = total.profile.scale
        vectors = VECTORS if method.subjects == "all" else 0
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
            solved = self._of_weights(matrix, norm, largest, stored, means, vectors)
            spectra.append(solved)
            of_weights = spectrum_values(solved)
            weights.append(Measurement(subject, solved.precision, of_weights, solved.sigma))
        norm = math.sqrt(profile.energy) / scale
        if isinstance(sides.tuned, Updated):
            delta = _update_spectrum(sides.tuned, norm)
        else:
            read = partial(delta_blocks, sides, scale)
            is_wide = sides.dtype == torch.float64
            delta = spectrum(
                read, sides.shape, norm, scale, self.precision, is_wide, grams=means.grams
            )
        values = {**_of_delta(delta, profile), **_beside_base(spectra, weights)}
        if spectra:
            values |= subspace_values(spectra[0], spectra[1], delta, sides, profile)
        return SpectralFigures(weights[0], weights[1], values, delta)

    def alone(
        self, matrix: Matrix, norm: float, largest: float, stored: str, means: Means, key: str
    ) -> Measurement:
        """Measure by its spectrum."""
        solved = self._of_weights(matrix, norm, largest, stored, means)
        return Measurement("tuned", solved.precision, spectrum_values(solved), solved.sigma)

    def _of_weights(
        self, matrix: Matrix, norm: float, largest: float, stored: str, means: Means,
        vectors: int = 0,
    ) -> Spectrum:  # fmt: skip
        """The spectrum of one side, with that many leading singular vectors of its short
        side.
        """

        def solve() -> Spectrum:
            scale = power_of_two_scale(largest)
            is_wide = working_dtype(stored) == torch.float64
            read = partial(scaled_blocks, matrix, scale, space=means.space)
            shape = shape_of(matrix)
            return spectrum(read, shape, norm, scale, self.precision, is_wide, vectors, means.grams)

        question = SpectrumKey(stored, self.precision, vectors, means.grams.solver)
        if means.remember is None:
            return solve()
        return means.remember(matrix, question, norm, solve)


class KrylovSolver:
    """Estimates with their errors, from products with few vectors."""

    def of_pair(
        self, sides: Sides, total: Sums, formats: tuple[str, str], means: Means, key: str
    ) -> SpectralFigures:
        """Measure by products of few vectors with base, tuned and delta together. The delta of an
        adapter, from its factors, has all values, and so has a side of zeros.
        """
        profile = total.profile
        is_all = means.method.subjects == "all"
        size = total.size
        sizes: dict[Subject, tuple[float, float]] = {  # the scale of each, and its norm
            "base": (power_of_two_scale(size.base), math.sqrt(total.base) / total.scale),
            "tuned": (power_of_two_scale(size.tuned), math.sqrt(total.tuned) / total.scale),
            "delta": (profile.scale, math.sqrt(profile.energy) / profile.scale),
        }
        adapted = sides.tuned if isinstance(sides.tuned, Updated) else None
        wanted: dict[Subject, bool] = {"base": is_all, "tuned": is_all, "delta": adapted is None}
        to_sketch = {name: size for name, size in sizes.items() if wanted[name] and size[1] > 0}
        by_subject: dict[Subject, Sketch] = {}
        if to_sketch:
            by_subject = sketches(of_pair(sides, to_sketch), sides.shape, to_sketch, key)
        from_factors = None if adapted is None else _update_spectrum(adapted, sizes["delta"][1])
        if from_factors is None:
            values = columns(delta_figures(by_subject["delta"], *closed_null(profile)))
        else:
            values = _of_delta(from_factors, profile)
        if not is_all:
            base, tuned = (norm_alone(subject, sizes[subject][1]) for subject in WEIGHTS)
            return SpectralFigures(base, tuned, values, from_factors)
        base, tuned = (
            _of_sketch(subject, by_subject[subject])
            if subject in by_subject
            else _of_zeros(subject, sides.shape)
            for subject in WEIGHTS
        )
        if "base" in by_subject and "tuned" in by_subject:
            shift = effective_rank_shift(by_subject["base"], by_subject["tuned"])
            values |= columns({"effective_rank_shift": shift})
        return SpectralFigures(base, tuned, values, from_factors)

    def alone(
        self, matrix: Matrix, norm: float, largest: float, stored: str, means: Means, key: str
    ) -> Measurement:
        """Measure by a sketch; zeros have all values."""
        shape = shape_of(matrix)
        if norm == 0:
            return _of_zeros("tuned", shape)
        scale = power_of_two_scale(largest)
        read = partial(scaled_blocks, matrix, scale, working_dtype(stored), means.space)
        by_subject = sketches(
            lambda: ([x.float()] for x in read()), shape, {"tuned": (scale, norm)}, key
        )
        return _of_sketch("tuned", by_subject["tuned"])


def solver_of(method: Method, shape: Shape) -> Gram | KrylovSolver | None:
    """The solver of a matrix; None at a level without singular values."""
    cost = cost_of(method).on(shape)
    if isinstance(cost, GramCost):
        return Gram(cost.precision)
    return KrylovSolver() if method.has_spectra else None


def _of_sketch(subject: Subject, sketch: Sketch) -> Measurement:
    """The numbers of a side by its sketch, without singular values."""
    return Measurement(subject, "sketch", columns(weight_figures(sketch)), np.zeros(0))


def _of_zeros(subject: Subject, shape: Shape) -> Measurement:
    """The numbers of a matrix of zeros."""
    zeros = Spectrum(np.zeros(min(shape)), *shape, 0.0, 0.0, "exact")
    return Measurement(subject, zeros.precision, spectrum_values(zeros), zeros.sigma)


def _update_spectrum(tuned: Updated, norm: float) -> Spectrum:
    """The spectrum of a low-rank update, from its factors, as accurate as float64."""
    sigma = tuned.singular_values().numpy()
    floor = FACTORS_FLOOR * float(sigma[0])
    sigma[sigma < floor] = 0.0
    return Spectrum(sigma, *shape_of(tuned), norm, floor, "exact")


def _of_delta(delta: Spectrum, profile: Profile) -> Values:
    """The columns of a delta's singular values; its smallest one says nothing."""
    values = spectrum_values(delta)
    return {
        **values, **top_energies(delta, (20,)),
        **null_values(delta, profile, values["participation_ratio"]),
    }  # fmt: skip


def _beside_base(spectra: Sequence[Spectrum], weights: Sequence[Measurement]) -> Values:
    """The scale of sigmas and the shift of the effective rank; None unless the spectra of
    base and tuned are measured.
    """
    values: Values = dict.fromkeys(("sigma_scale", "sigma_scale_iqr", "effective_rank_shift"))
    if not spectra:
        return values
    base, tuned = (side.sigma for side in spectra)
    resolved = (base > 0) & (tuned > 0)
    if resolved.any():
        low, middle, high = np.percentile(tuned[resolved] / base[resolved], [25, 50, 75])
        values |= {"sigma_scale": float(middle), "sigma_scale_iqr": float(high) - float(low)}
    before, after = (measurement.number("effective_rank") for measurement in weights)
    if before is not None and after is not None:
        values["effective_rank_shift"] = after - before
    return values
