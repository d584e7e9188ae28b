"""What comes before any figure: that these are not base and tuned, or that not all was compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from shadow.checks.answer import Figure
from shadow.checks.draft import Draft, Sentence
from shadow.checks.pair_gates import Gate
from shadow.checks.recognised import is_rearranged
from shadow.quantities import text_of
from shadow.summary.record import PairRecord
from shadow.summary.rows import BrokenRow, UncomparedRow, VocabularyRow
from shadow.telling.known_changes import not_in_place
from shadow.telling.wording import (
    NAMED,
    and_others,
    component_name,
    furthest_vector,
    module_name,
    place_of,
    vectors_moved,
)
from shadow.text import and_list, counted

VECTORS_FURTHER = 3.0  # median relative norm of vectors over that of the matrices as a whole


class _Damage(NamedTuple):
    one: str
    many: str


DAMAGE = {
    "nonfinite": _Damage("holds NaN or infinite entries", "hold NaN or infinite entries"),
    "all_zero": _Damage("is all zero", "are all zero"),
    "empty": _Damage("has no entries", "have no entries"),
}
UNRELATED = 0.1  # a median cosine below which two models have nothing in common


def limits(summary: PairRecord, gates: Mapping[str, Gate], filtered: bool) -> list[Sentence]:
    """What comes before any figure: that these are not base and tuned, or not all of them."""
    changed, lineage, paired, formats = (
        gates[name] for name in ("changed", "lineage", "paired", "formats")
    )
    broken = broken_sentences(summary)
    if changed.figure is None:
        of = " that was asked for" if filtered else ""
        text = f"Nothing was compared: no matrix{of} has a partner on the other side."
        if any(sentence.code == "nonfinite" for sentence in broken):
            text = f"Nothing was compared: no matrix{of} has a partner and finite numbers."
        return [*broken, Sentence("nothing_compared", text, {})]
    sentences = [*broken, *_relation(summary, lineage)]
    if filtered or not changed.passed or not paired.passed:
        sentences += _part(paired, filtered)
    sentences += _unread(formats)
    if comes_first(gates):
        sentences += not_compared(summary, filtered)
    if changed.passed:
        return sentences
    sentences = [sentence for sentence in sentences if sentence.code != "unrelated"]
    draft = Draft(summary)
    text = "The weights are the same"
    if only_vectors := _only_vectors(summary):
        text = "Every matrix that was compared is the same"
    elif filtered:
        text = "What was asked for is the same"
    elif sentences:  # each says of something that it was not compared
        text = "What could be compared is the same"
    identical = draft.sentence("identical", f"{text}{_identical(draft)}.")
    return [*sentences, *only_vectors, identical]


def comes_first(gates: Mapping[str, Gate]) -> bool:
    """Whether what was not compared matters so much that it comes before the size of the change."""
    return not gates["changed"].passed or not gates["paired"].passed


def not_compared(summary: PairRecord, filtered: bool) -> list[Sentence]:
    """Rows, modules and layers; what was not asked for is not missed."""
    return [*_vocabulary(summary), *([] if filtered else _left_out(summary))]


def broken_sentences(summary: PairRecord) -> list[Sentence]:
    """Which tensors are broken, of which side and how, and whether that leaves them out."""
    sentences = []
    for row in summary.broken:
        side = "tuned model" if row.side == "tuned" else row.side
        text = f"The {side} is broken: {broken_text(row)}."
        if row.code == "nonfinite":
            text += " This tensor was" if row.count == 1 else " These tensors were"
            text += " not compared."
        sentences.append(Sentence(row.code, text, {}))
    return sentences


def broken_text(row: BrokenRow) -> str:
    """`model.norm.weight and 2 more tensors are all zero`."""
    first, *others = row.tensors
    more = row.count - 1
    if not more:
        names, verb = first, DAMAGE[row.code].one
    else:
        rest = others[0] if more == 1 and others else counted(more, "more tensor", "more tensors")
        names, verb = f"{first} and {rest}", DAMAGE[row.code].many
    return f"{names} {verb}"


def missing(summary: PairRecord) -> str:
    """What the tuned model lacks of the base, by name: `the head`; empty where it lacks nothing."""
    rows = [row for row in summary.uncompared if row.reason == "only_in_base"]
    return _places_of(summary, rows) if rows else ""


def _places_of(summary: PairRecord, rows: Sequence[UncomparedRow]) -> str:
    """`mlp.up of layers 0 to 11 and the head`."""
    several = summary.has_components
    names = [place_of(row.component, row.module, row.layers, several) for row in rows]
    return and_others(list(dict.fromkeys(names)))


def _vocabulary(summary: PairRecord) -> list[Sentence]:
    """Embeddings and heads of another number of rows; those of equal numbers together."""
    groups: dict[tuple[int, int], list[VocabularyRow]] = {}
    for row in summary.vocabulary:
        groups.setdefault((row.base_rows, row.tuned_rows), []).append(row)
    sentences = []
    for rows in groups.values():
        draft, first = Draft(summary), rows[0]
        place = f"vocabulary.{first.component}.{first.module}"
        size = draft.write(first.tuned_rows, f"{place}.tuned_rows", "count")
        before = draft.write(first.base_rows, f"{place}.base_rows", "count")
        by = draft.write(first.added, f"{place}.added", lambda value: text_of(abs(value), "count"))
        noun = "row" if by == "1" else "rows"
        if first.added > 0:
            change = f"The vocabulary grew by {by} {noun}"
        else:
            change = f"The vocabulary lost {by} {noun}"
        names = and_list([module_name(row.module) for row in rows])
        verb = "has" if names == "the head" else "have"
        text = (
            f"{change}: {names} {verb} {size}, the base's {before}. Only common rows are compared."
        )
        sentences.append(draft.sentence("vocabulary", text))
    return sentences


def _left_out(summary: PairRecord) -> list[Sentence]:
    """What has no partner, or another shape."""
    texts = []
    found = summary.recognised.rearranged
    for reason, here, there in (
        ("only_in_base", "the base", "the tuned model"),
        ("only_in_tuned", "the tuned model", "the base"),
    ):
        rows = [row for row in summary.uncompared if row.reason == reason]
        whole = [row for row in rows if row.module is None]
        if (
            whole and found is not None and found.moved is not None
        ):  # they may be there all the same
            texts.append(f"{_places_of(summary, whole)} ({there} has none of that number)")
            rows = [row for row in rows if row.module is not None]
        if rows:
            texts.append(f"{_places_of(summary, rows)} (only in {here})")
    figures: dict[str, Figure] = {}
    shapes: dict[str, list[UncomparedRow]] = {}
    for row in summary.uncompared:
        if row.reason == "shape_differs":
            told = ""
            if row.base_shape and row.tuned_shape:
                told = f", {_shape(row.tuned_shape)} instead of {_shape(row.base_shape)}"
            shapes.setdefault(told, []).append(row)
    listed = list(shapes.items())
    if len(listed) > NAMED:
        listed = [("", [row for rows in shapes.values() for row in rows])]
    for told, rows in listed:
        texts.append(f"{_places_of(summary, rows)} (other shapes{told})")
        if told:
            place = f"uncompared.{rows[0].component}.{rows[0].module}"
            for name, shape in (
                ("base_shape", rows[0].base_shape),
                ("tuned_shape", rows[0].tuned_shape),
            ):
                figures |= {f"{place}.{name}.{at}": size for at, size in enumerate(shape or [])}
    if not texts:
        return []
    return [Sentence("left_out", f"Not compared: {'; '.join(texts)}.", figures)]


def _shape(sizes: Sequence[int]) -> str:
    return " x ".join(text_of(size, "count") for size in sizes)


def _only_vectors(summary: PairRecord) -> list[Sentence]:
    if not summary.vectors.changed:
        return []
    draft = Draft(summary)
    return [draft.sentence("only_vectors", f"Only vectors changed: {vectors_moved(draft)}.")]


def vectors(summary: PairRecord) -> list[Sentence]:
    """Biases and norms, where most moved and the median of all is far above the matrices' norm."""
    norm, matrices = summary.vectors.relative_norm_of_all, summary.figures.relative_norm_overall
    if norm is None or matrices is None:
        return []
    draft = Draft(summary)
    if (summary.vectors.furthest_norm or 0.0) > VECTORS_FURTHER * matrices:
        text = f"One vector changed far more than all others: {furthest_vector(draft)}."
        return [draft.sentence("vectors", text)]
    if norm < VECTORS_FURTHER * matrices:
        return []
    text = f"Vectors changed more than matrices: {vectors_moved(draft)}."
    return [draft.sentence("vectors", text)]


