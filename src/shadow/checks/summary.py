"""The summary of a pair: its record, the answers of its checks, and the finding in words."""

from __future__ import annotations

import copy
from typing import Any, Literal

from shadow.checks.explanations import Explanation, is_copied, is_rearranged
from shadow.reasons import BROKEN
from shadow.summary.record import Gate, PairRecord, PublishedRank, Row

GateState = Literal["passed", "failed", "unknown", "does not apply"]
# gates that do not apply to a pair of which a sentence says what it is
EXPLAINED_BY = {
    "changed": ("identical", "only_vectors"),
    "lineage": ("identical",),
    "rounding": ("identical",),  # nothing of which more could be said
    "rank": ("identical", "low_rank"),
    "paired": ("part_asked_for",),
}


class Sentence(Row):
    """A measured statement."""

    code: str
    text: str
    figures: dict[str, float]
    """Its unrounded numbers, by their keys in summary.json."""


class Finding(Row):
    """The finding of a report about its pair.

    Sentences are short paragraphs in the order of shadow.telling.finding.CODES, except that a
    copy's `rounding` comes before `size`, and so does `left_out` if nothing changed or little was
    compared; most pairs have two to five.
    """

    headline: str
    sentences: list[Sentence]
    other_explanations: list[Explanation]
    not_shown: list[str]

    @property
    def text(self) -> str:
        """The sentences as one paragraph."""
        return " ".join(sentence.text for sentence in self.sentences)

    def __str__(self) -> str:
        """The headline and the sentences as one paragraph."""
        return f"{self.headline} {self.text}".strip()


class Summary(PairRecord):
    """Summary of a pair as the terminal shows it; `summary.json` is its JSON."""

    gates: list[Gate]
    published: PublishedRank | None
    """Its rank among released families by the norm of the change; None for a part of a pair."""
    finding: Finding

    @property
    def failed_gates(self) -> list[Gate]:
        """The gates that the pair does not pass: its figures are then not those of a training."""
        return [gate for gate in self.gates if not gate.passed]

    def state_of(self, gate: Gate) -> GateState:
        """The state of a gate. `unknown`: norms alone, or estimates, cannot answer it. `does
        not apply`: a sentence of the finding says what the pair is, such as a copy or an adapter.
        """
        if gate.passed:
            return "passed"
        is_partial = self.estimated or not self.has_spectra
        if is_partial and gate.figure is None and gate.name != "changed":
            return "unknown"
        codes = {sentence.code for sentence in self.finding.sentences}
        explained = {name for name, why in EXPLAINED_BY.items() if codes.intersection(why)}
        if is_copied(self) or not self.has_spectra:
            explained.add("rounding")
        if is_partial:
            explained.add("rank")
        if is_rearranged(self):
            explained.add("lineage")
        return "does not apply" if gate.name in explained else "failed"

    def gates_that(self, state: GateState) -> list[Gate]:
        """The gates of this state."""
        return [gate for gate in self.gates if self.state_of(gate) == state]

    @property
    def stopped(self) -> str | None:
        """The gates that the pair does not pass, in words, without unknown ones; None if none."""
        states: list[GateState] = ["failed", "does not apply"]
        names = [f"{gate.name} {state}" for state in states for gate in self.gates_that(state)]
        return f"gates: {', '.join(names)}" if names else None

    def __str__(self) -> str:
        """The pair and its finding; all fields would fill screens."""
        return f"{self.family}:{self.pair}. {self.finding}"

    def as_json(self) -> dict[str, Any]:
        """The keys of `summary.json`."""
        return copy.deepcopy(dict(self))

    def with_warning(self, text: str) -> Summary:
        """The same summary with one more warning, about its age."""
        return self.with_values(
            warnings=[*self.warnings, text],
            warning_codes=[*self.warning_codes, "older_report"],
        )


def broken(summary: Summary) -> list[Sentence]:
    """The sentences of a finding whose codes are in BROKEN; damage names its tensors.

    `unrelated` and `part_shared` say that the two are not states of one model. A small missing part
    is not broken, nor is what a filter left out.
    """
    paired = all(gate.passed for gate in summary.gates if gate.name == "paired")
    return [
        sentence
        for sentence in summary.finding.sentences
        if sentence.code in BROKEN and not (sentence.code == "part_shared" and paired)
    ]
