"""Sentences of what no training does: copies, factors, zeros, layers at other numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from shadow.claims.draft import Draft, Sentence
from shadow.claims.recognised import recognised
from shadow.quantities import FORMS
from shadow.summary.changes import CHANGES, Casts, FewRowsRow, MovedLayers, MovedRow
from shadow.summary.record import PairRecord
from shadow.telling.wording import (
    NAMED,
    and_others,
    factor,
    layers_of,
    layers_text,
    place_of,
    places_of,
    vectors_moved,
)
from shadow.text import and_list, counted

VECTORS_FURTHER = 3.0  # median relative norm of vectors over that of the matrices as a whole
FIRST = ("layers_moved", "not_comparable")  # codes that stand before the size of a change
LATER = "few_rows"  # the code that stands after it
# {share:share}, {matrices:count matrix|matrices}, {places}
TEXTS: Mapping[str, Callable[[float], str]] = {**dict[Any, Any](FORMS), "factor": factor}
SLOT = re.compile(r"\{(\w+)(?::(\w+)(?: ([^|{}]*)\|([^{}]*))?)?\}")


def known_changes(summary: PairRecord) -> list[Sentence]:
    """Sentences of the recognised changes that stand before the size."""
    holds = {*recognised(summary)} - {*FIRST, LATER}
    return _sentences(summary, holds & {"copy", "mostly_copy"} or holds)  # else it is of rounding


def not_in_place(summary: PairRecord) -> list[Sentence]:
    """Sentences of what a comparison place by place does not find."""
    return _sentences(summary, FIRST)


def few_rows(summary: PairRecord) -> list[Sentence]:
    """Embeddings of which only a few rows changed."""
    return _sentences(summary, {LATER})


def _sentences(summary: PairRecord, codes: Collection[str]) -> list[Sentence]:
    told = []
    for one in CHANGES:
        found = one.figures(summary.recognised)
        if one.code not in codes or found is None:
            continue
        for figures in found if isinstance(found, list) else [found]:
            draft, place = Draft(summary), one.place
            if isinstance(figures, FewRowsRow):
                place = f"{place}.{figures.component}.{figures.module}"
            if isinstance(figures, Casts):
                told.append(_copy(draft, figures))
            elif isinstance(figures, MovedLayers):
                told.append(Sentence(one.code, _moved(summary, figures), {}))
            else:
                told.append(draft.sentence(one.code, filled(draft, one.text, place, figures)))
    return told


def filled(draft: Draft, text: str, place: str, figures: Any) -> str:
    """A template with its figures, which the draft notes."""

    def slot(match: re.Match[str]) -> str:
        name, kind, one, many = match.groups()
        if name == "places":
            return places_of(draft.summary, figures.rows)
        value = getattr(figures, name)
        told = draft.write(value, f"recognised.{place}.{name}", TEXTS[kind])
        return told if one is None else f"{told} {one if value == 1 else many}"

    return SLOT.sub(slot, text)


def _copy(draft: Draft, casts: Casts) -> Sentence:
    """What is no copy comes first."""
    count = draft.write(casts.tensors, "recognised.casts.tensors", "count")
    if casts.beside:
        beside = draft.write(casts.beside, "recognised.casts.beside", "count")
        text = (
            f"{beside} {'tensor' if beside == '1' else 'tensors'} changed by more than rounding:"
            f" {beside_a_copy(draft)}. In the other {count} that changed, {_cast_to(draft)}."
        )
        return draft.sentence("mostly_copy", text)
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


def beside_a_copy(draft: Draft) -> str:
    """`the head by 10 % and norms of layers 0 to 3 by 30 %`: what changed by more than a cast."""
    casts, components = draft.summary.recognised.casts, draft.summary.has_components
    named = []
    rows = list(enumerate(casts.rows if casts else []))
    for at, row in sorted(rows, key=lambda one: -(one[1].relative_norm or 0.0)):
        name = place_of(row.component, row.module, row.layers, components)
        if row.relative_norm is not None:
            most = " at most" if row.tensors > 1 else ""
            place = f"recognised.casts.rows.{at}.relative_norm"
            name = f"{name} by {draft.write(row.relative_norm, place, 'share')}{most}"
        named.append(name)
    return and_others(named)


def _moved(summary: PairRecord, moved: MovedLayers) -> str:
    """`Byte for byte, layers 3 to 9 are the base's layers 4 to 10. ...`"""
    told = [
        f"{layers_of(row.component, _span(row.first_layer, row), summary.has_components)}"
        f" {'is' if row.first_layer == row.last_layer else 'are'} the base's"
        f" {layers_text(_span(row.base_first, row))}"
        for row in moved.rows[: 2 * NAMED]
    ]
    if more := len(moved.rows) - len(told):
        told.append(f"{counted(more, 'stretch', 'stretches')} more of layers have moved")
    return (
        f"Byte for byte, {and_list(told)}. The figures compare layers of the same number, so those"
        " of moved layers describe no change."
    )


def _span(first: int, row: MovedRow) -> range:
    return range(first, first + row.last_layer - row.first_layer + 1)


def not_in_place_headline(summary: PairRecord) -> str:
    """The headline of a pair that a comparison place by place does not show."""
    found = summary.recognised.rearranged
    if found is not None and found.moved is not None:
        return "The base with layers at other numbers."
    return "Not comparable entry by entry: rotated, reordered or another model."


def vectors(summary: PairRecord) -> list[Sentence]:
    """Biases and norms, where most moved and the median of all is far above the matrices' norm."""
    norm, matrices = summary.vectors.relative_norm_of_all, summary.figures.relative_norm_overall
    if norm is None or matrices is None or norm < VECTORS_FURTHER * matrices:
        return []
    draft = Draft(summary)
    text = f"Vectors changed more than matrices: {vectors_moved(draft)}."
    return [draft.sentence("vectors", text)]
