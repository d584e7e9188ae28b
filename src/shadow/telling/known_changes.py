"""What no training does and the figures show beyond doubt: copies, factors, zeros, exchanges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shadow.claims.draft import Draft, Sentence
from shadow.claims.recognised import recognised
from shadow.summary.record import PairRecord
from shadow.summary.rows import Casts, FewEntries, Masked, Replaced, Scaled, ScaledLines, Zeroed
from shadow.telling.wording import and_others, factor, place_of, places_of, vectors_moved
from shadow.text import and_list

VECTORS_FURTHER = 3.0  # median relative norm of vectors over that of the matrices as a whole
NOTHING_IN_COMMON = 0.1  # a cosine below which two matrices have nothing in common


def known_changes(summary: PairRecord) -> list[Sentence]:
    """What no training does, and the figures show beyond doubt."""
    holds = recognised(summary)
    if copied := {"copy", "mostly_copy"} & set(holds):
        holds = list(copied)  # what else its figures show is of rounding
    found = vars(summary.recognised)
    return [
        SENTENCES[code](Draft(summary), found["casts" if copied else code])
        for code in holds
        if code in SENTENCES
    ]


def _copy(draft: Draft, casts: Casts) -> Sentence:
    count = draft.write(casts.tensors, "recognised.casts.tensors", "count")
    every = "the only tensor" if count == "1" else f"all {count} tensors"
    text = f"In {every} that changed, {_cast_to(draft)}."
    if formats := few_bits(draft.summary):
        text += f" It is stored in {formats}."
    if made := format_error(draft):
        text += f" The error is {made}, and nothing lies beyond it."
    return draft.sentence("rounding", text)


def is_of_base(summary: PairRecord) -> bool:
    """Whether the base is the side that was cast, in every tensor that was."""
    casts = summary.recognised.casts
    return casts is not None and casts.of_base == casts.tensors > 0


def few_bits(summary: PairRecord) -> str:
    """`Q4_K and Q6_K`: the formats of 8 bits or less of a copy; empty where it has others."""
    casts = summary.recognised.casts
    return and_list(casts.formats) if casts else ""


def format_error(draft: Draft) -> str:
    """`1.00 times what the format makes`; empty where that is not known."""
    ratio = draft.summary.inside_layers.format_ratio
    if ratio is None or not (formats := few_bits(draft.summary)):
        return ""
    size = draft.write(ratio, "inside_layers.format_ratio", lambda value: f"{value:.2f}")
    return f"{size} times what the format{'s make' if ' and ' in formats else ' makes'}"


def _cast_to(draft: Draft) -> str:
    """What tensors that were cast are: which side is the other's in another format."""
    casts = draft.summary.recognised.casts
    if casts is not None and is_of_base(draft.summary):
        draft.figures["recognised.casts.of_base"] = casts.of_base
        return "the base is the tuned side in another format, equal but for rounding"
    return "the tuned side is the base in another format, equal but for rounding"


def _mostly_copy(draft: Draft, casts: Casts) -> Sentence:
    """What is no copy comes first."""
    beside = draft.write(casts.beside, "recognised.casts.beside", "count")
    count = draft.write(casts.tensors, "recognised.casts.tensors", "count")
    noun = "tensor" if beside == "1" else "tensors"
    text = (
        f"{beside} {noun} changed by more than rounding: {beside_a_copy(draft)}. In the other"
        f" {count} that changed, {_cast_to(draft)}."
    )
    return draft.sentence("mostly_copy", text)


def beside_a_copy(draft: Draft) -> str:
    """`the head by 10 % and norms of layers 0 to 3 by 30 %`: what changed by more than a cast."""
    casts, several = draft.summary.recognised.casts, draft.summary.has_components
    named = []
    rows = list(enumerate(casts.rows if casts else []))
    for at, row in sorted(rows, key=lambda one: -(one[1].relative_norm or 0.0)):
        name = place_of(row.component, row.module, row.layers, several)
        if row.relative_norm is not None:
            most = " at most" if row.tensors > 1 else ""
            place = f"recognised.casts.rows.{at}.relative_norm"
            name = f"{name} by {draft.write(row.relative_norm, place, 'share')}{most}"
        named.append(name)
    return and_others(named)


def _scaled_lines(draft: Draft, lines: ScaledLines) -> Sentence:
    place = "recognised.scaled_lines"
    count = draft.write(lines.matrices, f"{place}.matrices", "count")
    share = draft.write(lines.share, f"{place}.share", "share")
    noun = "matrix" if count == "1" else "matrices"
    what = "rows or columns"
    if lines.by_row in (0, lines.matrices):
        what = "columns" if not lines.by_row else "rows"
    text = (
        f"In {count} {noun}, {what} of the base were multiplied by factors, as by (IA)3 or by norms"
        f" folded into weights. They explain {share} of the change in the median."
    )
    return draft.sentence("scaled_lines", text)


