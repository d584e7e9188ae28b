"""What comes before any figure: that these are not base and tuned, or that not all was compared."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from shadow.checks.pair_gates import Gate
from shadow.checks.recognised import is_rearranged
from shadow.checks.summary import Sentence
from shadow.quantities import text_of
from shadow.summary.record import PairRecord
from shadow.summary.rows import BrokenRow, UncomparedRow, VocabularyRow
from shadow.telling.known_changes import not_in_place
from shadow.telling.told import Told, tell
from shadow.telling.wording import NAMED, and_others, component_name, module_name, place_of

VECTORS_FURTHER = 3.0  # median relative norm of vectors over that of the matrices as a whole
UNRELATED = 0.1  # a median cosine below which two models have nothing in common
NO_LIMITS = {"identical", "files"}
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
    "identical": "{what} the same[: {names:and} {count|is|are} identical].",
    "tensors": "{identical:count weight tensor|weight tensors}[ of {component}]",
    "vectors_alike": "{vectors.compared:count bias or norm|biases and norms}",
    "vocabulary": "The vocabulary {how} {by:count row|rows}: {names:and} {have}"
    " {tuned_rows:count}, the base's {base_rows:count}. Only common rows are compared.",
    "unrelated": "Entry by entry, the two have nothing in common (median cosine {figure:fixed}; a"
    " model and its base have nearly 1): unrelated, or one is the other rotated, reordered or"
    " moved.",
    "hardly_related": "The two have less in common than a model and its base usually do (median"
    " cosine {figure:fixed}). Read the figures with care.",
    "part_asked_for": "Only a part of the model was asked for, with {figure:fraction} of the"
    " parameters. The figures are of that part.",
    "part_shared": "The two share only {figure:fraction} of the larger model's parameters. The"
    " figures are of that part.",
    "unread_formats": "{figure:share} of the parameters are left out: `shadow` cannot read their"
    " format.",
    "furthest": f"One vector changed far more than all others: {FURTHEST}.",
}
LEFT_OUT = {
    "only_in_base": "{names} (only in the base)",
    "only_in_tuned": "{names} (only in the tuned model)",
    # where layers have moved, they may be there all the same
    "only_in_base_moved": "{names} (the tuned model has none of that number)",
    "only_in_tuned_moved": "{names} (the base has none of that number)",
    "shape_differs": "{names} (other shapes[, {tuned} instead of {base}])",
}


def limits(summary: PairRecord, gates: Mapping[str, Gate], filtered: bool) -> list[Sentence]:
    """What comes before any figure: that these are not base and tuned, or not all of them."""
    changed, paired, formats = gates["changed"], gates["paired"], gates["formats"]
    broken = [_broken(summary, row) for row in summary.broken]
    if changed.figure is None:
        what = "a partner on the other side"
        if any(row.code == "nonfinite" for row in summary.broken):
            what = "a partner and finite numbers"
        asked = " that was asked for" if filtered else ""
        text = WORDS["nothing_compared"]
        return [*broken, tell(summary, "nothing_compared", text, asked=asked, what=what)]
    sentences = [*broken, *_relation(summary, gates["lineage"])]
    matters = filtered or not changed.passed or not paired.passed
    if matters and paired.figure is not None and paired.figure < 1.0:
        code = "part_asked_for" if filtered else "part_shared"
        sentences.append(tell(summary, code, WORDS[code], paired, "gates.paired"))
    if not formats.passed and formats.figure is not None:
        text = WORDS["unread_formats"]
        sentences.append(tell(summary, "unread_formats", text, formats, "gates.formats"))
    if comes_first(gates):
        sentences += not_compared(summary, filtered)
    if changed.passed:
        return sentences
    sentences = [sentence for sentence in sentences if sentence.code != "unrelated"]
    what = what_is_same(summary, [sentence.code for sentence in sentences], filtered)
    if summary.vectors.changed:
        sentences.append(_vectors(summary, "only_vectors", "Only vectors changed"))
    return [*sentences, _identical(summary, what)]


def what_is_same(summary: PairRecord, codes: Collection[str], filtered: bool) -> str:
    """What is identical, of a pair with sentences of these codes, each of which but NO_LIMITS says
    of something that it was not compared.
    """
    if summary.vectors.changed:
        return "Every matrix that was compared is"
    if filtered:
        return "What was asked for is"
    return "What could be compared is" if {*codes} - NO_LIMITS else "The weights are"


def comes_first(gates: Mapping[str, Gate]) -> bool:
    """Whether what was not compared matters so much that it comes before the size of the change."""
    return not gates["changed"].passed or not gates["paired"].passed


def not_compared(summary: PairRecord, filtered: bool) -> list[Sentence]:
    """Rows, modules and layers; what was not asked for is not missed."""
    return [*_vocabulary(summary), *([] if filtered else _left_out(summary))]


def _broken(summary: PairRecord, row: BrokenRow) -> Sentence:
    """Which tensors are broken, of which side and how, and whether that leaves them out."""
    side = "tuned model" if row.side == "tuned" else row.side
    code = "broken_and_left_out" if row.code == "nonfinite" else "broken"
    text, count = broken_text(summary, row), row.count
    return tell(summary, row.code, WORDS[code], side=side, text=text, count=count)


def broken_text(summary: PairRecord, row: BrokenRow) -> str:
    """`model.norm.weight and 2 more tensors are all zero`."""
    template = "{first}[ and {more:count more tensor|more tensors}] " + DAMAGE[row.code]
    first, more = row.tensors[0], row.count - 1 or None
    return Told(summary).fill(template, first=first, more=more, count=row.count)


def missing(summary: PairRecord) -> str:
    """What the tuned model lacks of the base, by name: `the head`; empty where it lacks nothing."""
    return _places_of(summary, [one for one in summary.uncompared if one.reason == "only_in_base"])


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
    for first, *others in groups.values():
        told, at = Told(summary), f"vocabulary.{first.component}.{first.module}"
        names = [module_name(row.module) for row in (first, *others)]
        told.fill("{added:count}", first, at)
        text = told.fill(
            WORDS["vocabulary"],
            first,
            at,
            how="grew by" if first.added > 0 else "lost",
            by=abs(first.added),
            names=names,
            have="has" if names == ["the head"] else "have",
        )
        sentences.append(told.sentence("vocabulary", text))
    return sentences


def _left_out(summary: PairRecord) -> list[Sentence]:
    """What has no partner, or another shape."""
    told, found = Told(summary), summary.recognised.rearranged
    groups: dict[tuple[str, tuple[str, str]], list[UncomparedRow]] = {}
    for reason in ("only_in_base", "only_in_tuned", "shape_differs"):
        for row in summary.uncompared:
            has_moved = row.module is None and found is not None and found.moved is not None
            code = f"{reason}_moved" if has_moved and reason != "shape_differs" else reason
            if row.reason == reason:
                groups.setdefault((code, _shapes(row)), []).append(row)
    if sum(code == "shape_differs" for code, _ in groups) > NAMED:
        every = [row for row in summary.uncompared if row.reason == "shape_differs"]
        groups = {key: rows for key, rows in groups.items() if key[0] != "shape_differs"}
        groups["shape_differs", ("", "")] = every
    texts = []
    for (code, (base, tuned)), rows in groups.items():
        names = _places_of(summary, rows)
        texts.append(told.fill(LEFT_OUT[code], names=names, base=base or None, tuned=tuned or None))
        if base and tuned:
            at = f"uncompared.{rows[0].component}.{rows[0].module}"
            for side in ("base_shape", "tuned_shape"):
                sizes = enumerate(getattr(rows[0], side))
                told.figures |= {f"{at}.{side}.{axis}": size for axis, size in sizes}
    return [told.sentence("left_out", f"Not compared: {'; '.join(texts)}.")] if texts else []


def _shapes(row: UncomparedRow) -> tuple[str, str]:
    """The two shapes of a tensor, `64 x 96`; empty where both are not known."""
    if row.reason != "shape_differs" or not row.base_shape or not row.tuned_shape:
        return "", ""
    base, tuned = (
        " x ".join(text_of(size, "count") for size in shape)
        for shape in (row.base_shape, row.tuned_shape)
    )
    return base, tuned


def _vectors(summary: PairRecord, code: str, what: str) -> Sentence:
    vectors = summary.vectors
    how = "by {vectors.relative_norm:share} of their norm in the median"
    if vectors.relative_norm is None:
        how = "which are 0 in the base"
    elif vectors.furthest is not None:
        how = FURTHEST
    return tell(summary, code, f"{{what}}: {MOVED}, {how}.", what=what)


def vectors(summary: PairRecord) -> list[Sentence]:
    """Biases and norms, where most moved and the median of all is far above the matrices' norm."""
    norm, matrices = summary.vectors.relative_norm_of_all, summary.figures.relative_norm_overall
    if norm is None or matrices is None:
        return []
    if (summary.vectors.furthest_norm or 0.0) > VECTORS_FURTHER * matrices:
        return [tell(summary, "vectors", WORDS["furthest"])]
    if norm < VECTORS_FURTHER * matrices:
        return []
    return [_vectors(summary, "vectors", "Vectors changed more than matrices")]


