"""Summary and its sentences -> one line that says what happened to the weights. Pure.

It repeats the sentences below it in a few words and measures nothing of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from shadow.checks.inside import has_other_norm_unrounded
from shadow.checks.recognised import is_copy, is_of_base, is_rearranged
from shadow.checks.summary import Sentence, Summary
from shadow.summary.changes import Replaced
from shadow.telling.limits import broken_text, missing, what_is_same
from shadow.telling.size import (
    UNROUNDED,
    are_in_proportion,
    has_frozen,
    is_all_asked_for,
    is_as_stored,
    leading,
    only_matrix,
    parts_by_energy,
)
from shadow.telling.structure import DIRECTIONS, is_no_more_than_format, knows_coherence
from shadow.telling.told import Told

AT_MOST = 2  # parts of the model that are named
NOTHING_IN_COMMON = 0.1  # a cosine that no training of large steps leaves
# what leaves nothing more to say; the first that stands among the sentences
ALONE = {
    "nothing_compared": "Nothing was compared.",
    "unrelated": "Nothing in common entry by entry.",
    "layers_moved": "The base with layers at other numbers.",
}
# what the change is, by the sentence that says it; the first that stands
KINDS = {
    "zeroed": "by setting entries to 0",
    "rounded_away": "mostly rounded away by storage",
    "rounding": "about as large as its rounding",
    "flat": "flatter than noise",
    "few_values": "like the rounding of a copy in 8 or 4 bits",
    "noise": "like noise",
    "mixed": "partly with more structure than noise",
}
WORDS = {
    "broken": "Broken: {text} in {side}.",
    "not_comparable": "Not comparable entry by entry: rotated, reordered or another model.",
    "only_vectors": "Only biases and norms changed.",
    "of_compared": "Of what was compared, only biases and norms changed.",
    "identical": "{what} the same.",
    "scaled": "{matrices:count} of the base's matrices times {factor:factor}.",
    "scaled_all": "The base's matrices times {factor:factor}.",
    "copy": "A copy of the base, only rounded.",
    "copy_of_base": "The base is a copy of the tuned model, only rounded.",
    "mostly": "A rounded copy of the base, but for {beside:count tensor|tensors}.",
    "mostly_of_base": "The base is a rounded copy, but for {beside:count tensor|tensors}.",
    "siblings": "Different[ by {norm}]",
    "part": "A part changed[, by {norm}]",
    "changed": "Changed[ by {norm}]",
    "as_stored": "{size} as stored",
    "some": "with {matrices:count matrix|matrices} not comparable entry by entry",
    "replaced": "with {matrices:count matrix|matrices} unlike the base's",
    "few_entries": "in {entries:count entry|entries}",
    "beyond_rounding": "more than rounding in {inside_layers.known:count} of"
    " {inside_layers.matrices:count matrix|matrices}",
    "low_rank": "of rank {rank:count} or less",
    "spread": "spread over {about}{number} directions[ of {side:count}]",
    "single": "along a single direction[ of {side:count}]",
    "structure": "with more structure than noise",
    "alike": "in all modules {which}alike",
    "place": "{much} of it in {names:and}",
    "idle": "The adapter does nothing in {modules:count module|modules}, where its update is 0."
    " {text}",
    "missing": "Missing: {lost}. {text}",
}


def headline(summary: Summary, sentences: Sequence[Sentence], filtered: bool) -> str:
    """One line of up to about 90 characters: `Changed by 8.0 %, most of it in the head.`

    What the tuned model lacks comes first.
    """
    told, codes = Told(summary), {sentence.code for sentence in sentences}
    text = _of_change(told, codes, filtered)
    if summary.idle_updates:
        return told.fill(WORDS["idle"], modules=summary.idle_updates, text=text)
    hides = codes & ALONE.keys() or summary.broken or is_rearranged(summary)
    if hides or not (lost := missing(summary)):
        return text
    return told.fill(WORDS["missing"], lost=lost, text=text)


def _of_change(told: Told, codes: Collection[str], filtered: bool) -> str:
    summary, recognised = told.summary, told.summary.recognised
    if summary.broken:
        row = summary.broken[0]
        side = "the tuned model" if row.side == "tuned" else "the base"
        return told.fill(WORDS["broken"], text=broken_text(summary, row), side=side)
    for code, text in ALONE.items():
        if code in codes:
            return text
    if is_rearranged(summary):
        return WORDS["not_comparable"]
    if "only_vectors" in codes:
        is_all = {*codes} <= {"only_vectors", "identical", "files"}
        return WORDS["only_vectors" if is_all else "of_compared"]
    if "identical" in codes:
        return told.fill(WORDS["identical"], what=what_is_same(summary, codes, filtered))
    if (scaled := recognised.scaled) is not None:
        code = "scaled" if has_frozen(summary) else "scaled_all"
        return told.fill(WORDS[code], scaled)
    if is_copy(summary):
        return WORDS["copy_of_base" if is_of_base(summary) else "copy"]
    if "mostly_copy" in codes and recognised.casts:
        code = "mostly_of_base" if is_of_base(summary) else "mostly"
        return told.fill(WORDS[code], recognised.casts)
    parts = [_size(told, codes), _kind(told, codes), _place(told, filtered)]
    text = ", ".join(part for part in parts if part)
    return f"{text}; no spectra were measured." if summary.tier == "norms" else f"{text}."


def _size(told: Told, codes: Collection[str]) -> str:
    summary, norm = told.summary, None
    code = "part" if has_frozen(summary) else "changed"
    code = "siblings" if "siblings" in codes else code
    is_before = code != "siblings" and has_other_norm_unrounded(summary)
    if is_before:
        norm = told.reaching(UNROUNDED, "share")
    elif summary.figures.relative_norm_overall is not None:
        norm = told.fill("{figures.relative_norm_overall:share}")
    text = told.fill(WORDS[code], norm=norm)
    if norm is None or is_before or code == "siblings" or not is_as_stored(summary):
        return text
    return told.fill(WORDS["as_stored"], size=text)


def _kind(told: Told, codes: Collection[str]) -> str:
    summary, recognised = told.summary, told.summary.recognised
    rearranged, replaced = recognised.rearranged, recognised.replaced
    if rearranged is not None and rearranged.not_comparable is not None:
        return told.fill(WORDS["some"], rearranged.not_comparable)
    if replaced is not None and _is_unlike(replaced):
        return told.fill(WORDS["replaced"], replaced)
    if recognised.few_entries is not None:
        return told.fill(WORDS["few_entries"], recognised.few_entries)
    if "beyond_rounding" in codes:
        return told.fill(WORDS["beyond_rounding"])
    if is_no_more_than_format(summary):
        return KINDS["rounding"]
    for code, text in KINDS.items():
        if code in codes and not (code == "few_values" and "coherent" in codes):
            return text
    if "low_rank" in codes:
        rank = summary.figures.rank_ceiling or summary.inside_layers.rank_most
        return told.fill(WORDS["low_rank"], rank=rank)
    return _structure(told) if "coherent" in codes else ""


def _is_unlike(replaced: Replaced) -> bool:
    return max(abs(replaced.cosine_least), abs(replaced.cosine_most)) < NOTHING_IN_COMMON


def _structure(told: Told) -> str:
    inside = told.summary.inside_layers
    value = inside.equivalent_directions if knows_coherence(told.summary) else None
    least, most = inside.short_side_least, inside.short_side_most
    if value is None or least is None or most is None:
        return WORDS["structure"]
    number = told.reaching(DIRECTIONS, "about")
    code, about = "single" if number == "1" else "spread", "about " * told.summary.estimated
    side = None if least < most else most
    return told.fill(WORDS[code], number=number, side=side, about=about)


def _place(told: Told, filtered: bool) -> str:
    """The parts that hold most of it, if they are few."""
    summary = told.summary
    parts = parts_by_energy(summary)
    named = leading(parts)
    is_all = len(named) == len(parts)
    if len(parts) > 1 and are_in_proportion(summary, parts):
        which = "that changed " if has_frozen(summary) else ""
        return told.fill(WORDS["alike"], which=which)
    if not 0 < len(named) <= AT_MOST or (is_all and is_all_asked_for(summary, filtered)):
        return ""
    names = [part.name for part in named]
    if len(parts) == 1:
        names = [only_matrix(summary) or names[0]]
    return told.fill(WORDS["place"], much="all" if is_all else "most", names=names)
