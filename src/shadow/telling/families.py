"""The families of the registry, and one of them, as documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shadow.telling.document import (
    Cell,
    Column,
    Document,
    FigureRow,
    Figures,
    Headline,
    Paragraph,
    Table,
    Word,
    named,
    table_of,
    worded,
)
from shadow.text import counted

if TYPE_CHECKING:
    from shadow.targets.families import Family, Pair


def families_document(families: Sequence[Family]) -> Document:
    """Many families, one a row: the pairs, which may stand after a colon, and the tags."""
    fields = [
        named("family", "name"),
        worded("pairs", lambda family: _pairs(family.pairs)),
        worded("last stage", rank=1, of=_last_stage),
        worded("tags", lambda family: ", ".join(family.tags)),
    ]
    pairs = sum(len(family.pairs) for family in families)
    count = f"{counted(len(families), 'family', 'families')}, {counted(pairs, 'pair', 'pairs')}"
    return Document([table_of(fields, families), Paragraph(count)])


def _pairs(pairs: Sequence[Pair]) -> Cell:
    if not pairs:
        return Word("none", "warning")
    return ", ".join(f"{pair.name}{_relation(pair)}" for pair in pairs)


def _relation(pair: Pair) -> str:
    """The relation of a pair where it is not the usual one."""
    return f" ({pair.relation})" if pair.relation != "tuned" else ""


def _last_stage(family: Family) -> str:
    """Where the last stage is; of a folder its name."""
    *_, (_, _, last) = family.references()
    return f".../{last.last_name}" if last.is_folder else str(last)


def family_document(family: Family) -> Document:
    """One family: where its stages are, its pairs with their relations, what else its file says."""
    references = family.references()
    by_component = any(component for _, component, _ in references)
    columns = [Column("stage", "name")]
    columns += [Column("component", "text")] if by_component else []
    columns.append(Column("checkpoint", "text"))
    rows = []
    before = None
    for stage, component, reference in references:
        cells: list[Cell] = ["" if stage == before else stage]
        cells += [component or "all"] if by_component else []
        rows.append([*cells, str(reference)])
        before = stage
    pairs = [f"{family.name}:{pair.name}{_relation(pair)}" for pair in family.pairs] or ["none"]
    facts = [FigureRow("" if number else "pairs", pair) for number, pair in enumerate(pairs)]
    more = {
        "components": ", ".join(family.components),
        "tags": ", ".join(family.tags),
        "note": family.note,
        "source": family.source,
        "file": f"{family.file}:{family.line}",
    }
    facts += [FigureRow(name, text) for name, text in more.items() if text]
    return Document([Headline(family.name), Table(columns, rows, close=True), Figures(facts)])
