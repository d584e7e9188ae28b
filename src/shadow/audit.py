"""Two checkpoints that line up -> a generator of frozen outcomes, one for each matrix or vector pair.

Here the half that knows files meets the half that knows linear algebra. Nothing is printed and nothing written.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from shadow.architecture import aligned
from shadow.checkpoint import Checkpoint
from shadow.delta import (
    Extent,
    Method,
    extent,
    frobenius_norm,
    largest_entry,
    measure_alone,
    measure_pair,
    working_dtype,
)
from shadow.outcome import Outcome
from shadow.pairing import MatrixPair, Operand
from shadow.spectrum import BLOCK, Workspace

_LOCAL = threading.local()


def audit(
    base: Checkpoint,
    tuned: Checkpoint,
    pairs: Sequence[MatrixPair],
    method: Method,
    jobs: int,
    done: Collection[str] = (),
) -> Iterator[Outcome]:
    """Measure every pair whose key is not in done, largest first, in `jobs` threads; outcomes in order of completion.

    The numbers do not depend on jobs: each matrix is one thread's work with one BLAS thread. Closing the generator
    gives up what has not begun.
    """
    todo = sorted((pair for pair in pairs if pair.key not in done), key=lambda pair: (-cost(pair), pair.key))
    # Two threads of one BLAS thread each are 1.3-1.7 times faster than one of two (measured on 2 cores).
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="audit", initializer=torch.set_num_threads, initargs=(1,))
    with threadpool_limits(limits=1, user_api="blas"):
        try:
            futures = [pool.submit(_outcome, pair, base, tuned, method) for pair in todo]
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def cost(pair: MatrixPair) -> int:
    """Roughly the floating-point operations for one subject: a Gram and its eigenvalues."""
    side = min(pair.rows, pair.cols)
    return side * pair.rows * pair.cols + 4 * side**3


def default_jobs(pairs: Sequence[MatrixPair]) -> int:
    """As many workers as there are cores, or as fit the free memory if that is fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    side = max((min(pair.rows, pair.cols) for pair in pairs if pair.is_matrix), default=1)
    worker = 3 * 8 * side**2 + 4 * 8 * BLOCK  # a Gram, what the solver copies of it, the block buffers
    return max(1, min(cores, _available_memory() // worker))


def _available_memory() -> int:
    """Bytes that can be had without swapping, file cache included; as good as endless where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 1 << 60
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 1 << 60)


def _outcome(pair: MatrixPair, base: Checkpoint, tuned: Checkpoint, method: Method) -> Outcome:
    space: Workspace = _LOCAL.__dict__.setdefault("space", Workspace())
    matrix = _view(pair, pair.tuned, tuned)
    stored = pair.tuned.info.dtype
    if pair.base is None:
        largest = largest_entry(matrix, working_dtype(stored), space)
        if not Extent(0.0, largest, 0.0).finite:
            return Outcome(pair.key, "skipped", "nonfinite", "in the tuned tensor")
        alone = measure_alone(matrix, stored, largest, method, space)
        return Outcome(pair.key, "measured", "only_in_tuned", pair.detail, measurements=(alone,))
    base_matrix, matrix = aligned(_view(pair, pair.base, base), matrix)
    formats = pair.base.info.dtype, stored
    size = extent(base_matrix, matrix, working_dtype(*formats), space)
    if not size.finite:
        sides = [side for side, value in (("base", size.base), ("tuned", size.tuned)) if not Extent(value, 0, 0).finite]
        return Outcome(pair.key, "skipped", "nonfinite", f"in the {' and the '.join(sides)} tensor")
    detail = pair.detail or None
    if not pair.is_matrix:
        delta_norm, base_norm = _vector_norms(base_matrix, matrix, size)
        return Outcome(pair.key, "skipped", "not_a_matrix", detail, delta_norm, base_norm)
    if size.delta == 0:
        note = f"equal values, stored as {' and '.join(formats)}" if formats[0] != formats[1] else detail
        norm = frobenius_norm(base_matrix, size.base, working_dtype(*formats), space)
        return Outcome(pair.key, "identical", None, note, 0.0, norm)
    found = measure_pair(base_matrix, matrix, formats, size, method, pair.key, space)
    norms = {one.subject: one.values["frobenius_norm"] for one in found}
    return Outcome(pair.key, "measured", None, detail, norms["delta"], norms["base"], found)


def _view(pair: MatrixPair, operand: Operand, checkpoint: Checkpoint) -> torch.Tensor:
    matrix = operand.part.view(checkpoint.tensor(operand.info))
    if not pair.is_matrix:
        return matrix.reshape(pair.rows, pair.cols)
    return matrix[: pair.rows] if matrix.ndim == 2 else matrix


def _vector_norms(base: torch.Tensor, tuned: torch.Tensor, size: Extent) -> tuple[float, float]:
    """Norms of delta and base of two vectors, in units of the larger largest entry so that squares are safe."""
    unit = max(size.base, size.tuned) or 1.0
    b, t = base.double() / unit, tuned.double() / unit
    return float(torch.linalg.vector_norm(t - b)) * unit, float(torch.linalg.vector_norm(b)) * unit
