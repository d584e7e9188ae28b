"""What else may have left the same figures, and whether it can have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shadow.checks.answer import Answer, Check, Figure, Outcome, by_code, figures_at
from shadow.checks.inside import USUAL_RANK, few_of, has_sizes, is_low_rank
from shadow.summary.record import PairRecord
from shadow.templates import Reason

Word = Literal["no", "fits", "cannot_be_excluded"]
ANSWERS: Mapping[Outcome, Word] = {
    Outcome.DOES_NOT_HOLD: "no",
    Outcome.HOLDS: "fits",
    Outcome.INCONCLUSIVE: "cannot_be_excluded",
}
# Concentration and relative norm of a change that a copy in few bits does not leave where vectors
# changed too and no rows have few values: 8 bits leave at most 0.9 %, and compensated rounding of
# fewer bits few values.
STRUCTURED, CLEARLY = 0.25, 0.012
IN_8_BITS = 0.002  # relative norm, below what a rounding to 8 bits or fewer leaves
HIGH = 0.5  # of the short side: more than any adapter of that width has
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


@dataclass(frozen=True)
class Explanation:
    """An explanation and its answer, as summary.json has it."""

    code: str
    name: str
    answer: Word
    reason: str
    figures: Mapping[str, Figure]
    """The figures whose numbers stand in the reason, in full, by their place in summary.json."""


def explanations(record: PairRecord) -> list[Explanation]:
    """Every explanation with its answer, in the order of EXPLANATIONS."""
    found = []
    for code, check in EXPLANATIONS.items():
        answer = check.judge(record)
        word, reason = ANSWERS[answer.outcome], check.say_all(answer.reasons)
        found.append(Explanation(code, check.title, word, reason, answer.figures))
    return found


def _answer(record: PairRecord, outcome: Outcome, code: str) -> Answer:
    """The answer, with the figures that stand in its template."""
    figures = figures_at(record, WORDS[code])
    if "{of}" not in WORDS[code]:
        return Answer(outcome, [Reason(code, figures)], figures)
    of = "sides" if has_sizes(record) else "side"
    more = figures_at(record, WORDS[of])
    return Answer(outcome, [Reason(code, {**figures, "of": Reason(of, more)})], figures | more)


def _merged_adapter(record: PairRecord) -> Answer:
    figures, inside = record.figures, record.inside_layers
    if figures.rank_ceiling is not None:
        return _answer(record, Outcome.HOLDS, "adapter")
    if is_low_rank(record):
        return _answer(record, Outcome.HOLDS, "low_rank")
    least, side = inside.rank_least, figures.short_side
    if least is None or side is None or least <= min(USUAL_RANK, HIGH * side):
        return _answer(record, Outcome.INCONCLUSIVE, "rank_unknown")
    return _answer(record, Outcome.DOES_NOT_HOLD, "high_rank")


def _orthogonalised(record: PairRecord) -> Answer:
    inside = record.inside_layers
    along = abs(inside.decay_cosine or 0.0) > ALONG  # flat weights leave flat parts of themselves
    if not inside.judged or 2 * inside.flatter_than_noise < inside.judged or along:
        return _answer(record, Outcome.INCONCLUSIVE, "adds_up")
    return _answer(record, Outcome.HOLDS, "flat")


def _quantised(record: PairRecord) -> Answer:
    inside = record.inside_layers
    high, norm = inside.kept_high_overall, inside.relative_norm
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
    is_open = code == "calibrated"
    return _answer(record, Outcome.INCONCLUSIVE if is_open else Outcome.DOES_NOT_HOLD, code)


def is_trained(record: PairRecord) -> bool:
    """Whether most vectors changed, and matrices by more structure than rounding leaves alone."""
    vectors, norm = record.vectors, record.inside_layers.relative_norm or 0.0
    structured = (record.figures.concentration or 0.0) > STRUCTURED
    return structured and norm >= CLEARLY and 0 < vectors.compared <= 2 * vectors.changed


EXPLANATIONS: Mapping[str, Check] = by_code(
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
)
