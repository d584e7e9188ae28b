"""The record of a pair: what its tables say, before anything is claimed of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shadow.summary.changes import Recognised
from shadow.summary.rows import Bounds, CheckpointSide, FilesRecord, ReportWarning, Row
from shadow.summary.tiers import WORDS, Tier

STATUSES = ("measured", "identical", "skipped")  # of tensors


@dataclass(frozen=True)
class PairRecord:
    """What was measured of one pair: the first keys of `summary.json`, in their order. Their
    meanings, and those of rows' keys, stand in words.yaml and columns.yaml.

    Figures are medians over all delta rows unless their name says otherwise; those of depth
    are of the main component, language where there is one.
    """

    schema: int
    family: str
    pair: str
    base: CheckpointSide
    tuned: CheckpointSide
    counts: Mapping[str, int]  # of STATUSES
    figures: Row
    intervals: Mapping[str, Bounds]
    layers: int
    interval_level: float | None  # the probability that intervals may claim
    no_interval: str | None
    resampling: Mapping[str, str | float]
    components: list[Row]
    modules: list[Row]
    depth: list[Row]
    grid: list[Row]
    inside_layers: Row
    outside_layers: list[Row]
    coherence: list[Row]
    quarters: list[Row]
    unchanged: list[Row]
    without_base: list[Row]
    vectors: Row
    vocabulary: list[Row]
    uncompared: list[Row]
    recognised: Recognised
    skipped: list[Row]
    warnings: list[ReportWarning]
    unchanged_experts: list[Row]
    idle_updates: int
    broken: list[Row]
    tier: Tier
    estimated: bool
    files: FilesRecord | None  # of a report that lists them

    @property
    def has_spectra(self) -> bool:
        """Whether singular values were measured or estimated."""
        return WORDS[self.tier].has_spectra

    @property
    def main_component(self) -> str | None:
        """The component whose depth counts: language, or the one of most layers."""
        return main_of([row.component for row in self.depth])

    @property
    def has_components(self) -> bool:
        """Whether there are several, so that a module needs the name of its own."""
        return len({row.component for row in self.components}) > 1


def main_of(components: list[str]) -> str | None:
    """The main one of the components of layers, one name a layer: language, or that of most."""
    if "language" in components:
        return "language"
    return max(components, key=components.count, default=None)
