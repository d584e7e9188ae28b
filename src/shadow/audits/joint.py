"""Three checkpoints, of which one is the base of another or of both others -> how their two deltas
stand to each other; the stages of one run -> the inner products of its steps.

Nothing is fetched: checkpoints are those in folders, or in the Hub's cache at the commit that a
report names, and they must be what the report says. Of each matrix a few blocks are in memory, and
one Gram.
"""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

import torch
from threadpoolctl import threadpool_limits

from shadow.audits.machine_limits import machine_limits
from shadow.audits.memory import default_jobs
from shadow.audits.plan import Access
from shadow.audits.runtime import Runtime
from shadow.audits.sides import client_for, find_checkpoint, open_found, reference_of
from shadow.audits.workers import cost, own_workspace, views
from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, MatrixPair, Operand, pair_checkpoints
from shadow.comparing.comparison import Comparison
from shadow.comparing.directions import DeltaDirections, ModuleDirections, no_shared_base
from shadow.comparing.lineage import Joint, Linearity
from shadow.comparing.matching import ReportIdentity
from shadow.errors import ShadowError
from shadow.places.architecture import Place
from shadow.reports.provenance import all_that_are
from shadow.spectra.joint import JointValues, Pairs, joint_values, sibling_values
from shadow.spectra.lazy import Matrix
from shadow.spectra.line import StepProducts, line_share
from shadow.spectra.spectrum import Workspace
from shadow.spectra.stages import step_products
from shadow.summary.grid import order_of
from shadow.summary.rows import CheckpointSide, checkpoint_side
from shadow.targets.references import ComponentBase, Reference

Show = Callable[[int, int], None]
Matched = TypeVar("Matched", bound=tuple[MatrixPair, ...])
Values = TypeVar("Values")


def hold_against(
    sides: Sequence[CheckpointSide],
    *,
    jobs: int | None = None,
    allow_pickle: bool = False,
    chosen: Filter = Filter(),  # noqa: B008 - frozen
    say: Callable[[str], None] = lambda text: None,
    show: Show = lambda done, total: None,
) -> Joint:
    """The deltas of first, middle and last checkpoint, as reports name them, against each other.

    Raises ShadowError with the reason where one of them is not at hand, or nothing lines up.
    """
    with _opened(sides, allow_pickle=allow_pickle, say=say) as (first, middle, last):
        if middle.adapter:
            raise ShadowError(f"{middle.reference} is an adapter, so no delta starts from it")
        old, _ = pair_checkpoints(first, middle, chosen)
        new, _ = pair_checkpoints(middle, last, chosen)
        matched, left_out = _matched(old, new, lambda pair: pair.tuned)
        if not matched:
            raise ShadowError("no matrix is in all three checkpoints")
        _fetch((first, middle, last), say)
        chain = partial(_of_chain, (first, middle, last))
        values = [value for _, value in _measured(matched, chain, jobs, show)]
    known = [value for value in values if value is not None]
    return summed(known, left_out + len(values) - len(known))


def steps_of_run(
    sides: Sequence[CheckpointSide],
    *,
    jobs: int | None = None,
    allow_pickle: bool = False,
    chosen: Filter = Filter(),  # noqa: B008 - frozen
    say: Callable[[str], None] = lambda text: None,
    show: Show = lambda done, total: None,
) -> tuple[list[tuple[Place, StepProducts]], int]:
    """The stages of one run, as reports name them, three or more -> the inner products of its steps
    by matrix, and how many matrices only some stages have.

    Raises ShadowError with the reason where a stage is not at hand, or nothing lines up.
    """
    with _opened(sides, allow_pickle=allow_pickle, say=say) as stages:
        for stage in stages[:-1]:
            if stage.adapter:
                raise ShadowError(f"{stage.reference} is an adapter, so no delta starts from it")
        steps = [pair_checkpoints(*two, chosen)[0] for two in pairwise(stages)]
        runs = _through(steps)
        if not runs:
            raise ShadowError("no matrix is in all stages")
        _fetch(stages, say)
        measured = _measured(runs, partial(_of_run, stages), jobs, show)
    known = [(run[0].place, value) for run, value in measured if value is not None]
    if not known:
        raise ShadowError("no matrix is finite and cut in one way in all stages")
    every = {pair.place for pairs in steps for pair in pairs if pair.is_matrix and pair.base}
    return known, len(every) - len(known)


