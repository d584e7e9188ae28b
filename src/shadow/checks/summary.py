"""The summary of a pair: its record, the answers of its checks, and the finding in words."""

from __future__ import annotations

import copy
from typing import Any

from shadow.checks.explanations import Explanation
from shadow.reasons import BROKEN
from shadow.summary.record import Gate, PairRecord, PublishedRank, Row, read_row


class Sentence(Row):
    """A measured statement."""

    code: str
    text: str
    figures: dict[str, float]
    """Its unrounded numbers, by their keys in summary.json."""


class Finding(Row):
    """The finding of a report about its pair.

    Sentences are short paragraphs in the order of shadow.telling.finding.CODES, except that a
    copy's `rounding` comes before `size`, and so do `vocabulary` and `left_out` if nothing changed
    or little was compared; most pairs have two to five.
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
        """The gates that the pair fails: its figures are then not those of a training."""
        return [gate for gate in self.gates if not gate.passed]

    @property
    def unknown_gates(self) -> tuple[Gate, ...]:
        """The failed gates that norms alone, or estimates, cannot answer."""
        if self.has_spectra and not self.estimated:
            return ()
        return tuple(
            gate for gate in self.failed_gates if gate.figure is None and gate.name != "changed"
        )

    @property
    def stopped(self) -> str | None:
        """The gates that the pair failed, in words; None if none. Unknown ones did not fail."""
        unknown = self.unknown_gates
        if stopped := [gate.name for gate in self.failed_gates if gate not in unknown]:
            return f"{'gate' if len(stopped) == 1 else 'gates'} failed: {', '.join(stopped)}"
        return None

    def __str__(self) -> str:
        """The pair and its finding; all fields would fill screens."""
        return f"{self.family}:{self.pair}. {self.finding}"

    def as_json(self) -> dict[str, Any]:
        """The keys of `summary.json`."""
        return copy.deepcopy(dict(self))

    def with_warning(self, text: str) -> Summary:
        """Return the same summary with one more warning, about its age."""
        warnings, codes = [*self.warnings, text], [*self.warning_codes, "older_report"]
        return self.with_values(warnings=warnings, warning_codes=codes)


def summary_from_json(stored: object) -> Summary:
    """Parse a summary. Raises TypeError if the JSON is not that of a summary."""
    summary = read_row(Summary, stored)
    if len(summary.warnings) != len(summary.warning_codes):
        raise TypeError
    return summary


def broken(summary: Summary) -> list[Sentence]:
    """Return the sentences of a finding whose codes are in BROKEN; damage names its tensors.

    `unrelated` and `part_shared` say that the two are not states of one model. A small missing part
    is not broken, nor is what a filter left out.
    """
    paired = all(gate.passed for gate in summary.gates if gate.name == "paired")
    return [
        sentence
        for sentence in summary.finding.sentences
        if sentence.code in BROKEN and not (sentence.code == "part_shared" and paired)
    ]
