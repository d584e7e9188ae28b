"""What else may have left the same figures, and whether it can have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shadow.checks.answer import Answer, Check, Figure, Outcome, by_code
from shadow.checks.inside import USUAL_RANK, few_of, is_low_rank
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
POSSIBLE = (
    "[{inside_layers.short_side_least:count} to {inside_layers.short_side_most:count}]"
    "[{figures.short_side:count}] possible"
)
WORDS = {
    "adapter": "the tuned side is an adapter of rank {figures.rank_ceiling:count} at most",
    "low_rank": "the median update has rank {inside_layers.rank_most:count} at most, of "
    + POSSIBLE,
    "high_rank": "the median update has rank {inside_layers.rank_least:count} or more, of "
    + POSSIBLE,
    "rank_unknown": "the rank of the update is unknown",
    "flat": "{inside_layers.judged:all matrix|matrices} inside layers are flatter than noise",
    "mostly_flat": "{inside_layers.flatter_than_noise:count} of {inside_layers.judged:count}"
    " matrices inside layers are flatter than noise",
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


def _answer(outcome: Outcome, code: str, figures: Mapping[str, Figure] | None = None) -> Answer:
    return Answer(outcome, [Reason(code, figures or {})], figures or {})


def _merged_adapter(record: PairRecord) -> Answer:
    figures, inside = record.figures, record.inside_layers
    if figures.rank_ceiling is not None:
        return _answer(Outcome.HOLDS, "adapter", {"figures.rank_ceiling": figures.rank_ceiling})
    possible = _directions(record)
    if is_low_rank(record) and inside.rank_most is not None:
        rank = {"inside_layers.rank_most": inside.rank_most}
        return _answer(Outcome.HOLDS, "low_rank", rank | possible)
    least, side = inside.rank_least, figures.short_side
    if least is None or side is None or least <= min(USUAL_RANK, HIGH * side):
        return _answer(Outcome.INCONCLUSIVE, "rank_unknown")
    rank = {"inside_layers.rank_least": least}
    return _answer(Outcome.DOES_NOT_HOLD, "high_rank", rank | possible)


def _directions(record: PairRecord) -> dict[str, Figure]:
    """How many directions a matrix inside layers has; the least and the most where they differ, as
    their median need not be the size of any.
    """
    inside, side = record.inside_layers, record.figures.short_side
    least, most = inside.short_side_least, inside.short_side_most
    if least is not None and most is not None and least < most:
        return {"inside_layers.short_side_least": least, "inside_layers.short_side_most": most}
    return {} if side is None else {"figures.short_side": side}


def _orthogonalised(record: PairRecord) -> Answer:
    inside = record.inside_layers
    flat, judged = inside.flatter_than_noise, inside.judged
    along = abs(inside.decay_cosine or 0.0) > ALONG  # flat weights leave flat parts of themselves
    if not judged or 2 * flat < judged or along:
        return _answer(Outcome.INCONCLUSIVE, "adds_up")
    figures = {"inside_layers.flatter_than_noise": flat, "inside_layers.judged": judged}
    return _answer(Outcome.HOLDS, "flat" if flat == judged else "mostly_flat", figures)


def _quantised(record: PairRecord) -> Answer:
    inside, concentration = record.inside_layers, record.figures.concentration
    high, norm, rank = inside.kept_high_overall, inside.relative_norm, inside.rank_most
    if high is not None and high < ROUNDED:
        return _answer(Outcome.HOLDS, "rounding", {"inside_layers.kept_high_overall": high})
    no = Outcome.DOES_NOT_HOLD
    if any(few_of(record, side)[0] for side in ("base", "tuned")):  # on one grid already
        return _answer(Outcome.INCONCLUSIVE, "calibrated")
    if norm is not None and norm < IN_8_BITS:
        return _answer(no, "small", {"inside_layers.relative_norm": norm})
    if is_low_rank(record) and rank is not None:
        return _answer(no, "not_full_rank", {"inside_layers.rank_most": rank})
    if inside.levels_tuned_judged and is_trained(record):
        return _answer(no, "trained", {"figures.concentration": concentration or 0.0})
    return _answer(Outcome.INCONCLUSIVE, "calibrated")


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