def linearity(values: Sequence[StepProducts], stages: int, left_out: int) -> Linearity:
    """All entries of these matrices together, one or more."""
    summed = StepProducts.summed(values)
    return Linearity(
        stages=stages,
        matrices=len(values),
        left_out=left_out,
        r2=line_share(summed.inner),
        r2_by_chance=line_share(summed.by_chance),
    )


def with_directions(
    comparison: Comparison,
    *,
    jobs: int | None = None,
    allow_pickle: bool = False,
    say: Callable[[str], None] = lambda text: None,
    show: Callable[[int, int, str], None] = lambda done, total, title: None,
) -> Comparison:
    """The comparison with what the deltas of every two reports of one base say of each other, or
    why nothing.
    """
    reports = {report.label: report for report in comparison.reports}
    contrasts = []
    for contrast in comparison.contrasts:
        first, second = reports[contrast.first], reports[contrast.second]
        title = f"{first.pair} and {second.pair}"
        try:
            if why := no_shared_base(contrast.relation, contrast.verified):
                raise ShadowError(why)
            found = _siblings(
                (
                    checkpoint_side(first.base),
                    checkpoint_side(first.tuned),
                    checkpoint_side(second.tuned),
                ),
                (_chosen(first), _chosen(second)),
                jobs=jobs,
                allow_pickle=allow_pickle,
                say=say,
                show=_titled(show, title),
            )
            contrasts.append(replace(contrast, joint=found))
        except ShadowError as error:
            contrasts.append(replace(contrast, no_joint=error.message))
    return replace(comparison, contrasts=contrasts)


def _titled(show: Callable[[int, int, str], None], title: str) -> Show:
    return lambda done, total: show(done, total, title)


def _chosen(report: ReportIdentity) -> Filter:
    """What the audit was restricted to."""
    chosen = report.settings.get("chosen") or {}
    return Filter(
        all_that_are(str, chosen.get("components")),
        all_that_are(int, chosen.get("layers")),
        all_that_are(str, chosen.get("modules")),
    )


def _siblings(
    sides: Sequence[CheckpointSide],
    chosen: tuple[Filter, Filter],
    *,
    jobs: int | None,
    allow_pickle: bool,
    say: Callable[[str], None],
    show: Show,
) -> DeltaDirections:
    """The deltas of two models, the last two of sides, against their base, the first."""
    with _opened(sides, allow_pickle=allow_pickle, say=say) as (base, first, second):
        old, _ = pair_checkpoints(base, first, chosen[0])
        new, _ = pair_checkpoints(base, second, chosen[1])
        matched, left_out = _matched(old, new, lambda pair: pair.base)
        if not matched:
            raise ShadowError("no matrix is in all three checkpoints")
        _fetch((base, first, second), say)
        siblings = partial(_of_siblings, (base, first, second))
        measured = _measured(matched, siblings, jobs, show)
    return directions(
        [(old.place, value) for (old, _), value in measured if value is not None],
        left_out + sum(value is None for _, value in measured),
    )


@contextmanager
def _opened(
    sides: Sequence[CheckpointSide], *, allow_pickle: bool, say: Callable[[str], None]
) -> Iterator[list[Checkpoint]]:
    """Checkpoints as reports name them, of what lies on this machine."""
    runtime = Runtime(access=Access(allow_pickle=allow_pickle, offline=True), say=say)
    references = [_reference(side) for side in sides]
    with tempfile.TemporaryDirectory() as folder, client_for(references):
        yield [
            _as_audited(side, reference, runtime, Path(folder) / str(number))
            for number, (side, reference) in enumerate(zip(sides, references, strict=True))
        ]


