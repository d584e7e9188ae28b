"""Documents about the families of the registry, and about one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shadow.telling.document import (
    Cell,
    Document,
    FigureRow,
    Figures,
    Headline,
    Paragraph,
    Word,
    named,
    table_of,
    worded,
)
from shadow.text import counted

if TYPE_CHECKING:
    from shadow.targets.families import Family, Pair


def families_document(families: Sequence[Family]) -> Document:
    """List families, one a row: the pairs, which may follow a colon, and the tags."""
    fields = [
        named("family", "name"),
        worded("pairs", lambda family: _pairs(family.pairs)),
        worded("tags", lambda family: ", ".join(family.tags)),
    ]
    pairs = sum(len(family.pairs) for family in families)
    count = f"{counted(len(families), 'family', 'families')}, {counted(pairs, 'pair', 'pairs')}"
    return Document([table_of(fields, families), Paragraph(count)])


def _pairs(pairs: Sequence[Pair]) -> Cell:
    if not pairs:
        return Word("none", "warning")
    return ", ".join(map(_with_relation, pairs))


def _with_relation(pair: Pair) -> str:
    """The name of a pair, and its relation in brackets if it is unusual."""
    return pair.name if pair.relation == "tuned" else f"{pair.name} ({pair.relation})"


def family_document(family: Family) -> Document:
    """Describe one family: the location of its stages, its pairs with their relations, and its
    note.
    """
    fields = [
        named("stage", lambda row: row[0]),
        worded("component", lambda row: row[1] or "all"),
        worded("checkpoint", lambda row: str(row[2])),
    ]
    stages = table_of(fields, family.references(), close=True)
    pairs = [f"{family.name}:{_with_relation(pair)}" for pair in family.pairs] or ["none"]
    facts = [FigureRow("" if number else "pairs", pair) for number, pair in enumerate(pairs)]
    more = {
        "components": ", ".join(family.components),
        "tags": ", ".join(family.tags),
        "note": family.note,
        "source": family.source,
        "file": f"{family.file}:{family.line}",
    }
    facts += [FigureRow(name, text) for name, text in more.items() if text]
    return Document([Headline(family.name), stages, Figures(facts)])
