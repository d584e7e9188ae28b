"""A base and two models tuned from it -> how far their deltas point the same way.

Nothing is fetched: checkpoints are those in folders, or in the Hub's cache at the commit that a
report names, and must match the report. A few blocks of each matrix are in memory, and one Gram
matrix.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, MatrixPair, pair_checkpoints
from shadow.comparing.comparison import Comparison
from shadow.comparing.differences import MOST_SHARED, DeltaDirections, no_shared_base
from shadow.comparing.matching import ReportIdentity
from shadow.errors import ShadowError
from shadow.reports.provenance import chosen_in
from shadow.run.runtime import Access, Runtime, ignore
from shadow.run.scan import fetch_all
from shadow.run.sides import client_for, find_audited, open_found, reference_of
from shadow.run.workers import cost, jobs_of, own_workspace, threads, views
from shadow.spectra.subspace import JointValues, sibling_values

Show = Callable[[int, int, str], None]


def with_directions(
    comparison: Comparison,
    *,
    jobs: int | None = None,
    allow_pickle: bool = False,
    say: Callable[[str], None] = ignore,
    show: Show = lambda done, total, title: None,
) -> Comparison:
    """Add the directions of the deltas of every two reports of one base, or why there are none."""
    reports = {report.label: report for report in comparison.reports}
    runtime = Runtime(jobs, Access(allow_pickle=allow_pickle, offline=True), say=say)
    contrasts = []
    for contrast in comparison.contrasts:
        try:
            if why := no_shared_base(contrast.relation, contrast.verified):
                raise ShadowError(why)
            found = _siblings(reports[contrast.first], reports[contrast.second], runtime, show)
            contrasts.append(replace(contrast, joint=found))
        except ShadowError as error:
            contrasts.append(replace(contrast, no_joint=error.message))
    return replace(comparison, contrasts=contrasts)


def _siblings(
    first: ReportIdentity, second: ReportIdentity, runtime: Runtime, show: Show
) -> DeltaDirections:
    """Compare the deltas of two reports of a shared base."""
    sides = first.base, first.tuned, second.tuned
    references = [part for side in sides for _, part in reference_of(side).parts]
    if len(references) > len(sides):
        raise ShadowError("the base is another checkpoint for each component")
    with tempfile.TemporaryDirectory() as folder, client_for(references):
        checkpoints: list[Checkpoint] = []
        for side, reference in zip(sides, references, strict=True):
            scratch = Path(folder) / str(len(checkpoints))
            found = find_audited(side, reference, runtime, scratch)
            checkpoints.append(open_found(found, runtime, scratch))
        base, *tuned = checkpoints
        old, new = (
            _matrices(base, model, report)
            for model, report in zip(tuned, (first, second), strict=True)
        )
        matched = [(pair, new[key]) for key, pair in old.items() if key in new]
        if not matched:
            raise ShadowError("no matrix is in all three checkpoints")
        fetch_all(checkpoints, runtime)

        def measure(match: tuple[MatrixPair, MatrixPair]) -> JointValues | None:
            """Measure a matrix; None if shapes differ or entries are not finite."""
            one, other = match
            assert one.base is not None, "matched"
            assert other.base is not None, "matched"
            pairs = views(one, one.base, base, tuned[0]), views(other, other.base, base, tuned[1])
            if len({tuple(matrix.shape) for pair in pairs for matrix in pair}) > 1:
                return None
            formats = one.base.info.dtype, one.tuned.info.dtype, other.tuned.info.dtype
            values = sibling_values(pairs, formats, own_workspace())
            return values if values.finite else None

        title = f"{first.pair} and {second.pair}"
        values: list[JointValues | None] = []
        with threads(jobs_of(runtime, [pair for pair, _ in matched])) as pool:
            for value in pool.map(measure, sorted(matched, key=lambda match: -cost(match[0]))):
                values.append(value)
                show(len(values), len(matched), title)
        return directions(values, len(old) + len(new) - 2 * len(matched))


def _matrices(
    base: Checkpoint, tuned: Checkpoint, report: ReportIdentity
) -> dict[object, MatrixPair]:
    """Return the matrices of a report by place, tensor of the base and shape."""
    chosen = chosen_in(report.settings)
    names = [one.name for one in fields(Filter)]
    of_report = Filter(**{name: chosen[name] for name in names if name in chosen})
    return {
        (pair.place, pair.base.info.name, pair.rows, pair.cols): pair
        for pair in pair_checkpoints(base, tuned, of_report)[0]
        if pair.is_matrix and pair.base is not None
    }


def directions(measured: Sequence[JointValues | None], left_out: int) -> DeltaDirections:
    """Return figures over all matrices that both models changed: ratios of sums, and means."""
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
