"""Summary -> Finding: the answer in words that a report gives of any pair.

Pure. Sentences are made from measured figures alone, in a fixed order: doubts that the pair is base
and tuned (gates), size and place, structure, storage, context. Each has a code, and its figures,
unrounded, by their keys in summary.json: `inside_layers.kept`,
`modules.language.mlp.up.energy_share`. Texts round them to meaningful digits. The headline repeats
them in a line and adds no measurement. Texts contain no names except those of components and
modules, and are escaped all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from shadow.checks.explanations import (
    Explanation,
    beyond_rounding,
    explanations,
    few_bits,
    has_moved_in_part,
    has_other_norm_unrounded,
    is_copied,
    is_copy,
    is_of_base,
    is_rearranged,
)
from shadow.checks.summary import Finding, Sentence, Summary
from shadow.reports.columns import read_words
from shadow.reports.provenance import SettingsMetadata
from shadow.summary.record import TIERS, PairRecord
from shadow.telling.limits import (
    broken_text,
    comes_first,
    known_changes,
    limits,
    not_compared,
    places_in,
    vectors,
)
from shadow.telling.size import (
    UNROUNDED,
    are_in_proportion,
    has_frozen,
    is_all_asked_for,
    is_as_stored,
    leading,
    parts_by_energy,
    rounded_text,
    size_and_place,
)
from shadow.telling.structure import (
    DIRECTIONS,
    is_no_more_than_format,
    knows_coherence,
    noise_kind,
    storage,
    structure,
)
from shadow.telling.wording import Recorded, capital, tell
from shadow.text import several

NOT_SHOWN = (
    (
        "Weights do not show whether benchmark data were in the training, what the model can do, or"
        " what anyone intended."
    ),
    (
        "Different data, optimisers, learning rates, numbers of steps, weight decay and means of"
        " models can leave the same figures."
    ),
)
WORDS = {
    "no_spectra": "{what} were measured. How many directions the change has, and how much of"
    " it is rounding, is unknown.",
    "delta": "Spectra were measured of the deltas alone. How they lie to the directions of"
    " the base is unknown.",
    "estimated": "Figures of singular values of large matrices are estimates from a few passes over"
    " the weights: each row has errors of its own. Their numerical ranks and exponents are"
    " unknown.",
    "published": "The mean relative norm of a tensor is {published.value:share}, more than in"
    " {published.below:count} of {published.families:count} published families.",
}
# what each sentence says, in the order in which they stand
CODES: Mapping[str, str] = read_words("words.yaml")["sentences"]


NAMED = 4  # differences of files that a sentence names
# words that are named before others: what changes what a model is given, or runs code
FIRST = ("code", "pickle", "auto_map", "chat_template", "vocabulary", "merges", "special_tokens")
OF_ADAPTERS = "adapter_config.json"  # that an adapter has one is no news
AT_MOST = 2  # parts of the model that are named
# the whole line, by the sentence that leaves nothing more to say; the first that stands
ALONE = {
    "nothing_named": "Nothing was compared: none of the adapter's {count:count module|modules} has"
    " a name of the base.",
    "nothing_compared": "Nothing was compared.",
    "unrelated": "Nothing in common entry by entry.",
    "moved_in_part": "The base with matrices in other layers.",
    "layers_moved": "The base with layers at other numbers.",
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
    "along": f"spread over {{about}}{{{DIRECTIONS}:about direction|directions}}"
    "[ of {side:count}]",
    "coherent": "with more structure than noise",
}
SIZES = {
    "siblings": "Different[ by {norm}]",
    "part": "A part changed[, by {norm}]",
    "whole": "Changed[ by {norm}]",
}


def finding(summary: Summary, settings: SettingsMetadata) -> Finding:
    """Make the finding of a summary. settings: those of its audit."""
    gates = {gate.name: gate for gate in summary.gates}
    are_siblings, chosen = settings.get("relation") == "sibling", settings.get("chosen")
    filtered = isinstance(chosen, Mapping) and any(chosen.values())
    sentences = limits(summary, gates, filtered)
    codes = {sentence.code for sentence in sentences}
    others: list[Explanation] = []
    if not codes & {"nothing_compared", "identical"}:
        later = [] if comes_first(gates) else not_compared(summary, filtered)
        if "unrelated" in codes or is_rearranged(summary):  # entries do not show the change
            if summary.recognised.scaled is not None:  # by a factor below 0
                sentences += known_changes(summary)
            size = size_and_place(summary, apart=True, alike=False)
            sentences += [*size, *_tier(summary), *later]
        else:
            size = size_and_place(summary, apart=are_siblings, filtered=filtered)
            sentences += [*known_changes(summary), *size, *_tier(summary)]
            sentences += [*vectors(summary), *later]
            # structure is else that of rounding, or bounded by how few entries changed
            if summary.recognised.few_entries is None and not is_copied(summary):
                # a factor leaves the base's own structure
                is_scaled = summary.recognised.scaled is not None
                sentences += [] if is_scaled else structure(summary)
                sentences += storage(summary, gates)
                others = explanations(summary)
            if summary.published and not are_siblings:
                sentences.append(tell(summary, "published", WORDS["published"]))
    line = headline(summary, sentences, filtered, are_siblings)
    return Finding(
        headline=line,
        sentences=[*sentences, *_files(summary)],
        other_explanations=others,
        not_shown=list(NOT_SHOWN),
    )


def _tier(summary: Summary) -> list[Sentence]:
    """Describe what was left out of the measurement, or estimated."""
    texts = [] if summary.has_spectra else [WORDS["no_spectra"]]
    texts += [WORDS["delta"]] if summary.tier == "delta" else []
    texts += [WORDS["estimated"]] if summary.estimated else []
    what = capital(TIERS[summary.tier][0])
    return [tell(summary, "level", *texts, what=what)] if texts else []


def _files(summary: Summary) -> list[Sentence]:
    """Return a sentence on differences beside the weights; none if none are known."""
    rows = [] if summary.files is None else summary.files.rows
    clauses = []
    for state in ("changed", "added", "removed"):
        recorded = [
            row for row in rows if row.state == state and not row.path.endswith(OF_ADAPTERS)
        ]
        words = list(dict.fromkeys(word for row in recorded for word in row.differs))
        words.sort(key=lambda word: FIRST.index(word) if word in FIRST else len(FIRST))
        if words:
            clauses.append(f"{state} {several(words, NAMED)}")
    text = f"Beside the weights: {'; '.join(clauses)}."
    return [Sentence(code="files", text=text, figures={})] if clauses else []


# ---------------------------------------------------------------------------------------- headline


def headline(
    summary: Summary, sentences: Sequence[Sentence], filtered: bool, are_siblings: bool
) -> str:
    """Return one line of up to about 90 characters: `Changed by 8.0 %, most of it in the head.`

    What the tuned model lacks comes first.
    """
    recorded, codes = Recorded(summary), {sentence.code for sentence in sentences}
    text = _of_change(recorded, codes, filtered, are_siblings)
    if summary.idle_updates:
        words = "The adapter does nothing in {count:count module|modules}, where its update is 0."
        return f"{recorded.fill(words, count=summary.idle_updates)} {text}"
    if summary.unnamed_updates and "nothing_compared" not in codes:
        words = "The base has no name of {count:count module|modules} of the adapter."
        return f"{recorded.fill(words, count=summary.unnamed_updates)} {text}"
    hides = codes & ALONE.keys() & {"nothing_compared", "unrelated"}
    lacking = [one for one in summary.uncompared if one.reason == "only_in_base"]
    if hides or summary.broken or is_rearranged(summary) or not lacking:
        return text
    return f"Missing: {places_in(summary, lacking)}. {text}"


def _of_change(
    recorded: Recorded, codes: Collection[str], filtered: bool, are_siblings: bool
) -> str:
    summary = recorded.summary
    if summary.broken:
        row = summary.broken[0]
        side = "the tuned model" if row.side == "tuned" else "the base"
        return f"Broken: {broken_text(summary, row)} in {side}."
    refined = _refined(summary, codes, filtered)
    for code, text in ALONE.items():
        if code in refined:
            return recorded.fill(text, count=summary.unnamed_updates)
    kind = next((text for code, text in KINDS.items() if code in refined), "")
    inside = summary.inside_layers
    text = recorded.fill(
        kind,
        rank=summary.figures.rank_ceiling or inside.rank_most,
        about="about " if summary.estimated else "",
        # 61 of 32 to 64 says nothing
        side=inside.short_side_most if inside.short_side_least == inside.short_side_most else None,
    )
    text = ", ".join(
        filter(None, [_size(recorded, are_siblings), text, _place(recorded, filtered)])
    )
    if rest := rounded_text(recorded, "rounded_short"):
        text = f"{text}; {rest}"
    return f"{text}." if summary.has_spectra else f"{text}; no spectra were measured."


def _refined(summary: PairRecord, codes: Collection[str], filtered: bool) -> set[str]:
    """Return the codes of the sentences, refined by ALONE and KINDS."""
    inside = summary.inside_layers
    is_along = knows_coherence(summary) and None not in (
        inside.equivalent_directions,
        inside.short_side_most,
    )
    refinements = {
        "moved_in_part": "layers_moved" in codes and has_moved_in_part(summary),
        "nothing_named": "nothing_compared" in codes and summary.unnamed_updates > 0,
        "all_not_comparable": is_rearranged(summary),
        "all_but_vectors": "only_vectors" in codes and {*codes} <= {"only_vectors", "identical"},
        "all_identical": {*codes} == {"identical"} and not filtered,
        "some_scaled": "scaled" in codes and has_frozen(summary),
        "copy": is_copy(summary),
        "copy_in_part": is_copy(summary) and (filtered or not PARTIAL.isdisjoint(codes)),
        "copy_as_base": is_copy(summary) and is_of_base(summary),
        "mostly_copy_as_base": is_copied(summary) and is_of_base(summary),
        "format": is_no_more_than_format(summary),
        "along": "coherent" in codes and is_along,
        "beyond_rounding": "rounded_away" in codes and bool(beyond_rounding(summary)),
    }
    refined = {*codes, *(code for code, holds in refinements.items() if holds)}
    if summary.figures.matrices_rounded:  # what changed by more is said
        refined -= {"mostly_copy"}
    if "noise" in codes:
        refined = {*refined - {"noise"}, noise_kind(summary)}
    if "coherent" in codes or few_bits(summary) is None:  # else it is of the base alone
        refined -= {"few_values"}
    return refined


def _size(recorded: Recorded, are_siblings: bool) -> str:
    summary, norm = recorded.summary, None
    if has_other_norm_unrounded(summary) and not are_siblings:
        norm = recorded.fill(f"{{{UNROUNDED}:share}}")
    elif summary.figures.relative_norm_overall is not None:
        stored = " as stored" if is_as_stored(summary) and not are_siblings else ""
        norm = recorded.fill("{figures.relative_norm_overall:share}") + stored
    # what is only rounded is said behind it
    code = "part" if has_frozen(summary) and not summary.figures.matrices_rounded else "whole"
    return recorded.fill(SIZES["siblings" if are_siblings else code], norm=norm)


def _place(recorded: Recorded, filtered: bool) -> str:
    """Return the parts that hold most of it, if they are few."""
    summary = recorded.summary
    parts = parts_by_energy(summary)
    named = leading(parts)
    is_all = len(named) == len(parts)
    if len(parts) > 1 and are_in_proportion(summary, parts):
        return f"in all modules {'that changed ' if has_frozen(summary) else ''}alike"
    if not 0 < len(named) <= AT_MOST or (is_all and is_all_asked_for(summary, filtered)):
        return ""
    names, much = [part.name for part in named], "all" if is_all else "most"
    return recorded.fill("{much} of it in {names:and}", much=much, names=names)
