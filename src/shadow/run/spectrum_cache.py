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
import os
import secrets
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import scipy
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shadow.files import read_start
from shadow.run.runtime import make_room, size_of
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

BOUND = 10 << 30  # bytes of the folder: the leading vectors of a 70B pair take 4 GB
# of the bound: after so many bytes a process looks again at what all processes have written
LOOKED_AFTER = 0.05
ROOM_MADE = 0.9  # of the bound: what stays when the least recently used have gone
PRECISIONS = get_args(Precision)
FORMAT = 3  # of a file: raise it when the files change
DIGEST = 32  # bytes of blake2b at the start of a file, of its key and of all that follows


class SpectrumCache:
    """Solved spectra in a folder, for several threads and processes; if it fails, spectra are
    solved.

    asked: how many spectra this object was asked for; there: how many of them it had.
    """

    def __init__(self, folder: Path, bound: int = BOUND) -> None:
        self.folder = folder
        self.bound = bound
        self.asked = self.there = 0
        self._lock = threading.Lock()
        self._size: int | None = None  # of the folder, as far as this process knows
        self._written = 0  # bytes since it looked

    def remember(
        self, matrix: Matrix, question: SpectrumKey, norm: float, solve: Callable[[], Spectrum]
    ) -> Spectrum:
        """Return the spectrum of a matrix from the folder, or solve it.

        norm: its Frobenius norm. Small matrices are solved faster than read.
        """
        if min(shape_of(matrix)) <= EXACT_SIDE:
            return solve()
        name = key(matrix, question)
        known = _read(self.path_of(name), name, shape_of(matrix), norm)
        with self._lock:
            self.asked += 1
            self.there += known is not None
        if known is not None:
            with contextlib.suppress(OSError):
                os.utime(self.path_of(name))  # used last
            return known
        solved = solve()
        with contextlib.suppress(OSError):  # a full disk, a folder that may not be written
            self.write(name, solved)
        return solved

    def path_of(self, name: str) -> Path:
        """Return the path of the spectrum of this key."""
        return self.folder / name[:2] / f"{name[2:]}.safetensors"

    def write(self, name: str, solved: Spectrum) -> None:
        """Store the spectrum of a key. Raises OSError."""
        path, content = self.path_of(name), _to_bytes(name, solved)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            beside.write_bytes(content)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        with self._lock:
            self._written += len(content)
            if self._size is None or self._written > LOOKED_AFTER * self.bound:
                self._size, self._written = size_of(self.folder), 0
            else:
                self._size += len(content)
            if self._size > self.bound:
                self._size = make_room(self.folder, int(ROOM_MADE * self.bound))


def key(matrix: Matrix, question: SpectrumKey) -> str:
    """Return the name of a spectrum: a hex sha256 of the matrix, the question and the solver."""
    kind = type(matrix).__name__ if isinstance(matrix, Updated) else str(matrix.dtype)
    what = f"{FORMAT} {_solver()} {question} {tuple(matrix.shape)} {kind}\n"
    digest = hashlib.sha256(what.encode())
    for index, _ in blocks(matrix):
        part = matrix[index].contiguous()
        digest.update(part.view(torch.uint8).numpy().data)
    return digest.hexdigest()


@cache
def _solver() -> str:
    """Return what the last bits of a spectrum depend on besides the matrix."""
    code = hashlib.sha256()
    for module in (spectrum, routines, lazy, device):
        code.update(Path(str(module.__file__)).read_bytes())
    processor = torch.backends.cpu.get_cpu_capability()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        processor += next((line for line in lines if line.startswith("model name")), "")
    libraries = f"torch {torch.__version__} numpy {np.__version__} scipy {scipy.__version__}"
    return f"{code.hexdigest()} {libraries} {processor} {mkl_is_at_home()}"


def _to_bytes(name: str, solved: Spectrum) -> bytes:
    numbers = np.array(
        [solved.floor, solved.shift, PRECISIONS.index(solved.precision)], dtype=np.float64
    )
    arrays = {"sigma": solved.sigma, "numbers": numbers}
    if solved.vectors is not None:
        arrays["vectors"] = np.ascontiguousarray(solved.vectors)
    content = bytes(save(arrays))
    return digest_of(name, content) + content


def digest_of(name: str, content: bytes) -> bytes:
    """Return the start of the file of a key, so that a file under another key is not trusted."""
    return hashlib.blake2b(content, digest_size=DIGEST, key=bytes.fromhex(name)).digest()


def _read(path: Path, name: str, shape: tuple[int, int], norm: float) -> Spectrum | None:
    """Read a stored spectrum; None unless the file is as it was written under this key."""
    try:
        content = read_start(path, path.stat().st_size)
        if content is None or digest_of(name, content[DIGEST:]) != content[:DIGEST]:
            return None
        arrays = load(content[DIGEST:])
        floor, shift, place = arrays["numbers"].tolist()
        precision: Precision = PRECISIONS[int(place)]
    except (OSError, SafetensorError):
        return None
    vectors = arrays.get("vectors")
    return Spectrum(arrays["sigma"], *shape, norm, floor, precision, vectors, shift)
