"""What `whole` finds: faults a row each, doubts that leave it open, and notes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shadow.checks.answer import Against, Figure
from shadow.templates import Reason, Value


@dataclass
class Part:
    """Faults, doubts and notes as they are found."""

    against: list[Against] = field(default_factory=list)
    doubts: list[Reason] = field(default_factory=list)  # what could not be checked
    notes: list[Reason] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)

    def fault(self, name: str, code: str, **figures: Value) -> None:
        self.against.append(Against(name, Reason(code, figures)))

    def doubt(self, name: str, code: str, **figures: Value) -> None:
        self.doubts.append(Reason(code, {**figures, "names": [name]}))

    def note(self, name: str, code: str, **figures: Value) -> None:
        self.notes.append(Reason(code, {**figures, "names": [name]}))


def gathered(reasons: Iterable[Reason]) -> list[Reason]:
    """Each thing that is said once, with all names of which it is said."""
    found: dict[str, tuple[Reason, list[str]]] = {}
    for one in reasons:
        figures = dict(one.figures)
        names = figures.pop("names", None) or []
        assert isinstance(names, list), "of names"
        plain = Reason(one.code, figures)
        found.setdefault(repr(plain), (plain, []))[1].extend(map(str, names))
    return [
        Reason(one.code, {**one.figures, "names": names} if names else one.figures)
        for one, names in found.values()
    ]


def summary(against: Sequence[Against], order: Sequence[str]) -> list[Reason]:
    """A reason for each kind of fault, in this order, with the names of those that have it."""
    groups: defaultdict[str, list[Against]] = defaultdict(list)
    for one in against:
        groups[one.why.code].append(one)
    return [
        Reason(code, {**own[0].why.figures, "names": [*dict.fromkeys(one.name for one in own)]})
        for code, own in sorted(groups.items(), key=lambda group: order.index(group[0]))
    ]


def json_object(content: bytes | None) -> Mapping[str, Any]:
    """A file of JSON as an object; empty where it is none."""
    from shadow.checkpoints.safetensors_files import strict_json

    try:
        found = strict_json(content or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
