"""The finding in one line, which repeats its sentences and adds no measurement."""

from __future__ import annotations

from collections.abc import Set

from shadow.checks.explanations import (
    beyond_rounding,
    has_other_norm_unrounded,
    is_copy,
    is_of_base,
    is_rearranged,
)
from shadow.quantities import text_of
from shadow.telling.context import Context
from shadow.telling.correspondence import moved_in_brief
from shadow.telling.parts import ALIKE, MOST, are_in_proportion, components_text, leading
from shadow.telling.sentences import (
    DIRECTIONS,
    NOTHING_NAMED,
    SIDES,
    broken_text,
    details,
    places_in,
)
from shadow.telling.size import UNROUNDED
from shadow.telling.wording import Recorded, capital

IDLE = "The adapter does nothing in {count:count module|modules}, where its update is 0."
UNNAMED = "The base has no name of {count:count module|modules} of the adapter."
# the whole line, by the sentence that leaves nothing more to say; the first that is told
ALONE = {
    "nothing_named": NOTHING_NAMED,
    "nothing_compared": "Nothing was compared.",
    "apart": "{components}.",
    "unrelated": "Nothing in common entry by entry.",
    "only_moved": "The base with {moved}.",
    "all_not_comparable": "Not comparable entry by entry: rotated, reordered or another model.",
    "all_but_vectors": "Only biases and norms changed.",
    "only_vectors": "Of what was compared, only biases and norms changed.",
    "all_identical": "The weights are the same.",
    "identical": "Every matrix that was compared is the same.",
    "some_scaled": "{recognised.scaled.matrices:count} of the base's matrices times"
    " {recognised.scaled.factor:factor}.",
    "scaled": "The base's matrices times {recognised.scaled.factor:factor}.",
    "copy_in_part": "What was compared is a copy, only rounded.",
    "copy_as_base": "The base is a copy of the tuned model, only rounded.",
    "copy": "A copy of the base, only rounded.",
    "mostly_copy_as_base": "The base is a rounded copy, but for"
    " {recognised.casts.beside:count tensor|tensors}.",
    "mostly_copy": "A rounded copy of the base, but for"
    " {recognised.casts.beside:count tensor|tensors}.",
}
PARTIAL = {"part_shared", "left_out", "nonfinite"}  # sentences on what was not compared
# what the change is, by the sentence that says it; the first that is told
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
    "along": f"spread over {{about}}{{{DIRECTIONS}:about direction|directions}}"
    "[ of {side:count}]",
    "coherent": "with more structure than noise",
}
SIZES = {
    "siblings": "Different[ by {norm}]",
    "part": "A part changed[, by {norm}]",
    "whole": "Changed[ by {norm}]",
}
ROUNDED = "{figures.matrices_rounded:count matrix|matrices} only rounded"


def headline(context: Context, codes: Set[str]) -> str:
    """Write one line of up to about 90 characters: `Changed by 8.0 %, most of it in the head.`

    codes: those of the sentences. What the tuned model lacks comes first.
    """
    summary = context.summary
    recorded = Recorded(summary)
    text = _of_change(context, codes)
    if summary.idle_updates:
        return f"{recorded.fill(IDLE, count=summary.idle_updates)} {text}"
    if summary.unnamed_updates and "nothing_compared" not in codes:
        return f"{recorded.fill(UNNAMED, count=summary.unnamed_updates)} {text}"
    lacking = [row for row in context.lacking if row.reason == "only_in_base"]
    is_hidden = not codes.isdisjoint(("nothing_compared", "unrelated"))
    if is_hidden or summary.broken or is_rearranged(summary) or not lacking:
        return text
    return f"Missing: {places_in(summary, lacking)}. {text}"


