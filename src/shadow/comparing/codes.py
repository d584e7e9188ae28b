"""Verdicts, relations and reasons of comparisons: codes, and the words that are made of them last.

A member has the code and the template of its words. Verdicts and relations are their words, which
JSON has had from the start; their codes are the names of the members.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal, Self

from shadow.templates import Reason, fill

Verified = Literal["commit", "content"]
"""How it is known that two checkpoints are the same."""


class Coded(StrEnum):
    """Members that have a text beside their value."""

    text: str

    def __new__(cls, value: str, text: str) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.text = text
        return member

    @property
    def code(self) -> str:
        """Its name in lower case."""
        return self.name.lower()


class ReportRelation(Coded):
    """The relation of the pairs of two reports, and what it means."""

    SAME_PAIR = "the same pair", "both reports are of the same pair of checkpoints"
    ONE_BASE = "one base", "two models were tuned from the same weights"
    CONSECUTIVE_STAGES = (
        "consecutive stages",
        "these are steps of one lineage, which start from different weights",
    )
    DIFFERENT_BASES = (
        "different bases",
        "the bases differ, so the difference may come from them",
    )


class ComparisonVerdict(Coded):
    """The word of one or all figures about the first report, and the sentence about both."""

    MORE_CONCENTRATED = (
        "more concentrated",
        "{first} is more concentrated than {second}, by {size:thousandths} in the"
        " median matrix[, without a spread ({no_interval})] (margin {margin})",
    )
    LESS_CONCENTRATED = (
        "less concentrated",
        "{first} is less concentrated than {second}, by {size:thousandths} in the"
        " median matrix[, without a spread ({no_interval})] (margin {margin})",
    )
    BELOW_THE_MARGIN = (
        "different, below the margin",
        "{first} and {second} differ by {size:thousandths} in the median matrix"
        "[, without a spread ({no_interval})], less than the margin of {margin}",
    )
    NOT_DISTINGUISHED = (
        "not distinguished",
        "{first} and {second} are not distinguished: the figures show how concentrated each change"
        " is, not whether both are the same change",
    )
    MIXED_EVIDENCE = (
        "mixed evidence",
        "{first} and {second} differ by {size:thousandths} in the median matrix[, without a spread"
        " ({no_interval})] in concentration, and the other figures do not agree",
    )
    NO_COMPARISON = "not comparable", "not comparable: {why}"


OPPOSITE: Mapping[ComparisonVerdict, ComparisonVerdict] = {
    ComparisonVerdict.MORE_CONCENTRATED: ComparisonVerdict.LESS_CONCENTRATED,
    ComparisonVerdict.LESS_CONCENTRATED: ComparisonVerdict.MORE_CONCENTRATED,
}
UNSURE = (ComparisonVerdict.MIXED_EVIDENCE, ComparisonVerdict.NO_COMPARISON)


class Rate(Coded):
    """The share of wrong verdicts in the lab (docs/evidence.md, whose table a test compares)."""

    SEEDS_CALLED = "seeds_called", "in the lab, 0 of 140 pairs of two seeds were called so"
    DATA_MISSED = (
        "data_missed",
        "in the lab, 15 of 99 pairs of narrow and broad data were missed this way",
    )


class NoVerdict(Coded):
    """Reasons for no verdict on two reports."""

    RANKS_DIFFER = (
        "ranks_differ",
        "{first} and {second} are of different ranks, as adapters are (in"
        " {matrices:count matrix|matrices}), which limit their directions",
    )
    SPECTRA_LEFT_OUT = (
        "spectra_left_out",
        "{name} has no spectra, which --level {level} leaves out",
    )
    SIDES_UNRELATED = (
        "sides_unrelated",
        "the two sides of {name} have little in common (median cosine {cosine:fixed}), so their"
        " difference is not an update",
    )
    COPY_IN_ANOTHER_FORMAT = (
        "copy_in_another_format",
        "{name} is a copy of its base in another format",
    )
    COPY_IN_FEW_BITS = (
        "copy_in_few_bits",
        "{name} is a copy in few bits, of its base or of a model tuned from it: its delta is, at"
        " least in part, the rounding of that copy",
    )
    LIKE_NOISE = (
        "like_noise",
        "the delta of {name} is like noise, as the rounding of a copy leaves it: it may be a copy"
        " of its base",
    )
    MOSTLY_ROUNDING = (
        "mostly_rounding",
        "the delta of {name} is only {floor:ratio} times as large as rounding alone would make it",
    )
    SAME_UPDATE = (
        "same_update",
        "{first} and {second} are the same update as far as figures show: they agree in"
        " {matrices:all matrix|matrices}",
    )
    NO_CONCENTRATION = (
        "no_concentration",
        "{first} and {second} are not distinguished: no matrix in a layer has a concentration in"
        " both",
    )


class Doubt(Coded):
    """Warnings of what makes a comparison doubtful, though not void; some relations do too."""

    SIBLINGS_COMPARED = (
        "siblings_compared",
        "{name} is a pair of siblings: neither side was tuned from the other",
    )
    VERSIONS_DIFFER = (
        "versions_differ",
        "made by different versions of shadow: {first} by {before}, {second} by {now}",
    )
    SETTINGS_DIFFER = (
        "settings_differ",
        "measured with different settings: {option} {before} in {first}, {now} in {second}",
    )
    FILTERS_DIFFER = (
        "filters_differ",
        "the audits were filtered differently: what both measured is compared",
    )
    PARTLY_COMPARED = (
        "partly_compared",
        "only {share:share} of the changed parameters of {name} are compared",
    )
    DTYPES_DIFFER = "dtypes_differ", "dtypes differ in {matrices:count matrix|matrices}"
    FEW_LAYERS = (
        "few_layers",
        "with only {layers:count} layers a spread covers at most {level:share}",
    )
    NORMS_FAR_APART = (
        "norms_far_apart",
        "relative to its base, the update of {larger} is {times:ratio} times as large as that of"
        " {smaller}: concentration falls as an update grows",
    )
    OPPOSED_OUTSIDE_LAYERS = (
        "opposed_outside_layers",
        "outside the layers, which do not count for the verdict, concentration differs the other"
        " way: {modules:and}",
    )


LIMITS = (Doubt.FEW_LAYERS,)  # of what can be known, where nothing is wrong


class NoContrast(Coded):
    """Reasons for not comparing the matrices of a set of reports."""

    TOO_MANY_REPORTS = (
        "too_many_reports",
        "more than {most:count} reports are not compared matrix by matrix",
    )
    BASES_DIFFER = (
        "bases_differ",
        "{first} and {second} have different bases: neither commit nor content is the same"
        "[; not compared matrix by matrix without {option}]",
    )


class LeftOut(Coded):
    """Reasons for leaving a report out of the correlations with scores."""

    GATES_FAILED = "gates_failed", "gate {gates} failed"
    OF_SIBLINGS = "of_siblings", "a pair of siblings"
    NO_GAIN = "no_gain", "no scores of both sides"


class LineageNote(Coded):
    """Notes on reports that a lineage leaves out, or that have no order in it."""

    SAME_FILES = "same_files", "{folder}: left out, since base and tuned are the same files"
    SAME_STEP = "same_step", "{folder}: left out, since {other} is of the same two checkpoints"
    CIRCULAR = "circular", "{folder}: no order, since {start} and {end} lead to each other"
    TOO_MANY_CHAINS = (
        "too_many_chains",
        "more than {most:count} chains: the first {most:count} are shown",
    )


class StepDoubt(Coded):
    """Notes on steps whose change is no update."""

    STEP_UNRELATED = "step_unrelated", "{start}..{end}: base and tuned have little in common"
    STEP_REARRANGED = (
        "step_rearranged",
        "{start}..{end}: matrices are rotated or reordered",
    )


KINDS: Mapping[str, type[Coded]] = {
    "a relation of two reports": ReportRelation,
    "a verdict of a comparison": ComparisonVerdict,
    "an error rate of verdicts": Rate,
    "a reason for no verdict": NoVerdict,
    "a warning of a comparison": Doubt,
    "a reason for not comparing matrices": NoContrast,
    "a reason for leaving a report out of correlations": LeftOut,
    "a note of a lineage": LineageNote,
    "a note on a step of a lineage": StepDoubt,
}
TEMPLATES: Mapping[str, str] = {
    member.code: member.text for kind in KINDS.values() for member in kind
}


def say(reason: Reason) -> str:
    """Put a reason into words."""
    return fill(TEMPLATES[reason.code], reason.figures)
