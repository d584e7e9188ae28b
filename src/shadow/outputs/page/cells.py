"""A report -> the cells of its heat map and what is drawn from them, as JSON.

A cell is a component, a layer and a module. It holds one matrix, or several: the experts of a
layer. What is drawn of a cell is the median over its matrices, and the range where there are
several. Arrays rather than data frames: a page of 300 small reports has two million numbers in
tables of a few rows, where a frame costs more than its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from shadow.outputs.page.curves import Key, Listed, short, shortened
from shadow.reports.columns import DELTA, SPECTRAL
from shadow.summary.bootstrap import blocks_of, intervals_of_medians
from shadow.summary.columns import Columns
from shadow.summary.depth import LAYERS
from shadow.summary.grid import order_of
from shadow.summary.layer_medians import above_short_side
from shadow.summary.rows import MEDIANS
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
    "spikes_sampled": 0.0,
    "null_participation_ratio_sampled": "null_participation_ratio",
}
# columns whose 0 divides
SIGNED = (
    "concentration", "effective_rank_shift", "stable_rank_shift", "cosine", "excess_purity",
    "excess_purity_unrounded", "decay_cosine",
)  # fmt: skip
# columns that read as per cent
SHARES = (
    "relative_norm", "relative_norm_unrounded", "zero_share",
    "zero_share_expected", "spike_energy", "energy_share", "rows_changed", "kept",
    "top1_energy", "top4_energy", "top16_energy", "top20_energy", "top64_energy",
)  # fmt: skip
DRAWN = tuple(column for column in DELTA if column.type in ("int", "float"))  # not words
EXPERTS = 10_000  # as spread.LAYERS
EXPERT_VALUES = 250_000  # numbers of single experts on a page, about 1.5 MB

Numbers = NDArray[np.float64]


@cache
def columns_of(subject: str) -> tuple[str, ...]:
    """The columns that a row of a subject has, headline ones first."""
    columns = SPECTRAL
    if subject == "delta":
        columns = (*DRAWN, *SPECTRAL)
    names = [column.name for column in columns]
    return tuple(dict.fromkeys([*(name for name in FIRST if name in names), *names]))


EXPLAINED = ("text", "formula", "unit", "range", "null", "source", "pitfalls")


def metric_texts() -> dict[str, dict[str, object]]:
    """What `explain` says of every column that can be drawn, and how to draw it: whether deltas
    alone have it, what it would be with random signs, whether its 0 divides, and whether it is
    shown as per cent.
    """
    delta_only = {column.name for column in DELTA}
    return {
        column.name: {
            **{name: getattr(column, name) for name in EXPLAINED},
            "delta": column.name in delta_only,
            "under_null": UNDER_NULL.get(column.name),
            "signed": column.name in SIGNED,
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


def numbers(rows: Columns, names: Sequence[str]) -> Numbers:
    """Some columns beside each other: (rows, names)."""
    return np.stack([rows[name] for name in names], axis=1)


def cells_of(matrices: Columns, tensors: Columns) -> list[Cell]:
    """One for each place that has a matrix, in the order of reports, layers ascending."""
    cells = _measured(matrices)
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


def _measured(matrices: Columns) -> dict[Key, Cell]:
    """The cells that have a spectrum, by place."""
    with_delta = set(places(matrices.where(matrices["subject"] == "delta")))
    return {
        place: Cell(place, "measured" if place in with_delta else "alone", None)
        for place in places(matrices)
    }


# What a column says of a module: median, its interval over layers, over how many layers, and the
# interval's level.
ModuleFigure = list[float | int | list[float | int | None] | None]


class Range(TypedDict):
    """The least and the largest value of a column in each cell."""

    low: Listed
    high: Listed


class Experts(TypedDict, total=False):
    """The single experts of cells that have several."""

    cell: list[int]  # of each expert matrix
    expert: list[int]  # its number, from 0
    values: dict[str, Listed]  # by column


class DrawnCells(TypedDict):
    """The cells of a report for the charts. Most lists have a value for each cell."""

    groups: list[list[str]]  # component and module of each group
    group: list[int]  # the number of its group, from 0
    layer: list[int | None]
    state: list[str]
    reason: list[str | None]
    matrices: list[int]
    tensor: list[str | None]  # the name of its first matrix
    rows: Listed  # of its first matrix
    cols: Listed
    values: dict[str, dict[str, Listed]]  # medians, by subject and column
    shift: dict[str, Listed]  # tuned - base, by column
    ranges: dict[str, Range]  # by column
    # by subject and column, a value for each group
    modules: dict[str, dict[str, list[ModuleFigure | None]]]
    experts: Experts  # empty where there are none


def drawn_cells(matrices: Columns, cells: Sequence[Cell], pairs: int) -> DrawnCells:
    """Places, values and ranges of a report on a page with pairs - 1 others."""
    number = {cell.place: index for index, cell in enumerate(cells)}
    cell = np.array([number[place] for place in places(matrices)], dtype=np.intp)
    groups = list(dict.fromkeys((of_place.place[0], of_place.place[2]) for of_place in cells))
    index = {group: number for number, group in enumerate(groups)}
    first = np.full(len(cells), -1)  # row of each cell, -1 where it has none
    first[cell[::-1]] = np.arange(len(cell))[::-1]
    group = [index[of_place.place[0], of_place.place[2]] for of_place in cells]
    tensors = [*map(_visible, matrices["tensor"]), None]
    parts = {subject: _part(matrices, cell, subject) for subject in SUBJECTS}
    sizes = [np.bincount(part.cell, minlength=len(cells)) for part in parts.values()]
    return {
        "groups": [[visible(component), visible(module)] for component, module in groups],
        "group": group,
        "layer": [drawn.place[1] for drawn in cells],
        "state": [drawn.state for drawn in cells],
        "reason": [_visible(drawn.reason) for drawn in cells],
        "matrices": np.max(sizes, axis=0).tolist(),
        "tensor": [tensors[row] for row in first.tolist()],
        "rows": shortened(np.append(matrices["rows"], np.nan)[first]),
        "cols": shortened(np.append(matrices["cols"], np.nan)[first]),
        "values": {subject: _medians(part, len(cells)) for subject, part in parts.items()},
        "shift": _shifts(matrices, parts, len(cells)),
        "ranges": _ranges(parts["delta"], len(cells)),
        "modules": {
            subject: _by_module(part, np.array(group)[part.cell], matrices["layer"], len(groups))
            for subject, part in parts.items()
        },
        "experts": _experts(matrices, cell, EXPERT_VALUES // pairs),
    }


def _visible(text: str | None) -> str | None:
    if text is None:
        return None
    return visible(text)


@dataclass(frozen=True)
class _Part:
    """The rows of one subject: which they are, their cells, and its columns that have any value."""

    rows: NDArray[np.intp]
    cell: NDArray[np.intp]
    names: list[str]
    values: Numbers  # (rows, names)
    ranked: Numbers  # the same for medians: infinite where a value is null because it is too large


def _part(matrices: Columns, cell: NDArray[np.intp], subject: str) -> _Part:
    rows = np.flatnonzero(matrices["subject"] == subject)
    own = matrices.where(rows)
    names, values = _present(columns_of(subject), numbers(own, columns_of(subject)))
    ranked = values.copy()
    if subject == "delta" and "equivalent_directions" in names:
        above = above_short_side(own.__getitem__)
        ranked[above, names.index("equivalent_directions")] = np.inf
    return _Part(rows=rows, cell=cell[rows], names=names, values=values, ranked=ranked)


def _present(names: Sequence[str], values: Numbers) -> tuple[list[str], Numbers]:
    """The columns of (rows, names) that have any value."""
    there = np.flatnonzero(~np.isnan(values).all(axis=0))
    return [names[place] for place in there.tolist()], values[:, there]


def _median(values: Numbers) -> Numbers:
    """The median of each column over the rows that are not NaN. Infinity is larger than all."""
    ordered = np.sort(values, axis=0)  # NaN last
    known = (~np.isnan(values)).sum(axis=0)
    low, high = (
        np.take_along_axis(ordered, middle[None, :], axis=0)[0]
        for middle in ((known - 1) // 2, known // 2)
    )
    return np.asarray((low + high) / 2)


def _by_cell(
    values: Numbers,
    cell: NDArray[np.intp],
    cells: int,
    reduce: Callable[[Numbers], Numbers] = _median,
) -> Numbers:
    """What reduce makes of each cell's rows, (cells, columns); NaN for a cell without rows."""
    reduced = np.full((cells, values.shape[1]), np.nan)
    order = np.argsort(cell, kind="stable")
    filled, starts = np.unique(cell[order], return_index=True)
    if len(filled) == len(cell):  # one each, as in a dense model
        reduced[cell] = values
        return reduced
    for place, rows in zip(filled, np.split(order, starts)[1:], strict=True):
        reduced[place] = reduce(values[rows])
    return reduced


