"""One report on the page: its sections, and the JSON of the charts that its script draws: the cells
of its heat map, and curves of its spectra.

A cell is a component, a layer and a module. It has one matrix, or several: the experts of a layer.
The median over its matrices is drawn. Arrays rather than data frames: a page of 300 small reports
has two million numbers in tables of a few rows, whose frames would cost more than their numbers. Of
a spectrum of 3,584 values a log-log curve needs about a hundred; the rest stay in spectra.parquet.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np
import pyarrow as pa
from jinja2.utils import htmlsafe_json_dumps
from numpy.typing import ArrayLike, NDArray

from shadow.checks.summary import Summary
from shadow.reports.columns import DELTA, SPECTRAL
from shadow.reports.report import Report
from shadow.summary.bootstrap import Floats, Places
from shadow.summary.components import LAYERS, order_of
from shadow.summary.layer_medians import above_short_side
from shadow.summary.tables import Columns, columns_of
from shadow.telling.document import Block, Figures, Note, Paragraph, TableBlock
from shadow.telling.reading import AuditReport
from shadow.telling.report import report_document
from shadow.text import visible

SUBJECTS = ("delta", "base", "tuned")
FIRST = (
    "relative_norm",
    "concentration",
    "participation_ratio",
    "effective_rank_shift",
    "stable_rank",
)
NO_MATRICES = ("not_a_matrix", "not_float")  # reasons of tensors that have no cell
DRAWN = tuple(column for column in DELTA if column.type in ("int", "float"))  # not words
LEADING = 12  # singular values that are always drawn: what stands out is among the first
POINTS = 400_000  # of all curves of a page, about 2.4 MB
MOST = 112  # of one curve
FEWEST = 32

Key = tuple[str, int | None, str]  # component, layer, module
Cells = Mapping[Key, tuple[str, str | None]]
"""By place its state (measured; alone: no base, so no delta; identical or skipped, from the tuned
tensors) and why it was skipped, in words of tensors.parquet.
"""
Listed = list[float | int | None]
# the heading of each section by its name in addresses, in their order
TITLES = {
    "finding": "Finding",
    "heat": "Layer by module",
    "claims": "Other explanations",
    "gates": "Gates",
    "spectra": "Spectra",
    "depth": "Depth profiles",
    "components": "By component",
    "modules": "By module",
    "partners": "What corresponds",
    "skipped": "Not measured",
    "files": "Files beside the weights",
    "provenance": "Provenance",
}
HALVES = ("spectra", "depth", "claims", "gates", "skipped", "provenance")  # beside a neighbour
# charts that the page's script draws, by section: their lists to choose from, and their captions
CONTROLS = {
    "heat": {"metric": "Metric"},
    "spectra": {
        "spectrum-component": "Component",
        "spectrum-layer": "Layer",
        "spectrum-module": "Module",
    },
    "depth": {
        "depth-metric": "Metric",
        "depth-component": "Component",
        "depth-module": "Module",
    },
}
CAPTIONS = {
    "heat": "A cell is a matrix, or the median of several of one place, such as experts. Dot:"
    " identical in base and tuned. Cross: no value of this metric. Slash: not measured. Click a"
    " cell to see its spectrum below.",
    "spectra": "Both axes are logarithmic. Dashed: the null edge, which bounds the largest singular"
    " value of this delta with random signs. Marked: what lies above it. Values that the method"
    " does not resolve are left out. All others are in spectra.parquet.",
    "depth": "Above: tuned − base, the signed shift by layer that arXiv:2604.07363 plots. Middle:"
    " the delta's own value, which is a different quantity. Below: base (dotted) and tuned (solid)."
    " Of several experts the median.",
}
NOTHING = {  # what a section says that would be empty
    "modules": "Nothing changed.",
    "claims": "No other explanation applies.",
    "skipped": "Every tensor was measured or is identical.",
}


def script_json(value: object) -> str:
    """JSON for a script element, which no text in it can end. NaN and infinity are refused;
    texts of reports are made visible before.
    """
    return htmlsafe_json_dumps(value, allow_nan=False, separators=(",", ":"))


@dataclass(frozen=True)
class PageSection:
    """A section of a pair: its blocks, and those that appear when their title is clicked."""

    name: str
    blocks: Sequence[Block]
    folded: Sequence[Block] = ()
    fold: str = ""
    is_open: bool = False

    @property
    def title(self) -> str:
        return TITLES[self.name]

    @property
    def is_half(self) -> bool:
        """True if it is half as wide, next to another; failures need the full width."""
        return self.name in HALVES and not self.is_open


@dataclass(frozen=True)
class PairSection:
    """A pair on the page."""

    number: int
    summary: Summary
    sides: Sequence[Block]
    sections: Sequence[PageSection]
    data: str
    """JSON for the charts."""

    @property
    def name(self) -> str:
        return f"{self.summary.family} {self.summary.pair}"

    @property
    def rank(self) -> tuple[bool, float, str]:
        """A sort key: most concentrated first, pairs whose gates void their figures last."""
        concentration = self.summary.figures.concentration
        is_void = self.summary.stopped is not None
        order = math.inf if concentration is None else -concentration
        return is_void, order, self.name


def read_pair(report: AuditReport, where: str, number: int, pairs: int) -> PairSection:
    """Read a finished report for a page of this many pairs. Raises ShadowError if it is
    unreadable.
    """
    summary = report.summary
    rows = columns_of(report.table("matrices"))
    tensors = columns_of(report.table("tensors"))
    every = cells_of(rows, tensors)
    cells = {}
    for place, cell in every.items():
        layer = place[1] or 0
        if layer < LAYERS:
            cells[place] = cell
    numbers = {place: number for number, place in enumerate(cells)}
    curves = len(SUBJECTS) * len(cells) * pairs
    spectra = thinned_spectra(report, numbers, curves)
    metadata = report.provenance.recorded
    document = report_document(summary, metadata, where, is_public=True)
    blocks: dict[str, list[Block]] = {}
    for block in document.blocks:
        blocks.setdefault(block.about, []).append(block)
    charts: dict[str, list[Block]] = {}
    if len(rows):
        charts = {name: [] for name in CAPTIONS}
        if far := len(every) - len(cells):
            text = f"Not drawn: {far:,} cells of layers from {LAYERS:,} on."
            note = Paragraph(text, quiet=True)
            charts["heat"].append(note)
    data = drawn_cells(rows, cells)
    data["spectra"] = spectra
    return PairSection(
        number=number,
        summary=summary,
        sides=blocks["sides"],
        sections=_sections(summary, {**blocks, **charts}),
        data=script_json(data),
    )


def _sections(summary: Summary, blocks: Mapping[str, Sequence[Block]]) -> list[PageSection]:
    """The sections of a pair that are not empty."""
    sections = []
    for name, title in TITLES.items():
        own = list(blocks.get(name, ()))
        if name == "finding":
            full: list[Block] = []
            shown: list[Block] = []
            for block in own:
                is_full = isinstance(block, Figures) and block.when == "full"
                (full if is_full else shown).append(block)
            shown.sort(key=_kind)
            sections.append(PageSection(name, shown, full, "All figures"))
        elif name == "gates":
            (table,) = [block for block in own if isinstance(block, TableBlock)]
            fold = table.title
            if not summary.failed_gates:
                fold = f"All {len(summary.gates)} gates passed"
            is_open = bool(summary.gates_that("failed"))
            untitled = replace(table, title="")
            section = PageSection(name, [], [untitled], fold, is_open)
            sections.append(section)
        elif own or name in blocks:
            for place, block in enumerate(own):
                if isinstance(block, TableBlock) and block.title.startswith(title):
                    own[place] = replace(block, title="")
            sections.append(PageSection(name, own))
        elif name in NOTHING:
            nothing = Paragraph(NOTHING[name], quiet=True)
            sections.append(PageSection(name, [nothing]))
    return sections


def _kind(block: Block) -> int:
    """A sort key: sentences, then notes, then figures."""
    if isinstance(block, Figures):
        return 2
    return int(isinstance(block, Note))


# -------------------------------------------------------------------------------------- cells


@cache
def metrics_of(subject: str) -> tuple[str, ...]:
    """The columns of rows of a subject, headline ones first."""
    columns = (*DRAWN, *SPECTRAL) if subject == "delta" else SPECTRAL
    names = [column.name for column in columns]
    first = [name for name in FIRST if name in names]
    in_order = dict.fromkeys([*first, *names])
    return tuple(in_order)


def metric_texts() -> dict[str, dict[str, str]]:
    """The words of `explain` on every column that can be drawn."""
    return {
        column.name: {
            "text": column.text,
            "formula": column.formula,
            "null": column.null,
        }
        for column in (*DRAWN, *SPECTRAL)
    }


def places(rows: Columns) -> list[Key]:
    """The place of each row; a word that only forged reports lack is empty."""
    keys: list[Key] = []
    for component, layer, module in rows.each("component", "layer", "module"):
        number = None if math.isnan(layer) else int(layer)
        keys.append((component or "", number, module or ""))
    return keys


def cells_of(matrices: Columns, tensors: Columns) -> Cells:
    """State and reason of each place with a matrix, in the order of reports."""
    is_delta = matrices["subject"] == "delta"
    with_delta = set(places(matrices.where(is_delta)))
    cells: dict[Key, tuple[str, str | None]] = {}
    for place in places(matrices):
        state = "measured" if place in with_delta else "alone"
        cells[place] = (state, None)
    others = tensors.each("side", "status", "reason")
    of_tensors = places(tensors)
    for place, (side, status, reason) in zip(of_tensors, others, strict=True):
        is_unmeasured = side == "tuned" and status in ("identical", "skipped")
        is_vector = place[2] in ("norm", "bias") or reason in NO_MATRICES
        if is_unmeasured and not is_vector:
            cells.setdefault(place, (status, reason))

    def order(place: Key) -> tuple[tuple[int, int, str, str], int]:
        component, layer, module = place
        of_module = order_of(component, module)
        return of_module, -1 if layer is None else layer

    in_order = sorted(cells, key=order)
    return {place: cells[place] for place in in_order}


def drawn_cells(matrices: Columns, cells: Cells) -> dict[str, object]:
    """Places, states, shapes and figures of cells: each list has a value for every cell.

    If a cell has several matrices, a figure is their median, and the shift that of both medians.
    """
    number = {place: index for index, place in enumerate(cells)}
    every_place = places(matrices)
    numbers = [number.get(place, -1) for place in every_place]
    all_places = np.array(numbers, dtype=np.intp)
    drawn = np.flatnonzero(all_places >= 0)
    matrices = matrices.where(drawn)
    place = all_places[drawn]
    first = np.full(len(cells), -1)  # row of each cell, -1 where it has none
    occupied, first_rows = np.unique(place, return_index=True)
    first[occupied] = first_rows
    tensors: list[str | None] = []
    for name in matrices["tensor"]:
        tensors.append(name and visible(name))
    tensors.append(None)
    sizes = []
    values: dict[str, dict[str, Listed]] = {}
    medians = {}
    for subject in SUBJECTS:
        is_own = matrices["subject"] == subject
        count = np.bincount(place[is_own], minlength=len(cells))
        sizes.append(count)
        columns = _medians(matrices, place, subject, len(cells))
        medians[subject] = columns
        shown = values[subject] = {}
        for name, column in columns.items():
            shown[name] = shortened(column)
    base = medians["base"]
    tuned = medians["tuned"]
    shifts = {}
    for spectral in SPECTRAL:
        name = spectral.name
        if name in base and name in tuned:
            shift = tuned[name] - base[name]
            shifts[name] = shortened(shift)
    return {
        "component": [visible(component) for component, _, _ in cells],
        "module": [visible(module) for _, _, module in cells],
        "layer": [layer for _, layer, _ in cells],
        "state": [state for state, _ in cells.values()],
        "reason": [reason and visible(reason) for _, reason in cells.values()],
        "matrices": np.max(sizes, axis=0).tolist(),
        "tensor": [tensors[row] for row in first.tolist()],  # of its first matrix
        "rows": _of_first(matrices["rows"], first),
        "cols": _of_first(matrices["cols"], first),
        "values": values,
        "shift": shifts,
    }


def _of_first(column: Floats, first: Places) -> Listed:
    """The values of the first row of each cell; null where it has none."""
    values = np.append(column, np.nan)
    return shortened(values[first])


def _medians(matrices: Columns, place: Places, subject: str, cells: int) -> dict[str, Floats]:
    """By column, the median of each cell's rows of a subject; no empty columns."""
    names = metrics_of(subject)
    own = matrices["subject"] == subject
    rows = matrices.where(own)
    place = place[own]
    columns = [rows[name] for name in names]
    values = np.stack(columns, axis=1)
    is_empty = np.isnan(values).all(axis=0)
    if subject == "delta":  # null where it is too large, which a median must not leave out
        above = above_short_side(rows)
        directions = names.index("equivalent_directions")
        values[above, directions] = np.inf
    shape = (cells, len(names))
    medians = np.full(shape, np.nan)
    medians[place] = values
    counts = np.bincount(place, minlength=cells)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # columns without a value stay NaN
        for cell in np.flatnonzero(counts > 1):
            own_values = values[place == cell]
            medians[cell] = np.nanmedian(own_values, axis=0)
    known = np.flatnonzero(~is_empty).tolist()
    return {names[column]: medians[:, column] for column in known}


