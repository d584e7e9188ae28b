"""Commands that look something up: families, columns, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from shadow.cli import completion, console
from shadow.cli import options as option
from shadow.errors import UsageError
from shadow.gone import gone_word
from shadow.text import VERY_LIKE, nearest, several

if TYPE_CHECKING:
    from shadow.reports.columns import Column
    from shadow.telling.document import Document


def families(
    word: Annotated[
        str | None,
        typer.Argument(
            help="Name of a family to show, or a word to filter names, checkpoints and tags.",
            metavar="NAME|WORD",
            autocompletion=completion.families,
        ),
    ] = None,
    component: Annotated[
        str | None,
        typer.Option(help="Only families that have this component: vision, projector, audio."),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(
            help="Only families with this tag; repeat it for families with all of several tags."
        ),
    ] = None,
    format: option.Format = "table",
    json: option.Json = False,
    registry: option.Registry = None,
) -> None:
    """List the families of the registry, or show one."""
    as_json = json or format == "json"
    from shadow.targets.families import filter_families, load_families

    if component is not None:
        from shadow.places.names import check_component

        check_component(component)
    chosen = filter_families(
        load_families(registry), word=word, component=component, tags=tag or ()
    )
    if as_json:
        console.show_json([family.as_json() for family in chosen])
        return
    from shadow.telling.families import families_document, family_document

    if len(chosen) == 1 and chosen[0].name == word:
        console.show(family_document(chosen[0]))
    else:
        console.show(families_document(chosen))


def explain(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help=(
                "A column or figure of a report, the head of a table or another word on the screen,"
                " `label`, `finding`, `published` or `gates`; without it, list all."
            ),
            metavar="WORD",
            autocompletion=completion.words,
        ),
    ] = None,
    every: Annotated[
        bool,
        typer.Option("--all", help="Show the schema of report files: every table and column."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="With --all: print JSON.")] = False,
) -> None:
    """Explain a column: formula, range, null value, source, pitfalls. With --all, every table."""
    if every or json:
        _explain_all(words, every=every, json=json)
        return
    from shadow.reports.columns import (
        BATCH,
        COUNTS,
        FIGURES,
        MATRICES,
        SCORES,
        SPECTRA,
        TABLES,
        TENSORS,
    )
    from shadow.reports.words import HEADS, terms
    from shadow.telling.dictionary import columns_document, notation_document

    # of columns with one name, that of matrices.parquet is meant
    columns = {
        column.name: column
        for column in (*BATCH, *COUNTS, *SCORES, *FIGURES, *SPECTRA, *TENSORS, *MATRICES)
    }
    word = " ".join(words or ())
    if not word:
        every_column = tuple(dict.fromkeys((*MATRICES, *columns.values())))
        console.show(columns_document(every_column))
        return
    from shadow.telling.words import other_words

    all_columns = [column for table in TABLES.values() for column in table.columns]
    columns = {column.name: column for column in (*all_columns, *columns.values())}
    found = _explained(word, columns)
    single = [_explained(one, columns) for one in words or ()]
    if not found and all(single):
        found = [one for documents in single for one in documents]
    if not found:
        if error := gone_word(word):
            raise error
        known = [*columns, *HEADS, *completion.TOPICS, *other_words(), *terms()]
        hint = _with_words_of(word, known) or nearest(word, known, VERY_LIKE)
        hint = hint or "`shadow explain` lists every column"
        raise UsageError(f"no column or word {word!r}", hint)
    for document, _ in found:
        console.show(document)
    shown = [column for _, column in found if column is not None]
    if (notation := notation_document(shown)) is not None:
        console.show(notation)


def _explain_all(words: Sequence[str] | None, *, every: bool, json: bool) -> None:
    if words or not every:
        raise UsageError("--all shows every table, and --json goes with it", "leave the word out")
    from shadow.reports.columns import TABLES

    if json:
        from shadow.reports.schema import schema_json

        console.show_json(schema_json(TABLES.values()))
        return
    from shadow.telling.dictionary import schema_document, table_document

    console.show(schema_document(list(TABLES.values())))
    for table in TABLES.values():
        console.show(table_document(table))


def _with_words_of(word: str, known: Sequence[str]) -> str | None:
    """The known words that hold all of several, in any order; None where none does."""
    parts = word.lower().replace("_", " ").split()
    found = [name for name in known if all(part in name.lower() for part in parts)]
    if len(parts) < 2 or not found:
        return None
    return f"did you mean {several([repr(name) for name in dict.fromkeys(found)], 3)}?"


def _explained(word: str, columns: Mapping[str, Column]) -> list[tuple[Document, Column | None]]:
    """All that a word stands for, the most specific first: topic, head of a table, column, other;
    each with the column that it shows.

    A space stands for an underscore in the name of a column, and a name with points for a figure
    of summary.json. Empty where the word is not known.
    """
    from shadow.reports.schema import FILES
    from shadow.reports.words import Head, head_of, meaning_of
    from shadow.telling.dictionary import column_document, word_document
    from shadow.telling.words import other_words

    if word in completion.TOPICS:
        return [(_topic(word), None)]
    name = word if word in columns else "_".join(word.split()).lower()
    column = columns.get(name)
    found: list[tuple[Document, Column | None]] = []
    if (head := head_of(word)) is not None:
        of_head = columns.get(head.column)
        found.append((word_document(word, head, of_head), of_head))
        if column is not None and head.column != name:
            found.append((column_document(column), column))
    elif column is not None:
        found.append((column_document(column), column))
    other = other_words().get(word.lower())
    if other is not None and (head is None or not other.column):
        of_other = None if other.column == name else columns.get(other.column)
        found.append((word_document(word, other, of_other), of_other))
    text = meaning_of(word)
    if text is not None and not any(shown for _, shown in found):
        found.insert(0, (word_document(word, Head(text), None), None))
    key, point, rest = word.partition(".")
    if not found and point and (of_key := FILES["summary.json"].get(key)) is not None:
        found.append((word_document(f"{key} in summary.json", Head(of_key), None), None))
        found += _explained(rest.rpartition(".")[2], columns)
    return found


def _topic(word: str) -> Document:
    from shadow.telling import dictionary

    return dictionary.gates_document() if word == "gates" else dictionary.finding_document()
