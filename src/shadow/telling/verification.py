"""Results of `shadow verify`, as documents."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from shadow.checks.answer import FailedVerification, Named, Outcome, Verification
from shadow.telling.document import (
    Block,
    Document,
    Headline,
    Level,
    Note,
    Section,
    Word,
    figures_of,
    named,
    number,
    table_of,
    worded,
)
from shadow.text import and_list, counted, in_ranges

Answered = Verification | FailedVerification
SHOWN = 8  # rows of what speaks against a claim
LEVELS: Mapping[Outcome, Level] = {
    Outcome.HOLDS: "passed",
    Outcome.DOES_NOT_HOLD: "fault",
    Outcome.INCONCLUSIVE: "warning",
}
ORDER = (1, 4, 5, 0)  # of exit codes, the worst first
OTHERS = (
    (4, ("does not", "do not")),
    (5, ("inconclusive", "inconclusive")),
    (1, ("fault", "faults")),
)
INDEX = re.compile(r"[0-9]{1,9}(?!.*\.(?:safetensors|bin)$)")  # not in the name of a file
RUNS = 4  # of indices that a name spells out
MANY = "how many tensors a row represents; how and size are those of the one that differs most"
MANY_OF_WHOLE = "how many tensors, modules or files a row represents; how is that of the first"
LEGEND = "the norm of the difference over that of the base; of merged and stored, of the update"


ANSWERS = (
    worded("outcome", lambda answer: answer_of(answer)[0]),
    worded("why", lambda answer: answer_of(answer)[1]),
)


def verification_document(verification: Verification) -> Document:
    """Show a claim with its answer in a line, its checkpoints, and what speaks against it."""
    against = verification.against
    of_whole = verification.claim == "whole"

    def how(group: Sequence[Named]) -> str:
        """Put a row in words, behind its code where `explain` says what to do about it."""
        row = group[0]
        return f"{row.code}: {row.what}" if of_whole else row.what

    of_related = verification.claim == "related"
    # where it is much, a row represents all names that differ in numbers alone; of whole, a code
    groups: dict[tuple[str, str], list[Named]] = {}
    for tensor in against:
        name = "" if of_whole else _kind(tensor)
        if of_related or len(against) <= SHOWN:
            name = f"{len(groups)}"
        groups.setdefault((name, tensor.code), []).append(tensor)
    shown = [*groups.values()][:SHOWN]
    fields = [named("candidate" if of_related else "what speaks against it", _names)]
    if len(groups) < len(against):
        legend = MANY_OF_WHOLE if of_whole else MANY
        fields.append(number("count", len, "count", legend=legend))
    fields.append(worded("how", how))
    if any(tensor.size is not None for tensor in against):
        size = number("size", lambda group: group[0].size, "share", rank=1, legend=LEGEND)
        fields.append(size)
    headline = f"{verification.outcome.words}: {why_of(verification)}"
    blocks: list[Block] = [
        Section("verify", verification.claim),
        Headline(headline, LEVELS[verification.outcome]),
        figures_of(verification.of),
    ]
    if against:
        blocks.append(table_of(fields, shown))
    if hidden := len(against) - sum(map(len, shown)):
        blocks.append(Note(f"--json has {hidden:,} more"))
    blocks += map(Note, verification.notes)
    if of_whole and not verification.holds:
        code = verification.code
        blocks.append(Note(f"`shadow explain {code}` says why it matters and what to do"))
    return Document(blocks)


def why_of(verification: Verification) -> str:
    """The reason; where several faults have a row each, their codes."""
    codes = [reason.code for reason in verification.answer.reasons]
    if verification.claim != "whole" or verification.holds is not False or len(codes) == 1:
        return verification.reason
    return f"{counted(int(verification.figures['faults']), 'fault', 'faults')}: {and_list(codes)}"


def _names(group: Sequence[Named]) -> str:
    """`layers.0-7.mlp.up.weight`, for names that differ only in their indices."""
    first = group[0]
    alike = [tensor for tensor in group if _kind(tensor) == _kind(first)]
    more = len(group) - len(alike)
    others = f" and {more:,} more" if more else ""
    indices = [map(int, INDEX.findall(tensor.name)) for tensor in alike]
    ranges = [in_ranges(numbers).replace(" ", "") for numbers in zip(*indices, strict=True)]
    texts = iter([text if text.count(",") < RUNS else "*" for text in ranges])
    return INDEX.sub(lambda _: next(texts), first.name) + others


def _kind(tensor: Named) -> str:
    """The name without its numbers."""
    return INDEX.sub("#", tensor.name)


def verifications_document(answers: Sequence[Answered]) -> Document:
    """Show several claims, a line each."""
    fields = [
        named("claim", claim_text),
        *ANSWERS,
    ]
    return Document([Section("verify"), table_of(fields, answers)])


def claim_text(answer: Answered) -> str:
    """A claim and its checkpoints: `same A=./a B=./b`."""
    checkpoints = [f"{name}={text}" for name, text in answer.of.items()]
    return " ".join([answer.claim, *checkpoints])


def in_lines(answers: Sequence[Answered]) -> list[str]:
    """A line each, those that do not hold first; of several, also the totals, such as `4 hold, 3 do
    not, 1 inconclusive`.
    """
    lines = []
    for answer in sorted(answers, key=lambda answer: ORDER.index(answer.exit_code)):
        outcome, why = answer_of(answer)
        lines.append(f"{outcome}: {claim_text(answer)}: {why}")
    if len(lines) < 2:
        return lines
    counts = Counter(answer.exit_code for answer in answers)
    totals = [counted(counts[0], "holds", "hold")]
    totals += [counted(counts[code], *words) for code, words in OTHERS if counts[code]]
    return [*lines, ", ".join(totals)]


def answer_of(answer: Answered) -> tuple[Word, str]:
    """The outcome of a claim, and why."""
    if isinstance(answer, FailedVerification):
        return Word("fault", "fault"), answer.fault
    if answer.code == "noted":
        return Word("noted", "quiet"), why_of(answer)
    return Word(answer.outcome.words, LEVELS[answer.outcome]), why_of(answer)
