"""Three checkpoints that follow one another -> how their two deltas stand to each other.

Nothing is fetched: checkpoints are those in folders, or in the Hub's cache at the commit that a
report names, and they must be what the report says. Of each matrix a few blocks are in memory, and
one Gram.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event

import torch
from threadpoolctl import threadpool_limits

from shadow.audits.machine_limits import machine_limits
from shadow.audits.memory import default_jobs
from shadow.audits.plan import Access
from shadow.audits.runtime import Runtime
from shadow.audits.sides import client_for, find_checkpoint, open_found
from shadow.audits.workers import cost, own_workspace, views
from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, MatrixPair, pair_checkpoints
from shadow.comparing.lineage import Joint
from shadow.errors import ShadowError
from shadow.places.architecture import Place
from shadow.spectra.joint import JointValues, Pairs, joint_values
from shadow.summary.rows import CheckpointSide
from shadow.targets.references import Reference

Show = Callable[[int, int], None]


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
    runtime = Runtime(access=Access(allow_pickle=allow_pickle, offline=True), say=say)
    references = [_reference(side) for side in sides]
    with tempfile.TemporaryDirectory() as folder, client_for(references):
        opened = [
            _opened(side, reference, runtime, Path(folder) / str(number))
            for number, (side, reference) in enumerate(zip(sides, references, strict=True))
        ]
        first, middle, last = opened
        if middle.adapter:
            raise ShadowError(f"{middle.reference} is an adapter, so no delta starts from it")
        old, _ = pair_checkpoints(first, middle, chosen)
        new, _ = pair_checkpoints(middle, last, chosen)
        matched, left_out = _matched(old, new)
        if not matched:
            raise ShadowError("no matrix is in all three checkpoints")
        for source in {
            id(of_shard): of_shard
            for checkpoint in opened
            for of_shard in checkpoint.sources.values()
        }.values():
            source.fetch(say=say, report=lambda count: None, stop=Event())
        values = _measured(matched, (first, middle, last), jobs, show)
    known = [value for value in values if value is not None]
    return summed(known, left_out + len(values) - len(known))


def _reference(side: CheckpointSide) -> Reference:
    """The checkpoint that a report names. Raises ShadowError for one that cannot be known again."""
    repo = side["repo"]
    if "=" in repo.partition("/")[0]:
        raise ShadowError("the base is another checkpoint for each component")
    if side["commit"] is None and side["fingerprint"] is None:
        raise ShadowError(f"the report does not say which files of {repo} were read")
    if side["commit"] is None:
        return Reference(str(Path(repo).expanduser()), True)
    owner, _, rest = repo.partition("/")
    name, _, subfolder = rest.partition("/")
    return Reference(f"{owner}/{name}", False, side["commit"], subfolder or None)


def _opened(
    side: CheckpointSide, reference: Reference, runtime: Runtime, scratch: Path
) -> Checkpoint:
    found = find_checkpoint(reference, runtime, scratch)
    if side["fingerprint"] not in (None, found.fingerprint, found.former):
        raise ShadowError(f"{side['repo']} has changed since it was audited")
    return open_found(found, runtime, scratch)


Match = tuple[MatrixPair, MatrixPair]


def _matched(old: Sequence[MatrixPair], new: Sequence[MatrixPair]) -> tuple[list[Match], int]:
    """The matrices of a tensor of the middle that both deltas have, and how many only one has."""
    by_place: dict[Place, MatrixPair] = {
        pair.place: pair for pair in new if pair.is_matrix and pair.base is not None
    }
    matched = []
    mine = [pair for pair in old if pair.is_matrix and pair.base is not None]
    for pair in mine:
        other = by_place.get(pair.place)
        if other is None or other.base is None or other.base.info.name != pair.tuned.info.name:
            continue
        if (pair.rows, pair.cols) == (other.rows, other.cols):
            matched.append((pair, other))
    return matched, len(mine) + len(by_place) - 2 * len(matched)


def _measured(
    matched: Sequence[Match],
    checkpoints: tuple[Checkpoint, Checkpoint, Checkpoint],
    jobs: int | None,
    show: Show,
) -> list[JointValues | None]:
    """The values of every match, the largest first; None where its entries are not finite or cut in
    other ways.
    """
    workers = jobs or default_jobs([pair for pair, _ in matched], machine_limits())
    largest_first = sorted(matched, key=lambda match: -cost(match[0]))
    values: list[JointValues | None] = []
    measure = partial(_values, checkpoints)
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
    return values


def _values(
    checkpoints: tuple[Checkpoint, Checkpoint, Checkpoint], match: Match
) -> JointValues | None:
    first, middle, last = checkpoints
    old, new = match
    assert old.base is not None, "matched"
    assert new.base is not None, "matched"
    pairs: Pairs = views(old, old.base, first, middle), views(new, new.base, middle, last)
    shapes = {tuple(matrix.shape) for pair in pairs for matrix in pair}
    if len(shapes) > 1:
        return None
    formats = old.base.info.dtype, old.tuned.info.dtype, new.tuned.info.dtype
    values = joint_values(pairs, formats, own_workspace())
    return values if values.finite else None


def summed(values: Sequence[JointValues], left_out: int) -> Joint:
    """All matrices as one vector: sums, and the ratios of sums."""
    first, second, inner, spread = (
        math.fsum(getattr(matrix, name) for matrix in values)
        for name in ("first", "second", "inner", "spread")
    )
    whole = math.sqrt(first) * math.sqrt(second)
    within = [matrix.inside for matrix in values if matrix.inside.directions]
    energy = math.fsum(inside.energy for inside in within)
    shared = [matrix.shared for matrix in values]
    rounded = math.sqrt(math.fsum(of.first for of in shared)) * math.sqrt(
        math.fsum(of.second for of in shared)
    )
    shares = {
        name: math.fsum(getattr(inside, name) for inside in within) / energy if energy else None
        for name in ("left", "right", "chance_left", "chance_right")
    }
    return Joint(
        matrices=len(values),
        left_out=left_out,
        cosine=inner / whole if whole else None,
        chance_cosine=math.sqrt(spread) / whole if whole else None,
        chance_cosine_master=math.fsum(of.inner for of in shared) / rounded if rounded else None,
        directions=max((inside.directions for inside in within), default=0),
        inside_left=shares["left"],
        inside_right=shares["right"],
        chance_inside_left=shares["chance_left"],
        chance_inside_right=shares["chance_right"],
    )
