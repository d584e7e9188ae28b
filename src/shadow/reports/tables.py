"""The tables of a finished report as this version has them, also of a report that was made before the newest columns.

Columns that were added to the schema since the report was made are null, but for those of purity, which are made from
others, and so are all rows of a table that was;
`absent` names them. Columns that this version does not know are left out, and a number that is not finite, which no
audit writes, is null. A report of another schema is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shadow.errors import ShadowError
from shadow.reports.columns import TABLES, Column
from shadow.reports.parquet import arrow_schema
from shadow.reports.provenance import METADATA_KEY
from shadow.text import several

STORED = ("matrices", "tensors", "residual", "spectra")  # tables of a pair's folder
LATER = ("residual",)  # tables that the first reports lack
OPTIONAL = ("spectra",)  # left out by --no-spectra
MAX_ROWS = 5_000_000  # of a file; the largest released mixture of experts has 140,000 matrices
FEW_ROWS = 2_000  # up to which columns are read one after the other: handing them to threads takes as long
UNTOUCHED, NOISE = 4.0, 5.0  # as shadow.spectra.purity has them
PURITY_FROM = (
    "rows", "cols", "rank_ceiling", "participation_ratio", "null_participation_ratio", "row_participation_ratio",
    "col_participation_ratio", "floor_ratio",
)  # fmt: skip
PURITY = ("excess_purity", "purity_z", "equivalent_directions")  # read from these in reports that lack them
MANY = 6  # absent columns that are named one by one


def conformed(table: pa.Table, columns: Iterable[Column], required: Iterable[str]) -> pa.Table:
    """The table with these columns, of their types and in their order; null where it lacks one or is not finite.

    Raises KeyError for a column that is required, and what Arrow raises for text that is none or another type.
    """
    schema = arrow_schema(columns)
    there = dict(zip(table.column_names, table.columns, strict=True))
    if len(there) < table.num_columns:
        raise KeyError("a column that is there twice")
    if missing := set(required) & set(schema.names) - set(there):
        raise KeyError(*sorted(missing))
    arrays = [
        _finite_as(there[field.name], field.type) if field.name in there else pa.nulls(len(table), field.type)
        for field in schema
    ]
    like_today = pa.Table.from_arrays(arrays, schema=schema.with_metadata(table.schema.metadata))
    like_today.validate(full=True)
    return like_today


def _finite_as(values: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    return finite(values if values.type == wanted else values.cast(wanted))


def with_purity(table: pa.Table) -> pa.Table:
    """Rows of matrices with excess_purity, purity_z and equivalent_directions from the columns that older reports have.

    The formulas are those of an audit where kept is unknown: directions are of the stored delta, and null where
    floor_ratio is below UNTOUCHED (an adapter has none, as nothing was rounded). purity_z needs the participation
    ratios of rows and columns, which the first reports lack.
    """
    columns = {name: table[name].to_numpy() for name in table.column_names if name in PURITY_FROM}
    with np.errstate(divide="ignore", invalid="ignore"):
        purity = 1.0 / columns["participation_ratio"] - 1.0 / columns["null_participation_ratio"]
        z = purity * columns["row_participation_ratio"] * columns["col_participation_ratio"] / 2.0
        directions = 1.0 / purity
        short = np.minimum(columns["rows"], columns["cols"])
        unrounded = (columns["floor_ratio"] >= UNTOUCHED) | ~np.isnan(columns["rank_ceiling"].astype(float))
        countable = (z > NOISE) & (directions <= short) & unrounded
    computed = {
        "excess_purity": purity,
        "purity_z": z,
        "equivalent_directions": np.where(countable, directions, np.nan),
    }
    for name, values in computed.items():
        values = np.where(np.isfinite(values), values, np.nan)
        place = table.schema.get_field_index(name)
        table = table.set_column(
            place, table.schema.field(place), pa.chunked_array([pa.array(values, from_pandas=True)])
        )
    return table


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
        None if row is None else [x if x is not None and np.isfinite(x) else None for x in row]
        for row in values.to_pylist()
    ]
    return pa.chunked_array([pa.array(rows, values.type)])


def read_table(folder: Path, name: str, columns: Sequence[Column] | None = None) -> pa.Table | None:
    """A table of a finished report, or some columns of it; None where the report has no such file and need not.

    Raises ShadowError when the file is missing or broken.
    """
    path, table = folder / f"{name}.parquet", TABLES[name]
    wanted = table.columns if columns is None else columns
    try:
        if name in LATER + OPTIONAL and not path.exists():
            return None
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows > MAX_ROWS:
                raise ShadowError(f"{path}: {file.metadata.num_rows} rows", "is it a report of `shadow audit`?")
            stored = set(file.schema_arrow.names)
            there = [column.name for column in wanted if column.name in stored]
            many = file.metadata.num_rows > FEW_ROWS
            rows = conformed(file.read(columns=there, use_threads=many), wanted, table.first)
            if name == "matrices" and columns is None and "excess_purity" not in there:
                return with_purity(rows)
            return rows
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def read_tables(folder: Path, names: Sequence[str]) -> dict[str, pa.Table]:
    """Tables of a finished report by name, with its metadata. Left out is one that the audit did not write.

    Raises ShadowError when a file is missing, broken, or of another audit than the others.
    """
    tables = {name: read_table(folder, name) for name in names}
    stored = {name: table for name, table in tables.items() if table is not None}
    provenances = {(table.schema.metadata or {}).get(METADATA_KEY) for table in stored.values()}
    if len(provenances) > 1:
        raise of_different_audits(folder)
    metadata = dict.fromkeys([METADATA_KEY], provenances.pop()) if stored else None
    for name in LATER:
        if name in names and name not in stored:
            stored[name] = arrow_schema(TABLES[name].columns).with_metadata(metadata).empty_table()
    return stored


def of_different_audits(folder: Path) -> ShadowError:
    return ShadowError(f"{folder}: its files are of different audits", "run the audit again")


def _unreadable(path: Path, error: Exception) -> ShadowError:
    return ShadowError(
        f"{path.parent}: its report cannot be read: {path.name} ({type(error).__name__})", "run the audit again"
    )


def absent(folder: Path) -> list[str]:
    """What a finished report lacks that was added since: columns by name, tables by their file.

    Raises ShadowError when a file is broken.
    """
    lacking = []
    for name in STORED:
        path = folder / f"{name}.parquet"
        try:
            there = set(pq.read_schema(path).names) if path.exists() else None
        except (OSError, ValueError, pa.ArrowException) as error:
            raise _unreadable(path, error) from error
        if there is not None:
            known = [column.name for column in TABLES[name].columns if column.name not in PURITY]
            lacking += [column for column in known if column not in there]
        elif name in LATER:
            lacking.append(path.name)
    return list(dict.fromkeys(lacking))


def absent_note(missing: Sequence[str]) -> str:
    """What a person is told of a report that lacks these."""
    names = several(missing, MANY)
    return f"made before these columns were added, which are null here: {names}; `shadow audit --overwrite` gives them"
