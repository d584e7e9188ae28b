"""What the claim `quantised` needs measured: an original beside a quantised copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import MatrixPair
from shadow.checks.answer import Answer
from shadow.checks.old import combined
from shadow.checks.quantised import Quantised, quantised
from shadow.run.aligned import is_raw, line_up_all, row_of
from shadow.run.runtime import Runtime
from shadow.run.scan import in_words, scan, sides_of
from shadow.run.sides import found_all, opened_models
from shadow.spectra.format_noise import format_noise
from shadow.spectra.kept import kept_of
from shadow.spectra.lazy import is_quantised
from shadow.spectra.repeats import has_few_levels
from shadow.targets.references import AnyReference


def verify_quantised(
    of: Mapping[str, str], references: Sequence[AnyReference], runtime: Runtime, scratch: Path
) -> Answer:
    """Whether a quantised copy is the original's, at the error of its formats and no more."""
    found = found_all(
        dict(zip(("ORIGINAL", "QUANTISED"), references, strict=True)), runtime, scratch
    )
    original, copy = opened_models(found, runtime, scratch)
    lined = line_up_all(original, copy, ("the original", "the copy"))
    rows = sorted(
        scan(lined.pair, _compared, runtime, scratch / "scan", lined.unread),
        key=lambda row: (row.tensor, row.place),
    )
    answer, against = quantised(rows, lined.lone, lined.unread)
    return combined(answer, against, lined.notes)


def _compared(pair: MatrixPair, original: Checkpoint, copy: Checkpoint) -> Quantised:
    assert pair.base is not None, "lined up"
    stored = pair.tuned.info.dtype
    row = Quantised(
        place=in_words(pair.place),
        tensor=pair.tuned.info.name,
        format=stored,
        entries=pair.rows * pair.cols,
    )
    if is_raw(pair):
        return replace(row, is_float=True, outside=row_of(pair, original, copy).changed)
    sides = sides_of(pair, original, copy)
    first, second = sides.base, sides.tuned
    if is_quantised(second):
        return replace(row, **vars(format_noise(first, second)), has_few_levels=is_quantised(first))
    kept = kept_of(sides, None, stored)
    few = kept.off > 0 and pair.is_matrix and has_few_levels(first, second)
    return replace(
        row, format=kept.grid, is_float=True, outside=kept.off, original=kept.full, copy=kept.copy,
        error=kept.error, inner=kept.full + kept.along, finite=kept.finite, has_few_levels=few,
    )  # fmt: skip
