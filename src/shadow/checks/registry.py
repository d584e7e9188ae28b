"""All checks, the words by which `shadow verify` knows them, and what `explain` says of them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shadow.checks import files, merged, quantised, related, same, stored, trained, whole
from shadow.checks.answer import Answer, Check, Kind, Outcome, Question, Verification
from shadow.checks.patterns import NEEDS_PATTERN, pattern_or_name
from shadow.errors import UsageError
from shadow.run.runtime import Runtime
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
)
OF_PAIRS = tuple(code for code, check in CHECKS.items() if check.is_of_pair)


def pair_claim(text: str) -> Question:
    """Parse `trained --moved layers.0-7 --frozen embed`, without its sides. Raises UsageError."""
    claim, *words = re.sub(r"(\s--\w+)=", r"\1 ", text).split() or [""]
    if claim in CHECKS and claim not in OF_PAIRS:
        raise UsageError(f"{claim} is not a claim about a base and a tuned side", one_of(OF_PAIRS))
    patterns: dict[str, list[str]] = {"--moved": [], "--frozen": []}
    options = words[::2]
    if len(words) % 2 or not patterns.keys() >= {*options}:
        hint = "write `trained --moved PATTERN --frozen PATTERN`, each as often as you like"
        raise UsageError(f"{text[:80]!r} is not a claim with patterns", hint)
    for option, pattern in zip(options, words[1::2], strict=True):
        patterns[option].append(pattern_or_name(pattern).text)
    moved = tuple(patterns["--moved"])
    frozen = tuple(patterns["--frozen"])
    check = require_form(claim, 2, moved=moved, frozen=frozen)
    if "moved" in check.options and not options:
        raise UsageError(f"{claim} {NEEDS_PATTERN}", f"write: {claim} {check.usage}")
    return Question(check, (), moved, frozen)


def one_of(words: Iterable[str]) -> str:
    """`one of a, b, c`."""
    return f"one of {', '.join(words)}"


def require_form(claim: str, count: int, **options: object) -> Check:
    """The check of this code. Raises UsageError for an unknown claim, and for a number of
    checkpoints or options that it does not take.
    """
    check = CHECKS.get(claim)
    if check is None:
        raise UsageError(f"no claim {claim[:40]!r}", nearest(claim, CHECKS) or one_of(CHECKS))
    least = len(check.checkpoints)
    if count < least or (count > least and not check.repeats):
        wanted = counted(least, "checkpoint", "checkpoints")
        if check.repeats:
            wanted = f"{least} or more checkpoints"
        usage = f"write: shadow verify {claim} {check.usage}"
        raise UsageError(f"{claim} needs {wanted}, and got {count}", usage)
    for option, value in options.items():
        if value and option not in check.options:
            known = [code for code, other in CHECKS.items() if option in other.options]
            raise UsageError(f"{claim} has no --{option}", f"of these claims: {and_list(known)}")
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
    accept = accept or {}
    given: dict[str, Any] = {"base": base, "headers": headers, "accept": accept}
    count = len(checkpoints)
    check = require_form(claim, count, moved=moved, frozen=frozen, **given)
    whole.require_acceptable(accept)
    for name, side in zip(check.names(count), checkpoints, strict=True):
        if isinstance(side, ComponentBase) and name != "BASE":
            hint = "a base alone has one by component: write ./DIR or org/name"
            raise UsageError(f"{name} is one checkpoint", hint)
    return Question(check, tuple(checkpoints), tuple(moved), tuple(frozen), **given)


def verify(question: Question, runtime: Runtime) -> Verification:
    """Check a claim. Raises ShadowError if a checkpoint cannot be read."""
    check = question.check
    assert check.gather is not None, "a check of checkpoints"
    folders = [Path(model.repo).resolve() for model in question.models if model.is_folder]
    is_one = len(folders) == 2 and folders[0] == folders[1] and folders[0].exists()
    if check.is_of_pair and is_one:
        why = Reason("one_checkpoint", {"names": check.names(2)})
        return Verification(check, question.of, Answer(Outcome.INCONCLUSIVE, [why]))
    references = question.references
    with tempfile.TemporaryDirectory(prefix="shadow-verify-") as folder, client_for(references):
        evidence = check.gather(question, runtime, Path(folder))
    return Verification(check, question.of, check.judge(evidence))
