"""Limits of the machine for this process, and the use of an audit.

Linux limits a process by control groups (cgroups, version 2), which are nested: what a group may
use, all that is in it and below it shares, so the least of a group and its ancestors counts. In a
container the group of the process may be the top of what can be seen of the tree.
https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
from threadpoolctl import threadpool_limits

from shadow.checkpoints.held_files import STRIPE, WHOLE, kept_memory
from shadow.checkpoints.pairing import MatrixPair
from shadow.dtypes import float_format
from shadow.errors import ShadowError
from shadow.spectra.costs import BLOCK, BUFFERS, COSTS, FACTOR_BLOCK, cost_of
from shadow.spectra.measurement import Level, Method
from shadow.text import byte_size

# bytes, where no system says
ENDLESS = 1 << 60
THE_MACHINE = "the machine"


@dataclass(frozen=True)
class MachineLimits:
    """Limits of the machine."""

    cores: int
    """1 or more. A part of a core counts as one: workers share what there is, and no time of it is
    lost.
    """
    cores_by: str
    memory: int
    """Bytes without swapping, file cache included."""
    memory_by: str


def machine_limits(root: Path = Path("/")) -> MachineLimits:
    """The cores and the memory that this process may use now. root: of /proc and /sys."""
    cores = os.cpu_count() or 1
    cores_by = THE_MACHINE
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
        if allowed != cores:
            cores = allowed
            cores_by = "the processors of this process"
    memory = ENDLESS
    memory_by = THE_MACHINE
    available = re.search(r"^MemAvailable:\s*(\d+)", _text(root / "proc/meminfo"), re.MULTILINE)
    if available:
        memory = int(available[1]) * 1024
    for folder, name in _groups(root):
        limit = re.fullmatch(r"(\d+) ([1-9]\d*)\s*", _text(folder / "cpu.max"))  # or "max"
        if limit:
            quota, period = map(int, limit.groups())
            share = math.ceil(quota / period)
            if 0 < share < cores:
                cores = share
                cores_by = f"the control group {name}"
        left = _memory_left(folder)
        if left is not None and left < memory:
            memory = left
            memory_by = f"the control group {name}"
    return MachineLimits(cores=cores, cores_by=cores_by, memory=memory, memory_by=memory_by)


def _groups(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield folders and names of the groups that limit this process: its own, then its
    ancestors.
    """
    of_process = re.search(r"^0::(.*)$", _text(root / "proc/self/cgroup"), re.MULTILINE)
    # of a mount: the group at its top, and where it is
    mounts = _text(root / "proc/self/mountinfo")
    mounted = re.search(r"^\S+ \S+ \S+ (\S+) (\S+) .* - cgroup2 ", mounts, re.MULTILINE)
    if not of_process or not mounted:
        return
    own = PurePosixPath(of_process[1])
    top = PurePosixPath(mounted[1])
    tree = root / mounted[2].lstrip("/")
    # In a container the names may be the host's, and the tree a part of the host's.
    visible = PurePosixPath()
    if own.is_relative_to(top) and ".." not in own.parts:
        within = own.relative_to(top)
        if (tree / within).is_dir():
            visible = within
    for ancestor in (visible, *visible.parents):
        yield tree / ancestor, str(top / ancestor)


