"""Gram matrices on an accelerator, each checked; eigenvalues stay on the CPU, in float64.

A device multiplies in float32, without TF32. What needs float64 stays on the CPU: matrices with a
short side of up to EXACT_SIDE, checkpoints in F32, the precision `exact`, and what `default`
redoes. Sums over entries, singular vectors and subspaces stay there too.

A check costs two products with a vector. With v of random signs, G v must be W (Wᵀ v), formed on
the CPU from the same blocks: an error E of the Gram shows as ||E v||, about its Frobenius norm. Its
trace must be the energy of the matrix, and its trace and squared norm the sums of its eigenvalues
and of their squares.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from shadow.process_settings import ProcessSetting
from shadow.spectra.spectrum import BLOCK, UNIT, Eigen, Grams, Read

# Lines along the long side that one float32 product sums up. cuBLAS may add them one after another,
# and the error grows with the root of their number: of 256 it is below that of the CPU's libraries,
# of a block of 2,000 four to ten times.
DEPTH = 256
# Largest ||G v - W (Wᵀ v)|| in units of the energy; of the trace, whose errors may all have one
# sign, the root of the side times as much. Right products stayed below 2 roundings of float32; TF32
# makes 65 at a long side of 6,000, and falls with its root.
SAME_GRAM = 8 * UNIT["default"]
# largest differences of the sums over eigenvalues, in units of the energy and its square
SAME_EIGENVALUES = 1e-5
IN_A_ROW = 3  # Gram matrices that failed one after another, after which the device is left alone
# after which the self-test counts as hung; a driver's first start can take half a minute
SECONDS = 300
LIBRARY = 32 << 20  # bytes that cuBLAS takes for each stream at most

Fault = Literal["mismatch", "not finite", "out of memory", "error"]
SAID: dict[Fault, str] = {
    "mismatch": "was wrong",
    "not finite": "held values that are not finite",
    "out of memory": "did not fit its memory",
    "error": "could not be made",
}


class Offload:
    """What the workers of one audit share: the device, and whether it is still used.

    say: gets a line for people whenever something does not come from the device. on_cpu: why
    nothing does, None while the device is used.
    """

    def __init__(self, device: TorchDevice, say: Callable[[str], None]) -> None:
        self.device = device
        self.on_cpu: str | None = None
        self._say = say
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._tested = False

    def is_usable(self) -> bool:
        """Whether the device is used. The first call tests it."""
        with self._lock:
            if not self._tested:
                self._tested = True
                if fault := self.device.self_test():
                    self.on_cpu = "self-test"
                    self._say(
                        f"{self._named} failed its self-test ({fault}): all Gram matrices are made"
                        " on the CPU"
                    )
            return self.on_cpu is None

    def succeeded(self) -> None:
        with self._lock:
            self._in_a_row = 0

    def failed(self, which: str, fault: Fault, detail: str) -> None:
        """A Gram matrix has to be made on the CPU; which names it."""
        with self._lock:
            self._in_a_row += 1
            more = f" ({detail})" if detail else ""
            self._say(
                f"{which}: the Gram matrix of {self._named} {SAID[fault]}{more}: made on the CPU"
            )
            if self._in_a_row == IN_A_ROW and self.on_cpu is None:
                self.on_cpu = "given up"
                self._say(
                    f"{self._named} failed {IN_A_ROW} times in a row: the rest is made on the CPU"
                )

    @property
    def _named(self) -> str:
        return f"{self.device.kind} ({self.device.name})"


class Offloaded(Grams):
    """The Gram matrices of one pair of matrices, of the device or the CPU; not shared by threads.

    which: what people call the pair. made: how many Gram matrices were made where; those of the CPU
    with the reason, `cpu: float64`.
    """

    def __init__(self, offload: Offload, which: str) -> None:
        self._offload = offload
        self._which = which
        # what the last bits of its Gram matrices depend on
        self.solver = f"{offload.device.kind} {offload.device.name} {torch.version.cuda}"
        self.made = Counter[str]()

    def solved(
        self,
        read: Read,
        shape: tuple[int, int],
        norm: float,
        dtype: torch.dtype,
        solve: Callable[[Tensor], Eigen],
    ) -> tuple[Eigen, bool]:
        reason, moved = "float64", False
        if dtype == torch.float32:
            found = self._from_device(read, shape, norm, solve)
            if not isinstance(found, str):
                self.made[self._offload.device.kind] += 1
                return found, False
            reason, moved = found, True
        self.made[f"cpu: {reason}"] += 1
        return super().solved(read, shape, norm, dtype, solve)[0], moved

    def _from_device(
        self, read: Read, shape: tuple[int, int], norm: float, solve: Callable[[Tensor], Eigen]
    ) -> Eigen | str:
        """Eigenvalues and vectors of the device's Gram matrix, or why it is not used."""
        offload = self._offload
        if not offload.is_usable():
            assert offload.on_cpu is not None
            return offload.on_cpu
        try:
            probe = Probe(min(shape), shape[0] <= shape[1])
            lower = offload.device.gram(probe.seen(read(torch.float32)), probe.side, probe.wide)
        except torch.OutOfMemoryError:
            return self._failed("out of memory", "")
        except RuntimeError as error:  # what reading the blocks raises, the CPU will raise again
            return self._failed("error", str(error).strip().partition("\n")[0][:120])
        trace, square = _sums(lower)
        if not np.isfinite(trace + square):
            return self._failed("not finite", "")
        energy = norm**2 or 1.0
        by_trace = abs(trace - norm**2) / math.sqrt(probe.side)
        apart = float(np.maximum(by_trace, probe.residual(lower))) / energy  # NaN if one is
        if not apart <= SAME_GRAM:
            return self._failed("mismatch", f"off by {apart:.0e} of the energy")
        found = solve(lower)
        values = found[0] / energy
        apart = max(abs(values.sum() - trace / energy), abs((values**2).sum() - square / energy**2))
        if not apart <= SAME_EIGENVALUES:
            return self._failed("mismatch", "its trace and norm are not those of its eigenvalues")
        offload.succeeded()
        return found

    def _failed(self, fault: Fault, detail: str) -> str:
        self._offload.failed(self._which, fault, detail)
        return fault


