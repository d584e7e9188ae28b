"""Passes over the entries of several checkpoints, which read a tensor once where they can be made
together.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import MatrixPair
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.stored_tensors import sharing
from shadow.errors import ShadowError
from shadow.reports.provenance import SIDES
from shadow.run.plan import Plan, infos_of
from shadow.run.runtime import Progress, Runtime
from shadow.run.workers import jobs_of, threads
from shadow.spectra.measurement import Method

Result = TypeVar("Result")


@dataclass(frozen=True)
class Pass:
    """One pass over the pairs of a plan."""

    plan: Plan
    measure: Callable[[MatrixPair], Any]
    runtime: Runtime
    rows: list[Any] = field(default_factory=list)
    """Of every pair, in any order; empty until it is made with other passes."""


Gathering = Generator[Pass, None, Result]
"""Yields each pass before its rows are needed: what others have not made by then, it makes itself.
"""
Group = list[tuple[Pass, MatrixPair]]


def gather_together(gatherings: Sequence[Gathering[Result]]) -> list[Result]:
    """Run each to its end. Passes for which they wait at one time are made together."""
    results: dict[int, Result] = {}
    running = dict(enumerate(gatherings))
    while running:
        passes = []
        for number, gathering in [*running.items()]:
            try:
                passes.append(next(gathering))
            except StopIteration as end:
                results[number] = end.value
                del running[number]
        _make_together(passes)
    return [results[number] for number in range(len(gatherings))]


def gather_alone(gathering: Gathering[Result]) -> Result:
    """Run one to its end."""
    return gather_together([gathering])[0]


def _make_together(passes: Sequence[Pass]) -> None:
    """Make passes over files of this machine, tensor by tensor. An error ends it: each pass then
    meets by itself what is wrong with its own files.
    """
    # shards of the Hub come and go by the plan of one pass
    if len(passes) < 2 or any(each.plan.work.visits for each in passes):
        return
    groups = _groups(passes)
    runtime = passes[0].runtime
    pairs = [pair for group in groups for _, pair in group]
    sizes = [sum(pair.rows * pair.cols for _, pair in group) for group in groups]
    total = sum(sizes)
    spent = 0
    try:
        with threads(jobs_of(runtime, pairs, Method("norms"))) as pool:
            for done, rows in enumerate(pool.map(_rows_of, groups)):
                runtime.show(Progress(done, len(groups), spent, total, stage="values"))
                spent += sizes[done]
                for (each, _), row in zip(groups[done], rows, strict=True):
                    each.rows.append(row)
    except ShadowError:
        for each in passes:
            each.rows.clear()


def _rows_of(group: Group) -> list[Any]:
    with sharing():
        return [each.measure(pair) for each, pair in group]


def _groups(passes: Sequence[Pass]) -> list[Group]:
    """Put pairs together that share a tensor, in the order of the passes."""
    firsts: dict[object, object] = {}  # by tensor, the first of its group
    groups: dict[object, Group] = {}
    for each in passes:
        for pair in each.plan.work.steps[0]:
            tensors = [*_tensors_of(pair, each.plan)]
            first = next((firsts[key] for key in tensors if key in firsts), tensors[0])
            for key in tensors:
                firsts.setdefault(key, first)
            groups.setdefault(first, []).append((each, pair))
    return [*groups.values()]


def _tensors_of(pair: MatrixPair, plan: Plan) -> Iterator[object]:
    for side, checkpoint in zip(SIDES, (plan.base, plan.tuned), strict=True):
        for info in infos_of(side, pair):
            yield content_of(checkpoint, info)


def content_of(checkpoint: Checkpoint, info: TensorInfo) -> object:
    """A key that changes when the bytes of a tensor may have; of one outside open files always."""
    held = checkpoint.sources[info.shard].held
    return held.identity if held else object(), info.start, info.end
