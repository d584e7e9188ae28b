"""What makes a report one that nobody should build on: damage, or nothing that was compared."""

from __future__ import annotations

from shadow.checks.summary import Sentence, Summary
from shadow.reasons import BROKEN


def broken(summary: Summary) -> list[Sentence]:
    """Return the sentences of a finding whose codes are in BROKEN; damage names its tensors.

    `unrelated` and `part_shared` say that the two are not states of one model. A small part that
    is missing is no reason, nor is what a filter left out.
    """
    paired = all(gate.passed for gate in summary.gates if gate.name == "paired")
    return [
        sentence
        for sentence in summary.finding.sentences
        if sentence.code in BROKEN and not (sentence.code == "part_shared" and paired)
    ]
