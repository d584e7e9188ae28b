"""The self-test of a device: `shadow.spectra.device` runs it in a child process.

It prints what is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from shadow.spectra.device import SAME_GRAM, TorchDevice, full_products
from shadow.spectra.spectrum import UNIT, Workspace, eigenvalues, gram, scaled_blocks

# One short side is that of the rows, the other that of the columns.
SHAPES = ((320, 1100), (1500, 768))
# How far eigenvalues may lie from those of a Gram in float64, in units of u E / sqrt(side). The
# CPU's in float32 are within 3, most at rank 8; sums of a whole block, one after another, are off
# by 9.
SAME_VALUES = 5.0
SPECTRA: dict[str, Callable[[int], NDArray[np.float64]]] = {
    "noise": lambda side: np.ones(0),
    "rank 8": lambda side: np.r_[np.linspace(2.0, 1.0, 8), np.zeros(side - 8)],
    "clustered": lambda side: np.repeat([1.0, 0.1, 0.01, 1e-3], -(-side // 4))[:side],
    "decaying": lambda side: np.geomspace(1.0, 1e-3, side),
}


def fault_of(device: TorchDevice) -> str | None:
    """What is wrong with the Gram matrices of a device, None where nothing is."""
    with full_products():
        for rows, cols in SHAPES:
            for kind in SPECTRA:
                fault = _fault(device, matrix_of(kind, rows, cols))
                if fault:
                    return f"{kind}, {rows} x {cols}: {fault}"
    return None


def matrix_of(kind: str, rows: int, cols: int) -> torch.Tensor:
    """A float32 matrix of one of SPECTRA."""
    rng = np.random.default_rng(rows)
    noise = rng.standard_normal((rows, cols))
    side = min(rows, cols)
    if kind != "noise":
        left, _ = np.linalg.qr(rng.standard_normal((rows, side)))
        right, _ = np.linalg.qr(rng.standard_normal((cols, side)))
        noise = (left * SPECTRA[kind](side)) @ right.T
    return torch.from_numpy(noise.astype(np.float32))


def _fault(device: TorchDevice, matrix: torch.Tensor) -> str | None:
    rows, cols = matrix.shape
    side, wide = min(rows, cols), rows <= cols

    def made(
        by: Callable[..., torch.Tensor], dtype: torch.dtype, *more: torch.dtype
    ) -> torch.Tensor:
        return by(scaled_blocks(matrix, 1.0, dtype, Workspace()), side, wide, *more)

    exact = made(gram, torch.float64, torch.float64)
    exact = exact.tril() + exact.tril(-1).T
    energy = float(exact.trace())
    found = made(device.gram, torch.float32)
    apart = float(torch.linalg.norm(found.double() - exact)) / energy
    if not apart <= SAME_GRAM:
        return f"its Gram matrix is off by {apart:.0e} of the energy"
    moved = float(np.abs(eigenvalues(found.double()) - eigenvalues(exact)).max())
    moved /= UNIT["default"] * energy / np.sqrt(side)
    if not moved <= SAME_VALUES:
        return f"an eigenvalue is off by {moved:.0f} times the rounding of float32"
    return None


if __name__ == "__main__":
    print(fault_of(TorchDevice(sys.argv[1])) or "")
