"""What came of the claims of `shadow verify`, as documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shadow.claims.answer import Outcome
from shadow.claims.verify.verification import IN_WORDS, FailedVerification, Verification
from shadow.quantities import Quantity
from shadow.telling.document import (
    Block,
    Cell,
    Column,
    Document,
    FigureRow,
    Figures,
    Headline,
    Level,
    Note,
    Section,
    Table,
    Word,
)

SHOWN = 8  # of what speaks against a claim
LEVELS: Mapping[Outcome, Level] = {
    "holds": "passed",
    "does_not_hold": "fault",
    "cannot_be_told": "warning",
}
AGAINST = [Column("what speaks against it", "name"), Column("how", "text")]
LEGEND = "the norm of the difference over that of the base; of merged and stored, of the update"
AGAINST.append(Column("size", legend=LEGEND))
CLAIMS = [Column("claim", "name"), Column("outcome", "text"), Column("why", "text")]


def verification_document(found: Verification) -> Document:
    """A claim: its answer in a line, what it was asked of, and what speaks against it."""
    line = f"{IN_WORDS[found.outcome]}: {found.reason}"
    blocks: list[Block] = [
        Section("verify", found.claim),
        Headline(line, LEVELS[found.outcome]),
        Figures([FigureRow(name, text) for name, text in found.of.items()]),
    ]
    if found.against:
        rows = [
            [one.name, one.what, None if one.size is None else Quantity(one.size, "share")]
            for one in found.against[:SHOWN]
        ]
        columns = AGAINST if any(one.size is not None for one in found.against) else AGAINST[:2]
        if found.claim == "base":  # of which candidates stand there, that of the base too
            columns = [Column("candidate", "name"), *columns[1:]]
        blocks.append(Table(columns, [row[: len(columns)] for row in rows]))
    if (hidden := len(found.against) - SHOWN) > 0:
        blocks.append(Note(f"--json has {hidden:,} more"))
    blocks += [Note(text) for text in found.notes]
    return Document(blocks)


def verifications_document(found: Sequence[Verification | FailedVerification]) -> Document:
    """Several claims, a line each."""
    return Document([Section("verify"), Table(CLAIMS, [_line(one) for one in found])])


def asked(one: Verification | FailedVerification) -> str:
    """`same A=./a B=./b`: a claim and what it was asked of."""
    return " ".join([one.claim, *(f"{name}={text}" for name, text in one.of.items())])


def _line(one: Verification | FailedVerification) -> list[Cell]:
    if isinstance(one, FailedVerification):
        return [asked(one), Word("fault", "fault"), one.fault]
    return [asked(one), Word(IN_WORDS[one.outcome], LEVELS[one.outcome]), one.reason]
