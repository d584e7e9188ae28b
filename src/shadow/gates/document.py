"""Verdicts of rules and the states of pairs, as documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from shadow.checks.answer import first_code
from shadow.quantities import Kind
from shadow.telling.document import (
    Block,
    Cell,
    Document,
    Field,
    FigureRow,
    Figures,
    Level,
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

OUTCOMES = {"met": "FAILED", "missing": "not judged", "skipped": "skipped", "passed": "passed"}
LEVELS: Mapping[str, Level] = {"passed": "passed", "skipped": "quiet"}
STATES = {  # of a pair that has a report, by its exit code
    0: Word("done", "passed"),
    1: Word("not judged", "fault"),
    3: Word("broken", "fault"),
    4: Word("rule FAILED", "fault"),
    5: Word("inconclusive", "fault"),
}
RULES = [worded("outcome"), named("rule: fails if"), worded("what was found")]


def pairs_document(judged: Sequence[Judgement], folder: str, *, has_table: bool = True) -> Document:
    """Return the states of several pairs, a row each, their number unless all are shown one by one,
    and where to find the rest. folder: of their reports, if there are any.
    """
    rest = []
    if any(one.summary is not None or one.kept for one in judged):
        rest.append(("more", where_more(folder)))
    if not has_table:
        return Document([Origin(rest, close=True)])
    counts = Counter[str](state_of(one).text for one in judged)
    states = ", ".join(f"{count:,} {state}" for state, count in counts.items())
    return Document([_pairs(judged), Origin([("pairs", f"{len(judged):,}: {states}"), *rest])])


def rules_document(judged: Judgement, *, titled: bool) -> Document:
    """Return the verdicts on one pair. titled: with its name above, if it stands nowhere yet."""
    head: list[Block] = [Section(judged.family, judged.pair)] if titled else []
    rows = [_cells(verdict) for verdict in judged.verdicts]
    table = [TableBlock(RULES, rows, "Rules")] if rows else []
    recorded = [*table, *map(Note, judged.notes)]
    return Document([*head, *recorded] if recorded else [])


def gate_document(judged: Sequence[Judgement]) -> Document:
    """Return all results of a gate: pairs, errors, what the reports say, rules and notes."""
    code = first_code({one.code for one in judged})
    blocks: list[Block] = [Section("shadow"), Paragraph(f"Exit code {code}.")]
    blocks.append(_pairs(judged))
    faults = [
        FigureRow(one.name, Word(one.fault, "fault")) for one in judged if one.fault is not None
    ]
    said = [FigureRow(one.name, str(one.summary.finding)) for one in judged if one.summary]
    notes = [FigureRow(one.name, note) for one in judged for note in one.notes]
    rules = [[one.name, *_cells(verdict)] for one in judged for verdict in one.verdicts]
    blocks += [Figures(rows) for rows in (faults, said) if rows]
    blocks += [TableBlock([named("pair"), *RULES], rules, "Rules")] if rules else []
    blocks += [Figures(notes, "Notes")] if notes else []
    return Document(blocks)


def _pairs(judged: Sequence[Judgement]) -> TableBlock:
    def figure(head: str, name: str, kind: Kind, rank: int = 0) -> Field:
        return number(head, lambda one: one.summary and one.summary.figures[name], kind, rank=rank)

    fields = [
        named("family"),
        named("pair"),
        worded("state", state_of),
        figure("norm", "relative_norm_overall", "share"),
        figure("conc.", "concentration", "fixed"),
        figure("unchanged", "zero_share", "fraction", rank=1),
        worded("found", lambda one: one.summary and standing(one.summary)),
    ]
    return table_of(fields, judged)


def state_of(one: Judgement) -> Word:
    """Return the state of a pair and of its rules in a word; without a report as a list has it."""
    if one.summary is None:
        return Word("kept", "warning") if one.kept else Word("failed", "fault")
    if one.code == 3 and one.objections:
        return Word("--strict objects", "fault")
    return STATES[one.code]


def _cells(verdict: Verdict) -> list[Cell]:
    """Return the cells of a verdict; a warning looks different if it is violated or not judged."""
    rule, outcome = verdict.rule, verdict.outcome
    word = Word(OUTCOMES[outcome], LEVELS.get(outcome, "fault"))
    if outcome in ("met", "missing") and rule.severity != "error":
        word = Word(f"{OUTCOMES[outcome]} (warning)", "warning")
    name = Word(rule.name, "", rule.condition if rule.condition != rule.name else "")
    return [word, name, said_of(verdict)]


def said_of(verdict: Verdict) -> str:
    """Return the finding; before it, the message of the rule's author about a violation."""
    if verdict.outcome != "met" or not verdict.rule.message:
        return verdict.detail
    return f"{verdict.rule.message} {verdict.detail}"
