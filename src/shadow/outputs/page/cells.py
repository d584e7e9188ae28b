"""A report -> the cells of its heat map and what is drawn from them, as JSON.

A cell is a component, a layer and a module. It holds one matrix, or several: the experts of a
layer. What is drawn of a cell is the median over its matrices, and the range where there are
several. Arrays rather than data frames: a page of 300 small reports has two million numbers in
tables of a few rows, where a frame costs more than its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from shadow.outputs.page.curves import Key, shortened
from shadow.reports.columns import DELTA, SPECTRAL
from shadow.summary.columns import Columns
from shadow.summary.grid import order_of
from shadow.summary.layer_medians import above_short_side
from shadow.text import visible

PLACE = ("component", "layer", "module")
SUBJECTS = ("delta", "base", "tuned")
FIRST = (
    "relative_norm",
    "concentration",
    "participation_ratio",
    "effective_rank_shift",
    "stable_rank",
)
# what a column of a delta would be with random signs: a column, or a number
UNDER_NULL: dict[str, str | float] = {
    "concentration": 0.0,
    "participation_ratio": "null_participation_ratio",
    "spectral_norm": "null_edge",
    "spikes": 0.0,
    "spike_energy": 0.0,
}
# columns that read as per cent
SHARES = (
    "relative_norm", "relative_norm_unrounded", "zero_share",
    "zero_share_expected", "spike_energy", "energy_share", "rows_changed", "kept",
    "top1_energy", "top4_energy", "top16_energy", "top20_energy", "top64_energy",
)  # fmt: skip
DRAWN = tuple(column for column in DELTA if column.type in ("int", "float"))  # not words

Numbers = NDArray[np.float64]


@cache
def columns_of(subject: str) -> tuple[str, ...]:
    """The columns that a row of a subject has, headline ones first."""
    columns = SPECTRAL
    if subject == "delta":
        columns = (*DRAWN, *SPECTRAL)
    names = [column.name for column in columns]
    return tuple(dict.fromkeys([*(name for name in FIRST if name in names), *names]))


def metric_texts() -> dict[str, dict[str, object]]:
    """What `explain` says of every column that can be drawn, and how to draw it: what it
    would be with random signs, and whether it is shown as per cent.
    """
    return {
        column.name: {
            "text": column.text,
            "formula": column.formula,
            "null": column.null,
            "under_null": UNDER_NULL.get(column.name),
            "share": column.name in SHARES,
        }
        for column in (*DRAWN, *SPECTRAL)
    }


@dataclass(frozen=True)
class Cell:
    """One place that has a matrix."""

    place: Key
    state: str
    """measured; alone (no base, so no delta); identical or skipped, from the tuned tensors."""
    reason: str | None
    """Why it was skipped, in words of tensors.parquet; None where it was not."""


def places(rows: Columns) -> list[Key]:
    """The place of each row; a word that only a forged report lacks is empty."""
    return [
        (component or "", None if math.isnan(layer) else int(layer), module or "")
        for component, layer, module in rows.each(*PLACE)
    ]


def cells_of(matrices: Columns, tensors: Columns) -> list[Cell]:
    """One for each place that has a matrix, in the order of reports, layers ascending."""
    with_delta = set(places(matrices.where(matrices["subject"] == "delta")))
    cells = {
        place: Cell(place, "measured" if place in with_delta else "alone", None)
        for place in places(matrices)
    }
    others = tensors.each("side", "status", "reason")
    for place, (side, status, reason) in zip(places(tensors), others, strict=True):
        unmeasured = side == "tuned" and status in ("identical", "skipped")
        if (
            unmeasured
            and place[2] not in ("norm", "bias")
            and reason not in ("not_a_matrix", "not_float")
        ):
            cells.setdefault(place, Cell(place, status, reason))

    def order(cell: Cell) -> tuple[tuple[int, int, str, str], int]:
        component, layer, module = cell.place
        return order_of(component, module), -1 if layer is None else layer

    return sorted(cells.values(), key=order)


def drawn_cells(matrices: Columns, cells: Sequence[Cell]) -> dict[str, object]:
    """Places, states, shapes and figures of some cells: a value for each of them in each list.

    Of several matrices in one cell a figure is their median, the shift that of both medians.
    """
    number = {cell.place: index for index, cell in enumerate(cells)}
    all_places = np.array([number.get(place, -1) for place in places(matrices)], dtype=np.intp)
    drawn = np.flatnonzero(all_places >= 0)
    matrices, place = matrices.where(drawn), all_places[drawn]
    first = np.full(len(cells), -1)  # row of each cell, -1 where it has none
    first[place[::-1]] = np.arange(len(place))[::-1]
    tensors = [*map(_visible, matrices["tensor"]), None]
    sizes = [
        np.bincount(place[matrices["subject"] == subject], minlength=len(cells))
        for subject in SUBJECTS
    ]
    medians = {subject: _medians(matrices, place, subject, len(cells)) for subject in SUBJECTS}
    base, tuned = medians["base"], medians["tuned"]
    spectral = [column.name for column in SPECTRAL if {column.name} <= base.keys() & tuned.keys()]
    return {
        "component": [visible(cell.place[0]) for cell in cells],
        "module": [visible(cell.place[2]) for cell in cells],
        "layer": [cell.place[1] for cell in cells],
        "state": [cell.state for cell in cells],
        "reason": [_visible(cell.reason) for cell in cells],
        "matrices": np.max(sizes, axis=0).tolist(),
        "tensor": [tensors[row] for row in first.tolist()],  # of its first matrix
        "rows": shortened(np.append(matrices["rows"], np.nan)[first]),
        "cols": shortened(np.append(matrices["cols"], np.nan)[first]),
        "values": {
            subject: {name: shortened(values) for name, values in columns.items()}
            for subject, columns in medians.items()
        },
        "shift": {name: shortened(tuned[name] - base[name]) for name in spectral},
    }


def _visible(text: str | None) -> str | None:
    return None if text is None else visible(text)


def _medians(
    matrices: Columns, place: NDArray[np.intp], subject: str, cells: int
) -> dict[str, Numbers]:
    """By column, the median of each cell's rows of a subject; without columns that lack values."""
    names = columns_of(subject)
    own = matrices["subject"] == subject
    rows, place = matrices.where(own), place[own]
    values = np.stack([rows[name] for name in names], axis=1)
    has_any = ~np.isnan(values).all(axis=0)
    if subject == "delta":  # null where it is too large, which a median must not leave out
        above = above_short_side(rows.__getitem__)
        values[above, names.index("equivalent_directions")] = np.inf
    medians = np.full((cells, len(names)), np.nan)
    medians[place] = values
    for several in np.flatnonzero(np.bincount(place, minlength=cells) > 1):
        medians[several] = _median(values[place == several])
    return {names[at]: medians[:, at] for at in np.flatnonzero(has_any).tolist()}


def _median(values: Numbers) -> Numbers:
    """The median of each column over the rows that are not NaN. Infinity is larger than all."""
    ordered = np.sort(values, axis=0)  # NaN last
    known = (~np.isnan(values)).sum(axis=0)
    low, high = (
        np.take_along_axis(ordered, middle[None, :], axis=0)[0]
        for middle in ((known - 1) // 2, known // 2)
    )
    return np.asarray((low + high) / 2)
