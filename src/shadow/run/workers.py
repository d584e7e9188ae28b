"""A plan -> the results of its pairs, computed in threads, and the records of these results.

Here files meet linear algebra. Nothing is printed, and no report written.
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
from typing import Any, Literal, TypeVar

import torch
from threadpoolctl import threadpool_limits

from shadow.checkpoints.held_files import WHOLE
from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import MatrixPair, Operand
from shadow.checkpoints.sources import Source
from shadow.checkpoints.stored_tensors import DecodedTensor, StoredTensor
from shadow.checkpoints.transfers import Transfer, begin
from shadow.errors import ShadowError, UndecodableError
from shadow.reports.provenance import SIDES
from shadow.run.journal import MatrixOutcome
from shadow.run.machine import default_jobs, machine_limits
from shadow.run.plan import Plan, Summed, Visit, source_of, sources_of
from shadow.run.runtime import Progress, Runtime, ignore
from shadow.spectra.costs import COSTS
from shadow.spectra.delta import measure, measure_alone
from shadow.spectra.entries import cast
from shadow.spectra.lazy import Matrix, Selected, Updated, is_quantised
from shadow.spectra.measurement import Cast, Measurement, Method
from shadow.spectra.relations.format_noise import format_noise
from shadow.spectra.solvers import Means
from shadow.spectra.spectrum import Sides, Workspace, working_dtype
from shadow.spectra.sums import Extent, extent, largest_entry

Result = TypeVar("Result")
Cut = torch.Tensor | StoredTensor | DecodedTensor  # one side of a pair as it is stored

_FROM_ZERO = "0 in the base, and not in the tuned model"
_LOCAL = threading.local()
_ONE_AT_A_TIME = threading.RLock()  # numbers of threads are of the whole process


@contextlib.contextmanager
def single_threads() -> Iterator[None]:
    """Limit algebra to one thread per worker, of which there are as many as cores."""
    with _ONE_AT_A_TIME:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with threadpool_limits(limits=1):
                yield
        finally:
            torch.set_num_threads(before)


def cost(pair: MatrixPair) -> int:
    """Estimate the floating-point operations for all values of one subject."""
    return COSTS["full"].operations(pair.shape)


@contextlib.contextmanager
def threads(jobs: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads with one BLAS thread each; pending work is cancelled at the end.

    Two such threads are 1.3-1.7 times faster than one that has two (measured on 2 cores).
    """
    pool = ThreadPoolExecutor(
        jobs, thread_name_prefix="audit", initializer=torch.set_num_threads, initargs=(1,)
    )
    with threadpool_limits(limits=1, user_api="blas"):
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def jobs_of(runtime: Runtime, pairs: Sequence[MatrixPair], method: Method) -> int:
    """The requested number of workers, or the default."""
    if runtime.jobs is not None:
        return runtime.jobs
    return default_jobs(pairs, runtime.limits or machine_limits(), method)


def in_workers(
    plan: Plan,
    measure: Callable[[MatrixPair], Result],
    runtime: Runtime,
    jobs: int,
    *,
    done: Sequence[MatrixPair] = (),
    weigh: Callable[[MatrixPair], int] = cost,
    note: Callable[[Source], None] = ignore,
) -> Generator[Result, None, None]:
    """Yield the result of `measure` for the pairs of a plan, in `jobs` threads, in order of
    completion.

    One more thread fetches the shards, as far ahead as the schedule allows. Within a step the
    largest pairs come first. Each source is freed when its last result has been taken. Closing the
    generator cancels pending work. done: pairs that count as done. note: called with every source
    before its first byte.
    """
    pairs = [pair for step in plan.work.steps for pair in step]
    moved = 0
    count = len(done)
    spent = sum(map(weigh, done))
    total = count + len(pairs)
    cost_total = max(1, spent + sum(map(weigh, pairs)))

    def show() -> None:
        progress = Progress(
            done=count,
            total=total,
            cost_done=spent,
            cost_total=cost_total,
            moved=moved,
            to_move=plan.to_move,
        )
        runtime.show(progress)

    def report(size: int) -> None:
        nonlocal moved
        moved += size
        show()

    by = Transfer(runtime.say, report)

    def fetch(source: Source) -> Future[None]:
        note(source)
        return begin(partial(source.fetch, by))

    show()
    with threads(jobs) as pool:
        try:
            for pair, result in _run(plan, lambda pair: pool.submit(measure, pair), jobs, fetch):
                yield result
                count += 1
                spent += weigh(pair)
                show()
        finally:
            by.stop.set()


