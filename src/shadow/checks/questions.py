"""`shadow verify`: a claim about checkpoints, measured in passes over entries -> its answer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shadow.checks.gather_files import verify_files
from shadow.checks.gather_merged import verify_merged
from shadow.checks.gather_mixture import verify_mixture
from shadow.checks.gather_quantised import verify_quantised
from shadow.checks.gather_related import verify_related
from shadow.checks.gather_same import verify_same
from shadow.checks.gather_stored import verify_stored
from shadow.checks.gather_trained import verify_trained
from shadow.checks.table import FORMS, VERIFY, Form, require_form
from shadow.checks.verification import Verification
from shadow.errors import UsageError
from shadow.run.runtime import Runtime
from shadow.run.sides import client_for
from shadow.targets.references import AnyReference, ComponentBase, Reference


@dataclass(frozen=True)
class Question:
    """A claim that is to be checked."""

    claim: str
    """One of FORMS."""
    checkpoints: tuple[AnyReference, ...]
    moved: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    base: AnyReference | None = None

    @property
    def of(self) -> dict[str, str]:
        """What it is asked of, by the names in usage."""
        names = FORMS[self.claim].names(len(self.checkpoints))
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


Check = Callable[[Question, Runtime, Path], Verification]
"""Measures what a claim needs, and asks it. The folder is for what lies there meanwhile."""

CHECKS: Mapping[str, Check] = {
    "same": lambda asked, runtime, scratch: verify_same(
        asked.of, asked.checkpoints, runtime, scratch
    ),
    "merged": lambda asked, runtime, scratch: verify_merged(
        asked.of, asked.checkpoints, runtime, scratch
    ),
    "trained": lambda asked, runtime, scratch: verify_trained(
        asked.of, asked.checkpoints, asked.moved, asked.frozen, runtime, scratch
    ),
    "stored": lambda asked, runtime, scratch: verify_stored(
        asked.of, asked.checkpoints, asked.base, runtime, scratch
    ),
    "related": lambda asked, runtime, scratch: verify_related(
        asked.of, asked.models, runtime, scratch
    ),
    "mixture": lambda asked, runtime, scratch: verify_mixture(
        asked.of, asked.checkpoints, asked.base, runtime, scratch
    ),
    "files": lambda asked, runtime, scratch: verify_files(asked.of, asked.models, runtime),
    "quantised": lambda asked, runtime, scratch: verify_quantised(
        asked.of, asked.checkpoints, runtime, scratch
    ),
}


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


def _require_alone(form: Form, checkpoints: Sequence[AnyReference]) -> None:
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
    assert asked.claim in VERIFY, "of `question`"
    with (
        tempfile.TemporaryDirectory(prefix="shadow-verify-") as scratch,
        client_for(asked.references),
    ):
        return CHECKS[asked.claim](asked, runtime, Path(scratch))