def _listed(names: Sequence[str], values: Numbers) -> dict[str, Listed]:
    """(rows, names) as lists by name."""
    return {name: shortened(column) for name, column in zip(names, values.T, strict=True)}


def _medians(part: _Part, cells: int) -> dict[str, Listed]:
    """The median of every column by cell; columns that are null everywhere are left out."""
    return _listed(part.names, _by_cell(part.ranked, part.cell, cells))


def _shifts(matrices: Columns, parts: Mapping[str, _Part], cells: int) -> dict[str, Listed]:
    """tuned - base of every spectral column by cell, from unrounded rows; of several the median."""
    names = [column.name for column in SPECTRAL]
    experts = np.nan_to_num(matrices["expert"], nan=-1.0).tolist()
    base, tuned = (
        {
            (cell, matrices["tensor"][row], experts[row]): row
            for row, cell in zip(part.rows.tolist(), part.cell.tolist(), strict=True)
        }
        for part in (parts["base"], parts["tuned"])
    )
    both = [key for key in tuned if key in base]
    if not both:
        return {}
    values = numbers(matrices, names)
    shifts = values[[tuned[key] for key in both]] - values[[base[key] for key in both]]
    names, shifts = _present(names, shifts)
    return _listed(names, _by_cell(shifts, np.array([cell for cell, _, _ in both]), cells))


