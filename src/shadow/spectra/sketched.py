"""The columns of a matrix pair at level `sketch`: from block Krylov spaces, with their errors.

Base, tuned and delta share every pass over the blocks. A bounded figure whose error exceeds WIDEST
of it is left out. Participation ratios, what follows from them, and effective ranks have theirs
however large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.spectra.costs import kept_elements
from shadow.spectra.krylov import (
    ROUNDING,
    Array,
    Entropy,
    Krylov,
    effective_rank,
    frame,
    krylov_spaces,
    square_trace,
)
from shadow.spectra.measurement import Estimate, Shape, Subject
from shadow.spectra.noise import ClosedNull
from shadow.spectra.spectrum import Sides, blocks

WIDEST = 0.1  # error of a figure, as a share of it, above which it is null
FLOOR = 1e-3  # of sigma_1, below which float32 products resolve nothing
SHIFTED = 0.01  # of an effective rank: a shift that is less than its error and this is told
TOPS = (1, 4, 16, 64)

Figures = dict[str, float | int | Estimate | None]  # by column


@dataclass(frozen=True)
class Sketch:
    """One matrix of a pair and its Krylov space."""

    space: Krylov  # of the scaled entries
    scale: float  # the power of two that entries were multiplied by
    norm: float  # Frobenius norm, in weights

    @property
    def ends(self) -> tuple[float, float]:
        """Bounds of the largest singular value, in weights."""
        low = math.sqrt(self.space.values[0])
        high = math.sqrt(self.space.bounds[0])
        return low / self.scale, high / self.scale

    @property
    def spectral_norm(self) -> Estimate:
        """The largest singular value, in weights, by its Ritz value.

        It is at most the truth, and much closer to it than the upper bound, which fails in one of
        1,000: of 300 planted deltas and of noise up to side 2048 the truth lay within 0 to 0.33 of
        the way to the bound. The error is half of that distance, plus rounding.
        """
        low, high = self.ends
        return Estimate(low, (high - low) / 2.0 + ROUNDING * low)

    @cached_property
    def entropy(self) -> Entropy | None:
        """That of singular values; None where it cannot be known."""
        return effective_rank(self.space)

    @cached_property
    def participation_ratio(self) -> Estimate:
        """E² / tr G², of a tr G² within what is possible: between E² / m and E²."""
        square = square_trace(self.space)
        high = self.space.energy**2
        low = high / self.space.side
        squares = min(high, max(low, square.value))
        ratio = high / squares
        return Estimate(ratio, ratio * (square.error / squares))


# Blocks of several matrices of one shape at a time, scaled, float32, in the order of `blocks`; each
# time it is called, from the first on.
Reading = Callable[[], Iterator[Sequence[Tensor]]]


def sketches(
    read: Reading, shape: Shape, sizes: Mapping[Subject, tuple[float, float]], key: str
) -> dict[Subject, Sketch]:
    """Sketch matrices of one shape by the same passes over their blocks.

    read: yields their blocks in the order of sizes. shape: (rows, cols). key: seed of the frame
    that they share, so that errors of shifts cancel. sizes: of each, the power of two that its
    blocks are multiplied by, and its Frobenius norm in weights.
    """
    wide = shape[0] <= shape[1]

    def products(vectors: Sequence[NDArray[np.float32]]) -> list[Array]:
        """Multiply in one pass: float32 by block, float64 over blocks."""
        totals = [np.zeros(columns.shape) for columns in vectors]
        for parts in read():
            for total, part, columns in zip(totals, parts, vectors, strict=True):
                v = torch.from_numpy(columns)
                # other ways to write these products take MKL two to four times as long
                if wide:
                    inner = (v.T @ part).T
                    image = part @ inner.contiguous()
                else:
                    inner = part @ v
                    image = (inner.T @ part).T
                total += image.numpy()
        return totals

    start = frame(key, min(shape))
    energies = [(norm * scale) ** 2 for scale, norm in sizes.values()]
    spaces = krylov_spaces(products, start, energies)
    by_subject = {}
    for (subject, (scale, norm)), space in zip(sizes.items(), spaces, strict=True):
        by_subject[subject] = Sketch(space, scale, norm)
    return by_subject


def of_pair(sides: Sides, sizes: Mapping[Subject, tuple[float, float]]) -> Reading:
    """Read those of base, tuned and tuned - base that have one of the sizes, as in `sketches`; the
    last in the dtype of sides.
    """
    space = sides.space

    def read() -> Iterator[Sequence[Tensor]]:
        for index, _ in blocks(sides.tuned):
            b, t = sides.read(index)
            parts = {"base": b, "tuned": t}
            if "delta" in sizes:
                delta = space.take("work", b.shape, sides.dtype)
                parts["delta"] = torch.sub(t, b, out=delta)
            scaled = []
            for subject, (scale, _) in sizes.items():
                part = parts[subject]
                if scale != 1.0:
                    part *= scale
                if part.dtype != torch.float32:
                    buffer = space.take(f"{subject} in float32", part.shape, torch.float32)
                    part = buffer.copy_(part)
                scaled.append(part)
            yield scaled

    if [*sizes] != ["delta"] or not kept_elements(sides.shape):
        return read
    deltas: list[list[Tensor]] = []
    for (part,) in read():
        buffer = space.take(f"delta {len(deltas)}", part.shape, torch.float32)
        deltas.append([buffer.copy_(part)])
    return lambda: iter(deltas)


def _within(estimate: Estimate) -> Estimate | None:
    """The estimate; None where its error is too large a share of it."""
    if estimate.error <= WIDEST * abs(estimate.value):
        return estimate
    return None


def _between(low: float, high: float) -> Estimate:
    """The middle of two bounds of a figure, with half of their distance as its error."""
    middle = (low + high) / 2.0
    error = (high - low) / 2.0 + ROUNDING * abs(high)
    return Estimate(middle, error)


def weight_figures(sketch: Sketch) -> Figures:
    """The columns of a sketch that every subject has; None where a product with few vectors cannot
    decide.
    """
    low, high = sketch.ends
    stable_rank = _between((sketch.norm / high) ** 2, (sketch.norm / low) ** 2)
    figures: Figures = {
        "frobenius_norm": sketch.norm,
        "spectral_norm": _within(sketch.spectral_norm),
        "stable_rank": _within(stable_rank),
        "effective_rank": None,
        "participation_ratio": sketch.participation_ratio,
    }
    if sketch.entropy is not None:
        figures["effective_rank"] = sketch.entropy.exp
    for count in TOPS:
        figures[f"top{count}_energy"] = _within(_energy(sketch, count))
    figures["sigma_floor"] = FLOOR * low
    return figures


def _energy(sketch: Sketch, count: int) -> Estimate:
    """The share of the energy of this many leading directions."""
    space = sketch.space
    lowest = float(space.values[:count].sum())
    highest = float(space.bounds[:count].sum())
    low = min(1.0, lowest / space.energy)
    high = min(1.0, highest / space.energy)
    return _between(low, high)


def delta_figures(sketch: Sketch, null: ClosedNull) -> Figures:
    """The columns of a delta that rest on its singular values, from its sketch and its null."""
    ratio = sketch.participation_ratio
    spikes = _above(sketch, null.edge)
    spike_energy = None
    if spikes is not None:
        spike_energy = _within(_energy(sketch, spikes))
    concentration = None
    if null.participation_ratio >= 2:
        unit = math.log(null.participation_ratio)
        value = math.log(null.participation_ratio / ratio.value) / unit
        concentration = Estimate(value, ratio.error / ratio.value / unit)
    return {
        **weight_figures(sketch),
        "top20_energy": _within(_energy(sketch, 20)),
        "null_participation_ratio": null.participation_ratio,
        "null_edge": null.edge,
        "null_edge_sharp": null.sharp_edge,
        "concentration": concentration,
        "spikes": spikes,
        "spike_energy": spike_energy,
        "spikes_sharp": _above(sketch, null.sharp_edge),
    }


def _above(sketch: Sketch, edge: float) -> int | None:
    """Say how many singular values lie above an edge; None where the bounds leave it open."""
    space = sketch.space
    level = (edge * sketch.scale) ** 2
    count = int(np.count_nonzero(space.values > level))
    if count >= len(space.bounds) or space.bounds[count] > level:
        return None
    return count


def effective_rank_shift(base: Sketch, tuned: Sketch) -> Estimate | None:
    """effective_rank of tuned minus that of base, whose probes are the same, so that most of
    their errors cancel; None if the rest is larger than the shift and than SHIFTED of the rank.
    """
    before = base.entropy
    after = tuned.entropy
    if before is None or after is None:
        return None
    middle_log = (before.log.value + after.log.value) / 2.0
    middle = math.exp(middle_log)
    difference = Entropy(
        rules=after.rules - before.rules,
        residues=after.residues - before.residues,
    )
    log = difference.log
    shift = Estimate(middle * log.value, middle * log.error)
    if shift.error <= max(abs(shift.value), SHIFTED * middle):
        return shift
    return None