def shortened(values: ArrayLike) -> Listed:
    """Round numbers to the four significant digits that drawings show; null if not finite."""
    numbers = np.asarray(values, dtype=np.float64)
    return list(map(_short, numbers.tolist()))


def _short(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.4g}")
    if math.isinf(rounded):  # the largest number there is
        return value
    if rounded.is_integer() and abs(rounded) < 1e15:
        return int(rounded)
    return rounded


# ---------------------------------------------------------------------------------------- spectra


@lru_cache(maxsize=256)
def kept_ranks(count: int, points: int) -> NDArray[np.int64]:
    """Choose 0-based ranks to draw: the first ones, the last, and at most points in all.

    Evenly on a log axis, and evenly in the logarithm of the distance from the end, where spectra of
    square matrices fall off a cliff. Ascending, without repeats; all of them where count <= points.
    """
    if count <= points:
        return np.arange(count)
    leading = min(LEADING, points - 1)
    end = (points - leading) // 4
    middle = points - leading - end
    ranks = np.geomspace(leading + 1, count, middle)
    farthest = max(2, count // 4)
    distances = np.geomspace(1, farthest, end)
    from_start = ranks.round().astype(np.int64) - 1
    from_end = count - distances.round().astype(np.int64)
    first = np.arange(leading)
    chosen = np.concatenate([first, from_start, from_end])
    return np.unique(chosen)


def thinned_spectra(report: Report, cells: Mapping[Key, int], curves: int) -> dict[str, object]:
    """The curves of a report by the number of the cell, and the ranks of their singular
    values by size.

    curves: of the whole page; each has enough points to look smooth. Raises ShadowError for a file
    that cannot be read or belongs to another audit.
    """
    share = POINTS // max(1, curves)
    points = min(MOST, max(FEWEST, share))
    sizes: dict[int, int] = {}
    drawn = defaultdict[int, dict[str, list[NDArray[np.float32]]]](lambda: defaultdict(list))
    for key, subject, sigma in _rows(report):
        cell = cells.get(key)
        size = len(sigma)
        if cell is None or not size:
            continue
        # what shares a place has one shape, but for oddities
        if sizes.setdefault(cell, size) == size:
            ranks = kept_ranks(size, points)
            drawn[cell][subject].append(sigma[ranks])
    curves_of: dict[str, dict[str, object]] = {}
    for cell in sorted(sizes):
        of_cell = drawn[cell]
        matrices = max(map(len, of_cell.values()))
        own = curves_of[str(cell)] = {}
        own["size"] = sizes[cell]
        own["matrices"] = matrices
        for subject, rows in of_cell.items():
            # the median at every rank; None if unresolved, as a log axis has no 0
            medians = shortened(np.median(rows, axis=0))
            own[subject] = [value or None for value in medians]
    ranks_of = {}
    for size in sorted({*sizes.values()}):
        ranks = kept_ranks(size, points) + 1
        ranks_of[str(size)] = ranks.tolist()
    return {"ranks": ranks_of, "curves": curves_of}


def _rows(report: Report) -> Iterator[tuple[Key, str, NDArray[np.float32]]]:
    """Yield (place, subject, singular values) of each row of spectra.parquet."""
    columns = ("component", "layer", "module", "subject", "sigma")
    for batch in report.spectrum_batches(columns):
        *of_place, _ = columns
        names = [batch.column(name).to_pylist() for name in of_place]
        sigmas = batch.column("sigma")
        # as a tensor, since `to_numpy` imports pandas, which takes half a second
        numbers = pa.record_batch([sigmas.values], names=["sigma"])
        tensor = numbers.to_tensor(null_to_nan=True)
        values = tensor.to_numpy()[:, 0]
        bounds = itertools.pairwise(sigmas.offsets.to_pylist())
        for component, layer, module, subject, (start, end) in zip(*names, bounds, strict=True):
            key = (component, layer, module)
            yield key, subject, values[start:end]
