"""A claim about the two checkpoints of a finished report, which are read once more."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.errors import ShadowError
from shadow.run.access import Files

if TYPE_CHECKING:
    from shadow.checks.summary import Summary
    from shadow.checks.table import PairClaim
    from shadow.checks.verification import Verification
    from shadow.gates.measured import Check


def pair_check(
    files: Files = Files(offline=True),  # noqa: B008 - frozen
    jobs: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Check:
    """What checks claims that a report does not answer; imports what reads weights when it does.

    files: how checkpoints may be read. jobs: tensors that are read at a time.
    """

    def check(asked: PairClaim, summary: Summary) -> Verification:
        from shadow.checks.questions import question, verify
        from shadow.run.access import access_of
        from shadow.run.runtime import Runtime
        from shadow.run.sides import client_for, find_checkpoint, reference_of

        sides = summary.base, summary.tuned
        references = [reference_of(side) for side in sides]
        runtime = Runtime(jobs=jobs, access=access_of(files), say=say)
        every = [part for reference in references for _, part in reference.parts]
        say(f"{summary.family}:{summary.pair}: check {asked}")
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
            return verify(
                question(asked.claim, references, moved=asked.moved, frozen=asked.frozen), runtime
            )

    return check