def _identical(summary: PairRecord, what: str) -> Sentence:
    """`30 weight tensors and 9 biases and norms are identical`: those of one side, as the other has
    the same once more; by component where there are several.
    """
    told, vectors = Told(summary), summary.vectors
    rows = [row for row in summary.components if row.identical]
    count, names = sum(row.identical for row in rows), []
    for row in rows:
        component = component_name(row.component) if len(rows) > 1 else None
        at = f"components.{row.component}"
        names.append(told.fill(WORDS["tensors"], row, at, component=component))
    if vectors.compared and not vectors.changed:
        names.append(told.fill(WORDS["vectors_alike"]))
        count += vectors.compared
    text = told.fill(WORDS["identical"], what=what, names=names or None, count=count)
    return told.sentence("identical", text)


def _relation(summary: PairRecord, lineage: Gate) -> list[Sentence]:
    """That the two are no base and tuned: unrelated, or at other places."""
    known = is_rearranged(summary) or summary.recognised.scaled is not None
    if known or lineage.passed or lineage.figure is None:
        return not_in_place(summary)
    code = "unrelated" if abs(lineage.figure) < UNRELATED else "hardly_related"
    first = tell(summary, code, WORDS[code], lineage, "gates.lineage")
    return [first, *not_in_place(summary)]
