"""What each tier of an audit measures, in the words of all that say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shadow.reports.metadata import SettingsMetadata

Tier = Literal["norms", "delta", "full"]
BY_SETTING: Mapping[object, Tier] = {"norms": "norms", "delta": "delta"}
"""By the level or the subjects of the settings, where they are not the usual ones."""


def tier_of(settings: SettingsMetadata) -> Tier:
    """Return the tier of a report with these settings."""
    method = settings["method"]
    return BY_SETTING.get(method["level"]) or BY_SETTING.get(method.get("subjects"), "full")


@dataclass(frozen=True)
class TierWords:
    """The words of a tier."""

    how: str
    """What was measured, in a few words."""
    has_spectra: bool = True
    option: str | None = None
    """What asks for it; None for the usual one."""
    unknown: str = ""
    """What the finding says is unknown."""

    @property
    def not_measured(self) -> str | None:
        """Why a figure is null; None where all were measured."""
        return self.option and f"the report has {self.how}: it was made with {self.option}"


WORDS: Mapping[Tier, TierWords] = {
    "norms": TierWords(
        "norms alone",
        False,
        "--level norms",
        "Norms alone were measured. How many directions the change has, and how much of it is"
        " rounding, is unknown.",
    ),
    "delta": TierWords(
        "spectra of deltas alone",
        True,
        "--subjects delta",
        "Spectra were measured of the deltas alone. How they lie to the directions of the base is"
        " unknown.",
    ),
    "full": TierWords("spectra of base, tuned and delta"),
}
