"""What else may have left the same figures, and whether it can have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from shadow.checks.answer import Figure
from shadow.checks.draft import Draft, all_of
from shadow.checks.inside import USUAL_RANK, few_of, is_low_rank
from shadow.checks.old import Claim, Outcome, table
from shadow.summary.record import PairRecord

Word = Literal["no", "fits", "cannot_be_excluded"]
WORDS: Mapping[Outcome, Word] = {
    "does_not_hold": "no",
    "holds": "fits",
    "cannot_be_told": "cannot_be_excluded",
}
ANSWERS: Mapping[Word, str] = {
    "no": "no",
    "fits": "fits",
    "cannot_be_excluded": "cannot be excluded",
}
# Concentration and relative norm of a change that a copy in few bits does not leave where vectors
# changed too and no rows have few values: 8 bits leave at most 0.9 %, and compensated rounding of
# fewer bits few values.
STRUCTURED, CLEARLY = 0.25, 0.012
IN_8_BITS = 0.002  # relative norm, below what a rounding to 8 bits or fewer leaves
HIGH = 0.5  # of the short side: more than any adapter of that width has
ROUNDED = 0.5  # share of the energy up to which the rest is the rounding of a format
ALONG = 0.1  # decay_cosine from which a change has the shape of the weights themselves
EXPLANATIONS = table(
    Claim(
        "merged_adapter",
        "low-rank adapter, or an edit of few directions",
        "the change is of low rank: an adapter, stored as one or merged into the base, or an edit"
        " of few directions",
    ),
    Claim(
        "orthogonalised_optimiser",
        "orthogonalised optimiser",
        "an optimiser with orthogonal updates, such as Muon, made the change",
    ),
    Claim(
        "quantised_copy",
        "quantised copy",
        "most of the change is the rounding of one side to 8 bits or fewer",
    ),
)


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
    for code, claim in EXPLANATIONS.items():
        draft = Draft(record)
        outcome, reason = JUDGES[code](draft)
        found.append(Explanation(code, claim.title, WORDS[outcome], reason, draft.figures))
    return found


def _merged_adapter(draft: Draft) -> tuple[Outcome, str]:
    figures, inside = draft.summary.figures, draft.summary.inside_layers
    if figures.rank_ceiling is not None:
        rank = draft.write(figures.rank_ceiling, "figures.rank_ceiling", "count")
        return "holds", f"the tuned side is an adapter of rank {rank} at most"
    if is_low_rank(draft.summary):
        rank = draft.write(inside.rank_most or 0, "inside_layers.rank_most", "count")
        of = draft.directions()
        return "holds", f"the median update has rank {rank} at most, of {of} possible"
    least, side = inside.rank_least, figures.short_side
    if least is None or side is None or least <= min(USUAL_RANK, HIGH * side):
        return "cannot_be_told", "the rank of the update is unknown"
    rank = draft.write(least, "inside_layers.rank_least", "count")
    of = draft.directions()
    return "does_not_hold", f"the median update has rank {rank} or more, of {of} possible"


def _orthogonalised(draft: Draft) -> tuple[Outcome, str]:
    inside = draft.summary.inside_layers
    along = abs(inside.decay_cosine or 0.0) > ALONG  # flat weights leave flat parts of themselves
    if not inside.judged or 2 * inside.flatter_than_noise < inside.judged or along:
        return "cannot_be_told", "many orthogonal updates can add up to structure"
    draft.inside("flatter_than_noise")
    draft.inside("judged")
    which = all_of(inside.flatter_than_noise, inside.judged)
    return "holds", f"{which} inside layers are flatter than noise"


def _quantised(draft: Draft) -> tuple[Outcome, str]:
    inside = draft.summary.inside_layers
    high, norm = inside.kept_high_overall, inside.relative_norm
    if high is not None and high < ROUNDED:
        share = draft.write(high, "inside_layers.kept_high_overall", "share")
        return "holds", f"at most {share} of the change is more than the rounding of its format"
    few = any(few_of(draft.summary, side)[0] for side in ("base", "tuned"))  # on one grid already
    if not few and norm is not None and norm < IN_8_BITS:
        size = draft.write(norm, "inside_layers.relative_norm", "share")
        return "does_not_hold", (
            f"the median change is {size}, and rounding to 8 bits leaves 0.2 % or more"
        )
    if not few and is_low_rank(draft.summary):
        rank = draft.write(inside.rank_most or 0, "inside_layers.rank_most", "count")
        return "does_not_hold", f"the median update has rank {rank} at most, and rounding has full"
    if not few and inside.levels_tuned_judged and is_trained(draft.summary):
        value = draft.summary.figures.concentration or 0.0
        size = draft.write(value, "figures.concentration", "fixed")
        return "does_not_hold", (
            f"biases and norms changed, rows have many values, and concentration is {size}"
        )
    return "cannot_be_told", "calibrated rounding leaves structure, as training does"


def is_trained(record: PairRecord) -> bool:
    """Whether most vectors changed, and matrices by more structure than rounding leaves alone."""
    vectors, norm = record.vectors, record.inside_layers.relative_norm or 0.0
    structured = (record.figures.concentration or 0.0) > STRUCTURED
    return structured and norm >= CLEARLY and 0 < vectors.compared <= 2 * vectors.changed


JUDGES: Mapping[str, Callable[[Draft], tuple[Outcome, str]]] = {
    "merged_adapter": _merged_adapter,
    "orthogonalised_optimiser": _orthogonalised,
    "quantised_copy": _quantised,
}
