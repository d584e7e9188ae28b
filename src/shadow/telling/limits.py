"""Sentences before all figures: the two are not base and tuned, not everything was compared, or a
change was recognised that no training makes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from shadow.checks.explanations import COPIES, is_copied, is_rearranged, recognised
from shadow.checks.summary import Sentence
from shadow.summary.changes import CHANGES
from shadow.summary.record import (
    BrokenRow,
    Gate,
    InPlaces,
    PairRecord,
    UncomparedRow,
    VocabularyRow,
)
from shadow.telling.wording import (
    Recorded,
    and_others,
    component_name,
    module_name,
    place_of,
    places_of,
    tell,
)

VECTORS_FURTHER = 3.0  # median relative norm of vectors over that of the matrices as a whole
UNRELATED = 0.1  # a median cosine below which two models have nothing in common
NOT_IN_PLACE = ("layers_moved", "not_comparable")  # codes that stand before the size of a change
# what is wrong with a tensor, by the code of its sentence
DAMAGE = {
    "nonfinite": "{count|holds|hold} NaN or infinite entries",
    "all_zero": "{count|is|are} all zero",
    "empty": "{count|has|have} no entries",
}
FURTHEST = "{vectors.furthest} by {vectors.furthest_norm:share} of its norm"
MOVED = "{vectors.changed:count} of {vectors.compared:count} biases and norms changed"
WORDS = {
    "broken": "The {side} is broken: {text}.",
    "broken_and_left_out": "The {side} is broken: {text}. {count|This tensor was|These tensors"
    " were} not compared.",
    "nothing_compared": "Nothing was compared: no matrix{asked} has {what}.",
    "nothing_named": "Nothing was compared: none of the adapter's {count:count module|modules} has"
    " a name of the base.",
    "identical": "{what} the same[: {names:and} {count|is|are} identical].",
    "tensors": "{identical:count weight tensor|weight tensors}[ of {component}]",
    "vectors_alike": "{vectors.compared:count bias or norm|biases and norms}",
    "vocabulary": "The vocabulary {how} {by:count row|rows} ({names:and}: {tuned_rows:count}, in"
    " the base {base_rows:count}). Only common rows are compared.",
    "unrelated": "Entry by entry, the two have nothing in common (median cosine {figure:fixed}; a"
    " model and its base have nearly 1): unrelated, or one is the other rotated, reordered or"
    " moved.",
    "part_asked_for": "Only a part of the model was asked for, with {figure:fraction} of the"
    " parameters. The figures are of that part.",
    "part_shared": "The two share only {figure:fraction} of the larger model's parameters. The"
    " figures are of that part.",
    "unread": "{figure:share} of the parameters are left out: `shadow` cannot read their format.",
    "furthest": f"One vector changed far more than others of its kind: {FURTHEST}.",
}
LEFT_OUT = {
    "only_in_base": "{names} (only in the base)",
    "only_in_tuned": "{names} (only in the tuned model)",
    "shape_differs": "{names} (other shapes)",
}


def limits(summary: PairRecord, gates: Mapping[str, Gate], filtered: bool) -> list[Sentence]:
    """Return what comes before all figures: the two are not base and tuned, or only partly."""
    changed, lineage, paired, formats = (
        gates[name] for name in ("changed", "lineage", "paired", "formats")
    )
    sentences = [_broken(summary, row) for row in summary.broken]
    if changed.figure is None:
        is_nan = any(row.code == "nonfinite" for row in summary.broken)
        what = "a partner and finite numbers" if is_nan else "a partner on the other side"
        if count := summary.unnamed_updates:
            words = WORDS["nothing_named"]
            return [*sentences, tell(summary, "nothing_compared", words, count=count)]
        words, asked = WORDS["nothing_compared"], " that was asked for" if filtered else ""
        return [*sentences, tell(summary, "nothing_compared", words, asked=asked, what=what)]

    def of_gate(code: str, words: str, gate: Gate) -> Sentence:
        return tell(summary, code, WORDS[words], row=gate, at=f"gates.{gate.name}")

    known = is_rearranged(summary) or summary.recognised.scaled is not None
    if not known and lineage.figure is not None and abs(lineage.figure) < UNRELATED:
        sentences.append(of_gate("unrelated", "unrelated", lineage))
    sentences += _changes(summary, NOT_IN_PLACE)
    matters = filtered or not changed.passed or not paired.passed
    if matters and paired.figure is not None and paired.figure < 1.0:
        code = "part_asked_for" if filtered else "part_shared"
        sentences.append(of_gate(code, code, paired))
    if not formats.passed and formats.figure is not None:
        sentences.append(of_gate("left_out", "unread", formats))
    if comes_first(gates):
        sentences += not_compared(summary, filtered)
    if changed.passed:
        return sentences
    sentences = [sentence for sentence in sentences if sentence.code != "unrelated"]
    if summary.vectors.changed:
        sentences.append(_moved(summary, "only_vectors", "Only vectors changed"))
    # each of these says of something that it was not compared, or changed
    is_whole = not sentences and not filtered
    what = "The weights are" if is_whole else "Every matrix that was compared is"
    return [*sentences, _identical(summary, what)]


def comes_first(gates: Mapping[str, Gate]) -> bool:
    """Return whether what was not compared is important enough to precede the size of the
    change.
    """
    return not gates["changed"].passed or not gates["paired"].passed


def not_compared(summary: PairRecord, filtered: bool) -> list[Sentence]:
    """Describe rows, modules and layers that were requested but not compared."""
    return [*_vocabulary(summary), *([] if filtered else _left_out(summary))]


def _broken(summary: PairRecord, row: BrokenRow) -> Sentence:
    """Describe which tensors are broken, on which side and how, and whether they are left out."""
    side = "tuned model" if row.side == "tuned" else row.side
    words = WORDS["broken_and_left_out" if row.code == "nonfinite" else "broken"]
    text = broken_text(summary, row)
    return tell(summary, row.code, words, side=side, text=text, count=row.count)


def broken_text(summary: PairRecord, row: BrokenRow) -> str:
    """Return `model.norm.weight and 2 more tensors are all zero`."""
    words = "{first}[ and {more:count more tensor|more tensors}] " + DAMAGE[row.code]
    more = row.count - 1 or None
    return Recorded(summary).fill(words, first=row.tensors[0], more=more, count=row.count)


def places_in(summary: PairRecord, rows: Sequence[UncomparedRow]) -> str:
    """Return `mlp.up of layers 0 to 11 and the head`."""
    several = summary.has_components
    names = [place_of(row.component, row.module, row.layers, several) for row in rows]
    return and_others(list(dict.fromkeys(names)))


def _vocabulary(summary: PairRecord) -> list[Sentence]:
    """Describe embeddings and heads with another number of rows, equal numbers together."""
    groups: defaultdict[tuple[int, int], list[VocabularyRow]] = defaultdict(list)
    for row in summary.vocabulary:
        groups[row.base_rows, row.tuned_rows].append(row)
    sentences = []
    for first, *others in groups.values():
        recorded, at = Recorded(summary), f"vocabulary.{first.component}.{first.module}"
        names = [module_name(row.module) for row in (first, *others)]
        how, by = "grew by" if first.added > 0 else "lost", abs(first.added)
        recorded.fill("{added:count}", first, at)
        text = recorded.fill(WORDS["vocabulary"], first, at, how=how, by=by, names=names)
        sentences.append(recorded.sentence("left_out", text))
    return sentences


def _left_out(summary: PairRecord) -> list[Sentence]:
    """Describe tensors without a partner, or with another shape."""
    recorded, found, texts = Recorded(summary), summary.recognised.rearranged, []
    have_moved = found is not None and found.moved is not None  # such layers may be there
    for reason, words in LEFT_OUT.items():
        rows = [row for row in summary.uncompared if row.reason == reason]
        if some := [row for row in rows if row.module is not None or not have_moved]:
            texts.append(recorded.fill(words, names=places_in(summary, some)))
    return [recorded.sentence("left_out", f"Not compared: {'; '.join(texts)}.")] if texts else []


def _moved(summary: PairRecord, code: str, what: str) -> Sentence:
    vectors, how = summary.vectors, "by {vectors.relative_norm:share} of their norm in the median"
    if vectors.relative_norm is None:
        how = "which are 0 in the base"
    elif vectors.furthest is not None:
        how = FURTHEST
    return tell(summary, code, f"{{what}}: {MOVED}, {how}.", what=what)


def vectors(summary: PairRecord) -> list[Sentence]:
    """Describe biases and norms if most moved and their median is far above the matrices' norm."""
    norm, matrices = summary.vectors.relative_norm_of_all, summary.figures.relative_norm_overall
    if norm is None or matrices is None:
        return []
    if (summary.vectors.furthest_norm or 0.0) > VECTORS_FURTHER * matrices:
        return [tell(summary, "vectors", WORDS["furthest"])]
    is_far = norm >= VECTORS_FURTHER * matrices
    return [_moved(summary, "vectors", "Vectors changed more than matrices")] if is_far else []


