"""The tables of a finished report as this version has them, also of a report that was made before
the newest columns.

Columns that were added to the schema since the report was made are null, but for those of purity,
which are made from others. Columns that this version does not know are left out, and a number that
is not finite, which no audit writes, is null.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shadow.errors import ShadowError
from shadow.reports.column_types import null_if_undefined
from shadow.reports.columns import TABLES, Column
from shadow.reports.parquet import arrow_schema
from shadow.reports.provenance import missing, unreadable
from shadow.text import several

STORED = ("matrices", "tensors", "files", "spectra")  # tables of a pair's folder
LATER = ("files",)  # tables that older reports lack
OPTIONAL = ("spectra",)  # left out by --no-spectra
MAX_ROWS = 5_000_000  # of a file; the largest released mixture of experts has 140,000 matrices
FEW_ROWS = 2_000  # up to which columns are read one by one: handing them to threads takes as long
MANY = 6  # absent columns that are named one by one


def conformed(table: pa.Table, columns: Iterable[Column], required: Iterable[str]) -> pa.Table:
    """The table with these columns, of their types and in their order; null where it has no value
    or one that is not finite.

    Raises KeyError for a column that is required, and what Arrow raises for text that is none or
    another type.
    """
    schema = arrow_schema(columns)
    there = dict(zip(table.column_names, table.columns, strict=True))
    if len(there) < table.num_columns:
        raise KeyError("a column that is there twice")
    if missing := set(required) & set(schema.names) - set(there):
        raise KeyError(*sorted(missing))
    arrays = []
    for field in schema:
        values = there.get(field.name)
        if values is None:
            arrays.append(pa.chunked_array([pa.nulls(len(table), field.type)]))
        else:
            arrays.append(finite(values.cast(field.type)))
    like_today = pa.Table.from_arrays(arrays, schema=schema.with_metadata(table.schema.metadata))
    like_today.validate(full=True)
    return like_today


def finite(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Null instead of NaN and infinity, in lists too."""
    if pa.types.is_floating(values.type):
        return pc.if_else(pc.is_finite(values), values, pa.scalar(None, values.type))
    if not pa.types.is_list(values.type) or not pa.types.is_floating(values.type.value_type):
        return values
    numbers = pc.list_flatten(values)
    if pc.all(pc.is_finite(numbers)).as_py() in (True, None):
        return values
    rows = [
        row if row is None else [null_if_undefined(value) for value in row]
        for row in values.to_pylist()
    ]
    return pa.chunked_array([pa.array(rows, values.type)])


def may_lack(name: str) -> bool:
    """May a finished report have no such file? An older one, or one of --no-spectra."""
    return name in LATER + OPTIONAL


def read_columns(file: pq.ParquetFile, name: str, columns: Sequence[Column]) -> pa.Table:
    """Some columns of a table's file, as this version has them. Call it in `telling_faults`."""
    stored = set(file.schema_arrow.names)
    there = [column.name for column in columns if column.name in stored]
    many = file.metadata.num_rows > FEW_ROWS
    return conformed(file.read(columns=there, use_threads=many), columns, TABLES[name].first)


@contextmanager
def telling_faults(path: Path) -> Iterator[None]:
    """What goes wrong in reading a file of a report is a ShadowError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise missing(path.parent, path.name) from error
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def check_rows(path: Path, count: int) -> None:
    """Refuse a file of more rows than any model has."""
    if count > MAX_ROWS:
        raise ShadowError(f"{path}: {count} rows", "name a report that `shadow audit` made")


def absent_note(missing: Sequence[str]) -> str:
    """What a person is told of a report that lacks these."""
    names = several(missing, MANY)
    return (
        f"made before these columns existed, so they are null here: {names}; `shadow audit"
        " --overwrite` gives them"
    )