def _run(
    plan: Plan,
    submit: Callable[[MatrixPair], Future[Result]],
    jobs: int,
    fetch: Callable[[Source], Future[None]],
) -> Iterator[tuple[MatrixPair, Result]]:
    steps = plan.work.steps
    unfinished = [len(step) for step in steps]
    first_steps = sorted(visit.first for visit in plan.work.visits)
    coming = deque(plan.work.visits)
    resident: list[Visit] = []
    ready: deque[tuple[int, MatrixPair]] = deque()
    reached = 0  # the first step that is not finished
    entered = 0  # the first step that is not begun
    download: Future[None] | None = None
    computing: dict[Future[Result], tuple[int, MatrixPair]] = {}
    while True:
        while reached < len(steps) and not unfinished[reached]:
            reached += 1
        for visit in list(resident):
            if visit.last < reached:
                resident.remove(visit)
                source_of(plan.base, plan.tuned, visit.shard).free()
        if download is None and coming and coming[0].after <= reached:
            source = source_of(plan.base, plan.tuned, coming[0].shard)
            download = fetch(source)
        arrived = len(first_steps) - len(coming)
        while entered < len(steps) and arrived >= bisect_right(first_steps, entered):
            largest_first = sorted(steps[entered], key=lambda pair: (-cost(pair), pair.key))
            for pair in largest_first:
                ready.append((entered, pair))
            entered += 1
        while ready and len(computing) < 2 * jobs:
            step, pair = ready.popleft()
            _read_ahead(pair, plan.base, plan.tuned)
            computing[submit(pair)] = step, pair
        running: list[Future[Any]] = list(computing)
        if download is not None:
            running.append(download)
        if not running:
            return
        ended, _ = wait(running, return_when=FIRST_COMPLETED)
        if download is not None and download in ended:
            download.result()
            download = None
            resident.append(coming.popleft())
        for future in list(computing):
            if future in ended:
                step, pair = computing.pop(future)
                yield pair, future.result()
                unfinished[step] -= 1


def _read_ahead(pair: MatrixPair, base: Checkpoint, tuned: Checkpoint) -> None:
    """Let the system read a pair early, except what is read again for every pass or in a stack."""
    for side, operand in pair.operands.items():
        for info in operand.infos:
            if info.stored_size <= WHOLE:
                source = source_of(base, tuned, (side, info.shard))
                with contextlib.suppress(ShadowError):  # which the worker meets
                    file, stored = source.located(info)
                    file.read_ahead(stored.start, stored.end)


def outcome_of(
    pair: MatrixPair, base: Checkpoint, tuned: Checkpoint, means: Means, summed: Summed
) -> MatrixOutcome:
    """Measure a pair in one thread, so that numbers do not depend on the number of threads.

    summed: by key of a pair, the tensors whose checksums are computed with it.
    """
    started = time.perf_counter()
    base_verified = None
    if pair.base is not None:
        base_verified = _verified(pair.base, base)
    tuned_verified = _verified(pair.tuned, tuned)
    checksums: dict[str, dict[str, str]] = {}
    try:
        try:
            own_means = replace(means, space=own_workspace())
            measured = _measured(pair, base, tuned, own_means)
        except UndecodableError as error:
            measured = MatrixOutcome("skipped", reason="quantized", detail=error.message)
        for side, info in summed.get(pair.key, ()):
            source = source_of(base, tuned, (side, info.shard))
            checksum = source.checksum(info)
            if checksum is not None:  # one that was fetched
                checksums.setdefault(side, {})[info.name] = checksum
    finally:  # of bytes that were written to meanwhile, this is the fault whatever came of them
        for source in sources_of(pair, base, tuned):
            source.require_unchanged()
    return replace(
        measured,
        key=pair.key,
        verified=(base_verified, tuned_verified),
        seconds=time.perf_counter() - started,
        checksums=checksums,
    )


