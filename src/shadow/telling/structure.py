"""What the change is made of, and what storage left of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from shadow.checks.inside import (
    CLEAR,
    LIKE_NOISE,
    beyond_rounding,
    few_bits,
    has_few_values,
    is_low_rank,
    stands_out,
)
from shadow.checks.pair_gates import Gate
from shadow.checks.summary import Sentence
from shadow.quantities import bounds_text, text_of
from shadow.summary.record import PairRecord
from shadow.summary.rows import CoherenceRow
from shadow.summary.standing import ROUNDING
from shadow.telling.told import Told, tell
from shadow.telling.wording import module_name, of_component

APART = 2.0  # ratio of the most and the least coherent module from which they are named
# alignment over its null, in units of an even spread, from which it is more than chance and
# rounding
TURNED = 0.25
# share of the stored energy that is the update's, above which storage does not matter
WELL_KEPT = 0.9
DIRECTIONS = "inside_layers.equivalent_directions"
BEYOND = (
    "In {inside_layers.beyond_noise/inside_layers.judged:all matrix|matrices} inside the layers"
)
WORDS = {
    "concentration": "The median concentration is {figures.concentration:fixed} (0 is noise, 1 a"
    " single direction): {like}.",
    "flat": "In {inside_layers.flatter_than_noise/inside_layers.judged:all matrix|matrices} inside"
    " the layers, the change is flatter than noise: it is spread over more directions than random"
    " changes are.",
    "mixed": f"{BEYOND}, the change has more structure than noise. In most, it looks like noise.",
    "noise": "It looks like noise: of {inside_layers.judged:count matrix|matrices} inside the"
    " layers, {inside_layers.beyond_noise:count} {inside_layers.beyond_noise|has|have} more"
    " structure than random changes of the same rows and columns.",
    "hidden": f"{BEYOND}, the change has more structure than noise. How concentrated the update was"
    " before storage is unknown.",
    "above": f"{BEYOND}, the change has more structure than noise, but less than {{directions}}"
    " equally strong directions would have[ ({modules:and})].",
    "along": f"{BEYOND}, the change has more structure than noise,{{median}} as along {{strong}}"
    "[ of {directions}][ ({modules:and})].",
    "module": "{equivalent_directions:about} in {module}",
    "module_above": "more than {short_side:count} in {module}",
    "turned": "It {how} the base's leading {which:and}: they hold {shares:and} times an even share"
    " of it, and would hold {nulls:and} with random signs.",
    "standing_out": "In the {which} matrix{where}, {inside_layers.spikes:about} of {directions}"
    " directions {spikes|stands|stand} out from noise, with {inside_layers.spike_energy:share} of"
    " its change.",
    "adapter": "It is an adapter: no matrix changed along more than {figures.rank_ceiling:count} of"
    " {directions} directions.",
    "low_rank": "It has low rank: in the {which}, {inside_layers.rank_most:count} of {directions}"
    " directions {inside_layers.rank_most|holds|hold} all of it but rounding.",
    "low_rank_in_some": "It has low rank: in the median of {inside_layers.rank_known:count} of"
    " {inside_layers.matrices:count} matrices, {inside_layers.rank_most:count} of {directions}"
    " directions {inside_layers.rank_most|holds|hold} all of it but rounding.",
    "base_few_values": "The base looks dequantised from 4 to 8 bits: rows of"
    " {inside_layers.levels_base_few/inside_layers.levels_base_judged:all matrix|matrices} inside"
    " the layers have few distinct values.",
    "format": "In {inside_layers.in_8_bits/inside_layers.matrices:all matrix|matrices} inside the"
    " layers, a side is stored in 8 bits, so part or all of the change may be the rounding of that"
    " format.",
    "tuned": "In {inside_layers.levels_tuned_few/inside_layers.levels_tuned_judged:all"
    " matrix|matrices} inside the layers, rows of the tuned side have as few distinct values as a"
    " copy in 8 or 4 bits, so part or all of the change may be the rounding of that copy.",
    "of_quantised": "A side is quantised: inside the layers, {part} of the energy of the stored"
    " change is the update, the rest is the error of the format.",
    "rounded_away": "Storage rounded most of it away: in"
    " {inside_layers.rounded_away/inside_layers.matrices:all matrix|matrices} inside the layers,"
    " less than a quarter of the stored change is the update. Its size and structure are unknown.",
    "beyond_rounding": "In {inside_layers.known/inside_layers.matrices:all matrix|matrices} inside"
    " the layers, the change is more than rounding[: in the median {known:and}]. In most others,"
    " less than a quarter of the stored change can be the update.",
    "unexplained": "In {inside_layers.unexplained/inside_layers.matrices:all matrix|matrices}"
    " inside the layers, one rounding does not explain what is stored, so what storage took is"
    " unknown. Weight decay, updates of widely differing sizes, a mean of models, rounding at every"
    " step or a copy in more or fewer bits may have left it.",
    "small": "The stored change is {figures.floor_ratio:ratio} times its rounding.",
    "kept": "Inside the layers, {part} of the energy of the stored change is the update; the rest"
    " is rounding.",
    "rounding": "The stored change is only {figures.floor_ratio:ratio} times the rounding of its"
    " storage.",
}


def structure(summary: PairRecord) -> list[Sentence]:
    """Whether the change is more than noise, and along how many directions."""
    inside = summary.inside_layers
    judged, beyond, flatter = inside.judged, inside.beyond_noise, inside.flatter_than_noise
    if not judged:
        return _by_concentration(summary)
    if 2 * inside.rounded_away >= judged and 2 * beyond < judged:
        return []  # the figures are those of rounding, which the next sentence says
    if 2 * flatter >= judged:
        return [tell(summary, "flat", WORDS["flat"])]
    if is_low_rank(summary):
        return [_low_rank(summary)]
    if 2 * beyond >= judged:
        return [_coherent(summary), *_standing_out(summary)]
    if 10 * (beyond + flatter) >= judged:
        return [tell(summary, "mixed", WORDS["mixed"])]
    if summary.figures.concentration is None:
        return []  # too small: random signs leave as few directions
    return [tell(summary, "noise", WORDS["noise"])]


def _by_concentration(summary: PairRecord) -> list[Sentence]:
    """For reports that lack the columns of purity, and models without layers."""
    value = summary.figures.concentration
    if value is None:
        return []
    like = "fewer directions than noise" if value > 0 else "flatter than noise"
    like = "like noise" if abs(value) <= LIKE_NOISE else like
    return [tell(summary, "concentration", WORDS["concentration"], like=like)]


def knows_coherence(summary: PairRecord) -> bool:
    """Whether it is known of half of the matrices or more how coherent their updates are. The
    rounding of a copy in few bits makes them seem less so by an unknown amount.
    """
    inside = summary.inside_layers
    if 2 * inside.unexplained_in_more_bits >= inside.matrices or few_bits(summary) == "tuned":
        return False
    return 2 * (inside.coherent + inside.above_short_side) >= inside.judged


def equally_strong(number: str) -> str:
    """`33 equally strong directions`."""
    return "1 direction" if number == "1" else f"{number} equally strong directions"


def _coherent(summary: PairRecord) -> Sentence:
    """How coherent the change is, and how modules compare."""
    told, inside = Told(summary), summary.inside_layers
    words: dict[str, Any] = {"directions": told.directions() or None}
    code, is_known = "hidden", knows_coherence(summary)
    if is_known and inside.equivalent_directions is not None:
        code = "along"
        told.note(DIRECTIONS)
        words["strong"] = equally_strong(Told(summary).reaching(DIRECTIONS, "about"))
        words["median"] = "" if inside.matrices == 1 else " in the median"
    elif is_known and inside.above_short_side:
        code = "above"
    if code != "hidden":
        words["modules"] = _across_modules(told) or None
    return told.sentence("coherent", told.fill(WORDS[code], **words), _alignment(told))


def _across_modules(told: Told) -> list[str]:
    """`25 in attn.o`, `46 in attn.q`: the ends of all modules, where they differ clearly."""

    def size(row: CoherenceRow) -> float:
        return row.equivalent_directions or math.inf

    rows = [
        row
        for row in told.summary.coherence
        if 2 * (row.coherent + row.above_short_side) >= row.matrices
    ]
    most_known = max((row.equivalent_directions or 0.0 for row in rows), default=0.0)
    # what is above a short side that others exceed is not the other end
    rows = [
        row
        for row in rows
        if row.equivalent_directions
        or (row.above_short_side and 0 < most_known <= (row.short_side or 0))
    ]
    ends = [min(rows, key=size), max(rows, key=size)] if len(rows) > 1 else []
    if not ends or size(ends[1]) < APART * size(ends[0]):
        return []
    several = len({row.component for row in rows}) > 1
    texts = []
    for row in ends:
        code = "module" if row.equivalent_directions else "module_above"
        module = of_component(module_name(row.module), row.component, several)
        at = f"coherence.{row.component}.{row.module}"
        texts.append(told.fill(WORDS[code], row, at, module=module))
    return texts


def _standing_out(summary: PairRecord) -> list[Sentence]:
    """The directions that stand out one by one, which a measure of coherence does not count."""
    if not stands_out(summary):
        return []
    told, inside = Told(summary), summary.inside_layers
    text = told.fill(
        WORDS["standing_out"],
        which="only" if inside.matrices == 1 else "median",
        # figures of all matrices, such as those of the page, then say another number
        where="" if inside.matrices == summary.figures.matrices else " inside the layers",
        directions=told.directions(),
        spikes=round(inside.spikes or 0),
    )
    return [told.sentence("standing_out", text)]


def _alignment(told: Told) -> str:
    """Whether it follows the base's strongest directions, more than rows and columns alone do."""
    turned: dict[str, list[tuple[str, float, float]]] = {"follows": [], "avoids": []}
    for side, what in (("left", "outputs"), ("right", "inputs")):
        places = [f"alignment_{side}{end}" for end in ("", "_null", "_excess")]
        value, null, excess = (told.summary.inside_layers.get(place) for place in places)
        if value is None or null is None or excess is None:
            return ""
        told.note(*(f"inside_layers.{place}" for place in places))
        # the median of the differences, and the difference of medians
        if min(excess, value - null) >= TURNED:
            turned["follows"].append((what, value, null))
        elif max(excess, value - null) <= -TURNED:
            turned["avoids"].append((what, value, null))
    how = "follows" if turned["follows"] else "avoids"
    if not (sides := turned[how]):
        return ""
    which, values, nulls = zip(*sides, strict=True)
    shares, alone = ([text_of(one, "ratio") for one in some] for some in (values, nulls))
    return told.fill(WORDS["turned"], how=how, which=which, shares=shares, nulls=alone)


