"""What a scan finds of two tensors at one place: the rows that claims judge."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scanned:
    """Two tensors, or parts of tensors, at one place of two checkpoints, entry by entry.

    Energies are sums of squares in float64.
    """

    place: str
    """Such as `language.layers.0.attn.q`."""
    base: str
    """The tensor of the first checkpoint."""
    tuned: str
    """The tensor of the second."""
    formats: tuple[str, str]
    """The stored dtypes of both."""
    entries: int
    changed: int
    """Entries whose values differ."""
    base_energy: float
    tuned_energy: float
    delta_energy: float
    inner: float
    """The inner product of both."""
    finite: bool
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
    parameters: int
    what: str
    """Why, such as `only in A`."""


def relative_norm(rows: Iterable[Scanned]) -> float | None:
    """The norm of all deltas over that of all bases; None where the bases have none."""
    known = [row for row in rows if row.finite]
    base = math.fsum(row.base_energy for row in known)
    return math.sqrt(math.fsum(row.delta_energy for row in known) / base) if base else None
