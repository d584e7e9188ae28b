"""Summary and its sentences -> one line that says what happened to the weights. Pure.

It repeats the sentences below it in a few words and measures nothing of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shadow.checks.draft import Draft, Sentence
from shadow.checks.inside import has_other_norm_unrounded
from shadow.checks.recognised import is_copy, is_of_base, is_rearranged
from shadow.checks.summary import Summary
from shadow.quantities import text_of
from shadow.telling.limits import broken_text, missing
from shadow.telling.size import (
    ALIKE,
    MOST,
    has_frozen,
    is_all_asked_for,
    is_as_stored,
    is_mostly_frozen,
    only_matrix,
    parts_by_energy,
    unrounded_norm,
)
from shadow.telling.storage import is_no_more_than_format
from shadow.telling.structure import knows_coherence
from shadow.telling.wording import directions_text, factor
from shadow.text import and_list, counted

if TYPE_CHECKING:
    from collections.abc import Container, Sequence


AT_MOST = 2  # parts of the model that are named
NOTHING_IN_COMMON = 0.1  # a cosine that no training of large steps leaves
# what leaves nothing more to say; the first that stands among the sentences
ALONE = {
    "nothing_compared": "Nothing was compared.",
    "unrelated": "Nothing in common entry by entry.",
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


def headline(summary: Summary, sentences: Sequence[Sentence]) -> str:
    """One line of up to about 90 characters: `Changed by 8.0 %, most of it in the head.`

    What the tuned model lacks comes first.
    """
    text = _of_change(summary, sentences)
    if summary.idle_updates:
        modules = counted(summary.idle_updates, "module", "modules")
        return f"The adapter does nothing in {modules}, where its update is 0. {text}"
    hides = {sentence.code for sentence in sentences} & ALONE.keys()
    if hides or summary.broken or is_rearranged(summary) or not (lost := missing(summary)):
        return text
    return f"Missing: {lost}. {text}"


def _of_change(summary: Summary, sentences: Sequence[Sentence]) -> str:
    texts = {sentence.code: sentence.text for sentence in sentences}
    if summary.broken:
        row = summary.broken[0]
        side = "the tuned model" if row.side == "tuned" else "the base"
        return f"Broken: {broken_text(row)} in {side}."
    for code, text in ALONE.items():
        if code in texts:
            return text
    if is_rearranged(summary):
        apart = summary.recognised.rearranged
        if apart is not None and apart.moved is not None:
            return "The base with layers at other numbers."
        return "Not comparable entry by entry: rotated, reordered or another model."
    if "only_vectors" in texts:
        if texts.keys() == {"only_vectors", "identical"}:
            return "Only biases and norms changed."
        return "Of what was compared, only biases and norms changed."
    if "identical" in texts:  # what the sentence says before it gives numbers
        return f"{texts['identical'].partition(':')[0].removesuffix('.')}."
    if (scaled := summary.recognised.scaled) is not None:
        which = f"{scaled.matrices} of the" if has_frozen(summary) else "The"
        return f"{which} base's matrices times {factor(scaled.factor)}."
    if is_copy(summary):
        copy = (
            "The base is a copy of the tuned model" if is_of_base(summary) else "A copy of the base"
        )
        return f"{copy}, only rounded."
    if "mostly_copy" in texts and (casts := summary.recognised.casts):
        copy = "The base is a rounded copy" if is_of_base(summary) else "A rounded copy of the base"
        return f"{copy}, but for {counted(casts.beside, 'tensor', 'tensors')}."
    place = _place(summary, "part_asked_for" in texts)
    said = [_size(summary, texts), _kind(summary, texts), place]
    text = ", ".join(part for part in said if part)
    if summary.tier == "norms":
        text = f"{text}; no spectra were measured"
    return f"{text}."


def _size(summary: Summary, codes: Container[str]) -> str:
    norm = summary.figures.relative_norm_overall
    if "siblings" in codes:
        return "Different" if norm is None else f"Different by {text_of(norm, 'share')}"
    what, how = ("A part changed", ", by") if has_frozen(summary) else ("Changed", " by")
    if norm is None:
        return what
    if has_other_norm_unrounded(summary):
        return f"{what}{how} {unrounded_norm(Draft(summary))}"
    stored = " as stored" if is_as_stored(summary) else ""
    return f"{what}{how} {text_of(norm, 'share')}{stored}"


def _kind(summary: Summary, codes: Container[str]) -> str:
    inside, replaced = summary.inside_layers, summary.recognised.replaced
    apart = summary.recognised.rearranged
    if apart is not None and apart.not_comparable is not None:
        count = counted(apart.not_comparable.matrices, "matrix", "matrices")
        return f"with {count} not comparable entry by entry"
    cosines = [] if replaced is None else [replaced.cosine_least, replaced.cosine_most]
    if replaced is not None and max(map(abs, cosines)) < NOTHING_IN_COMMON:
        count = counted(replaced.matrices, "matrix", "matrices")
        return f"with {count} unlike the base's"
    if summary.recognised.few_entries is not None:
        return f"in {counted(summary.recognised.few_entries.entries, 'entry', 'entries')}"
    if "beyond_rounding" in codes:
        return f"more than rounding in {inside.known:,} of {inside.matrices:,} matrices"
    if is_no_more_than_format(summary):
        return KINDS["rounding"]
    for code, text in KINDS.items():
        if code in codes and not (code == "few_values" and "coherent" in codes):
            return text
    if "low_rank" in codes:
        rank = summary.figures.rank_ceiling or inside.rank_most
        return f"of rank {rank:,.0f} or less"
    if "coherent" not in codes:
        return ""
    value = inside.equivalent_directions if knows_coherence(summary) else None
    least, most = (inside.get(f"short_side_{end}") for end in ("least", "most"))
    if value is None or least is None or most is None:
        return "with more structure than noise"
    number = directions_text(summary)
    about = "about " if summary.estimated else ""
    text = f"spread over {about}{number} directions"
    if number == "1":
        text = "along a single direction"
    # 61 of 32 to 64 says nothing
    return text if least < most else f"{text} of {most:,.0f}"


def _place(summary: Summary, filtered: bool) -> str:
    """The parts that hold most of it, if they are few."""
    parts = parts_by_energy(summary)
    if not parts:
        return ""
    if len(parts) == 1 and is_all_asked_for(summary, filtered):
        return ""
    if len(parts) == 1:
        return f"all of it in {only_matrix(summary) or parts[0].name}"
    if all(part.in_proportion for part in parts) and not is_mostly_frozen(summary):
        return f"in all modules {'that changed ' if has_frozen(summary) else ''}alike"
    for count in range(1, AT_MOST + 1):
        named = parts[:count]
        rest = parts[count:]
        if rest and rest[0].energy > ALIKE * named[-1].energy:
            continue  # what is as large is named too
        if not rest and is_all_asked_for(summary, filtered):
            return ""
        if not rest:
            return f"all of it in {and_list([part.name for part in named])}"
        if sum(part.energy for part in named) >= MOST:
            return f"most of it in {and_list([part.name for part in named])}"
    return ""
