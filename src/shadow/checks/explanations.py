"""Facts that the figures of a pair show about its change, other changes that could look the same,
and questions about matrices inside layers that sentences share with these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from shadow.checks.answer import Answer, Check, Kind, Outcome, figures_at
from shadow.reports.columns import read_words
from shadow.summary.changes import CHANGES, Change
from shadow.summary.layer_medians import IN_8_BITS, LOW, NO_ROUNDING
from shadow.summary.record import PairRecord, Row
from shadow.templates import Reason

CLEAR = 4.0  # floor_ratio from which an unknown rounding hardly matters
USUAL_RANK = 256  # of adapters
BY_CHANCE = 0.03  # of the matrices of a rounded copy: more do not pass for changed
DIFFERENT = 0.05  # how far the norm before storage has to be from the stored one to matter


def beyond_rounding(record: PairRecord) -> int:
    """The number of matrices that changed by more than rounding in a pair most of whose matrices
    are rounded away, as after merging an adapter of some modules. 0 if that may be chance.
    """
    inside = record.inside_layers
    return inside.known if inside.beyond_noise > BY_CHANCE * inside.matrices else 0


def is_lost(record: PairRecord) -> bool:
    """True if rounding may have removed so much that what is stored hides the update."""
    inside = record.inside_layers
    floor = record.figures.floor_ratio
    unknown = inside.rounded_away
    if floor is None or floor < CLEAR:
        unknown += inside.unexplained + inside.few_changed
    else:  # a file of more bits may hold what fewer rounded
        unknown += inside.unexplained_in_more_bits
    return bool(2 * unknown >= max(1, inside.matrices))


def is_low_rank(record: PairRecord) -> bool:
    """True if the median update has the rank of an adapter, and few of its directions."""
    inside = record.inside_layers
    side = record.figures.short_side
    if inside.rank_most is None or side is None or 2 * inside.rank_known < inside.matrices:
        return False
    return bool(inside.rank_most <= min(USUAL_RANK, LOW * side))


def has_sizes(record: PairRecord) -> bool:
    """True if matrices have different sizes, so that their median may be nobody's."""
    least = record.inside_layers.short_side_least
    most = record.inside_layers.short_side_most
    return least is not None and most is not None and least < most


def has_other_norm_unrounded(record: PairRecord) -> bool:
    """True if the norm before storage is known and differs enough from the stored one."""
    stored = record.figures.relative_norm_overall
    unrounded = record.figures.relative_norm_overall_unrounded
    if stored is None or unrounded is None:
        return False
    return bool(abs(unrounded - stored) >= DIFFERENT * stored)


def few_bits(record: PairRecord) -> str | None:
    """The way in which most matrices of the tuned side went through few bits: `tuned` if rows have
    few distinct values, `format` if a side is stored in 8 bits; None if nothing shows it, or the
    change is too large for a rounding, as of numbers whose scales are missing.
    """
    inside = record.inside_layers
    if (inside.relative_norm or 0.0) > NO_ROUNDING:
        return None
    of_base = has_few_values(record, "base")  # whose values the tuned side may have
    if record.recognised.zeroed is None and not of_base and has_few_values(record, "tuned"):
        return "tuned"
    return "format" if inside.in_8_bits and 2 * inside.in_8_bits > inside.matrices else None


def has_few_values(record: PairRecord, side: str) -> bool:
    """True if most matrices of a side have few distinct values in a row."""
    few, judged = few_of(record, side)
    return few > 0 and judged < 2 * few


def few_of(record: PairRecord, side: str) -> tuple[int, int]:
    """The number of matrices of a side that have few distinct values in a row, and of how many."""
    inside = record.inside_layers
    if side == "base":
        return inside.levels_base_few, inside.levels_base_judged
    return inside.levels_tuned_few, inside.levels_tuned_judged


COPIES = {"copy", "mostly_copy"}
MANY = 0.25  # of the changed matrices in layers: permuted neurons are 3 of 7
_MEANINGS = read_words("words.yaml")["sentences"]


