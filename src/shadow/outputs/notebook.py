"""A finished report as people meet it in Python: tables, figures and spectra by name, and what a
notebook shows of it.

What a notebook shows is HTML with inline styles and an inline SVG: no script, no style sheet,
nothing that is fetched. Text takes the colour of the page around it, so that it is read in light
and in dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, overload

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray

from shadow.claims.footprint import label_or_gates
from shadow.errors import ShadowError, UsageError
from shadow.outputs.terminal.typeset import bounds_text, fixed, number, percentage, share
from shadow.places.names import name_rules
from shadow.storage import as_given
from shadow.summary.depth import LAYERS
from shadow.summary.rows import Bounds, ModuleRow
from shadow.summary.summary import SummarisedReport, Summary
from shadow.text import counted, nearest, visible

Subject = Literal["delta", "base", "tuned"]

SUBJECTS: tuple[Subject, ...] = ("delta", "base", "tuned")
# dark to light for every eye
CIVIDIS = ((0, 34, 78), (87, 93, 109), (165, 156, 116), (254, 232, 56))
MOST_LAYERS, MOST_MODULES, MOST_ROWS = 160, 30, 60  # that a notebook shows
CELL, LABEL_WIDTH, FOOT = 14, 110, 34  # pixels of the heat map


@dataclass(frozen=True)
class AuditReport(SummarisedReport):
    """A finished report: what `audit` and `read` return."""

    @cached_property
    def deltas(self) -> pd.DataFrame:
        """The rows of `matrices` whose subject is the delta: one for each matrix that changed."""
        rows = self.matrices
        return rows[rows["subject"] == "delta"].reset_index(drop=True)

    def spectrum(
        self,
        tensor: str,
        subject: Subject = "delta",
        *,
        module: str | None = None,
        expert: int | None = None,
    ) -> NDArray[np.float64]:
        """The singular values of a matrix, descending; what lies below `sigma_floor` is 0.

        The matrices of one tensor, as of a fused projection or of experts, are told apart by module
        and expert. Raises ShadowError where there is no such spectrum, or more than one.
        """
        if subject not in SUBJECTS:
            raise UsageError(f"no subject {subject!r}", f"one of {', '.join(SUBJECTS)}")
        rows = self.spectra
        if rows.empty:
            raise ShadowError(
                f"{self.folder}: the report has no spectra",
                "audit the pair again with spectra=True",
            )
        of_tensor = rows[rows["tensor"] == tensor]
        if of_tensor.empty:
            hint = nearest(tensor, rows["tensor"].unique()) or "`report.spectra` lists them"
            raise ShadowError(f"{self.folder}: no spectrum of a tensor {tensor[:200]!r}", hint)
        if module is not None:
            of_tensor = of_tensor[of_tensor["module"] == module]
        if expert is not None:
            of_tensor = of_tensor[of_tensor["expert"] == expert]
        chosen = of_tensor[of_tensor["subject"] == subject]
        if len(chosen) == 1:
            return np.asarray(chosen["sigma"].iloc[0], dtype=np.float64)
        if chosen.empty:
            raise ShadowError(
                f"{self.folder}: no spectrum of the {subject} of {tensor[:200]!r}",
                _alternatives(of_tensor),
            )
        raise ShadowError(f"{tensor[:200]!r} holds {len(chosen)} matrices", _alternatives(chosen))

    @property
    def name(self) -> str:
        """`demo:base..narrow`."""
        return f"{self.provenance.family}:{self.provenance.pair}"

    def __repr__(self) -> str:
        try:
            lines = [_titled(self.name, self.summary), _size(self.summary), self._origin()]
        except ShadowError as error:  # a repr must not fail: a notebook would show a traceback
            lines = ["AuditReport", error.message, error.hint or ""]
        return "\n".join(visible(line) for line in lines)

    def _repr_html_(self) -> str:
        """Headline, module table and heat map, for notebooks."""
        try:
            summary, deltas = self.summary, self.deltas
        except ShadowError as error:
            return str(
                Markup("<p><strong>{}</strong><br>{}</p>").format(
                    visible(error.message), error.hint or ""
                )
            )
        parts = [
            self._headline(),
            _warnings(summary),
            _module_table(summary.modules),
            _heat_map(deltas),
        ]
        return str(Markup("<div>{}</div>").format(Markup("").join(parts)))

    def _headline(self) -> Markup:
        summary = self.summary
        shown = Markup('<p><strong>{}</strong>{}<br>{}<br><span style="opacity:.7">{}</span></p>')
        explained = summary.has_label or summary.failed_gates
        return shown.format(
            visible(_titled(self.name, summary)),
            f", {visible(summary.label_reason)}" if explained else "",
            visible(_size(summary)),
            visible(self._origin()),
        )

    def _origin(self) -> str:
        return f"{as_given(self.folder)}, measured by shadow {self.provenance.version}"


class AuditReports(Sequence[AuditReport]):
    """The reports of several pairs, in the order in which these were named."""

    def __init__(self, reports: Iterable[AuditReport]) -> None:
        self._reports = tuple(reports)

    @overload
    def __getitem__(self, index: int) -> AuditReport: ...

    @overload
    def __getitem__(self, index: slice) -> AuditReports: ...

    def __getitem__(self, index: int | slice) -> AuditReport | AuditReports:
        if isinstance(index, slice):
            return AuditReports(self._reports[index])
        return self._reports[index]

    def __len__(self) -> int:
        return len(self._reports)

    def __repr__(self) -> str:
        return "\n\n".join(repr(report) for report in self._reports) or "no reports"

    def _repr_html_(self) -> str:
        return "<hr>".join(report._repr_html_() for report in self._reports) or "<p>no reports</p>"


def _alternatives(rows: pd.DataFrame) -> str | None:
    """What tells the matrices of a tensor apart, for a hint."""
    several = rows[["module", "expert", "subject"]].drop_duplicates().head(5)
    choices = []
    for module, expert, subject in several.itertuples(index=False):
        which = f"subject={subject!r}, module={module!r}"
        if not pd.isna(expert):
            which += f", expert={expert}"
        choices.append(which)
    if not choices:
        return None
    return f"there is {'; '.join(choices)}"


def _titled(name: str, summary: Summary) -> str:
    """A name, with the label if the pair is in its reach, or with the gates that failed."""
    standing = label_or_gates(summary.label, summary.gates, applies=summary.has_label)
    return name if standing is None else f"{name}: {standing}"


def _size(summary: Summary) -> str:
    """What changed, by how much, and how concentrated it is: one line."""
    figures = summary.figures
    matrices = int(figures["matrices"] or 0)
    changed = f"{counted(matrices, 'matrix', 'matrices')} changed"
    if not matrices:
        return changed
    measured = percentage(figures["parameters_measured"], figures["parameters"])
    norm = share(figures["relative_norm_overall"])
    concentration = _within(figures["concentration"], summary.intervals.get("concentration"))
    return (
        f"{changed}, {measured} of the parameters; relative norm {norm};"
        f" concentration {concentration}"
    )


def _within(figure: float | None, bounds: Bounds) -> str:
    """A figure with two decimals and its interval, where it has one."""
    if bounds is None:
        return fixed(figure)
    return f"{fixed(figure)} ({bounds_text(bounds, fixed)})"


def _warnings(summary: Summary) -> Markup:
    texts = [f"the gate {gate.name} failed: {gate.reason}" for gate in summary.failed_gates]
    texts += [warning.text for warning in summary.warnings]
    return Markup("").join(Markup("<p>⚠ {}</p>").format(visible(text)) for text in texts)


def _module_table(rows: Sequence[ModuleRow]) -> Markup:
    """A row for each module that changed."""
    if not rows:
        return Markup("")
    heads = (
        "component",
        "module",
        "matrices",
        "relative norm",
        "concentration",
        "directions",
        "of its null",
        "spikes",
    )
    lines = [_table_row("th", heads)]
    for row in rows[:MOST_ROWS]:
        cells = (
            row.component,
            row.module,
            number(row.matrices),
            share(row.relative_norm),
            _within(row.concentration, row.intervals.get("concentration")),
            number(row.participation_ratio),
            number(row.null_participation_ratio),
            number(row.spikes),
        )
        lines.append(_table_row("td", cells))
    more = Markup("")
    if len(rows) > MOST_ROWS:
        more = Markup("<p>and {} more modules</p>").format(len(rows) - MOST_ROWS)
    return Markup("<table>{}</table>{}").format(Markup("").join(lines), more)


def _table_row(kind: Literal["th", "td"], texts: Sequence[str]) -> Markup:
    """A row of a table: the first two columns are words, the others numbers."""
    styles = ["text-align:left"] * 2 + ["text-align:right"] * (len(texts) - 2)
    # kind is one of two words of ours
    cell = Markup(f'<{kind} style="{{}}">{{}}</{kind}>')  # noqa: S704
    cells = [cell.format(style, visible(text)) for style, text in zip(styles, texts, strict=True)]
    return Markup("<tr>{}</tr>").format(Markup("").join(cells))


def _heat_map(deltas: pd.DataFrame) -> Markup:
    """The concentration by layer and module, of several experts the median.

    Of the language component, or the one of most matrices.
    """
    inside = deltas[
        deltas["layer"].notna() & (deltas["layer"] < LAYERS) & deltas["concentration"].notna()
    ]
    if inside.empty:
        return Markup("")
    components = inside["component"].value_counts()
    component = "language" if "language" in components.index else str(components.index[0])
    of_component = inside[inside["component"] == component]
    cells = of_component.groupby(["module", "layer"])["concentration"].median()
    layers = sorted({int(layer) for _, layer in cells.index})[:MOST_LAYERS]
    known = {name: place for place, name in enumerate(name_rules().modules)}
    named = {str(module) for module, _ in cells.index}
    modules = sorted(named, key=lambda name: (known.get(name, len(known)), name))[:MOST_MODULES]
    low, high = float(cells.min()), float(cells.max())
    drawn = []
    for row, module in enumerate(modules):
        drawn.append(_label(module, row))
        for column, layer in enumerate(layers):
            value = cells.get((module, layer))
            drawn.append(
                _cell(
                    row, column, place=f"layer {layer}, {module}", value=value, low=low, high=high
                )
            )
    width = LABEL_WIDTH + CELL * max(len(layers), 12) + 4
    height = CELL * len(modules) + FOOT
    title = f"Concentration of {component} by module and layer"
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{}" viewBox="0 0 {} {}"'
        ' width="{}" style="max-width:100%;font:11px sans-serif" fill="currentColor">{}{}</svg>'
    ).format(
        visible(title),
        width,
        height,
        width,
        Markup("").join(drawn),
        _foot(layers, len(modules), low=low, high=high),
    )


def _label(module: str, row: int) -> Markup:
    text = Markup('<text x="{}" y="{}" text-anchor="end">{}</text>')
    return text.format(LABEL_WIDTH - 6, CELL * row + CELL - 3, visible(module)[:18])


def _cell(
    row: int, column: int, place: str, value: float | None, low: float, high: float
) -> Markup:
    """A square with its value as a tooltip; an empty frame where no matrix changed."""
    fill, text = "none", "no value"
    if value is not None:
        fill, text = _colour(value, low, high), fixed(float(value), 3)
    return Markup(
        '<rect x="{}" y="{}" width="{}" height="{}" fill="{}" stroke="currentColor"'
        ' stroke-opacity=".25"><title>{}: {}</title></rect>'
    ).format(
        LABEL_WIDTH + CELL * column, CELL * row, CELL - 1, CELL - 1, fill, visible(place), text
    )


def _colour(value: float, low: float, high: float) -> str:
    """A colour of cividis, between those of the least and of the largest value."""
    if high <= low:
        return _hex(CIVIDIS[-1])
    place = (value - low) / (high - low) * (len(CIVIDIS) - 1)
    before = min(int(place), len(CIVIDIS) - 2)
    rest = place - before
    pairs = zip(CIVIDIS[before], CIVIDIS[before + 1], strict=True)
    return _hex([round(channel + rest * (other - channel)) for channel, other in pairs])


def _hex(channels: Sequence[int]) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def _foot(layers: Sequence[int], rows: int, low: float, high: float) -> Markup:
    """The first and the last layer, and which colours the least and the largest value have."""
    top = CELL * rows + 12
    ends = [(LABEL_WIDTH, "start", f"layer {layers[0]}")]
    if len(layers) > 8:
        ends.append((LABEL_WIDTH + CELL * len(layers), "end", f"{layers[-1]}"))
    text = Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>')
    parts = [text.format(x, top, anchor, words) for x, anchor, words in ends]
    square = Markup(
        '<rect x="{}" y="{}" width="10" height="10" fill="{}" stroke="currentColor"'
        ' stroke-opacity=".25"/>'
    )
    for x, value in ((LABEL_WIDTH, low), (LABEL_WIDTH + 60, high)):
        parts.append(square.format(x, top + 7, _colour(value, low, high)))
        parts.append(text.format(x + 14, top + 16, "start", fixed(value)))
    return Markup("").join(parts)
