"""Commands that look something up: families, columns, tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shadow.cli import console
from shadow.cli import options as shared
from shadow.errors import UsageError
from shadow.options import ARGUMENT, option


def families(
    word: str | None = option(
        "Name of a family to show, or a word to filter names, checkpoints, tags and components.",
        None,
        ARGUMENT,
        metavar="NAME|WORD",
        autocompletion=shared.offered_families,
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
    ),
    every: bool = option(
        "Show the schema of report files: every table and column.", False, "--all"
    ),
    format: shared.Format = option(
        "With --all: print a table or json (short: --json).", "table", metavar="FORMAT"
    ),
) -> None:
    """Explain a column or another word of a report. For a column, that is its formula, range, null
    value, source and pitfalls. With --all, every table.
    """
    from shadow.gates.verdicts import WORDS_OF_VERDICTS
    from shadow.reports.columns import TABLES, schema_json
    from shadow.telling import dictionary

    if (every or format != "table") and (words or not every):
        raise UsageError(
            "--all shows every table, and --json goes with it", "give --all and no word"
        )
    if format != "table":
        console.show_json(schema_json())
    elif every:
        console.show(dictionary.schema_document())
        for table in TABLES.values():
            console.show(dictionary.table_document(table))
    elif words:
        for document in dictionary.word_documents(" ".join(words), WORDS_OF_VERDICTS):
            console.show(document)
    else:
        console.show(dictionary.columns_document())
