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
# what a column of a delta would be with random signs: a column, or a number
UNDER_NULL = {
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
    "spectra": {f"spectrum-{name.lower()}": name for name in ("Component", "Layer", "Module")},
    "depth": {f"depth-{name.lower()}": name for name in ("Metric", "Component", "Module")},
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
        return is_void, math.inf if concentration is None else -concentration, self.name


def read_pair(report: AuditReport, where: str, number: int, pairs: int) -> PairSection:
    """Read a finished report for a page of this many pairs. Raises ShadowError if it is
    unreadable.
    """
    summary = report.summary
    rows = columns_of(report.table("matrices"))
    every = cells_of(rows, columns_of(report.table("tensors")))
    cells = {place: cell for place, cell in every.items() if (place[1] or 0) < LAYERS}
    place = {place: index for index, place in enumerate(cells)}
    spectra = thinned_spectra(report, place, 3 * len(cells) * pairs)
    blocks: dict[str, list[Block]] = {}
    for block in report_document(summary, report.provenance.recorded, where, is_public=True).blocks:
        blocks.setdefault(block.about, []).append(block)
    charts: dict[str, list[Block]] = {}
    if len(rows):
        charts = {name: [] for name in CAPTIONS}
        if far := len(every) - len(cells):
            text = f"Not drawn: {far:,} cells of layers from {LAYERS:,} on."
            charts["heat"].append(Paragraph(text, quiet=True))
    return PairSection(
        number=number,
        summary=summary,
        sides=blocks["sides"],
        sections=_sections(summary, {**blocks, **charts}),
        data=script_json({**drawn_cells(rows, cells), "spectra": spectra}),
    )


def _sections(summary: Summary, blocks: Mapping[str, Sequence[Block]]) -> list[PageSection]:
    """The sections of a pair that are not empty."""
    sections = []
    for name, title in TITLES.items():
        own = list(blocks.get(name, ()))
        if name == "finding":
            own.sort(key=lambda block: (isinstance(block, Figures), isinstance(block, Note)))
            full = [block for block in own if isinstance(block, Figures) and block.when == "full"]
            shown = [block for block in own if block not in full]
            sections.append(PageSection(name, shown, full, "All figures"))
        elif name == "gates":
            (table,) = (block for block in own if isinstance(block, TableBlock))
            passed = f"All {len(summary.gates)} gates passed"
            fold = table.title if summary.failed_gates else passed
            is_open = bool(summary.gates_that("failed"))
            sections.append(PageSection(name, [], [replace(table, title="")], fold, is_open))
        elif own or name in blocks:
            untitled = [
                replace(block, title="")
                if isinstance(block, TableBlock) and block.title.startswith(title)
                else block
                for block in own
            ]
            sections.append(PageSection(name, untitled))
        elif name in NOTHING:
            sections.append(PageSection(name, [Paragraph(NOTHING[name], quiet=True)]))
    return sections


# -------------------------------------------------------------------------------------- cells


@cache
def metrics_of(subject: str) -> tuple[str, ...]:
    """The columns of rows of a subject, headline ones first."""
    columns = (*DRAWN, *SPECTRAL) if subject == "delta" else SPECTRAL
    names = [column.name for column in columns]
    return tuple(sorted(names, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST)))


