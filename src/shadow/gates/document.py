"""Verdicts of rules and the states of pairs, as documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from shadow.checks.answer import first_code
from shadow.gates.verdicts import Judgement, Verdict
from shadow.telling.document import (
    Block,
    Cell,
    Document,
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


def pairs_document(judged: Sequence[Judgement], folder: str, *, has_table: bool) -> Document:
    """The states of several pairs, a row each, their number unless all are shown one by one, and
    where to find the rest. folder: of their reports, if there are any.
    """
    rest = []
    if any(judgement.summary or judgement.kept for judgement in judged):
        rest += where_more(folder)
    if not has_table:
        return Document([Origin(rest, close=True)])
    states = Counter[str](state_of(judgement).text for judgement in judged)
    counts = [f"{count:,} {state}" for state, count in states.items()]
    total = f"{len(judged):,}: {', '.join(counts)}"
    origin = Origin([("pairs", total), *rest])
    return Document([_pairs(judged), origin])


def rules_document(judged: Judgement, *, titled: bool) -> Document:
    """The verdicts on one pair. titled: with its name above, if it stands nowhere yet."""
    blocks: list[Block] = []
    if judged.verdicts:
        rows = [*map(_cells, judged.verdicts)]
        blocks.append(TableBlock(RULES, rows, "Rules"))
    blocks += map(Note, judged.notes)
    if blocks and titled:
        title = Section(judged.family, judged.pair)
        blocks.insert(0, title)
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
            fault = Word(judgement.fault, "fault")
            faults.append(FigureRow(name, fault))
        if judgement.summary is not None:
            finding = str(judgement.summary.finding)
            findings.append(FigureRow(name, finding))
        for note in judgement.notes:
            notes.append(FigureRow(name, note))
        for verdict in judgement.verdicts:
            rules.append([name, *_cells(verdict)])
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
    fields = [
        named("family"),
        named("pair"),
        worded("state", state_of),
        number("norm", _figure("relative_norm_overall"), "share"),
        number("conc.", _figure("concentration"), "fixed"),
        number("unchanged", _figure("zero_share"), "fraction", rank=1),
        worded("found", lambda judgement: judgement.summary and standing(judgement.summary)),
    ]
    return table_of(fields, judged)


def _figure(name: str) -> Callable[[Judgement], Any]:
    return lambda judgement: judgement.summary and getattr(judgement.summary.figures, name)


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
    name = Word(rule.name, "", condition)
    return [word, name, verdict.message]
