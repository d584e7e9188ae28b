"""Commands that look something up: families, columns, tables."""

from __future__ import annotations

from typing import Annotated

import typer

from shadow.cli import console
from shadow.cli.options import Format, FormatOption, Json, Registry
from shadow.errors import UsageError
from shadow.text import nearest


def families(
    word: Annotated[
        str | None,
        typer.Argument(
            help="Name of a family to show, or a word to filter names, checkpoints and tags.", metavar="[NAME|WORD]"
        ),
    ] = None,
    component: Annotated[
        str | None, typer.Option(help="Only families that have this component: vision, projector, audio.")
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(help="Only families with this tag; repeat it for families with all of several tags."),
    ] = None,
    format: FormatOption = Format.table,
    json: Json = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of family files.")] = False,
    registry: Registry = None,
) -> None:
    """List the families of the registry, or show one."""
    if json:
        format = Format.json
    from shadow.targets.families import filter_families, load_families

    if schema:
        from shadow.targets.editor_schema import family_schema

        console.show_json(family_schema())
        return
    if component is not None:
        from shadow.places.names import check_component

        check_component(component)
    chosen = filter_families(load_families(registry), word, component, tag or ())
    if format is Format.json:
        console.show_json([family.as_json() for family in chosen])
        return
    from shadow.outputs.terminal.families import families_view, family_view

    one = len(chosen) == 1 and chosen[0].name == word
    console.display(family_view(chosen[0]) if one else families_view(chosen, console.out.options))


def explain(
    column: Annotated[
        str | None,
        typer.Argument(help="A column or figure of a report, `label`, `finding` or `published`; without it, list all."),
    ] = None,
) -> None:
    """Explain a column: formula, range, null value, source, pitfalls."""
    from shadow.findings.reference import calibration
    from shadow.outputs.terminal.columns import column_view, columns_view
    from shadow.outputs.terminal.label import label_view
    from shadow.reports.columns import BATCH, COUNTS, FIGURES, MATRICES, RESIDUAL, SCORES, SPECTRA, TENSORS

    # of columns with one name, that of matrices.parquet is meant
    columns = {one.name: one for one in (*BATCH, *COUNTS, *SCORES, *FIGURES, *RESIDUAL, *SPECTRA, *TENSORS, *MATRICES)}
    if column is None:
        console.display(columns_view(tuple(dict.fromkeys((*MATRICES, *columns.values())))))
        return
    if column == "label":
        console.display(label_view(calibration()))
        return
    if column == "published":
        from shadow.findings.published import released
        from shadow.outputs.terminal.published import published_view

        console.display(published_view(released()))
        return
    if column == "finding":
        from shadow.outputs.terminal.finding import finding_view

        console.display(finding_view())
        return
    if column not in columns:
        hint = nearest(column, [*columns, "label", "finding", "published"]) or "`shadow explain` lists them"
        raise UsageError(f"no column {column!r}", hint)
    console.display(column_view(columns[column]))


def schema(
    table: Annotated[str | None, typer.Argument(help="A table of a report; without it, list all.")] = None,
    format: FormatOption = Format.table,
    json: Json = False,
) -> None:
    """Show the schema of report files: tables, columns, types, units, null cases."""
    if json:
        format = Format.json
    from shadow.reports.columns import TABLES

    if table is not None and table not in TABLES:
        raise UsageError(f"no table {table!r}", nearest(table, TABLES) or f"one of {', '.join(TABLES)}")
    chosen = [TABLES[table]] if table else list(TABLES.values())
    if format is Format.json:
        from shadow.reports.schema import schema_json

        console.show_json(schema_json(chosen, files=table is None))
        return
    from shadow.outputs.terminal.columns import schema_view, table_view

    console.display(table_view(chosen[0]) if table else schema_view(chosen))
