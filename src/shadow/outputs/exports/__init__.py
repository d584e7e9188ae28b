"""Finished reports -> one file or folder in the format of another community, with all of them in
the same tables.

Every table begins with family and pair, so that reports of many families lie in one table. It is
written whole or not at all, and nothing is written anywhere else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from shadow.errors import ShadowError, UsageError
from shadow.files import placing
from shadow.outputs.exports.databases import (
    is_our_duckdb,
    is_our_sqlite,
    write_duckdb,
    write_sqlite,
)
from shadow.outputs.exports.formats import (
    Export,
    TablePart,
    is_our_folder,
    write_arrow,
    write_csv,
    write_dataset_folder,
    write_json,
    write_parquet,
)
from shadow.reports.column_types import Cell
from shadow.reports.columns import REPORTS, TABLES, Type
from shadow.reports.metadata import SIDES, ReportMetadata
from shadow.reports.parquet import arrow_schema
from shadow.reports.report import Report
from shadow.reports.tables import STORED

ALWAYS = "reports"  # the table that says where the rows of the others come from


@dataclass(frozen=True)
class ExportFormat:
    """A format of one file, or of a folder with a manifest."""

    write: Callable[[Path, Export], None]
    what: str
    opens: str
    """A line of Python that opens the export of a folder `reports`."""
    is_our_file: Callable[[Path], bool] | None = None
    """Whether a file is such an export; None for formats of folders."""
    suffix: str = ""
    """The end of the name that an export gets when none is given; empty: a dash and the format."""


FORMATS = {
    "csv": ExportFormat(
        write_csv, "a folder of CSV files", 'pd.read_csv("reports-csv/matrices.csv")'
    ),
    "json": ExportFormat(
        write_json,
        "a folder of JSON Lines files",
        'pd.read_json("reports-json/matrices.jsonl", lines=True)',
    ),
    "arrow": ExportFormat(
        write_arrow,
        "a folder of Arrow IPC (Feather 2) files",
        'pl.read_ipc("reports-arrow/matrices.arrow")',
    ),
    "parquet": ExportFormat(
        write_parquet,
        "a Parquet dataset, partitioned as Hive does",
        'pd.read_parquet("reports-parquet/matrices")',
    ),
    "duckdb": ExportFormat(
        write_duckdb,
        "a DuckDB database",
        'duckdb.connect("reports.duckdb").sql("FROM deltas")',
        is_our_duckdb,
        ".duckdb",
    ),
    "sqlite": ExportFormat(
        write_sqlite,
        "a SQLite database",
        'pd.read_sql("SELECT * FROM deltas", sqlite3.connect("reports.sqlite"))',
        is_our_sqlite,
        ".sqlite",
    ),
    "hf-dataset-folder": ExportFormat(
        write_dataset_folder,
        "a dataset folder of the Hub",
        'datasets.load_dataset("./reports-dataset", "matrices")',
        suffix="-dataset",
    ),
}


def _is_ours(to: str, path: Path) -> bool:
    """Whether what lies at a path is an export to a format, which nobody has touched."""
    known = FORMATS[to].is_our_file
    return is_our_folder(to, path) if known is None else known(path)


@dataclass(frozen=True)
class ExportResult:
    """What was written."""

    output: Path
    rows: Mapping[str, int]
    reports: int
    older: int
    """Those of them that lack columns or tables, 0 or more."""
    absent: tuple[str, ...]


def export(
    folders: Sequence[Path], to: str, output: Path, tables: Sequence[str] = ()
) -> ExportResult:
    """Write the reports in folders to output; of all tables, or of some.

    Raises ShadowError when a report cannot be read, when two are of one pair, and when output is
    somebody else's.
    """
    if unknown := sorted({*tables} - {*STORED, ALWAYS}):
        raise UsageError(
            f"no table {unknown[0]!r} to export", f"one of {', '.join((ALWAYS, *STORED))}"
        )
    names = (ALWAYS, *(name for name in STORED if name in tables or not tables))
    reports = [Report(folder) for folder in folders]
    _refuse_twins(reports)
    metadata = tuple(_plain(report.provenance.told) for report in reports)
    missing = [report.absent for report in reports]
    rows = dict.fromkeys(names, 0)

    def parts() -> Iterator[TablePart]:
        while reports:  # the tables of a report are then forgotten: there may be hundreds
            part = _part(reports.pop(0), names)
            for name, table in part.tables.items():
                rows[name] += len(table)
            yield part

    with placing(output, partial(_is_ours, to), f"an unchanged export to {to}") as aside:
        FORMATS[to].write(aside, Export(names, metadata, parts()))
    return ExportResult(
        output=output,
        rows=rows,
        reports=len(folders),
        older=sum(bool(lacking) for lacking in missing),
        absent=tuple(dict.fromkeys(name for lacking in missing for name in lacking)),
    )


def default_output(run: Path, to: str) -> Path:
    """Where an export goes when no place is given: in the working folder, called after RUN."""
    return Path(f"{run.absolute().resolve().name or 'reports'}{FORMATS[to].suffix or f'-{to}'}")


def _refuse_twins(reports: Sequence[Report]) -> None:
    seen: dict[tuple[str, str], Path] = {}
    for report in reports:
        family, pair = text_of(report.provenance.family), text_of(report.provenance.pair)
        if (family, pair) in seen:
            raise ShadowError(
                f"{seen[family, pair]} and {report.folder} are both reports of {family}:{pair}",
                "name a folder that holds one of them",
            )
        seen[family, pair] = report.folder


def _part(report: Report, names: Sequence[str]) -> TablePart:
    """A report's tables with family and pair as their first columns."""
    metadata = report.provenance.told
    family, pair = text_of(metadata["family"]), text_of(metadata["pair"])
    tables = {ALWAYS: pa.Table.from_pylist([report_row(metadata)], schema=arrow_schema(REPORTS))}
    for name in names[1:]:
        schema = arrow_schema(TABLES[name].exported)
        table = report.table(name)
        known = {"family": pa.repeat(family, len(table)), "pair": pa.repeat(pair, len(table))}
        arrays = [
            known[field.name] if field.name in known else table[field.name] for field in schema
        ]
        tables[name] = pa.Table.from_arrays(arrays, schema=schema)
    ordered = {name: tables[name] for name in names}
    return TablePart(family=family, pair=pair, metadata=_plain(metadata), tables=ordered)


