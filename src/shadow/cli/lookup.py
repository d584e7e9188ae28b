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
    from shadow.reports.words import Head


def families(
    word: str | None = option(
        "Name of a family to show, or a word to filter names, checkpoints, tags and components.",
        None,
        ARGUMENT,
        metavar="NAME|WORD",
        complete="families",
    ),
    format: shared.Format = shared.FORMAT,
    registry: Path | None = shared.REGISTRY,
) -> None:
    """List the families of the registry, or show one."""
    from shadow.targets.families import filter_families, load_families

    chosen = filter_families(load_families(registry), word)
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
    from shadow.reports.words import schema_json
    from shadow.telling import dictionary

    tables = list(TABLES.values())
    if every and not words:
        if format == "json":
            console.show_json(schema_json(tables))
            return
        console.show(dictionary.schema_document(tables))
        for table in tables:
            console.show(dictionary.table_document(table))
        return
    if every or format != "table":
        raise UsageError("--all shows every table, and --json goes with it", "leave the word out")
    columns: dict[str, Column] = {}
    for column in (column for table in tables for column in table.columns):
        columns.setdefault(column.name, column)  # of one name, that of matrices.parquet
    if not words:
        console.show(dictionary.columns_document(tuple(columns.values())))
        return
    topics = {"finding": dictionary.finding_document, "gates": dictionary.gates_document}
    word = " ".join(words)
    if word in topics:
        console.show(topics[word]())
        return
    shown: list[Column] = []
    for head in _meanings(word, columns):
        explained = columns.get(head.column)
        if explained is None or explained in shown:
            console.show(dictionary.word_document(word, head, None))
            continue
        shown.append(explained)
        if head.text:
            console.show(dictionary.word_document(word, head, explained))
        else:
            console.show(dictionary.word_document(word, None, explained))
    if (notation := dictionary.notation_document(shown)) is not None:
        console.show(notation)


def _meanings(word: str, columns: Mapping[str, Column]) -> list[Head]:
    """Return everything that a word means: a head of a table, a column, another word of the
    screens, a term.

    A space may replace an underscore in the name of a column; a name with points is a figure of
    summary.json. Raises UsageError if the word is unknown.
    """
    from shadow.reports.words import FILES, GLOSSARY, HEADS, Head, head_of, meaning_of
    from shadow.telling.dictionary import other_words

    name = word if word in columns else "_".join(word.split()).lower()
    head, other, term = head_of(word), other_words().get(word.lower()), meaning_of(word)
    found = [] if head is None else [head]
    if name in columns and name not in [one.column for one in found]:
        found.append(Head("", name))
    if other is not None and not (head and other.column):
        found.append(other)
    if term is not None and not any(one.column in columns for one in found):
        found.insert(0, Head(term))
    key, point, figure = word.partition(".")
    if not found and point and key in FILES["summary.json"]:
        last = figure.rpartition(".")[2]
        found = [Head(FILES["summary.json"][key]), *([Head("", last)] if last in columns else [])]
    if not found:
        if error := gone_word(word):
            raise error
        known = [*columns, *HEADS, *shared.TOPICS, *other_words(), *GLOSSARY]
        hint = nearest(word, known, VERY_LIKE) or "`shadow explain` lists every column"
        raise UsageError(f"no column or word {word!r}", hint)
    return found
