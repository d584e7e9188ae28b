"""The summary of a pair: its record, what is claimed of it, and the finding in words."""

from __future__ import annotations

import copy
from typing import Any

from shadow.checks.pair_gates import Gate
from shadow.reasons import BROKEN
from shadow.summary.record import PairRecord, Row, read_row


class Sentence(Row):
    """A measured statement: code, text, and figures, the numbers that stand in it in full, by
    their place in summary.json.
    """

    __slots__ = ()


class Finding(Row):
    """Findings of a report about its pair: headline, sentences, other_explanations and not_shown.

    Sentences are short paragraphs in the order of shadow.telling.finding.CODES, but that a copy's
    `rounding` stands before `size`, and so do `vocabulary` and `left_out` if nothing changed or
    little was compared; of most pairs two to five.
    """

    __slots__ = ()

    @property
    def text(self) -> str:
        """The sentences as one paragraph."""
        return " ".join(sentence.text for sentence in self.sentences)

    def __str__(self) -> str:
        """The headline and the sentences as one paragraph."""
        return f"{self.headline} {self.text}".strip()


class Summary(PairRecord):
    """Summary of one pair as the terminal shows it; `summary.json` is this as JSON.

    Behind the keys of the record: gates; published, its place among released families by the norm
    of the change, None of a part; finding.
    """

    __slots__ = ()

    @property
    def failed_gates(self) -> list[Gate]:
        """The gates that the pair does not pass: its figures are then not those of a training."""
        return [gate for gate in self.gates if not gate.passed]

    @property
    def unknown_gates(self) -> tuple[Gate, ...]:
        """Of the failed gates those that norms alone, or estimates, cannot answer."""
        if self.has_spectra and not self.estimated:
            return ()
        return tuple(
            gate for gate in self.failed_gates if gate.figure is None and gate.name != "changed"
        )

    @property
    def stopped(self) -> str | None:
        """The gates that the pair failed, in words; None of none. Those that are unknown did not
        fail.
        """
        unknown = self.unknown_gates
        if stopped := [gate.name for gate in self.failed_gates if gate not in unknown]:
            return f"{'gate' if len(stopped) == 1 else 'gates'} failed: {', '.join(stopped)}"
        return None

    def __str__(self) -> str:
        """The pair and its finding: all fields would fill screens."""
        return f"{self.family}:{self.pair}. {self.finding}"

    def as_json(self) -> dict[str, Any]:
        """The keys of `summary.json`."""
        return copy.deepcopy(dict(self))

    def with_warning(self, text: str) -> Summary:
        """The same summary with one more warning, about its age."""
        warnings, codes = [*self.warnings, text], [*self.warning_codes, "older_report"]
        return self.with_values(warnings=warnings, warning_codes=codes)


def summary_from_json(stored: object) -> Summary:
    """A summary from JSON. Raises TypeError where the JSON is not that of a summary."""
    summary = Summary(read_row("pair", stored))
    if len(summary.warnings) != len(summary.warning_codes):
        raise TypeError
    return summary.with_values(finding=Finding(summary.finding))


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
