"""The gates: conditions under which the figures can be those of a training. A pair that fails one
still has figures.
"""

from __future__ import annotations

from shadow.checks.answer import Answer, Check, Kind, Outcome
from shadow.checks.explanations import is_rearranged
from shadow.summary.gate_figures import LINEAGE, ROUNDING, GateFigures
from shadow.summary.record import Gate, PairRecord
from shadow.templates import Reason, Value

PAIRED = 0.9
FULL_RANK = 0.5  # of the directions of a matrix; an adapter of rank 16 in 896 has 0.02
# what each figure must reach
THRESHOLDS = {
    "changed": 1,
    "lineage": LINEAGE,
    "paired": PAIRED,
    "rounding": ROUNDING,
    "rank": FULL_RANK,
    "formats": 0.0,
}
WORDS = {
    "changed": "{matrices:count matrix|matrices} changed[, and {rounded:count more matrix is|more"
    " matrices are} only rounded]",
    "nothing": "no matrix was compared",
    "only_vector": "no matrix changed, but the only bias or norm did",
    "vectors": "no matrix changed, but {changed:count} of {compared:count} biases and norms did",
    "identical": "nothing changed: all {what} that were compared are identical",
    "nothing_inside": "no matrix outside embeddings and heads was compared",
    "any_base": "an adapter fits any base of its shape: nothing shows that it is of this one",
    "moved": "layers have moved, or matrices are rotated or reordered ({median})",
    "similar": "base and tuned weights are similar ({median})",
    "unrelated": "base and tuned weights have little in common ({median}): they do not look like a"
    " base and a model tuned from it",
    "median": "median cosine {cosine:fixed}",
    "compared": "{share:portion} of the larger side's parameters were compared",
    "part": "{compared}: a filter left out the rest",
    "two_models": "{compared}: these are not two states of one model",
    "no_floor": "norms alone were measured, and not what rounding left",
    "unjudged": "it is unknown what rounding to {formats} does to a change",
    "not_rounded": "storage did not round the change",
    "more": "the change is {floor:ratio} times as large as rounding alone would make it",
    "rounded": "the change is only {floor:ratio} times as large as rounding alone would make it",
    "no_rank": "norms alone were measured, and no rank",
    "estimated": "singular values were estimated, and no rank is known",
    "unknown": "the rank of no delta is known",
    "full": "the median delta has {share:share} of the directions that its shape allows, rounding"
    " included",
    "low": "the median delta has rank {rank:count} at most, like a merged adapter. {valid}",
    "adapter": "the adapter limits every delta to rank {rank:count}. {valid}",
    "valid": "Its concentration therefore says little about the training; norms and locations are"
    " still valid",
    "unread": "{share:portion} of the parameters are in a format that shadow does not read",
    "other_formats": "base and tuned are stored in different formats ({formats}), which rounds",
    "same_formats": "base and tuned are stored in the same formats",
}


def gates(record: PairRecord, figures: GateFigures) -> list[Gate]:
    """Every gate of a pair, in the order of GATES."""
    return [
        Gate(
            name=check.code,
            figure=answer.figures.get("figure"),
            threshold=THRESHOLDS[check.code],
            passed=answer.holds,
            reason=check.say_all(answer.reasons),
        )
        for check, answer in GATES.answers(record, figures)
    ]


def _answer(figure: float | None, passed: bool, code: str, **figures: Value) -> Answer:
    """Make the answer of a gate; inconclusive if a figure that it needs is unknown."""
    outcome = Outcome.INCONCLUSIVE if figure is None else Outcome.DOES_NOT_HOLD
    judged_by = {} if figure is None else {"figure": figure}
    return Answer(Outcome.HOLDS if passed else outcome, [Reason(code, figures)], judged_by)


def _changed(record: PairRecord, figures: GateFigures) -> Answer:
    """Count the matrices that changed: all other gates, and all figures of rules, need some."""
    count = record.figures.matrices
    vectors = record.vectors
    if count:
        rounded = record.figures.matrices_rounded or None
        return _answer(count, True, "changed", matrices=count, rounded=rounded)
    if not figures.identical:
        return _answer(None, False, "nothing")
    if vectors.changed:
        code = "only_vector" if vectors.compared == 1 else "vectors"
        return _answer(count, False, code, changed=vectors.changed, compared=vectors.compared)
    what = "matrices, biases and norms" if vectors.compared else "matrices"
    return _answer(count, False, "identical", what=what)


