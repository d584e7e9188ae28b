"""All checks, the words by which `shadow verify` knows them, and what `explain` says of them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadow.checks import files, merged, quantised, related, same, stored, trained, whole
from shadow.checks.answer import Answer, Check, Outcome, Question, Verification, by_code
from shadow.checks.patterns import NEEDS_PATTERN, pattern_or_name
from shadow.errors import UsageError
from shadow.run.runtime import Runtime
from shadow.run.sides import client_for
from shadow.targets.references import AnyReference, ComponentBase
from shadow.templates import Reason
from shadow.text import and_list, counted, nearest

CHECKS: Mapping[str, Check] = by_code(
    same.CHECK,
    merged.CHECK,
    trained.CHECK,
    stored.CHECK,
    related.CHECK,
    files.CHECK,
    quantised.CHECK,
    whole.CHECK,
)
# of a pair: the base is the first checkpoint, the tuned side the second
OF_PAIRS = tuple(
    name for name, form in CHECKS.items() if len(form.checkpoints) == 2 and not form.repeats
)


def pair_claim(text: str) -> Question:
    """Parse `trained --moved layers.0-7 --frozen embed`, without its sides. Raises UsageError."""
    claim, *rest = re.sub(r"(\s--\w+)=", r"\1 ", text).split() or [""]
    if claim in CHECKS and claim not in OF_PAIRS:
        raise UsageError(f"{claim} is not a claim about a base and a tuned side", one_of(OF_PAIRS))
    found: dict[str, list[str]] = {"--moved": [], "--frozen": []}
    if len(rest) % 2 or any(option not in found for option in rest[::2]):
        hint = "write `trained --moved PATTERN --frozen PATTERN`, each as often as you like"
        raise UsageError(f"{text[:80]!r} is not a claim with patterns", hint)
    for option, pattern in zip(rest[::2], rest[1::2], strict=True):
        found[option].append(pattern_or_name(pattern).text)
    form = require_form(claim, 2, moved=found["--moved"], frozen=found["--frozen"])
    if "moved" in form.options and not any(found.values()):
        raise UsageError(f"{claim} {NEEDS_PATTERN}", f"write: {claim} {form.usage}")
    return Question(form, (), tuple(found["--moved"]), tuple(found["--frozen"]))


def one_of(words: Iterable[str]) -> str:
    """Return `one of a, b, c`."""
    return f"one of {', '.join(words)}"


def require_form(
    claim: str,
    count: int,
    *,
    moved: Sequence[str] = (),
    frozen: Sequence[str] = (),
    base: object = None,
    headers: bool = False,
    accept: Mapping[str, str] | None = None,
) -> Check:
    """Return the check of this code. Raises UsageError for an unknown claim, and for a number of
    checkpoints or options that it does not take.
    """
    form = CHECKS.get(claim)
    if form is None:
        raise UsageError(f"no claim {claim[:40]!r}", nearest(claim, CHECKS) or one_of(CHECKS))
    least = len(form.checkpoints)
    if count < least or (count > least and not form.repeats):
        wanted = counted(least, "checkpoint", "checkpoints")
        if form.repeats:
            wanted = f"{least} or more checkpoints"
        usage = f"write: shadow verify {claim} {form.usage}"
        raise UsageError(f"{claim} needs {wanted}, and got {count}", usage)
    given = {
        "moved": moved,
        "frozen": frozen,
        "base": base,
        "headers": headers,
        "accept": accept,
    }
    for option, value in given.items():
        if value and option not in form.options:
            known = [name for name, other in CHECKS.items() if option in other.options]
            raise UsageError(f"{claim} has no --{option}", f"of these claims: {and_list(known)}")
    whole.require_acceptable(accept or {})
    return form


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
    given: dict[str, Any] = {
        "moved": tuple(moved),
        "frozen": tuple(frozen),
        "base": base,
        "headers": headers,
        "accept": accept or {},
    }
    form = require_form(claim, len(checkpoints), **given)
    for name, side in zip(form.names(len(checkpoints)), checkpoints, strict=True):
        if isinstance(side, ComponentBase) and name != "BASE":
            hint = "a base alone has one by component: write ./DIR or org/name"
            raise UsageError(f"{name} is one checkpoint", hint)
    return Question(form, tuple(checkpoints), **given)


def verify(asked: Question, runtime: Runtime) -> Verification:
    """Check a claim. Raises ShadowError if a checkpoint cannot be read."""
    check = asked.check
    assert check.gather is not None, "a check of checkpoints"
    places = [Path(one.repo).resolve() for one in asked.models if one.is_folder]
    is_one = len(places) == 2 and places[0] == places[1] and places[0].exists()
    if check.code in OF_PAIRS and is_one:
        why = Reason("one_checkpoint", {"names": check.names(2)})
        return Verification(check, asked.of, Answer(Outcome.INCONCLUSIVE, [why]))
    with (
        tempfile.TemporaryDirectory(prefix="shadow-verify-") as scratch,
        client_for(asked.references),
    ):
        evidence = check.gather(asked, runtime, Path(scratch))
    return Verification(check, asked.of, check.judge(evidence))


@dataclass(frozen=True)
class Kind:
    """Checks of one kind, in order."""

    checks: Mapping[str, Check]
    text: str  # what one of them is, as a template of its code, usage, meaning and rate
    has_titles: bool = False  # whether people meet them by their titles


def kinds() -> Mapping[str, Kind]:
    """Return all checks by kind, importing those of a pair's record when called."""
    from shadow.checks.explanations import EXPLANATIONS, RECOGNISED
    from shadow.checks.pair_gates import GATES

    return {
        "explanation": Kind(
            EXPLANATIONS,
            "another explanation of the same figures: {meaning}. `shadow explain finding` describes"
            " the answers",
            has_titles=True,
        ),
        "change": Kind(
            RECOGNISED, "a change that the figures show beyond doubt: {meaning}", has_titles=True
        ),
        "gate": Kind(GATES, "a gate: it passes when {meaning}"),
        "claim": Kind(CHECKS, "a claim of `shadow verify {code} {usage}`: {meaning}[. {rate}]"),
    }