def _low_rank(summary: PairRecord) -> Sentence:
    told, inside = Told(summary), summary.inside_layers
    told.note("inside_layers.judged")
    code = "low_rank" if inside.rank_known >= inside.matrices else "low_rank_in_some"
    if summary.figures.rank_ceiling is not None:
        code = "adapter"
    which = "only matrix that changed" if inside.matrices == 1 else "median matrix"
    text = told.fill(WORDS[code], directions=told.directions(), which=which)
    return told.sentence("low_rank", text, _alignment(told))


def storage(summary: PairRecord, gates: Mapping[str, Gate]) -> list[Sentence]:
    """Which side went through few bits, and how much of what is stored is the update."""
    inside, floor = summary.inside_layers, summary.figures.floor_ratio
    sentences, small = [], not gates["rounding"].passed
    if has_few_values(summary, "base"):
        sentences = [tell(summary, "base_few_values", WORDS["base_few_values"])]
    if (through := few_bits(summary)) is not None:
        sentences.append(tell(summary, "few_values", WORDS[through]))
    told = Told(summary)
    if not inside.matrices or floor is None:
        return sentences
    if is_of_quantised(summary):
        told.note("inside_layers.kept_low_overall", "inside_layers.kept_high_overall")
        bounds = inside.kept_low_overall or 0.0, inside.kept_high_overall or 0.0
        text = told.fill(WORDS["of_quantised"], part=bounds_text(bounds, "share"))
        return [*sentences, told.sentence("kept", text)]
    if 2 * inside.rounded_away >= inside.matrices:
        code = "beyond_rounding" if beyond_rounding(summary) else "rounded_away"
        known = _known(told) if code == "beyond_rounding" else []
        return [*sentences, told.sentence(code, told.fill(WORDS[code], known=known or None))]
    if 2 * inside.unexplained >= inside.matrices and floor < CLEAR and not sentences:
        more = told.fill(WORDS["small"]) if small else ""
        return [told.sentence("unexplained", told.fill(WORDS["unexplained"]), more)]
    if inside.kept is not None and inside.kept < WELL_KEPT:
        part = told.reaching("inside_layers.kept", "share")
        return [*sentences, told.sentence("kept", told.fill(WORDS["kept"], part=part))]
    return [*sentences, tell(summary, "rounding", WORDS["rounding"])] if small else sentences


def _known(told: Told) -> list[str]:
    """What is known of the matrices of which storage left enough; their medians are of them."""
    inside, known = told.summary.inside_layers, []
    if inside.relative_norm_unrounded:
        known = [told.fill("{inside_layers.relative_norm_unrounded:share} of their norm")]
    if inside.equivalent_directions:
        known.append(f"along {equally_strong(told.fill(f'{{{DIRECTIONS}:about}}'))}")
    return known


def is_of_quantised(summary: PairRecord) -> bool:
    """Whether a side is quantised, and how much of the stored change is the update is a range."""
    inside = summary.inside_layers
    low = inside.kept_low_overall
    return low is not None and (inside.kept is None or low < WELL_KEPT)


def is_no_more_than_format(summary: PairRecord) -> bool:
    """Whether the error of the formats is as large as all that is stored of the change."""
    floor, high = summary.figures.floor_ratio, summary.inside_layers.kept_high_overall
    small = floor is not None and floor < ROUNDING
    return is_of_quantised(summary) and (small or (high is not None and high < 0.5))
