"""A model beside several others: the same tensor of all of them, read tile by tile together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from shadow.checkpoints.pairing import MatrixPair
from shadow.dtypes import FLOATS
from shadow.run.aligned import Lined, is_raw, row_of
from shadow.run.machine_limits import machine_limits
from shadow.run.memory import default_jobs
from shadow.run.runtime import Progress, Runtime
from shadow.run.scan import in_words
from shadow.run.scanned import Apart
from shadow.run.workers import views
from shadow.spectra.lazy import Matrix
from shadow.spectra.mixture import Mixed, Read, products, read
from shadow.templates import Reason

Line = Sequence[tuple[MatrixPair, Lined]]
"""One tensor of the tuned model beside that of every other."""


def lines_of(lined: Sequence[Lined]) -> tuple[list[Line], list[Apart]]:
    """The tensors of floats that all models have, in one shape; and what is not read."""
    by_key = [{pair.key: pair for pair in other.pair.pairs} for other in lined]
    lines: list[Line] = []
    unread = [one for other in lined for one in other.unread]
    for key, pair in by_key[0].items():
        if not pair.rows * pair.cols or not all(key in others for others in by_key):
            continue
        line = [(others[key], other) for others, other in zip(by_key, lined, strict=True)]
        name = pair.tuned.info.name
        if any(is_raw(one) for one, _ in line):
            if any(row_of(one, of.pair.base, of.pair.tuned).changed for one, of in line):
                unread.append(Apart(name, "tuned", Reason("other_numbers")))
        elif pair.tuned.info.packing or pair.tuned.info.dtype not in FLOATS:
            unread.append(Apart(name, "tuned", Reason("no_floats")))
        elif not any(one.detail for one, _ in line):  # rows that not all have are alone
            lines.append(line)
    return lines, [*dict.fromkeys(unread)]


@contextmanager
def in_threads(lines: Sequence[Line], runtime: Runtime) -> Iterator[Callable[..., Any]]:
    """`map` over tensors in threads, with its progress."""
    pairs = [line[0][0] for line in lines]
    jobs = runtime.jobs or default_jobs(pairs, runtime.limits or machine_limits())

    def each(do: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        total = len(items)
        for done, one in enumerate(pool.map(do, items), 1):
            runtime.show(Progress(done=done, total=total, cost_done=done, cost_total=total))
            yield one

    with (
        threadpool_limits(limits=1, user_api="blas"),
        ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        yield each


def mixed(line: Line, *, has_base: bool) -> Mixed:
    """A tensor with its sums of products. has_base: whether the last of the others is the base."""

    def parts() -> Iterator[Read]:
        sides: list[Matrix] = []
        for pair, one in line:
            assert pair.base is not None, "lined up"
            side, tuned = views(pair, pair.base, one.pair.base, one.pair.tuned)
            sides.append(side)
        return read(tuned, sides.pop() if has_base else None, sides)

    place, info, part = line[0][0].place, line[0][0].tuned.info, line[0][0].tuned.part
    name = f"{info.name} ({in_words(place)})" if part.rows or part.experts else info.name
    return Mixed(name, place.layer, info.dtype, has_base, parts, products(parts(), info.dtype))
