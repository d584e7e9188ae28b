"""Structure of the change, and the share of it that storage left."""

from __future__ import annotations

from collections.abc import Mapping

from shadow.checks.explanations import (
    CLEAR,
    beyond_rounding,
    few_bits,
    few_of,
    has_few_values,
    is_low_rank,
)
from shadow.checks.summary import Sentence
from shadow.quantities import bounds_text
from shadow.summary.coverage import ROUNDING
from shadow.summary.record import Gate, PairRecord
from shadow.telling.wording import Recorded, tell

# share of the stored energy that is the update's, above which storage does not matter
WELL_KEPT = 0.9
DIRECTIONS = "inside_layers.equivalent_directions"
BEYOND = (
    "In {beyond_noise/judged:all matrix|matrices} inside the layers, the change has more structure"
    " than noise"
)
WORDS = {  # slots without a dot are figures of inside_layers
    "flat": "In {flatter_than_noise/judged:all matrix|matrices} inside the layers, the change is"
    " flatter than noise: it is spread over more directions than random changes are.",
    "mixed": f"{BEYOND}. In most, it looks like noise.",
    "noise": "It looks like noise: of {judged:count matrix|matrices} inside the layers,"
    " {beyond_noise:count} {beyond_noise|has|have} more structure than random changes of the same"
    " rows and columns.",
    "hidden": f"{BEYOND}. How concentrated the update was before storage is unknown.",
    "above": f"{BEYOND}, but less than {{directions}} equally strong directions would have.",
    "along": f"{BEYOND},{{where}} as along {{{DIRECTIONS}:about equally strong direction|equally"
    " strong directions}[ of {directions}].",
    "adapter": "It is an adapter: no matrix changed along more than {figures.rank_ceiling:count} of"
    " {directions} directions.",
    "low_rank": "It has low rank: in {which}, {rank_most:count} of {directions} directions"
    " {rank_most|holds|hold} all of it but rounding.",
    "base": "The base looks dequantised from 4 to 8 bits: rows of"
    " {levels_base_few/levels_base_judged:all matrix|matrices} inside the layers[ that could be"
    " judged (of {of_base:count})] have few distinct values.",
    "format": "In {in_8_bits/matrices:all matrix|matrices} inside the layers, a side is stored in 8"
    " bits, so part or all of the change may be the rounding of that format.",
    "tuned": "In {levels_tuned_few/levels_tuned_judged:all matrix|matrices} inside the layers[ that"
    " could be judged (of {of_tuned:count})], rows of the tuned side have as few distinct values as"
    " a copy in 8 or 4 bits, so part or all of the change may be the rounding of that copy.",
    "of_quantised": "A side is quantised: inside the layers, {part} of the energy of the stored"
    " change is the update, the rest is the error of the format.",
    "rounded_away": "Storage rounded most of it away: in {rounded_away/matrices:all"
    " matrix|matrices} inside the layers, less than a quarter of the stored change is the update."
    " Its size and structure are unknown.",
    "beyond_rounding": "In {known/matrices:all matrix|matrices} inside the layers, the change is"
    " more than rounding[: in the median {relative_norm_unrounded:share} of their norm][, along"
    " {equivalent_directions:about} equally strong directions]. In most others, less than a quarter"
    " of the stored change can be the update.",
    "unexplained": "In {unexplained/matrices:all matrix|matrices} inside the layers, one rounding"
    " fits too poorly to say what storage took. Weight decay, updates of widely differing sizes, a"
    " mean of models, rounding at every step or a copy in more or fewer bits may be the reason.",
    "small": "The stored change is {figures.floor_ratio:ratio} times its rounding.",
    "kept": "Inside the layers, {inside_layers.kept:share} of the energy of the stored change is"
    " the update; the rest is rounding.",
}


def structure(summary: PairRecord) -> list[Sentence]:
    """Return sentences on whether the change is more than noise, and along how many directions."""
    inside = summary.inside_layers
    judged, beyond, flatter = inside.judged, inside.beyond_noise, inside.flatter_than_noise
    if not judged or (2 * inside.rounded_away >= judged and 2 * beyond < judged):
        return []  # the figures are those of rounding, which the next sentence says
    if 2 * flatter < judged and is_low_rank(summary):
        return [_low_rank(summary)]
    if 2 * flatter < judged <= 2 * beyond:
        return [_coherent(summary)]
    kind = noise_kind(summary)
    if kind == "noise" and summary.figures.concentration is None:
        return []  # too small: random signs leave as few directions
    return [tell(summary, "noise", WORDS[kind])]