def _ranges(deltas: _Part, cells: int) -> dict[str, Range]:
    """Least and largest value of every column of deltas in the cells that hold several matrices."""
    several = np.bincount(deltas.cell, minlength=cells)[deltas.cell] > 1
    if not several.any():
        return {}
    names, values = _present(deltas.names, deltas.values[several])
    low, high = (
        _listed(names, _by_cell(values, deltas.cell[several], cells=cells, reduce=reduce))
        for reduce in (np.fmin.reduce, np.fmax.reduce)
    )
    return {name: {"low": low[name], "high": high[name]} for name in names}


def _by_module(
    part: _Part, group: NDArray[np.intp], layers: Numbers, groups: int
) -> dict[str, list[ModuleFigure | None]]:
    """The median of every column over a module's matrices, its interval, and over how many layers:
    a value for each group. group: of each row of part; layers: of all rows.
    """
    figures: dict[str, list[ModuleFigure | None]] = {name: [None] * groups for name in part.names}
    for number in np.unique(group).tolist():
        own = group == number
        names, values = _present(part.names, part.ranked[own])
        found = _module_figures(values, layers[part.rows[own]])
        for name, figure in zip(names, found, strict=True):
            figures[name][number] = figure
    return figures


def _module_figures(values: Numbers, layers: Numbers) -> list[ModuleFigure | None]:
    """Of each column of the (rows, columns) of a module; None where its median is infinite."""
    figures: list[ModuleFigure | None] = []
    intervals = intervals_of_medians(values, blocks_of([""] * len(layers), layers))
    for median, found in zip(shortened(_median(values)), intervals, strict=True):
        bounds = None if found.bounds is None else [short(bound) for bound in found.bounds]
        figures.append(None if median is None else [median, bounds, found.layers, found.level])
    return figures


def _experts(matrices: Columns, cell: NDArray[np.intp], most: int) -> Experts:
    """The single experts of every cell that has several, in as many columns as have room."""
    experts, layers = matrices["expert"], matrices["layer"]
    rows = np.flatnonzero(matrices["subject"] == "delta")
    rows = rows[(experts[rows] < EXPERTS) & (np.isnan(layers[rows]) | (layers[rows] < LAYERS))]
    if not len(rows):
        return {}
    known = columns_of("delta")
    wanted = [name for name in dict.fromkeys([*FIRST, *MEDIANS, *known]) if name in known]
    names, values = _present(wanted, numbers(matrices.where(rows), wanted))
    names = names[: most // len(rows)]
    if not names:
        return {}
    order = np.lexsort((experts[rows], cell[rows]))
    return {
        "cell": cell[rows][order].tolist(),
        "expert": experts[rows][order].astype(int).tolist(),
        "values": _listed(names, values[order, : len(names)]),
    }
