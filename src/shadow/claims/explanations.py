"""What else may have left the same figures, and whether it can have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from shadow.claims.reference import choose_runs, runs
from shadow.quantities import text_of
from shadow.telling.known_changes import beyond_rounding
from shadow.telling.size import told_unrounded
from shadow.telling.structure import is_low_rank, stands_out
from shadow.telling.wording import (
    CLEAR,
    LIKE_NOISE,
    ONE_ROUNDING,
    USUAL_RANK,
    Draft,
    Figure,
    all_of,
    count_of,
)
from shadow.text import counted

if TYPE_CHECKING:
    from shadow.summary.summary import Summary

Answer = Literal["no", "fits", "cannot_be_excluded"]
ANSWERS: Mapping[Answer, str] = {
    "no": "no",
    "fits": "fits",
    "cannot_be_excluded": "cannot be excluded",
}
HIGH = 0.5  # of the short side: more than any adapter of that width has
# relative norms: below, of most preference and RL stages; above, of no short run
SMALL, LARGE = 2e-3, 0.1
SHRINKS, STILL = -0.5, -0.1  # decay_cosine: mostly decay; at most 1 % of the energy is decay
# cosine of base and tuned: decay leaves 1, as each is the other times a number. A matrix that was
# replaced by another of its norm has 0 and a decay_cosine of -0.71, a negative one -1 and -1.
POINTS_ALIKE, POINTS_ELSEWHERE = 0.9, 0.5
EXPLANATIONS: Mapping[str, str] = {
    "merged_adapter": "merged adapter",
    "orthogonalised_optimiser": "orthogonalised optimiser",
    "quantised_copy": "copy through fewer bits",
    "merge": "merge of models",
    "short_run": "short or slow training",
    "novel_data": "novel data",
    "weight_decay": "weight decay",
}


@dataclass(frozen=True)
class Explanation:
    """Something else that may have left these figures, whether it did, and why that is known."""

    code: str
    """One of EXPLANATIONS."""

    name: str
    """What people call it."""

    answer: Answer
    """no, fits, or cannot be excluded."""

    reason: str
    """Why."""

    figures: Mapping[str, Figure]
    """The figures whose numbers stand in the reason, in full, by their place in summary.json."""


def explanations(summary: Summary) -> list[Explanation]:
    return [
        _merged_adapter(Draft(summary)),
        _orthogonalised(Draft(summary)),
        _quantised(Draft(summary)),
        _always("merge", "the mean of several models differs from a base as a single model would"),
        _short_run(Draft(summary)),
        _always(
            "novel_data",
            "data that are new to the base leave the same kind of change as narrow data",
        ),
        _weight_decay(Draft(summary)),
    ]


def _always(code: str, reason: str) -> Explanation:
    return _explained(code, "cannot_be_excluded", reason=reason, figures={})


def _is_lost(summary: Summary) -> bool:
    """Was, or may, so much be rounded away that what is stored does not tell of the update?"""
    inside, floor = summary.inside_layers, summary.figures.floor_ratio
    unknown = inside.rounded_away
    if floor is None or floor < CLEAR:
        unknown += inside.unexplained
    return 2 * unknown >= max(1, inside.matrices)


def _explained(
    code: str, answer: Answer, reason: str, figures: Mapping[str, Figure]
) -> Explanation:
    return Explanation(
        code=code, name=EXPLANATIONS[code], answer=answer, reason=reason, figures=figures
    )


def _merged_adapter(draft: Draft) -> Explanation:
    summary = draft.summary
    code, side = "merged_adapter", summary.figures.short_side
    least, most = summary.inside_layers.rank_least, summary.inside_layers.rank_most
    ceiling = summary.figures.rank_ceiling
    if ceiling is not None:
        rank = draft.write(ceiling, "figures.rank_ceiling", "count")
        return _explained(
            code,
            "fits",
            reason=f"the tuned side is an adapter, of rank {rank} at most",
            figures=draft.figures,
        )
    if side is None or least is None or most is None:
        return _explained(
            code, "cannot_be_excluded", reason="the rank of the update is unknown", figures={}
        )
    directions = draft.directions()
    if is_low_rank(summary):
        rank = text_of(draft.inside("rank_most") or 0, "count")
        return _explained(
            code,
            "fits",
            reason=f"the median update has rank {rank} at most, of {directions}",
            figures=draft.figures,
        )
    rank = draft.write(least, "inside_layers.rank_least", "count")
    if least > min(USUAL_RANK, HIGH * side):
        reason = f"the median update has rank {rank} or more, of {directions}"
        if stands_out(summary):
            spikes = text_of(draft.inside("spikes") or 0, "about")
            what = f"the {spikes} that stand out"
            if spikes == "1":
                what = "the direction that stands out"
            reason = (
                f"not alone: {reason}; with another change beside it, an adapter may have left"
                f" {what}"
            )
        return _explained(code, "no", reason=reason, figures=draft.figures)
    if least > 1:
        return _explained(
            code,
            "cannot_be_excluded",
            reason=f"only a rank below {rank} of {directions} is excluded",
            figures=draft.figures,
        )
    return _explained(code, "cannot_be_excluded", reason="its rank cannot be told", figures={})


def _orthogonalised(draft: Draft) -> Explanation:
    summary, code = draft.summary, "orthogonalised_optimiser"
    judged = summary.inside_layers.judged
    flatter = summary.inside_layers.flatter_than_noise
    if judged and 2 * flatter >= judged:
        draft.inside("flatter_than_noise")
        draft.inside("judged")
        return _explained(
            code,
            "fits",
            reason=f"{all_of(flatter, judged)} inside layers are flatter than noise",
            figures=draft.figures,
        )
    value = summary.figures.concentration
    known = choose_runs(summary.figures.short_side, "muon", runs())
    if value is not None and known:
        most = max(run.concentration for run in known)
        bases = len({run.base for run in known})
        if value > most + LIKE_NOISE:
            size = draft.write(value, "figures.concentration", lambda x: f"{x:.2f}")
            among = (
                f"{len(known)} trainings of the lab with Muon on {counted(bases, 'base', 'bases')}"
            )
            return _explained(
                code,
                "no",
                reason=f"concentration is {size}, and at most {most:.2f} in {among}",
                figures=draft.figures,
            )
    compared = "the lab has no such training of this size"
    if known:
        compared = "the lab's trainings with Muon are like it"
    return _explained(
        code,
        "cannot_be_excluded",
        reason=f"many such steps can add up to structure, and {compared}",
        figures={},
    )


def _quantised(draft: Draft) -> Explanation:
    summary, code, inside = draft.summary, "quantised_copy", draft.summary.inside_layers
    for side in ("tuned", "base"):
        few, judged = (count_of(inside, f"levels_{side}_{name}") for name in ("few", "judged"))
        if few and 2 * few > judged:
            draft.inside(f"levels_{side}_few")
            draft.inside(f"levels_{side}_judged")
            return _explained(
                code, "fits", reason=_with_few_values(side, few, judged), figures=draft.figures
            )
    eight, matrices = inside.in_8_bits, inside.matrices
    if eight and 2 * eight > matrices:
        draft.inside("in_8_bits")
        draft.inside("matrices")
        return _explained(
            code,
            "fits",
            reason=f"a side of {all_of(eight, matrices)} is stored in 8 bits",
            figures=draft.figures,
        )
    floor = summary.figures.floor_ratio
    low, high = ONE_ROUNDING
    if (
        floor is not None
        and low <= floor <= high
        and 2 * inside.beyond_noise < inside.judged
        and not beyond_rounding(summary)
    ):
        size = draft.write(floor, "figures.floor_ratio", lambda x: f"{x:.2f}")
        return _explained(
            code,
            "fits",
            reason=f"the change is {size} times the rounding of its storage, as of a copy",
            figures=draft.figures,
        )
    judged = inside.levels_tuned_judged
    if not judged:
        return _explained(
            code,
            "cannot_be_excluded",
            reason="its rows are too short for their values to show it",
            figures={},
        )
    few = inside.levels_tuned_few
    draft.figures |= {
        "inside_layers.levels_tuned_few": few,
        "inside_layers.levels_tuned_judged": judged,
    }
    reason = _with_few_values("tuned", few, judged)
    return _explained(code, "no", reason=reason, figures=draft.figures)


def _with_few_values(side: str, few: int, judged: int) -> str:
    have = "has" if judged == 1 else "have"
    return (
        f"{few:,} of {counted(judged, 'matrix', 'matrices')} of the {side} side {have} few distinct"
        " values in a row"
    )


def _short_run(draft: Draft) -> Explanation:
    code, name = "short_run", "relative_norm_overall"
    if told_unrounded(draft.summary):
        name = "relative_norm_overall_unrounded"
    value = draft.summary.figures[name]
    if value is None:
        return _explained(
            code, "cannot_be_excluded", reason="the size of the change is unknown", figures={}
        )
    size = draft.write(value, f"figures.{name}", "share")
    if value < SMALL:
        return _explained(
            code,
            "fits",
            reason=f"the change is only {size} of the base's norm",
            figures=draft.figures,
        )
    if value > LARGE:
        return _explained(
            code, "no", reason=f"the change is {size} of the base's norm", figures=draft.figures
        )
    reason = f"a change of {size} may be few large steps or many small ones"
    return _explained(code, "cannot_be_excluded", reason=reason, figures=draft.figures)


def _weight_decay(draft: Draft) -> Explanation:
    summary, code = draft.summary, "weight_decay"
    value = summary.inside_layers.decay_cosine
    if value is None:
        return _explained(
            code,
            "cannot_be_excluded",
            reason="the report does not say whether the weights shrank",
            figures={},
        )
    if _is_lost(summary):
        return _explained(
            code,
            "cannot_be_excluded",
            reason="decay of less than half a step of the format leaves no trace",
            figures={},
        )
    draft.inside("decay_cosine")
    cosine = f"{value:.2f}".replace("-0.00", "0.00")
    if value >= STILL:
        reason = (
            f"the change does not point against the weights (median cosine {cosine}, of decay alone"
            " -1)"
        )
        return _explained(code, "no", reason=reason, figures=draft.figures)
    alike = summary.inside_layers.cosine
    if alike is None:  # although the change has a direction: the tuned side has none
        return _explained(code, "no", reason="the tuned weights are 0", figures={})
    if alike < POINTS_ELSEWHERE:
        del draft.figures["inside_layers.decay_cosine"]  # which the reason does not tell
        of_sides = draft.write(alike, "inside_layers.cosine", lambda x: f"{x:.2f}")
        reason = (
            f"base and tuned have a median cosine of {of_sides}, and decay leaves 1: replaced,"
            " exchanged or negated matrices also change against the weights"
        ).replace("-0.00", "0.00")
        return _explained(code, "no", reason=reason, figures=draft.figures)
    if value <= SHRINKS and alike >= POINTS_ALIKE:
        return _explained(
            code,
            "fits",
            reason=f"the change points against the weights (median cosine {cosine})",
            figures=draft.figures,
        )
    reason = f"a part of the change points against the weights (median cosine {cosine})"
    return _explained(code, "cannot_be_excluded", reason=reason, figures=draft.figures)
