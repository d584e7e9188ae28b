"""The levels of an audit: each has a solver, which measures a matrix and knows the cost.

A level is an entry of SOLVERS: planning, measuring and counting memory ask its solver.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from shadow.spectra.krylov import PASSES, WIDTH
from shadow.spectra.lazy import Matrix, Updated
from shadow.spectra.measurement import (
    Level,
    Measurement,
    Method,
    Precision,
    Subject,
    Subjects,
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
    kept_elements,
    of_pair,
    sketches,
    weight_figures,
)
from shadow.spectra.spectrum import (
    BLOCK,
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
from shadow.spectra.sums import PART, Sums

FACTORS_FLOOR = 1e-13  # of the largest: singular values from factors are good to float64's rounding
# bytes for each entry of a block: both sides in float32 and in float64, and what is made of them
BUFFERS = 64
# bytes for each entry of the Gram matrix: it, and the solver's copies of it in float64
GRAM = 3 * 8
# bytes for each entry of the short side in `sketch`: bases, their images and copies, three subjects
SKETCH = 3 * 4 * 8 * WIDTH * PASSES
# bytes for each row and column: energies, products, their classes, and lines drawn at random
LINE = 88
# Operations of the solvers, in units of 10 ps: one of a float32 Gram matrix. Measured on a Xeon
# with AMX, one thread, BF16, sides of 384 to 4096, all subjects and deltas alone.
EIGEN_CUBE = 2  # of eigenvalues, for side³
EIGEN_SQUARE = 4000  # of eigenvalues, for side²: reductions wait for memory
SKETCHED = 800  # of a sketch, for each entry: products and reading it in each pass
SKETCH_STARTS = 850_000_000  # of a sketch of any size: 8 ms of small decompositions

Shape = tuple[int, int]
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


class Solver(ABC):
    """Measures the matrices of a level, and knows the cost."""

    computed: ClassVar[str]
    """Formats of the arithmetic, as a report says them."""
    has_spectra: ClassVar[bool] = False
    """Whether singular values are computed or estimated."""
    repeats: ClassVar[int] = 1
    """How often a matrix of 1024 x 4096 is measured for a time that tells the pace of a machine."""

    def on(self, shape: Shape) -> Solver:
        """The solver that measures a matrix of a shape."""
        return self

    @abstractmethod
    def cost(self, shape: Shape) -> int:
        """Estimate the floating-point operations for one subject."""

    @abstractmethod
    def memory(self, shape: Shape, factors: int) -> int:
        """The most bytes of buffers and solvers. factors: of a low-rank update."""

    def held(self, shape: Shape, subjects: Subjects) -> int:
        """The bytes of a delta that stays in memory for later matrices."""
        return 0


class Norms(Solver):
    """Sums over entries in one pass; `shadow.spectra.entries` makes them."""

    computed = "float32 sums of parts, float64 sums of these"
    repeats = 32

    def cost(self, shape: Shape) -> int:
        """The number of entries."""
        return math.prod(shape)

    def memory(self, shape: Shape, factors: int) -> int:
        """The bytes of buffers of parts."""
        return max(BUFFERS * PART, factors)


class _Spectral(Solver):
    """A solver that uses singular values."""

    has_spectra = True

    def memory(self, shape: Shape, factors: int) -> int:
        """The bytes of blocks of both sides, of solving, and of lines."""
        blocks = BUFFERS * min(BLOCK, math.prod(shape))
        return max(blocks, factors) + self.solved(shape) + LINE * sum(shape)

    @abstractmethod
    def solved(self, shape: Shape) -> int:
        """The bytes that solving needs."""


@dataclass(frozen=True)
class Gram(_Spectral):
    """All singular values, from the eigenvalues of a Gram matrix."""

    precision: Precision
    computed: str  # type: ignore[misc]

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

    def cost(self, shape: Shape) -> int:
        """Estimate a Gram matrix and its eigenvalues."""
        side = min(shape)
        return side * math.prod(shape) + EIGEN_CUBE * side**3 + EIGEN_SQUARE * side**2

    def solved(self, shape: Shape) -> int:
        """The bytes of a Gram matrix and its copies."""
        return GRAM * min(shape) ** 2


FULL = Gram("default", "float32 Gram, float64 eigenvalues")


class KrylovSolver(_Spectral):
    """Estimates with their errors, from products with few vectors; matrices whose Gram matrix
    costs less have all values.
    """

    computed = "float32 products with few vectors, float64 sums"

    def on(self, shape: Shape) -> Solver:
        """The cheaper of this solver and all values; these if they cost the same."""
        return min(FULL, self, key=lambda solver: solver.cost(shape))

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

    def cost(self, shape: Shape) -> int:
        """Estimate the products, and what a sketch of any size costs."""
        return SKETCHED * math.prod(shape) + SKETCH_STARTS

    def solved(self, shape: Shape) -> int:
        """The bytes of bases of the short side and their images."""
        return SKETCH * min(shape)

    def held(self, shape: Shape, subjects: Subjects) -> int:
        """The bytes of a delta alone, if it is small enough."""
        if subjects == "delta":
            return 4 * kept_elements(shape)
        return 0


Spectral = Gram | KrylovSolver
SOLVERS: Mapping[Level, Solver] = {
    "norms": Norms(),
    "sketch": KrylovSolver(),
    "full": FULL,
    "exact": Gram("exact", "float64 Gram, float64 eigenvalues"),
}


def solver_of(method: Method) -> Solver:
    """The solver of a level."""
    return SOLVERS[method.level]


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
