"""Tables and Parquet files of a report, written group by group and read in the form of this
version: columns that an older report lacks are null, and those of a newer one are left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shadow.reports.columns import Cell, Column, Table
from shadow.reports.folders import missing, unreadable
from shadow.reports.provenance import METADATA_KEY, ReportMetadata
from shadow.text import several

COMPRESSION = "zstd"
MAGIC = b"PAR1"  # begins and ends a Parquet file
TAIL = 8  # bytes behind a footer: its length, and MAGIC
MAX_ROWS = 5_000_000  # of a file; the largest released mixture of experts has 140,000 matrices
MANY = 6  # absent columns that are named one by one


def arrow_schema(columns: Iterable[Column]) -> pa.Schema:
    """Columns as a schema of Arrow, in order."""
    fields = []
    for column in columns:
        name = column.arrow.removeprefix("list<").removesuffix(">")
        kind = pa.type_for_alias(name)
        fields.append(pa.field(column.name, kind if name == column.arrow else pa.list_(kind)))
    return pa.schema(fields)


def table_of(columns: Sequence[Column], rows: Sequence[Mapping[str, Cell]]) -> pa.Table:
    """Rows as a table with these columns; null if a row lacks the key."""
    return pa.Table.from_pylist(list(rows), schema=arrow_schema(columns))


# writing


class TableFile:
    """A Parquet file of a report being written: row groups as they come, the metadata at the end.

    It has no metadata before `finish`. Groups do not stay in memory.
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
        """Finish the rows, which can then be read."""
        if self._is_empty:  # a file without rows has a row group too
            self.write(self._schema.empty_table())
        self._writer.close()

    def finish(self, metadata: ReportMetadata) -> None:
        """Give the closed file its metadata; when it returns, it is on the disk."""
        empty, footer = pa.BufferOutputStream(), pa.BufferOutputStream()
        recorded = json.dumps(metadata, sort_keys=True).encode()
        schema = self._schema.with_metadata({METADATA_KEY: recorded})
        pq.ParquetWriter(empty, schema, compression=COMPRESSION).close()
        whole = pq.read_metadata(pa.BufferReader(empty.getvalue()))
        whole.append_row_groups(pq.read_metadata(self.path))
        whole.write_metadata_file(footer)
        with self.path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(size - TAIL)
            of_footer = int.from_bytes(file.read(4), "little")
            file.truncate(size - TAIL - of_footer)
            file.seek(0, os.SEEK_END)
            file.write(footer.getvalue().to_pybytes().removeprefix(MAGIC))
            file.flush()
            os.fsync(file.fileno())


# reading


def conformed(table: pa.Table, columns: Iterable[Column], required: Iterable[str]) -> pa.Table:
    """The table with these columns, in their types and order; null for missing values and
    those that are not finite.

    Raises KeyError for a missing required column, and Arrow's errors for text of another type.
    """
    schema = arrow_schema(columns)
    stored = dict(zip(table.column_names, table.columns, strict=True))
    if len(stored) < table.num_columns:
        raise KeyError("a column that occurs twice")
    if absent := set(required) & set(schema.names) - set(stored):
        raise KeyError(*sorted(absent))
    arrays = [
        finite(stored[field.name].cast(field.type))
        if field.name in stored
        else pa.chunked_array([pa.nulls(len(table), field.type)])
        for field in schema
    ]
    like_today = pa.Table.from_arrays(arrays, schema=schema.with_metadata(table.schema.metadata))
    like_today.validate(full=True)
    return like_today


def finite(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Replace NaN and infinity, which no audit writes, by null. Raises ValueError for one in a
    list.
    """
    if pa.types.is_floating(values.type):
        return pc.if_else(pc.is_finite(values), values, pa.scalar(None, values.type))
    is_list = pa.types.is_list(values.type) and pa.types.is_floating(values.type.value_type)
    if is_list and pc.all(pc.is_finite(pc.list_flatten(values))).as_py() is False:
        raise ValueError("a number that is not finite")
    return values


def read_table(file: pq.ParquetFile, table: Table) -> pa.Table:
    """Read a table's file in the form of this version. Call it in `telling_faults`."""
    stored = set(file.schema_arrow.names)
    names = [column.name for column in table.columns if column.name in stored]
    return conformed(file.read(columns=names), table.columns, table.first)


@contextmanager
def telling_faults(path: Path) -> Iterator[None]:
    """Turn errors in reading a file of a report into a ShadowError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise missing(path.parent, path.name) from error
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def absent_note(absent: Sequence[str]) -> str:
    """A note for people about a report that lacks these columns and files."""
    names = several(absent, MANY)
    return (
        f"made before these columns existed, so they are null here: {names}; `shadow audit"
        " --overwrite` gives them"
    )
