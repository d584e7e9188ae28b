"""Two checkpoints that line up -> a generator of frozen outcomes, one a matrix or vector pair.

Here the half that knows files meets the half that knows linear algebra. Nothing is printed, and no
report written.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import torch
from threadpoolctl import threadpool_limits

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import MatrixPair, Operand, Side
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.sources import Fetching, Source
from shadow.checkpoints.stored_tensors import WHOLE, DecodedTensor, StoredTensor
from shadow.errors import ShadowError, UndecodableError
from shadow.reasons import FROM_ZERO
from shadow.reports.metadata import SIDES
from shadow.run.journal import Outcome
from shadow.run.schedule import Schedule, ShardKey, Summed, infos_of, source_of
from shadow.spectra.delta import measure, measure_alone
from shadow.spectra.entries import cast
from shadow.spectra.format_noise import format_noise
from shadow.spectra.lazy import Matrix, Updated, is_quantised
from shadow.spectra.measurement import Cast, Measurement, Method
from shadow.spectra.solvers import Means, solver_of
from shadow.spectra.spectrum import (
    ON_CPU,
    Grams,
    Remember,
    Sides,
    Workspace,
    blocks,
    solve_anew,
    working_dtype,
)
from shadow.spectra.sums import Extent, extent, largest_entry

Made = TypeVar("Made")
Cut = torch.Tensor | StoredTensor | DecodedTensor  # one side of a pair as it is stored

USUAL = Method()
_LOCAL = threading.local()
NOTHING: Summed = MappingProxyType({})
_ONE_AT_A_TIME = threading.RLock()  # numbers of threads are of the whole process


@contextlib.contextmanager
def single_threads() -> Iterator[None]:
    """One thread of algebra for each worker, as the command has it; afterwards as many as before.

    The workers are as many as there are cores, and threads of their algebra would wait for each
    other.
    """
    with _ONE_AT_A_TIME:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with threadpool_limits(limits=1):
                yield
        finally:
            torch.set_num_threads(before)


def measure_pairs(
    base: Checkpoint,
    tuned: Checkpoint,
    work: Schedule,
    method: Method,
    jobs: int,
    fetching: Fetching,
    remember: Remember = solve_anew,
    grams: Grams = ON_CPU,
    summed: Summed = NOTHING,
) -> Generator[Outcome, None, None]:
    """Measure every pair of a schedule in `jobs` threads; outcomes in order of completion.

    One more thread fetches the shards, as far ahead as the schedule allows. Within a step the
    largest pairs come first. The numbers do not depend on jobs: each matrix is one thread's work
    with one BLAS thread. Each source is freed when its last outcome has been taken. remember: how
    the spectrum of one side is had. grams: where Gram matrices are made.
    summed: the tensors whose bytes are summed up with each pair.
    Closing the generator gives up what has not begun, a running download included.
    """
    measure = partial(
        outcome_of,
        base=base,
        tuned=tuned,
        method=method,
        remember=remember,
        grams=grams,
        summed=summed,
    )
    yield from in_workers(base, tuned, work, measure, jobs, fetching)


def in_workers(
    base: Checkpoint,
    tuned: Checkpoint,
    work: Schedule,
    measure: Callable[[MatrixPair], Made],
    jobs: int,
    fetching: Fetching,
) -> Generator[Made, None, None]:
    """What `measure` makes of every pair of a schedule, in `jobs` threads, in order of completion.

    Shards come, threads work and sources are freed as `measure_pairs` says.
    """
    # Two threads of one BLAS thread each are 1.3-1.7 times faster than one of two (measured on 2
    # cores).
    pool = ThreadPoolExecutor(
        jobs, thread_name_prefix="audit", initializer=torch.set_num_threads, initargs=(1,)
    )
    with threadpool_limits(limits=1, user_api="blas"):
        try:
            yield from _run(base, tuned, work, measure, jobs, pool, fetching)
        finally:
            fetching.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _run(
    base: Checkpoint,
    tuned: Checkpoint,
    work: Schedule,
    measure: Callable[[MatrixPair], Made],
    jobs: int,
    pool: ThreadPoolExecutor,
    fetching: Fetching,
) -> Iterator[Made]:
    unfinished = [len(step) for step in work.steps]
    coming, here = deque(work.visits), deque[ShardKey]()
    resident = {visit.shard: visit.last for visit in work.visits}
    firsts = sorted(visit.first for visit in work.visits)
    needed = [bisect_right(firsts, step) for step in range(len(work.steps))]
    ready: deque[tuple[int, MatrixPair]] = deque()
    reached = entered = (
        0  # the first step that is not finished, the first one that has not been begun
    )
    download: Future[None] | None = None
    computing: dict[Future[Made], int] = {}
    while True:
        while reached < len(unfinished) and not unfinished[reached]:
            reached += 1
        for shard in [shard for shard in here if resident[shard] < reached]:
            here.remove(shard)
            source_of(base, tuned, shard).free()
        if download is None and coming and coming[0].after <= reached:
            download = fetching.begin(source_of(base, tuned, coming[0].shard))
        while entered < len(work.steps) and len(work.visits) - len(coming) >= needed[entered]:
            ready.extend((entered, pair) for pair in _largest_first(work.steps[entered]))
            entered += 1
        while ready and len(computing) < 2 * jobs:
            step, pair = ready.popleft()
            _read_ahead(pair, base, tuned)
            computing[pool.submit(measure, pair)] = step
        if download is None and not computing:
            return
        running: list[Future[Any]] = [*computing, *([download] if download else [])]
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        if download is not None and download in done:
            download.result()
            download = None
            here.append(coming.popleft().shard)
        for future in [future for future in computing if future in done]:
            step = computing.pop(future)
            yield future.result()
            unfinished[step] -= 1


def _read_ahead(pair: MatrixPair, base: Checkpoint, tuned: Checkpoint) -> None:
    """Let the system read a pair while those before it are measured; what is read anew for every
    pass, or lies in a stack, is left to its own reading ahead.
    """
    for side in SIDES:
        for info in infos_of(side, pair):
            if info.end - info.start <= WHOLE:
                with contextlib.suppress(ShadowError):  # which the worker meets
                    file, there = source_of(base, tuned, (side, info.shard)).located(info)
                    file.read_ahead(there.start, there.end)


def _largest_first(pairs: Sequence[MatrixPair]) -> list[MatrixPair]:
    return sorted(pairs, key=lambda pair: (-cost(pair), pair.key))


def cost(pair: MatrixPair, method: Method = USUAL) -> int:
    """Roughly the floating-point operations for one subject, as the solver of its level says."""
    shape = pair.rows, pair.cols
    return solver_of(method).on(shape).cost(shape)


def pace(method: Method, jobs: int) -> float:
    """Units of `cost` a second that this machine does with all workers: one synthetic pair in each,
    about a second.

    The units held within 15 % from sides of 1024 to 3584; pairs of smaller sides take up to three
    times as long.
    """
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1024, 4096, generator=generator).bfloat16()
    tuned = (base.float() + 0.01 * torch.randn(1024, 4096, generator=generator)).bfloat16()
    solver = solver_of(method)

    def of_rows(rows: int) -> None:
        space = Workspace()
        sides = Sides(base[:rows], tuned[:rows], torch.float32, space)
        for _ in range(solver.repeats):
            measure(sides, ("BF16", "BF16"), Means(method, space), "pace")

    with (
        threadpool_limits(limits=1, user_api="blas"),
        ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        list(pool.map(of_rows, [64] * jobs))  # imports and first allocations
        started = time.perf_counter()
        list(pool.map(of_rows, [1024] * jobs))
        work = solver.repeats * solver.cost((1024, 4096))
        return jobs * work / (time.perf_counter() - started)


def outcome_of(
    pair: MatrixPair,
    base: Checkpoint,
    tuned: Checkpoint,
    method: Method,
    remember: Remember,
    grams: Grams,
    summed: Summed,
) -> Outcome:
    started = time.perf_counter()
    base_verified = _verified(pair.base, base) if pair.base else None
    tuned_verified = _verified(pair.tuned, tuned)
    try:
        try:
            measured = _measured(pair, base, tuned, method, remember, grams)
        except UndecodableError as error:
            measured = Outcome(pair.key, "skipped", reason="quantized", detail=error.message)
        checksums = _checksums(summed.get(pair.key, ()), base, tuned)
    finally:  # whatever came of bytes that were written meanwhile, this is what is told
        for source in sources_of(pair, base, tuned):
            source.require_unchanged()
    return replace(
        measured,
        verified=(base_verified, tuned_verified),
        seconds=time.perf_counter() - started,
        checksums=checksums,
    )


def _checksums(
    tensors: Sequence[tuple[Side, TensorInfo]], base: Checkpoint, tuned: Checkpoint
) -> dict[str, dict[str, str]]:
    """By side and name; without those that were not fetched."""
    found: dict[str, dict[str, str]] = {}
    for side, info in tensors:
        checksum = source_of(base, tuned, (side, info.shard)).checksum(info)
        if checksum is not None:
            found.setdefault(side, {})[info.name] = checksum
    return found


def sources_of(pair: MatrixPair, base: Checkpoint, tuned: Checkpoint) -> list[Source]:
    """The shards that a pair lies in."""
    sides = [(pair.tuned, tuned)] if pair.base is None else [(pair.base, base), (pair.tuned, tuned)]
    return [side.sources[info.shard] for operand, side in sides for info in operand.infos]


def _verified(operand: Operand, checkpoint: Checkpoint) -> bool | None:
    """What all its shards say, or False where they do not agree."""
    answers = {checkpoint.sources[info.shard].verified for info in operand.infos}
    return answers.pop() if len(answers) == 1 else False


def _measured(
    pair: MatrixPair,
    base: Checkpoint,
    tuned: Checkpoint,
    method: Method,
    remember: Remember,
    grams: Grams,
) -> Outcome:
    space = own_workspace()
    means = Means(method, space, remember, grams)
    stored = pair.tuned.info.dtype
    if pair.base is None:
        only = _view(pair, pair.tuned, tuned)
        largest = largest_entry(only, working_dtype(stored), space)
        if not Extent(0.0, largest, 0.0).finite:
            return Outcome(pair.key, "skipped", reason="nonfinite", detail="in the tuned tensor")
        alone = measure_alone(only, stored, largest, means, pair.key)
        return Outcome(
            pair.key, "measured", reason="only_in_tuned", detail=pair.detail, measurements=(alone,)
        )
    base_matrix, matrix = views(pair, pair.base, base, tuned)
    detail = pair.detail or None
    formats = pair.base.info.dtype, stored
    if isinstance(matrix, Updated):
        formats = pair.base.info.dtype, "F64"  # nothing of the sum is rounded to what is stored
        factor = pair.tuned.factor
        detail = f"a low-rank update: its rank is at most {factor.rank}" if factor else detail
    sides = Sides(base_matrix, matrix, working_dtype(*formats), space)
    if not pair.is_matrix:
        return _of_vector(pair.key, sides, formats, detail)
    found = measure(sides, formats, means, pair.key)
    if found.broken:
        return _broken(pair.key, found.broken)
    if not found.measurements:
        note = detail if pair.tuned.factor is not None else _note_of_equal(formats, detail)
        return Outcome(
            pair.key, "identical", detail=note, delta_norm=0.0, base_norm=found.base_norm
        )
    delta = found.measurements[-1]
    return Outcome(
        pair.key,
        "measured",
        detail=detail,
        delta_norm=delta.number("frobenius_norm") or 0.0,
        base_norm=found.base_norm,
        cast=_copied(sides, formats, delta, may_be=found.may_be_cast),
        measurements=found.measurements,
        zero=_zero(found.measurements),
    )


def _of_vector(key: str, sides: Sides, formats: tuple[str, str], detail: str | None) -> Outcome:
    """The outcome of a pair of vectors, of which norms are all there is."""
    size = extent(sides)
    if not size.finite:
        return _broken(key, size)
    delta_norm, base_norm = _vector_norms(sides.base, sides.tuned, size)
    from_zero = delta_norm > 0 and base_norm == 0
    return Outcome(
        key,
        "skipped",
        reason="not_a_matrix",
        detail=FROM_ZERO if from_zero else detail,
        delta_norm=delta_norm,
        base_norm=base_norm,
        zero="tuned" if size.base > 0 == size.tuned else None,  # a base may have biases of 0
        cast=(cast(sides, formats) or "neither") if size.delta else None,
    )


def _copied(
    sides: Sides, formats: tuple[str, str], delta: Measurement, *, may_be: bool = True
) -> Cast | Literal["neither"] | None:
    """Which side is the other in another format, with the error of that format and no more, or
    neither; None where it is not known what error the format makes. may_be: whether formats of
    floats are to be looked at.
    """
    side: Cast = "tuned"
    copy, original = sides.tuned, sides.base
    if is_quantised(copy) == is_quantised(original):
        return (cast(sides, formats) if may_be else None) or "neither"
    if not is_quantised(copy):
        side, copy, original = "base", original, copy
    is_copy = delta.values.get("format_copy")
    if is_copy is None and is_quantised(copy):  # what its quantiser makes may be known
        stored = formats[side == "tuned"]
        is_copy = format_noise(original, copy).is_copy(stored)
    if is_copy is None:
        return None
    return side if is_copy else "neither"


def _broken(key: str, size: Extent) -> Outcome:
    """The outcome of a pair with an entry that is not finite."""
    broken = [
        side
        for side, value in (("base", size.base), ("tuned", size.tuned))
        if not Extent(value, 0, 0).finite
    ]
    detail = f"in the {' and the '.join(broken)} tensor"
    return Outcome(key, "skipped", reason="nonfinite", detail=detail)


def _note_of_equal(formats: tuple[str, str], detail: str | None) -> str | None:
    """The detail of a matrix whose values are equal on both sides."""
    base, tuned = formats
    return detail if base == tuned else f"equal values, stored as {base} and {tuned}"


def _zero(measurements: Sequence[Measurement]) -> Side | None:
    """Return the side of a changed matrix in which every entry is 0."""
    zero = {one.subject: one.number("frobenius_norm") == 0 for one in measurements}
    return next((side for side in SIDES if zero[side]), None)


def own_workspace() -> Workspace:
    """The buffers of this thread."""
    if not hasattr(_LOCAL, "space"):
        _LOCAL.space = Workspace()
    space: Workspace = _LOCAL.space
    return space


def views(
    pair: MatrixPair, operand: Operand, base: Checkpoint, tuned: Checkpoint
) -> tuple[Matrix, Matrix]:
    """Both matrices of a pair, cut into the same dimensions."""
    base_matrix = _view(pair, operand, base)
    factor = pair.tuned.factor
    if factor is None:
        matrix = _view(pair, pair.tuned, tuned)
        if base_matrix.ndim < matrix.ndim:
            base_matrix = _cut(base_matrix, matrix.shape)
        elif base_matrix.ndim > matrix.ndim:
            matrix = _cut(matrix, base_matrix.shape)
        return base_matrix, matrix
    left, right = tuned.tensor(pair.tuned.info).whole(), tuned.tensor(factor.info).whole()
    if factor.transposed:
        left, right = left.T, right.T
    left = pair.tuned.part.view(left)
    if base_matrix.ndim < left.ndim:
        base_matrix = _cut(base_matrix, torch.Size((*left.shape[:-1], pair.cols)))
    left = left.reshape(*base_matrix.shape[:-1], factor.rank)
    return base_matrix, Updated(base_matrix, left, right, factor.scaling)


def _cut(matrix: Cut, shape: torch.Size) -> Cut:
    """A (rows, cols) matrix with its rows in groups, as another is: (groups, rows / groups, cols).

    No entry is copied.
    """
    if isinstance(matrix, StoredTensor | DecodedTensor):
        return matrix.seen(lambda tensor: tensor.reshape(shape))
    return matrix.reshape(shape)


def _view(pair: MatrixPair, operand: Operand, checkpoint: Checkpoint) -> Cut:
    stored, part = checkpoint.tensor(operand.info), operand.part

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        matrix = part.view(tensor)
        if not pair.is_matrix:
            return matrix.reshape(pair.rows, pair.cols)
        return matrix[: pair.rows] if matrix.ndim == 2 else matrix

    return stored.seen(seen)


def _vector_norms(base: Matrix, tuned: Matrix, size: Extent) -> tuple[float, float]:
    """Norms of delta and base of two vectors, in units of the larger largest entry so that squares
    are safe.
    """
    unit = max(size.base, size.tuned) or 1.0
    of_delta, of_base = [], []
    for index, _ in blocks(tuned):
        b, t = base[index].double() / unit, tuned[index].double() / unit
        of_base.append(float(torch.linalg.vector_norm(b)))
        of_delta.append(float(torch.linalg.vector_norm(t.sub_(b))))
    return math.hypot(*of_delta) * unit, math.hypot(*of_base) * unit