def _verified(operand: Operand, checkpoint: Checkpoint) -> bool | None:
    """The verification that all its shards share, or False if they differ."""
    answers = {checkpoint.sources[info.shard].verified for info in operand.infos}
    if len(answers) != 1:
        return False
    return answers.pop()


def _measured(pair: MatrixPair, base: Checkpoint, tuned: Checkpoint, means: Means) -> MatrixOutcome:
    if pair.base is None:
        return _without_base(pair, tuned, means)
    base_format, tuned_format = formats_of(pair)
    detail = pair.detail or None
    factor = pair.tuned.factor
    if factor is not None:
        tuned_format = "F64"  # nothing of the sum is rounded to what is stored
        detail = f"a low-rank update: its rank is at most {factor.rank}"
    formats = (base_format, tuned_format)
    base_matrix, tuned_matrix = views(pair, base, tuned)
    sides = Sides(base_matrix, tuned_matrix, working_dtype(*formats), means.space)
    if not pair.is_matrix:
        return _of_vector(sides, formats, detail)
    result = measure(sides, formats, means, pair.key)
    if result.broken:
        return _broken(result.broken)
    if not result.measurements:
        if factor is None and base_format != tuned_format:
            detail = f"equal values, stored as {base_format} and {tuned_format}"
        return MatrixOutcome("identical", detail=detail, delta_norm=0.0, base_norm=result.base_norm)
    norms = {}
    for measurement in result.measurements:
        norms[measurement.subject] = measurement.number("frobenius_norm")
    *_, delta = result.measurements
    return MatrixOutcome(
        "measured",
        detail=detail,
        delta_norm=norms["delta"] or 0.0,
        base_norm=result.base_norm,
        cast=_copied(sides, formats, delta, may_be=result.may_be_cast),
        measurements=result.measurements,
        zero=next((side for side in SIDES if norms[side] == 0), None),
    )


def _without_base(pair: MatrixPair, tuned: Checkpoint, means: Means) -> MatrixOutcome:
    """Measure a matrix that the tuned side alone has."""
    stored = pair.tuned.info.dtype
    matrix = _view(pair, pair.tuned, tuned)
    largest = largest_entry(matrix, working_dtype(stored), means.space)
    size = Extent(0.0, largest, 0.0)
    if not size.in_range:
        return _broken(size)
    measurement = measure_alone(matrix, stored, largest, means, pair.key)
    return MatrixOutcome(
        "measured", reason="only_in_tuned", detail=pair.detail, measurements=(measurement,)
    )


def _of_vector(sides: Sides, formats: tuple[str, str], detail: str | None) -> MatrixOutcome:
    """Measure a pair of vectors, which have only norms."""
    size = extent(sides)
    if not size.in_range:
        return _broken(size)
    unit = max(size.base, size.tuned) or 1.0  # so that squares are safe
    delta_norms = []
    base_norms = []
    for base, tuned in sides.blocks():
        scaled = base.double() / unit
        delta = tuned.double() / unit - scaled
        base_norms.append(float(torch.linalg.vector_norm(scaled)))
        delta_norms.append(float(torch.linalg.vector_norm(delta)))
    delta_norm = math.hypot(*delta_norms) * unit
    base_norm = math.hypot(*base_norms) * unit
    if delta_norm > 0 and base_norm == 0:
        detail = _FROM_ZERO
    is_zero = size.base > 0 and size.tuned == 0  # a base may have biases of 0
    is_cast: Cast | Literal["neither"] | None = None
    if size.delta:
        is_cast = cast(sides, formats) or "neither"
    return MatrixOutcome(
        "skipped",
        reason="not_a_matrix",
        detail=detail,
        delta_norm=delta_norm,
        base_norm=base_norm,
        zero="tuned" if is_zero else None,
        cast=is_cast,
    )