def _fetch(opened: Sequence[Checkpoint], say: Callable[[str], None]) -> None:
    sources = {
        id(of_shard): of_shard for checkpoint in opened for of_shard in checkpoint.sources.values()
    }
    for source in sources.values():
        source.fetch(say=say, report=lambda count: None, stop=Event())


def _reference(side: CheckpointSide) -> Reference:
    """The checkpoint that a report names. Raises ShadowError for one that cannot be known again."""
    reference = reference_of(side)
    if isinstance(reference, ComponentBase):
        raise ShadowError("the base is another checkpoint for each component")
    return reference


def _as_audited(
    side: CheckpointSide, reference: Reference, runtime: Runtime, scratch: Path
) -> Checkpoint:
    found = find_checkpoint(reference, runtime, scratch)
    if side["fingerprint"] not in (None, found.fingerprint, found.former):
        raise ShadowError(f"{side['repo']} has changed since it was audited")
    return open_found(found, runtime, scratch)


Match = tuple[MatrixPair, MatrixPair]


def _matched(
    old: Sequence[MatrixPair],
    new: Sequence[MatrixPair],
    shared: Callable[[MatrixPair], Operand | None],
) -> tuple[list[Match], int]:
    """The matrices of a tensor of the middle that both deltas have, and how many only one has.

    shared: which operand of the old delta is the middle, of which the new one starts.
    """
    by_place: dict[Place, MatrixPair] = {
        pair.place: pair for pair in new if pair.is_matrix and pair.base is not None
    }
    matched = []
    mine = [pair for pair in old if pair.is_matrix and pair.base is not None]
    for pair in mine:
        other = by_place.get(pair.place)
        middle = shared(pair)
        if other is None or other.base is None or middle is None:
            continue
        if other.base.info.name != middle.info.name:
            continue
        if (pair.rows, pair.cols) == (other.rows, other.cols):
            matched.append((pair, other))
    return matched, len(mine) + len(by_place) - 2 * len(matched)


def _through(steps: Sequence[Sequence[MatrixPair]]) -> list[tuple[MatrixPair, ...]]:
    """The matrices that all steps have, each as its pairs in order."""
    runs: list[tuple[MatrixPair, ...]] = [(pair,) for pair in steps[0]]
    for pairs in steps[1:]:
        matched, _ = _matched([run[-1] for run in runs], pairs, lambda pair: pair.tuned)
        after = {old.place: new for old, new in matched}
        runs = [(*run, after[run[0].place]) for run in runs if run[0].place in after]
    return runs


