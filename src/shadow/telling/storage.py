"""What storage left of the change."""

from __future__ import annotations

from collections.abc import Mapping

from shadow.checks.draft import Draft, Sentence, all_of
from shadow.checks.inside import CLEAR, beyond_rounding, few_bits, few_of, has_few_values
from shadow.checks.pair_gates import Gate
from shadow.quantities import text_of
from shadow.summary.record import PairRecord
from shadow.summary.standing import ROUNDING
from shadow.telling.wording import MATTERS, equally_strong
from shadow.text import and_list

# share of the stored energy that is the update's, above which storage does not matter
WELL_KEPT = 0.9
MAY_EXPLAIN = (
    "Weight decay, updates of widely differing sizes, a mean of models, rounding at every step or a"
    " copy in more or fewer bits may have left it"
)


def storage(summary: PairRecord, gates: Mapping[str, Gate]) -> list[Sentence]:
    draft = Draft(summary)
    inside = summary.inside_layers
    judged, rounded, unexplained = inside.matrices, inside.rounded_away, inside.unexplained
    kept, floor = inside.kept, summary.figures.floor_ratio
    sentences = _few_values(summary)
    if not judged or floor is None:
        return sentences
    if is_of_quantised(summary):
        return [*sentences, _kept_of_quantised(draft)]
    if 2 * rounded >= judged and beyond_rounding(summary):
        return [*sentences, _partly_rounded_away(draft)]
    if 2 * rounded >= judged:
        many = draft.write(rounded, "inside_layers.rounded_away", lambda _: all_of(rounded, judged))
        draft.write(judged, "inside_layers.matrices", str)
        text = (
            f"Storage rounded most of it away: in {many} inside the layers, less than a quarter of"
            " the stored change is the update. Its size and structure are unknown."
        )
        return [*sentences, draft.sentence("rounded_away", text)]
    if 2 * unexplained >= judged and floor < CLEAR and not sentences:
        draft.inside("unexplained")
        draft.write(judged, "inside_layers.matrices", str)
        text = (
            f"In {all_of(unexplained, judged)} inside the layers, one rounding does not explain"
            f" what is stored, so what storage took is unknown. {MAY_EXPLAIN}."
        )
        if not gates["rounding"].passed:
            size = draft.write(floor, "figures.floor_ratio", "ratio")
            text += f" The stored change is {size} times its rounding."
        return [*sentences, draft.sentence("unexplained", text)]
    if kept is not None and kept < WELL_KEPT:
        text = draft.write(kept, "inside_layers.kept", "share")
        if inside.kept_least is not None and inside.kept_least < MATTERS * kept:
            low = draft.write(inside.kept_least, "inside_layers.kept_least", "share")
            text = f"{low.removesuffix(' %')} to {text}"
        text = (
            f"Inside the layers, {text} of the energy of the stored change is the update; the rest"
            " is rounding."
        )
        return [*sentences, draft.sentence("kept", text)]
    if not gates["rounding"].passed:
        size = draft.write(floor, "figures.floor_ratio", "ratio")
        text = f"The stored change is only {size} times the rounding of its storage."
        return [*sentences, draft.sentence("rounding", text)]
    return sentences


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


def _kept_of_quantised(draft: Draft) -> Sentence:
    """The range of what is the update's, where a side is quantised."""
    inside = draft.summary.inside_layers
    low = draft.write(inside.kept_low_overall or 0.0, "inside_layers.kept_low_overall", "share")
    high = draft.write(inside.kept_high_overall or 0.0, "inside_layers.kept_high_overall", "share")
    part = f"{low.removesuffix(' %')} to {high}" if low != high else high
    text = (
        f"A side is quantised: inside the layers, {part} of the energy of the stored change is the"
        " update, the rest is the error of the format."
    )
    return draft.sentence("kept", text)


def _partly_rounded_away(draft: Draft) -> Sentence:
    """What is known of the matrices of which storage left enough; their medians are of them."""
    inside = draft.summary.inside_layers
    matrices = draft.write(inside.matrices, "inside_layers.matrices", str)
    some = draft.write(beyond_rounding(draft.summary), "inside_layers.known", str)
    text = f"In {some} of {matrices} matrices inside the layers, the change is more than rounding"
    known = []
    if norm := draft.inside("relative_norm_unrounded"):
        known.append(f"{text_of(norm, 'share')} of their norm")
    if directions := inside.equivalent_directions:
        draft.inside("equivalent_directions")
        number = text_of(directions, "about")
        known.append(f"along {equally_strong(number)}")
    if known:
        text += f": in the median {and_list(known)}"
    text += ". In most others, less than a quarter of the stored change can be the update."
    return draft.sentence("beyond_rounding", text)


def _few_values(summary: PairRecord) -> list[Sentence]:
    draft, inside = Draft(summary), summary.inside_layers
    sentences = []
    of_base = Draft(summary)
    if has_few_values(of_base, "base"):
        text = (
            "The base looks dequantised from 4 to 8 bits: rows of"
            f" {all_of(*few_of(summary, 'base'))} inside the layers have few distinct values."
        )
        sentences = [of_base.sentence("base_few_values", text)]
    through = few_bits(draft)
    if through is None:
        return sentences
    if through == "format":
        text = (
            f"In {all_of(inside.in_8_bits, inside.matrices)} inside the layers, a side is stored in"
            " 8 bits, so part or all of the change may be the rounding of that format."
        )
    else:
        text = (
            f"In {all_of(*few_of(summary, 'tuned'))} inside the layers, rows of the tuned side have"
            " as few distinct values as a copy in 8 or 4 bits, so part or all of the change may be"
            " the rounding of that copy."
        )
    return [*sentences, draft.sentence("few_values", text)]
