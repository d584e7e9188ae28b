"""A check of the two checkpoints of a finished report, which are read once more."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.errors import ShadowError
from shadow.run.runtime import Files, access_of

if TYPE_CHECKING:
    from shadow.checks.summary import Summary
    from shadow.checks.table import PairClaim
    from shadow.checks.verification import Verification


def _say_nothing(_: str) -> None:
    """No-op listener."""


@dataclass(frozen=True)
class Reading:
    """How checkpoints of a report are read again."""

    files: Files = Files(offline=True)  # noqa: RUF009 - frozen
    jobs: int | None = None
    """Tensors that are read at a time."""
    say: Callable[[str], None] = _say_nothing


def checked(asked: PairClaim, summary: Summary, reading: Reading) -> Verification:
    """The answer to a check that a report does not hold.

    Imports what reads weights. Raises ShadowError where a side has changed since its audit.
    """
    from shadow.checks.questions import question, verify
    from shadow.run.runtime import Runtime
    from shadow.run.sides import client_for, find_checkpoint, reference_of

    sides = summary.base, summary.tuned
    references = [reference_of(side) for side in sides]
    runtime = Runtime(jobs=reading.jobs, access=access_of(reading.files), say=reading.say)
    every = [part for reference in references for _, part in reference.parts]
    reading.say(f"{summary.family}:{summary.pair}: check {asked}")
    with tempfile.TemporaryDirectory() as scratch, client_for(every):
        found = [
            find_checkpoint(reference, runtime, Path(scratch) / str(number))
            for number, reference in enumerate(references)
        ]
        for side, one in zip(sides, found, strict=True):
            if side["fingerprint"] not in (None, one.fingerprint):
                raise ShadowError(f"{side['repo']} has changed since it was audited")
        if references[0] != references[1]:  # a side is read, and freed, for itself
            runtime = replace(runtime, found=dict(zip(references, found, strict=True)))
        asked_of = question(asked.claim, references, moved=asked.moved, frozen=asked.frozen)
        return verify(asked_of, runtime)