def _scaled(draft: Draft, scaled: Scaled) -> Sentence:
    by = draft.write(scaled.factor, "recognised.scaled.factor", factor)
    changed = " that changed" if any(row.identical for row in draft.summary.components) else ""
    text = f"Every matrix{changed} is the base's times {by}; nothing else changed in it."
    return draft.sentence("scaled", text)


def _zeroed(draft: Draft, zeroed: Zeroed) -> Sentence:
    count = draft.write(zeroed.matrices, "recognised.zeroed.matrices", "count")
    share = draft.write(zeroed.share, "recognised.zeroed.share", "share")
    matrices = "the only matrix that changed"
    if zeroed.matrices != 1:
        matrices = f"the {count} matrices that changed"
    text = (
        f"Entries were set to 0, as by pruning, and no other entry changed: {share} of the entries"
        f" in the median of {matrices}."
    )
    return draft.sentence("zeroed", text)


def _few_entries(draft: Draft, few: FewEntries) -> Sentence:
    entries = draft.write(few.entries, "recognised.few_entries.entries", "count")
    of = draft.write(few.of, "recognised.few_entries.of", "count")
    text = f"Only {entries} of {of} entries changed, in {places_of(draft.summary, few.rows)}."
    return draft.sentence("few_entries", text)


def _masked(draft: Draft, masked: Masked) -> Sentence:
    place = "recognised.masked"
    count = draft.write(masked.matrices, f"{place}.matrices", "count")
    of = draft.write(masked.of, f"{place}.of", "count")
    excess = draft.write(masked.excess, f"{place}.excess", "share")
    text = (
        f"In {count} of {of} matrices, more entries stayed the same than rounding leaves of"
        f" normally distributed updates (by {excess} of those counted, in the median). Sparse"
        " training, TIES, DARE, pruning and frozen columns do that, and so do updates of widely"
        " differing sizes."
    )
    return draft.sentence("masked", text)


def _replaced(draft: Draft, replaced: Replaced) -> Sentence:
    count = draft.write(replaced.matrices, "recognised.replaced.matrices", "count")
    low = draft.write(replaced.cosine_least, "recognised.replaced.cosine_least", "fixed")
    high = draft.write(replaced.cosine_most, "recognised.replaced.cosine_most", "fixed")
    places = places_of(draft.summary, replaced.rows)
    one = replaced.matrices == 1
    noun, have = ("matrix", "has") if one else ("matrices", "have")
    cosines = f"cosine {low}" if low == high else f"cosines {low} to {high}"
    if has_nothing_in_common(replaced):
        common, were = "nothing", "was" if one else "were"
    else:  # a training of large steps may leave so much
        common, were = "little", "may have been"
    text = (
        f"{count} {noun} ({places}) {have} {common} in common with the base's ({cosines}), unlike"
        f" most others: {'it' if one else 'they'} {were} replaced, exchanged or reordered."
    )
    return draft.sentence("replaced", text)


def has_nothing_in_common(replaced: Replaced) -> bool:
    """Whether the cosine is so near 0 that no training can have left it."""
    return max(abs(replaced.cosine_least), abs(replaced.cosine_most)) < NOTHING_IN_COMMON


def few_rows(summary: PairRecord) -> list[Sentence]:
    sentences = []
    for row in summary.recognised.few_rows:
        draft = Draft(summary)
        place = f"recognised.few_rows.{row.component}.{row.module}"
        changed = draft.write(row.changed, f"{place}.changed", "count")
        rows = draft.write(row.rows, f"{place}.rows", "count")
        text = f"Only {changed} of {rows} rows of the embeddings changed."
        sentences.append(draft.sentence("few_rows", text))
    return sentences


def vectors(summary: PairRecord) -> list[Sentence]:
    """Biases and norms, where most moved and the median of all is far above the matrices' norm."""
    norm, matrices = summary.vectors.relative_norm_of_all, summary.figures.relative_norm_overall
    if norm is None or matrices is None or norm < VECTORS_FURTHER * matrices:
        return []
    draft = Draft(summary)
    text = f"Vectors changed more than matrices: {vectors_moved(draft)}."
    return [draft.sentence("vectors", text)]


SENTENCES: Mapping[str, Callable[[Draft, Any], Sentence]] = {
    "copy": _copy,
    "mostly_copy": _mostly_copy,
    "scaled_lines": _scaled_lines,
    "scaled": _scaled,
    "zeroed": _zeroed,
    "few_entries": _few_entries,
    "masked": _masked,
    "replaced": _replaced,
}