def _check(change: Change) -> Check:
    """Make a check of a recorded change, with all its figures."""

    def judge(record: PairRecord) -> Answer:
        row = change.figures(record.recognised)
        if row is None:
            return Answer(Outcome.DOES_NOT_HOLD, [Reason("absent")])
        numbers = {key: value for key, value in row.items() if isinstance(value, float | int)}
        figures = {f"recognised.{change.place}.{key}": value for key, value in numbers.items()}
        return Answer(Outcome.HOLDS, [Reason(change.code, numbers)], figures)

    code = change.code
    meaning = change.meaning or _MEANINGS[code]
    return Check(code, change.title, meaning, judge, {code: change.text})


RECOGNISED = Kind(
    "a change that the figures show beyond doubt: {meaning}",
    *map(_check, CHANGES),
    has_titles=True,
)


def recognised(record: PairRecord) -> list[str]:
    """The codes of RECOGNISED that hold, in order."""
    return [check.code for check, answer in RECOGNISED.answers(record) if answer.holds]


def is_rearranged(record: PairRecord) -> bool:
    """True if comparing entries cannot show the change: layers have moved, or MANY of the changed
    matrices are not comparable entry by entry.
    """
    row = record.recognised.rearranged
    if row is None:
        return False
    return row.moved is not None or 0 < MANY * row.changed <= row.matrices


def has_moved_in_part(record: PairRecord) -> bool:
    """True if layers are other layers of the base but for some of their tensors."""
    row = record.recognised.rearranged
    return row is not None and row.moved is not None and row.moved.in_part is not None


def is_copy(record: PairRecord) -> bool:
    """True if all that changed is the other side's in another format; False of old reports."""
    return "copy" in recognised(record)


def is_copied(record: PairRecord) -> bool:
    """True if most or all changed tensors are the other side's in another format, and the figures
    are those of rounding.
    """
    return not record.figures.matrices_rounded and not COPIES.isdisjoint(recognised(record))


def is_of_base(record: PairRecord) -> bool:
    """True if the base is the side that was cast, in every tensor that was cast."""
    casts = record.recognised.casts
    return casts is not None and casts.of_base == casts.tensors > 0


Word = Literal["no", "fits", "cannot_be_excluded"]
ANSWERS: Mapping[Outcome, Word] = {
    Outcome.DOES_NOT_HOLD: "no",
    Outcome.HOLDS: "fits",
    Outcome.INCONCLUSIVE: "cannot_be_excluded",
}
# Concentration and relative norm of a change that a copy in few bits does not leave where vectors
# changed too and no rows have few values: 8 bits leave at most 0.9 %, and compensated rounding of
# fewer bits few values.
STRUCTURED = 0.25
CLEARLY = 0.012
HIGH = 0.5  # of the short side: adapters of hundreds of directions exist
ROUNDED = 0.5  # share of the energy up to which the rest is the rounding of a format
ALONG = 0.1  # decay_cosine from which a change has the shape of the weights themselves
WORDS = {
    "adapter": "the tuned side is an adapter of rank {figures.rank_ceiling:count} at most",
    "low_rank": "the median update has rank {inside_layers.rank_most:count} at most, of {of}"
    " possible",
    "high_rank": "the median update has rank {inside_layers.rank_least:count} or more, of {of}"
    " possible",
    "sides": "{inside_layers.short_side_least:count} to {inside_layers.short_side_most:count}",
    "side": "{figures.short_side:count}",
    "rank_unknown": "the rank of the update is unknown",
    "on_few_bits": "in {inside_layers.noisy_rest/inside_layers.matrices:all matrix|matrices} inside"
    " layers, the change is noise but for few directions, as of an adapter on a copy in few bits",
    "flat": "{inside_layers.flatter_than_noise/inside_layers.judged:all matrix|matrices} inside"
    " layers are flatter than noise",
    "adds_up": "many orthogonal updates can add up to structure",
    "rounding": "at most {inside_layers.kept_high_overall:share} of the change is more than the"
    " rounding of its format",
    "small": "the median change is {inside_layers.relative_norm:share}, and rounding to 8 bits"
    " leaves 0.2 % or more",
    "not_full_rank": "the median update has rank {inside_layers.rank_most:count} at most, and"
    " rounding has full",
    "trained": "biases and norms changed, rows have many values, and concentration is"
    " {figures.concentration:fixed}",
    "calibrated": "calibrated rounding leaves structure, as training does",
}


class Explanation(Row):
    """An explanation and its answer."""

    code: str
    name: str
    answer: str
    """One of ANSWERS."""
    reason: str
    figures: dict[str, float]
    """The unrounded numbers of the reason, by their keys in summary.json."""