def noise_kind(summary: PairRecord) -> str:
    """Return `flat`, `mixed` or `noise`: how the change of most matrices compares with noise."""
    inside = summary.inside_layers
    if 2 * inside.flatter_than_noise >= inside.judged:
        return "flat"
    is_mixed = 10 * (inside.beyond_noise + inside.flatter_than_noise) >= inside.judged
    return "mixed" if is_mixed else "noise"


def knows_coherence(summary: PairRecord) -> bool:
    """Return whether the coherence of updates is known for at least half of the matrices. The
    rounding of a copy in few bits makes them seem less coherent by an unknown amount.
    """
    inside = summary.inside_layers
    if 2 * inside.unexplained_in_more_bits >= inside.matrices or few_bits(summary) == "tuned":
        return False
    return bool(2 * (inside.coherent + inside.above_short_side) >= inside.judged)


def _coherent(summary: PairRecord) -> Sentence:
    """Describe how coherent the change is, as far as that is known."""
    recorded, inside = Recorded(summary), summary.inside_layers
    code = "hidden"
    if knows_coherence(summary) and inside.equivalent_directions is not None:
        code = "along"
        recorded.note(DIRECTIONS)
    elif knows_coherence(summary) and inside.above_short_side:
        code = "above"
    text = recorded.fill(
        WORDS[code],
        directions=recorded.directions() or None,
        where="" if inside.matrices == 1 else " in the median",
    )
    return recorded.sentence("coherent", text)


def _low_rank(summary: PairRecord) -> Sentence:
    recorded, inside = Recorded(summary), summary.inside_layers
    recorded.note("inside_layers.judged")
    code, which = "low_rank", "the median matrix"
    if summary.figures.rank_ceiling is not None:
        code = "adapter"
    elif inside.rank_known < inside.matrices:
        which = recorded.fill("the median of {rank_known:count} of {matrices:count} matrices")
    elif inside.matrices == 1:
        which = "the only matrix that changed"
    text = recorded.fill(WORDS[code], directions=recorded.directions(), which=which)
    return recorded.sentence("low_rank", text)


def storage(summary: PairRecord, gates: Mapping[str, Gate]) -> list[Sentence]:
    """Describe which side went through few bits, and how much of what is stored is the update."""
    through = few_bits(summary)
    few = [WORDS["base"]] if has_few_values(summary, "base") else []
    few += [WORDS[through]] if through is not None else []
    left = _left(summary, not gates["rounding"].passed, bool(few))
    if not few:
        return left
    of_base, of_tuned = (_if_some_unjudged(summary, side) for side in ("base", "tuned"))
    return [tell(summary, "few_values", *few, of_base=of_base, of_tuned=of_tuned), *left]


def _if_some_unjudged(summary: PairRecord, side: str) -> int | None:
    """Return the number of matrices inside layers, if the values of some could not be judged, as
    those of short rows.
    """
    matrices, (_, judged) = summary.inside_layers.matrices, few_of(summary, side)
    return int(matrices) if judged < matrices else None


def _left(summary: PairRecord, is_small: bool, has_few: bool) -> list[Sentence]:
    """Describe how much of what is stored is the update, as far as it shows."""
    recorded, inside, floor = Recorded(summary), summary.inside_layers, summary.figures.floor_ratio
    if not inside.matrices or floor is None:
        return []
    if is_of_quantised(summary):
        recorded.note("inside_layers.kept_low_overall", "inside_layers.kept_high_overall")
        bounds = inside.kept_low_overall or 0.0, inside.kept_high_overall or 0.0
        text = recorded.fill(WORDS["of_quantised"], part=bounds_text(bounds, "share"))
        return [recorded.sentence("kept", text)]
    if 2 * inside.rounded_away >= inside.matrices:
        words = "beyond_rounding" if beyond_rounding(summary) else "rounded_away"
        return [tell(summary, "rounded_away", WORDS[words])]
    small = recorded.fill(WORDS["small"]) if is_small else ""
    if 2 * inside.unexplained >= inside.matrices and floor < CLEAR and not has_few:
        return [recorded.sentence("kept", recorded.fill(WORDS["unexplained"]), small)]
    if inside.kept is not None and inside.kept < WELL_KEPT:
        return [tell(summary, "kept", WORDS["kept"])]
    return [recorded.sentence("rounding", small)] if small else []


def is_of_quantised(summary: PairRecord) -> bool:
    """Return whether a side is quantised, so that the update's share of the change is a range."""
    inside = summary.inside_layers
    low = inside.kept_low_overall
    return low is not None and (inside.kept is None or low < WELL_KEPT)


def is_no_more_than_format(summary: PairRecord) -> bool:
    """Return whether the error of the formats is as large as all that is stored of the change."""
    floor, high = summary.figures.floor_ratio, summary.inside_layers.kept_high_overall
    small = floor is not None and floor < ROUNDING
    return is_of_quantised(summary) and (small or (high is not None and high < 0.5))
