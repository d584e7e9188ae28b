"""Commands that look something up: families, columns, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.cli import console
from shadow.cli import options as shared
from shadow.errors import UsageError
from shadow.gone import gone_word
from shadow.options import ARGUMENT, option
from shadow.text import VERY_LIKE, nearest

if TYPE_CHECKING:
    from shadow.reports.columns import Column
    from shadow.telling.document import Document


def families(
    word: str | None = option(
        "Name of a family to show, or a word to filter names, checkpoints and tags.",
        None,
        ARGUMENT,
        metavar="NAME|WORD",
        complete="families",
    ),
    component: str | None = option(
        "Only families that have this component: vision, projector, audio."
    ),
    tag: Sequence[str] = option(
        "Only families with this tag; repeat it for families with all of several tags.", ()
    ),
    format: shared.Format = shared.FORMAT,
    registry: Path | None = shared.REGISTRY,
) -> None:
    """List the families of the registry, or show one."""
    from shadow.targets.families import filter_families, load_families

    if component is not None:
        from shadow.places.names import check_component

        check_component(component)
    chosen = filter_families(load_families(registry), word=word, component=component, tags=tag)
    if format == "json":
        console.show_json([family.as_json() for family in chosen])
        return
    from shadow.telling.families import families_document, family_document

    if len(chosen) == 1 and chosen[0].name == word:
        console.show(family_document(chosen[0]))
    else:
        console.show(families_document(chosen))


def explain(
    words: Sequence[str] = option(
        "A column or figure of a report, the head of a table or another word on the screen,"
        " `finding` or `gates`; without it, list all.",
        (),
        ARGUMENT,
        metavar="WORD",
        complete="words",
    ),
    every: bool = option(
        "Show the schema of report files: every table and column.", False, "--all"
    ),
    format: shared.Format = option(
        "With --all: table, or json (short: --json).", "table", metavar="FORMAT"
    ),
) -> None:
    """Explain a column or another word of a report. Of a column that is its formula, range, null
    value, source and pitfalls. With --all, every table.
    """
    from shadow.reports.columns import TABLES
    from shadow.telling.dictionary import columns_document, notation_document

    if every or format != "table":
        if words or not every:
            hint = "leave the word out"
            raise UsageError("--all shows every table, and --json goes with it", hint)
        _explain_all(as_json=format == "json")
        return
    columns: dict[str, Column] = {}
    for table in TABLES.values():
        for column in table.columns:
            columns.setdefault(column.name, column)  # of one name, that of matrices.parquet
    if not words:
        console.show(columns_document(tuple(columns.values())))
        return
    found = _explained(" ".join(words), columns)
    shown = [column for _, column in found if column is not None]
    for document, _ in found:
        console.show(document)
    if (notation := notation_document(shown)) is not None:
        console.show(notation)


def _explain_all(*, as_json: bool) -> None:
    from shadow.reports.columns import TABLES

    tables = list(TABLES.values())
    if as_json:
        from shadow.reports.words import schema_json

        console.show_json(schema_json(tables))
        return
    from shadow.telling.dictionary import schema_document, table_document

    console.show(schema_document(tables))
    for table in tables:
        console.show(table_document(table))


def _explained(word: str, columns: Mapping[str, Column]) -> list[tuple[Document, Column | None]]:
    """All that a word stands for, the most specific first: topic, head of a table, column, other;
    each with the column that it shows. Raises UsageError where the word is not known.

    A space stands for an underscore in the name of a column, and a name with points for a figure
    of summary.json.
    """
    from shadow.reports.words import FILES, HEADS, Head, head_of, meaning_of, terms
    from shadow.telling import dictionary
    from shadow.telling.dictionary import other_words

    topics = {"finding": dictionary.finding_document, "gates": dictionary.gates_document}
    if word in topics:
        return [(topics[word](), None)]
    key, point, figure = word.partition(".")
    name = word if word in columns else "_".join(word.split()).lower()
    of_name, head = columns.get(name), head_of(word)
    other, text = other_words().get(word.lower()), meaning_of(word)
    heads = [head] if head is not None else []
    if other is not None and (head is None or not other.column):
        heads.append(other)
    found: list[tuple[Document, Column | None]] = []
    for one in heads:
        column = columns.get(one.column) if one is head or one.column != name else None
        found.append((dictionary.word_document(word, one, column), column))
    if of_name is not None and of_name not in [column for _, column in found]:
        found.insert(len(found) if head else 0, (dictionary.column_document(of_name), of_name))
    if text is not None and not any(column for _, column in found):
        found.insert(0, (dictionary.word_document(word, Head(text), None), None))
    if not found and point and key in FILES["summary.json"]:
        of_key = Head(FILES["summary.json"][key])
        found = [(dictionary.word_document(f"{key} in summary.json", of_key, None), None)]
        if (column := columns.get(figure.rpartition(".")[2])) is not None:
            found.append((dictionary.column_document(column), column))
    if not found:
        if error := gone_word(word):
            raise error
        known = [*columns, *HEADS, *shared.TOPICS, *other_words(), *terms()]
        hint = nearest(word, known, VERY_LIKE) or "`shadow explain` lists every column"
        raise UsageError(f"no column or word {word!r}", hint)
    return found