def _identical(draft: Draft) -> str:
    """`: 30 weight tensors and 9 biases and norms are identical`: those of one side, as the other
    has the same once more; by component where there are several.
    """
    rows = [row for row in draft.summary.components if row.identical]
    names = []
    for at, row in enumerate(rows):
        count = draft.write(row.identical, f"components.{row.component}.identical", "count")
        noun = "" if at else (" weight tensor" if row.identical == 1 else " weight tensors")
        of = f" of {component_name(row.component)}" if len(rows) > 1 else ""
        names.append(f"{count}{noun}{of}")
    vectors = draft.summary.vectors
    if vectors.compared and not vectors.changed:
        compared = draft.write(vectors.compared, "vectors.compared", "count")
        names.append(f"{compared} {'bias or norm' if compared == '1' else 'biases and norms'}")
    is_one = len(names) == 1 and names[0].startswith("1 ")
    return f": {and_list(names)} {'is' if is_one else 'are'} identical" if names else ""


def _relation(summary: PairRecord, lineage: Gate) -> list[Sentence]:
    if is_rearranged(summary) or summary.recognised.scaled is not None:
        return not_in_place(summary)
    return [*_distance(lineage), *not_in_place(summary)]


def _distance(lineage: Gate) -> list[Sentence]:
    if lineage.passed or lineage.figure is None:
        return []
    figures = {"gates.lineage.figure": lineage.figure}
    cosine = f"median cosine {lineage.figure:.2f}".replace("-0.00", "0.00")
    if abs(lineage.figure) < UNRELATED:
        return [
            Sentence(
                "unrelated",
                f"Entry by entry, the two have nothing in common ({cosine}; a model and its base"
                " have nearly 1): unrelated, or one is the other rotated, reordered or moved.",
                figures,
            )
        ]
    text = (
        f"The two have less in common than a model and its base usually do ({cosine}). Read the"
        " figures with care."
    )
    return [Sentence("hardly_related", text, figures)]


def _part(paired: Gate, filtered: bool) -> list[Sentence]:
    if paired.figure is None or paired.figure >= 1.0:
        return []
    figures = {"gates.paired.figure": paired.figure}
    part = text_of(paired.figure, "fraction")
    if filtered:
        text = (
            f"Only a part of the model was asked for, with {part} of the parameters. The figures"
            " are of that part."
        )
        return [Sentence("part_asked_for", text, figures)]
    text = (
        f"The two share only {part} of the larger model's parameters. The figures are of that part."
    )
    return [Sentence("part_shared", text, figures)]


def _unread(formats: Gate) -> list[Sentence]:
    if formats.passed or formats.figure is None:
        return []
    text = (
        f"{text_of(formats.figure, 'share')} of the parameters are left out: `shadow` cannot read"
        " their format."
    )
    return [Sentence("unread_formats", text, {"gates.formats.figure": formats.figure})]
