"""What only a page has room for: the table of gates, and how spreads were drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shadow.checks.pair_gates import GATES, Gate
from shadow.checks.summary import Summary
from shadow.quantities import text_of
from shadow.telling.document import (
    Block,
    Field,
    Provenance,
    Word,
    named,
    number,
    table_of,
    worded,
)
from shadow.telling.screen import FAILED, faults


def gates_blocks(summary: Summary) -> Iterator[Block]:
    """Every gate with its figure."""
    title = "Gates: what must hold for the figures to be those of a training"
    yield table_of(_gate_fields(summary), summary.gates, title)


def _gate_fields(summary: Summary) -> Sequence[Field]:
    """Columns of the table of gates; what an adapter or a copy fails by being one is no fault."""
    wrong = {gate.name for gate in faults(summary)}

    def explained(gate: Gate) -> Word:
        aside = GATES[gate.name].meaning if gate.name in GATES else ""  # of a forged report
        return Word(gate.name.replace("_", " "), aside=aside)

    def result(gate: Gate) -> Word:
        if gate.passed:
            return Word("passed", "passed")
        if gate in summary.unknown_gates:
            return Word("unknown", "quiet")
        return FAILED if gate.name in wrong else Word("does not apply", "quiet")

    def needs(gate: Gate) -> str:
        bound = "at most" if gate.name == "formats" else "at least"
        return f"{bound} {text_of(gate.threshold, 'number')}"

    figure = number("figure", "figure", "number")
    return (
        named("gate", explained), worded("result", result), figure, number("needs", needs),
        worded("reason"),
    )  # fmt: skip


def resampling_note(summary: Summary) -> Provenance:
    """How spreads over layers were drawn, and what they cover."""
    how = summary.resampling
    text = f"{how['kind']}; {how['draws']:,} draws, seed {how['seed']}; unit: {how['unit']}"
    return Provenance([("spread over layers", f"{text}; it covers {how['covers']}")])
