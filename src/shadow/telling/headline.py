"""Summary and its sentences -> one line that says what happened to the weights. Pure.

It repeats the sentences below it in a few words and measures nothing of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from shadow.checks.explanations import has_other_norm_unrounded, is_copy, is_of_base, is_rearranged
from shadow.checks.summary import Sentence, Summary
from shadow.summary.record import PairRecord
from shadow.telling.limits import broken_text, missing
from shadow.telling.size import (
    UNROUNDED,
    are_in_proportion,
    has_frozen,
    is_all_asked_for,
    is_as_stored,
    leading,
    parts_by_energy,
)
from shadow.telling.structure import DIRECTIONS, is_no_more_than_format, knows_coherence
from shadow.telling.told import Told

AT_MOST = 2  # parts of the model that are named
# the whole line, by the sentence that leaves nothing more to say; the first that stands
ALONE = {
    "nothing_compared": "Nothing was compared.",
    "unrelated": "Nothing in common entry by entry.",
    "layers_moved": "The base with layers at other numbers.",
    "all_not_comparable": "Not comparable entry by entry: rotated, reordered or another model.",
    "all_but_vectors": "Only biases and norms changed.",
    "only_vectors": "Of what was compared, only biases and norms changed.",
    "all_identical": "The weights are the same.",
    "identical": "Every matrix that was compared is the same.",
    "some_scaled": "{recognised.scaled.matrices:count} of the base's matrices times"
    " {recognised.scaled.factor:factor}.",
    "scaled": "The base's matrices times {recognised.scaled.factor:factor}.",
    "copy_as_base": "The base is a copy of the tuned model, only rounded.",
    "copy": "A copy of the base, only rounded.",
    "mostly_copy_as_base": "The base is a rounded copy, but for"
    " {recognised.casts.beside:count tensor|tensors}.",
    "mostly_copy": "A rounded copy of the base, but for"
    " {recognised.casts.beside:count tensor|tensors}.",
}
# what the change is, by the sentence that says it; the first that stands
KINDS = {
    "not_comparable": "with {recognised.rearranged.not_comparable.matrices:count matrix|matrices}"
    " not comparable entry by entry",
    "replaced": "with {recognised.replaced.matrices:count matrix|matrices} unlike the base's",
    "few_entries": "in {recognised.few_entries.entries:count entry|entries}",
    "beyond_rounding": "more than rounding in {inside_layers.known:count} of"
    " {inside_layers.matrices:count matrix|matrices}",
    "format": "about as large as its rounding",
    "zeroed": "by setting entries to 0",
    "rounded_away": "mostly rounded away by storage",
    "rounding": "about as large as its rounding",
    "flat": "flatter than noise",
    "few_values": "like the rounding of a copy in 8 or 4 bits",
    "noise": "like noise",
    "mixed": "partly with more structure than noise",
    "low_rank": "of rank {rank:count} or less",
    "along": "spread over {about}{number} {count|direction|directions}[ of {side:count}]",
    "coherent": "with more structure than noise",
}
SIZES = {
    "siblings": "Different[ by {norm}]",
    "part": "A part changed[, by {norm}]",
    "whole": "Changed[ by {norm}]",
}


def headline(summary: Summary, sentences: Sequence[Sentence], filtered: bool) -> str:
    """One line of up to about 90 characters: `Changed by 8.0 %, most of it in the head.`

    What the tuned model lacks comes first.
    """
    told, codes = Told(summary), {sentence.code for sentence in sentences}
    text = _of_change(told, codes, filtered)
    if summary.idle_updates:
        words = "The adapter does nothing in {count:count module|modules}, where its update is 0."
        return f"{told.fill(words, count=summary.idle_updates)} {text}"
    hides = codes & ALONE.keys() & {"nothing_compared", "unrelated"}
    if hides or summary.broken or is_rearranged(summary) or not (lost := missing(summary)):
        return text
    return f"Missing: {lost}. {text}"


def _of_change(told: Told, codes: Collection[str], filtered: bool) -> str:
    summary = told.summary
    if summary.broken:
        row = summary.broken[0]
        side = "the tuned model" if row.side == "tuned" else "the base"
        return f"Broken: {broken_text(summary, row)} in {side}."
    refined = _refined(summary, codes, filtered)
    for code, text in ALONE.items():
        if code in refined:
            return told.fill(text)
    kind = next((text for code, text in KINDS.items() if code in refined), "")
    inside, number = summary.inside_layers, ""
    if "along" in refined:
        number = told.fill(f"{{{DIRECTIONS}:about}}")
    text = told.fill(
        kind,
        rank=summary.figures.rank_ceiling or inside.rank_most,
        about="about " if summary.estimated else "",
        number=number,
        count=1 if number == "1" else 2,
        # 61 of 32 to 64 says nothing
        side=inside.short_side_most if inside.short_side_least == inside.short_side_most else None,
    )
    text = ", ".join(filter(None, [_size(told, codes), text, _place(told, filtered)]))
    return f"{text}." if summary.has_spectra else f"{text}; no spectra were measured."


def _refined(summary: PairRecord, codes: Collection[str], filtered: bool) -> set[str]:
    """The codes of the sentences, and what else ALONE and KINDS tell apart."""
    inside = summary.inside_layers
    is_along = knows_coherence(summary) and None not in (
        inside.equivalent_directions,
        inside.short_side_most,
    )
    refinements = {
        "all_not_comparable": is_rearranged(summary),
        "all_but_vectors": "only_vectors" in codes and {*codes} <= {"only_vectors", "identical"},
        "all_identical": {*codes} == {"identical"} and not filtered,
        "some_scaled": "scaled" in codes and has_frozen(summary),
        "copy": is_copy(summary),
        "copy_as_base": is_copy(summary) and is_of_base(summary),
        "mostly_copy_as_base": "mostly_copy" in codes and is_of_base(summary),
        "format": is_no_more_than_format(summary),
        "along": "coherent" in codes and is_along,
    }
    hidden = {"few_values"} if "coherent" in codes else set()
    return {*codes, *(code for code, holds in refinements.items() if holds)} - hidden


def _size(told: Told, codes: Collection[str]) -> str:
    summary, norm = told.summary, None
    are_siblings = "siblings" in codes
    if has_other_norm_unrounded(summary) and not are_siblings:
        norm = told.fill(f"{{{UNROUNDED}:share}}")
    elif summary.figures.relative_norm_overall is not None:
        stored = " as stored" if is_as_stored(summary) and not are_siblings else ""
        norm = told.fill("{figures.relative_norm_overall:share}") + stored
    code = "part" if has_frozen(summary) else "whole"
    return told.fill(SIZES["siblings" if are_siblings else code], norm=norm)


def _place(told: Told, filtered: bool) -> str:
    """The parts that hold most of it, if they are few."""
    summary = told.summary
    parts = parts_by_energy(summary)
    named = leading(parts)
    is_all = len(named) == len(parts)
    if len(parts) > 1 and are_in_proportion(summary, parts):
        return f"in all modules {'that changed ' if has_frozen(summary) else ''}alike"
    if not 0 < len(named) <= AT_MOST or (is_all and is_all_asked_for(summary, filtered)):
        return ""
    names, much = [part.name for part in named], "all" if is_all else "most"
    return told.fill("{much} of it in {names:and}", much=much, names=names)
