"""What the claim `mixture` needs measured: a model beside those that it may be mixed of.

All shards are at hand at once, as the same tensor of every model is read tile by tile together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from shadow.checkpoints.pairing import MatrixPair
from shadow.checks.answer import Answer
from shadow.checks.mixture import Mixture, mixture
from shadow.checks.old import combined
from shadow.dtypes import FLOATS
from shadow.errors import ShadowError
from shadow.run.aligned import Lined, is_raw, line_up_all, row_of
from shadow.run.machine_limits import machine_limits
from shadow.run.memory import default_jobs
from shadow.run.runtime import Progress, Runtime
from shadow.run.scan import fetch_all, in_words, require_unchanged
from shadow.run.scanned import Apart
from shadow.run.sides import found_all, opened_models
from shadow.run.workers import views
from shadow.spectra.lazy import Matrix
from shadow.spectra.mixture import Mixed, Read, fit, products, read
from shadow.targets.references import AnyReference
from shadow.templates import said

Line = Sequence[tuple[MatrixPair, Lined]]
"""One tensor of the tuned model beside that of every other."""


def verify_mixture(
    of: Mapping[str, str],
    checkpoints: Sequence[AnyReference],
    base: AnyReference | None,
    runtime: Runtime,
    scratch: Path,
) -> Answer:
    """Whether the first of the checkpoints is a linear merge of the others."""
    named = dict(zip(of, [*checkpoints, *([base] if base else [])], strict=True))
    opened = opened_models(found_all(named, runtime, scratch), runtime, scratch)
    lined = [
        line_up_all(one, opened[0], (name, "TUNED"))
        for name, one in zip([*of][1:], opened[1:], strict=True)
    ]
    lone = list(dict.fromkeys(one for other in lined for one in other.lone))
    unread = list(dict.fromkeys(one for other in lined for one in other.unread))
    fetch_all(opened, runtime)
    lines = _lines(lined, unread)
    with _in_threads([line[0][0] for line in lines], runtime) as each:
        found = [*each(partial(_mixed, has_base=base is not None), lines)]
        tensors = [one for one in found if one.sums.finite]
        if not tensors:
            raise ShadowError(f"{of['TUNED']}: no tensor is finite in all of these models")
        what = "some entries are not finite"
        lone += [Apart(one.name, "tuned", said(what)) for one in found if not one.sums.finite]
        fitted = fit(tensors, each)
    require_unchanged(opened)
    formats = sorted({one.stored for one in tensors})
    measured = Mixture(len(tensors), formats, base is not None, fitted, lone=lone, unread=unread)
    answer, against = mixture(measured)
    notes = tuple(dict.fromkeys(note for other in lined for note in other.notes))
    return combined(answer, against, notes)


def _lines(lined: Sequence[Lined], unread: list[Apart]) -> list[Line]:
    """The tensors of floats that all models have, in one shape; unread gets others that differ."""
    by_key = [{pair.key: pair for pair in other.pair.pairs} for other in lined]
    lines: list[Line] = []
    for key, pair in by_key[0].items():
        if not pair.rows * pair.cols or not all(key in others for others in by_key):
            continue
        line = [(others[key], other) for others, other in zip(by_key, lined, strict=True)]
        name = pair.tuned.info.name
        if any(is_raw(one) for one, _ in line):
            if any(row_of(one, of.pair.base, of.pair.tuned).changed for one, of in line):
                what = "whole numbers that are not equal in all models"
                unread.append(Apart(name, "tuned", said(what)))
        elif pair.tuned.info.packing or pair.tuned.info.dtype not in FLOATS:
            unread.append(Apart(name, "tuned", said("a merge is stored as floats")))
        elif not any(one.detail for one, _ in line):  # rows that not all have are alone
            lines.append(line)
    return lines


@contextmanager
def _in_threads(pairs: Sequence[MatrixPair], runtime: Runtime) -> Iterator[Callable[..., Any]]:
    """`map` over tensors in threads, with its progress."""
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


def _mixed(line: Line, *, has_base: bool) -> Mixed:
    """A tensor with its sums of products."""
    place, info = line[0][0].place, line[0][0].tuned.info
    part = line[0][0].tuned.part
    name = f"{info.name} ({in_words(place)})" if part.rows or part.experts else info.name
    parts = partial(_parts, line, has_base=has_base)
    return Mixed(name, place.layer, info.dtype, has_base, parts, products(parts(), info.dtype))


def _parts(line: Line, *, has_base: bool) -> Iterator[Read]:
    """The tiles of a tensor of every model, of one shape."""
    sides: list[Matrix] = []
    for pair, one in line:
        assert pair.base is not None, "lined up"
        side, tuned = views(pair, pair.base, one.pair.base, one.pair.tuned)
        sides.append(side)
    return read(tuned, sides.pop() if has_base else None, sides)
