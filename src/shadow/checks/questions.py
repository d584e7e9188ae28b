"""`shadow verify`: a claim about checkpoints, measured in passes over entries -> its answer."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shadow.checks.answer import Check, Question
from shadow.checks.table import require_form
from shadow.checks.verification import Verification
from shadow.errors import UsageError
from shadow.run.runtime import Runtime
from shadow.run.sides import client_for
from shadow.targets.references import AnyReference, ComponentBase


def question(
    claim: str,
    checkpoints: Sequence[AnyReference],
    *,
    moved: Sequence[str] = (),
    frozen: Sequence[str] = (),
    base: AnyReference | None = None,
    headers: bool = False,
) -> Question:
    """The question that these words ask.

    Raises UsageError for a claim that is not known, and for what it is not asked of.
    """
    given: dict[str, Any] = {"moved": moved, "frozen": frozen, "base": base, "headers": headers}
    form = require_form(claim, len(checkpoints), **given)
    _require_alone(form, checkpoints)
    return Question(
        form,
        tuple(checkpoints),
        tuple(moved),
        tuple(frozen),
        base,
        headers,
    )


def _require_alone(form: Check, checkpoints: Sequence[AnyReference]) -> None:
    """Raises UsageError where another side than a base is put together of several checkpoints."""
    for number, side in enumerate(checkpoints):
        name = form.checkpoints[min(number, len(form.checkpoints) - 1)]
        if isinstance(side, ComponentBase) and name != "BASE":
            has_base = "BASE" in form.checkpoints or "base" in form.options
            where = "BASE" if "BASE" in form.checkpoints else "--base"
            hint = f"only {where} has one by component" if has_base else "write ./DIR or org/name"
            raise UsageError(f"{name} is one checkpoint", hint)


def verify(asked: Question, runtime: Runtime) -> Verification:
    """Check a claim. Raises ShadowError where a checkpoint cannot be read."""
    check = asked.check
    assert check.gather is not None, "a check of checkpoints"
    with (
        tempfile.TemporaryDirectory(prefix="shadow-verify-") as scratch,
        client_for(asked.references),
    ):
        evidence = check.gather(asked, runtime, Path(scratch))
    return Verification(check, asked.of, check.judge(evidence))
