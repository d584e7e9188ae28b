"""What the claim `quantised` needs measured: an original beside a quantised copy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shadow.audits.runtime import Runtime
from shadow.audits.scan import in_words, scan, sides_of
from shadow.audits.verify.lined import found_all, is_raw, line_up_all, opened_models, row_of
from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import MatrixPair
from shadow.claims.verify.quantised import Quantised, QuantisedCopy, quantised
from shadow.claims.verify.verification import Verification
from shadow.spectra.format_noise import format_noise, has_few_levels
from shadow.spectra.kept import kept_of
from shadow.spectra.lazy import Matrix, is_quantised
from shadow.targets.references import AnyReference

SAMPLE = 64, 512  # rows and columns by which a matrix is found again in another place
MOST_FAR = 64  # matrices that are no copies, of which the place of another is looked for
ALIKE = 0.9  # the cosine of two such samples

Samples = tuple[NDArray[np.float64], NDArray[np.float64]]
"""A corner of the original and of the copy."""


def verify_quantised(
    of: Mapping[str, str], references: Sequence[AnyReference], runtime: Runtime, scratch: Path
) -> Verification:
    """Whether a quantised copy is the original's, at the error of its formats and no more."""
    found = found_all(
        dict(zip(("ORIGINAL", "QUANTISED"), references, strict=True)), runtime, scratch
    )
    original, copy = opened_models(found, runtime, scratch)
    lined = line_up_all(original, copy, ("the original", "the copy"))
    scanned = sorted(
        scan(lined.pair, _compared, runtime, scratch / "scan", lined.unread),
        key=lambda item: (item[0].tensor, item[0].place),
    )
    rows = _with_places(scanned)
    answer, against, notes = quantised(QuantisedCopy(rows, lined.lone, lined.unread))
    return Verification("quantised", of, answer, against, (*lined.notes, *notes))


def _compared(
    pair: MatrixPair, original: Checkpoint, copy: Checkpoint
) -> tuple[Quantised, Samples | None]:
    assert pair.base is not None, "lined up"
    stored = pair.tuned.info.dtype
    row = Quantised(
        place=in_words(pair.place),
        module=f"{pair.place.component}.{pair.place.module}",
        tensor=pair.tuned.info.name,
        format=stored,
        entries=pair.rows * pair.cols,
        rows=pair.rows,
        columns=pair.cols,
    )
    if is_raw(pair):
        return replace(row, is_float=True, outside=row_of(pair, original, copy).changed), None
    sides = sides_of(pair, original, copy)
    first, second = sides.base, sides.tuned
    if is_quantised(second):
        row = replace(row, **vars(format_noise(first, second)))
    else:
        kept = kept_of(sides, None, stored)
        few = kept.off > 0 and pair.is_matrix and has_few_levels(first, second)
        row = replace(
            row, format=kept.grid, is_float=True, outside=kept.off, original=kept.full,
            copy=kept.copy, error=kept.error, inner=kept.full + kept.along, finite=kept.finite,
            has_few_levels=few,
        )  # fmt: skip
    if not (row.finite and pair.is_matrix and row.is_far):
        return row, None
    return row, (_corner(first), _corner(second))


def _corner(matrix: Matrix) -> NDArray[np.float64]:
    rows, cols = SAMPLE
    index = (slice(0, 1),) * (matrix.ndim - 2) + (slice(0, rows), slice(0, cols))
    return matrix[index].double().reshape(-1).numpy().copy()


def _with_places(scanned: Sequence[tuple[Quantised, Samples | None]]) -> list[Quantised]:
    """The rows; of what is no copy with the tensor of the original that it is instead, if any."""
    far = [(row, samples) for row, samples in scanned if samples is not None][:MOST_FAR]
    elsewhere: dict[str, str] = {}
    for row, (_, mine) in far:
        for other, (theirs, _) in far:
            if other is not row and (other.rows, other.columns) == (row.rows, row.columns):
                energy = float(mine @ mine) * float(theirs @ theirs)
                if float(mine @ theirs) > ALIKE * math.sqrt(energy):
                    elsewhere[row.place] = f"the original has these values in {other.place}"
    return [
        replace(
            row,
            remark=row.remark
            or elsewhere.get(row.place, "nothing like the original's, entry by entry"),
        )
        if row.is_far and row.finite and row.rows > 1
        else row
        for row, _ in scanned
    ]
