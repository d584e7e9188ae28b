"""Answers that several sentences of a finding need of a summary, each made once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Literal

from shadow.checks.explanations import (
    CLEAR,
    beyond_rounding,
    few_bits,
    has_few_values,
    is_copied,
    is_lost,
    is_low_rank,
    is_rearranged,
    recognised,
)
from shadow.checks.summary import Summary
from shadow.reasons import ONE_SIDED
from shadow.reports.provenance import SettingsMetadata, chosen_in
from shadow.summary.gate_figures import ROUNDING
from shadow.summary.record import ComponentRow, Gate, PlacesRow, UncomparedRow
from shadow.telling.parts import ChangedPart, has_frozen, parts_by_energy

UNRELATED = 0.1  # a median cosine below which two models have nothing in common
VECTORS_FURTHER = 3.0  # median relative norm of vectors over that of the matrices as a whole
MOSTLY_KEPT = 0.8  # share of the stored energy below which its norm is not the update's
# share of the stored energy that is the update's, above which storage does not matter
WELL_KEPT = 0.9
LEFT_OUT = (*ONE_SIDED, "shape_differs")  # reasons that a sentence names


class SentenceGroup(IntEnum):
    """The needs that a sentence has of a pair. Later groups have those of the earlier ones too."""

    ALWAYS = 0
    LIMITS = 1
    """Something was compared."""
    SIZE = 2
    """A matrix changed."""
    ENTRIES = 3
    """The two correspond entry by entry."""
    CHANGES = 4
    """The change is more than the rounding of a copy."""
    STORAGE = 5
    """More than a few entries changed."""
    STRUCTURE = 6
    """The change has a structure of its own, not that of the base."""


# what is true of a pair, and the first group whose sentences it silences, with all later ones
SILENCED: Mapping[str, SentenceGroup] = {
    "nothing_compared": SentenceGroup.LIMITS,
    "identical": SentenceGroup.SIZE,
    "unrelated": SentenceGroup.ENTRIES,
    "rearranged": SentenceGroup.ENTRIES,
    "copied": SentenceGroup.CHANGES,
    "few_entries": SentenceGroup.STORAGE,
    "scaled": SentenceGroup.STRUCTURE,
}


@dataclass(frozen=True)
class Context:
    """A summary whose finding is written."""

    summary: Summary
    are_siblings: bool = False
    """True if neither side was tuned from the other."""
    filtered: bool = False
    """True if a part of the model was asked for."""

    @classmethod
    def of(cls, summary: Summary, settings: SettingsMetadata) -> Context:
        """settings: those of its audit."""
        filtered = bool(chosen_in(settings))
        return cls(summary, settings.get("relation") == "sibling", filtered)

    def tells(self, group: SentenceGroup) -> bool:
        """True if sentences of a group are true of the pair."""
        return all(group < SILENCED[state] for state in self.states)

    @cached_property
    def states(self) -> set[str]:
        """The keys of SILENCED that are true."""
        changes = self.summary.recognised
        holds = {
            "nothing_compared": self.gates["changed"].figure is None,
            "identical": not self.gates["changed"].passed,
            "unrelated": self.is_unrelated,
            "rearranged": is_rearranged(self.summary),
            "copied": is_copied(self.summary),
            "few_entries": changes.few_entries is not None,
            "scaled": changes.scaled is not None,
        }
        return {state for state, is_true in holds.items() if is_true}

    @cached_property
    def gates(self) -> Mapping[str, Gate]:
        return {gate.name: gate for gate in self.summary.gates}

    @cached_property
    def recognised(self) -> list[str]:
        """The codes of recognised changes."""
        return recognised(self.summary)

    # ------------------------------------------------------------------------------ what limits it

    @cached_property
    def is_unrelated(self) -> bool:
        cosine = self.gates["lineage"].figure
        if cosine is None or not self.gates["changed"].passed:
            return False
        explained = is_rearranged(self.summary) or self.summary.recognised.scaled is not None
        return not explained and abs(cosine) < UNRELATED

    @cached_property
    def apart(self) -> list[ComponentRow]:
        """The components that have nothing in common with the base's, where others have."""
        compared = [row for row in self.summary.components if row.matrices or row.identical]
        apart = []
        for row in compared:
            if row.matrices and row.cosine is not None and abs(row.cosine) < UNRELATED:
                apart.append(row)
        is_all = len(apart) == len(compared) or is_rearranged(self.summary)
        return [] if is_all else apart

    def are_apart(self, rows: Iterable[PlacesRow]) -> bool:
        """True if these places are all in components that are apart."""
        return {row.component for row in rows} <= {row.component for row in self.apart}

    @property
    def is_partial(self) -> bool:
        """True if so little was compared, or changed, that this precedes the size of the change."""
        return not self.gates["changed"].passed or not self.gates["paired"].passed

    @property
    def shares_a_part(self) -> bool:
        """True if a part that was compared is named before its figures."""
        share = self.gates["paired"].figure
        return share is not None and share < 1.0 and (self.filtered or self.is_partial)

    @property
    def has_all(self) -> bool:
        """True if all of the tuned side was asked for and has a base."""
        return not (self.filtered or self.summary.without_base)

    @property
    def is_unread(self) -> bool:
        """True if a part of the parameters is in a format that is not read."""
        formats = self.gates["formats"]
        return formats.figure is not None and not formats.passed

    @property
    def lacks_entries(self) -> bool:
        """True if comparing entries cannot show the change."""
        return not self.states.isdisjoint(("unrelated", "rearranged"))

    @cached_property
    def lacking(self) -> list[UncomparedRow]:
        """The parts that were not compared, without stacks where some experts have no partner."""
        matched = self.summary.correspondence
        stacks = "experts." if matched is not None and matched.experts else "\0"
        return [row for row in self.summary.uncompared if not (row.module or "").startswith(stacks)]

    @cached_property
    def uncompared(self) -> Mapping[str, list[UncomparedRow]]:
        """The parts that were asked for and not compared, by the reasons that a sentence names."""
        if self.filtered:
            return {}
        has_said = self.summary.correspondence is not None  # which layers and experts
        rows = []
        for row in self.lacking:
            is_unit = row.module is None or row.module.startswith("expert ")  # whole
            if not (has_said and is_unit):
                rows.append(row)
        by_reason = {reason: [row for row in rows if row.reason == reason] for reason in LEFT_OUT}
        return {reason: rows for reason, rows in by_reason.items() if rows}

    # ----------------------------------------------------------------------------------- its size

    @cached_property
    def parts(self) -> list[ChangedPart]:
        return parts_by_energy(self.summary)

    @cached_property
    def few_bits(self) -> str | None:
        return few_bits(self.summary)

    @property
    def has_frozen(self) -> bool:
        return has_frozen(self.summary)

    @property
    def is_all_asked_for(self) -> bool:
        """True if a filter chose modules that all changed, so that their place is no finding."""
        return self.filtered and not self.has_frozen

    @property
    def is_as_stored(self) -> bool:
        """True if it is unknown, and may matter, what rounding removed or added."""
        figures = self.summary.figures
        share = self.summary.inside_layers.kept
        if figures.relative_norm_overall_unrounded is not None:
            return False
        if figures.floor_ratio is not None and figures.floor_ratio < CLEAR:
            return True
        if share is not None and share < MOSTLY_KEPT:
            return True
        # of a copy in few bits, floor_ratio may be of the file's format
        return self.few_bits is not None or is_lost(self.summary)

    @property
    def vectors(self) -> Literal["furthest", "vectors"] | None:
        """True if a vector, or the median one, moved far more than the matrices."""
        vectors = self.summary.vectors
        norm = self.summary.figures.relative_norm_overall
        if vectors.relative_norm_of_all is None or norm is None:
            return None
        if (vectors.furthest_norm or 0.0) > VECTORS_FURTHER * norm:
            return "furthest"
        return "vectors" if vectors.relative_norm_of_all >= VECTORS_FURTHER * norm else None

    # ----------------------------------------------------------------------- structure and storage

    @cached_property
    def structure(self) -> str | None:
        """The kind of change of most matrices: `low_rank`, `coherent`, `flat`, `mixed` or `noise`;
        None if its figures are those of rounding.
        """
        inside = self.summary.inside_layers
        is_coherent = 2 * inside.beyond_noise >= inside.judged
        if not inside.judged or (2 * inside.rounded_away >= inside.judged and not is_coherent):
            return None
        if 2 * inside.flatter_than_noise >= inside.judged:
            return "flat"
        if is_low_rank(self.summary):
            return "low_rank"
        if is_coherent:
            return "coherent"
        if 10 * (inside.beyond_noise + inside.flatter_than_noise) >= inside.judged:
            return "mixed"
        # without a concentration it is too small: random signs leave as few directions
        return None if self.summary.figures.concentration is None else "noise"

    @cached_property
    def coherence(self) -> Literal["hidden", "along", "above"]:
        """The coherence of updates as far as it is known, for at least half of the matrices. The
        rounding of a copy in few bits makes them seem less coherent by an unknown amount.
        """
        inside = self.summary.inside_layers
        known = inside.coherent + inside.above_short_side
        is_copy = self.few_bits == "tuned"
        is_hidden = is_copy or 2 * inside.unexplained_in_more_bits >= inside.matrices
        if is_hidden or 2 * known < inside.judged:
            return "hidden"
        if inside.equivalent_directions is not None:
            return "along"
        return "above" if inside.above_short_side else "hidden"

    @cached_property
    def storage(self) -> str | None:
        """The code of how much of what is stored is the update, as far as it shows."""
        inside = self.summary.inside_layers
        floor = self.summary.figures.floor_ratio
        has_few = self.few_bits is not None or has_few_values(self.summary, "base")
        if not inside.matrices or floor is None:
            return None
        if self.is_of_quantised:
            return "of_quantised"
        if 2 * inside.rounded_away >= inside.matrices:
            return "beyond_rounding" if beyond_rounding(self.summary) else "rounded_away"
        if 2 * inside.unexplained >= inside.matrices and floor < CLEAR and not has_few:
            return "unexplained"
        if inside.kept is not None and inside.kept < WELL_KEPT:
            return "kept"
        return None if self.gates["rounding"].passed else "small"

    @property
    def is_of_quantised(self) -> bool:
        """True if a side is quantised, so that the update's share of the change is a range."""
        inside = self.summary.inside_layers
        low = inside.kept_low_overall
        return low is not None and (inside.kept is None or low < WELL_KEPT)

    @property
    def is_no_more_than_format(self) -> bool:
        """True if the error of the formats is as large as all that is stored of the change."""
        floor = self.summary.figures.floor_ratio
        high = self.summary.inside_layers.kept_high_overall
        is_small = floor is not None and floor < ROUNDING
        return self.is_of_quantised and (is_small or (high is not None and high < 0.5))
