"""Results of `shadow verify`, as documents."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from shadow.checks.answer import FailedVerification, Named, Outcome, Verification
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
    number,
    table_of,
    worded,
)
from shadow.text import counted, in_ranges

SHOWN = 8  # rows of what speaks against a claim
LEVELS: Mapping[Outcome, Level] = {
    Outcome.HOLDS: "passed",
    Outcome.DOES_NOT_HOLD: "fault",
    Outcome.INCONCLUSIVE: "warning",
}
ORDER = (1, 4, 5, 0)  # of exit codes, the worst first
OTHERS = ((4, ("does not", "do not")), (5, ("inconclusive",) * 2), (1, ("fault", "faults")))
INDEX = re.compile(r"[0-9]{1,9}")  # in a name
RUNS = 4  # of indices that a name spells out
MANY = "how many tensors a row represents; how and size are those of the one that differs most"
LEGEND = "the norm of the difference over that of the base; of merged and stored, of the update"


def verification_document(found: Verification) -> Document:
    """Return a claim with its answer in a line, its checkpoints, and what speaks against it."""
    line = f"{found.outcome.words}: {found.reason}"
    blocks: list[Block] = [
        Section("verify", found.claim),
        Headline(line, LEVELS[found.outcome]),
        Figures([FigureRow(name, text) for name, text in found.of.items()]),
    ]
    if found.against:
        blocks += _against(found)
    blocks += [Note(text) for text in found.notes]
    return Document(blocks)


def _against(found: Verification) -> list[Block]:
    """Return what speaks against a claim. Where it is much, a row stands for all names that differ
    in numbers alone; `related` has a row for each candidate.
    """
    of_related = found.claim == "related"
    against = found.against
    are_few = of_related or len(against) <= SHOWN
    groups = [[one] for one in against] if are_few else _alike(against)
    shown = groups[:SHOWN]
    fields = [named("candidate" if of_related else "what speaks against it", _names)]
    if len(groups) < len(against):
        fields.append(number("count", len, "count", legend=MANY))
    fields.append(worded("how", lambda group: group[0].what))
    if any(one.size is not None for one in against):
        fields.append(number("size", lambda group: group[0].size, "share", legend=LEGEND))
    blocks: list[Block] = [table_of(fields, shown)]
    if hidden := len(against) - sum(map(len, shown)):
        blocks.append(Note(f"--json has {hidden:,} more"))
    return blocks


def _alike(against: Sequence[Named]) -> list[list[Named]]:
    """Group, in order, what has the same name except for numbers, and the same reason."""
    groups: dict[tuple[str, str], list[Named]] = {}
    for one in against:
        key = INDEX.sub("#", one.name), one.code
        groups.setdefault(key, []).append(one)
    return list(groups.values())


def _names(group: Sequence[Named]) -> str:
    """Return `layers.0-7.mlp.up.weight`, for names that differ only in their indices."""
    if len(group) == 1:
        return group[0].name
    indices = zip(*(map(int, INDEX.findall(one.name)) for one in group), strict=True)
    ranges = [in_ranges(each).replace(" ", "") for each in indices]
    recorded = iter([one if one.count(",") < RUNS else "*" for one in ranges])
    return INDEX.sub(lambda _: next(recorded), group[0].name)


def verifications_document(found: Sequence[Verification | FailedVerification]) -> Document:
    """Return several claims, a line each."""
    fields = [
        named("claim", asked),
        worded("outcome", lambda one: _answer(one)[0]),
        worded("why", lambda one: _answer(one)[1]),
    ]
    return Document([Section("verify"), table_of(fields, found)])


def asked(one: Verification | FailedVerification) -> str:
    """Return a claim and its checkpoints: `same A=./a B=./b`."""
    return " ".join([one.claim, *(f"{name}={text}" for name, text in one.of.items())])


def in_lines(found: Sequence[Verification | FailedVerification]) -> list[str]:
    """Return a line each, those that do not hold first; of several, also the totals."""
    ordered = sorted(found, key=lambda one: ORDER.index(one.exit_code))
    lines = [": ".join((str(_answer(one)[0]), asked(one), _answer(one)[1])) for one in ordered]
    return [*lines, totals(found)] if len(lines) > 1 else lines


def totals(found: Sequence[Verification | FailedVerification]) -> str:
    """Return `4 hold, 3 do not, 1 inconclusive`."""
    counts = Counter(one.exit_code for one in found)
    texts = [counted(counts[0], "holds", "hold")]
    texts += [
        f"{counts[code]:,} {words[counts[code] > 1]}" for code, words in OTHERS if counts[code]
    ]
    return ", ".join(texts)


def _answer(one: Verification | FailedVerification) -> tuple[Word, str]:
    if isinstance(one, FailedVerification):
        return Word("fault", "fault"), one.fault
    return Word(one.outcome.words, LEVELS[one.outcome]), one.reason
