"""Tables of a report for which only a page has room: every gate, the evidence beside noise, known
trainings, components side by side, and the means of groups of benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from shadow.checks.pair_gates import GATES, Gate
from shadow.checks.summary import Summary
from shadow.quantities import Kind, Quantity, text_of
from shadow.summary.rows import ComponentRow
from shadow.telling.document import (
    Block,
    Cell,
    Column,
    Field,
    Provenance,
    Table,
    Word,
    named,
    number,
    table_of,
    worded,
)
from shadow.telling.screen import FAILED, faults

COMPONENT_FIGURES: Sequence[tuple[str, str, Kind]] = (
    ("tensors", "tensors", "count"),
    ("matrices", "matrices changed", "count"),
    ("identical", "identical", "count"),
    ("relative_norm", "relative norm", "share"),
    ("energy_share", "share of the energy", "share"),
    ("concentration", "concentration", "fixed"),
    ("participation_ratio", "participation ratio", "number"),
    ("null_participation_ratio", "the same with random signs", "number"),
    ("spikes", "spikes", "number"),
    ("stable_rank", "stable rank of the delta", "number"),
    ("effective_rank_shift", "effective-rank shift", "number"),
    ("effective_layers", "layers that hold the energy", "number"),
    ("depth_layers", "of layers", "number"),
    ("attention_to_mlp", "attention : MLP", "number"),
)


def gates_blocks(summary: Summary) -> Iterator[Block]:
    """Every gate with its figure."""
    title = "Gates: what must hold for the figures to be those of a training"
    yield table_of(_gate_fields(summary), summary.gates, title)


def _needs(gate: Gate) -> str:
    bound = "at most" if gate.name == "formats" else "at least"
    return f"{bound} {text_of(gate.threshold, 'number')}"


def _explained(name: str, texts: Mapping[str, str]) -> Word:
    return Word(name.replace("_", " "), aside=texts.get(name, ""))


def _gate_fields(summary: Summary) -> Sequence[Field]:
    """Columns of the table of gates; what an adapter or a copy fails by being one is no fault."""
    meanings = {name: gate.meaning for name, gate in GATES.items()}
    wrong = {gate.name for gate in faults(summary)}

    def result(gate: Gate) -> Word:
        if gate.passed:
            return Word("passed", "passed")
        if gate in summary.unknown_gates:
            return Word("unknown", "quiet")
        return FAILED if gate.name in wrong else Word("does not apply", "quiet")

    return (
        named("gate", lambda gate: _explained(gate.name, meanings)),
        worded("result", result),
        number("figure", "figure", "number"),
        number("needs", _needs),
        worded("reason"),
    )


def components_table(components: Sequence[ComponentRow]) -> Table:
    """A column for each component, with the spread of a figure over layers where it has one."""
    rows: list[Sequence[Cell]] = []
    for name, title, kind in COMPONENT_FIGURES:
        cells: list[Cell] = []
        for row in components:
            low, high = row.intervals.get(name) or (None, None)
            cells.append(Quantity(getattr(row, name), kind, low, high))
        rows.append([title, *cells])
    columns = [Column("figure", "name"), *(Column(row.component) for row in components)]
    return Table(columns, rows, "Components side by side")


def resampling_note(summary: Summary) -> Provenance:
    """How spreads over layers were drawn, and what they cover."""
    how = summary.resampling
    text = f"{how['kind']}; {how['draws']:,} draws, seed {how['seed']}; unit: {how['unit']}"
    return Provenance([("spread over layers", f"{text}; it covers {how['covers']}")])
