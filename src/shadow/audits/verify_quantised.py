"""What the claim `quantised` needs measured: an original beside a quantised copy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from shadow.audits.runtime import Runtime
from shadow.audits.scan import in_words, scan, sides_of
from shadow.audits.verify_lined import BYTES, found_all, line_up_all, opened_models, row_of
from shadow.audits.workers import own_workspace, views
from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import MatrixPair
from shadow.claims.verify.quantised import Quantised, QuantisedCopy, quantised
from shadow.claims.verify.verification import Verification
from shadow.dtypes import FLOATS
from shadow.extras import is_installed
from shadow.spectra.entries import compared
from shadow.spectra.format_noise import Agree, Floats, format_noise
from shadow.spectra.kept import kept_of
from shadow.spectra.lazy import Matrix
from shadow.spectra.lazy import Quantised as QuantisedMatrix
from shadow.spectra.merging import BLOCK
from shadow.spectra.merging import quantised as quantised_by
from shadow.spectra.reordering import reordered
from shadow.spectra.spectrum import Sides
from shadow.targets.references import AnyReference

SAMPLE = 64, 512  # rows and columns by which a matrix is found again in another place
MOST_FAR = 64  # matrices that are no copies, of which the place of another is looked for
ALIKE = 0.9  # the cosine of two such samples
# types of which the `gguf` package has a quantiser; ggml's makes the same bits
GGML = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")
NESTED = 0.02  # the relative error of scales that bitsandbytes quantises as well

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
        scan(lined.pair, _compared, runtime, scratch / "scan"),
        key=lambda item: (item[0].tensor, item[0].place),
    )
    rows = _with_places(scanned)
    unread = sorted(lined.unread, key=lambda one: one.tensor)
    answer, against, notes = quantised(QuantisedCopy(rows, lined.lone, unread))
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
    if pair.detail == BYTES:
        return replace(row, is_float=True, outside=row_of(pair, original, copy).changed), None
    first, second = views(pair, pair.base, original, copy)
    if isinstance(second, QuantisedMatrix) and stored not in FLOATS:
        noise = format_noise(first, second, agreement(stored))
        row = replace(row, **vars(noise))
    else:
        kept = kept_of(first, second, None, stored)
        sides = sides_of(pair, original, copy)
        sums = compared(sides, (pair.base.info.dtype, stored))
        row = replace(
            row, format=kept.grid, is_float=True, outside=kept.off, original=kept.full,
            copy=sums.tuned, error=kept.error, inner=sums.base + sums.along, finite=kept.finite,
        )  # fmt: skip
    if not (row.finite and pair.is_matrix and row.is_far):
        return row, None
    order = reordered(Sides(first, second, torch.float32, own_workspace()))
    if order is not None:
        return replace(
            row, remark=f"it looks like the original's with its {order} in another order"
        ), None
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
        replace(row, remark=row.remark or elsewhere.get(row.place, "nothing like the original's"))
        if row.is_far and row.finite and row.rows > 1
        else row
        for row, _ in scanned
    ]


def agreement(stored: str) -> Agree | None:
    """What counts the entries that the own quantiser of a format makes; None where it has none."""
    if stored in GGML and is_installed("gguf"):
        return partial(_as_ggml, stored)
    if stored in ("NF4", "FP4"):
        return partial(_as_bitsandbytes, stored)
    return None


def _as_ggml(stored: str, x: Floats, q: Floats) -> int | None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    kind = GGMLQuantizationType[stored]
    if x.shape[1] % GGML_QUANT_SIZES[kind][0]:
        return None
    with np.errstate(all="ignore"):
        # as one row, since the package takes 16 at a time
        again = dequantize(quantize(x.astype(np.float32).reshape(1, -1), kind), kind)
    return int(np.count_nonzero(again.reshape(x.shape) == q))


def _as_bitsandbytes(stored: str, x: Floats, q: Floats) -> int | None:
    """Entries of the same level, in blocks whose scale is that of the original: it may have been
    quantised itself.
    """
    again = quantised_by(torch.from_numpy(x), stored)
    if again is None:
        return None
    mine, theirs = (part.reshape(-1, BLOCK) for part in (again.numpy(), q))
    scales = [np.abs(part).max(axis=1, keepdims=True) for part in (mine, theirs)]
    near = np.abs(scales[1] - scales[0]) <= NESTED * scales[0]
    levels = [
        part / np.where(scale > 0, scale, 1)
        for part, scale in zip((mine, theirs), scales, strict=True)
    ]
    return int(np.count_nonzero(near & (np.abs(levels[0] - levels[1]) < 1e-3)))
