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
    Level,
    Note,
    Section,
    Word,
    named,
    table_of,
    worded,
)
from shadow.telling.verification import LEVELS, verification_document, why_of

OUTCOMES: dict[int, tuple[str, Level]] = {
    0: ("holds", "passed"),
    4: ("does not hold", "fault"),
    5: ("inconclusive", "warning"),
    1: ("fault", "fault"),
}
DIGITS = 16  # of a digest on a card


def checklist_document(checklist: Checklist) -> Document:
    """Show every line, the rows of `whole` if it does not hold, and which commands show more."""
    lines = checklist.lines
    code = checklist.exit_code
    words, level = OUTCOMES[code]
    claims = ", ".join(line.claim for line in lines if line.exit_code == code)
    sides = [FigureRow(word, str(side)) for word, side in checklist.sides.named.items()]
    fields = [named("claim"), worded("outcome", _outcome), worded("why", _why)]
    blocks: list[Block] = [
        Section("check"),
        Headline(f"{words}: {claims}", level),
        Figures(sides),
        table_of(fields, lines),
    ]
    first = lines[0]
    if isinstance(first, Verification) and (len(lines) == 1 or first.exit_code):
        blocks += verification_document(first).blocks[3:]
    for line in lines[1:]:
        if line.exit_code:
            blocks.append(Note(f"`{command_of(line, checklist.access)}` shows more"))
    if checklist.proposed:
        base = checklist.named_base
        blocks.append(Note(f"its base is {base}, it says: `{checklist.proposed}` compares them"))
    return Document(blocks)


def card(checklist: Checklist) -> Document:
    """The checklist for a model card, at most eight lines, without a path of this machine."""
    words, level = OUTCOMES[checklist.exit_code]
    rows = [FigureRow("shadow check", Word(words, level))]
    rows += [FigureRow(line.claim, _outcome(line), _why(line)) for line in checklist.lines]
    digests = []
    for word, digest in checklist.digests.items():
        name = _name(checklist.sides.named[word])
        digests.append(f"{word} {name} sha256 {digest[:DIGITS]}")
    rows.append(FigureRow("compared", ", ".join(digests)))
    return Document([Figures(rows)])


def _name(side: AnyReference) -> str:
    if isinstance(side, Reference) and side.is_folder:
        return side.last_name
    return str(side)


def _outcome(line: Answered) -> Word:
    if isinstance(line, FailedVerification):
        return Word("fault", "fault")
    if line.code == "noted":
        return Word("noted", "quiet")
    return Word(line.outcome.words, LEVELS[line.outcome])


def _why(line: Answered) -> str:
    return line.fault if isinstance(line, FailedVerification) else why_of(line)


def checklist_documents(checklists: Sequence[Checklist]) -> Document:
    """Show several, for the summary of a step."""
    blocks: list[Block] = []
    for checklist in checklists:
        blocks += checklist_document(checklist).blocks
    return Document(blocks)
