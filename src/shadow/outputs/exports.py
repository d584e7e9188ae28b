"""Finished reports -> CSV files, a Parquet dataset or Markdown, all reports in the same tables.

A folder is written whole or not at all; family and pair are the first columns of every table.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq

from shadow.errors import ShadowError, UsageError
from shadow.files import placing
from shadow.outputs import ExportFormat
from shadow.outputs.markdown import markdown
from shadow.reports.folders import TABLES_OF_A_PAIR
from shadow.storage import as_given
from shadow.telling.reading import AuditReport
from shadow.telling.report import report_document

FORMATS = get_args(ExportFormat)
PAIR = ("family", "pair")  # the first columns of every table
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what a formula of a spreadsheet begins with


def export(folders: Iterable[Path], to: str, output: Path) -> Path:
    """Write the reports in folders to the folder output, and return it.

    Raises UsageError for an unknown format, ShadowError when a report cannot be read, when two are
    of one pair, and when output exists and is no empty folder.
    """
    if to not in FORMATS:
        raise UsageError(f"no format {to!r}", ", ".join(FORMATS))
    pairs: dict[tuple[str, str], Path] = {}
    with placing(output, _is_empty, "an empty folder", is_folder=True) as folder:
        for report in map(AuditReport, folders):  # in memory one at a time
            pair = (report.provenance.family, report.provenance.pair)
            twin = pairs.setdefault(pair, report.folder)
            if twin != report.folder:
                fault = f"{twin} and {report.folder} are both reports of {':'.join(pair)}"
                raise ShadowError(fault, "name a folder that holds one of them")
            if to == "markdown":  # what `shadow show` prints, for a model card
                metadata = report.provenance.recorded
                origin = as_given(report.folder)
                document = report_document(report.summary, metadata, origin)
                text = markdown(document.shown())
                page = folder / "reports.md"
                with page.open("a", encoding="utf-8", errors="replace") as file:
                    file.write(text + "\n")
                continue
            for name in TABLES_OF_A_PAIR:
                table = _table(report, name)
                if to == "csv":  # as of RFC 4180, in UTF-8
                    path = folder / f"{name}.csv"
                    with path.open("a", encoding="utf-8", newline="") as file:
                        lines = csv.writer(file, lineterminator="\r\n")
                        if not file.tell():
                            lines.writerow(table.column_names)
                        columns = [map(cell, column.to_pylist()) for column in table.columns]
                        lines.writerows(zip(*columns, strict=True))
                else:  # Hive's partitions, which become columns again
                    pq.write_to_dataset(
                        table,
                        folder / name,
                        list(PAIR),
                        basename_template="part-{i}.parquet",
                        compression="zstd",
                    )
    return output


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _table(report: AuditReport, name: str) -> pa.Table:
    """A table of a report with family and pair as its first columns."""
    columns: dict[str, object] = {}
    table = report.table(name)
    for key in PAIR:
        # JSON may hold halves of letters, which UTF-8 cannot
        text: str = getattr(report.provenance, key)
        content = text.encode(errors="replace")
        columns[key] = pa.repeat(content.decode(), len(table))
    columns |= {key: table[key] for key in table.column_names if key not in PAIR}
    return pa.table(columns)


def cell(value: object) -> str:
    """A cell of CSV: null is empty, a list JSON, a number reads back, and no text is a
    formula.

    Text that begins like a formula, or with an apostrophe, is preceded by an apostrophe.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        return json.dumps(value, separators=(",", ":"))
    if value.startswith((*FORMULA, "'")):
        return f"'{value}"
    return value
