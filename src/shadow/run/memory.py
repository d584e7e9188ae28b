"""The memory that an audit takes beside file caches, from shapes alone; how many workers fit it.

What is counted is at least what `benchmarks/memory.py` sees, over thirteen shapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from shadow.checkpoints.pairing import MatrixPair
from shadow.checkpoints.stored_tensors import STRIPE, WHOLE, kept_memory
from shadow.dtypes import float_format
from shadow.errors import ShadowError
from shadow.run.machine_limits import MachineLimits
from shadow.spectra.lazy import FACTOR_BLOCK
from shadow.spectra.method import Method
from shadow.spectra.solvers import BUFFERS, solver_of
from shadow.spectra.spectrum import BLOCK
from shadow.text import byte_size

PROCESS = 400_000_000  # bytes of memory of Python, torch and pandas before any matrix, measured
USUAL = Method()


def matrix_memory(pair: MatrixPair, method: Method = USUAL) -> int:
    """Bytes that a worker takes at most for a pair that is measured in this way."""
    kept = 2 * _kept(pair)
    shape = pair.rows, pair.cols
    if not pair.is_matrix:
        return BUFFERS * min(BLOCK, math.prod(shape)) + kept
    factors = 0
    if pair.tuned.factor is not None:  # a part of one, and two copies of it
        factors = 3 * 8 * min(FACTOR_BLOCK, pair.tuned.factor.rank * max(shape))
    solver = solver_of(method).on(shape)
    return solver.memory(shape, factors) + solver.held(shape, method.subjects) + kept


def _held(pair: MatrixPair, method: Method) -> int:
    """Bytes of a delta that is held in memory which later pairs use again."""
    shape = pair.rows, pair.cols
    return solver_of(method).on(shape).held(shape, method.subjects) if pair.is_matrix else 0


def _kept(pair: MatrixPair) -> int:
    """Bytes that a worker keeps of one side, which counts as stored like the larger."""
    infos = [pair.tuned.info, *([pair.base.info] if pair.base else [])]
    numbers = max(float_format(info.dtype).bits for info in infos) // 8 * pair.rows * pair.cols
    stored = max(info.end - info.start if info.packing else 0 for info in infos)
    # of a quantised side numbers are kept where they fit beside the bytes that they come from
    if stored and numbers + stored > WHOLE:
        return kept_memory(stored) + STRIPE
    return kept_memory(numbers) + stored


def kinds(pairs: Iterable[MatrixPair]) -> list[MatrixPair]:
    """The first of the pairs that take the same memory: of thousands of experts one."""
    found: dict[tuple[object, ...], MatrixPair] = {}
    for pair in pairs:
        base, tuned = pair.base, pair.tuned
        info, of_base, factor = tuned.info, base and base.info, tuned.factor
        kind = (
            pair.rows, pair.cols, pair.is_matrix, pair.place.module, info.dtype,
            info.packing is None, factor and factor.rank,
            of_base and (of_base.dtype, of_base.packing is None),
        )  # fmt: skip
        found.setdefault(kind, pair)
    return list(found.values())


def worker_memory(pairs: Iterable[MatrixPair], method: Method = USUAL) -> int:
    """Bytes that one worker takes at most: blocks of a matrix and one Gram, whatever the shape, and
    the largest delta that is kept.
    """
    both = [(matrix_memory(pair, method), _held(pair, method)) for pair in pairs]
    most = max((every - delta for every, delta in both), default=0)
    return most + max((delta for _, delta in both), default=0)


def default_jobs(
    pairs: Sequence[MatrixPair], machine: MachineLimits, method: Method = USUAL
) -> int:
    """As many workers as there are cores, or as fit the free memory if that is fewer.

    One where entries are only summed up and none is decoded: parts that the caches hold take so few
    microseconds each that two threads wait for Python's lock, and read 1.2 GB/s where one reads
    2.8.
    """
    if not solver_of(method).has_spectra and not any(map(_is_decoded, pairs)):
        return 1
    each = max(1, worker_memory(pairs, method))
    return max(1, min(machine.cores, machine.memory // each))


def _is_decoded(pair: MatrixPair) -> bool:
    """Whether the numbers of a side are made of what is stored, as of an adapter's factors."""
    base, tuned = pair.base, pair.tuned
    if tuned.factor or tuned.info.packing:
        return True
    return base is not None and bool(base.factor or base.info.packing)


def lacking(
    pairs: Sequence[MatrixPair], machine: MachineLimits, method: Method = USUAL
) -> ShadowError | None:
    """The fault of a matrix that does not fit the free memory, even with one worker."""
    largest = max(pairs, key=lambda pair: matrix_memory(pair, method), default=None)
    need = 0 if largest is None else matrix_memory(largest, method)
    if largest is None or need <= machine.memory:
        return None
    by = "" if machine.memory_by == "the machine" else f" ({machine.memory_by})"
    return ShadowError(
        f"{largest.tuned.info.name}: {largest.rows:,} x {largest.cols:,} needs"
        f" {byte_size(need)} of memory, {byte_size(machine.memory)} are free{by}",
        "free some memory, use a larger machine, or leave the matrix out (--layer, --module)",
    )
