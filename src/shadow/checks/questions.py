"""`shadow verify`: a claim about checkpoints, measured in passes over entries -> its answer."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shadow.checks.answer import Check
from shadow.checks.table import CHECKS, require_form
from shadow.checks.verification import Verification
from shadow.errors import UsageError
from shadow.run.runtime import Runtime
from shadow.run.sides import client_for
from shadow.targets.references import AnyReference, ComponentBase, Reference


@dataclass(frozen=True)
class Question:
    """A claim that is to be checked."""

    claim: str
    """One of CHECKS."""
    checkpoints: tuple[AnyReference, ...]
    moved: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    base: AnyReference | None = None

    @property
    def of(self) -> dict[str, str]:
        """What it is asked of, by the names in usage."""
        names = CHECKS[self.claim].names(len(self.checkpoints))
        told = {
            name: str(reference) for name, reference in zip(names, self.checkpoints, strict=True)
        }
        if self.base is not None:
            told["--base"] = str(self.base)
        for option, patterns in (("--moved", self.moved), ("--frozen", self.frozen)):
            if patterns:
                told[option] = ", ".join(patterns)
        return told

    @property
    def models(self) -> list[Reference]:
        """The checkpoints, where the claim has none by component."""
        return [side for side in self.checkpoints if isinstance(side, Reference)]

    @property
    def references(self) -> list[Reference]:
        """Every checkpoint that it reads."""
        sides = [*self.checkpoints, *([self.base] if self.base else [])]
        return [part for side in sides for _, part in side.parts]


def question(
    claim: str,
    checkpoints: Sequence[AnyReference],
    *,
    moved: Sequence[str] = (),
    frozen: Sequence[str] = (),
    base: AnyReference | None = None,
) -> Question:
    """The question that these words ask.

    Raises UsageError for a claim that is not known, and for what it is not asked of.
    """
    form = require_form(claim, len(checkpoints), moved=moved, frozen=frozen, base=base)
    _require_alone(form, checkpoints)
    return Question(
        claim,
        tuple(checkpoints),
        tuple(moved),
        tuple(frozen),
        base,
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
    check = CHECKS[asked.claim]
    assert check.gather is not None, "a check of checkpoints"
    with (
        tempfile.TemporaryDirectory(prefix="shadow-verify-") as scratch,
        client_for(asked.references),
    ):
        evidence = check.gather(asked, runtime, Path(scratch))
    return Verification(check, asked.of, check.judge(evidence))
