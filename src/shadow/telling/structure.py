"""What the change is made of: more structure than noise or not, how coherent it is, its rank."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shadow.checks.draft import Draft, Sentence, all_of
from shadow.checks.inside import LIKE_NOISE, few_bits, is_low_rank, stands_out
from shadow.quantities import text_of
from shadow.summary.record import PairRecord
from shadow.summary.rows import CoherenceRow
from shadow.telling.wording import directions_text, equally_strong, named_in
from shadow.text import and_list

APART = 2.0  # ratio of the most and the least coherent module from which they are named
# alignment over its null, in units of an even spread, from which it is more than chance and
# rounding
TURNED = 0.25


def structure(summary: PairRecord) -> list[Sentence]:
    inside = summary.inside_layers
    judged, rounded = inside.judged, inside.rounded_away
    beyond, flatter = inside.beyond_noise, inside.flatter_than_noise
    draft = Draft(summary)
    if not judged:
        return _by_concentration(draft)
    if 2 * rounded >= judged and 2 * beyond < judged:
        return []  # the figures are those of rounding, which the next sentence says
    draft.write(judged, "inside_layers.judged", str)
    if 2 * flatter >= judged:
        many = draft.write(
            flatter, "inside_layers.flatter_than_noise", lambda _: all_of(flatter, judged)
        )
        text = f"In {many} inside the layers, the change is flatter than noise: "
        text += "it is spread over more directions than random changes are."
        return [draft.sentence("flat", text)]
    if is_low_rank(summary):
        return [_low_rank(draft)]
    many = draft.write(beyond, "inside_layers.beyond_noise", lambda _: all_of(beyond, judged))
    if 2 * beyond >= judged:
        text = f"In {many} inside the layers, the change has more structure than noise"
        return [
            draft.sentence("coherent", f"{text}{_coherence(draft)}", _alignment(draft)),
            *_standing_out(summary),
        ]
    if 10 * (beyond + flatter) >= judged:
        text = (
            f"In {many} inside the layers, the change has more structure than noise. In most, it"
            " looks like noise."
        )
        return [draft.sentence("mixed", text)]
    if summary.figures.concentration is None:
        return []  # too small: random signs leave as few directions
    if not beyond:
        which = "no matrix inside the layers has"
    elif beyond == 1:
        which = f"{many} inside the layers has"
    else:
        which = f"{many} inside the layers have"
    text = (
        f"It looks like noise: {which} more structure than random changes of the same rows and"
        " columns."
    )
    return [draft.sentence("noise", text)]


def _by_concentration(draft: Draft) -> list[Sentence]:
    """For reports that lack the columns of purity, and models without layers."""
    value = draft.overall("concentration")
    if value is None:
        return []
    if abs(value) <= LIKE_NOISE:
        says = "like noise"
    elif value > 0:
        says = "fewer directions than noise"
    else:
        says = "flatter than noise"
    text = f"The median concentration is {value:.2f} (0 is noise, 1 a single direction): {says}."
    return [draft.sentence("concentration", text.replace("-0.00", "0.00"))]


def knows_coherence(summary: PairRecord) -> bool:
    """Whether it is known of half of the matrices or more how coherent their updates are. The
    rounding of a copy in few bits makes them seem less so by an unknown amount.
    """
    inside = summary.inside_layers
    if (
        2 * inside.unexplained_in_more_bits >= inside.matrices
        or few_bits(Draft(summary)) == "tuned"
    ):
        return False
    return 2 * (inside.coherent + inside.above_short_side) >= inside.judged


def _coherence(draft: Draft) -> str:
    """The end of a sentence and the next: how coherent the change is, and how modules compare."""
    inside, summary = draft.summary.inside_layers, draft.summary
    above, value = inside.above_short_side, inside.equivalent_directions
    directions = draft.directions()
    if not knows_coherence(summary) or (value is None and not above):
        return ". How concentrated the update was before storage is unknown."
    across = _across_modules(draft, summary.coherence)
    if value is None:
        if not directions:
            return "."
        what = f"{directions} equally strong directions"
        if directions == "1":
            what = "its only direction"
        return f", but less than {what} would have{across}."
    draft.write(value, "inside_layers.equivalent_directions", "about")
    of = f" of {directions}" if directions else ""
    where = "" if inside.matrices == 1 else " in the median"
    return f",{where} as along {equally_strong(directions_text(summary))}{of}{across}."


def _across_modules(draft: Draft, coherence: Sequence[CoherenceRow]) -> str:
    """` (25 in attn.o, 46 in attn.q)`, the ends of all modules, where they differ clearly."""
    rows = [row for row in coherence if 2 * (row.coherent + row.above_short_side) >= row.matrices]
    rows = [row for row in rows if row.equivalent_directions or row.above_short_side]

    def size(row: CoherenceRow) -> float:
        return row.equivalent_directions or math.inf

    if len(rows) < 2:
        return ""
    told_ones = [size(row) for row in rows if not math.isinf(size(row))]
    if not told_ones:
        return ""
    # what is above a short side that others exceed is not the other end
    rows = [
        row for row in rows if not math.isinf(size(row)) or (row.short_side or 0) >= max(told_ones)
    ]
    if len(rows) < 2:
        return ""
    least, most = min(rows, key=size), max(rows, key=size)
    if size(most) < APART * size(least):
        return ""
    several = len({row.component for row in rows}) > 1
    ends = []
    for row in (least, most):
        place = f"coherence.{row.component}.{row.module}"
        number = f"more than {text_of(row.short_side or 0, 'count')}"
        if row.equivalent_directions is not None:
            place = f"{place}.equivalent_directions"
            number = draft.write(row.equivalent_directions, place, "about")
        elif row.short_side is not None:
            draft.figures[f"{place}.short_side"] = row.short_side
        ends.append(f"{number} in {named_in(row.component, row.module, several)}")
    return f" ({', '.join(ends)})"


def _standing_out(summary: PairRecord) -> list[Sentence]:
    """The directions that stand out one by one, which a measure of coherence does not count."""
    if not stands_out(summary):
        return []
    draft = Draft(summary)
    spikes, energy = draft.inside("spikes") or 0, draft.inside("spike_energy") or 0.0
    number, directions = text_of(spikes, "about"), draft.directions()
    noun, verbs = "directions", "stand out from noise, with"
    if number == "1":
        noun, verbs = "direction", "stands out from noise, with"
    if directions:
        noun = f"of {directions} directions"
    where = "In the median matrix"
    if summary.inside_layers.matrices == 1:
        where = "In the only matrix"
    # figures of all matrices, such as those of the page, then say another number
    if summary.inside_layers.matrices != summary.figures.matrices:
        where += " inside the layers"
    text = f"{where}, {number} {noun} {verbs} {text_of(energy, 'share')} of its change."
    return [draft.sentence("standing_out", text)]


def _alignment(draft: Draft) -> str:
    """Whether it follows the base's strongest directions, more than rows and columns alone do."""
    inside = draft.summary.inside_layers
    follows: list[tuple[str, float, float]] = []
    avoids: list[tuple[str, float, float]] = []
    for side, what in (("left", "outputs"), ("right", "inputs")):
        value = inside.get(f"alignment_{side}")
        null = inside.get(f"alignment_{side}_null")
        excess = inside.get(f"alignment_{side}_excess")
        if value is None or null is None or excess is None:
            return ""
        for name, figure in (("", value), ("_null", null), ("_excess", excess)):
            draft.figures[f"inside_layers.alignment_{side}{name}"] = figure
        # the median of the differences, and the difference of medians
        if excess >= TURNED and value - null >= TURNED:
            follows.append((what, value, null))
        elif excess <= -TURNED and value - null <= -TURNED:
            avoids.append((what, value, null))
    verb, sides = "follows", follows
    if not follows:
        verb, sides = "avoids", avoids
    if not sides:
        return ""
    alone = and_list(list(dict.fromkeys(f"{null:.1f}" for _, _, null in sides)))
    if len(sides) == 1:
        ((what, value, _),) = sides
        which, share = f"leading {what}", f"{value:.1f}"
    else:
        which = "leading directions"
        share = and_list([f"{value:.1f} ({what})" for what, value, _ in sides])
    text = f"It {verb} the base's {which}: they hold {share} times an even share of it"
    return f"{text}, and would hold {alone} with random signs."


def _low_rank(draft: Draft) -> Sentence:
    of = draft.directions()
    ceiling = draft.summary.figures.rank_ceiling
    if ceiling is not None:
        rank = draft.write(ceiling, "figures.rank_ceiling", "count")
        text = f"It is an adapter: no matrix changed along more than {rank} of {of} directions."
        return draft.sentence("low_rank", text, _alignment(draft))
    inside = draft.summary.inside_layers
    rank = draft.write(inside.rank_most or 0, "inside_layers.rank_most", "count")
    verb = "holds" if rank == "1" else "hold"
    where = "the median matrix"
    if inside.matrices == 1:
        where = "the only matrix that changed"
    if inside.rank_known < inside.matrices:
        some = draft.write(inside.rank_known, "inside_layers.rank_known", "count")
        where = f"the median of {some} of {inside.matrices:,} matrices"
        draft.figures["inside_layers.matrices"] = inside.matrices
    text = f"It has low rank: in {where}, {rank} of {of} directions {verb} all of it but rounding."
    return draft.sentence("low_rank", text, _alignment(draft))
