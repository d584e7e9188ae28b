"""What else may have left the same figures, and whether it can have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from shadow.claims.answer import Claim, Figure, Outcome, table
from shadow.claims.draft import Draft, all_of
from shadow.claims.recognised import (
    CLEAR,
    LIKE_NOISE,
    USUAL_RANK,
    few_bits,
    few_of,
    has_other_norm_unrounded,
    is_lost,
    is_low_rank,
    stands_out,
)
from shadow.claims.reference import choose_runs, runs
from shadow.quantities import text_of
from shadow.summary.layer_medians import LOW
from shadow.summary.record import PairRecord
from shadow.text import counted

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
IN_8_BITS = 0.003  # relative norm, below what a rounding to 8 bits or fewer leaves
STRUCTURED = 0.05  # concentration above which a change is not the rounding of a copy alone
HIGH = 0.5  # of the short side: more than any adapter of that width has
# relative norms: below, of most preference and RL stages; above, of no short run
SMALL, LARGE = 2e-3, 0.1
SHRINKS, STILL = -0.5, -0.1  # decay_cosine: mostly decay; at most 1 % of the energy is decay
# cosine of base and tuned: decay leaves 1, as each is the other times a number. A matrix that was
# replaced by another of its norm has 0 and a decay_cosine of -0.71, a negative one -1 and -1.
POINTS_ALIKE, POINTS_ELSEWHERE = 0.9, 0.5
EXPLANATIONS = table(
    Claim(
        "merged_adapter",
        "low-rank adapter",
        "the change is a low-rank adapter, stored as one or merged into the base",
        needs=("figures.rank_ceiling", "inside_layers.rank_most", "inside_layers.rest_rank"),
        null="full rank",
    ),
    Claim(
        "orthogonalised_optimiser",
        "orthogonalised optimiser",
        "an optimiser with orthogonal updates, such as Muon, made the change",
        needs=("inside_layers.flatter_than_noise", "figures.concentration"),
    ),
    Claim(
        "quantised_copy",
        "quantised copy",
        "the tuned model is the base after a round trip through 8 bits or fewer",
        needs=(
            "inside_layers.levels_tuned_few",
            "figures.concentration",
            "inside_layers.relative_norm",
        ),
        null="many distinct values in the rows of every matrix",
    ),
    Claim(
        "merge",
        "merge of models",
        "the tuned model is the mean of several models",
        needs=("inside_layers.even_many", "inside_layers.even_some", "inside_layers.even_judged"),
        null="an even last bit in half of the changed entries",
    ),
    Claim(
        "short_run",
        "short or slow training",
        "the training had few steps or small ones",
        needs=("figures.relative_norm_overall", "figures.relative_norm_overall_unrounded"),
    ),
    Claim("novel_data", "novel data", "the training data were new to the base rather than narrow"),
    Claim(
        "weight_decay",
        "weight decay",
        "weight decay shrank the weights",
        needs=("inside_layers.decay_cosine_unrounded", "inside_layers.cosine"),
        null="a decay_cosine of 0",
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


def _merge(draft: Draft) -> tuple[Outcome, str]:
    inside = draft.summary.inside_layers
    judged, many, some = inside.even_judged, inside.even_many, inside.even_some
    if judged and 2 * (many + some) >= judged:
        draft.inside("even_judged")
        draft.inside("even_many")
        draft.inside("even_some")
        which = f"in {all_of(many + some, judged)}, more changed entries have an even last bit than"
        if 2 * many >= judged:
            return "holds", f"{which} one rounding leaves, as after averaging"
        return "cannot_be_told", f"{which} not, as after averaging or a merge computed in 16 bits"
    reason = "a mean of models can differ from a base as a single model does"
    return "cannot_be_told", reason


def _novel_data(draft: Draft) -> tuple[Outcome, str]:
    reason = "data new to the base leave the same kind of change as narrow data"
    return "cannot_be_told", reason


def _merged_adapter(draft: Draft) -> tuple[Outcome, str]:
    figures, inside = draft.summary.figures, draft.summary.inside_layers
    if figures.rank_ceiling is not None:
        rank = draft.write(figures.rank_ceiling, "figures.rank_ceiling", "count")
        return "holds", f"the tuned side is an adapter of rank {rank} at most"
    side, least, most = figures.short_side, inside.rank_least, inside.rank_most
    if side is None or least is None or most is None:
        return "cannot_be_told", "the rank of the update is unknown"
    if least <= 1 and not is_low_rank(draft.summary):
        return "cannot_be_told", "the rank of the update is unknown"
    directions = draft.directions()
    if is_low_rank(draft.summary):
        rank = draft.write(most, "inside_layers.rank_most", "count")
        return "holds", f"the median update has rank {rank} at most, of {directions} possible"
    rest = inside.rest_rank
    most_have = 2 * inside.rest_known >= inside.matrices and (inside.rest_norm or 0) >= IN_8_BITS
    if most_have and rest is not None and rest <= min(USUAL_RANK, LOW * side):
        number = draft.write(rest, "inside_layers.rest_rank", "count")
        text = "the change looks like noise, and a coarser rounding may hide an adapter in it"
        if rest:
            text = (
                f"{number} of {directions} directions {'stands' if rest == 1 else 'stand'} out, and"
                " a coarser rounding may have left the rest, which looks like noise"
            )
        return "cannot_be_told", text
    rank = draft.write(least, "inside_layers.rank_least", "count")
    if least <= min(USUAL_RANK, HIGH * side):
        return "cannot_be_told", f"only ranks below {rank}, of {directions} possible, are excluded"
    reason = f"the median update has rank {rank} or more, of {directions} possible"
    if stands_out(draft.summary):
        spikes = text_of(draft.inside("spikes"), "about")
        what = "the direction that stands out"
        if spikes != "1":
            what = f"the {spikes} directions that stand out"
        reason = f"{reason}; beside another change, an adapter may have left {what}"
    return "does_not_hold", reason


def _orthogonalised(draft: Draft) -> tuple[Outcome, str]:
    figures, inside = draft.summary.figures, draft.summary.inside_layers
    judged, flatter = inside.judged, inside.flatter_than_noise
    if judged and 2 * flatter >= judged:
        draft.inside("flatter_than_noise")
        draft.inside("judged")
        return "holds", f"{all_of(flatter, judged)} inside layers are flatter than noise"
    known = choose_runs(figures.short_side, "muon", runs())
    if figures.concentration is not None and known:
        most = max(run.concentration for run in known)
        bases = len({run.base for run in known})
        if figures.concentration > most + LIKE_NOISE:
            size = draft.write(figures.concentration, "figures.concentration", "fixed")
            return "does_not_hold", (
                f"concentration is {size}, and at most {most:.2f} in the lab's"
                f" {len(known)} trainings with Muon ({counted(bases, 'base', 'bases')})"
            )
    compared = "the lab has no training with Muon of this size"
    if known:
        compared = "the lab's trainings with Muon look similar"
    return "cannot_be_told", f"many orthogonal updates can add up to structure, and {compared}"


def _quantised(draft: Draft) -> tuple[Outcome, str]:
    record, inside = draft.summary, draft.summary.inside_layers
    through = few_bits(draft)
    if through == "format":
        stored = "is stored" if inside.matrices == 1 else "are stored"
        which = all_of(inside.in_8_bits, inside.matrices)
        return "holds", f"{which} {stored} in 8 bits on one side"
    if through is not None:
        few, judged = few_of(record, "tuned")
        have = "has" if judged == 1 else "have"
        return "holds", (
            f"{few:,} of {counted(judged, 'matrix', 'matrices')} of the tuned model {have} few"
            " distinct values in each row"
        )
    concentration = record.figures.concentration
    if concentration is not None and concentration > STRUCTURED:
        size = draft.write(concentration, "figures.concentration", "fixed")
        return "does_not_hold", f"concentration is {size}, and rounding leaves about 0"
    norm = draft.inside("relative_norm")
    if norm is not None and norm < IN_8_BITS:
        size = text_of(norm, "share")
        return (
            "does_not_hold",
            f"the median change is {size}, and rounding to 8 bits leaves 0.3 % or more",
        )
    return "cannot_be_told", "rounding in blocks or by column does not show in the values of a row"


def _short_run(draft: Draft) -> tuple[Outcome, str]:
    name = "relative_norm_overall"
    if has_other_norm_unrounded(draft.summary):
        name = "relative_norm_overall_unrounded"
    value = draft.overall(name)
    if value is None:
        return "cannot_be_told", "the size of the change is unknown"
    size = text_of(value, "share")
    if value < SMALL:
        return "holds", f"the change is only {size} of the base's norm"
    if value > LARGE:
        return "does_not_hold", f"the change is {size} of the base's norm"
    return "cannot_be_told", f"few large steps or many small ones can make a change of {size}"


def _weight_decay(draft: Draft) -> tuple[Outcome, str]:
    inside, floor = draft.summary.inside_layers, draft.summary.figures.floor_ratio
    name, alike = "decay_cosine_unrounded", inside.cosine
    if inside[name] is None:  # of a report made before 0.2.0, or of an unknown update
        name = "decay_cosine"
    value = inside[name]
    if value is None:
        return "cannot_be_told", "the report does not say whether the weights shrank"
    if draft.summary.tier == "norms" and value >= STILL:
        return "cannot_be_told", "rounding can hide decay, and what it left was not measured"
    rounded = floor is not None and floor < CLEAR
    if is_lost(draft.summary) or (rounded and name == "decay_cosine"):
        reason = "rounding hides decay of less than half a step of the storage format"
        return "cannot_be_told", reason
    if value < STILL and alike is not None and alike < POINTS_ELSEWHERE:
        of_sides = draft.write(alike, "inside_layers.cosine", "fixed")
        return "does_not_hold", (
            f"base and tuned have a median cosine of {of_sides}, and decay leaves 1: replaced or"
            " negated matrices point against the weights too"
        )
    cosine = draft.write(value, f"inside_layers.{name}", "fixed")
    if value >= STILL:
        return "does_not_hold", (
            f"the change does not point against the weights (median cosine {cosine}; decay alone"
            " gives -1)"
        )
    if alike is None:  # although the change has a direction: the tuned side has none
        draft.figures.clear()
        return "does_not_hold", "the tuned weights are 0"
    if value <= SHRINKS and alike >= POINTS_ALIKE:
        return "holds", f"the change points against the weights (median cosine {cosine})"
    reason = f"part of the change points against the weights (median cosine {cosine})"
    return "cannot_be_told", reason


JUDGES: Mapping[str, Callable[[Draft], tuple[Outcome, str]]] = {
    "merged_adapter": _merged_adapter,
    "orthogonalised_optimiser": _orthogonalised,
    "quantised_copy": _quantised,
    "merge": _merge,
    "short_run": _short_run,
    "novel_data": _novel_data,
    "weight_decay": _weight_decay,
}
