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
from functools import partial
from pathlib import Path

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, MatrixPair, pair_checkpoints
from shadow.comparing.codes import NoDirections
from shadow.comparing.comparison import Comparison
from shadow.comparing.contrast import Contrast
from shadow.comparing.differences import MOST_SHARED, DeltaDirections, no_shared_base
from shadow.comparing.matching import ReportIdentity
from shadow.errors import ShadowError
from shadow.reports.provenance import chosen_in
from shadow.run.runtime import Access, Runtime, ignore
from shadow.run.scan import fetch_all
from shadow.run.sides import client_for, find_audited, open_found, reference_of
from shadow.run.workers import cost, jobs_of, own_workspace, threads, views
from shadow.spectra.subspace import JointValues, sibling_values
from shadow.targets.references import Reference
from shadow.templates import Reason

Show = Callable[[int, int, str], None]
Matched = tuple[MatrixPair, MatrixPair]


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

    def with_joint(contrast: Contrast) -> Contrast:
        if code := no_shared_base(contrast.relation, contrast.verified):
            return replace(contrast, no_directions=Reason(code))
        try:
            joint = _siblings(reports[contrast.first], reports[contrast.second], runtime, show)
        except ShadowError as error:
            reason = Reason(NoDirections.CHECKPOINT_NOT_READ, {"fault": error.message})
            return replace(contrast, no_directions=reason)
        if isinstance(joint, NoDirections):
            return replace(contrast, no_directions=Reason(joint))
        return replace(contrast, joint=joint)

    contrasts = [with_joint(contrast) for contrast in comparison.contrasts]
    return replace(comparison, contrasts=contrasts)


def _siblings(
    first: ReportIdentity, second: ReportIdentity, runtime: Runtime, show: Show
) -> DeltaDirections | NoDirections:
    """Compare the deltas of two reports of a shared base."""
    if first.has_moved or second.has_moved:
        return NoDirections.PARTS_MOVED
    sides = (first.base, first.tuned, second.tuned)
    references: list[Reference] = []
    for side in sides:
        references += [part for _, part in reference_of(side).parts]
    if len(references) > len(sides):
        return NoDirections.BASE_OF_COMPONENTS
    with tempfile.TemporaryDirectory() as folder, client_for(references):
        checkpoints: list[Checkpoint] = []
        for side, reference in zip(sides, references, strict=True):
            scratch = Path(folder) / str(len(checkpoints))
            audited = find_audited(side, reference, runtime, scratch)
            checkpoints.append(open_found(audited, runtime, scratch))
        base, tuned, other_tuned = checkpoints
        of_first = _matrices(base, tuned, first)
        of_second = _matrices(base, other_tuned, second)
        shared = [key for key in of_first if key in of_second]
        matched = [(of_first[key], of_second[key]) for key in shared]
        if not matched:
            return NoDirections.NO_SHARED_MATRIX
        fetch_all(checkpoints, runtime)
        title = f"{first.pair} and {second.pair}"
        measured: list[JointValues | None] = []
        workers = jobs_of(runtime, [pair for pair, _ in matched])
        largest_first = sorted(matched, key=lambda pairs: -cost(pairs[0]))
        with threads(workers) as pool:
            for values in pool.map(partial(_measure, checkpoints), largest_first):
                measured.append(values)
                show(len(measured), len(matched), title)
        left_out = len(of_first) + len(of_second) - 2 * len(matched)
        return directions(measured, left_out)


def _measure(checkpoints: Sequence[Checkpoint], matched: Matched) -> JointValues | None:
    """Measure a matrix of a base and two models; None if shapes differ or entries are not
    finite.
    """
    base = checkpoints[0]
    sides = []
    formats = []
    shapes = set()
    for pair, tuned in zip(matched, checkpoints[1:], strict=True):
        assert pair.base is not None, "_matrices has no other"
        matrices = views(pair, pair.base, base, tuned)
        sides.append(matrices)
        formats += [pair.base.info.dtype, pair.tuned.info.dtype]
        shapes |= {tuple(matrix.shape) for matrix in matrices}
    if len(shapes) > 1:
        return None
    dtypes = (formats[0], formats[1], formats[3])
    values = sibling_values((sides[0], sides[1]), dtypes, own_workspace())
    return values if values.finite else None


def _matrices(
    base: Checkpoint, tuned: Checkpoint, report: ReportIdentity
) -> dict[object, MatrixPair]:
    """The matrices of a report by place, tensor of the base and shape."""
    chosen = chosen_in(report.settings)
    names = [field.name for field in fields(Filter)]
    of_report = Filter(**{name: chosen[name] for name in names if name in chosen})
    pairs, _ = pair_checkpoints(base, tuned, of_report)
    return {
        (pair.place, pair.base.info.name, pair.rows, pair.cols): pair
        for pair in pairs
        if pair.is_matrix and pair.base is not None
    }


def directions(measured: Sequence[JointValues | None], left_out: int) -> DeltaDirections:
    """Figures over all matrices that both models changed: ratios of sums, and means."""
    changed = [values for values in measured if values and values.first and values.second]
    first = _sum(changed, "first")
    second = _sum(changed, "second")
    whole = math.sqrt(first) * math.sqrt(second)
    known = [values for values in changed if values.directions]
    joint = DeltaDirections(
        matrices=len(changed),
        left_out=left_out + len(measured) - len(changed),
        cosine=None,
        chance_cosine=None,
        chance_cosine_master=None,
        directions=max((values.directions for values in known), default=0),
        overlap=None,
        chance_overlap=None,
    )
    if whole:
        rounding = _sum(changed, "rounding") / whole
        joint = replace(
            joint,
            cosine=_sum(changed, "inner") / whole,
            chance_cosine=math.sqrt(_sum(changed, "spread")) / whole,
            chance_cosine_master=min(MOST_SHARED, rounding),
        )
    if known:
        joint = replace(
            joint,
            overlap=_sum(known, "overlap") / len(known),
            chance_overlap=_sum(known, "chance_overlap") / len(known),
        )
    return joint


def _sum(measured: Sequence[JointValues], name: str) -> float:
    return math.fsum(getattr(values, name) for values in measured)
