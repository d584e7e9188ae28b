"""What a delta's spectrum would be if its entries kept their size and place but lost their signs.

The null keeps the row and column profile, the sparsity and the quantisation of the real delta D;
what a spectrum shows beyond it is structure between the entries. Its second moment has a closed
form, its edge a bound, and both can be sampled.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.spectra.measurement import Values
from shadow.spectra.spectrum import ON_CPU, Grams, Spectrum, spectrum

WORD = 64  # signs in one draw of the generator


@dataclass(frozen=True)
class Profile:
    """Where the energy of D lies, in units of the scaled D."""

    rows: NDArray[np.float64]  # (rows,): energies r_i
    cols: NDArray[np.float64]  # (cols,): energies c_j
    fourth: float  # sum of D_ij⁴
    scale: float  # the power of two that the entries of D were multiplied by
    changed: int  # rows of which any entry differs

    @property
    def energy(self) -> float:
        """sum of D_ij², > 0 unless both sides are equal."""
        return float(self.rows.sum())


def null_values(delta: Spectrum, profile: Profile, participation_ratio: float | None) -> Values:
    """null_participation_ratio, concentration, null_edge, spikes, spike_energy.

    With random signs, E ||D Dᵀ||_F² = sum r_i² + sum c_j² - sum D_ij⁴ exactly, so
    null_participation_ratio = E² / that, in [1, m]. concentration = ln(null / real) / ln(null): 0
    like the null, 1 rank one, below 0 flatter than noise; None where the null is below 2, as then
    there is nothing to concentrate. null_edge = sqrt(max r_i) + sqrt(max c_j) in units of sigma
    bounds the largest singular value of the null (Latala's and Bandeira & van Handel's bounds to
    leading order); spikes counts the sigmas above it and spike_energy is their share of the energy.
    """
    null, edge = closed_null(profile)
    concentration = None
    if null >= 2 and participation_ratio is not None:
        concentration = math.log(null / participation_ratio) / math.log(null)
    return {
        "null_participation_ratio": null,
        "concentration": concentration,
        "null_edge": edge,
        "spikes": delta.above(edge),
        "spike_energy": _share_above(delta, edge),
    }


def closed_null(profile: Profile) -> tuple[float, float]:
    """null_participation_ratio and null_edge, which need no spectrum."""
    null = profile.energy**2 / (
        float((profile.rows**2).sum()) + float((profile.cols**2).sum()) - profile.fourth
    )
    return null, (math.sqrt(profile.rows.max()) + math.sqrt(profile.cols.max())) / profile.scale


def coverage_values(profile: Profile) -> Values:
    """row_participation_ratio, col_participation_ratio, rows_changed: how much the change reaches.

    (sum r)² / sum r² in [1, rows], the number of rows that carry the energy, and the same of
    columns; the share of the rows of which any entry differs, in (0, 1]. In an embedding the rows
    are tokens.
    """
    return {
        "row_participation_ratio": _participation(profile.rows),
        "col_participation_ratio": _participation(profile.cols),
        "rows_changed": profile.changed / len(profile.rows),
    }


def _participation(energies: NDArray[np.float64]) -> float:
    return float(energies.sum() ** 2 / (energies**2).sum())


def _share_above(delta: Spectrum, edge: float) -> float | None:
    if delta.sigma[0] == 0:
        return None
    squares = (delta.sigma / delta.sigma[0]) ** 2
    return float(squares[delta.sigma > edge].sum() / squares.sum())


def sampled_values(
    delta: Spectrum,
    draws: int,
    key: str,
    read: Callable[[torch.dtype], Iterator[Tensor]],
    corners: Sequence[tuple[int, int]],
    scale: float,
    grams: Grams = ON_CPU,
) -> Values:
    """null_edge_sampled, spikes_sampled, null_participation_ratio_sampled, by random signs of D.

    The edge is the largest singular value seen in any draw; the participation ratio is E² over the
    mean of the draws' sum sigma⁴. read yields the blocks of scale * D, corners their first (row,
    column). key names seed and matrix: signs depend on it, the draw, the row and the column, and on
    nothing else. grams: where Gram matrices are made. All None for draws = 0.
    """
    names = "null_edge_sampled", "spikes_sampled", "null_participation_ratio_sampled"
    if draws == 0:
        return dict.fromkeys(names)
    shape = (delta.rows, delta.cols)
    largest, fourth = 0.0, 0.0
    for draw in range(draws):
        seed = hashlib.sha256(f"{key}\t{draw}".encode()).digest()[:16]

        def flipped(dtype: torch.dtype, seed: bytes = seed) -> Iterator[Tensor]:
            for corner, block in zip(corners, read(dtype), strict=True):
                flips = sign_flips(seed, corner, (block.shape[0], block.shape[1]), shape[1])
                yield block.mul_(torch.from_numpy(flips).to(dtype).mul_(-2).add_(1))

        null = spectrum(flipped, shape, delta.norm, scale, delta.precision, False, grams=grams)
        largest = max(largest, float(null.sigma[0]))
        fourth += float(((null.sigma / delta.norm) ** 4).sum()) / draws
    return dict(zip(names, (largest, delta.above(largest), 1.0 / fourth), strict=True))


def sign_flips(
    seed: bytes, corner: tuple[int, int], shape: tuple[int, int], cols: int
) -> NDArray[np.uint8]:
    """0 or 1 for every entry of a block: (rows, cols of the block), its first entry at corner.

    The bit of entry (i, j) is at a fixed place of one Philox stream (Salmon et al. 2011): row i
    starts at word i * ceil(cols / 64). A block that spans all columns is one run of the stream,
    another one is a run per row.
    """
    (row, col), (height, width) = corner, shape
    words_per_row = -(-cols // WORD)
    first, last = col // WORD, -(-(col + width) // WORD)
    if (first, last) == (0, words_per_row):
        runs = _words(seed, row * words_per_row, height * words_per_row).reshape(height, -1)
    else:
        starts = range(row * words_per_row + first, (row + height) * words_per_row, words_per_row)
        runs = np.stack([_words(seed, start, last - first) for start in starts])
    bits = np.unpackbits(runs.astype("<u8").view(np.uint8), axis=1, bitorder="little")
    return bits[:, col - first * WORD :][:, :width]


def _words(seed: bytes, start: int, count: int) -> NDArray[np.uint64]:
    # a step of the counter is 4 words
    generator = np.random.Philox(key=int.from_bytes(seed, "little"), counter=start // 4)
    words: NDArray[np.uint64] = generator.random_raw(start % 4 + count)[start % 4 :]
    return words