def metric_texts() -> dict[str, dict[str, object]]:
    """The words of `explain` on every column that can be drawn, and how to draw it: what it
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


def places(rows: Columns) -> list[Key]:
    """The place of each row; a word that only forged reports lack is empty."""
    return [
        (component or "", None if math.isnan(layer) else int(layer), module or "")
        for component, layer, module in rows.each("component", "layer", "module")
    ]


def cells_of(matrices: Columns, tensors: Columns) -> Cells:
    """State and reason of each place with a matrix, in the order of reports."""
    with_delta = set(places(matrices.where(matrices["subject"] == "delta")))
    cells: dict[Key, tuple[str, str | None]] = {
        place: ("measured" if place in with_delta else "alone", None) for place in places(matrices)
    }
    others = tensors.each("side", "status", "reason")
    for place, (side, status, reason) in zip(places(tensors), others, strict=True):
        is_vector = place[2] in ("norm", "bias") or reason in ("not_a_matrix", "not_float")
        if side == "tuned" and status in ("identical", "skipped") and not is_vector:
            cells.setdefault(place, (status, reason))

    def order(place: Key) -> tuple[tuple[int, int, str, str], int]:
        component, layer, module = place
        return order_of(component, module), -1 if layer is None else layer

    return {place: cells[place] for place in sorted(cells, key=order)}


def drawn_cells(matrices: Columns, cells: Cells) -> dict[str, object]:
    """Places, states, shapes and figures of cells: each list has a value for every cell.

    If a cell has several matrices, a figure is their median, and the shift that of both medians.
    """
    number = {place: index for index, place in enumerate(cells)}
    all_places = np.array([number.get(place, -1) for place in places(matrices)], dtype=np.intp)
    drawn = np.flatnonzero(all_places >= 0)
    matrices = matrices.where(drawn)
    place = all_places[drawn]
    first = np.full(len(cells), -1)  # row of each cell, -1 where it has none
    first[place[::-1]] = np.arange(len(place))[::-1]
    tensors = [name and visible(name) for name in matrices["tensor"]]
    tensors.append(None)
    sizes = [
        np.bincount(place[matrices["subject"] == subject], minlength=len(cells))
        for subject in SUBJECTS
    ]
    medians = {subject: _medians(matrices, place, subject, len(cells)) for subject in SUBJECTS}
    base = medians["base"]
    tuned = medians["tuned"]
    spectral = [column.name for column in SPECTRAL if {column.name} <= base.keys() & tuned.keys()]
    return {
        "component": [visible(component) for component, _, _ in cells],
        "module": [visible(module) for _, _, module in cells],
        "layer": [layer for _, layer, _ in cells],
        "state": [state for state, _ in cells.values()],
        "reason": [reason and visible(reason) for _, reason in cells.values()],
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


def _medians(matrices: Columns, place: Places, subject: str, cells: int) -> dict[str, Floats]:
    """Return, by column, the median of each cell's rows of a subject; no empty columns."""
    names = metrics_of(subject)
    own = matrices["subject"] == subject
    rows = matrices.where(own)
    place = place[own]
    values = np.stack([rows[name] for name in names], axis=1)
    has_any = ~np.isnan(values).all(axis=0)
    if subject == "delta":  # null where it is too large, which a median must not leave out
        above = above_short_side(rows)
        values[above, names.index("equivalent_directions")] = np.inf
    medians = np.full((cells, len(names)), np.nan)
    medians[place] = values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # columns without a value stay NaN
        for cell in np.flatnonzero(np.bincount(place, minlength=cells) > 1):
            medians[cell] = np.nanmedian(values[place == cell], axis=0)
    return {names[at]: medians[:, at] for at in np.flatnonzero(has_any).tolist()}


def shortened(values: ArrayLike) -> Listed:
    """Round numbers to the four significant digits that drawings show; null if not finite."""
    return [_short(number) for number in np.asarray(values, dtype=np.float64).tolist()]


def _short(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.4g}")
    if math.isinf(rounded):  # the largest number there is
        return value
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


# ---------------------------------------------------------------------------------------- spectra


@lru_cache(maxsize=256)
def kept_ranks(count: int, points: int) -> NDArray[np.int64]:
    """Choose 0-based ranks to draw: the first ones, the last, and at most points in all.

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


def thinned_spectra(report: Report, cells: Mapping[Key, int], curves: int) -> dict[str, object]:
    """The curves of a report by the number of the cell, and the ranks of their singular
    values by size.

    curves: of the whole page; each has enough points to look smooth. Raises ShadowError for a file
    that cannot be read or belongs to another audit.
    """
    points = min(MOST, max(FEWEST, POINTS // max(1, curves)))
    sizes: dict[int, int] = {}
    drawn = defaultdict[int, dict[str, list[NDArray[np.float32]]]](lambda: defaultdict(list))
    for key, subject, sigma in _rows(report):
        if (cell := cells.get(key)) is None or not len(sigma):
            continue
        # what shares a place has one shape, but for oddities
        if sizes.setdefault(cell, len(sigma)) == len(sigma):
            drawn[cell][subject].append(sigma[kept_ranks(len(sigma), points)])

    def curves_of(cell: int) -> dict[str, object]:
        """The median at every rank by subject, descending; None if unresolved, as a log axis
        has no 0.
        """
        curves: dict[str, object] = {
            subject: [value or None for value in shortened(np.median(rows, axis=0))]
            for subject, rows in drawn[cell].items()
        }
        return {"size": sizes[cell], "matrices": max(map(len, drawn[cell].values())), **curves}

    ranks = {size: kept_ranks(size, points) + 1 for size in sorted({*sizes.values()})}
    return {
        "ranks": {str(size): drawn_ranks.tolist() for size, drawn_ranks in ranks.items()},
        "curves": {str(cell): curves_of(cell) for cell in sorted(sizes)},
    }


def _rows(report: Report) -> Iterator[tuple[Key, str, NDArray[np.float32]]]:
    """Yield (place, subject, singular values) of each row of spectra.parquet."""
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
