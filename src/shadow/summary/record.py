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
    """What was measured of one pair: the first keys of `summary.json`, in their order.

    Figures are medians over all delta rows unless their name says otherwise; those of depth
    are of the main component, language where there is one.
    """

    schema: int
    family: str
    pair: str
    base: CheckpointSide
    tuned: CheckpointSide
    counts: Mapping[str, int]
    """Tensors of both sides by status: measured, identical, skipped."""
    figures: Row

    intervals: Mapping[str, Bounds]
    """(low, high) over layers of figures that have any; None: no_interval says why."""
    layers: int
    interval_level: float | None
    """The probability that the intervals may claim, 0 to 1."""
    no_interval: str | None
    resampling: Mapping[str, str | float]
    """How the intervals were made."""
    components: list[Row]
    modules: list[Row]
    """A row for each module of a component that changed."""
    depth: list[Row]
    """A row for each layer that was compared."""
    grid: list[Row]
    inside_layers: Row

    outside_layers: list[Row]
    """The same medians of embeddings, head and projectors."""
    coherence: list[Row]
    quarters: list[Row]
    """Of the depth of each component of four layers or more."""
    unchanged: list[Row]
    """Modules that are identical on both sides."""
    without_base: list[Row]
    """The matrices without a base, by component."""
    vectors: Row
    vocabulary: list[Row]
    """Embeddings and heads with more rows on one side."""
    uncompared: list[Row]
    """What has no partner, another shape or no finite numbers."""
    recognised: Recognised
    skipped: list[Row]
    """A row for each reason, the most tensors first."""
    warnings: list[ReportWarning]
    unchanged_experts: list[Row]
    """Components of which some tensors of experts are identical, and others not."""
    idle_updates: int
    """Modules of an adapter in which it does nothing, as the product of its factors is 0."""
    broken: list[Row]
    """Tensors with NaN or infinite entries, of zeros alone, or without entries."""
    tier: Tier
    """What was measured: all spectra, those of the deltas alone, or no spectra but norms."""
    estimated: bool
    """Whether figures of singular values are estimates, as at the level `sketch`."""
    files: FilesRecord | None
    """The files of both repositories or folders; None of a report that did not list them."""

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
