"""Sentences of what corresponds by something else than its number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from shadow.summary.record import (
    ExpertsRow,
    LayerRun,
    MatchedRows,
    OtherLayer,
    PairRecord,
)
from shadow.telling.context import Context
from shadow.telling.wording import (
    Recorded,
    and_others,
    capital,
    layers_of,
    layers_text,
    module_name,
    numbers_text,
)
from shadow.text import several

NAMED = 4  # runs of layers, or groups of matrices, that a sentence names
WAYS = {"content": "equal entries", "likeness": "their likeness", "token": "the text of tokens"}
IN_FRONT = (
    "{in_front:count row was|rows were} put in front of the vocabulary ({names:and}); the base's"
    " {base_rows:count} rows follow, compared by {how}."
)
SOME_ROWS = (
    "{rows:count} of {tuned_rows:count} rows of the vocabulary ({names:and}) are rows of the base"
    " at other numbers, by {how}; the base has {base_rows:count}."
)


def _ways(rows: Sequence[LayerRun] | Sequence[ExpertsRow] | Sequence[OtherLayer]) -> str:
    """How units were found to correspond."""
    ways = [WAYS[row.by] for row in rows if row.by in WAYS]
    return " and ".join(dict.fromkeys(ways))


def has_moved_layers(context: Context) -> bool:
    found = context.summary.correspondence
    return found is not None and bool(found.layers or found.missing)


def moved_layers(context: Context, recorded: Recorded) -> str:
    """`Layer 1 of the base is missing. Layers 1 to 10 are the base's 2 to 11, by equal entries.`"""
    summary = context.summary
    found = summary.correspondence
    assert found is not None, "layers have moved"
    texts = []
    for row in found.missing:
        name = capital(layers_of(row.component, row.layers, summary.has_components))
        texts.append(f"{name} of the base {'is' if len(row.layers) == 1 else 'are'} missing.")
    runs = []
    for run in found.layers:
        if run.base_first is None:
            name = capital(_layers_of_run(summary, run))
            is_one = run.first_layer == run.last_layer
            texts.append(f"{name} {'is' if is_one else 'are'} new.")
        else:
            end = run.base_first + run.last_layer - run.first_layer
            there = numbers_text(range(run.base_first, end + 1))
            is_one = run.first_layer == run.last_layer
            verb = "is" if is_one else "are"
            runs.append(f"{_layers_of_run(summary, run)} {verb} the base's {there}")
    if runs:
        named = several(runs, NAMED, "; ")
        texts.append(f"{capital(named)}, by {_ways(found.layers)}.")
    return " ".join(texts)


def _layers_of_run(summary: PairRecord, run: LayerRun) -> str:
    layers = range(run.first_layer, run.last_layer + 1)
    return layers_of(run.component, layers, summary.has_components)


def has_moved_experts(context: Context) -> bool:
    found = context.summary.correspondence
    return found is not None and bool(found.experts)


def moved_experts(context: Context, recorded: Recorded) -> str:
    """`In layers 0 to 3, experts 1 and 4 of the base are missing, and 5 experts have other numbers,
    by equal entries.`
    """
    found = context.summary.correspondence
    assert found is not None, "experts have moved"
    texts = []
    for row in found.experts:
        clauses = []
        if row.missing:
            word, verb = ("expert", "is") if len(row.missing) == 1 else ("experts", "are")
            clauses.append(f"{word} {numbers_text(row.missing)} of the base {verb} missing")
        if row.new:
            word, verb = ("expert", "is") if len(row.new) == 1 else ("experts", "are")
            clauses.append(f"{word} {numbers_text(row.new)} {verb} new")
        if row.moved:
            words = (
                "{moved:count} of {experts:count} experts"
                " {moved|has another number|have other numbers}"
            )
            clauses.append(recorded.fill(words, row=row, place="correspondence.experts"))
        name = layers_of(row.component, row.layers, context.summary.has_components)
        texts.append(f"in {name}, {' and '.join(clauses)}")
    by = _ways(found.experts)
    how = f", by {by}" if by else ""
    return f"{capital(several(texts, NAMED, '; '))}{how}."


def has_moved_rows(context: Context) -> bool:
    found = context.summary.correspondence
    return found is not None and bool(found.rows)


def moved_rows(context: Context, recorded: Recorded) -> str:
    """`8 rows were put in front of the vocabulary (the embeddings and the head).`"""
    found = context.summary.correspondence
    assert found is not None, "rows have moved"
    groups = defaultdict[tuple[object, ...], list[MatchedRows]](list)
    for row in found.rows:
        groups[row.rows, row.tuned_rows, row.base_rows, row.in_front, row.by].append(row)
    texts = []
    for rows in groups.values():
        first = rows[0]
        names = [module_name(row.module) for row in rows]
        words = IN_FRONT if first.in_front else SOME_ROWS
        place = f"correspondence.rows.{first.module}"
        how = WAYS.get(first.by, "number")
        texts.append(recorded.fill(words, row=first, place=place, names=names, how=how))
    return " ".join(texts)


def has_moved_matrices(context: Context) -> bool:
    found = context.summary.correspondence
    return found is not None and bool(found.matrices)


def moved_matrices(context: Context, recorded: Recorded) -> str:
    """`attn.q and attn.k of layer 1 are those of the base's layer 0, by equal entries.`"""
    found = context.summary.correspondence
    assert found is not None, "matrices have moved"
    texts = []
    for row in found.matrices:
        modules = and_others([module_name(module) for module in row.modules])
        layer = layers_of(row.component, [row.layer], context.summary.has_components)
        verb = "is that" if len(row.modules) == 1 else "are those"
        there = layers_text([row.base_layer])
        texts.append(f"{modules} of {layer} {verb} of the base's {there}")
    return f"{capital(several(texts, NAMED, '; '))}, by {_ways(found.matrices)}."


MOVED: dict[str, tuple[Callable[[Context], bool], Callable[[Context, Recorded], str]]] = {
    "layers_moved": (has_moved_layers, moved_layers),
    "matrices_moved": (has_moved_matrices, moved_matrices),
    "experts_moved": (has_moved_experts, moved_experts),
    "rows_moved": (has_moved_rows, moved_rows),
}
"""By the code of a sentence, when it is true and its words."""


def kinds_moved(context: Context) -> list[str]:
    """What has other numbers than in the base: `layers`, `matrices`, `experts`, `rows`."""
    return [code.partition("_")[0] for code, (is_true, _) in MOVED.items() if is_true(context)]
