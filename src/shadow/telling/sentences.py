"""Every sentence of a finding, in order: its code, when it is true, and its words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shadow.checks.explanations import few_of, has_few_values
from shadow.checks.summary import Sentence
from shadow.quantities import bounds_text
from shadow.summary.changes import CHANGES
from shadow.summary.record import TIERS, BrokenRow, InPlaces, PairRecord, Row, UncomparedRow
from shadow.telling.context import Context, SentenceGroup
from shadow.telling.correspondence import kinds_moved, moved_text
from shadow.telling.parts import components_text, identical_text
from shadow.telling.size import size
from shadow.telling.wording import (
    INSIDE,
    VECTORS,
    Recorded,
    and_others,
    capital,
    module_name,
    place_of,
    places_of,
)
from shadow.text import counted, several

Rows = Sequence[tuple[str, Row]]

NAMED = 4  # differences of files that a sentence names
# words that are named before others: what changes what a model is given, or runs code
FIRST = ("code", "pickle", "auto_map", "chat_template", "vocabulary", "merges", "special_tokens")
OF_ADAPTERS = "adapter_config.json"  # that an adapter has one is no news
# what is wrong with a tensor, by the code of its sentence
DAMAGE = {
    "nonfinite": "{count|holds|hold} NaN or infinite entries",
    "all_zero": "{count|is|are} all zero",
    "empty": "{count|has|have} no entries",
}
# which side is broken; older reports do not say where NaN or infinity is
SIDES = {"base": "the base", "tuned": "the tuned model", "either": "one of the two models"}
BROKEN = "{side} is broken: {text}."
NOT_COMPARED = " {count|This tensor was|These tensors were} not compared."
NOTHING_NAMED = (
    "Nothing was compared: none of the adapter's {count:count module|modules} has a name of the"
    " base[; {remedy}]."
)
NOTHING_COMPARED = "Nothing was compared: no matrix{chosen} has {what}."
LEFT_OUT = {
    "only_in_base": "{names} (only in the base)",
    "only_in_tuned": "{names} (only in the tuned model)",
    "unnamed": "{names} (no such name in the base[; {detail}])",
    "untargeted": "{names} (not targeted by the adapter's config)",
    "shape_differs": "{names} (other shapes[, such as {detail}])",
}
VOCABULARY = (
    "The vocabulary {how} {by:count row|rows} ({names:and}: {tuned_rows:count}, in the base"
    " {base_rows:count}). Only common rows are compared."
)
FURTHEST = "{vectors.furthest} by {vectors.furthest_norm:share} of its norm"
VECTORS_MOVED = (
    "{what}: {vectors.changed:count} of {vectors.compared:count} biases and norms changed, "
)
LEVEL = {
    "no_spectra": "{what} were measured. How many directions the change has, and how much of"
    " it is rounding, is unknown.",
    "delta": "Spectra were measured of the deltas alone. How they lie to the directions of"
    " the base is unknown.",
    "estimated": "Figures of singular values of large matrices are estimates from a few passes over"
    " the weights: each row has errors of its own. Their numerical ranks and exponents are"
    " unknown.",
}
DIRECTIONS = f"{INSIDE}.equivalent_directions"
BEYOND = (
    "In {beyond_noise/judged:all matrix|matrices} inside the layers, the change has more structure"
    " than noise"
)
COHERENT = {
    "hidden": f"{BEYOND}. How concentrated the update was before storage is unknown.",
    "above": f"{BEYOND}, but less than {{directions}} equally strong directions would have.",
    "along": f"{BEYOND},{{where}} as along {{{DIRECTIONS}:about equally strong direction|equally"
    " strong directions}[ of {directions}].",
}
ADAPTER = (
    "It is an adapter: no matrix changed along more than {figures.rank_ceiling:count} of"
    " {directions} directions."
)
LOW_RANK = (
    "It has low rank: in {which}, {rank_most:count} of {directions} directions"
    " {rank_most|holds|hold} all of it but rounding."
)
FEW_VALUES = {
    "base": "The base looks dequantised from 4 to 8 bits: rows of"
    " {levels_base_few/levels_base_judged:all matrix|matrices} inside the layers[ that could be"
    " judged (of {of_base:count})] have few distinct values.",
    "format": "In {in_8_bits/matrices:all matrix|matrices} inside the layers, a side is stored in 8"
    " bits, so part or all of the change may be the rounding of that format.",
    "tuned": "In {levels_tuned_few/levels_tuned_judged:all matrix|matrices} inside the layers[ that"
    " could be judged (of {of_tuned:count})], rows of the tuned side have as few distinct values as"
    " a copy in 8 or 4 bits, so part or all of the change may be the rounding of that copy.",
}
OF_QUANTISED = (
    "A side is quantised: inside the layers, {part} of the energy of the stored change is the"
    " update, the rest is the error of the format."
)
UNEXPLAINED = (
    "In {unexplained/matrices:all matrix|matrices} inside the layers, one rounding fits too poorly"
    " to say what storage took. Weight decay, updates of widely differing sizes, a mean of models,"
    " rounding at every step or a copy in more or fewer bits may be the reason."
)
SMALL = "The stored change is {figures.floor_ratio:ratio} times its rounding."


def inside_layers(context: Context) -> Rows:
    return [(INSIDE, context.summary.inside_layers)]


@dataclass(frozen=True)
class SentenceRule:
    """A sentence of the finding."""

    code: str
    group: SentenceGroup
    when: Callable[[Context], object]
    """True if it is true of a pair of which sentences of its group are."""
    words: str | Callable[[Context, Recorded], str]
    """A template of keys of summary.json and of columns of its row, or what writes the text."""
    rows: Callable[[Context], Rows] = inside_layers
    """The rows that it is about, each with its key in summary.json: there is a sentence of each."""

    def sentences(self, context: Context) -> list[Sentence]:
        """Write the sentence, if it is true."""
        if not context.tells(self.group) or not self.when(context):
            return []
        sentences = []
        for key, row in self.rows(context):
            recorded = Recorded(context.summary, row, key)
            words = self.words
            text = recorded.fill(words) if isinstance(words, str) else words(context, recorded)
            sentences.append(Sentence(code=self.code, text=text, figures=recorded.figures))
        return sentences


# ------------------------------------------------------------------------------------------ limits


def damaged(code: str) -> SentenceRule:
    """Describe which tensors are broken, on which side and how, and whether they are left out."""

    def rows(context: Context) -> Rows:
        return [("broken", row) for row in context.summary.broken if row.code == code]

    def text(context: Context, recorded: Recorded) -> str:
        row: Any = recorded.row
        words = BROKEN + NOT_COMPARED if code == "nonfinite" else BROKEN
        damage = broken_text(context.summary, row)
        return recorded.fill(words, side=capital(SIDES[row.side]), text=damage, count=row.count)

    return SentenceRule(code, SentenceGroup.ALWAYS, rows, text, rows)


def broken_text(summary: PairRecord, row: BrokenRow) -> str:
    """`model.norm.weight and 2 more tensors are all zero`."""
    words = "{first}[ and {more:count more tensor|more tensors}] " + DAMAGE[row.code]
    more = row.count - 1 or None
    return Recorded(summary).fill(words, first=row.tensors[0], more=more, count=row.count)


def _nothing_compared(context: Context, recorded: Recorded) -> str:
    if count := context.summary.unnamed_updates:
        return recorded.fill(NOTHING_NAMED, count=count, remedy=details(context).get("unnamed"))
    is_nan = any(row.code == "nonfinite" for row in context.summary.broken)
    what = "a partner and finite numbers" if is_nan else "a partner on the other side"
    chosen = " that was asked for" if context.filtered else ""
    return recorded.fill(NOTHING_COMPARED, chosen=chosen, what=what)


def _components_apart(context: Context, recorded: Recorded) -> str:
    return f"Entry by entry, {components_text(recorded, context.apart)}."


def of_gate(name: str) -> Callable[[Context], Rows]:
    return lambda context: [(f"gates.{name}", context.gates[name])]


def not_compared(group: SentenceGroup, *, is_partial: bool) -> tuple[SentenceRule, SentenceRule]:
    """Name rows, modules and layers that were asked for and not compared: before all figures where
    little was compared, otherwise after the size.
    """
    return (
        SentenceRule(
            "left_out",
            group,
            lambda context: context.is_partial == is_partial and context.summary.vocabulary,
            _vocabulary,
            _vocabularies,
        ),
        SentenceRule(
            "left_out",
            group,
            lambda context: context.is_partial == is_partial and context.uncompared,
            _left_out,
        ),
    )


def _vocabularies(context: Context) -> Rows:
    """The first embedding or head of each pair of numbers of rows."""
    firsts: dict[tuple[int, int], tuple[str, Row]] = {}
    matched = context.summary.correspondence
    moved = [] if matched is None else [(row.component, row.module) for row in matched.rows]
    for row in context.summary.vocabulary:
        if (row.component, row.module) in moved:
            continue
        key = f"vocabulary.{row.component}.{row.module}"
        firsts.setdefault((row.base_rows, row.tuned_rows), (key, row))
    return [*firsts.values()]


def _vocabulary(context: Context, recorded: Recorded) -> str:
    first: Any = recorded.row
    numbers = (first.base_rows, first.tuned_rows)
    names = [
        module_name(row.module)
        for row in context.summary.vocabulary
        if (row.base_rows, row.tuned_rows) == numbers
    ]
    how = "grew by" if first.added > 0 else "lost"
    recorded.fill("{added:count}")
    return recorded.fill(VOCABULARY, how=how, by=abs(first.added), names=names)


def _left_out(context: Context, recorded: Recorded) -> str:
    texts = []
    for reason, rows in context.uncompared.items():
        names = places_in(context.summary, rows)
        detail = details(context).get(reason)
        texts.append(recorded.fill(LEFT_OUT[reason], names=names, detail=detail))
    return f"Not compared: {'; '.join(texts)}."


def details(context: Context) -> dict[str, str | None]:
    """The first detail of tensors that were left out, by the reason."""
    return {row.reason: row.detail for row in context.summary.skipped}


def places_in(summary: PairRecord, rows: Sequence[UncomparedRow]) -> str:
    """`layer 12; mlp.up of layers 0 to 11, 2 norms and the head`: whole layers first."""
    names: dict[bool, list[str]] = {True: [], False: []}
    for row in rows:
        name = place_of(row.component, row.module, row.layers, summary.has_components)
        if row.module in VECTORS and not row.layers:  # as the head has, not all that there are
            name = counted(row.tensors, row.module, name)
        names[row.module is None].append(name)
    groups = [and_others(list(dict.fromkeys(group))) for group in names.values()]
    return "; ".join(filter(None, groups))


def vectors_moved(what: str) -> Callable[[Context, Recorded], str]:
    def text(context: Context, recorded: Recorded) -> str:
        how = "by {vectors.relative_norm:share} of their norm in the median."
        if context.summary.vectors.relative_norm is None:
            how = "which are 0 in the base."
        elif context.summary.vectors.furthest is not None:
            how = f"{FURTHEST}."
        return recorded.fill(VECTORS_MOVED + how, what=what)

    return text


def _identical(context: Context, recorded: Recorded) -> str:
    # each sentence before it says of something that it was not compared, or changed
    limits = [
        rule
        for rule in SENTENCES
        if rule.group == SentenceGroup.LIMITS and rule.code != "identical"
    ]
    is_whole = context.has_all and not context.summary.broken
    is_whole &= not any(rule.when(context) for rule in limits)
    what = "The weights are" if is_whole else "Every matrix that was compared is"
    which = identical_text(recorded) or None
    return recorded.fill("{what} the same[: {which}].", what=what, which=which)


# ----------------------------------------------------------------------------------------- changes


def changed(code: str, group: SentenceGroup) -> SentenceRule:
    """Describe a change that was recognised."""
    change = next(change for change in CHANGES if change.code == code)

    def rows(context: Context) -> Rows:
        row = change.figures(context.summary.recognised)
        if code == "replaced" and isinstance(row, InPlaces) and context.are_apart(row.rows):
            return []  # said of their components
        return [] if row is None else [(f"recognised.{change.place}", row)]

    def text(context: Context, recorded: Recorded) -> str:
        row = recorded.row
        places = places_of(context.summary, row.rows) if isinstance(row, InPlaces) else None
        return recorded.fill(change.text, places=places)

    return SentenceRule(change.sentence or code, group, rows, text, rows)


def moved(kind: str) -> SentenceRule:
    """Say which parts of a kind correspond, but not by number."""
    return SentenceRule(
        f"{kind}_moved",
        SentenceGroup.LIMITS,
        lambda context: kind in kinds_moved(context),
        lambda context, recorded: moved_text(kind, context, recorded),
    )


def _levels(context: Context) -> list[str]:
    """The codes of LEVEL that are true: what was left out of the measurement, or estimated."""
    holds = {
        "no_spectra": not context.summary.has_spectra,
        "delta": context.summary.tier == "delta",
        "estimated": context.summary.estimated,
    }
    return [code for code, is_true in holds.items() if is_true]


def _level(context: Context, recorded: Recorded) -> str:
    words = " ".join(LEVEL[code] for code in _levels(context))
    return recorded.fill(words, what=capital(TIERS[context.summary.tier][0]))


def _coherent(context: Context, recorded: Recorded) -> str:
    if context.coherence == "along":
        recorded.note(DIRECTIONS)
    return recorded.fill(
        COHERENT[context.coherence],
        directions=recorded.directions() or None,
        where="" if context.summary.inside_layers.matrices == 1 else " in the median",
    )


def _low_rank(context: Context, recorded: Recorded) -> str:
    inside = context.summary.inside_layers
    recorded.note(f"{INSIDE}.judged")
    if context.summary.figures.rank_ceiling is not None:
        return recorded.fill(ADAPTER, directions=recorded.directions())
    which = "the median matrix"
    if inside.rank_known < inside.matrices:
        which = recorded.fill("the median of {rank_known:count} of {matrices:count} matrices")
    elif inside.matrices == 1:
        which = "the only matrix that changed"
    return recorded.fill(LOW_RANK, directions=recorded.directions(), which=which)


def _few_values(context: Context) -> list[str]:
    """The codes of FEW_VALUES that are true: which side went through few bits."""
    codes = ["base"] if has_few_values(context.summary, "base") else []
    return codes if context.few_bits is None else [*codes, context.few_bits]


def _few_values_text(context: Context, recorded: Recorded) -> str:
    of = {side: _if_some_unjudged(context.summary, side) for side in ("base", "tuned")}
    words = " ".join(FEW_VALUES[code] for code in _few_values(context))
    return recorded.fill(words, of_base=of["base"], of_tuned=of["tuned"])


def _if_some_unjudged(summary: PairRecord, side: str) -> int | None:
    """The number of matrices inside layers, if the values of some could not be judged, as those of
    short rows.
    """
    matrices = summary.inside_layers.matrices
    _, judged = few_of(summary, side)
    return matrices if judged < matrices else None


def _of_quantised(context: Context, recorded: Recorded) -> str:
    inside = context.summary.inside_layers
    recorded.note(f"{INSIDE}.kept_low_overall", f"{INSIDE}.kept_high_overall")
    bounds = (inside.kept_low_overall or 0.0, inside.kept_high_overall or 0.0)
    return recorded.fill(OF_QUANTISED, part=bounds_text(bounds, "share"))


def _unexplained(context: Context, recorded: Recorded) -> str:
    is_small = not context.gates["rounding"].passed
    return recorded.fill(f"{UNEXPLAINED} {SMALL}" if is_small else UNEXPLAINED)


def has_structure(code: str) -> Callable[[Context], bool]:
    return lambda context: context.structure == code


def has_storage(code: str) -> Callable[[Context], bool]:
    return lambda context: context.storage == code


def _file_clauses(context: Context) -> list[str]:
    """The differences beside the weights, by the state of the files."""
    files = context.summary.files
    clauses = []
    for state in ("changed", "added", "removed"):
        rows = [] if files is None else [row for row in files.rows if row.state == state]
        rows = [row for row in rows if not row.path.endswith(OF_ADAPTERS)]
        words = list(dict.fromkeys(word for row in rows for word in row.differs))
        words.sort(key=lambda word: FIRST.index(word) if word in FIRST else len(FIRST))
        if words:
            clauses.append(f"{state} {several(words, NAMED)}")
    return clauses


# ---------------------------------------------------------------------------------------- in order

SENTENCES = (
    damaged("nonfinite"),
    damaged("all_zero"),
    damaged("empty"),
    SentenceRule(
        "nothing_compared",
        SentenceGroup.ALWAYS,
        lambda context: "nothing_compared" in context.states,
        _nothing_compared,
    ),
    SentenceRule(
        "unrelated",
        SentenceGroup.LIMITS,
        lambda context: context.is_unrelated and not context.apart,
        "Entry by entry, the two have nothing in common (median cosine {figure:fixed}; a model and"
        " its base have nearly 1): unrelated, or one is the other rotated, reordered or moved.",
        of_gate("lineage"),
    ),
    SentenceRule(
        "unrelated",
        SentenceGroup.LIMITS,
        lambda context: context.is_unrelated and context.apart,
        _components_apart,
    ),
    SentenceRule(
        "components_apart",
        SentenceGroup.LIMITS,
        lambda context: context.apart and not context.is_unrelated,
        _components_apart,
    ),
    moved("layers"),
    moved("matrices"),
    moved("experts"),
    moved("rows"),
    changed("not_comparable", SentenceGroup.LIMITS),
    SentenceRule(
        "part_asked_for",
        SentenceGroup.LIMITS,
        lambda context: context.shares_a_part and context.filtered,
        "Only a part of the model was asked for, with {figure:fraction} of the parameters. The"
        " figures are of that part.",
        of_gate("paired"),
    ),
    SentenceRule(
        "part_shared",
        SentenceGroup.LIMITS,
        lambda context: context.shares_a_part and not context.filtered,
        "The two share only {figure:fraction} of the larger model's parameters. The figures are of"
        " that part.",
        of_gate("paired"),
    ),
    SentenceRule(
        "left_out",
        SentenceGroup.LIMITS,
        lambda context: context.is_unread,
        "{figure:share} of the parameters are left out: `shadow` cannot read their format.",
        of_gate("formats"),
    ),
    *not_compared(SentenceGroup.LIMITS, is_partial=True),
    SentenceRule(
        "only_vectors",
        SentenceGroup.LIMITS,
        lambda context: "identical" in context.states and context.summary.vectors.changed,
        vectors_moved("Only vectors changed"),
    ),
    SentenceRule(
        "identical", SentenceGroup.LIMITS, lambda context: "identical" in context.states, _identical
    ),
    changed("copy", SentenceGroup.ENTRIES),
    changed("mostly_copy", SentenceGroup.ENTRIES),
    changed("scaled", SentenceGroup.SIZE),
    changed("zeroed", SentenceGroup.CHANGES),
    changed("replaced", SentenceGroup.CHANGES),
    changed("few_entries", SentenceGroup.CHANGES),
    changed("masked", SentenceGroup.CHANGES),
    SentenceRule("size", SentenceGroup.SIZE, lambda context: True, size),
    SentenceRule("level", SentenceGroup.SIZE, _levels, _level),
    SentenceRule(
        "vectors",
        SentenceGroup.ENTRIES,
        lambda context: context.vectors == "furthest",
        f"One vector changed far more than others of its kind: {FURTHEST}.",
    ),
    SentenceRule(
        "vectors",
        SentenceGroup.ENTRIES,
        lambda context: context.vectors == "vectors",
        vectors_moved("Vectors changed more than matrices"),
    ),
    *not_compared(SentenceGroup.SIZE, is_partial=False),
    SentenceRule("coherent", SentenceGroup.STRUCTURE, has_structure("coherent"), _coherent),
    SentenceRule("low_rank", SentenceGroup.STRUCTURE, has_structure("low_rank"), _low_rank),
    SentenceRule(
        "noise",
        SentenceGroup.STRUCTURE,
        has_structure("flat"),
        "In {flatter_than_noise/judged:all matrix|matrices} inside the layers, the change is"
        " flatter than noise: it is spread over more directions than random changes are.",
    ),
    SentenceRule(
        "noise",
        SentenceGroup.STRUCTURE,
        has_structure("mixed"),
        f"{BEYOND}. In most, it looks like noise.",
    ),
    SentenceRule(
        "noise",
        SentenceGroup.STRUCTURE,
        has_structure("noise"),
        "It looks like noise: of {judged:count matrix|matrices} inside the layers,"
        " {beyond_noise:count} {beyond_noise|has|have} more structure than random changes of the"
        " same rows and columns.",
    ),
    SentenceRule("few_values", SentenceGroup.STORAGE, _few_values, _few_values_text),
    SentenceRule(
        "rounded_away",
        SentenceGroup.STORAGE,
        has_storage("rounded_away"),
        "Storage rounded most of it away: in {rounded_away/matrices:all matrix|matrices} inside"
        " the layers, less than a quarter of the stored change is the update. Its size and"
        " structure are unknown.",
    ),
    SentenceRule(
        "rounded_away",
        SentenceGroup.STORAGE,
        has_storage("beyond_rounding"),
        "In {known/matrices:all matrix|matrices} inside the layers, the change is more than"
        " rounding[: in the median {relative_norm_unrounded:share} of their norm][, along"
        " {equivalent_directions:about} equally strong directions]. In most others, less than a"
        " quarter of the stored change can be the update.",
    ),
    SentenceRule("rounding", SentenceGroup.STORAGE, has_storage("small"), SMALL),
    SentenceRule("kept", SentenceGroup.STORAGE, has_storage("of_quantised"), _of_quantised),
    SentenceRule("kept", SentenceGroup.STORAGE, has_storage("unexplained"), _unexplained),
    SentenceRule(
        "kept",
        SentenceGroup.STORAGE,
        has_storage("kept"),
        f"Inside the layers, {{{INSIDE}.kept:share}} of the energy of the stored change is the"
        " update; the rest is rounding.",
    ),
    SentenceRule(
        "published",
        SentenceGroup.ENTRIES,
        lambda context: context.summary.published and not context.are_siblings,
        "A tensor moved by {published.value:share} of its norm in the mean, more than in"
        " {published.below:count} of {published.families:count} published families.",
    ),
    SentenceRule(
        "files",
        SentenceGroup.ALWAYS,
        _file_clauses,
        lambda context, recorded: f"Beside the weights: {'; '.join(_file_clauses(context))}.",
    ),
)