def _copied(
    sides: Sides, formats: tuple[str, str], delta: Measurement, *, may_be: bool
) -> Cast | Literal["neither"] | None:
    """The side that is the other in another format, or neither; None if the format's error is
    unknown. may_be: whether it may be a cast of floats.
    """
    if is_quantised(sides.tuned) == is_quantised(sides.base):
        if may_be:
            return cast(sides, formats) or "neither"
        return "neither"
    side: Cast = "tuned" if is_quantised(sides.tuned) else "base"
    is_copy = delta.values.get("format_copy")
    if is_copy is None:  # what its quantiser makes may be known
        if is_quantised(sides.tuned):
            noise = format_noise(sides.base, sides.tuned)
        else:
            assert is_quantised(sides.base), "one of the two is"
            noise = format_noise(sides.tuned, sides.base)
        is_copy = noise.is_copy(formats[SIDES.index(side)])
    if is_copy is None:
        return None
    if is_copy:
        return side
    return "neither"


def _broken(size: Extent) -> MatrixOutcome:
    """The outcome of a pair with an entry that is not finite, or sums that are not."""
    if size.finite:
        named = {"the base": size.base, "the tuned model": size.tuned}
        named["their difference"] = size.delta
        words = [f"up to {largest:.1e} in {name}" for name, largest in named.items() if largest]
        return MatrixOutcome("skipped", reason="out_of_range", detail=", ".join(words))
    sides = tuple(side for side in SIDES if not math.isfinite(getattr(size, side)))
    detail = f"in the {' and the '.join(sides)} tensor"
    return MatrixOutcome("skipped", reason="nonfinite", detail=detail, nonfinite=sides)


def own_workspace() -> Workspace:
    """The buffers of this thread."""
    if not hasattr(_LOCAL, "space"):
        _LOCAL.space = Workspace()
    space: Workspace = _LOCAL.space
    return space


def matrix_of(operand: Operand, checkpoint: Checkpoint) -> Cut:
    """A matrix of a checkpoint, of which parts are read on demand."""
    return checkpoint.tensor(operand.info).seen(operand.part.view)


def base_of(pair: MatrixPair) -> Operand:
    """The base's side of a pair that has one."""
    assert pair.base is not None, "aligned"
    return pair.base


def formats_of(pair: MatrixPair) -> tuple[str, str]:
    """The stored dtypes of both sides of a pair that has a base."""
    return base_of(pair).info.dtype, pair.tuned.info.dtype


def views(pair: MatrixPair, base: Checkpoint, tuned: Checkpoint) -> tuple[Matrix, Matrix]:
    """Both matrices of a pair that has a base, split into the same dimensions."""
    operand = base_of(pair)
    if pair.chosen is not None:
        base_rows, tuned_rows = pair.chosen
        base_chosen = Selected(matrix_of(operand, base), base_rows)
        return base_chosen, Selected(matrix_of(pair.tuned, tuned), tuned_rows)
    base_matrix = _view(pair, operand, base)
    factor = pair.tuned.factor
    if factor is None:
        matrix = _view(pair, pair.tuned, tuned)
        if base_matrix.ndim < matrix.ndim:
            base_matrix = _cut(base_matrix, matrix.shape)
        elif base_matrix.ndim > matrix.ndim:
            matrix = _cut(matrix, base_matrix.shape)
        return base_matrix, matrix
    left = tuned.tensor(pair.tuned.info).whole()
    right = tuned.tensor(factor.info).whole()
    if factor.transposed:
        left = left.T
        right = right.T
    left = pair.tuned.part.view(left)
    if base_matrix.ndim < left.ndim:
        *rows, _ = left.shape
        shape = torch.Size((*rows, pair.cols))
        base_matrix = _cut(base_matrix, shape)
    *rows, _ = base_matrix.shape
    left = left.reshape(*rows, factor.rank)
    return base_matrix, Updated(base_matrix, left, right, factor.scaling)


def _cut(matrix: Cut, shape: torch.Size) -> Cut:
    """View a (rows, cols) matrix with its rows in groups, like another one, without copying."""
    if isinstance(matrix, StoredTensor | DecodedTensor):
        return matrix.seen(lambda tensor: tensor.reshape(shape))
    return matrix.reshape(shape)


def _view(pair: MatrixPair, operand: Operand, checkpoint: Checkpoint) -> Cut:
    def seen(tensor: torch.Tensor) -> torch.Tensor:
        matrix = operand.part.view(tensor)
        if not pair.is_matrix:
            return matrix.reshape(pair.shape)
        if matrix.ndim == 2:
            return matrix[: pair.rows]
        return matrix

    return checkpoint.tensor(operand.info).seen(seen)
