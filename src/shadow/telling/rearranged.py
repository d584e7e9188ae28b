"""The base's own matrices in other layers, negated or in another order: sentences and headline."""

from __future__ import annotations

from collections.abc import Sequence

from shadow.claims.draft import Draft, Sentence
from shadow.summary.record import PairRecord
from shadow.summary.rows import LayersRow, MovedLayers, MovedRow, RearrangedModules
from shadow.telling.wording import NAMED, layers_of, layers_text, places_of
from shadow.text import and_list, counted

PLACE = "recognised.rearranged"


def rearranged(summary: PairRecord) -> list[Sentence]:
    """What is the base's own, and where a comparison place by place does not find it."""
    found = summary.recognised.rearranged
    if found is None:
        return []
    sentences = []
    if found.moved is not None:
        text = (
            f"{_moved(summary, found.moved)}. The figures compare layers of the same number, so"
            " those of moved layers describe no change."
        )
        sentences.append(Sentence("layers_moved", text, {}))
    if found.negated is not None:
        sentences.append(_modules(summary, "negated", found.negated, "with the opposite sign"))
    if found.reordered is not None:
        how = "with rows or columns in another order, as after neurons were permuted"
        sentences.append(_modules(summary, "reordered", found.reordered, how))
    return sentences


def _moved(summary: PairRecord, moved: MovedLayers) -> str:
    """`By their content, layers 3 to 9 are the base's layers 4 to 10: its layer 3 is missing`."""
    several = summary.has_components
    told = [
        f"{layers_of(row.component, _span(row.first_layer, row), several)} {_are(row)} the base's"
        f" {layers_text(_span(row.base_first, row))}"
        for row in moved.rows[: 2 * NAMED]
    ]
    if more := len(moved.rows) - len(told):
        told.append(f"{counted(more, 'stretch', 'stretches')} more of layers have moved")
    ends = [f"its {text} missing" for text in _with_verb(moved.missing, several)]
    ends += [f"{text} new" for text in _with_verb(moved.new, several)]
    return f"By their content, {and_list(told)}{': ' if ends else ''}{and_list(ends)}"


def _span(first: int, row: MovedRow) -> range:
    return range(first, first + row.last_layer - row.first_layer + 1)


def _are(row: MovedRow) -> str:
    return "is" if row.first_layer == row.last_layer else "are"


def _with_verb(rows: Sequence[LayersRow], several: bool) -> list[str]:
    """`layer 3 is`, `layers 3 and 4 are`."""
    return [
        f"{layers_of(row.component, row.layers, several)} {'is' if len(row.layers) == 1 else 'are'}"
        for row in rows
    ]


def _modules(summary: PairRecord, code: str, found: RearrangedModules, how: str) -> Sentence:
    draft = Draft(summary)
    count = draft.write(found.matrices, f"{PLACE}.{code}.matrices", "count")
    noun = "matrix is" if found.matrices == 1 else "matrices are"
    text = f"{count} {noun} the base's {how}, up to some training:"
    text += f" {places_of(summary, found.rows)}."
    text += " The figures compare entry by entry, so those of these matrices describe no change."
    return draft.sentence(code, text)


def rearranged_headline(summary: PairRecord) -> str:
    """What was done to the base, in a line, where a comparison place by place shows no change."""
    found = summary.recognised.rearranged
    assert found is not None, "is_rearranged"
    if found.moved is not None:
        ends = [f"without {text}" for text in _layers(found.moved.missing, "its ")]
        ends += [f"with {text} new" for text in _layers(found.moved.new, "")]
        return f"The base {and_list(ends) or 'with its layers in other places'}."
    parts = [
        f"{counted(kind.matrices, 'matrix', 'matrices')} {how}"
        for kind, how in ((found.negated, "negated"), (found.reordered, "in another order"))
        if kind is not None
    ]
    return f"The base with {and_list(parts)}."


def _layers(rows: Sequence[LayersRow], whose: str) -> list[str]:
    return [f"{whose}{layers_text(row.layers)}" for row in rows[:1]]


def rearranged_kind(summary: PairRecord) -> str:
    """Part of a headline: what a few of the matrices are; empty where there are none."""
    found = summary.recognised.rearranged
    if found is None:
        return ""
    if found.negated is not None:
        return f"with {counted(found.negated.matrices, 'matrix', 'matrices')} negated"
    if found.reordered is not None:
        return f"with {counted(found.reordered.matrices, 'matrix', 'matrices')} in another order"
    return ""
