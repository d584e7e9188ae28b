"""Spectra for drawing: a few singular values of each, evenly spaced on a logarithmic axis.

A curve of 3,584 values on log axes needs about a hundred of them; the rest stay in spectra.parquet.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from shadow.reports.report import Report

LEADING = 12  # singular values that are always kept: what stands out is among the first
BAND = (0.1, 0.9)  # quantiles over matrices that share a place, such as the experts of a layer
POINTS = 400_000  # of all curves of a page, about 2.4 MB
MOST, FEWEST = 112, 32  # of one curve

Key = tuple[str, int | None, str]  # component, layer, module
Sigma = NDArray[np.float32]
Listed = list[float | int | None]


def points_for(curves: int) -> int:
    """Points of each of so many curves: enough to look smooth, fewer on a page of many families."""
    return min(MOST, max(FEWEST, POINTS // max(1, curves)))


@lru_cache(maxsize=256)
def kept_ranks(count: int, points: int) -> NDArray[np.int64]:
    """0-based ranks to keep of so many: the first ones, the last, and at most points in all.

    Evenly on a log axis, and evenly in the logarithm of the distance from the end, where spectra of
    square matrices fall off a cliff. Ascending, without repeats; all of them where count <= points.
    """
    if count <= points:
        return np.arange(count)
    leading = np.arange(min(LEADING, points - 1))
    end = (points - len(leading)) // 4
    from_start = (
        np.geomspace(len(leading) + 1, count, points - len(leading) - end).round().astype(np.int64)
        - 1
    )
    from_end = count - np.geomspace(1, max(2, count // 4), end).round().astype(np.int64)
    return np.unique(np.concatenate([leading, from_start, from_end]))


def short(value: float | None) -> float | int | None:
    """A number of four significant digits, as many as a drawing shows; null if not finite."""
    if value is None or isinstance(value, int):
        return value
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.4g}")
    if math.isinf(rounded):  # the largest number there is
        return value
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def shortened(values: ArrayLike) -> Listed:
    return [short(number) for number in np.asarray(values, dtype=np.float64).tolist()]


def logarithmic(values: ArrayLike) -> Listed:
    """Values for a log axis, which has no 0: an unresolved singular value becomes null."""
    return [value or None for value in shortened(values)]


@dataclass
class _Stack:
    """The thinned spectra of the matrices of one place, by subject; size is the whole length."""

    size: int
    rows: dict[str, list[Sigma]] = field(default_factory=dict)

    def drawn(self) -> dict[str, object]:
        """What is drawn of a cell, by name: of several matrices the median at every rank.

        Lists of singular values, descending, None where they are not resolved; of several deltas
        the quantiles of BAND too.
        """
        lines = {
            subject: rows[0] if len(rows) == 1 else np.median(np.stack(rows), axis=0)
            for subject, rows in self.rows.items()
        }
        deltas = self.rows.get("delta", [])
        if len(deltas) > 1:
            lines["low"], lines["high"] = np.quantile(np.stack(deltas), BAND, axis=0)
        drawn = {name: logarithmic(values) for name, values in lines.items()}
        return {"size": self.size, "matrices": max(map(len, self.rows.values())), **drawn}


def thinned_spectra(report: Report, cells: Mapping[Key, int], points: int) -> dict[str, object]:
    """The curves of a report by the number of the cell, of at most so many points each, and by size
    the ranks of their singular values.

    Raises ShadowError for a file that cannot be read or belongs to another audit.
    """
    stacks: dict[int, _Stack] = {}
    for key, subject, sigma in _rows(report):
        if (cell := cells.get(key)) is None or not len(sigma):
            continue
        stack = stacks.setdefault(cell, _Stack(len(sigma)))
        if len(sigma) == stack.size:  # what shares a place has one shape, but for oddities
            stack.rows.setdefault(subject, []).append(sigma[kept_ranks(len(sigma), points)])
    sizes = sorted({stack.size for stack in stacks.values()})
    return {
        "ranks": {str(size): (kept_ranks(size, points) + 1).tolist() for size in sizes},
        "curves": {str(cell): stack.drawn() for cell, stack in sorted(stacks.items())},
    }


def _rows(report: Report) -> Iterator[tuple[Key, str, Sigma]]:
    """(place, subject, singular values) of each row of spectra.parquet."""
    columns = ("component", "layer", "module", "subject", "sigma")
    for batch in report.spectrum_batches(columns):
        places = [batch.column(name).to_pylist() for name in columns[:4]]
        sigmas = batch.column("sigma")
        # as a tensor, since `to_numpy` imports pandas, which takes half a second
        numbers = pa.record_batch([sigmas.values], names=["sigma"]).to_tensor(null_to_nan=True)
        values = numbers.to_numpy()[:, 0]
        bounds = itertools.pairwise(sigmas.offsets.to_pylist())
        for *key, subject, (start, end) in zip(*places, bounds, strict=True):
            yield (key[0], key[1], key[2]), subject, values[start:end]
