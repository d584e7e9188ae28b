"""A finished report as one object: its provenance, and its tables, each read once, on demand.

Tables come as Arrow has them (`table`) and as pandas has them (`matrices` and the others), and are
read once for both; singular values, gigabytes in a large model, a part at a time.

Missing values are `isna()` in all frames: whole numbers are `Int64`, flags `boolean` and texts
`string`, with `pd.NA`; numbers are float64 with NaN, which no audit writes, as NumPy, SciPy and
matplotlib expect. Columns that an older report lacks are missing in every row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shadow.errors import ShadowError
from shadow.reports.columns import TABLES
from shadow.reports.folders import (
    NAME_ONE,
    report_metadata,
    require_tables,
    schema_of,
    stored_metadata,
)
from shadow.reports.parquet import (
    MAX_ROWS,
    arrow_schema,
    conformed,
    read_table,
    telling_faults,
)
from shadow.reports.provenance import Provenance

if TYPE_CHECKING:
    import pandas as pd  # takes half a second to import, and who asks for no frame needs none of it

BATCH = 1024  # rows of spectra in memory at once


@dataclass(frozen=True)
class Report:
    """A finished report in a folder. Everything is read on demand, and only once."""

    folder: Path

    @cached_property
    def provenance(self) -> Provenance:
        """The pair, and the settings and version with which it was measured.

        Raises ShadowError when the folder holds no finished report, a broken one, or one of another
        schema.
        """
        return Provenance.of(report_metadata(self.folder))

    @cached_property
    def matrices(self) -> pd.DataFrame:
        """A row for each matrix and subject (base, tuned, delta)."""
        return frame_of(self.table("matrices"))

    @cached_property
    def tensors(self) -> pd.DataFrame:
        """A row for each tensor of either side, measured or not."""
        return frame_of(self.table("tensors"))

    @cached_property
    def files(self) -> pd.DataFrame:
        """A row for each file of either side; empty in older reports."""
        return frame_of(self.table("files"))

    @cached_property
    def spectra(self) -> pd.DataFrame:
        """The singular values of each matrix and subject; empty in a report of `--no-spectra`.

        Raises ShadowError if they were written and are gone.
        """
        return frame_of(self.table("spectra"))

    @property
    def has_spectra(self) -> bool:
        """True if singular values were written. Raises ShadowError if they were and are
        gone.
        """
        require_tables(self.folder, self.provenance.recorded, spectra=True)
        return self._path("spectra").exists()

    @cached_property
    def absent(self) -> tuple[str, ...]:
        """The columns that it lacks because they were added later. Raises ShadowError if a file is
        broken.
        """
        lacking: list[str] = []
        for table in filter(lambda table: table.later, TABLES.values()):
            lacking += table.later - {*schema_of(self._path(table.name)).names}
        return tuple(sorted(lacking))

    def table(self, name: str) -> pa.Table:
        """A whole table of Arrow, null where a value is missing; without rows if the report
        has no such file.

        Raises ShadowError if the file is missing, broken, or from another audit.
        """
        if name not in self._tables:
            assert self.provenance  # first: this completes a replacement that was killed half-way
            with telling_faults(self._path(name)):
                if name == "spectra" and not self.has_spectra:
                    self._tables[name] = arrow_schema(TABLES[name].columns).empty_table()
                else:
                    self._tables[name] = read_table(self._checked(name), TABLES[name])
        return self._tables[name]

    def spectrum_batches(
        self, names: Sequence[str] | None = None, where: pc.Expression | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield some columns of the singular values, of all rows or those that meet a condition, a
        part at a time; nothing if the report has none.

        Raises ShadowError like `table`.
        """
        if not self.has_spectra:
            return
        from pyarrow.dataset import dataset  # takes time that most commands need not

        table, path = TABLES["spectra"], self._path("spectra")
        columns = [column for column in table.columns if names is None or column.name in names]
        chosen = [column.name for column in columns]
        with telling_faults(path):
            self._checked("spectra")
            for batch in dataset(path).to_batches(
                columns=chosen, filter=where, batch_size=BATCH, batch_readahead=1, use_threads=False
            ):
                yield from conformed(pa.table(batch), columns, chosen).to_batches()

    def _path(self, table: str) -> Path:
        return self.folder / f"{table}.parquet"

    @cached_property
    def _tables(self) -> dict[str, pa.Table]:
        return {}

    def _checked(self, table: str) -> pq.ParquetFile:
        """The file of a table, after checking that it is of this audit and not too long."""
        path = self._path(table)
        file = pq.ParquetFile(path)
        if (count := file.metadata.num_rows) > MAX_ROWS:
            raise ShadowError(f"{path}: {count} rows", NAME_ONE)
        try:
            recorded = stored_metadata(file.schema_arrow)
        except (KeyError, ValueError, RecursionError):
            recorded = None
        if recorded != self.provenance.recorded:
            raise ShadowError(
                f"{self.folder}: its files are of different audits", "run the audit again"
            )
        return file


def frame_of(table: pa.Table) -> pd.DataFrame:
    """A table as the frames described above. Lists are NumPy arrays."""
    import pandas as pd

    types = {
        pa.int64(): pd.Int64Dtype(),
        pa.bool_(): pd.BooleanDtype(),
        pa.string(): pd.StringDtype(),
    }
    frame: pd.DataFrame = table.replace_schema_metadata(None).to_pandas(types_mapper=types.get)
    return frame
