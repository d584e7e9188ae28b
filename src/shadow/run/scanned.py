"""Rows that a scan makes of two tensors at one place, and texts about them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shadow.templates import Reason

# templates of why a tensor has no partner, or is not read
APART: Mapping[str, str] = {
    "said": "{text}",
    "only_in": "only in {where}",
    "one_side": "on one side only",
    "no_module": "the base has no such module",
    "no_target": "its config does not target it, so peft leaves it out",
    # of the modules of an adapter
    "other_width": "another width than the base's: {text}",
    "unnamed": "none of the adapter's {modules:count module|modules} has a name of the base: peft"
    " applies nothing[; with {instead} for {prefix} they would have one]",
    "some_unnamed": "{unnamed:count} of the adapter's {modules:count module|modules}"
    " {unnamed|has|have} no name of the base, so peft leaves {unnamed|it|them} out: {names}[; with"
    " {instead} for {prefix} {unnamed|it|they} would have one]",
    "untargeted": "the adapter's config does not target {untargeted:count} of its {modules:count"
    " module|modules}, so peft leaves {untargeted|it|them} out: {names}",
    "rows_only_in": "{rows:count row|rows} only in {where}",
    "shapes": "shape {first} in {a}, {second} in {b}",
    "dtypes": "{first} in {a}, {second} in {b}",
    "not_read": "the other side is not read",
    "not_finite": "some entries are not finite",
}
ON_ONE_SIDE = Reason("one_side")


@dataclass(frozen=True, slots=True)
class Scanned:
    """Two tensors, or parts of them, entry by entry; energies are sums of squares in float64."""

    place: str
    """Such as `language.layers.0.attn.q`."""
    base: str
    tuned: str
    formats: tuple[str, str]
    """The stored dtypes of both."""
    entries: int
    changed: int
    """Entries whose values differ."""
    base_energy: float = 0.0
    """Of bytes there are no energies."""
    tuned_energy: float = 0.0
    delta_energy: float = 0.0
    inner: float = 0.0
    finite: bool = True
    """Whether every entry of both is; otherwise energies are those of some entries."""
    rounded: tuple[str, str] | None = None
    """(`base` or `tuned`, a format) where that side is the other rounded to it, in every entry."""
    remark: str = ""
    """How the two were lined up, where that is not plain."""
    relation: Reason | None = None
    """In which way one is the other in every entry, where that was looked for."""

    @property
    def relative(self) -> float | None:
        """The norm of the delta over that of the base; None if the base has none."""
        if not self.finite or not self.base_energy:
            return None
        return math.sqrt(self.delta_energy / self.base_energy)


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A tensor without a partner, or one that is not read."""

    tensor: str
    side: str
    """`base` or `tuned`: the first or the second checkpoint; `adapter`."""
    why: Reason
    is_shared: bool = False
    """Whether both sides have it, and `why` says how they differ: in rows, shape or dtype."""


def in_order(unmatched: Unmatched) -> tuple[str, ...]:
    """A sort key: by name, then by side, then by reason."""
    why = unmatched.why
    return unmatched.tensor, unmatched.side, why.code, *map(str, why.figures.values())


def relative_norm(rows: Iterable[Scanned]) -> float | None:
    """The norm of all deltas over that of all bases; None if the bases have none."""
    known = [row for row in rows if row.finite]
    base = math.fsum(row.base_energy for row in known)
    delta = math.fsum(row.delta_energy for row in known)
    if not base:
        return None
    return math.sqrt(delta / base)


def not_compared(unread: Sequence[Unmatched]) -> list[Reason]:
    """Count the tensors that are not compared, and say why the first is not; empty without any."""
    if not unread:
        return []
    return [Reason("not_compared", tensors=len(unread), why=unread[0].why)]


def unmatched_reasons(unmatched: Sequence[Unmatched], where: Reason = ON_ONE_SIDE) -> list[Reason]:
    """Count the tensors that only one side has, and those that differ in shape, dtype or rows."""
    reasons = []
    whole = sum(not tensor.is_shared for tensor in unmatched)
    if whole:
        reasons.append(Reason("apart", tensors=whole, where=where))
    shared = Counter(tensor.why for tensor in unmatched if tensor.is_shared)
    for how, count in shared.items():
        reasons.append(Reason("shared_apart", tensors=count, how=how))
    return reasons
