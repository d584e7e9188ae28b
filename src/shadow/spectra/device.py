"""Products and eigenvalues on a card of CUDA. Experimental: no card has run it yet.

It makes Gram matrices and their eigenvalues. Leading vectors and sums over entries are always
computed on the CPU. Any failure ends the audit; `--device cpu` avoids it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from shadow.errors import ShadowError
from shadow.spectra.measurement import Shape
from shadow.spectra.spectrum import Floats, Grams, Read

# Lines along the long side that one float32 product sums up. cuBLAS may add them one after another,
# and the error grows with the root of their number: of 256 it is below that of the CPU's libraries.
DEPTH = 256
SAME_TRACE = 1e-4  # relative difference of the trace from the energy of the entries


class OnDevice(Grams):
    """Gram matrices on a device with torch's name: cuda:0; or cpu, for tests."""

    def __init__(self, place: str, name: str | None) -> None:
        self._place = torch.device(place)
        self.solver = f"{self._place.type} {name} {torch.__version__} {torch.version.cuda}"
        torch.set_float32_matmul_precision("highest")  # no TF32 and the like

    def gram(self, read: Read, shape: Shape, norm: float, dtype: torch.dtype) -> Tensor:
        """The Gram matrix, (side, side), on the device, with arguments as in `Grams.gram`. Raises
        ShadowError if its trace is not the energy of the entries.
        """
        rows, cols = shape
        wide = rows <= cols
        side = min(rows, cols)
        with self._faults():
            total = torch.zeros((side, side), dtype=dtype, device=self._place)
        for block in read(dtype):
            with self._faults():
                lines = block.T
                if wide:
                    lines = block
                on_device = lines.to(self._place)
                for part in torch.split(on_device, DEPTH, dim=1):
                    total.addmm_(part, part.T)
        with self._faults():
            diagonal = total.diagonal().cpu()
            trace = float(diagonal.double().sum())
        if not math.isclose(trace, norm**2, rel_tol=SAME_TRACE):  # not if it is not finite
            raise self._fault("its product is wrong")
        return total

    def eigenvalues(self, gram: Tensor) -> Floats:
        """All eigenvalues (side,), ascending."""
        with self._faults():
            matrix = gram.to(self._place).double()
            values = torch.linalg.eigvalsh(matrix)
            return np.asarray(values.cpu().numpy())

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """Turn torch's errors into one line that names the alternative."""
        try:
            yield
        except RuntimeError as error:  # out of memory, and failures of a driver, too
            first_line = str(error).strip().partition("\n")[0]
            raise self._fault(first_line[:120]) from error

    def _fault(self, what: str) -> ShadowError:
        return ShadowError(f"{self._place} failed: {what}", "use --device cpu")
