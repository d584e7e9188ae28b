"""The columns of a report and its schema, for `explain` and `schema`."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from shadow.reports.columns import SCHEMA, Column, notation_of
from shadow.reports.columns import Table as ReportTable
from shadow.reports.heads import Head
from shadow.reports.schema import RULES, is_later, null_cases


def columns_view(columns: Sequence[Column]) -> RenderableType:
    """`explain` without a column: every column in one line."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("column", style="cyan", no_wrap=True)
    table.add_column("meaning", ratio=1)
    for column in columns:
        table.add_row(column.name, escape(column.text))
    return table


def column_view(column: Column) -> RenderableType:
    """`explain COLUMN`: formula, range, null value, source, pitfalls."""
    rows = Table.grid(padding=(0, 2))
    no_unit = "none" if column.formula else ""
    facts = {
        "formula": column.formula,
        "type": column.type,
        "unit": column.unit or no_unit,
        "range": column.range,
        "null": column.null or "never",
        "source": column.source,
        "pitfalls": column.pitfalls,
    }
    for title, text in facts.items():
        if text:
            rows.add_row(Text(title, "dim"), Text(text))
    return Group(
        Text.assemble((column.name, "bold cyan"), f"  {column.text}"),
        Padding(rows, (1, 0, 0, 2)),
    )


def notation_view(columns: Sequence[Column]) -> RenderableType | None:
    """What the letters in these columns stand for; None where they have none."""
    text = notation_of(columns)
    return Padding(Text(text, "dim"), (1, 0, 0, 2)) if text else None


def head_view(word: str, head: Head, column: Column | None) -> RenderableType:
    """`explain HEAD`: what stands below a head of a table, and the column that it comes from."""
    title = Text.assemble((word, "bold cyan"), f"  {head.text}")
    if column is None:
        return title
    return Group(Padding(title, (0, 0, 1, 0)), column_view(column))


def schema_view(tables: Sequence[ReportTable]) -> RenderableType:
    """`schema` without a table: what each table is."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("table", style="cyan", no_wrap=True)
    shown.add_column("columns", justify="right", no_wrap=True)
    shown.add_column("where", overflow="fold")
    shown.add_column("one row is", ratio=1)
    for table in tables:
        shown.add_row(table.name, str(len(table.columns)), table.file, table.row)
    title = Text(
        f"Schema {SCHEMA}. `shadow schema TABLE` lists its columns, `shadow explain COLUMN` has"
        " formulas and sources."
    )
    rules = Table.grid(padding=(0, 1))
    for rule in RULES:
        rules.add_row(Text("-", "dim"), Text(rule, "dim"))
    return Group(shown, title, rules)


def table_view(table: ReportTable) -> RenderableType:
    """`schema TABLE`: type, unit, meaning and null case of every column, most needed first."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("column", style="cyan", no_wrap=True)
    shown.add_column("type", no_wrap=True)
    shown.add_column("meaning", ratio=1)
    for column in sorted(table.columns, key=lambda column: column.name not in table.start_here):
        shown.add_row(column.name, column.type, _meaning(table, column))
    head = Text.assemble(
        (table.name, "bold cyan"), f"  {table.file}, schema {SCHEMA}; one row is {table.row}"
    )
    return Group(head, shown)


def _meaning(table: ReportTable, column: Column) -> Text:
    """What a column is, its unit, when it is null, and whether a reader begins with it."""
    meaning = Text(column.text)
    if column.unit:
        meaning.append(f"; in {column.unit}", "dim")
    if cases := null_cases(column):
        meaning.append(f"; null: {', '.join(cases)}", "dim")
    if is_later(table, column):
        meaning.append("; later", "yellow")
    if column.name in table.start_here:
        meaning.append("; start here", "bold green")
    return meaning
