"""The checklist of a model, as a document and as lines of a model card."""

from __future__ import annotations

from collections.abc import Sequence

from shadow.checks.answer import FailedVerification, Verification
from shadow.checks.checklist import Answered, Checklist, command_of
from shadow.targets.references import AnyReference, Reference
from shadow.telling.document import (
    Block,
    Document,
    FigureRow,
    Figures,
    Headline,
    Note,
    Section,
    Word,
    named,
    table_of,
)
from shadow.telling.verification import ANSWERS, answer_of, verification_document

DIGITS = 16  # of a digest on a card


def checklist_document(checklist: Checklist) -> Document:
    """Show every line, the rows and notes of `whole`, and which commands show more."""
    lines = checklist.lines
    outcome, worst = _worst(checklist)
    claims = ", ".join(line.claim for line in worst)
    sides = [FigureRow(word, str(side)) for word, side in checklist.sides.named.items()]
    blocks: list[Block] = [
        Section("check"),
        Headline(f"{outcome.text}: {claims}", outcome.level),
        Figures(sides),
        table_of([named("claim"), *ANSWERS], lines),
    ]
    first = lines[0]
    if isinstance(first, Verification):
        blocks += verification_document(first).blocks[3:]
    remarks = []
    for line in lines[1:]:
        hint = line.hint if isinstance(line, FailedVerification) else None
        if line.exit_code:
            remarks.append(hint or f"`{command_of(line, checklist.access)}` shows more")
    blocks += map(Note, dict.fromkeys(remarks))
    if checklist.proposed:
        base = checklist.named_base
        blocks.append(Note(f"its base is {base}, it says: `{checklist.proposed}` compares them"))
    return Document(blocks)


def card(checklist: Checklist) -> Document:
    """The checklist for a model card, at most eight lines, without a path of this machine."""
    outcome, _ = _worst(checklist)
    answers = [FigureRow(line.claim, *answer_of(line)) for line in checklist.lines]
    compared = []
    for word, side in checklist.sides.named.items():
        digest = checklist.digests.get(word, "unknown")
        compared.append(f"{word} {_name(side)} sha256 {digest[:DIGITS]}")
    sides = FigureRow("compared", ", ".join(compared))
    return Document([Figures([FigureRow("shadow check", outcome), *answers, sides])])


def _name(side: AnyReference) -> str:
    if isinstance(side, Reference) and side.is_folder:
        return side.last_name
    return str(side)


def _worst(checklist: Checklist) -> tuple[Word, list[Answered]]:
    """The outcome of a checklist, and the lines that have it."""
    worst = [line for line in checklist.lines if line.exit_code == checklist.exit_code]
    return answer_of(worst[0])[0], worst


def checklist_documents(checklists: Sequence[Checklist]) -> Document:
    """Show several, for the summary of a step."""
    documents = map(checklist_document, checklists)
    return Document([block for document in documents for block in document.blocks])
