"""Tables -> Parquet files: those of a report, group by group, and others in one piece."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from shadow.errors import ShadowError
from shadow.files import write_beside, writing
from shadow.reports.column_types import STORED_TYPES, Cell
from shadow.reports.columns import Column
from shadow.reports.metadata import ReportMetadata
from shadow.reports.provenance import METADATA_KEY

COMPRESSION = "zstd"
MAGIC = b"PAR1"  # begins and ends a Parquet file
TAIL = 8  # bytes behind a footer: its length, and MAGIC


class TableFile:
    """A Parquet file of a report in the making: row groups as they come, the metadata at the end.

    Until `finish` it holds no metadata. Nothing of a group stays in memory.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self._schema = schema.remove_metadata()
        self._writer = pq.ParquetWriter(path, self._schema, compression=COMPRESSION)
        self._is_empty = True

    def write(self, group: pa.Table) -> None:
        """Write rows as a row group of their own."""
        self._writer.write_table(group.cast(self._schema), row_group_size=max(1, group.num_rows))
        self._is_empty = False

    def close(self) -> None:
        """No more rows come. The rows can be read after that."""
        if self._is_empty:  # a file without rows has a row group too
            self.write(self._schema.empty_table())
        self._writer.close()

    def finish(self, metadata: ReportMetadata) -> None:
        """Give the closed file its metadata; on return it is on the disk."""
        schema = self._schema.with_metadata(_key_value(metadata))
        footer = _footer(schema, pq.read_metadata(self.path))
        with self.path.open("r+b") as file:
            file.truncate(pages_of(file))
            file.seek(0, os.SEEK_END)
            file.write(footer)
            file.flush()
            os.fsync(file.fileno())


def pages_of(file: IO[bytes]) -> int:
    """Bytes of a Parquet file before its footer: its pages, and the mark at its start."""
    size = file.seek(0, os.SEEK_END)
    if size < TAIL:
        return 0
    file.seek(size - TAIL)
    return max(0, size - TAIL - int.from_bytes(file.read(4), "little"))


def _footer(schema: pa.Schema, groups: pq.FileMetaData) -> bytes:
    """The end of a Parquet file, from its footer on, with the metadata of a schema."""
    empty, whole = pa.BufferOutputStream(), pa.BufferOutputStream()
    pq.ParquetWriter(empty, schema, compression=COMPRESSION).close()
    told = pq.read_metadata(pa.BufferReader(empty.getvalue()))
    told.append_row_groups(groups)
    told.write_metadata_file(whole)
    content: bytes = whole.getvalue().to_pybytes()
    return content.removeprefix(MAGIC)


def _key_value(provenance: Mapping[str, object]) -> dict[bytes, bytes]:
    return {METADATA_KEY: json.dumps(provenance, sort_keys=True).encode()}


def write_rows(
    path: Path,
    columns: Sequence[Column],
    rows: Sequence[Mapping[str, Cell]],
    provenance: Mapping[str, object],
) -> None:
    """Write rows that belong to no pair's folder into a file of their own, whole or not at all.

    Raises ShadowError for a file that was not written so: a report must not be lost to a slip.
    """
    content = parquet_bytes(table_of(columns, rows), _key_value(provenance))
    with writing(path.parent):
        is_ours = not path.exists()
        if path.is_file():  # opening a FIFO would wait for ever
            with suppress(OSError, ValueError, KeyError, TypeError, pa.ArrowException):
                is_ours = "comparison" in json.loads(pq.read_schema(path).metadata[METADATA_KEY])
        if not is_ours:
            raise ShadowError(
                f"{path} is there already, and is no comparison", "choose another file with -o"
            )
        write_beside(path, content)


def arrow_type(column: Column) -> pa.DataType:
    """How Arrow stores a column."""
    name, is_list = STORED_TYPES[column.type]
    value = pa.type_for_alias(name)
    return pa.list_(value) if is_list else value


def arrow_schema(columns: Iterable[Column]) -> pa.Schema:
    """Columns as a schema of Arrow, in their order."""
    return pa.schema([pa.field(column.name, arrow_type(column)) for column in columns])


def table_of(columns: Sequence[Column], rows: Sequence[Mapping[str, Cell]]) -> pa.Table:
    """Rows as a table with these columns; null where a row has no such key."""
    return pa.Table.from_pylist(list(rows), schema=arrow_schema(columns))


def parquet_bytes(table: pa.Table, metadata: dict[bytes, bytes]) -> bytes:
    """A Parquet file of a table with this metadata and no other."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression=COMPRESSION)
    content: bytes = sink.getvalue().to_pybytes()
    return content