def _identical(summary: PairRecord, what: str) -> Sentence:
    """Return `30 weight tensors and 9 biases and norms are identical`, counting one side, as the
    other has the same; by component if there are several.
    """
    recorded, vectors = Recorded(summary), summary.vectors
    rows = [row for row in summary.components if row.identical]
    count, names = sum(row.identical for row in rows), []
    for row in rows:
        component = component_name(row.component) if len(rows) > 1 else None
        at = f"components.{row.component}"
        names.append(recorded.fill(WORDS["tensors"], row, at, component=component))
    if vectors.compared and not vectors.changed:
        names.append(recorded.fill(WORDS["vectors_alike"]))
        count += vectors.compared
    text = recorded.fill(WORDS["identical"], what=what, names=names or None, count=count)
    return recorded.sentence("identical", text)


def known_changes(summary: PairRecord) -> list[Sentence]:
    """Return sentences on recognised changes that come before the size."""
    holds = {*recognised(summary)} - {*NOT_IN_PLACE}
    return _changes(summary, holds & COPIES if is_copied(summary) else holds)


def _changes(summary: PairRecord, codes: Collection[str]) -> list[Sentence]:
    said = []
    for one in CHANGES:
        found = one.figures(summary.recognised)
        if one.code in codes and found is not None:
            places = places_of(summary, found.rows) if isinstance(found, InPlaces) else None
            at = f"recognised.{one.place}"
            code = one.sentence or one.code
            said.append(tell(summary, code, one.text, row=found, at=at, places=places))
    return said
