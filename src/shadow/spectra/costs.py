"""The cost of each level of an audit, and the memory that it takes.

A level is an entry of COSTS here, and of `shadow.spectra.solvers` if it has singular values.
Imports neither torch nor SciPy: planning does without them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from shadow.spectra.krylov import PASSES, WIDTH
from shadow.spectra.measurement import Level, Method, Precision, Shape, Subjects

# Elements of a block: 8 MiB in float32. Larger ones leave the caches, smaller ones starve the
# product.
BLOCK = 1 << 21
# Entries of a part: two sides of 16 bits, both in float32 and what is made of them are 1 MB, which
# the caches of a core hold. Parts of twice or of half as many take 1.1 times as long.
PART = 1 << 16
# entries of a factor of an update that are decomposed at a time: 32 MiB in float64
FACTOR_BLOCK = 1 << 22
# elements of a delta alone that are kept in float32 (400 MB) instead of made again every pass:
# that takes 1.3 times as long from BF16, 1.8 from F32; of three matrices, it takes no longer
KEPT = 100_000_000
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


class Cost(ABC):
    """The cost of a level."""

    computed: ClassVar[str]
    """Formats of the arithmetic, as a report says them."""

    def on(self, shape: Shape) -> Cost:
        """The cost by which a matrix of a shape (rows, cols) is measured."""
        return self

    @abstractmethod
    def operations(self, shape: Shape) -> int:
        """Estimate the floating-point operations for one subject of a shape (rows, cols)."""

    @abstractmethod
    def memory(self, shape: Shape, factors: int) -> int:
        """The most bytes of buffers and solvers for a shape (rows, cols). factors: bytes of a
        low-rank update.
        """

    def held(self, shape: Shape, subjects: Subjects) -> int:
        """The bytes of a delta of a shape (rows, cols) that stays in memory for later matrices.

        subjects: those whose spectra are measured.
        """
        return 0


class NormsCost(Cost):
    """Sums over entries in one pass; `shadow.spectra.entries` makes them."""

    computed = "float32 sums of parts, float64 sums of these"

    def operations(self, shape: Shape) -> int:
        """The number of entries."""
        return math.prod(shape)

    def memory(self, shape: Shape, factors: int) -> int:
        """The bytes of buffers of parts."""
        return max(BUFFERS * PART, factors)


class SpectralCost(Cost):
    """The cost of singular values."""

    def memory(self, shape: Shape, factors: int) -> int:
        """The bytes of blocks of both sides, of solving, and of lines."""
        blocks = BUFFERS * min(BLOCK, math.prod(shape))
        return max(blocks, factors) + self.solved(shape) + LINE * sum(shape)

    @abstractmethod
    def solved(self, shape: Shape) -> int:
        """The bytes that solving needs."""


@dataclass(frozen=True)
class GramCost(SpectralCost):
    """The cost of all singular values, from the eigenvalues of a Gram matrix."""

    precision: Precision
    computed: str  # type: ignore[misc]

    def operations(self, shape: Shape) -> int:
        """Estimate a Gram matrix and its eigenvalues."""
        side = min(shape)
        return side * math.prod(shape) + EIGEN_CUBE * side**3 + EIGEN_SQUARE * side**2

    def solved(self, shape: Shape) -> int:
        """The bytes of a Gram matrix and its copies."""
        return GRAM * min(shape) ** 2


class SketchCost(SpectralCost):
    """The cost of products with few vectors; matrices whose Gram matrix costs less have all
    values.
    """

    computed = "float32 products with few vectors, float64 sums"

    def on(self, shape: Shape) -> Cost:
        """The cheaper of this and all values; these if they cost the same."""
        return min(COSTS["full"], self, key=lambda cost: cost.operations(shape))

    def operations(self, shape: Shape) -> int:
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


COSTS: Mapping[Level, Cost] = {
    "norms": NormsCost(),
    "sketch": SketchCost(),
    "full": GramCost("default", "float32 Gram, float64 eigenvalues"),
    "exact": GramCost("exact", "float64 Gram, float64 eigenvalues"),
}


def cost_of(method: Method) -> Cost:
    """The cost of the level of a method."""
    return COSTS[method.level]


def kept_elements(shape: Shape) -> int:
    """Say how many elements of a delta alone, of a shape, are stored in float32: all, or none."""
    elements = math.prod(shape)
    if elements <= KEPT:
        return elements
    return 0
