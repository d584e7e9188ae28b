"""Tables -> the Parquet files of a finished report, each whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shadow.errors import ShadowError
from shadow.files import write_beside, writing
from shadow.reports.atomic_replacement import KEPT, TABLES_OF_A_PAIR, replacing
from shadow.reports.column_types import STORED_TYPES, Cell
from shadow.reports.columns import Column
from shadow.reports.metadata import ReportMetadata
from shadow.reports.provenance import METADATA_KEY


def write_report(
    folder: Path,
    metadata: ReportMetadata,
    tables: Mapping[str, pa.Table],
    *,
    summary: bytes,
    scores: bytes,
) -> None:
    """Write the files of a finished audit; each table has the metadata.

    An earlier report stays readable until all of them are written; then they take its place. Empty
    scores: there are none.
    """
    with replacing(folder) as put:
        put("summary.json", summary)
        put(KEPT, scores)
        for name in TABLES_OF_A_PAIR:
            content = stored(tables[name], metadata) if name in tables else b""
            put(f"{name}.parquet", content)


def stored(table: pa.Table, metadata: ReportMetadata) -> bytes:
    """A table of a report as the bytes of its file."""
    return parquet_bytes(table, {METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()})


def write_rows(
    path: Path,
    columns: Sequence[Column],
    rows: Sequence[Mapping[str, Cell]],
    provenance: Mapping[str, object],
) -> None:
    """Write rows that belong to no pair's folder into a file of their own, whole or not at all.

    Raises ShadowError for a file that was not written so: a report must not be lost to a slip.
    """
    metadata = {METADATA_KEY: json.dumps(provenance, sort_keys=True).encode()}
    content = parquet_bytes(table_of(columns, rows), metadata)
    with writing(path.parent):
        if path.exists() and not _is_comparison(path):
            raise ShadowError(
                f"{path} is there already, and is no comparison", "choose another file with -o"
            )
        write_beside(path, content)


def _is_comparison(path: Path) -> bool:
    if not path.is_file():  # opening a FIFO would wait for ever
        return False
    try:
        metadata = json.loads((pq.read_schema(path).metadata or {})[METADATA_KEY])
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return False
    return isinstance(metadata, dict) and "comparison" in metadata


def arrow_type(column: Column) -> pa.DataType:
    """How Arrow stores a column."""
    stored = STORED_TYPES[column.type]
    value = pa.type_for_alias(stored.arrow)
    if stored.is_list:
        return pa.list_(value)
    return value


def arrow_schema(columns: Iterable[Column]) -> pa.Schema:
    """Columns as a schema of Arrow, in their order."""
    return pa.schema([pa.field(column.name, arrow_type(column)) for column in columns])


def table_of(columns: Sequence[Column], rows: Sequence[Mapping[str, Cell]]) -> pa.Table:
    """Rows as a table with these columns; null where a row has no such key."""
    return pa.Table.from_pylist(list(rows), schema=arrow_schema(columns))


def parquet_bytes(table: pa.Table, metadata: dict[bytes, bytes]) -> bytes:
    """A Parquet file of a table with this metadata and no other."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content
