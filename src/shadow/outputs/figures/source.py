"""What is drawn: a choice, the delta rows of reports, and their names as labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pandas as pd

from shadow.claims.summary import Summary
from shadow.errors import ShadowError
from shadow.reports.columns import MATRICES
from shadow.summary.depth import LAYERS
from shadow.summary.grid import order_of
from shadow.summary.rows import ComponentRow
from shadow.telling.reading import SummarisedReport
from shadow.text import visible

LABEL_COLUMN = 44  # letters of a name that are shown
COLUMN = 3.3  # inches: a column of a two-column paper


@dataclass(frozen=True)
class Choice:
    """What to draw. None and empty leave it to the figure: see each of them."""

    component: str | None = None
    """The component; None: language, or the one of most layers."""
    modules: tuple[str, ...] = ()
    """Names or patterns such as `attn.*`; empty: see each figure."""
    layer: int | None = None
    """The layer of a spectrum, from 0; None: the middle."""
    expert: int | None = None
    """The expert of a spectrum, from 0; None: the first."""
    metric: str | None = None
    """The column that is drawn; None: see each figure."""
    width: float = COLUMN
    title: bool = True


@dataclass(frozen=True)
class FigureData:
    """A report that is drawn, of one component."""

    report: SummarisedReport
    component: str
    deltas: pd.DataFrame
    """Its delta rows. All numbers are float64, NaN where one is missing, as matplotlib wants."""

    @property
    def folder(self) -> Path:
        return self.report.folder

    @property
    def summary(self) -> Summary:
        return self.report.summary

    @property
    def name(self) -> str:
        """Its family and pair, for people."""
        return f"{self.summary.family} {self.summary.pair}"

    @property
    def inside(self) -> pd.DataFrame:
        """The rows inside layers, as far as there is room for them."""
        return self.deltas[self.deltas["layer"] < LAYERS].astype({"layer": int})

    @property
    def depth(self) -> pd.DataFrame:
        """layer and relative_norm of every compared layer, as far as there is room for them."""
        rows = [
            (row.layer, row.relative_norm)
            for row in self.summary.depth
            if row.component == self.component and row.layer < LAYERS
        ]
        return pd.DataFrame(rows, columns=["layer", "relative_norm"])

    @property
    def row(self) -> ComponentRow:
        return next(row for row in self.summary.components if row.component == self.component)

    @property
    def left_out(self) -> list[str]:
        """What is told of layers that there is no room for."""
        if not (self.deltas["layer"] >= LAYERS).any():
            return []
        return [f"layers of {self.folder} from number {LAYERS:,} on are left out"]


def read_source(folder: Path, component: str | None) -> FigureData:
    """A report and the deltas of a component: language if there is one, or that of most layers."""
    report = SummarisedReport(folder)
    summary = report.summary
    names = [row.component for row in summary.components if row.matrices]
    if not names:
        raise ShadowError(f"{folder}: no matrix changed, there is nothing to draw")
    if component is not None and component not in names:
        raise ShadowError(
            f"{folder}: no matrix of {component} changed", f"it has {', '.join(names)}"
        )
    chosen = component or max(names, key=lambda name: (name == "language", _layers(summary, name)))
    rows = report.matrices
    deltas = rows[(rows["subject"] == "delta") & (rows["component"] == chosen)].reset_index(
        drop=True
    )
    numbers = [column.name for column in MATRICES if column.type in ("int", "float")]
    return FigureData(report, chosen, deltas.astype(dict.fromkeys(numbers, np.float64)))


def _layers(summary: Summary, component: str) -> int:
    return sum(row.component == component for row in summary.depth)


def shown(text: str, letters: int = LABEL_COLUMN) -> str:
    """Text of files as a label: one line, cut in the middle, and no `_` first, which hides it."""
    text = visible(text)
    if len(text) > letters:
        text = f"{text[: letters // 2 - 1]}…{text[-(letters // 2) :]}"
    if text.startswith("_"):
        text = f" {text}"
    return text


def module_order(names: Sequence[str]) -> list[str]:
    """Modules in the order of names.yaml."""
    return sorted(set(names), key=lambda name: order_of("", name))


def chosen_modules(source: FigureData, patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Those of the modules (names) that a pattern matches, all without patterns, in their order.

    Raises ShadowError where there is none.
    """
    if not names:
        raise ShadowError(f"{source.folder}: no matrix inside a layer changed")
    chosen = [
        name
        for name in module_order(names)
        if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
    ]
    if not chosen:
        raise ShadowError(
            f"{source.folder}: no such module changed: {', '.join(patterns)}",
            f"it has {', '.join(module_order(names))}",
        )
    return chosen


def all_null(source: FigureData, metric: str) -> ShadowError:
    """The fault that a metric of a report has no value that could be drawn."""
    return ShadowError(
        f"{source.folder}: {metric} is null in every layer",
        "audit it without --norms"
        if source.summary.tier == "norms"
        else "`shadow explain` says when it is",
    )


def chosen_components(sources: Sequence[FigureData]) -> str:
    """The components that are drawn, each once, for people."""
    return ", ".join(dict.fromkeys(source.component for source in sources))


def component_of(sources: Sequence[FigureData]) -> str:
    """The component of all, empty where they have different ones."""
    components = {source.component for source in sources}
    if len(components) > 1:
        return ""
    return sources[0].component


def names_of(sources: Sequence[FigureData]) -> list[str]:
    """What tells the reports of a figure apart."""
    one_family = len({source.summary.family for source in sources}) == 1
    names = [shown(source.summary.pair if one_family else source.name, 30) for source in sources]
    if component_of(sources):
        return names
    return [f"{name}, {source.component}" for name, source in zip(names, sources, strict=True)]
