"""Solvers of the levels that have singular values: each measures a matrix.

What a level costs is in `shadow.spectra.costs`, which says which solver a matrix has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from shadow.spectra.costs import GramCost, cost_of
from shadow.spectra.lazy import Matrix, Updated
from shadow.spectra.measurement import (
    Formats,
    Measurement,
    Method,
    Precision,
    Shape,
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


@dataclass(frozen=True)
class Gram:
    """All singular values, from the eigenvalues of a Gram matrix."""

    precision: Precision

    def of_pair(
        self, sides: Sides, total: Sums, formats: Formats, means: Means, key: str
    ) -> SpectralFigures:
        """Measure by three spectra, or that of the delta.

        total: the sums of `delta.summed`. formats: the stored dtypes. key: not used here.
        """
        profile = total.profile
        weights: list[Measurement] = []
        spectra: list[Spectrum] = []
        subject: Subject
        for subject, matrix, norm, largest, stored in (
            ("base", sides.base, total.base_norm, total.size.base, formats[0]),
            ("tuned", sides.tuned, total.tuned_norm, total.size.tuned, formats[1]),
        ):
            if means.method.subjects != "all":
                weights.append(norm_alone(subject, norm))
                continue
            solved = self._of_weights(matrix, norm, largest, stored, means, VECTORS)
            spectra.append(solved)
            weights.append(_of_spectrum(subject, solved))
        norm = total.delta_norm
        if isinstance(sides.tuned, Updated):
            delta = _update_spectrum(sides.tuned, norm)
        else:
            delta = spectrum(
                partial(delta_blocks, sides, profile.scale),
                sides.shape,
                norm,
                profile.scale,
                self.precision,
                wide_format=sides.dtype == torch.float64,
                grams=means.grams,
            )
        values = _of_delta(delta, profile)
        values |= _beside_base(spectra, weights)
        if spectra:
            values |= subspace_values(spectra[0], spectra[1], delta, sides, profile)
        return SpectralFigures(weights[0], weights[1], values, delta)

    def alone(
        self, matrix: Matrix, norm: float, largest: float, stored: str, means: Means, key: str
    ) -> Measurement:
        """Measure a matrix by its spectrum.

        norm: its Frobenius norm. largest: its largest absolute entry. stored: its dtype. means: the
        buffers. key: not used here.
        """
        solved = self._of_weights(matrix, norm, largest, stored, means)
        return _of_spectrum("tuned", solved)

    def _of_weights(
        self, matrix: Matrix, norm: float, largest: float, stored: str, means: Means,
        vectors: int = 0,
    ) -> Spectrum:  # fmt: skip
        """The spectrum of one side, with that many leading singular vectors of its short
        side.
        """

        def solve() -> Spectrum:
            scale = power_of_two_scale(largest)
            return spectrum(
                partial(scaled_blocks, matrix, scale, space=means.space),
                shape_of(matrix),
                norm,
                scale,
                self.precision,
                wide_format=working_dtype(stored) == torch.float64,
                vectors=vectors,
                grams=means.grams,
            )

        question = SpectrumKey(stored, self.precision, vectors, means.grams.solver)
        if means.remember is None:
            return solve()
        return means.remember(matrix, question, norm, solve)


class KrylovSolver:
    """Estimates with their errors, from products with few vectors."""

    def of_pair(
        self, sides: Sides, total: Sums, formats: Formats, means: Means, key: str
    ) -> SpectralFigures:
        """Measure by products of few vectors with base, tuned and delta together. The delta of an
        adapter, from its factors, has all values, and so has a side of zeros.

        total: the sums of `delta.summed`. formats: not used here. key: seed of the frame.
        """
        profile = total.profile
        is_all = means.method.subjects == "all"
        norms: dict[Subject, float] = {
            "base": total.base_norm,
            "tuned": total.tuned_norm,
            "delta": total.delta_norm,
        }
        scales: dict[Subject, float] = {}
        if is_all:
            scales["base"] = power_of_two_scale(total.size.base)
            scales["tuned"] = power_of_two_scale(total.size.tuned)
        from_factors = None
        if isinstance(sides.tuned, Updated):
            from_factors = _update_spectrum(sides.tuned, norms["delta"])
        else:
            scales["delta"] = profile.scale
        sizes = {
            subject: (scale, norms[subject])
            for subject, scale in scales.items()
            if norms[subject] > 0
        }
        by_subject: dict[Subject, Sketch] = {}
        if sizes:
            read = of_pair(sides, sizes)
            by_subject = sketches(read, sides.shape, sizes, key)
        if from_factors is None:
            null = closed_null(profile)
            figures = delta_figures(by_subject["delta"], null)
            values = columns(figures)
        else:
            values = _of_delta(from_factors, profile)
        weights = []
        for subject in WEIGHTS:
            if not is_all:
                weights.append(norm_alone(subject, norms[subject]))
            elif subject in by_subject:
                weights.append(_of_sketch(subject, by_subject[subject]))
            else:
                weights.append(_of_zeros(subject, sides.shape))
        if "base" in by_subject and "tuned" in by_subject:
            shift = effective_rank_shift(by_subject["base"], by_subject["tuned"])
            values |= columns({"effective_rank_shift": shift})
        return SpectralFigures(weights[0], weights[1], values, from_factors)

    def alone(
        self, matrix: Matrix, norm: float, largest: float, stored: str, means: Means, key: str
    ) -> Measurement:
        """Measure a matrix by a sketch; zeros have all values.

        norm: its Frobenius norm. largest: its largest absolute entry. stored: its dtype. means: the
        buffers. key: seed of the frame.
        """
        shape = shape_of(matrix)
        if norm == 0:
            return _of_zeros("tuned", shape)
        scale = power_of_two_scale(largest)

        def read() -> Iterator[Sequence[torch.Tensor]]:
            for block in scaled_blocks(matrix, scale, working_dtype(stored), means.space):
                yield [block.float()]

        by_subject = sketches(read, shape, {"tuned": (scale, norm)}, key)
        return _of_sketch("tuned", by_subject["tuned"])


def solver_of(method: Method, shape: Shape) -> Gram | KrylovSolver | None:
    """The solver of a matrix of a shape (rows, cols) by a method; None at a level without singular
    values.
    """
    cost = cost_of(method).on(shape)
    if isinstance(cost, GramCost):
        return Gram(cost.precision)
    if method.has_spectra:
        return KrylovSolver()
    return None


def _of_sketch(subject: Subject, sketch: Sketch) -> Measurement:
    """The numbers of a side by its sketch, without singular values."""
    values = columns(weight_figures(sketch))
    return Measurement(subject, "sketch", values, np.zeros(0))


def _of_spectrum(subject: Subject, solved: Spectrum) -> Measurement:
    """The numbers of a side by its spectrum."""
    values = spectrum_values(solved)
    return Measurement(subject, solved.precision, values, solved.sigma)


def _of_zeros(subject: Subject, shape: Shape) -> Measurement:
    """The numbers of a matrix of zeros."""
    rows, cols = shape
    zeros = Spectrum(
        sigma=np.zeros(min(shape)),
        rows=rows,
        cols=cols,
        norm=0.0,
        floor=0.0,
        precision="exact",
    )
    return _of_spectrum(subject, zeros)


def _update_spectrum(tuned: Updated, norm: float) -> Spectrum:
    """The spectrum of a low-rank update, from its factors, as accurate as float64."""
    sigma = tuned.singular_values().numpy()
    floor = FACTORS_FLOOR * float(sigma[0])
    sigma[sigma < floor] = 0.0
    rows, cols = shape_of(tuned)
    return Spectrum(
        sigma=sigma,
        rows=rows,
        cols=cols,
        norm=norm,
        floor=floor,
        precision="exact",
    )


def _of_delta(delta: Spectrum, profile: Profile) -> Values:
    """The columns of a delta's singular values; its smallest one says nothing."""
    values = spectrum_values(delta)
    values |= top_energies(delta, (20,))
    values |= null_values(delta, profile, values["participation_ratio"])
    return values


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
        ratios = tuned[resolved] / base[resolved]
        low, middle, high = np.percentile(ratios, [25, 50, 75]).tolist()
        values["sigma_scale"] = middle
        values["sigma_scale_iqr"] = high - low
    before, after = (measurement.number("effective_rank") for measurement in weights)
    if before is not None and after is not None:
        values["effective_rank_shift"] = after - before
    return values
