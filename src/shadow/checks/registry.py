"""All checks, the words by which `shadow verify` knows them, and what `explain` says of them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shadow.checks import (
    drop_in,
    files,
    merged,
    moved,
    quantised,
    related,
    same,
    stored,
    trained,
    whole,
)
from shadow.checks.answer import Answer, Check, Kind, Outcome, Question, Verification
from shadow.checks.patterns import NEEDS_PATTERN, pattern_or_name
from shadow.errors import UsageError
from shadow.run.runtime import Gathering, Runtime, gather_together
from shadow.run.sides import client_for
from shadow.targets.references import AnyReference, ComponentBase
from shadow.templates import Reason
from shadow.text import and_list, counted, nearest

CHECKS = Kind(
    "a claim of `shadow verify {code} {usage}`: {meaning}[. {rate}]",
    same.CHECK,
    merged.CHECK,
    trained.CHECK,
    stored.CHECK,
    related.CHECK,
    files.CHECK,
    quantised.CHECK,
    whole.CHECK,
    drop_in.CHECK,
    moved.CHECK,
)
BY_NAME = ("merged", "trained", "stored", "moved")  # claims that compare what has one name
OF_PAIRS = tuple(code for code, check in CHECKS.items() if check.is_of_pair)


def pair_claim(text: str) -> Question:
    """Parse `trained --moved layers.0-7 --frozen embed`, without its sides. Raises UsageError."""
    spaced = re.sub(r"(\s--\w+)=", r"\1 ", text)
    claim, *words = spaced.split() or [""]
    if claim in CHECKS and claim not in OF_PAIRS:
        fault = f"{claim} is not a claim about a base and a tuned side"
        raise UsageError(fault, one_of(OF_PAIRS))
    moved: list[str] = []
    frozen: list[str] = []
    patterns = {"--moved": moved, "--frozen": frozen}
    options = words[::2]
    is_even = len(words) % 2 == 0
    if not is_even or not patterns.keys() >= {*options}:
        hint = "write `trained --moved PATTERN --frozen PATTERN`, each as often as you like"
        raise UsageError(f"{text[:80]!r} is not a claim with patterns", hint)
    for option, word in zip(options, words[1::2], strict=True):
        pattern = pattern_or_name(word)
        patterns[option].append(pattern.text)
    check = require_form(claim, 2, moved=moved, frozen=frozen)
    if "moved" in check.options and not options:
        hint = f"write: {claim} {check.usage}"
        raise UsageError(f"{claim} {NEEDS_PATTERN}", hint)
    return Question(check, (), tuple(moved), tuple(frozen))


def one_of(words: Iterable[str]) -> str:
    """`one of a, b, c`."""
    return f"one of {', '.join(words)}"


def require_form(claim: str, count: int, **options: object) -> Check:
    """The check of this code. Raises UsageError for an unknown claim, and for a number of
    checkpoints or options that it does not take.
    """
    check = CHECKS.get(claim)
    if check is None:
        hint = nearest(claim, CHECKS) or one_of(CHECKS)
        raise UsageError(f"no claim {claim[:40]!r}", hint)
    least = len(check.checkpoints)
    wanted = counted(least, "checkpoint", "checkpoints")
    is_wanted = count == least
    if check.repeats:
        wanted = f"{least} or more checkpoints"
        is_wanted = count >= least
    if not is_wanted:
        usage = f"write: shadow verify {claim} {check.usage}"
        raise UsageError(f"{claim} needs {wanted}, and got {count}", usage)
    for option, value in options.items():
        if value and option not in check.options:
            known = [code for code, other in CHECKS.items() if option in other.options]
            hint = f"of these claims: {and_list(known)}"
            raise UsageError(f"{claim} has no --{option}", hint)
    return check


def question(
    claim: str,
    checkpoints: Sequence[AnyReference],
    *,
    moved: Sequence[str] = (),
    frozen: Sequence[str] = (),
    base: AnyReference | None = None,
    headers: bool = False,
    accept: Mapping[str, str] | None = None,
) -> Question:
    """Make a question from its words. Raises UsageError, also for a tuned side by component."""
    options: dict[str, Any] = {
        "moved": tuple(moved),
        "frozen": tuple(frozen),
        "base": base,
        "headers": headers,
        "accept": accept or {},
    }
    sides = tuple(checkpoints)
    check = require_form(claim, len(sides), **options)
    whole.require_acceptable(options["accept"])
    names = check.names(len(sides))
    for name, side in zip(names, sides, strict=True):
        if isinstance(side, ComponentBase) and name != "BASE":
            hint = "a base alone has one by component: write ./DIR or org/name"
            raise UsageError(f"{name} is one checkpoint", hint)
    return Question(check, sides, **options)


def verify(question: Question, runtime: Runtime) -> Verification:
    """Check a claim. Raises ShadowError if a checkpoint cannot be read."""
    return gather_together([verifying(question, runtime)])[0]


def verifying(question: Question, runtime: Runtime) -> Gathering[Verification]:
    """Check a claim, beside others."""
    check = question.check
    assert check.gather is not None, "a check of checkpoints"
    folders = []
    for model in question.models:
        folder = Path(model.repo)
        if model.is_folder and folder.exists():
            folders.append(folder.resolve())
    if check.is_of_pair and len(folders) == 2 and folders[0] == folders[1]:
        why = Reason("one_checkpoint", names=check.names(2))
        answer = Answer(Outcome.INCONCLUSIVE, [why])
        return Verification(check, question.of, answer)
    references = question.references
    with tempfile.TemporaryDirectory(prefix="shadow-verify-") as scratch, client_for(references):
        evidence = check.gather(question, runtime, Path(scratch))
        if isinstance(evidence, Generator):  # of checks that scan
            evidence = yield from evidence
        answer = check.judge(evidence)
        is_against = check.code in BY_NAME and answer.outcome is Outcome.DOES_NOT_HOLD
        if is_against or answer.figures.get("matrices_unlike"):
            folder = Path(scratch) / "numbers"
            numbers = [*_noted_numbers(question, answer, runtime, folder)]
            notes = [*answer.notes, *numbers]
            if numbers and answer.holds:
                notes = [*answer.notes, *answer.reasons]
                answer = replace(answer, outcome=Outcome.INCONCLUSIVE, reasons=numbers)
            answer = replace(answer, notes=notes)
    return Verification(check, question.of, answer)


def _noted_numbers(
    question: Question, answer: Answer, runtime: Runtime, scratch: Path
) -> Iterator[Reason]:
    """Note that other layers or experts correspond than those that have one name."""
    from shadow.run.sampled import has_moved
    from shadow.run.sides import find_checkpoints, open_checkpoint

    names = question.check.checkpoints
    checkpoints = find_checkpoints(question.named, runtime, scratch)
    first = open_checkpoint(checkpoints[names[0]], runtime, scratch / "first")
    last = open_checkpoint(checkpoints[names[-1]], runtime, scratch / "last")
    may_have = 4 * len(answer.against) >= len(last.tensors)
    may_have |= bool(answer.figures.get("matrices_unlike"))
    if last.adapter is None and has_moved(first, last, runtime, scratch, may_have=may_have):
        yield Reason("other_numbers", first=names[0], last=names[-1])
