"""Results of `shadow verify`, as documents."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from shadow.checks.answer import FailedVerification, Named, Outcome, Verification
from shadow.telling.document import (
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
    of_related, against = found.claim == "related", found.against
    # where it is much, a row stands for all names that differ in numbers alone
    alike: dict[tuple[str, str], list[Named]] = {}
    for one in against:
        is_apart = of_related or len(against) <= SHOWN
        name = f"{len(alike)}" if is_apart else INDEX.sub("#", one.name)
        alike.setdefault((name, one.code), []).append(one)
    groups = [*alike.values()][:SHOWN]
    fields = [named("candidate" if of_related else "what speaks against it", _names)]
    if len(alike) < len(against):
        fields.append(number("count", len, "count", legend=MANY))
    fields.append(worded("how", lambda group: group[0].what))
    if any(one.size is not None for one in against):
        size = number("size", lambda group: group[0].size, "share", rank=1, legend=LEGEND)
        fields.append(size)
    hidden = len(against) - sum(map(len, groups))
    return Document(
        [
            Section("verify", found.claim),
            Headline(line, LEVELS[found.outcome]),
            Figures([FigureRow(name, text) for name, text in found.of.items()]),
            *([table_of(fields, groups)] if against else []),
            *([Note(f"--json has {hidden:,} more")] if hidden else []),
            *map(Note, found.notes),
        ]
    )


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
    """Return a line each, those that do not hold first; of several, also the totals, such as `4
    hold, 3 do not, 1 inconclusive`.
    """
    ordered = sorted(found, key=lambda one: ORDER.index(one.exit_code))
    lines = [": ".join((str(_answer(one)[0]), asked(one), _answer(one)[1])) for one in ordered]
    counts = Counter(one.exit_code for one in found)
    totals = [counted(counts[0], "holds", "hold")]
    totals += [counted(counts[code], *words) for code, words in OTHERS if counts[code]]
    return [*lines, ", ".join(totals)] if len(lines) > 1 else lines


def _answer(one: Verification | FailedVerification) -> tuple[Word, str]:
    if isinstance(one, FailedVerification):
        return Word("fault", "fault"), one.fault
    return Word(one.outcome.words, LEVELS[one.outcome]), one.reason