def explanations(record: PairRecord) -> list[Explanation]:
    """Every explanation with its answer, in the order of EXPLANATIONS."""
    return [
        Explanation(
            code=check.code,
            name=check.title,
            answer=ANSWERS[answer.outcome],
            reason=check.say_all(answer.reasons),
            figures=dict(answer.figures),
        )
        for check, answer in EXPLANATIONS.answers(record)
    ]


def _answer(record: PairRecord, outcome: Outcome, code: str) -> Answer:
    """Make an answer with the figures of its template."""
    figures = figures_at(record, WORDS[code])
    if "{of}" not in WORDS[code]:
        return Answer(outcome, [Reason(code, figures)], figures)
    of = "sides" if has_sizes(record) else "side"
    more = figures_at(record, WORDS[of])
    return Answer(outcome, [Reason(code, figures, of=Reason(of, more))], figures | more)


def _merged_adapter(record: PairRecord) -> Answer:
    inside = record.inside_layers
    if record.figures.rank_ceiling is not None:
        return _answer(record, Outcome.HOLDS, "adapter")
    if is_low_rank(record):
        return _answer(record, Outcome.HOLDS, "low_rank")
    least = inside.rank_least
    side = record.figures.short_side
    if least is None or side is None or least <= HIGH * side:
        return _answer(record, Outcome.INCONCLUSIVE, "rank_unknown")
    if 2 * inside.noisy_rest >= inside.matrices and not _is_without_adapter(record):
        return _answer(record, Outcome.INCONCLUSIVE, "on_few_bits")
    return _answer(record, Outcome.DOES_NOT_HOLD, "high_rank")


def _is_without_adapter(record: PairRecord) -> bool:
    """True if noise is that of pruning, or of a copy whose few values nothing moved and out of
    which no direction stands.
    """
    inside = record.inside_layers
    is_copy = few_bits(record) == "tuned" and 10 * inside.beyond_noise < inside.judged
    return is_copy or record.recognised.zeroed is not None


def _orthogonalised(record: PairRecord) -> Answer:
    inside = record.inside_layers
    along = abs(inside.decay_cosine or 0.0) > ALONG  # flat weights leave flat parts of themselves
    if not inside.judged or 2 * inside.flatter_than_noise < inside.judged or along:
        return _answer(record, Outcome.INCONCLUSIVE, "adds_up")
    return _answer(record, Outcome.HOLDS, "flat")


def _quantised(record: PairRecord) -> Answer:
    inside = record.inside_layers
    high = inside.kept_high_overall
    norm = inside.relative_norm
    if high is not None and high < ROUNDED:
        return _answer(record, Outcome.HOLDS, "rounding")
    code = "calibrated"
    if not any(few_of(record, side)[0] for side in ("base", "tuned")):  # on one grid already
        if norm is not None and norm < IN_8_BITS:
            code = "small"
        elif is_low_rank(record):
            code = "not_full_rank"
        elif inside.levels_tuned_judged and is_trained(record):
            code = "trained"
    outcome = Outcome.INCONCLUSIVE if code == "calibrated" else Outcome.DOES_NOT_HOLD
    return _answer(record, outcome, code)


def is_trained(record: PairRecord) -> bool:
    """True if most vectors changed, and matrices have more structure than rounding leaves."""
    vectors = record.vectors
    norm = record.inside_layers.relative_norm or 0.0
    is_structured = (record.figures.concentration or 0.0) > STRUCTURED
    return is_structured and norm >= CLEARLY and 0 < vectors.compared <= 2 * vectors.changed


EXPLANATIONS = Kind(
    "another explanation of the same figures: {meaning}. `shadow explain finding` describes the"
    " answers",
    Check(
        "merged_adapter",
        "low-rank adapter, or an edit of few directions",
        "the change is of low rank: an adapter, stored as one or merged into the base, or an edit"
        " of few directions",
        _merged_adapter,
        WORDS,
    ),
    Check(
        "orthogonalised_optimiser",
        "orthogonalised optimiser",
        "an optimiser with orthogonal updates, such as Muon, made the change",
        _orthogonalised,
        WORDS,
    ),
    Check(
        "quantised_copy",
        "quantised copy",
        "most of the change is the rounding of one side to 8 bits or fewer",
        _quantised,
        WORDS,
    ),
    has_titles=True,
)
