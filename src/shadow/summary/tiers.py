"""What each tier of an audit measures, in the words of all that say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Tier = Literal["norms", "delta", "full"]
OF_SUBJECTS: Mapping[object, Tier] = {"none": "norms", "delta": "delta", "all": "full"}
"""By `subjects` of the settings."""


@dataclass(frozen=True)
class TierWords:
    """The words of a tier."""

    how: str
    """What was measured, in a few words."""
    option: str | None = None
    """What asks for it; None for the usual one."""
    code: str | None = None
    """Of the sentence of the finding that says what is unknown."""
    unknown: str = ""

    @property
    def not_measured(self) -> str | None:
        """Why a figure is null; None where all were measured."""
        return self.option and f"the report has {self.how}: it was made with {self.option}"


WORDS: Mapping[Tier, TierWords] = {
    "norms": TierWords(
        "norms alone",
        "--norms",
        "norms_only",
        "Norms alone were measured. How many directions the change has, and how much of it is"
        " rounding, is unknown.",
    ),
    "delta": TierWords(
        "spectra of deltas alone",
        "--subjects delta",
        "deltas_only",
        "Spectra were measured of the deltas alone. How they lie to the directions of the base is"
        " unknown.",
    ),
    "full": TierWords("spectra of base, tuned and delta"),
}
