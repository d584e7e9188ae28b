"""What the claim `stored` needs measured: a full model beside a copy, and beside its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, MatrixPair, pair_checkpoints
from shadow.checks.answer import Answer
from shadow.checks.old import combined
from shadow.checks.stored import Copied, Copy, stored
from shadow.dtypes import FLOATS
from shadow.places.architecture import Place
from shadow.run.aligned import is_raw, line_up_all, plain, row_of
from shadow.run.runtime import Runtime
from shadow.run.scan import fetch_all, in_words, require_unchanged, scan, sides_of
from shadow.run.scanned import Apart
from shadow.run.sides import found_all, opened_models
from shadow.run.workers import views
from shadow.spectra.delta import working_dtype
from shadow.spectra.format_noise import format_noise
from shadow.spectra.kept import kept_of
from shadow.spectra.lazy import is_quantised
from shadow.targets.references import AnyReference
from shadow.templates import said

Bases = Mapping[Place, MatrixPair]


def verify_stored(
    of: Mapping[str, str],
    references: Sequence[AnyReference],
    base: AnyReference | None,
    runtime: Runtime,
    scratch: Path,
) -> Answer:
    """Whether a copy is the full model rounded, and what it kept of the update from a base."""
    named = dict(zip(("FULL", "STORED"), references, strict=True))
    if base is not None:
        named["BASE"] = base
    found = found_all(named, runtime, scratch)
    full, copy, *more = opened_models(found, runtime, scratch)
    lined = line_up_all(full, copy, ("the full model", "the copy"))
    bases: Bases = {}
    before = plain(more[0]) if more else None
    unread = list(lined.unread)
    if before is not None:
        runtime = fetch_all([before], runtime)
        pairs, _ = pair_checkpoints(before, lined.pair.base, Filter(), may_differ=True)
        bases = {pair.place: pair for pair in pairs if pair.base is not None}
    rows: list[Copied] = []
    for row in scan(
        lined.pair,
        lambda pair, a, b: _copied(pair, a, b, before, bases),
        runtime,
        scratch / "scan",
        unread,
    ):
        if before is not None and row.update is None and row.finite and row.full:
            what = "the base has no such tensor"
            unread.append(Apart(row.tensor, "base", said(what)))
        if row.is_predicted or (row.finite and not row.error):
            rows.append(row)
        else:
            what = f"what {row.grid} makes of an original is not known"
            unread.append(Apart(row.tensor, "tuned", said(what)))
    require_unchanged(more)
    rows.sort(key=lambda row: (row.tensor, row.place))
    unread.sort(key=lambda one: one.tensor)
    answer, against, notes = stored(Copy(rows, lined.lone, unread, before is not None))
    return combined(answer, against, (*lined.notes, *notes))


def _copied(
    pair: MatrixPair,
    full: Checkpoint,
    copy: Checkpoint,
    before: Checkpoint | None,
    bases: Bases,
) -> Copied:
    assert pair.base is not None, "lined up"
    place = in_words(pair.place)
    module = f"{pair.place.component}.{pair.place.module}"
    if is_raw(pair):
        row = row_of(pair, full, copy)
        return Copied(
            place,
            module,
            row.tuned,
            row.formats[1],
            row.entries,
            row.changed,
            0.0,
            0.0,
            finite=True,
        )
    sides = sides_of(pair, full, copy)
    first, second = sides.base, sides.tuned
    third = None
    mine = bases.get(pair.place)
    size = pair.rows, pair.cols
    if before and mine and mine.base and (mine.rows, mine.cols) == size:
        third, _ = views(replace(mine, tuned=pair.base), mine.base, before, full)
        if third.shape != second.shape:
            third = None
        elif working_dtype(mine.base.info.dtype) == torch.float64:
            sides = replace(sides, dtype=torch.float64)
    grid = pair.tuned.info.dtype
    found = kept_of(sides, third, grid if grid in FLOATS else "F32")
    is_predicted = True
    if is_quantised(second):
        noise = format_noise(first, second)
        is_copy = noise.is_copy(grid)
        is_predicted = is_copy is not None
        off = max(1, noise.outside) if is_copy is False else 0
        # what rounding leaves unchanged is known of floats alone
        grid = f"{grid} with scales" if grid in FLOATS else grid
        found = replace(found, grid=grid, off=off, unchanged=None)
    return Copied(
        place,
        module,
        pair.tuned.info.name,
        found.grid,
        found.entries,
        found.off,
        found.full,
        found.error,
        finite=found.finite,
        is_predicted=is_predicted,
        update=found.update,
        stored_update=found.stored_update,
        inner=found.inner,
        unchanged=found.unchanged,
        unchanged_expected=found.unchanged_expected,
    )
