"""Verdicts of rules and the states of pairs, as documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shadow.checks.answer import first_code
from shadow.gates.measured import figure_in
from shadow.quantities import Kind
from shadow.telling.document import (
    Block,
    Cell,
    Document,
    Field,
    FigureRow,
    Figures,
    Note,
    Origin,
    Paragraph,
    Section,
    TableBlock,
    Word,
    named,
    number,
    table_of,
    worded,
)
from shadow.telling.report import standing, where_more

if TYPE_CHECKING:
    from shadow.gates.verdicts import Judgement, Verdict

OUTCOMES = {
    "met": Word("FAILED", "fault"),
    "missing": Word("not judged", "fault"),
    "skipped": Word("skipped", "quiet"),
    "passed": Word("passed", "passed"),
}
STATES = {  # of a pair that has a report, by its exit code
    0: Word("done", "passed"),
    1: Word("not judged", "fault"),
    3: Word("broken", "fault"),
    4: Word("rule FAILED", "fault"),
    5: Word("inconclusive", "fault"),
}
RULES = [worded("outcome"), named("rule: fails if"), worded("what was found")]


def pairs_document(judged: Sequence[Judgement], folder: str, *, has_table: bool = True) -> Document:
    """The states of several pairs, a row each, their number unless all are shown one by one, and
    where to find the rest. folder: of their reports, if there are any.
    """
    rest = []
    if any(judgement.summary is not None or judgement.kept for judgement in judged):
        rest.append(("more", where_more(folder)))
    if not has_table:
        return Document([Origin(rest, close=True)])
    counts = Counter[str](state_of(judgement).text for judgement in judged)
    states = ", ".join(f"{count:,} {state}" for state, count in counts.items())
    total = ("pairs", f"{len(judged):,}: {states}")
    return Document([_pairs(judged), Origin([total, *rest])])


def rules_document(judged: Judgement, *, titled: bool) -> Document:
    """The verdicts on one pair. titled: with its name above, if it stands nowhere yet."""
    blocks: list[Block] = []
    if judged.verdicts:
        blocks.append(TableBlock(RULES, [*map(_cells, judged.verdicts)], "Rules"))
    blocks += map(Note, judged.notes)
    if blocks and titled:
        blocks.insert(0, Section(judged.family, judged.pair))
    return Document(blocks)


def gate_document(judged: Sequence[Judgement]) -> Document:
    """All results of a gate: pairs, errors, what the reports say, rules and notes."""
    code = first_code({judgement.code for judgement in judged})
    faults = []
    findings = []
    notes = []
    rules: list[list[Cell]] = []
    for judgement in judged:
        name = judgement.name
        if judgement.fault is not None:
            faults.append(FigureRow(name, Word(judgement.fault, "fault")))
        if judgement.summary is not None:
            findings.append(FigureRow(name, str(judgement.summary.finding)))
        notes += [FigureRow(name, note) for note in judgement.notes]
        rules += [[name, *_cells(verdict)] for verdict in judgement.verdicts]
    blocks: list[Block] = [
        Section("shadow"),
        Paragraph(f"Exit code {code}."),
        _pairs(judged),
    ]
    blocks += [Figures(rows) for rows in (faults, findings) if rows]
    if rules:
        blocks.append(TableBlock([named("pair"), *RULES], rules, "Rules"))
    if notes:
        blocks.append(Figures(notes, "Notes"))
    return Document(blocks)


def _pairs(judged: Sequence[Judgement]) -> TableBlock:
    def figure(head: str, name: str, kind: Kind, rank: int = 0) -> Field:
        def read(judgement: Judgement) -> float | None:
            return figure_in(judgement.summary.figures, name) if judgement.summary else None

        return number(head, read, kind, rank=rank)

    fields = [
        named("family"),
        named("pair"),
        worded("state", state_of),
        figure("norm", "relative_norm_overall", "share"),
        figure("conc.", "concentration", "fixed"),
        figure("unchanged", "zero_share", "fraction", rank=1),
        worded("found", lambda judgement: judgement.summary and standing(judgement.summary)),
    ]
    return table_of(fields, judged)


def state_of(judgement: Judgement) -> Word:
    """The state of a pair and of its rules in a word; without a report as a list has it."""
    if judgement.summary is None:
        return Word("kept", "warning") if judgement.kept else Word("failed", "fault")
    if judgement.code == 3 and judgement.objections:
        return Word("--strict objects", "fault")
    return STATES[judgement.code]


def _cells(verdict: Verdict) -> list[Cell]:
    """The cells of a verdict; a warning looks different if it is violated or not judged."""
    rule = verdict.rule
    word = OUTCOMES[verdict.outcome]
    if word.level == "fault" and rule.severity != "error":
        word = Word(f"{word.text} (warning)", "warning")
    condition = "" if rule.condition == rule.name else rule.condition
    return [word, Word(rule.name, "", condition), said_of(verdict)]


def said_of(verdict: Verdict) -> str:
    """The finding; before it, the message of the rule's author about a violation."""
    if verdict.outcome != "met" or not verdict.rule.message:
        return verdict.detail
    return f"{verdict.rule.message} {verdict.detail}"
