"""What a scan finds of two tensors at one place: the rows that claims judge, and words for them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass

from shadow.text import counted


@dataclass(frozen=True, slots=True)
class Scanned:
    """Two tensors, or parts of tensors, at one place of two checkpoints, entry by entry.

    Energies are sums of squares in float64.
    """

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
    """How the two were lined up, or what the second has instead, where that is not plain."""

    @property
    def relative(self) -> float | None:
        """The norm of the delta over that of the base; None where the base has none."""
        if not self.finite or not self.base_energy:
            return None
        return math.sqrt(self.delta_energy / self.base_energy)


@dataclass(frozen=True, slots=True)
class Apart:
    """A tensor without a partner, or one that is not read."""

    tensor: str
    side: str
    """`base` or `tuned`: the first or the second checkpoint."""
    what: str
    """Why, such as `only in A`."""
    is_shared: bool = False
    """Whether both sides have it, and `what` says how they differ: in rows, shape or dtype."""


def relative_norm(rows: Iterable[Scanned]) -> float | None:
    """The norm of all deltas over that of all bases; None where the bases have none."""
    known = [row for row in rows if row.finite]
    base = math.fsum(row.base_energy for row in known)
    return math.sqrt(math.fsum(row.delta_energy for row in known) / base) if base else None


def all_tensors(count: int) -> str:
    """`the only tensor`, `both tensors`, `all 3 tensors`."""
    if count == 1:
        return "the only tensor"
    return "both tensors" if count == 2 else f"all {count:,} tensors"


def are(count: int) -> str:
    """`is` of one, `are` of several."""
    return "is" if count == 1 else "are"


def some_tensors(some: Sized, every: Sized) -> str:
    """`2 of 3 tensors`."""
    return f"{len(some):,} of {counted(len(every), 'tensor', 'tensors')}"


def not_compared(unread: Sequence[Apart]) -> str:
    """`2 tensors are not compared`, and why."""
    return f"{counted(len(unread), 'tensor is', 'tensors are')} not compared: {unread[0].what}"


def apart_in_words(lone: Sequence[Apart], where: str) -> list[str]:
    """`2 tensors only in A`, and `3 rows only in A, of 2 tensors` where both sides have them."""
    whole = sum(not one.is_shared for one in lone)
    texts = [f"{counted(whole, 'tensor', 'tensors')} {where}"] if whole else []
    shared = Counter(one.what for one in lone if one.is_shared)
    return texts + [
        f"{what}, of {counted(count, 'tensor', 'tensors')}" for what, count in shared.items()
    ]