def _of_change(context: Context, codes: Set[str]) -> str:
    summary = context.summary
    recorded = Recorded(summary)
    if summary.broken:
        row = summary.broken[0]
        return f"Broken: {broken_text(summary, row)} in {SIDES[row.side]}."
    refined = _refined(context, codes)
    for code, words in ALONE.items():
        if code in refined:
            remedy = details(context).get("unnamed")
            components = ""
            if context.apart:
                components = capital(components_text(recorded, context.apart))
            return recorded.fill(
                words,
                count=summary.unnamed_updates,
                moved=moved_in_brief(context),
                remedy=remedy,
                components=components,
            )
    inside = summary.inside_layers
    is_one_size = inside.short_side_least == inside.short_side_most  # 61 of 32 to 64 says nothing
    kind = recorded.fill(
        next((words for code, words in KINDS.items() if code in refined), ""),
        rank=summary.figures.rank_ceiling or inside.rank_most,
        about="about " if summary.estimated else "",
        side=inside.short_side_most if is_one_size else None,
    )
    moved = moved_in_brief(context)
    numbers = f"with {moved}" if moved else ""
    place = "" if numbers else _place(context, recorded)
    parts = [_size(context, recorded), numbers, kind, place]
    text = ", ".join(filter(None, parts))
    if summary.figures.matrices_rounded:
        text = f"{text}; {recorded.fill(ROUNDED)}"
    return f"{text}." if summary.has_spectra else f"{text}; no spectra were measured."


def _refined(context: Context, codes: Set[str]) -> set[str]:
    """The codes of the sentences, refined by ALONE and KINDS."""
    summary = context.summary
    is_partial = context.filtered or not PARTIAL.isdisjoint(codes)
    is_along = context.coherence == "along" and summary.inside_layers.short_side_most is not None
    refinements = {
        "apart": context.apart,
        "only_moved": "identical" in codes and bool(moved_in_brief(context)),
        "nothing_named": "nothing_compared" in codes and summary.unnamed_updates > 0,
        "all_not_comparable": is_rearranged(summary),
        "all_but_vectors": "only_vectors" in codes and codes <= {"only_vectors", "identical"},
        "all_identical": codes == {"identical"} and context.has_all,
        "some_scaled": "scaled" in codes and context.has_frozen,
        "copy": is_copy(summary),
        "copy_in_part": is_copy(summary) and is_partial,
        "copy_as_base": is_copy(summary) and is_of_base(summary),
        "mostly_copy_as_base": "copied" in context.states and is_of_base(summary),
        "format": context.is_no_more_than_format,
        "along": "coherent" in codes and is_along,
        "beyond_rounding": "rounded_away" in codes and bool(beyond_rounding(summary)),
    }
    refined = {*codes, *[code for code, is_true in refinements.items() if is_true]}
    if summary.figures.matrices_rounded:  # what changed by more is said
        refined -= {"mostly_copy"}
    if "noise" in codes and context.structure is not None:
        refined = {*refined - {"noise"}, context.structure}
    if "coherent" in codes or context.few_bits is None:  # otherwise it is of the base alone
        refined -= {"few_values"}
    return refined


def _size(context: Context, recorded: Recorded) -> str:
    summary = context.summary
    norm = None
    if has_other_norm_unrounded(summary) and not context.are_siblings:
        norm = recorded.fill(f"{{{UNROUNDED}:share}}")
    elif summary.figures.relative_norm_overall is not None:
        norm = recorded.fill("{figures.relative_norm_overall:share}")
        if context.is_as_stored and not context.are_siblings:
            norm = f"{norm} as stored"
    # what is only rounded is said behind it
    is_part = context.has_frozen and not summary.figures.matrices_rounded
    code = "part" if is_part else "whole"
    return recorded.fill(SIZES["siblings" if context.are_siblings else code], norm=norm)


def _place(context: Context, recorded: Recorded) -> str:
    """Name the parts that hold most of it, or more than each of several equals."""
    parts = context.parts
    leaders = leading(parts)
    is_all = len(leaders) == len(parts)
    if len(parts) > 1 and are_in_proportion(context.summary, parts):
        return f"in all modules {'that changed ' if context.has_frozen else ''}alike"
    following = parts[len(leaders)].energy_share if not is_all else 0.0
    if leaders and following > ALIKE * leaders[-1].energy_share:
        last = leaders[-1].energy_share
        leaders = [part for part in leaders if ALIKE * part.energy_share > last]
    if not leaders or (is_all and context.is_all_asked_for):
        return ""
    held = sum(part.energy_share for part in leaders)
    much = "most" if held >= MOST else text_of(held, "share")
    if is_all:
        much = "all"
    names = [part.name for part in leaders]
    return recorded.fill("{much} of it in {names:and}", much=much, names=names)
