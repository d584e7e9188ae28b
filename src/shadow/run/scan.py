"""One pass over the entries of two checkpoints that line up -> a row for each pair of tensors.

Weights come as they do to an audit: in the same order, through the same sources, with the same
workers. No spectrum is solved. What is made of a pair is for its caller to say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from threading import Event
from typing import TypeVar

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import MatrixPair
from shadow.checkpoints.sources import Fetching
from shadow.errors import UndecodableError
from shadow.places.architecture import Place
from shadow.run.machine_limits import machine_limits
from shadow.run.memory import default_jobs
from shadow.run.plan import make_plan, require_disk_at_once
from shadow.run.runtime import AlignedPair, Progress, Runtime
from shadow.run.scanned import Apart, Scanned, in_order
from shadow.run.workers import in_workers, own_workspace, sources_of, views
from shadow.spectra.entries import Binades, compared
from shadow.spectra.method import Method
from shadow.spectra.spectrum import Sides, working_dtype
from shadow.templates import said
from shadow.text import and_list

Row = TypeVar("Row")
Measure = Callable[[MatrixPair, Checkpoint, Checkpoint], Row | Apart]
"""What is made of a pair, whose sources are at hand; or why it is not compared."""


def scan(
    lined: AlignedPair,
    measure: Measure[Row],
    runtime: Runtime,
    scratch: Path,
    unread: list[Apart] | None = None,
) -> list[Row]:
    """What `measure` makes of every pair, in the order of their keys.

    unread: gets what is no row, in order of names at the end: what `measure` says of a tensor that
    is not compared, and tensors that cannot be decoded. Without it these raise UndecodableError.
    Raises ShadowError where weights cannot be had, or are written to meanwhile.
    """
    plan = make_plan(
        lined.base,
        lined.tuned,
        lined.pairs,
        runtime.access,
        skipped=0,
        filtered=True,
        folder=scratch,
        scratch=scratch,
    )
    plan.require_disk()
    total, moved, done = len(lined.pairs), 0, 0

    def tell() -> None:
        runtime.show(
            Progress(
                done=done,
                total=total,
                cost_done=done,
                cost_total=max(1, total),
                moved=moved,
                to_move=plan.to_move,
            )
        )

    def report(count: int) -> None:
        nonlocal moved
        moved += count
        tell()

    def measured(pair: MatrixPair) -> tuple[str, Row | Apart]:
        try:
            return pair.key, measure(pair, plan.base, plan.tuned)
        except UndecodableError as fault:
            if unread is None:
                raise
            return pair.key, _undecoded(pair, plan.base, fault)
        finally:  # whatever came of bytes that were written meanwhile, this is what is told
            for source in sources_of(pair, plan.base, plan.tuned):
                source.require_unchanged()

    machine = runtime.limits or machine_limits()
    jobs = runtime.jobs or default_jobs(lined.pairs, machine, Method("norms"))
    fetching = Fetching(runtime.say, report)
    rows = in_workers(plan.base, plan.tuned, plan.work, measured, jobs, fetching)
    found: list[tuple[str, Row]] = []
    with contextlib.closing(rows):
        for key, row in rows:
            done += 1
            tell()
            if not isinstance(row, Apart):
                found.append((key, row))
            elif unread is not None:
                unread.append(row)
    if unread is not None:
        unread[:] = sorted(set(unread), key=in_order)
    return [row for _, row in sorted(found, key=itemgetter(0))]


def _undecoded(pair: MatrixPair, base: Checkpoint, fault: UndecodableError) -> Apart:
    side, info = "tuned", pair.tuned.info
    if pair.base is not None:
        try:
            base.tensor(pair.base.info)
        except UndecodableError:
            side, info = "base", pair.base.info
    return Apart(info.name, side, said(fault.message.removeprefix(f"{info.name} ({info.dtype}): ")))


def sides_of(pair: MatrixPair, base: Checkpoint, tuned: Checkpoint) -> Sides:
    """Both sides of a pair that has a base, read in the dtype that their formats need."""
    assert pair.base is not None, "lined up"
    first, second = views(pair, pair.base, base, tuned)
    dtype = working_dtype(pair.base.info.dtype, pair.tuned.info.dtype)
    return Sides(first, second, dtype, own_workspace())


def scanned(
    pair: MatrixPair, base: Checkpoint, tuned: Checkpoint, binades: Binades | None = None
) -> Scanned:
    """The row of a pair that has a base. binades: gets its entries as well."""
    assert pair.base is not None, "lined up"
    formats = pair.base.info.dtype, pair.tuned.info.dtype
    found = compared(sides_of(pair, base, tuned), formats, binades)
    return Scanned(
        place=in_words(pair.place),
        base=pair.base.info.name,
        tuned=pair.tuned.info.name,
        formats=formats,
        entries=found.entries,
        changed=found.changed,
        base_energy=found.base,
        tuned_energy=found.tuned,
        delta_energy=found.delta,
        inner=found.base + found.along,
        finite=found.finite,
        rounded=found.rounded,
    )


def in_words(place: Place) -> str:
    """`language.layers.0.attn.q`, as rules write places; an expert follows its module."""
    parts = [place.component]
    if place.layer is not None:
        parts.append(f"layers.{place.layer}")
    parts.append(place.module)
    if place.expert is not None:
        parts.append(str(place.expert))
    return ".".join(parts)


def fetch_all(checkpoints: Sequence[Checkpoint], runtime: Runtime) -> Runtime:
    """Fetch every shard of checkpoints before a scan -> the runtime with what --max-disk leaves.

    Raises ShadowError where the disk does not suffice.
    """
    sources = [source for one in checkpoints for source in one.sources.values()]
    names = and_list([one.reference for one in checkpoints])
    need = require_disk_at_once(f"the weights of {names}", sources, runtime.access)
    for source in sources:
        source.fetch(say=runtime.say, report=lambda count: None, stop=Event())
    most = runtime.access.max_disk
    left = None if most is None else max(0, most - need)
    return replace(runtime, access=replace(runtime.access, max_disk=left))


def require_unchanged(checkpoints: Sequence[Checkpoint]) -> None:
    """Raises ShadowError where weights that were read outside a scan were written to meanwhile."""
    for checkpoint in checkpoints:
        for source in checkpoint.sources.values():
            source.require_unchanged()
