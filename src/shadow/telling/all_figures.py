"""Every figure of a pair with its interval, for `--full` and the page: what the sentences of the
finding do not say already.
"""

from __future__ import annotations

from collections.abc import Iterator

from shadow.checks.summary import Summary
from shadow.places.groups import ATTENTION, MLP
from shadow.quantities import Quantity, portion_of, text_of
from shadow.telling.document import Cell, FigureRow, Word
from shadow.telling.screen import faults, figure_rows, quantity
from shadow.text import and_list, counted

FAR = 100  # times the rounding of storage above which the exact factor tells nothing more
RATIOS = (
    ("attention_to_mlp", "attention : MLP"),
    ("vision_to_language", "vision : language"),
    ("projector_to_language", "projector : language"),
)


def all_figures(summary: Summary) -> list[FigureRow]:
    """What changed, how much, how concentrated, where."""
    if not summary.figures.matrices:
        return [_changed(summary)]
    norm, concentration, *unchanged = figure_rows(summary, full=True)
    return [
        _changed(summary),
        norm,
        *_size(summary),
        *unchanged,
        concentration,
        *_directions(summary),
        *_where(summary),
    ]


def standing_rows(summary: Summary) -> list[FigureRow]:
    """What the bounds in brackets are, and the gates."""
    rows = []
    if summary.figures.matrices:
        rows.append(FigureRow("spread", _spread(summary)))
        # medians of the finding are over those inside layers
        if summary.figures.matrices != summary.inside_layers.matrices:
            count = text_of(summary.figures.matrices, "count")
            rows.append(FigureRow("medians", f"over all {count} matrices, if not said otherwise"))
    rows.append(FigureRow("gates", _gates(summary)))
    return rows


def _changed(summary: Summary) -> FigureRow:
    """`30 matrices`, `99.7 % of the parameters; 0.3 % are identical`."""
    f = summary.figures
    of = f"{portion_of(f.parameters_measured, f.parameters)} of the parameters"
    if summary.counts["identical"]:
        of += f"; {portion_of(f.parameters_identical, f.parameters)} are identical"
    return FigureRow("changed", counted(int(f.matrices or 0), "matrix", "matrices"), of)


def _size(summary: Summary) -> Iterator[FigureRow]:
    f, inside = summary.figures, summary.inside_layers
    if f.floor_ratio is not None:
        ratio: Cell = Quantity(f.floor_ratio, "ratio")
        if f.floor_ratio >= FAR:
            ratio = f"above {FAR}"
        yield FigureRow("x rounding", ratio, "times the rounding of its storage")
    if inside.relative_norm_unrounded is not None:
        norm = Quantity(inside.relative_norm_unrounded, "share")
        yield FigureRow("inside layers", norm, "before storage, in the median matrix")
    if inside.kept is not None:
        of = "of the energy of the stored change, in layers"
        yield FigureRow("update", Quantity(inside.kept, "share"), of)


def _directions(summary: Summary) -> Iterator[FigureRow]:
    f = summary.figures
    if f.concentration is None:
        return
    null = f"directions; {text_of(f.null_participation_ratio, 'ratio')} with random signs"
    yield FigureRow("PR", quantity(summary, "participation_ratio", "ratio"), null)
    stand = f"{'stands' if f.spikes == 1 else 'stand'} out of noise"
    if f.spikes:
        stand += f", with {text_of(f.spike_energy, 'share')} of the energy"
    yield FigureRow("spikes", Quantity(f.spikes, "number"), stand)


def _where(summary: Summary) -> Iterator[FigureRow]:
    """How evenly the change lies over layers, attention and MLP, components and tokens."""
    f = summary.figures
    if f.effective_layers is not None and f.depth_entropy is not None:
        of = f"of {text_of(f.depth_layers, 'count')}, effective number"
        yield FigureRow("layers", quantity(summary, "effective_layers", "ratio"), of)
    for name, title in RATIOS:
        if f[name] is not None:
            sizes = _parameter_ratio(summary, name)
            of = "" if sizes is None else f"of their parameters {text_of(sizes, 'ratio')}"
            yield FigureRow(title, quantity(summary, name, "ratio"), of)
    if f.embedding_rows_changed is not None:
        changed = text_of(f.embedding_rows_changed, "share")
        tokens = Quantity(f.embedding_row_participation_ratio, "ratio")
        yield FigureRow("tokens", tokens, f"effective number; {changed} of the rows changed")


def _parameter_ratio(summary: Summary, figure: str) -> float | None:
    """What a ratio of energies would be if every parameter that changed had moved alike: that of
    the parameters.

    figure is attention_to_mlp, vision_to_language or projector_to_language; None where there is
    nothing below.
    """
    if figure == "attention_to_mlp":
        main = summary.main_component
        rows = [row for row in summary.modules if row.component == main]
        above = sum(row.parameters for row in rows if row.module.startswith(ATTENTION))
        below = sum(row.parameters for row in rows if row.module.startswith(MLP))
    else:
        component = figure.removesuffix("_to_language")
        above = sum(row.parameters for row in summary.modules if row.component == component)
        below = sum(row.parameters for row in summary.modules if row.component == "language")
    return above / below if below else None


def _spread(summary: Summary) -> str:
    """What the bounds in brackets are."""
    if summary.no_interval:
        return f"none over layers: {summary.no_interval}"
    level = 100 * (summary.interval_level or 0)
    over = f"over {summary.layers} layers ({level:.2g} %), in brackets"
    return f"{over}; it says nothing of other runs or seeds"


def _gates(summary: Summary) -> Cell:
    if stopped := [gate.name for gate in faults(summary)]:
        return Word(f"{', '.join(stopped)} failed, see below", "warning")
    if not summary.failed_gates:
        return f"all {len(summary.gates)} passed"
    unknown = [gate.name for gate in summary.unknown_gates]
    others = [gate.name for gate in summary.failed_gates if gate.name not in unknown]
    texts = []
    if passed := len(summary.gates) - len(summary.failed_gates):
        texts.append(f"{passed} passed")
    if others:
        texts.append(f"{and_list(others)} {'does' if len(others) == 1 else 'do'} not apply")
    if unknown:
        texts.append(f"{and_list(unknown)} {'is' if len(unknown) == 1 else 'are'} unknown")
    return "; ".join(texts)
