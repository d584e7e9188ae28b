"""How much of a pair is measured, and how precisely. Imports nothing that computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["norms", "sketch", "full", "exact"]
Subjects = Literal["all", "delta"]  # of a pair: those whose spectra are measured


@dataclass(frozen=True)
class Method:
    """How numbers are computed; part of what makes two reports comparable."""

    level: Level = "full"
    subjects: Subjects = "all"

    @property
    def compares_subspaces(self) -> bool:
        """Whether leading singular vectors of base and tuned are compared."""
        return self.subjects == "all"