def _lineage(record: PairRecord, figures: GateFigures) -> Answer:
    cosine = figures.cosine
    moved = is_rearranged(record)
    if cosine is None:
        return _answer(None, False, "nothing_inside")
    passed = cosine >= LINEAGE and not moved
    code = "moved" if moved else "similar" if passed else "unrelated"
    if record.figures.rank_ceiling is not None:
        code = "any_base"
    return _answer(cosine, passed, code, median=Reason("median", cosine=cosine))


def _paired(_: PairRecord, figures: GateFigures) -> Answer:
    compared = Reason("compared", share=figures.compared_percent / 100)  # rounded down
    if figures.compared >= PAIRED:
        return Answer(Outcome.HOLDS, [compared], {"figure": figures.compared})
    code = "part" if figures.is_part else "two_models"
    return _answer(figures.compared, False, code, compared=compared)


def _rounding(record: PairRecord, figures: GateFigures) -> Answer:
    floor = record.figures.floor_ratio
    if floor is None and not record.has_spectra and record.figures.rank_ceiling is None:
        return _answer(None, False, "no_floor")
    if figures.unjudged:
        return _answer(None, False, "unjudged", formats=figures.unjudged)
    if floor is None:
        return _answer(None, True, "not_rounded")
    passed = floor >= ROUNDING
    return _answer(floor, passed, "more" if passed else "rounded", floor=floor)


def _rank(record: PairRecord, figures: GateFigures) -> Answer:
    """Judge the rank of a delta as a share of its size, which an adapter of low rank limits."""
    share = figures.rank_share
    if share is None and not record.has_spectra:
        return _answer(None, False, "no_rank")
    if share is None:
        return _answer(None, not record.estimated, "estimated" if record.estimated else "unknown")
    if share >= FULL_RANK:
        return _answer(share, True, "full", share=share)
    rank = figures.rank_ceiling or figures.rank
    code = "adapter" if figures.rank_ceiling else "low"
    return _answer(share, False, code, rank=rank, valid=Reason("valid"))


def _formats(_: PairRecord, figures: GateFigures) -> Answer:
    share = figures.unread
    formats = figures.formats
    code = "unread" if share else "other_formats" if formats else "same_formats"
    return _answer(share, not share, code, share=share, formats=formats)


GATES = Kind(
    "a gate: it passes when {meaning}",
    Check(
        "changed",
        "a matrix changed",
        "at least one matrix changed; biases and norms do not count",
        _changed,
        WORDS,
    ),
    Check(
        "lineage",
        "the tuned model comes from the base",
        "base and tuned matrices are similar (their median cosine outside embeddings and heads is"
        f" at least {LINEAGE:g}), and none is merely moved, rotated or reordered",
        _lineage,
        WORDS,
    ),
    Check(
        "paired",
        "the two are states of one model",
        f"at least {100 * PAIRED:.0f} % of the larger side's parameters were compared. What an"
        " adapter leaves unchanged counts as compared; what a filter leaves out does not",
        _paired,
        WORDS,
    ),
    Check(
        "rounding",
        "the change is more than rounding",
        f"the median `floor_ratio` is at least {ROUNDING:g}, or storage rounded nothing. It fails"
        " if the rounding of most matrices is not known: of IQ types, and of a small change that is"
        " stored in more bits than its base",
        _rounding,
        WORDS,
    ),
    Check(
        "rank",
        "the change has full rank",
        f"the median delta has at least {100 * FULL_RANK:.0f} % of the directions that its shape"
        " allows. The rank of an adapter counts, and so does `numerical_rank`; directions that hold"
        " no more than rounding do not. A low-rank change that rounding mostly hides may pass",
        _rank,
        WORDS,
    ),
    Check(
        "formats",
        "every format is read",
        "no tensor is in a packed or an unknown format",
        _formats,
        WORDS,
    ),
)