def report_row(metadata: ReportMetadata) -> dict[str, Cell]:
    """The row of a report in the table `reports`: what its metadata say, null where they do not."""
    told: Mapping[str, Any] = metadata
    settings = told["settings"]
    names = "family pair label label_reason gates version schema started seconds"
    values = {name: told.get(name) for name in names.split()}
    values |= {name: settings.get(name) for name in ("relation", "chosen")}
    method = settings["method"]
    values |= {name: method.get(name) for name in ("precision", "nulls", "seed", "subspaces")}
    values["metadata"] = _plain(metadata)
    for side in SIDES:
        values |= {f"{side}_{key}": value for key, value in told[side].items()}
    return {column.name: _as(column.type, values[column.name]) for column in REPORTS}


def _as(kind: Type, value: object) -> Cell:
    """The value if it is of that kind; what is no text becomes JSON text where text is wanted."""
    if value is None:
        return None
    if kind == "string" and isinstance(value, str):
        return text_of(value)
    if kind == "string":
        return json.dumps(_plain(value))
    if kind == "bool" and isinstance(value, bool):
        return value
    if isinstance(value, bool):  # which Python takes for an int
        return None
    if kind == "int" and isinstance(value, int) and abs(value) < 2**63:
        return value
    if kind == "float" and isinstance(value, int | float) and abs(value) < 1e308:
        return float(value)
    return None


def text_of(text: str) -> str:
    """Text that can be written as UTF-8: JSON may hold halves of letters."""
    return text.encode("utf-8", errors="replace").decode()


def _plain(value: Any) -> Any:
    """A value of JSON without text that is none or numbers that are not finite."""
    try:
        text = text_of(json.dumps(value, ensure_ascii=False))
    except RecursionError as error:
        raise ShadowError(
            "a report's metadata are nested too deep", "audit the pair again"
        ) from error
    return json.loads(text, parse_constant=lambda _: None)
