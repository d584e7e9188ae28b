"""A base and two models tuned from it -> where their deltas point, beside each other.

Nothing is fetched: checkpoints are those in folders, or in the Hub's cache at the commit that a
report names, and they must be what the report says. Of each matrix a few blocks are in memory, and
one Gram.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, MatrixPair, pair_checkpoints
from shadow.comparing.comparison import Comparison
from shadow.comparing.differences import MOST_SHARED, DeltaDirections, no_shared_base
from shadow.comparing.matching import ReportIdentity
from shadow.errors import ShadowError
from shadow.reports.metadata import CheckpointMetadata
from shadow.reports.provenance import all_that_are
from shadow.run.machine import default_jobs, machine_limits
from shadow.run.runtime import Access, Runtime
from shadow.run.sides import client_for, find_checkpoint, open_found, reference_of
from shadow.run.workers import cost, own_workspace, threads, views
from shadow.spectra.subspace import JointValues, sibling_values
from shadow.targets.references import ComponentBase, Reference

Show = Callable[[int, int], None]


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
    runtime = Runtime(access=Access(allow_pickle=allow_pickle, offline=True), say=say)
    contrasts = []
    for contrast in comparison.contrasts:
        two = reports[contrast.first], reports[contrast.second]
        title = f"{two[0].pair} and {two[1].pair}"
        try:
            if why := no_shared_base(contrast.relation, contrast.verified):
                raise ShadowError(why)
            found = _siblings(*two, runtime, jobs, partial(_titled, show, title))
            contrasts.append(replace(contrast, joint=found))
        except ShadowError as error:
            contrasts.append(replace(contrast, no_joint=error.message))
    return replace(comparison, contrasts=contrasts)


def _titled(show: Callable[[int, int, str], None], title: str, done: int, total: int) -> None:
    show(done, total, title)


def _siblings(
    first: ReportIdentity, second: ReportIdentity, runtime: Runtime, jobs: int | None, show: Show
) -> DeltaDirections:
    """The deltas of two reports against the base that they share."""
    sides = first.base, first.tuned, second.tuned
    references = [_reference(side) for side in sides]
    with tempfile.TemporaryDirectory() as folder, client_for(references):
        checkpoints = [
            _as_audited(side, reference, runtime, Path(folder) / str(number))
            for number, (side, reference) in enumerate(zip(sides, references, strict=True))
        ]
        base, *tuned = checkpoints
        old, new = (
            pair_checkpoints(base, model, _chosen(report))[0]
            for model, report in zip(tuned, (first, second), strict=True)
        )
        matched, left_out = _matched(old, new)
        if not matched:
            raise ShadowError("no matrix is in all three checkpoints")
        for source in {id(one): one for of in checkpoints for one in of.sources.values()}.values():
            source.fetch(say=runtime.say, report=lambda count: None, stop=Event())
        return directions(
            _measured(matched, partial(_of_siblings, checkpoints), jobs, show), left_out
        )


def _chosen(report: ReportIdentity) -> Filter:
    """What the audit was restricted to."""
    chosen = report.settings.get("chosen") or {}
    return Filter(
        all_that_are(str, chosen.get("components")),
        all_that_are(int, chosen.get("layers")),
        all_that_are(str, chosen.get("modules")),
    )


def _reference(side: CheckpointMetadata) -> Reference:
    """The checkpoint that a report names. Raises ShadowError for one that cannot be known again."""
    reference = reference_of(side)
    if isinstance(reference, ComponentBase):
        raise ShadowError("the base is another checkpoint for each component")
    return reference


def _as_audited(
    side: CheckpointMetadata, reference: Reference, runtime: Runtime, scratch: Path
) -> Checkpoint:
    """The checkpoint that a report names. Raises ShadowError where it has changed since."""
    found = find_checkpoint(reference, runtime, scratch)
    if side["fingerprint"] not in (None, found.fingerprint):
        raise ShadowError(f"{side['repo']} has changed since it was audited")
    return open_found(found, runtime, scratch)


Match = tuple[MatrixPair, MatrixPair]


def _matched(first: Sequence[MatrixPair], second: Sequence[MatrixPair]) -> tuple[list[Match], int]:
    """The matrices of one tensor of the base that both deltas have, and how many only one has."""
    mine, others = (
        {
            (pair.place, pair.base.info.name, pair.rows, pair.cols): pair
            for pair in pairs
            if pair.is_matrix and pair.base is not None
        }
        for pairs in (first, second)
    )
    matched = [(pair, others[key]) for key, pair in mine.items() if key in others]
    return matched, len(mine) + len(others) - 2 * len(matched)


def _measured(
    matched: Sequence[Match],
    measure: Callable[[Match], JointValues | None],
    jobs: int | None,
    show: Show,
) -> list[JointValues | None]:
    """The values of every match, the largest first; None where shapes differ or entries are not
    finite.
    """
    largest_first = sorted(matched, key=lambda match: -cost(match[0]))
    values: list[JointValues | None] = []
    with threads(jobs or default_jobs([match[0] for match in matched], machine_limits())) as pool:
        for value in pool.map(measure, largest_first):
            values.append(value)
            show(len(values), len(matched))
    return values


def _of_siblings(checkpoints: Sequence[Checkpoint], match: Match) -> JointValues | None:
    base, first, second = checkpoints
    old, new = match
    assert old.base is not None, "matched"
    assert new.base is not None, "matched"
    pairs = views(old, old.base, base, first), views(new, new.base, base, second)
    if len({tuple(matrix.shape) for pair in pairs for matrix in pair}) > 1:
        return None
    formats = old.base.info.dtype, old.tuned.info.dtype, new.tuned.info.dtype
    values = sibling_values(pairs, formats, own_workspace())
    return values if values.finite else None


def directions(measured: Sequence[JointValues | None], left_out: int) -> DeltaDirections:
    """All matrices that both models changed, as one: ratios of sums, and means over matrices."""
    changed = [value for value in measured if value and value.first and value.second]
    first, second, inner, spread, rounding = (
        math.fsum(getattr(value, name) for value in changed)
        for name in ("first", "second", "inner", "spread", "rounding")
    )
    whole = math.sqrt(first) * math.sqrt(second)
    known = [value for value in changed if value.directions]
    count = len(known)
    return DeltaDirections(
        matrices=len(changed),
        left_out=left_out + len(measured) - len(changed),
        cosine=inner / whole if whole else None,
        chance_cosine=math.sqrt(spread) / whole if whole else None,
        chance_cosine_master=min(MOST_SHARED, rounding / whole) if whole else None,
        directions=max((value.directions for value in known), default=0),
        overlap=math.fsum(value.overlap for value in known) / count if known else None,
        chance_overlap=math.fsum(value.chance_overlap for value in known) / count
        if known
        else None,
    )