class Probe:
    """W (Wᵀ v) of a matrix whose blocks pass by; v (side,) has random signs, fixed by the side."""

    def __init__(self, side: int, wide: bool) -> None:
        self.side = side
        self.wide = wide
        self._signs = np.where(np.random.default_rng(side).random(side) < 0.5, -1.0, 1.0)
        self._sum = np.zeros(side)

    def seen(self, matrix_blocks: Iterator[Tensor]) -> Iterator[Tensor]:
        signs = self._signs.astype(np.float32)
        for block in matrix_blocks:
            x = block.numpy() if self.wide else block.numpy().T
            self._sum += x @ (signs @ x)
            yield block

    def residual(self, gram: Tensor) -> float:
        """||G v - W (Wᵀ v)||."""
        total = np.zeros(self.side)
        for rows in _rows(gram):
            total[rows] = gram[rows].double().numpy() @ self._signs
        return float(np.linalg.norm(total - self._sum))


def _sums(gram: Tensor) -> tuple[float, float]:
    """The trace and the squared norm, in float64."""
    return float(gram.diagonal().double().sum()), sum(
        float(gram[rows].double().square().sum()) for rows in _rows(gram)
    )


def _rows(gram: Tensor) -> Iterator[slice]:
    """A few rows at a time, so that no second Gram matrix is in memory."""
    step = max(1, BLOCK // 4 // len(gram))
    return (slice(start, start + step) for start in range(0, len(gram), step))


class TorchDevice:
    """A device of torch. Two buffers take turns: it copies one while the CPU fills the other."""

    def __init__(self, place: str) -> None:
        """place: as torch calls it, such as cuda:0."""
        self.place = torch.device(place)
        self.kind = self.place.type  # such as cuda, as reports have it
        # the maker's name for it
        self.name = torch.cuda.get_device_name(self.place) if self.kind == "cuda" else self.kind
        self._of_thread = threading.local()

    def gram(self, matrix_blocks: Iterator[Tensor], side: int, wide: bool) -> Tensor:
        """As `shadow.spectra.spectrum.gram`, float32 and whole; RuntimeError if it cannot."""
        if not hasattr(self._of_thread, "way"):
            self._of_thread.way = Way(self.place)
        way: Way = self._of_thread.way
        with way.stream():
            total = torch.zeros((side, side), dtype=torch.float32, device=self.place)
            for block in matrix_blocks:
                for part in _parts(block if wide else block.T, BLOCK // side):
                    there = way.copied(part)
                    for x in _parts(there, DEPTH):
                        total.addmm_(x, x.T)
            return total.cpu()

    def self_test(self) -> str | None:
        """What is wrong with its Gram matrices. In a child process: a driver may hang or crash."""
        return tested_in_child(
            [sys.executable, "-P", "-m", "shadow.spectra.self_test", str(self.place)]
        )

    def free_memory(self) -> int | None:
        """Bytes of a CUDA card; None where it cannot be asked, as when it has no memory left."""
        try:
            return int(torch.cuda.mem_get_info(self.place)[0])
        except RuntimeError:
            return None


def _parts(x: Tensor, width: int) -> Iterator[Tensor]:
    """(side, k) -> parts of that many columns, at least 1."""
    return iter(torch.split(x, max(1, width), dim=1))


class Way:
    """How one thread brings blocks to a device: a stream of its own, and buffers used in turns."""

    def __init__(self, place: torch.device) -> None:
        self._place = place
        self._stream = torch.cuda.Stream(place) if place.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._buffers: list[Tensor | None] = [None, None]
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._next = 0

    def stream(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def copied(self, part: Tensor) -> Tensor:
        """The same on the device: what its stream does next waits for it, the caller does not."""
        turn, self._next = self._next, 1 - self._next
        event = self._copied[turn]
        if event is not None:
            event.synchronize()  # the device has taken what was in the buffer
        buffer = self._buffers[turn]
        if buffer is None or buffer.numel() < part.numel():
            buffer = torch.empty(max(part.numel(), BLOCK), pin_memory=self._stream is not None)
            self._buffers[turn] = buffer
        here = buffer[: part.numel()]
        # column by column where the part is: so that the device multiplies it as it lies
        by_column = part.stride(0) == 1
        here = here.view(part.T.shape).T if by_column else here.view(part.shape)
        here.copy_(part)
        there = here.to(self._place, non_blocking=True)
        if self._stream is not None:
            self._copied[turn] = self._stream.record_event()
        return there


def device_memory(side: int, jobs: int) -> int:
    """Bytes that so many workers take at most, beside a driver's; side: of the largest Gram."""
    return jobs * (4 * side**2 + 2 * 4 * max(BLOCK, side) + LIBRARY)


def _to_highest() -> tuple[str, list[tuple[Any, str]]]:
    """Sets it; returns torch's older setting, and the newer one (since 2.9) of each library."""
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # only the newer one was set
        older = "highest"
    onednn: Any = getattr(torch.backends.mkldnn, "matmul", None)
    libraries: tuple[Any, ...] = torch.backends.cuda.matmul, onednn
    newer = [(one, str(one.fp32_precision)) for one in libraries if hasattr(one, "fp32_precision")]
    torch.set_float32_matmul_precision("highest")
    return older, newer


def _restore(before: tuple[str, list[tuple[Any, str]]]) -> None:
    older, newer = before
    torch.set_float32_matmul_precision(older)
    for library, precision in newer:
        library.fp32_precision = "none"  # which is what a wider setting says
        if library.fp32_precision != precision:
            library.fp32_precision = precision


# float32 products without TF32 and the like; what runs in the process meanwhile has them too
full_products = ProcessSetting(_to_highest, _restore).held


def tested_in_child(command: list[str]) -> str | None:
    """What the self-test in a child process found; None where it found nothing."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    try:
        child = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
            text=True,
            env=one_thread | os.environ,
        )
    except subprocess.TimeoutExpired:
        return f"it did not end within {SECONDS} seconds"
    except OSError as error:
        return f"it could not be started: {error.strerror}"
    if child.returncode == 0:
        return child.stdout.strip() or None
    lines = child.stderr.strip().splitlines()
    return lines[-1][:200] if lines and child.returncode == 1 else f"it died ({child.returncode})"
