"""Findings of `whole`, a row each, and the rules that they follow."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from shadow.checks.answer import Against, Figure, Severity
from shadow.templates import Reason, Value

MOST_ROWS = 100  # of one code
MOST_SHOWN = 80  # characters of a text in a sentence
SMALL = 1 << 26  # bytes of a file that is read whole; the largest tokenizer.json has 40 MB


FAULT = Severity.FAULT
DOUBT = Severity.DOUBT
NOTE = Severity.NOTE


@dataclass(frozen=True)
class FindingRule:
    """A kind of finding; its code is its key in a table."""

    severity: Severity
    text: str  # template of a row
    why: str  # one sentence: the consequence for who loads the checkpoint
    do: str  # one imperative sentence: what mends it


@dataclass
class Findings:
    """Rows by severity, as they are found, and figures."""

    rules: Mapping[str, FindingRule]
    accept: Mapping[str, str] = field(default_factory=dict)  # by code, why a person accepts it
    rows: defaultdict[Severity, list[Against]] = field(default_factory=lambda: defaultdict(list))
    figures: dict[str, Figure] = field(default_factory=dict)

    def add(self, name: str, code: str, **figures: Value) -> None:
        """Add a row about a tensor, module or file; the rule of its code knows the severity."""
        row = Against(name, Reason(code, figures), accepted=self.accept.get(code))
        self.rows[self.rules[code].severity].append(row)


def folded(findings: Iterable[Against]) -> list[Against]:
    """Keep the first rows of each code, in order; a row at the end has the number of the others."""
    shown = []
    by_code: defaultdict[str, list[Against]] = defaultdict(list)
    for row in findings:
        by_code[row.why.code].append(row)
        if len(by_code[row.why.code]) <= MOST_ROWS:
            shown.append(row)
    for rows in by_code.values():
        rest = rows[MOST_ROWS:]
        if rest:
            figures: dict[str, Value] = {"like": rest[0].why, "rows": len(rest) - 1}
            more = replace(rest[0], why=Reason("more", figures))
            shown.append(more if rest[1:] else rest[0])
    return shown


def clipped(value: object) -> str:
    """A text, or a number of any size in digits, as far as a sentence has room for it."""
    text = f"{value:,}" if isinstance(value, int) else str(value)
    if len(text) <= MOST_SHOWN:
        return text
    return f"{text[:MOST_SHOWN]}..."


def gathered(findings: Iterable[Against], *, by_code: bool = False) -> list[Reason]:
    """Merge equal reasons, each with all its names. by_code: merge different figures as well."""
    groups: defaultdict[object, list[Against]] = defaultdict(list)
    for row in findings:
        # not the reason itself, whose hash leaves out the values of its figures
        figures = "" if by_code else repr(row.why.figures)
        groups[row.why.code, figures].append(row)
    reasons = []
    for rows in groups.values():
        why = rows[0].why
        names = [*dict.fromkeys(row.name for row in rows if row.name)]
        reasons.append(Reason(why.code, {**why.figures, "names": names or None}))
    return reasons


def is_broken(content: bytes) -> bool:
    """True if no reader finds a JSON object in a file, for whatever reason `json_object` finds
    none.
    """
    from shadow.checkpoints.safetensors_files import has_too_many_values

    if len(content) >= SMALL or has_too_many_values(content):
        return False
    try:
        return not isinstance(json.loads(content.decode()), dict)
    except (ValueError, RecursionError):
        return True
