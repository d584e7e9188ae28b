"""Spectra of single checkpoints solved before: a bounded folder of files, by a matrix's content.

The spectrum of one side does not depend on its partner. Twenty models tuned from one base need the
base's only once, and in a lineage the tuned side of one stage is the base of the next. Nothing more
is stored: sums over entries, the delta and all comparisons are computed from the weights. A key is
the sha256 of the matrix as it was split (fused parts, common vocabulary rows), of its shape, which
decides its blocks, of the method, and of the solver: code, libraries, processor and device. So the
numbers are, to the last bit, those that would be computed here.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import scipy
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shadow.run.file_cache import BOUND, FileCache
from shadow.spectra import device, lazy, routines, spectrum
from shadow.spectra.lazy import Matrix, Updated
from shadow.spectra.measurement import Precision
from shadow.spectra.spectrum import (
    EXACT_SIDE,
    Spectrum,
    SpectrumKey,
    blocks,
    mkl_is_at_home,
    shape_of,
)

PRECISIONS = get_args(Precision)
FORMAT = 3  # of a file: raise it when the files change


class SpectrumCache(FileCache):
    """Solved spectra in a folder, for several threads and processes; if it fails, spectra are
    solved.

    lookups: how many spectra were looked for in this object; hits: how many of them it had.
    """

    def __init__(self, folder: Path, bound: int = BOUND) -> None:
        super().__init__(folder, ".safetensors", bound)
        self.lookups = 0
        self.hits = 0

    def remember(
        self, matrix: Matrix, question: SpectrumKey, norm: float, solve: Callable[[], Spectrum]
    ) -> Spectrum:
        """The spectrum of a matrix from the folder, or solve it.

        norm: its Frobenius norm. Small matrices are solved faster than read.
        """
        if min(shape_of(matrix)) <= EXACT_SIDE:
            return solve()
        name = key(matrix, question)
        known = _read(self.load(name), shape_of(matrix), norm)
        with self._lock:
            self.lookups += 1
            self.hits += known is not None
        if known is not None:
            return known
        solved = solve()
        with contextlib.suppress(OSError):  # a full disk, a folder that may not be written
            self.store(name, to_bytes(solved))
        return solved


def key(matrix: Matrix, question: SpectrumKey) -> str:
    """The name of a spectrum: a hex sha256 of the matrix, the question and the solver."""
    kind = type(matrix).__name__ if isinstance(matrix, Updated) else str(matrix.dtype)
    what = f"{FORMAT} {_solver()} {question} {tuple(matrix.shape)} {kind}\n"
    digest = hashlib.sha256(what.encode())
    for index, _ in blocks(matrix):
        part = matrix[index].contiguous()
        digest.update(part.view(torch.uint8).numpy().data)
    return digest.hexdigest()


@cache
def _solver() -> str:
    """The things that the last bits of a spectrum depend on besides the matrix."""
    code = hashlib.sha256()
    for module in (spectrum, routines, lazy, device):
        code.update(Path(str(module.__file__)).read_bytes())
    processor = torch.backends.cpu.get_cpu_capability()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        processor += next((line for line in lines if line.startswith("model name")), "")
    libraries = f"torch {torch.__version__} numpy {np.__version__} scipy {scipy.__version__}"
    return f"{code.hexdigest()} {libraries} {processor} {mkl_is_at_home()}"


def to_bytes(solved: Spectrum) -> bytes:
    """The content of the file of a spectrum."""
    numbers = np.array(
        [solved.floor, solved.shift, PRECISIONS.index(solved.precision)], dtype=np.float64
    )
    arrays = {"sigma": solved.sigma, "numbers": numbers}
    if solved.vectors is not None:
        arrays["vectors"] = np.ascontiguousarray(solved.vectors)
    return bytes(save(arrays))


def _read(content: bytes | None, shape: tuple[int, int], norm: float) -> Spectrum | None:
    """Read a stored spectrum; None where there is none."""
    if content is None:
        return None
    try:
        arrays = load(content)
    except SafetensorError:
        return None
    floor, shift, place = arrays["numbers"].tolist()
    precision: Precision = PRECISIONS[int(place)]
    vectors = arrays.get("vectors")
    return Spectrum(arrays["sigma"], *shape, norm, floor, precision, vectors, shift)