def _memory_left(folder: Path) -> int | None:
    """The number of bytes that a group may still use; None without a limit.

    `memory.high` counts as a limit, above which a group is slowed down. File cache that was not
    used lately counts as free: the kernel drops it, and weights are mapped files.
    """
    limits = []
    for name in ("memory.max", "memory.high"):
        limit = _number(folder / name)
        if limit is not None:
            limits.append(limit)
    if not limits:
        return None
    used = _number(folder / "memory.current") or 0
    cached = re.search(r"^inactive_file (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
    if cached:
        used = max(0, used - int(cached[1]))
    return max(0, min(limits) - used)


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    if not text.isdecimal():
        return None
    return int(text)


def _text(path: Path) -> str:
    """The content of a file of the kernel; empty if there is none."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


PROCESS = 400_000_000  # bytes of memory of Python, torch and pandas before any matrix, measured


def matrix_memory(pair: MatrixPair, method: Method) -> int:
    """The most bytes that a worker needs for a pair that is measured in this way."""
    sides = 2 * _side_memory(pair)
    shape = pair.shape
    if not pair.is_matrix:
        return BUFFERS * min(BLOCK, math.prod(shape)) + sides
    factors = 0
    if pair.tuned.factor is not None:  # a part of one, and two copies of it
        factors = 3 * 8 * min(FACTOR_BLOCK, pair.tuned.factor.rank * max(shape))
    cost = cost_of(method).on(shape)
    held = cost.held(shape, method.subjects)
    return cost.memory(shape, factors) + held + sides


def _side_memory(pair: MatrixPair) -> int:
    """The number of bytes that a worker keeps of one side, counted as if stored like the larger."""
    infos = [operand.info for operand in pair.operands.values()]
    bits = max(float_format(info.dtype).bits for info in infos)
    numbers = bits // 8 * pair.entries
    stored = max(info.stored_size if info.packing else 0 for info in infos)
    # of a quantised side numbers are kept where they fit beside the bytes that they come from
    if stored and numbers + stored > WHOLE:
        return kept_memory(stored) + STRIPE
    return kept_memory(numbers) + stored


def kinds(pairs: Iterable[MatrixPair]) -> list[MatrixPair]:
    """The first of the pairs that need the same memory: one of thousands of experts."""
    firsts: dict[tuple[object, ...], MatrixPair] = {}
    for pair in pairs:
        kind = [pair.shape, pair.is_matrix, pair.place.module]
        for operand in pair.operands.values():
            kind += [operand.info.dtype, operand.info.packing is None]
            if operand.factor is not None:
                kind.append(operand.factor.rank)
        firsts.setdefault(tuple(kind), pair)
    return list(firsts.values())


def worker_memory(pairs: Iterable[MatrixPair], method: Method) -> int:
    """The most bytes that one worker needs, including the largest delta that it keeps."""
    most = 0
    held = 0
    for pair in pairs:
        delta = 0
        if pair.is_matrix:
            cost = cost_of(method).on(pair.shape)
            delta = cost.held(pair.shape, method.subjects)
        most = max(most, matrix_memory(pair, method) - delta)
        held = max(held, delta)
    return most + held


def default_jobs(pairs: Sequence[MatrixPair], machine: MachineLimits, method: Method) -> int:
    """As many workers as there are cores, or as fit in free memory.

    Only one if sums over stored floats are all: two threads wait for Python's lock so often that
    they read 1.2 GB/s where one reads 2.8.
    """
    if not method.has_spectra and not any(map(_is_made, pairs)):
        return 1
    each = max(1, worker_memory(pairs, method))
    return max(1, min(machine.cores, machine.memory // each))


def _is_made(pair: MatrixPair) -> bool:
    """True if numbers of a pair are computed from stored ones: of a quantised side, an update."""
    return any(operand.factor or operand.info.packing for operand in pair.operands.values())


def lacking(
    pairs: Sequence[MatrixPair], machine: MachineLimits, method: Method
) -> ShadowError | None:
    """The error for a matrix that does not fit in free memory, even with one worker."""
    largest = max(pairs, key=lambda pair: matrix_memory(pair, method), default=None)
    if largest is None:
        return None
    need = matrix_memory(largest, method)
    if need <= machine.memory:
        return None
    matrix = f"{largest.tuned.info.name}: {largest.rows:,} x {largest.cols:,}"
    free = f"{byte_size(machine.memory)} are free"
    if machine.memory_by != THE_MACHINE:
        free += f" ({machine.memory_by})"
    return ShadowError(
        f"{matrix} needs {byte_size(need)} of memory, {free}",
        "free some memory, use a larger machine, or leave the matrix out (--layer, --module)",
    )


TRIES = 4  # of the matrix that is solved for the pace of a machine, in each worker
# Operations of each level in the time of one of that matrix; 1024 x 4096 in BF16 on an Intel Xeon
PACES: Mapping[Level, tuple[float, float]] = {  # of all subjects, and of deltas alone
    "norms": (0.0165, 0.0165), "sketch": (0.59, 1.0), "full": (0.41, 1.06), "exact": (0.32, 0.82),
}  # fmt: skip


@cache  # it is measured once for all pairs
def pace(method: Method, jobs: int) -> float:
    """Estimate how many operations this machine does in a second, from the singular values of a
    small matrix by NumPy in each worker.
    """
    matrix = np.random.default_rng(0).standard_normal((256, 1024), np.float32)

    def solve(_: int) -> None:
        np.linalg.eigvalsh((matrix @ matrix.T).astype(np.float64))

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(jobs) as pool:
        list(pool.map(solve, range(jobs)))  # first allocations
        started = time.perf_counter()
        list(pool.map(solve, range(jobs * TRIES)))
        each = (time.perf_counter() - started) / (jobs * TRIES)
    of_all, of_deltas = PACES[method.level]
    relative_pace = of_all
    if method.subjects == "delta":
        relative_pace = of_deltas
    return relative_pace * COSTS["full"].operations(matrix.shape) / each
