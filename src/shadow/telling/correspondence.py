"""Sentences of parts that correspond, but not by number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from shadow.summary.record import MatchedRows, OtherLayer, PairRecord, UnitNumbers, UnitRun
from shadow.telling.context import Context
from shadow.telling.document import Cell, TableBlock, named, worded
from shadow.telling.wording import (
    Recorded,
    and_others,
    capital,
    component_name,
    layers_of,
    module_name,
    numbers_text,
)
from shadow.text import and_list, several

NAMED = 4  # clauses of a sentence
TITLE = "What corresponds"
MOST_ROWS = 60  # of the table
WAYS = {
    "content": "equal entries",
    "likeness": "their likeness",
    "token": "the text of their tokens",
}
IN_FRONT = (
    "{in_front:count row was|rows were} put in front of the vocabulary ({names:and}); the base's"
    " {base_rows:count} rows follow, by {how}."
)
SOME_ROWS = (
    "In the vocabulary ({names:and}), {least}{rows/tuned_rows:all row|rows} {rows|is|are} of the"
    " base's {base_rows:count}, some at other numbers, by {how}[; {dropped:count row|rows} of the"
    " base {dropped|is|are} gone][; {added:count row|rows} {added|is|are} new]."
)
KINDS = ("layers", "matrices", "experts", "rows")


def kinds_moved(context: Context) -> list[str]:
    """The kinds of parts that have other numbers than in the base."""
    moved = context.summary.correspondence
    return [kind for kind in KINDS if getattr(moved, kind, None)]


def moved_in_brief(context: Context) -> str:
    """`layers 1 and 2 exchanged`, `layers and rows at other numbers`; empty if no part is."""
    kinds = kinds_moved(context)
    moved = context.summary.correspondence
    units = [] if moved is None else [*moved.layers, *moved.experts]
    if len(kinds) == len(units) == 1 and _are_exchanged(units[0]):
        first, second = [_numbers(run)[0] for run in units[0].runs]
        place = _place(units[0], context.summary)
        of_place = f" of {place}" if place else ""
        return f"{kinds[0]} {first} and {second}{of_place} exchanged"
    return f"{and_list(kinds)} at other numbers" if kinds else ""


def _are_exchanged(units: UnitNumbers) -> bool:
    """True if two runs have changed places, and nothing more."""
    if len(units.runs) != 2 or units.missing or units.new:
        return False
    first, second = units.runs
    return first.base_first == second.first and second.base_first == first.first


def moved_text(kind: str, context: Context, recorded: Recorded) -> str:
    """Say what of a kind has other numbers, and how that was found."""
    moved = context.summary.correspondence
    assert moved is not None, "something has another number"
    if kind == "rows":
        return _rows(moved.rows, recorded)
    if kind == "matrices":
        return _matrices(moved.matrices, context)
    rows = moved.layers if kind == "layers" else moved.experts
    return " ".join(_units(kind.removesuffix("s"), row, context) for row in rows)


def _units(word: str, row: UnitNumbers, context: Context) -> str:
    """`Layer 1 of the base is missing; layers 1 to 10 are the base's 2 to 11, by equal entries.`"""
    clauses = []
    if row.missing:
        clauses.append(_clause(f"the base's {word}", numbers_text(row.missing), "missing"))
    if row.new:
        clauses.append(_clause(word, numbers_text(row.new), "new"))
    highest = -1
    for run in row.runs:
        own, of_base = _numbers(run)
        also = "also " if run.first <= highest else ""
        clauses.append(_clause(word, own, f"{also}the base's {of_base}"))
        highest = max(highest, run.last)
    place = _place(row, context.summary)
    return _sentence(clauses, row.by, f"in {place}, " if place else "")


def _place(row: UnitNumbers, summary: PairRecord) -> str:
    """`layers 0 to 3`, of experts; the component of layers, if there are several."""
    if row.layers:
        return layers_of(row.component, row.layers, summary.has_components)
    return component_name(row.component) if summary.has_components else ""


def _numbers(run: UnitRun) -> list[str]:
    """`3 to 4` and `7 to 8`: its units, and those of the base. Ends alone, as a hostile number
    would make too long a range.
    """
    last = run.base_number(run.last)
    return [
        f"{start} to {end}" if end > start else f"{start}"
        for start, end in ((run.first, run.last), (run.base_first, last))
    ]


def _clause(word: str, numbers: str, what: str) -> str:
    """`layers 1 and 4 are new`."""
    is_one = numbers.isdecimal()
    return f"{word} {numbers} is {what}" if is_one else f"{word}s {numbers} are {what}"


def _sentence(clauses: Sequence[str], ways: Iterable[str], start: str = "") -> str:
    how = " and ".join(dict.fromkeys(WAYS[way] for way in ways if way in WAYS))
    text = capital(start + several(clauses, NAMED, "; "))
    return f"{text}, by {how}." if how else f"{text}."


def _matrices(matrices: Sequence[OtherLayer], context: Context) -> str:
    """`Of layer 1, attn.q and attn.k are those of the base's layer 0, by equal entries.`"""
    clauses = []
    for row in matrices:
        modules = and_others([module_name(module) for module in row.modules])
        layer = layers_of(row.component, [row.layer], context.summary.has_components)
        verb = "is that" if len(row.modules) == 1 else "are those"
        clauses.append(f"of {layer}, {modules} {verb} of the base's layer {row.base_layer}")
    return _sentence(clauses, [row.by for row in matrices])


def _rows(matched: Sequence[MatchedRows], recorded: Recorded) -> str:
    """`8 rows were put in front of the vocabulary (the embeddings and the head).`"""
    groups = defaultdict[tuple[object, ...], list[MatchedRows]](list)
    for row in matched:
        groups[row.rows, row.tuned_rows, row.base_rows, row.in_front, row.by].append(row)
    texts = []
    for rows in groups.values():
        first = rows[0]
        words = IN_FRONT if first.in_front else SOME_ROWS
        least = _least(first)
        place = f"correspondence.rows.{first.module}"
        names = [module_name(row.module) for row in rows]
        text = recorded.fill(
            words,
            row=first,
            place=place,
            names=names,
            how=WAYS.get(first.by, "number"),
            least=least,
            dropped=None if least else first.base_rows - first.rows or None,
            added=None if least else first.tuned_rows - first.rows or None,
        )
        texts.append(text)
    return " ".join(texts)


def _least(row: MatchedRows) -> str:
    """`at least `, where rows of both sides are without a partner: some may have one."""
    is_whole = row.rows in (row.base_rows, row.tuned_rows)
    return "" if is_whole else "at least "


# ------------------------------------------------------------------------------------- as a table


FIELDS = (named("part"), worded("tuned"), worded("base"), worded("matched by"))


def partners_table(summary: PairRecord) -> TableBlock | None:
    """Make a row for each run of parts that have other numbers in the base; None without any."""
    moved = summary.correspondence
    if moved is None:
        return None
    rows: list[list[Cell]] = []
    for kind in ("layers", "experts"):
        for units in getattr(moved, kind):
            part = " of ".join(filter(None, (kind, _place(units, summary))))
            for run in units.runs:
                rows.append([part, *_numbers(run), " and ".join(units.by)])
    for others in moved.matrices:
        part = and_others([module_name(module) for module in others.modules])
        rows.append([part, f"layer {others.layer}", f"layer {others.base_layer}", others.by])
    for matched in moved.rows:
        part = f"rows of {module_name(matched.module)}"
        count = f"{_least(matched)}{matched.rows:,} of"
        own = f"{count} {matched.tuned_rows:,}"
        rows.append([part, own, f"{count} {matched.base_rows:,}", matched.by])
    if len(rows) > MOST_ROWS:
        rows = [*rows[:MOST_ROWS], [f"{len(rows) - MOST_ROWS:,} more", None, None, None]]
    return TableBlock(FIELDS, rows, TITLE, when="full", about="partners") if rows else None