def _measured(
    matched: Sequence[Matched],
    measure: Callable[[Matched], Values | None],
    jobs: int | None,
    show: Show,
) -> list[tuple[Matched, Values | None]]:
    """The values of every match, the largest first; None where its entries are not finite or cut in
    other ways.
    """
    workers = jobs or default_jobs([match[0] for match in matched], machine_limits())
    largest_first = sorted(matched, key=lambda match: -cost(match[0]))
    values: list[Values | None] = []
    with (
        threadpool_limits(limits=1, user_api="blas"),
        ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        try:
            for value in pool.map(measure, largest_first):
                values.append(value)
                show(len(values), len(matched))
        finally:
            pool.shutdown(cancel_futures=True)
    return list(zip(largest_first, values, strict=True))


Three = tuple[Checkpoint, Checkpoint, Checkpoint]


def _of_chain(checkpoints: Three, match: Match) -> JointValues | None:
    first, middle, last = checkpoints
    old, new = match
    assert old.base is not None, "matched"
    assert new.base is not None, "matched"
    pairs: Pairs = views(old, old.base, first, middle), views(new, new.base, middle, last)
    formats = old.base.info.dtype, old.tuned.info.dtype, new.tuned.info.dtype
    return _of(joint_values, pairs, formats)


def _of_siblings(checkpoints: Three, match: Match) -> JointValues | None:
    base, first, second = checkpoints
    old, new = match
    assert old.base is not None, "matched"
    assert new.base is not None, "matched"
    of_base, of_first = views(old, old.base, base, first)
    pairs: Pairs = (of_first, of_base), views(new, new.base, base, second)
    formats = old.tuned.info.dtype, old.base.info.dtype, new.tuned.info.dtype
    return _of(sibling_values, pairs, formats)


def _of_run(stages: Sequence[Checkpoint], run: tuple[MatrixPair, ...]) -> StepProducts | None:
    matrices: list[Matrix] = []
    for number, pair in enumerate(run):
        assert pair.base is not None, "matched"
        if number and pair.base != run[number - 1].tuned:
            return None
        before, after = views(pair, pair.base, stages[number], stages[number + 1])
        matrices += [after] if number else [before, after]
    if len({tuple(matrix.shape) for matrix in matrices}) > 1:
        return None
    products = step_products(matrices, own_workspace())
    return products if products.finite else None


def _of(
    measure: Callable[[Pairs, tuple[str, str, str], Workspace], JointValues],
    pairs: Pairs,
    formats: tuple[str, str, str],
) -> JointValues | None:
    if len({tuple(matrix.shape) for pair in pairs for matrix in pair}) > 1:
        return None
    values = measure(pairs, formats, own_workspace())
    return values if values.finite else None


def summed(values: Sequence[JointValues], left_out: int) -> Joint:
    """All matrices as one vector: sums, and the ratios of sums."""
    cosines = _cosines(values)
    within = [matrix.inside for matrix in values if matrix.inside.directions]
    energy = math.fsum(inside.energy for inside in within)
    shares = {
        name: math.fsum(getattr(inside, name) for inside in within) / energy if energy else None
        for name in ("left", "right", "chance_left", "chance_right")
    }
    return Joint(
        matrices=len(values),
        left_out=left_out,
        **cosines,
        directions=max((inside.directions for inside in within), default=0),
        inside_left=shares["left"],
        inside_right=shares["right"],
        chance_inside_left=shares["chance_left"],
        chance_inside_right=shares["chance_right"],
    )


def directions(measured: Sequence[tuple[Place, JointValues]], left_out: int) -> DeltaDirections:
    """All matrices that both models changed, and those of each module."""
    changed = [(place, value) for place, value in measured if value.first and value.second]
    by_module: defaultdict[tuple[str, str], list[JointValues]] = defaultdict(list)
    for place, value in changed:
        by_module[place.component, place.module].append(value)
    return DeltaDirections(
        **_siblings_summed([value for _, value in changed]),
        left_out=left_out + len(measured) - len(changed),
        modules=[
            ModuleDirections(component=component, module=module, **_siblings_summed(values))
            for (component, module), values in sorted(
                by_module.items(), key=lambda row: order_of(*row[0])
            )
        ],
    )


def _siblings_summed(values: Sequence[JointValues]) -> dict[str, Any]:
    """The fields of Directions: ratios of sums, and means over matrices."""
    known = [matrix.overlap for matrix in values if matrix.overlap.directions]
    means = {
        name: math.fsum(getattr(overlap, name) for overlap in known) / len(known) if known else None
        for name in ("left", "right", "chance_left", "chance_right")
    }
    return {
        "matrices": len(values),
        **_cosines(values),
        "directions": max((overlap.directions for overlap in known), default=0),
        "overlap_left": means["left"],
        "overlap_right": means["right"],
        "chance_overlap_left": means["chance_left"],
        "chance_overlap_right": means["chance_right"],
    }


def _cosines(values: Sequence[JointValues]) -> dict[str, float | None]:
    """The cosine of two deltas over all these matrices as one vector, and what chance gives."""
    first, second, inner, spread = (
        math.fsum(getattr(matrix, name) for matrix in values)
        for name in ("first", "second", "inner", "spread")
    )
    whole = math.sqrt(first) * math.sqrt(second)
    shared = [matrix.shared for matrix in values]
    rounded = math.sqrt(math.fsum(of.first for of in shared)) * math.sqrt(
        math.fsum(of.second for of in shared)
    )
    return {
        "cosine": inner / whole if whole else None,
        "chance_cosine": math.sqrt(spread) / whole if whole else None,
        "chance_cosine_master": math.fsum(of.inner for of in shared) / rounded if rounded else None,
    }
