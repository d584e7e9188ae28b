"""Sentences of parts that correspond, but not by number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from shadow.summary.record import Correspondence, MatchedRows, UnitNumbers
from shadow.telling.context import Context
from shadow.telling.wording import (
    Recorded,
    and_others,
    capital,
    component_name,
    layers_of,
    module_name,
    numbers_text,
)
from shadow.text import several

NAMED = 4  # clauses of a sentence
WAYS = {"content": "equal entries", "likeness": "their likeness"}
IN_FRONT = (
    "{in_front:count row was|rows were} put in front of the vocabulary ({names:and}); the base's"
    " {base_rows:count} rows follow, by {how}."
)
SOME_ROWS = (
    "In the vocabulary ({names:and}), {rows/tuned_rows:all row|rows} {rows|is|are} of the base's"
    " {base_rows:count}, at other numbers, by {how}."
)
KINDS = ("layers", "matrices", "experts", "rows")


def kinds_moved(context: Context) -> list[str]:
    """The kinds of parts that have other numbers than in the base."""
    found = context.summary.correspondence
    return [kind for kind in KINDS if found is not None and getattr(found, kind)]


def moved_text(kind: str, context: Context, recorded: Recorded) -> str:
    """Say what of a kind has other numbers, and how that was found."""
    found = context.summary.correspondence
    assert found is not None, "something has another number"
    if kind == "rows":
        return _rows(found.rows, recorded)
    if kind == "matrices":
        return _matrices(found, context)
    rows = found.layers if kind == "layers" else found.experts
    return " ".join(_units(kind.removesuffix("s"), row, context) for row in rows)


def _units(word: str, row: UnitNumbers, context: Context) -> str:
    """`Layer 1 of the base is missing; layers 1 to 10 are the base's 2 to 11, by equal entries.`"""
    has_components = context.summary.has_components
    clauses = []
    if row.missing:
        clauses.append(_clause(f"the base's {word}", row.missing, "missing"))
    if row.new:
        clauses.append(_clause(word, row.new, "new"))
    for run in row.runs:
        ends = sorted({run.first, run.last})
        there = " to ".join(str(number + run.base_first - run.first) for number in ends)
        clauses.append(_clause(word, ends, f"the base's {there}", joint=" to "))
    place = component_name(row.component) if has_components else ""
    if row.layers:
        place = layers_of(row.component, row.layers, has_components)
    return _sentence(clauses, row.by, f"in {place}, " if place else "")


def _clause(word: str, numbers: Sequence[int], what: str, joint: str = "") -> str:
    """`layers 1 and 4 are new`. joint: between the ends of a run, which a hostile number would make
    too long for a range.
    """
    named = joint.join(map(str, numbers)) if joint else numbers_text(numbers)
    is_one = len(numbers) == 1
    return f"{word} {named} is {what}" if is_one else f"{word}s {named} are {what}"


def _sentence(clauses: Sequence[str], ways: Iterable[str], start: str = "") -> str:
    how = " and ".join(dict.fromkeys(WAYS[way] for way in ways if way in WAYS))
    text = capital(start + several(clauses, NAMED, "; "))
    return f"{text}, by {how}." if how else f"{text}."


def _matrices(found: Correspondence, context: Context) -> str:
    """`Of layer 1, attn.q and attn.k are those of the base's layer 0, by equal entries.`"""
    clauses = []
    for row in found.matrices:
        modules = and_others([module_name(module) for module in row.modules])
        layer = layers_of(row.component, [row.layer], context.summary.has_components)
        verb = "is that" if len(row.modules) == 1 else "are those"
        clauses.append(f"of {layer}, {modules} {verb} of the base's layer {row.base_layer}")
    return _sentence(clauses, [row.by for row in found.matrices])


def _rows(found: Sequence[MatchedRows], recorded: Recorded) -> str:
    """`8 rows were put in front of the vocabulary (the embeddings and the head).`"""
    groups = defaultdict[tuple[object, ...], list[MatchedRows]](list)
    for row in found:
        groups[row.rows, row.tuned_rows, row.base_rows, row.in_front, row.by].append(row)
    texts = []
    for rows in groups.values():
        first = rows[0]
        words = IN_FRONT if first.in_front else SOME_ROWS
        place = f"correspondence.rows.{first.module}"
        names = [module_name(row.module) for row in rows]
        how = WAYS.get(first.by, "number")
        texts.append(recorded.fill(words, row=first, place=place, names=names, how=how))
    return " ".join(texts)
