"""The summary of a pair: its record, what is claimed of it, and the finding in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from shadow.checks.answer import Figure
from shadow.checks.explanations import Explanation
from shadow.checks.pair_gates import Gate, failed
from shadow.reasons import BROKEN
from shadow.summary.record import STATUSES, PairRecord
from shadow.summary.rows import ReportWarning, Row, WarningCode, read_as


@dataclass(frozen=True)
class Sentence:
    """A measured statement."""

    code: str
    """One of shadow.telling.finding.CODES."""
    text: str
    figures: Mapping[str, Figure]
    """The figures whose numbers stand in it, in full, by their place in summary.json."""


@dataclass(frozen=True)
class Finding:
    """What a report says of its pair."""

    headline: str
    sentences: list[Sentence]
    """Each a short paragraph, in the order of shadow.telling.finding.CODES, but that a copy's
    `rounding` stands before `size`, and so do `vocabulary` and `left_out` if nothing changed or
    little was compared; of most pairs two to five.
    """
    other_explanations: list[Explanation]
    """What else it may be, in the order of EXPLANATIONS."""
    not_shown: list[str]

    @property
    def text(self) -> str:
        """The sentences as one paragraph."""
        return " ".join(sentence.text for sentence in self.sentences)

    def __str__(self) -> str:
        """The headline and the sentences as one paragraph."""
        return f"{self.headline} {self.text}".strip()


@dataclass(frozen=True)
class Summary(PairRecord):
    """What the terminal shows of one pair; `summary.json` is this as JSON."""

    gates: list[Gate]
    published: Row | None
    """Its place among released families by the norm of the change; None of a part."""
    finding: Finding

    @property
    def failed_gates(self) -> list[Gate]:
        """The gates that the pair does not pass: its figures are then not those of a training."""
        return failed(self.gates)

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
        """The keys of `summary.json`. warnings are texts there, warning_codes their codes."""
        columns: dict[str, Any] = {}
        for key, value in asdict(self).items():
            columns[key] = value
            if key == "warnings":
                columns["warnings"] = [warning.text for warning in self.warnings]
                columns["warning_codes"] = [warning.code for warning in self.warnings]
        return columns

    def with_finding(self, finding: Finding) -> Summary:
        """The same figures, and what is said of them."""
        return replace(self, finding=finding)

    def with_warning(self, code: WarningCode, text: str) -> Summary:
        """The same summary with one more warning."""
        return replace(self, warnings=[*self.warnings, ReportWarning(code, text)])


def summary_from_json(stored: Mapping[str, object]) -> Summary:
    """A summary from JSON. Raises TypeError where the JSON is not that of a summary."""
    columns = dict(stored)
    texts = columns.get("warnings")
    codes = columns.pop("warning_codes", None)
    if not isinstance(codes, list) or not isinstance(texts, list) or len(codes) != len(texts):
        raise TypeError
    columns["warnings"] = [
        {"code": code, "text": text} for code, text in zip(codes, texts, strict=True)
    ]
    summary = read_as(Summary, columns)
    if set(summary.counts) != set(STATUSES):
        raise TypeError
    return summary


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
